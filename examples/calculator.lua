-- A calculator in another process, called as if it were here: several results, errors
-- of there, functions of here that it calls. TCP instead: change the address.
-- Run: lua5.4 examples/calculator.lua
local ipc = require "ipc"

local calculator <close> = assert(ipc.rpc.serve(("unix:/tmp/calculator.%d"):format(ipc.pid()), {
  add = function(a, b) return a + b end,
  divide = function(a, b)
    if b == 0 then error("division by zero", 0) end
    return a // b, a % b
  end,
  math = { sqrt = math.sqrt }, -- of tables as well; nothing else can be called
  each = function(n, report)
    for i = 1, n do report(i, ipc.rpc.caller().name) end
  end,
}, { process = true }))

local session <close> = assert(ipc.rpc.connect(calculator.address, { name = "ada", timeout = 5 }))
local remote = session.remote

print(remote.add(1, 2)) --> 3
print(remote.divide(7, 2)) --> 3 1
print(remote.math.sqrt(2)) --> 1.4142135623731
remote.each(2, function(i, who) print("tick", i, who) end)
--> tick 1 ada
--> tick 2 ada

print(pcall(remote.divide, 1, 0)) --> false division by zero...
print(session:call("divide", 1, 0)) --> nil division by zero 0 ...
print(session:call "os.exit") --> nil no method: os.exit ...

local futures = {}
for i = 1, 3 do futures[i] = session:async("add", i, i) end -- all three are on their way
for i = 1, 3 do print(futures[i]:wait()) end
--> true 2
--> true 4
--> true 6
