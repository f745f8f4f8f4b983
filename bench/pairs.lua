-- What bench/loop.lua measures of this library: tasks that ping-pong in pairs, in
-- one thread; prints ns for each round trip. Arguments: pairs, seconds, loop |
-- cqueues (whose controller runs the same), pipe | unix.
local ipc = require "ipc"

local pairs_, seconds, kind = tonumber(arg[1]), tonumber(arg[2]), arg[3]
local scheme = arg[4] == "unix" and "unix" or "pipe?duplex=true"
local message = ("x"):rep(64)
local trips, stop = 0, false

local function ping(a)
  while not stop do
    assert(a:send(message))
    assert(a:recv())
    trips = trips + 1
  end
  a:close()
end

local function pong(b)
  for m in b:messages() do
    if not b:send(m) then break end
  end
end

local begin, took
local function measure(go)
  for _ = 1, pairs_ do
    local a, b = assert(ipc.pair(scheme))
    go(ping, a)
    go(pong, b)
  end
  ipc.sleep(seconds / 10)
  trips, begin = 0, ipc.now()
  ipc.sleep(seconds)
  took = (ipc.now() - begin) / trips
  stop = true
end

if kind == "cqueues" then
  local controller = require "ipc.cqueues".new()
  controller:wrap(measure, function(fn, x) controller:wrap(fn, x) end)
  assert(controller:loop())
else
  ipc.loop.run(function()
    local s <close> = ipc.loop.scope()
    measure(function(fn, x) s:go(fn, x) end)
  end)
end
print(took * 1e9)
