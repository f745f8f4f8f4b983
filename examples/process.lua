-- Processes: ipc.fork runs a function in a copy of this one. The handle is a
-- channel to it, and its results, its error or its death are what wait tells.
-- Run: lua5.4 examples/process.lua
local ipc = require "ipc"

local child = assert(ipc.fork(function(a, b) return a + b, "and more" end, 20, 22))
print(child:wait()) --> true 42 and more

child = assert(ipc.fork(function()
  for question in ipc.parent:values() do
    ipc.parent:put("you said " .. question)
  end
end))
child:put "hello"
print(child:get()) --> you said hello
child:close() -- the child hears `closed`, and may finish what it does

child = assert(ipc.fork(function() error "out of luck" end))
print((select(2, child:wait()):match "[^\n]+")) --> examples/process.lua:18: out of luck

child = assert(ipc.fork(function() ipc.sleep(3600) end))
print(child:wait(0.01)) --> nil timeout 110
child:stop()
print(child.reason.kind, child.reason.signal) --> signal TERM
