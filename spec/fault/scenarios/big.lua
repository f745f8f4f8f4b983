-- Messages larger than the medium: the rest is written while others wait.
local fault = ...
local ipc = require "ipc"

local big = ("0123456789abcdef"):rep(20000)

for _, address in ipairs { "pipe", "unix" } do
  local r, w = assert(ipc.pair(address))
  for i = 1, 3 do
    local text = i .. big
    fault.equal(fault.call(w, "send", text, nil, 0), true, "send")
    -- The place of this one is behind the rest: untouched.
    local ok, got, message = fault.try(w.send, w, "refused", nil, 0)
    if ok and got == nil and message ~= "timeout" then
      fault.failed(ok, got, message, fault.errno)
    else
      assert(not got or fault.failed(ok, got, message), "sent behind a rest")
    end
    text = nil -- luacheck: ignore
    collectgarbage()
    fault.equal(fault.call(r, "recv", 5), i .. big, "recv")
    fault.equal(fault.call(w, "flush", 5), true, "flush")
    fault.nothing(r)
  end
  fault.equal(fault.call(w, "put", { big, n = 1 }, nil, 0), true, "put")
  local value = fault.call(r, "get", 5)
  fault.equal(value[1], big)
  fault.equal(value.n, 1)
  -- What cannot leave is named by close.
  w:send(big, nil, 0)
  r:close()
  fault.call(w, "close")
  local ok, message = w:close()
  fault.equal(ok, true, message)
end

-- Over the limit: gone, reported, and the next one comes.
local r, w = assert(ipc.pipe { maxsize = 1000 })
fault.sure(function() return w:send(big) end)
assert(w:send "next")
fault.equal(fault.call(r, "recv", 5), "next")
