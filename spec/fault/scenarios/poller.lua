-- Pollers: what is put into them, waited for, changed and taken out.
local fault = ...
local ipc = require "ipc"

local p = fault.sure(ipc.poller)
local ends = {}
for i, address in ipairs { "pipe", "unix", "unix?type=seqpacket", "pipe?packet=true", "pipe?duplex=true" } do
  ends[i] = { assert(ipc.pair(address)) }
  fault.equal(fault.call(p, "add", ends[i][1]), true)
  fault.equal(#p, i)
end
local due
local foreign = {
  pollfd = function() return ends[1][2]:pollfd() end,
  events = function() return "r" end, -- of the end that writes: never
  timeout = function() return due and math.max(0, due - ipc.now()) end,
}
fault.equal(fault.call(p, "add", foreign), true)
local outer = fault.sure(ipc.poller)
fault.equal(fault.call(outer, "add", p), true)

-- A wait that failed has lost nothing.
local function waits(set, timeout)
  return fault.call(set, "wait", timeout)
end

for _, pair in ipairs(ends) do
  assert(pair[2]:sendmany { "one", "two" } == 2)
  for _ = 1, 2 do
    local ready, how = waits(p, 10)
    fault.equal(ready and #ready, 1, how)
    fault.equal(ready[1], pair[1])
    fault.equal(how[1], "r")
    fault.equal(waits(outer, 10)[1], p)
    assert(pair[1]:recv(0))
  end
  local ready, message = waits(p, 0.001)
  fault.equal(ready, nil)
  fault.equal(message, "timeout")
end

-- Its own time.
due = ipc.now()
fault.equal(waits(p, 10)[1], foreign)
due = nil
fault.equal(fault.call(p, "remove", foreign), true)

-- Another direction, once; a descriptor; an end; out.
fault.equal(fault.call(p, "modify", ends[2][1], "rw", true), true)
fault.equal(waits(p, 10)[ends[2][1]], "w")
fault.equal(waits(p, 0), nil)
fault.equal(fault.call(p, "add", ends[2][2]:pollfd(), "w"), true)
fault.equal(waits(p, 10)[1], ends[2][2]:pollfd())
fault.equal(fault.call(p, "remove", ends[2][2]:pollfd()), true)
fault.call(ends[3][1], "close")
fault.equal(waits(p, 10)[1], ends[3][1])
fault.equal(#p, #ends - 1)

-- Many: what it keeps grows.
local many = {}
for i = 1, 20 do
  local other
  many[i], other = assert(ipc.pair "unix")
  other:close()
  fault.equal(fault.call(p, "add", many[i]), true)
end
fault.equal(#p, #ends - 1 + #many)
local ready = waits(p, 10)
assert(#ready == #many or fault.hits() > 0 and #ready > 0, "who is ready")

local timer = fault.sure(ipc.timer, { after = 0.001 })
fault.equal(fault.call(outer, "add", timer), true)
fault.equal(fault.call(outer, "remove", p), true)
fault.equal(waits(outer, 10)[1], timer)
fault.equal(fault.call(p, "close"), true)
fault.call(outer, "close")
