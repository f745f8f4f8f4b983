-- A kill before every instruction of what processes do with locks: after each,
-- strangers have the lock in time, all that the dead had is back, and who waits
-- hears of it. As spec/storm/step.lua in short and long.
local ipc = require "ipc"
local scheduler = require "spec.support.scheduler"
local victims = require "spec.support.victims"

local E <const> = ipc.errno
local PARTICIPANTS <const> = 8
local CELL <const> = 1024 + 64 * PARTICIPANTS
local PATIENCE <const> = 2

local own = {
  semaphore = { permits = 2 },
  barrier = { parties = 2 },
  event = { auto = true },
}

local function open(kind, more)
  local options = { participants = PARTICIPANTS }
  for key, value in pairs(own[kind] or {}) do options[key] = value end
  for key, value in pairs(more or {}) do options[key] = value end
  return ipc[kind](victims.name, options)
end

-- ---- what holds after every kill: nothing, or what is wrong

local checks = {}

function checks.mutex(a, b, died)
  for _, m in ipairs { a, b } do
    local g, state = m:lock(PATIENCE)
    if not g then return "lock: " .. state end
    if state and state ~= "owner_dead" then return state end
    if died ~= nil and died ~= (state ~= nil) then
      return died and "nobody says that one died with it" or "one died with it, it is said"
    end
    if m == b and not m:consistent() then return "consistent" end
    g:unlock()
  end
  local held <close>, state = assert(a:lock(0))
  if state then return "it is not consistent" end
end

function checks.rwlock(a, b)
  for _, write in ipairs { a, b } do
    local g, state = write:write(PATIENCE)
    if not g then return "write: " .. state end
    if state and not write:consistent() then return "consistent" end
    g:unlock()
  end
  local one <close>, state = a:read(PATIENCE)
  local two <close> = b:read(PATIENCE)
  if not one or not two or state then return "two readers" end
  local s = a:stats()
  if s.readers ~= 2 or s.writers ~= 0 or s.wanting ~= 0 then return "figures" end
end

function checks.semaphore(a, b)
  for _, s in ipairs { a, b } do
    local g, why = s:acquire(PATIENCE, 2)
    if not g then return "acquire: " .. why end
    if s:acquire(0) then return "a third permit" end
    g:unlock()
  end
  if a:stats().free ~= 2 then return "permits are missing" end
end

function checks.event(a, b)
  a:clear()
  if not a:set() or not b:wait(0) or a:wait(0) then return "set and wait" end
end

-- Two wait and one tells: each goes on.
local function together(...)
  local run, failed = scheduler.new(), nil
  for _, f in ipairs { ... } do
    run:go(function() failed = f() or failed end)
  end
  local ok, why = pcall(run.run, run, 2 * PATIENCE)
  ipc.scheduler()
  return not ok and why or failed
end

function checks.barrier(a, b)
  local function pass(x)
    return function()
      for _ = 1, 3 do
        local ok, why = x:wait(PATIENCE)
        if not ok then return "wait: " .. why end
      end
    end
  end
  for _, x in ipairs { a, b } do -- with the dead one that came, or without
    local ok, why, errno = x:wait(0)
    if not ok and errno ~= E.EOWNERDEAD and errno ~= E.ETIMEDOUT then return "wait: " .. why end
  end
  local wrong = together(pass(a), pass(b))
  if wrong then return wrong end
  if a:stats().arrived ~= 0 then return "somebody is still there" end
end

function checks.condition(a, b)
  local m, n = assert(ipc.mutex()), assert(ipc.mutex())
  local told = 0
  local function wait(x, mutex)
    return function()
      local held <close> = assert(mutex:lock(0))
      local ok, why = x:wait(mutex, PATIENCE)
      if not ok then return "wait: " .. why end
      told = told + 1
    end
  end
  local wrong = together(wait(a, m), wait(b, n), function()
    ipc.sleep(0.03) -- in which what the dead were told may reach one of them
    a:notify_all()
  end)
  if wrong then return wrong end
  if told ~= 2 or a:stats().waiting ~= 0 then return "who waited was not told" end
end

-- ---- trials

local trials = {}

-- A word of the cell.
local function peek(at)
  local file <close> = assert(io.open(victims.path, "rb"))
  file:seek("set", CELL + at)
  return (("=I4"):unpack(file:read(4)))
end

local function trial(kind, name, t)
  t.name = kind .. ": " .. name
  t.options = {}
  t.word = CELL + 8
  t.kind = kind
  t.prepare = t.prepare or function() return assert(open(kind)) end
  local before = t.before
  t.before = function(c)
    c.keep, c.also = assert(open(kind)), assert(open(kind))
    if before then c.held = before(c) end
  end
  t.through = function(_, c)
    local died = nil
    if c.held then
      c.held:unlock()
    elseif kind == "mutex" then
      died = peek(8) ~= 0 or peek(12) ~= 0 -- the lock; broken
    end
    c.held = nil
    local wrong = checks[kind](c.keep, c.also, died)
    if wrong then return "who was there: " .. wrong end
    local a, why = open(kind)
    if not a then return "a stranger cannot open it: " .. why end
    c.a = a
    c.b = assert(open(kind))
    c.keep:close()
    return checks[kind](c.a, c.b)
  end
  trials[#trials + 1] = t
  return t
end

-- Who has it.
local function has(kind, method, ...)
  local arguments = table.pack(...)
  return function()
    local x = assert(open(kind))
    local g = assert(x[method](x, 1, table.unpack(arguments)))
    return x, g
  end
end

local lock = trial("mutex", "lock", { act = function(m) m:lock(0) end })
trial("mutex", "unlock", { prepare = has("mutex", "lock"), act = function(m) m:unlock() end })
trial("mutex", "close", { prepare = has("mutex", "lock"), act = function(m) m:close() end })
trial("mutex", "lock, takeover", {
  former = lock, choose = victims.held,
  act = function(m) m:lock(1) end,
})
trial("mutex", "lock, consistent", {
  former = lock, choose = victims.held,
  prepare = function()
    local m = assert(open "mutex")
    return m
  end,
  act = function(m)
    m:lock(1)
    m:consistent()
    m:unlock()
  end,
})
trial("mutex", "join where one died with it", {
  former = lock, choose = victims.held, late = true,
  prepare = function() end,
  act = function() assert(open "mutex") end,
})
local waits = trial("mutex", "lock that waits", {
  before = function(c) return assert(c.keep:lock(0)) end,
  act = function(m) m:lock(victims.wait) end,
})
trial("mutex", "unlock that wakes", {
  former = waits, choose = victims.asleep,
  act = function(m) m:lock(0) end,
})

local read = trial("rwlock", "read", { act = function(x) x:read(0) end })
local write = trial("rwlock", "write", { act = function(x) x:write(0) end })
trial("rwlock", "done reading", { prepare = has("rwlock", "read"), act = function(x) x:unlock() end })
trial("rwlock", "done writing", { prepare = has("rwlock", "write"), act = function(x) x:unlock() end })
trial("rwlock", "write that waits", {
  before = function(c) return assert(c.keep:read(0)) end,
  act = function(x) x:write(victims.wait) end,
})
trial("rwlock", "read that waits", {
  before = function(c) return assert(c.keep:write(0)) end,
  act = function(x) x:read(victims.wait) end,
})
trial("rwlock", "write, after a dead guard", {
  former = write, choose = victims.held,
  act = function(x) x:write(1) end,
})
trial("rwlock", "write, after a dead writer", {
  former = write, choose = victims.last,
  act = function(x) x:write(1) end,
})
trial("rwlock", "read, after a dead reader", {
  former = read, choose = victims.last,
  act = function(x) x:read(1) end,
})
trial("rwlock", "join where one died writing", {
  former = write, choose = victims.last, late = true,
  prepare = function() end,
  act = function() assert(open "rwlock"):read(0) end,
})

local acquire = trial("semaphore", "acquire", { act = function(s) s:acquire(0, 2) end })
trial("semaphore", "release", { prepare = has("semaphore", "acquire", 2), act = function(s) s:release() end })
trial("semaphore", "acquire that waits", {
  before = function(c) return assert(c.keep:acquire(0)) end,
  act = function(s) s:acquire(victims.wait, 2) end,
})
trial("semaphore", "acquire, after the dead", {
  former = acquire, choose = victims.last,
  act = function(s) s:acquire(1, 2) end,
})
trial("semaphore", "acquire, after a dead guard", {
  former = acquire, choose = victims.held,
  act = function(s) s:acquire(1, 2) end,
})
trial("semaphore", "join where one died with some", {
  former = acquire, choose = victims.last, late = true,
  prepare = function() end,
  act = function() assert(open "semaphore") end,
})

local expects = trial("condition", "wait", {
  prepare = function()
    local m = assert(ipc.mutex())
    assert(m:lock())
    return assert(open "condition"), m
  end,
  act = function(c, m) c:wait(m, victims.wait) end,
})
trial("condition", "notify", { act = function(c) c:notify() end })
trial("condition", "notify a dead one", {
  former = expects, choose = victims.asleep,
  act = function(c) c:notify() end,
})

trial("event", "set", { act = function(e) e:set() end })
trial("event", "wait", {
  before = function(c) c.keep:set() end,
  act = function(e) e:wait(0) end,
})
trial("event", "wait that waits", { act = function(e) e:wait(victims.wait) end })

local arrive = trial("barrier", "wait", { act = function(b) b:wait(victims.wait) end })
trial("barrier", "wait, after a dead one", {
  former = arrive, choose = victims.asleep,
  act = function(b) b:wait(victims.wait) end,
})
trial("barrier", "join where one died waiting", {
  former = arrive, choose = victims.asleep, late = true,
  prepare = function() end,
  act = function() assert(open "barrier") end,
})

victims.run(trials)
