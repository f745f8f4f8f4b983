"""What pingpong.c and oneway.c do, with python3's multiprocessing.Pipe; prints
ns for each round trip or message. Arguments: pingpong | small | large, across |
one (cores), seconds."""

import multiprocessing
import os
import sys
import time

SMALL, LARGE = 64, 1 << 20
COUNT = {"pingpong": 50, "small": 2048, "large": 16}


def serve(end, other, work, place):
    other.close()
    os.sched_setaffinity(0, {1 if place == "across" else 0})
    size = LARGE if work == "large" else SMALL
    count = 1 if work == "pingpong" else COUNT[work]
    try:
        while True:
            for _ in range(count):
                message = end.recv_bytes()
                assert len(message) == size
            end.send_bytes(message if work == "pingpong" else b"!")
    except EOFError:
        pass


def pingpong(end, message, count):
    for _ in range(count):
        end.send_bytes(message)
        assert len(end.recv_bytes()) == len(message)


def oneway(end, message, count):
    for _ in range(count):
        end.send_bytes(message)
    assert end.recv_bytes() == b"!"


def main(work, place, seconds):
    seconds = float(seconds)
    batch = pingpong if work == "pingpong" else oneway
    message = b"x" * (LARGE if work == "large" else SMALL)
    fork = multiprocessing.get_context("fork")
    mine, its = fork.Pipe()
    child = fork.Process(target=serve, args=(its, mine, work, place))
    child.start()
    its.close()
    os.sched_setaffinity(0, {0})
    now = time.monotonic
    begin = now()
    while now() - begin < seconds / 10:
        batch(mine, message, COUNT[work])
    took = []
    begin = last = now()
    while len(took) < 3 or last - begin < seconds:
        batch(mine, message, COUNT[work])
        at = now()
        took.append(at - last)
        last = at
    mine.close()
    child.join()
    print("%.1f" % (sorted(took)[len(took) // 2] / COUNT[work] * 1e9))


main(*sys.argv[1:])
