"""Calls of add(1, 2) from python3: through multiprocessing.managers, or pynvim
to a Neovim, which takes or(1, 2) of its own functions. Prints ns a call.
Arguments: sequence | clients (8 processes), across | one | any (cores),
seconds, managers | pynvim."""

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.managers import BaseManager

BATCH, CLIENTS = 50, 8
PATIENCE = 60  # seconds until a benchmark counts as hung

fork = multiprocessing.get_context("fork")


class Calculator:
    def add(self, a, b):
        return a + b


class Manager(BaseManager):
    pass


Manager.register("Calculator", Calculator)


def core(place, number):
    if place != "any":
        os.sched_setaffinity(0, {number if place == "across" else 0})


def until(connect):
    """connect(), again and again until the server is there."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return connect()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def serve_managers(path, place):
    core(place, 1)
    Manager(address=path, authkey=b"bench").get_server().serve_forever()


def connect_managers(path):
    manager = Manager(address=path, authkey=b"bench")
    until(manager.connect)
    add = manager.Calculator().add
    return lambda: add(1, 2)


def serve_pynvim(path, place):
    core(place, 1)
    nvim = ["nvim", "--clean", "--headless", "--listen", path]
    os.execvp(nvim[0], nvim)


def connect_pynvim(path):
    import pynvim

    nvim = until(lambda: pynvim.attach("socket", path=path))
    return lambda: nvim.call("or", 1, 2)


def batch(call):
    for _ in range(BATCH):
        assert call() == 3


def sequence(connect, path, seconds):
    call = connect(path)
    now = time.monotonic
    begin = now()
    while now() - begin < seconds / 10:
        batch(call)
    took = []
    begin = last = now()
    while len(took) < 3 or last - begin < seconds:
        batch(call)
        at = now()
        took.append(at - last)
        last = at
    return sorted(took)[len(took) // 2] / BATCH


def client(connect, path, seconds, ready, go):
    call = connect(path)
    batch(call)
    ready.send(0)
    go.wait()
    end, n = time.monotonic() + seconds, 0
    while n == 0 or time.monotonic() < end:
        batch(call)
        n += BATCH
    ready.send(n)


def clients(connect, path, seconds):
    go, ends = fork.Event(), []
    for _ in range(CLIENTS):
        mine, its = fork.Pipe()
        process = fork.Process(target=client, args=(connect, path, seconds, its, go))
        process.start()
        ends.append((mine, process))
    for mine, _ in ends:
        mine.recv()
    go.set()
    total = sum(mine.recv() for mine, _ in ends)
    for _, process in ends:
        process.join()
    return seconds / total


def main(work, place, seconds, kind):
    if work == "flight":
        sys.exit(print("one at a time"))
    serve, connect = globals()["serve_" + kind], globals()["connect_" + kind]
    path = "/tmp/ipc-bench.%d" % os.getpid()
    server = fork.Process(target=serve, args=(path, place))
    server.start()
    core(place, 0)
    try:
        took = {"sequence": sequence, "clients": clients}[work](
            connect, path, float(seconds)
        )
    finally:
        server.kill()
        server.join()
        if os.path.exists(path):
            os.unlink(path)
    print("%.1f" % (took * 1e9))


main(*sys.argv[1:])
