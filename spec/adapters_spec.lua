-- One text of calls blocks in a plain script and waits in four loops: ours, and
-- those of cqueues, luv and copas, each the real library in a program of its own.
local peer = require "spec.support.peer"

-- What the programs share: talk(go) talks to children in any loop.
local TEXT = [[
  local function worker()
    for m in ipc.parent:messages() do
      ipc.sleep(0.01)
      ipc.parent:send(m:upper())
    end
  end
  local child = assert(ipc.fork(worker))
  local function talk(say)
    local r, w = ipc.pipe()
    say(assert(w:send "buffered") and r:recv(20))
    say(select(2, r:recv(0.01)))
    for _, word in ipairs { "one", "two" } do
      assert(child:send(word))
      say(child:recv(20))
    end
    say(select(2, ipc.poll({ child, r }, 0.01)))
    assert(child:send(("x"):rep(1 << 20)))
    say(#child:recv(20))
    w:close()
    say(select(2, r:recv(20)))
    assert(ipc.sleep(0.01))
    say "slept"
  end
  local function say(word) print(word) end
  local function count(n) -- beside it, something that goes on
    for _ = 1, n do ipc.sleep(0.001) end
    return n
  end
]]

local SAID = "buffered\ntimeout\nONE\nTWO\ntimeout\n1048576\nclosed\nslept\n"

local programs = {
  ["no loop at all"] = "talk(say) child:close()",
  ["ipc.loop"] = [[
    ipc.loop.run(function()
      local other = ipc.loop.go(count, 5)
      talk(say)
      assert(select(2, other:wait()) == 5)
      child:close()
    end)
  ]],
  ["ipc.main"] = "ipc.main(function() talk(say) end)",
  ["cqueues"] = [[
    local cq = ipc.loop.use "cqueues"
    local other = ipc.loop.go(count, 5)
    ipc.loop.go(function() talk(say) assert(select(2, other:wait()) == 5) child:close() end)
    assert(cq:loop())
    assert(other:wait(0))
  ]],
  ["a controller given to cqueues"] = [[
    local cq = require "cqueues".new()
    assert(ipc.loop.use("cqueues", cq) == cq)
    cq:wrap(function() require "cqueues".sleep(0.001) ipc.loop.go(talk, say) end)
    assert(cq:loop())
    child:close()
  ]],
  ["cqueues' own coroutines"] = [[
    local cq = ipc.loop.use "cqueues"
    local queue = ipc.loop.queue()
    cq:wrap(function() talk(say) queue:put "end" end)
    local task = ipc.loop.go(function() return queue:get() end)
    cq:wrap(function() local _, word = task:wait() assert(word == "end") child:close() end)
    assert(cq:loop())
  ]],
  ["luv"] = [[
    local uv = ipc.loop.use "luv"
    local ticks = 0
    local timer = uv.new_timer()
    timer:start(1, 1, function() ticks = ticks + 1 end)
    ipc.loop.go(function() talk(say) timer:close() child:close() end)
    uv.run()
    assert(ticks > 1)
  ]],
  ["a task begun in a callback of luv"] = [[
    local uv = ipc.loop.use "luv"
    local timer = uv.new_timer()
    timer:start(5, 0, function() timer:close() ipc.loop.go(function() talk(say) child:close() end) end)
    uv.run()
  ]],
  ["copas"] = [[
    local copas = ipc.loop.use "copas"
    local over
    ipc.loop.go(function() talk(say) child:close() over = true end)
    while not over do copas.step(5) end
  ]],
  ["copas' own coroutines"] = [[
    local copas = ipc.loop.use "copas"
    local queue, over = ipc.loop.queue()
    copas.addthread(function() talk(say) queue:put "end" end)
    copas.addthread(function() assert(queue:get() == "end") child:close() over = true end)
    while not over do copas.step(5) end
  ]],
  ["a handler of copas' server"] = [[
    local copas = ipc.loop.use "copas"
    local socket = require "socket"
    local server = assert(socket.bind("127.0.0.1", 0))
    local over
    copas.addserver(server, function() talk(say) child:close() over = true end)
    local client = assert(socket.connect("127.0.0.1", (select(2, server:getsockname()))))
    while not over do copas.step(5) end
    client:close()
  ]],
}
for _, library in ipairs { "cqueues", "luv", "copas" } do
  programs["ipc.loop.run by " .. library] = ("ipc.loop.use '%s' ipc.loop.run(function() talk(say) child:close() end)")
    :format(library)
end

-- Debian's copas is installed for Lua 5.1 and 5.2 only, and runs here all the same.
local PATH = [[
  package.path = package.path .. ";/usr/share/lua/5.2/?.lua;/usr/share/lua/5.1/?.lua"
]]

describe("one text:", function()
  for name, program in pairs(programs) do
    it(name, function()
      local text, ok = peer.run(PATH .. TEXT .. program)
      assert.are.equal(SAID, text)
      assert.is_true(ok)
    end)
  end

  it("an error that nobody waits for comes out of the host's loop", function()
    for library, drive in pairs {
      cqueues = "local ok, why = host:loop() print(ok == nil or ok == false, tostring(why):match 'oops')",
      copas = "local ok, why = pcall(host.step, 5) print(not ok, tostring(why):match 'oops')",
    } do
      local text = peer.run(PATH .. ([[
        local host = ipc.loop.use "%s"
        ipc.loop.go(function() ipc.sleep(0) error "oops" end)
        %s
      ]]):format(library, drive))
      assert.are.equal("true\toops\n", text)
    end
  end)

  it("an error that nobody waits for leaves the other tasks alone: cqueues", function()
    local text = peer.run [[
      local cq = ipc.loop.use "cqueues"
      local other = ipc.loop.go(function() ipc.sleep(0.01) print "goes on" end)
      ipc.loop.go(function() ipc.sleep(0) error "oops" end)
      print((cq:loop()))
      assert(cq:loop())
    ]]
    assert.are.equal("false\ngoes on\n", text)
  end)

  it("use(nil) leaves nothing that keeps a host's loop", function()
    local text = peer.run [[
      local uv = ipc.loop.use "luv"
      ipc.loop.go(function() ipc.sleep(1000) end)
      uv.run "nowait"
      ipc.loop.use(nil)
      uv.run()
      local cq = ipc.loop.use "cqueues"
      cq:step(0)
      ipc.loop.use(nil)
      assert(cq:loop())
      print "ended"
    ]]
    assert.are.equal("ended\n", text)
  end)

  for _, without in ipairs { "", "epoll" } do
    it("hosts hear of descriptors, and of rests" .. (without == "" and "" or ", without " .. without), function()
      for library, drive in pairs {
        cqueues = "assert(host:loop())", luv = "host.run()", copas = "while not over do host.step(5) end",
      } do
        local text = peer.run(PATH .. ([[
          local r, w = ipc.pipe()
          local back, answer = ipc.pipe()
          local child = assert(ipc.fork(function()
            for m in r:messages() do answer:send(tostring(#m)) end
          end))
          local host = ipc.loop.use "%s"
          local queue, over = ipc.loop.queue()
          ipc.loop.go(function()
            for _ = 1, 2 do queue:put(back:recv(20)) end
          end)
          ipc.loop.go(function()
            assert(w:send "x")
            print(queue:get())
            print(w:send(("x"):rep(1000000), nil, 0.001)) -- accepted: its rest goes on by itself
            print(queue:get())
            over = true
          end)
          %s
          w:close()
        ]]):format(library, drive), { env = { IPC_WITHOUT = without } })
        assert.are.equal("1\ntrue\n1000000\n", text, library)
      end
    end)
  end

  it("use(nil) gives the loop back to itself", function()
    local text = peer.run(PATH .. [[
      for _, library in ipairs { "cqueues", "luv", "copas" } do
        ipc.loop.use(library)
        ipc.loop.use(nil)
        print(ipc.loop.run(function() ipc.sleep(0.001) return library end))
      end
    ]])
    assert.are.equal("cqueues\nluv\ncopas\n", text)
  end)
end)
