-- examples/wordcount.lua and examples/demo.lua, run as a newcomer runs them.
local ipc = require "ipc"

local LUA = arg and arg[-1] or "lua5.4"
for i = -1, -20, -1 do -- busted puts itself in between
  LUA = arg and arg[i] or LUA
end

local WORDS = { "the", "kernel", "Pipe", "pipe", "über", "a", "message", "END" }
local LIMIT = "timeout 120 " -- seconds, should something hang

local function text_of(count)
  local parts, seed = {}, 7
  for i = 1, count do
    seed = (seed * 1103515245 + 12345) & 0x7fffffff
    parts[i] = WORDS[(seed >> 8) % #WORDS + 1] .. (i % 3 == 0 and i % 97 or "")
      .. (i % 11 == 0 and ".\n" or " ")
  end
  return table.concat(parts)
end

-- The same, in the plainest Lua there is.
local function count_of(text)
  local counts, word = {}, ""
  for i = 1, #text + 1 do
    local c = text:sub(i, i):lower()
    if c:find "[a-z]" or c ~= "" and c:byte() >= 128 then
      word = word .. c
    elseif word ~= "" then
      counts[word] = (counts[word] or 0) + 1
      word = ""
    end
  end
  return counts
end

-- Runs a shell command: its output, its errors, its status.
local function sh(command)
  local errors = os.tmpname()
  local p = assert(io.popen(("%s 2>%s; echo $?"):format(command, errors)))
  local out, status = p:read("a"):match "^(.-)(%d+)\n$"
  p:close()
  local f = assert(io.open(errors))
  local err = f:read "a"
  f:close()
  os.remove(errors)
  return out, err, tonumber(status)
end

local function example(name, arguments)
  return sh(("%s%s examples/%s.lua %s"):format(LIMIT, LUA, name, arguments))
end

local function quoted(text)
  return "'" .. text .. "'"
end

describe("the examples", function()
  local path, text, counts

  setup(function()
    path, text = os.tmpname(), text_of(60000)
    counts = count_of(text)
    local f = assert(io.open(path, "wb"))
    f:write(text)
    f:close()
  end)

  teardown(function()
    os.remove(path)
  end)

  local function check(out)
    local seen = 0
    for n, word in out:gmatch " *(%d+)  (%S+)\n" do
      assert.are.equal(counts[word], tonumber(n), word)
      seen = seen + 1
    end
    local different = 0
    for _ in pairs(counts) do
      different = different + 1
    end
    assert.are.equal(math.min(10, different), seen)
    assert.is_truthy(out:find(("%d bytes in"):format(#text), 1, true), out)
  end

  for _, m in ipairs(ipc.mechanisms()) do
    it("count words over " .. m.name .. " as plain Lua does", function()
      for _, workers in ipairs { 1, 3 } do
        local out, err, status = example("wordcount",
          ("--via %s --workers %d %s"):format(quoted(m.address), workers, path))
        assert.are.equal("", err)
        assert.are.equal(0, status)
        check(out)
      end
    end)

    it("end with an error that names a killed worker over " .. m.name, function()
      local program = ([[
        package.path = "examples/?.lua;" .. package.path
        local ipc, wordcount = require "ipc", require "wordcount"
        for _, m in ipairs(ipc.mechanisms()) do
          if m.address == %q then
            local killed
            wordcount.run({ %q }, { mechanism = m, workers = 3, progress = function(_, crew)
              killed = killed or crew[2]:kill "KILL"
            end })
          end
        end]]):format(m.address, path)
      local _, err, status = sh(LIMIT .. LUA .. " -e " .. quoted(program))
      assert.are.equal(1, status)
      assert.is_truthy(err:find "worker 2: child %d+: killed by signal 9", err)
    end)
  end

  it("read several files, empty ones too", function()
    local out, err, status = example("wordcount", ("/dev/null %s /dev/null"):format(path))
    assert.are.equal("", err)
    assert.are.equal(0, status)
    check(out)
  end)

  it("keep words whole wherever a chunk ends, and cut those longer than one", function()
    local before = package.path
    package.path = "examples/?.lua;" .. before
    local wordcount = require "wordcount"
    package.path = before
    for _, size in ipairs { 12, 13, 64, 1000, 1 << 20 } do
      local found, all = {}, {}
      for chunk in wordcount.chunks({ path, path }, size) do
        assert.is_true(#chunk > 0 and #chunk <= size)
        wordcount.add(chunk, found)
        all[#all + 1] = chunk
      end
      assert.are.equal(text .. text, table.concat(all))
      for word, n in pairs(counts) do
        assert.are.equal(2 * n, found[word], word)
      end
    end
    local longest = 0
    for chunk in wordcount.chunks({ path }, 3) do
      longest = math.max(longest, #chunk)
    end
    assert.are.equal(3, longest)
  end)

  it("explain themselves when called wrongly", function()
    for arguments, expected in pairs {
      [""] = "no file named",
      ["--via pigeon " .. path] = "no mechanism is called pigeon",
      ["--workers 0 " .. path] = "needs a number",
      ["--wrong " .. path] = "unknown option",
      ["/nonexistent/file"] = "/nonexistent/file: No such file",
      ["/"] = "Is a directory",
    } do
      local out, err, status = example("wordcount", arguments)
      assert.are.equal("", out)
      assert.are.equal(2, status, err)
      assert.is_truthy(err:find(expected, 1, true), err)
      assert.is_truthy(err:find("usage: ", 1, true), err)
      for _, m in ipairs(ipc.mechanisms()) do
        assert.is_truthy(err:find(m.address, 1, true), err)
      end
    end
    local _, err, status = example("demo", "/nonexistent/file")
    assert.are.equal(2, status)
    assert.is_truthy(err:find("usage: ", 1, true), err)
  end)

  it("show every mechanism in one table", function()
    local out, err, status = example("demo", path)
    assert.are.equal("", err)
    assert.are.equal(0, status)
    for _, m in ipairs(ipc.mechanisms()) do
      local line = out:match("\n" .. m.name:gsub("%p", "%%%0") .. "  [^\n]+")
      assert.is_truthy(line, out)
      assert.is_truthy(line:find(m.direction, 1, true) and line:find(m.reach, 1, true), line)
      assert.is_truthy(line:find "%d+%.%d .s$" or line:find "%d+%.%d µs$", line)
    end
    for _, m in ipairs(ipc.mechanisms()) do
      if m.address == "unix" or m.address == "tcp" or m.address == "shm" then
        local line = out:match("\ncalls, " .. m.name .. "  [^\n]+")
        assert.is_truthy(line and line:find "%d+%.%d .s$" or line and line:find "%d+%.%d µs$", out)
      end
    end
    for word, n in pairs(counts) do
      local shown = out:match(" " .. word .. " ([%d,]+)")
      assert.is_true(shown == nil or tonumber((shown:gsub(",", ""))) == n, word)
    end
  end)

  it("fail when an answer differs", function()
    local program = ([[
      package.path = "examples/?.lua;" .. package.path
      local wordcount = require "wordcount"
      local run = wordcount.run
      function wordcount.run(...)
        local counts, stats = run(...)
        counts.the = counts.the + 1
        return counts, stats
      end
      arg = { [0] = "examples/demo.lua", %q }
      dofile(arg[0])]]):format(path)
    local out, _, status = sh(LIMIT .. LUA .. " -e " .. quoted(program))
    assert.are.equal(1, status)
    assert.is_truthy(out:find("its answer differs", 1, true), out)
  end)

  it("write no control codes when piped, and plain ASCII where the locale is", function()
    for _, locale in ipairs { "C", "C.UTF-8" } do
      local set = "env LC_ALL=" .. locale .. " "
      for _, name in ipairs { "wordcount", "demo" } do
        local out, err, status = sh(set .. LIMIT .. LUA .. " examples/" .. name .. ".lua " .. path)
        assert.are.equal(0, status)
        assert.is_nil((out .. err):find "[%z\1-\9\11-\31\127]")
        if locale == "C" then
          assert.is_nil(out:gsub("über", ""):find "[\128-\255]", out)
        end
      end
    end
  end)
end)
