-- Every system call that an operation makes fails once, with each of the errors
-- that it may fail with: the operation answers, or does without; nothing crashes
-- or hangs, no descriptor and no mapping stays. --long: with all errors.
local ipc = require "ipc"
local victims = require "spec.support.victims"

local step = victims.step
local e <const> = ipc.errno
local PATIENCE <const> = 20 -- s

-- Numbers on x86_64. What is released is gone whatever the answer is, but not
-- when the call was never made: that leak is ours, not the library's.
local RELEASES <const> = { [3] = "close", [11] = "munmap", [87] = "unlink", [231] = "exit_group" }
local NAMES <const> = {
  [0] = "read", [1] = "write", [2] = "open", [3] = "close", [4] = "stat", [5] = "fstat", [6] = "lstat",
  [7] = "poll", [9] = "mmap", [10] = "mprotect", [11] = "munmap", [12] = "brk", [13] = "rt_sigaction",
  [14] = "rt_sigprocmask", [17] = "pread64", [18] = "pwrite64", [28] = "madvise", [32] = "dup",
  [39] = "getpid", [46] = "sendmsg", [47] = "recvmsg", [53] = "socketpair", [56] = "clone", [61] = "wait4",
  [72] = "fcntl", [77] = "ftruncate", [86] = "link", [87] = "unlink", [91] = "fchmod", [138] = "fstatfs",
  [202] = "futex", [203] = "sched_setaffinity", [204] = "sched_getaffinity", [217] = "getdents64",
  [230] = "clock_nanosleep", [257] = "openat", [262] = "newfstatat", [265] = "linkat", [271] = "ppoll",
  [285] = "fallocate", [290] = "eventfd2", [291] = "epoll_create1", [292] = "dup3", [302] = "prlimit64",
  [318] = "getrandom", [319] = "memfd_create", [324] = "membarrier", [334] = "rseq", [435] = "clone3",
}
local SHORT <const> = { "EINTR", "ENOSPC", "ENOMEM", "EMFILE" }
local LONG <const> = { "EINTR", "ENOSPC", "ENOMEM", "EMFILE", "EAGAIN", "EACCES", "EINVAL", "ENOSYS", "EIO", "EPERM" }

local OPTIONS <const> = { capacity = 4096 }
local name <const> = victims.name

-- Fails as the contract says it, or not at all.
local function contract(first, message, code)
  if first then return first end
  assert(first == nil or first == false)
  assert(type(message) == "string", "no message")
  assert(math.type(code) == "integer" and code > 0, "no errno: " .. message)
end

local function both()
  return assert(ipc.shm(name, "r", OPTIONS)), assert(ipc.shm(name, "w", OPTIONS))
end

local trials = {
  { "shm", function() end, function()
    local ch = contract(ipc.shm(name, "rw", OPTIONS))
    if ch then ch:close() end
  end },
  { "shm, without O_TMPFILE", function() step.setenv("IPC_WITHOUT", "otmpfile") end, function()
    local ch = contract(ipc.shm(name, "rw", OPTIONS))
    if ch then ch:close() end
  end },
  { "shm, joining", both, function()
    local ch = contract(ipc.shm(name, "rw"))
    if ch then ch:close() end
  end },
  { "mmap", function() end, function()
    local ch = contract(ipc.mmap(victims.file, "rw", { capacity = 4096, temporary = true }))
    if ch then ch:close() end
  end },
  { "queue", function() end, function()
    local r, w, code = ipc.queue()
    if not contract(r, w, code) then return end
    r:close()
    w:close()
  end },
  { "send, recv", both, function(r, w)
    if contract(w:send("x", nil, 0)) then contract(r:recv(0)) end
  end },
  { "recv that waits", both, function(r) contract(r:recv(0.02)) end },
  { "send that waits", function()
    local r, w = both()
    while w:send(("x"):rep(500), nil, 0) do end
    return w, r
  end, function(w) contract(w:send(("x"):rep(500), nil, 0.02)) end },
  { "take, ack", function()
    local lease = { capacity = 4096, lease = true }
    local ch = assert(ipc.shm(name, "rw", lease))
    assert(ch:send "x")
    return ch
  end, function(ch)
    local t = contract(ch:take(0))
    if t then contract(t:ack()) end
  end },
  { "dup", both, function(r)
    local ch = contract(r:dup())
    if ch then ch:close() end
  end },
  { "remove", both, function(r) contract(r:remove()) end },
  { "poll", function() end, function()
    local ch = contract(ipc.shm(name, "rw", OPTIONS))
    if not ch then return end
    contract(ipc.poll({ ch }, 0.02))
    ch:close()
  end },
  { "fork", function() return ipc.queue() end, function(r, w)
    local child = contract(ipc.fork(function(out) out:send("x", nil, 1) end, w:dup()))
    if not child then return end
    contract(r:recv(1))
    child:kill(9)
    child:wait(PATIENCE)
    child:close()
  end },
}
if ipc.broadcast then
  trials[#trials + 1] = { "broadcast", function() end, function()
    local r = contract(ipc.broadcast(name, "r", OPTIONS))
    local w = r and contract(ipc.broadcast(name, "w", OPTIONS))
    if w and contract(w:send("x", nil, 0)) then contract(r:recv(0)) end
    if w then w:close() end
    if r then r:close() end
  end }
end

-- ------------------------------------------------------------------ resources

-- What the victim has: descriptors by what they are of, mappings of ours.
local function resources(pid)
  local list, mappings = {}, 0
  local directory = ("/proc/%d/fd/"):format(pid)
  for _, fd in ipairs(step.list(directory)) do
    local of = tonumber(fd) and step.link(directory .. fd)
    if of then list[#list + 1] = of:find "/dev/shm/" and "ring" or of:gsub("%d+", "N") end
  end
  for line in io.lines(("/proc/%d/maps"):format(pid)) do
    if line:find("step-", 1, true) and not line:find "%.so" or line:find("memfd:", 1, true) then
      mappings = mappings + 1
    end
  end
  table.sort(list)
  return table.concat(list, " ") .. ", " .. mappings .. " mappings"
end

-- --------------------------------------------------------------------- trials

local function clean()
  os.remove(victims.path)
  os.remove(victims.file)
  for _, path in ipairs { victims.path, victims.file } do
    for left in victims.left, path do os.remove(path:match "^.*/" .. left) end
  end
end

-- The n-th system call fails: nil when there are not so many; else its number,
-- and what is wrong.
local function try(t, n, err)
  local prepare, act = t[2], t[3]
  local pid = step.fork(function()
    return prepare()
  end, function(...)
    local ok, why = pcall(act, ...)
    -- As Lua itself when it has none: a child's report, for one, can be read again.
    if not ok and not tostring(why):find "not enough memory$" then error(why, 0) end
    collectgarbage()
    collectgarbage()
  end)
  step.ready(pid)
  local before = resources(pid)
  local ok, call = pcall(step.fail, pid, n, err)
  local trouble
  if not ok then
    trouble, call = call, -1
  elseif call then
    local done, why = step.finish(pid)
    if not done then
      trouble = why
    elseif not RELEASES[call] and resources(pid) ~= before then
      trouble = ("has %s; had %s"):format(resources(pid), before)
    end
  end
  step.kill(pid)
  clean()
  return call, trouble
end

-- What is done once in a process is done: the C library's part of that takes no
-- failure.
for _ = 1, 2 do
  local r, w = assert(ipc.queue())
  ipc.poll({ r }, 0)
  r:close()
  w:close()
end

local bad, count = 0, 0
local wanted = os.getenv "TRIALS" or ""
for _, t in ipairs(trials) do
  local tried, calls, wrong = 0, 0, 0
  for _, error_name in ipairs(t[1]:find(wanted) and (arg[1] == "--long" and LONG or SHORT) or {}) do
    for n = 1, math.huge do
      local call, trouble = try(t, n, e[error_name])
      if not call then
        calls = n - 1
        break
      end
      tried = tried + 1
      if trouble then
        bad, wrong = bad + 1, wrong + 1
        if wrong <= 10 then print(("  %s: %s (call %d of it) fails with %s: %s")
          :format(t[1], NAMES[call] or call, n, error_name, trouble)) end
      end
      if call == -1 then break end
    end
  end
  count = count + tried
  print(("syscalls: %-24s %3d calls, %4d failures, wrong %d"):format(t[1], calls, tried, wrong))
end
print(("syscalls: %d failures in all, wrong %d"):format(count, bad))
os.exit(bad == 0)
