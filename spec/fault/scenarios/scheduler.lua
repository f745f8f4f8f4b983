-- Tasks of a small scheduler. Each resume can fail; a task that failed starts
-- its step again, without failures, and nothing may be lost by that.
local fault = ...
local ipc = require "ipc"

local tasks, current = {}, nil

local function spawn(f)
  tasks[#tasks + 1] = { f = f, co = coroutine.create(f) }
end

local scheduler = {
  is_task = function(co) return current ~= nil and current.co == co end,
  wait = function(...) coroutine.yield { ... } end,
  cancel = function() end,
}
ipc.scheduler(scheduler)

-- Whether one of the objects wants to go on.
local function due(objects)
  if not objects then
    return true
  end
  ipc.scheduler(nil)
  local ready = ipc.poll(objects, 0)
  ipc.scheduler(scheduler)
  return ready ~= nil
end

local function run()
  local turns = 0
  while #tasks > 0 do
    turns = turns + 1
    assert(turns < 100000, "no progress")
    for i = #tasks, 1, -1 do
      local task = tasks[i]
      if due(task.objects) then
        current = task
        local resume = task.failed and pcall or fault.try
        local ok, alive, objects = resume(coroutine.resume, task.co)
        current = nil
        if not ok or not alive then
          fault.failed(false, ok and objects or alive)
          coroutine.close(task.co)
          task.failed = true
          task.co, task.objects = coroutine.create(task.f), nil
        elseif coroutine.status(task.co) == "dead" then
          table.remove(tasks, i)
        else
          task.objects = objects
        end
      end
    end
  end
end

-- nil, message, errno for lack of memory becomes the error that it also is.
local function check(result, message, errno, ...)
  if result == nil and errno == fault.errno then
    error("not enough memory", 0)
  end
  assert(result ~= nil, message)
  return result, message, errno, ...
end

local COUNT = 6
for _, address in ipairs { "pipe", "unix?type=seqpacket" } do
  local r, w = assert(ipc.pair(address))
  local sent, got, received = 0, 0, { 0, 0, 0, 0, 0, 0 }
  local filler = address == "pipe" and ("f"):rep(90000) or "f"
  spawn(function()
    while true do
      -- A send that raises in its wait may have been accepted before.
      sent = w:stats().sent
      if sent == COUNT then
        break
      end
      check(w:send((sent + 1) .. filler, nil, 5))
    end
    w:close()
  end)
  spawn(function()
    while true do
      local text, message, errno = r:recv(5)
      if message == "closed" then
        return
      end
      if text then -- noted at once: the next call may be the one that fails
        got = got + 1
        received[got] = text
      else
        check(text, message, errno)
      end
    end
  end)
  -- Two in one queue, and one that is closed under its feet.
  local a, b = assert(ipc.pair "unix")
  local values = 0
  for _ = 1, 2 do
    spawn(function()
      while values < 4 do
        local value, message, errno = b:get(5)
        if value then
          values = values + 1
        elseif message == "closed" then
          return
        else
          check(value, message, errno)
        end
      end
      b:close()
    end)
  end
  spawn(function()
    local text, message, errno = a:recv(5)
    if errno == fault.errno then
      error("not enough memory", 0)
    end
    fault.equal(text, nil)
    fault.equal(message, "closed")
  end)
  for i = 1, 4 do
    assert(a:put { i })
  end
  -- A poll in a task.
  local x, y = assert(ipc.pair "pipe")
  spawn(function()
    local ready = check(ipc.poll({ x }, 5))
    fault.equal(ready[1], x)
  end)
  assert(y:send "ready")
  run()
  fault.equal(got, COUNT)
  for i, text in ipairs(received) do
    fault.equal(text, i .. filler, "message " .. i)
  end
  fault.equal(values, 4)
  fault.equal(x:recv(0), "ready")
end
ipc.scheduler(nil)
