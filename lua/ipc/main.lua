--- A program as one task: how it ends, and with what status.
-- @module ipc
local core = require "ipc.core"
local ipc = core.flat
local loop = require "ipc.loop"
local tasks = require "ipc.loop.tasks"

local SIGNALS <const> = { "TERM", "INT", "HUP" }

-- The signals that end the program, but those that whoever started it has it
-- ignore (nohup(1), a job in the background).
local function catch()
  local list = {}
  for _, name in ipairs(SIGNALS) do
    if not core.signal.ignored(name) then
      list[#list + 1] = name
    end
  end
  local caught = #list > 0 and assert(ipc.signals(list)) or nil
  if caught then
    core.signal.once(caught)
  end
  return caught
end

-- What came and nobody has read.
local function caught_last(caught)
  return caught and caught:recv(0) or nil
end

-- Ends all children at once, as leaving their blocks by an error does: those that
-- were started to go on without us do so.
local function stop_children()
  local s <close> = loop.scope()
  for _, handle in ipairs(core.task.handles()) do
    local meta = debug.getmetatable(handle)
    if meta.__name == "ipc.process" then
      s:go(meta.__close, handle, "the program ends")
    end
  end
end

local function complain(value, trace)
  local text = tasks.text(value)
  local meta = type(value) == "table" and (debug.getmetatable(value) or {})
  if meta and rawget(meta, "__tostring") == nil then
    text = ("(error object is a %s value)"):format(type(value))
  end
  io.stdout:flush()
  io.stderr:write(arg and arg[0] or "lua", ": ", text, "\n", trace and trace .. "\n" or "")
end

-- The exit status by what the function returned.
local function status_of(value, message)
  if not value and message ~= nil then
    complain(message)
    return 1
  elseif math.type(value) ~= "integer" then
    return 0
  elseif value < 0 or value > 255 then
    complain(("exit status %d: it can be 0 to 255"):format(value))
    return 1
  end
  return value
end

--- Runs a function as the root task of the program, and then ends the program: a
-- script's last line. TERM, INT and HUP cancel the root task, unless the program has
-- taken them by `ipc.signals`, or was started with them ignored; a second one ends it
-- at once. When the root has ended all other tasks are cancelled, children are stopped
-- and names removed. The exit status is the integer that the function returned (0 to
-- 255), else 0; 1 after an error, which goes to the standard error with its traceback,
-- and after `nil, message`, of which the message does; and after a signal, whenever it
-- came, the program dies of that signal.
-- @function main
-- @tparam function fn
-- @param ... its arguments
-- @usage ipc.main(function()
--   local server <close> = assert(ipc.serve("unix:/tmp/s", function(conn)
--     for value in conn:values() do conn:put(value) end
--   end))
--   server:wait()
-- end)
return function(fn, ...)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'main' (function expected, got %s)"):format(type(fn)), 2)
  end
  if tasks.current() or tasks.root then
    error("the loop runs already: ipc.loop.go starts another task", 2)
  end
  local caught = catch()
  local died
  tasks.trace = nil
  local results = table.pack(pcall(loop.run, function(...)
    local root = tasks.current()
    if caught then
      loop.go(function()
        died = caught:recv()
        root:cancel()
      end)
    end
    return fn(...)
  end, ...))
  local ok, trace = results[1], tasks.trace
  died = died or caught_last(caught)
  local stopped, problem = pcall(loop.run, stop_children)
  local status = 1
  if ok then
    status = status_of(results[2], results[3])
  elseif not (died and tasks.is_cancelled(results[2])) then
    complain(results[2], trace)
  end
  if not stopped then
    complain(problem)
    status = 1
  end
  died = died or caught_last(caught)
  if died then
    core.task.close()
    core.signal.die(died)
  end
  os.exit(status, true)
end
