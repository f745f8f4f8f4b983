-- What objects.c does, through this library; prints ns. Arguments: an address
-- (two ends made and closed) or "fork" (until the child's first message has
-- come), seconds.

local ipc = require "ipc"

local what, seconds = arg[1], tonumber(arg[2])
assert(seconds, "two arguments, see the source")

local BATCH = 200
local PATIENCE = 60 -- seconds until a benchmark counts as hung

local make = what == "pipe" and ipc.pipe or ipc.pair -- one pipe, as objects.c

local function batch()
  for _ = 1, BATCH do
    local a, b = make(what ~= "pipe" and what or nil)
    a:close()
    b:close()
  end
end

local took = {}

local function measure(f, per)
  local begin = ipc.now()
  repeat
    local start = ipc.now()
    local settle = f()
    took[#took + 1] = (ipc.now() - start) / per * 1e9
    if settle then
      settle()
    end
  until #took >= 5 and ipc.now() - begin >= seconds
  table.sort(took)
  print(("%.1f"):format(took[#took // 2 + 1]))
end

local function first()
  ipc.parent:send "x"
end

local function fork()
  local child = assert(ipc.fork(first))
  assert(child:recv(PATIENCE))
  return function()
    assert(child:wait(PATIENCE))
    child:close()
  end
end

if what == "fork" then
  measure(fork, 1)
else
  os.execute(("taskset -cp 0 %d >/dev/null"):format(ipc.pid()))
  measure(batch, BATCH)
end
