-- What pairs.lua does, with cqueues and its own sockets. Arguments: pairs, seconds.
local cqueues = require "cqueues"
local socket = require "cqueues.socket"

local count, seconds = tonumber(arg[1]), tonumber(arg[2])
local message = ("x"):rep(64)
local trips, stop = 0, false
local controller = cqueues.new()

local function run(s, first)
  s:setmode("bn", "bn")
  if first then
    while not stop do
      assert(s:write(message))
      assert(s:read(64))
      trips = trips + 1
    end
    s:close()
  else
    while true do
      local m = s:read(64)
      if not m then break end
      assert(s:write(m))
    end
  end
end

for _ = 1, count do
  local a, b = socket.pair()
  controller:wrap(run, a, true)
  controller:wrap(run, b)
end

local took
controller:wrap(function()
  cqueues.sleep(seconds / 10)
  trips = 0
  local begin = cqueues.monotime()
  cqueues.sleep(seconds)
  took = (cqueues.monotime() - begin) / trips
  stop = true
end)
assert(controller:loop())
print(took * 1e9)
