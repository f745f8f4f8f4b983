-- Appending to a journal and reading it again, beside what gives the same
-- guarantee elsewhere: SQLite with a write-ahead log (python3's sqlite3), Redis
-- streams (redis-server, its append-only file), each in the same directory, in
-- one run. What is there, that is. us a record of 100 bytes, medians, and how
-- many times ours the others take. Arguments: seconds a cell (1), a directory
-- on the disk to be measured (the directory of temporary files).
--
-- The guarantees: "none" survives a kill of the program; "interval" a power cut
-- but for the last second (SQLite has no such: its NORMAL keeps its files whole
-- and promises nothing of the last records); "sync" all that was answered.

local ipc = require "ipc"
local measure = require "bench.measure"

local seconds = tonumber(arg[1]) or 1
local parent = arg[2] or os.getenv "TMPDIR" or "/var/tmp"
local folder = ("%s/lua_ipc_bench.%d"):format(parent, ipc.pid())
assert(os.execute("mkdir " .. folder))
local tidy <close> = setmetatable({}, { __close = function() -- luacheck: ignore
  os.execute("rm -rf " .. folder)
end })

local MESSAGE <const> = ("x"):rep(100)
local MANY <const> = 100
local READ <const> = 100000
local many = {}
for i = 1, MANY do many[i] = MESSAGE end

local function has(command) return (os.execute(("command -v %s >/dev/null"):format(command))) end

-- us a record: one at a time, in hundreds, read again.

local function ours(durability)
  local path = folder .. "/journal"
  local w = assert(ipc.journal(path, "w", { durability = durability, retain_bytes = 256 << 20 }))
  local batch = durability == "sync" and 10 or 1000
  local one = measure.run(function()
    for _ = 1, batch do assert(w:send(MESSAGE)) end
  end, batch, seconds)
  local hundred = measure.run(function() assert(w:sendmany(many) == MANY) end, MANY, seconds)
  local last = w:stats().last
  while w:stats().last < last + READ do assert(w:sendmany(many)) end
  last = w:stats().last
  w:close()
  local read = measure.run(function()
    local r = assert(ipc.journal(path, "r", { from = last - READ + 1, follow = false }))
    local n = 0
    repeat
      local list = r:recvmany(256)
      n = n + (list and #list or 0)
    until not list
    assert(n == READ)
    r:close()
  end, READ, seconds)
  os.execute("rm -rf " .. path)
  return { one / 1000, hundred / 1000, read / 1000 }
end

-- Several processes at once: us a record, of all of them.
local function ours_crowd(count)
  local path = folder .. "/crowd"
  local from, to = ipc.pipe()
  local w = assert(ipc.journal(path, "w"))
  local children = {}
  for i = 1, count do
    children[i] = assert(ipc.fork(function(results)
      local mine = assert(ipc.journal(path, "w", { durability = "sync" }))
      local n, begin = 0, ipc.now()
      repeat
        assert(mine:send(MESSAGE))
        n = n + 1
      until ipc.now() - begin >= seconds
      results:put(n)
    end, i < count and to:dup() or to))
  end
  local total = 0
  for _ = 1, count do total = total + assert(from:get(60)) end
  for i = 1, count do children[i]:wait(10) end
  w:close()
  os.execute("rm -rf " .. path)
  return seconds / total * 1e6
end

local SQLITE <const> = [[
import os, sqlite3, sys, time
path, level, seconds, read = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
db = sqlite3.connect(path, isolation_level=None, timeout=60)
db.execute("pragma journal_mode=wal")
db.execute("pragma synchronous=" + level)
db.execute("create table if not exists log (id integer primary key, at real, message blob)")
insert, message = "insert into log (at, message) values (?, ?)", b"x" * 100
def median(f, per):
    took, begin = [], time.monotonic()
    while len(took) < 3 or time.monotonic() - begin < seconds:
        start = time.monotonic()
        f()
        took.append((time.monotonic() - start) / per * 1e6)
    return sorted(took)[len(took) // 2]
def one():
    for _ in range(10): db.execute(insert, (time.time(), message))
def hundred():
    db.execute("begin")
    for _ in range(100): db.execute(insert, (time.time(), message))
    db.execute("commit")
print(median(one, 10), median(hundred, 100))
db.execute("begin")
for _ in range(read): db.execute(insert, (0.0, message))
db.execute("commit")
last = db.execute("select max(id) from log").fetchone()[0]
def again():
    assert sum(1 for _ in db.execute("select id, message from log where id > ? order by id", (last - read,))) == read
print(median(again, read))
]]

local function sqlite(level)
  local program = folder .. "/sqlite.py"
  local file <close> = assert(io.open(program, "w"))
  file:write(SQLITE)
  file:close()
  local out <close> = assert(io.popen(("python3 %s %s/db %s %g %d"):format(program, folder, level, seconds, READ)))
  local row = { out:read("n", "n", "n") }
  os.execute(("rm -f %s/db*"):format(folder))
  return #row == 3 and row or nil
end

-- One command, as Redis reads it.
local function command(...)
  local words = { ("*%d\r\n"):format(select("#", ...)) }
  for _, word in ipairs { ... } do words[#words + 1] = ("$%d\r\n%s\r\n"):format(#word, word) end
  return table.concat(words)
end

local function redis(level)
  local path = folder .. "/redis"
  os.execute("mkdir -p " .. path)
  assert(os.execute(("redis-server --port 0 --unixsocket %s/sock --dir %s --appendonly yes --appendfsync %s " ..
    "--save '' --daemonize yes --pidfile %s/pid --logfile %s/log >/dev/null"):format(path, path, level, path, path)))
  local c = assert(ipc.connect(("unix:%s/sock"):format(path), { unit = "stream", retry = 10 }))
  c:settimeout(60)
  local add = command("XADD", "log", "*", "m", MESSAGE)
  local adds = add:rep(MANY)
  local function answer()
    local line = assert(c:read "l")
    assert(line:sub(1, 1) == "$", line)
    return assert(c:read(tonumber(line:sub(2)) + 2))
  end
  local one = measure.run(function()
    for _ = 1, 10 do
      c:send(add)
      answer()
    end
  end, 10, seconds)
  local hundred = measure.run(function()
    c:send(adds)
    for _ = 1, MANY do answer() end
  end, MANY, seconds)
  for _ = 1, READ // MANY do
    c:send(adds)
    for _ = 1, MANY do answer() end
  end
  c:send(command("SHUTDOWN", "NOSAVE"))
  c:close()
  os.execute(("while kill -0 $(cat %s/pid 2>/dev/null) 2>/dev/null; do sleep 0.05; done; rm -rf %s"):format(path, path))
  return { one / 1000, hundred / 1000 }
end

local levels = {
  { "none", "off", "no" },
  { "interval", "normal", "everysec" },
  { "sync", "full", "always" },
}
local python, server = has "python3", has "redis-server"

local function cell(row, i, mine)
  if not row or not row[i] then return "-" end
  return mine and ("%.2f (%.1fx)"):format(row[i], row[i] / mine[i]) or ("%.2f"):format(row[i])
end

print("us a record of 100 bytes in " .. parent .. " (and how many times ours)\n")
print(("%-10s %-14s %10s %20s %20s"):format("guarantee", "work", "journal", "SQLite", "Redis stream"))
for _, level in ipairs(levels) do
  local mine = ours(level[1])
  local lite = python and sqlite(level[2])
  local stream = server and redis(level[3])
  for i, work in ipairs { "one by one", "in hundreds", "read again" } do
    print(("%-10s %-14s %10s %20s %20s"):format(i == 1 and level[1] or "", work,
      cell(mine, i), cell(lite, i, mine), cell(stream, i, mine)))
  end
end
print(("%-10s %-14s %10.2f"):format("sync", "4 processes", ours_crowd(4)))
print(("%-10s %-14s %10.2f"):format("sync", "16 processes", ours_crowd(16)))
