-- What several specs need: channels that are closed after each test, children
-- that run a plain interpreter, a look at this process from the outside.
local ipc = require "ipc"
local peer = require "spec.support.peer"

local with = {}

with.patience = 20 -- seconds: the bound of waits that are not to fail

-- ---- things to close

local opened = {}

-- Remembers what must be closed at the end of the test.
function with.close(...)
  for _, object in ipairs { ... } do
    opened[#opened + 1] = object
  end
  return ...
end

function with.cleanup()
  for i = #opened, 1, -1 do
    local object = opened[i]
    if type(object) == "userdata" and object.kill and object.stop then
      pcall(object.stop, object, 0)
    elseif type(object) == "userdata" then
      pcall(object.settimeout, object, 0)
      pcall(object.close, object)
    else
      getmetatable(object).__gc(object)
    end
  end
  opened = {}
end

-- Opens a row of spec/rooms.lua; every wait on it is bounded.
function with.open(row, options)
  local r, w = assert(row.open(options))
  with.close(r, w)
  for _, channel in ipairs { r, w } do
    if not (options and options.timeout) then channel:settimeout(with.patience) end
  end
  return r, w
end

function with.fork(f, ...) return with.close(assert(ipc.fork(f, ...))) end

-- ---- other interpreters

local function quote(text) return "'" .. text:gsub("'", [['\'']]) .. "'" end
with.quote = quote

local function interpreter()
  local first = 0
  while arg and arg[first - 1] do first = first - 1 end
  local name = arg and arg[first]
  return name and name:find "lua[%d.]*$" and name or "lua5.4"
end

-- A shell command that runs `code` in an interpreter of its own, with what
-- this one loads.
function with.command(code, ...)
  local words = { interpreter(), "-e", quote(code) }
  for _, word in ipairs { ... } do words[#words + 1] = quote(word) end
  return ("exec env LUA_PATH=%s LUA_CPATH=%s LUA_INIT= LUA_INIT_5_4= %s"):format(
    quote(package.path), quote(package.cpath), table.concat(words, " "))
end

-- Output and exit status of a shell command.
function with.shell(command)
  local pipe <close> = assert(io.popen(command .. " 2>&1"))
  local text = pipe:read "a"
  local _, _, status = pipe:close()
  return text, status
end

-- ---- this process

-- The descriptors a program started now would find open beside the standard
-- ones, as text.
function with.inherited()
  return (with.shell "ls -l /proc/self/fd | sed -n 's/.* \\([0-9]* -> .*\\)/\\1/p' | \
    grep -v -e '^[012] ' -e ' /proc/'")
end

-- How many descriptors are open here.
function with.descriptors()
  collectgarbage()
  return peer.descriptors()
end

-- KiB of address space and of memory in use.
function with.memory()
  local file <close> = assert(io.open "/proc/self/statm")
  local size, resident = file:read("n", "n")
  return size * 4, resident * 4
end

function with.signals()
  local file <close> = assert(io.open "/proc/self/status")
  return file:read("a"):match "SigIgn.-SigCgt:%s*%x+"
end

-- Writes bytes to the medium itself, past frames and limits: what a foreign
-- peer would do. `fd` belongs to a channel that stays open.
function with.raw(fd)
  local socket = require "cqueues.socket".dup(fd)
  socket:setmode("b", "bf")
  socket:setvbuf("full", 1 << 20)
  return function(bytes)
    assert(socket:write(bytes))
    assert(socket:flush(with.patience))
  end
end

-- luv, loaded once: it does not bear that the spec runner forgets modules and
-- loads them again.
function with.luv()
  local registry = debug.getregistry()
  registry["spec.luv"] = registry["spec.luv"] or require "luv"
  return registry["spec.luv"]
end

-- Sends until nothing more goes in; how many messages did. A TCP connection that
-- is full has room again when the system has moved what it holds.
function with.fill(w, message)
  local named, address = pcall(function() return w:address() end)
  local wait = named and tostring(address):find "^tcp:" and 0.05 or 0
  local n = 0
  while w:send(message, nil, wait) or w:send(message, nil, 0) do n = n + 1 end -- it may have been late
  return n
end

return with
