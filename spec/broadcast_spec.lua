-- What a broadcast has of its own: every subscriber gets every message, from
-- where it joined; slow ones lose and are told, or hold the sender, or only see
-- the newest. Nobody's death harms the others.
local ipc = require "ipc"
local with = require "spec.support.with"

local E = ipc.errno
local PATIENCE = with.patience

if not require "spec.support.peer".has "shm" then
  describe("a broadcast", function()
    it("needs locks of open file descriptions: ENOTSUP", function()
      local sender, _, errno = ipc.broadcast("/none", "w", { capacity = 4096 })
      assert.is_nil(sender)
      assert.are.equal(E.ENOTSUP, errno)
    end)
  end)
  return
end

local names = 0

local function name()
  names = names + 1
  return ("/ipc-broadcast-%d-%p-%d"):format(ipc.pid(), with, names)
end

local function ends(options)
  local r, w = with.close(assert(ipc.broadcast(options)))
  r:settimeout(PATIENCE)
  w:settimeout(PATIENCE)
  return r, w
end

-- What is there for r: the messages, and how many the tags say were lost.
local function drain(r)
  local list, lost = {}, 0
  while true do
    local message, tag = r:recv(0)
    if not message then return list, lost, tag end
    list[#list + 1], lost = message, lost + tag
  end
end

local function raises(pattern, f, ...)
  local ok, message = pcall(f, ...)
  assert.is_false(ok)
  assert.matches(pattern, message)
end

-- Bytes that say whether they are whole: a number, then its digits over and over.
local function whole(i, size) return ("%08d"):format(i):rep(size // 8) end
local function number_of(text)
  local first = text:sub(1, 8)
  return text == first:rep(#text // 8) and math.tointeger(tonumber(first))
end

describe("a broadcast", function()
  after_each(with.cleanup)

  describe("reaches", function()
    it("every subscriber, each from its joining on", function()
      local place = name()
      local w = with.close(assert(ipc.broadcast(place, "w", { capacity = 4096 })))
      assert(w:send "to nobody")
      local first = with.close(assert(ipc.broadcast(place, "r")))
      assert(w:send "one")
      local second = with.close(assert(ipc.broadcast(place, "r")))
      assert(w:send "two")
      assert.are.same({ "one", "two" }, (drain(first)))
      assert.are.same({ "two" }, (drain(second)))
      local third = with.close(assert(second:dup()))
      assert(w:send "three")
      assert.are.same({ "three" }, (drain(third)))
    end)

    it("subscribers of several senders, in one order", function()
      local r, w = ends { capacity = 1 << 20 }
      local r2 = with.close(assert(r:dup()))
      local crew = {}
      for i = 1, 3 do
        crew[i] = with.fork(function(mine)
          for n = 1, 500 do assert(mine:put { i, n }) end
        end, assert(w:dup()))
      end
      w:close()
      for _, child in ipairs(crew) do assert.is_true(child:wait(PATIENCE)) end
      local one, two = {}, {}
      for value in r:values() do one[#one + 1] = value end
      for value in r2:values() do two[#two + 1] = value end
      assert.are.equal(1500, #one)
      assert.are.same(one, two)
    end)

    it("nobody, and who sends is not told", function()
      local r, w = ends { capacity = 4096 }
      r:close()
      local list = {}
      for i = 1, 1000 do
        assert.is_true(w:put(i))
        list[i] = tostring(i)
      end
      assert.are.equal(1000, w:sendmany(list))
    end)

    it("what a copy of a subscriber goes on with", function()
      local place = name()
      local w = with.close(assert(ipc.broadcast(place, "w", { capacity = 4096, slow = "hold" })))
      local r = with.close(assert(ipc.broadcast(place, "r")))
      assert(w:sendmany { "1", "2", "3" })
      assert.are.equal("1", (r:recv(0)))
      local child = with.fork(function() return (drain(r)) end)
      assert.are.same({ true, { "2", "3" } }, { child:wait(PATIENCE) })
      assert.are.same({ "2", "3" }, (drain(r)))
    end)

    it("a subscriber that moves through a socket, with its place and its count", function()
      local a, b = with.close(assert(ipc.pair("unix", { handles = 4 })))
      local r, w = ends { capacity = 4096 }
      for i = 1, 10 do assert(w:send(tostring(i))) end
      assert.are.equal("1", (r:recv(0)))
      assert(a:put { r })
      local moved = with.close(assert(b:get(PATIENCE))[1])
      assert.are.same({ "2", 0 }, { moved:recv(0) })
      for i = 11, 1000 do assert(w:send(tostring(i))) end
      assert(a:put { moved })
      moved = with.close(assert(b:get(PATIENCE))[1])
      local list, lost = drain(moved)
      assert.are.equal(1000, #list + lost + 2)
      assert.are.equal("1000", list[#list])
    end)
  end)

  describe("loses", function()
    it("the oldest for who is slow, and tells how many", function()
      local r, w = ends { capacity = 4096 }
      for i = 1, 1000 do assert(w:send(("%04d"):format(i), nil, 0)) end
      assert.are.same({ "0873", 872 }, { r:recv(0) })
      local list, lost, why = drain(r)
      assert.are.equal("timeout", why)
      assert.are.equal(127, #list)
      assert.are.equal(0, lost)
      assert.are.equal(872, r:stats().lost)
      assert.are.equal(0, r:stats().depth)
    end)

    it("and the count is no more than what was sent, ever", function()
      local r, w = ends { capacity = 4096 }
      local child = with.fork(function(mine)
        for i = 1, 20000 do assert(mine:send(whole(i, 8 * (i % 40 + 1)))) end
      end, w)
      local got, lost, last = 0, 0, 0
      for message, tag in r:messages() do
        local n = number_of(message)
        assert.is_truthy(n)
        assert.are.equal(last + tag + 1, n)
        got, lost, last = got + 1, lost + tag, n
      end
      assert.is_true(child:wait(PATIENCE))
      assert.are.equal(20000, last)
      assert.are.equal(20000, got + lost)
      assert.are.equal(lost, r:stats().lost)
    end)

    it("nothing in recvmany that was there", function()
      local r, w = ends { capacity = 4096 }
      assert(w:sendmany { "1", "", "3" })
      assert.are.same({ "1", "", "3" }, r:recvmany(10))
      for i = 1, 1000 do assert(w:send(tostring(i))) end
      local list = assert(r:recvmany(10000))
      assert.are.equal("1000", list[#list])
      assert.are.equal(1000, #list + r:stats().lost)
    end)

    it("no message of up to half of the ring while the next is written", function()
      local r, w = ends { capacity = 4096 }
      assert.are.equal(2032, w:maxsize())
      for i = 1, 100 do
        assert(w:send(whole(i, 2032)))
        assert.are.equal(i, number_of((r:recv(0))))
      end
      local _, one = ends { size = 4000, count = 1 }
      assert.are.equal(4000, one:maxsize())
      assert(one:send(("x"):rep(4000)))
    end)
  end)

  describe("holds", function()
    it("the sender back for the slowest", function()
      local r, w = ends { capacity = 4096, slow = "hold" }
      local r2 = with.close(assert(r:dup()))
      local n = with.fill(w, "0123456789")
      assert.are.equal(128, n)
      assert.are.equal(n, #drain(r))
      assert.is_nil(w:send("x", nil, 0))
      assert(r2:recv(0))
      assert(w:send("x", nil, 0))
      assert.is_nil(w:send("x", nil, 0))
      r2:close() -- nor does who has left
      assert(w:send("x", nil, 0))
    end)

    it("nobody back for one that was killed", function()
      local r, w = ends { capacity = 4096, slow = "hold" }
      local child = with.fork(function(_)
        ipc.parent:send "here"
        ipc.parent:recv()
      end, assert(r:dup()))
      assert(child:recv(PATIENCE))
      local n = with.fill(w, "0123456789")
      assert.are.equal(n, #drain(r))
      assert(child:kill "KILL")
      assert(w:send("x", nil, PATIENCE))
    end)

    it("every message for everybody", function()
      local r, w = ends { capacity = 4096, slow = "hold" }
      local crew = {}
      for i = 1, 3 do
        crew[i] = with.fork(function(mine)
          local sum, lost = 0, 0
          for value, tag in mine:values(PATIENCE) do sum, lost = sum + value, lost + tag end
          return sum, lost
        end, assert(r:dup()))
      end
      r:close()
      for i = 1, 5000 do assert(w:put(i)) end
      w:close()
      for i = 1, 3 do assert.are.same({ true, 12502500, 0 }, { crew[i]:wait(PATIENCE) }) end
    end)
  end)

  describe("of the newest", function()
    it("gives that, once, and says how many were passed over", function()
      local r, w = ends { latest = true, capacity = 4096 }
      assert.are.equal(E.ETIMEDOUT, select(3, r:recv(0)))
      for i = 1, 1000 do assert(w:send(tostring(i), nil, 0)) end
      assert.are.same({ "1000", 999 }, { r:recv(0) })
      assert.are.equal(E.ETIMEDOUT, select(3, r:recv(0)))
      local late = with.close(assert(r:dup())) -- who comes late sees it at once
      assert.are.same({ "1000", 0 }, { late:recv(0) })
      w:close()
      assert.are.equal("closed", select(2, late:recv()))
    end)

    it("is whole, however fast it changes", function()
      local r, w = ends { latest = true, capacity = 1 << 16 }
      local child = with.fork(function(mine)
        for i = 1, 5000 do assert(mine:send(whole(i, 8 * (i % 4000 + 1)))) end
      end, w)
      local last = 0
      for message, tag in r:messages() do
        local n = number_of(message)
        assert.is_truthy(n)
        assert.are.equal(last + tag + 1, n)
        last = n
      end
      assert.are.equal(5000, last)
      assert.is_true(child:wait(PATIENCE))
    end)
  end)

  describe("opened wrongly", function()
    it("raises", function()
      raises("#2 .*\"r\" subscribes, \"w\" sends", ipc.broadcast, "/x", "rw", { capacity = 4096 })
      raises("#2 ", ipc.broadcast, "/x")
      raises("#2 .*no mode", ipc.broadcast, nil, "r")
      raises("#1 .*slash", ipc.broadcast, "x", "r")
      raises("'latest' and slow", ipc.broadcast, { latest = true, slow = "hold" })
      raises("option 'slow': \"lose\" or \"hold\" expected", ipc.broadcast, { slow = "never" })
      raises("unknown option 'lease'", ipc.broadcast, { lease = true })
      raises("unknown option 'readers'", ipc.broadcast, { readers = 1 })
    end)

    it("answers what is different there", function()
      local place = name()
      local w = with.close(assert(ipc.broadcast(place, "w", { capacity = 4096, slow = "hold", writers = 1 })))
      local function why(mode, options)
        local r, message, errno = ipc.broadcast(place, mode, options)
        assert.is_nil(r)
        return E[errno] .. " " .. message
      end
      assert.matches("^EEXIST .*slow is \"hold\" there", why("r", { slow = "lose" }))
      assert.matches("^EEXIST .*latest is false there", why("r", { latest = true }))
      assert.matches("^EBUSY .*one writer", why "w")
      assert.matches("^EBADMSG .*another kind", (function()
        local r, message, errno = ipc.shm(place, "r")
        assert.is_nil(r)
        return E[errno] .. " " .. message
      end)())
      assert(w:remove())
      assert.matches("^ENOENT ", why "r")
    end)
  end)

  it("survives the death of anybody, with every message whole", function()
    local place = name()
    local options = { capacity = 1 << 14, keepalive = true }
    local keep = with.close(assert(ipc.broadcast(place, "r", options)))
    local function sender()
      return with.fork(function()
        local w = assert(ipc.broadcast(place, "w", options))
        for i = 1, math.maxinteger do
          assert(w:send(whole(i % 1000, 8 * (i % 100 + 1)), nil, PATIENCE))
        end
      end)
    end
    local function subscriber()
      return with.fork(function()
        local r = assert(ipc.broadcast(place, "r", options))
        ipc.parent:send "subscribed"
        for message in r:messages(PATIENCE) do
          if not number_of(message) then ipc.parent:send "torn" end
        end
      end)
    end
    local senders, subscribers = { sender(), sender() }, {}
    for i = 1, 3 do subscribers[i] = subscriber() end
    for round = 1, 30 do
      local list = round % 2 == 0 and senders or subscribers
      local at = round % #list + 1
      if list == subscribers then assert.are.equal("subscribed", list[at]:recv(PATIENCE)) end
      assert(list[at]:kill "KILL")
      list[at]:wait(PATIENCE)
      assert.are_not.equal("torn", (list[at]:recv(0)))
      list[at] = list == senders and sender() or subscriber()
      for _ = 1, 20 do assert.is_truthy(number_of((assert(keep:recv(PATIENCE))))) end
    end
  end)
end)
