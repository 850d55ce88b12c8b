import re

switchyard_pure = True
switchyard_keys = ["dev.1", "dev.2"]

# Regular expressions, not the parser: they also fit texts that only Redshift understands.
TABLES = [(re.compile(r"\b%s\b" % name, re.IGNORECASE), key) for name, key in [
    ("orders", "dev.1"),
    ("lineitem", "dev.1"),
    ("clicks", "dev.2"),
]]


def routing_rules(username, query, in_transaction):
    for expression, key in TABLES:
        if expression.search(query):
            return key
    return None
