"""python3-msgpack as an oracle for lua-ipc's values.

echo IN OUT      decodes every frame and encodes it again
make SEED N OUT  encodes N random values
check SEED N IN  decodes N frames and compares them with the same N values
bench ROUNDS     reads one MessagePack value from standard input, prints the
                 nanoseconds of an encode and of a decode, a line a round

A frame is a length of 4 bytes, big-endian, and MessagePack.
"""

import math
import random
import struct
import sys
import time

import msgpack


def decode(data):
    return msgpack.unpackb(
        data, raw=False, strict_map_key=False, unicode_errors="surrogateescape"
    )


def encode(value):
    return msgpack.packb(
        value, use_bin_type=True, unicode_errors="surrogateescape"
    )


def frames(path):
    with open(path, "rb") as f:
        while True:
            head = f.read(4)
            if not head:
                return
            yield f.read(struct.unpack(">I", head)[0])


def frame(data):
    return struct.pack(">I", len(data)) + data


def integer(r):
    kind = r.randrange(3)
    if kind == 0:
        return r.randint(-40, 140)
    if kind == 1:
        return r.randint(-(2**63), 2**63 - 1)
    n = r.choice((1, -1)) * 2 ** r.randrange(64) + r.randint(-1, 1)
    return min(max(n, -(2**63)), 2**63 - 1)


def floating(r):
    special = (0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, 3.0, 2.0**63)
    return r.choice(special) if r.randrange(3) == 0 else r.uniform(-1e6, 1e6)


def length(r):
    return r.choice((0, 1, 2, 4, 8, 16, 31, 32, 255, 256, r.randrange(50)))


def text(r):
    return "".join(
        chr(r.choice((r.randrange(128), r.randrange(0x80, 0xD800),
                      r.randrange(0xE000, 0x110000))))
        for _ in range(length(r) // 2)
    )


def value(r, depth):
    kind = r.randrange(11 if depth else 8)
    if kind == 0:
        return r.choice((None, False, True))
    if kind in (1, 2):
        return integer(r)
    if kind == 3:
        return floating(r)
    if kind in (4, 5):
        return text(r)
    if kind == 6:
        return r.randbytes(length(r))
    if kind == 7:
        return msgpack.ExtType(r.randrange(128), r.randbytes(length(r)))
    if kind < 10:
        return [value(r, depth - 1) for _ in range(r.randrange(7))]
    key = lambda: r.choice(
        (text(r), r.randbytes(length(r)), integer(r), r.randrange(99) + 0.5)
    )
    pairs = {}
    for _ in range(r.randrange(7)):
        k = key()  # "" and b"" are one key to Lua
        pairs[as_bytes(k) if isinstance(k, (str, bytes)) else k] = k
    return {k: value(r, depth - 1) for k in pairs.values()}


def as_bytes(s):
    return s if isinstance(s, bytes) else s.encode("utf-8", "surrogateescape")


def is_utf8(data):
    try:
        data.decode("utf-8")
        return True
    except UnicodeDecodeError:
        return False


def same(sent, got, key=False):
    """Lua has one kind of string: str if it is UTF-8 or a key, else bin."""
    if isinstance(sent, (str, bytes)):
        return (
            isinstance(got, (str, bytes))
            and as_bytes(sent) == as_bytes(got)
            and isinstance(got, str) == (key or is_utf8(as_bytes(sent)))
        )
    if type(sent) is not type(got):
        return False
    if isinstance(sent, float):
        return struct.pack("d", sent) == struct.pack("d", got)
    if isinstance(sent, list):
        return len(sent) == len(got) and all(map(same, sent, got))
    if isinstance(sent, dict):
        names = lambda d: {
            as_bytes(k) if isinstance(k, (str, bytes)) else k: (k, v)
            for k, v in d.items()
        }
        a, b = names(sent), names(got)
        return a.keys() == b.keys() and all(
            same(a[k][0], b[k][0], True) and same(a[k][1], b[k][1]) for k in a
        )
    return sent == got


def values(seed, n):
    r = random.Random(int(seed))
    return (value(r, 4) for _ in range(int(n)))


def clock(work, times):
    start = time.perf_counter_ns()
    for _ in range(times):
        work()
    return (time.perf_counter_ns() - start) / times


def main(command, *args):
    if command == "echo":
        with open(args[1], "wb") as out:
            for data in frames(args[0]):
                out.write(frame(encode(decode(data))))
    elif command == "make":
        with open(args[2], "wb") as out:
            for v in values(args[0], args[1]):
                out.write(frame(encode(v)))
    elif command == "check":
        got = frames(args[2])
        for i, v in enumerate(values(args[0], args[1])):
            data = next(got, None)
            if data is None or not same(v, decode(data)):
                sys.exit(f"value {i}: sent {v!r}, got {data!r}")
        if next(got, None) is not None:
            sys.exit("too many frames")
    elif command == "bench":
        data = sys.stdin.buffer.read()
        v = msgpack.unpackb(data)
        times = 20000000 // (len(data) + 1000)
        for _ in range(int(args[0])):
            print(
                clock(lambda: msgpack.packb(v), times),
                clock(lambda: msgpack.unpackb(data), times),
            )


main(*sys.argv[1:])
