"""Debian's prometheus-pgbouncer-exporter: what its collectors for LISTS and POOLS find."""
import sys

from prometheus_pgbouncer_exporter.collectors import ListsCollector, PoolsCollector
from prometheus_pgbouncer_exporter.utils import get_connection

connection = get_connection(user="postgres", port=int(sys.argv[1]), host="127.0.0.1")
lists = {m.name: m.samples[0].value for m in ListsCollector(connection).collect()}
assert lists["pgbouncer_databases"] == 2, lists
assert lists["pgbouncer_used_clients"] >= 1, lists
assert len(lists) == 12, lists
pools = {m.name: m.samples for m in PoolsCollector(databases=None, connection=connection).collect()}
active = pools["pgbouncer_active_clients"]
assert [s.labels for s in active] == [{"database": "pgbouncer", "user": "pgbouncer"}], active
assert active[0].value >= 1, active
