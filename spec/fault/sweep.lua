-- A fork, which reaps the children that dropped handles left behind; and a
-- program, for what the first of a process makes.
local ipc = require "ipc"
local child = assert(ipc.fork(function() end))
assert(child:wait(10))
child:close()
assert(ipc.run { "true" })
