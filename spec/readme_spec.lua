-- Every Lua snippet of the README runs as its own script and prints what its
-- `-->` comments say (white space counts once, `...` stands for anything).
local peer = require "spec.support.peer"

local function read(path)
  local file = assert(io.open(path))
  local text = file:read "a"
  file:close()
  return text
end

local readme = read "README.md"

local function squeeze(text)
  return (text:gsub("%s+", " "):gsub("^ ", ""):gsub(" $", ""))
end

local function pattern_of(expected)
  return "^" .. squeeze(expected):gsub("%p", "%%%0"):gsub("%%%.%%%.%%%.", ".*") .. "$"
end

local function run(code)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(code)
  file:close()
  local pipe = assert(io.popen("timeout 30 " .. (os.getenv "LUA" or "lua5.4") .. " " .. path .. " 2>&1"))
  local output = pipe:read "a"
  local ok = pipe:close()
  os.remove(path)
  return output, ok
end

-- The same with names that no other run of the suite has.
local function own(code)
  local id = os.tmpname()
  os.remove(id)
  id = id:match "[^/]*$"
  local n = 0
  for i = 1, #id do n = (31 * n + id:byte(i)) & 0xffffff end
  return (code:gsub("%f[%w]tour%f[^%w]", "tour-" .. id:gsub("%W", "-")):gsub("%f[%w]7007%f[^%w]", 10000 + n % 20000)
    :gsub("0x4a42", ("0x4a%06x"):format(n)))
end

describe("the README", function()
  local n = 0
  for code in readme:gmatch "```lua\n(.-)```" do
    n = n + 1
    code = own(code)
    local title = code:match "ipc%.[%w.]+" or "code"
    it(("snippet %d (%s) prints what it says"):format(n, title), function()
      for address in code:gmatch '"(%l+%?[%l=]+)"' do
        if not peer.has(address) then return pending("no " .. address) end
      end
      for _, name in ipairs { "shm", "queue", "memory", "mutex", "journal" } do
        if code:find("%f[%w]" .. name .. "%f[^%w]") and not peer.has "shm" then return pending "no shm" end
      end
      local output, ok = run(code)
      assert.is_true(ok, output)
      local lines, expected = {}, {}
      for line in output:gmatch "[^\n]+" do
        lines[#lines + 1] = line
      end
      for text in code:gmatch "%-%->([^\n]*)" do
        expected[#expected + 1] = text
      end
      assert.are.equal(#expected, #lines, output)
      for i, text in ipairs(expected) do
        assert.is_truthy(squeeze(lines[i]):match(pattern_of(text)), ("line %d: %s"):format(i, lines[i]))
      end
    end)
  end

  it("has snippets", function()
    assert.is_true(n >= 8)
  end)

  it("names commands that the Makefile has", function()
    local makefile = read "Makefile"
    local found = 0
    for _, form in ipairs { "`make (%l+)`", "\nmake (%l+)" } do
      for target in readme:gmatch(form) do
        found = found + 1
        assert.is_truthy(makefile:match("\n" .. target .. "[ :]"), target)
      end
    end
    assert.is_true(found >= 4)
  end)

  it("names files that exist", function()
    for path in readme:gmatch "%]%(([%w/_.]+)%)" do
      local file = io.open(path)
      assert.is_truthy(file, path)
      file:close()
    end
  end)
end)
