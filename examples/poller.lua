-- Waiting for many at once: ipc.poll answers which handles are ready, as a list
-- in order and as a set. Three workers, each done in its own time.
-- Run: lua5.4 examples/poller.lua
local ipc = require "ipc"

local names, waiting = {}, {}
for i, name in ipairs { "slow", "quick", "lost" } do
  local worker = assert(ipc.fork(function()
    ipc.sleep(i == 1 and 0.2 or 0.05)
    if name == "lost" then
      os.exit(3)
    end
    ipc.parent:put(name .. " is done")
  end))
  names[worker] = name
  waiting[i] = worker
end

local news = {}
while #waiting > 0 do
  local ready = assert(ipc.poll(waiting, 10))
  for i = #waiting, 1, -1 do
    local worker = waiting[i]
    if ready[worker] then
      local message = worker:get(0) -- nil, "closed" from one that died
      if not message then
        worker:wait()
        message = names[worker] .. ": exit " .. worker.reason.code
      end
      news[#news + 1] = message
      table.remove(waiting, i)
    end
  end
end
table.sort(news)
print(table.concat(news, "; ")) --> lost: exit 3; quick is done; slow is done
