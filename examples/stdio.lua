-- Standard input and output as one channel: a program for a shell pipe. Here it
-- starts itself behind one; what it prints goes to standard error meanwhile.
-- Run: lua5.4 examples/stdio.lua
local ipc = require "ipc"

if not os.getenv "FILTER" then
  local lua, source = arg[0], debug.getinfo(1, "S").source:sub(2)
  for i = -1, -9, -1 do
    lua = arg[i] or lua
  end
  local command = "printf 'one\\ntwo\\n' | FILTER=1 %s %s 2>/dev/null | cat"
  local file = assert(io.popen(command:format(lua, source)))
  print(file:read "a") --> ONE TWO
  file:close()
  return
end

local peer = assert(ipc.stdio())
print "this is no part of the answer"
for line in peer:lines() do
  assert(peer:send(line:upper() .. " "))
end
peer:close()
