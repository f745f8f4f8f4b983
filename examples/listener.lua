-- A server and its clients: each connects by the address and gets a channel of
-- its own. The path goes with the listener.
-- Run: lua5.4 examples/listener.lua
local ipc = require "ipc"

local address = ("unix:/tmp/ipc-example-%d.sock"):format(ipc.pid())
local listener <close> = assert(ipc.listen(address))

local clients = {}
for i = 1, 3 do
  clients[i] = assert(ipc.fork(function()
    local server <close> = assert(ipc.connect(address, { timeout = 5 }))
    server:put { name = "client " .. i }
    return server:get()
  end))
end

for _ = 1, 3 do
  local client <close> = assert(listener:accept(5))
  local hello = client:get()
  client:put("hello, " .. hello.name)
end

for i = 1, 3 do print(clients[i]:wait()) end
--> true hello, client 1
--> true hello, client 2
--> true hello, client 3
