-- What is done with the bytes of a memory, beside raw C (bench/bytes.c), beside
-- string.pack and unpack, and beside a C function that does nothing but check
-- its self, as any method must. Nanoseconds for each, on one core. Arguments:
-- seconds for each row (0.3).
-- Run: lua5.4 bench/bytes.lua
local ipc = require "ipc"
package.path = (arg and arg[0] or ""):match "^(.-)[^/]*$" .. "?.lua;" .. package.path
local measure = require "measure"

local seconds = tonumber(arg and arg[1]) or 0.3
local COUNT <const> = 10000
local SIZES <const> = { 64, 4096, 65536, 1 << 20, 16 << 20 }

local SELF <const> = [[
#include <lauxlib.h>
#include <lua.h>
static int nothing(lua_State *L) {
  if (!lua_getmetatable(L, 1) || !lua_rawequal(L, -1, lua_upvalueindex(1)))
    return luaL_error(L, "not mine");
  lua_pushinteger(L, lua_tointeger(L, 2));
  return 1;
}
int luaopen_nothing(lua_State *L) {
  lua_newuserdatauv(L, 8, 0);
  lua_newtable(L);
  lua_newtable(L);
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, nothing, 1);
  lua_setfield(L, -2, "nothing");
  lua_setfield(L, -2, "__index");
  lua_setmetatable(L, -2);
  return 1;
}
]]

local scratch = os.tmpname()
local folder = (arg and arg[0] or "bench/bytes.lua"):match "^(.-)[^/]*$"

local function compile(text, name, flags)
  local include = io.popen ".ci/install --headers 2>/dev/null":read "l" or "/usr/include/lua5.4"
  local cc = ("cc -O2 -pthread %s -isystem %s -x c -o %s -"):format(flags, include:match "%S+", name)
  local compiler = io.popen(cc, "w")
  compiler:write(text)
  return compiler:close()
end

local function object()
  local open = compile(SELF, scratch .. ".so", "-shared -fPIC")
    and package.loadlib(scratch .. ".so", "luaopen_nothing")
  os.remove(scratch .. ".so")
  return open and open()
end

local raw = {} -- what raw C takes: raw(what, bytes)
do
  local file <close> = io.open(folder .. "bytes.c")
  local made = file and compile(file:read "a", scratch .. ".raw", "-I" .. (folder ~= "" and folder or "."))
  setmetatable(raw, { __call = function(_, what, bytes)
    if not made then return end
    local pipe <close> = io.popen(("%s.raw %s %d %g"):format(scratch, what, bytes, seconds))
    return pipe:read "n"
  end })
end

measure.pin(1)

-- The best of batches, which is what the machine can do when others let it.
local function best(batch, count)
  local least, begin = math.huge, ipc.now()
  repeat
    local start = ipc.now()
    batch()
    least = math.min(least, ipc.now() - start)
  until ipc.now() - begin > seconds
  return least / count * 1e9
end

local m, other = assert(ipc.memory(nil, 16 << 20)), assert(ipc.memory(nil, 16 << 20))
m:fill(0x78)
other:fill(0x78)
local part = m:range(64, 64)
local empty = object()
local bytes = string.pack("<d", 1.5)

local loop = best(function() for _ = 1, COUNT do end end, COUNT)

local function row(name, ns, beside, what)
  local ratio = beside and ("%.2f times %s's %.1f"):format(ns / beside, what, beside) or ""
  print(("%-28s %10.1f   %s"):format(name, ns, ratio))
end

local function time(f) return best(f, COUNT) - loop end

local floor = empty and time(function() for i = 1, COUNT do empty:nothing(i) end end)
if floor then row("a method that does nothing", floor) end

local calls = {
  { "m:load(0)", function() for _ = 1, COUNT do m:load(0) end end, "load" },
  { 'm:load(0, "I4")', function() for _ = 1, COUNT do m:load(0, "I4") end end, "load" },
  { "m:store(0, i)", function() for i = 1, COUNT do m:store(0, i) end end, "store" },
  { "m:add(0, 1)", function() for _ = 1, COUNT do m:add(0, 1) end end, "add" },
  { "m:cas(0, i, i)", function() for i = 1, COUNT do m:cas(0, i, i) end end, "add" },
  { "view:load(0)", function() for _ = 1, COUNT do part:load(0) end end, "load" },
}
for _, c in ipairs(calls) do
  row(c[1], time(c[2]), floor, "nothing")
  local ns = raw(c[3], 64)
  if ns then print(("%-28s %10.1f"):format("  raw C", ns)) end
end

local pack, unpack = string.pack, string.unpack
local theirs = time(function() for _ = 1, COUNT do pack("<d", 1.5) end end)
row('string.pack("<d", 1.5)', theirs)
row('m:pack(0, "<d", 1.5)', time(function() for _ = 1, COUNT do m:pack(0, "<d", 1.5) end end), theirs, "string.pack")
theirs = time(function() for _ = 1, COUNT do unpack("<d", bytes) end end)
row('string.unpack("<d", bytes)', theirs)
row('m:unpack(0, "<d")', time(function() for _ = 1, COUNT do m:unpack(0, "<d") end end), theirs, "string.unpack")
theirs = time(function() for i = 1, COUNT do pack("<I4 I4 d d", i, 7, 1.5, 2.5) end end)
row('string.pack("<I4 I4 d d")', theirs)
row('m:pack(0, "<I4 I4 d d")', time(function() for i = 1, COUNT do m:pack(0, "<I4 I4 d d", i, 7, 1.5, 2.5) end end),
  theirs, "string.pack")

for _, size in ipairs(SIZES) do
  local count = (16 << 20) // size + 1
  local ns = best(function() for _ = 1, count do m:copy(0, other, 0, size) end end, count)
  local text = ("m:copy of %d bytes"):format(size)
  row(text, ns, raw("copy", size), "memmove")
  print(("%-28s %10.1f GB/s"):format("", size / ns))
end
for _, size in ipairs { 4096, 1 << 20 } do
  local count = (16 << 20) // size + 1
  local ns = best(function() for _ = 1, count do other:find("needle", 0, size) end end, count)
  row(("m:find in %d bytes"):format(size), ns, raw("find", size), "memmem")
end
os.remove(scratch)
os.remove(scratch .. ".raw")
