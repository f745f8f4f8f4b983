"""What pingpong.c and oneway.c do, with what python3 brings; prints ns for each
round trip or message. Arguments: pingpong | small | large, across | one
(cores), seconds, pipe (multiprocessing.Pipe, the default) | shared (a ring in
multiprocessing.shared_memory, polling)."""

import multiprocessing
import os
import sys
import time
from multiprocessing import shared_memory

SMALL, LARGE = 64, 1 << 20
COUNT = {"pingpong": 50, "small": 2048, "large": 16}


class Ring:
    """A ring of slots: one writes, one reads, both poll. Copies in and out."""

    LINE = 8  # words between what one side writes and what the other does

    def __init__(self, size):
        self.size = size
        self.slots = max(4, (1 << 20) // size)
        words = 2 * self.LINE + self.slots
        self.memory = shared_memory.SharedMemory(
            create=True, size=8 * words + self.slots * size
        )
        self.words = self.memory.buf[: 8 * words].cast("Q")
        self.bytes = self.memory.buf[8 * words :]
        self.tail = self.head = self.known = 0

    def send(self, message):
        words, tail, slots = self.words, self.tail, self.slots
        while tail - self.known == slots:
            self.known = words[self.LINE]
        at = tail % slots
        size = len(message)
        self.bytes[at * self.size : at * self.size + size] = message
        words[2 * self.LINE + at] = size
        self.tail = words[0] = tail + 1

    def recv(self):
        words, head = self.words, self.head
        while head == self.known:
            self.known = words[0]
        at = head % self.slots
        size = words[2 * self.LINE + at]
        message = bytes(self.bytes[at * self.size : at * self.size + size])
        self.head = words[self.LINE] = head + 1
        return message

    def free(self):
        self.words.release()
        self.bytes.release()
        self.memory.close()
        self.memory.unlink()


class End:
    """A connection of two rings; an empty message is the end."""

    def __init__(self, reads, writes):
        self.rings = reads, writes
        self.recv_ring, self.send_bytes = reads.recv, writes.send

    def recv_bytes(self):
        message = self.recv_ring()
        if not message:
            raise EOFError
        return message


def pair(kind, size):
    if kind == "pipe":
        return multiprocessing.Pipe()
    a, b = Ring(size), Ring(size)
    return End(a, b), End(b, a)


def serve(end, other, work, place):
    if hasattr(other, "close"):
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


def main(work, place, seconds, kind="pipe"):
    seconds = float(seconds)
    if kind == "shared" and place == "one":
        sys.exit(print("polls"))
    batch = pingpong if work == "pingpong" else oneway
    message = b"x" * (LARGE if work == "large" else SMALL)
    mine, its = pair(kind, len(message))
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=serve, args=(its, mine, work, place))
    child.start()
    os.sched_setaffinity(0, {0})
    if kind == "pipe":
        its.close()
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
    if kind == "pipe":
        mine.close()
    else:
        mine.send_bytes(b"")
    child.join()
    if kind == "shared":
        for ring in mine.rings:
            ring.free()
    print("%.1f" % (sorted(took)[len(took) // 2] / COUNT[work] * 1e9))


main(*sys.argv[1:])
