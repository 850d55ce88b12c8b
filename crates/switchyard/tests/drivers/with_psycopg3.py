"""psycopg 3: pipelines, prepared statements, COPY, errors, refused statements, two-way switch."""
import sys
import threading

import psycopg


def sleep(conn):
    """What ends a sleep: its SQLSTATE."""
    try:
        conn.execute("select pg_sleep(600)")
    except psycopg.Error as error:
        return error.sqlstate


port = int(sys.argv[1])
dsn = f"host=127.0.0.1 port={port} user=postgres dbname=dev"

with psycopg.connect(dsn, autocommit=True) as conn:
    for number in range(20):
        assert conn.execute("select %s::int + 1", (number,), prepare=True).fetchone() == (number + 1,)
    with conn.pipeline():
        cursors = [conn.execute("select %s::int", (number,)) for number in range(200)]
    assert [cursor.fetchone()[0] for cursor in cursors] == list(range(200))
    try:
        conn.execute("select 1/%s", (0,))
        raise SystemExit("no error")
    except psycopg.errors.DivisionByZero:
        pass
    conn.execute("drop table if exists driver_copy")
    conn.execute("create table driver_copy (a int, b text)")
    with conn.cursor() as cursor:
        with cursor.copy("copy driver_copy from stdin") as copy:
            for number in range(1000):
                copy.write_row((number, "x" * 500))
        with cursor.copy("copy driver_copy to stdout") as copy:
            assert sum(1 for _ in copy.rows()) == 1000

# The hooks refuse what contains the word; the connection lives, in and outside a transaction.
with psycopg.connect(dsn, autocommit=True) as conn:
    for _ in range(3):
        try:
            conn.execute("select 'refused', %s::int", (1,))
            raise SystemExit("not refused")
        except psycopg.errors.SystemError as error:
            assert error.sqlstate == "58000", error
        assert conn.execute("select %s::int", (7,)).fetchone() == (7,)
    with conn.transaction():
        assert conn.execute("select %s::int", (8,)).fetchone() == (8,)

with psycopg.connect(dsn) as conn:
    with conn.cursor(name="portal") as cursor:
        cursor.itersize = 10
        cursor.execute("select generate_series(1, 100)")
        assert sum(row[0] for row in cursor) == 5050

# Cancels, with the longer keys of protocol 3.2 where the client library speaks it.
versions = ["", "max_protocol_version=3.0", "max_protocol_version=latest"]
for version in versions if psycopg.pq.version() >= 180000 else versions[:1]:
    with psycopg.connect(f"{dsn} {version}", autocommit=True) as conn:
        conn.execute("select %s::int", (1,))
        sleeper = threading.Thread(target=lambda: canceled.append(sleep(conn)))
        canceled = []
        sleeper.start()
        while sleeper.is_alive():
            conn.cancel()
            sleeper.join(0.05)
        assert canceled == ["57014"], canceled
