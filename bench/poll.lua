-- What it costs to wait for many of which one is ready: ipc.poll, ipc.poller
-- with handles and with bare descriptors, beside epoll_wait(2) and poll(2) in C,
-- cqueues and luv. Rounds take turns; medians, ns for a wait.
-- Arguments: [rounds (5) [seconds of each measurement (0.1)]]. Called with a
-- way, a count and seconds it measures that alone, and prints the figure.

local WAYS = { "epoll, C", "poll, C", "poller", "bare", "poll", "cqueues", "luv" }
local COUNTS = { 1, 10, 100, 1000, 10000 }

local ipc = require "ipc"

-- `count` ends of sockets, the last of which is ready.
local function ends(count)
  local all = {}
  for i = 1, count, 2 do all[i], all[i + 1] = assert(ipc.pair("unix", { unit = "stream" })) end
  assert(all[count % 2 == 0 and count - 1 or count + 1]:send "x")
  local list = table.move(all, 1, count, 1, {})
  return list, list[count], all
end

-- Seconds for each of the calls of f.
local function measure(f, seconds)
  local begin, waits = ipc.now(), 0
  repeat
    for _ = 1, 100 do f() end
    waits = waits + 100
  until ipc.now() >= begin + seconds
  return (ipc.now() - begin) / waits
end

local ways = {}

function ways.poll(list, last, seconds)
  return measure(function() assert(ipc.poll(list)[1] == last) end, seconds)
end

function ways.poller(list, last, seconds)
  local p = assert(ipc.poller())
  for _, handle in ipairs(list) do assert(p:add(handle)) end
  return measure(function() assert(p:wait()[1] == last) end, seconds)
end

function ways.bare(list, last, seconds)
  local p, fd = assert(ipc.poller()), last:pollfd()
  for _, handle in ipairs(list) do assert(p:add(handle:pollfd())) end
  return measure(function() assert(p:wait()[1] == fd) end, seconds)
end

function ways.cqueues(list, last, seconds)
  local cqueues = require "cqueues"
  local loop, took = cqueues.new(), nil
  for _, handle in ipairs(list) do
    local object = { pollfd = handle:pollfd(), events = "r" }
    if handle ~= last then loop:wrap(function() cqueues.poll(object) end) end
  end
  loop:step(0)
  local object = { pollfd = last:pollfd(), events = "r" }
  loop:wrap(function()
    took = measure(function() assert(cqueues.poll(object) == object) end, seconds)
  end)
  repeat assert(loop:step()) until took
  return took
end

function ways.luv(list, _, seconds)
  local uv = require "luv"
  local told, all = 0, {}
  for i, handle in ipairs(list) do
    all[i] = uv.new_poll(handle:pollfd())
    all[i]:start("r", function() told = told + 1 end)
  end
  return measure(function()
    uv.run "once"
    assert(told > 0)
  end, seconds)
end

if ways[arg[1]] then
  local ok, result = pcall(function()
    local list, last, all = ends(tonumber(arg[2]))
    return ways[arg[1]](list, last, tonumber(arg[3])), all
  end)
  print(ok and result * 1e9 or result)
  os.exit(ok, false)
end

-- ------------------------------------------------------------------- the run

local rounds, seconds = tonumber(arg[1]) or 5, tonumber(arg[2]) or 0.1
local LUA, BUILD = arg[-1] or "lua5.4", "build/bench/"

if not os.execute(("mkdir -p %s && ${CC:-cc} -O2 -o %spoll bench/poll.c"):format(BUILD, BUILD)) then os.exit(false) end

local function run(way, count)
  local command = way:find ", C" and ("%spoll %s"):format(BUILD, way:match "^%l+") or
    ("%s bench/poll.lua %s"):format(LUA, way)
  local p <close> = assert(io.popen(("ulimit -n %d 2>/dev/null; %s %d %g 2>&1"):format(
    math.max(count + 200, 1024), command, count, seconds)))
  return tonumber((p:read "a"))
end

local samples = {}
for _ = 1, rounds do
  for _, way in ipairs(WAYS) do
    for _, count in ipairs(COUNTS) do
      local key = way .. count
      samples[key] = samples[key] or {}
      table.insert(samples[key], run(way, count))
    end
  end
end

local function cell(way, count)
  local list = samples[way .. count]
  table.sort(list)
  local x = list[#list // 2 + 1]
  return x and ("%11.0f"):format(x) or ("%11s"):format "-"
end

print(("%-12s%s"):format("descriptors", table.concat((function()
  local heads = {}
  for i, count in ipairs(COUNTS) do heads[i] = ("%11d"):format(count) end
  return heads
end)())))
for _, way in ipairs(WAYS) do
  local row = { ("%-12s"):format(way) }
  for _, count in ipairs(COUNTS) do row[#row + 1] = cell(way, count) end
  print(table.concat(row))
end
