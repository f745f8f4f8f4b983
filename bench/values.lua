-- Values to bytes and back beside python3-msgpack, libmsgpack and the bare
-- building of the same Lua tables, in rounds that take turns. What holds on any
-- machine are the ratios. Arguments: rounds (15).

local ipc = require "ipc"
local values = assert(loadfile "spec/values/values.lua")(ipc)

local rounds = tonumber(arg and arg[1]) or 15
local pack, unpack = ipc.pack, ipc.unpack

local function clock(f, v, times)
  local start = os.clock()
  for _ = 1, times do f(v) end
  return (os.clock() - start) / times * 1e9
end

local function median(list)
  table.sort(list)
  return list[(#list + 1) // 2] or 0 / 0
end

local function program_of()
  local program = os.tmpname()
  for _, lua in ipairs { "-I/usr/include/lua5.4 -llua5.4", "-llua" } do
    for _, library in ipairs { "-lmsgpackc", "-lmsgpack-c" } do -- by version
      local flags = " spec/values/oracle.c " .. library .. " " .. lua .. " 2>/dev/null"
      if os.execute("cc -O2 -o " .. program .. flags) then return program end
    end
  end
  os.remove(program)
end

local program = program_of()
local input = os.tmpname()

-- One line of numbers from an oracle's bench, onto the lists.
local function peer(command, lists)
  local p <close> = io.popen(command .. " bench 1 <" .. input .. " 2>/dev/null")
  local i = 0
  for n in (p:read "a" or ""):gmatch "%S+" do
    i = i + 1
    if lists[i] then table.insert(lists[i], tonumber(n)) end
  end
end

local function measure(name, v)
  local b = pack(v)
  do
    local f <close> = assert(io.open(input, "wb"))
    f:write(b)
  end
  local times = 40000000 // (#b + 200)
  local ours, python, c = { {}, {} }, { {}, {} }, { {}, {}, {} }
  for _ = 1, rounds do
    table.insert(ours[1], clock(pack, v, times))
    table.insert(ours[2], clock(unpack, b, times))
    peer("/usr/bin/python3 spec/values/oracle.py", python)
    if program then peer(program, c) end
  end
  local encode, decode, build = median(ours[1]), median(ours[2]), median(c[3])
  print(("%s, %d bytes; nanoseconds, medians of %d rounds"):format(name, #b, rounds))
  print(("%-22s %10s %10s %10s %10s"):format("", "encode", "ratio", "decode", "ratio"))
  local function row(who, e, d)
    print(("%-22s %10.0f %10.2f %10.0f %10.2f"):format(who, e, encode / e, d, decode / d))
  end
  row("ipc", encode, decode)
  row("python3-msgpack", median(python[1]), median(python[2]))
  row("libmsgpack", median(c[1]), median(c[2]))
  print(("%-22s %10s %10s %10.0f %10.2f"):format("the tables alone, in C", "", "", build, decode / build))
  print()
end

measure("a small request", { 0, 17, "add", { 1, 2 } })
measure("a nested value", values.nested())

os.remove(input)
if program then os.remove(program) end
