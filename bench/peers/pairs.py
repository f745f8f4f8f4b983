"""What pairs.lua does, with asyncio: tasks over its streams. Arguments: pairs,
seconds."""

import asyncio
import socket
import sys
import time

MESSAGE = b"x" * 64


async def main(count, seconds):
    trips = 0
    stop = False

    async def ping(sock):
        nonlocal trips
        reader, writer = await asyncio.open_connection(sock=sock)
        while not stop:
            writer.write(MESSAGE)
            await reader.readexactly(64)
            trips += 1
        writer.close()

    async def pong(sock):
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            while True:
                writer.write(await reader.readexactly(64))
        except asyncio.IncompleteReadError:
            writer.close()

    tasks = []
    for _ in range(count):
        a, b = socket.socketpair()
        tasks.append(asyncio.create_task(ping(a)))
        tasks.append(asyncio.create_task(pong(b)))
    await asyncio.sleep(0.2 + seconds / 10)
    trips = 0
    begin = time.perf_counter()
    await asyncio.sleep(seconds)
    took = (time.perf_counter() - begin) / trips
    stop = True
    await asyncio.gather(*tasks)
    print(took * 1e9)


asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
