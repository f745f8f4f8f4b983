-- Structs in shared memory, where C has them: fields by name, arrays, and whole
-- records of one moment without a lock.
-- Run: lua5.4 examples/struct.lua
local ipc = require "ipc"

local Point = ipc.struct { { "x", "d" }, { "y", "d" } }
local Player = ipc.struct { { "id", "I4" }, { "name", "z16" }, { "path", Point, 3 } }
print(Player.size, Player:offset("path", 2)) --> 72 40

local memory <close> = assert(ipc.memory(nil, 10 * Player.size))
local players = memory:view(Player, 0, 10)
local child = assert(ipc.fork(function()
  players[1].name = "Ann" -- in the parent's memory too
  players[1].path[2].x = 1.5
  players[2] = { id = 2, name = "Bob", path = { { x = 1, y = 1 } } }
end))
assert(child:wait(10))
for i, player in players(1, 2) do
  print(i, player.name, player.path[2].x) --> 1 Ann 1.5
end --> 2 Bob 0.0
print(pcall(function() players[1].id = -1 end)) --> false ... field 'id': -1 is not within 0..4294967295

-- Numbers that belong together: who loads them never sees half of a store, and
-- a writer that is killed in the middle of one has stored nothing.
local Sample = ipc.struct { { "n", "I8" }, { "low", "d" }, { "high", "d" }, versioned = true }
local now <close> = assert(ipc.memory(nil, Sample.size))
local sample = now:view(Sample)
local writer = assert(ipc.fork(function()
  for n = 1, 10000 do Sample:store(sample, { n = n, low = -n, high = n }) end
end))
repeat
  local t = Sample:load(sample)
  assert(t.low == -t.n and t.high == t.n)
until t.n == 10000
print(sample, writer:wait(10)) --> ipc.record (n = 10000, low = -10000.0, high = 10000.0) true
