-- Unix sockets: what is their own beyond what contract_spec says of every
-- channel, and a peer that is not this library: Python.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local fork = peer.fork
local E = ipc.errno

local KIB <const> = 1024
local MIB <const> = 1024 * KIB

local function stream(options)
  return peer.pair("unix", options)
end

local function packets(options)
  return peer.pair("unix?type=seqpacket", options)
end

local has_packets = peer.has "unix?type=seqpacket"
local kinds = { stream, has_packets and packets or nil }

-- A child that becomes Python with one end: `fd` is its descriptor there.
local function python(channel, script)
  return fork(function(mine)
    local source = "import os, socket, sys\nfd = int(sys.argv[1])\n" .. script
    peer.exec({ mine }, peer.python, "-c", source, tostring(mine:pollfd()))
  end, channel)
end

local function fails(errno, pattern, ok, message, number)
  assert.is_nil(ok)
  assert.are.equal(errno, number)
  assert.matches(pattern, message)
end

describe("a pair of unix sockets", function()
  after_each(peer.clean)

  it("is one descriptor an end, for both ways", function()
    local before = peer.descriptors()
    local a, b = stream()
    assert.are.equal(before + 2, peer.descriptors())
    assert.is_true(a:send "ping")
    assert.is_true(b:send "pong")
    assert.are.equal("pong", a:recv())
    assert.are.equal("ping", b:recv())
    a:close()
    b:close()
    assert.are.equal(before, peer.descriptors())
  end)

  it("takes options from the address and from the table, which wins", function()
    for _, type in ipairs { "stream", has_packets and "seqpacket" or nil } do
      local a = peer.pair("unix?type=" .. type, { maxsize = 100 })
      assert.are.equal(100, a:maxsize())
      local b = peer.pair(("unix?type=%s&maxsize=50"):format(type))
      assert.are.equal(50, b:maxsize())
    end
    local c = peer.pair("unix?maxsize=50", { maxsize = 60 })
    assert.are.equal(60, c:maxsize())
  end)

  it("refuses options that it does not have, by name", function()
    assert.error_matches(function() ipc.pair("unix", { typ = "stream" }) end,
      "unknown option 'typ'")
    assert.error_matches(function() ipc.pair("unix", { type = "dgram" }) end,
      [[option 'type': "stream" or "seqpacket" expected]])
    assert.error_matches(function() ipc.pair("unix?type=seqpacket&unit=stream") end,
      "packets are messages")
    assert.error_matches(function() ipc.pair "unix:/tmp/named" end, "a pair has no name")
  end)

  it("closes one way by shutdown while the other goes on", function()
    for _, open in ipairs(kinds) do
      local a, b = open()
      assert.is_true(a:send "last")
      assert.is_true(a:shutdown())
      assert.are.same({ nil, "closed", E.EPIPE }, { a:send "more" })
      assert.are.equal("last", b:recv())
      assert.are.same({ nil, "closed", E.EPIPE }, { b:recv() })
      assert.is_true(b:send "answer")
      assert.is_true(b:send "")
      assert.are.equal("answer", a:recv())
      assert.are.equal("", a:recv())
      b:close()
      assert.are.same({ nil, "closed", E.EPIPE }, { a:recv() })
    end
  end)

  it("shut down while a message is on its way sends that message first", function()
    local a, b = stream()
    local sent = ("x"):rep(3 * MIB)
    assert.is_true(a:send(sent, nil, 0))
    assert.is_true(a:stats().unsent > 0)
    assert.is_true(a:shutdown())
    assert.are.same({ nil, "closed", E.EPIPE }, { a:send "more" })
    assert.is_true(b:recv() == sent)
    assert.are.same({ nil, "closed", E.EPIPE }, { b:recv() })
  end)

  it("gives what was sent before a close that left data unread", function()
    for _, open in ipairs(kinds) do
      local a, b = open()
      assert.is_true(a:send "unread")
      assert.is_true(b:send "answer" and b:send "second answer")
      assert.is_true(b:close())
      assert.are.equal("answer", a:recv())
      assert.are.equal("second answer", a:recv())
      assert.are.same({ nil, "closed", E.EPIPE }, { a:recv() })
    end
  end)

  it("tells that the other side was killed", function()
    for _, open in ipairs(kinds) do
      local a, b = open()
      local child = fork(function(mine)
        mine:send "alive"
        mine:recv()
      end, b)
      assert.are.equal("alive", a:recv())
      assert.is_true(a:send "unread, which makes the end a reset")
      child:kill "KILL"
      child:wait()
      assert.are.same({ nil, "closed", E.EPIPE }, { a:recv() })
      assert.are.same({ nil, "closed", E.EPIPE }, { a:send "x" })
    end
  end)
end)

describe("a seqpacket pair", function()
  after_each(peer.clean)

  if not has_packets then
    it("does not exist here: ENOTSUP", function()
      assert.are.equal(E.ENOTSUP, (select(3, ipc.pair "unix?type=seqpacket")))
    end)
    return
  end

  it("carries what maxsize tells, and not one byte more", function()
    local a, b = packets()
    local most = a:maxsize()
    assert.is_true(most > 64 * KIB)
    assert.is_true(a:send(("x"):rep(most)))
    assert.are.equal(most, #b:recv())
    fails(E.EMSGSIZE, "maxsize is " .. most, a:send(("x"):rep(most + 1)))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { b:recv(0) })
    assert.is_true(a:send "next")
    assert.are.equal("next", b:recv())
  end)

  it("carries exactly the maxsize asked for, or names the limit", function()
    for _, want in ipairs { 1, 1000, 100 * KIB, MIB, 3 * MIB } do
      local a, b, errno = ipc.pair("unix", { type = "seqpacket", maxsize = want, timeout = peer.limit })
      if a then
        peer.keep(a, b)
        assert.are.equal(want, a:maxsize())
        assert.are.equal(want, b:maxsize())
        assert.is_true(a:send(("x"):rep(want)))
        assert.are.equal(want, #b:recv())
        fails(E.EMSGSIZE, "maxsize is " .. want, b:send(("x"):rep(want + 1)))
      else
        assert.is_true(want > 100 * KIB)
        fails(E.EMSGSIZE, "net%.core%.wmem_max", a, b, errno)
      end
    end
  end)

  it("names the limit where the system refuses a larger one", function()
    -- Without the privilege to exceed it.
    local who = io.popen("id -u"):read "n" == 0 and "setpriv --bounding-set=-net_admin" or ""
    local output = peer.run([[
      local a, message, errno = ipc.pair("unix", { type = "seqpacket", maxsize = 1 << 30 })
      print(a, ipc.errno[errno])
      print(message)
    ]], { under = who })
    assert.matches("^nil\tEMSGSIZE\n", output)
    assert.matches("1073741824", output)
    assert.matches("net%.core%.wmem_max", output)
  end)

  it("tells empty messages from the end", function()
    local a, b = packets()
    assert.is_true(a:send "")
    assert.is_true(a:send "x")
    assert.is_true(a:send "")
    a:close()
    assert.are.equal("", b:recv())
    assert.are.equal("x", b:recv())
    assert.are.equal("", b:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { b:recv() })
  end)

  it("does so where packets cannot carry credentials", function()
    local output = peer.run([[
      local a, b = ipc.pair("unix", { type = "seqpacket", timeout = 10 })
      local most = a:maxsize()
      print(a:send(("y"):rep(most)), #b:recv() == most, (a:send(("y"):rep(most + 1))))
      print(a:send "", a:send "x", a:send "")
      a:close()
      for message in b:messages() do
        print("<" .. message .. ">")
      end
      print(b:recv())
      a, b = ipc.pair("unix", { type = "seqpacket", maxsize = 100, timeout = 10 })
      print(a:send(("z"):rep(100)), #b:recv(), (a:send(("z"):rep(101))))
    ]], { env = { IPC_WITHOUT = "passcred" } })
    assert.are.equal("true\ttrue\tnil\ntrue\ttrue\ttrue\n<>\n<x>\n<>\nnil\tclosed\t" .. E.EPIPE
      .. "\ntrue\t100\tnil\n", output)
  end)

  it("never truncates in silence: a packet too large is told with both figures", function()
    local a, b = packets { maxsize = 1000 }
    -- Where packets are padded with a byte, Python does so too.
    local pad = (os.getenv "IPC_WITHOUT" or ""):find "passcred" and 1 or 0
    local child = python(b, ([[
s = socket.socket(fileno=fd)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200000)
for size in (5, 1001, 1000, 50000, 0, 7):
    s.send(b"x" * (size + %d))
]]):format(pad))
    assert.are.equal(5, #a:recv())
    fails(E.EMSGSIZE, "1001 bytes, but maxsize is 1000", a:recv())
    assert.are.equal(1000, #a:recv())
    assert.is_true(ipc.poll({ a }, peer.limit)[a])
    -- Only Linux tells the length of one that is longer than a page as well.
    local told = peer.has "pipe?packet=true" and "50000" or "4%d+"
    fails(E.EMSGSIZE, told .. " bytes, but maxsize is 1000", a:recv(0))
    assert.are.equal("", a:recv())
    assert.are.equal(7, #a:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { a:recv() })
    assert.is_true(child:wait())
  end)

  it("feeds several reader processes, every message to exactly one", function()
    local COUNT <const>, READERS <const> = 600, 3
    local a, b = packets()
    local answers, report = packets()
    for _ = 1, READERS do
      local mine, answer = b:dup(), answers:dup()
      fork(function()
        for number in mine:values() do
          answer:put(number)
        end
        answer:put "done"
      end)
    end
    b:close()
    answers:close()
    local seen, done, sent = {}, 0, 0
    while done < READERS do
      while sent < COUNT and a:put(sent + 1, nil, 0) do
        sent = sent + 1
        if sent == COUNT then
          a:shutdown()
        end
      end
      local number = assert(report:get())
      if number == "done" then
        done = done + 1
      else
        assert.is_nil(seen[number])
        seen[number] = true
      end
    end
    assert.are.equal(COUNT, #seen)
    assert.are.same({ nil, "closed", E.EPIPE }, { report:get() })
  end)

  it("keeps messages of many writers whole, whatever their size", function()
    local WRITERS <const>, EACH <const> = 4, 40
    local a, b = packets()
    for i = 1, WRITERS do
      local mine, letter = b:dup(), string.char(64 + i)
      fork(function()
        for n = 1, EACH do
          assert(mine:send(letter:rep(n * 2000)))
        end
      end)
    end
    b:close()
    local count = {}
    for message in a:messages() do
      local letter = message:sub(1, 1)
      local n = (count[letter] or 0) + 1
      assert.is_true(message == letter:rep(n * 2000))
      count[letter] = n
    end
    assert.are.same({ A = EACH, B = EACH, C = EACH, D = EACH }, count)
  end)
end)

describe("a stream of bytes on a unix socket", function()
  after_each(peer.clean)

  it("is read by count, line and end; both ways", function()
    local a, b = stream { unit = "stream" }
    assert.is_true(a:send "first\nsecond\nrest")
    assert.is_true(b:send "hello\n")
    assert.are.equal("hello", a:read "l")
    assert.are.equal("first", b:read "l")
    assert.are.equal("sec", b:read(3))
    assert.are.equal("ond\n", b:read "L")
    a:shutdown()
    assert.are.equal("rest", b:read "a")
    assert.is_true(b:send "still open\n")
    assert.are.equal("still open", a:read "l")
  end)

  it("keeps what was gathered before a timeout", function()
    local a, b = stream { unit = "stream" }
    assert.is_true(a:send "half ")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { b:read("l", 0.001) })
    assert.is_true(a:send "whole\n")
    assert.are.equal("half whole", b:read "l")
  end)

  it("carries bare MessagePack both ways", function()
    local a, b = stream { unit = "stream" }
    assert.is_true(a:put { "list", 1 })
    assert.is_true(a:put(false))
    assert.is_true(b:put "back")
    assert.are.same({ "list", 1 }, b:get())
    assert.is_false(b:get())
    assert.are.equal("back", a:get())
    assert.is_true(a:send(ipc.pack "by hand"))
    assert.are.equal("by hand", b:get())
  end)
end)

describe("a foreign program on a unix socket", function()
  after_each(peer.clean)

  it("speaks frames: Python's multiprocessing.connection, 0 bytes to 20 MiB #slow", function()
    local a, b = stream()
    local child = python(b, [[
from multiprocessing.connection import Connection
c = Connection(fd)
c.send_bytes(b"ready")
try:
    while True:
        c.send_bytes(c.recv_bytes()[::-1])
except EOFError:
    pass
]])
    assert.are.equal("ready", a:recv())
    local seed = {}
    for i = 1, 8192 do
      seed[i] = ("%07x\n"):format(i)
    end
    seed = table.concat(seed)
    for _, size in ipairs { 0, 1, 4 * KIB, 64 * KIB, MIB, 20 * MIB } do
      local sent = seed:rep(size // #seed + 1):sub(1, size)
      assert.is_true(a:send(sent))
      local got = assert(a:recv())
      assert.is_true(#got == size and got:reverse() == sent, size .. " bytes")
    end
    assert.is_true(a:shutdown())
    assert.are.same({ nil, "closed", E.EPIPE }, { a:recv() })
    assert.is_true(child:wait())
  end)

  it("reads lines and answers them", function()
    local a, b = stream { unit = "stream" }
    local child = python(b, [[
f = socket.socket(fileno=fd).makefile("rw")
for line in f:
    f.write(line.upper())
    f.flush()
]])
    for _, line in ipairs { "one", "two", "three" } do
      assert.is_true(a:send(line .. "\n"))
      assert.are.equal(line:upper(), a:read "l")
    end
    a:shutdown()
    assert.is_true(child:wait())
    assert.are.equal("", a:read "a")
  end)

  it("that dies in the middle of a frame is closed", function()
    local a, b = stream()
    local child = python(b, [[
os.write(fd, b"\0\0\0\5whole" + b"\0\0\1\0" + b"x" * 100)
os.kill(os.getpid(), 9)
]])
    assert.are.equal("whole", a:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { a:recv() })
    assert.is_nil((child:wait()))
    assert.are.equal("KILL", child.reason.signal)
  end)

  it("that speaks otherwise is asked whether it speaks frames", function()
    local a, b = stream()
    python(b, [[os.write(fd, b"\x80\0\0\0")]])
    fails(E.EBADMSG, "does the peer speak frames%?", a:recv())
  end)
end)
