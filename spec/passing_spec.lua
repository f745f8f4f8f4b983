-- Handles on their way to other processes: beside messages and inside values,
-- between ourselves and with Python.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local CLOSED <const> = { nil, "closed", E.EPIPE }
local TIMEOUT <const> = { nil, "timeout", E.ETIMEDOUT }
local KIB <const> = 1024

local has_packets = peer.has "unix?type=seqpacket"
local has_packet_pipes = peer.has "pipe?packet=true" -- Linux, where pipes can be opened anew

local function fails(errno, pattern, ok, message, number)
  assert.is_nil(ok)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

local count = 0

local function path()
  count = count + 1
  return ("unix:/tmp/ipc-passing-%d-%d"):format(ipc.pid(), count)
end

local function bounded(options)
  local o = { timeout = with.patience }
  for name, value in pairs(options or {}) do o[name] = value end
  return o
end

-- ---- what handles go through

-- Names in the order of the rows, each opens two ends that bring up to `handles`.
local ways = {}

local function way(name, open) ways[#ways + 1] = { name = name, open = open } end

way("a unix pair", function(handles) return peer.pair("unix", { handles = handles }) end)
if has_packets then
  way("a seqpacket pair", function(handles)
    return peer.pair("unix", { type = "seqpacket", handles = handles })
  end)
end
way("a datagram pair", function(handles)
  return peer.pair("unix", { type = "datagram", handles = handles })
end)

local function dialled(options)
  return function(handles)
    local o = bounded(options)
    o.handles = handles or 16
    local listener = peer.keep(assert(ipc.listen(path(), o)))
    local client = peer.keep(assert(ipc.connect(listener:address(), o)))
    local served = peer.keep(assert(listener:accept(with.patience)))
    served:settimeout(with.patience)
    listener:close()
    return served, client
  end
end

way("connected sockets", dialled())
if has_packets then way("connected packets", dialled { type = "seqpacket" }) end

-- ---- what goes

-- Each makes what is passed and what stays, which talks to it.
local things = {}

local function thing(name, make, use) things[#things + 1] = { name = name, make = make, use = use } end

local function hears(got, other)
  assert.is_true(other:send "to it")
  assert.are.equal("to it", (got:recv()))
end

local function tells(got, other)
  assert.is_true(got:send "from it")
  assert.are.equal("from it", (other:recv()))
end

local function talks(got, other)
  hears(got, other)
  tells(got, other)
end

local function swapped(a, b) return b, a end

local function pair(address, options)
  return function() return peer.pair(address, options) end
end

thing("a pipe's reader", function() return peer.pipe { maxsize = 1000 } end, hears)
thing("a pipe's writer", function() return swapped(peer.pipe { maxsize = 1001 }) end, tells)
thing("a stream pipe's reader", function() return peer.pipe { unit = "stream" } end, function(got, other)
  assert.is_true(other:send "line\nrest")
  assert.are.equal("line", got:read "l")
  assert.are.equal("rest", got:read(4))
end)
thing("a duplex pipe", pair("pipe", { duplex = true, maxsize = 1002 }), talks)
if has_packet_pipes then
  thing("a packet pipe's reader", function() return peer.pipe { packet = true, maxsize = 100 } end, hears)
  thing("a packet pipe's writer", function() return swapped(peer.pipe { packet = true }) end, tells)
  thing("a duplex pipe of packets", pair("pipe", { packet = true, duplex = true }), talks)
end
thing("a unix socket", pair("unix", { maxsize = 1003 }), talks)
thing("a unix socket of bytes", pair("unix", { unit = "stream" }), function(got, other)
  assert.is_true(got:send "line\n")
  assert.are.equal("line", other:read "l")
end)
if has_packets then thing("a seqpacket socket", pair("unix", { type = "seqpacket", maxsize = 1004 }), talks) end
thing("a datagram socket", pair("unix", { type = "datagram", maxsize = 1005 }), talks)
thing("a tcp socket", pair("tcp", { maxsize = 1006 }), talks)
thing("a udp socket", pair("udp", { maxsize = 1007 }), talks)

-- Padding, where there must be some, is not told beside a message.
local padded = (os.getenv "IPC_WITHOUT" or ""):find "passcred"
for _, t in ipairs(things) do t.alone = not t.name:find "duplex" and not (padded and t.name:find "seqpacket") end

-- ---- Python

local PRELUDE <const> = [[
import os, socket, struct, sys
fd = int(sys.argv[1])
s = socket.socket(fileno=fd)
def frame(b, n=0):
    return (struct.pack(">I", 0x80000000 + n) if n else b"") + struct.pack(">i", len(b)) + b
def word(w): return bytes([0xa0 | len(w)]) + w.encode()
def handle(index, kind, unit="message", most=65536):
    b = b"\x94\xcc" + bytes([index]) + word(kind) + word(unit) + b"\xcf" + struct.pack(">Q", most)
    return b"\xc7" + bytes([len(b)]) + b"\x50" + b
def pipe():
    r, w = os.pipe()
    os.set_blocking(r, False); os.set_blocking(w, False)
    return r, w
def send(b, fds=()):
    return s.sendmsg([b], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("%di" % len(fds), *fds))] if fds else [])
def write(f, b): os.write(f, struct.pack(">i", len(b)) + b)
def files(n): return [os.dup(0) for _ in range(n)]
]]

-- A child that becomes Python with `channel`.
local function python(channel, script)
  return peer.fork(function(mine)
    peer.exec({ mine }, peer.python, "-c", PRELUDE .. script, tostring(mine:pollfd()))
  end, channel)
end

local function ended(child)
  local ok, message = child:wait(with.patience)
  assert.is_true(ok, message)
end

-- ---- the specs

describe("handles through", function()
  after_each(peer.clean)

  for _, w in ipairs(ways) do
    describe(w.name, function()
      for _, t in ipairs(things) do
        it("inside a value: " .. t.name, function()
          local a, b = w.open()
          local mine, other = t.make()
          local maxsize = mine:maxsize()
          assert.is_true(a:put { name = t.name, reply = mine })
          assert.error_matches(function() mine:recv(0) end, "moved to another process: dup%(%) keeps one")
          local value = assert(b:get())
          assert.are.equal(t.name, value.name)
          local got = peer.keep(value.reply)
          got:settimeout(with.patience)
          assert.are.equal(maxsize, got:maxsize())
          t.use(got, other)
          other:close()
          if not t.name:find "udp" and not t.name:find "datagram" and not t.name:find "writer" then
            assert.are.same(CLOSED, { got:recv() })
          end
        end)
      end

      it("beside a message: all kinds at once, in order", function()
        local a, b = w.open(32)
        local list, others, n = {}, {}, 0
        for _, t in ipairs(things) do
          if t.alone then
            n = n + 1
            list[n], others[n] = t.make()
          end
        end
        assert.is_true(a:sendmsg("all", list))
        for i = 1, n do
          assert.error_matches(function() list[i]:dup() end, "moved to ")
        end
        local bytes, got = b:recvmsg()
        assert.are.equal("all", bytes)
        assert.are.equal(n, #got)
        peer.keep(table.unpack(got))
        n = 0
        for _, t in ipairs(things) do
          if t.alone then
            n = n + 1
            if not t.name:find "stream" and not t.name:find "bytes" then
              got[n]:settimeout(with.patience)
              t.use(got[n], others[n])
            end
          end
        end
      end)

      it("a duplex pipe beside a message arrives as two", function()
        local a, b = w.open()
        local x, y = peer.pair("pipe", { duplex = true })
        assert.is_true(a:sendmsg("duplex", { x }))
        local _, got = b:recvmsg()
        assert.are.equal(2, #got)
        local both = peer.keep(ipc.duplex(got[1], got[2]))
        both:settimeout(with.patience)
        talks(both, y)
      end)

      it("streams beside a message, when asked for", function()
        local a, b = w.open()
        local r, other = peer.pipe { unit = "stream" }
        assert.is_true(a:sendmsg("stream", { r }))
        local _, got = b:recvmsg(nil, { unit = "stream" })
        peer.keep(got[1])
        assert.is_true(other:send "line\n")
        assert.are.equal("line", got[1]:read("l", with.patience))
      end)

      it("listeners, which stay usable here", function()
        local a, b = w.open()
        local unix = peer.keep(assert(ipc.listen(path())))
        local tcp = peer.keep(assert(ipc.listen("tcp:0", { unit = "stream" })))
        assert.is_true(a:put { unix, tcp })
        local got = assert(b:get())
        peer.keep(got[1], got[2])
        for i, mine in ipairs { unix, tcp } do
          assert.are.equal(mine:address(), got[i]:address())
          for _, l in ipairs { got[i], mine } do
            local client = peer.keep(assert(ipc.connect(l:address(), { unit = i == 2 and "stream" or nil })))
            local served = peer.keep(assert(l:accept(with.patience)))
            assert.is_true(client:send "x\n")
            assert.are.equal(i == 2 and "x" or "x\n", i == 2 and served:read("l", 20) or served:recv(20))
          end
        end
        got[1]:close() -- the name is the first one's
        local again = peer.keep(assert(ipc.connect(unix:address())))
        assert.is_truthy(again)
      end)

      it("many in one value, the same one twice too", function()
        local a, b = w.open()
        local r, other = peer.pipe()
        local x, y = peer.pair "unix"
        assert.is_true(a:put { list = { r, x }, again = r })
        local got = assert(b:get())
        peer.keep(got.list[1], got.list[2], got.again)
        hears(got.list[1], other)
        hears(got.again, other)
        talks(got.list[2], y)
      end)

      it("253 in one message, and one more raises", function()
        local a, b = w.open(253)
        local r, other = peer.pipe()
        local copies = {}
        for i = 1, 253 do copies[i] = peer.keep(assert(r:dup())) end
        local before = peer.descriptors()
        assert.is_true(a:sendmsg("all", copies))
        local bytes, got = b:recvmsg()
        assert.are.equal("all", bytes)
        assert.are.equal(253, #got)
        hears(peer.keep(got[253]), other)
        peer.keep(table.unpack(got))
        assert.are.equal(before, peer.descriptors())
        got[254] = r
        assert.error_matches(function() a:sendmsg("x", got) end, "more than 253 handles")
        fails(E.E2BIG, "253 descriptors", a:put(got))
        assert.is_true(a:put(table.move(got, 2, 254, 1, {})))
        local value = assert(b:get())
        assert.are.equal(253, #value)
        peer.keep(table.unpack(value))
      end)

      it("more than `handles` is E2BIG once, gone, and the next is fine", function()
        local a, b = w.open(2)
        local r = peer.pipe()
        local before = peer.descriptors()
        for _, polled in ipairs { false, true } do
          assert.is_true(a:sendmsg("three", { assert(r:dup()), assert(r:dup()), assert(r:dup()) }))
          assert.is_true(a:sendmsg("two", { assert(r:dup()), assert(r:dup()) }))
          assert.is_true(a:send "none")
          if polled then assert.is_true(ipc.poll({ b }, with.patience)[b]) end
          fails(E.E2BIG, "handles", b:recvmsg(polled and 0 or nil))
          local bytes, got = b:recvmsg()
          assert.are.equal("two", bytes)
          assert.are.equal(2, #got)
          got[1]:close()
          got[2]:close()
          assert.are.equal("none", (b:recv()))
        end
        assert.are.equal(before, peer.descriptors())
        assert.are.equal(6, b:stats().strangers)
      end)

      it("where none may come they are closed and counted, the rest arrives", function()
        local a, b = w.open(0)
        local r, other = peer.pipe()
        local before = peer.descriptors()
        assert.is_true(a:sendmsg("two", { assert(r:dup()), assert(r:dup()) }))
        local bytes, got = b:recvmsg()
        assert.are.equal("two", bytes)
        assert.are.same({}, got)
        assert.is_true(a:put { reply = assert(r:dup()), other = 1 })
        local value = assert(b:get())
        assert.are.equal(1, value.other)
        assert.are.equal(0x50, value.reply.type)
        assert.are.equal(3, b:stats().strangers)
        assert.are.equal(before, peer.descriptors())
        hears(r, other)
      end)

      it("recv and get close what nobody takes", function()
        local a, b = w.open()
        local r = peer.pipe()
        local before = peer.descriptors()
        for _, call in ipairs { "recv", "get", "recvmany" } do
          assert.is_true(a:sendmsg(ipc.pack "bytes", { assert(r:dup()), assert(r:dup()) }))
          if call == "recvmany" then
            assert.are.same({ ipc.pack "bytes" }, b:recvmany(1))
          else
            assert.are.equal(call == "get" and "bytes" or ipc.pack "bytes", (b[call](b)))
          end
        end
        assert.is_true(a:put { assert(r:dup()) })
        assert.matches("pipe", (b:recv()))
        assert.are.equal(before, peer.descriptors())
        assert.are.equal(7, b:stats().strangers)
      end)

      it("is not for one that has read ahead, or has bytes to send: EBUSY", function()
        local a, b = w.open()
        local r, other = peer.pipe()
        other:send "one"
        other:send "two"
        assert.are.equal("one", r:recv())
        fails(E.EBUSY, "on their way", a:put { r })
        fails(E.EBUSY, "on their way", a:sendmsg("r", { r }))
        assert.are.equal("two", r:recv())
        local x, y = peer.pair "unix"
        assert.is_true(x:send(("x"):rep(1024 * KIB), nil, 0))
        fails(E.EBUSY, "on their way", a:put { x })
        fails(E.EBUSY, "on their way", a:sendmsg("x", { x }))
        assert.are.equal(1024 * KIB, #y:recv())
        assert.are.same(TIMEOUT, { b:recv(0) })
        assert.is_true(a:put { r, x })
        local got = assert(b:get())
        peer.keep(got[1], got[2])
        hears(got[1], other)
        talks(got[2], y)
      end)

      it("is not for one that is closed: EBADF", function()
        local a, b = w.open()
        local r = peer.pipe()
        r:close()
        fails(E.EBADF, "closed", a:put { r })
        fails(E.EBADF, "closed", a:sendmsg("r", { r }))
        assert.are.same(TIMEOUT, { b:recv(0) })
      end)

      it("what cannot be passed raises and is named", function()
        local a, b = w.open()
        local r, other = peer.pipe()
        local both = peer.keep(ipc.duplex(r, other))
        local child = peer.fork(function() end)
        assert.error_matches(function() a:put { jobs = { 1, child } } end, "^value%.jobs%[2%]: an? ipc%.process cannot")
        assert.error_matches(function() a:put { reply = both } end, "^value%.reply: an? ipc%.duplex cannot")
        assert.error_matches(function() a:put { [r] = 1 } end, "cannot be packed as a key")
        assert.error_matches(function() a:put { ok = io.stdout } end, "^value%.ok: a FILE%* cannot")
        assert.error_matches(function() a:sendmsg("x", { child }) end, "handles%[1%]: ipc%.process.* cannot be passed")
        assert.error_matches(function() a:sendmsg("x", { 1 }) end, "handles%[1%]: 1 cannot be passed")
        assert.error_matches(function() a:sendmsg("x", r) end, "table expected")
        assert.is_true(a:sendmsg("x", { assert(other:dup()) }))
        assert.are.equal("x", (b:recv()))
        local gone = assert(r:dup())
        assert.is_true(a:put { gone })
        assert.error_matches(function() a:put { again = gone } end, "^value%.again: ")
        assert.error_matches(function() a:sendmsg("x", { gone }) end, "handles%[1%]: moved to")
        peer.keep(b:get()[1])
        assert.are.same(TIMEOUT, { b:recv(0) })
        child:wait()
      end)

      it("an empty list of handles is none", function()
        local a, b = w.open()
        assert.is_true(a:sendmsg("x", {}))
        local bytes, got = b:recvmsg()
        assert.are.equal("x", bytes)
        assert.are.same({}, got)
      end)

      it("are close-on-exec from birth", function()
        local a, b = w.open()
        local r, other = peer.pipe()
        local before = with.inherited()
        assert.is_true(a:put { r, other })
        local got = assert(b:get())
        peer.keep(got[1], got[2])
        assert.are.equal(before, with.inherited())
      end)

      it("that were sent and never received are closed with the channel", function()
        local before = peer.descriptors()
        local a, b = w.open()
        local r, other = peer.pipe()
        assert.is_true(a:send "first")
        assert.is_true(a:put { r })
        assert.are.equal("first", (b:recv()))
        ipc.poll({ b }, with.patience) -- reads ahead
        b:close()
        a:close()
        assert.are.same(CLOSED, { other:send "x" })
        other:close()
        assert.are.equal(before, peer.descriptors())
      end)

      it("a receiver without a free descriptor: EMFILE once, nothing leaked", function()
        local a, b = w.open()
        local r = peer.pipe()
        -- In a child whose table is full but for one.
        local done, report = peer.pair "unix"
        local process = peer.fork(function(mine, back)
          assert(mine:recv() == "go")
          local fillers = {}
          while true do
            local r1, w1, errno = ipc.pipe()
            if not r1 then
              assert(errno == E.EMFILE, w1)
              break
            end
            fillers[#fillers + 1] = r1
            fillers[#fillers + 1] = w1
          end
          local function left()
            local list = {}
            repeat
              local f = io.open "/dev/null"
              list[#list + 1] = f
            until not f
            local n = #list
            for _, f in ipairs(list) do f:close() end
            return n
          end
          local free = left()
          back:put "full"
          local first = table.pack(mine:recvmsg(with.patience))
          local second = mine:recv(with.patience)
          local after = left()
          for i = 1, 8 do fillers[i]:close() end
          back:put { first[1] == nil, first[3], second, free - after }
          local _, got = mine:recvmsg(with.patience)
          back:put(#got)
        end, b, report)
        assert.is_true(a:send "go")
        assert.are.equal("full", done:get())
        assert.is_true(a:sendmsg("three", { assert(r:dup()), assert(r:dup()), assert(r:dup()) }))
        assert.is_true(a:send "next")
        assert.are.same({ true, E.EMFILE, "next", 0 }, done:get())
        assert.is_true(a:sendmsg("two", { assert(r:dup()), assert(r:dup()) }))
        assert.are.equal(2, done:get())
        ended(process)
      end)
    end)
  end
end)

describe("handles and the channel of a child", function()
  after_each(peer.clean)

  it("go both ways in values", function()
    local child = peer.fork(function()
      local r, w = ipc.pipe()
      ipc.parent:put { from = r }
      local got = ipc.parent:get(20)
      got.to:send("through it: " .. got.to:maxsize())
      w:send "mine"
    end)
    local mine = assert(child:get())
    peer.keep(mine.from)
    local r, w = peer.pipe { maxsize = 777 }
    assert.is_true(child:put { to = w })
    assert.error_matches(function() w:send "x" end, "moved to " .. child.pid)
    assert.are.equal("through it: 777", r:recv())
    assert.are.equal("mine", (mine.from:recv(with.patience)))
    ended(child)
  end)

  it("name the process that a connected end moved to", function()
    local listener = peer.keep(assert(ipc.listen(path())))
    local address = listener:address()
    local child = peer.fork(function()
      local c = assert(ipc.connect(address, { handles = 1 }))
      return c:get(20)[1]:recv(20)
    end)
    local client = peer.keep(assert(listener:accept(with.patience)))
    local r, w = peer.pipe()
    assert.is_true(client:put { r })
    -- BSD's credentials are without it.
    local there = has_packet_pipes and tostring(child.pid) or "another process"
    assert.error_matches(function() r:recv(0) end, "moved to " .. there .. ": dup")
    assert.is_true(w:send "there")
    assert.are.equal("there", select(2, child:wait(with.patience)))
  end)

  it("a server's clients go to a worker", function()
    local listener = peer.keep(assert(ipc.listen(path())))
    local worker = peer.fork(function()
      for job in ipc.parent:values(20) do job.client:send("served " .. job.n) end
    end)
    for n = 1, 5 do
      local client = peer.keep(assert(ipc.connect(listener:address())))
      assert.is_true(worker:put { client = assert(listener:accept(with.patience)), n = n })
      assert.are.equal("served " .. n, client:recv(with.patience))
    end
    worker:shutdown()
    ended(worker)
  end)
end)

describe("a message with handles", function()
  after_each(peer.clean)

  it("that waits, and whose handle is closed meanwhile, is not sent: EBADF", function()
    local scheduler = require("spec.support.scheduler").new()
    finally(function() ipc.scheduler(nil) end)
    local a, b = peer.pair("unix", { type = has_packets and "seqpacket" or "stream" })
    local r = peer.pipe()
    while a:send(("f"):rep(10 * KIB), nil, 0) do end
    local result
    local before = peer.descriptors()
    scheduler:go(function() result = table.pack(a:put({ r }, nil, with.patience)) end)
    scheduler:go(function()
      r:close()
      while b:recv(0) do end
    end)
    scheduler:run(with.patience)
    if result[1] then -- a stream accepts what begins with a rest of its own
      assert.is_false(has_packets)
    else
      fails(E.EBADF, "closed", table.unpack(result))
    end
    assert.are.same(TIMEOUT, { b:recv(0) })
    assert.are.equal(before - 1, peer.descriptors())
  end)

  it("that times out before its first byte leaves them here", function()
    local a, b = peer.pair("unix", { type = has_packets and "seqpacket" or "stream" })
    local r, w = peer.pipe()
    while a:send(("f"):rep(10 * KIB), nil, 0) do end
    assert.are.same(TIMEOUT, { a:put({ r }, nil, 0.01) })
    assert.are.same(TIMEOUT, { a:sendmsg("x", { r }, nil, 0.01) })
    hears(r, w)
    while b:recv(0) do end
    assert.is_true(a:flush())
    assert.is_true(a:put { r })
  end)

  it("is accepted with its first byte, the rest follows", function()
    local a, b = peer.pair "unix"
    local r, w = peer.pipe()
    local big = ("b"):rep(2048 * KIB)
    assert.is_true(a:put({ big, r }, nil, 0.001))
    assert.is_true(a:stats().unsent > 0)
    assert.error_matches(function() r:recv(0) end, "moved to")
    local other = peer.pipe()
    assert.are.same(TIMEOUT, { a:put({ other }, nil, 0) })
    local got = assert(b:get())
    assert.is_true(got[1] == big)
    hears(peer.keep(got[2]), w)
    assert.is_true(a:put { other })
    peer.keep(assert(b:get())[1])
  end)

  it("cannot carry the very channel that it goes through, nor a part of it", function()
    local a, b = peer.pair "unix"
    local r, w = peer.pipe()
    local both = peer.keep(ipc.duplex(r, a))
    local reason = "the message goes through it: pass its dup%(%)"
    for _, through in ipairs { a, both } do
      for _, part in ipairs(through == a and { a } or { a, r }) do
        assert.error_matches(function() through:put { x = { part, ("x"):rep(1024 * KIB) } } end,
          "^value%.x%[1%]: " .. reason)
      end
    end
    assert.error_matches(function() a:sendmsg("x", { w, a }) end, "handles%[2%]: " .. reason)
    assert.are.same(TIMEOUT, { b:recv(0) })
    assert.is_true(a:send "unharmed" and w:send "this, too")
    assert.are.equal("unharmed", b:recv())
    assert.are.equal("this, too", both:recv())
  end)

  it("may carry a dup of the channel that it goes through", function()
    local a, b = peer.pair "unix"
    assert.is_true(a:put { (assert(a:dup())) })
    assert.is_true(a:close())
    local again = peer.keep(assert(b:get())[1])
    again:settimeout(with.patience)
    talks(again, b)
  end)
end)

describe("Python", function()
  after_each(peer.clean)

  it("sends files, pipes and sockets: what is no channel is closed and counted", function()
    for _, kind in ipairs { "stream", has_packets and not padded and "seqpacket" or "datagram" } do
      local a, b = peer.pair("unix", { type = kind })
      local before = peer.descriptors()
      local child = python(b, ([[
r, w = pipe()
u, v = socket.socketpair()
f = open("/dev/null")
d = os.open("/", os.O_RDONLY)
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen(); l.setblocking(False)
n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) if hasattr(socket, "AF_NETLINK") else f
send(%s, [f.fileno(), r, u.fileno(), d, l.fileno(), n.fileno()])
s.recv(100)
write(w, b"by the pipe")
v.sendall(frame(b"by the socket"))
c = socket.create_connection(l.getsockname())
s.recv(100)
]]):format(kind == "stream" and [[frame(b"all", 6)]] or [[b"all"]]))
      local bytes, got = a:recvmsg()
      assert.are.equal("all", bytes)
      assert.are.equal(3, #got)
      peer.keep(table.unpack(got))
      assert.are.equal(3, a:stats().strangers)
      a:send "."
      assert.are.equal("by the pipe", got[1]:recv(with.patience))
      assert.are.equal("by the socket", got[2]:recv(with.patience))
      local client = peer.keep(assert(got[3]:accept(with.patience)))
      a:send "."
      assert.are.same(CLOSED, { client:recv(with.patience) })
      ended(child)
      for _, h in ipairs(got) do h:close() end
      client:close()
      a:close()
      child:close()
      assert.are.equal(before - 2, peer.descriptors())
    end
  end)

  it("receives ours", function()
    local a, b = peer.pair("unix", { unit = "stream" })
    local x, y = peer.pair("unix", { type = "datagram" })
    local r, w = peer.pipe()
    local child = python(y, [[
m, fds, flags, _ = socket.recv_fds(s, 1000, 10)
assert m == b"two" and len(fds) == 2, (m, fds)
os.write(fds[0], struct.pack(">i", 4) + b"here")
socket.socket(fileno=fds[1]).sendall(b"line\n")
]])
    assert.is_true(x:sendmsg("two", { w, b }))
    assert.are.equal("here", r:recv())
    assert.are.equal("line", a:read "l")
    ended(child)
  end)

  it("writes short: descriptors come with the first byte", function()
    local a, b = peer.pair "unix"
    local child = python(b, [[
r, w = pipe()
m = frame(b"\x91" + handle(0, "pipe"), 1)
send(m[:1], [r])
for i in range(1, len(m)): send(m[i:i+1])
write(w, b"first")
m = frame(b"two", 1)
send(m[:6], [w]); send(m[6:])
s.recv(100)
]])
    local got = peer.keep(assert(a:get())[1])
    assert.are.equal("first", got:recv(with.patience))
    local bytes, list = a:recvmsg()
    assert.are.equal("two", bytes)
    assert.is_true(list[1]:send "x")
    assert.are.equal("x", got:recv(with.patience))
    peer.keep(list[1])
    a:send "."
    ended(child)
  end)

  it("sends one more than allowed: none hides in the padding (odd and even counts)", function()
    for _, kind in ipairs { "stream", "datagram" } do
      for allowed = 1, 4 do
        local a, b = peer.pair("unix", { type = kind, handles = allowed })
        local before = peer.descriptors()
        local child = python(b, ([[
for n in range(1, %d):
    r, w = pipe()
    send(%s, [r] * n)
s.recv(100)
]]):format(allowed + 3, kind == "stream" and [[frame(b"x", n)]] or [[b"x"]]))
        for n = 1, allowed do
          local bytes, got = a:recvmsg()
          assert.are.equal("x", bytes)
          assert.are.equal(n, #got)
          for _, h in ipairs(got) do h:close() end
        end
        fails(E.E2BIG, "handles", a:recvmsg())
        fails(E.E2BIG, "handles", a:recvmsg())
        a:send "."
        ended(child)
        child:close()
        a:close()
        assert.are.equal(before - 2, peer.descriptors())
      end
    end
  end)

  it("forges handles in values: EBADMSG, gone, nothing leaked", function()
    local forged = {
      { "an index out of range", [[b"\x91" + handle(1, "pipe")]] },
      { "a large index", [[b"\x91" + handle(255, "pipes")]] },
      { "the same index twice", [[b"\x92" + handle(0, "pipe") + handle(0, "pipe")]] },
      { "the wrong kind", [[b"\x91" + handle(0, "socket")]] },
      { "a listener that is none", [[b"\x91" + handle(0, "listener")]] },
      { "two where one came", [[b"\x91" + handle(0, "pipes")]] },
      { "an unknown kind", [[b"\x91" + handle(0, "file")]] },
      { "an unknown unit", [[b"\x91" + handle(0, "pipe", "packet")]] },
      { "nothing", [[b"\xc7\0\x50"]] },
      { "one byte", [[b"\xd4\x50\x94"]] },
      { "cut short", [[b"\x91" + (lambda h: b"\xc7" + bytes([h[1] - 1]) + h[2:-1])(handle(0, "pipe"))]] },
      { "too long", [[b"\x91" + (lambda h: b"\xc7" + bytes([h[1] + 1]) + h[2:] + b"x")(handle(0, "pipe"))]] },
      { "other bytes", [[b"\xd8P" + b"\xff" * 16]] },
      { "as a key of a map, twice", [[b"\x82" + handle(0, "pipe") + b"\x01" + handle(0, "pipe") + b"\x02"]] },
      { "after good ones", [[b"\x93" + handle(0, "pipe") + b"\x91" + handle(0, "pipe") + b"\x80"]] },
    }
    local a, b = peer.pair "unix"
    local lines = {}
    for i, f in ipairs(forged) do
      lines[i] = "r, w = pipe(); send(frame(" .. f[2] .. ", 1), [r]); os.close(r); os.close(w)"
    end
    local before = peer.descriptors()
    local child = python(b, table.concat(lines, "\n") .. "\nsend(frame(b'\\x01'))\ns.recv(100)\n")
    for _, f in ipairs(forged) do
      local value, message, errno = a:get()
      assert.is_nil(value, f[1])
      assert.are.equal(E.EBADMSG, errno, f[1] .. ": " .. tostring(message))
    end
    assert.are.equal(1, a:get())
    a:send "."
    ended(child)
    child:close()
    a:close()
    assert.are.equal(before - 2, peer.descriptors())
  end)

  it("gives a handle where a limit makes no sense: the default is kept", function()
    local a, b = peer.pair "unix"
    local child = python(b, [[
for most in (0, 2**31, 2**63, 2**64 - 1):
    r, w = pipe()
    send(frame(b"\x91" + handle(0, "pipe", "message", most), 1), [r])
s.recv(100)
]])
    local default = peer.pipe():maxsize()
    for _ = 1, 4 do assert.are.equal(default, peer.keep(assert(a:get())[1]):maxsize()) end
    a:send "."
    ended(child)
  end)

  it("gives a handle a larger limit than the receiver set: it gets the receiver's", function()
    local a, b = peer.pair("unix", { maxsize = 1000 })
    local _, large = peer.pair("unix", { maxsize = (1 << 31) - 1 })
    local listener = peer.keep(assert(ipc.listen(path(), { maxsize = 1 << 20 })))
    local packets = has_packet_pipes and (peer.pipe { packet = true }) or peer.pipe()
    local small = peer.pipe { maxsize = 10 }
    assert.is_true(a:put { large, packets, small, listener })
    local got = table.pack(peer.keep(table.unpack(assert(b:get()))))
    for i, most in ipairs { 1000, 1000, 10 } do assert.are.equal(most, got[i]:maxsize()) end
    local client = peer.keep(assert(ipc.connect(listener:address())))
    assert.are.equal(1000, peer.keep(assert(got[4]:accept(with.patience))):maxsize())
    client:close()
    if not has_packets then return end
    a, b = peer.pair("unix?type=seqpacket&maxsize=5000") -- asked for, unlike what packets can carry
    assert.is_true(a:put { (select(2, peer.pair "unix")) })
    assert.are.equal(5000, peer.keep(assert(b:get())[1]):maxsize())
    a, b = peer.pair "unix?type=seqpacket"
    assert.is_true(a:put { (select(2, peer.pair("unix", { maxsize = (1 << 31) - 1 }))) })
    assert.are.equal(peer.pipe():maxsize(), peer.keep(assert(b:get())[1]):maxsize())
  end)

  it("writes the extension where no descriptor came: it is an ipc.ext", function()
    local a, b = peer.pair "unix"
    assert.is_true(b:send "\x91\xd4\x50\0")
    local got = assert(a:get())[1]
    assert.are.equal(0x50, got.type)
    assert.are.equal("\0", got.data)
    got = assert(ipc.unpack "\x91\xd4\x50\0")[1]
    assert.are.equal(0x50, got.type)
    assert.are.equal("\x91\xd4\x50\0", ipc.pack { got })
    assert.error_matches(function() ipc.pack { a } end, "^value%[1%]: an? ipc%.socket cannot be packed")
  end)

  if has_packet_pipes and not (os.getenv "IPC_WITHOUT" or ""):find "reopen" then -- pipes can be opened anew
    it("sends pipes that block, or makes them block later: our calls do not #slow", function()
      local a, b = peer.pair "unix"
      local child = python(b, [=[
pipes = [os.pipe() for _ in range(4)]
send(frame(b"\x92" + handle(0, "pipe") + handle(1, "pipe"), 2), [pipes[0][0], pipes[1][1]])
send(frame(b"two", 2), [pipes[2][0], pipes[3][1]])
s.recv(100)
for r, w in pipes: os.set_blocking(r, True), os.set_blocking(w, True)
send(frame(b"now"))
s.recv(100)
]=])
      local r, w = table.unpack(assert(a:get()))
      local bytes, got = a:recvmsg()
      assert.are.equal("two", bytes)
      a:send "."
      assert.are.equal("now", a:recv())
      for _, p in ipairs { { r, w }, got } do
        peer.keep(p[1], p[2])
        assert.are.same(TIMEOUT, { p[1]:recv(0.001) })
        assert.are.same(TIMEOUT, { p[1]:recv(0) })
        while p[2]:send(("x"):rep(30 * KIB), nil, 0) do end
        assert.are.same(TIMEOUT, { p[2]:send(("x"):rep(30 * KIB), nil, 0.001) })
        p[2]:settimeout(0)
      end
      for _, p in ipairs { r, w, got[1], got[2] } do pcall(p.close, p) end
      a:send "."
      ended(child)
    end)

    it("sends those of another user, made to block later: likewise", function()
      local output = peer.run([[
        local a, b = assert(ipc.pair "unix")
        local r, w = ipc.pipe()
        assert(a:put { r, w })
        local got = assert(b:get(10))
        print(got[1]:recv(0.001))
        while got[2]:send(("x"):rep(10000), nil, 0) do end
        print(got[2]:send("x", nil, 0))
        print(#got[1]:recv(10))
      ]], { env = { IPC_WITHOUT = "reopen" } })
      assert.are.equal(("nil\ttimeout\t%d\nnil\ttimeout\t%d\n10000\n"):format(E.ETIMEDOUT, E.ETIMEDOUT), output)
    end)
  end

  it("sends a listener that blocks: it is a stranger", function()
    local a, b = peer.pair "unix"
    local child = python(b, [[
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
send(frame(b"x", 1), [l.fileno()])
s.recv(100)
l.setblocking(False)
send(frame(b"y", 1), [l.fileno()])
s.recv(100)
l.setblocking(True)
send(frame(b"z"))
s.recv(100)
]])
    local _, got = a:recvmsg()
    assert.are.same({}, got)
    a:send "."
    _, got = a:recvmsg()
    peer.keep(got[1])
    assert.are.same(TIMEOUT, { got[1]:accept(0) })
    a:send "."
    assert.are.equal("z", a:recv())
    fails(E.EBUSY, "", got[1]:accept(0))
    a:send "."
    ended(child)
  end)

  it("sends a socket that lingers: closing it does not wait", function()
    for _, way_to in ipairs { "recv", "recvmsg", "none" } do
      local a, b = peer.pair("unix", { type = "datagram", handles = way_to == "none" and 0 or 1 })
      local child = python(b, [[
l = socket.socket(); l.bind(("127.0.0.1", 0)); l.listen()
if os.fork() == 0: # somebody must be there who does not read
    k, _ = l.accept()
    s.recv(100)
    os._exit(0)
c = socket.create_connection(l.getsockname())
c.setblocking(False)
try:
    while True: c.send(b"x" * 65536)
except BlockingIOError: pass
c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
send(b"x", [c.fileno()])
]])
      ended(child) -- ours is the last one
      local got
      if way_to == "recvmsg" then
        local bytes, list = a:recvmsg()
        assert.are.equal("x", bytes)
        got = list[1]
      else
        assert.are.equal("x", (a:recv()))
      end
      if got then got:close() end
      a:send "."
    end
  end)
end)

describe("descriptors from a hostile peer", function()
  after_each(peer.clean)

  local LEAST <const> = { 0, 1, 2, 3, 15, 16, 17, 100, 252, 253 }

  for _, handles in ipairs { 0, 1, 16, 253 } do
    it(("in every state of the framing, where %d may come"):format(handles), function()
      local a, b = peer.pair("unix", { handles = handles, maxsize = 1000 })
      local before = peer.descriptors()
      local child = python(b, ([[
import resource
counts = (%s)
allowed = %d
fill = files(max(counts))
def some(n): return fill[:n]
for n in counts:
    send(frame(b"plain"), some(n))                          # not announced
    m = frame(b"middle" * 50)
    send(m[:2], some(n)); send(m[2:30], some(n)); send(m[30:], some(n))
    send(struct.pack(">i", 5000) + b"o" * 100, some(n))     # over the limit
    send(b"o" * 4900, some(n))
    send(frame(b"after"), some(n))
    send(frame(b"few", max(n, 1)), some(max(n - 1, 0)))     # fewer than announced
    s.recv(100) # what follows is read apart from it
    send(frame(b"many", max(n - 1, 1)), some(n))            # more
    m = frame(b"late", 2); send(m[:4]); send(m[4:], some(n))  # not with the first byte
    s.recv(100)
    r, w = pipe()
    write(w, b"number %%d" %% n)
    send(frame(b"right", 1), [r])
    os.close(r); os.close(w)
send(frame(b"end"))
s.recv(100)
try:
    send(frame(b"x"), fill + files(50))
except OSError: pass
]]):format(table.concat(LEAST, ","), handles))
      local held, most = peer.descriptors(), 0
      local function recvmsg()
        local bytes, got, errno = a:recvmsg()
        most = math.max(most, peer.descriptors() - held)
        return bytes, got, errno
      end
      for _, n in ipairs(LEAST) do
        for _, wanted in ipairs { "plain", ("middle"):rep(50), false, "after", "few", "many", "late", "right" } do
          if wanted == "right" or wanted == "many" then a:send "." end
          local bytes, got, errno = recvmsg()
          if wanted == false then
            assert.are.equal(E.EMSGSIZE, errno, got)
          elseif handles == 0 or wanted == "plain" or wanted == "after" or wanted:find "middle" then
            assert.are.equal(wanted, bytes)
            assert.are.same({}, got)
          elseif bytes == "late" then -- read together with its first byte
            assert.are.same({}, got) -- they are files
          elseif wanted == "few" or wanted == "late" then
            -- What was read together with the next one's may complete it: of
            -- which bytes they came with, recvmsg(2) does not tell.
            if bytes then
              assert.are.equal(wanted, bytes, wanted .. " of " .. n)
            else
              assert.is_true(errno == E.EMFILE or errno == E.E2BIG, got)
            end
          elseif wanted == "many" then
            local announced = math.max(n - 1, 1)
            if announced > handles then
              assert.are.equal(E.E2BIG, errno)
            elseif n < announced then
              assert.are.equal(E.EMFILE, errno)
            else
              assert.are.equal("many", bytes)
            end
          else
            assert.are.equal("right", bytes)
            assert.are.equal(1, #got)
            assert.are.equal("number " .. n, got[1]:recv(with.patience))
            got[1]:close()
          end
        end
      end
      assert.are.equal("end", (recvmsg()))
      assert.is_true(most <= 2 * handles, most .. " descriptors held")
      a:send "."
      ended(child)
      child:close()
      a:close()
      assert.are.equal(before - 2, peer.descriptors())
    end)
  end

  it("one with every byte of a long message: none is kept", function()
    local a, b = peer.pair("unix", { handles = 16 })
    local child = python(b, [[
fill = files(16)
m = frame(b"x" * 2000, 3)
for i in range(len(m)): send(m[i:i+1], fill[:3] if i == 0 else fill)
s.recv(100)
]])
    local before, most = peer.descriptors(), 0
    local message, text, list
    repeat
      message, list, text = a:recvmsg(0)
      if not message then
        assert.are.equal(E.ETIMEDOUT, text)
        ipc.poll({ a }, with.patience)
      end
      most = math.max(most, peer.descriptors() - before)
    until message
    assert.are.equal(2000, #message)
    assert.are.same({}, list)
    assert.is_true(most <= 32, most .. " descriptors held")
    assert.are.equal(3 + 2007 * 16, a:stats().strangers)
    a:send "."
    ended(child)
  end)

  it("on a stream of bytes: as many as allowed with what is read, no more", function()
    local a, b = peer.pair("unix", { handles = 4, unit = "stream" })
    local child = python(b, [[
r, w = pipe()
send(b"x", [r, w])
s.recv(100)
for _ in range(100): send(b"y", [r, w, r])
send(b"\n")
s.recv(100)
]])
    local before = peer.descriptors()
    local bytes, got = a:recvmsg()
    assert.are.equal("x", bytes)
    assert.are.equal(2, #got)
    peer.keep(table.unpack(got))
    a:send "."
    assert.are.equal(("y"):rep(100), a:read "l")
    assert.are.equal(before + 2, peer.descriptors())
    assert.are.equal(300, a:stats().strangers)
    a:send "."
    ended(child)
  end)
end)
