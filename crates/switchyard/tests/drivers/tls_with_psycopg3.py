"""A current libpq over TLS: both ways to begin, a verified host, a bound login, a cancel that is
encrypted as well. Arguments: port, certificate of the authority."""

import sys
import threading
import time

import psycopg

port, root = sys.argv[1:3]
base = f"host=localhost hostaddr=127.0.0.1 port={port} dbname=postgres user=app password=secret"
verified = f"{base} sslmode=verify-full sslrootcert={root} channel_binding=require"

assert psycopg.pq.version() >= 170000, psycopg.pq.version()
for way in ["postgres", "direct"]:
    with psycopg.connect(f"{verified} sslnegotiation={way}", autocommit=True) as connection:
        assert connection.execute("select current_user").fetchone() == ("app",)
        rows = connection.execute("select repeat('x', 1000) from generate_series(1, 5000)")
        assert sum(len(text) for (text,) in rows) == 5_000_000
        with connection.cursor() as cursor, cursor.copy("copy (select 1) to stdout") as copy:
            assert [bytes(part) for part in copy] == [b"1\n"]
        # The request may come before the query: it is repeated until one has hit.
        done = threading.Event()

        def cancel():
            while not done.is_set():
                connection.cancel_safe(timeout=30)
                time.sleep(0.2)

        canceller = threading.Thread(target=cancel)
        canceller.start()
        try:
            connection.execute("select pg_sleep(60)")
            raise SystemExit("it was not cancelled")
        except psycopg.errors.QueryCanceled:
            pass
        finally:
            done.set()
            canceller.join()
        assert connection.execute("select 1").fetchone() == (1,)
