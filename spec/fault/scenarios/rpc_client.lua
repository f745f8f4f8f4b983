-- Calls in every way, of a server in a process of its own where nothing fails. What
-- fails here is one call, or one connection; the next is as if nothing had been.
local fault = ...
local ipc = require "ipc"
assert(ipc.loop and ipc.rpc.serve) -- loaded before: what fails is to call

local function counter(n)
  local i = 0
  return function()
    i = i + 1
    return i <= n and i or nil
  end
end

local exports = {
  add = function(a, b) return a + b end,
  pair = function(a, b) return a, b end,
  text = function(n) return ("t"):rep(n) end,
  fail = function() error("it failed", 0) end,
  each = function(n, f)
    local sum = 0
    for i = 1, n do sum = sum + f(i) end
    return sum
  end,
  count = function(n) return ipc.rpc.stream(counter(n)) end,
  account = function()
    return ipc.rpc.object({ balance = 100 }, { deposit = function(self, n)
      self.balance = self.balance + n
      return self.balance
    end }, { properties = { "balance" } })
  end,
}

local address = ("unix:/tmp/ipc-fault-rpc-%d"):format(ipc.pid())
local child = assert(ipc.fork(function()
  ipc.loop.run(function()
    local server <close> = assert(ipc.rpc.serve(address, exports, { on_error = function() end, grace = 1 }))
    assert(ipc.parent:send "ready")
    ipc.parent:recv(30)
    return #server
  end)
end))
assert(child:recv(10))

-- Made before: Lua's own buffers do not survive that their type cannot be made.
local LONG <const> = ("t"):rep(100000)

local client

-- Does it; an answer to a failure is nil, message, errno, or raised.
local function attempt(f)
  if not client then
    local message, errno
    client, message, errno = ipc.rpc.connect(address, { timeout = 5 })
    if not client then
      return nil, message, errno
    end
  end
  return f(client)
end

local function sure(what, f)
  local ok, good, message, errno = fault.try(attempt, f)
  if ok and good then
    return
  end
  local text = tostring(not ok and good or message)
  assert(fault.hits() > 0, what .. ": " .. text)
  assert(text ~= "timeout" and errno ~= ipc.errno.ETIMEDOUT, what .. ": no answer")
  ok, good, message, errno = pcall(attempt, f)
  if ok and good then
    return
  end
  -- The connection did not survive it: that is said at once.
  assert(client, message)
  assert(ok and errno ~= ipc.errno.ETIMEDOUT, what .. ": again: " .. tostring(ok and message or good))
  client:close()
  client = nil
  assert(attempt(f))
end

sure("call", function(c)
  local ok, sum, errno = c:call("add", 1, 2)
  if ok then
    fault.equal(sum, 3)
  end
  return ok, sum, errno
end)
sure("text", function(c)
  local ok, text, errno = c:call("text", 100000)
  if ok then
    fault.equal(text, LONG)
  end
  return ok, text, errno
end)
sure("echo", function(c)
  local ok, sum, errno = c:with { timeout = 4, trace = "trace" }:call("add", 0.5, 1)
  if ok then
    fault.equal(sum, 1.5)
  end
  return ok, sum, errno
end)
sure("fail", function(c)
  local ok, message, errno = c:call "fail"
  fault.equal(ok, nil)
  return message == "it failed", message, errno
end)
sure("async", function(c)
  local futures = {}
  for i = 1, 5 do futures[i] = c:async("add", i, i) end
  for i = 1, 5 do
    local ok, sum, errno = futures[i]:wait()
    if not ok then
      return nil, sum, errno
    end
    fault.equal(sum, 2 * i)
  end
  return c:notify("add", 1, 2)
end)
sure("batch", function(c)
  local batch <close> = c:batch()
  local one, two, failed = batch:async("add", 1, 2), batch:async("pair", { 1 }, 2), batch:async "fail"
  local sent, message, errno = batch:send()
  if not sent then
    return nil, message, errno
  end
  local ok, list, other = two:wait()
  if not ok then
    return nil, list, other
  end
  fault.equal(list[1] + other, 3)
  ok, message, errno = one:wait()
  if not ok then
    return nil, message, errno
  end
  fault.equal(message, 3)
  ok, message, errno = failed:wait()
  fault.equal(ok, nil)
  return message == "it failed", message, errno
end)
sure("callback", function(c)
  local ok, sum, errno = c:call("each", 3, function(i) return 2 * i end)
  if ok then
    fault.equal(sum, 12)
  end
  return ok, sum, errno
end)
sure("stream", function(c)
  local ok, stream, errno = c:call("count", 10)
  if not ok then
    return nil, stream, errno
  end
  local n = 0
  for i in stream do
    n = n + 1
    fault.equal(i, n)
  end
  fault.equal(n, 10)
  return true
end)
sure("object", function(c)
  local ok, account, errno = c:call "account"
  if not ok then
    return nil, account, errno
  end
  local before = account.balance
  fault.equal(account:deposit(5), before + 5)
  ipc.rpc.release(account)
  return true
end)
sure("methods", function(c)
  local list, message, errno = c:methods()
  if list then
    fault.equal(list.add, "")
  end
  return list, message, errno
end)

fault.try(function() client:close() end)
if client then
  client:close()
end
assert(child:send("end", nil, 5))
assert(child:wait(10))
child:close()
