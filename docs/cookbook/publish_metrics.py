import switchyard


def rewrite_query(username, query, in_transaction):
    parsed = switchyard.parse(query)
    switchyard.counter("statements." + (parsed.kind or "unknown")).inc()
    if parsed.error:
        switchyard.counter("syntax_errors").inc()
    elif not parsed.is_read_only:
        for table in parsed.tables:
            if table in ("orders", "payments"):
                switchyard.counter("writes." + table).inc()
    return None
