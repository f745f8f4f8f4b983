-- A job server: workers come over a unix socket or TCP and offer a function, clients
-- hand in jobs. A job whose worker dies is given to the next.
-- Run: lua5.4 examples/jobserver.lua
local ipc = require "ipc"

ipc.main(function()
  local free = ipc.loop.queue(100)
  local server <close> = assert(ipc.rpc.serve({ "unix:/tmp/jobserver." .. ipc.pid(), "tcp:127.0.0.1:0" }, {
    offer = function(work) free:put(work) end,
    submit = function(job)
      while true do
        local work = free:get()
        local done, result, errno = work:call(job)
        if done or errno == 0 then free:put(work) end -- 0: the job failed, not the worker
        if done then return result end
        if errno == 0 then error(result, 0) end
      end
    end,
  }))

  local function worker(address, work)
    return assert(ipc.fork(function()
      local session = assert(ipc.rpc.connect(address))
      session.remote.offer(work)
      session:serve()
    end))
  end
  local function square(n) return n * n end
  worker(server.addresses[1], function() os.exit(1) end) -- an unlucky one
  for i = 1, 4 do worker(server.addresses[i % 2 + 1], square) end

  local client <close> = assert(ipc.rpc.connect(server.addresses[2]))
  local futures, results = {}, {}
  for i = 1, 10 do futures[i] = client:async("submit", i) end
  for i = 1, 10 do results[i] = select(2, assert(futures[i]:wait(10))) end
  print(table.concat(results, " ")) --> 1 4 9 16 25 36 49 64 81 100
  print(client:call("submit", "seven")) --> nil ...attempt to mul a 'string' with a 'string' 0 ...
end)
