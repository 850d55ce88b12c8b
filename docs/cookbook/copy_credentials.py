import re

ROLES = {
    "loader": "arn:aws:iam::123456789012:role/load",
    "reports": "arn:aws:iam::123456789012:role/unload",
}
FROM_S3 = re.compile(r"\s*(copy|unload)\b.*'s3://", re.IGNORECASE | re.DOTALL)
GIVEN = re.compile(r"\b(iam_role|credentials|access_key_id)\b", re.IGNORECASE)


def rewrite_query(username, query, in_transaction):
    if not FROM_S3.match(query):
        return query
    if GIVEN.search(query):
        raise PermissionError("credentials are not for clients")
    if username not in ROLES:
        raise PermissionError("no role for " + username)
    return "%s iam_role '%s'" % (query.rstrip().rstrip(";"), ROLES[username])
