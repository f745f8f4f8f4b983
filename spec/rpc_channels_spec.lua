-- Calls over every mechanism: what crosses, many at once, and what the one that
-- waits is told when the other side dies. The server is a process of its own.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local LIMIT <const> = peer.limit
local MIB <const> = 1 << 20

local function fresh(scheme)
  return function() return peer.address(scheme, "rpc") end
end

-- ---- the server

-- Serves a channel, or an address that it tells first, until we close it.
local function serve(where, options)
  ipc.loop.run(function()
    local server <close> = assert(ipc.rpc.serve(where, require "spec.support.peers.exports", options))
    if type(where) == "string" then assert(ipc.parent:put(server.address)) end
    ipc.loop.go(function()
      ipc.parent:get()
      server:close()
    end)
    server:wait()
  end)
end

-- ---- the mechanisms

-- `connect(options)` -> what to connect to and the process that serves it; or `at()` ->
-- an address; `room`, of
-- ipc.mechanisms(); `largest`, bytes of a message where those are small; `quiet`:
-- it cannot tell that the other side is gone; `names()`, what is left in the system.
local rows = {}

local function merged(...)
  local all = {}
  for _, t in ipairs { ... } do
    for name, value in pairs(t) do all[name] = value end
  end
  return all
end

-- Two ends made here, one of which goes with the child.
local function ends(open)
  return function(options)
    local here, there = open()
    local child = peer.fork(serve, there, options)
    return peer.keep(here), child
  end
end

-- A server that listens.
local function address(where)
  return function(options)
    local child = peer.fork(serve, where(), options)
    return assert(child:get(LIMIT)), child
  end
end

local function crossed(open)
  return function()
    local r1, w1 = open()
    local r2, w2 = open()
    return assert(ipc.duplex(r1, w2)), assert(ipc.duplex(r2, w1))
  end
end

local function pair(what, options)
  return ends(function() return assert(ipc.pair(what, options)) end)
end

local function fifo(unit)
  return function()
    local path = peer.address("fifo", "rpc"):gsub("^fifo:", "")
    local r = assert(ipc.fifo(path, "r", { temporary = true, retry = false, unit = unit }))
    local w = assert(ipc.fifo(path, "w", { unit = unit, writers = 1 }))
    os.remove(path)
    return r, w
  end
end

local function listed(format)
  return function() return (with.shell(format:format(ipc.pid()))) end
end

local files = listed "ls -d /tmp/ipc-rpc-%d-* 2>/dev/null"
local shared = listed "ls -A /dev/shm /tmp | grep ipc-rpc-%d-"

local function add(row)
  if row.at then row.connect = address(row.at) end
  rows[#rows + 1] = row
end

add { name = "pipes", room = "pipe", connect = ends(crossed(function() return assert(ipc.pipe()) end)) }
add {
  name = "pipes of bytes", room = "pipe",
  connect = ends(crossed(function() return assert(ipc.pipe { unit = "stream" }) end)),
}
add {
  name = "a duplex pipe", room = "pipe",
  connect = ends(function() return assert(ipc.pipe { duplex = true }) end),
}
add { name = "FIFOs", room = "fifo", names = files, connect = ends(crossed(fifo "message")) }
add { name = "FIFOs of bytes", room = "fifo", names = files, connect = ends(crossed(fifo "stream")) }
add {
  name = "a FIFO, connected", room = "fifo", names = files,
  at = fresh "fifo",
}
add { name = "a socket pair across fork", room = "socket", connect = pair "unix" }
add { name = "a socket pair of bytes", room = "socket", connect = pair("unix", { unit = "stream" }) }
add { name = "a seqpacket pair", room = "socket", packet = true, connect = pair "unix?type=seqpacket" }
add {
  name = "a datagram pair", room = "socket", packet = true, quiet = true, connect = pair "unix?type=datagram",
}
add {
  name = "a unix socket", room = "socket", names = files,
  at = fresh "unix",
}
add {
  name = "a unix socket of frames", room = "socket", names = files, options = { unit = "message" },
  at = fresh "unix",
}
add {
  name = "a seqpacket socket", room = "socket", names = files, packet = true, options = { type = "seqpacket" },
  at = fresh "unix",
}
add { name = "TCP", room = "socket", at = fresh "tcp" }
add {
  name = "TCP in frames", room = "socket", options = { unit = "message" },
  at = fresh "tcp",
}
add {
  name = "System V queues", room = "sysv", quiet = true, small = true,
  names = function()
    return (with.shell(("awk '$6 == %d || $7 == %d' /proc/sysvipc/msg 2>/dev/null"):format(ipc.pid(), ipc.pid())))
  end,
  at = fresh "sysv",
}
add {
  name = "POSIX queues", room = "mqueue", quiet = true, small = true,
  at = fresh "mqueue",
}
add { name = "a pair of System V queues", room = "sysv", quiet = true, small = true, connect = pair "sysv" }
add { name = "a pair of POSIX queues", room = "mqueue", quiet = true, small = true, connect = pair "mqueue" }
add {
  name = "shared memory, connected", room = "shm", names = shared, options = { capacity = 4 * MIB },
  at = fresh "shm",
}
add { name = "shared memory", room = "shm", connect = pair("shm", { capacity = 4 * MIB }) }
add { name = "mapped files", room = "mmap", connect = pair("mmap", { capacity = 4 * MIB }) }
add {
  name = "the stdio of a program", room = "pipe", program = true,
  connect = function()
    return { "sh", "-c", with.command [[
      local ipc = require "ipc"
      ipc.main(function()
        assert(ipc.rpc.serve(assert(ipc.stdio()), (require "spec.support.peers.exports"))):wait()
      end)
    ]] }
  end,
}
add {
  name = "ipc.parent of a spawned process", room = "socket",
  connect = function()
    local child = assert(ipc.spawn(function()
      ipc.loop.run(function()
        assert(ipc.rpc.serve(ipc.parent, (require "spec.support.peers.exports"))):wait()
      end)
    end))
    return peer.keep(child), child
  end,
}

-- What a killed server leaves where the mechanism is the kernel's: those that it
-- sent to or received from, and the name that it listened at.
local function sweep(where, pid)
  local scheme, name = tostring(where):match "^(%l+):([^?]*)"
  if scheme == "sysv" then
    os.execute(("for q in $(awk '$6 == %d || $7 == %d { print $2 }' /proc/sysvipc/msg); do ipcrm -q $q; done")
      :format(pid, pid))
  elseif scheme == "mqueue" then
    local queue <close> = ipc.mqueue(name, "w", { create = false })
    if queue then queue:remove() end
  elseif scheme == "fifo" or scheme == "unix" then
    os.remove(name)
  elseif scheme == "shm" then
    os.remove(name:gsub("^/", "/dev/shm/.") .. ".listen")
  end
end

-- ---- what holds for all of them

local has = {}
for _, row in ipairs(ipc.mechanisms()) do has[row.room] = true end

local unlocked = (os.getenv "IPC_WITHOUT" or ""):find "%f[%w]ofd%f[%W]" ~= nil

-- Whether that is what one who waits is told when the other side is gone; of a program
-- it is how that ended.
local function gone(row, message, errno)
  if row.program and errno == E.ECONNRESET then return message:find "killed by signal" ~= nil end
  return errno == E.EPIPE or errno == E.EOWNERDEAD
end

-- The same calls from a plain script and from a task.
local places = {
  ["a script"] = function(fn) return fn() end,
  ["a task"] = function(fn) return ipc.loop.run(fn) end,
}

for _, row in ipairs(rows) do
  describe("calls over " .. row.name .. ":", function()
    if not has[row.room] then
      it("works", function() pending("this system has no " .. row.room) end)
      return
    end

    local served = {} -- what is to end with the test

    before_each(function() ipc.loop.use(nil) end)
    after_each(function()
      for where, child in pairs(served) do
        served[where] = nil
        pcall(child.put, child, "end")
        if not child:wait(LIMIT) or row.room == "sysv" then sweep(where, child.pid) end
      end
      peer.clean()
      ipc.scheduler(nil)
    end)

    -- A session, and the process that serves it if we are told.
    local function open(options)
      local where, child = row.connect(row.options)
      local all = merged({ timeout = LIMIT }, type(where) == "string" and merged({ retry = LIMIT }, row.options or {})
        or {}, options or {})
      if type(where) == "string" then
        served[where] = child
      elseif row.room == "sysv" then -- a queue is its reader's to remove
        served["sysv:" .. child.pid] = child
      end
      return assert(ipc.rpc.connect(where, all)), child
    end

    for place, run in pairs(places) do
      describe("from " .. place .. ",", function()
        it("results, nils, errors, callbacks", function()
          run(function()
            local session <close> = open { exports = { answer = function(...) return "yes", ... end } }
            local remote = session.remote
            assert.are.equal(3, remote.add(1, 2))
            assert.are.equal(3.0, remote.add(1.0, 2))
            assert.are.same(table.pack(), table.pack(remote.echo()))
            assert.are.same(table.pack(nil, nil, 3, nil), table.pack(remote.echo(nil, nil, 3, nil)))
            assert.are.equal(4, remote.count(nil, nil, 3, nil))
            assert.are.same({ a = { 1, { b = true } } }, remote.echo { a = { 1, { b = true } } })
            local ok, message, errno = session:call("fail", "the reason")
            assert.is_nil(ok)
            assert.matches("the reason", message, 1, true)
            assert.is_number(errno)
            assert.error_matches(function() remote.fail "the reason" end, "the reason")
            assert.are.same({ nil, E.ENOSYS }, { (session:call "nothing"), (select(3, session:call "nothing")) })
            local seen = {}
            assert.are.equal(10, remote.each(10, function(i) seen[#seen + 1] = i end))
            assert.are.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, seen)
            assert.are.same(table.pack("yes", nil, 2), table.pack(remote.ask(nil, 2)))
          end)
        end)

        it("large ones both ways at once", function()
          run(function()
            local session <close> = open()
            local n = MIB
            if row.small then n = 4000 end
            if row.packet then n = 64 << 10 end
            local text = ("ab"):rep(n // 2)
            local futures, seen = {}, 0
            for i = 1, 4 do
              futures[i] = session:async("exchange", text, function(back)
                assert(back == text:reverse())
                seen = seen + 1
                return back
              end)
            end
            for i = 1, 4 do
              local ok, back = assert(futures[i]:wait(LIMIT))
              assert.is_true(ok and back == text:reverse())
            end
            assert.are.equal(4, seen)
          end)
        end)

        if row.small then
          it("what no message can hold is an error, and no end", function()
            run(function()
              local session <close> = open()
              local ok, message, errno = session:call("count", ("x"):rep(MIB))
              assert.is_nil(ok)
              assert.are.equal(E.EMSGSIZE, errno, message)
              ok, message = session:call("text", MIB) -- nor any answer
              assert.is_nil(ok)
              assert.is_string(message)
              assert.are_not.equal("timeout", message)
              assert.are.equal(3, session.remote.add(1, 2))
            end)
          end)
        end

        it("a thousand in flight", function()
          run(function()
            local session <close> = open()
            local futures = {}
            for i = 1, 1000 do futures[i] = session:async("add", i, i) end
            for i = 1000, 1, -1 do
              local ok, sum = futures[i]:wait(LIMIT)
              assert.is_true(ok, sum)
              assert.are.equal(2 * i, sum)
            end
          end)
        end)

        it("the death of the other side is told to all who wait" .. (row.quiet and " #slow" or ""), function()
          run(function()
            local session <close> = open()
            local pid = session.remote.pid()
            local futures = {}
            for i = 1, 10 do futures[i] = session:async "hang" end
            assert.are.equal(3, session.remote.add(1, 2)) -- all have begun
            os.execute("kill -KILL " .. pid)
            for i = 1, 10 do
              local ok, message, errno = futures[i]:wait(LIMIT)
              assert.is_nil(ok)
              assert.is_true(gone(row, message, errno), message)
            end
            for _, name in ipairs { "call", "notify" } do
              local ok, message, errno = session[name](session, "add", 1, 2)
              assert.is_nil(ok)
              assert.is_true(gone(row, message, errno), message)
            end
          end)
        end)

        it("so is its end" .. (row.quiet and " #slow" or ""), function()
          run(function()
            local session <close> = open()
            local future = session:async "hang"
            session:notify "quit"
            local ok, message, errno = future:wait(LIMIT)
            assert.is_nil(ok)
            assert.is_true(gone(row, message, errno), message)
          end)
        end)
      end)
    end

    if row.at then
      it("a server in a process of its own that is killed" .. (row.quiet and " #slow" or ""), function()
        local before = row.names and row.names()
        local where, exports = row.at(), require "spec.support.peers.exports"
        local server <close> = assert(ipc.rpc.serve(where, exports, merged(row.options or {}, { process = true })))
        local session <close> = assert(ipc.rpc.connect(server.address, merged(row.options or {}, { timeout = LIMIT })))
        local pid = session.remote.pid()
        local future = session:async "hang"
        assert.are_not.equal(ipc.pid(), pid)
        os.execute("kill -KILL " .. pid)
        local ok, message, errno = future:wait(LIMIT)
        assert.is_nil(ok)
        assert.is_true(gone(row, message, errno), message)
        session:close()
        server:close()
        if row.room == "fifo" and unlocked then sweep(where, pid) end -- whose it was, locks tell
        if row.room == "mqueue" then assert.is_nil((ipc.open(where, "w", { create = false }))) end
        assert.are.equal(before, row.names and row.names())
      end)
    end

    if row.names then
      it("leaves no name", function()
        local before = row.names()
        local session, child = open()
        assert.are.equal(3, session.remote.add(1, 2))
        session:close()
        child:put "end" -- or it has ended with the channel
        assert.is_true((child:wait(LIMIT)))
        assert.are.equal(before, row.names())
      end)
    end
  end)
end

describe("a server over queues", function()
  before_each(function() ipc.loop.use(nil) end)
  after_each(function() peer.clean() end)

  -- A server that looks often, and what its sessions have ended with.
  local function serving(scheme, fn)
    ipc.loop.run(function()
      local reasons = ipc.loop.queue()
      local server <close>, message, errno = ipc.rpc.serve(peer.address(scheme, "rpc"), {
        add = function(a, b) return a + b end,
      }, { stall = 0.02, on_close = function(_, _, number) reasons:put(number) end })
      if errno == E.EMFILE then return pending "no queue left" end
      return fn(assert(server, message), reasons)
    end)
  end

  for _, scheme in ipairs { "sysv", "mqueue" } do
    if peer.has(scheme) then
      it("finds that a plain peer was killed, whatever that has said of itself: " .. scheme, function()
        serving(scheme, function(server, reasons)
          for _, pid in ipairs { false, 1 } do
            local child = peer.fork(function()
              local channel = assert(ipc.connect(server.address))
              if pid then
                channel:send(ipc.pack { 0, 1, "$hello", { 1, { pid = pid } } })
                assert(channel:recv(LIMIT))
              end
              local session = assert(ipc.rpc.connect(channel, { peer = "plain", timeout = LIMIT }))
              assert(session:call("add", 1, 2))
              ipc.parent:put "ready"
              ipc.sleep(3 * LIMIT)
            end)
            assert.are.equal("ready", child:get(LIMIT))
            child:kill "KILL"
            assert.are.equal(E.EOWNERDEAD, reasons:get(LIMIT))
          end
          assert.are.equal(0, #server)
        end)
      end)

      it("serves the process that a plain peer has left its channel to: " .. scheme, function()
        serving(scheme, function(server)
          local told, tell = peer.pipe()
          local going, go = peer.pipe()
          local child = peer.fork(function()
            local channel = assert(ipc.connect(server.address))
            local heir <close> = assert(ipc.fork(function()
              local session = assert(ipc.rpc.connect(channel, { peer = "plain", timeout = LIMIT }))
              tell:put { session:call("add", 1, 2) }
              going:get(LIMIT)
              tell:put { session:call("add", 3, 4) }
            end))
            heir:wait(3 * LIMIT)
          end)
          assert.are.same({ true, 3 }, told:get(LIMIT))
          child:kill "KILL"
          assert.is_nil((child:wait(LIMIT)))
          ipc.sleep(0.1) -- some looks
          assert.are.equal(1, #server)
          go:put(true)
          assert.are.same({ true, 7 }, told:get(LIMIT))
        end)
      end)
    end
  end
end)

describe("a channel that is given", function()
  it("has one session at a time", function()
    ipc.loop.run(function()
      local a, b = assert(ipc.pair "unix")
      local server <close> = assert(ipc.rpc.serve(b, { add = function(x, y) return x + y end }))
      local first <close> = assert(ipc.rpc.connect(a))
      for _, try in ipairs { function() return ipc.rpc.connect(a) end, function() return ipc.rpc.serve(a, {}) end,
        function() return ipc.rpc.connect(b) end } do
        local ok, problem = pcall(try)
        assert.is_false(ok)
        assert.is_truthy(tostring(problem):find("(the channel has a session)", 1, true), tostring(problem))
      end
      assert.are.equal(3, first.remote.add(1, 2))
      first:close()
      local ok, problem = pcall(ipc.rpc.connect, a)
      assert.is_false(ok)
      assert.is_truthy(tostring(problem):find("(the channel is closed)", 1, true), tostring(problem))
      assert.is_true(server:close())
    end)
  end)
end)

describe("who speaks otherwise", function()
  after_each(function() peer.clean() end)

  local function said(session, what)
    local ok, message, errno = session:call "f"
    assert.are.same({ nil, E.EBADMSG }, { ok, errno }, message)
    assert.is_truthy(message:find(what, 1, true), message)
  end

  it("in frames, where a stream was expected, or the other way round, is told", function()
    ipc.loop.run(function()
      local all = { f = function() end }
      local server <close> = assert(ipc.rpc.serve(peer.address "unix", all))
      local framed <close> = assert(ipc.rpc.connect(assert(ipc.connect(server.address)), { timeout = LIMIT }))
      said(framed, "does the peer speak frames?")
      local where = peer.address "unix"
      local frames <close> = assert(ipc.rpc.serve(assert(ipc.listen(where)), all))
      local session <close> = assert(ipc.rpc.connect(where, { timeout = LIMIT }))
      said(session, "does the peer speak MessagePack-RPC?")
      assert.is_table(frames)
    end)
  end)

  it("as a program that writes text and ends well is told by that text", function()
    ipc.loop.run(function()
      local at_once <close> = assert(ipc.rpc.connect({ "echo", "hello" }, { timeout = LIMIT }))
      said(at_once, "does the peer speak MessagePack-RPC?")
      local mark = os.tmpname()
      os.remove(mark)
      local program = { "sh", "-c", 'echo hello; exec 0<&-; : > "$0"', mark }
      local session <close> = assert(ipc.rpc.connect(program, { timeout = LIMIT }))
      local limit = ipc.now() + LIMIT
      local file
      repeat
        ipc.sleep(0.001)
        file = io.open(mark)
      until file or ipc.now() > limit
      assert(file):close()
      os.remove(mark)
      said(session, "does the peer speak MessagePack-RPC?") -- what is sent finds nobody
    end)
  end)
end)
