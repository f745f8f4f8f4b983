--- Several processes that do the same, as one: what ipc.spawn gives for a count.
-- @module ipc
local clock = require "ipc.clock"
local core = require "ipc.core"

local ipc = core.flat
local E = ipc.errno

--- Several processes as one: `crew[i]` is the i-th @{process}, `#crew` how many
-- there are. Leaving the block of a `<close>` variable closes them all.
-- @table crew
local Crew = { __name = "ipc.crew", __metatable = "ipc" }
Crew.__index = Crew

local GRACE <const> = 5 -- seconds, as a process has

-- Crews whose processes go on when they are closed.
local detached = setmetatable({}, { __mode = "k" })

local function check(self, call)
  if type(self) ~= "table" or debug.getmetatable(self) ~= Crew then
    error(("bad argument #1 to '%s' (ipc.crew expected, got %s)"):format(call, type(self)), 3)
  end
end

-- How the i-th has ended, if it ended badly: nil, message, errno.
local function failure(crew, i, timeout)
  local ok, why, errno = crew[i]:wait(timeout)
  if ok then
    return true
  end
  return nil, ("process %d of %d: %s"):format(i, #crew, why), errno
end

--- Waits until all have ended, or one has ended badly.
-- @function crew:wait
-- @tparam[opt=for ever] ?number timeout seconds
-- @treturn boolean true when all ended well (what each returned its own `wait`
-- answers); or nil, message, errno: of the first that did not (0; the message says
-- which), `"timeout"` (ETIMEDOUT) while they run
function Crew:wait(timeout)
  check(self, "wait")
  clock.check("wait", timeout)
  local deadline = clock.deadline(timeout)
  local running, place, closed = {}, {}, {}
  for i, process in ipairs(self) do
    local ended = process:exited()
    if ended then
      running[#running + 1], place[ended] = ended, i
    else
      local ok, why, errno = failure(self, i, 0)
      if errno == E.ETIMEDOUT then -- a detached one, which nobody watches any more
        closed[#closed + 1] = i
      elseif not ok then
        return nil, why, errno
      end
    end
  end
  while #running > 0 do
    local ready, why, errno = ipc.poll(running, clock.left(deadline))
    if not ready then
      return nil, why, errno
    end
    for k = #running, 1, -1 do
      if ready[running[k]] then
        local ok
        ok, why, errno = failure(self, place[running[k]], 0)
        if not ok then
          return nil, why, errno
        end
        table.remove(running, k)
      end
    end
  end
  for _, i in ipairs(closed) do
    local ok, why, errno = failure(self, i, clock.left(deadline) or math.huge)
    if not ok then
      return nil, errno == E.ETIMEDOUT and "timeout" or why, errno
    end
  end
  return true
end

-- Before any of them gets one: complains of the arguments as each would.
local function check_kill(signal, whom)
  if whom ~= nil and whom ~= "process" and whom ~= "group" then
    error(("bad argument #2 to 'kill' (invalid option '%s')"):format(tostring(whom)), 3)
  end
  local ok, why = pcall(core.signal.ignored, signal == nil and "TERM" or signal)
  if not ok then
    error((why:gsub("^(bad argument #1 to )'.-'", "%1'kill'")), 3)
  end
end

--- Sends each a signal.
-- @function crew:kill
-- @tparam[opt="TERM"] string|integer signal as `process:kill`
-- @tparam[opt="process"] string whom "process" or "group"
-- @treturn boolean true; or nil, message, errno: ESRCH when all have ended
function Crew:kill(signal, whom)
  check(self, "kill")
  check_kill(signal, whom)
  local some, why, errno = nil, nil, nil
  for _, process in ipairs(self) do
    local ok, problem, number = process:kill(signal, whom)
    some = some or ok
    if not ok then
      why, errno = problem, number
    end
  end
  if some then
    return true
  end
  return nil, why, errno
end

local function terminate(process) process:kill("TERM", "group") end

local function finish(process) return process:stop(0) end

-- Does it to each, whatever becomes of the others: true, or what failed last. What
-- one raises (a task is cancelled, say) is raised when the rest have been ended.
local function each(crew, fn)
  local why, errno, raised
  for _, process in ipairs(crew) do
    local ok, done, problem, number = pcall(fn, process)
    if not ok then
      raised, fn = raised or { done }, finish
    elseif not done then
      why, errno = problem, number
    end
  end
  if raised then
    error(raised[1], 0)
  elseif errno then
    return nil, why, errno
  end
  return true
end

-- Hears what it sends, so that it need not wait for us; false when that is all.
local function heard(process)
  local ok, message, _, errno = pcall(process.recv, process, 0)
  return ok and (message ~= nil or errno == E.ETIMEDOUT)
end

-- Waits until all have ended, at most until then: false when the user is in a hurry
-- (EINTR). `hear`: what they still send is dropped.
local function await(crew, deadline, hear)
  local list, kind, running = {}, {}, 0
  for _, process in ipairs(crew) do
    local ended = process:exited()
    if ended then
      list[#list + 1], running = ended, running + 1
      if hear then
        list[#list + 1], kind[process] = process, "process"
      end
    end
  end
  while running > 0 do
    local ready, _, errno = ipc.poll(list, clock.left(deadline))
    if not ready then
      return errno == E.ETIMEDOUT
    end
    for k = #list, 1, -1 do
      local handle = list[k]
      if ready[handle] and not (kind[handle] and heard(handle)) then
        running = running - (kind[handle] and 0 or 1)
        table.remove(list, k)
      end
    end
  end
  return true
end

-- Does it to all, which begins their end, and waits for that: what `await` says.
-- Where either raises none is left.
local function begin_end(crew, fn, deadline, hear)
  local ok, problem = pcall(function()
    for _, process in ipairs(crew) do
      fn(process)
    end
    return await(crew, deadline, hear)
  end)
  if not ok then
    pcall(each, crew, finish)
    error(problem, 0)
  end
  return problem
end

--- Ends them all now: TERM to each group, KILL to what is left after `grace`.
-- @function crew:stop
-- @tparam[opt=5] ?number grace seconds, of all together
-- @treturn boolean true; or nil, "N bytes unsent", errno
function Crew:stop(grace)
  check(self, "stop")
  clock.check("stop", grace)
  begin_end(self, terminate, clock.deadline(grace or GRACE))
  return each(self, finish)
end

--- Gives them 5 seconds, all together, to end by themselves (`ipc.parent` says
-- `closed` there), then stops those that have not. Those started with `detach` go on.
-- @function crew:close
-- @treturn boolean true; or nil, "N bytes unsent", errno
function Crew:close()
  check(self, "close")
  if detached[self] then
    return each(self, function(process) return process:close() end)
  end
  local patient = begin_end(self, function(process) process:shutdown() end, clock.deadline(GRACE), true)
  local running = {}
  for _, process in ipairs(self) do
    local _, _, errno = process:wait(0)
    running[#running + 1] = errno == E.ETIMEDOUT and process or nil
  end
  if #running > 0 then
    begin_end(running, terminate, clock.deadline(patient and GRACE or 0))
  end
  return each(self, finish)
end

function Crew:__close(problem)
  if problem ~= nil then
    return self:stop()
  end
  return self:close()
end

function Crew:__tostring()
  return ("ipc.crew (%d processes)"):format(#self)
end

return function(list, detach)
  detached[list] = detach or nil
  return setmetatable(list, Crew)
end
