import re
from datetime import date, timedelta
import switchyard

LONGEST = timedelta(days=30)
DAY = r"\s*(?:date\s*)?'(\d{4}-\d\d-\d\d)'"
FROM = re.compile(r"\bday\s*>=?" + DAY, re.IGNORECASE)
UP_TO = re.compile(r"\bday\s*<=?" + DAY, re.IGNORECASE)
BETWEEN = re.compile(r"\bday\s+between" + DAY + r"\s*and" + DAY, re.IGNORECASE)
WARNING = "select 'events: please ask for at most %d days' as warning" % LONGEST.days


def span(query):
    """First and last day of a scan; None without a first one."""
    both = BETWEEN.search(query)
    if both:
        return date.fromisoformat(both[1]), date.fromisoformat(both[2])
    first, last = FROM.search(query), UP_TO.search(query)
    if not first:
        return None
    end = date.fromisoformat(last[1]) if last else date.today()
    return date.fromisoformat(first[1]), end


def rewrite_query(username, query, in_transaction):
    parsed = switchyard.parse(query)
    if "events" not in parsed.tables or parsed.kind != "select":
        return query
    days = span(query)
    return query if days and days[1] - days[0] <= LONGEST else WARNING
