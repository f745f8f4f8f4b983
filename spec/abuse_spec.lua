-- A server of ours among clients that mean it harm, written in Python. One
-- process serves them all by ipc.poll; an honest client is served all along.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local CLOSED <const> = { nil, "closed", E.EPIPE }

local count = 0

local function path()
  count = count + 1
  return ("unix:/tmp/ipc-abuse-%d-%d"):format(ipc.pid(), count)
end

local PRELUDE <const> = [[
import os, resource, socket, struct, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
scheme, _, where = sys.argv[2].partition(":")
def connect():
    if scheme == "unix":
        c = socket.socket(socket.AF_UNIX); c.connect(where)
    else:
        host, _, port = where.rpartition(":")
        c = socket.create_connection((host, int(port)))
    return c
def frame(b): return struct.pack(">i", len(b)) + b
def quietly(f, *a):
    try: return f(*a)
    except OSError: pass
go = socket.socket(fileno=int(sys.argv[1]))
]]

-- A hostile client: a child that becomes Python, with a channel to us.
local function attack(listener, script)
  local address = listener:address()
  local mine, theirs = peer.pair("unix", { unit = "stream" })
  local child = peer.fork(function()
    peer.exec({ theirs }, peer.python, "-c", PRELUDE .. script, tostring(theirs:pollfd()), address)
  end)
  theirs:close()
  return mine, child
end

-- Serves `listener` until the honest client has had its answers and `done()`.
local function serve(listener, options, done)
  options = options or {}
  local address, answers = listener:address(), 0
  local honest = peer.fork(function()
    local c = assert(ipc.connect(address, { timeout = with.patience }))
    local n = 0
    repeat
      n = n + 1
      assert(c:put { n })
      local got = assert(c:get(with.patience))
      assert(got[1] == n)
    until got[2] -- the end
    return n
  end)
  local clients, members, met = {}, { listener, honest }, { closed = 0, errors = {}, served = 0, most = 0 }
  local function drop(c)
    for i, other in ipairs(members) do
      if other == c then table.remove(members, i) break end
    end
    clients[c] = nil
    c:settimeout(0)
    c:close()
    met.closed = met.closed + 1
  end
  local last
  local deadline = ipc.now() + 3 * with.patience
  while not honest.reason do
    assert(ipc.now() < deadline, "the server is stuck")
    local ready = ipc.poll(members, with.patience) or {}
    if ready[listener] then
      local c, message, errno = listener:accept(0)
      if c then
        clients[c] = true
        members[#members + 1] = c
      elseif errno ~= E.ETIMEDOUT then
        met.errors[errno] = message
      end
    end
    if ready[honest] then assert(honest:wait(with.patience)) end
    for i = 1, #ready do
      local c = ready[i]
      if clients[c] then
        local value, message, errno = c:get(0)
        if value then
          met.served = met.served + 1
          answers = answers + 1
          last = last or done(met)
          local wants = type(value) == "table" and value[1]
          c:put({ wants, last and true or nil }, nil, 0)
        elseif errno == E.EPIPE or errno == E.EBADMSG then
          met.errors[errno] = message
          drop(c)
        elseif errno ~= E.ETIMEDOUT then
          met.errors[errno] = message
        end
      end
    end
    met.most = math.max(met.most, #members - 2)
    if options.each then options.each(met) end
  end
  for c in pairs(clients) do
    c:settimeout(0)
    c:close()
  end
  honest:close()
  assert.is_true(answers > 0)
  return met
end

-- Whether the attacker has said that it has done what it came for.
local function told(mine)
  return function() return mine:recv(0) ~= nil end
end

describe("a server under attack", function()
  after_each(peer.clean)

  local function listen(address, options)
    return peer.keep(assert(ipc.listen(address, options)))
  end

  local schemes = { { "unix", path }, { "tcp", function() return "tcp:0" end } }

  for _, scheme in ipairs(schemes) do
    local address = scheme[2]

    it(scheme[1] .. ": thousands of connections half open #slow #heavy", function()
      local listener = listen(address())
      local before = peer.descriptors()
      local _, memory = with.memory()
      local mine, child = attack(listener, [[
half = []
most = min(5000, (hard - 100) // 2)
try:
    while len(half) < most:
        c = connect(); c.setblocking(False); quietly(c.send, b"\0\0\1\0half")
        half.append(c)
except OSError: pass
go.send(b"%d\n" % len(half))
go.recv(1)
]])
      local opened
      local met = serve(listener, nil, function()
        opened = opened or tonumber((mine:read("l", 0)))
        return opened ~= nil
      end)
      -- As many as this process may hold; the others wait in the backlog.
      assert.is_true(opened >= 400, opened .. " opened")
      assert.is_true(met.most >= 1)
      mine:close()
      child:wait(with.patience)
      child:close()
      assert.is_true(peer.descriptors() <= before)
      local _, now = with.memory()
      assert.is_true(now - memory < 64 * 1024, (now - memory) .. " KiB")
    end)

    it(scheme[1] .. ": lengths announced that never come, garbage, one byte at a time", function()
      local listener = listen(address(), { maxsize = 2 ^ 31 - 1 | 0 })
      local before = peer.descriptors()
      local mine, child = attack(listener, [[
bad = [connect() for _ in range(40)]
for i, c in enumerate(bad):
    head = [b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"][i % 4]
    quietly(c.sendall, head + b"x" * 100)
slow = connect()
for b in frame(b"\x91\x2a"): slow.sendall(bytes([b]))
assert slow.recv(100)[4:6] in (b"\x91\x2a", b"\x92\x2a")
for _ in range(200):
    c = connect(); quietly(c.sendall, frame(b"\xc1" + os.urandom(50))); c.close()
for _ in range(200):
    c = connect(); quietly(c.sendall, os.urandom(64)); c.close()
go.send(b"done")
go.recv(1)
]])
      local size = with.memory()
      local most = 0
      local met = serve(listener, {
        each = function() most = math.max(most, (with.memory()) - size) end,
      }, told(mine))
      assert.is_true(most < 256 * 1024, most .. " KiB more")
      assert.is_string(met.errors[E.EBADMSG])
      mine:close()
      assert.is_true(child:wait(with.patience))
      child:close()
      assert.are.equal(before, peer.descriptors())
    end)

    it(scheme[1] .. ": floods of clients that connect and reset #slow", function()
      local listener = listen(address())
      local before = peer.descriptors()
      local mine, child = attack(listener, [[
for i in range(2000):
    try: c = connect()
    except OSError: continue
    if i % 2: quietly(c.setsockopt, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if i % 3: quietly(c.send, frame(b"\x01")[:i % 6])
    c.close()
go.send(b"done")
go.recv(1)
]])
      local met = serve(listener, nil, told(mine))
      assert.is_true(met.closed + listener:stats().refused > 0)
      for errno in pairs(met.errors) do
        assert.is_true(errno == E.EPIPE or errno == E.EBADMSG, ipc.errno[errno])
      end
      mine:close()
      assert.is_true(child:wait(with.patience))
      child:close()
      assert.is_true(peer.descriptors() <= before)
    end)

    it(scheme[1] .. ": a client that never reads: deadlines hold, close reports", function()
      local listener = listen(address(), { linger = 0.05, capacity = 20000 })
      local mine, child = attack(listener, [[
c = connect()
c.sendall(frame(b"hello"))
go.recv(1)
]])
      local c = peer.keep(assert(listener:accept(with.patience)))
      assert.are.equal("hello", c:recv(with.patience))
      local start = ipc.now()
      local ok, message
      repeat
        ok, message = c:send(("x"):rep(16 << 20), nil, 0.01)
      until not ok
      assert.are.equal("timeout", message)
      assert.is_true(ipc.now() - start >= 0.01)
      local unsent = c:stats().unsent
      local function still(n) -- of TCP some may yet go, into the other side's buffers
        assert.is_true(n == unsent or scheme[1] == "tcp" and n > 0 and n < unsent, n)
        unsent = n
      end
      assert.is_true(unsent > 0)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { c:flush(0.01) })
      still(c:stats().unsent)
      start = ipc.now()
      local closed, text, errno = c:close()
      assert.is_nil(closed)
      still(math.tointeger(text:match "^(%d+) bytes unsent$"))
      assert.are.equal(E.ETIMEDOUT, errno)
      assert.is_true(ipc.now() - start >= 0.04)
      assert.are.same(CLOSED, { c:send "x" })
      mine:close()
      child:wait(with.patience)
    end)
  end

  it("unix: descriptors that nobody asked for", function()
    local listener = listen(path())
    local before = peer.descriptors()
    local mine, child = attack(listener, [[
fill = [os.dup(0) for _ in range(253)]
for round in range(20):
    c = connect()
    for n in (0, 1, 2, 100, 253):
        socket.send_fds(c, [frame(b"\x01")], fill[:n]) if n else c.send(frame(b"\x01"))
        quietly(lambda: socket.send_fds(c, [struct.pack(">I", 0x80000000 + max(n, 1)) + frame(b"\x01")], fill[:n]))
        c.recv(1000)
    if round % 2: c.close()
go.send(b"done")
go.recv(1)
]])
    local most = 0
    local met = serve(listener, {
      each = function(now)
        if now.served % 50 == 0 then most = math.max(most, peer.descriptors() - before - now.most) end
      end,
    }, told(mine))
    assert.is_true(most < 20, most .. " descriptors")
    assert.is_true(met.served > 100)
    mine:close()
    assert.is_true(child:wait(with.patience))
    child:close()
    assert.are.equal(before, peer.descriptors())
  end)
end)
