--- A queue of values between tasks of one process: nothing is copied, nothing leaves it.
-- @module ipc.loop
local ipc = require "ipc.core".flat
local core = require "ipc.core"
local clock = require "ipc.clock"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local Queue = { __name = "ipc.loop.queue" }
Queue.__index = Queue

-- Puts what nobody came for back in front.
local function give_back(self, value)
  local entry = tasks.call(self.getters)
  if entry then
    entry.hand = value
  else
    self.first = self.first - 1
    self[self.first] = value
  end
end

--- Appends a value; waits while the queue is full.
-- @function queue:put
-- @param value anything; nil arrives as `ipc.null`
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true; or nil, message, errno: `"timeout"` (ETIMEDOUT),
-- `"closed"` (EPIPE)
function Queue:put(value, timeout)
  clock.check("put", timeout, 2)
  if self.closed then
    return nil, "closed", E.EPIPE
  end
  if value == nil then
    value = ipc.null
  end
  local entry = tasks.call(self.getters)
  if entry then
    entry.hand = value
    return true
  end
  if self.last - self.first + 1 < self.size then
    self.last = self.last + 1
    self[self.last] = value
    return true
  end
  entry = timeout ~= 0 and tasks.stand(self.putters, clock.deadline(timeout), value)
  if not entry then
    return nil, "timeout", E.ETIMEDOUT
  elseif entry.refused then
    return nil, "closed", E.EPIPE
  end
  return true
end

--- Takes the oldest value; waits for one.
-- @function queue:get
-- @tparam[opt=for ever] ?number timeout seconds
-- @return value; or nil, message, errno: `"timeout"` (ETIMEDOUT), `"closed"`
-- (EPIPE) once it is closed and empty
function Queue:get(timeout)
  clock.check("get", timeout)
  if self.first <= self.last then
    local value = self[self.first]
    self[self.first] = nil
    self.first = self.first + 1
    local entry = tasks.call(self.putters)
    if entry then
      self.last = self.last + 1
      self[self.last] = entry.hand
    end
    return value
  end
  local entry = tasks.call(self.putters) -- of a queue that holds nothing
  if entry then
    return entry.hand
  end
  if self.closed then
    return nil, "closed", E.EPIPE
  end
  entry = timeout ~= 0 and tasks.stand(self.getters, clock.deadline(timeout), nil, function(called)
    if not called.refused then
      give_back(self, called.hand)
    end
  end)
  if not entry then
    return nil, "timeout", E.ETIMEDOUT
  elseif entry.refused then
    return nil, "closed", E.EPIPE
  end
  return entry.hand
end

--- Iterates over the values until the queue is closed and empty.
-- @function queue:values
-- @tparam[opt=for ever] ?number timeout seconds for each; raises when it passes
-- @treturn function iterator
function Queue:values(timeout)
  clock.check("values", timeout)
  return function()
    local value, message, errno = self:get(timeout)
    if errno and errno ~= E.EPIPE then
      error(core.task.error(message, errno), 0)
    end
    return value
  end
end

local function refuse_all(line)
  local entry = tasks.call(line)
  while entry do
    entry.refused = true
    entry = tasks.call(line)
  end
end

--- No more values: what is in the queue can still be taken. Also what `<close>` does.
-- @function queue:close
-- @treturn boolean true
function Queue:close()
  self.closed = true
  refuse_all(self.putters)
  refuse_all(self.getters)
  return true
end

Queue.__close = Queue.close

function Queue:__len()
  return self.last - self.first + 1
end

return function(size)
  return setmetatable({
    size = size or math.huge, first = 1, last = 0, getters = tasks.line(), putters = tasks.line(),
  }, Queue)
end
