--- Streams: values that are made as they are asked for, by a task of their own. The
-- other side asks for as many as it has room for, and gets what is there.
-- @module ipc.rpc
local core = require "ipc.core"
local ipc = core.flat
local clock = require "ipc.clock"
local errors = require "ipc.rpc.errors"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local stream = {}

local SLICE <const> = 0.005   -- seconds that a producer goes on before its values are told
local BYTES <const> = 65536   -- of values in an answer, at most
local NODES <const> = 1000    -- of a value that are looked at to tell its size
local MOST <const> = 1024     -- values in an answer

local Stream = { __name = "ipc.rpc.stream", [core.rpc.mark] = true }
Stream.__index = Stream

-- ------------------------------------------------------------------ the producer

-- A stream's producer: `credit`, how many values it may still make; `asked`, where it
-- waits for more; `first` to `last`, the steps that are made and not taken; `there`,
-- where those wait who take them; `over` and `failure`, once it has ended; `users`, how
-- many sessions hold it.

-- Keeps the values of one step, and waits until more is asked for.
local function made(self, ...)
  if self.cancelled then
    error(tasks.error("cancelled", E.ECANCELED), 0)
  elseif self.over then
    error("the stream has ended", 3)
  end
  self.last = self.last + 1
  self[self.last] = table.pack(...)
  self.credit = self.credit - 1
  if ipc.now() >= self.slice then
    self.credit = 0
  end
  tasks.call(self.there)
  while self.credit <= 0 do
    tasks.stand(self.asked)
  end
end

-- The first step of a function that may be meant to get an `emit` and is not known to be.
local function first_step(self)
  local steps = table.pack(pcall(self.step, self.state, self.control))
  if steps[1] then
    return table.unpack(steps, 2, steps.n)
  end
  local problem = steps[2]
  if type(problem) == "string" and problem:find("attempt to call a nil value", 1, true) then
    problem = problem .. " (an iterator is called here: what gets an emit names it as its only parameter)"
  end
  error(problem, 0)
end

-- Steps of the iterator, until it ends.
local function iterate(self)
  local step, state, control = self.step, self.state, self.control
  local function each(first, ...)
    if first == nil then
      return false
    end
    made(self, first, ...)
    control = first
    return true
  end
  local more
  if self.alone then
    more = each(first_step(self))
  else
    more = each(step(state, control))
  end
  while more do
    more = each(step(state, control))
  end
end

-- What a function emits that is called once.
local function emits(self)
  self.step(function(first, ...)
    if first == nil then
      error("bad argument #1 to 'emit' (a value expected, got nil)", 2)
    end
    made(self, first, ...)
  end)
end

local function body(self)
  local closing <close> = self.closing
  self.closing = nil
  if self.once then
    emits(self)
  else
    iterate(self)
  end
  return closing
end

local function ended(self, failure)
  self.over, self.failure = true, self.failure or failure
  self.step, self.state, self.control, self.closing = nil, nil, nil, nil
  tasks.call_all(self.there)
end

local function run(self)
  self.begun = true
  local ok, value = pcall(body, self)
  ended(self, not ok and { value = value } or nil)
end

-- Of a producer's task, whose errors are the consumer's: also those of `run`, which lacked
-- memory.
local Group = {}
Group.__index = Group

function Group:lost(task)
  if not task.ok then
    ended(self.stream, { value = task.results[1] })
  end
end

-- ------------------------------------------------------------------- who takes

-- How many bytes a value takes at most, looking at so many of its parts. One that cannot be
-- told, or sent, is too large for any company.
local function size_of(value, nodes)
  local kind = type(value)
  if kind == "string" then
    return #value + 5, nodes
  elseif kind == "function" then
    return 40, nodes
  elseif kind == "thread" or kind == "userdata" and value ~= ipc.null then
    local meta = debug.getmetatable(value)
    return meta and meta.__name == "ipc.ext" and #value.data + 6 or math.huge, nodes
  elseif kind ~= "table" then
    return 9, nodes
  end
  local size = 40
  for key, field in next, value do
    nodes = nodes - 2
    if nodes < 0 then
      return math.huge, nodes
    end
    local of_key, of_field
    of_key, nodes = size_of(key, nodes)
    of_field, nodes = size_of(field, nodes)
    size = size + of_key + of_field
  end
  return size, nodes
end

-- Steps with a nil among them say how many there are: lists end with what they have.
local function listed(step)
  for i = 1, step.n do
    if step[i] == nil then
      return step
    end
  end
  step.n = nil
  return step
end

-- Waits until there is something to take, or the end; whether there is.
local function await(self, n, moment)
  while self.first > self.last and not self.over do
    self.credit = math.max(self.credit, n)
    self.slice = ipc.now() + SLICE
    if not self.task then
      self.task = tasks.go(setmetatable({ stream = self }, Group), run, self)
    end
    tasks.call_all(self.asked)
    if not tasks.stand(self.there, moment) then
      if self.first > self.last and not (self.over or tasks.running()) then -- nobody else turns the loop
        tasks.pause(tasks.caller(1), moment)
      end
      return self.first <= self.last or self.over
    end
  end
  return true
end

-- Takes up to `n` steps, of so many bytes together unless it is one alone; waits for the
-- first one, until `moment` at most. Answers a list of lists, and whether that were all.
-- What the producer has raised is raised after the values before it.
function stream.take(self, n, moment, most)
  n, most = math.min(n, MOST), math.min(most or BYTES, BYTES)
  if not await(self, n, moment) then
    return {}, false
  end
  local list, bytes, count = {}, 0, 0
  while self.first <= self.last and count < n do
    local step = self[self.first]
    bytes = bytes + size_of(step, NODES)
    if count > 0 and bytes > most then
      break
    end
    self[self.first] = nil
    self.first = self.first + 1
    count = count + 1
    list[count] = listed(step)
  end
  if not self.there.first then
    self.credit = 0
  elseif self.first <= self.last then
    tasks.call(self.there)
  else
    self.credit = math.max(self.credit, 1)
    tasks.call_all(self.asked)
  end
  local over = self.over and self.first > self.last
  if over and self.failure and count == 0 then
    error(self.failure.value, 0)
  end
  return list, over and not self.failure
end

-- Ends the producer: the wait that it is in raises "cancelled".
function stream.cancel(self)
  if self.cancelled or self.over then
    return
  end
  self.cancelled = true
  if self.task then
    self.task:cancel()
    if not tasks.running() then -- perhaps nobody turns the loop here
      pcall(tasks.step, 0)
    end
  end
  local closing = not self.begun and self.closing or nil
  ended(self, { value = tasks.error("cancelled", E.ECANCELED) })
  pcall(function()
    local closed <close> = closing
    return closed
  end)
end

-- How many bytes a value takes; of one that the encoder does not take alone, about as many.
local function length(value)
  if type(value) == "string" then
    return #value
  end
  local ok, text = pcall(ipc.pack, value)
  return ok and #text or math.min(size_of(value, NODES), BYTES)
end

-- All of it, as the list that peers get who know no streams: a step of one value is that,
-- of several a list of them. At most `most` of them; `meter` is told how many bytes each
-- has, and until when it may wait, both of which may raise. However it is left, the
-- producer has ended.
function stream.drain(self, most, meter)
  local ending <close> = self
  local all, over = {}, false
  while not over do
    local list
    list, over = stream.take(self, MOST, meter:moment())
    for _, step in ipairs(list) do
      if #all >= most then
        error(errors.new(("the stream has more than %d values: no list for this peer"):format(most), E.E2BIG), 0)
      end
      local value = ipc.array(step)
      if (step.n or #step) == 1 then
        value = step[1]
      end
      meter:add(length(value))
      all[#all + 1] = value
    end
  end
  return ipc.array(all), ending and nil
end

-- A stream of `step`, `state`, `control` and what is to be closed; or of what is called
-- `once`; `alone`: of a Lua function without a state.
local function new(once, alone, step, state, control, closing)
  return setmetatable({
    once = once, alone = alone, step = step, state = state, control = control, closing = closing, credit = 0,
    first = 1, last = 0,
    slice = 0, users = 0, asked = tasks.line(), there = tasks.line(),
  }, Stream)
end

-- A stream that hands on another session's.
function stream.of(remote)
  return new(false, false, remote, nil, nil, remote)
end

function stream.is(value)
  return getmetatable(value) == Stream
end

-- Used here: as the other side's stand-in is.
function Stream:__call()
  local list = stream.take(self, 1)
  local step = list[1]
  if step then
    return table.unpack(step, 1, step.n or #step)
  end
end

--- The values of the next step of a stream that was made here, as `remote_stream:next`
-- answers those of the other side's.
-- @function stream:next
-- @tparam[opt=for ever] ?number timeout seconds; 0 does not wait
-- @return the values; nil alone at the end; or nil, message, errno, error object:
-- `"timeout"` (ETIMEDOUT), after which the stream goes on
-- @usage
-- local ticks = ipc.rpc.stream(function(emit) for i = 1, 3 do emit(i) end end)
-- print(ticks:next(0.5))  --> 1
function Stream:next(timeout)
  if not stream.is(self) then
    error("bad self of 'next' (stream expected: use a colon)", 2)
  end
  clock.check("next", timeout)
  local ok, list, over = pcall(stream.take, self, 1, clock.deadline(timeout))
  if not ok then
    if tasks.has_cancelled(list) then
      error(list, 0)
    end
    local problem = errors.is(list) and list or errors.received(errors.sent(list, nil, true, "array"))
    return nil, problem.message, problem.errno, problem
  elseif list[1] then
    return table.unpack(list[1], 1, list[1].n or #list[1])
  elseif not over then
    return nil, "timeout", E.ETIMEDOUT, errors.new("timeout", E.ETIMEDOUT)
  end
  return nil
end

Stream.__close = stream.cancel

function Stream:__tostring()
  return ("ipc.rpc.stream (%s)"):format(self.over and "ended" or self.begun and "begun" or "not begun")
end

--- Makes a stream of an iterator, or of a function that is called once with a function
-- `emit` and calls that for each value: `function(emit) ... emit(1) ... end`. As an
-- argument or a result of a call it reaches the other side as an iterator.
--
-- Values are made as they are asked for, in a task of their own, so that the producer is
-- never far ahead of the consumer; each arrives as soon as it is there. An error of the
-- producer is raised by the consumer's loop, after the values before it. A stream may be
-- quiet for as long as it likes: the `timeout` of sessions is none of a step's;
-- `remote_stream:next` waits no longer than it is told. The producer is none of the call that
-- made the stream: `ipc.rpc.caller()` is nil in it. It is cancelled when the consumer releases
-- the stream, or is gone. A peer that is not lua-ipc gets a list of all the values, 100,000 at
-- most and no more bytes than a message has (`maxsize`), for which the time of the call counts.
-- @function stream
-- @tparam function iterator called as a generic `for` calls it: with `state` and the
-- first value of the step before, until that is nil; a step may have several values. Or, a
-- Lua function with exactly one named parameter, given alone: what is called once, whose
-- results count for nothing; an iterator that has one is given with its state
-- @param[opt] state what the iterator is called with
-- @param[opt] control and this, at first, in the place of a step's first value
-- @param[opt] closing is closed when the stream ends
-- @return the stream, to be passed or returned
-- @usage
-- local exports = {
--   lines = function(path) return ipc.rpc.stream(io.lines(path)) end,
--   count = function(n) return ipc.rpc.stream(function(emit) for i = 1, n do emit(i) end end) end,
-- }
function stream.stream(iterator, ...)
  local meta = getmetatable(iterator)
  if type(iterator) ~= "function" and not (type(meta) == "table" and rawget(meta, "__call")) then
    error(("bad argument #1 to 'stream' (function expected, got %s)"):format(type(iterator)), 2)
  end
  local once, alone = false, false
  if type(iterator) == "function" and select("#", ...) == 0 then
    once = debug.getinfo(iterator, "u").nparams == 1
    alone = not once
  end
  return new(once, alone, iterator, ...)
end

return stream
