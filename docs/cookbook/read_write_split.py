import re
import switchyard

READ_ONLY_BLOCK = re.compile(r"\s*(begin|start\s+transaction)\b.*\bread\s+only\b", re.I | re.S)


def routing_rules(username, query, in_transaction):
    if in_transaction:
        return None
    parsed = switchyard.parse(query)
    if any(one.kind == "transaction" for one in parsed.statements):
        # What a block will do is not known at its beginning, unless it says so.
        return "app@reader" if READ_ONLY_BLOCK.match(query) else "app@writer"
    return "app@reader" if parsed.is_read_only else "app@writer"
