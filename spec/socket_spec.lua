-- Sockets: what is their own beyond what contract_spec says of every channel,
-- and peers that are not this library: Python, socat, nc, luv.
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
      [[option 'type': "stream" or "seqpacket" or "datagram" expected]])
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

-- ---- datagrams, TCP, names

local count = 0
local function path()
  count = count + 1
  return ("/tmp/ipc-socket-%d-%d.sock"):format(ipc.pid(), count)
end

local function open(address, mode, options)
  local o = { timeout = peer.limit }
  for name, value in pairs(options or {}) do o[name] = value end
  return peer.keep(assert(ipc.open(address, mode, o)))
end

local function connect(address, options)
  local o = { timeout = peer.limit }
  for name, value in pairs(options or {}) do o[name] = value end
  return peer.keep(assert(ipc.connect(address, o)))
end

local function accepted(address, options)
  local l = peer.keep(assert(ipc.listen(address, options)))
  local c = connect(l:address(), options)
  local s = peer.keep(assert(l:accept(peer.limit)))
  s:settimeout(peer.limit)
  return c, s, l
end

-- What the kernel says of a socket's option, asked by Python on a copy of it.
local function option(channel, level, name)
  local mine, its = stream { unit = "stream" }
  local child = fork(function(copy)
    peer.exec({ copy, its }, peer.python, "-c", ([[
import os, socket, sys
s = socket.socket(fileno=int(sys.argv[1]))
os.write(int(sys.argv[2]), b"%%d\n" %% s.getsockopt(socket.%s, socket.%s))
]]):format(level, name), tostring(copy:pollfd()), tostring(its:pollfd()))
  end, assert(channel:dup()))
  local value = tonumber(mine:read "l")
  assert(child:wait())
  return value
end

describe("datagrams over UDP", function()
  after_each(peer.clean)

  it("come with their sender's address: u:send(u:recv()) is an echo", function()
    local u = open "udp:127.0.0.1:0"
    local a, b = connect(u:address()), connect(u:address())
    assert(a:send "from a" and b:send "from b")
    for _ = 1, 2 do
      local message, from = u:recv()
      assert.are.equal(message == "from a" and a:address() or b:address(), from)
      assert(u:send(message, from))
    end
    assert.are.equal("from a", a:recv())
    assert.are.equal("from b", b:recv())
    assert(a:put { 1, "x" })
    assert(u:put(u:get()))
    assert.are.same({ 1, "x" }, a:get())
    fails(E.EDESTADDRREQ, "", u:send "to whom?")
    fails(E.EINVAL, "", u:send("x", "nowhere"))
  end)

  it("carry 65507 bytes and not one more", function()
    local u = open "udp:0"
    local c = connect(u:address())
    assert.are.equal(65507, c:maxsize())
    assert(c:send(("x"):rep(65507)))
    assert.are.equal(65507, #u:recv())
    fails(E.EMSGSIZE, "65508.*65507", c:send(("x"):rep(65508)))
    assert(c:send "" and c:send "next")
    assert.are.equal("", (u:recv()))
    assert.are.equal("next", (u:recv()))
    fails(E.EMSGSIZE, "65507", ipc.open("udp:0", "r", { maxsize = 65508 }))
  end)

  it("over maxsize are reported once with both figures, and nothing else is lost",
    function()
      local u = open("udp:0", "r", { maxsize = 100 })
      local c = connect(u:address())
      assert(c:send "before" and c:send(("x"):rep(101)) and c:send(("y"):rep(60000)) and c:send "after")
      assert.are.equal("before", (u:recv()))
      fails(E.EMSGSIZE, "101 bytes, but maxsize is 100", u:recv())
      fails(E.EMSGSIZE, "maxsize is 100", u:recv())
      assert.are.equal("after", (u:recv()))
    end)

  it("to nobody: recv says refused once, sending goes on", function()
    local u = open "udp:0"
    local address = u:address()
    u:close()
    local c = connect(address)
    assert(c:send "lost")
    fails(E.ECONNREFUSED, "", c:recv())
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { c:recv(0) })
    for _ = 1, 3 do assert.is_true(c:send "lost too") end
    assert(ipc.poll({ c }, peer.limit)) -- which meets it first
    fails(E.ECONNREFUSED, "", c:recv(0))
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { c:recv(0) })
    u = open(address)
    assert(c:send "here")
    repeat local message, why = u:recv() until message == "here" or why == "timeout"
    assert.is_true(c:send "and here")
  end)
end)

describe("datagrams over unix sockets", function()
  after_each(peer.clean)

  it("are answered where the sender has a path of its own", function()
    local name, mine = path(), path()
    local u = open("unix:" .. name, "rw", { type = "datagram" })
    local c = connect("unix:" .. name, { type = "datagram", bind = mine })
    assert(c:send "question")
    local message, from = u:recv()
    assert.are.equal("unix:" .. mine, from)
    assert(u:send(message .. "?", from))
    assert.are.equal("question?", c:recv())
    local other = connect("unix:" .. name, { type = "datagram" })
    assert(other:send "anonymous")
    assert.are.same({ "anonymous" }, { u:recv() })
    fails(E.ENOENT, "", u:send("x", "unix:/nonexistent/x"))
    c:close()
    assert.is_nil(io.open(mine))
    u:close()
    assert.are_not.equal(nil, select(2, ipc.connect("unix:" .. name, { type = "datagram" })))
  end)

  it("wait while the receiver's queue is full, and none is lost", function()
    local a, b = peer.pair "unix?type=datagram"
    local n = 0
    while a:send(tostring(n), nil, 0) do n = n + 1 end
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { a:send("x", nil, 0.01) })
    for i = 0, n - 1 do assert.are.equal(tostring(i), (b:recv(0))) end
    assert(a:send "room again")
  end)
end)

describe("TCP", function()
  after_each(peer.clean)

  it("sends small messages at once, streams as the system does; silent peers are tried", function()
    for _, case in ipairs {
      { {}, "1", "1", "30" },
      { { unit = "stream" }, "0", "1", "30" },
      { { unit = "stream", nodelay = true }, "1", "1", "30" },
      { { nodelay = false, keepalive = false }, "0", "0", "7200" },
    } do
      for i, what in ipairs { "IPPROTO_TCP TCP_NODELAY", "SOL_SOCKET SO_KEEPALIVE", "IPPROTO_TCP TCP_KEEPIDLE" } do
        local c, s = accepted("tcp:0", case[1])
        local level, name = what:match "(%S+) (%S+)"
        local expected = tonumber(case[1 + i])
        for _, channel in ipairs { c, s } do
          local value = option(channel, level, name)
          if i < 3 or expected == 30 then assert.are.equal(expected ~= 0, value ~= 0) end
          if expected == 30 then assert.are.equal(30, value) end
        end
      end
    end
  end)

  it("has a user timeout where asked", function()
    if not peer.has "pipe?packet=true" then -- this is not Linux
      fails(E.ENOTSUP, "", ipc.connect(peer.keep(assert(ipc.listen "tcp:0")):address(), { user_timeout = 1.5 }))
      return
    end
    local c, s = accepted("tcp:0", { unit = "stream", user_timeout = 1.5 })
    for _, channel in ipairs { c, s } do
      assert.are.equal(1500, option(channel, "IPPROTO_TCP", "TCP_USER_TIMEOUT"))
    end
  end)

  it("closes one way by shutdown while the other goes on", function()
    local c, s = accepted "tcp:0"
    assert(c:send "question" and c:shutdown())
    assert.are.equal("question", s:recv())
    assert.are.same({ nil, "closed", E.EPIPE }, { s:recv() })
    assert(s:send "answer")
    assert.are.equal("answer", c:recv())
    s:close()
    assert.are.same({ nil, "closed", E.EPIPE }, { c:recv() })
  end)

  it("has no credentials, and unix sockets have those of connect time", function()
    local c = accepted "tcp:0"
    fails(E.ENOTSUP, "", c:credentials())
    local l = peer.keep(assert(ipc.listen("unix:" .. path())))
    local gate = fork(function()
      local mine = assert(ipc.connect(l:address(), { timeout = peer.limit }))
      local child = ipc.fork(function(passed) -- another process has the end now
        passed:send "from the grandchild"
        ipc.parent:recv()
      end, mine)
      ipc.parent:recv()
      child:close()
    end)
    local s = peer.keep(assert(l:accept(peer.limit)))
    assert.are.equal("from the grandchild", s:recv(peer.limit))
    local who = s:credentials()
    assert.are.equal(io.popen("id -u"):read "n", who.uid)
    assert.are.equal(io.popen("id -g"):read "n", who.gid)
    if peer.has "pipe?packet=true" then assert.are.equal(gate.pid, who.pid) end
    gate:shutdown()
    assert(gate:wait(peer.limit))
    s:close()
    fails(E.EPIPE, "closed", s:credentials())
  end)
end)

describe("a socket opened by its name", function()
  after_each(peer.clean)

  it("is where one client connects, accepted when something is received", function()
    for _, address in ipairs { "unix:" .. path(), "tcp:127.0.0.1:0" } do
      local r = open(address, "r")
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0) })
      assert.are.equal(E.ENOTCONN, (select(3, r:peer())))
      local w = open(r:address(), "w")
      assert(w:put "jobs")
      assert.is_true(ipc.poll({ r }, peer.limit)[r])
      assert.are.equal("jobs", r:get())
      assert.error_matches(function() r:send "x" end, "only receives")
      assert.error_matches(function() w:recv() end, "only sends")
      assert.is_nil(ipc.connect(address:find "unix" and address or r:address())) -- one only
      w:close()
      assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
    end
  end)

  it("waits for its other side with retry", function()
    local name = path()
    local child = fork(function()
      ipc.parent:send "go"
      return assert(ipc.open("unix:" .. name, "w", { retry = true, timeout = peer.limit })):send "late"
    end)
    assert(child:recv())
    assert.are.equal("late", open("unix:" .. name, "r"):recv())
    assert(child:wait())
  end)

  it("moves to a child with its name", function()
    local name = path()
    local child = fork(function(r)
      ipc.parent:send "there"
      return r:recv()
    end, open("unix:" .. name, "r"))
    assert.are.equal("there", child:recv())
    assert(open("unix:" .. name, "w"):send "to the child")
    assert.are.same({ true, "to the child" }, { child:wait() })
    assert.is_nil(ipc.connect("unix:" .. name))
  end)
end)

describe("a foreign program by an address", function()
  after_each(peer.clean)

  local function port(address) return address:match ":(%d+)[^:]*$" end

  it("socat connects to us, and we to socat", function()
    local name = path()
    for address, word in pairs {
      ["unix:" .. name] = "UNIX-CONNECT:" .. name, ["tcp:127.0.0.1:0"] = "TCP:127.0.0.1:",
    } do
      local l = peer.keep(assert(ipc.listen(address, { unit = "stream" })))
      local theirs <close> = peer.popen(("echo hello | socat -t 20 - %s"):format(
        word .. (address:find "tcp" and port(l:address()) or "")))
      local s = peer.keep(assert(l:accept(peer.limit)))
      assert.are.equal("hello", s:read("l", peer.limit))
      assert(s:send "goodbye\n" and s:close())
      assert.are.equal("goodbye\n", theirs:read "a")
      l:close()
    end
    local there = path()
    local server <close> = peer.popen(("socat UNIX-LISTEN:%s EXEC:cat"):format(there))
    local c = connect("unix:" .. there, { unit = "stream", retry = true })
    assert(c:send "echo\n")
    assert.are.equal("echo", c:read "l")
    c:close()
    assert.are.equal("", server:read "a")
  end)

  it("socat sends us datagrams, and echoes ours", function()
    local u = open "udp:127.0.0.1:0"
    local sender <close> = peer.popen(("printf one | socat -u - UDP:127.0.0.1:%s"):format(port(u:address())))
    local message, from = u:recv()
    assert.are.equal("one", message)
    assert.matches("^udp:127%.0%.0%.1:%d+$", from)
    assert.are.equal("", sender:read "a")
    local name = path()
    local d = open("unix:" .. name, "r", { type = "datagram" })
    local other <close> = peer.popen(("printf two | socat -u - UNIX-SENDTO:%s"):format(name))
    assert.are.equal("two", (d:recv()))
    assert.are.equal("", other:read "a")
  end)

  it("nc connects to us, and we to nc", function()
    local l = peer.keep(assert(ipc.listen("tcp:0", { unit = "stream" })))
    local client <close> = peer.popen(("echo ping | nc -N 127.0.0.1 %s"):format(port(l:address())))
    local s = peer.keep(assert(l:accept(peer.limit)))
    assert.are.equal("ping\n", s:read("a", peer.limit))
    assert(s:send "pong" and s:close())
    assert.are.equal("pong", client:read "a")
    local name = path()
    local server <close> = peer.popen(("echo served | nc -N -lU %s"):format(name))
    local c = connect("unix:" .. name, { unit = "stream", retry = true })
    assert.are.equal("served\n", c:read "a")
    c:close()
    assert.are.equal("", server:read "a")
    os.remove(name)
  end)

  it("Python's multiprocessing.connection: its Client, our listener; its Listener, our connect",
    function()
      for _, family in ipairs { "AF_UNIX", "AF_INET" } do
        local l = peer.keep(assert(ipc.listen(family == "AF_UNIX" and "unix:" .. path() or "tcp:0")))
        local where = family == "AF_UNIX" and ("%q"):format(l:address():sub(6))
          or ("('127.0.0.1', %s)"):format(port(l:address()))
        local client <close> = peer.popen(peer.python_command(([[
from multiprocessing.connection import Client
c = Client(%s)
c.send_bytes(b"question")
print(c.recv_bytes().decode())
]]):format(where)))
        local s = peer.keep(assert(l:accept(peer.limit)))
        assert.are.equal("question", s:recv(peer.limit))
        assert(s:send "answer")
        assert.are.equal("answer\n", client:read "a")

        local name = path()
        local server <close> = peer.popen(peer.python_command(([[
from multiprocessing.connection import Listener
l = Listener(%s)
print(l.address if isinstance(l.address, str) else l.address[1], flush=True)
c = l.accept()
try:
    while True:
        c.send_bytes(c.recv_bytes().upper())
except EOFError:
    pass
]]):format(family == "AF_UNIX" and ("%q"):format(name) or "('127.0.0.1', 0)")))
        local at = server:read "l"
        local c = connect(family == "AF_UNIX" and "unix:" .. at or "tcp:" .. at)
        for _, message in ipairs { "one", "", ("x"):rep(100000) } do
          assert(c:send(message))
          assert.are.equal(message:upper(), c:recv())
        end
        c:close()
        assert.are.equal("", server:read "a")
      end
    end)

  it("Python's sockets: seqpacket, datagrams both ways", function()
    local name = path()
    if has_packets then
      local l = peer.keep(assert(ipc.listen("unix:" .. name, { type = "seqpacket" })))
      local client <close> = peer.popen(peer.python_command([[
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect(sys.argv[1])
s.send(b"one"); s.send(b"two")
print(s.recv(100).decode())
]], name))
      local s = peer.keep(assert(l:accept(peer.limit)))
      assert.are.equal("one", s:recv(peer.limit))
      assert.are.equal("two", s:recv(peer.limit))
      assert(s:send "three")
      assert.are.equal("three\n", client:read "a")
      assert.are.same({ nil, "closed", E.EPIPE }, { s:recv(peer.limit) })
    end
    local u = open "udp:0"
    local client <close> = peer.popen(peer.python_command([[
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b"", ("127.0.0.1", int(sys.argv[1])))
s.sendto(b"x" * 65507, ("127.0.0.1", int(sys.argv[1])))
print(len(s.recv(65536)), len(s.recv(65536)))
]], port(u:address())))
    assert(u:send(u:recv()))
    assert(u:send(u:recv()))
    assert.are.equal("0 65507\n", client:read "a")
  end)

  it("luv polls our descriptors", function()
    local output = peer.run(([[
      local uv = require "luv"
      local l = assert(ipc.listen "unix:%s")
      local c = assert(ipc.connect(l:address()))
      local watch = uv.new_poll(l:pollfd())
      watch:start("r", function()
        local s = assert(l:accept(0))
        watch:close()
        local reader = uv.new_poll(s:pollfd())
        reader:start("r", function()
          local message, why = s:recv(0)
          while message do
            print(message)
            message, why = s:recv(0)
          end
          if why == "closed" then
            print "closed"
            reader:close()
          end
        end)
        c:send "by luv"
        c:close()
      end)
      uv.run()
    ]]):format(path()))
    assert.are.equal("by luv\nclosed\n", output)
  end)
end)
