-- Waiting for many: a poller is made once, and a wait costs what is ready, not
-- what is in it (ipc.poll takes a list each time, which is enough for a few).
-- Run: lua5.4 examples/poller.lua
local ipc = require "ipc"

local poller <close> = assert(ipc.poller())
local silent = {}
for i = 1, 300 do
  silent[i] = { assert(ipc.pipe()) }
  assert(poller:add(silent[i][1]))
end

local names = {}
for i, name in ipairs { "slow", "quick", "lost" } do
  local worker = assert(ipc.fork(function()
    ipc.sleep(i == 1 and 0.2 or 0.05)
    if name == "lost" then
      os.exit(3)
    end
    ipc.parent:put(name .. " is done")
  end))
  names[worker] = name
  assert(poller:add(worker))
end

local news = {}
while #news < 3 do
  for _, worker in ipairs(assert(poller:wait(10))) do
    local message = worker:get(0) -- nil, "closed" from one that died
    if not message then
      worker:wait()
      message = names[worker] .. ": exit " .. worker.reason.code
    end
    news[#news + 1] = message
    poller:remove(worker)
  end
end
table.sort(news)
print(table.concat(news, "; ")) --> lost: exit 3; quick is done; slow is done
