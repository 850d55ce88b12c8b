"""asyncpg: a pool of clients, prepared statements, time-outs that cancel, COPY."""
import asyncio
import sys

import asyncpg


async def main() -> None:
    pool = await asyncpg.create_pool(host="127.0.0.1", port=int(sys.argv[1]), user="postgres",
                                     database="dev", min_size=20, max_size=20)

    async def work(number: int) -> None:
        async with pool.acquire() as conn:
            assert await conn.fetchval("select $1::int * 2", number) == number * 2
            async with conn.transaction():
                assert await conn.fetchval("select $1::text", str(number)) == str(number)

    await asyncio.gather(*(work(number) for number in range(300)))
    async with pool.acquire() as conn:
        try:
            await conn.fetchval("select pg_sleep(30)", timeout=0.2)
            raise SystemExit("no time-out")
        except (asyncio.TimeoutError, TimeoutError):
            pass
        assert await conn.fetchval("select 1") == 1
        await conn.execute("drop table if exists driver_async")
        await conn.execute("create table driver_async (a int)")
        await conn.copy_records_to_table("driver_async", records=[(n,) for n in range(500)])
        assert await conn.fetchval("select count(*) from driver_async") == 500
    await pool.close()


asyncio.run(main())
