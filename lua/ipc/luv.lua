--- Lets [luv](https://github.com/luvit/luv), libuv for Lua, drive the tasks of
-- `ipc.loop`: `ipc.loop.use "luv"`. They go on while `uv.run` does, which returns
-- when neither tasks nor handles of luv are left.
-- @module ipc.luv
-- @usage
-- local uv = ipc.loop.use "luv"
-- local reader, writer = ipc.pipe()
-- ipc.loop.go(function() print(reader:recv()) end)
-- uv.new_timer():start(100, 0, function() writer:send "a tenth of a second" end)
-- uv.run()
local uv = require "luv"
local reactor = require "ipc.loop.reactor"
local tasks = require "ipc.loop.tasks"

-- Whole milliseconds, not too few.
local function milliseconds(seconds)
  return math.min(math.ceil(seconds * 1000), 1 << 31)
end

function tasks.hosts.luv()
  local host = {}
  local poll, timer, limit = uv.new_poll(reactor.pollfd()), uv.new_timer(), uv.new_timer()

  local function drive()
    local armed <close> = setmetatable({}, {
      __close = function()
        local left = tasks.patience()
        if tasks.host ~= host or tasks.count == 0 then -- uv.run may end
          poll:stop()
          timer:stop()
          return
        end
        poll:start("r", host.drive)
        if left then
          timer:start(milliseconds(left), 0, host.drive)
        else
          timer:stop()
        end
      end,
    })
    if tasks.host == host then
      tasks.driven()
    end
    return armed
  end

  function host.drive()
    drive()
  end

  function host.wake()
    timer:start(0, 0, host.drive)
  end

  function host.leave()
    poll:stop()
    timer:stop()
    limit:stop()
  end

  function host.turn(timeout)
    if timeout then
      limit:start(milliseconds(timeout), 0, function() end)
    end
    uv.run "once"
    limit:stop()
  end

  return host, uv
end

return uv
