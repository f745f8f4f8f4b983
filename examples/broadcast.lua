-- A broadcast in shared memory: every subscriber gets every message. Who falls
-- behind loses the oldest and is told how many, or holds the sender back, or
-- only ever wants the newest. Run: lua5.4 examples/broadcast.lua
-- Run: lua5.4 examples/broadcast.lua
local ipc = require "ipc"

-- Two processes subscribe, one sends to both.
local name = "/lua-ipc-example-" .. ipc.pid()
local prices <close> = assert(ipc.broadcast(name, "w", { capacity = 1 << 16, slow = "hold" }))
local crew = {}
for i = 1, 2 do
  local mine <close> = assert(ipc.broadcast(name, "r")) -- from here on
  crew[i] = assert(ipc.fork(function()
    local sum = 0
    for price in mine:values(10) do sum = sum + price end
    return sum
  end))
end
for price = 1, 10000 do prices:put(price) end -- none is lost: it waits for the slowest
prices:close()
for _, subscriber in ipairs(crew) do
  print(select(2, subscriber:wait())) --> 50005000
end
--> 50005000

-- The ring holds 128 of these: who is slow loses, and hears of it.
local r, w = ipc.broadcast { capacity = 4096 }
for i = 1, 1000 do w:send(("message %d"):format(i)) end
print(r:recv()) --> message 873 872
print(r:recv()) --> message 874 0

-- Only the newest: a whole value, however often it changes.
local seen, tell = ipc.broadcast { latest = true }
for i = 1, 1000 do tell:put { n = i } end
print(seen:get().n) --> 1000
