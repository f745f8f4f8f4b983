--- Servers in processes of their own: one, or several that share a socket.
-- @module ipc.rpc
local access = require "ipc.rpc.access"
local addresses = require "ipc.address"
local client = require "ipc.rpc.client"
local clock = require "ipc.clock"
local core = require "ipc.core"
local ipc = require "ipc"
local link = require "ipc.rpc.link"
local loop = require "ipc.loop"
local options = require "ipc.rpc.options"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local START <const> = 10                      -- seconds that a process has to say that it serves
local SOON <const>, LATE <const> = 0.05, 5    -- seconds before one that died is replaced: at first, at most
local WELL <const> = 10                       -- seconds that one has to last to begin with SOON again

local Workers = { __name = "ipc.rpc.server", [core.rpc.mark] = true }
Workers.__index = Workers

-- What a process does: serves until its parent closes its end, or is gone.
local function life(self, rest, ...)
  local parent, list = ipc.parent, { ... }
  loop.run(function()
    local ok, server, message, errno = pcall(self.here, list, rest, self.own)
    if not ok then
      parent:put { raised = tasks.text(server) }
      return
    elseif not server then
      parent:put { message = message, errno = errno }
      return
    end
    parent:put { addresses = server.addresses }
    loop.go(function()
      parent:recv(math.huge)
      server:close()
    end)
    server:wait()
  end)
end

-- Starts a process: it, and the addresses; or nil, message, errno.
local function start(self)
  local child, message, errno = ipc.fork(life, self, self.rest, table.unpack(self.list))
  if not child then
    return nil, message, errno
  end
  local done, report
  done, report, message, errno = pcall(child.get, child, START)
  if not done then -- cancelled, or without memory: nobody knows of the child
    child:stop(0)
    error(report, 0)
  end
  if type(report) == "table" and report.addresses then
    return child, report.addresses
  elseif type(report) == "table" and report.raised then
    child:stop(0)
    error(report.raised, 0)
  elseif type(report) == "table" then
    message, errno = report.message, report.errno
  else
    local ok, why = child:wait(0)
    message = ok == nil and why ~= "timeout" and why or message
  end
  child:stop(0)
  return nil, message, errno
end

-- Replaces one process whenever it dies, in a task.
local function watch(self, i)
  local nap = SOON
  while not self.closing do
    local child, began = self.children[i], ipc.now()
    if child then
      local _, why = child:wait(math.huge)
      if self.closing then
        return
      end
      child:close()
      self.children[i] = false
      link.report(self, ("worker %d: %s"):format(i, tostring(why)))
      nap = ipc.now() - began >= WELL and SOON or nap
    end
    ipc.sleep(nap)
    nap = math.min(2 * nap, LATE)
    if self.closing then
      return
    end
    local problem
    child, problem = start(self)
    if child then
      self.children[i] = child
    else
      link.report(self, ("worker %d: %s"):format(i, tostring(problem)))
    end
  end
end

-- A watching task has ended.
function Workers:lost(task)
  if not task.ok and not task.cancelled then
    link.report(self, task.results[1], task.trace)
  end
end

--- The same for servers with `process` or `workers`.
function Workers:wait(timeout)
  clock.check("wait", timeout)
  local moment = clock.deadline(timeout)
  if self.watched then
    while not self.closing do
      if not tasks.stand(self.line, moment) then
        return nil, "timeout", E.ETIMEDOUT
      end
    end
    return true
  end
  local child = self.children[1]
  if not child then
    return true
  end
  return child:wait(timeout)
end

local function finish(self, patience)
  if self.closing then
    return true
  end
  self.closing = true
  for _, listener in ipairs(self.listeners) do
    if listener then
      listener:close()
    end
  end
  for _, task in ipairs(self.tasks) do
    task:cancel()
  end
  for _, child in ipairs(self.children) do
    if child then
      child:shutdown()
    end
  end
  local moment = ipc.now() + patience
  for _, child in ipairs(self.children) do
    if child then
      local ok = child:wait(math.max(0, moment - ipc.now()))
      self.untidy = self.untidy or not ok
      child:stop(0)
    end
  end
  self:clear()
  tasks.call_all(self.line)
  return true
end

-- What one that was killed, or has ended the process itself, has left of its addresses.
function Workers:clear()
  for _, address in ipairs(self.list) do
    if type(address) == "string" and self.untidy then
      local ok, listener = pcall(ipc.listen, address)
      if ok and listener then
        listener:close()
      end
      local scheme, rest = addresses.parse(address)
      local queue
      if scheme == "sysv" or scheme == "mqueue" then -- who finds one does not remove it
        queue = core[scheme].open(rest, "r", { create = false })
      end
      if queue then
        queue:remove()
        queue:close()
      end
    end
  end
end

function Workers:stop()
  return finish(self, 0)
end

function Workers:close()
  return finish(self, self.own.grace + 1)
end

function Workers:__close()
  self:close()
end

function Workers:__len()
  local n = 0
  for _, child in ipairs(self.children) do
    n = n + (child and 1 or 0)
  end
  return n
end

function Workers:__tostring()
  return ("ipc.rpc.server (%s, %d processes)"):format(self.address or "closed", #self)
end

-- The listeners that all share; or nil, message, errno.
local function share(self, list, rest)
  for i, where in ipairs(list) do
    local listener = where
    self.listeners[i] = false -- there is room for it
    local problem = access.reach(type(where) == "string" and where or where:address() or "")
    if problem then
      return nil, problem, E.EACCES
    end
    if type(where) == "string" then
      local message, errno
      local all = client.mechanism(where, rest, self.own)
      listener, message, errno = options.blamed("serve", 3, pcall(ipc.listen, where, all))
      if not listener then
        return nil, message, errno
      end
    end
    self.listeners[i] = listener
    if type(listener) ~= "userdata" then
      listener:close()
      return nil, ("ipc.rpc.serve: %s: several processes share sockets only"):format(tostring(where)), E.ENOTSUP
    end
  end
  self.list, self.rest = self.listeners, {}
  return true
end

-- Begins to serve: true; or nil, message, errno. What there is then, or when it raises,
-- is the server's.
local function begin(self, list, rest)
  if self.watched then
    local ok, message, errno = share(self, list, rest)
    if not ok then
      return nil, message, errno
    end
  else
    for _, where in ipairs(list) do
      if type(where) ~= "string" then -- the process has it, and this one to the end
        self.listeners[#self.listeners + 1] = where
      end
    end
  end
  for i = 1, self.own.workers or 1 do
    self.children[i] = false -- there is room for it
    local child, found, number = start(self)
    if not child then
      return nil, found, number
    end
    self.children[i], self.addresses = child, found
  end
  self.address = self.addresses[1]
  for i = 1, self.watched and self.own.workers or 0 do
    self.tasks[i] = tasks.go(self, watch, self, i)
  end
  return true
end

-- A server of processes; `here` makes one in the process that calls it.
return function(list, rest, own, here)
  local self = setmetatable({
    own = own, rest = rest, list = list, here = here, children = {}, listeners = {}, tasks = {}, addresses = false,
    on_error = own.on_error, watched = own.workers ~= nil, line = tasks.line(), closing = false,
  }, Workers)
  local done, ok, message, errno = pcall(begin, self, list, rest)
  if not done then
    self:stop()
    error(ok, 0)
  elseif not ok then
    self:stop()
    return nil, message, errno
  end
  return self
end
