--- Processes that run a function, a file or a module in a fresh Lua.
-- @module ipc
local core = require "ipc.core"
local graph = require "ipc.graph"

local ipc = core.flat
local E = ipc.errno
local MOST <const> = 250000 -- arguments
local PATIENCE <const> = 10 -- seconds for a small message that did not fit at once

-- ---- the call

local own = {
  fn = "function", file = "string", module = "string", args = "table", handles = "table", lua = "string",
  count = "number",
}

-- Options that are the core's, which checks them.
local passed = {}
for name in ("stdin stdout stderr env clean_env cwd rlimits nice group detach timeout maxsize"):gmatch "[%a_]+" do
  passed[name] = true
end

local function option_error(name, text)
  error(("bad argument #1 to 'spawn' (option '%s': %s)"):format(name, text), 0)
end

local function check(options)
  local what = 0
  for name, value in pairs(options) do
    local wanted = own[name]
    if not wanted and not passed[name] then
      error(("bad argument #1 to 'spawn' (unknown option '%s')"):format(tostring(name)), 0)
    elseif wanted and type(value) ~= wanted then
      option_error(name, ("%s expected, got %s"):format(wanted, type(value)))
    end
    if type(value) == "string" and wanted and value:find("\0", 1, true) then
      option_error(name, "contains zeros")
    elseif name == "fn" or name == "file" or name == "module" then
      what = what + 1
    end
  end
  if what ~= 1 then
    error("bad argument #1 to 'spawn' (one of 'fn', 'file' and 'module' expected)", 0)
  end
  local count = options.count
  if count ~= nil and (math.type(count) ~= "integer" or count < 1) then
    option_error("count", "1 or more expected")
  end
  for name, handle in pairs(options.handles or {}) do
    if type(name) ~= "string" or type(handle) ~= "userdata" then
      option_error("handles", "names and handles expected, got a " .. type(handle))
    end
  end
end

-- Both ways to call as one: options, and the values that go along: the function,
-- the arguments, the handles; what they are called in complaints.
local function arguments(fn, ...)
  if type(fn) == "function" then
    local labels = { "" }
    for i = 1, select("#", ...) do
      labels[i + 1] = ("argument #%d"):format(i + 1)
    end
    return { fn = fn }, { n = #labels, fn, ... }, labels
  elseif type(fn) ~= "table" then
    error(("bad argument #1 to 'spawn' (function or table expected, got %s)"):format(
      fn == nil and "no value" or type(fn)), 0)
  end
  check(fn)
  local args = fn.args or {}
  local n = rawget(args, "n")
  if n ~= nil and math.type(n) ~= "integer" then
    option_error("args", ("n is no integer but %s"):format(type(n) == "number" and n or "a " .. type(n)))
  end
  n = n or rawlen(args)
  if n < 0 or n > MOST then
    option_error("args", ("%d of them, not 0 to %d"):format(n, MOST))
  end
  local values, labels = { n = n + 1, fn.fn }, { "" }
  for i = 1, n do
    values[i + 1], labels[i + 1] = rawget(args, i), ("args[%d]"):format(i)
  end
  return fn, values, labels
end

-- What ps(1) shows.
local function title(options)
  if options.fn then
    local info = debug.getinfo(options.fn, "S")
    return info.what == "C" and "C" or ("%s:%d"):format(info.short_src, info.linedefined)
  end
  return options.file or options.module
end

-- ---- the interpreter

local function is_lua(path)
  local name = path:match "[^/]*$"
  return name == "lua" or name:find "^lua%-?5%.?4[%w.]*$" ~= nil
end

-- From the working directory, whatever the child's is.
local function absolute(path)
  if path:sub(1, 1) == "/" then
    return path
  end
  return (core.spawn.directory() or ".") .. "/" .. path
end

-- The program, and of where it was looked for in vain what to say.
local function interpreter(options)
  if options.lua then
    return options.lua
  end
  local program, arguments_of = core.spawn.program(), rawget(_G, "arg")
  if program and is_lua(program) then
    return program
  end
  local i, first = -1, nil
  while type(arguments_of) == "table" and type(arguments_of[i]) == "string" do
    i, first = i - 1, arguments_of[i]
  end
  if first then
    return first:find "/" and absolute(first) or first
  end
  return "lua5.4", ("option 'lua' is not set, this program is %s, there is no arg[-1], and lua5.4"):format(
    program or "unknown")
end

local function templates(text, cwd)
  if not cwd then
    return text
  end
  return (text:gsub("[^;]+", absolute))
end

-- What a child needs of ours, found when first needed: files, and modules as
-- string.dump has them, which load in no time.
local found = {}

local function find(name, path)
  local file, why = package.searchpath(name, path)
  if file then
    found[name] = absolute(file)
  end
  return file, why
end

local function find_all()
  for _, name in ipairs { "ipc", "ipc.child", "ipc.thaw", "ipc.core" } do
    local file, why = find(name, name == "ipc.core" and package.cpath or package.path)
    if not file then
      return nil, ("ipc.spawn: %s:%s"):format(name, why), E.ENOENT
    end
  end
  for _, name in ipairs { "ipc", "ipc.thaw" } do
    found[name] = string.dump(assert(loadfile(found[name])))
  end
  found.all = true
  return true
end

-- The words of the command, or nil, message, errno.
local function command(options)
  if not found.all then
    local ok, why, errno = find_all()
    if not ok then
      return nil, why, errno
    end
  end
  local program, tried = interpreter(options)
  return { program, found["ipc.child"], found["ipc.core"], title(options) }, tried
end

-- ---- starting

-- Calls into the core so that its complaints are ours.
local function start(words)
  local ok, child, why, errno = pcall(core.process.start, words, "ipc.spawn")
  if not ok then
    error(type(child) == "string" and child:gsub("^(bad argument #%d+ to )'.-'", "%1'spawn'") or child, 0)
  end
  return child, why, errno
end

-- What is in the list goes with it.
local keeper = {
  __close = function(list)
    for i = #list, 1, -1 do
      local handle = list[i]
      if handle.stop then
        handle:stop(0)
      end
      handle:close()
    end
  end,
}

-- Gives it all it needs; waits for nothing, but where a socket holds next to
-- nothing. True, or nil, message, errno.
local function give(child, body, handles)
  local most = child:maxsize()
  if #body > most then
    return nil, ("ipc.spawn: function and arguments take %d bytes, but maxsize is %d"):format(#body, most),
      E.EMSGSIZE
  end
  local ok, why, errno = child:put(handles, nil, 0)
  if ok then
    ok, why, errno = child:send(body, nil, 0)
    if errno == E.ETIMEDOUT and child:flush(PATIENCE) then
      ok, why, errno = child:send(body, nil, 0)
    end
  end
  if errno == E.EPIPE then
    return true -- it has ended already: wait tells why
  elseif not ok then
    return nil, (why:gsub("^ipc%.process%.%a+: ", "ipc.spawn: ")), errno
  end
  return true
end

local function launch(words, body, handles)
  local child, why, errno = start(words)
  if not child then
    return nil, why, errno
  end
  local kept <close> = setmetatable({ child }, keeper)
  local ok
  ok, why, errno = give(child, body, handles)
  if not ok then
    return nil, why, errno
  end
  kept[1] = nil
  return child
end

-- The same for one of several: it gets second handles where there can be.
local function launch_one(words, body, handles)
  local copies <close> = setmetatable({}, keeper)
  local all = {}
  for i, handle in ipairs(handles) do
    all[i] = handle
    if handle.dup then
      local copy, why, errno = handle:dup()
      if not copy then
        return nil, why, errno
      end
      all[i], copies[#copies + 1] = copy, copy
    end
  end
  local child, why, errno = launch(words, body, all)
  return child, why, errno
end

local function launch_all(count, words, body, handles)
  local kept <close> = setmetatable({}, keeper)
  for i = 1, count do
    local child, why, errno = (i < count and launch_one or launch)(words, body, handles)
    if not child then
      return nil, why, errno
    end
    kept[i] = child
  end
  local all = require "ipc.crew"(table.move(kept, 1, count, 1, {}), words.detach)
  for i = count, 1, -1 do
    kept[i] = nil
  end
  return all
end

-- All there is to know: options for the core, and the message; or nil, message,
-- errno. Raises before anything has happened.
local function prepare(...)
  local options, values, labels = arguments(...)
  local names = {}
  for name, handle in pairs(options.handles or {}) do
    names[#names + 1] = name
    local n = values.n + 1
    values.n, values[n], labels[n] = n, handle, ("handles.%s"):format(name)
  end
  local ok, nodes, handles = pcall(graph.take, values, values.n, labels)
  if not ok and not graph.is_refusal(nodes) then
    error(nodes, 0) -- a hook's, or no memory
  elseif not ok then
    local why = nodes.text
    local i = why:match "^argument #(%d+)" or why:match "which is argument #(%d+)" or 1
    error(("bad argument #%s to 'spawn' (%s)"):format(i, (why:gsub("^argument #%d+: ", ""))), 0)
  end
  local words, why, errno = command(options)
  if not words then
    return nil, why, errno
  end
  for name in pairs(passed) do
    words[name] = options[name]
  end
  local body = ipc.pack {
    path = templates(package.path, options.cwd), cpath = templates(package.cpath, options.cwd), names = names,
    file = options.file, module = options.module, nodes = nodes,
    ipc = found.ipc, thaw = found["ipc.thaw"],
  }
  return { words = words, body = body, handles = handles, count = options.count, tried = why }
end

local function begin(...)
  local plan, why, errno = prepare(...)
  if not plan then
    return nil, why, errno
  end
  local child
  if plan.count then
    child, why, errno = launch_all(plan.count, plan.words, plan.body, plan.handles)
  else
    child, why, errno = launch(plan.words, plan.body, plan.handles)
  end
  if errno == E.ENOENT and plan.tried then
    why = ("ipc.spawn: no interpreter: %s is not in PATH"):format(plan.tried)
  end
  return child, why or plan.handles, errno
end

-- Tells the handles that moved which line did it.
local function moved(handles)
  local info = debug.getinfo(4, "Sl")
  local where = info and info.currentline > 0 and (" (%s:%d)"):format(info.short_src, info.currentline)
  for _, handle in ipairs(where and handles or {}) do
    if tostring(handle):find " %(moved to %d+%)$" then
      debug.setuservalue(handle, where, 1)
    end
  end
end

local function answer(ok, child, why, errno)
  if not ok then
    error(child, type(child) == "string" and 3 or 0)
  elseif errno then
    return nil, why, errno
  end
  moved(why)
  return child
end

--- Starts a Lua process of its own that calls `fn(...)` and ends; its channel to
-- this one is `ipc.parent` there.
--
-- The function travels by value, with its upvalues: nil, booleans, numbers,
-- strings, tables (cycles, what is shared, metatables) and functions are copied, an
-- upvalue that several functions share is one there, too. Loaded modules that
-- `package.path` or `cpath` finds, and what is directly in them, are looked up by
-- name there (`require`): as their files have them, whatever was changed here
-- since. Globals are those of a fresh Lua, also where `_ENV` has a metatable.
-- Channels among upvalues and arguments move: they are closed here (`dup()` keeps
-- one); listeners, memories and locks are shared. What cannot travel raises, named
-- by the way to it: coroutines, open files, tables with `__gc`. So does an upvalue
-- that the function assigns: nobody here would see it.
--
-- The child dies with this process. Its results, or the error with its traceback,
-- are what `wait` answers. Starting costs little more than starting Lua, whatever
-- the size of this process, and waits for nothing.
-- @function spawn
-- @tparam function|table fn or options, with nothing behind them: one of `fn`;
-- `file`, a script's path (of the child's directory; `arg` is set); `module`, a name
-- for `require` (if that gives a function it is called). `args`, a list (with `n` if
-- there are nils in it). `handles = { name = handle }`: `ipc.handles.name` there.
-- `stdin` ("null"), `stdout`, `stderr`, `env`, `clean_env`, `cwd`, `rlimits`, `nice`,
-- `group`, `detach`, `timeout` as `ipc.exec`. `lua`: the interpreter; else the
-- program that runs this, if that is called lua, lua5.4 and so on, else the lowest
-- `arg[-n]`, else `lua5.4` in PATH. `count = n`: n processes and one handle for
-- them, a @{crew}
-- @param ... its arguments
-- @treturn process|crew a channel to the child, with `wait`, `kill`, `stop`, `pid`
-- and `reason`; or nil, message, errno: EAGAIN or ENOMEM of fork(2), EMFILE, ENOENT
-- (no interpreter), EMSGSIZE (more than `maxsize()` bytes), EBUSY (a channel that
-- has bytes read ahead, or not all out)
-- @usage local power = 2
-- local child <close> = assert(ipc.spawn(function()
--   for n in ipc.parent:values() do ipc.parent:put(n ^ power) end
-- end))
-- child:put(7)
-- print(child:get())  --> 49.0
return function(...)
  local child, why, errno = answer(pcall(begin, ...)) -- levels count: no tail call
  return child, why, errno
end
