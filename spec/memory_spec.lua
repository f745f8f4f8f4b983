-- Memories: how they are opened, shared, waited for, locked and lost. What is
-- done with their bytes is in view_spec. Python, flock(1) and python3's lockf
-- are the programs that are not us.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local scheduler = require "spec.support.scheduler"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE <const> = with.patience
local CLOSED <const> = { nil, "closed", E.EPIPE }
local without = os.getenv "IPC_WITHOUT" or ""

local shared = peer.has "shm" -- there can be participants
local is_root = io.popen("id -u"):read "n" == 0
local linux = peer.has_proc

local function fails(errno, pattern, ok, message, number)
  assert.is_nil(ok)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

local function raises(cause, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(cause, message)
end

-- ---- names and files, removed after each test

local folder = os.tmpname()
os.remove(folder)
os.execute("mkdir " .. folder)
teardown(function() os.execute("rm -rf " .. folder) end)
local count, names = 0, {}

local function new_name()
  count = count + 1
  names[#names + 1] = ("/ipc-memory-%d-%d"):format(ipc.pid(), count)
  return names[#names]
end

local function new_path()
  count = count + 1
  return ("%s/file-%d"):format(folder, count)
end

local function place(name) return "/dev/shm" .. name end

local function exists(path)
  local file <close> = io.open(path, "rb")
  return file ~= nil
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(bytes))
end

local function clean()
  with.cleanup()
  for _, name in ipairs(names) do os.remove(place(name)) end
  names = {}
  os.execute(("rm -rf %s/* %s/.??*"):format(folder, folder))
end

local function open(name, size, options)
  local m = with.close(assert(ipc.memory(name, size, options)))
  m:settimeout(PATIENCE)
  return m
end

local function file(path, size, options)
  local o = { file = path }
  for k, v in pairs(options or {}) do o[k] = v end
  return open(nil, size, o)
end

-- What a child answers.
local function child(f, ...)
  local results = table.pack(with.fork(f, ...):wait(PATIENCE))
  assert.is_true(results[1], results[2])
  return table.unpack(results, 2, results.n)
end

local function killed(f)
  local p = with.fork(function()
    f()
    os.execute("kill -KILL " .. ipc.pid())
    ipc.sleep(PATIENCE)
  end)
  assert.is_nil(p:wait(PATIENCE))
end

local function python(script, ...)
  local pipe <close> = peer.popen(peer.python_command(script, ...) .. " 2>&1", "r")
  local text = pipe:read "a"
  local ok = pipe:close()
  return text, ok
end

-- ---- every kind

local kinds = { { "of a file", function(size) return file(new_path(), size) end } }
if shared then
  table.insert(kinds, { "of a name", function(size) return open(new_name(), size) end })
  table.insert(kinds, { "without a name", function(size) return open(nil, size) end })
end

for _, kind in ipairs(kinds) do
  local make = kind[2]

  describe("a memory " .. kind[1], function()
    after_each(clean)

    it("has as many bytes as were asked for, all 0", function()
      for _, size in ipairs { 1, 7, 4095, 4096, 4097, 100000 } do
        local m = make(size)
        assert.are.equal(size, #m)
        assert.are.equal(size, m:stats().size)
        assert.are.equal(("ipc.memory (%d bytes)"):format(size), tostring(m))
        assert.are.equal(("\0"):rep(size), m:read())
        assert.are.equal(size, m:write(size - 1, "x"))
        raises("1 bytes at offset " .. size .. ", but the memory has " .. size, m.read, m, size, 1)
        assert.is_true(m:close())
      end
    end)

    it("is the same bytes in a child", function()
      local m = make(4096)
      m:write(0, "parent")
      local seen, n = child(function()
        local before = m:read(0, 6)
        m:write(0, "child ")
        m:add(8, 5)
        return before, #m
      end)
      assert.are.equal("parent", seen)
      assert.are.equal(4096, n)
      assert.are.equal("child ", m:read(0, 6))
      assert.are.equal(5, m:load(8))
    end)

    it("is the same bytes where it was sent", function()
      local m = make(100)
      local a, b = peer.pair "unix"
      m:write(0, "sent")
      assert.is_true(a:put { m })
      local got = peer.keep(b:get()[1])
      assert.are.equal(100, #got)
      assert.are.equal("sent", got:read(0, 4))
      got:write(0, "back")
      assert.are.equal("back", m:read(0, 4))
      assert.is_true(m:close())
      assert.are.equal("back", got:read(0, 4))
    end)

    it("sums up what eight processes add", function()
      local m, crew, rounds = make(4096), {}, 20000
      for i = 1, 8 do
        crew[i] = with.fork(function()
          for _ = 1, rounds do
            m:add(0, 3)
            m:sub(8, 1, "I4")
            local now
            repeat now = m:load(16) until m:cas(16, now, now + 1)
            m:bor(24, 1 << i)
          end
        end)
      end
      for i = 1, 8 do assert.is_true(crew[i]:wait(PATIENCE)) end
      assert.are.equal(8 * rounds * 3, m:load(0))
      assert.are.equal(-8 * rounds, m:load(8, "i4"))
      assert.are.equal(8 * rounds, m:load(16))
      assert.are.equal(0x1fe, m:load(24))
    end)

    it("wakes who waits for a word", function()
      local m = make(64)
      for _, type in ipairs { "I8", "I4", "i4" } do
        m:fill(0)
        local p = with.fork(function()
          for i = 1, 100 do
            assert(m:wait(8, i - 1, PATIENCE, type))
            assert(m:store(16, i, type))
            m:wake(16, nil, type)
          end
        end)
        for i = 1, 100 do
          m:store(8, i, type)
          m:wake(8, 1, type)
          assert.is_true(m:wait(16, i - 1, nil, type))
          assert.are.equal(i, m:load(16, type))
        end
        assert.is_true(p:wait(PATIENCE))
      end
    end)

    it("waits no longer than told", function()
      local m = make(64)
      m:store(0, 7)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:wait(0, 7, 0) })
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:wait(0, 7, -1) })
      local before = ipc.now()
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:wait(0, 7, 0.05) })
      assert.is_true(ipc.now() - before >= 0.05)
      m:settimeout(0.01)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:wait(0, 7) })
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:range(0):wait(0, 7) })
      assert.is_true(m:wait(0, 8, 0))
      assert.is_true(m:wait(8, 7, 0, "I4"))
      raises("not a number", m.wait, m, 0, 7, 0 / 0)
      raises("#4 to", m.wait, m, 0, 7, "1")
    end)

    it("sees a change of either half of a word", function()
      local m = make(64)
      local p = with.fork(function()
        assert(m:wait(8, 0, PATIENCE))
        m:store(0, 1 << 40)
        m:wake(0)
      end)
      m:store(8, 1)
      m:wake(8)
      assert.is_true(m:wait(0, 0))
      assert.are.equal(1 << 40, m:load(0))
      assert.is_true(p:wait(PATIENCE))
    end)

    it("lets the others go on while a task waits", function()
      local m, s, order = make(64), scheduler.new(), {}
      local function note(text) order[#order + 1] = text end
      s:go(function()
        assert(m:wait(0, 0))
        note "first"
        m:store(8, 1)
        m:wake(8)
      end)
      s:go(function()
        local part = m:range(8)
        assert(part:wait(0, 0))
        note "second"
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:wait(16, 0, 0.01) })
        note "third"
      end)
      s:go(function()
        note "zeroth"
        m:store(0, 1)
        m:wake(0)
      end)
      s:run(PATIENCE)
      assert.are.same({ "zeroth", "first", "second", "third" }, order)
    end)

    it("lets tasks of cqueues wait, wake and end", function()
      local found, cqueues = pcall(require, "cqueues")
      if not found then return end
      local output, ok = peer.run [[
        local cqueues = require "ipc.cqueues"
        local main = cqueues.new()
        local m, done = assert(ipc.memory(nil, 64)), {}
        local function note(...) done[#done + 1] = tostring((select(2, ...)) or (...)) end
        for i = 1, 3 do main:wrap(function() note(m:wait(0, 0, 20)) end) end
        main:wrap(function() note(m:wait(8, 0, 0.05)) end)
        main:wrap(function() note(m:wait(16, 0, 20)) end)
        main:wrap(function()
          ipc.sleep(0.01)
          m:store(0, 1)
          m:wake(0)
          while #done < 4 do ipc.sleep(0.01) end
          m:close()
        end)
        main:wrap(function() for _ = 1, 20 do ipc.sleep(0.005) end end)
        assert(main:loop())
        table.sort(done)
        io.write(table.concat(done, " "))
      ]]
      if output:find "Operation not supported" then return end
      assert.is_true(ok, output)
      assert.are.equal("closed timeout true true true", output)
      assert.is_truthy(cqueues)
    end)

    it("ends the waits of tasks when it is closed", function()
      local m, s, ends = make(64), scheduler.new(), {}
      for i = 1, 3 do
        s:go(function() ends[i] = { m:wait(8 * i, 0) } end)
      end
      s:go(function() m:close() end)
      s:run(PATIENCE)
      for i = 1, 3 do assert.are.same(CLOSED, ends[i]) end
    end)

    it("does not mind who is killed while it waits", function()
      local m = make(64)
      local p = with.fork(function()
        m:store(0, 1)
        m:wake(0)
        m:wait(8, 0)
      end)
      assert.is_true(m:wait(0, 0))
      p:kill "KILL"
      assert.is_nil(p:wait(PATIENCE))
      m:store(8, 1)
      assert.is_true(m:wake(8) >= 0)
      assert.is_true(m:wait(8, 0))
      assert.are.equal(1, m:add(0, 1))
    end)

    it("answers closed after close, its views too", function()
      local m = make(100)
      local part = m:range(10, 20)
      assert.is_true(m:close())
      assert.is_true(m:close())
      assert.are.equal("ipc.memory (closed)", tostring(m))
      for _, b in ipairs { m, part } do
        assert.are.same(CLOSED, { b:read() })
        assert.are.same(CLOSED, { b:write(0, "x") })
        assert.are.same(CLOSED, { b:pack(0, "d", 1) })
        assert.are.same(CLOSED, { b:pack(0, "z", "x") })
        assert.are.same(CLOSED, { b:unpack(0, "d") })
        assert.are.same(CLOSED, { b:unpack(0, "z") })
        assert.are.same(CLOSED, { b:fill(0) })
        assert.are.same(CLOSED, { b:find "x" })
        assert.are.same(CLOSED, { b:compare(0, "x") })
        assert.are.same(CLOSED, { b:copy(0, "x") })
        assert.are.same(CLOSED, { b:load(b == m and 0 or 6) })
        assert.are.same(CLOSED, { b:store(b == m and 0 or 6, 1) })
        assert.are.same(CLOSED, { b:add(b == m and 0 or 6, 1) })
        assert.are.same(CLOSED, { b:cas(b == m and 0 or 6, 1, 1) })
        assert.are.same(CLOSED, { b:wait(b == m and 0 or 6, 0) })
        assert.are.same(CLOSED, { b:wake(b == m and 0 or 6) })
      end
      assert.are.same(CLOSED, { m:flush() })
      assert.are.same(CLOSED, { m:advise "normal" })
      assert.are.same(CLOSED, { m:resize(200) })
      assert.are.same(CLOSED, { m:lock() })
      assert.are.same(CLOSED, { m:flock() })
      assert.are.same(CLOSED, { m:remove() })
      local other = make(100)
      assert.are.same(CLOSED, { other:write(0, m) })
      assert.are.same(CLOSED, { other:copy(0, part) })
      assert.are.same(CLOSED, { other:compare(0, part) })
      assert.are.same(CLOSED, { other:find(part) })
      assert.are.equal(100, #m)
      assert.are.equal(100, m:stats().size)
      assert.is_true(m:settimeout(1))
    end)

    it("is kept alive by its views", function()
      local m = assert((make(100)))
      local part = m:range(50)
      with.cleanup()
      local again = make(100):range(50)
      m = nil -- luacheck: ignore
      collectgarbage()
      collectgarbage()
      assert.are.same(CLOSED, { part:read() })
      assert.are.equal(3, again:write(0, "abc"))
    end)

    it("has nothing to be polled for", function()
      local m = make(100)
      raises("entry 1: ipc%.memory is not polled", ipc.poll, { m }, 0)
      raises("entry 1: ipc%.memory is not polled", ipc.poll, { { m, "r" } }, 0)
      assert.is_nil(m:pollfd())
      assert.is_nil(m:timeout())
    end)

    it("wants itself as self", function()
      local m = make(100)
      local meta = debug.getmetatable(m)
      assert.are.equal("ipc", getmetatable(m))
      for name, f in pairs(meta.__index) do
        for _, odd in ipairs { 1, "x", {}, io.stdout, ipc.null, (ipc.pipe()) } do
          raises("ipc%.memory expected", f, odd)
        end
        raises("ipc%.memory expected", f)
        if name ~= "close" and name ~= "remove" then pcall(f, m) end
      end
    end)

    it("refuses arguments that are none", function()
      local m = make(100)
      local odd = { -1, 101, math.maxinteger, math.mininteger, 2.0 ^ 63, 1 / 0, 0 / 0, 0.5, "0", {}, true }
      for _, x in ipairs(odd) do
        for _, name in ipairs { "read", "write", "pack", "unpack", "load", "store", "add", "wait", "wake", "range",
          "compare", "copy" } do
          raises("bad argument", m[name], m, x, 0, 0)
        end
        raises("bad argument", m.lock, m, x)
        raises("bad argument", m.lock, m, 0, x)
        raises("bad argument", m.flush, m, x)
        raises("bad argument", m.flush, m, 0, x)
        raises("bad argument", m.advise, m, "normal", x)
        raises("bad argument", m.advise, m, x)
        raises("bad argument", m.flock, m, x)
      end
      raises("no bytes: at least 1", m.lock, m, 0, 0)
      raises("mode", m.lock, m, 0, 1, "x")
      raises('"r" or "rw"', m.lock, m, 0, 1, "w")
      raises('"r" or "rw"', m.flock, m, "w")
      assert.are.equal(("\0"):rep(100), m:read())
    end)

    it("is dead in a child that was forked by others", function()
      local m = make(100)
      local part, path, m_lock = m:range(8), new_path(), m:lock(0, 1, "rw", 0)
      require("spec.peer").fork(function()
        local list = {}
        local function note(_, message, errno) list[#list + 1] = tostring(errno) .. " " .. tostring(message) end
        note(m:read())
        note(part:read())
        note(m:add(0, 1))
        note(m:pack(0, "z", ""))
        note(m:wait(0, 0, 0))
        note(m:flush())
        note(m:lock())
        if m_lock then m_lock:unlock() end
        m:close()
        note(m:read())
        write(path, table.concat(list, "\n") .. "\n")
      end)
      local lines = 0
      for line in io.lines(path) do
        assert.matches("^" .. E.ECHILD .. " .*forked", line)
        lines = lines + 1
      end
      assert.are.equal(8, lines)
      assert.are.equal(0, m:load(0))
      if m_lock then
        assert.are.equal("ipc.filelock (locked)", tostring(m_lock))
        assert.is_true(m_lock:unlock())
      end
    end)

    it("leaves nothing behind, a thousand times", function()
      make(100):close()
      collectgarbage()
      local before = peer.descriptors()
      local _, resident = with.memory()
      for _ = 1, 1000 do
        local m = make(5000)
        m:write(0, "x")
        m:range(5)
        m:wait(8, 0, 0)
        local held = m:lock(0, 8)
        if held then held:unlock() end
        m:close()
      end
      with.cleanup()
      assert.are.equal(before, peer.descriptors())
      collectgarbage()
      collectgarbage()
      local _, now = with.memory()
      assert.is_true(now - resident < 8192, (now - resident) .. " KiB")
    end)

    it("copies from one to another", function()
      local m, other = make(1000), make(5000)
      other:fill(0x61)
      other:write(4000, "here")
      assert.are.equal(14, m:copy(10, other, 4000, 4))
      assert.are.equal("\0here\0", m:read(9, 6))
      assert.are.equal(0, m:compare(10, other, 4000, 4))
      assert.are.equal(4000, other:find(m:range(10, 4)))
      assert.are.equal(1000, other:write(0, m))
      assert.are.equal(0, other:compare(0, m))
      raises("5000 bytes at offset 0, but the memory has 1000", m.write, m, 0, other)
    end)

    it("is flushed and advised on", function()
      local m = make(10000)
      m:write(9990, "0123456789")
      assert.is_true(m:flush())
      assert.is_true(m:flush(5000, 100))
      assert.is_true(m:flush(0, nil, true))
      assert.is_true(m:flush(10000))
      for _, what in ipairs { "normal", "sequential", "random", "willneed", "dontneed" } do
        assert.is_true(m:advise(what))
        assert.is_true(m:advise(what, 5000, 1))
        assert.is_true(m:advise(what, 10000))
      end
      for _, what in ipairs { "hugepage", "nohugepage" } do
        local ok, _, errno = m:advise(what)
        assert.is_true(ok or errno == E.ENOTSUP)
      end
      raises("an advice expected", m.advise, m, "bogus")
      assert.are.equal("0123456789", m:read(9990))
    end)
  end)
end

-- ---- names

if shared then
  describe("a named memory", function()
    after_each(clean)

    it("is made by who names a size, opened by who does not", function()
      local name = new_name()
      fails(E.ENOENT, "No such file", ipc.memory(name))
      fails(E.ENOENT, "No such file", ipc.memory(name, 100, { create = false }))
      local m = open(name, 5000)
      local again = open(name)
      assert.are.equal(5000, #again)
      m:write(0, "same")
      assert.are.equal("same", again:read(0, 4))
      assert.are.equal(2, m:stats().participants)
      assert.are.equal(5000, #open(name, 5000, { create = false }))
      fails(E.EEXIST, "size is 5000 there, not 4999", ipc.memory(name, 4999))
      fails(E.EEXIST, "size is 5000 there, not 4999", ipc.memory(name, 4999, { create = false }))
      fails(E.EEXIST, "it exists", ipc.memory(name, 5000, { create = "new" }))
      raises("say its size", ipc.memory, name, nil, { create = "new" })
      fails(E.EEXIST, "persist is false there", ipc.memory(name, 5000, { persist = true }))
    end)

    it("has its bytes first in its file", function()
      local name = new_name()
      local m = open(name, 5000)
      m:write(0, "first")
      m:write(4995, "last.")
      if not exists(place(name)) then return end
      local bytes = read(place(name))
      assert.are.equal("first", bytes:sub(1, 5))
      assert.are.equal("last.", bytes:sub(4996, 5000))
    end)

    it("goes with the last who has it, unless it persists", function()
      local name = new_name()
      local m, again = open(name, 100), open(name)
      m:write(0, "kept")
      m:close()
      assert.are.equal("kept", again:read(0, 4))
      assert.are.equal("kept", open(name):read(0, 4))
      with.cleanup()
      fails(E.ENOENT, "No such file", ipc.memory(name))
      m = open(name, 100, { persist = true })
      m:write(0, "kept")
      m:close()
      m = open(name)
      assert.are.equal("kept", m:read(0, 4))
      assert.is_true(m:remove())
      fails(E.ENOENT, "remove", m:remove())
      m:close()
      fails(E.ENOENT, "No such file", ipc.memory(name))
      m = open(name, 100, { persist = true, temporary = true })
      m:close()
      fails(E.ENOENT, "No such file", ipc.memory(name))
    end)

    it("of killed ones is made anew", function()
      local name = new_name()
      killed(function() assert(ipc.memory(name, 100)):write(0, "dead") end)
      fails(E.ENOENT, "No such file", ipc.memory(name))
      assert.are.equal("\0\0\0\0", open(name, 200):read(0, 4))
    end)

    it("goes when the program exits", function()
      local name = new_name()
      local output, ok = peer.run(("assert(ipc.memory(%q, 100)) os.exit(0)"):format(name))
      assert.is_true(ok, output)
      fails(E.ENOENT, "No such file", ipc.memory(name))
    end)

    it("may be waited for, until it has a size", function()
      local name = new_name()
      if exists "/dev/shm/." then
        write(place(name), "")
        assert.are.equal(0, #open(name))
        assert.are.equal(E.ETIMEDOUT, select(3, ipc.memory(name, nil, { retry = 0.02 })))
        os.remove(place(name))
      end
      fails(E.ENOENT, "No such file", ipc.memory(name))
      local p = with.fork(function()
        local m = assert(ipc.memory(name, nil, { retry = true }))
        return m:wait(0, 0, PATIENCE) and m:load(0)
      end)
      local m = open(name, 64)
      m:store(0, 7)
      m:wake(0)
      assert.are.same({ true, 7 }, { p:wait(PATIENCE) })
    end)

    it("is only read where it was opened so", function()
      local name = new_name()
      local m, r = open(name, 100), open(name, nil, { mode = "r" })
      m:store(0, 7)
      assert.are.equal(7, r:load(0))
      for _, f in ipairs { "write", "fill", "store", "add", "sub", "band", "bor", "xchg", "copy", "pack" } do
        raises("only to be read", r[f], r, 0, 0)
      end
      raises("only to be read", r.cas, r, 0, 0, 0)
      raises("only to be read", function() r:range(0):store(0, 1) end)
      local a, b = peer.pair "unix"
      assert.are.equal(E.EACCES, select(3, a:put { r })) -- it would give the right to write
      assert.is_truthy(b)
      assert.are.equal(7, (child(function() return r:load(0), pcall(r.store, r, 0, 1) end)))
      assert.is_true(r:wait(0, 0))
    end)

    it("has permissions, and so many participants", function()
      local name = new_name()
      open(name, 100, { permissions = "0640", participants = 2 })
      if exists(place(name)) then
        assert.are.equal("640\n", (with.shell("stat -c %a " .. place(name))))
      end
      fails(E.EEXIST, "participants is 2 there, not 9", ipc.memory(name, nil, { participants = 9 }))
      open(name, nil, { participants = 2 })
      fails(E.EUSERS, "all places for participants are taken: 2", ipc.memory(name))
    end)

    it("is kept away from what is no memory", function()
      local name = new_name()
      local ring = with.close(assert(ipc.shm(name, "w", { capacity = 4096 })))
      fails(E.EBADMSG, "of another kind", ipc.memory(name))
      fails(E.EBADMSG, "of another kind", ipc.memory(name, 100, { create = false }))
      fails(E.EBADMSG, "of another kind", ipc.memory(nil, nil, { file = place(name), mode = "r" }))
      ring:close()
      open(name, 100)
      fails(E.EBADMSG, "of another kind", ipc.shm(name, "r"))
    end)

    it("refuses a file that was cut", function()
      local name = new_name()
      local m = open(name, 5000, { persist = true })
      m:close()
      if not exists(place(name)) then return end
      local bytes = read(place(name))
      write(place(name), bytes:sub(4097))
      fails(E.EBADMSG, "", ipc.memory(name))
      write(place(name), bytes:sub(1, 8192) .. "?" .. bytes:sub(8194))
      fails(E.EBADMSG, "not shared memory", ipc.memory(name))
      write(place(name), bytes:sub(1, 8192 + 40) .. "?" .. bytes:sub(8192 + 42))
      fails(E.EBADMSG, "head is damaged", ipc.memory(name))
      os.remove(place(name))
    end)

    it("is no plain file: it stays as large as it is", function()
      local m = open(new_name(), 100)
      fails(E.ENOTSUP, "not a plain file", m:resize(200))
      fails(E.ENOTSUP, "not a plain file", open(nil, 100):resize(200))
      assert.are.equal(100, #m)
    end)
  end)

  describe("a memory with locks", function()
    after_each(clean)

    local function counted(m)
      local crew = {}
      for i = 1, 4 do
        crew[i] = with.fork(function()
          local lock = assert(m:mutex(2))
          for _ = 1, 200 do
            local _ <close> = assert(lock:lock(PATIENCE))
            m:pack(0, "j", m:unpack(0, "j") + 1)
          end
        end)
      end
      for i = 1, 4 do assert.is_true(crew[i]:wait(PATIENCE)) end
      assert.are.equal(800, (m:unpack(0, "j")))
    end

    it("by name, without one, of a file", function()
      local name, path = new_name(), new_path()
      counted(open(name, 100, { locks = 3 }))
      counted(open(nil, 100, { locks = 3 }))
      local m = file(path, 100, { locks = 3 })
      counted(m)
      assert.are.equal(100, #m)
      assert.are.equal(1, m:stats().participants)
      assert.are.equal((string.unpack("j", read(path))), 800)
      m:close()
      m = file(path)
      assert.are.equal(100, #m)
      assert.are.equal(800, (m:unpack(0, "j")))
      assert.is_truthy(m:semaphore(1, 2))
      assert.is_truthy(m:mutex(2):lock(0))
      raises("lock 4 of 3", m.mutex, m, 4)
      fails(E.EEXIST, "lock 1", m:mutex(1))
      fails(E.ENOTSUP, "not a plain file", m:resize(200))
      assert.is_true(exists(path))
    end)

    it("gives those of the dead to others", function()
      local name = new_name()
      local m = open(name, 100, { locks = 1 })
      killed(function() assert(assert(ipc.memory(name)):mutex(1):lock(0)) end)
      local lock = assert(m:mutex(1))
      local _ <close>, state = assert(lock:lock(PATIENCE))
      assert.are.equal("owner_dead", state)
      killed(function() assert(m:mutex(1)):lock(0) end)
      assert.is_true(lock:consistent())
    end)

    it("has as many as it was made with", function()
      local name, path = new_name(), new_path()
      local m = open(name, 100, { locks = 3 })
      assert.is_truthy(open(name, 100, { locks = 3 }))
      fails(E.EEXIST, "locks is 3 there, not 2", ipc.memory(name, 100, { locks = 2 }))
      fails(E.EEXIST, "size is 100 there, not 99", ipc.memory(name, 99, { locks = 3 }))
      raises("lock 0 of 3", m.mutex, m, 0)
      raises("#2 to", m.mutex, m, "1")
      raises("#2 to", m.mutex, m, 1.5)
      raises("without 'locks'", function() open(new_name(), 10):mutex(1) end)
      raises("without 'locks'", function() file(path, 10):rwlock(1) end)
      fails(E.EEXIST, "locks is 0 there, not 1", ipc.memory(nil, 10, { file = path, locks = 1 }))
      fails(E.ENOENT, "No such file", ipc.memory(nil, nil, { file = path .. "x", locks = 1 }))
      raises("not of what is private", ipc.memory, nil, 10, { file = path, locks = 1, private = true })
      raises("option 'locks'", ipc.memory, nil, 10, { locks = 1 << 40 })
      path = new_path()
      file(path, 10, { locks = 1 }):close()
      fails(E.ENOMSG, "cannot be had so", ipc.memory(nil, nil, { file = path, private = true }))
      m:close()
      assert.are.same(CLOSED, { m:mutex(1) })
    end)

    it("travels with them", function()
      local m = open(nil, 100, { locks = 1 })
      local a, b = peer.pair "unix"
      assert.is_true(a:put { m })
      local got = peer.keep(b:get()[1])
      local held = assert(m:mutex(1):lock())
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { got:mutex(1):lock(0) })
      held:unlock()
      assert.is_truthy(got:mutex(1):lock(0))
    end)
  end)

  describe("a nameless memory", function()
    after_each(clean)

    it("cannot be cut or removed", function()
      local function memfds()
        local set = {}
        for fd in with.shell(("ls /proc/%d/fd"):format(ipc.pid())):gmatch "%d+" do
          local path = ("/proc/%d/fd/%s"):format(ipc.pid(), fd)
          if with.shell("readlink " .. path):find "memfd" then set[path] = true end
        end
        return set
      end
      local before = linux and memfds()
      local m = open(nil, 5000)
      fails(E.ENOENT, "it has no name", m:remove())
      if not linux or without:find "memfd" or without:find "reopen" then return end
      for path in pairs(memfds()) do -- none where the system seals nothing
        if not before[path] then
          assert.are.equal("refused\n", (python([[
import os, sys
try:
    os.truncate(sys.argv[1], 10)
    print("cut")
except OSError as e:
    print("refused")
]], path)))
        end
      end
      assert.are.equal(("\0"):rep(5000), m:read())
    end)

    it("needs a size", function()
      raises("#2 to .*integer expected", ipc.memory)
      raises("#2 to .*integer expected", ipc.memory, nil, nil, {})
      for _, size in ipairs { 0, -1, 1 << 60, 0.5, "1", {}, 0 / 0 } do
        raises("#2 to", ipc.memory, nil, size)
        raises("#2 to", ipc.memory, new_name(), size)
      end
    end)

    it("that the system has no room for is refused at once", function()
      if string.packsize "T" == 4 then -- more than its addresses
        raises("not in", ipc.memory, nil, 1 << 46)
        return
      end
      local ok, message, errno = ipc.memory(nil, 1 << 46)
      assert.is_nil(ok)
      assert.is_true(errno == E.ENOSPC or errno == E.ENOMEM or errno == E.EFBIG, message)
      assert.matches("70368744177664 bytes", message)
    end)

    it("in huge pages is had, or the limit is named", function()
      local m, message = ipc.memory(nil, 1 << 21, { huge = true })
      if m then
        assert.are.equal(1 << 21, #m)
        m:close()
      else
        assert.matches("nr_hugepages", message)
      end
    end)
  end)
end

it("names and options are checked", function()
  raises("begins with a slash", ipc.memory, "x", 1)
  raises("one slash", ipc.memory, "/x/y", 1)
  raises("dot", ipc.memory, "/.x", 1)
  raises("#1 to", ipc.memory, {}, 1)
  raises("unknown option 'bogus'", ipc.memory, nil, 1, { bogus = 1 })
  raises("of a file only", ipc.memory, "/x", 1, { private = true })
  raises('"rw" or "r" expected', ipc.memory, nil, 1, { mode = "w" })
  raises("a path expected", ipc.memory, nil, 1, { file = 7 })
  raises("a name, or option 'file'", ipc.memory, "/x", 1, { file = "x" })
  raises("the path of a file expected", ipc.memory, nil, 1, { file = "" })
  raises("permissions", ipc.memory, nil, 1, { permissions = 7 })
  for _, option in ipairs { "timeout", "retry", "temporary", "persist", "participants", "huge", "prefault", "create",
    "private", "mode" } do
    raises("option '" .. option .. "'", ipc.memory, nil, 1, { [option] = {} })
  end
end)

-- ---- files

describe("a memory of a file", function()
  after_each(clean)

  it("is the file's bytes and nothing else", function()
    local path = new_path()
    fails(E.ENOENT, "No such file", ipc.memory(nil, nil, { file = path }))
    local m = file(path, 10, { permissions = "0640" })
    m:write(0, "0123456789")
    assert.are.equal("0123456789", read(path))
    assert.are.equal("640\n", (with.shell("stat -c %a " .. path)))
    m:close()
    assert.are.equal("0123456789", read(path))
    assert.are.equal(10, #file(path))
    fails(E.EEXIST, "size is 10 there, not 11", ipc.memory(nil, 11, { file = path }))
    fails(E.EEXIST, "it exists", ipc.memory(nil, 10, { file = path, create = "new" }))
    assert.is_nil(file(path, 10).participants)
  end)

  it("goes by remove, or when it is temporary", function()
    local path = new_path()
    local m = file(path, 10, { temporary = true })
    m:close()
    assert.is_false(exists(path))
    m = file(path, 10)
    file(path, nil, { temporary = true }):close() -- did not make it
    assert.is_true(exists(path))
    assert.is_true(m:remove())
    assert.is_false(exists(path))
    fails(E.ENOENT, "remove", m:remove())
    write(path, "another")
    fails(E.ENOENT, "remove", m:remove())
    m:close()
    assert.are.equal("another", read(path))
  end)

  it("may be any that exists", function()
    local path = new_path()
    write(path, "hello")
    local m = file(path)
    assert.are.equal("hello", m:read())
    m:write(0, "J")
    assert.are.equal("Jello", read(path))
    assert.are.equal(#read "README.md", #file "README.md")
    assert.are.equal(read "README.md", file("README.md", nil, { mode = "r" }):read())
    fails(E.EISDIR, "directory", ipc.memory(nil, nil, { file = folder }))
    fails(E.ENODEV, "no file of bytes", ipc.memory(nil, nil, { file = "/dev/null" }))
    with.shell("mkfifo " .. path .. ".fifo")
    fails(E.ENODEV, "no file of bytes", ipc.memory(nil, nil, { file = path .. ".fifo" }))
    with.shell(("ln -s %s %s.link"):format(path, path))
    assert.are.equal("Jello", file(path .. ".link"):read())
  end)

  it("of no bytes can be had, and made larger", function()
    local path = new_path()
    write(path, "")
    local m = file(path)
    assert.are.equal(0, #m)
    assert.are.equal("", m:read())
    assert.are.equal(0, m:fill(1))
    assert.are.equal(0, m:compare(0, ""))
    assert.is_nil(m:find "x")
    assert.are.equal(0, m:write(0, ""))
    assert.is_true(m:flush())
    assert.is_true(m:advise "normal")
    local ok, _, errno = m:resize(5)
    if not ok then return assert.are.equal(E.ENOTSUP, errno) end
    m:write(0, "12345")
    assert.are.equal("12345", read(path))
  end)

  it("is only read where it was opened so", function()
    local path = new_path()
    write(path, "12345678")
    with.shell("chmod 400 " .. path)
    local m = file(path, nil, { mode = "r" })
    assert.are.equal("12345678", m:read())
    assert.are.equal((string.unpack("=I8", "12345678")), m:load(0))
    raises("only to be read", m.write, m, 0, "x")
    raises("only to be read", m.store, m, 0, 1)
    raises("only to be read", m.resize, m, 20)
    raises('lock it "r"', m.lock, m, 0, 1)
    assert.is_true(m:flush())
    assert.are.equal("12345678", (child(function() return m:read() end)))
    if not is_root then fails(E.EACCES, "Permission denied", ipc.memory(nil, nil, { file = path })) end
    local a, b = peer.pair "unix"
    assert.is_true(a:put { m })
    local got = peer.keep(b:get()[1])
    assert.are.equal("12345678", got:read())
    raises("only to be read", got.write, got, 0, "x")
  end)

  it("that is private is changed here only", function()
    local path = new_path()
    write(path, "12345678")
    local m, plain = file(path, nil, { private = true }), file(path)
    assert.are.equal(3, m:write(0, "abc"))
    assert.are.equal("abc45678", m:read())
    assert.are.equal("12345678", plain:read())
    assert.are.equal("abc45678", (child(function()
      local now = m:read()
      m:write(0, "xyz")
      return now
    end)))
    assert.are.equal("abc45678", m:read())
    fails(E.ENOTSUP, "stays here", m:flush())
    fails(E.ENOTSUP, "not a plain file", m:resize(20))
    m:close()
    assert.are.equal("12345678", read(path))
    assert.are.equal(8, #file(path, 8, { private = true, mode = "r" }))
    path = new_path()
    fails(E.ENOENT, "No such file", ipc.memory(nil, 10, { file = path, private = true }))
    fails(E.ENOENT, "No such file", ipc.memory(nil, 10, { file = path, mode = "r" }))
    raises("of what is written", ipc.memory, nil, 10, { file = path, mode = "r", create = "new" })
    assert.is_false(exists(path))
    raises("nobody else changes", file("README.md", nil, { private = true }).wait, file("README.md",
      nil, { private = true }), 0, 0)
  end)

  if shared then
    it("grows when nobody else of us has it", function()
      local path = new_path()
      local m = file(path, 100)
      m:write(90, "0123456789")
      local part = m:range(90)
      local other = file(path)
      fails(E.EBUSY, "others have it open", m:resize(10000))
      fails(E.EBUSY, "others have it open", other:resize(10000))
      other:close()
      local p = with.fork(function()
        m:store(0, 1)
        m:wake(0)
        m:wait(8, 0)
      end)
      assert.is_true(m:wait(0, 0))
      fails(E.EBUSY, "others have it open", m:resize(10000))
      m:store(8, 1)
      m:wake(8)
      assert.is_true(p:wait(PATIENCE))
      assert.is_true(m:resize(100))
      assert.is_true(m:resize(10000))
      assert.are.equal(10000, #m)
      assert.are.equal(10000, #read(path))
      assert.are.equal("0123456789", part:read())
      part:write(0, "moved")
      assert.are.equal("moved56789\0", m:read(90, 11))
      assert.are.equal(10000, m:write(9999, "x"))
      raises("it has 10000, and never shrinks", m.resize, m, 9999)
      for _ = 1, 10 do
        assert.is_true(m:resize(#m * 3))
        assert.are.equal(#m, m:write(#m - 1, "x"))
      end
      assert.are.equal("moved56789\0", m:read(90, 11))
      assert.are.equal(#m, #file(path))
    end)

    it("that was cut, or cannot be mapped, does not grow", function()
      local path = new_path()
      local m = file(path, 20000)
      with.shell("truncate -s 18000 " .. path)
      fails(E.EFAULT, "lost", m:resize(30000))
      m:close()
      with.shell("truncate -s 20000 " .. path)
      m = file(path)
      with.shell("truncate -s 19990 " .. path) -- within its last page
      fails(E.EFAULT, "lost", m:flush())
      fails(E.EFAULT, "lost", m:read())
      m:close()
      -- A sanitizer needs more addresses than that.
      if not linux or (os.getenv "LD_PRELOAD" or ""):find "asan" then return end
      path = new_path()
      local output, ok = peer.run(([[
        local m = assert(ipc.memory(nil, 1000, { file = %q }))
        local ok, message, errno = m:resize(1 << 28)
        assert(errno == ipc.errno.ENOMEM or errno == ipc.errno.ENOSPC, message)
        assert(#m == 1000 and m:write(999, "x"))
      ]]):format(path), { shell = "ulimit -v 200000" })
      assert.is_true(ok, output)
      assert.are.equal(1000, #read(path))
    end)

    it("is sent with a description of its own", function()
      local path = new_path()
      local m = file(path, 100)
      local a, b = peer.pair "unix"
      local held = assert(m:lock(0, 10))
      local whole = assert(m:flock())
      assert.is_true(a:put { m })
      local got = peer.keep(b:get()[1])
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { got:lock(0, 10, "rw", 0) })
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { got:flock("rw", 0) })
      fails(E.EBUSY, "others have it open", m:resize(200))
      assert.is_true(a:put { m }) -- nobody takes it yet
      m:close()
      assert.is_true(held:unlock() and whole:unlock())
      assert.is_true(assert(got:lock(0, 10, "rw", 0)):unlock())
      assert.is_true(assert(got:flock("rw", 0)):unlock())
    end)

    it("grows while tasks wait for its words", function()
      local m, s = file(new_path(), 64), scheduler.new()
      local ok
      s:go(function() ok = m:wait(0, 0) end)
      s:go(function()
        assert(m:resize(1 << 20))
        m:store(0, 1)
        m:wake(0)
      end)
      s:run(PATIENCE)
      assert.is_true(ok)
    end)

    it("of a killed one can be had at once", function()
      local path = new_path()
      killed(function() assert(ipc.memory(nil, 100, { file = path })):lock(0, 10) end)
      local m = file(path)
      assert.is_true(m:resize(200))
      assert.is_truthy(m:lock(0, 10, "rw", 0))
    end)
  end

  it("that has no room is refused", function()
    local path = new_path()
    local output, ok = peer.run(([[
      local function no(errno, m, message, number)
        assert(m == nil and number == errno, message)
        io.write(message, "\n")
      end
      no(ipc.errno.EFBIG, ipc.memory(nil, 100000, { file = %q }))
      assert(not io.open(%q))
      local m = assert(ipc.memory(nil, 1000, { file = %q }))
      local ok, message, errno = m:resize(100000)
      assert(errno == ipc.errno.EFBIG or errno == ipc.errno.ENOTSUP, message)
      assert(#m == 1000 and m:write(0, "x"))
    ]]):format(path, path, path), { shell = "ulimit -f 20" })
    assert.is_true(ok, output)
    assert.matches("100000 bytes: File too large", output)
    local full = "/dev/full"
    fails(E.ENODEV, "no file of bytes", ipc.memory(nil, nil, { file = full }))
  end)

  if is_root and linux then
    it("of a full file system is refused", function()
      local where = new_path()
      local _, status = with.shell(("mkdir %s && mount -t tmpfs -o size=64k none %s"):format(where, where))
      if status ~= 0 then return end
      local m, message, errno = ipc.memory(nil, 100000, { file = where .. "/x" })
      local small = ipc.memory(nil, 30000, { file = where .. "/x" })
      local grown, _, why = small:resize(100000)
      small:close()
      with.shell("umount " .. where)
      fails(E.ENOSPC, "100000 bytes: No space left", m, message, errno)
      assert.is_nil(grown)
      assert.is_true(why == E.ENOSPC or why == E.ENOTSUP)
    end)
  end
end)

-- ---- what is lost

describe("a memory that was cut short", function()
  after_each(clean)

  it("answers EFAULT, every call", function()
    local path = new_path()
    local m = file(path, 20000)
    local part = m:range(16384)
    m:fill(1)
    with.shell("truncate -s 100 " .. path)
    local function gone(pattern, ok, message, errno)
      assert.is_nil(ok)
      assert.are.equal(E.EFAULT, errno)
      assert.matches(pattern, message)
    end
    gone("ipc%.memory%.read: the memory was lost", m:read(8192))
    gone("ipc%.view%.read", part:read())
    gone("load", m:load(0))
    gone("add", m:add(16384, 1))
    gone("cas", m:cas(16384, 1, 1))
    gone("store", m:store(16384, 1))
    gone("wait", m:wait(16384, 1, 1))
    gone("wake", m:wake(16384))
    gone("pack", m:pack(0, "d", 1))
    gone("unpack", m:unpack(0, "d"))
    gone("unpack", m:unpack(0, "z"))
    gone("fill", m:fill(1))
    gone("write", m:write(0, "x"))
    gone("find", m:find "x")
    gone("compare", m:compare(0, "x"))
    gone("copy", m:copy(0, m))
    gone("flush", m:flush())
    gone("advise", m:advise "normal")
    gone("resize", m:resize(30000))
    gone("lock", m:lock())
    assert.is_true(m:close())
  end)

  it("says so at the first byte that is missed, whatever the call", function()
    local calls = {
      function(m) return m:load(16384) end, function(m) return m:store(16384, 1) end,
      function(m) return m:add(16384, 1) end, function(m) return m:xchg(16384, 1) end,
      function(m) return m:cas(16384, 0, 1) end, function(m) return m:wait(16384, 0, 5) end,
      function(m) return m:fill(1) end, function(m) return m:find "x" end,
      function(m) return m:compare(16380, ("\0"):rep(8)) end, function(m) return m:copy(0, m, 8192) end,
      function(m) return m:pack(16384, "d", 1) end, function(m) return m:unpack(16384, "i3") end,
      function(m) return m:pack(16384, "z", "x") end, function(m) return m:unpack(16384, "z") end,
      function(m) return m:write(16384, "x") end, function(m) return m:read(16384, 4) end,
      function(m) return m:range(16384):load(0, "I4") end,
    }
    for i, call in ipairs(calls) do
      local path = new_path()
      local m = file(path, 20000)
      with.shell("truncate -s 4096 " .. path)
      local ok, message, errno = call(m)
      assert.is_nil(ok, i)
      assert.are.equal(E.EFAULT, errno, i .. tostring(message))
      m:close()
    end
  end)

  it("while a task waits for a word of it", function()
    local path = new_path()
    local m, s, results = file(path, 20000), scheduler.new(), nil
    s:go(function() results = { m:wait(16384, 0, PATIENCE) } end)
    s:go(function() with.shell("truncate -s 4096 " .. path) m:wake(16384) pcall(m.load, m, 16384) end)
    s:run(PATIENCE)
    assert.are.equal(E.EFAULT, results[3])
  end)

  if shared then
    it("by name, too", function()
      local name = new_name()
      local m = open(name, 20000)
      if not exists(place(name)) then return end
      with.shell("truncate -s 0 " .. place(name))
      fails(E.EFAULT, "lost", m:read(8192, 1))
      fails(E.EFAULT, "lost", m:load(0))
      assert.is_true(m:close())
    end)
  end
end)

-- ---- locks on files

if shared then
  describe("a range of a file", function()
    after_each(clean)

    it("is locked against other handles", function()
      local path = new_path()
      local m, other = file(path, 100), file(path)
      local held = assert(m:lock(10, 10))
      assert.are.equal("ipc.filelock (locked)", tostring(held))
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { other:lock(19, 1, "r", 0) })
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { other:lock(0, 100, "rw", 0.02) })
      assert.is_true(assert(other:lock(0, 10, "rw", 0)):unlock())
      assert.is_true(assert(other:lock(20, 80, "rw", 0)):unlock())
      assert.is_true(held:unlock())
      assert.is_true(held:unlock())
      assert.are.equal("ipc.filelock (unlocked)", tostring(held))
      do
        local a <close> = assert(m:lock(0, 50, "r"))
        local b <close> = assert(other:lock(0, 100, "r", 0))
        assert.is_truthy(a and b)
        fails(E.EDEADLK, "this handle has locked it", m:lock(49, 10, "r", 0))
      end
      assert.is_truthy(other:lock(0, 100, "rw", 0))
    end)

    it("is a deadlock with oneself, wherever it overlaps", function()
      local m = file(new_path(), 100)
      local a = assert(m:lock(10, 10))
      fails(E.EDEADLK, "this handle", m:lock(10, 10))
      fails(E.EDEADLK, "this handle", m:lock(0, 11))
      fails(E.EDEADLK, "this handle", m:lock())
      local b = assert(m:lock(0, 10))
      a:unlock()
      assert.is_truthy(m:lock(10, 10, "rw", 0))
      assert.is_true(b:close())
    end)

    it("is waited for, and given back by death and close", function()
      local path = new_path()
      local m = file(path, 100)
      local r, w = peer.pipe()
      local p = with.fork(function()
        local held = assert(m:lock(0, 10))
        w:send "held"
        m:wait(16, 0)
        held:unlock()
        ipc.sleep(PATIENCE)
      end)
      assert.are.equal("held", r:recv())
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:lock(0, 10, "rw", 0.03) })
      m:store(16, 1)
      m:wake(16)
      local held = assert(m:lock(0, 10))
      held:unlock()
      p:stop(0)
      killed(function() assert(m:lock(0, 10)) end)
      assert.is_truthy(m:lock(0, 10, "rw", 0))
      local other = file(path)
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { other:lock(0, 10, "rw", 0) })
      m:close()
      assert.is_truthy(other:lock(0, 10, "rw", 0))
    end)

    it("is not held by a child", function()
      local path = new_path()
      local m = file(path, 100)
      local held = assert(m:lock(0, 10))
      local r, w = peer.pipe()
      local p = with.fork(function()
        w:send(table.concat({ select(2, m:lock(0, 10, "rw", 0)) }, " "))
        m:wait(16, 0)
        return held:unlock()
      end)
      assert.are.equal("timeout " .. E.ETIMEDOUT, r:recv())
      held:unlock()
      local again = assert(m:lock(0, 10, "rw", PATIENCE))
      m:store(16, 1)
      m:wake(16)
      assert.is_true((p:wait(PATIENCE)))
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { file(path):lock(0, 10, "rw", 0) }) -- not given back there
      again:unlock()
    end)

    it("is waited for by tasks while others go on", function()
      local path = new_path()
      local m, other, s, order = file(path, 100), file(path), scheduler.new(), {}
      local held = assert(other:lock(0, 10))
      s:go(function()
        local _ <close> = assert(m:lock(0, 10))
        order[#order + 1] = "locked"
      end)
      s:go(function()
        local _ <close> = assert(m:lock(50, 10)) -- not behind the one that waits
        order[#order + 1] = "free"
        held:unlock()
      end)
      s:run(PATIENCE)
      assert.are.same({ "free", "locked" }, order)
      s:go(function() order[3] = select(2, m:lock(0, 10)) end)
      local again = assert(other:lock(0, 10))
      s:go(function() m:close() end)
      s:run(PATIENCE)
      assert.are.equal("closed", order[3])
      again:unlock()
    end)

    it("of memories without a file, too", function()
      local name = new_name()
      local m, other = open(name, 100), open(name)
      local _ <close> = assert(m:lock(0, 8))
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { other:lock(0, 8, "rw", 0) })
      local _ <close> = assert(m:flock())
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { other:flock("r", 0) })
    end)

    it("and the whole have nothing to do with each other", function()
      local path = new_path()
      local m, other = file(path, 100), file(path)
      local held <close> = assert(m:flock())
      fails(E.EDEADLK, "this handle", m:flock "r")
      assert.is_true(assert(other:lock(0, 100, "rw", 0)):unlock())
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { other:flock("r", 0.02) })
      held:unlock()
      do
        local a <close> = assert(m:flock "r")
        local b <close> = assert(other:flock("r", 0))
        assert.is_truthy(a and b)
      end
      assert.is_truthy(other:flock("rw", 0))
    end)

    it("wants a guard as self", function()
      local m = file(new_path(), 100)
      local held = assert(m:lock())
      for _, f in pairs(debug.getmetatable(held).__index) do raises("ipc%.filelock expected", f, m) end
      raises("is not polled", ipc.poll, { held }, 0)
      assert.is_true(held:unlock())
    end)
  end)
end

-- ---- other programs

if linux and os.execute "python3 -c 'import mmap' 2>/dev/null" then
  describe("Python", function()
    after_each(clean)

    it("maps the same file", function()
      local path = new_path()
      local m = file(path, 5000)
      m:pack(0, "<I4 d", 7, 0.5)
      local output = python([[
import mmap, struct, sys
with open(sys.argv[1], "r+b") as f, mmap.mmap(f.fileno(), 0) as m:
    print(len(m), *struct.unpack_from("<Id", m, 0))
    struct.pack_into("<q", m, 4992, -3)
    m[100:105] = b"hello"
]], path)
      assert.are.equal("5000 7 0.5\n", output)
      assert.are.equal(-3, (m:unpack(4992, "<i8")))
      assert.are.equal(100, m:find "hello")
    end)

    if exists "/dev/shm/." then
      it("makes shared memory that is opened as it is", function()
        local name = new_name()
        local output = python([[
from multiprocessing import shared_memory, resource_tracker
import sys
m = shared_memory.SharedMemory(name=sys.argv[1][1:], create=True, size=1000)
m.buf[:5] = b"hello"
resource_tracker.unregister("/" + m.name.lstrip("/"), "shared_memory")
m.close()
]], name)
        assert.are.equal("", output)
        local m = open(name)
        assert.are.equal(1000, #m)
        assert.are.equal("hello", m:read(0, 5))
        m:write(0, "world")
        assert.is_nil(m:stats().participants)
        fails(E.EEXIST, "size is 1000 there, not 999", ipc.memory(name, 999))
        assert.are.equal("world", open(name, 1000):read(0, 5))
        with.cleanup()
        assert.is_true(exists(place(name))) -- not ours to remove
        output = python([[
from multiprocessing import shared_memory
import sys
m = shared_memory.SharedMemory(name=sys.argv[1][1:])
print(bytes(m.buf[:5]).decode(), m.size)
m.close()
m.unlink()
]], name)
        assert.matches("^world 1000\n", output)
        assert.is_false(exists(place(name)))
      end)

      if shared then
        it("opens what we made, the bytes first", function()
          local name = new_name()
          local m = open(name, 1000)
          m:write(0, "hello")
          local output = python([[
from multiprocessing import shared_memory, resource_tracker
import sys
m = shared_memory.SharedMemory(name=sys.argv[1][1:])
print(bytes(m.buf[:5]).decode(), m.size >= 1000)
m.buf[995:1000] = b"world"
resource_tracker.unregister("/" + m.name.lstrip("/"), "shared_memory")
m.close()
]], name)
          assert.matches("^hello True\n", output)
          assert.are.equal("world", m:read(995))
        end)
      end
    end

    if shared then
      it("takes the same locks with lockf", function()
        local path = new_path()
        local m = file(path, 100)
        local script <const> = [[
import fcntl, sys
f = open(sys.argv[1], "r+b")
def attempt(*a):
    try:
        fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB, *a)
        return "yes"
    except OSError:
        return "no"
print(attempt(10, 0), attempt(10, 10), attempt(10, 20), attempt(1, 19))
]]
        local held = assert(m:lock(10, 10))
        assert.are.equal("yes no yes no\n", (python(script, path)))
        held:unlock()
        assert.are.equal("yes yes yes yes\n", (python(script, path)))
        local q <close> = peer.popen(peer.python_command([[
import fcntl, mmap, sys, time
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
fcntl.lockf(f, fcntl.LOCK_EX, 10, 10)
print("held", flush=True)
while m[50] == 0: time.sleep(0.001)
]], path), "r")
        assert.are.equal("held", q:read "l")
        assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:lock(10, 1, "r", 0) })
        assert.is_true(assert(m:lock(0, 10, "rw", 0)):unlock())
        m:fill(1, 50, 1)
        assert.is_truthy(m:lock(10, 1)) -- when it has ended
      end)
    end
  end)
end

if linux and os.execute "command -v flock >/dev/null 2>&1" then
  it("flock(1) takes the same lock", function()
    local path = new_path()
    local m = file(path, 100)
    local held = assert(m:flock())
    local command = ("flock -n %s true"):format(path)
    assert.is_nil((os.execute(command)))
    held:unlock()
    assert.is_true((os.execute(command)))
    local shared_lock <close> = assert(m:flock "r")
    assert.is_nil((os.execute(command)))
    assert.is_true((os.execute(("flock -n -s %s true"):format(path))))
    shared_lock:unlock()
    local p <close> = peer.popen(("mkfifo %s.go; flock %s sh -c 'echo held; read go < %s.go'"):format(path, path, path),
      "r")
    assert.are.equal("held", p:read "l")
    assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { m:flock("r", 0) })
    write(path .. ".go", "on\n")
    assert.is_truthy(m:flock())
    clean()
  end)
end

