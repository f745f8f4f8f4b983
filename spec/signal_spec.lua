-- Signals as something to receive: ipc.signals.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local scheduler = require "spec.support.scheduler"

local E, run = ipc.errno, peer.run

local TIMEOUT = { nil, "timeout", E.ETIMEDOUT }

local function signals(list, options)
  return peer.keep(assert(ipc.signals(list, options or { timeout = peer.limit })))
end

-- Not os.execute, which ignores INT and QUIT meanwhile.
local function raise(...)
  for _, name in ipairs { ... } do
    local file <close> = peer.popen(("kill -%s %d"):format(name, ipc.pid()))
    file:read "a"
  end
end

-- What the system says it does with a signal: "caught", "ignored", "default".
local function action(number, pid)
  local status <close> = assert(io.open(("/proc/%s/status"):format(pid or "self")))
  local text = status:read "a"
  local function has(field)
    return tonumber(text:match(field .. ":%s*(%x+)"), 16) >> (number - 1) & 1 == 1
  end
  return has "SigCgt" and "caught" or has "SigIgn" and "ignored" or "default"
end

local USR1, USR2, HUP = 10, 12, 1 -- on most systems that have /proc
local says_action = peer.has_proc and action(USR2) == "default" -- valgrind has its own

describe("ipc.signals", function()
  after_each(peer.clean)

  it("receives names in the order they came", function()
    local s = signals { "USR1", "HUP", "TERM" }
    assert.are.same(TIMEOUT, { s:recv(0) })
    raise("TERM", "USR1")
    assert.are.equal("TERM", s:recv())
    assert.are.equal("USR1", s:get())
    assert.are.same(TIMEOUT, { s:recv(0.01) })
    raise "HUP"
    local list = {}
    for name in s:values() do
      list[#list + 1] = name
      s:close()
    end
    assert.are.same({ "HUP" }, list)
    assert.are.equal(3, s:stats().received)
  end)

  it("makes one of equal ones that wait, and loses no kind", function()
    local s = signals { "USR1", "USR2", "HUP" }
    for _ = 1, 5 do raise("USR1", "HUP", "USR2") end
    assert.are.equal("USR1", s:recv())
    assert.are.equal("HUP", s:recv())
    assert.are.equal("USR2", s:recv())
    assert.are.same(TIMEOUT, { s:recv(0) })
    raise "USR1"
    assert.are.equal("USR1", s:recv())
  end)

  it("takes numbers, and says those that have no name", function()
    local s = signals { 15, 1 }
    raise("1", "15")
    assert.are.same({ "HUP", "TERM" }, { s:recv(), s:recv() })
    if not peer.has_proc then return pending "needs signals of real time" end
    s = signals { 40 }
    raise "40"
    assert.are.equal(40, s:recv())
  end)

  it("tells everyone who takes it, and only what they take", function()
    local one, two, other = signals { "USR1", "USR2" }, signals { "USR1" }, signals { "HUP" }
    raise "USR1"
    assert.are.equal("USR1", one:recv())
    assert.are.equal("USR1", two:recv())
    assert.are.same(TIMEOUT, { other:recv(0) })
    one:close()
    raise "USR1"
    assert.are.equal("USR1", two:recv())
    assert.are.same(TIMEOUT, { two:recv(0) })
  end)

  it("interrupts a wait that runs", function()
    local s = signals { "USR1" }
    local child = peer.fork(function(pid)
      os.execute("kill -USR1 " .. pid)
    end, ipc.pid())
    assert.are.equal("USR1", s:recv())
    assert.is_true(child:wait())
  end)

  it("is polled, like all that can be waited for", function()
    local s = signals { "USR1" }
    assert.are.same(TIMEOUT, { ipc.poll({ s }, 0) })
    assert.are.same({ "r", nil }, { s:events(), s:timeout() })
    raise "USR1"
    assert.is_true(ipc.poll({ s }, peer.limit)[s])
    assert.are.equal(0, s:timeout())
    local plain = { pollfd = s:pollfd(), events = "r" }
    assert.is_true(ipc.poll({ plain }, 0)[plain])
    assert.are.equal("USR1", s:recv(0))
    assert.are.same(TIMEOUT, { ipc.poll({ s, plain }, 0) })
  end)

  it("lets other tasks run while one waits", function()
    local s = signals { "USR1" }
    local order = {}
    local loop = scheduler.new()
    loop:go(function()
      local name = s:recv(peer.limit)
      order[#order + 1] = name
    end)
    loop:go(function()
      order[#order + 1] = "raised"
      raise "USR1"
    end)
    loop:run(peer.limit)
    ipc.scheduler(nil)
    assert.are.same({ "raised", "USR1" }, order)
  end)

  it("is closed by close, for who waits, too", function()
    local s = signals { "USR1" }
    local result
    local loop = scheduler.new()
    loop:go(function() result = { s:recv(peer.limit) } end)
    loop:go(function() assert.is_true(s:close()) end)
    loop:run(peer.limit)
    ipc.scheduler(nil)
    assert.are.same({ nil, "closed", E.EPIPE }, result)
    assert.are.same({ nil, "closed", E.EPIPE }, { s:recv(0) })
    assert.is_true(s:close())
    for _ in s:messages() do error "a signal" end
    assert.is_nil(s:pollfd())
    assert.are.equal("ipc.signals (closed)", tostring(s))
  end)

  it("raises on what cannot be taken, and says so", function()
    for name, why in pairs {
      KILL = "entry 2: KILL cannot be caught",
      STOP = "entry 2: STOP cannot be caught",
      SEGV = "entry 2: SEGV is a fault of the program",
      SIGTERM = "entry 2: a signal expected",
      ["15"] = "entry 2: a signal expected",
      [0] = "entry 2: 0 is no signal",
      [-1] = "entry 2: a signal expected",
      [1000] = "entry 2: a signal expected",
      [1.5] = "entry 2: a signal expected",
      [127] = "a signal that cannot be caught here",
    } do
      assert.error_matches(function() ipc.signals { "USR1", name } end,
        "^bad argument #1 to '.*signals' %(" .. why)
    end
    assert.error_matches(function() ipc.signals {} end, "no signals")
    assert.error_matches(function() ipc.signals "TERM" end, "table expected")
    assert.error_matches(function() ipc.signals({ "USR1" }, { size = 1 }) end, "unknown option 'size'")
    assert.error_matches(function() ipc.signals({ "USR1" }, { timeout = 0 / 0 }) end, "not a number")
    local s = signals { "USR1" }
    assert.error_matches(function() s:recv "1" end, "seconds expected")
    assert.error_matches(function() s:recv(1, 2) end, "no tags here")
    assert.error_matches(function() s.recv(io.stdout) end, "ipc.signals expected")
  end)
end)

describe("what a signal did before", function()
  after_each(peer.clean)

  it("is restored by the last who took it", function()
    if not says_action then return pending "needs /proc" end
    assert.are.equal("default", action(USR2))
    local one, two = signals { "USR2" }, signals { "USR2", "USR2" }
    assert.are.equal("caught", action(USR2))
    one:close()
    assert.are.equal("caught", action(USR2))
    two:close()
    assert.are.equal("default", action(USR2))
    two = assert(ipc.signals { "USR2" }) -- luacheck: ignore
    two = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.are.equal("default", action(USR2))
  end)

  it("may have been to ignore it", function()
    if not peer.has_proc then return pending "needs /proc" end
    assert.are.equal("ignored caught ignored\n", (run([[
      local function action()
        for line in io.lines "/proc/self/status" do
          local field, bits = line:match "^(Sig%a+):%s*(%x+)"
          if field == "SigCgt" and tonumber(bits, 16) & 1 == 1 then return "caught" end
          if field == "SigIgn" and tonumber(bits, 16) & 1 == 1 then return "ignored" end
        end
      end
      local before = action()
      local s = ipc.signals { "HUP" }
      local now = action()
      s:close()
      print(before .. " " .. now .. " " .. action())
    ]], { shell = "trap '' HUP" })))
  end)

  it("is the host's own, if it has set another since", function()
    if not says_action then return pending "needs /proc" end
    local host = require "spec.peer"
    local s = signals { "USR2", "USR1" }
    host.ignore(USR2)
    assert.are.equal("ignored", action(USR2))
    s:close()
    assert.are.equal("ignored", action(USR2))
    assert.are.equal("default", action(USR1))
    s = signals { "USR2" } -- and is what comes back next
    assert.are.equal("caught", action(USR2))
    s:close()
    assert.are.equal("ignored", action(USR2))
    host.ignore(USR2, false)
    assert.are.equal("default", action(USR2))
  end)

  it("is what a child of ipc.fork has, and that of a plain fork", function()
    if not says_action then return pending "needs /proc" end
    local s = signals { "USR2" }
    local child = peer.fork(function()
      local before = action(USR2)
      local closed = { s:recv(0) }
      local own = ipc.signals { "USR2" }
      os.execute("kill -USR2 " .. ipc.pid())
      return before, closed[3], own:recv(10), action(HUP)
    end)
    assert.are.same({ true, "default", E.ECHILD, "USR2", action(HUP) }, { child:wait(peer.limit) })
    assert.are.equal("caught", action(USR2))
    local path = os.tmpname()
    require("spec.peer").fork(function()
      local file = assert(io.open(path, "w"))
      file:write(action(USR2), " ", (select(3, s:recv(0))))
      file:close()
      s:close()
    end)
    local file <close> = assert(io.open(path))
    os.remove(path)
    assert.are.equal("default " .. E.ECHILD, file:read "a")
    assert.are.equal("caught", action(USR2))
    assert.are.same(TIMEOUT, { s:recv(0) }) -- what came there is not ours
    raise "USR2"
    assert.are.equal("USR2", s:recv())
  end)

  it("ends a forked child that is told before it runs", function()
    local s = signals { "TERM" }
    for _ = 1, 20 do
      local child = peer.fork(function() ipc.sleep(peer.limit) end)
      child:kill "TERM"
      assert.is_nil((child:wait(peer.limit)))
      assert.are.equal("TERM", child.reason.signal)
    end
    assert.are.same(TIMEOUT, { s:recv(0) })
  end)

  it("is there again when the state ends", function()
    local output, _, how, code = run [[
      local s = ipc.signals { "TERM" }
      io.stdout:write "taken" io.stdout:flush()
      setmetatable({}, { __gc = function() os.execute("kill -TERM " .. ipc.pid()) end })
      s = nil
      collectgarbage() collectgarbage()
      os.execute("kill -TERM " .. ipc.pid())
      io.stdout:write "not reached"
    ]]
    assert.are.equal("taken", (output:gsub("Terminated%s*$", "")))
    assert.is_true(how == "signal" or code == 143)
  end)
end)

describe("a signal", function()
  it("that comes as soon as it is caught is received", function()
    local module = package.searchpath("spec.early", package.cpath)
    assert.is_string(module, "make build/spec/early.so")
    assert.are.equal("USR1\nnil\ttimeout\t" .. E.ETIMEDOUT .. "\n", (run([[
      local s = ipc.signals { "USR1" }
      print(s:recv(0))
      print(s:recv(0))
    ]], { env = { LD_PRELOAD = (os.getenv "LD_PRELOAD" or "") .. " " .. module } })))
  end)
end)

describe("in a storm", function()
  after_each(peer.clean)

  it("each kind arrives, and the process lives", function()
    local s = signals { "USR1", "USR2", "HUP" }
    local child = peer.fork(function(pid)
      local file = io.popen("sh", "w")
      for i = 1, 1000 do
        file:write("kill -", ({ "USR1", "USR2", "HUP" })[i % 3 + 1], " ", pid, "\n")
      end
      file:close()
    end, ipc.pid())
    local seen, closed = {}, 0
    while not ipc.poll({ child }, 0) or s:timeout() == 0 do
      local extra = assert(ipc.signals { "USR1", "CHLD" }) -- comes and goes meanwhile
      local name = s:recv(0.01)
      if name then
        seen[name] = (seen[name] or 0) + 1
      end
      assert.is_true(extra:close())
      closed = closed + 1
    end
    assert.is_true(child:wait())
    assert.is_true(closed > 0)
    for _, name in ipairs { "USR1", "USR2", "HUP" } do assert.is_true(seen[name] and seen[name] > 0, name) end
    raise("USR1", "USR2", "HUP")
    assert.are.same({ "USR1", "USR2", "HUP" }, { s:recv(), s:recv(), s:recv() })
  end)

  it("takes no descriptor that it does not give back", function()
    if not peer.has_proc then return pending "needs /proc" end
    local before = peer.descriptors()
    for _ = 1, 100 do ipc.signals({ "USR1" }):close() end
    assert.are.equal(before, peer.descriptors())
    if says_action then assert.are.equal("default", action(USR1)) end
  end)
end)
