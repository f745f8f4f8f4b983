-- Shared bytes: counters that eight processes add to, by a name, and a word
-- that the last of them sets to wake the one who waits.
-- Run: lua5.4 examples/memory.lua
local ipc = require "ipc"

local HITS <const>, BYTES <const>, LEFT <const> = 0, 8, 16 -- offsets
local name = "/lua-ipc-example-" .. ipc.pid()
local counters <close> = assert(ipc.memory(name, 4096))
counters:store(LEFT, 8)

for i = 1, 8 do
  assert(ipc.fork(function()
    local mine <close> = assert(ipc.memory(name)) -- as a program of its own would
    for _ = 1, 1000 do
      mine:add(HITS, 1)
      mine:add(BYTES, i)
    end
    if mine:sub(LEFT, 1) == 1 then mine:wake(LEFT) end
  end))
end

local left = counters:load(LEFT)
while left > 0 do
  assert(counters:wait(LEFT, left, 10))
  left = counters:load(LEFT)
end
print(counters:load(HITS), counters:load(BYTES)) --> 8000 36000

-- A file's bytes, as they are; nothing else is written to it.
local path = os.tmpname()
os.remove(path)
local file <close> = assert(ipc.memory(nil, 16, { file = path }))
print(file:pack(0, "<I4 d", 7, 0.5), file:unpack(0, "<I4 d")) --> 12 7 0.5 12
print(io.open(path):read "a" == string.pack("<I4 d I4", 7, 0.5, 0)) --> true
os.remove(path)
