-- Calls are served here, where things fail, for a client in a process of its own: each
-- is answered, by its result, by an error, or by the end of the connection.
local fault = ...
local ipc = require "ipc"
assert(ipc.loop and ipc.rpc.serve) -- loaded before: what fails is to call

local exports = {
  add = function(a, b) return a + b end,
  text = function(n) return ("t"):rep(n) end,
  list = function(n)
    local t = {}
    for i = 1, n do t[i] = { i, tostring(i) } end
    return t
  end,
  twice = function(f, n) return f(n) + f(n) end,
  count = function(n) return ipc.rpc.stream(function(emit) for i = 1, n do emit(i) end end) end,
}

-- In the child: calls until the connection is closed, and checks what is answered.
local function calls(channel)
  local client <close> = assert(ipc.rpc.connect(channel, { timeout = 3 }))
  local function check(what, wanted, ok, got, errno)
    if ok then
      assert(got == wanted, what .. ": another result")
    else
      assert(errno ~= ipc.errno.ETIMEDOUT, what .. ": no answer")
    end
  end
  check("add", 2, client:call("add", 1, 1))
  local ok, text, errno = client:call("text", 50000)
  check("text", 50000, ok, ok and #text, errno)
  local there, list, number = client:call("list", 20)
  check("list", "20", there, there and list[20][2], number)
  check("twice", 12, client:call("twice", function(n) return 2 * n end, 3))
  local got, stream, problem = client:call("count", 5)
  check("count", nil, got, nil, problem)
  if got then
    local sum = 0
    local whole, what = pcall(function() for n in stream do sum = sum + n end end)
    assert(not whole or sum == 15, "count: another sum")
    assert(whole or type(what) ~= "table" or what.errno ~= ipc.errno.ETIMEDOUT, "count: no answer")
  end
end

-- How the session is served until the client is gone: in a task, and outside of all.
local function by_task(channel)
  return ipc.loop.run(function()
    local server <close> = assert(ipc.rpc.serve(channel, exports, { grace = 0, on_error = function() end }))
    server:wait(4)
  end)
end

local function by_itself(channel)
  local session <close> = assert(ipc.rpc.connect(channel, { exports = exports, on_error = function() end }))
  return session:serve(4)
end

for _, way in ipairs { by_itself, by_task } do
  local here, there = assert(ipc.pair "unix?unit=stream")
  local child = assert(ipc.fork(calls, there))
  local from = ipc.now()
  fault.try(way, here)
  local seconds = ipc.now() - from
  here:close() -- as the program would that met an error
  pcall(ipc.loop.step, 0) -- a task that it left waiting there lets go of it
  local ok, why = child:wait(10)
  -- Where memory lacks for good nobody can be told anything.
  if fault.hits() <= 2 then
    assert(ok, why)
    assert(seconds < 4, "served although nobody was there")
  end
  child:close()
end

-- Names: they are there, or not; and gone at the end.
local path = ("/tmp/ipc-fault-rpc-server-%d"):format(ipc.pid())
local ok, server, message = fault.try(ipc.rpc.serve, "unix:" .. path, exports)
if not ok or not server then
  assert(fault.hits() > 0, tostring(ok and message or server))
  collectgarbage()
  collectgarbage() -- a listener that nobody was given
  server = assert(ipc.rpc.serve("unix:" .. path, exports))
end
fault.try(server.close, server)
assert(server:close())
assert(not io.open(path) and not os.rename(path, path), "the name is still there")
