-- A pair of unix sockets: both ways, one descriptor an end. As a stream of
-- bytes it speaks whatever the other side does: here lines of text.
-- Run: lua5.4 examples/socket.lua
local ipc = require "ipc"

local client, server = ipc.pair("unix", { unit = "stream", timeout = 5 })

local child = assert(ipc.fork(function()
  for line in server:lines() do
    local _, words = line:gsub("%S+", "")
    server:send(words .. " words: " .. line:upper() .. "\n")
  end
  server:send "goodbye\n"
end))

for _, question in ipairs { "how are you", "a frayed knot" } do
  client:send(question .. "\n")
  print(client:read "l")
end
--> 3 words: HOW ARE YOU
--> 3 words: A FRAYED KNOT

client:shutdown() -- no more questions; answers still come
print(client:read "l") --> goodbye
print(client:read "l") --> nil closed 32
print(child:wait()) --> true
