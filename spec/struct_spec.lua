-- Structs: where fields are, what goes into them and what not, records and
-- arrays in place, whole records of one moment.
local ipc = require "ipc"
local with = require "spec.support.with"
local peer = require "spec.support.peer"
local ctypes = require "spec.support.ctypes"

local EPIPE = ipc.errno.EPIPE

after_each(peer.clean)

-- Bytes to look at, zero, and what they belong to.
local function bytes(size)
  if peer.has "shm" then return (peer.keep(assert(ipc.memory(nil, size)))) end
  local path = os.tmpname() -- where a memory has no participants
  os.remove(path)
  local memory = peer.keep(assert(ipc.memory(nil, size, { file = path })))
  os.remove(path)
  return memory
end

-- A path where nothing is.
local function new_path()
  local path = os.tmpname()
  os.remove(path)
  return path
end

local function raises(cause, f, ...)
  local ok, why = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(cause, tostring(why))
end

local Vec = ipc.struct { { "x", "d" }, { "y", "d" } }
local Player = ipc.struct {
  { "id", "I4" }, { "name", "z16" }, { "path", Vec, 3 }, { "alive", "?" }, { "key", "c4" }, { "ranks", "h", 4 },
}

-- A table whose nested ones can be compared with those of load.
local function filled()
  return {
    id = 7, name = "Ann", path = { { x = 1.5, y = 2.5 }, { x = -1.0, y = 0.0 }, { x = 0.25, y = 1e300 } },
    alive = true, key = "a\0b\0", ranks = { 1, -2, 3, -32768 },
  }
end

describe("ipc.struct", function()
  it("tells where everything is", function()
    assert.are.equal(16, Vec.size)
    assert.are.equal(string.packsize "!i1d" - 8, Vec.align)
    assert.are.equal(0, Player:offset "id")
    assert.are.equal(4, Player:offset "name")
    assert.are.equal(24, Player:offset "path")
    assert.are.equal(56, Player:offset("path", 3))
    assert.are.equal(false, Player.versioned)
    assert.is_nil(Player.other)
    assert.matches("^ipc%.struct %(%d+ bytes, 6 fields%)$", tostring(Player))
    local rows = Player:fields()
    assert.are.equal(6, #rows)
    assert.are.same({ name = "id", type = "I4", offset = 0, size = 4 }, rows[1])
    assert.are.same({ name = "name", type = "z16", offset = 4, size = 16 }, rows[2])
    assert.are.equal(Vec, rows[3].type)
    assert.are.same({ 3, 48 }, { rows[3].count, rows[3].size })
    assert.are.same({ "?", "c4", "i2" }, { rows[4].type, rows[5].type, rows[6].type })
  end)

  it("agrees with a C compiler, on values too #native", function()
    local all, program = ctypes.generate(120)
    local source = os.tmpname()
    local binary, data = source .. ".x", source .. ".d"
    do
      local file <close> = assert(io.open(source, "w"))
      file:write(program)
    end
    local said, status = with.shell(("LD_PRELOAD= cc -w -O0 -x c -o %s %s"):format(binary, source))
    assert.are.equal(0, status, said)
    local text = with.shell("LD_PRELOAD= " .. binary)
    assert.matches("\nend\n$", text)
    local by = {}
    for _, s in ipairs(all) do by[s.name] = s end
    local seen, records = 0, {}
    for name, size, align in text:gmatch "struct (%w+) (%d+) (%d+)\n" do
      local s = by[name].struct
      assert.are.same({ name, tonumber(size), tonumber(align) }, { name, s.size, s.align })
      seen = seen + 1
    end
    assert.are.equal(#all, seen)
    for name, field, offset in text:gmatch "field (%w+) (%w+) (%d+)\n" do
      assert.are.equal(tonumber(offset), by[name].struct:offset(field), name .. "." .. field)
    end
    for name, hex in text:gmatch "values (%w+) (%x+)\n" do
      local s = by[name]
      local raw = hex:gsub("%x%x", function(h) return string.char(tonumber(h, 16)) end)
      local m = bytes(#raw)
      m:write(0, raw)
      local record = m:view(s.struct)
      assert.are.same(s.values, (s.struct:load(record)), name)
      m:fill(0)
      assert.is_true(s.struct:store(record, s.values))
      records[#records + 1] = m:read()
      m:close()
    end
    assert.are.equal(#all, #records)
    do
      local file <close> = assert(io.open(data, "wb"))
      file:write(table.concat(records))
    end
    assert.are.equal("end\n", (with.shell("LD_PRELOAD= " .. binary .. " " .. data)))
    os.remove(source)
    os.remove(binary)
    os.remove(data)
  end)

  it("takes no alignment where there is to be none", function()
    local S = ipc.struct { { "a", "b" }, { "b", "i8" }, { "c", "h" }, packed = true }
    assert.are.same({ 11, 1, 1, 9 }, { S.size, S.align, S:offset "b", S:offset "c" })
    local m = bytes(22)
    local v = m:view(S, 0, 2)
    v[2].b = -2
    assert.are.equal(-2, v[2].b)
    assert.are.equal(string.pack("=i8", -2), m:read(12, 8))
    S = ipc.struct { { "a", "b" }, { "b", "i8" }, { "c", "b" }, align = 2 }
    assert.are.same({ 12, 2, 2, 10 }, { S.size, S.align, S:offset "b", S:offset "c" })
  end)

  it("reads and writes either order of bytes, as string.pack", function()
    local letters = { "b", "B", "h", "H", "i", "I", "l", "L", "j", "J", "T", "f", "d", "n" }
    for n = 1, 8 do
      letters[#letters + 1] = "i" .. n
      letters[#letters + 1] = "I" .. n
    end
    local orders = { little = "<", big = ">", native = "=" }
    for name, order in pairs(orders) do
      local definition = { endian = name, packed = true }
      for i, letter in ipairs(letters) do definition[i] = { "f" .. i, letter } end
      local S = ipc.struct(definition)
      local format = order .. table.concat(letters)
      assert.are.equal(string.packsize(format), S.size)
      local m = bytes(S.size)
      local r = m:view(S)
      for _ = 1, 200 do
        local raw = {}
        for i = 1, S.size do raw[i] = string.char(math.random(0, 255)) end
        local text = table.concat(raw)
        m:write(0, text)
        local values = table.pack(string.unpack(format, text))
        for i = 1, #letters do
          local expected, got = values[i], r["f" .. i]
          if expected == expected or got == got then -- else not a number, both
            assert.are.equal(expected, got, letters[i])
            assert.are.equal(math.type(expected), math.type(got))
          end
        end
        m:fill(0)
        for i = 1, #letters do r["f" .. i] = values[i] end
        for i = 1, #letters do
          local got = r["f" .. i]
          assert.is_true(got == values[i] or got ~= got, letters[i])
        end
      end
    end
  end)

  it("keeps the order of structs in it", function()
    local Big = ipc.struct { { "n", "I2" }, endian = "big" }
    local S = ipc.struct { { "a", "I2" }, { "b", Big }, { "c", Big, 2 }, endian = "little" }
    local m = bytes(S.size)
    S:store(m:view(S), { a = 1, b = { n = 1 }, c = { { n = 2 }, { n = 3 } } })
    assert.are.equal("\1\0\0\1\0\2\0\3", m:read())
  end)

  it("has names of any length and kind", function()
    local long = ("long"):rep(50)
    local S = ipc.struct { { long, "B" }, { "with space", "B" }, { "load", "B" }, { "a\0b", "B" } }
    local r = bytes(S.size):view(S)
    r[("long"):rep(50)] = 1 -- another string of the same bytes
    r["with space"], r.load, r["a\0b"] = 2, 3, 4
    assert.are.same({ [long] = 1, ["with space"] = 2, load = 3, ["a\0b"] = 4 }, (S:load(r)))
    local many, expected = {}, {}
    for i = 1, 3000 do
      many[i] = { "field" .. i, "I2" }
      expected["field" .. i] = i
    end
    S = ipc.struct(many)
    r = bytes(S.size):view(S)
    collectgarbage()
    for i = 1, 3000 do r["field" .. i] = i end
    assert.are.same(expected, (S:load(r)))
  end)

  it("says what is wrong with a description", function()
    local function wrong(cause, definition) raises("bad argument #1 to '.*" .. cause, ipc.struct, definition) end
    raises("table expected", ipc.struct)
    raises("table expected", ipc.struct, "d")
    wrong("a struct has a field at least", {})
    wrong("a struct has a field at least", { packed = true })
    wrong("field 1: { name, type %[, count%] } expected, got string", { "d" })
    wrong("field 2: a name expected, got number", { { "a", "d" }, { 1, "d" } })
    wrong("field 1: a name expected, got nil", { {} })
    wrong("field 1: the name is empty", { { "", "d" } })
    wrong("field 2 %('a'%): there is one of this name already", { { "a", "d" }, { "a", "d" } })
    wrong("field 1 %('a'%): a type expected, got nil", { { "a" } })
    wrong("field 1 %('a'%): a type expected, got userdata", { { "a", io.stdout } })
    for _, letters in ipairs {
      "", "q", "s", "z", "c", "x", "dd", "d8", "i-1", "<i4", "i4 ", "i 4", "i0x4", "!4", "c1x",
    } do
      wrong("unknown type '" .. letters:gsub("%p", "%%%0") .. "'", { { "a", letters } })
    end
    for _, letters in ipairs { "i0", "i9", "I16", "i4294967297" } do
      wrong("the size of '" .. letters .. "' is not within 1..8", { { "a", letters } })
    end
    for _, letters in ipairs { "c0", "z0", "c2147483648", "c99999999999999999999" } do
      wrong("the size of '" .. letters .. "' is not within 1..2147483647", { { "a", letters } })
    end
    wrong("the count 0 is not within", { { "a", "d", 0 } })
    wrong("the count %-1 is not within", { { "a", "d", -1 } })
    wrong("the count %-?%d+ is not within", { { "a", "d", math.maxinteger } })
    wrong("a count expected, got number", { { "a", "d", 1.5 } })
    wrong("a count expected, got string", { { "a", "d", "2" } })
    wrong("perhaps a count expected, got %[4%] too", { { "a", "d", 1, 2 } })
    wrong("perhaps a count expected, got %[size%] too", { { "a", "d", size = 2 } })
    wrong("larger than 2147483647 bytes", { { "a", "d", 1 << 28 } })
    wrong("larger than 2147483647 bytes", { { "a", "c2147483647" }, { "b", "b" } })
    wrong("larger than 2147483647 bytes", { { "a", "d" }, { "b", "c2147483636" }, { "c", "h" } })
    wrong("larger than 2147483647 bytes", { { "a", "c1073741824" }, versioned = true })
    wrong("unknown option 'pack'", { { "a", "d" }, pack = true })
    wrong("unknown option '3'", { { "a", "d" }, [3] = { "b", "d" } })
    wrong("unknown option '0'", { { "a", "d" }, [0] = { "b", "d" } })
    wrong("option 'packed': boolean expected", { { "a", "d" }, packed = 1 })
    wrong("option 'endian'", { { "a", "d" }, endian = "middle" })
    wrong("option 'align'", { { "a", "d" }, align = 0 })
    wrong("option 'align': not a power of 2", { { "a", "d" }, align = 3 })
    wrong("option 'align'", { { "a", "d" }, align = 128 })
    wrong("option 'align': it is packed", { { "a", "d" }, align = 2, packed = true })
    local V = ipc.struct { { "a", "d" }, versioned = true }
    wrong("a versioned struct is not part of another", { { "v", V } })
    local S = Vec
    for _ = 1, 30 do S = ipc.struct { { "s", S } } end
    wrong("more than 32 structs within each other", { { "s", ipc.struct { { "s", S } } } })
    raises("no field 'q'", Player.offset, Player, "q")
    raises("the field is no array", Player.offset, Player, "id", 1)
    raises("not so many elements", Player.offset, Player, "path", 4)
    raises("not so many elements", Player.offset, Player, "path", 0)
  end)
end)

describe("a record", function()
  local memory, record
  before_each(function()
    memory = bytes(4096)
    record = memory:view(Player, 64)
  end)

  it("has its fields where C has them", function()
    record.id = 0xdeadbeef
    record.name = "Ann"
    record.alive = true
    record.path[2].y = 1.5
    record.ranks[4] = -3
    assert.are.equal(0xdeadbeef, (memory:unpack(64, "I4")))
    assert.are.equal("Ann" .. ("\0"):rep(13), memory:read(68, 16))
    assert.are.equal(1.5, (memory:unpack(64 + Player:offset("path", 2) + 8, "d")))
    assert.are.equal(-3, (memory:unpack(64 + Player:offset("ranks", 4), "h")))
    memory:pack(64, "I4", 5)
    assert.are.equal(5, record.id)
    assert.is_true(record.alive)
    memory:pack(64 + Player:offset "alive", "B", 0)
    assert.is_false(record.alive)
  end)

  it("has text up to its first zero, and bytes whole", function()
    record.name = ("x"):rep(16)
    assert.are.equal(("x"):rep(16), record.name)
    record.name = "Ann"
    assert.are.equal("Ann", record.name)
    record.name = ""
    assert.are.equal("", record.name)
    record.key = "a"
    assert.are.equal("a\0\0\0", record.key)
    record.key = "\0b\0d"
    assert.are.equal("\0b\0d", record.key)
    local Page = ipc.struct { { "c", "c1000" }, { "z", "z2000" } }
    local page = memory:view(Page, 100)
    page.c, page.z = ("y"):rep(999), ("z"):rep(1500)
    assert.are.equal(("y"):rep(999) .. "\0", page.c)
    assert.are.equal(("z"):rep(1500), page.z)
  end)

  it("is loaded and stored whole, or what there is of it", function()
    assert.is_true(Player:store(record, filled()))
    local t = Player:load(record)
    assert.are.same(filled(), t)
    assert.are.equal("integer", math.type(t.id))
    assert.is_true(Player:store(record, { id = 8, path = { [2] = { y = 9 } }, ranks = { [3] = 5 } }))
    local expected = filled()
    expected.id, expected.path[2].y, expected.ranks[3] = 8, 9.0, 5
    assert.are.same(expected, (Player:load(record)))
    local into = { extra = 1, path = { { z = 3 } } }
    local path = into.path
    assert.are.equal(into, (Player:load(record, into)))
    assert.are.equal(path, into.path)
    assert.are.equal(1, into.extra)
    assert.are.same({ x = 1.5, y = 2.5, z = 3 }, into.path[1])
    assert.is_true(Player:store(record, {}))
    assert.are.same(expected, (Player:load(record)))
  end)

  it("stores nothing when something does not fit", function()
    Player:store(record, filled())
    local before = memory:read()
    local function refused(cause, t)
      raises("struct_spec.*" .. cause, function() Player:store(record, t) end)
      assert.are.equal(before, memory:read())
    end
    refused("no field 'nmae'; there is 'name'", { id = 1, nmae = "x" })
    refused("no field 'z'", { id = 1, path = { { z = 1 } } })
    refused("a field's name expected, got number", { id = 1, "x" })
    refused("a field's name expected, got boolean", { id = 1, path = { { [true] = 1 } } })
    refused("field 'path': no element %[4%] of 3", { id = 1, path = { [4] = {} } })
    refused("field 'path': no element %[0%] of 3", { id = 1, path = { [0] = {} } })
    refused("field 'path': no element %[1%.5%] of 3", { id = 1, path = { [1.5] = {} } })
    refused("field 'path': an element's number expected, got string", { id = 1, path = { x = {} } })
    refused("field 'path%[1%]': table expected, got number", { id = 1, path = { 5 } })
    refused("field 'path': table expected, got boolean", { id = 1, path = false })
    refused("field 'ranks': no element %[5%] of 4", { id = 1, ranks = { 1, 2, 3, 4, 5 } })
    refused("field 'ranks%[2%]': 32768 is not within %-32768%.%.32767", { id = 1, ranks = { 1, 32768 } })
    refused("field 'path%[3%]%.y': number expected, got string", { id = 1, path = { [3] = { y = "1" } } })
    refused("field 'id': %-1 is not within 0%.%.4294967295", { name = "x", id = -1 })
    refused("table expected, got number", 5)
    refused("table expected, got nil", nil)
    refused("table expected, got userdata", io.stdout)
    refused("table expected, got userdata", record.path)
  end)

  it("takes values of its types only", function()
    local letters = { "b", "B", "h", "H", "i4", "I4", "i3", "I3", "i7", "I7" }
    for _, endian in ipairs { "little", "big" } do
      local definition = { endian = endian }
      for i, letter in ipairs(letters) do definition[i] = { letter, letter } end
      local S = ipc.struct(definition)
      local r = memory:view(S)
      for _, letter in ipairs(letters) do
        local bits = string.packsize(letter) * 8
        local signed = letter:match "%l"
        local least = signed and -(1 << bits - 1) or 0
        local most = signed and (1 << bits - 1) - 1 or (1 << bits) - 1
        for _, n in ipairs { least, most, 0, 1 } do
          r[letter] = n
          assert.are.equal(n, r[letter])
          if math.abs(n) < 1 << 53 then r[letter] = n + 0.0 end
          assert.are.equal("integer", math.type(r[letter]))
        end
        local range = ("field '%s': %%S+ is not within %%%d%%.%%.%d"):format(letter, least, most)
        if least == 0 then range = range:gsub("%%0", "0") end
        for _, n in ipairs { least - 1, most + 1, math.mininteger, math.maxinteger } do
          raises(range, function() r[letter] = n end)
        end
        for _, n in ipairs { 0.5, 1e300, 0 / 0, 1 / 0 } do
          raises("has no integer representation", function() r[letter] = n end)
        end
        for _, odd in ipairs { "1", true, {}, print, io.stdout } do
          raises("integer expected, got " .. type(odd), function() r[letter] = odd end)
        end
        raises("integer expected, got nil", function() r[letter] = nil end)
        assert.are.equal(1, r[letter])
      end
    end
    local S = ipc.struct { { "d", "d" }, { "f", "f" }, { "q", "?" }, { "c", "c3" }, { "z", "z3" }, { "u", "I8" } }
    local r = memory:view(S)
    r.d, r.f = 3, 4
    assert.are.same({ "float", "float" }, { math.type(r.d), math.type(r.f) })
    r.u = -1
    assert.are.equal(-1, r.u)
    assert.are.equal(("\xff"):rep(8), memory:read(S:offset "u", 8))
    r.f = 1e300
    assert.are.equal(math.huge, r.f)
    r.d = 0 / 0
    assert.is_true(r.d ~= r.d)
    for _, odd in ipairs { "1", true, {}, print } do
      raises("field 'd': number expected, got " .. type(odd), function() r.d = odd end)
      raises("field 'f': number expected, got " .. type(odd), function() r.f = odd end)
    end
    for _, odd in ipairs { 0, 1, "true", {} } do
      raises("field 'q': boolean expected, got " .. type(odd), function() r.q = odd end)
    end
    raises("field 'q': boolean expected, got nil", function() r.q = nil end)
    for _, name in ipairs { "c", "z" } do
      raises("field '" .. name .. "': 4 bytes, but it has 3", function() r[name] = "abcd" end)
      raises("field '" .. name .. "': string expected, got number", function() r[name] = 5 end)
    end
    raises("field 'z': a text with a zero in it", function() r.z = "a\0" end)
  end)

  it("has no other fields", function()
    raises("struct_spec.*no field 'nam'; there is 'name'", function() return record.nam end)
    raises("struct_spec.*no field 'nam'; there is 'name'", function() record.nam = 1 end)
    raises("no field 'whatever'$", function() return record.whatever end)
    for _, key in ipairs { 1, 1.5, true, print, {}, io.stdout } do
      raises("a field's name expected, got " .. type(key), function() return record[key] end)
      raises("a field's name expected, got " .. type(key), function() record[key] = 1 end)
    end
    raises("a field's name expected, got nil", function() return record[nil] end)
  end)

  it("gives the same view of a part as long as it is used", function()
    local path = record.path
    assert.are.equal(path, record.path)
    assert.are.equal(path[2], record.path[2])
    assert.are.equal(record.ranks, record.ranks)
    local list = memory:view(Player, 0, 3)
    local second = list[2]
    collectgarbage()
    assert.are.equal(second, list[2])
    assert.are_not.equal(list[1], list[2])
    local weak = setmetatable({ list[3] }, { __mode = "v" })
    collectgarbage()
    assert.is_nil(weak[1])
  end)

  it("stays whole when only a part of it is kept", function()
    local x = memory:view(ipc.struct { { "a", ipc.struct { { "b", Vec, 2 } }, 2 } })
    memory = nil
    x = x.a[2].b
    collectgarbage()
    collectgarbage()
    x[2].y = 5
    assert.are.equal(5.0, x[2].y)
    local t = x:load()
    assert.are.same({ { x = 0.0, y = 0.0 }, { x = 0.0, y = 5.0 } }, t)
  end)

  it("takes tables and views of the same struct for its parts", function()
    Player:store(record, filled())
    record.path = { [2] = { x = 5 } }
    assert.are.same({ x = 5.0, y = 0.0 }, (Vec:load(record.path[2])))
    record.path[1] = { x = 1, y = 2 }
    record.path[3] = record.path[1]
    assert.are.same({ x = 1.0, y = 2.0 }, (Vec:load(record.path[3])))
    record.ranks = { 9, 8, 7, 6 }
    assert.are.same({ 9, 8, 7, 6 }, record.ranks:load())
    local other = memory:view(Player, 1024)
    other.path = record.path
    other.ranks = record.ranks
    assert.are.same(record.path:load(), other.path:load())
    assert.are.same({ 9, 8, 7, 6 }, other.ranks:load())
    raises("table expected, got userdata", function() record.path = record.ranks end)
    raises("table expected, got userdata", function() record.path[1] = record end)
    raises("field 'path': table expected, got nil", function() record.path = nil end)
    raises("table expected, got userdata", function()
      record.path = memory:view(Vec, 0, 2) -- one more is wanted
    end)
    record.path = memory:view(Vec, 1024, 3)
  end)

  it("goes through its fields in order", function()
    Player:store(record, filled())
    local names = {}
    for name, value in pairs(record) do
      names[#names + 1] = name
      if type(value) ~= "userdata" then assert.are.equal(record[name], value) end
      if name == "path" then assert.are.equal(record.path, value) end
    end
    assert.are.equal("id name path alive key ranks", table.concat(names, " "))
    local next_field = pairs(record)
    raises("no field 'x'", next_field, record, "x")
    raises("ipc%.record expected", next_field, {}, "id")
    raises("a field's name expected", next_field, record, 1)
  end)

  it("shows what it has", function()
    Player:store(record, filled())
    assert.matches('^ipc%.record %(id = 7, name = "Ann", alive = true, key = "a".*%.%.%.%)$', tostring(record))
    assert.are.equal("ipc.record (x = 1.5, y = 2.5)", tostring(record.path[1]))
    assert.matches("^ipc%.vector %(3 of 16 bytes%)$", tostring(record.path))
    memory:close()
    assert.are.equal("ipc.record (closed)", tostring(record))
  end)
end)

describe("an array of records", function()
  local memory, list
  before_each(function()
    memory = bytes(4096)
    list = memory:view(Player, 0, 10)
  end)

  it("has elements from 1 on", function()
    assert.are.equal(10, #list)
    for i = 1, 10 do list[i].id = i * i end
    for i = 1, 10 do assert.are.equal(i * i, (memory:unpack((i - 1) * Player.size, "I4"))) end
    list[3] = { id = 5, name = "Bob" }
    assert.are.equal("Bob", list[3].name)
    list[4] = list[3]
    assert.are.equal("Bob", list[4].name)
    assert.are.equal(list[4], list[4.0])
    for _, i in ipairs { 0, -1, 12, 1.5, math.maxinteger, math.mininteger, 0 / 0 } do
      raises("struct_spec.*no element %[.*%] of 10", function() return list[i] end)
      raises("struct_spec.*no element %[.*%] of 10", function() list[i] = {} end)
      raises("no element", list.load, list, i)
      raises("no element", list.store, list, i, {})
    end
    assert.is_nil(list[11]) -- or ipairs would raise
    raises("no element %[11%] of 10", function() list[11] = {} end)
    raises("no element %[11%] of 10", list.load, list, 11)
    for _, key in ipairs { true, {}, print } do
      raises("an element's number expected, got " .. type(key), function() return list[key] end)
      raises("an element's number expected, got " .. type(key), function() list[key] = {} end)
    end
    raises("ipc.vector has no 'x'", function() return list.x end)
    raises("number expected, got string", function() list["1"] = {} end)
  end)

  it("is gone through", function()
    for i = 1, 10 do list[i].id = i end
    local function all(...)
      local seen = {}
      for i, r in ... do
        assert.are.equal(list[i], r)
        seen[#seen + 1] = r.id
      end
      return table.concat(seen, " ")
    end
    assert.are.equal("1 2 3 4 5 6 7 8 9 10", all(list()))
    assert.are.equal("1 2 3 4 5 6 7 8 9 10", all(ipairs(list)))
    assert.are.equal("1 2 3 4 5 6 7 8 9 10", all(pairs(list)))
    assert.are.equal("8 9 10", all(list(8)))
    assert.are.equal("2 3", all(list(2, 3)))
    assert.are.equal("", all(list(3, 2)))
    assert.are.equal("", all(list(11)))
    raises("elements count from 1", list, 0)
    raises("not so many elements", list, 1, 11)
    raises("number expected", list, "2")
    raises("number expected", list, 2, "3")
    raises("number expected", list, {})
    local iterator = list()
    assert.is_nil(iterator(list, 10))
    assert.is_nil(iterator(list, -1))
    assert.is_nil(iterator(list, math.maxinteger))
    raises("ipc%.vector expected", iterator, {}, 1)
    raises("number expected", iterator, list)
    local ranks = list[1].ranks
    ranks[2] = 5
    local got = {}
    for i, n in ranks() do got[i] = n end
    assert.are.same({ 0, 5, 0, 0 }, got)
  end)

  it("is loaded and stored by elements", function()
    assert.is_true(list:store(2, filled()))
    assert.are.same(filled(), (list:load(2)))
    local into = {}
    assert.are.equal(into, (list:load(2, into)))
    assert.are.same(filled(), into)
    local all = list:load()
    assert.are.equal(10, #all)
    assert.are.same(filled(), all[2])
    local ranks = list[2].ranks
    assert.is_true(ranks:store(1, -7))
    assert.are.equal(-7, ranks:load(1))
    assert.are.same({ -7, -2, 3, -32768 }, ranks:load())
    raises("element '%[1%]': 40000 is not within", ranks.store, ranks, 1, 40000)
    raises("field '%[2%]%.id': integer expected", list.store, list, 2, { id = "" })
    raises("table expected", list.load, list, 2, 5)
    raises("table expected", list.load, list, nil, 5)
  end)

  it("must fit", function()
    raises("41 times 100 bytes, but there are 4096", memory.view, memory,
      ipc.struct { { "c", "c100" } }, 0, 41)
    raises("1 times %d+ bytes, but there are 4096", memory.view, memory, Player, 4096 - Player.size + 1)
    raises("times", memory.view, memory, Player, 0, 1 << 30)
    raises("times", memory.view, memory, Player, 1 << 30)
    raises("bad argument #4", memory.view, memory, Player, 0, math.maxinteger)
    raises("bad argument", memory.view, memory, Player, math.maxinteger)
    raises("out of range", memory.view, memory, Player, -1)
    raises("out of range", memory.view, memory, Player, 0, 0)
    raises("out of range", memory.view, memory, Player, 0, -1)
    raises("number expected", memory.view, memory, Player, "0")
    raises("number expected", memory.view, memory, Player, 0, "1")
    raises("no integer representation", memory.view, memory, Player, 0, 1.5)
    for _, odd in ipairs { 1, "d", {}, print, io.stdout, memory } do
      raises("bad argument #1 to 'view' %(ipc%.struct expected", function() memory:view(odd) end)
    end
    raises("ipc%.struct expected", function() memory:view() end)
    assert.are.equal(memory:view(Player, 4096 - Player.size).id, 0)
  end)
end)

describe("views through a struct", function()
  it("want themselves as self", function()
    local memory = bytes(1024)
    local record, list = memory:view(Player), memory:view(Player, 0, 2)
    local odds = { 1, "x", {}, io.stdout, print, ipc.null, memory, coroutine.create(print) }
    local function check(meta, name, extra)
      for _, odd in ipairs(odds) do raises(name .. " expected", meta, odd, extra) end
      raises(name .. " expected", meta)
    end
    for key, f in pairs(debug.getmetatable(record)) do
      if type(f) == "function" then
        check(f, "ipc%.record", "id")
        raises("ipc%.record expected", f, list, key)
      end
    end
    for _, f in pairs(debug.getmetatable(list)) do
      if type(f) == "function" then
        check(f, "ipc%.vector", 1)
        raises("ipc%.vector expected", f, record, 1)
      end
    end
    for _, f in pairs { list.load, list.store } do check(f, "ipc%.vector", 1) end
    for _, f in pairs { Player.load, Player.store, Player.offset, Player.fields,
      debug.getmetatable(Player).__index, debug.getmetatable(Player).__tostring } do
      check(f, "ipc%.struct", record)
    end
    for _, odd in ipairs(odds) do
      raises("ipc%.record expected", Player.load, Player, odd)
      raises("ipc%.record expected", Player.store, Player, odd, {})
    end
    raises("a record of another struct", Vec.load, Vec, record)
    raises("a record of another struct", Vec.store, Vec, record, {})
    assert.are.equal("ipc", getmetatable(record))
    assert.are.equal("ipc", getmetatable(list))
    assert.are.equal("ipc", getmetatable(Player))
  end)

  it("say so when what they belong to is closed", function()
    local memory = bytes(1024)
    local record, list = memory:view(Player), memory:view(Player, 0, 2)
    local path = record.path
    memory:close()
    local function closed(f)
      local ok, why = pcall(f)
      assert.is_false(ok)
      assert.are.same({ "closed", EPIPE }, { why.message, why.errno })
      assert.are.equal("closed", tostring(why))
    end
    closed(function() return record.id end)
    closed(function() return record.name end)
    closed(function() record.id = 1 end)
    closed(function() record.path = {} end)
    closed(function() return path[1].x end)
    closed(function() list[1] = {} end)
    closed(function() list[1] = list[2] end)
    for name, value in pairs { load = { 1 }, store = { 1, {} } } do
      assert.are.same({ nil, "closed", EPIPE }, { list[name](list, table.unpack(value)) })
    end
    assert.are.same({ nil, "closed", EPIPE }, { list:load() })
    assert.are.same({ nil, "closed", EPIPE }, { Player:load(record) })
    assert.are.same({ nil, "closed", EPIPE }, { Player:store(record, filled()) })
    assert.are.equal(2, #list)
    assert.are.same({ nil, "closed", EPIPE }, { memory:view(Player) })
    raises("no field 'x'", function() return record.x end)
  end)

  it("read and write messages in a ring", function()
    local r, w = ipc.queue { size = 1024, count = 2, writers = 1, readers = 1 }
    if not r then return end -- shm_spec has the answer
    peer.keep(r, w)
    do
      local message <close> = assert(w:reserve(Player.size))
      local player = message:view(Player)
      Player:store(player, filled())
      assert(message:commit())
      raises("struct_spec.*used after commit", function() return player.id end)
      raises("used after commit", Player.load, Player, player)
      raises("used after commit", message.view, message, Player)
      assert.are.equal("ipc.record (ended)", tostring(player))
    end
    local message <close> = assert(r:peek(peer.limit))
    local player = message:view(Player)
    assert.are.same(filled(), (Player:load(player)))
    assert(message:release())
    raises("used after release", function() return player.id end)
  end)

  it("keep what is only to be read", function()
    local path = new_path()
    local m = peer.keep(assert(ipc.memory(nil, 1024, { file = path })))
    local reader = peer.keep(assert(ipc.memory(nil, nil, { file = path, mode = "r" })))
    local V = ipc.struct { { "n", "I4" }, versioned = true }
    Player:store(m:view(Player), filled())
    V:store(m:view(V, 512), { n = 5 })
    local record, list, whole = reader:view(Player), reader:view(Player, 0, 2), reader:view(V, 512)
    assert.are.same(filled(), (Player:load(record)))
    assert.are.equal(5, whole.n)
    for _, f in ipairs {
      function() record.id = 1 end, function() record.name = "x" end, function() record.path = {} end,
      function() record.path[1].x = 1 end, function() record.ranks[1] = 1 end, function() list[1] = {} end,
      function() list:store(1, {}) end, function() Player:store(record, {}) end, function() whole.n = 6 end,
      function() V:store(whole, { n = 6 }) end, function() list[1] = list[2] end,
    } do
      raises("these bytes are only to be read", f)
    end
    os.remove(path)
  end)

  it("stay where they are when a memory grows", function()
    local path = new_path()
    local m = peer.keep(assert(ipc.memory(nil, 200, { file = path })))
    local record, ranged = m:view(Player), m:range(0, 200):view(Player)
    record.id = 5
    if not peer.has "shm" then
      assert.are.equal(ipc.errno.ENOTSUP, select(3, m:resize(1 << 22)))
      return
    end
    assert(m:resize(1 << 22))
    assert.are.equal(5, record.id)
    assert.are.equal(5, ranged.id)
    record.path[3].y = 2.5
    assert.are.equal(2.5, ranged.path[3].y)
    ranged.name = "range"
    assert.are.equal("range", record.name)
    raises("1 times", m:range(0, 50).view, m:range(0, 50), Player)
    m:close()
    raises("closed", function() return ranged.id end)
    os.remove(path)
  end)

  it("say so when the memory is lost", function()
    local path = new_path()
    local m = peer.keep(assert(ipc.memory(nil, 1 << 20, { file = path })))
    local V = ipc.struct { { "n", "I4" }, { "c", "c2000" }, versioned = true }
    local at = 1 << 19
    local record, list, whole = m:view(Player, at), m:view(Player, at, 2), m:view(V, at + 4096)
    local part = record.path
    Player:store(record, filled())
    with.shell("truncate -s 100 " .. path)
    for _, f in ipairs {
      function() return record.id end, function() return record.name end, function() return part[1].x end,
      function() record.id = 1 end, function() record.path = {} end, function() list[1] = list[2] end,
      function() return whole.n end, function() whole.n = 1 end, function() return whole.c end,
    } do
      local ok, why = pcall(f)
      assert.is_false(ok)
      assert.are.equal(ipc.errno.EFAULT, why.errno)
      assert.matches("the memory was lost", tostring(why))
    end
    assert.are.equal(ipc.errno.EFAULT, select(3, Player:load(record)))
    assert.are.equal(ipc.errno.EFAULT, select(3, Player:store(record, { id = 1 })))
    assert.are.equal(ipc.errno.EFAULT, select(3, list:load()))
    assert.are.equal(ipc.errno.EFAULT, select(3, V:load(whole)))
    assert.are.equal(ipc.errno.EFAULT, select(3, V:store(whole, { n = 1 })))
    assert.are.equal("ipc.record (lost)", tostring(record))
    os.remove(path)
  end)

  it("bring their memory along into a child", function()
    local memory = bytes(4096)
    local record, list, path = memory:view(Player), memory:view(Player, 1024, 2), memory:view(Player, 2048).path
    local ranged = memory:range(3000, 1000):view(Vec)
    local range = memory:range(4000)
    local second <const> = list[2]
    local children = {
      peer.fork(function() record.id = 1 end),
      peer.fork(function() list[1].id = 2 end),
      peer.fork(function() second.id = 3 end),
      peer.fork(function() path[1].x = 4 end),
      peer.fork(function() ranged.y = 5 end),
      peer.fork(function() range:pack(0, "B", 6) end),
      peer.fork(function(r, l) r.name, l[1].name = "r", "l" end, record, list),
      peer.fork(function(m, r) m:pack(4001, "B", 7) r.alive = true end, memory, record),
    }
    for _, child in ipairs(children) do assert(child:wait(peer.limit)) end
    assert.are.same({ 1, 2, 3, 4.0, 5.0, "r", "l", true },
      { record.id, list[1].id, second.id, path[1].x, ranged.y, record.name, list[1].name, record.alive })
    assert.are.equal("\6\7", memory:read(4000, 2))
  end)

  it("are of no use in a child that got no memory", function()
    local memory = bytes(4096)
    local record = memory:view(Player)
    local hidden = { record }
    local child = peer.fork(function()
      local r = hidden[1]
      local ok, why = pcall(function() return r.id end)
      local _, message, errno = Player:store(r, {})
      return ok, why.errno, message, errno
    end)
    local all, ok, errno, message, other = child:wait(peer.limit)
    assert.are.same({ true, false, ipc.errno.ECHILD, ipc.errno.ECHILD }, { all, ok, errno, other })
    assert.matches("belongs to the process that forked", message)
  end)

  it("may lose what they belong to by a finaliser while they are used", function()
    for round = 1, 30 do
      local memory = bytes(8192)
      local list = memory:view(Player, 0, 10)
      local V = ipc.struct { { "t", "c600" }, { "n", Vec, 4 }, versioned = true }
      local record = memory:view(V, 4096)
      setmetatable({}, { __gc = function() memory:close() end })
      local ok, why
      local text = ("x"):rep(500 + round)
      repeat -- no other way to fail than not to end
        ok, why = pcall(function()
          local t = assert(list:load())
          assert(list:store(2, t[1]))
          assert(Player:store(list[3], filled()))
          record.t = text .. #t
          assert(V:store(record, { t = text, n = { { x = 1 } } }))
          assert(V:load(record))
          list[4].path[1] = { x = 1 }
          return record.t, tostring(list[5])
        end)
      until not ok
      assert.matches("closed$", tostring(why))
    end
  end)
end)

describe("a versioned record", function()
  local S = ipc.struct {
    { "n", "I8" }, { "name", "z11" }, { "at", Vec, 2 }, { "last", "I8" }, versioned = true,
  }

  it("has the fields of any, twice in memory", function()
    local plain = ipc.struct { { "n", "I8" }, { "name", "z11" }, { "at", Vec, 2 }, { "last", "I8" } }
    assert.is_true(S.versioned)
    assert.are.equal(8 + 4 * plain.size, S.size)
    assert.are.equal(8, S.align)
    assert.are.equal(plain:offset "last", S:offset "last")
    local m = bytes(4096)
    local r = m:view(S, 8)
    assert.are.same({ n = 0, name = "", at = { { x = 0.0, y = 0.0 }, { x = 0.0, y = 0.0 } }, last = 0 }, (S:load(r)))
    r.n, r.name = 5, "abc"
    r.at[2].y = 1.5
    r.at[1] = { x = 3 }
    r.at = { [2] = { x = 4 } }
    assert.are.same({ 5, "abc", 1.5, 3.0, 4.0 }, { r.n, r.name, r.at[2].y, r.at[1].x, r.at[2].x })
    r.at[1] = r.at[2]
    local t, version = S:load(r)
    assert.are.same({ n = 5, name = "abc", at = { { x = 4.0, y = 1.5 }, { x = 4.0, y = 1.5 } }, last = 0 }, t)
    assert.is_true(S:store(r, { last = -1 }))
    local t2, later = S:load(r, t)
    assert.are.equal(t, t2)
    assert.are.equal(-1, t.last)
    assert.are_not.equal(version, later)
    assert.are.equal(later, select(2, S:load(r)))
    raises("field 'n': integer expected", function() r.n = "x" end)
    raises("field 'at%[1%]%.x': number expected", S.store, S, r, { n = 6, at = { { x = "" } } })
    assert.are.equal(later, select(2, S:load(r)))
    assert.matches('n = 5, name = "abc", last = %-1', tostring(r))
    m:close()
    assert.are.same({ nil, "closed", EPIPE }, { S:load(r) })
    assert.are.same({ nil, "closed", EPIPE }, { S:store(r, {}) })
    raises("closed", function() return r.n end)
    raises("closed", function() r.n = 1 end)
  end)

  it("may be one of many", function()
    local m = bytes(4096)
    local list = m:view(S, 0, 5)
    list[2].n = 7
    list[3] = list[2]
    assert.is_true(list:store(5, { n = 9, last = 1 }))
    local t, version = list:load(5)
    assert.are.same({ 9, 1, 2 }, { t.n, t.last, version % 2 + 1 })
    local into = { { extra = 1 } }
    assert.are.equal(into, list:load(nil, into))
    local all = {}
    for i, r in ipairs(into) do all[i] = r.n end
    assert.are.same({ 0, 7, 7, 0, 9 }, all)
    assert.are.equal(1, into[1].extra)
    assert.are.equal(4, m:view(S, S.size).at[1].x + 4)
    raises("aligned by 8 bytes", m.view, m, S, 4)
    raises("aligned by 8 bytes", m.view, m, S, 4, 2)
  end)

  it("may be large", function()
    local Large = ipc.struct {
      { "first", "I4" }, { "c", "c3000" }, { "list", "d", 500 }, { "last", "B" }, versioned = true,
    }
    local m = bytes(Large.size)
    local r = m:view(Large)
    local text = ("y"):rep(2999) .. "\0"
    r.c = text
    r.list[500] = 7
    r.last = 3
    assert.are.same({ text, 7.0, 3 }, { r.c, r.list[500], r.last })
    local t = Large:load(r)
    assert.are.same({ text, 7.0, 3 }, { t.c, t.list[500], t.last })
  end)

  it("is what the reference says it is in memory", function()
    local N = ipc.struct { { "a", "I4" }, { "b", "c5" }, versioned = true }
    local m = bytes(N.size)
    local r = m:view(N)
    assert.are.equal(8 + 2 * 3 * 8, N.size)
    local function halves(offset)
      local word = m:load(offset)
      return word >> 32, word & 0xffffffff
    end
    for round = 1, 5 do
      N:store(r, { a = round, b = "abcd" .. round })
      local claimed, published = halves(0)
      assert.are.equal(round, published)
      assert.are.equal(claimed, published)
      local copy = 8 + (published & 1) * 24
      local ticket, data = halves(copy)
      assert.are.same({ published, round }, { ticket, data })
      ticket, data = halves(copy + 4 * 2)
      assert.are.same({ published, "abcd" }, { ticket, string.pack("=I4", data) })
      ticket, data = halves(copy + 4 * 4)
      assert.are.same({ published, tostring(round) }, { ticket, string.pack("=I4", data):sub(1, 1) })
    end
    -- A store that began and ended nowhere: claimed, some cells written.
    local _, published = halves(0)
    m:store(0, (published + 1) << 32 | published)
    m:store(8 + (published + 1 & 1) * 24, (published + 1) << 32 | 99)
    assert.are.same({ a = 5, b = "abcd5" }, (N:load(r)))
    r.a = 6
    assert.are.same({ a = 6, b = "abcd5" }, (N:load(r)))
    local claimed, now = halves(0)
    assert.are.same({ claimed, published + 3 }, { now, now })
    -- Tickets go round.
    m:fill(0)
    m:store(0, 0xfffffffe << 32 | 0xfffffffe)
    for cell = 0, 2 do m:store(8 + cell * 8, 0xfffffffe << 32) end
    for i = 1, 4 do
      r.a = i
      assert.are.equal(i, r.a)
    end
    -- What nobody can have stored: all fields mend it.
    for round = 1, 2 do
      m:fill(0xff, 8)
      m:store(0, 0)
      assert.are.equal(ipc.errno.EBADMSG, select(3, N:load(r)))
      assert.are.equal(ipc.errno.EBADMSG, select(3, N:store(r, { a = 1 })))
      raises("of no store", function() return r.a end)
      raises("of no store", function() r.a = 1 end)
      if round == 1 then
        assert.is_true(N:store(r, { a = 1, b = "x" }))
      else
        local other = bytes(N.size):view(N)
        N:store(other, { a = 1, b = "x" })
        assert.is_true(N:store(r, other))
      end
      assert.are.same({ a = 1, b = "x\0\0\0\0" }, (N:load(r)))
    end
  end)

  -- Records whose fields all say the same number: torn ones do not.
  local Same = ipc.struct { { "list", "I4", 40 }, { "text", "c16" }, versioned = true }

  local function same(n)
    local list = {}
    for i = 1, 40 do list[i] = n & 0xffffffff end
    return { list = list, text = ("%016d"):format(n & 0xffffffff) }
  end

  local function whole(t)
    for i = 2, 40 do
      if t.list[i] ~= t.list[1] then return false end
    end
    return t.text == ("%016d"):format(t.list[1])
  end

  it("is never seen in parts, whoever stores", function()
    local m = bytes(8 + Same.size)
    local r = m:view(Same, 8)
    Same:store(r, same(0))
    local writers = {}
    for w = 1, 3 do
      writers[w] = peer.fork(function()
        for n = 1, 4000 do assert(Same:store(r, same(w * 100000 + n))) end
        m:add(0, 1)
      end)
    end
    local readers = {}
    for i = 1, 2 do
      readers[i] = peer.fork(function()
        local seen, last = 0, nil
        repeat
          local done = m:load(0) == 3
          local t, version = assert(Same:load(r))
          assert(whole(t), "torn")
          if version ~= last then seen, last = seen + 1, version end
        until done
        return seen
      end)
    end
    for _, child in ipairs(writers) do assert(child:wait(3 * peer.limit)) end
    for _, child in ipairs(readers) do
      local ok, seen = assert(child:wait(3 * peer.limit))
      assert.is_true(ok and seen >= 1)
    end
    assert.is_true(whole((Same:load(r))))
  end)

  it("is a C program's, too, by the reference", function()
    local path = new_path()
    local binary = path .. ".x"
    do
      local compiler = io.popen("LD_PRELOAD= cc -std=c11 -Wall -Wextra -Werror -O2 -x c -o " .. binary .. " -", "w")
      compiler:write [[
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
struct same { uint32_t list[40]; char text[16]; };
enum { CELLS = (sizeof(struct same) + 3) / 4 };
struct record { _Atomic uint64_t word, copy[2][CELLS]; };
static void load(struct record *r, struct same *s) {
  for (;;) {
    uint32_t data[CELLS], i = 0, published = (uint32_t)atomic_load(&r->word);
    for (; i < CELLS; i++) {
      uint64_t cell = atomic_load(&r->copy[published & 1][i]);
      if (cell >> 32 != published) break;
      data[i] = (uint32_t)cell;
    }
    memcpy(s, data, sizeof *s);
    if (i == CELLS) return;
  }
}
static int store(struct record *r, const struct same *s) {
  uint64_t word = atomic_load(&r->word);
  uint32_t data[CELLS], published = (uint32_t)word, next = (uint32_t)(word >> 32) + 1;
  if ((next & 1) == (published & 1)) next++;
  uint64_t mine = (uint64_t)next << 32 | published;
  memcpy(data, s, sizeof *s);
  if (!atomic_compare_exchange_strong(&r->word, &word, mine)) return 0;
  for (uint32_t i = 0; i < CELLS; i++) {
    _Atomic uint64_t *cell = &r->copy[next & 1][i];
    uint64_t was = atomic_load(cell);
    do
      if (atomic_load(&r->word) != mine) return 0;
    while (!atomic_compare_exchange_strong(cell, &was, (uint64_t)next << 32 | data[i]));
  }
  return atomic_compare_exchange_strong(&r->word, &mine, (uint64_t)next << 32 | next);
}
int main(int argc, char **argv) {
  int fd = open(argv[argc - 1], O_RDWR);
  struct record *r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (r == MAP_FAILED) return 1;
  for (uint32_t n = 1; n <= 3000; n++) {
    struct same s;
    char text[17];
    do {
      load(r, &s);
      for (int i = 1; i < 40; i++) if (s.list[i] != s.list[0]) return 2;
      snprintf(text, sizeof text, "%016u", (unsigned)s.list[0]);
      if (memcmp(text, s.text, 16)) return 3;
      for (int i = 0; i < 40; i++) s.list[i] = 1000000 + n;
      snprintf(text, sizeof text, "%016u", (unsigned)(1000000 + n));
      memcpy(s.text, text, 16);
    } while (!store(r, &s));
  }
  puts("whole");
  return 0;
}
]]
      assert.is_true(compiler:close())
    end
    local m = peer.keep(assert(ipc.memory(nil, Same.size, { file = path })))
    local r = m:view(Same)
    Same:store(r, same(0))
    local program <close> = peer.popen(binary .. " " .. path)
    local n = 0
    repeat
      n = n + 1
      assert.is_true(Same:store(r, same(n)))
      local t = assert(Same:load(r))
      assert.is_true(whole(t))
    until n >= 3000
    assert.are.equal("whole", program:read "l")
    assert.is_true(whole((Same:load(r))))
    os.remove(path)
    os.remove(binary)
  end)

  it("loses no field that another process stores", function()
    local Two = ipc.struct { { "a", "I4" }, { "b", "I4" }, versioned = true }
    local m = bytes(Two.size)
    local r = m:view(Two)
    local children = {}
    for i, name in ipairs { "a", "b" } do
      children[i] = peer.fork(function()
        for n = 1, 10000 do
          r[name] = n
          assert(r[name] == n, "lost")
        end
      end)
    end
    for _, child in ipairs(children) do assert(child:wait(3 * peer.limit)) end
    assert.are.same({ a = 10000, b = 10000 }, (Two:load(r)))
  end)

  it("stays whole and writable when its writers are killed", function()
    local m = bytes(16 + Same.size)
    local r = m:view(Same, 16)
    Same:store(r, same(0))
    local reader = peer.fork(function()
      local n = 0
      repeat
        local done = m:load(0) == 1
        assert(whole(assert(Same:load(r))), "torn")
        n = n + 1
      until done
      return n
    end)
    for round = 1, 300 do
      local from = m:load(8)
      local child = assert(ipc.fork(function()
        for n = round * 1000, math.maxinteger do
          assert(Same:store(r, same(n)))
          m:add(8, 1)
        end
      end))
      -- It has begun, and is somewhere in one of its stores.
      local deadline = ipc.now() + peer.limit
      repeat until m:load(8) > from + round % 7 or ipc.now() > deadline
      assert(child:kill "KILL")
      child:wait(peer.limit)
      child:close()
      assert.is_true(whole(assert(Same:load(r))))
      assert.is_true(Same:store(r, same(round)))
      assert.are.equal(round, r.list[40])
    end
    m:store(0, 1)
    local ok, n = assert(reader:wait(3 * peer.limit))
    assert.is_true(ok and n > 0)
  end)
end)
