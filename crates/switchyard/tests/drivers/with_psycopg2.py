"""psycopg2: simple protocol, transactions, parameters that follow the client."""
import sys

import psycopg2

conn = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres", dbname="dev",
                        application_name="first")
other = psycopg2.connect(host="127.0.0.1", port=int(sys.argv[1]), user="postgres", dbname="dev",
                         application_name="second")
for _ in range(10):
    for link, name in ((conn, "first"), (other, "second")):
        with link, link.cursor() as cursor:
            cursor.execute("show application_name")
            assert cursor.fetchone() == (name,)
with conn.cursor() as cursor:
    try:
        cursor.execute("select 1/0")
        raise SystemExit("no error")
    except psycopg2.errors.DivisionByZero:
        conn.rollback()
    cursor.execute("select %s", ("x" * 1000000,))
    assert len(cursor.fetchone()[0]) == 1000000
