-- Pids say nothing about who lives: peers in two pid namespaces are pid 1 both,
-- and one that is killed and not reaped has a pid for ever. Either way the other
-- side is told in time. Where the system allows no namespaces it says so.
local ipc = require "ipc"

local lua <const> = os.getenv "LUA" or "lua5.4"
local name <const> = ("/storm-namespaces-%d"):format(math.random(1 << 40))

-- Each writes its pid as it sees it once it has opened the ring, and then what it
-- has to say.
local prelude <const> = ([[
  local ipc = require "ipc"
  io.stdout:setvbuf "line"
  local NAME = %q
  local function open(mode) return assert(ipc.shm(NAME, mode, { capacity = 4096 })) end
  local function lease()
    return assert(ipc.shm(NAME .. "-lease", "rw", { capacity = 4096, lease = true }))
  end
  local function wait()
    print "ready"
    local reader, writer = ipc.queue()
    reader:recv(60)
    assert(writer)
  end
  local function here() print((io.open("/proc/self/stat"):read "n")) end
]]):format(name)

-- The victim is killed once it is ready; the survivor must then say "closed".
local cases <const> = {
  { "a sender is killed", [[
    local r = open "r"
    here()
    assert(r:recv(10))
    print((select(2, r:recv(10))))
  ]], [[
    local w = open "w"
    here()
    assert(w:send "x")
    wait()
  ]] },
  { "a receiver is killed", [[
    local w = open "w"
    here()
    local sent, why
    repeat sent, why = w:send(("x"):rep(100), nil, 10) until not sent
    print(why)
  ]], [[
    local r = open "r"
    here()
    assert(r:recv(10))
    wait()
  ]] },
  { "a worker is killed", [[
    local ch, r = lease(), open "r"
    here()
    assert(ch:send "work")
    assert(r:recv(10))
    local t, why = ch:take(10)
    print(t and t.offered == 2 and "closed" or why)
  ]], [[
    local ch, w = lease(), open "w"
    here()
    local ticket = assert(ch:take(10))
    assert(w:send "taken")
    wait()
    assert(ticket)
  ]] },
}

local function quote(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function program(code) return ("%s -e %s"):format(lua, quote(prelude .. code)) end

local function kill(pid) os.execute(("kill -9 %d"):format(pid)) end

local function try(case, here, there)
  local survivor = assert(io.popen(here(program(case[2]))))
  local mine = survivor:read("n", "L")
  local victim = assert(io.popen(there(program(case[3]))))
  local parent, pid, theirs = victim:read("n", "n", "n", "L")
  assert(victim:read "l" == "ready")
  local from = ipc.now()
  kill(pid)
  local why = survivor:read "l"
  local took = ipc.now() - from
  local state
  repeat -- it dies after it has let go of everything
    local status = io.open(("/proc/%d/stat"):format(pid))
    state = status and status:read("a"):match "%) (%u)" or "none"
    if status then status:close() end
  until state == "Z" or state == "none" or ipc.now() > from + 10
  kill(parent)
  survivor:close()
  victim:close()
  return why, took, mine, theirs, state
end

local good = true

local function report(what, case, why, took)
  local fine = why == "closed"
  good = good and fine
  print(("namespaces: %s, %s: %s after %.1f ms%s"):format(what, case[1],
    why == "closed" and "told" or tostring(why), took * 1000, fine and "" or ", wrong"))
end

local function namespaced(command)
  return function(code) return "exec " .. command .. " " .. code end,
    function(code) return ("echo $$ $$; exec %s %s"):format(command, code) end
end

local function way()
  for _, flags in ipairs { "-pf", "-Urpf" } do
    local command = ("unshare %s --kill-child --mount-proc"):format(flags)
    if os.execute(command .. " true 2>/dev/null") then return command end
  end
end

local command = way()
if not command then print "namespaces: skipped, no pid namespaces are allowed here" end
for _, case in ipairs(command and cases or {}) do
  local why, took, mine, theirs = try(case, namespaced(command))
  report("two namespaces", case, why, took)
  if mine ~= 1 or theirs ~= 1 then
    good = false
    print(("  they are pids %s and %s, wrong"):format(mine, theirs))
  end
end

-- sleep(1) does not reap.
local function reaped_by_nobody(code) return ("%s & echo $$ $!; exec sleep 60 >/dev/null"):format(code) end

for _, case in ipairs(cases) do
  local why, took, _, _, state = try(case, function(code) return "exec " .. code end, reaped_by_nobody)
  report("a zombie", case, why, took)
  if state ~= "Z" then
    good = false
    print(("  its state is %s, wrong"):format(state))
  end
end
os.exit(good)
