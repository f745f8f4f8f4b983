-- Calls to and from programs that are not us: Neovim, its clients for Python, Node
-- and Ruby, and MessagePack-RPC in plain Python. What is not installed is named
-- as pending; .ci/install peers brings it all.
local ipc = require "ipc"
local peer = require "spec.support.peer"
local with = require "spec.support.with"

local E = ipc.errno
local LIMIT <const> = peer.limit
local PEERS <const> = "spec/support/peers/"

local paths = {} -- those who are killed leave theirs

local function path()
  paths[#paths + 1] = ("/tmp/ipc-rpc-peers-%d-%d.sock"):format(ipc.pid(), #paths + 1)
  return paths[#paths]
end

-- ---- what is there

local function runs(command) -- a sanitizer is not for these
  local _, status = with.shell("LD_PRELOAD= " .. command)
  return status == 0
end

local node = "NODE_PATH=build/peers/node_modules node"
local has = {
  nvim = runs "nvim --version",
  pynvim = runs(peer.python .. " -c 'import pynvim'"),
  msgpack = runs(peer.python .. " -c 'import msgpack'"),
  npm = runs(node .. " -e 'require(\"neovim\")'"),
  ruby = runs "ruby -e 'require \"neovim\"'",
}

-- What a missing one is called.
local names = {
  nvim = "Neovim (nvim)",
  pynvim = "pynvim (python3-pynvim)",
  msgpack = "python3-msgpack",
  npm = "the npm package neovim",
  ruby = "the gem neovim (ruby-neovim)",
}

-- A part of the specs that needs that program.
local function foreign(what, title, fn)
  describe(title .. " #foreign:", function()
    if not has[what] then
      it("works", function() pending(names[what] .. " is not installed") end)
      return
    end
    before_each(function() ipc.loop.use(nil) end)
    after_each(function()
      peer.clean()
      ipc.scheduler(nil)
      for _, name in ipairs(paths) do os.remove(name) end
    end)
    fn()
  end)
end

-- ---- both sides

-- Runs in a loop, not for ever.
local function run(fn)
  return ipc.loop.run(function()
    local root = require "ipc.loop.tasks".current()
    ipc.loop.go(function()
      ipc.sleep(2 * LIMIT)
      root:cancel()
    end)
    return fn()
  end)
end

-- As a server would load them: nobody has noted anything yet.
local function fresh(module)
  package.loaded["spec.support.peers.exports"] = nil
  package.loaded[module] = nil
  return require(module)
end

local function plain_exports()
  local exports = fresh "spec.support.peers.exports"
  local told = {}
  -- Answered when another call says so: behind calls that came later.
  function exports.wait_for(word)
    while not told[word] do ipc.sleep(0.001) end
    return word
  end
  function exports.tell(word) told[word] = true end
  return exports
end

-- What a program writes, which must end well.
local function output(program)
  program.timeout = LIMIT
  program.check = false
  program.env = program.env or {}
  program.env.LD_PRELOAD = false
  local result = assert(ipc.run(program))
  assert(result.code == 0, ("%s: %s%s"):format(program[1], result.out, result.err))
  return result.out
end

local function ignored() end -- errors of ours that a spec provokes

-- A server of those exports, and a program that is given its address: what it wrote.
local function visited(options, exports, program)
  local out
  run(function()
    local socket, all = path(), { on_error = ignored }
    for name, value in pairs(options.options or {}) do all[name] = value end
    local server <close> = assert(ipc.rpc.serve(options.where or "unix:" .. socket, exports, all))
    local where = socket
    if options.where then where = server.address:match ":(%d+)$" end
    out = output(program(where))
    while #server > 0 do ipc.sleep(0.001) end -- they have gone, and we know
  end)
  return out
end

-- ---- Neovim as a server ----------------------------------------------------

local CLEAN <const> = { "-u", "NONE", "-i", "NONE", "-n", "--headless" }

local function nvim(...)
  local program = { "nvim", ... }
  table.move(CLEAN, 1, #CLEAN, #program + 1, program)
  return program
end

-- A Neovim that listens, and a session with it.
local function listening(options)
  local socket = path()
  local program = nvim("--listen", socket)
  program.stdin, program.stdout, program.stderr = "null", "null", "null"
  local process = peer.keep(assert(ipc.exec(program)))
  local all = { peer = "nvim", retry = LIMIT, timeout = LIMIT, on_error = ignored }
  for name, value in pairs(options or {}) do all[name] = value end
  return assert(ipc.rpc.connect("unix:" .. socket, all)), process
end

local function embedded(options)
  local all = { peer = "nvim", timeout = LIMIT, on_error = ignored }
  for name, value in pairs(options or {}) do all[name] = value end
  return assert(ipc.rpc.connect(nvim "--embed", all))
end

-- Calls us from inside Neovim, while a call of ours waits.
local function through(session, method, ...)
  local data = session.data
  data.channel = data.channel or session.remote.nvim_get_api_info()[1]
  return session.remote.nvim_call_function("rpcrequest", { data.channel, method, ... })
end

for how, start in pairs { listens = listening, ["is our child"] = embedded } do
  foreign("nvim", "Neovim that " .. how, function()
    it("answers with values of every kind", function()
      local session <close> = start()
      local remote = session.remote
      assert.are.equal(42, remote.nvim_eval "6 * 7")
      assert.are.equal(0.5, remote.nvim_eval "1 / 2.0")
      assert.is_nil((remote.nvim_command "let g:x = 1"))
      local deep = { name = "x", list = { 1, { 2, { 3, { yes = true } } } }, text = ("x"):rep(100000) }
      assert.are.same(deep, remote.nvim_exec_lua("return ...", { deep }))
      local text = ("x"):rep(1 << 20)
      assert.are.equal(text, remote.nvim_exec_lua("return ...", { text }))
      assert.are.equal(2, #remote.nvim_get_api_info())
    end)

    it("tells what it has", function()
      local session <close> = start()
      local methods = assert(session:methods())
      assert.is_string(methods.nvim_get_current_buf)
      assert.is_nil(methods.no_such_function)
    end)

    it("hands out buffers, windows and tab pages, and takes them back", function()
      local session <close> = start()
      local remote = session.remote
      local buffer = remote.nvim_get_current_buf()
      assert.is_userdata(buffer)
      assert.are.equal(0, buffer.type)
      assert.are.equal(1, remote.nvim_get_current_win().type)
      assert.are.equal(2, remote.nvim_get_current_tabpage().type)
      assert.is_nil((remote.nvim_buf_set_lines(buffer, 0, -1, false, { "one", "two" })))
      assert.are.same({ "one", "two" }, remote.nvim_buf_get_lines(buffer, 0, -1, false))
      assert.are.equal(buffer, remote.nvim_list_bufs()[1]) -- one object for one buffer
      local other = remote.nvim_create_buf(true, false)
      assert.are_not.equal(buffer, other)
      assert.is_true(({ [buffer] = false, [other] = true })[remote.nvim_list_bufs()[2]])
      assert.is_true(remote.nvim_buf_is_valid(other))
    end)

    it("says what was wrong", function()
      local session <close> = start()
      local ok, message, errno, object = session:call("nvim_command", "throw 'the reason'")
      assert.is_nil(ok)
      assert.are.equal("the reason", message)
      assert.are.equal(0, errno)
      assert.is_not_nil(object)
      assert.error_matches(function() session.remote.nvim_command "throw 'the reason'" end, "the reason")
      ok, message = session:call "nvim_no_such_function"
      assert.is_nil(ok)
      assert.matches("nvim_no_such_function", message)
      -- 2.0 is not 2 there.
      ok, message = session:call("nvim_buf_get_lines", 0, 0, 1.0, false)
      assert.is_nil(ok)
      assert.matches("Integer", message)
      assert.is_true((session:call("nvim_buf_get_lines", 0, 0, math.tointeger(1.0), false)))
    end)

    it("calls back while we wait, and is called from there", function()
      local session, exports
      exports = {
        twice = function(n) return 2 * n end,
        nothing = function() end,
        several = function() return 1, nil, 3 end,
        down = function(n)
          if n == 0 then return "bottom" end
          return session.remote.nvim_eval "'via '" .. through(ipc.rpc.caller(), "down", n - 1)
        end,
        buffer = function() return session.remote.nvim_get_current_buf() end,
      }
      session = start { exports = exports }
      local closed <close> = session
      assert.are.equal(42, through(session, "twice", 21))
      assert.is_nil((through(session, "nothing")))
      assert.are.same({ 1, nil, 3 }, through(session, "several"))
      assert.are.equal(("via "):rep(5) .. "bottom", through(session, "down", 5))
      assert.are.equal(1, through(session, "buffer")) -- its scripts know the number alone
      assert.is_true(closed ~= nil)
    end)

    it("shows our errors", function()
      local session <close> = start {
        exports = {
          fail = function() error("the reason", 0) end,
          object = function() error { "a table" } end,
          unsendable = function() return print end,
        },
      }
      local script = [[
        local ok, message = pcall(vim.rpcrequest, ...)
        return { ok, message }
      ]]
      local channel = session.remote.nvim_get_api_info()[1]
      local answer = session.remote.nvim_exec_lua(script, { channel, "fail" })
      assert.is_false(answer[1])
      assert.matches("the reason", answer[2], 1, true)
      answer = session.remote.nvim_exec_lua(script, { channel, "no_such_method" })
      assert.is_false(answer[1])
      assert.matches("no_such_method", answer[2], 1, true)
      for _, method in ipairs { "object", "unsendable" } do
        answer = session.remote.nvim_exec_lua(script, { channel, method })
        assert.is_false(answer[1])
        assert.is_nil(answer[2]:find("unknown error", 1, true), answer[2])
      end
      assert.are.equal(2, session.remote.nvim_eval "1 + 1") -- and is still there
    end)

    it("is answered last in, first out", function()
      run(function()
        local session, left
        local began = ipc.loop.queue(1)
        session = start {
          exports = {
            -- Begins an inner call and does not wait for it.
            outer = function()
              ipc.loop.go(function() left = table.pack(pcall(through, session, "inner")) end)
              began:get(LIMIT)
              return "outer"
            end,
            -- Ends long after the outer one has returned.
            inner = function()
              began:put(true)
              for _ = 1, 20 do ipc.sleep(0.001) end
              return "inner"
            end,
          },
        }
        local closed <close> = session
        session.data.channel = session.remote.nvim_get_api_info()[1]
        assert.are.equal("outer", through(session, "outer"))
        while not left do ipc.sleep(0.001) end
        assert.are.same({ true, "inner", n = 2 }, left)
        assert.are.equal(2, session.remote.nvim_eval "1 + 1")
        assert.is_true(closed ~= nil)
      end)
    end)

    it("notifies us, of changes in a buffer as well", function()
      local seen, noted = {}, {}
      local session <close> = start {
        exports = {
          nvim_buf_lines_event = function(...) seen[#seen + 1] = table.pack(...) end,
          note = function(i) noted[#noted + 1] = i end,
        },
      }
      local remote = session.remote
      local channel = remote.nvim_get_api_info()[1]
      local buffer = remote.nvim_get_current_buf()
      assert.is_true(remote.nvim_buf_attach(buffer, false, {}))
      assert.is_nil((remote.nvim_buf_set_lines(buffer, 0, -1, false, { "one", "two" })))
      remote.nvim_exec_lua("for i = 1, 100 do vim.rpcnotify(..., 'note', i) end", { channel })
      local deadline = ipc.now() + LIMIT
      while (#seen == 0 or #noted < 100) and ipc.now() < deadline do session:serve(0.01) end
      assert.are.equal(buffer, seen[1][1])
      assert.are.same({ 0, 1, { "one", "two" } }, { seen[1][3], seen[1][4], seen[1][5] })
      for i = 1, 100 do assert.are.equal(i, noted[i]) end
      -- We notify, too; what comes later finds it done.
      for i = 1, 100 do assert.is_true(session:notify("nvim_set_var", "last", i)) end
      assert.are.equal(100, remote.nvim_get_var "last")
    end)

    it("a call that is too late is given up, its answer dropped", function()
      local session <close> = start()
      local ok, message, errno
      repeat -- until we are not late ourselves
        ok, message, errno = session:with({ timeout = 0.02 }):call("nvim_exec_lua", "vim.wait(200)", {})
      until not ok
      assert.are.equal("timeout", message)
      assert.are.equal(E.ETIMEDOUT, errno)
      assert.are.equal(42, session.remote.nvim_eval "6 * 7")
      assert.are.equal("", session.remote.nvim_get_vvar "errmsg")
    end)

    it("many calls at once", function()
      local session <close> = start()
      local futures = {}
      for i = 1, 500 do futures[i] = session:async("nvim_eval", i .. " + 1") end
      for i = 500, 1, -1 do assert.are.same({ true, i + 1 }, { futures[i]:wait(LIMIT) }) end
    end)

    it("references are not for it", function()
      local session <close> = start()
      local ok, message = pcall(session.call, session, "nvim_set_var", "f", print)
      assert.is_true(not ok or message == nil)
      assert.are.equal(2, session.remote.nvim_eval "1 + 1")
    end)

    it("its end is told to who waits, and to who calls later", function()
      local session <close> = start()
      local future = session:async "nvim_get_current_buf"
      local ok, message, errno = session:call("nvim_command", "qall!")
      assert.is_nil(ok)
      assert.are.equal("closed", message)
      assert.are.equal(E.EPIPE, errno)
      assert.is_true((future:wait(LIMIT))) -- that was answered before
      assert.are.equal("closed", (select(2, session:call "nvim_get_current_buf")))
    end)

    it("killed, all who wait are told", function()
      local session <close> = start()
      local pid = session.remote.nvim_call_function("getpid", {})
      local futures = {}
      for i = 1, 5 do futures[i] = session:async("nvim_exec_lua", "vim.wait(60000)", {}) end
      os.execute("kill -KILL " .. pid)
      for i = 1, 5 do
        local ok, message, errno = futures[i]:wait(LIMIT)
        assert.is_nil(ok)
        -- Of a child it is how that has ended.
        assert.is_true(errno == E.EPIPE or errno == E.ECONNRESET and message:find "killed by signal" ~= nil, message)
      end
    end)
  end)
end

foreign("nvim", "Neovim as our child", function()
  it("ends with the session, and leaves no zombie", function()
    local session = embedded()
    local pid = session.remote.nvim_call_function("getpid", {})
    assert.is_true(peer.lives(pid))
    assert.is_true(session:close())
    assert.is_false(peer.lives(pid))
    assert.are.equal(0, peer.zombies(ipc.pid()))
  end)

  it("ends with the block", function()
    local pid
    do
      local session <close> = embedded()
      pid = session.remote.nvim_call_function("getpid", {})
    end
    assert.is_false(peer.lives(pid))
    assert.are.equal(0, peer.zombies(ipc.pid()))
  end)

  it("that is not there", function()
    local session, message, errno = ipc.rpc.connect({ "no-such-nvim", "--embed" }, { peer = "nvim" })
    assert.is_nil(session)
    assert.matches("no%-such%-nvim", message)
    assert.are.equal(E.ENOENT, errno)
  end)
end)

-- ---- Neovim as a client ----------------------------------------------------

local function squeezed(text) return (text:gsub("\r", "")) end

-- What a Neovim writes that does that check with our server.
local function client(check, how, options)
  local program = nvim("-c", "luafile " .. PEERS .. "client.lua")
  program.env = { CHECK = check }
  if how == "job" then
    -- Neovim's own Lua is not ours.
    program.env.PROGRAM = ('["sh", "-c", "%s"]'):format(
      ("exec env LUA_PATH='%s' LUA_CPATH='%s' %s %sserved.lua stdio"):format(
        package.path, package.cpath, with.command(""):match "LUA_INIT_5_4= (%S+)", PEERS))
    return squeezed(output(program))
  end
  return squeezed(visited(options, fresh "spec.support.peers.served", function(where)
    program.env.ADDRESS = how == "tcp" and "127.0.0.1:" .. where or where
    return program
  end))
end

local hows = {
  ["as a client on a unix socket"] = { "unix", { options = { peer = "nvim" } } },
  ["as a client on TCP"] = { "tcp", { where = "tcp:127.0.0.1:0", options = { peer = "nvim" } } },
  ["as a client of a server for all"] = { "unix", {} },
  ["that started us as a job"] = { "job", {} },
}

for title, how in pairs(hows) do
  foreign("nvim", "Neovim " .. title, function()
    local tail = how[1] == "job" and "0\n" or "" -- that we ended well

    it("calls", function()
      assert.are.equal('3\nvim.NIL\n{ a = { 1, { b = true } } }\n{ 1, vim.NIL, 3 }\n42\ntrue\n' .. tail,
        client("calls", table.unpack(how)))
    end)

    it("is shown errors", function()
      local first, second, third = client("errors", table.unpack(how)):match "(.-)\n(.-)\n(.*)"
      assert.matches("the reason", first, 1, true)
      assert.matches("no_such_method", second, 1, true)
      assert.are.equal("3\n" .. tail, third)
    end)

    it("is called back while it waits", function()
      local text = client("callbacks", table.unpack(how))
      assert.matches("^42\nbottom\n", text)
      assert.matches("1\n" .. tail .. "$", text)
    end)

    it("notifies, and is notified", function()
      assert.are.equal("100\n3\ntrue\nby us\n" .. tail, client("notifications", table.unpack(how)))
    end)
  end)
end

-- ---- its clients for other languages ---------------------------------------

local attached = { options = { nvim = true } }

foreign("pynvim", "pynvim", function()
  for _, check in ipairs { "calls", "errors", "callbacks" } do
    it("attaches: " .. check, function()
      assert.are.equal("ok\n", visited(attached, plain_exports(), function(where)
        return { peer.python, PEERS .. "attach.py", where, check }
      end))
    end)
  end

  it("is our child, and calls us while we wait for it", function()
    local session <close> = assert(ipc.rpc.connect({ peer.python, PEERS .. "attach.py", "stdio", "child" }, {
      peer = "nvim", nvim = true, timeout = LIMIT, exports = plain_exports(),
    }))
    for i = 1, 10 do assert.are.equal(2 * i, session.remote.double(i)) end
    local ok, message = session:call "nothing"
    assert.is_nil(ok)
    assert.are.equal("no method nothing", message)
    assert.is_true(session:notify "end")
    local _, _, errno = session:call("double", 1)
    assert.are.equal(E.EPIPE, errno)
  end)
end)

foreign("npm", "the npm package neovim", function()
  for _, check in ipairs { "calls", "errors", "callbacks" } do
    it("attaches: " .. check, function()
      assert.are.equal("ok\n", visited(attached, plain_exports(), function(where)
        return { "node", PEERS .. "attach.js", where, check, env = { NODE_PATH = "build/peers/node_modules" } }
      end))
    end)
  end
end)

foreign("ruby", "the gem neovim", function()
  for _, check in ipairs { "calls", "errors", "callbacks" } do
    it("attaches: " .. check, function()
      assert.are.equal("ok\n", visited(attached, plain_exports(), function(where)
        return { "ruby", PEERS .. "attach.rb", where, check }
      end))
    end)
  end
end)

-- ---- plain Python ----------------------------------------------------------

foreign("msgpack", "a strict client in Python", function()
  local function checked(check, options)
    options = options or {}
    assert.are.equal("ok\n", visited(options, plain_exports(), function(where)
      return { peer.python, PEERS .. "plain.py", "client", where, check }
    end))
  end

  for check, promise in pairs {
    results = "results as they are, nils and bytes too",
    errors = "errors are [code, text], and nobody's end",
    liberal = "sloppy envelopes are taken, strays dropped",
    order = "calls begin in the order sent, a slow one holds nobody up",
    callback = "is called back, and answered while we wait for it",
    unasked = "hears nothing that it did not ask for",
    leaves = "leaves in the middle of it all",
  } do
    it(promise, function() checked(check) end)
    it(promise .. ", over TCP", function() checked(check, { where = "tcp:127.0.0.1:0" }) end)
    it(promise .. ", with a server for plain ones", function() checked(check, { options = { peer = "plain" } }) end)
  end

  it("gets errors as texts if the server is told so", function()
    checked("text", { options = { errors = "string" } })
  end)
end)

foreign("msgpack", "a strict server in Python", function()
  local function connected(kind, options, socket)
    local all = { timeout = LIMIT, exports = { double = function(n) return 2 * n end } }
    for name, value in pairs(options or {}) do all[name] = value end
    local program = { peer.python, PEERS .. "plain.py", "serve", socket or kind, socket and kind or nil }
    if not socket then return assert(ipc.rpc.connect(program, all)) end
    peer.keep(assert(ipc.exec(program)))
    all.retry = LIMIT
    return assert(ipc.rpc.connect("unix:" .. socket, all))
  end

  for kind, options in pairs { array = {}, text = {}, go = { peer = "plain", errors = "string" } } do
    it("results and errors: " .. kind, function()
      for _, socket in ipairs { false, path() } do
        local session <close> = connected(kind, options, socket)
        local remote = session.remote
        assert.are.equal(3, remote.add(1, 2))
        local ok, message, errno = session:call("add", 1, 2.0)
        assert.is_nil(ok)
        assert.matches("two integers", message)
        assert.are.equal(0, errno)
        assert.are.equal(0, select(3, session:call("add", 1)))
        assert.are.equal(0, select(3, session:call("add", 1, 2, nil))) -- three
        assert.are.same({ 1, "x", { a = true } }, remote.echo(1, "x", { a = true }))
        assert.are.equal("\xff\xfe", remote.one "\xff\xfe")
        assert.is_nil((remote.one(nil)))
        assert.error_matches(function() remote.fail() end, "out of order")
        ok, message = session:call "no_such_method"
        assert.is_nil(ok)
        assert.matches("no_such_method", message)
        assert.are.equal(7, remote.add(3, 4))
      end
    end)

    it("calls back while we wait: " .. kind, function()
      local session
      session = connected(kind, {
        peer = options.peer, errors = options.errors,
        exports = { double = function(n) return 2 * n .. session.remote.inner() end },
      })
      local closed <close> = session
      local answer = session.remote.back(21)
      assert.are.equal("42meanwhile", answer[2])
      assert.is_true(closed ~= nil)
    end)

    it("is asked for nothing it does not know: " .. kind, function()
      local session <close> = connected(kind, { peer = "plain", errors = options.errors })
      assert.are.equal(3, session.remote.add(1, 2))
      local expected = { "add" }
      local ok, message
      repeat -- until we are not late ourselves
        expected[#expected + 1] = "hang"
        ok, message = session:with({ timeout = 0.01 }):call("hang", 0.2)
      until not ok
      assert.are.equal("timeout", message)
      session:async("add", 3, 4):cancel()
      expected[#expected + 1] = "add"
      expected[#expected + 1] = "seen"
      assert.are.same(expected, session.remote.seen())
    end)

    it("gone in the middle of a call: " .. kind, function()
      local session <close> = connected(kind, options)
      local _, message, errno = session:call "leave"
      assert.are.equal("closed", message)
      assert.are.equal(E.EPIPE, errno)
    end)
  end

  it("is asked once whether it is one of ours", function()
    local session <close> = connected "array"
    assert.are.equal(3, session.remote.add(1, 2))
    assert.are.equal(3, session.remote.add(1, 2))
    assert.are.same({ "$hello", "add", "add", "seen" }, session.remote.seen())
  end)

  it("its errors may have any shape", function()
    local session <close> = connected "array"
    local shapes = { "text", 7, 0.5, true, { 1 }, { "only text" }, { 1, { 2 } }, { code = 1, message = "m" } }
    for _, shape in ipairs(shapes) do
      local ok, message, errno = session:call("odd", shape)
      assert.is_nil(ok)
      assert.is_string(message)
      assert.is_number(errno)
      assert.is_false(pcall(session.remote.odd, shape))
    end
    assert.are.equal(3, session.remote.add(1, 2))
  end)

  it("its programs end with the session, and leave no zombie", function()
    connected("array"):close()
    connected("go", { peer = "plain" }):close()
    assert.are.equal(0, peer.zombies(ipc.pid()))
  end)
end)
