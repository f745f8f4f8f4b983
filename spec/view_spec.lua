-- Views: bytes of a queue in place. What lends them is a queue made for one
-- writer and one reader; what it counts, sends and takes is in its own spec.
local ipc = require "ipc"

local EPIPE = ipc.errno.EPIPE

-- No shared memory, no views: shm_spec says what is answered then.
if not require "spec.support.peer".has "shm" then return end

-- The ends of a queue, reader first.
local function queue()
  local r, w = assert(ipc.queue { writers = 1, readers = 1, capacity = 65536 })
  r:settimeout(10)
  w:settimeout(10)
  return r, w
end

-- Every way to raise blames the caller, whose line comes first.
local function raises(cause, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(cause, message)
end

describe("a view", function()
  local r, w -- of the queue
  local a, b -- of a pipe

  before_each(function()
    r, w = queue()
    a, b = assert(ipc.pipe())
    a:settimeout(10)
    b:settimeout(10)
  end)

  after_each(function()
    for _, channel in ipairs { r, w, a, b } do channel:close() end
  end)

  -- A message that is looked at.
  local function look(bytes)
    assert(w:send(bytes))
    return assert(r:peek(10))
  end

  describe("that is written", function()
    it("holds what string.pack makes of it, at offsets from 0", function()
      local v <close> = assert(w:reserve(64))
      assert.are.equal(64, #v)
      assert.are.equal("ipc.view (64 bytes)", tostring(v))
      assert.are.equal(4, v:pack(0, "<I4", 0x01020304))
      assert.are.equal(13, v:pack(4, "<d b", 0.5, -1))
      assert.are.equal(17, v:pack(13, "z", "abc"))
      assert.are.equal(17, v:pack(17, ""))
      assert.are.equal(64, v:pack(64, ""))
      assert.is_true(v:commit(17))
      assert.are.equal(string.pack("<I4dbz", 0x01020304, 0.5, -1, "abc"), r:recv())
    end)

    it("aligns from its own start", function()
      for _, format in ipairs { "!8 d", "!4 <I4 I8", "! >i2 j", "!16 Xi16 B", "<!8 b Xd i4", "!2 s4" } do
        for offset = 0, 17 do
          local v <close> = assert(w:reserve(64))
          v:fill(0)
          local after = v:pack(offset, format, 7, 9)
          local expected = string.pack(("x"):rep(offset) .. format, 7, 9)
          assert.are.equal(#expected, after)
          assert.are.equal(expected, v:read(0, after))
          local theirs = { string.unpack(("x"):rep(offset) .. format, expected) }
          theirs[#theirs] = after
          assert.are.same(theirs, { v:unpack(offset, format) })
        end
      end
    end)

    it("takes strings, views and single bytes", function()
      local v <close> = assert(w:reserve(8))
      assert.are.equal(8, v:fill(0x2d))
      assert.are.equal(3, v:write(0, "abc"))
      assert.are.equal(3, v:write(3, ""))
      assert.are.equal(6, v:fill(0x2e, 5, 1))
      assert.are.equal("abc--.--", v:read())
      assert.are.equal(8, v:write(0, v))
      assert.is_true(v:commit())
      assert.are.equal("abc--.--", r:recv())
    end)

    it("is left untouched by what does not fit or cannot be packed", function()
      local v <close> = assert(w:reserve(8))
      v:fill(0x2d)
      raises("view_spec.*#1 to 'pack' %(8 bytes at offset 1, but the view has 8%)",
        function() v:pack(1, "<I8", 1) end)
      raises("#1 to 'pack' %(9 bytes at offset 0", function() v:pack(0, "s1", "12345678") end)
      raises("#1 to 'write' %(9 bytes at offset 0", function() v:write(0, "123456789") end)
      raises("view_spec.*#4 to 'pack' %(number expected, got string%)",
        function() v:pack(0, "BB", 1, "x") end)
      raises("#3 to 'pack' %(unsigned overflow%)", function() v:pack(0, "B", 256) end)
      raises("#3 to 'pack' %(number expected", function() v:pack(0, "B") end)
      raises("view_spec.*invalid format option 'y'", function() v:pack(0, "y") end)
      raises("integral size", function() v:pack(0, "i17", 1) end)
      raises("#2 to 'pack' %(invalid next option", function() v:pack(0, "X") end)
      raises("string expected, got no value", function() v:pack(0) end)
      raises("string expected, got number", function() v:pack(0, 8) end)
      raises("string expected, got number", function() v:write(0, 8) end)
      raises("string expected, got FILE", function() v:write(0, io.stdout) end)
      for _, byte in ipairs { -1, 256, 0.5, "1" } do
        raises("#1 to 'fill'", function() v:fill(byte) end)
      end
      raises("count 8 is not within 0..7", function() v:fill(0, 1, 8) end)
      assert.are.equal("--------", v:read())
    end)

    it("may not be one that is only to be read", function()
      local v <close> = look "abc"
      raises("only to be read", function() v:pack(0, "B", 1) end)
      raises("only to be read", function() v:write(0, "") end)
      raises("only to be read", function() v:fill(0) end)
      assert.are.equal("abc", v:read())
    end)
  end)

  describe("that is read", function()
    it("gives its bytes, whole or in part", function()
      local bytes = {}
      for i = 1, 1000 do bytes[i] = string.char(math.random(0, 255)) end
      bytes = table.concat(bytes)
      local v <close> = look(bytes)
      assert.are.equal(bytes, v:read())
      assert.are.equal(bytes:sub(11), v:read(10))
      assert.are.equal(bytes:sub(11, 13), v:read(10, 3))
      assert.are.equal(bytes:sub(101, 900), v:read(100, 800))
      assert.are.equal("", v:read(1000))
      assert.are.equal("", v:read(1000, 0))
      assert.are.equal("", v:read(5, 0))
    end)

    it("gives what string.unpack makes of it, and the offset after", function()
      local v <close> = look(string.pack(">I2 s1 z f", 513, "four", "zero", 0.5))
      assert.are.same({ 513, "four", "zero", 0.5, 16 }, { v:unpack(0, ">I2 s1 z f") })
      assert.are.same({ "four", 7 }, { v:unpack(2, "s1") })
      assert.are.same({ "zero", 12 }, { v:unpack(7, "z") })
      assert.are.same({ "four", 7 }, { v:unpack(3, "c4") })
      assert.are.same({ 0 }, { v:unpack(0, "") })
      assert.are.same({ 16 }, { v:unpack(16, "") })
    end)

    it("looks for the end of long strings as far as it goes, and no further", function()
      for _, n in ipairs { 0, 1, 251, 252, 253, 254, 255, 256, 257, 2047, 2048, 5000, 20000 } do
        local s = ("x"):rep(n)
        local v <close> = look(string.pack("<s4 z B", s, s, 7))
        assert.are.same({ s, s, 7, #v }, { v:unpack(0, "<s4 z B") })
        assert.are.same({ s, 4 + n }, { v:unpack(0, "<s4") })
        raises("view_spec.*#1 to 'unpack' %(data string too short%)",
          function() v:unpack(0, "<s4 z B B") end)
        raises("#1 to 'unpack' %(unfinished string", function() v:unpack(#v - 1, "z") end)
        assert.is_true(v:release())
      end
    end)

    it("raises on what goes beyond it", function()
      local v <close> = look "\255\255\255\255"
      local huge = "c" .. math.maxinteger // 2
      raises("view_spec.*#1 to 'unpack' %(8 bytes at offset 0, but the view has 4%)",
        function() v:unpack(0, "i8") end)
      raises("1 bytes at offset 4, but the view has 4", function() v:unpack(4, "B") end)
      raises("data string too short", function() v:unpack(0, "s1") end)
      raises("data string too short", function() v:unpack(0, "I1 s2") end)
      raises("data string too short", function() v:unpack(0, "s8") end)
      raises("unfinished string", function() v:unpack(0, "z") end)
      raises("view_spec", function() v:unpack(0, huge) end)
      raises("view_spec", function() v:unpack(0, huge:rep(3)) end)
      raises("view_spec", function() v:unpack(0, huge .. "z") end)
      raises("view_spec.*5 bytes at offset 0", function() v:read(0, 5) end)
      raises("1 bytes at offset 4", function() v:read(4, 1) end)
      raises("view_spec.*invalid format option 'y'", function() v:unpack(0, "y") end)
      raises("invalid format option 'y'", function() v:unpack(0, "By z") end)
      raises("#2 to 'unpack' %(invalid next option", function() v:unpack(0, "X") end)
      raises("#2 to 'unpack'", function() v:unpack(0) end)
    end)
  end)

  it("refuses offsets and counts that are none", function()
    local v <close> = assert(w:reserve(8))
    local offsets = { -1, 9, math.maxinteger, math.mininteger, 2.0 ^ 63, -2.0 ^ 63, 2.0 ^ 53, 1 / 0,
      -1 / 0, 0 / 0, 0.5, "0", {}, true }
    for _, offset in ipairs(offsets) do
      raises("#1 to 'pack'", function() v:pack(offset, "") end)
      raises("#1 to 'unpack'", function() v:unpack(offset, "") end)
      raises("#1 to 'read'", function() v:read(offset) end)
      raises("#1 to 'write'", function() v:write(offset, "") end)
      raises("#2 to 'fill'", function() v:fill(0, offset) end)
      raises("#3 to 'fill'", function() v:fill(0, 0, offset) end)
      raises("#[12] to 'read'", function() v:read(0, offset) end)
      raises("#1 to 'commit'", function() v:commit(offset) end)
    end
    raises("offset 9 is not within 0..8", function() v:read(9) end)
    assert.are.equal(5, v:write(3.0, "ab"))
    assert.are.equal("ab", v:read(3, 2))
    assert.is_true(v:commit(0))
    assert.are.equal("", r:recv())
  end)

  it("of no bytes is one too", function()
    local v <close> = assert(w:reserve(0))
    assert.are.equal(0, #v)
    assert.are.equal("", v:read())
    assert.are.equal(0, v:pack(0, ""))
    assert.are.equal(0, v:fill(0))
    assert.are.same({ 0 }, { v:unpack(0, "") })
    raises("1 bytes at offset 0", function() v:pack(0, "B", 1) end)
    assert.is_true(v:commit())
    assert.are.equal("", r:recv())
  end)

  it("wants itself as self", function()
    local v <close> = assert(w:reserve(8))
    local meta = debug.getmetatable(v)
    assert.are.equal("ipc", getmetatable(v))
    for _, f in pairs(meta.__index) do
      for _, odd in ipairs { 1, "x", {}, io.stdout, ipc.ext(1, ""), ipc.null, r } do
        raises("ipc%.view expected", f, odd)
      end
      raises("ipc%.view expected", f)
    end
    for _, name in ipairs { "__len", "__gc", "__close", "__tostring" } do
      raises("ipc%.view expected", meta[name], {})
    end
  end)

  describe("ends", function()
    -- Every use of an ended view is a mistake, whichever way it ended.
    local function ended(v, call)
      local cause = "view_spec.*ipc%.view: used after " .. call
      raises(cause, function() v:read() end)
      raises(cause, function() v:unpack(0, "B") end)
      raises(cause, function() v:pack(0, "B", 1) end)
      raises(cause, function() v:write(0, "") end)
      raises(cause, function() v:fill(0) end)
      raises(cause, function() v:commit() end)
      raises(cause, function() v:release() end)
      raises(cause, function() return #v end)
      raises(cause, function() b:send(v) end)
      raises(cause, function() b:sendmany { "a", v } end)
      raises("value%.v: an ipc%.view that has ended", function() b:put { v = v } end)
      assert.are.equal("ipc.view (ended)", tostring(v))
      assert.is_true(v:close())
      assert.is_true(v:close())
    end

    it("by commit, with as many bytes as it is told", function()
      local v <close> = assert(w:reserve(8))
      v:write(0, "abcdefgh")
      assert.is_true(v:commit(3))
      ended(v, "commit")
      assert.are.equal("abc", r:recv())
    end)

    it("by release, which takes the message", function()
      local v <close> = look "abc"
      assert.is_true(v:release())
      ended(v, "release")
      assert.are.equal("timeout", select(2, r:recv(0)))
    end)

    it("by close or its scope, which give it back", function()
      local v = assert(w:reserve(8))
      assert.is_true(v:close())
      ended(v, "close")
      do
        local scoped <close> = assert(w:reserve(8))
        v = scoped
      end
      ended(v, "close")
      do
        local scoped <close> = look "next"
        assert.are.equal("next", scoped:read())
        v = scoped
      end
      ended(v, "close")
      assert.are.equal("next", r:recv())
    end)

    it("by the collector, which gives it back", function()
      assert(w:reserve(8))
      collectgarbage()
      look "next"
      collectgarbage()
      assert.are.equal("next", r:recv())
    end)

    it("by the call made for it only", function()
      local v <close> = assert(w:reserve(8))
      raises("reserved: commit%(%) sends it", function() v:release() end)
      assert.is_true(v:commit())
      local looked <close> = assert(r:peek(10))
      raises("not reserved: release%(%) ends it", function() looked:commit() end)
      assert.is_true(looked:release())
    end)
  end)

  it("of what was closed answers so", function()
    local v <close> = assert(w:reserve(8))
    local answers = function(...) assert.are.same({ nil, "closed", EPIPE }, { ... }) end
    w:close()
    answers(v:read())
    answers(v:unpack(0, "B"))
    answers(v:unpack(0, "z"))
    answers(v:pack(0, "B", 1))
    answers(v:write(0, "a"))
    answers(v:fill(0))
    answers(b:send(v))
    local many = table.pack(b:sendmany { "x", v })
    assert.are.same({ nil, "closed", EPIPE, 0, n = 4 }, many)
    raises("value%[2%]: an ipc%.view of what is closed", function() b:put { 1, v } end)
    assert.are.equal(8, #v)
    answers(v:commit())
    raises("used after commit", function() v:read() end)
  end)

  it("keeps what it belongs to alive", function()
    local v, kept
    do
      local x, y = queue()
      assert(y:send "abc")
      v, kept = assert(x:peek(10)), y
    end
    collectgarbage()
    collectgarbage()
    assert.are.equal("abc", v:read())
    assert.is_true(v:release())
    kept:close()
  end)

  describe("goes where bytes go:", function()
    it("send, and what is not out yet outlives it", function()
      local bytes = ("0123456789abcdef"):rep(3000)
      local x, y = ipc.pipe { capacity = 4096 }
      if not x then x, y = assert(ipc.pipe()) end -- not to be had on every system
      local v <close> = look(bytes)
      y:send(v, nil, 0)
      assert.is_true(v:release())
      assert(w:send(("-"):rep(#bytes)))
      local got
      repeat
        y:flush(0)
        got = x:recv(0.01)
      until got
      assert.are.equal(bytes, got)
      x:close()
      y:close()
    end)

    it("sendmany, with strings beside it", function()
      local v <close> = look "view"
      local list = { "first", v, "", v }
      assert.are.equal(4, b:sendmany(list))
      assert.are.equal(v, list[2])
      for _, expected in ipairs { "first", "view", "", "view" } do
        assert.are.equal(expected, a:recv())
      end
      raises("list%[3%]: string expected, got table", function() b:sendmany { "a", v, {} } end)
      raises("list%[1%]: string expected, got userdata", function() b:sendmany { io.stdout, v } end)
    end)

    it("put, as binary", function()
      do
        local v <close> = look "view"
        assert.is_true(b:put { v = v, list = { v, 1 } })
        assert.are.same({ v = "view", list = { "view", 1 } }, a:get())
        assert.are.equal("\xc4\x04view", ipc.pack(v))
        assert.are.equal("\xc4\x04view", ipc.pack(v, { strings = "str" }))
        raises("an ipc%.view cannot be packed as a key", function() ipc.pack { [v] = 1 } end)
        assert.is_true(v:release())
      end
      for _, n in ipairs { 0, 255, 256, 30000 } do
        local v <close> = look(("\xff"):rep(n))
        local expected = ipc.pack(("\xff"):rep(n), { strings = "bin" })
        assert.are.equal(expected, ipc.pack(v))
        assert.is_true(v:release())
      end
    end)

    it("sendmsg", function()
      local x, y = assert(ipc.pair "unix")
      local v <close> = look "view"
      assert.is_true(x:sendmsg(v, {}))
      assert.are.equal("view", y:recv(10))
      x:close()
      y:close()
    end)
  end)

  it("may be ended by a finaliser while it is used", function()
    local found, rounds = 0, 0
    while found < 20 do -- no other way to fail than not to end
      rounds = rounds + 1
      local v <close> = assert(w:reserve(4096))
      setmetatable({}, { __gc = function() v:close() end })
      local ok, message = true, nil
      while ok do
        ok, message = pcall(function()
          v:write(0, ("x"):rep(2000 + rounds % 2000))
          v:pack(0, "s4", ("y"):rep(3000))
          v:unpack(0, "s4")
          v:read(1, 3000)
        end)
      end
      assert.matches("used after close", message)
      found = found + 1
    end
  end)

  it("may lose what it belongs to by a finaliser while it is used", function()
    for _ = 1, 20 do
      local x, y = queue()
      local v <close> = assert(y:reserve(4096))
      setmetatable({}, { __gc = function()
        y:close()
        x:close()
      end })
      local done, message
      repeat -- no other way to fail than not to end
        done, message = v:pack(0, "s4", ("y"):rep(3000))
        if done then done, message = v:unpack(0, "s4") end
        if done then done, message = v:read(1, 3000) end
        if done then done, message = v:write(0, v) end
        if done then pcall(ipc.pack, { v }) end
      until not done or not pcall(ipc.pack, v)
      assert(done or message == "closed", message)
    end
  end)

  it("lets a hook's error through", function()
    local v <close> = look(("x"):rep(1000) .. "\0")
    local odd, calls = {}, 0
    local co = coroutine.create(function()
      while true do v:unpack(0, "z") end
    end)
    debug.sethook(co, function()
      calls = calls + 1
      if calls == 4 then error(odd) end
    end, "c")
    local ok, why = coroutine.resume(co)
    assert.is_false(ok)
    assert.are.equal(odd, why)
    assert.are.equal(1000, #v:unpack(0, "z"))
  end)

  describe("packs and unpacks as string.pack does:", function()
    local letters = { "b", "B", "h", "H", "i", "I", "l", "L", "j", "J", "T", "f", "d", "n", "x", "<", ">", "=", " ",
      "i1", "I2", "i3", "I4", "i5", "I6", "i7", "I8", "i8", "I16", "i9", "c3", "s2", "z", "!8", "!", "Xd", "i0",
      "I17", "y" }
    local values = { 0, 1, -1, 127, 128, 255, 256, -128, -129, 32767, 65535, 2 ^ 31 | 0, 2 ^ 32 | 0, -(2 ^ 31) | 0,
      math.maxinteger, math.mininteger, 0.5, -0.0, 1 / 0, 0 / 0, 3.0, 1e300, 2.0 ^ 63, "10", "0x7", "abc", true,
      1e-45 }

    -- Without the position, and with the argument's number as ours is.
    local function cause(message, shift)
      message = tostring(message):gsub("^[^:]+:%d+: ", "")
      return (message:gsub("#(%d+) to '[^']+'", function(n) return "#" .. n + shift end))
    end

    local function formatted(n)
      local format = {}
      for i = 1, math.random(n) do
        local plain = math.random(8) > 1
        format[i] = letters[math.random(plain and 27 or #letters)]
      end
      return table.concat(format)
    end

    it("any formats, any values", function()
      local v <close> = assert(w:reserve(4096))
      for _ = 1, 20000 do
        local format, list = formatted(10), {}
        for i = 1, math.random(0, 12) do list[i] = values[math.random(#values)] end
        local ok, bytes = pcall(string.pack, format, table.unpack(list))
        v:fill(0x2d, 0, 256)
        local mine, after = pcall(v.pack, v, 0, format, table.unpack(list))
        assert.are.equal(ok, mine, format)
        if ok then
          assert.are.equal(#bytes, after, format)
          assert.are.equal(bytes, v:read(0, after), format)
          local theirs, ours = table.pack(string.unpack(format, bytes)), table.pack(v:unpack(0, format))
          assert.are.equal(theirs.n, ours.n)
          for i = 1, ours.n - 1 do
            assert.are.equal(math.type(theirs[i]), math.type(ours[i]))
            assert.is_true(theirs[i] == ours[i] or theirs[i] ~= theirs[i], format)
          end
          assert.are.equal(theirs[theirs.n] - 1, ours[ours.n])
        else
          assert.are.equal(cause(bytes, 2), cause(after, 0), format)
          assert.are.equal(("-"):rep(256), v:read(0, 256))
        end
      end
    end)

    it("any bytes, every bit of a number", function()
      local v <close> = assert(w:reserve(4096))
      for _ = 1, 5000 do
        local bytes = {}
        for i = 1, 100 do bytes[i] = string.char(math.random(0, 255)) end
        bytes = table.concat(bytes)
        local format, offset = formatted(10), math.random(0, 20)
        v:write(0, bytes)
        local all = v:range(0, 100)
        local ok, _ = pcall(string.unpack, "!1" .. format, bytes, offset + 1)
        if not format:find "!" and not format:find "X" then
          local mine = table.pack(pcall(all.unpack, all, offset, format))
          assert.are.equal(ok, mine[1], format)
          if ok then
            local theirs = table.pack(string.unpack(format, bytes, offset + 1))
            assert.are.equal(theirs.n, mine.n - 1)
            for i = 1, theirs.n - 1 do
              assert.are.equal(string.pack("n", tonumber(theirs[i]) or 0), string.pack("n", tonumber(mine[i + 1]) or 0))
            end
          end
        end
      end
    end)

    it("more values than are done at once", function()
      local v <close> = assert(w:reserve(4096))
      for n = 30, 300, 30 do
        local format, list = "<" .. ("I3"):rep(n), {}
        for i = 1, n do list[i] = i end
        assert.are.equal(3 * n, v:pack(0, format, table.unpack(list)))
        list[n + 1] = 3 * n
        assert.are.same(list, { v:unpack(0, format) })
      end
    end)
  end)

  describe("finds, compares and copies", function()
    local v, bytes

    before_each(function()
      v = assert(w:reserve(1000))
      bytes = {}
      for i = 1, 1000 do bytes[i] = ("ab"):sub(math.random(2), -1):sub(1, 1) end
      bytes = table.concat(bytes)
      v:write(0, bytes)
    end)

    after_each(function() v:close() end)

    it("what string.find finds", function()
      for _ = 1, 2000 do
        local from, n = math.random(0, 1000), math.random(0, 12)
        local what = bytes:sub(math.random(1000), -1):sub(1, n)
        if math.random(2) == 1 then what = what .. ("ab"):sub(math.random(2), -1) end
        local at = bytes:find(what, from + 1, true)
        assert.are.equal(at and at - 1, (v:find(what, from)))
        local count = math.random(0, 1000 - from)
        at = bytes:sub(from + 1, from + count):find(what, 1, true)
        assert.are.equal(at and at - 1 + from, (v:find(what, from, count)))
      end
      assert.are.equal(1, select("#", v:find "zzz"))
      assert.are.equal(1000, v:find("", 1000))
      assert.is_nil(v:find("a", 1000))
      assert.are.equal(0, v:find(v))
      assert.are.equal(7, v:find(v:range(7), 5))
    end)

    it("orders as memcmp does", function()
      v:write(0, "abc\xff\0abd")
      assert.are.equal(0, v:compare(0, "abc\xff\0"))
      assert.are.equal(-1, v:compare(0, "abd"))
      assert.are.equal(1, v:compare(3, "\x7f"))
      assert.are.equal(0, v:compare(5, "xabd", 1))
      assert.are.equal(0, v:compare(5, "xabdy", 1, 3))
      assert.are.equal(0, v:compare(5, v, 5))
      assert.are.equal(0, v:compare(0, ""))
      assert.are.equal(1, v:compare(5, v, 0, 3))
      raises("#1 to 'compare' %(4 bytes at offset 997, but the view has 1000%)",
        function() v:compare(997, "abcd") end)
      raises("#3 to 'compare'", function() v:compare(0, "abc", 4) end)
      raises("#3 to 'compare' %(3 bytes at offset 1, but the string has 3", function() v:compare(0, "abc", 1, 3) end)
    end)

    it("ranges that overlap", function()
      for _ = 1, 500 do
        local to, from = math.random(0, 999), math.random(0, 999)
        local n = math.random(0, 1000 - math.max(to, from))
        local before = v:read()
        assert.are.equal(to + n, v:copy(to, v, from, n))
        assert.are.equal(before:sub(1, to) .. before:sub(from + 1, from + n) .. before:sub(to + n + 1), v:read())
      end
      assert.are.equal(3, v:copy(0, "xabcx", 1, 3))
      assert.are.equal("abc", v:read(0, 3))
      raises("#1 to 'copy'", function() v:copy(1, v) end)
      raises("#2 to 'copy' %(string expected, got number", function() v:copy(0, 7) end)
      raises("#2 to 'copy' %(string expected, got FILE", function() v:copy(0, io.stdout) end)
    end)

    it("what is only to be read", function()
      v:commit()
      local seen <close> = assert(r:peek(10))
      assert.are.equal(0, seen:compare(0, bytes))
      raises("only to be read", function() seen:copy(0, "a") end)
      raises("only to be read", function() seen:add(0, 1) end)
      raises("only to be read", function() seen:cas(0, 1, 2) end)
      raises("only to be read", function() seen:range(0):store(0, 1) end)
      assert.are.equal((string.unpack("=I8", bytes)), seen:load(0))
    end)
  end)

  describe("has ranges, which", function()
    it("are views of a part", function()
      local v <close> = assert(w:reserve(100))
      v:write(0, ("0123456789"):rep(10))
      local part = v:range(10, 20)
      assert.are.equal("ipc.view (20 bytes)", tostring(part))
      assert.are.equal(20, #part)
      assert.are.equal("01234567890123456789", part:read())
      assert.are.equal("5678", part:range(5, 4):read())
      assert.are.equal("", part:range(20):read())
      part:range(5, 4):fill(0x2d)
      assert.are.equal("01234----9", v:read(10, 10))
      raises("21 bytes at offset 0, but the view has 20", function() part:range(0, 21) end)
      raises("1 bytes at offset 20, but the view has 20", function() part:read(20, 1) end)
      raises("not reserved", function() part:commit() end)
      assert.is_true(b:send(part))
      assert.are.equal("01234----90123456789", a:recv())
    end)

    it("end on their own, and with what they are of", function()
      local v <close> = assert(w:reserve(100))
      local part, other = v:range(10, 20), v:range(0).range
      other = other(v, 5):range(5)
      assert.is_true(part:release())
      raises("used after release", function() part:read() end)
      other:write(0, "abc")
      assert.is_true(v:commit())
      raises("used after commit", function() other:read() end)
      raises("used after commit", function() return #other end)
      raises("used after commit", function() other:range(0) end)
      raises("used after commit", function() b:send(other) end)
      assert.are.equal("ipc.view (ended)", tostring(other))
      assert.is_true(other:close())
      local last <close> = assert(w:reserve(100))
      local middle = last:range(10)
      local inner = middle:range(10)
      inner:write(0, "x")
      assert.are.equal("x", last:read(20, 1))
      middle:close()
      raises("used after close", function() inner:read() end)
      raises("ranges of 100 ranges", function()
        local range = last
        for _ = 1, 200 do range = range:range(0) end
      end)
      last:close()
      assert.are.equal(100, #r:recv())
    end)

    it("answer closed, and keep what they are of alive", function()
      local x, y = queue()
      local part = assert(y:reserve(100)):range(5, 5)
      collectgarbage()
      collectgarbage()
      assert.are.equal(3, part:write(0, "abc"))
      y:close()
      assert.are.same({ nil, "closed", EPIPE }, { part:read() })
      x:close()
    end)
  end)

  describe("has words, which", function()
    local v
    before_each(function()
      v = assert(w:reserve(64))
      v:fill(0)
    end)
    after_each(function() v:close() end)

    it("are changed as numbers of their size", function()
      assert.is_true(v:store(0, -1))
      assert.are.equal(-1, v:load(0))
      assert.are.equal(0xffffffff, v:load(0, "I4"))
      assert.are.equal(-1, v:load(4, "i4"))
      assert.are.equal(-1, v:add(0, 2))
      assert.are.equal(1, v:load(0))
      assert.are.equal(1, v:sub(0, 3))
      assert.are.equal(-2, v:xchg(0, 0x0f0f))
      assert.are.equal(0x0f0f, v:band(0, 0xff))
      assert.are.equal(0x0f, v:bor(0, 0xf0))
      assert.are.equal(0xff, v:load(0, "i8"))
      assert.is_true(v:cas(0, 0xff, math.mininteger))
      assert.are.same({ false, math.mininteger }, { v:cas(0, 0xff, 1) })
      assert.are.equal(0, v:xchg(8, 2 ^ 32 - 1 | 0, "I4"))
      assert.are.equal(2 ^ 32 - 1 | 0, v:add(8, 1, "I4"))
      assert.are.equal(0, v:load(8))
      assert.are.equal(0, v:sub(8, 1, "i4"))
      assert.are.equal(-1, v:band(8, ~1, "i4"))
      assert.are.equal(0xfffffffe, v:bor(8, 1 << 33, "I4"))
      assert.are.same({ false, -2 }, { v:cas(8, 0, 1, "i4") })
      assert.is_true(v:cas(8, -2, 1, "i4"))
      assert.are.equal(1, v:load(8))
      assert.is_true(v:store(16, 7.0))
      assert.are.equal(string.pack("=i8", 7), v:read(16, 8))
    end)

    it("must be aligned, there, and named", function()
      for _, name in ipairs { "load", "store", "add", "sub", "band", "bor", "xchg", "cas", "wake" } do
        local f = function(offset, kind)
          local list = { 0, 0, 0 }
          list[name == "load" and 1 or name == "cas" and 3 or 2] = kind
          if name == "load" then list[2], list[3] = nil, nil end
          if name == "wake" then list[1] = nil end
          return v[name](v, offset, table.unpack(list, 1, 4))
        end
        assert.is_not_nil(f(0))
        raises("%(offset 4 is not aligned to 8 bytes%)", f, 4)
        raises("8 bytes at offset 60, but the view has 64", f, 60)
        for _, offset in ipairs { 65, -8, 0.5, "0" } do raises("bad argument #[12] to", f, offset) end
        assert.is_not_nil(f(60, "I4"))
        raises("not aligned to 4", f, 2, "i4")
        for _, kind in ipairs { "", "I", "I2", "I44", "d", "i16", "I8\0", "I8\0zz" } do
          raises('"I4", "I8", "i4" or "i8" expected', f, 0, kind)
        end
        raises("string expected, got number", f, 0, 8)
      end
      raises("not aligned", function() v:range(1):load(0) end)
      assert.are.equal(0, v:range(1):load(7))
    end)

    it("hold what fits", function()
      for _, value in ipairs { -1, 2 ^ 32 | 0, math.mininteger } do
        raises('#2 to \'store\' %(it does not fit "I4"%)', function() v:store(0, value, "I4") end)
        raises('#2 to \'xchg\'', function() v:xchg(0, value, "I4") end)
        raises('#2 to \'cas\'', function() v:cas(0, value, 0, "I4") end)
        raises('#3 to \'cas\'', function() v:cas(0, 0, value, "I4") end)
      end
      raises('it does not fit "i4"', function() v:store(0, 2 ^ 31 | 0, "i4") end)
      for _, value in ipairs { 0.5, 2.0 ^ 63, 0 / 0, "1", {}, true } do
        raises("#2 to 'store'", function() v:store(0, value) end)
        raises("#2 to 'add'", function() v:add(0, value) end)
      end
      raises("#2 to 'add'", function() v:add(0) end)
      assert.are.equal(0, v:load(0))
    end)

    it("are waited for where others can change them", function()
      raises("nobody else changes these bytes", function() v:wait(0, 0, 0) end)
      assert.are.equal(0, v:wake(0))
    end)
  end)
end)
