-- Bytes for an idle channel, for each mechanism: Lua's own count, and what the
-- process has grown by in memory, C and its allocator included (the kernel's
-- part is not). Then the same after a message has gone through each. Arguments:
-- channels (10000).
--
-- The goal is that an idle channel costs at most 512 bytes of Lua and C memory.

local ipc = require "ipc"

local wanted = tonumber(arg and arg[1]) or 10000
local GOAL = 512

-- Bytes resident, or nil where there is no /proc/self/statm.
local page
local function resident()
  local f <close> = io.open "/proc/self/statm"
  if not f then
    return nil
  end
  if not page then
    local p <close> = io.popen "getconf PAGESIZE"
    page = p:read "n"
  end
  f:read "n"
  return f:read "n" * page
end

local function settle()
  collectgarbage()
  collectgarbage()
  return collectgarbage "count" * 1024, resident()
end

-- For one mechanism in a process of its own: its answer is a list of numbers.
local function measure(address, count)
  local list = {}
  for i = 1, 2 * count do
    list[i] = false -- its memory is none of the channels'
  end
  local lua, all = settle()
  local n = 0
  while n < 2 * count do
    local a, b = ipc.pair(address)
    if not a then
      break -- no more descriptors
    end
    list[n + 1], list[n + 2] = a, b
    n = n + 2
    if n % 64 == 0 then
      collectgarbage() -- holes of what was only in passing are no channel's
    end
  end
  assert(n > 0, "no descriptors")
  local lua_idle, all_idle = settle()
  for i = 1, n, 2 do
    assert(list[i]:send "x" and list[i + 1]:recv(10))
  end
  local lua_used, all_used = settle()
  return n, (lua_idle - lua) / n, all and (all_idle - all) / n,
    (lua_used - lua) / n, all and (all_used - all) / n
end

print(("%-18s %9s %21s %27s   %s"):format("", "", "idle: bytes of", "after a message: bytes of", ""))
print(("%-18s %9s %10s %10s %13s %13s   %s"):format("mechanism", "channels", "Lua", "all",
  "Lua", "all", "goal: idle <= " .. GOAL))
for _, m in ipairs(ipc.mechanisms()) do
  local child <close> = assert(ipc.fork(measure, m.address, wanted // 2))
  local fine, n, lua_idle, all_idle, lua_used, all_used = child:wait(120)
  if fine then
    local idle = all_idle or lua_idle
    print(("%-18s %9d %10.0f %10s %13.0f %13s   %s"):format(m.name, n, lua_idle,
      all_idle and ("%.0f"):format(all_idle) or "?", lua_used,
      all_used and ("%.0f"):format(all_used) or "?", idle <= GOAL and "met" or "short"))
  else
    print(m.name, n)
  end
end
