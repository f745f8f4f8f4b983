-- The time as something to receive: ipc.timer.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local scheduler = require "spec.support.scheduler"

local E = ipc.errno
local TIMEOUT = { nil, "timeout", E.ETIMEDOUT }

local function timer(options)
  options.timeout = options.timeout or peer.limit
  return peer.keep(assert(ipc.timer(options)))
end

-- A timer for which `look` answers timeout because it has yet to expire: where it is too
-- late to see that, of a longer one. Also a moment before it was made, and its seconds.
local function soon(look)
  local after = 0.01
  repeat
    after = 2 * after
    local before = ipc.now()
    local t = timer { after = after }
    local answer = { look(t) }
    if ipc.now() - before < after then
      assert.are.same(TIMEOUT, answer)
      return t, before, after
    end
  until after > peer.limit
  error "nobody is that late"
end

describe("ipc.timer", function()
  after_each(peer.clean)

  it("expires once, not before its time, and is closed by that", function()
    local t, before, after = soon(function(t) return t:recv(0) end)
    assert.are.equal(1, t:recv())
    assert.is_true(ipc.now() - before >= after)
    assert.are.same({ nil, "closed", E.EPIPE }, { t:recv(0) })
    assert.are.same({ nil, "closed", E.EPIPE }, { t:get() })
    assert.are.equal(1, t:stats().received)
    assert.are.equal("integer", math.type(t:stats().received))
  end)

  it("expires at once when nothing is left", function()
    for _, after in ipairs { 0, -1, -math.huge } do
      local count = 0
      for n in timer { after = after }:values() do count = count + n end
      assert.are.equal(1, count)
    end
  end)

  it("expires again and again, and says how often since the last", function()
    local before = ipc.now()
    local t = timer { every = 0.01 }
    local total = 0
    while total < 5 do
      local n = t:recv()
      assert.are.equal("integer", math.type(n))
      total = total + n
    end
    assert.is_true(ipc.now() - before >= 0.01 * total)
    local at = ipc.now()
    while ipc.now() < at + 0.055 do end
    assert.is_true(t:get(0) >= 5)
  end)

  it("has a first time of its own", function()
    local before = ipc.now()
    local t = timer { after = 0, every = 0.02 }
    local first = t:recv()
    assert.is_true(first == 1 or ipc.now() - before >= 0.02)
    local second = t:recv()
    assert.is_true(second >= 1 and ipc.now() - before >= 0.02 * (first + second - 1))
    t = timer { after = 0.02, every = 3600 }
    assert.are.equal(1, t:recv())
    assert.are.same(TIMEOUT, { t:recv(0.005) })
  end)

  it("may be so far away that it never comes", function()
    for _, options in ipairs { { after = math.huge }, { after = 1e300 }, { every = math.huge }, { every = 1e15 } } do
      assert.are.same(TIMEOUT, { timer(options):recv(0.002) })
    end
    local t = timer { after = 0, every = math.huge }
    assert.are.equal(1, t:recv())
    assert.are.same(TIMEOUT, { t:recv(0.002) })
  end)

  it("counts what is faster than anyone can look", function()
    local t = timer { after = 0, every = 1e-9 }
    assert.is_true(t:recv() >= 1)
    assert.is_true(t:recv() >= 1)
    assert.is_true(timer { every = 1e-300 }:recv() >= 1)
  end)

  it("is polled, like all that can be waited for", function()
    local later = timer { after = 3600 }
    local r = peer.pipe()
    local t = soon(function(t) return ipc.poll({ r, t, later }, 0) end)
    local ready = assert(ipc.poll({ later, r, t }, peer.limit))
    assert.are.same({ t, [t] = true }, ready)
    assert.are.equal(0, t:timeout())
    assert.are.equal(1, t:recv(0))
    assert.is_true(ipc.poll({ t }, 0)[t]) -- closed
    local left = later:timeout()
    assert.is_true(left == nil and later:pollfd() ~= nil or left and left <= 3600)
  end)

  it("is a deadline for other tasks' work", function()
    local order = {}
    local loop = scheduler.new()
    local t = timer { every = 0.005 }
    loop:go(function()
      for n in t:values(peer.limit) do
        order[#order + 1] = n
        if #order == 3 then t:close() end
      end
      order[#order + 1] = "closed"
    end)
    loop:go(function()
      while #order < 4 do ipc.sleep(0.001) end
    end)
    loop:run(peer.limit)
    ipc.scheduler(nil)
    assert.are.equal("closed", order[4])
  end)

  it("is closed by close, and in a forked child", function()
    local t = timer { every = 0.001 }
    local child = peer.fork(function()
      return select(3, t:recv(0)), (assert(ipc.timer { after = 0.001 }):recv(10))
    end)
    assert.are.same({ true, E.ECHILD, 1 }, { child:wait(peer.limit) })
    assert.is_true(t:recv() >= 1)
    assert.is_true(t:close())
    assert.is_true(t:close())
    assert.are.same({ nil, "closed", E.EPIPE }, { t:recv() })
    assert.are.equal("ipc.timer (closed)", tostring(t))
    do
      local u <close> = assert(ipc.timer { every = 1 }) -- luacheck: ignore
    end
  end)

  it("raises on times that are none, naming the option", function()
    for message, options in pairs {
      ["option 'every': more than 0 expected"] = { every = 0 },
      ["option 'every': more"] = { every = -1, after = 1 },
      ["option 'every': not a number"] = { every = 0 / 0 },
      ["option 'after': not a number"] = { after = 0 / 0, every = 1 },
      ["option 'after': seconds expected, got string"] = { after = "1" },
      ["option 'every': seconds expected, got boolean"] = { every = true },
      ["option 'after' or 'every' expected"] = {},
      ["unknown option 'at'"] = { at = 1 },
      ["option 'timeout': not a number"] = { after = 1, timeout = 0 / 0 },
    } do
      assert.error_matches(function() ipc.timer(options) end,
        "^bad argument #1 to '.*timer' %(" .. message)
    end
    assert.error_matches(function() ipc.timer(1) end, "table expected")
    assert.error_matches(function() ipc.timer() end, "table expected")
  end)

  it("gives its descriptor back", function()
    if not peer.has_proc then return pending "needs /proc" end
    local before = peer.descriptors()
    for _ = 1, 50 do ipc.timer { after = 1 }:close() end
    for _ = 1, 50 do ipc.timer { every = 1 } end
    assert.are.equal(before, peer.descriptors())
  end)
end)
