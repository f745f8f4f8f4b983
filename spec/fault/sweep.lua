-- A fork, which reaps the children that dropped handles left behind.
local ipc = require "ipc"
local child = assert(ipc.fork(function() end))
assert(child:wait(10))
child:close()
