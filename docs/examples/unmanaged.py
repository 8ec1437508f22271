"""A program of one's own that works on the rows its data centre owns, wherever the shards move.

Start it in each data centre with the address of a gateway there: `python unmanaged.py 127.0.0.1:7101`.
"""

import asyncio
import sys

import regiongate


async def main(target: str) -> None:
    async with regiongate.connect(target) as client, regiongate.Ownership(target, regions=["DE"]) as ownership:
        async for shards in ownership:  # those of now, and again whenever they have become others
            print(f"{len(shards)} shards are of {shards.idc}", flush=True)
            while ownership.shards is shards:
                async for row in client.list("customers", "DE"):
                    if ownership.shards is not shards:
                        break  # leave what we are doing, and go on with the new ones
                    if shards.owns(row.region_code, row.key):
                        print(f"{shards.idc} works on {row.key}", flush=True)
                await asyncio.sleep(1)


asyncio.run(main(sys.argv[1]))
