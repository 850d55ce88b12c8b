import random
import time
import switchyard

LAG_MAX = 16 * 1024 * 1024
known, known_at = None, 0.0


def cluster():
    """The cluster's state, asked for at most ten times a second."""
    global known, known_at
    if time.monotonic() - known_at > 0.1:
        known, known_at = switchyard.cluster("app"), time.monotonic()
    return known


def routing_rules(username, query, in_transaction):
    if in_transaction:
        return None
    found = cluster()
    parsed = switchyard.parse(query)
    if found is None or not parsed.is_read_only or parsed.kind == "transaction":
        return "app@writer"
    near = [name for name in found.readers if found.lag_bytes.get(name, 0) <= LAG_MAX]
    return "app@" + random.choice(near) if near else "app@writer"
