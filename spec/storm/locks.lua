-- Processes that use one lock are killed at random moments and replaced, then
-- stopped, then written at by a hostile one. Nobody hangs, nobody has what
-- another has, what the dead had returns, and who must be told is told.
local ipc = require "ipc"
local storm = require "spec.support.storm"

local E = ipc.errno
local CREW <const> = 8
local kills = storm.long and 1500 or 60 -- of each kind
local TIME <const> = 0.2 -- seconds of a call

-- ---- what they share beside the lock: 8 bytes for each place in a file

local Board = {}
Board.__index = Board

local function board(name)
  local path = storm.directory .. "/" .. name
  local file = io.open(path, "r+b") or assert(io.open(path, "w+b"))
  file:setvbuf "no"
  return setmetatable({ file = file }, Board)
end

function Board:get(place)
  self.file:seek("set", place * 8)
  local text = self.file:read(8)
  return text and #text == 8 and ("<I8"):unpack(text) or 0
end

function Board:set(place, value)
  self.file:seek("set", place * 8)
  self.file:write(("<I8"):pack(value))
end

-- Whether a process runs and is not on its way out: who is killed lets go of
-- what it has before it is a zombie.
local PF_EXITING <const> = 4
local function alive(pid)
  local file <close> = io.open(("/proc/%d/stat"):format(pid))
  local text = file and file:read "a"
  local state, flags = (text or ""):match "%) (%S) %-?%d+ %-?%d+ %-?%d+ %-?%d+ %-?%d+ (%d+)"
  return state and state ~= "Z" and state ~= "X" and tonumber(flags) & PF_EXITING == 0
end

-- Whether the process noted at a place is alive, and noted there still.
local function there(b, place)
  local pid = b:get(place)
  return pid ~= 0 and pid ~= ipc.pid() and alive(pid) and b:get(place) == pid
end

-- ---- the works: each does one round, true if it got anywhere

-- The deadline is kept, and nothing but it ends a call.
local function timed(f, ...)
  local from = ipc.now()
  local r = table.pack(f(...))
  local late = ipc.now() - from - TIME
  if late > storm.patience / 2 then error(("a call ended %.3f s late"):format(late)) end
  if not r[1] and r[3] ~= E.ETIMEDOUT and r[3] ~= E.EOWNERDEAD then error(r[2]) end
  return table.unpack(r, 1, r.n)
end

local function dawdle()
  if math.random(20) == 1 then ipc.sleep(math.random() * 0.002) end
end

local works = {}

-- Place 1 says who is inside; 2 counts; 3 counts who was told of a death.
function works.mutex(m, b)
  local held <close>, state = timed(m.lock, m, TIME)
  if not held then return end
  local inside = b:get(1)
  if inside ~= 0 and state ~= "owner_dead" then error(("%d was inside, and nobody says so"):format(inside)) end
  if there(b, 1) then error(("%d is inside, too"):format(inside)) end
  if state == "owner_dead" then
    b:set(3, b:get(3) + 1)
    b:set(1, 0)
    assert(m:consistent())
  end
  b:set(1, ipc.pid())
  local n = b:get(2)
  dawdle()
  b:set(2, n + 1)
  if b:get(1) ~= ipc.pid() then error "another came in" end
  b:set(1, 0)
  return true
end

-- Place 1 says who writes, 10 + slot who reads.
function works.rwlock(rw, b, slot)
  local write = math.random(4) == 1
  local held <close>, state = timed(write and rw.write or rw.read, rw, TIME)
  if not held then return end
  local inside = b:get(1)
  if inside ~= 0 and state ~= "owner_dead" then error(("%d wrote, and nobody says so"):format(inside)) end
  if there(b, 1) then error(("%d writes, too"):format(inside)) end
  if not write then
    b:set(10 + slot, ipc.pid())
    dawdle()
    if there(b, 1) then error "somebody writes what is read" end
    b:set(10 + slot, 0)
    return true
  end
  if state then
    b:set(1, 0)
    assert(rw:consistent())
  end
  b:set(1, ipc.pid())
  dawdle()
  for i = 1, CREW do
    if there(b, 10 + i) then error "somebody reads what is written" end
  end
  if b:get(1) ~= ipc.pid() then error "another writes" end
  b:set(1, 0)
  return true
end

-- Place 10 + slot says who has permits, and for which time; 30 + slot how many.
-- Who is there before and after was there in between, all at once.
local PERMITS <const> = 3
local times = 0
function works.semaphore(s, b, slot)
  local n, seen, sum = math.random(2), {}, 0
  local held <close> = timed(s.acquire, s, TIME, n)
  if not held then return end
  times = times + 1
  b:set(30 + slot, n)
  b:set(10 + slot, ipc.pid() | times << 32)
  dawdle()
  for i = 1, CREW do seen[i] = { b:get(10 + i), b:get(30 + i) } end
  for i = 1, CREW do
    local who = seen[i][1]
    if who ~= 0 and alive(who & 0xffffffff) and b:get(10 + i) == who then sum = sum + seen[i][2] end
  end
  b:set(10 + slot, 0)
  if sum > PERMITS then error(("%d permits of %d"):format(sum, PERMITS)) end
  return true
end

-- Places 1 and 2 count what was put and what was taken; there is room for 4.
function works.condition(c, b, slot, m)
  local held <close>, state = timed(m.lock, m, TIME)
  if not held then return end
  if state then assert(m:consistent()) end
  local puts = slot % 2 == 0
  local deadline = ipc.now() + TIME
  while true do
    local put, taken = b:get(1), b:get(2)
    if puts and put - taken < 4 or not puts and put > taken then
      b:set(puts and 1 or 2, (puts and put or taken) + 1)
      assert(c:notify_all())
      return true
    end
    local ok, why, errno, has = c:wait(m, deadline - ipc.now())
    if not ok then
      if errno ~= E.ETIMEDOUT then error(why) end
      if has ~= m:stats().held then error "whether the mutex is held is not as said" end
      return
    end
    if why then assert(m:consistent()) end
  end
end

-- Places 1 and 2 count sets and waits; one set is one wait, at most.
function works.event(e, b, slot)
  if slot == 1 then
    b:set(1, b:get(1) + 1)
    assert(e:set())
    return true
  end
  if not timed(e.wait, e, TIME) then return end
  b:set(10 + slot, b:get(10 + slot) + 1)
  return true
end

-- Place 10 + slot counts who came. Who comes counts itself before, perhaps for a
-- round that passes with one in its stead who was just killed: so everybody came
-- between some passes, if not between two.
local PASSES <const> = 8
local came
function works.barrier(x, b, slot)
  b:set(10 + slot, b:get(10 + slot) + 1)
  local ok, last, errno = x:wait(storm.patience)
  if not ok then
    if errno == E.EOWNERDEAD then
      came = nil
      return true
    end
    error(last)
  end
  local now = {}
  for i = 1, CREW do now[i] = b:get(10 + i) end
  came = came or {}
  table.insert(came, 1, now)
  local before = came[PASSES]
  came[PASSES] = nil
  for i = 1, CREW do
    if before and now[i] == before[i] then error(("%d did not come"):format(i)) end
  end
  if last then b:set(30 + slot, b:get(30 + slot) + 1) end
  return true
end

local kinds = { "mutex", "rwlock", "semaphore", "condition", "event", "barrier" }
local options = {
  semaphore = { permits = PERMITS, persist = true },
  event = { auto = true, persist = true },
  barrier = { parties = CREW, persist = true },
}

local function open(kind, name)
  return assert(ipc[kind](name, options[kind] or { persist = true }))
end

-- A gang at a lock; their records' names.
local function begin(kind)
  local t = { kind = kind, name = storm.name(), journals = {}, works = {} }
  t.mutex = kind == "condition" and storm.name() or nil
  t.tag = t.name:sub(2)
  t.lock, t.board = open(kind, t.name), board(t.tag)
  t.other = t.mutex and open("mutex", t.mutex)
  for slot = 1, CREW do
    t.journals[slot] = t.tag .. "." .. slot
    t.works[slot] = function(_, life)
      math.randomseed(life, slot)
      local lock, b = open(kind, t.name), board(t.tag)
      local other = t.mutex and open("mutex", t.mutex)
      local journal, n = storm.journal(t.journals[slot]), 0
      while not storm.stopped() do
        if works[kind](lock, b, slot, other) then
          n = n + 1
          if n % 8 == 0 or kind == "barrier" or kind == "condition" then
            journal:write(storm.record(life, n, lock:stats().takeovers, 0))
          end
        end
        if math.random(500) == 1 and kind ~= "barrier" then
          lock:close()
          lock = open(kind, t.name)
        end
      end
      lock:close()
    end
  end
  t.gang = storm.gang(t.works)
  return t
end

local function rounds(t)
  local n, takeovers, last = 0, 0, {}
  for slot = 1, CREW do
    local life
    for of, count, taken in storm.records(t.journals[slot]) do
      if of ~= life and life then n, takeovers = n + last[1], takeovers + last[2] end
      life, last = of, { count, taken }
    end
    if life then n, takeovers = n + last[1], takeovers + last[2] end
    os.remove(storm.directory .. "/" .. t.journals[slot])
  end
  return n, takeovers
end

-- Afterwards the lock is as new.
local function finish(t)
  local lock, kind = t.lock, t.kind
  local ok, why
  if kind == "mutex" then ok, why = lock:lock(storm.patience)
  elseif kind == "rwlock" then ok, why = lock:write(storm.patience)
  elseif kind == "semaphore" then ok, why = lock:acquire(storm.patience, PERMITS)
  elseif kind == "condition" then
    ok = lock:stats().waiting == 0 or nil
    ok, why = ok and t.other:lock(storm.patience), "somebody still waits"
  elseif kind == "event" then
    local waits = 0
    for slot = 2, CREW do waits = waits + t.board:get(10 + slot) end
    ok, why = waits <= t.board:get(1), ("%d waits of %d sets"):format(waits, t.board:get(1))
  else
    ok, why = lock:stats().arrived == 0, "somebody is still there"
  end
  if not ok then storm.failf("%s: afterwards: %s", kind, why) end
  if kind == "mutex" and t.board:get(3) > t.kills then storm.failf("%d told of %d deaths", t.board:get(3), t.kills) end
  assert(lock:remove())
  if t.other then assert(t.other:remove()) end
  os.remove(storm.directory .. "/" .. t.tag)
end

-- Who waits at a barrier ends when the others have: it is closed by a death.
local function stop(t)
  if t.kind ~= "barrier" then
    t.gang:stop()
    return
  end
  for slot = 1, CREW do t.gang[slot]:send("stop", nil, 1) end
  for slot = 1, CREW do
    local p = t.gang[slot]
    local _, _, errno = p:wait(0.2)
    if errno == E.ETIMEDOUT then
      p:kill "KILL"
      p:wait(storm.patience)
    end
    p:close()
  end
  local new = open("barrier", t.name) -- takes the places of the dead
  for _ = 1, CREW do new:wait(0.02) end
  new:close()
end

local function killing(kind)
  local t = begin(kind)
  t.gang:progress(t.journals)
  for n = 1, kills do
    t.gang:kill()
    if math.random(4) > 1 then ipc.sleep(math.random() * 0.012) end
    if n % 50 == 0 and not t.gang:progress(t.journals) then break end
  end
  t.gang:progress(t.journals)
  t.kills = 0
  for _, n in ipairs(t.gang.kills) do t.kills = t.kills + n end
  stop(t)
  local n, takeovers = rounds(t)
  storm.say("%-10s %5d kills, %8d rounds, %4d takeovers%s", kind, t.kills, n, takeovers,
    kind == "mutex" and (", %d told"):format(t.board:get(3)) or "")
  finish(t)
end

-- One at a time is stopped wherever it is: the others' calls end in time, and
-- nothing is taken from who is alive.
local function stopping(kind)
  local t = begin(kind)
  t.gang:progress(t.journals)
  local turns, pause = storm.long and 10 or 1, storm.long and 2 or 0.4
  for _ = 1, turns do
    local slot = math.random(CREW)
    assert(t.gang[slot]:kill "STOP")
    ipc.sleep(pause)
    assert(t.gang[slot]:kill "CONT")
    t.gang:progress(t.journals)
  end
  t.kills = 0
  stop(t)
  local n, takeovers = rounds(t)
  storm.say("%-10s %5d stops, %8d rounds, %4d takeovers", kind, turns, n, takeovers)
  if takeovers > 0 and kind ~= "barrier" then storm.failf("%s: taken from who was alive", kind) end
  finish(t)
end

-- A hostile one writes into the cell and the head's words; nobody crashes, and
-- calls end in time.
local CELL <const> = 1024 + 64 * 112 -- behind the participants
local function scribble(path, seconds)
  local file <close> = assert(io.open(path, "r+b"))
  file:setvbuf "no"
  local deadline = ipc.now() + seconds
  local places = { 0, 4, 8, 12, 16, 20, 24, 28, 32, 64, 68, 72, 76, 80, 84, 88, 92, 96 }
  local values = { 0, 1, 2, 3, 4, 0xfff, 0x80000fff, 0x80000000, 0xffffffff, 0x7fffffff, 1 << 12 | 1,
    2 << 12 | 1, 1 << 12 | 2, 0x7fff, 0x3fff8000 }
  local n = 0
  file:seek("set", CELL)
  local is = file:read(8)
  while ipc.now() < deadline do
    for _ = 1, math.random(20) do
      local lucky = math.random(4)
      local place = CELL + places[math.random(#places)]
      if lucky == 1 then place = 128 + 4 * math.random(1, 4) end
      if lucky == 2 then place = 1024 + 64 * math.random(0, 9) end
      file:seek("set", place)
      file:write(("=I4"):pack(math.random(3) == 1 and math.random(0, 0xffffffff) or values[math.random(#values)]))
      n = n + 1
    end
    file:seek("set", 132) -- heal, or all would be over with the first thing they find
    file:write(("=I4"):pack(0))
    file:seek("set", 128)
    file:write(("=I4"):pack(1))
    if math.random(3) > 1 then
      file:seek("set", CELL)
      file:write(is, ("=I4"):pack(0))
    end
    ipc.sleep(math.random() * 0.001)
  end
  return n
end

local calls = {}
function calls.mutex(x, d)
  local g = x:lock(d)
  if math.random(3) == 1 then x:consistent() end
  if g and math.random(2) == 1 then g:unlock() else x:unlock() end
end
function calls.rwlock(x, d)
  local g = x[math.random(2) == 1 and "read" or "write"](x, d)
  if g then g:unlock() end
end
function calls.semaphore(x, d)
  local ok, g = pcall(x.acquire, x, d, math.random(PERMITS)) -- how many there are was overwritten, too
  if ok and g and math.random(2) == 1 then g:unlock() else pcall(x.release, x) end
end
function calls.condition(x, d, m)
  local g = m:lock(d)
  if g and m:stats().held then
    if math.random(2) == 1 then x:notify(math.random(3)) else x:wait(m, d) end
    g:unlock()
  end
end
function calls.event(x, d)
  if math.random(2) == 1 then x:set() else x:wait(d) end
  if math.random(4) == 1 then x:clear() end
  ipc.poll({ x }, d)
end
function calls.barrier(x, d) x:wait(d) end

local function scribbled(kind)
  local seconds = storm.long and 30 or 0.7
  local name, list = storm.name(), {}
  local keep = open(kind, name)
  for i = 1, 3 do
    list[i] = assert(ipc.fork(function()
      math.randomseed(i, 7)
      local m = assert(ipc.mutex())
      local n, worst, deadline = 0, 0, ipc.now() + seconds
      while ipc.now() < deadline do
        local x = ipc[kind](name, { create = false })
        for _ = 1, x and 20 or 0 do
          local d, from = math.random() * 0.01, ipc.now()
          calls[kind](x, d, m)
          worst = math.max(worst, ipc.now() - from - 3 * d)
          n = n + 1
          x:stats()
        end
        if x then x:close() end
        if ipc.now() > deadline + storm.patience then error "no end" end
      end
      return n, worst
    end))
  end
  local hostile = assert(ipc.fork(function() return scribble(storm.memory .. name:sub(2), seconds) end))
  local count, latest = 0, 0
  for i = 1, 3 do
    local ok, n, worst = list[i]:wait(seconds + 2 * storm.patience)
    if not ok then storm.failf("%s, scribbled at: %s", kind, n)
    else count, latest = count + n, math.max(latest, worst) end
  end
  local ok, n = hostile:wait(storm.patience)
  if not ok then storm.failf("the hostile one: %s", n) end
  storm.say("%-10s %8d words overwritten, %7d calls, %.1f ms late at worst", kind, n or 0, count, latest * 1000)
  if latest > 1 then storm.failf("%s: a call was late", kind) end
  keep:close()
  os.remove(storm.memory .. name:sub(2))
end

local wanted = os.getenv "KINDS"
for _, kind in ipairs(kinds) do
  if not wanted or wanted:find(kind) then
    killing(kind)
    stopping(kind)
    scribbled(kind)
  end
end
storm.finish()
