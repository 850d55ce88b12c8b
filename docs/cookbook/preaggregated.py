import switchyard

switchyard_pure = True

# A fingerprint does not see constants: statements in this table must have none.
REPLACEMENTS = {
    switchyard.fingerprint("select region, sum(amount) from sales group by region"):
        "select region, amount from sales_by_region",
    switchyard.fingerprint("select count(*) from sales"):
        "select sum(entries)::bigint as count from sales_by_region",
}


def rewrite_query(username, query, in_transaction):
    return REPLACEMENTS.get(switchyard.fingerprint(query), query)
