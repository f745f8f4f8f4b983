-- Other programs: started, fed, read, killed, left.
local fault = ...
local ipc = require "ipc"

local folder = os.tmpname()

local function exec(options)
  return fault.sure(ipc.exec, options)
end

-- Both ways through pipes, and the end.
local p = exec { "cat", stdin = "pipe", stdout = "pipe", stderr = "null", rlimits = { core = 0 }, nice = 1 }
fault.equal(fault.call(p.stdin, "send", "text"), true)
p.stdin:shutdown()
local got
repeat -- one that failed may have taken a part
  local piece = fault.call(p.stdout, "recv", 10)
  got = (got or "") .. (piece or "")
until not piece
fault.equal(got, "text")
fault.equal(fault.call(p, "wait", 10), true)
fault.equal(fault.sure(function() return p.reason.code end), 0)
assert(fault.sure(function() return p.usage end))
fault.call(p, "close")

-- A text, a file, an environment, an end that moves.
local r, w = assert(ipc.pipe { unit = "stream" })
p = exec { "sh", "-c", "cat; echo $NAME >&2; pwd", input = "text", stdout = { file = folder }, stderr = w,
  env = { NAME = "value" }, clean_env = false, cwd = "/" }
w:close()
fault.equal(fault.call(r, "recv", 10), "value\n")
local exited = fault.sure(function() return p:exited() end)
fault.equal(fault.sure(ipc.poll, { exited }, 10)[1], exited)
exited:close()
fault.equal(fault.call(p, "wait", 10), true)
local file <close> = assert(io.open(folder))
os.remove(folder)
fault.equal(file:read "a", "text/\n")
fault.call(p, "close")
r:close()

-- What cannot start says so; nobody is left.
for _, case in ipairs {
  { { "/no/such" }, "ipc.exec: /no/such: No such file or directory" },
  { { "true", cwd = "/no/such" }, "ipc.exec: /no/such: No such file or directory" },
} do
  local none, message = exec(case[1])
  fault.equal(none, nil)
  fault.equal(message, case[2])
end

-- Killed; stopped; left by a scope; dropped.
p = exec { "sleep", "60" }
fault.equal(fault.call(p, "kill", "TERM"), true)
local ok, message = fault.call(p, "wait", 10)
fault.equal(ok, nil)
fault.equal(message, "sleep: killed by signal 15, TERM")
fault.call(p, "close")
p = exec { "sh", "-c", "sleep 60 & wait", detach = true }
fault.call(p, "stop", 5)
assert(p.reason, "stopped, and not ended")
fault.sure(function()
  local inner <close>, why, errno = ipc.exec { "true", stdout = "pipe" }
  return inner and inner.pid, why, errno
end)
exec { "true", stdin = "null" }
