-- Locks: what lock and unlock cost, nobody else wanting it, and with 2, 4 and 8
-- processes that do nothing else, beside a bare futex word, pthread mutexes and
-- semaphores in C (locks.c). Prints ns for each, and the ratios' medians.
-- Arguments: [rounds (5) [seconds of each measurement (0.2)]]; or, as it calls
-- itself, a kind, processes, seconds.
local ipc = require "ipc"
local measure = dofile "bench/measure.lua"

local CHUNK <const> = 64

-- What is done once: each kind by its guard, and a mutex by its methods.
local kinds = {
  mutex = function(m)
    local held <close> = m:lock()
  end,
  methods = function(m)
    m:lock()
    m:unlock()
  end,
  read = function(rw)
    local held <close> = rw:read()
  end,
  write = function(rw)
    local held <close> = rw:write()
  end,
  semaphore = function(s)
    local held <close> = s:acquire()
  end,
  calls = function(m) -- two of the cheapest, to compare
    m:settimeout()
    m:settimeout()
  end,
}

local made = {
  read = function() return ipc.rwlock() end,
  write = function() return ipc.rwlock() end,
  semaphore = function() return ipc.semaphore(nil, { permits = 1 }) end,
}

local function ours(kind, crew, seconds)
  local lock = assert((made[kind] or ipc.mutex)())
  local work = kinds[kind]
  local list = {}
  for i = 1, crew do
    list[i] = assert(ipc.fork(function(mine)
      measure.pin((i - 1) % ipc.cpus())
      assert(ipc.parent:send "ready")
      local begin, finish = string.unpack("dd", assert(ipc.parent:recv(60)))
      local done = 0
      local now
      repeat
        for _ = 1, CHUNK do work(mine) end
        now = ipc.now()
        if now >= begin and now < finish then done = done + CHUNK end
      until now >= finish
      return done
    end, lock))
  end
  for _, p in ipairs(list) do assert(p:recv(60)) end
  local begin, sum = ipc.now() + seconds / 10, 0
  for _, p in ipairs(list) do assert(p:send(string.pack("dd", begin, begin + seconds))) end
  for _, p in ipairs(list) do
    local ok, done = p:wait(60)
    sum = sum + assert(ok and done, done)
  end
  print(("%.1f"):format(seconds / sum * 1e9))
end

if kinds[arg[1]] then
  ours(arg[1], tonumber(arg[2]), tonumber(arg[3]))
  os.exit(true, true)
end

local rounds, seconds = tonumber(arg[1]) or 5, tonumber(arg[2]) or 0.2
local LUA <const> = arg[-1] or "lua5.4"
local PROGRAM <const> = "build/bench/locks"
assert(os.execute("mkdir -p build/bench && ${CC:-cc} -O2 -o " .. PROGRAM .. " bench/locks.c -pthread"))

local function run(command, ...)
  local p <close> = assert(io.popen(command:format(...)))
  return assert(tonumber(p:read "a"), command)
end

local function median(list)
  table.sort(list)
  return list[#list // 2 + 1]
end

local RAW <const> = { "futex", "pthread", "robust", "semaphore" }
for _, crew in ipairs { 1, 2, 4, 8 } do
  print(crew == 1 and "nobody else" or ("\n%d processes"):format(crew))
  local took, ratios = {}, {}
  local names = { "calls", "mutex", "methods", "read", "write", "semaphore" }
  for _ = 1, rounds do
    local raw = {}
    for _, kind in ipairs(RAW) do
      raw[kind] = run(PROGRAM .. " %s %d %g", kind, crew, seconds)
      took["C: " .. kind] = took["C: " .. kind] or {}
      table.insert(took["C: " .. kind], raw[kind])
    end
    for _, kind in ipairs(names) do
      local ns = run(LUA .. " bench/locks.lua %s %d %g", kind, crew, seconds)
      took[kind], ratios[kind] = took[kind] or {}, ratios[kind] or {}
      table.insert(took[kind], ns)
      table.insert(ratios[kind], ns / raw.robust)
    end
  end
  for _, kind in ipairs(RAW) do
    print(("  %-24s %9.1f ns"):format("C: " .. kind, median(took["C: " .. kind])))
  end
  for _, kind in ipairs(names) do
    print(("  %-24s %9.1f ns  %5.2f of C: robust"):format(kind, median(took[kind]), median(ratios[kind])))
  end
end
