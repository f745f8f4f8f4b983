-- The other side of a spec: Lua programs of their own, programs that are not
-- us, and what the system says about processes and descriptors.
local ipc = require "ipc"

local peer = {}

-- No wait in a spec is longer; reaching it is a failure.
peer.limit = 20

-- ---- what a spec leaves behind ---------------------------------------------

local kept = {}

--- Notes handles that the end of the spec closes; returns them.
function peer.keep(...)
  for _, handle in ipairs { ... } do
    if type(handle) == "userdata" then
      kept[#kept + 1] = handle
    end
  end
  return ...
end

--- Closes them: `after_each(peer.clean)`.
function peer.clean()
  for _ = 1, #kept do
    local handle = table.remove(kept)
    pcall(function() -- one that moved away raises
      if handle.stop then
        handle:stop(0)
      end
      handle:close()
    end)
  end
end

local addresses = 0

--- A new address of a mechanism: "unix", "tcp", "fifo", "shm", "sysv" or "mqueue". Names
-- begin with "ipc-", `what` ("at") and the process.
function peer.address(scheme, what)
  addresses = addresses + 1
  local name = ("ipc-%s-%d-%d"):format(what or "at", ipc.pid(), addresses)
  if scheme == "tcp" then
    return "tcp:127.0.0.1:0"
  elseif scheme == "sysv" then
    return ("sysv:%d"):format(0x10000000 + (ipc.pid() << 8) % 0x60000000 + addresses % 256)
  elseif scheme == "unix" then
    return ("unix:/tmp/%s.sock"):format(name)
  end
  return ("%s:%s/%s"):format(scheme, scheme == "fifo" and "/tmp" or "", name)
end

local function bounded(options)
  local o = { timeout = peer.limit }
  for name, value in pairs(options or {}) do
    o[name] = value
  end
  return o
end

--- `ipc.pipe`, every wait bounded, closed at the end of the spec.
function peer.pipe(options)
  return peer.keep(ipc.pipe(bounded(options)))
end

--- What to ask as `capacity`: nil where the system takes none, its own is used.
function peer.capacity(bytes)
  local r, w, errno = ipc.pipe { capacity = 4096 }
  if r then
    r:close()
    w:close()
  end
  return errno ~= ipc.errno.ENOTSUP and bytes or nil
end

--- Whether this system has a mechanism, by what `ipc.pair` opens it.
function peer.has(address)
  for _, mechanism in ipairs(ipc.mechanisms()) do
    if mechanism.address == address then
      return true
    end
  end
  return false
end

--- The same for `ipc.pair`.
function peer.pair(address, options)
  return peer.keep(ipc.pair(address, bounded(options)))
end

--- The same for `ipc.fork`.
function peer.fork(fn, ...)
  local child = assert(ipc.fork(fn, ...))
  child:settimeout(peer.limit)
  return peer.keep(child)
end

-- ---- other programs --------------------------------------------------------

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

local function exists(path)
  local file = io.open(path)
  return file and file:close()
end

--- Descriptors can be opened again under this name, as blocking ones.
peer.has_proc = exists "/proc/self/status"

peer.python = exists "/usr/bin/python3" and "/usr/bin/python3" or "python3"

-- The interpreter that runs this.
local lua = "lua5.4"
do
  local i = 0
  while arg and arg[i - 1] do
    i = i - 1
    lua = arg[i]
  end
end

--- Starts a shell command of foreign programs; as io.popen. They outlive any
-- one wait of ours, so that it is the wait that fails.
function peer.popen(command, mode)
  local bound = ("LD_PRELOAD= timeout %d sh -c %s"):format(3 * peer.limit, quote(command))
  return assert(io.popen(bound, mode))
end

--- The path by which a foreign program opens the descriptor of a handle.
function peer.path(handle)
  return ("/proc/%d/fd/%d"):format(ipc.pid(), handle:pollfd())
end

--- A shell command that runs Python.
function peer.python_command(script, ...)
  local words = { "exec", quote(peer.python), "-c", quote(script) }
  for _, word in ipairs { ... } do
    words[#words + 1] = quote(tostring(word))
  end
  return table.concat(words, " ")
end

--- Becomes another program that gets the descriptors of `handles`.
function peer.exec(handles, ...)
  local descriptors = {}
  for i, handle in ipairs(handles) do
    descriptors[i] = handle:pollfd()
  end
  error(select(2, require("spec.peer").exec(descriptors, ...)))
end

do -- where `make test` has not built it yet
  if not pcall(require, "spec.peer") then
    os.execute "make -s build/spec/peer.so >&2"
  end
end

--- Runs a Lua program of its own, with `ipc` loaded. Options: `env`, a table;
-- `shell`, a command before it; `under`, a command to run it by. Returns all
-- that it wrote, then what file:close() says.
function peer.run(script, options)
  options = options or {}
  local words = { "LUA_PATH_5_4=" .. quote(package.path), "LUA_CPATH_5_4=" .. quote(package.cpath) }
  for name, value in pairs(options.env or {}) do
    words[#words + 1] = name .. "=" .. quote(value)
  end
  words = {
    (options.shell or ":") .. "; exec env",
    table.concat(words, " "),
    options.under or "",
    lua,
    "-e",
    quote("local ipc = require 'ipc' " .. script),
  }
  local file = assert(
    io.popen(("timeout -k 1 %d sh -c %s 2>&1"):format(peer.limit, quote(table.concat(words, " "))))
  )
  local output = file:read "a"
  return output, file:close()
end

--- LD_PRELOAD without the library of failing system calls.
function peer.unfailing()
  local list = {}
  for name in (os.getenv "LD_PRELOAD" or ""):gmatch "[^ :]+" do
    if not name:find "/fault/" then
      list[#list + 1] = name
    end
  end
  return table.concat(list, " ")
end

-- ---- what the system says --------------------------------------------------

local function lines(command)
  local file <close> = peer.popen(command)
  local list = {}
  for line in file:lines() do
    list[#list + 1] = line
  end
  return list
end

--- How many children of a process have ended and were not waited for.
function peer.zombies(pid)
  local n = 0
  for _, line in ipairs(lines "cat /proc/[0-9]*/stat 2>/dev/null") do
    local state, parent = line:match "%) (%a) (%d+)"
    if state == "Z" and tonumber(parent) == pid then
      n = n + 1
    end
  end
  return n
end

--- How many descriptors this process has, those of garbage not counted.
function peer.descriptors()
  collectgarbage()
  collectgarbage()
  local n = 0
  for fd = 0, 1023 do
    n = n + (exists("/proc/self/fdinfo/" .. fd) and 1 or 0)
  end
  return n
end

--- Whether a descriptor of this process is of that kind: "pidfd".
function peer.holds(kind)
  for _, line in ipairs(lines(("ls -l /proc/%d/fd"):format(ipc.pid()))) do
    if line:find("[" .. kind .. "]", 1, true) then
      return true
    end
  end
  return false
end

--- Whether a process exists and has not ended.
function peer.lives(pid)
  local file <close> = io.open(("/proc/%d/stat"):format(pid))
  return file ~= nil and (file:read "a" or ""):match "%) (%a)" ~= "Z"
end

return peer
