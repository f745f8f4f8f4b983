-- A named pipe: processes that share nothing but a path. A shell writes lines to
-- us, then several children of ours send messages, whole, whatever their size.
-- Run: lua5.4 examples/fifo.lua
local ipc = require "ipc"

local path = ("/tmp/ipc-example.%d"):format(ipc.pid())

-- keepalive: it does not end with the first writer that leaves.
local lines = assert(ipc.fifo(path, "r", { unit = "stream", keepalive = true, temporary = true }))
for _, word in ipairs { "one", "two" } do
  assert(os.execute(("echo %s > %s"):format(word, path)))
end
print(lines:read "l", lines:read "l") --> one two
lines:close() -- and the path is gone, since it is temporary

local jobs = assert(ipc.fifo(path, "r", { temporary = true }))
for i = 1, 3 do
  local sender = assert(ipc.fifo(path, "w"))
  assert(ipc.fork(function()
    sender:put { from = i, text = ("x"):rep(100000) }
  end))
  sender:close() -- the child has it, too
end

local sum, bytes = 0, 0
for job in jobs:values() do
  sum, bytes = sum + job.from, bytes + #job.text
end
print(sum, bytes) --> 6 300000
print(jobs:recv()) --> nil closed 32
jobs:close()
