-- The bytes of a ring as the reference documents them (ipc.layout): a C program
-- that shares no code with us takes part, and Python reads a file.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE = with.patience

-- Next to the module that is tested, whatever the build is called.
local joiner = package.searchpath("spec.peer", package.cpath):gsub("[^/]*$", "joiner")

local count = 0

local function unique()
  count = count + 1
  return ("ipc-layout-%d-%d"):format(ipc.pid(), count)
end

local function run(path, ...)
  local words = { joiner, path, ... }
  for i, word in ipairs(words) do words[i] = with.quote(word) end
  return "timeout 30 " .. table.concat(words, " ") .. " 2>&1"
end

local function exists(path)
  local file <close> = io.open(path)
  return file ~= nil
end

local found = false
for _, row in ipairs(ipc.mechanisms()) do found = found or row.room == "shm" end
if not found or not exists(joiner) or not exists "/dev/shm" then return end

-- The program takes part and stays until it is killed; its process's id.
local function hold(path, how)
  local program = with.close(setmetatable({}, { __gc = function() end }))
  program.pipe = assert(io.popen(("echo $$; exec %s %s hold %s"):format(with.quote(joiner), with.quote(path), how)))
  program.pid = program.pipe:read "n"
  assert(program.pipe:read "l" == "" and program.pipe:read "l" == "here")
  function program.kill()
    os.execute("kill -KILL " .. program.pid)
    program.pipe:close() -- waits for it
  end
  return program
end

describe("the layout of rings: a program that is not ours", function()
  after_each(with.cleanup)

  for _, kind in ipairs { "shm", "mmap" } do
    local function open()
      local name = unique()
      local path = (kind == "shm" and "/dev/shm/" or "/tmp/") .. name
      local given = kind == "shm" and "/" .. name or path
      local options = { capacity = 4096, timeout = PATIENCE, temporary = kind == "mmap" }
      return path, function(mode) return with.close(assert(ipc[kind](given, mode, options))) end
    end

    it("receives what we send over " .. kind, function()
      local path, ring = open()
      local w = ring "w"
      for _, text in ipairs { "one", "", ("x"):rep(100) } do assert(w:send(text)) end
      assert.are.equal("one\n\n" .. ("x"):rep(100) .. "\ndone\n", with.shell(run(path, "receive", "3")))
      assert.are.same({ nil, "closed", E.EPIPE }, { w:send "nobody is left" })
    end)

    it("sends what we receive over " .. kind .. ", however often the ring is full", function()
      local path, ring = open()
      local r = ring "r"
      local words = {}
      for i = 1, 300 do words[i] = ("message %d "):format(i) .. ("y"):rep(i) end
      local program = with.close(assert(io.popen(run(path, "send", table.unpack(words)))))
      for i = 1, 300 do assert.are.equal(words[i], (r:recv())) end
      assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
      assert.are.equal("", program:read "a")
    end)

    it("sleeps until we send over " .. kind .. ", and is told the end", function()
      local path, ring = open()
      local w = ring "w"
      local program = with.close(assert(io.popen(run(path, "receive", "100"))))
      assert(w:send "first")
      assert.are.equal("first", program:read "l")
      for i = 1, 90 do assert(w:send(tostring(i))) end
      for i = 1, 90 do assert.are.equal(tostring(i), program:read "l") end
      w:close()
      assert.are.equal("done", program:read "l")
    end)

    it("is there, and gone once it is killed, over " .. kind, function()
      local path, ring = open()
      local r = ring "r"
      local program = hold(path, "w")
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { r:recv(0) })
      program.kill()
      assert.are.same({ nil, "closed", E.EPIPE }, { r:recv() })
      local w = ring "w"
      program = hold(path, "r")
      r:close()
      assert(w:send "somebody receives")
      program.kill()
      local sent, message
      repeat
        sent, message = w:send(("z"):rep(300))
      until not sent
      assert.are.equal("closed", message)
    end)

    it("is killed with a lock over " .. kind .. ", which we take", function()
      local path, ring = open()
      local r, w = ring "r", ring "w"
      local program = hold(path, "lock")
      assert.are.same({ nil, "timeout", E.ETIMEDOUT }, { w:send("locked", nil, 0.01) })
      program.kill()
      assert(w:send "ours again")
      assert.are.equal("ours again", (r:recv()))
      assert.is_true(w:stats().takeovers >= 1)
    end)
  end

  it("leaves no name when it is the last", function()
    local name = unique()
    local w = assert(ipc.shm("/" .. name, "w", { capacity = 4096 }))
    local program = with.close(assert(io.popen(run("/dev/shm/" .. name, "receive", "2"))))
    assert(w:send "1")
    assert.are.equal("1", program:read "l")
    w:close()
    assert.are.equal("done\n", program:read "a")
    assert.is_false(exists("/dev/shm/" .. name))
  end)
end)

-- Prints the head, how many messages are unread, and each of them.
local READER <const> = [[
import mmap, struct, sys, zlib
with open(sys.argv[1], "rb") as file:
    m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
magic, version, order, kind, flags, head, slots, ring, most, total = struct.unpack_from("=8s6I3Q", m)
assert magic == b"lua-ipc\n" and version == 1 and order == 0x01020304 and kind == 1
assert struct.unpack_from("=I", m, 124)[0] == zlib.crc32(m[:124])
assert total == head + ring == len(m)
tail, = struct.unpack_from("=Q", m, 256 + 8)
here, = struct.unpack_from("=Q", m, 384 + 8)
number, = struct.unpack_from("=I", m, 256 + 4)
first, = struct.unpack_from("=I", m, head + here % ring + 4)
print(ring, slots, most, bool(flags & 8), number - first)
while here != tail:
    size, = struct.unpack_from("=I", m, head + here % ring)
    start = here + 16
    print(bytes(m[head + (start + i) % ring] for i in range(size)).decode())
    here += 16 + (size + 15) // 16 * 16
]]

describe("the layout of rings: Python", function()
  it("reads what nobody received yet out of a file", function()
    local path = "/tmp/" .. unique()
    local options = { size = 200, count = 18, participants = 40, temporary = true }
    local w <close> = assert(ipc.mmap(path, "w", options))
    local r <close> = assert(ipc.mmap(path, "r"))
    local expected = { "4096 40 200 True 5" }
    for i = 1, 40 do -- round and round
      assert(w:send(("%d:"):format(i) .. ("v"):rep(i)))
      if i <= 35 then
        assert(r:recv(0))
      else
        expected[#expected + 1] = ("%d:"):format(i) .. ("v"):rep(i)
      end
    end
    local program = with.quote(READER)
    local text = with.shell(("LD_PRELOAD= %s -c %s %s"):format(peer.python, program, path))
    assert.are.equal(table.concat(expected, "\n") .. "\n", text)
  end)
end)
