-- Mapped files: what is their own beyond shm_spec, whose code they share: a file
-- that outlives its processes, what is refused of one, and its documented layout
-- as Python reads it.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE <const> = with.patience

if not peer.has "mmap" then return end

local CLOSED <const> = { nil, "closed", E.EPIPE }
local is_root = io.popen("id -u"):read "n" == 0

local function fails(errno, pattern, ok, message, number)
  assert.is_nil(ok)
  assert.are.equal(errno, number, message)
  assert.matches(pattern, message)
end

-- ---- files, removed after each test

local folder = os.tmpname()
os.remove(folder)
os.execute("mkdir " .. folder)
local count = 0

local function new_path()
  count = count + 1
  return ("%s/ring-%d"):format(folder, count)
end

local function clean()
  with.cleanup()
  os.execute(("rm -rf %s/* %s/.??*"):format(folder, folder))
end

local function open(path, mode, options)
  local o = { capacity = 4096 }
  for k, v in pairs(options or {}) do o[k] = v end
  if o.create == false then o.capacity = nil end
  local ring = with.close(assert(ipc.mmap(path, mode, o)))
  ring:settimeout(PATIENCE)
  return ring
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  assert(file:write(bytes))
end

local function killed(f)
  local child = with.fork(function()
    f()
    os.execute("kill -KILL " .. ipc.pid())
    ipc.sleep(PATIENCE)
  end)
  assert.is_nil(child:wait(PATIENCE))
end

-- A file with messages in it that nobody has open.
local function left(options, ...)
  local path = new_path()
  local ring = open(path, "w", options)
  for _, message in ipairs { ... } do assert(ring:send(message)) end
  ring:close()
  return path, read(path)
end

describe("a mapped file", function()
  after_each(clean)

  it("keeps what nobody received for the next process", function()
    local path = left(nil, "one", "two", "three")
    local output = peer.run(([[
      local ring <close> = assert(ipc.mmap(%q, "r"))
      print(ring:recv(5))
    ]]):format(path))
    assert.are.equal("one\n", output)
    local ring = open(path, "rw", { create = false })
    assert.are.equal(2, ring:stats().depth)
    assert.are.same({ "two", "three" }, { ring:recv(), ring:recv() })
    assert.are.same(CLOSED, { ring:recv(0) }) -- who sent it has gone
  end)

  it("keeps it although all of them were killed", function()
    local path = new_path()
    killed(function()
      local ring = assert(ipc.mmap(path, "w", { capacity = 4096 }))
      ring:send "of the dead"
    end)
    local ring = open(path, "r")
    assert.are.equal("of the dead", ring:recv())
    ring:close()
    assert.are.equal(0, open(path, "w"):stats().depth)
  end)

  it("is the same after it was copied away and back, as a restart leaves it", function()
    for _, options in ipairs { {}, { writers = 1, readers = 1 }, { lease = true } } do
      local path = left(options, "a", "b")
      assert(os.execute(("cp %s %s.copy && rm %s && mv %s.copy %s"):format(path, path, path, path, path)))
      local r, w = open(path, "r", options), open(path, "w", { create = false })
      assert(w:send "c")
      assert.are.same({ "a", "b", "c" }, { r:recv(), r:recv(), r:recv() })
      w:close()
      assert.are.same(CLOSED, { r:recv() })
      r:close()
    end
  end)

  it("bears locks that the dead left in it", function()
    local path, bytes = left(nil, "x")
    for _, owner in ipairs { 1 | 1 << 12, 5 | 9 << 12, 1 | 1 << 12 | 1 << 31 } do
      local lock = string.pack("=I4", owner)
      write(path, bytes:sub(1, 256) .. lock .. bytes:sub(261, 384) .. lock .. bytes:sub(389))
      local r, w = open(path, "r"), open(path, "w")
      assert(w:send "y")
      assert.are.same({ "x", "y" }, { r:recv(), r:recv() })
      r:close()
      w:close()
    end
  end)

  it("gives what a killed holder of a lease had", function()
    local path = left({ lease = true }, "job")
    killed(function()
      local ring = assert(ipc.mmap(path, "r"))
      assert(ring:take(PATIENCE))
    end)
    local ring = open(path, "r", { lease = true })
    local t <close> = assert(ring:take())
    assert.are.equal("job", t.bytes)
    assert.is_true(t:ack())
  end)

  it("with positions that contradict each other is EBADMSG and untouched", function()
    local path, bytes = left(nil, "one", "two")
    local TAIL <const>, HEAD <const> = 256 + 8, 384 + 8
    for _, case in ipairs {
      { TAIL, 8 }, { TAIL, 1 << 20 }, { HEAD, 96 }, { HEAD, 17 }, { HEAD, math.maxinteger }, { TAIL, 48 },
    } do
      local bad = bytes:sub(1, case[1]) .. string.pack("=i8", case[2]) .. bytes:sub(case[1] + 9)
      write(path, bad)
      fails(E.EBADMSG, "ipc%.mmap%.open: ", ipc.mmap(path, "r"))
      fails(E.EBADMSG, "ipc%.mmap%.open: ", ipc.mmap(path, "rw", { capacity = 4096 }))
      assert.are.equal(bad, read(path))
    end
    local head = string.unpack("=I4", bytes, 25)
    local long = bytes:sub(1, head) .. string.pack("=I4", 4000) .. bytes:sub(head + 5)
    write(path, long)
    fails(E.EBADMSG, "no messages", ipc.mmap(path, "r"))
    assert.are.equal(long, read(path))
  end)

  it("of another kind of contents is not formatted", function()
    local path, bytes = left(nil, "x")
    for _, text in ipairs { "", "a file of the user's", ("x"):rep(9000) } do
      write(path, text)
      fails(E.EBADMSG, "not shared memory of lua%-ipc", ipc.mmap(path, "rw", { capacity = 4096 }))
      assert.are.equal(text, read(path))
    end
    local cut = bytes:sub(1, -2)
    write(path, cut)
    fails(E.EBADMSG, "truncated", ipc.mmap(path, "rw", { capacity = 4096 }))
    assert.are.equal(cut, read(path))
    local other = bytes:sub(1, 12) .. bytes:sub(13, 16):reverse() .. bytes:sub(17)
    write(path, other)
    fails(E.ENOTSUP, "byte order", ipc.mmap(path, "rw", { capacity = 4096 }))
    assert.are.equal(other, read(path))
  end)

  it("is refused when it is a directory, a symbolic link or a FIFO", function()
    local path = new_path()
    assert.is_nil((ipc.mmap(folder, "rw", { capacity = 4096 })))
    assert(os.execute(("ln -s /etc/passwd %s"):format(path)))
    assert.are.equal(E.ELOOP, (select(3, ipc.mmap(path, "rw", { capacity = 4096 }))))
    local fifo = new_path()
    assert(os.execute("mkfifo " .. fifo))
    fails(E.EBADMSG, "", ipc.mmap(fifo, "rw", { capacity = 4096 }))
  end)

  it("has a path, as files have: relative ones, directories that must exist", function()
    fails(E.ENOENT, "/missing/x", ipc.mmap(folder .. "/missing/x", "rw", { capacity = 4096 }))
    fails(E.ENOENT, "", ipc.mmap(new_path(), "r"))
    for path, why in pairs {
      [""] = "path of a file", ["x/"] = "path of a file", ["a\0b"] = "no NUL", [("x"):rep(4001)] = "at most 4000",
    } do
      assert.error_matches(function() ipc.mmap(path, "rw", { capacity = 1 }) end, "bad argument #1 .*" .. why)
    end
    local output = peer.run([[
      local ring <close> = assert(ipc.mmap("relative", "w", { capacity = 1 }))
      ring:send "here"
      print(assert(ipc.open("mmap:./relative", "r")):recv(0))
    ]], { shell = "cd " .. folder })
    assert.are.equal("here\n", output)
  end)

  it("has the permissions asked for, whatever the umask; nothing else is left beside it", function()
    local path = new_path()
    peer.run(([[ipc.mmap(%q, "w", { capacity = 1 })]]):format(path), { shell = "umask 0" })
    local file <close> = io.popen(("stat -c %%a %s; ls -A %s | wc -l"):format(path, folder))
    assert.are.same({ 600, 1 }, { file:read("n", "n") })
  end)

  it("loses the other name that a killed maker left it, however many use it", function()
    local path = left(nil, "kept")
    assert(os.execute(("ln %s %s/.%s.0123456789abcdef"):format(path, folder, path:match "[^/]*$")))
    local r = open(path, "r")
    open(path, "w", { create = false })
    local file <close> = io.popen(("ls -A %s | wc -l"):format(folder))
    assert.are.equal(1, file:read "n")
    assert.are.equal("kept", r:recv())
  end)

  it("stays until remove, or temporary", function()
    local path = new_path()
    local ring = open(path, "rw")
    ring:close()
    assert.are.equal(4096, open(path, "rw"):stats().capacity)
    ring = open(path, "r")
    assert.is_true(ring:remove())
    fails(E.ENOENT, "remove", ring:remove())
    fails(E.ENOENT, "", ipc.mmap(path, "r"))
    local other = new_path()
    local maker = open(other, "rw", { temporary = true })
    open(other, "rw", { temporary = true }):close()
    open(other, "r", { create = false }):close()
    maker:close()
    fails(E.ENOENT, "", ipc.mmap(other, "r"))
  end)

  it("of another user is refused unless create = false", function()
    if not is_root then return pending "needs root" end
    local path = left(nil, "theirs")
    assert(os.execute("chown 65534 " .. path))
    fails(E.EACCES, "another user's", ipc.mmap(path, "r", { capacity = 4096 }))
    assert.are.equal("theirs", open(path, "r", { create = false }):recv())
  end)

  it("is read by Python's mmap by the documented offsets", function()
    local path = left({ capacity = 8192 }, "first", "", "third")
    local file <close> = peer.popen(peer.python_command([[
import mmap, struct, sys, zlib
with open(sys.argv[1], "rb") as f: m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
magic, version, order, kind, flags, head, slots, ring, maxsize, total, created = struct.unpack_from("=8s6I4Q", m, 0)
crc, = struct.unpack_from("=I", m, 124)
print(magic, version, hex(order), kind, slots, ring, maxsize, total == len(m), crc == zlib.crc32(m[:124]))
tail, = struct.unpack_from("=Q", m, 256 + 8)
at, = struct.unpack_from("=Q", m, 384 + 8)
while at != tail:
    size, number, owner, offered = struct.unpack_from("=4I", m, head + at % ring)
    start = head + at % ring + 16
    print(number, m[start:start + size].decode())
    at += 16 + (size + 15) // 16 * 16
]], path))
    assert.are.equal("b'lua-ipc\\n' 1 0x1020304 1 112 8192 8176 True True\n0 first\n1 \n2 third\n", file:read "a")
  end)
end)

describe("after all that", function()
  it("no file is left", function()
    local file <close> = io.popen("ls -A " .. folder .. " | wc -l")
    assert.are.equal(0, file:read "n")
    os.execute("rmdir " .. folder)
  end)
end)
