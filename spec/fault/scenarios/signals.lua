-- Signals as something to receive, and what they did before.
local fault = ...
local ipc = require "ipc"

local USR1 <const>, USR2 <const> = 10, 12

local function caught(number)
  for line in io.lines "/proc/self/status" do
    local bits = line:match "^SigCgt:%s*(%x+)"
    if bits then
      return tonumber(bits, 16) >> (number - 1) & 1 == 1
    end
  end
end

local function raise(name)
  assert(os.execute(("kill -%s %d"):format(name, ipc.pid())))
end

local one = fault.sure(ipc.signals, { "USR1", "USR2" })
local two = fault.sure(ipc.signals, { "USR1" })
raise "USR1"
for _, signals in ipairs { one, two } do
  fault.equal(fault.call(signals, "recv", 10), "USR1")
  fault.equal(select(2, fault.call(signals, "recv", 0)), "timeout")
end
fault.equal(fault.call(one, "close"), true)
assert(caught(USR1) and not caught(USR2))
raise "USR1"
fault.equal(fault.sure(ipc.poll, { two }, 10)[1], two)
fault.equal(fault.sure(function() return two:values(10)() end), "USR1")
fault.call(two, "close")
assert(not caught(USR1))

-- A child has its own again.
one = assert(ipc.signals { "USR1" })
local child = fault.sure(ipc.fork, function() return caught(USR1) end)
local ok, has = child:wait(10)
fault.equal(ok, true, tostring(has))
fault.equal(has, false)
child:close()
one:close()
