--- A block of code whose tasks end with it.
-- @module ipc.loop
local ipc = require "ipc.core".flat
local clock = require "ipc.clock"
local tasks = require "ipc.loop.tasks"

local Scope = { __name = "ipc.scope" }
Scope.__index = Scope

-- A task of the scope has ended: its place is free; the first error cancels the
-- others, and the block.
function Scope:lost(task)
  self.alive[task] = nil
  if not task.left then
    task.left, self.count = true, self.count - 1
  end
  if not task.ok and not task.cancelled and not self.failure then
    self.failure = task
    self:cancel()
    local owner = self.owner
    if self.over then
      if self.watching == 0 then -- nobody waits for it there
        table.insert(tasks.failed, task)
      end
    elseif owner and self.watching == 0 and not owner.results then
      tasks.ask_to_end(owner, { [self] = true })
    end
    tasks.call_all(self.places) -- nobody begins any more
  end
  tasks.call(self.places)
  if self.count == 0 then
    tasks.call_all(self.line)
  end
end

-- Who was called, but is cancelled, calls the next.
local function pass_on(entry)
  tasks.call(entry.hand)
end

--- Starts a task of the scope; waits while `limit` of them run.
-- @function scope:go
-- @tparam function fn
-- @param ... its arguments
-- @treturn task; raises after the scope's first error, and when it was left
function Scope:go(fn, ...)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'go' (function expected, got %s)"):format(type(fn)), 2)
  end
  while self.count >= self.limit and not self.failure and not self.over do
    tasks.stand(self.places, nil, self.places, pass_on)
  end
  if self.failure then
    error(self.failure.results[1], 0)
  elseif self.over then
    error("ipc.scope: it was left, no task begins", 2)
  end
  local task = tasks.go(self, fn, ...)
  self.count = self.count + 1
  self.alive[task] = true
  return task
end

--- Cancels the scope's tasks, each once; the block goes on.
-- @function scope:cancel
function Scope:cancel()
  for task in pairs(self.alive) do
    if not task.asked then
      task:cancel()
    end
  end
end

local function watch(self, moment)
  self.watching = self.watching + 1
  local ok, message = pcall(function()
    while self.count > 0 do
      if not tasks.stand(self.line, moment) then
        return false
      end
    end
    return true
  end)
  self.watching = self.watching - 1
  if not ok then
    error(message, 0)
  end
  return message
end

--- Waits until no task of the scope is left.
-- @function scope:wait
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true; or nil, message, errno, and the error's value: the first
-- error of a task, which is told so and not raised again; `"timeout"` (ETIMEDOUT)
function Scope:wait(timeout)
  clock.check("wait", timeout)
  if not watch(self, clock.deadline(timeout)) then
    return nil, "timeout", ipc.errno.ETIMEDOUT
  end
  if self.failure then
    self.told = true
    return nil, tasks.explain(self.failure.results[1])
  end
  return true
end

-- Waits for all tasks, and cancels them when it is cancelled meanwhile: that error.
-- Any other (there is no wait here, Ctrl-C) is raised.
local function outlast(self)
  local cancelled
  while self.count > 0 do
    local ok, problem = pcall(watch, self)
    if not ok then
      self:cancel()
      if not tasks.is_cancelled(problem) then
        error(problem, 0)
      end
      cancelled = problem
    end
  end
  return cancelled
end

--- Leaves the block: waits for all its tasks, and raises the first error of one.
-- Left by an error, it cancels them before. Also what `<close>` does.
-- @function scope:close
function Scope:close(problem)
  if self.over then
    return true
  end
  self.over = true
  if self.owner then
    tasks.take_back(self.owner, self) -- it left before it came to a wait
  end
  if problem ~= nil then
    self:cancel()
  end
  local cancelled = outlast(self)
  tasks.call_all(self.places)
  if self.failure and not self.told and (problem == nil or tasks.asked_by(problem, self)) then
    tasks.put_off(cancelled)
    error(self.failure.results[1], 0)
  elseif cancelled and problem == nil then
    error(cancelled, 0)
  elseif not tasks.is_cancelled(problem) then
    tasks.put_off(cancelled)
  end
  return true
end

Scope.__close = Scope.close

function Scope:__tostring()
  return ("ipc.scope (%d tasks)"):format(self.count)
end

return function(limit)
  return setmetatable({
    owner = tasks.current(), limit = limit or math.huge, alive = {}, count = 0, watching = 0,
    places = tasks.line(), line = tasks.line(),
  }, Scope)
end
