import switchyard


def is_catalog(table):
    schema, _, name = table.rpartition(".")
    return schema in ("pg_catalog", "information_schema") or not schema and name.startswith("pg_")


def routing_rules(username, query, in_transaction):
    tables = switchyard.parse(query).tables
    if tables and all(is_catalog(table) for table in tables):
        return "dev.all"
    if "clicks" in tables:
        return "dev.2"
    return "dev.1"
