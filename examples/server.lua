-- A server in tasks: one for each client, written as if it blocked. Closing it lets
-- those that are there finish; TERM and Ctrl-C do the same.
-- Run: lua5.4 examples/server.lua
local ipc = require "ipc"

local function serve(conn)
  for line in conn:lines() do
    if line == "fail" then error("one client's error is that client's", 0) end
    conn:send(line:upper() .. "\n")
  end
end

ipc.main(function()
  local server <close> = assert(ipc.serve("tcp:127.0.0.1:0", serve, {
    unit = "stream",
    limit = 100, -- at once: more wait
    on_error = function(what) print("error: " .. what) end,
  }))

  local clients = {}
  for i = 1, 3 do clients[i] = assert(ipc.connect(server.address, { unit = "stream", timeout = 5 })) end
  for i, c in ipairs(clients) do
    c:send(i == 2 and "fail\n" or "hello from " .. i .. "\n")
    print(i, (c:read "l"))
    c:close()
  end
end)
--> 1 HELLO FROM 1
--> error: one client's error is that client's
--> 2 nil
--> 3 HELLO FROM 3
