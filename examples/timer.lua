-- The time as something to receive: a measurement every 10 ms until a deadline.
-- What comes out is how often it has expired, so a slow turn is noticed.
-- Run: lua5.4 examples/timer.lua
local ipc = require "ipc"

local tick <close> = assert(ipc.timer { every = 0.01 })
local deadline <close> = assert(ipc.timer { after = 0.1 })

local turns, missed = 0, 0
repeat
  local ready = assert(ipc.poll { tick, deadline })
  if ready[tick] then
    local n = tick:recv(0)
    turns = turns + 1
    missed = missed + n - 1
  end
until ready[deadline]

assert(deadline:recv(0) == 1)
print(deadline:recv()) --> nil closed 32
print(turns + missed >= 9 and "in time") --> in time
