"""The console through psycopg 3, psycopg2 and asyncpg: the extended protocol, text and binary."""
import asyncio
import decimal
import sys

import asyncpg
import psycopg
import psycopg2

WHERE = {"host": "127.0.0.1", "port": int(sys.argv[1]), "user": "postgres"}
SHOWS = ("lists", "databases", "stats", "totals", "clients", "servers", "config", "dns_hosts")


def check(version: str, lists: dict, totals: dict) -> None:
    assert version.startswith("Switchyard"), version
    assert lists["databases"] == 2 and type(lists["databases"]) is int, lists
    assert totals["total_query_count"] >= 1, totals
    assert type(totals["total_query_count"]) is decimal.Decimal, totals


def psycopg3(binary: bool, prepare: bool) -> None:
    with psycopg.connect(**WHERE, dbname="pgbouncer", autocommit=True) as connection:
        cursor = connection.cursor(binary=binary)
        for name in SHOWS * 2:
            cursor.execute(f"show {name}", prepare=prepare)
            cursor.fetchall()
        cursor.execute("set verbose = 0")
        assert cursor.statusmessage == "SET verbose=0", cursor.statusmessage
        try:
            cursor.execute("nonsense", prepare=prepare)
            raise SystemExit("no error")
        except psycopg.Error as error:
            assert "invalid command 'nonsense', use SHOW HELP;" in str(error), error
        check(
            cursor.execute("show version").fetchone()[0],
            dict(cursor.execute("show lists").fetchall()),
            dict(cursor.execute("show totals").fetchall()),
        )
        with connection.pipeline():
            first, second = connection.execute("show version"), connection.execute("show state")
            assert len(first.fetchall()) == 1 and len(second.fetchall()) == 3


def with_psycopg2() -> None:
    connection = psycopg2.connect(**WHERE, dbname="pgbouncer")
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("show databases")
    assert [column.name for column in cursor.description][:3] == ["name", "host", "port"]
    assert len(cursor.fetchall()) == 2
    connection.close()


async def with_asyncpg() -> None:
    connection = await asyncpg.connect(**WHERE, database="pgbouncer")
    for name in SHOWS * 2:
        await connection.fetch(f"show {name}")
    try:
        await connection.fetch("nonsense")
        raise SystemExit("no error")
    except asyncpg.PostgresError as error:
        assert "invalid command" in str(error), error
    statement = await connection.prepare("show lists")
    for _ in range(3):
        lists = dict(await statement.fetch())
    # These ask for one row and leave the rest.
    version = await connection.fetchval("show version")
    assert (await connection.fetchrow("show lists"))["list"] == "databases"
    check(version, lists, dict(await connection.fetch("show totals")))
    assert await connection.execute("reload") == "RELOAD"
    await connection.close()


for binary in (False, True):
    for prepare in (False, True):
        psycopg3(binary, prepare)
with_psycopg2()
asyncio.run(with_asyncpg())
