-- Streams of bytes: read, lines, recv.
local fault = ...
local ipc = require "ipc"

for _, address in ipairs { "pipe?unit=stream", "unix?unit=stream" } do
  local r, w = fault.sure(ipc.pair, address)
  local text = {}
  for i = 1, 100 do
    text[i] = "line " .. i .. ("."):rep(i * 3)
  end
  local all = table.concat(text, "\n") .. "\n"
  fault.equal(fault.call(w, "send", all, nil, 5), true)
  fault.equal(fault.call(r, "read", 5, 5), all:sub(1, 5), "read(5)")
  fault.equal(fault.call(r, "read", "L", 5), text[1]:sub(6) .. "\n", "read(L)")
  fault.equal(fault.call(r, "read", "l", 5), text[2], "read(l)")
  local at = 2
  local next_line = fault.sure(r.lines, r, 5)
  for i = 1, 50 do
    at = at + 1
    fault.equal(fault.sure(next_line), text[at], "lines " .. i)
  end
  local rest = table.concat(text, "\n", at + 1) .. "\n"
  local got = ""
  while #got < #rest do
    got = got .. fault.call(r, "recv", 5)
  end
  fault.equal(got, rest, "recv")
  local big = ("big "):rep(50000)
  fault.equal(fault.call(w, "send", big, nil, 0), true)
  fault.equal(fault.call(r, "read", #big, 5), big, "read(big)")
  fault.equal(fault.call(w, "send", big, nil, 0), true)
  fault.call(w, "shutdown")
  fault.equal(fault.call(r, "read", "a", 5), big, "read(a)")
  fault.equal(select(2, r:read("l", 5)), "closed")
  w:close()
  r:close()
end
