"""Drivers whose statements are routed to two servers: tablea on one, tableb on two."""
import asyncio
import sys

import asyncpg
import psycopg
import psycopg2

port = int(sys.argv[1])
A, B = "select v from tablea", "select v from tableb"


def with_psycopg():
    dsn = "host=127.0.0.1 port=%d dbname=dev user=postgres" % port
    with psycopg.connect(dsn, autocommit=True, prepare_threshold=0) as connection:
        for _ in range(5):
            assert connection.execute(A).fetchone() == ("one",)
            assert connection.execute(B).fetchone() == ("two",)
            assert connection.execute(B + " where v = %s", ["two"]).fetchone() == ("two",)
        assert connection.execute(A).fetchone() == ("one",)
        with connection.transaction():
            assert connection.execute(A).fetchone() == ("one",)
            # A transaction stays whole; the statement is prepared where it runs.
            assert connection.execute(B).fetchone() == ("one",)
        assert connection.execute(B).fetchone() == ("two",)
        with connection.pipeline() as pipeline:
            cursors = []
            for sql in (A, B, B, A, B):
                cursors.append(connection.execute(sql))
                pipeline.sync()
            rows = [cursor.fetchone()[0] for cursor in cursors]
        assert rows == ["one", "two", "two", "one", "two"], rows
        with connection.pipeline():
            # One group has one server.
            cursors = [connection.execute(sql) for sql in (B, A, B)]
            rows = [cursor.fetchone()[0] for cursor in cursors]
        assert len(set(rows)) == 1, rows


def with_psycopg2():
    connection = psycopg2.connect(host="127.0.0.1", port=port, dbname="dev", user="postgres")
    connection.autocommit = True
    cursor = connection.cursor()
    for sql, value in ((A, "one"), (B, "two"), ("select v from other", "two")) * 3:
        cursor.execute(sql)
        assert cursor.fetchone() == (value,), sql
    connection.close()


async def with_asyncpg():
    connection = await asyncpg.connect(host="127.0.0.1", port=port, database="dev",
                                       user="postgres")
    first, second = await connection.prepare(A), await connection.prepare(B)
    for _ in range(5):
        assert await first.fetchval() == "one"
        assert await second.fetchval() == "two"
        assert await connection.fetchval(A + " where v = $1", "one") == "one"
        assert await connection.fetchval(B + " where v = $1", "two") == "two"
    assert await first.fetchval() == "one"
    async with connection.transaction():
        assert await first.fetchval() == "one"
        async for row in second.cursor():
            assert row["v"] == "one"
    assert await second.fetchval() == "two"
    await connection.close()


with_psycopg()
with_psycopg2()
asyncio.run(with_asyncpg())
