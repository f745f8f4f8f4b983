-- Fields in shared memory beside fields of a table, string.pack and unpack on
-- the same bytes, and Python's ctypes. What no C library can be faster than is
-- measured too: a userdata whose __index and __newindex do nothing (cc and Lua's
-- headers are needed). Nanoseconds, the best of rounds that take turns, without
-- the loop. Arguments: rounds (15).

local ipc = require "ipc"

local rounds = tonumber(arg and arg[1]) or 15
local COUNT <const> = 100000

local EMPTY <const> = [[
#include <lauxlib.h>
#include <lua.h>
static int get(lua_State *L) { return lua_pushnumber(L, 1.5), 1; }
static int set(lua_State *L) { return (void)L, 0; }
int luaopen_empty(lua_State *L) {
  lua_newuserdatauv(L, 8, 0);
  lua_newtable(L);
  lua_pushcfunction(L, get);
  lua_setfield(L, -2, "__index");
  lua_pushcfunction(L, set);
  lua_setfield(L, -2, "__newindex");
  lua_setmetatable(L, -2);
  return 1;
}
]]

local function empty_userdata()
  local name = os.tmpname()
  local flags = io.popen ".ci/install --headers":read "l" or "/usr/include/lua5.4"
  local cc = ("cc -O2 -shared -fPIC -isystem %s -x c -o %s.so -"):format(flags:match "%S+", name)
  local compiler = io.popen(cc, "w")
  compiler:write(EMPTY)
  local open = compiler:close() and package.loadlib(name .. ".so", "luaopen_empty")
  os.remove(name)
  os.remove(name .. ".so")
  return open and open()
end

local PYTHON <const> = [[
import ctypes, time
class Vec(ctypes.Structure): _fields_ = [("x", ctypes.c_double), ("y", ctypes.c_double)]
class Record(ctypes.Structure): _fields_ = [("id", ctypes.c_uint32), ("x", ctypes.c_double)]
N = 200000
a = (Record * 100).from_buffer(bytearray(100 * ctypes.sizeof(Record)))
r = a[0]
def best(f):
    return min(f() for _ in range(7)) / N * 1e9
def get():
    s = time.perf_counter()
    for i in range(N): v = r.x
    return time.perf_counter() - s
def put():
    s = time.perf_counter()
    for i in range(N): r.x = 1.5
    return time.perf_counter() - s
def each():
    s = time.perf_counter()
    for i in range(N): v = a[5].x
    return time.perf_counter() - s
def none():
    s = time.perf_counter()
    for i in range(N): pass
    return time.perf_counter() - s
base = best(none)
print(best(get) - base, best(put) - base, best(each) - base)
]]

local Record = ipc.struct {
  { "id", "I4" }, { "x", "d" }, { "y", "d" }, { "hits", "i8" }, { "flags", "I2" }, { "alive", "?" }, { "name", "z16" },
  { "score", "f" },
}
local Whole = ipc.struct {
  { "id", "I4" }, { "x", "d" }, { "y", "d" }, { "hits", "i8" }, { "flags", "I2" }, { "alive", "?" }, { "name", "z16" },
  { "score", "f" }, versioned = true,
}
local FORMAT <const> = "!I4ddi8I2Bc16f"

local function sample()
  return { id = 1, x = 1.5, y = 2.5, hits = 7, flags = 3, alive = true, name = "somebody", score = 0.5 }
end

local memory = assert(ipc.memory(nil, 100 * Record.size))
local whole_memory = assert(ipc.memory(nil, Whole.size))
local list, whole = memory:view(Record, 0, 100), whole_memory:view(Whole)
local record, plain, empty = list[1], sample(), empty_userdata() or false
Record:store(record, plain)
Whole:store(whole, plain)
local plains = {}
for i = 1, #list do plains[i] = sample() end
local into, bytes = {}, string.pack(FORMAT, 1, 1.5, 2.5, 7, 3, 1, "somebody", 0.5)

local rows = {} -- { name, function, best, beside }

local function row(name, f, beside) rows[#rows + 1] = { name, f, math.huge, beside } end

row("loop", function() for _ = 1, COUNT do end end)
row("t.x", function() local v for _ = 1, COUNT do v = plain.x end return v end)
if empty then
  row("empty __index", function() local v for _ = 1, COUNT do v = empty.x end return v end, "t.x")
end
local floor = empty and "empty __index" or "t.x"
row("r.x", function() local v for _ = 1, COUNT do v = record.x end return v end, floor)
row("r.id", function() local v for _ = 1, COUNT do v = record.id end return v end, floor)
row("r.name", function() local v for _ = 1, COUNT do v = record.name end return v end, floor)
row("r.x, versioned", function() local v for _ = 1, COUNT do v = whole.x end return v end, floor)
row("m:unpack", function() local v for _ = 1, COUNT do v = memory:unpack(8, "d") end return v end, floor)
row("t.x = 1.5", function() for _ = 1, COUNT do plain.x = 1.5 end end)
if empty then
  row("empty __newindex", function() for _ = 1, COUNT do empty.x = 1.5 end end, "t.x = 1.5")
end
local sink = empty and "empty __newindex" or "t.x = 1.5"
row("r.x = 1.5", function() for _ = 1, COUNT do record.x = 1.5 end end, sink)
row("r.hits = n", function() for i = 1, COUNT do record.hits = i end end, sink)
row("r.name = text", function() for _ = 1, COUNT do record.name = "somebody" end end, sink)
row("r.x, versioned = 1.5", function() for _ = 1, COUNT do whole.x = 1.5 end end, sink)
row("m:pack", function() for _ = 1, COUNT do memory:pack(8, "d", 1.5) end end, sink)
row("list[i].x of tables", function() local v for _ = 1, COUNT do v = plains[5].x end return v end)
row("v[i].x", function() local v for _ = 1, COUNT do v = list[5].x end return v end, "list[i].x of tables")
row("ipairs of tables", function()
  local v
  for _ = 1, COUNT // 100 do for _, t in ipairs(plains) do v = t.x end end
  return v
end)
row("for i, r in v()", function()
  local v
  for _ = 1, COUNT // 100 do for _, r in list() do v = r.x end end
  return v
end, "ipairs of tables")
row("string.unpack of 8", function() local v for _ = 1, COUNT do v = string.unpack(FORMAT, bytes) end return v end)
row("the same into a table", function()
  for _ = 1, COUNT do
    local t = into
    t.id, t.x, t.y, t.hits, t.flags, t.alive, t.name, t.score = string.unpack(FORMAT, bytes)
  end
end)
row("load of 8", function() for _ = 1, COUNT do Record:load(record) end end, "the same into a table")
row("load into", function() for _ = 1, COUNT do Record:load(record, into) end end, "the same into a table")
row("load into, versioned", function() for _ = 1, COUNT do Whole:load(whole, into) end end, "the same into a table")
row("string.pack of a table", function()
  local t = into
  for _ = 1, COUNT do string.pack(FORMAT, t.id, t.x, t.y, t.hits, t.flags, 1, t.name, t.score) end
end)
row("store of 8", function() for _ = 1, COUNT do Record:store(record, into) end end, "string.pack of a table")
row("store, versioned", function() for _ = 1, COUNT do Whole:store(whole, into) end end, "string.pack of a table")

local kept = {} -- so that iterating makes no views anew
for i, r in list() do kept[i] = r end
assert(#kept == #list)

local function clock(f)
  local start = os.clock()
  f()
  return (os.clock() - start) / COUNT * 1e9
end

for _ = 1, rounds do
  for _, r in ipairs(rows) do r[3] = math.min(r[3], clock(r[2])) end
end
local loop, best = rows[1][3], {}
print(("%-24s %8s   %s"):format("", "ns", "times"))
for i = 2, #rows do
  local name, ns, beside = rows[i][1], rows[i][3] - loop, rows[i][4]
  best[name] = ns
  local ratio = beside and ("%.2f of %s"):format(ns / best[beside], beside) or ""
  print(("%-24s %8.1f   %s"):format(name, ns, ratio))
end
if empty then
  local text = "a read costs %.2f times what calling C for it does, a write %.2f; a table's %.2f and %.2f"
  print(text:format(best["r.x"] / best[floor], best["r.x = 1.5"] / best[sink], best["t.x"] / best[floor],
    best["t.x = 1.5"] / best[sink]))
end

local script = os.tmpname()
do
  local file <close> = assert(io.open(script, "w"))
  file:write(PYTHON)
end
local python <close> = io.popen("python3 " .. script .. " 2>/dev/null")
local get, set, each = python:read("n", "n", "n")
os.remove(script)
if get then
  print(("python ctypes: r.x %.1f, r.x = 1.5 %.1f, a[i].x %.1f"):format(get, set, each))
end
