-- Children: born, talked to, waited for, killed, closed.
local fault = ...
local ipc = require "ipc"

-- A child that something fails in may end by an error, never by a signal.
local function check(child, ok, value, message)
  if ok == nil and fault.child then
    local reason = child.reason
    assert(reason, message)
    assert(reason.kind == "error" or reason.kind == "exit", "child: " .. reason.text)
    return false
  end
  fault.equal(ok, true, tostring(value))
  return true
end

local function echo(...)
  local parent = ipc.parent
  for message in parent:messages(10) do
    assert(parent:send(message))
  end
  return "done", ...
end

local child = fault.sure(ipc.fork, echo, 42, { "table" })
fault.sure(child.send, child, "hello", nil, 5)
local got = fault.call(child, "recv", 10)
if got then
  fault.equal(got, "hello")
else
  assert(fault.child, "no answer")
end
fault.call(child, "shutdown")
local ok, value, number, list = fault.call(child, "wait", 10)
if check(child, ok, value, number) then
  fault.equal(value, "done")
  fault.equal(number, 42)
  fault.equal(list[1], "table")
end
ok = child:wait(10) -- again
fault.equal(ok, not fault.child and true or ok)
fault.call(child, "close")

-- An error, with its traceback, as a value.
child = fault.sure(ipc.fork, function() error { code = 7 } end)
ok, value = fault.call(child, "wait", 10)
fault.equal(ok, nil)
local reason = fault.sure(function() return child.reason end)
if not fault.child then
  fault.equal(reason.kind, "error", value)
  fault.equal(reason.value.code, 7)
end
fault.call(child, "close")

-- An end that moves.
local r, w = assert(ipc.pipe())
child = fault.sure(ipc.fork, function() assert(w:send "from the child") end)
if not fault.child then
  fault.equal(fault.call(r, "recv", 10), "from the child")
  fault.equal(select(2, fault.call(r, "recv", 10)), "closed")
else
  r:recv(10)
end
check(child, fault.call(child, "wait", 10))
fault.call(child, "close")
r:close()

-- Killed; stopped; left by a scope.
child = fault.sure(ipc.fork, function() ipc.parent:recv(10) end)
if not fault.child then
  fault.equal(fault.call(child, "kill", "KILL"), true)
  fault.equal(fault.call(child, "wait", 10), nil)
  fault.equal(child.reason.signal, "KILL")
end
fault.call(child, "close")
child = fault.sure(ipc.fork, function() ipc.parent:recv(10) end)
fault.call(child, "stop", 5)
assert(child.reason, "stopped, and not ended")
fault.sure(function()
  local inner <close>, message, errno = ipc.fork(function() return ipc.parent:recv(10) end)
  return inner and inner.pid, message, errno
end)
