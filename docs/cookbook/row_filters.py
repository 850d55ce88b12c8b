import re
import switchyard

ADMINS = {"postgres"}
FILTERED = {"orders": "public.orders", "payments": "public.payments"}
ALLOWED = {"select", "insert", "update", "delete", "transaction", "show", "set"}
WITH = re.compile(r"\s*with\s+", re.IGNORECASE)


def rewrite_query(username, query, in_transaction):
    if username in ADMINS:
        return query
    parsed = switchyard.parse(query)
    if parsed.error:
        raise PermissionError("what cannot be parsed is not run: " + parsed.error)
    if any(one.kind not in ALLOWED for one in parsed.statements):
        raise PermissionError("not for users: " + parsed.kind)
    plain = [name.rsplit(".", 1)[-1] for name in parsed.tables]
    used = sorted(set(FILTERED).intersection(plain))
    if not used:
        return query
    if len(parsed.statements) > 1 or parsed.kind != "select" or not parsed.is_read_only \
            or not set(used).issubset(parsed.tables) or set(FILTERED.values()) & set(parsed.tables):
        raise PermissionError("only plain SELECTs on " + ", ".join(used))
    # A WITH query hides the table of its name.
    owner = "'" + username.replace("'", "''") + "'"
    hidden = ", ".join("%s as (select * from %s where owner = %s)" % (name, FILTERED[name], owner)
                       for name in used)
    start = WITH.match(query)
    if start is None:
        return "with %s %s" % (hidden, query)
    return "with %s, %s" % (hidden, query[start.end():])
