-- Shared memory: what is its own beyond what contract_spec says of every
-- channel: names and who removes them, what is made for one, deaths, leases,
-- and memory without a name on its way to other processes.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE <const> = with.patience

if not peer.has "shm" then
  describe("shared memory", function()
    it("needs locks of open file descriptions: ENOTSUP", function()
      local ring, _, errno = ipc.shm("/none", "rw", { capacity = 4096 })
      assert.is_nil(ring)
      assert.are.equal(E.ENOTSUP, errno)
    end)
  end)
  return
end

local TIMEOUT <const> = { nil, "timeout", E.ETIMEDOUT }
local CLOSED <const> = { nil, "closed", E.EPIPE }
local is_root = io.popen("id -u"):read "n" == 0
local nobody = "setpriv --reuid=65534 --clear-groups"

local MEMORY <const> = "/dev/shm"

local function without(feature)
  return (os.getenv "IPC_WITHOUT" or ""):find(feature, 1, true) ~= nil
end

-- Whether a descriptor can be opened again; where not, memory without a name has
-- one that nobody is told.
local reopens = (function()
  local function hidden()
    local list <close> = assert(io.popen("ls -a " .. MEMORY))
    return select(2, list:read("a"):gsub("%f[^\n\0]%.ipc%.%x+\n", ""))
  end
  local r, w = assert(ipc.queue())
  local there = hidden()
  r:close()
  w:close()
  return hidden() == there
end)()

local function fails(errno, pattern, ok, message, number)
  assert.is_nil(ok)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

-- ---- names, removed after each test

local names, count = {}, 0

local function new_name()
  count = count + 1
  local name = ("/ipc-spec-%d-s%d"):format(ipc.pid(), count)
  names[#names + 1] = name
  return name
end

local function file_of(name) return MEMORY .. name end

local function exists(name)
  local file <close> = io.open(file_of(name))
  return file ~= nil
end

-- What the memory of all names holds that is ours, half made ones included.
local function left()
  local file <close> = io.popen(("ls -A %s | grep ipc-spec-%d- | wc -l"):format(MEMORY, ipc.pid()))
  return file:read "n"
end

local function clean()
  with.cleanup()
  for _, name in ipairs(names) do os.remove(file_of(name)) end
  names = {}
end

-- Opens; every wait is bounded.
local function open(name, mode, options)
  local o = {}
  for k, v in pairs(options or {}) do o[k] = v end
  if not o.capacity and not o.size and o.create ~= false then o.capacity = 8192 end
  local ring = with.close(assert(ipc.shm(name, mode, o)))
  if not o.timeout then ring:settimeout(PATIENCE) end
  return ring
end

local function queue(options)
  local r, w = with.close(assert(ipc.queue(options)))
  r:settimeout(PATIENCE)
  w:settimeout(PATIENCE)
  return r, w
end

-- A child that ends itself as a crash would, once it has done `f`.
local function killed(f, ...)
  local child = with.fork(function(...)
    f(...)
    os.execute("kill -KILL " .. ipc.pid())
    ipc.sleep(PATIENCE)
  end, ...)
  assert.is_nil(child:wait(PATIENCE))
  return child
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(bytes))
end

-- ---- names and options

describe("shared memory's", function()
  after_each(clean)

  it("names are refused when they make no sense, naming the rule", function()
    for name, why in pairs {
      [""] = "begins with a slash", ["frames"] = "begins with a slash", ["."] = "begins with a slash",
      ["/"] = "1 to 200 characters behind the slash, not 0", ["/a/b"] = "one slash", ["//"] = "one slash",
      ["/a\0b"] = "no NUL", ["\0"] = "no NUL", ["/."] = "dot", ["/.."] = "dot", ["/.hidden"] = "dot",
      ["/" .. ("x"):rep(201)] = "1 to 200 characters behind the slash, not 201",
    } do
      assert.error_matches(function() ipc.shm(name, "rw", { capacity = 1 }) end, "bad argument #1 .*" .. why)
    end
    for _, name in ipairs { 1, true, {}, false } do
      assert.error_matches(function() ipc.shm(name, "r") end, "bad argument #1 .*string expected")
    end
    local longest = new_name()
    longest = longest .. ("x"):rep(201 - #longest)
    names[#names] = longest
    assert.is_true(open(longest, "rw"):send "fits")
  end)

  it("mode must be said", function()
    for _, mode in ipairs { "x", "wr", "", 1, true } do
      assert.error_matches(function() ipc.shm("/x", mode) end, "bad argument #2")
    end
    assert.error_matches(function() ipc.shm "/x" end, "bad argument #2")
  end)

  it("options are checked", function()
    local name = new_name()
    local function raises(options, why)
      assert.error_matches(function() ipc.shm(name, "rw", options) end, "bad argument #3 .*" .. why)
    end
    for _, option in ipairs { "capacity", "size", "count", "participants" } do
      for _, value in ipairs { 0, -1, 1.5, math.mininteger, math.maxinteger, "5", true } do
        raises({ [option] = value }, "option '" .. option .. "'")
      end
    end
    for _, option in ipairs { "writers", "readers" } do
      for _, value in ipairs { 0, 2, "1", "one", true, 1.5 } do
        raises({ [option] = value, capacity = 1 }, "option '" .. option .. "': 1 or \"many\"")
      end
    end
    for _, option in ipairs { "lease", "persist", "huge", "prefault", "keepalive", "temporary" } do
      raises({ [option] = 1, capacity = 1 }, "option '" .. option .. "'")
    end
    raises({ size = 5 }, "'size' and 'count' go together")
    raises({ count = 5 }, "'size' and 'count' go together")
    raises({ size = 5, count = 5, capacity = 5 }, "'capacity', or 'size' and 'count'")
    raises({ create = "new" }, "say its 'capacity'")
    raises({ colour = "red" }, "unknown option 'colour'")
    assert.is_false(exists(name))
  end)

  it("capacity is rounded up to a power of two and to pages", function()
    for asked, is in pairs { [1] = 4096, [4096] = 4096, [4097] = 8192, [70000] = 131072 } do
      local ring = open(new_name(), "rw", { capacity = asked })
      assert.are.equal(is, ring:stats().capacity)
      assert.are.equal(is - 16, ring:maxsize())
    end
  end)

  it("size and count are the messages that fit, of that size at most", function()
    for _, size in ipairs { 1, 16, 100, 1000 } do
      local ring = open(new_name(), "rw", { size = size, count = 60 })
      assert.are.equal(size, ring:maxsize())
      for i = 1, 60 do assert.is_true(ring:send(("x"):rep(size), nil, 0), i) end
      fails(E.EMSGSIZE, ("%d bytes, but maxsize is %d"):format(size + 1, size), ring:send(("x"):rep(size + 1)))
      for _ = 1, 60 do assert.are.equal(size, #ring:recv(0)) end
    end
  end)

  it("messages that can never fit are refused with both figures", function()
    local ring = open(new_name(), "rw", { capacity = 4096 })
    fails(E.EMSGSIZE, "4081 bytes, but maxsize is 4080", ring:send(("x"):rep(4081)))
    assert.is_true(ring:send(("x"):rep(4080), nil, 0))
    assert.are.same(TIMEOUT, { ring:send("", nil, 0) })
    assert.are.equal(4080, #ring:recv(0))
  end)

  it("receiver with a smaller limit: consumed, told once, then on", function()
    local name = new_name()
    for _, options in ipairs { {}, { readers = 1 }, { lease = true } } do
      options.capacity = 8192
      local w = open(name, "w", options)
      options.maxsize = 10
      local r = open(name, "r", options)
      for _, call in ipairs { "recv", "recvmany" } do
        local function take()
          local got, message, errno = r[call](r, call == "recv" and 0 or 5, call == "recvmany" and 0 or nil)
          if got then return call == "recv" and got or got[1] end
          return nil, message, errno
        end
        assert(w:send "one" and w:send(("x"):rep(20)) and w:send "two")
        assert.is_true(ipc.poll({ r }, PATIENCE)[r])
        assert.are.equal("one", take())
        assert.is_true(ipc.poll({ r }, PATIENCE)[r])
        fails(E.EMSGSIZE, "20 bytes, but maxsize is 10", take())
        assert.are.equal("two", take())
        assert.are.same(TIMEOUT, { r:recv(0) })
      end
      r:close()
      w:close()
    end
  end)

  it("address opens it", function()
    local name = new_name()
    local w = with.close(assert(ipc.open(("shm:%s?capacity=4096"):format(name), "w")))
    local r = with.close(assert(ipc.open("shm:" .. name, "r", { timeout = PATIENCE })))
    assert(w:put { 1 })
    assert.are.same({ 1 }, r:get())
    assert.matches("^ipc%.shm %(", tostring(r))
  end)

  it("stats tell depth, bytes, capacity, takeovers and sleeps", function()
    local r, w = queue { capacity = 4096 }
    for i = 1, 5 do
      assert(w:send(("x"):rep(i)))
      assert.are.equal(i, w:stats().depth)
      assert.are.equal(i * 32, r:stats().used)
    end
    assert(r:recv() and r:recv())
    local stats = r:stats()
    assert.are.equal(3, stats.depth)
    assert.are.equal(96, stats.used)
    assert.are.equal(4096, stats.capacity)
    assert.are.equal(0, stats.takeovers)
    assert(r:recvmany(9))
    local before = r:stats().sleeps
    assert.are.same(TIMEOUT, { r:recv(0.02) })
    assert.is_true(r:stats().sleeps > before)
  end)

  it("handle is small", function()
    local before, list = collectgarbage "count", {}
    for i = 1, 100 do list[i] = { ipc.queue() } end
    collectgarbage()
    local bytes = (collectgarbage "count" - before) * 1024 / 200
    for _, pair in ipairs(list) do with.close(pair[1], pair[2]) end
    assert.is_true(bytes < 1024, bytes .. " bytes of Lua's for each")
  end)
end)

-- ---- making

describe("making shared memory:", function()
  after_each(clean)

  it("who names no capacity only opens; create = true, false, \"new\"", function()
    local name = new_name()
    for _, options in ipairs { {}, { create = false }, { create = false, capacity = 4096 } } do
      fails(E.ENOENT, "ipc%.shm%.open: " .. file_of(name):gsub("%p", "%%%0"), ipc.shm(name, "r", options))
    end
    local w = open(name, "w", { create = "new", capacity = 4096 })
    assert(w:send "here")
    fails(E.EEXIST, "it exists", ipc.shm(name, "r", { create = "new", capacity = 4096 }))
    assert.are.equal("here", open(name, "r", { create = false }):recv())
    assert.are.equal(4096, open(name, "r", { create = true, capacity = 4096 }):stats().capacity)
  end)

  it("what exists must be as asked: EEXIST with both figures", function()
    local name = new_name()
    open(name, "rw", { capacity = 4096, writers = "many" })
    local function differs(pattern, options)
      options.capacity = options.capacity or not options.size and 4096 or nil
      fails(E.EEXIST, pattern, ipc.shm(name, "r", options))
    end
    differs("capacity is 4096 there, not 8192", { capacity = 8192 })
    differs("size is 4080 there, not 4000", { size = 4000, count = 1 })
    differs("writers is \"many\" there", { writers = 1 })
    differs("readers is \"many\" there", { readers = 1 })
    differs("lease is false there", { lease = true })
    differs("persist is false there", { persist = true })
    local other = new_name()
    open(other, "rw", { capacity = 4096, writers = 1, readers = 1, lease = true, persist = true })
    for option, pattern in pairs {
      lease = "lease is true there", persist = "persist is true there",
    } do
      fails(E.EEXIST, pattern, ipc.shm(other, "r", { [option] = false, capacity = 4096 }))
    end
    for option in pairs { writers = 1, readers = 1 } do
      fails(E.EEXIST, option .. " is 1 there", ipc.shm(other, "r", { [option] = "many", capacity = 4096 }))
    end
    fails(E.EMSGSIZE, "maxsize is 5000, but messages have 4080", ipc.shm(name, "r", { maxsize = 5000 }))
  end)

  it("has the permissions asked for, whatever the umask", function()
    for _, umask in ipairs { "0", "022", "077", "0777" } do
      local output = peer.run(([[
        for i, permissions in ipairs { false, "0600", "0666", "0640" } do
          local name = %q .. i
          local ring = assert(ipc.shm(name, "rw", { permissions = permissions or nil, capacity = 1, create = "new" }))
          local file <close> = io.popen("stat -c %%a /dev/shm" .. name)
          io.write(file:read "l", " ")
        end
        print(io.popen "umask":read "a")
      ]]):format(new_name()), { shell = "umask " .. umask })
      assert.matches("^600 600 666 640 0*" .. umask:gsub("^0+(.)", "%1") .. "\n", output)
    end
    assert.are.equal(0, left())
  end)

  it("retry waits until there is one", function()
    local name = new_name()
    fails(E.ENOENT, "", ipc.shm(name, "r", { retry = 0 }))
    for _, retry in ipairs { true, PATIENCE } do
      local child = with.fork(function()
        ipc.parent:recv(PATIENCE)
        local ring <close> = assert(ipc.shm(name, "w", { create = "new", capacity = 4096 }))
        ring:send "made late"
        ipc.parent:recv(PATIENCE)
      end)
      child:send "go"
      local r = open(name, "r", { create = false, retry = retry })
      assert.are.equal("made late", r:recv())
      child:send "end"
      assert.is_true(child:wait(PATIENCE))
      r:close()
    end
  end)

  it("a second of a side made for one is EBUSY, which retry waits out", function()
    local name = new_name()
    local w = open(name, "w", { writers = 1, readers = 1 })
    local r = open(name, "r")
    fails(E.EBUSY, "made for one writer, and has one", ipc.shm(name, "w", { capacity = 8192 }))
    fails(E.EBUSY, "made for one writer, and has one", ipc.shm(name, "rw", { capacity = 8192 }))
    fails(E.EBUSY, "made for one reader, and has one", ipc.shm(name, "r"))
    fails(E.EBUSY, "made for one writer", w:dup())
    local child = with.fork(function()
      local second = ipc.shm(name, "w", { retry = PATIENCE })
      return second:send "the second"
    end)
    assert(w:send "the first")
    w:close()
    assert.is_true(child:wait(PATIENCE))
    assert.are.same({ "the first", "the second" }, { r:recv(), r:recv() })
  end)

  it("participants are bounded: EUSERS, naming how many", function()
    local name = new_name()
    open(name, "r", { participants = 2 })
    local second = open(name, "w")
    fails(E.EUSERS, "all places for participants are taken: 2", ipc.shm(name, "w"))
    second:close()
    assert(open(name, "w"):send "its place is free again")
  end)

  it("another user's is refused, and opened with create = false if it may be", function()
    if not is_root then return pending "needs root" end
    local name = new_name()
    local program = io.popen(nobody .. " " .. with.command(([[
      local ipc = require "ipc"
      local ring = assert(ipc.shm(%q, "rw", { capacity = 4096 }))
      io.stdout:setvbuf "no"
      print(ipc.pid())
      ipc.sleep(20)
    ]]):format(name)):gsub("^exec ", ""))
    local pid = assert(program:read "n")
    fails(E.EACCES, "another user's %(create = false", ipc.shm(name, "r", { capacity = 4096 }))
    local r = ipc.shm(name, "r", { create = false })
    os.execute("kill -KILL " .. pid)
    program:close()
    assert.is_truthy(r)
    r:close()
  end)

  it("one that may not be opened is EACCES", function()
    if not is_root then return pending "needs root" end
    local name = new_name()
    open(name, "rw")
    local output = peer.run(([[
      local ring, message, errno = ipc.shm(%q, "r", { create = false })
      print(ring, ipc.errno[errno])
    ]]):format(name), { under = nobody })
    assert.matches("^nil\tEACCES\n", output)
  end)

  it("a symbolic link is refused, what it points to is untouched", function()
    local name, target = new_name(), os.tmpname()
    write(target, "precious")
    os.execute(("ln -s %s %s"):format(target, file_of(name)))
    assert.are.equal(E.ELOOP, (select(3, ipc.shm(name, "rw", { capacity = 4096 }))))
    assert.are.equal("precious", read(target))
    os.remove(target)
  end)

  it("a FIFO of the name does not hold us", function()
    local name = new_name()
    os.execute("mkfifo " .. file_of(name))
    fails(E.EBADMSG, "not shared memory of lua%-ipc", ipc.shm(name, "rw", { capacity = 4096 }))
  end)

  it("what is not ours is not touched", function()
    local name = new_name()
    local path = file_of(name)
    for _, bytes in ipairs { "", "x", ("x"):rep(5000), ("\0"):rep(20000), "lua-ipc\n" } do
      write(path, bytes)
      fails(E.EBADMSG, "not shared memory of lua%-ipc", ipc.shm(name, "rw", { capacity = 4096 }))
      assert.are.equal(bytes, read(path))
      os.remove(path)
    end
  end)

  it("a damaged head, another version, byte order, kind, or a cut file: told, untouched", function()
    local name = new_name()
    local path = file_of(name)
    open(name, "rw", { capacity = 4096 })
    local whole = read(path)
    os.remove(path)
    local big = string.pack("=I2", 1) == string.pack(">I2", 1)
    local swapped = "lua-ipc\n" .. string.pack(big and "<I4I4" or ">I4I4", 1, 0x01020304)
    for _, case in ipairs {
      { E.EBADMSG, "head is damaged", whole:sub(1, 40) .. "\xff" .. whole:sub(42) },
      { E.EBADMSG, "head is damaged", whole:sub(1, 124) .. "\0\1\2\3" .. whole:sub(129) },
      { E.ENOTSUP, "another version or byte order", "lua-ipc\n" .. string.pack("=I4", 99) .. whole:sub(13) },
      { E.ENOTSUP, "another version or byte order", swapped .. whole:sub(17) },
      { E.EBADMSG, "truncated", whole:sub(1, -2) },
      { E.EBADMSG, "truncated", whole:sub(1, 128) },
      { E.EBADMSG, "not shared memory", whole:sub(1, 127) },
    } do
      write(path, case[3])
      fails(case[1], case[2], ipc.shm(name, "rw", { capacity = 4096 }))
      assert.are.equal(case[3], read(path))
      os.remove(path)
    end
  end)
end)

-- ---- names' lives

describe("the name of shared memory", function()
  after_each(clean)

  it("goes with the last that has it open", function()
    local name = new_name()
    local a, b = open(name, "r"), open(name, "w")
    a:close()
    assert.is_true(exists(name))
    local c = open(name, "r", { create = false })
    b:close()
    assert.is_true(exists(name))
    c:close()
    assert.is_false(exists(name))
  end)

  it("goes at the end of the program, however it ends", function()
    for _, ending in ipairs { "", "os.exit(0)", "os.exit(0, true)", "error('x', 0)", "r:close()" } do
      local name = new_name()
      peer.run(([[
        r = assert(ipc.shm(%q, "r", { capacity = 4096 }))
        w = assert(ipc.shm(%q, "w"))
        w:close()
        %s
      ]]):format(name, name, ending))
      assert.is_false(exists(name), ending)
    end
  end)

  it("of one whose last was killed is swept by the next opener", function()
    local name = new_name()
    killed(function()
      local ring = assert(ipc.shm(name, "rw", { capacity = 4096 }))
      ring:send "of the dead"
    end)
    assert.is_true(exists(name))
    fails(E.ENOENT, "", ipc.shm(name, "r"))
    assert.is_false(exists(name))
    killed(function() assert(ipc.shm(name, "rw", { capacity = 4096 })) end)
    local ring = open(name, "rw", { capacity = 16384 }) -- another, as it likes
    assert.are.same(TIMEOUT, { ring:recv(0) })
    assert.are.equal(16384, ring:stats().capacity)
  end)

  it("stays with persist, and what is in it", function()
    local name = new_name()
    local w = open(name, "w", { persist = true })
    assert(w:send "kept")
    w:close()
    assert.is_true(exists(name))
    killed(function() assert(ipc.shm(name, "w")):send "by the killed" end)
    local r = open(name, "r", { create = false })
    assert.are.equal("kept", r:recv())
    assert.are.equal("by the killed", r:recv())
    assert.is_true(r:remove())
    r:close()
    assert.is_false(exists(name))
  end)

  it("with temporary goes with the maker's close, others go on", function()
    local name = new_name()
    local maker = open(name, "r", { temporary = true })
    local w = open(name, "w", { temporary = true })
    w:close()
    assert.is_true(exists(name))
    w = open(name, "w")
    local r = open(name, "r")
    maker:close()
    assert.is_false(exists(name))
    assert(w:send "on")
    assert.are.equal("on", r:recv())
  end)

  it("is removed by remove: others go on, the next opener makes another", function()
    local name = new_name()
    local r, w = open(name, "r"), open(name, "w")
    assert.is_true(w:remove())
    assert.is_false(exists(name))
    fails(E.ENOENT, "remove", w:remove())
    fails(E.ENOENT, "remove", r:remove())
    local other = open(name, "rw", { capacity = 16384 })
    assert(w:send "old" and other:send "new")
    assert.are.equal("old", r:recv())
    fails(E.ENOENT, "remove", r:remove()) -- another's by now
    r:close()
    w:close()
    assert.is_true(exists(name))
    assert.are.equal("new", other:recv())
    assert.are.same(CLOSED, { r:remove() })
    fails(E.ENOENT, "it has no name", queue():remove())
  end)

  it("is left by whoever only attaches to what he cannot use", function()
    local name = new_name()
    local ring = open(name, "rw", { capacity = 4096 })
    assert(ring:send "untouched")
    for _, options in ipairs { { capacity = 8192 }, { create = "new", capacity = 4096 }, { maxsize = 9000 } } do
      assert.is_nil((ipc.shm(name, "r", options)))
    end
    assert.is_true(exists(name))
    assert.are.equal("untouched", ring:recv())
  end)

  it("is one, however many processes make it at once", function()
    local name = new_name()
    local crew = {}
    for i = 1, 6 do
      crew[i] = with.fork(function()
        ipc.parent:recv(PATIENCE)
        local ring = assert(ipc.shm(name, "rw", { capacity = 4096 }))
        ring:send(tostring(i))
        ipc.parent:send "sent"
        ipc.parent:recv(PATIENCE)
      end)
    end
    for i = 1, 6 do crew[i]:send "go" end
    for i = 1, 6 do assert(crew[i]:recv(PATIENCE)) end
    local r = open(name, "r", { create = false })
    assert.are.equal(6, r:stats().depth)
    for i = 1, 6 do crew[i]:send "end" end
    for i = 1, 6 do assert.is_true(crew[i]:wait(PATIENCE)) end
    r:close()
    assert.is_false(exists(name))
  end)

  it("is shared between two states of one process", function()
    local name = new_name()
    local r = open(name, "r")
    local output = peer.run(([[
      local a, b = assert(ipc.shm(%q, "r")), assert(ipc.shm(%q, "w"))
      b:send "between two handles"
      print(a:recv(5))
    ]]):format(name, name))
    assert.are.equal("between two handles\n", output)
    r:close()
    assert.is_false(exists(name))
  end)
end)

-- ---- deaths

describe("deaths in shared memory:", function()
  after_each(clean)

  for _, options in ipairs { {}, { writers = 1 }, { readers = 1 }, { writers = 1, readers = 1 }, { lease = true } } do
    local what = (options.writers and "one writer " or "many writers ")
      .. (options.readers and "one reader" or "many readers") .. (options.lease and ", leases" or "")

    it("a killed sender is closed, after what it sent: " .. what, function()
      local name = new_name()
      local o = { capacity = 8192 }
      for k, v in pairs(options) do o[k] = v end
      local r = open(name, "r", o)
      assert.are.same(TIMEOUT, { r:recv(0.01) }) -- not yet connected is not the end
      killed(function()
        local w = assert(ipc.shm(name, "w"))
        w:send "one"
        w:send "two"
      end)
      assert.are.equal("one", r:recv())
      assert.are.equal("two", r:recv())
      assert.are.same(CLOSED, { r:recv() })
      assert.are.same(CLOSED, { r:recv(0) })
    end)

    it("a killed receiver is closed to one that waits for room: " .. what, function()
      local name = new_name()
      local o = { capacity = 4096 }
      for k, v in pairs(options) do o[k] = v end
      local w = open(name, "w", o)
      assert(w:send(("x"):rep(4080), nil, 0))
      assert.are.same(TIMEOUT, { w:send("x", nil, 0.01) }) -- nobody came yet
      killed(function() assert(ipc.shm(name, "r")) end)
      assert.are.same(CLOSED, { w:send "x" })
      assert.are.same(CLOSED, { w:send("x", nil, 0) })
    end)
  end

  it("keepalive bears them", function()
    local name = new_name()
    local r = open(name, "r", { keepalive = true })
    for i = 1, 2 do
      killed(function() assert(ipc.shm(name, "w")):send(tostring(i)) end)
      assert.are.equal(tostring(i), r:recv())
      assert.are.same(TIMEOUT, { r:recv(0.02) })
    end
    local other = new_name()
    local w = open(other, "w", { keepalive = true })
    killed(function() assert(ipc.shm(other, "r")) end)
    assert.is_true(w:send "for the next")
    assert.are.equal("for the next", open(other, "r", { create = false }):recv())
  end)

  it("one that waits in a poll set beside a socket learns it", function()
    local name = new_name()
    local r = open(name, "r")
    local a, b = with.close(assert(ipc.pair "unix"))
    local child = with.fork(function()
      local w = assert(ipc.shm(name, "w"))
      ipc.parent:recv(PATIENCE)
      w:send "ring"
      ipc.parent:recv(PATIENCE)
    end)
    assert.are.same(TIMEOUT, { ipc.poll({ r, a }, 0) })
    child:send "go"
    assert.is_true(ipc.poll({ r, a }, PATIENCE)[r])
    assert.are.equal("ring", r:recv(0))
    b:send "socket"
    assert.are.same({ a, [a] = true }, ipc.poll({ r, a }, PATIENCE))
    assert.are.equal("socket", a:recv(0))
    assert(child:kill "KILL")
    assert.are.same({ r, [r] = true }, ipc.poll({ r, a }, PATIENCE))
    assert.are.same(CLOSED, { r:recv(0) })
  end)

  it("a child of fork(2) that we know nothing of does not hide its parent's", function()
    if not reopens then return end -- its mapping keeps the parent's locks there
    local name = new_name()
    local r = open(name, "r")
    local program = io.popen(with.command(([[
      local ipc = require "ipc"
      local w = assert(ipc.shm(%q, "w"))
      w:send "last words"
      local parent = ipc.pid()
      require "spec.peer".fork(function()
        local _, _, errno = w:send "x"
        io.stdout:setvbuf "no"
        print(errno == ipc.errno.ECHILD)
        local file <close> = io.open "/proc/self/stat" -- itself, whatever its parent was called
        print(file:read "n")
        os.execute("kill -KILL " .. parent)
        ipc.sleep(20)
      end)
    ]]):format(name)):gsub("^exec ", "") .. " 2>&1")
    assert.are.equal("true", program:read "l")
    local pid = assert(program:read "n")
    assert.are.equal("last words", r:recv())
    assert.are.same(CLOSED, { r:recv() })
    assert.is_true(peer.lives(pid))
    os.execute("kill -KILL " .. pid)
    program:close()
  end)
end)

-- ---- leases

describe("leases:", function()
  after_each(clean)

  local function leases() return queue { lease = true, capacity = 8192 } end

  it("a ticket holds a message until ack", function()
    local r, w = leases()
    assert(w:put { job = 1 } and w:put { job = 2 })
    local t = assert(r:take())
    assert.are.equal(ipc.pack { job = 1 }, t.bytes)
    assert.are.same({ job = 1 }, t:get())
    assert.are.equal(1, t.offered)
    assert.matches("^ipc%.ticket", tostring(t))
    assert.are.equal(2, r:stats().depth)
    assert.is_true(t:ack())
    assert.matches("settled", tostring(t))
    assert.are.equal(1, r:stats().depth)
    assert.are.same({ job = 2 }, r:get()) -- take and ack
    assert.are.equal(0, r:stats().depth)
    assert.are.same(TIMEOUT, { r:take(0) })
  end)

  it("nack, the end of its scope and the collector offer it again", function()
    local r, w = leases()
    assert(w:send "job")
    assert.is_true(assert(r:take()):nack())
    do
      local t <close> = assert(r:take())
      assert.are.equal(2, t.offered)
    end
    local function drop() assert.are.equal(3, assert(r:take()).offered) end
    drop()
    collectgarbage()
    collectgarbage()
    local t <close> = assert(r:take(PATIENCE))
    assert.are.equal(4, t.offered)
    assert.are.equal("job", t.bytes)
    assert.is_true(t:ack())
  end)

  it("they may be settled in any order, what is free is used again", function()
    local r, w = leases()
    local text = ("x"):rep(2000)
    for round = 1, 5 do
      for _ = 1, 4 do assert(w:send(text, nil, 0), round) end
      assert.are.same(TIMEOUT, { w:send(text, nil, 0) })
      local t = {}
      for i = 1, 4 do t[i] = assert(r:take(0)) end
      for _, i in ipairs { 3, 1, 4, 2 } do assert.is_true(t[i]:ack()) end
    end
    assert.are.equal(0, r:stats().used)
  end)

  it("what a killed holder had is offered again, once more", function()
    local r, w = leases()
    local r2 = with.close(assert(r:dup()))
    assert(w:send "one" and w:send "two")
    killed(function(mine)
      local t = assert(mine:take(PATIENCE))
      assert(t.bytes == "one" and t.offered == 1)
    end, r2)
    local seen = {}
    for _ = 1, 2 do
      local t <close> = assert(r:take())
      seen[t.bytes] = t.offered
      assert.is_true(t:ack())
    end
    assert.are.same({ one = 2, two = 1 }, seen)
    assert.are.same(TIMEOUT, { r:take(0) })
  end)

  it("close of the channel offers what is out again; its tickets say so", function()
    local r, w = leases()
    local r2 = with.close(assert(r:dup()))
    assert(w:send "job")
    local t = assert(r2:take(PATIENCE))
    r2:close()
    fails(E.EPIPE, "closed", t:ack())
    local again <close> = assert(r:take())
    assert.are.equal(2, again.offered)
    assert.are.equal("job", again.bytes)
    assert.is_true(again:ack())
  end)

  it("while some are with others the end has not come; then it has", function()
    local r, w = leases()
    assert(w:send "job")
    local t = assert(r:take())
    w:close()
    local r2 = with.close(assert(r:dup()))
    assert.are.same(TIMEOUT, { r2:take(0.01) })
    assert.is_true(t:ack())
    assert.are.same(CLOSED, { r2:take(PATIENCE) })
  end)

  it("mistakes raise", function()
    local r, w = leases()
    assert(w:send "1" and w:send "2")
    local t = assert(r:take())
    assert(t:ack())
    assert.error_matches(function() t:ack() end, "ack after it was settled")
    assert.error_matches(function() t:nack() end, "nack after it was settled")
    local u <close> = assert(r:take())
    for _, self in ipairs { 1, {}, io.stdout, r, "x" } do
      assert.error_matches(function() u.ack(self) end, "bad argument #1")
      assert.error_matches(function() u.get(self) end, "bad argument #1")
    end
    assert.error_matches(function() w:take() end, "this end only sends")
    assert.error_matches(function() queue():take() end, "take needs a ring with lease = true")
    assert.error_matches(function() r:take "1" end, "bad argument")
  end)

  it("a ticket's value that does not decode is EBADMSG, and still to be settled", function()
    local r, w = leases()
    assert(w:send "\xc1")
    local t <close> = assert(r:take())
    fails(E.EBADMSG, "ipc%.ticket%.get", t:get())
    assert.is_true(t:ack())
  end)

  it("a handle has 1024 tickets out at most", function()
    local r, w = queue { lease = true, capacity = 1 << 16 }
    local out = {}
    for i = 1, 1024 do
      assert(w:send "")
      out[i] = assert(r:take(0))
    end
    assert(w:send "")
    fails(E.ENOBUFS, "1024", r:take(0))
    assert(out[500]:ack())
    assert(assert(r:take(0)):ack())
  end)
end)

-- ---- views

describe("views of shared memory:", function()
  after_each(clean)

  it("reserve and commit send, peek and release take", function()
    local r, w = queue { writers = 1, readers = 1, capacity = 4096 }
    local v <close> = assert(w:reserve(100))
    v:pack(0, "<I4", 42)
    assert.are.same(TIMEOUT, { r:recv(0) })
    fails(E.EBUSY, "not committed", w:send "x")
    fails(E.EBUSY, "not committed", w:reserve(1))
    assert.is_true(v:commit(4))
    do
      local seen <close> = assert(r:peek())
      assert.are.equal(42, (seen:unpack(0, "<I4")))
      fails(E.EBUSY, "not released", r:recv(0))
      fails(E.EBUSY, "not released", r:peek(0))
    end
    local seen <close> = assert(r:peek()) -- not released: still the next
    assert.is_true(seen:release())
    assert.are.same(TIMEOUT, { r:recv(0) })
  end)

  it("need a side made for one", function()
    local r, w = queue()
    assert.error_matches(function() w:reserve(1) end, "reserve needs a ring with writers = 1")
    assert.error_matches(function() r:peek() end, "peek needs a ring with readers = 1")
    assert.error_matches(function() r:reserve(1) end, "this end only receives")
    assert.error_matches(function() w:peek() end, "this end only sends")
    assert.error_matches(function() w:reserve(-1) end, "bad argument #1")
    assert.error_matches(function() w:reserve "1" end, "bad argument #1")
    local _, sole = queue { writers = 1, capacity = 4096 }
    fails(E.EMSGSIZE, "4081 bytes, but maxsize is 4080", sole:reserve(4081))
    assert(sole:send(("x"):rep(4000)))
    assert.are.same(TIMEOUT, { sole:reserve(100, 0) })
  end)

  it("what a killed writer reserved is never seen", function()
    local r, w = queue { writers = 1 }
    killed(function(mine)
      mine:send "whole"
      local v = assert(mine:reserve(10))
      v:pack(0, "z", "half")
    end, w)
    assert.are.equal("whole", r:recv())
    assert.are.same(CLOSED, { r:recv() })
  end)
end)

-- ---- many at once

describe("many messages at once:", function()
  after_each(clean)

  it("sendmany and recvmany go as far as there is room", function()
    for _, options in ipairs { {}, { writers = 1, readers = 1 }, { lease = true } } do
      options.capacity = 4096
      local r, w = queue(options)
      local list = {}
      for i = 1, 300 do list[i] = ("%03d"):format(i) end -- 32 bytes each, of 4096
      local n, word, _, sent = w:sendmany(list, nil, 0)
      assert.are.same({ "timeout", 128 }, { word, sent })
      assert.is_nil(n)
      local got = assert(r:recvmany(1000))
      assert.are.equal(128, #got)
      for i = 1, 128 do assert.are.equal(list[i], got[i]) end
      assert.are.equal(0, r:stats().depth)
    end
  end)
end)

-- ---- other processes

describe("shared memory on its way to other processes:", function()
  after_each(clean)

  it("a name stays usable on both sides of ipc.fork", function()
    local name = new_name()
    local r, w = open(name, "r"), open(name, "w")
    local child = with.fork(function()
      assert(w:send "from the child")
      ipc.parent:recv(PATIENCE)
      return (r:recv(PATIENCE))
    end)
    assert.are.equal("from the child", r:recv())
    assert(w:send "to the child" and child:send "go")
    assert.are.same({ true, "to the child" }, { child:wait(PATIENCE) })
    r:close()
    w:close()
    assert.is_false(exists(name))
  end)

  it("the last one out removes the name, however it came in", function()
    if not reopens or without "reopen" then return end -- nobody tells it which
    local name = new_name()
    local w = open(name, "w")
    local a, b = with.close(assert(ipc.pair("unix", { handles = 2, timeout = PATIENCE })))
    assert(a:put { w })
    local got = with.close(assert(b:get())[1])
    w:close()
    assert.is_true(exists(name))
    got:close()
    assert.is_false(exists(name))
  end)

  it("what was not sent keeps no place", function()
    local name = new_name()
    local r, w = open(name, "r", { participants = 3 }), open(name, "w")
    local a, b = with.close(assert(ipc.pair("unix", { handles = 2 })))
    while a:send(("x"):rep(1000), nil, 0) do end
    assert.are.same(TIMEOUT, { a:put({ w }, nil, 0) })
    open(name, "w"):close() -- the third place is free
    local third = open(name, "w")
    local ok, message, errno = a:put({ w }, nil, 0)
    assert.is_nil(ok)
    assert.are.equal(E.EUSERS, errno, message)
    assert.matches("places", message)
    third:close()
    b:close()
    assert(w:send "still here")
    assert.are.equal("still here", r:recv(PATIENCE))
  end)

  it("of one made for one the child has no place: it says so", function()
    local name = new_name()
    local w, r = open(name, "w", { writers = 1 }), open(name, "r")
    local child = with.fork(function() return select(3, w:send "x") end)
    local ok, errno = child:wait(PATIENCE)
    assert.are.same({ true, E.EUSERS }, { ok, errno })
    assert(w:send "here as before")
    assert.are.equal("here as before", r:recv())
  end)

  for _, way in ipairs { "unix", "unix?type=seqpacket" } do
    if peer.has(way) then
      it("ends go through a socket, and are gone here: " .. way, function()
        local a, b = with.close(assert(ipc.pair(way, { handles = 4, timeout = PATIENCE })))
        local r, w = queue()
        assert(w:send "before")
        assert(a:put { r = r, w = w })
        assert.error_matches(function() r:recv(0) end, "moved")
        local got = assert(b:get())
        with.close(got.r, got.w)
        assert.are.equal("before", got.r:recv(PATIENCE))
        assert(got.w:send "after")
        assert.are.equal("after", got.r:recv(PATIENCE))
        got.w:close()
        assert.are.same(CLOSED, { got.r:recv(PATIENCE) })
      end)
    end
  end

  it("a name goes through a socket and stays here", function()
    local name = new_name()
    local a, b = with.close(assert(ipc.pair("unix", { handles = 4, timeout = PATIENCE })))
    local r, w = open(name, "r"), open(name, "w")
    assert(a:put { w = w })
    local there = with.close(assert(b:get()).w)
    assert(there:send "there" and w:send "here")
    assert.are.same({ "there", "here" }, { r:recv(), r:recv() })
    w:close()
    assert.are.same(TIMEOUT, { r:recv(0.01) })
    there:close()
    assert.are.same(CLOSED, { r:recv() })
  end)

  it("a process at the other end of a socket uses it", function()
    local r, w = queue()
    local child = with.fork(function()
      local got = ipc.parent:get(PATIENCE)
      got.w:send "through it"
      return true
    end)
    assert(child:put { w = w })
    assert.are.equal("through it", r:recv())
    assert.are.same(CLOSED, { r:recv() })
    assert.is_true(child:wait(PATIENCE))
  end)

  it("memory without a name is sealed", function()
    if without "memfd" or not peer.has_proc then return end
    local r, w = queue()
    local file <close> = peer.popen(peer.python_command([[
import fcntl, os, sys
for fd in os.listdir("/proc/%s/fd" % sys.argv[1]):
    if int(fd) < 500: continue # others have memory of their own
    path = "/proc/%s/fd/%s" % (sys.argv[1], fd)
    try:
        if "memfd:" not in os.readlink(path): continue
        print(fcntl.fcntl(os.open(path, os.O_RDWR), 1034) & 7)
    except OSError: pass
]], ipc.pid()))
    local found = {}
    for line in file:lines() do found[#found + 1] = line end
    if #found == 0 then return end -- a system without
    for _, seals in ipairs(found) do assert.are.equal("7", seals) end -- SEAL, SHRINK, GROW
    assert(w:send "x" and r:recv())
  end)

  it("descriptors are not inherited, high, and all given back", function()
    local before, inherited = with.descriptors(), with.inherited()
    local name = new_name()
    local r, w = open(name, "r"), open(name, "w")
    local x, y = queue()
    assert.is_true(ipc.poll({ { w, "w" }, { y, "w" } }, 0)[w])
    assert.are.same(TIMEOUT, { ipc.poll({ r, x }, 0) })
    assert.are.equal(inherited, with.inherited())
    for _, ring in ipairs { r, w, x, y } do ring:close() end
    assert.are.equal(before, with.descriptors())
  end)

  it("cut while it is in use: an error, not a death", function()
    local name = new_name()
    local r, w = open(name, "r", { capacity = 1 << 16 }), open(name, "w", { create = false })
    assert(w:send(("x"):rep(60000)))
    os.execute("truncate -s 4096 " .. file_of(name))
    local message, why, errno = r:recv(0)
    if message then
      why, errno = select(2, r:recv(0))
    end
    assert.is_string(why)
    assert.is_true(errno == E.EFAULT or errno == E.ENOTRECOVERABLE, why)
  end)
end)

describe("tasks on shared memory", function()
  after_each(clean)

  it("wait with cqueues while others go on", function()
    local ok, cqueues = pcall(require, "cqueues")
    if not ok then return end
    local r, w = queue { capacity = 4096 }
    local loop, got = cqueues.new(), {}
    loop:wrap(function()
      repeat
        local message = r:recv(0)
        if message then got[#got + 1] = message else cqueues.poll(r) end
      until #got == 100
    end)
    loop:wrap(function()
      for i = 1, 100 do
        assert(w:send(tostring(i), nil, 0))
        if i % 10 == 0 then cqueues.sleep(0) end
      end
    end)
    assert(loop:loop(PATIENCE))
    assert.are.equal(100, #got)
    assert.are.equal("100", got[100])
  end)
end)

describe("after all that", function()
  it("nothing is left in the memory of the system", function()
    collectgarbage()
    assert.are.equal(0, left())
  end)
end)
