-- A pipe: one way, from a child to its parent. Four children share the writing
-- end; what one send puts in, one recv takes out, whole.
-- Run: lua5.4 examples/pipe.lua
local ipc = require "ipc"

local results, give = ipc.pipe()

for first = 1, 100, 25 do
  local mine = give:dup() -- an end moves to its child: each gets one of its own
  assert(ipc.fork(function()
    local sum = 0
    for n = first, first + 24 do
      sum = sum + n
    end
    mine:put { from = first, sum = sum }
  end))
end
give:close() -- the children hold the writing end now, and the pipe ends with them

local count, total = 0, 0
for result in results:values() do
  count, total = count + 1, total + result.sum
end
print(count .. " results, 1 + 2 + ... + 100 = " .. total) --> 4 results, 1 + 2 + ... + 100 = 5050
print(results:recv()) --> nil closed 32
