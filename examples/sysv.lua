-- A System V queue: several kinds of messages in one queue, told apart by the
-- number on each; urgent ones first. Any process that knows its key may join.
-- Run: lua5.4 examples/sysv.lua
local ipc = require "ipc"

local URGENT, NORMAL, ANSWER <const> = 1, 2, 1000

local queue <close> = assert(ipc.sysv(0x6a6f6273, "rw", { temporary = true }))

local worker = assert(ipc.fork(function()
  while true do
    local job = queue:get(nil, -NORMAL) -- the lowest number up to 2
    if job == "stop" then return end
    queue:put(job .. " done", ANSWER)
  end
end, queue))

for _, job in ipairs { "letter", "parcel" } do
  queue:put(job, NORMAL)
end
queue:put("telegram", URGENT)

local done = {}
for i = 1, 3 do
  done[i] = queue:get(5, ANSWER)
end
table.sort(done)
print(table.concat(done, ", ")) --> letter done, parcel done, telegram done
queue:put("stop", NORMAL)
print(worker:wait()) --> true
print(queue:stat().messages, queue:recv(0)) --> 0 nil timeout 110
