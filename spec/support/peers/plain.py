"""MessagePack-RPC in plain Python, written to the specification alone, and strict:
what the other side sends must be what a foreign library would send, to the byte.

  plain.py client ADDRESS WHAT   calls a server; WHAT is the name of a check below
  plain.py serve [ADDRESS] KIND  serves one connection, its own stdio by default

ADDRESS is the path of a unix socket, or a port of TCP. A check prints "ok".
"""
import os
import select
import socket
import sys
import time

import msgpack

LIMIT = 20


class Stdio:
    """Descriptors 0 and 1 with the calls of a socket."""

    def recv(self, size):
        return os.read(0, size)

    def sendall(self, data):
        while data:
            data = data[os.write(1, data):]

    def fileno(self):
        return 0

    def close(self):
        os.close(1)


def keys_are_text(value):
    if isinstance(value, dict):
        assert all(type(key) is str for key in value), value
        return all(map(keys_are_text, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(keys_are_text, value))
    return True


def strict(raw, message):
    """One message and its bytes: an envelope as a strict peer wants it."""
    assert raw == msgpack.packb(message), "not the shortest form: %r" % raw
    assert keys_are_text(message)
    kind = message[0]
    assert len(message) == {0: 4, 1: 4, 2: 3}[kind], message
    if kind != 2:
        assert type(message[1]) is int and 0 <= message[1] < 2**32, message
    if kind != 1:
        assert type(message[-2]) is str and type(message[-1]) is list, message
    else:
        assert message[2] is None or message[3] is None, message
    return message


class Peer:
    def __init__(self, stream):
        self.stream = stream
        self.unpacker = msgpack.Unpacker()
        self.fed = b""
        self.at = 0
        self.last = 0

    def raw(self, data):
        self.stream.sendall(data)

    def send(self, *message):
        self.raw(msgpack.packb(message))

    def message(self):
        """The next one, None at the end."""
        while True:
            try:
                message = next(self.unpacker)
                end = self.unpacker.tell()
                raw, self.fed, self.at = self.fed[: end - self.at], self.fed[end - self.at:], end
                return strict(raw, message)
            except StopIteration:
                ready, _, _ = select.select([self.stream], [], [], LIMIT)
                assert ready, "nothing came"
                data = self.stream.recv(65536)
                if not data:
                    assert not self.fed, "half a message: %r" % self.fed
                    return None
                self.fed += data
                self.unpacker.feed(data)

    def silent(self, seconds):
        ready, _, _ = select.select([self.stream], [], [], seconds)
        return not ready

    def ask(self, method, *params):
        self.last += 1
        self.send(0, self.last, method, params)
        return self.last

    def answer(self, to=None):
        """Error and result of the request of that number, the last one else."""
        message = self.message()
        assert message and message[0] == 1 and message[1] == (self.last if to is None else to), message
        return message[2], message[3]

    def call(self, method, *params):
        self.ask(method, *params)
        error, result = self.answer()
        assert error is None, error
        return result

    def fails(self, method, *params):
        self.ask(method, *params)
        error, result = self.answer()
        assert error is not None and result is None
        return error


# ---- a client's checks -----------------------------------------------------


def results(peer):
    assert peer.call("add", 1, 2) == 3
    assert type(peer.call("add", 1, 2)) is int and type(peer.call("add", 1.0, 2)) is float
    assert peer.call("none") is None
    assert peer.call("echo", None) is None
    assert peer.call("echo", "one") == "one"
    assert peer.call("echo", "one", "two") == ["one", "two"]
    assert peer.call("echo", None, None, 3, None) == [None, None, 3, None]
    assert peer.call("count", None, None) == 2 and peer.call("count") == 0
    assert peer.call("math.twice", 21) == 42
    value = {"a": [1, {"b": [True, False, "é"]}], "bytes": b"\xff\x00", "n": -2**63, "f": 0.5}
    assert peer.call("echo", value) == value
    for size in (0, 31, 32, 255, 256, 65535, 65536, 1 << 20):
        assert peer.call("echo", "x" * size) == "x" * size
        assert peer.call("echo", b"\xff" * size) == b"\xff" * size or size == 0


def errors(peer):
    code, text = peer.fails("no_such_method")
    assert type(code) is int and "no_such_method" in text, text
    for hidden in ("math", "math.twice.x", "__gc", "__index", "_G", "os.execute", "string.len", "", "x" * 5000):
        code, text = peer.fails(hidden)
        assert type(code) is int and type(text) is str
    code, text = peer.fails("fail", "the reason")
    assert type(code) is int and "the reason" in text, text
    code, text = peer.fails("fail", {"a": "table"})
    assert type(code) is int and type(text) is str
    code, text = peer.fails("unsendable")
    assert type(code) is int and type(text) is str
    assert peer.call("add", 1, 2) == 3  # none of them was its end


def text(peer):
    """As classic peers read them: an error is a text, and nothing comes unasked."""
    for method in ("no_such_method", "unsendable"):
        assert type(peer.fails(method)) is str
    assert "the reason" in peer.fails("fail", "the reason")
    assert peer.call("add", 1, 2) == 3
    assert peer.silent(0.1)


def liberal(peer):
    """What a sloppy peer sends, and a server takes."""
    def request(id, method, params=b"\x92\x01\x02"):
        peer.raw(b"\x94\x00" + id + method + params)

    add = b"\xa3add"
    forms = [
        (b"\x07", 7), (b"\xcc\x07", 7), (b"\xcd\x00\x07", 7), (b"\xce\x00\x00\x00\x07", 7),
        (b"\xcf" + b"\x00" * 7 + b"\x07", 7), (b"\xd0\x07", 7), (b"\xd3" + b"\x00" * 7 + b"\x07", 7),
        (b"\x00", 0), (b"\xce\xff\xff\xff\xff", 2**32 - 1),
    ]
    for id, number in forms:
        request(id, add)
        assert peer.answer(number) == (None, 3)
    for method in (b"\xc4\x03add", b"\xd9\x03add", b"\xda\x00\x03add", b"\xc5\x00\x03add"):
        request(b"\x01", method)
        assert peer.answer(1) == (None, 3)
    # Arrays and numbers in their long forms.
    peer.raw(b"\xdc\x00\x04\x00\x01" + add + b"\xdd\x00\x00\x00\x02\xd0\x01\xcf" + b"\x00" * 7 + b"\x02")
    assert peer.answer(1) == (None, 3)
    peer.raw(b"\x94\xcc\x00\x01" + add + b"\x92\x01\x02")
    assert peer.answer(1) == (None, 3)
    # Keys of any kind, and text that is none.
    peer.raw(b"\x94\x00\x01\xa5count\x91\x82\x01\x02\xc4\x01a\x03")
    assert peer.answer(1) == (None, 1)
    peer.raw(b"\x94\x00\x01\xa5count\x91\xa2\xff\xfe")
    assert peer.answer(1) == (None, 1)
    # What nobody waits for.
    peer.send(2, "no_such_notification", [1])
    peer.send(2, "fail", ["not told to anybody"])
    peer.send(1, 4711, None, "nobody asked")
    peer.send(1, 4712, [0, "nobody asked"], None)
    assert peer.call("add", 1, 2) == 3
    # A byte a packet.
    peer.last += 1
    for byte in msgpack.packb([0, peer.last, "echo", ["slow"]]):
        peer.raw(bytes([byte]))
    assert peer.answer() == (None, "slow")
    assert peer.silent(0.05)


def order(peer):
    """Many at once: they start in the order sent, their answers come in any."""
    first = peer.last + 1
    peer.raw(b"".join(msgpack.packb([0, first + i, "note", [i]]) for i in range(500)))
    peer.last += 500
    seen = {}
    for _ in range(500):
        kind, id, error, result = peer.message()
        assert kind == 1 and error is None
        seen[id] = result
    assert seen == {first + i: i for i in range(500)}
    assert peer.call("noted") == list(range(500))
    peer.send(2, "note", [500])
    peer.send(2, "note", [501])
    assert peer.call("noted") == list(range(502))
    slow = peer.ask("wait_for", "word")  # is answered behind what comes later
    quick = peer.ask("add", 1, 2)
    assert peer.answer(quick) == (None, 3)
    peer.send(2, "tell", ["word"])
    assert peer.answer(slow) == (None, "word")


def callback(peer):
    """The server calls back before it answers, and inside of that once more."""
    outer = peer.ask("back", 2)
    kind, id, method, params = peer.message()
    assert (kind, method, params) == (0, "double", [2])
    inner = peer.ask("add", 3, 4)  # while the server waits for us
    assert peer.answer(inner) == (None, 7)
    peer.send(1, id, None, 4)
    assert peer.answer(outer) == (None, "got 4")
    outer = peer.ask("back", 2)
    kind, id, method, params = peer.message()
    peer.send(1, id, [0, "no doubling today"], None)
    code, why = peer.answer(outer)[0]
    assert "no doubling today" in why


def unasked(peer):
    """A server says nothing first, and only what was asked for."""
    assert peer.silent(0.1)
    assert peer.call("add", 1, 2) == 3
    assert peer.silent(0.1)


def leaves(peer):
    """Goes in the middle of a call, and of a message."""
    peer.ask("wait_for", "nothing")
    peer.raw(b"\x94\x00\x09\xa3ad")


# ---- servers ---------------------------------------------------------------


def server(peer, kind):
    """One of that kind: "array" or "text" by its errors; "go" as those are: its
    errors are texts, and a notification resets the connection."""
    seen = []

    def wrong(text):
        return text if kind != "array" else [0, text]

    while True:
        message = peer.message()
        if message is None:
            return
        if message[0] == 1:
            continue
        method, params = message[-2:]
        seen.append(method)
        if message[0] == 2:
            if kind == "go":
                return
            continue
        error = result = None
        if method == "add":
            if len(params) == 2 and all(type(n) is int for n in params):
                result = params[0] + params[1]
            else:
                error = wrong("add wants two integers, not %r" % params)
        elif method == "echo":
            result = params
        elif method == "one":
            result = params[0]
        elif method == "seen":
            result = seen
        elif method == "fail":
            error = wrong("out of order")
        elif method == "odd":  # errors of any shape
            error = params[0]
        elif method == "back":  # calls back first, and serves meanwhile
            peer.send(0, 77, "double", params)
            reply = peer.message()
            while reply[0] != 1:
                if reply[0] == 0:
                    peer.send(1, reply[1], None, "meanwhile")
                reply = peer.message()
            assert reply[1] == 77
            result = reply[2:]
        elif method == "hang":
            time.sleep(params[0])
        elif method == "leave":
            return
        else:
            error = wrong("no method " + method)
        peer.send(1, message[1], error, result)


def main():
    what, rest = sys.argv[1], sys.argv[2:]
    if what == "client":
        address, check = rest
        if address.isdigit():
            stream = socket.create_connection(("127.0.0.1", int(address)))
        else:
            stream = socket.socket(socket.AF_UNIX)
            stream.connect(address)
        peer = Peer(stream)
        globals()[check](peer)
        stream.close()
        print("ok")
    elif len(rest) == 1:
        server(Peer(Stdio()), rest[0])
    else:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(rest[0])
        listener.listen()
        stream, _ = listener.accept()
        os.unlink(rest[0])
        server(Peer(stream), rest[1])


main()
