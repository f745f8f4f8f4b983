-- Values and bytes. The vectors are the tables of the MessagePack
-- specification written out; the oracles are python3-msgpack and libmsgpack.
-- IPC_LONG=1 gives each oracle a million values.

local ipc = require "ipc"
local values = assert(loadfile "spec/values/values.lua")(ipc)
local same = values.same

local EAGAIN, EPIPE, EBADMSG -- numbers differ between systems
do
  local d <close> = ipc.decoder()
  EAGAIN = select(3, d:get())
  d:feed "\xc1"
  EBADMSG = select(3, d:get())
  d:close()
  EPIPE = select(3, d:get())
end

local seed = math.random(0)
math.randomseed(seed)

local function bytes(hex)
  return (hex:gsub("%s+", ""):gsub("%x%x", function(c) return string.char(tonumber(c, 16)) end))
end

local function hex(s)
  local text = s:sub(1, 80):gsub(".", function(c) return ("%02x"):format(c:byte()) end)
  return #s <= 80 and text or text .. "... " .. #s .. " bytes"
end

local function show(v)
  if type(v) == "string" then return "string " .. hex(v) end
  if math.type(v) == "float" then return ("float %a"):format(v) end
  return tostring(v)
end

local function packs(v, expected, options)
  local b = ipc.pack(v, options)
  assert(b == expected, hex(b) .. " is not " .. hex(expected))
end

local function unpacks(from, expected, options)
  local v, message = ipc.unpack(from, options)
  assert.is_nil(message)
  assert(same(expected, v), hex(from) .. " is " .. show(v) .. ", not " .. show(expected))
  return v
end

local function refuses(from, cause, options)
  local v, message, errno = ipc.unpack(from, options)
  assert.is_nil(v)
  assert.are.equal(EBADMSG, errno)
  assert.matches("^ipc%.unpack: offset %d+: ", message)
  assert.matches(cause, message)
  return message
end

-- Decoding takes at most so many KiB of Lua's memory.
local function costs(limit, from)
  collectgarbage()
  collectgarbage "stop"
  local before = collectgarbage "count"
  ipc.unpack(from)
  local after = collectgarbage "count"
  collectgarbage "restart"
  assert(after - before < limit, hex(from) .. " took " .. after - before .. " KiB")
end

-- Every way to raise blames the caller, whose line comes first.
local function raises(cause, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(cause, message)
  return message
end

local function x(n) return ("x"):rep(n) end

-- {value, its bytes}: the shortest form there is.
local vectors = {
  { ipc.null, "c0" }, { false, "c2" }, { true, "c3" },
  -- positive fixint, uint 8, 16, 32, 64
  { 0, "00" }, { 1, "01" }, { 126, "7e" }, { 127, "7f" },
  { 128, "cc80" }, { 129, "cc81" }, { 255, "ccff" },
  { 256, "cd0100" }, { 257, "cd0101" }, { 65535, "cdffff" },
  { 65536, "ce00010000" }, { 65537, "ce00010001" }, { 4294967295, "ceffffffff" },
  { 4294967296, "cf0000000100000000" }, { 4294967297, "cf0000000100000001" },
  { 9007199254740993, "cf0020000000000001" },
  { math.maxinteger - 1, "cf7ffffffffffffffe" }, { math.maxinteger, "cf7fffffffffffffff" },
  -- negative fixint, int 8, 16, 32, 64
  { -1, "ff" }, { -2, "fe" }, { -31, "e1" }, { -32, "e0" },
  { -33, "d0df" }, { -34, "d0de" }, { -127, "d081" }, { -128, "d080" },
  { -129, "d1ff7f" }, { -130, "d1ff7e" }, { -32767, "d18001" }, { -32768, "d18000" },
  { -32769, "d2ffff7fff" }, { -2147483647, "d280000001" }, { -2147483648, "d280000000" },
  { -2147483649, "d3ffffffff7fffffff" }, { math.mininteger + 1, "d38000000000000001" },
  { math.mininteger, "d38000000000000000" },
  -- float 64
  { 0.0, "cb0000000000000000" }, { -0.0, "cb8000000000000000" }, { 1.0, "cb3ff0000000000000" },
  { 3.0, "cb4008000000000000" }, { -1.5, "cbbff8000000000000" }, { 0.1, "cb3fb999999999999a" },
  { 1 / 0, "cb7ff0000000000000" }, { -1 / 0, "cbfff0000000000000" }, { 2.0 ^ 63, "cb43e0000000000000" },
  { -2.0 ^ 63, "cbc3e0000000000000" }, { 5e-324, "cb0000000000000001" },
  { 1.7976931348623157e308, "cb7fefffffffffffff" },
  -- fixstr, str 8, 16, 32
  { "", "a0" }, { "a", "a161" }, { "\0", "a100" }, { x(30), "be" .. ("78"):rep(30) }, { x(31), "bf" .. ("78"):rep(31) },
  { x(32), "d920" .. ("78"):rep(32) }, { x(33), "d921" .. ("78"):rep(33) }, { x(255), "d9ff" .. ("78"):rep(255) },
  { x(256), "da0100" .. ("78"):rep(256) }, { x(65535), "daffff" .. ("78"):rep(65535) },
  { x(65536), "db00010000" .. ("78"):rep(65536) },
  { "\u{e9}", "a2c3a9" }, { "\u{20ac}", "a3e282ac" }, { "\u{10ffff}", "a4f48fbfbf" },
  -- bin 8, 16, 32
  { "\xff", "c401ff" }, { x(254) .. "\x80", "c4ff" .. ("78"):rep(254) .. "80" },
  { x(255) .. "\x80", "c50100" .. ("78"):rep(255) .. "80" },
  { x(65534) .. "\x80", "c5ffff" .. ("78"):rep(65534) .. "80" },
  { x(65535) .. "\x80", "c600010000" .. ("78"):rep(65535) .. "80" },
  -- fixext 1, 2, 4, 8, 16, ext 8, 16, 32
  { ipc.ext(1, "a"), "d40161" }, { ipc.ext(2, "ab"), "d5026162" }, { ipc.ext(127, "abcd"), "d67f61626364" },
  { ipc.ext(-128, x(8)), "d780" .. ("78"):rep(8) }, { ipc.ext(-1, x(16)), "d8ff" .. ("78"):rep(16) },
  { ipc.ext(0, ""), "c70000" }, { ipc.ext(5, "abc"), "c70305616263" }, { ipc.ext(5, x(5)), "c70505" .. ("78"):rep(5) },
  { ipc.ext(5, x(7)), "c70705" .. ("78"):rep(7) }, { ipc.ext(5, x(9)), "c70905" .. ("78"):rep(9) },
  { ipc.ext(5, x(15)), "c70f05" .. ("78"):rep(15) }, { ipc.ext(5, x(17)), "c71105" .. ("78"):rep(17) },
  { ipc.ext(5, x(255)), "c7ff05" .. ("78"):rep(255) }, { ipc.ext(5, x(256)), "c8010005" .. ("78"):rep(256) },
  { ipc.ext(5, x(65535)), "c8ffff05" .. ("78"):rep(65535) },
  { ipc.ext(5, x(65536)), "c90001000005" .. ("78"):rep(65536) },
  -- fixarray, array 16, 32
  { {}, "90" }, { { 1 }, "9101" }, { { 1, "a", true, 1.0 }, "9401a161c3cb3ff0000000000000" },
  { { {}, { {} } }, "92909190" }, { { false }, "91c2" },
  -- fixmap
  { ipc.map {}, "80" }, { { a = 1 }, "81a16101" }, { ipc.map { 1 }, "810101" }, { { [0] = 1 }, "810001" },
  { { [-1] = 1 }, "81ff01" }, { { [0.5] = 1 }, "81cb3fe000000000000001" }, { { [true] = 1 }, "81c301" },
  { { [false] = 1 }, "81c201" }, { { [2] = 1 }, "810201" }, { { ["\xff"] = "\xff" }, "81a1ffc401ff" },
  { { [x(32)] = 1 }, "81d920" .. ("78"):rep(32) .. "01" },
  { { a = ipc.map {} }, "81a16180" }, { { a = { {} } }, "81a1619190" },
}

local function list(n)
  local t, b = {}, {}
  for i = 1, n do t[i], b[i] = 7, "07" end
  return t, table.concat(b)
end

for _, n in ipairs { 15, 16, 17, 255, 65535, 65536 } do
  local t, b = list(n)
  local head = n < 16 and ("%02x"):format(0x90 + n) or n < 65536 and ("dc%04x"):format(n) or ("dd%08x"):format(n)
  vectors[#vectors + 1] = { t, head .. b }
end

-- {bytes that are longer than need be, their value}
local loose = {
  { "cc00", 0 }, { "cc7f", 127 }, { "cd0000", 0 }, { "cd00ff", 255 }, { "ce00000000", 0 }, { "ce0000ffff", 65535 },
  { "cf0000000000000000", 0 }, { "cf00000000ffffffff", 4294967295 },
  { "d000", 0 }, { "d07f", 127 }, { "d0ff", -1 }, { "d0e0", -32 }, { "d10000", 0 }, { "d17fff", 32767 },
  { "d1ffff", -1 }, { "d1ff80", -128 }, { "d200000000", 0 }, { "d27fffffff", 2147483647 }, { "d2ffffffff", -1 },
  { "d2ffff8000", -32768 }, { "d30000000000000000", 0 }, { "d37fffffffffffffff", math.maxinteger },
  { "d3ffffffffffffffff", -1 }, { "d3ffffffff80000000", -2147483648 },
  { "ca00000000", 0.0 }, { "ca80000000", -0.0 }, { "ca3f800000", 1.0 }, { "cabfc00000", -1.5 },
  { "ca7f800000", 1 / 0 }, { "caff800000", -1 / 0 }, { "ca7fc00000", 0 / 0 }, { "ca00000001", 2.0 ^ -149 },
  { "ca7f7fffff", 0x1.fffffep+127 }, { "cb7ff8000000000000", 0 / 0 }, { "cbfff0000000000001", 0 / 0 },
  { "d900", "" }, { "d90161", "a" }, { "da0000", "" }, { "da000161", "a" }, { "db00000000", "" },
  { "db0000000161", "a" }, { "c400", "" }, { "c40161", "a" }, { "c50000", "" }, { "c5000161", "a" },
  { "c600000000", "" }, { "c60000000161", "a" }, { "a1ff", "\xff" }, { "a3eda080", "\xed\xa0\x80" },
  { "c7010561", ipc.ext(5, "a") }, { "c800010561", ipc.ext(5, "a") }, { "c9000000010561", ipc.ext(5, "a") },
  { "c8000005", ipc.ext(5, "") }, { "c90000000005", ipc.ext(5, "") },
  { "dc0000", {} }, { "dc000101", { 1 } }, { "dd00000000", {} }, { "dd0000000101", { 1 } },
  { "de0000", {} }, { "de0001a16101", { a = 1 } }, { "df00000000", {} }, { "df00000001a16101", { a = 1 } },
  { "81c4016101", { a = 1 } }, { "81cb3ff000000000000001", { 1 } }, { "82010101a0", { "" } },
}

describe("the bytes of a value", function()
  it("are the shortest form of the specification, and come back as the same value", function()
    for _, v in ipairs(vectors) do
      packs(v[1], bytes(v[2]))
      unpacks(bytes(v[2]), v[1])
    end
  end)

  it("may be longer than need be when they come from others", function()
    for _, v in ipairs(loose) do unpacks(bytes(v[1]), v[2]) end
  end)

  it("have a head that grows with the number of pairs #slow", function()
    for _, n in ipairs { 14, 15, 16, 17, 255, 300, 1024, 65535, 65536, 70000 } do
      local t = {}
      for i = 1, n do t["k" .. i] = { i } end
      local b = ipc.pack(t)
      local head = n < 16 and string.pack("B", 0x80 + n) or n < 65536 and string.pack(">BI2", 0xde, n)
        or string.pack(">BI4", 0xdf, n)
      assert.are.equal(hex(head), hex(b:sub(1, #head)))
      unpacks(b, t)
    end
  end)

  it("may be of a map that holds maps, both of every size of head", function()
    for _, n in ipairs { 1, 15, 16, 17, 40 } do
      local outer = {}
      for i = 1, n do
        outer["o" .. i] = {}
        for k = 1, n do outer["o" .. i]["i" .. k] = i * k end
      end
      unpacks(ipc.pack(outer), outer)
    end
  end)

  it("are nil's at the top, which comes back as ipc.null", function()
    packs(nil, "\xc0")
    packs(ipc.null, "\xc0")
    assert.are.equal(ipc.null, ipc.unpack "\xc0")
  end)

  it("are asked for with a value", function()
    raises("bad argument #1 to '[%w.]*pack'", ipc.pack)
    raises("bad argument #1 to '[%w.]*unpack'", ipc.unpack)
    raises("bad argument #1 to '[%w.]*unpack'", ipc.unpack, 12)
  end)
end)

describe("strings", function()
  local invalid = { "80", "bf", "c0", "c080", "c1bf", "c2", "c27f", "c2c0", "e0", "e080", "e08080", "e09fbf", "e0a0",
    "e0a07f", "eda080", "edbfbf", "efbf", "f0", "f0808080", "f08fbfbf", "f09080", "f490808080", "f4908080", "f5808080",
    "f8888080", "fe", "ff", "61ff", "6161616161616161ff", "616161616161616180", "c3a9c3" }
  local valid = { "7f", "c280", "dfbf", "e0a080", "ecbfbf", "ed9fbf", "ee8080", "efbfbf", "f0908080", "f3bfbfbf",
    "f48fbfbf", "6161616161616161c3a9", "616161616161c3a96161" }

  it("are str if they are UTF-8, else bin", function()
    for _, s in ipairs(valid) do packs(bytes(s), string.char(0xa0 + #s // 2) .. bytes(s)) end
    for _, s in ipairs(invalid) do packs(bytes(s), "\xc4" .. string.char(#s // 2) .. bytes(s)) end
  end)

  it("are told from bin wherever in the string the bad byte is", function()
    for n = 0, 40 do
      for at = 1, n do
        local s = x(at - 1) .. "\x80" .. x(n - at)
        packs(s, "\xc4" .. string.char(n) .. s)
      end
    end
  end)

  it("are str or bin on request, but keys are str", function()
    packs("a", bytes "c40161", { strings = "bin" })
    packs("\xff", bytes "a1ff", { strings = "str" })
    packs("\xff", bytes "c401ff", {})
    packs({ a = "b" }, bytes "81a161c40162", { strings = "bin" })
    packs({ ["\xff"] = "\xff" }, bytes "81a1ffa1ff", { strings = "str" })
    packs({ { "a" } }, bytes "9191c40161", { strings = "bin" })
  end)

  it("are never made of numbers", function()
    packs({ "1", 1, "1.0", 1.0 }, bytes "94a13101a3312e30cb3ff0000000000000")
    packs({ ["1"] = 1 }, bytes "81a13101")
  end)
end)

describe("numbers", function()
  it("keep their subtype", function()
    assert.are.equal("float", math.type(ipc.unpack(ipc.pack(3.0))))
    assert.are.equal("integer", math.type(ipc.unpack(ipc.pack(3))))
    assert.are.equal("float", math.type(ipc.unpack(ipc.pack(-0.0))))
  end)

  it("that are NaN stay NaN", function()
    local v = ipc.unpack(ipc.pack(0 / 0))
    assert.is_true(v ~= v)
  end)

  it("above 2^63-1 are floats, an error, or negative, as asked", function()
    unpacks(bytes "cf8000000000000000", 2.0 ^ 63)
    unpacks(bytes "cf8000000000000000", 2.0 ^ 63, { uint64 = "float" })
    unpacks(bytes "cfffffffffffffffff", 2.0 ^ 64)
    unpacks(bytes "cf8000000000000000", math.mininteger, { uint64 = "wrap" })
    unpacks(bytes "cfffffffffffffffff", -1, { uint64 = "wrap" })
    unpacks(bytes "cf7fffffffffffffff", math.maxinteger, { uint64 = "error" })
    refuses(bytes "cf8000000000000000", "above 2%^63%-1", { uint64 = "error" })
    refuses(bytes "91cfffffffffffffffff", "offset 1: .*above 2%^63%-1", { uint64 = "error" })
  end)
end)

describe("a table", function()
  it("is an array if its keys are exactly 1..n, however it came to them", function()
    for n = 1, 70 do
      local up, down, odd = {}, {}, {}
      for i = 1, n do up[i] = i end
      for i = n, 1, -1 do down[i] = i end
      for i = 1, n, 2 do odd[i] = i end
      for i = 2, n, 2 do odd[i] = i end
      local shrunk = table.move(up, 1, n, 1, {})
      for i = n + 1, 2 * n do shrunk[i] = i end
      for i = 2 * n, n + 1, -1 do shrunk[i] = nil end
      local mixed = { x = 1 }
      for i = 1, n do mixed[i] = i end
      mixed.x = nil
      local expected = ipc.pack(table.move(up, 1, n, 1, {}))
      assert.are.equal(n, #ipc.unpack(expected))
      for _, t in ipairs { up, down, odd, shrunk, mixed } do packs(t, expected) end
    end
  end)

  it("is a map if it has any other key", function()
    for n = 1, 70 do
      for _, key in ipairs { "x", "1", 0, -1, n + 2, 2.5, true, math.maxinteger, math.mininteger } do
        local t = { [key] = "extra" }
        for i = 1, n do t[i] = i end
        local b = ipc.pack(t)
        assert.are.equal(n + 1 < 16 and 0x80 + n + 1 or 0xde, b:byte())
        unpacks(b, t)
      end
    end
  end)

  it("is a map if it has a hole", function()
    for n = 3, 40 do
      for hole = 1, n - 1 do
        local t = {}
        for i = 1, n do t[i] = i end
        t[hole] = nil
        local b = ipc.pack(t)
        assert.are.equal(n - 1 < 16 and 0x80 + n - 1 or 0xde, b:byte())
        unpacks(b, t)
      end
    end
  end)

  it("is decided on before its tables are written, so that no nesting makes it slow", function()
    -- Were each level written once as an array and again as a map, these would
    -- be 2^20 and more times the innermost.
    for _, around in ipairs {
      function(t) return { t, t = 1 } end,
      function(t) return { 1, t, 3, ["4"] = 4 } end,
      function(t) return { t, 2, [4] = 4 } end,
      function(t) return { [3] = 3, [1] = t } end,
      function(t) return { t, [0] = 0 } end,
      function(t) return { n = 2, t, 2 } end,
    } do
      for _, depth in ipairs { 20, 60 } do
        local t = { 1 }
        for _ = 1, depth do t = around(t) end
        local b = ipc.pack(t)
        assert(#b < depth * 20)
        unpacks(b, t)
      end
    end
  end)

  it("is an array or a map by its keys, not by how Lua keeps them", function()
    packs({ [2] = "b", [1] = "a" }, bytes "92a161a162")
    packs({ [3] = 3, [2] = 2, [1] = 1 }, bytes "93010203")
    packs({ 1, [2] = 2, [3] = 3 }, bytes "93010203")
    local late = { nil, 2 }
    late[1] = 1
    packs(late, bytes "920102")
    packs({ 1, 2, nil, nil }, bytes "920102")
    packs({ 1, [2.0] = 2 }, bytes "920102")
    packs({ nil, nil, 3 }, bytes "810303")
    packs({ [2] = 2 }, bytes "810202")
    packs({ [0] = 0 }, bytes "810000")
    unpacks(ipc.pack { 1, ["2"] = 2, [3] = 3 }, { 1, ["2"] = 2, [3] = 3 })
    unpacks(ipc.pack { 1, 2, ["3"] = 3 }, { 1, 2, ["3"] = 3 })
    unpacks(ipc.pack { [1 << 32] = 1, [1] = 2 }, { [1 << 32] = 1, [1] = 2 })
  end)

  it("is an array however much was taken from its end, and a map if from elsewhere", function()
    for n = 2, 40 do
      for left = 1, n - 1 do
        local short, holed = {}, {}
        for i = 1, n do short[i], holed[i] = { i }, { i } end
        for i = n, left + 1, -1 do short[i] = nil end
        for i = left, n - 1 do holed[i] = nil end
        local b = ipc.pack(short)
        assert.are.equal(left < 16 and 0x90 + left or 0xdc, b:byte())
        unpacks(b, short)
        b = ipc.pack(holed)
        assert.are.equal(left < 16 and 0x80 + left or 0xde, b:byte())
        unpacks(b, holed)
      end
    end
  end)

  it("is written from its start again when it turns out to be a map, and nothing else is", function()
    local t = { 1, "two", 3.5, { 4 }, x = { 5 } }
    for _, v in ipairs { { t }, { "before", t, "after" }, { a = { t, t }, b = { 1, { 2, t } } } } do
      unpacks(ipc.pack(v), v)
    end
    local long = {}
    for i = 1, 1000 do long[i] = i end
    long[1001], long.x = { 1 }, 1
    unpacks(ipc.pack { long, long }, { long, long })
  end)

  it("is an array when empty, and a map when marked", function()
    packs({}, "\x90")
    packs(ipc.map {}, "\x80")
    packs(ipc.array {}, "\x90")
    packs({ a = ipc.map {}, }, bytes "81a16180")
  end)

  it("that came as an empty map goes as one", function()
    for _, b in ipairs { "80", "9180", "81a16180", "928090" } do
      packs(ipc.unpack(bytes(b)), bytes(b))
    end
    packs(ipc.unpack(bytes "de0000"), "\x80")
    packs(ipc.unpack(bytes "81a161c0"), "\x80")
    packs(ipc.unpack(bytes "82a16101a161c0"), "\x80")
  end)

  it("that came as a map with the key 1 goes as one", function()
    packs(ipc.unpack(bytes "810105"), bytes "810105")
    packs(ipc.unpack(bytes "81cb3ff000000000000005"), bytes "810105")
  end)

  it("that came as an array with nils goes as one", function()
    packs(ipc.unpack(bytes "9301c003"), bytes "9301c003")
    packs(ipc.unpack(bytes "92c001"), bytes "92c001")
  end)

  it("may be a key", function()
    local v = ipc.unpack(ipc.pack { [{ 1, 2 }] = { 3 } })
    local key, value = next(v)
    assert(same(key, { 1, 2 }) and same(value, { 3 }))
    unpacks(bytes "8181a16101c3", { [{ a = 1 }] = true })
    unpacks(bytes "819001", { [{}] = 1 })
    local t = { [{ { 1 }, { [{ "deep" }] = {} } }] = "v", [{ a = 1 }] = { {} }, z = 0 }
    unpacks(ipc.pack(t), t)
  end)

  it("is taken raw: its metatable does not count and never runs", function()
    local function never() error "a metamethod ran" end
    local meta = setmetatable({}, { __index = never })
    for _, name in ipairs { "__index", "__newindex", "__pairs", "__len", "__eq", "__tostring", "__call", "__name",
      "__metatable", "__close" } do
      meta[name] = never
    end
    packs(setmetatable({ 1, 2 }, meta), bytes "920102")
    packs({ a = setmetatable({ b = 1 }, meta) }, bytes "81a16181a16201")
    local bad = setmetatable({ print }, meta)
    raises("value%[1%]: a function cannot be packed", ipc.pack, bad)
  end)

  it("may be shared, and is then two tables", function()
    local t = { 1 }
    packs({ t, t }, bytes "9291019101")
  end)
end)

describe("ipc.null", function()
  it("is packed as nil", function()
    packs({ ipc.null, a = ipc.null }, ipc.pack(ipc.map { ipc.null, a = ipc.null }))
    packs({ 1, ipc.null }, bytes "9201c0")
    packs({ a = ipc.null }, bytes "81a161c0")
  end)

  it("comes back inside tables on request; else nothing does", function()
    local v = unpacks(bytes "9301c003", { 1, ipc.null, 3 }, { nulls = true })
    assert.are.equal(3, #v)
    unpacks(bytes "9301c003", { [1] = 1, [3] = 3 })
    unpacks(bytes "9301c003", { [1] = 1, [3] = 3 }, { nulls = false })
    unpacks(bytes "81a161c0", { a = ipc.null }, { nulls = true })
    unpacks(bytes "82a161c0a16201", { b = 1 })
  end)

  it("is true and equals only itself", function()
    assert.is_truthy(ipc.null)
    assert.is_true(ipc.null == ipc.unpack "\xc0")
    assert.is_false(ipc.null == false)
  end)
end)

describe("ipc.array", function()
  it("packs what is missing as nil", function()
    packs(ipc.array { 1, nil, 3 }, bytes "9301c003")
    packs(ipc.array { [3] = 3 }, bytes "93c0c003")
    packs(ipc.array { { 1 }, nil, { 3 } }, bytes "939101c09103")
  end)

  it("takes the length from a field n", function()
    packs(ipc.array(table.pack(nil, nil)), bytes "92c0c0")
    packs(ipc.array(table.pack()), "\x90")
    packs(ipc.array { n = 0, 1, 2 }, bytes "920102")
  end)

  it("returns the table it marks", function()
    local t = {}
    assert.are.equal(t, ipc.array(t))
    assert.are.equal(t, ipc.map(t))
    packs(t, "\x80")
    assert.are.equal(t, ipc.array(t))
    packs(t, "\x90")
  end)

  it("refuses keys that an array cannot have", function()
    raises("value%.x: not an index", ipc.pack, ipc.array { x = 1 })
    raises("value%[0%]: not an index", ipc.pack, ipc.array { [0] = 1 })
    raises("value%[1.5%]: not an index", ipc.pack, ipc.array { [1.5] = 1 })
    raises("value%.a%.n: not an index", ipc.pack, { a = ipc.array { n = -1 } })
    raises("value%.n: not an index", ipc.pack, ipc.array { n = "1" })
    raises("value%[1152921504606846976%]: too many nils", ipc.pack, ipc.array { [1 << 60] = 1 })
    raises("too many nils", ipc.pack, ipc.array { n = math.maxinteger })
  end)

  it("leaves tables with another metatable alone, and so does ipc.map", function()
    for _, mark in ipairs { ipc.array, ipc.map } do
      raises("bad argument #1 .*metatable", mark, setmetatable({}, {}))
      raises("bad argument #1 .*table expected", mark, 1)
      raises("bad argument #1 .*table expected", mark)
    end
  end)
end)

describe("ipc.ext", function()
  it("has a type and data, and equals by both", function()
    local e = ipc.ext(7, "data")
    assert.are.equal(7, e.type)
    assert.are.equal("data", e.data)
    assert.is_nil(e.other)
    assert.is_true(e == ipc.ext(7, "data"))
    assert.is_false(e == ipc.ext(8, "data"))
    assert.is_false(e == ipc.ext(7, "dato"))
    assert.is_false(e == ipc.ext(7, "dat"))
    assert.is_false(e == io.stdout)
    assert.are.equal("ipc.ext: type 7, 4 bytes", tostring(e))
    assert.is_false(pcall(function() e.type = 8 end))
  end)

  it("survives a round trip whatever its type, timestamps good and bad included", function()
    for type = -128, 127 do
      for _, n in ipairs { 0, 1, 2, 3, 4, 8, 12, 16 } do
        local e = ipc.ext(type, x(n))
        assert.is_true(e == ipc.unpack(ipc.pack(e)))
      end
    end
  end)

  it("may be a key", function()
    local v = ipc.unpack(ipc.pack { [ipc.ext(1, "k")] = 5 })
    local key, value = next(v)
    assert.is_true(key == ipc.ext(1, "k"))
    assert.are.equal(5, value)
  end)

  it("refuses what is no ext", function()
    raises("#1 .*%-128", ipc.ext, 128, "")
    raises("#1 .*%-128", ipc.ext, -129, "")
    raises("#1 .*integer", ipc.ext, 1.0, "")
    raises("#1 .*integer", ipc.ext, "1", "")
    raises("#2 .*string", ipc.ext, 1)
    raises("#2 .*string", ipc.ext, 1, 2)
    local meta = getmetatable(ipc.ext(1, ""))
    raises("ipc%.ext expected", meta.__index, io.stdout, "type")
    raises("ipc%.ext expected", meta.__tostring, {})
  end)
end)

describe("what cannot be packed", function()
  it("is named with the way to it", function()
    local thread = coroutine.create(print)
    for _, case in ipairs {
      { print, "value: a function cannot be packed" },
      { { print }, "value%[1%]: a function" },
      { { jobs = { 1, 2, { callback = print } } }, "value%.jobs%[3%]%.callback: a function cannot be packed$" },
      { { { 1, { 2, thread } } }, "value%[1%]%[2%]%[2%]: a thread" },
      { { a = { [10] = io.stdout } }, "value%.a%[10%]: a FILE%*" },
      { { ["not a name"] = print }, 'value%["not a name"%]: a function' },
      { { ["1"] = print }, 'value%["1"%]: a function' },
      { { [""] = print }, 'value%[""%]: a function' },
      { { ['"\n\\'] = print }, 'value%["%?%?%?"%]: a function' },
      { { [x(100)] = print }, 'value%["x+%.%.%."%]: a function' },
      { { [true] = print }, "value%[true%]: a function" },
      { { [1.5] = print }, "value%[1.5%]: a function" },
      { { [ipc.ext(1, "")] = print }, "value%[userdata%]: a function" },
      { { [{}] = print }, "value%[table%]: a function" },
      { { [print] = 1 }, "value%[function%]: a function cannot be packed as a key" },
      { { [io.stdout] = 1 }, "FILE%* cannot be packed as a key" },
      { { [ipc.null] = 1 }, "ipc.null cannot be packed as a key" },
      { { [{ print }] = 1 }, "value%[table%] %(the key itself%)%[1%]: a function" },
      { { 1, x = { 1, nil, print } }, "value%.x%[3%]: a function" },
      { { { 1 }, { 2 }, print }, "value%[3%]: a function" },
      { ipc.array { nil, { print } }, "value%[2%]%[1%]: a function" },
      { { 1, 2, print, x = 1 }, "value%[3%]: a function" },
      { { { 1, { print } }, x = 1 }, "value%[1%]%[2%]%[1%]: a function" },
      { { 1, { 2, { 3, print, 5 }, x = 1 }, y = 1 }, "value%[2%]%[2%]%[2%]: a function" },
      { { [3] = 3, [1] = { a = print } }, "value%[1%]%.a: a function" },
      { { [2] = { 1, print }, [1] = 1 }, "value%[2%]%[2%]: a function" },
      { { (ipc.decoder()) }, "value%[1%]: an ipc.decoder cannot be packed" },
    } do
      raises(case[2], ipc.pack, case[1])
    end
  end)

  it("is blamed on the line that called pack", function()
    local ok, message = pcall(function() return "not a tail call", ipc.pack(print) end)
    assert.is_false(ok)
    assert.matches("^spec/values_spec.lua:%d+: value: ", message)
  end)

  it("is a cycle, told from depth", function()
    local t = { 1 }
    t[2] = t
    raises("value%[2%]: a cycle, back to value$", ipc.pack, t)
    local u = { a = { b = {} } }
    u.a.b.c = u.a
    raises("value%.a%.b%.c: a cycle, back to value%.a$", ipc.pack, u)
    local k = {}
    k[k] = 1
    raises("a cycle, back to value$", ipc.pack, k)
    local mixed = { 1, { 2, x = 1 }, x = 1 }
    mixed[2][2] = mixed[2]
    raises("value%[2%]%[2%]: a cycle, back to value%[2%]$", ipc.pack, mixed)
  end)

  it("is nested deeper than 64", function()
    local function nest(n)
      local t = 1
      for _ = 1, n do t = { t } end
      return t
    end
    packs(nest(64), ("\x91"):rep(64) .. "\1")
    raises("nested deeper than 64", ipc.pack, nest(65))
    raises("nested deeper than 64", ipc.pack, nest(100000))
  end)

  it("does no harm to the next call", function()
    for _ = 1, 100 do
      raises("a function", ipc.pack, { x(1000), { a = { print } } })
      packs({ 1 }, bytes "9101")
    end
  end)
end)

describe("options", function()
  it("that nobody knows raise", function()
    raises("#2 .*unknown option 'string'", ipc.pack, 1, { string = "str" })
    raises("#2 .*unknown option 'nulls'", ipc.pack, 1, { nulls = true })
    raises("#2 .*unknown option", ipc.pack, 1, { "str" })
    raises("#2 .*unknown option 'null'", ipc.unpack, "\1", { null = true })
    raises("#2 .*names of options", ipc.unpack, "\1", { true })
    raises("#1 .*unknown option 'strings'", ipc.decoder, { strings = "str" })
  end)

  it("of the wrong kind raise", function()
    raises("#2 .*table expected", ipc.pack, 1, "str")
    raises("#2 .*'strings'", ipc.pack, 1, { strings = "utf8" })
    raises("#2 .*'strings'", ipc.pack, 1, { strings = true })
    raises("#2 .*table expected", ipc.unpack, "\1", true)
    raises("#1 .*table expected", ipc.decoder, 1)
    local all = { nulls = 1, uint64 = "double", bytes = 0, depth = -1, values = 0, tables = "1", keys = 1.5 }
    for name, wrong in pairs(all) do
      raises("#2 .*'" .. name .. "'", ipc.unpack, "\1", { [name] = wrong })
      raises("#1 .*'" .. name .. "'", ipc.decoder, { [name] = wrong })
    end
    raises("'depth'", ipc.unpack, "\1", { depth = 1 << 40 })
    raises("'values'", ipc.unpack, "\1", { values = 1 << 40 })
  end)

  it("may be absent or nil", function()
    packs(1, "\1", nil)
    unpacks("\1", 1, nil)
    unpacks("\1", 1, {})
  end)
end)

describe("bytes that are no value", function()
  it("are refused with the offset and the cause", function()
    refuses("", "offset 0: cut short")
    refuses("\xc1", "offset 0: byte c1")
    refuses("\x93\1\2\xc1", "offset 3: byte c1")
    refuses("\1\2", "offset 1: 1 bytes after the value")
    refuses("GET / HTTP/1.1\r\n\r\n", "offset 1: 17 bytes after")
    refuses("\x16\3\1\2\0\1\0\1\xfc\3\3", "offset 1: 10 bytes after")
  end)

  it("are refused wherever they are cut #slow", function()
    for _, vector in ipairs(vectors) do
      local b = bytes(vector[2])
      local step = #b < 600 and 1 or #b // 97
      for n = 0, #b - 1, step do refuses(b:sub(1, n), "offset") end
      refuses(b:sub(1, #b - 1), "offset")
      refuses(b .. "\0", "1 bytes after")
    end
    for _, vector in ipairs(loose) do
      local b = bytes(vector[1])
      for n = 0, #b - 1 do refuses(b:sub(1, n), "offset") end
    end
  end)

  it("have nil or NaN as a key", function()
    refuses(bytes "81c001", "offset 1: nil as a key")
    refuses(bytes "81c001", "offset 1: nil as a key", { nulls = true })
    refuses(bytes "82a16101c001", "offset 4: nil as a key")
    refuses(bytes "81cb7ff800000000000001", "offset 1: NaN as a key")
    refuses(bytes "81ca7fc0000001", "offset 1: NaN as a key")
  end)

  it("announce more elements than there are bytes", function()
    local huge = { "ddffffffff", "dfffffffff", "dfffffffffa0c0", "dcffff", "deffff00", "df80000000", "92dd00000002",
      "dd7fffffff", "9f", "8f00", "81a161dfffffffff", "dbffffffff", "c6ffffffff", "c9ffffffff", "c9ffffffff00",
      "daffff", "dbffffffff61", "d9ff", "bf", "c4ff", "c5ffff", "c7ffff", "c8ffff00", "d800", "9291939495" }
    for _, b in ipairs(huge) do
      refuses(bytes(b), "offset")
      costs(8, bytes(b))
    end
  end)

  it("announce elements again and again, and cost no more than their own length", function()
    -- Each level alone would fit into what is left; together they do not.
    local b = ("\xdc\4\0"):rep(60) .. x(1000)
    refuses(b, "offset 3: an array of 1024 elements")
    costs(64, b)
  end)

  it("are nested too deep", function()
    unpacks(("\x91"):rep(63) .. "\x90", assert(load("return " .. ("{"):rep(64) .. ("}"):rep(64)))())
    refuses(("\x91"):rep(64) .. "\x90", "offset 64: nested deeper than 64")
    for _, head in ipairs { "\x91", "\x81", "\x81\0", "\xdd\0\0\0\1", "\x81\xa0" } do
      refuses(head:rep(1000000), "nested deeper than 64")
    end
    refuses(("\x91"):rep(33), "offset 32: an array of 1 elements, more than bytes left")
    unpacks("\1", 1, { depth = 0 })
    refuses("\x90", "nested deeper than 0", { depth = 0 })
    unpacks("\x90", {}, { depth = 1 })
    local deep = ipc.unpack(("\x91"):rep(9999) .. "\x90", { depth = 10000 })
    for _ = 1, 9999 do deep = deep[1] end
    assert(same({}, deep))
  end)

  it("are more than allowed", function()
    unpacks(ipc.pack(x(97)), x(97), { bytes = 99 })
    refuses(ipc.pack(x(98)), "more than 99 bytes", { bytes = 99 })
    refuses("\xdb" .. string.pack(">I4", 16 * 1024 * 1024 - 4) .. x(16 * 1024 * 1024 - 4), "more than 16777216 bytes")
    assert.are.equal(16 * 1024 * 1024 - 5,
      #ipc.unpack("\xdb" .. string.pack(">I4", 16 * 1024 * 1024 - 5) .. x(16 * 1024 * 1024 - 5)))
  end)

  it("are too many values", function()
    local million = "\xdd" .. string.pack(">I4", 999999) .. ("\0"):rep(999999)
    assert.are.equal(999999, #ipc.unpack(million))
    refuses("\xdd" .. string.pack(">I4", 1000000) .. ("\0"):rep(1000000), "offset 0: more than 1000000 values")
    unpacks(bytes "93010203", { 1, 2, 3 }, { values = 4 })
    refuses(bytes "93010203", "more than 3 values", { values = 3 })
    unpacks(bytes "82a16101a16202", { a = 1, b = 2 }, { values = 5 })
    refuses(bytes "82a16101a16202", "more than 4 values", { values = 4 })
    refuses(bytes "9291019102", "offset 3: more than 4 values", { values = 4 })
  end)

  it("are too many tables", function()
    local function tables(n, element) return "\xdd" .. string.pack(">I4", n) .. element:rep(n) end
    for _, element in ipairs { "\x90", "\x80", "\xd4\0\0" } do
      assert.are.equal(99999, #ipc.unpack(tables(99999, element)))
      refuses(tables(100000, element), "more than 100000 tables")
      refuses(tables(3, element), "more than 3 tables", { tables = 3 })
      assert.are.equal(3, #ipc.unpack(tables(3, element), { tables = 4 }))
    end
  end)

  it("have too many keys that are not strings in one map", function()
    local function map(n, key)
      local t = {}
      for i = 1, n do t[i] = key(i) .. "\0" end
      return "\xdf" .. string.pack(">I4", n) .. table.concat(t)
    end
    local function integers(i) return "\xd3" .. string.pack(">i8", i << 20) end
    local function floats(i) return "\xcb" .. string.pack(">d", i + 0.5) end
    local function exts(i) return "\xd6\0" .. string.pack(">I4", i) end
    local function tables(i) return "\x91\xcd" .. string.pack(">I2", i) end
    local function strings(i) return "\xa4" .. string.pack(">I4", i) end
    for _, key in ipairs { integers, floats, exts, tables } do
      assert.is_table(ipc.unpack(map(1024, key)))
      refuses(map(1025, key), "more than 1024 keys of one map that are not strings")
      refuses(map(2, key), "more than 1 keys", { keys = 1 })
      assert.is_table(ipc.unpack(map(5000, key), { keys = 5000 }))
    end
    assert.is_table(ipc.unpack(map(5000, strings), { keys = 0 }))
    assert.is_table(ipc.unpack("\x92" .. map(1024, integers) .. map(1024, integers)))
  end)
end)

describe("equal keys", function()
  it("are one, and the last wins", function()
    unpacks(bytes "82a16101a16102", { a = 2 })
    unpacks(bytes "82a16101c4016102", { a = 2 })
    unpacks(bytes "820101cb3ff000000000000002", { 2 })
    unpacks(bytes "82a16101a161c0", {})
    unpacks(bytes "82a161c0a16102", { a = 2 })
  end)
end)

-- What a decoder makes of bytes fed in pieces that end where `cuts` says.
local function decode(b, cuts, options)
  local d <close> = ipc.decoder(options)
  local got, at = {}, 1
  for _, cut in ipairs(cuts) do
    assert(d:feed(b:sub(at, cut)))
    at = cut + 1
    while true do
      local v, message, errno = d:get()
      if v == nil then
        if errno == EBADMSG then return got, message end
        assert.are.equal("incomplete", message)
        assert.are.equal(EAGAIN, errno)
        break
      end
      got[#got + 1] = v
    end
  end
  return got
end

local function every(n)
  local cuts = {}
  for i = 1, n do cuts[i] = i end
  return cuts
end

describe("a decoder", function()
  it("needs no more than whole values, one after the other", function()
    local d <close> = ipc.decoder()
    assert.are.same({ nil, "incomplete", EAGAIN }, { d:get() })
    assert.is_true(d:feed "\1\2\xc0")
    assert.are.equal(1, d:get())
    assert.are.equal(2, d:get())
    assert.are.equal(ipc.null, d:get())
    assert.are.same({ nil, "incomplete", EAGAIN }, { d:get() })
    assert.is_true(d:feed "")
    assert.are.same({ nil, "incomplete", EAGAIN }, { d:get() })
  end)

  it("gives byte by byte what the whole gives, and nothing before", function()
    for _, vector in ipairs(vectors) do
      local b = bytes(vector[2])
      if #b < 2000 then
        local d <close> = ipc.decoder()
        for i = 1, #b do
          assert.are.equal("incomplete", select(2, d:get()))
          assert.is_true(d:feed(b:sub(i, i)))
        end
        assert(same(vector[1], d:get()), vector[2])
        assert.are.equal("incomplete", select(2, d:get()))
      end
    end
    for _, vector in ipairs(loose) do
      local b = bytes(vector[1])
      local got = decode(b .. b, every(2 * #b))
      assert(#got == 2 and same(vector[2], got[1]) and same(vector[2], got[2]), vector[1])
    end
  end)

  it("gives the same wherever a stream of values is cut #slow", function()
    for round = 1, 300 do
      local sent, parts = {}, {}
      for i = 1, math.random(6) do
        sent[i] = values.random(4)
        parts[i] = values.loose(sent[i])
      end
      local b = table.concat(parts)
      local cuts, at = {}, 0
      while at < #b do
        at = math.min(#b, at + math.random(0, math.random(3) == 1 and 3 or #b // 3 + 1))
        cuts[#cuts + 1] = at
      end
      local got, message = decode(b, cuts, { nulls = true })
      assert.is_nil(message)
      assert(#got == #sent, "round " .. round .. " of seed " .. seed)
      for i, v in ipairs(sent) do assert(same(v, got[i]), "round " .. round .. " of seed " .. seed) end
    end
  end)

  it("keeps its marks across pieces", function()
    for _, b in ipairs { "9180", "92c001", "9301c003", "810105", "81a161810105" } do
      local got = decode(bytes(b), every(#b // 2))
      packs(got[1], bytes(b))
    end
  end)

  it("refuses what unpack refuses, at the same offset, and stays failed", function()
    local bad = { "c1", "930102c1", "81c001", "82a16101c001", "81cb7ff800000000000001", "9191919281c00101" }
    for _, b in ipairs(bad) do
      local expected = refuses(bytes(b), "offset"):gsub("^ipc.unpack", "ipc.decoder")
      local first, message = decode("\1" .. bytes(b), every(1 + #b // 2))
      assert.are.equal(1, #first)
      assert.are.equal(expected, message)
      local d <close> = ipc.decoder()
      d:feed("\1" .. bytes(b) .. "\1\1\1")
      assert.are.equal(1, d:get())
      assert.are.same({ nil, expected, EBADMSG }, { d:get() })
      assert.are.same({ nil, expected, EBADMSG }, { d:get() })
      assert.are.same({ nil, expected, EBADMSG }, { d:feed "\1" })
      assert.are.same({ nil, expected, EBADMSG }, { d:get() })
    end
    assert.are.same({ 1, 2 }, (decode(bytes "0102c1", every(3))))
  end)

  it("holds every value to the limits, not their sum", function()
    local b = ipc.pack { 1, { 2 }, { [5] = 6 } }
    local exactly = { bytes = #b, depth = 2, values = 7, tables = 3, keys = 1 }
    for _, cuts in ipairs { every(10 * #b), { 10 * #b } } do
      local got, message = decode(b:rep(10), cuts, exactly)
      assert.is_nil(message)
      assert.are.equal(10, #got)
      for name, limit in pairs(exactly) do
        local less = {}
        for k, v in pairs(exactly) do less[k] = v end
        less[name] = limit - 1
        got, message = decode(b, cuts[2] and every(#b) or { #b }, less)
        assert.are.equal(0, #got)
        assert.matches("^ipc.decoder: offset %d+: ", message)
      end
    end
  end)

  it("refuses a value over its limit at the head, before the bytes come", function()
    for _, b in ipairs { "dbffffffff", "c6ffffffff", "ddffffffff", "dfffffffff", "c9ffffffff00", "db01000000" } do
      for _, cuts in ipairs { every(#b // 2), { #b // 2 } } do
        local got, message = decode(bytes(b), cuts)
        assert.are.equal(0, #got)
        assert.matches("offset 0: ", message)
      end
    end
    local got, message = decode("\x94" .. x(4), every(5), { bytes = 4 })
    assert.are.same({}, got)
    assert.matches("offset 0: an array of 4 elements", message)
  end)

  it("takes memory as bytes come, not as they are announced", function()
    local d <close> = ipc.decoder()
    collectgarbage()
    local before = collectgarbage "count"
    d:feed "\xdd\0\x0f\0\0"
    assert.are.equal("incomplete", select(2, d:get()))
    collectgarbage()
    local after = collectgarbage "count"
    assert(after - before < 64, "took " .. after - before .. " KiB")
  end)

  it("survives the collector between any two pieces", function()
    local sent = values.random(5)
    while type(sent) ~= "table" or next(sent) == nil do sent = values.random(5) end
    local b = values.loose(sent)
    local d <close> = ipc.decoder { nulls = true }
    for i = 1, #b do
      d:feed(b:sub(i, i))
      if i < #b then
        assert.are.equal("incomplete", select(2, d:get()))
        if i % (#b // 50 + 1) == 0 then collectgarbage() end
      end
    end
    assert(same(sent, d:get()), "seed " .. seed)
  end)

  it("may be closed at any time, and any number of times", function()
    for _, b in ipairs { "", "\1", "\x93\1", "\xdb\0\0\1", "\xc1" } do
      local d = ipc.decoder()
      d:feed(b)
      d:get()
      assert.is_true(d:close())
      assert.is_true(d:close())
      assert.are.same({ nil, "closed", EPIPE }, { d:get() })
      assert.are.same({ nil, "closed", EPIPE }, { d:feed "\1" })
    end
    local kept
    do
      local d <close> = ipc.decoder()
      kept = d
    end
    assert.are.same({ nil, "closed", EPIPE }, { kept:get() })
  end)

  it("may be called from a finalizer while it works, and answers that it is busy", function()
    local d, busy = ipc.decoder(), 0
    local meta, odd = {}, nil
    function meta.__gc() -- an error here would be lost
      local v, message, errno = d:get()
      if v == nil and errno == EBADMSG then
        local fed, _, why = d:feed "\xc1"
        if not message:find "busy" or fed or why ~= EBADMSG then odd = message end
        busy = busy + 1
      end
      if meta.__gc then setmetatable({}, meta) end
    end
    setmetatable({}, meta)
    local v = values.nested()
    local b = ipc.pack(v)
    while busy < 5 do -- no other way to fail than not to end
      d:feed(b)
      local got, message = d:get()
      assert(got or message == "incomplete", message) -- the finalizer got it
      assert(not got or same(v, got))
    end
    meta.__gc = nil
    d:close()
    assert.is_nil(odd)
  end)

  it("may be closed by a finalizer while it works", function()
    for _ = 1, 50 do
      local d = ipc.decoder()
      local b = ipc.pack(values.nested())
      d:feed(b:rep(20))
      setmetatable({}, { __gc = function() d:close() end })
      for _ = 1, 20 do
        local v, message = d:get()
        if not v then
          assert.are.equal("closed", message)
          break
        end
      end
      d:close()
    end
  end)

  it("wants itself as self", function()
    local d <close> = ipc.decoder()
    raises("ipc%.decoder expected", d.get)
    raises("ipc%.decoder expected", d.get, {})
    raises("ipc%.decoder expected", d.feed, io.stdout, "")
    raises("ipc%.decoder expected", d.close, ipc.ext(1, ""))
    raises("string expected", d.feed, d)
    raises("string expected", d.feed, d, 1)
  end)
end)

describe("a long value dribbled byte by byte", function()
  -- Counted in the decoder's own work, not in time: were each byte to cost the
  -- whole of what came before, 4 MB would not end while anyone waits.
  it("is linear #slow", function()
    local b = ipc.pack { x(2000000), values.nested(), x(2000000) }
    local d <close> = ipc.decoder()
    for i = 1, #b - 1 do
      d:feed(b:sub(i, i))
      if i % 64 == 0 then assert.are.equal(EAGAIN, select(3, d:get())) end
    end
    d:feed(b:sub(-1))
    local v = d:get()
    assert.are.equal(2000000, #v[3])
    assert(same(values.nested(), v[2]))
  end)
end)

describe("random values", function()
  it("come back the same, from the shortest form and from any other #slow", function()
    for i = 1, 5000 do
      local v = values.random(4)
      local where = "value " .. i .. " of seed " .. seed
      assert(same(v, ipc.unpack(ipc.pack(v), { nulls = true })), where)
      assert(same(v, ipc.unpack(values.loose(v), { nulls = true })), where)
    end
  end)

  it("that are only bytes are decoded or refused, whole and in pieces alike #slow", function()
    for i = 1, 5000 do
      local t = {}
      for k = 1, math.random(1, 30) do t[k] = string.char(math.random(0, 255)) end
      local b = table.concat(t)
      local v, message = ipc.unpack(b, { nulls = true })
      local got = decode(b, every(#b), { nulls = true })
      if v ~= nil then
        assert(#got == 1 and same(v, got[1]), hex(b))
        assert(same(v, ipc.unpack(ipc.pack(v), { nulls = true })), hex(b))
      else
        assert.matches("^ipc.unpack: offset %d+: ", message, "bytes " .. i .. " of seed " .. seed)
      end
    end
  end)
end)

-- The other implementations. Sanitizers preloaded for this process are not for
-- them.
local function run(command) return os.execute("env -u LD_PRELOAD " .. command) == true end

local function frames_write(path, frames)
  local f <close> = assert(io.open(path, "wb"))
  for _, b in ipairs(frames) do f:write(string.pack(">s4", b)) end
end

local function frames_read(path)
  local f <close> = assert(io.open(path, "rb"))
  local all, frames, at = f:read "a", {}, 1
  while at <= #all do frames[#frames + 1], at = string.unpack(">s4", all, at) end
  return frames
end

local function oracle_of(name)
  if name == "python3-msgpack" then
    for _, python in ipairs { "/usr/bin/python3", "python3" } do
      if run(python .. " -c 'import msgpack; assert msgpack.version[0] >= 1' 2>/dev/null") then
        return python .. " spec/values/oracle.py"
      end
    end
  else
    local program = os.tmpname()
    for _, lua in ipairs { "-I/usr/include/lua5.4 -llua5.4", "-llua" } do
      for _, library in ipairs { "-lmsgpackc", "-lmsgpack-c" } do -- by version
        local flags = " spec/values/oracle.c " .. library .. " " .. lua .. " 2>/dev/null"
        if run("cc -O2 -o " .. program .. flags) then return program, program end
      end
    end
    os.remove(program)
  end
end

for _, name in ipairs { "python3-msgpack", "libmsgpack" } do
  describe(name, function()
    local oracle, program = oracle_of(name)
    local many = os.getenv "IPC_LONG" == "1" and 1000000 or 5000
    local batch = math.min(many, 50000)
    local from, to = os.tmpname(), os.tmpname()

    teardown(function()
      os.remove(from)
      os.remove(to)
      if program then os.remove(program) end
    end)

    it("reads what we write, and writes the same bytes #slow", function()
      if not oracle then return pending("no " .. name) end
      for first = 1, many, batch do
        local sent, b = {}, {}
        values.ext_low = name == "libmsgpack" and -128 or 0
        for i = 1, batch do
          sent[i] = values.random(4)
          b[i] = ipc.pack(sent[i])
        end
        values.ext_low = -128
        frames_write(from, b)
        assert(run(oracle .. " echo " .. from .. " " .. to))
        local got = frames_read(to)
        assert.are.equal(batch, #got)
        for i = 1, batch do
          local where = "value " .. first + i - 1 .. " of seed " .. seed
          assert(b[i] == got[i], where)
          assert(same(sent[i], ipc.unpack(got[i], { nulls = true })), where)
        end
      end
    end)

    it("writes what we read, and reads it back from us #slow", function()
      if not oracle then return pending("no " .. name) end
      for first = 1, many, batch do
        local call = (" %d %d "):format((seed + first) & 0x7fffffff, batch)
        assert(run(oracle .. " make" .. call .. from))
        local frames = frames_read(from)
        assert.are.equal(batch, #frames)
        for i, b in ipairs(frames) do
          local v, message = ipc.unpack(b, { nulls = true })
          assert.is_nil(message)
          frames[i] = ipc.pack(v)
        end
        frames_write(to, frames)
        assert(run(oracle .. " check" .. call .. to))
      end
    end)
  end)
end
