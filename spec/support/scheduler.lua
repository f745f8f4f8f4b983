-- The smallest scheduler that the contract's ninth promise allows: coroutines
-- in a row, and ipc.poll on what they wait for when none can go on.
local ipc = require "ipc"

local scheduler = {}
scheduler.__index = scheduler

-- A new one, registered.
function scheduler.new()
  local self = setmetatable({
    member = {}, -- thread -> what it waits for; false: nothing
    order = {}, -- its threads, first come first
    turns = 0, -- of `run`
  }, scheduler)
  ipc.scheduler {
    is_task = function(thread) return self.member[thread] ~= nil end,
    wait = coroutine.yield,
    cancel = function(descriptor) self:cancel(descriptor) end,
  }
  return self
end

function scheduler:go(f, ...)
  local arguments = table.pack(...)
  local thread = coroutine.create(function() f(table.unpack(arguments, 1, arguments.n)) end)
  self.member[thread] = false
  table.insert(self.order, thread)
  return thread
end

-- Forgets a task, however far it is.
function scheduler:drop(thread)
  self.member[thread] = nil
  for i, other in ipairs(self.order) do
    if other == thread then return table.remove(self.order, i) end
  end
end

function scheduler:cancel(descriptor)
  for thread, objects in pairs(self.member) do
    for _, object in ipairs(objects or {}) do
      if object:pollfd() == descriptor then self.member[thread] = false end
    end
  end
end

-- Lets every task that can go on do so once; the last first if `backwards`.
function scheduler:step()
  local order = { table.unpack(self.order) }
  for i = 1, #order do
    local thread = order[self.backwards and #order + 1 - i or i]
    if self.member[thread] == false then
      local results = table.pack(coroutine.resume(thread))
      if coroutine.status(thread) == "dead" then
        self:drop(thread)
      elseif self.member[thread] ~= nil then
        self.member[thread] = { table.unpack(results, 2, results.n) }
      end
      if not results[1] then error(results[2], 0) end
    end
  end
end

-- Runs until all tasks have ended; raises what one of them raises, and when
-- they have not ended after so many seconds.
function scheduler:run(seconds)
  local limit = ipc.now() + seconds
  while true do
    self.turns = self.turns + 1
    self:step()
    if #self.order == 0 then return end
    local list, idle = {}, true
    for _, thread in ipairs(self.order) do
      idle = idle and self.member[thread]
      for _, object in ipairs(self.member[thread] or {}) do list[#list + 1] = object end
    end
    local ready = ipc.poll(list, idle and limit - ipc.now() or 0) or {}
    if ipc.now() > limit then error(#self.order .. " tasks still wait", 0) end
    for _, thread in ipairs(self.order) do
      for _, object in ipairs(self.member[thread] or {}) do
        if ready[object] then self.member[thread] = false end
      end
    end
  end
end

return scheduler
