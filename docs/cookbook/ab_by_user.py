import zlib

switchyard_pure = True

SHARE = 20            # percent of the users
ALWAYS = {"tester"}


def routing_rules(username, query, in_transaction):
    bucket = zlib.crc32(username.encode("utf-8", "surrogateescape")) % 100
    return "app.b" if username in ALWAYS or bucket < SHARE else "app.a"
