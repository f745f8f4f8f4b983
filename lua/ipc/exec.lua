--- Other programs run to their end: ipc.run and ipc.pipeline, over ipc.exec. All
-- that they write is read at once, from however many streams; who is late is
-- stopped, with all that it started. What is started, not waited for, is
-- ipc.exec's business.
-- @module ipc
local clock = require "ipc.clock"
local core = require "ipc.core"

local ipc = core.flat
local E = ipc.errno

local LAST_LINE <const> = 200 -- bytes of stderr in a message, at most
local SWEEP <const> = 16 -- reads of 64 KiB: what the largest pipe can hold

-- ---- arguments: each check answers what is wrong, or nil

-- The options of the whole call; the others are its programs'.
local whole = { timeout = true, check = true, grace = true, maxsize = true }

-- Blames the caller of our caller, which is the function of that name.
local function complain(call, problem)
  error(("bad argument #1 to '%s' (%s)"):format(call, problem), 3)
end

local function whole_problem(options)
  if type(options) ~= "table" then
    return "table expected, got " .. (options == nil and "no value" or type(options))
  end
  for _, name in ipairs { "timeout", "grace" } do
    local value = options[name]
    if value ~= nil and math.type(value) == nil then
      return ("option '%s': seconds expected, got %s"):format(name, type(value))
    elseif value ~= value then
      return ("option '%s' is not a number"):format(name)
    end
  end
  local size, check = options.maxsize, options.check
  if size ~= nil and (math.type(size) ~= "integer" or size < 1) then
    return "option 'maxsize': a positive number of bytes expected"
  elseif check ~= nil and type(check) ~= "boolean" then
    return "option 'check': boolean expected, got " .. type(check)
  end
end

local function program_problem(program)
  if program.stdin == "pipe" then
    return "option 'stdin': nobody would write to the pipe; there is 'input'"
  elseif program.detach then
    return "option 'detach': who is waited for is not let go; there is ipc.exec"
  end
end

local function stage_problem(stage, i, count)
  if type(stage) ~= "table" then
    return "table expected, got " .. type(stage)
  end
  for name in pairs(whole) do
    if stage[name] ~= nil then
      return ("option '%s' is of the whole pipeline"):format(name)
    end
  end
  if i > 1 and (stage.stdin ~= nil or stage.input ~= nil) then
    return "it reads what the one before it writes"
  elseif i < count and stage.stdout ~= nil then
    return "it writes to the one behind it"
  end
  return program_problem(stage)
end

local function pipeline_problem(options)
  local problem = whole_problem(options)
  if problem then
    return problem
  end
  for name in pairs(options) do
    local stage = math.type(name) == "integer" and name >= 1 and name <= #options
    if not (stage or whole[name]) then
      return ("unknown option '%s'"):format(tostring(name))
    end
  end
  for i = 1, #options do
    problem = stage_problem(options[i], i, #options)
    if problem then
      return ("stage %d: %s"):format(i, problem)
    end
  end
  return #options == 0 and "no stages" or nil
end

-- What ipc.exec is to start: a copy, since the table is the caller's.
local function program_of(options)
  local program = {}
  for name, value in pairs(options) do
    if not whole[name] then
      program[name] = value
    end
  end
  if program.stdin == nil and program.input == nil then
    program.stdin = "null"
  end
  for _, name in ipairs { "stdout", "stderr" } do
    if program[name] == nil then
      program[name] = "pipe"
    end
  end
  return program
end

-- ---- stages: the processes of one call, and the streams that they write

-- Sends a signal to them and to all that they started, as far as it stayed in
-- their groups.
local function signal(stages, name)
  for _, stage in ipairs(stages) do
    if stage.process then
      stage.process:kill(name, "group")
    end
  end
end

-- Ends them; the grace is one for all.
local function stop(stages, deadline)
  signal(stages, stages.grace > 0 and "TERM" or "KILL")
  for _, stage in ipairs(stages) do
    if stage.process then
      stage.process:stop(math.max(0, clock.left(deadline)))
    end
  end
end

local Stages = { __name = "ipc.exec.stages" }

-- Where an error or a cancellation comes through, they are running.
function Stages.__close(stages)
  if not stages.ended then
    stop(stages, ipc.now() + stages.grace)
  end
  for _, stream in ipairs(stages.streams) do
    stream.channel:close()
  end
  for _, stage in ipairs(stages) do
    if stage.process then
      stage.process:close()
    end
  end
end

-- Ends of pipes: those that did not go to a program.
local Ends = {
  __close = function(ends)
    for _, channel in ipairs(ends) do
      channel:close()
    end
  end,
}

local function new_stages(options, several)
  return setmetatable({
    several = several, begin = ipc.now(), deadline = clock.deadline(options.timeout),
    grace = math.max(0, options.grace or 0), maxsize = options.maxsize or math.huge,
    streams = {}, ended = false,
  }, Stages)
end

-- A stream of a stage: what was read of it is the field's list.
local function capture(stages, stage, field, channel)
  stage[field] = {}
  table.insert(stages.streams, { channel = channel, stage = stage, field = field, size = 0 })
end

-- "stage 2: gzip: ..." where there are several.
local function named(stages, stage, text)
  for i, other in ipairs(stages.several and stages or {}) do
    if other == stage then
      return ("stage %d: %s"):format(i, text)
    end
  end
  return text
end

-- Starts one more program: true; or nil, message, errno.
local function start(stages, call, program)
  local stage = { process = false, merged = program.stderr == "stdout" }
  table.insert(stages, stage)
  local ok, process, message, errno = pcall(ipc.exec, program)
  if not ok then
    local complaint = process
    if type(complaint) == "string" then
      complaint = complaint:gsub("^(bad argument #%d+ to )'.-'", ("%%1'%s'"):format(call))
    end
    error(complaint, 3)
  elseif not process then
    message = named(stages, stage, message:gsub("^ipc%.exec: ", ""))
    return nil, ("ipc.%s: %s"):format(call, message), errno
  end
  stage.process = process -- nothing is allocated before it is in here
  stage.name = program[1]:match "[^/]+$" or program[1]
  if program.stdout == "pipe" then
    capture(stages, stage, "out", process.stdout)
  end
  if program.stderr == "pipe" then
    capture(stages, stage, "err", process.stderr)
  end
  return true
end

-- ---- reading

local function drop(stages, stream)
  stream.channel:close()
  for i, other in ipairs(stages.streams) do
    if other == stream then
      return table.remove(stages.streams, i)
    end
  end
end

-- Reads a stream that is ready, once. Nil, or a message and an errno.
local function read(stages, stream)
  local bytes, message, errno = stream.channel:recv(0)
  if not bytes then
    if errno == E.EPIPE then
      drop(stages, stream)
    elseif errno ~= E.ETIMEDOUT then
      return message, errno
    end
    return nil
  end
  local parts, room = stream.stage[stream.field], stages.maxsize - stream.size
  parts[#parts + 1] = #bytes <= room and bytes or bytes:sub(1, room)
  stream.size = stream.size + #parts[#parts]
  if #bytes > room then
    stages.culprit = stream.stage
    return ("more than %d bytes of std%s"):format(stages.maxsize, stream.field), E.EMSGSIZE
  end
end

-- Reads all streams to their ends. Nil, or a message and an errno.
local function drain(stages, deadline)
  local streams, list, of = stages.streams, {}, {}
  while #streams > 0 do
    if #list ~= #streams then
      list, of = {}, {}
      for i, stream in ipairs(streams) do
        list[i], of[stream.channel] = stream.channel, stream
      end
    end
    -- Who writes without a pause is ready at the deadline, too.
    if deadline and ipc.now() >= deadline then
      return "timeout", E.ETIMEDOUT
    end
    local ready, message, errno = ipc.poll(list, clock.left(deadline))
    if not ready then
      return message, errno
    end
    for _, channel in ipairs(ready) do
      message, errno = read(stages, of[channel])
      if errno then
        return message, errno
      end
    end
  end
end

-- Reads what is there already.
local function sweep(stages)
  for i = #stages.streams, 1, -1 do
    local stream = stages.streams[i]
    for _ = 1, SWEEP do
      local _, errno = read(stages, stream)
      if errno or stages.streams[i] ~= stream or not ipc.poll({ stream.channel }, 0) then
        break
      end
    end
  end
end

-- Until all streams and all processes have ended. Nil, or a message and an errno.
local function follow(stages)
  local message, errno = drain(stages, stages.deadline)
  for _, stage in ipairs(errno and {} or stages) do
    local _, text, number = stage.process:wait(clock.left(stages.deadline))
    if number and number ~= 0 then
      return text, number
    end
  end
  stages.ended = not errno
  return message, errno
end

-- ---- results

-- The last line that says something, for a message.
local function last_line(parts)
  local text = parts and table.concat(parts, "", math.max(1, #parts - 1)) or ""
  local line = text:sub(-8192):match "([^\r\n]*%S[^\r\n]*)%s*$"
  return line and line:gsub("%c", " "):match("^%s*(.-)%s*$"):sub(1, LAST_LINE)
end

-- Ends stages that are late or write too much; the message that names the stage.
local function cut_short(stages, message, errno, timeout)
  local culprit = stages.culprit or stages.streams[1] and stages.streams[1].stage
  local deadline = ipc.now() + stages.grace
  signal(stages, stages.grace > 0 and "TERM" or "KILL")
  if stages.grace > 0 and errno == E.ETIMEDOUT then
    drain(stages, deadline)
  end
  sweep(stages)
  stop(stages, deadline)
  stages.ended = true
  for _, stage in ipairs(stages) do
    local reason = stage.process.reason
    culprit = culprit or (not reason or reason.kind == "signal") and stage
  end
  culprit = culprit or stages[1]
  if errno == E.ETIMEDOUT then
    local reason = culprit.process.reason
    message = ("timeout after %g s"):format(timeout)
    if stages.grace == 0 and reason and reason.kind == "exit" then
      message = message .. ": it has ended, but another process holds its output"
    end
  end
  return named(stages, culprit, culprit.name .. ": " .. message)
end

-- The first stage that did not end well: a message and an errno. Who writes to
-- one that has read enough did nothing wrong.
local function failure(stages)
  for i, stage in ipairs(stages) do
    local ok, message, errno = stage.process:wait(0)
    if not ok and not (i < #stages and (stage.process.reason or {}).signal == "PIPE") then
      local line = last_line(stage.err or stage.merged and stage.out)
      return named(stages, stage, line and message .. ": " .. line or message), errno
    end
  end
end

-- The last stage's result, which has those of all where there are several.
local function result_of(stages)
  local each = {}
  for i, stage in ipairs(stages) do
    local reason = stage.process.reason or {} -- none: killed, and stuck in the kernel
    each[i] = {
      out = stage.out and table.concat(stage.out), err = stage.err and table.concat(stage.err),
      code = reason.code, signal = reason.signal, usage = stage.process.usage,
    }
    stage.out, stage.err = nil, nil -- half the memory
  end
  local last = each[#each]
  return {
    out = last.out, err = last.err, code = last.code, signal = last.signal, usage = last.usage,
    seconds = ipc.now() - stages.begin, stages = stages.several and each or nil,
  }
end

-- What all calls do once their programs run.
local function finish(stages, options)
  local message, errno = follow(stages)
  if errno == E.ETIMEDOUT or errno == E.EMSGSIZE then
    message = cut_short(stages, message, errno, options.timeout)
  elseif errno then
    return nil, message, errno -- interrupted: leaving stops them
  elseif options.check ~= false then
    message, errno = failure(stages)
  end
  if errno then
    return nil, message, errno, result_of(stages)
  end
  return result_of(stages)
end

--- Runs a program to its end and gives what it wrote. No shell is between: the
-- strings are its arguments as they are. Both streams are read at once, however
-- much comes. Called in a task it lets the others go on.
--
-- Its output ends when all who hold it have ended, what it leaves behind in the
-- background included: without a `timeout` that is waited for, as a shell's
-- `$(...)` does. At the timeout the program is killed, and with it all that it
-- started, unless that has made itself a group of its own; that is not waited
-- for. The same happens when an error, or a task's cancellation, comes through
-- the call.
-- @function run
-- @tparam table options the program and its arguments, and what `ipc.exec`
-- takes; but `stdin` is "null" unless it or `input` is given, and `stdout` and
-- `stderr` are "pipe", which means captured. Further: `timeout`, seconds for all
-- of it (for ever); `grace`, seconds between TERM and KILL at the timeout (0:
-- KILL at once); `maxsize`, bytes of each stream, a program that writes more is
-- ended as a late one is (no limit); `check` (true): only an exit with 0 is a
-- success; false: whatever end it finds by itself
-- @treturn table what came of it: `out` and `err`, all that it wrote, nil where
-- not captured; `code`, its exit status, or `signal`, the name of that which
-- killed it; `usage`, as a process has it; `seconds` that it took. Or nil,
-- message, errno: that of ipc.exec if it could not be started; 0 if it ended
-- otherwise than with 0 (the message has the last line of its errors);
-- ETIMEDOUT; EMSGSIZE; then, if it has run, the table, of what it had written
-- until then
-- @usage local list = assert(ipc.run { "ls", "-1", "/etc", timeout = 5 }).out
-- print(ipc.run { "sh", "-c", "echo no luck >&2; exit 3" })
-- --> nil  sh: exit 3: no luck  0  table: ...
function ipc.run(options)
  local problem = whole_problem(options) or program_problem(options)
  if problem then
    complain("run", problem)
  end
  local stages <close> = new_stages(options)
  local ok, message, errno = start(stages, "run", program_of(options))
  if not ok then
    return nil, message, errno
  end
  return finish(stages, options)
end

--- Runs several programs, each reading what the one before it writes: a shell's
-- pipeline without the shell. What goes from one to the next does not come
-- through this process.
-- @function pipeline
-- @tparam table options a list of tables, one for each program, as `ipc.run`
-- takes them: `stdin` and `input` the first one's, `stdout` the last one's.
-- Beside it those of the whole: `timeout`, `grace`, `maxsize`, `check`
-- @treturn table as `ipc.run` gives it, of the last program; `stages[i]` is that
-- of each. Or nil, message, errno, and the table if all have been started, as
-- `ipc.run` answers: of the first stage in the list that failed, the message
-- says which. A stage before the last that PIPE killed has not failed: the next
-- one had read enough. If one cannot be started the others are killed
-- @usage local three = assert(ipc.pipeline {
--   { "sort", "-r", input = "a\nb\nc\nd\n" }, { "head", "-3" }, timeout = 5,
-- }).out
function ipc.pipeline(options)
  local problem = pipeline_problem(options)
  if problem then
    complain("pipeline", problem)
  end
  local ends <close> = setmetatable({}, Ends)
  local stages <close> = new_stages(options, true)
  local input
  for i = 1, #options do
    local program = program_of(options[i])
    program.stdin = input or program.stdin
    if i < #options then
      local output, errno
      input, output, errno = ipc.pipe { unit = "stream" }
      if errno then
        return nil, output, errno
      end
      ends[#ends + 1], ends[#ends + 2] = input, output
      program.stdout = output
    end
    local ok, message, errno = start(stages, "pipeline", program)
    if not ok then
      return nil, message, errno
    end
  end
  return finish(stages, options)
end

return ipc
