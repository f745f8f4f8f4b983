-- Follows the logs of four services at once: each is a process that writes lines,
-- each log is read by a task, and one line at a time is shown.
-- Run: lua5.4 examples/follow.lua
local ipc = require "ipc"

local function service(name, every)
  for i = 1, 3 do
    ipc.sleep(every)
    ipc.parent:put { name, i == 3 and "stopping" or "line " .. i }
  end
end

ipc.main(function()
  local lines = ipc.loop.queue(100)
  ipc.loop.go(function()
    local s <close> = ipc.loop.scope()
    for i, name in ipairs { "web", "mail", "cron", "dns" } do
      s:go(function()
        local child <close> = assert(ipc.fork(service, name, i / 100))
        for line in child:values() do lines:put(line) end
        lines:put { name, "ended" }
      end)
    end
    s:wait()
    lines:close() -- and the loop below ends
  end)

  local counts = {}
  for line in lines:values(10) do
    counts[line[1]] = (counts[line[1]] or 0) + 1
  end
  for _, name in ipairs { "web", "mail", "cron", "dns" } do print(name, counts[name]) end
end)
--> web 4
--> mail 4
--> cron 4
--> dns 4
