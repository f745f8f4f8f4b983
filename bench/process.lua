-- Starting processes: a run of /bin/true to its end, and a Lua until its first
-- message, beside fork and exec, and posix_spawn, in raw C (start.c), and what
-- luv, python3 and node bring (peers/process.*); then the same from parents with
-- 20 MiB and 2 GiB in use. Prints medians, and the medians of the ratios of single
-- rounds. Arguments: [rounds (5) [seconds of each measurement (0.5)]]; or, as it
-- calls itself, what is done, seconds, MiB.
local ipc = require "ipc"
local measure = dofile "bench/measure.lua"

local PATIENCE <const> = 60 -- seconds until a benchmark counts as hung
local LUA <const> = arg[-1] or "lua5.4"

-- ---- as it calls itself: each gives the seconds that do not count

local work = {}

function work.exec()
  local p <close> = assert(ipc.exec { "/bin/true" })
  assert(p:wait(PATIENCE))
end

function work.run()
  assert(ipc.run { "/bin/true", timeout = PATIENCE })
end

local function first_message(p)
  assert(p:get(PATIENCE) == 1)
  local moment = ipc.now()
  assert(p:wait(PATIENCE))
  p:close()
  return ipc.now() - moment
end

function work.spawn()
  return first_message(assert(ipc.spawn(function() ipc.parent:put(1) end)))
end

function work.fork()
  return first_message(assert(ipc.fork(function() ipc.parent:put(1) end)))
end

if work[arg[1]] then
  local memory = {}
  for i = 1, tonumber(arg[3]) do
    memory[i] = (("x"):rep((1 << 20) - 64)) -- in use, not only asked for
  end
  print(("%.1f"):format(measure.run(work[arg[1]], 1, tonumber(arg[2]))))
  os.exit(#memory == tonumber(arg[3]), true)
end

-- ---- the rounds

local rounds, seconds = tonumber(arg[1]) or 5, tonumber(arg[2]) or 0.5
local RAW <const> = "build/bench/start"
assert(os.execute("mkdir -p build/bench && ${CC:-cc} -O2 -o " .. RAW .. " bench/start.c"))

local function raw(way, what, mebibytes)
  return ("%s %s %s %g %d %s"):format(RAW, way, what, seconds, mebibytes or 0, LUA)
end

local function ours(what, mebibytes)
  return ("%s bench/process.lua %s %g %d"):format(LUA, what, seconds, mebibytes or 0)
end

local function has(command)
  return os.execute(command .. " >/dev/null 2>&1")
end

-- Of other libraries those that are here.
local function peer(program, needed, what)
  return has(needed) and ("%s %s %g %s"):format(program, what, seconds, LUA) or nil
end

local function python(what)
  return has "command -v python3" and ("python3 bench/peers/process.py %s %g"):format(what, seconds)
end

local function luv(what)
  return peer(LUA .. " bench/peers/luv.lua", LUA .. " -l luv -e ''", what)
end

local function node(what)
  return peer("node bench/peers/process.js", "command -v node", what)
end

-- Title; rows of a name, a command, and what its ratio to the row of the given
-- number (1) may be; ratios to that row.
local sections = {
  { "a run of /bin/true, to its end",
    { "C: fork, exec", raw("fork", "true") },
    { "C: posix_spawn", raw("spawn", "true") },
    { "ipc.exec, wait", ours "exec" },
    { "ipc.run", ours "run" },
    { "luv: spawn", luv "run" },
    { "python3: subprocess.run", python "run" },
    { "node: spawn", node "run" } },
  { "a Lua until its first message",
    { "C: fork, exec", raw("fork", "lua") },
    { "C: posix_spawn", raw("spawn", "lua") },
    { "ipc.spawn", ours "spawn", most = 1.5 },
    { "luv: spawn, a byte", luv "message" },
    { "python3: spawn", python "spawn" },
    { "node: fork", node "fork" } },
  { "a copy of the process until its first message",
    { "C: fork, 1 MiB in use", raw("fork", "copy", 1) },
    { "ipc.fork", ours "fork", most = 1.3 },
    { "python3: fork", python "fork" } },
}

for _, what in ipairs { "exec", "run", "spawn" } do
  sections[#sections + 1] = { "ipc." .. what .. " from a parent that has in use",
    { "nothing more", ours(what) },
    { "20 MiB", ours(what, 20), most = 1.5 },
    { "2 GiB", ours(what, 2048), most = 1.5 } }
end
sections[#sections + 1] = { "C: fork, exec from a parent that has in use",
  { "nothing more", raw("fork", "true") },
  { "20 MiB", raw("fork", "true", 20) },
  { "2 GiB", raw("fork", "true", 2048) } }

local function run(command)
  local p <close> = assert(io.popen(command))
  return assert(tonumber(p:read "a"), command)
end

local function median(list)
  table.sort(list)
  return list[#list // 2 + 1]
end

local short = 0
for _, section in ipairs(sections) do
  local took, ratios = {}, {}
  for _ = 1, rounds do
    local base
    for i = 2, #section do
      local row = section[i]
      if row[2] then
        local ns = run(row[2])
        base = base or ns
        took[i], ratios[i] = took[i] or {}, ratios[i] or {}
        table.insert(took[i], ns)
        table.insert(ratios[i], ns / base)
      end
    end
  end
  print(("\n%s"):format(section[1]))
  for i = 2, #section do
    local row = section[i]
    if took[i] then
      local ratio = median(ratios[i])
      local met = not row.most or ratio <= row.most
      short = short + (met and 0 or 1)
      print(("  %-26s %9.0f us  %6.2f%s"):format(row[1], median(took[i]) / 1e3, ratio,
        row.most and ("  <= %g %s"):format(row.most, met and "met" or "short") or ""))
    else
      print(("  %-26s not installed"):format(row[1]))
    end
  end
end
print(("\n%d short of their goals."):format(short))
