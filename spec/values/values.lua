-- Random values, their comparison, and an encoder that picks any format the
-- MessagePack specification allows, not the shortest. Loaded with dofile by the
-- specs and benchmarks of values; it knows ipc only as its argument.

local ipc = ...

local M = {}

-- The same value: of the same subtype, NaN being itself, -0.0 not being 0.0.
-- Tables as keys are equal if some key equals them.
local function same(a, b)
  if type(a) ~= type(b) or math.type(a) ~= math.type(b) then return false end
  if math.type(a) == "float" then return string.pack("d", a) == string.pack("d", b) or a ~= a and b ~= b end
  if type(a) ~= "table" then return a == b end
  local count = 0
  for k, v in next, a do
    count = count + 1
    local other = rawget(b, k)
    if type(k) == "table" or type(k) == "userdata" then
      for k2, v2 in next, b do
        if same(k, k2) and same(v, v2) then other = v2 end
      end
    end
    if other == nil or not same(v, other) then return false end
  end
  for _ in next, b do count = count - 1 end
  return count == 0
end
M.same = same

local random = math.random

local function bytes(n, low, high)
  local t = {}
  for i = 1, n do t[i] = string.char(random(low, high)) end
  return table.concat(t)
end

local lengths = { 0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 255, 256, 300 }
local function length()
  if random(2000) == 1 then return random(65533, 65540) end
  return random(4) == 1 and lengths[random(#lengths)] or random(0, 24)
end

local points = { { 0x20, 0x7e }, { 0x80, 0x7ff }, { 0x800, 0xd7ff }, { 0xe000, 0xffff }, { 0x10000, 0x10ffff } }
local function utf8_string()
  local t = {}
  for i = 1, random(0, 20) do
    local range = points[random(#points)]
    t[i] = utf8.char(random(range[1], range[2]))
  end
  return table.concat(t)
end

local function integer()
  local kind = random(4)
  if kind == 1 then return random(-40, 140) end
  if kind == 2 then return random(math.mininteger, math.maxinteger) end
  local edge = 1 << random(0, 63) -- 1 << 63 is the smallest
  return (random(2) == 1 and edge or -edge) + random(-1, 1)
end

local floats = { 0.0, -0.0, 1 / 0, -1 / 0, 0 / 0, 1.0, -1.0, 3.0, 0.1, 2.0 ^ 53, 2.0 ^ 63, -2.0 ^ 63, 2.0 ^ 64,
  5e-324, 1.7976931348623157e308 }
local function float()
  local kind = random(3)
  if kind == 1 then return floats[random(#floats)] end
  if kind == 2 then return random() * 1000 - 500 end
  local x = string.unpack("d", string.pack("i8", random(math.mininteger, math.maxinteger)))
  return x == x and x or 0 / 0
end

local function text()
  local kind = random(4)
  if kind == 1 then return utf8_string() end
  if kind == 2 then return bytes(length(), 0, 255) end
  return bytes(length(), 0x20, 0x7e)
end

-- The smallest type of a random ext. Python refuses those below 0.
M.ext_low = -128

local function ext()
  local type = random(M.ext_low, 127)
  return ipc.ext(type, bytes(length() % 400, 0, 255))
end

local function key()
  local kind = random(6)
  if kind == 1 then return integer() end
  if kind == 2 then return random(1000) + 0.5 end
  return text()
end

local scalars = { function() return ipc.null end, function() return random(2) == 1 end, integer, integer, float, text,
  text, ext }

local function value(depth)
  if depth <= 0 or random(10) <= 5 then return scalars[random(#scalars)]() end
  local t, n = {}, random(40) == 1 and random(0, 70) or random(0, 6)
  local kind = random(2)
  for _ = 1, n do
    if kind == 1 then t[#t + 1] = value(depth - 1) else t[key()] = value(depth - 1) end
  end
  return kind == 2 and random(4) == 1 and ipc.map(t) or t
end

-- A random value of tables up to `depth` deep; nil is ipc.null.
M.random = value

-- The bytes of a value in formats chosen at random among those that can hold
-- it. Written from the specification's tables, with string.pack.
local function head(n, small, fixed, ...)
  local choices = {}
  if small and n <= small then choices[1] = string.char(fixed + n) end
  for _, format in ipairs { ... } do
    local kind, pack, most = format[1], format[2], format[3]
    if n <= most then choices[#choices + 1] = string.char(kind) .. string.pack(pack, n) end
  end
  return choices[random(#choices)]
end

local function loose_integer(v)
  local choices = { "\xd3" .. string.pack(">i8", v) }
  local function may(low, high, kind, pack)
    if v >= low and v <= high then choices[#choices + 1] = kind .. string.pack(pack, v) end
  end
  may(0, 0x7f, "", "B")
  may(-32, -1, "", "b")
  may(0, 0xff, "\xcc", "B")
  may(0, 0xffff, "\xcd", ">I2")
  may(0, 0xffffffff, "\xce", ">I4")
  may(0, math.maxinteger, "\xcf", ">I8")
  may(-0x80, 0x7f, "\xd0", "b")
  may(-0x8000, 0x7fff, "\xd1", ">i2")
  may(-0x80000000, 0x7fffffff, "\xd2", ">i4")
  return choices[random(#choices)]
end

local function loose(v)
  local kind = math.type(v) or type(v)
  if v == ipc.null then return "\xc0" end
  if kind == "boolean" then return v and "\xc3" or "\xc2" end
  if kind == "integer" then return loose_integer(v) end
  if kind == "float" then
    local four = string.pack(">f", v)
    if string.unpack(">f", four) == v and random(2) == 1 then return "\xca" .. four end
    return "\xcb" .. string.pack(">d", v)
  end
  if kind == "string" then
    if random(2) == 1 then
      return head(#v, 31, 0xa0, { 0xd9, "B", 0xff }, { 0xda, ">I2", 0xffff }, { 0xdb, ">I4", 0xffffffff }) .. v
    end
    return head(#v, nil, nil, { 0xc4, "B", 0xff }, { 0xc5, ">I2", 0xffff }, { 0xc6, ">I4", 0xffffffff }) .. v
  end
  if kind == "userdata" then
    local fixed = { [1] = "\xd4", [2] = "\xd5", [4] = "\xd6", [8] = "\xd7", [16] = "\xd8" }
    local start = random(2) == 1 and fixed[#v.data]
      or head(#v.data, nil, nil, { 0xc7, "B", 0xff }, { 0xc8, ">I2", 0xffff }, { 0xc9, ">I4", 0xffffffff })
    return start .. string.pack("b", v.type) .. v.data
  end
  local t, n = {}, 0
  for k in next, v do
    n = n + 1
    t[n] = k
  end
  if n == #v and random(2) == 1 then
    for i = 1, n do t[i] = loose(v[i]) end
    return head(n, 15, 0x90, { 0xdc, ">I2", 0xffff }, { 0xdd, ">I4", 0xffffffff }) .. table.concat(t)
  end
  for i = 1, n do t[i] = loose(t[i]) .. loose(v[t[i]]) end
  return head(n, 15, 0x80, { 0xde, ">I2", 0xffff }, { 0xdf, ">I4", 0xffffffff }) .. table.concat(t)
end
M.loose = loose

-- The nested value of the benchmarks: 9.4 KB of MessagePack.
function M.nested()
  local list = {}
  for i = 1, 40 do
    list[i] = {
      id = i * 1000003,
      name = "record number " .. i,
      active = i % 2 == 0,
      score = i / 7,
      tags = { "alpha", "beta", "gamma", "tag" .. i },
      position = { x = i * 1.5, y = i * -2.5, z = i },
      history = { i, i + 1, i * 100, i * 10000, -i, -i * 1000, i * 3, i * 5 },
      description = ("lorem ipsum %d "):format(i):rep(5),
    }
  end
  return { version = 1, records = list, next = "page-2" }
end

return M
