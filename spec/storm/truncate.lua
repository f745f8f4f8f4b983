-- Files of rings that lose pages while they are in use, and file systems that
-- are full: nobody dies, calls answer, close closes, and who opens the name next
-- is told or gets a new one. `--long` does it once more under the sanitizers.
local LONG = arg[1] == "--long" or (os.getenv "LONG" or "") ~= ""
local ipc = require "ipc"
local E = ipc.errno

io.stdout:setvbuf "line" -- what is ended by force has said it, too

local PATIENCE = 10 -- seconds for a scenario: reaching it is a failure
local folder = (os.getenv "TMPDIR" or "/tmp")
local unique = ("lua_ipc_truncate.%d"):format(ipc.pid())
local failed, scenarios, refused, timeouts = false, 0, 0, 0

local function sh(command)
  return os.execute("LD_PRELOAD= " .. command)
end

-- ---- what happens to the file

local function truncate(size)
  return function(path) return assert(sh(("truncate -s %d %s"):format(size, path))) end
end
local function punch(from, size)
  return function(path) return assert(sh(("fallocate -p -o %d -l %d %s"):format(from, size, path))) end
end
local function grown(size)
  return function(path)
    local whole = io.open(path):seek "end"
    truncate(size)(path)
    truncate(whole)(path)
  end
end

-- The head and the participants are two pages, the ring 64 KiB behind them.
-- `holes`: what was there reads as zeros then, and nobody is told by the kernel;
-- `half`: only who comes so far is told.
local damages = {
  { "to nothing", truncate(0) },
  { "to a page", truncate(4096) },
  { "to two pages", truncate(8192) },
  { "to half the ring", truncate(8192 + 32768), half = true },
  { "to nothing and back", grown(0), holes = true },
  { "to a page and back", grown(4096), holes = true },
  { "to half and back", grown(8192 + 32768), holes = true },
  { "a hole in the head", punch(0, 4096), holes = true },
  { "a hole in the ring", punch(8192, 65536), holes = true },
  { "all a hole", punch(0, 8192 + 65536), holes = true },
}

local kinds = {
  { "many", {} },
  { "sole", { writers = 1, readers = 1 } },
  { "lease", { lease = true } },
}
local rooms = {
  { "shm", function(mode, o) return ipc.shm("/" .. unique, mode, o) end, "/dev/shm/" .. unique },
  { "mmap", function(mode, o) return ipc.mmap(folder .. "/" .. unique, mode, o) end, folder .. "/" .. unique },
}

-- ---- what others do meanwhile

local function body(i)
  return ("%04d"):format(i) .. ("abcdefgh"):rep(100)
end

-- Looks at what a call answered: a value, or an errno that says what happened.
local allowed = { EFAULT = true, ENOTRECOVERABLE = true, ETIMEDOUT = true, EPIPE = true, EBUSY = true, ESTALE = true,
  ENOENT = true, EBADMSG = true, ENOBUFS = true, EMSGSIZE = true, EEXIST = true }
local function answer(told, call, first, message, errno)
  if first ~= nil then
    return first
  end
  local name = errno and E[errno]
  assert(errno == nil or allowed[name], ("%s answers %s"):format(call, tostring(message)))
  if name == "EFAULT" or name == "ENOTRECOVERABLE" then
    told.refused = told.refused + 1
  elseif name == "ETIMEDOUT" then
    told.timeouts = told.timeouts + 1
  end
end

local function whole(damage, got)
  assert(damage.holes or got == body(tonumber(got:sub(1, 4)) or -1), "a message that nobody sent")
end

local function everything(told, damage, r, w, sole)
  for _ = 1, 3 do
    answer(told, "send", w:send(body(1), nil, 0.02))
    answer(told, "sendmany", w:sendmany({ body(2), body(3) }, nil, 0.02))
    local got = answer(told, "recv", r:recv(0.02))
    if got then whole(damage, got) end
    for _, m in ipairs(answer(told, "recvmany", r:recvmany(100, 0.02)) or {}) do whole(damage, m) end
    if r:stats() then w:stats() end
    answer(told, "poll", ipc.poll({ r, { w, "w" } }, 0.02))
    if sole then
      local view = answer(told, "reserve", w:reserve(1000, 0.02))
      if view then
        answer(told, "write", view:write(0, body(5)))
        answer(told, "commit", view:commit(#body(5)))
      end
    end
    local copy = answer(told, "dup", w:dup())
    if copy then
      answer(told, "send", copy:send(body(4), nil, 0.02))
      copy:close()
    end
  end
end

local states = {}

-- Messages are there, nobody waits.
function states.idle(told, r, w, path, damage)
  for i = 1, 50 do assert(w:send(body(i), nil, 0)) end
  damage[2](path)
  everything(told, damage, r, w)
end

-- Somebody waits for the next.
function states.blocked(told, r, w, path, damage)
  local parent = ipc.pid()
  local child = assert(ipc.fork(function()
    ipc.parent:recv(PATIENCE)
    for _ = 1, 10000 do
      local file <close> = assert(io.open(("/proc/%d/stat"):format(parent)))
      if file:read "a":find(") S", 1, true) then -- it sleeps
        return damage[2](path)
      end
    end
    return damage[2](path)
  end))
  assert(child:send "go")
  local got = answer(told, "recv", r:recv(0.3))
  if got then whole(damage, got) end
  assert(child:wait(PATIENCE))
  everything(told, damage, r, w)
end

-- A poll set watches both ends: its threads are on the memory.
function states.polled(told, r, w, path, damage)
  assert(#ipc.poll({ r, { w, "w" } }, 1) > 0)
  answer(told, "poll", ipc.poll({ r }, 0.02))
  damage[2](path)
  answer(told, "poll", ipc.poll({ r }, 0.1))
  everything(told, damage, r, w)
end

-- Views are out: each answers for itself.
function states.lent(told, r, w, path, damage, options)
  if not (options.writers or options.lease) then
    return states.idle(told, r, w, path, damage)
  end
  for i = 1, 10 do assert(w:send(body(i), nil, 0)) end
  local peeked = assert(r:peek(1))
  local ticket = options.lease and assert(r:take(1))
  local reserved = options.writers and assert(w:reserve(5000, 1))
  damage[2](path)
  answer(told, "read", peeked:read())
  answer(told, "unpack", peeked:unpack(0, "<I4"))
  if reserved then
    answer(told, "write", reserved:write(0, body(6)))
    answer(told, "commit", reserved:commit(#body(6)))
  end
  if ticket then
    whole(damage, ticket.bytes)
    answer(told, "ack", ticket:ack())
  end
  pcall(peeked.release, peeked)
  everything(told, damage, r, w, options.writers)
end

-- ---- a scenario: in a process of its own, so that its death is seen

local function scenario(room, kind, state, damage)
  local told = { refused = 0, timeouts = 0 }
  local options = { capacity = 65536, timeout = 1 }
  for key, value in pairs(kind[2]) do options[key] = value end
  local path = room[3]
  local r, w = assert(room[2]("r", options)), assert(room[2]("w", options))
  states[state](told, r, w, path, damage, options)
  assert(damage.holes or (damage.half and state ~= "idle") or told.refused > 0, "nobody was told")
  assert(r:close() and w:close())
  -- The next one: a whole ring, or told why not.
  local again, message, errno = room[2]("rw", { capacity = 65536, timeout = 1 })
  if again then
    if again:send("whole", nil, 1) and kind[1] == "many" then
      assert(again:recv(1) ~= nil)
    end
    again:close()
  else
    local name = E[errno]
    assert(name == "EBADMSG" or name == "ENOTRECOVERABLE" or name == "EEXIST", message)
    if name == "EEXIST" then -- another kind of ring, and sound
      assert(kind[1] ~= "many")
    end
  end
  return told.refused, told.timeouts
end

local function damage_all()
  for _, room in ipairs(rooms) do
    -- A file is what memory is: of it not every kind, in the short run.
    for _, kind in ipairs((LONG or room[1] == "shm") and kinds or { kinds[1] }) do
      for _, state in ipairs { "idle", "blocked", "polled", "lent" } do
        for _, damage in ipairs(damages) do
          local what = ("%s, %s, %s, %s"):format(room[1], kind[1], state, damage[1])
          os.remove(room[3])
          local child = assert(ipc.fork(function() return scenario(room, kind, state, damage) end))
          local ok, n, m = child:wait(PATIENCE)
          if not ok then
            print("FAILED: " .. what .. ": " .. tostring(n):match "[^\n]*")
            failed = true
            child:stop(0)
          else
            refused, timeouts = refused + n, timeouts + m
          end
          child:close()
          os.remove(room[3])
          scenarios = scenarios + 1
        end
      end
    end
  end
end

-- ---- full file systems: in a mount namespace, nothing of which outlives it

local FULL = [=[
  local ipc = require "ipc"
  local E, where = ipc.errno, ...
  local function open(name, bytes)
    if where == "/dev/shm" then return ipc.shm("/" .. name, "rw", { capacity = bytes }) end
    return ipc.mmap(where .. "/" .. name, "rw", { capacity = bytes })
  end
  local function files()
    local list <close> = io.popen("LD_PRELOAD= ls -A " .. where)
    return (list:read "a":gsub("%s+", " "))
  end
  local none, message, errno = open("large", 1 << 20)
  assert(none == nil and errno == E.ENOSPC, message)
  assert(files() == "", "left behind: " .. files())
  local small = assert(open("small", 65536))
  none, message, errno = open("second", 262144)
  assert(none == nil and errno == E.ENOSPC, message)
  -- What a ring has, others cannot take from it.
  os.execute("LD_PRELOAD= dd if=/dev/zero of=" .. where .. "/filler bs=4k 2>/dev/null")
  for _ = 1, 100 do
    assert(small:send(("x"):rep(30000), nil, 0) and #small:recv(0) == 30000)
  end
  none, message, errno = open("third", 4096)
  assert(none == nil and errno == E.ENOSPC, message)
  assert(small:close())
  os.remove(where .. "/small")
  assert(files() == "filler ", "left behind: " .. files())
]=]

local function quote(text) return "'" .. text:gsub("'", [['\'']]) .. "'" end

local function full(where)
  local mount = ("mount -t tmpfs -o size=256k none %s"):format(where)
  if not sh(("unshare -m sh -c %s 2>/dev/null"):format(quote(mount))) then
    print("skipped: a full " .. where .. ": no mounts of one's own here")
    return
  end
  local script = os.tmpname()
  local file <close> = assert(io.open(script, "w"))
  file:write(FULL)
  file:close()
  local lua = arg[-1]
  local run = ("%s && exec env LD_PRELOAD=\"$PRELOAD\" %s %s %s"):format(mount, lua, script, where)
  if not os.execute(("PRELOAD=\"$LD_PRELOAD\" LD_PRELOAD= unshare -m sh -c %s"):format(quote(run))) then
    print("FAILED: a full " .. where)
    failed = true
  end
  os.remove(script)
  scenarios = scenarios + 1
end

damage_all()
local inside = folder .. "/" .. unique .. ".d"
assert(os.execute("mkdir " .. inside))
full(inside)
os.execute("rmdir " .. inside)
full "/dev/shm"

print(("%d scenarios: calls that were refused %d, that timed out %d%s"):format(scenarios, refused, timeouts,
  os.getenv "STORM_ASAN" and ", under the sanitizers" or ""))
if LONG and not os.getenv "STORM_ASAN" then
  failed = not os.execute "make -s storm-asan STORM=truncate" or failed
end
os.exit(not failed)
