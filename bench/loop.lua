-- A thousand tasks in one thread that ping-pong 64 bytes in pairs: this library,
-- and others with the same work, take turns; then medians, and ratios as in
-- run.lua. Pipes are what this library offers for it; the others have sockets, so
-- there is a row of those, too. Arguments: [rounds (5) [seconds (0.5) [pairs (500)]]].

local rounds = tonumber(arg[1]) or 5
local seconds = tonumber(arg[2]) or 0.5
local pairs_ = tonumber(arg[3]) or 500
local LUA = arg[-1] or "lua5.4"

-- `least`: how many times the time of row 1 (pipes) and of row 2 (unix) theirs is
-- to be, at least.
local rows = {
  { name = "ipc.loop, pipes", command = LUA .. " bench/pairs.lua %d %g loop pipe" },
  { name = "ipc.loop, unix", command = LUA .. " bench/pairs.lua %d %g loop unix" },
  { name = "ours in cqueues, pipes", command = LUA .. " bench/pairs.lua %d %g cqueues pipe" },
  { name = "cqueues", command = LUA .. " bench/peers/pairs_cqueues.lua %d %g", least = 1 },
  { name = "luv", command = LUA .. " bench/peers/pairs_luv.lua %d %g", least = 1 },
  { name = "node", command = "node bench/peers/pairs.js %d %g", least = 1 },
  { name = "python asyncio", command = "python3 bench/peers/pairs.py %d %g", least = 2 },
}

local function run(command)
  local file <close> = assert(io.popen(("ulimit -n %d 2>/dev/null; exec taskset -c 0 %s 2>&1"):format(
    4 * pairs_ + 100, command:format(pairs_, seconds))))
  return tonumber((file:read "a"))
end

local function median(list)
  table.sort(list)
  return list[#list // 2 + 1]
end

local samples = {}
for round = 1, rounds do
  for i, row in ipairs(rows) do
    samples[i] = samples[i] or {}
    samples[i][round] = run(row.command) or false
  end
end

-- The median of the ratios of rounds, in which both were measured.
local function ratio(a, b)
  local list = {}
  for round = 1, rounds do
    if a[round] and b[round] then list[#list + 1] = a[round] / b[round] end
  end
  return median(list)
end

local short = 0
print(("%d tasks in pairs, round trip of 64 bytes (us)"):format(2 * pairs_))
print(("%-24s %8s %10s %10s  %s"):format("", "median", "x pipes", "x unix", "goal"))
for i, row in ipairs(rows) do
  local times = {}
  for _, sample in ipairs(samples[i]) do
    if sample then times[#times + 1] = sample end
  end
  if #times == 0 then
    print(("%-24s not installed"):format(row.name))
  else
    local x = ratio(samples[i], samples[1])
    local met = not row.least or x >= row.least
    short = short + (met and 0 or 1)
    print(("%-24s %8.1f %10.2f %10.2f  %s"):format(row.name, median(times) / 1000, x,
      ratio(samples[i], samples[2]), row.least and (">= %g %s"):format(row.least, met and "met" or "short") or ""))
  end
end
os.exit(short == 0)
