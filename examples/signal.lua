-- Signals as something to receive: HUP reads the settings again, TERM ends the
-- work in an orderly way. Another process plays the one who sends them.
-- Run: lua5.4 examples/signal.lua
local ipc = require "ipc"

local signals <close> = assert(ipc.signals { "HUP", "TERM" })
local jobs <close>, give = assert(ipc.pipe())

local child <close> = assert(ipc.fork(function(parent)
  for _, signal in ipairs { "HUP", "TERM" } do
    give:put("a job before " .. signal)
    ipc.parent:recv() -- it is done
    os.execute(("kill -%s %d"):format(signal, parent))
  end
  ipc.parent:recv()
end, ipc.pid()))

local settings, signal = 1, nil
while signal ~= "TERM" do
  assert(ipc.poll({ jobs, signals }, 10))
  signal = signals:recv(0)
  if signal == "HUP" then
    settings = settings + 1
  end
  local job = jobs:get(0)
  if job then
    print(job .. ", settings " .. settings)
    child:send "done"
  end
end
child:send "the end"
assert(child:wait(10))
--> a job before HUP, settings 1
--> a job before TERM, settings 2
print "bye" --> bye
