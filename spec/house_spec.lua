-- The layout of the sources, executable: what may stand where, what may know
-- whom, and that code, reference, annotations and rockspec say the same.
local ipc = require "ipc"
local with = require "spec.support.with"

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read "a"
end

local function exists(path)
  local file <close> = io.open(path, "rb")
  return file ~= nil
end

local function names(command)
  local list = {}
  for name in with.shell("LC_ALL=C " .. command):gmatch "[^\n]+" do list[#list + 1] = name end
  return list
end

local function set(list)
  local all = {}
  for _, name in ipairs(list) do all[name] = true end
  return all
end

local c_files = names "ls src/*.c"
local h_files = names "ls src/*.h"
local sources = {} -- path -> text
for _, path in ipairs(c_files) do sources[path] = read(path) end
for _, path in ipairs(h_files) do sources[path] = read(path) end
local lua_files = names "find lua -name '*.lua'"

-- Without comments and strings: what the compiler sees.
local function code(path)
  return (sources[path]:gsub("/%*.-%*/", ""):gsub('"[^"\n]*"', '""'))
end

-- rooms.h: { name =, part = } in order.
local rows = {}
for kind, name in sources["src/rooms.h"]:gmatch "(%u+)%(([%w_]+)%)" do
  rows[#rows + 1] = { name = name, part = kind == "PART" }
end

-- The reference: comments that LDoc reads.
local reference = {}
for path, text in pairs(sources) do
  for comment in text:gmatch "/%*%*%*(.-)%*/" do
    reference[#reference + 1] = { path = path, text = comment }
  end
end
for _, path in ipairs(lua_files) do
  for comment in read(path):gmatch "%-%-%-([^\n]*\n[%s%-][^%w\n][^\n]*.-)\n[^%-]" do
    reference[#reference + 1] = { path = path, text = comment }
  end
end

local function nothing(list, what)
  assert.are.equal("", table.concat(list, "\n"), what)
end

describe("the house:", function()
  it("the top level holds what may be there", function()
    local may = set { ".", "..", ".git", ".github", "build",
      "Makefile", "README.md", "CHANGELOG.md", "LICENSE", "WIRE.md", "config.ld", ".busted",
      ".luacheckrc", ".clang-format", ".clang-tidy", ".editorconfig", ".gitignore", ".ci",
      "rockspec", "src", "lua", "types", "spec", "examples", "bench" }
    for line in read ".gitignore":gmatch "[^\n]+" do may[line:match "^/?(.-)/?$"] = true end
    local strangers = {}
    for _, name in ipairs(names "ls -a") do
      if not may[name] and not name:match "%.rock$" then strangers[#strangers + 1] = name end
    end
    nothing(strangers)
    assert.are.same({ "lua/ipc" }, names "ls -d lua/*")
  end)

  it("files of code have names in lower case", function()
    for _, name in ipairs(names "find src lua spec examples types bench -type f -name '*.*'") do
      local base = name:match "[^/]+$"
      if base:match "%.[ch]$" or base:match "%.lua$" then
        assert.matches("^[a-z0-9_]+%.[a-z]+$", base)
      end
    end
  end)

  it("every source begins with what it is for, in six lines at most", function()
    local long = {}
    for path, text in pairs(sources) do
      local comment = text:match "^/%*.-%*/"
      local first = (comment or ""):match "^(.-)\n %*\n" or comment -- its first paragraph
      local _, lines = (first or ""):gsub("\n", "")
      if not first or lines + 1 > 6 then long[#long + 1] = path end
    end
    for _, path in ipairs(lua_files) do
      if not read(path):match "^%-%-" then long[#long + 1] = path end
    end
    nothing(long)
  end)

  it("prefix.h is the first include of every .c", function()
    for _, path in ipairs(c_files) do
      assert.are.equal('"prefix.h"', sources[path]:match "#include%s+(%S+)", path)
    end
  end)

  it("system macros stand in prefix.h and os_*.c only", function()
    local found = {}
    for path in pairs(sources) do
      if not path:match "/os_" and path ~= "src/prefix.h" then
        for line in code(path):gmatch "[^\n]+" do
          if line:match "__linux__" or line:match "__APPLE__" or line:match "__%u%l+BSD__"
            or line:match "__sun" or line:match "_SOURCE%f[^%w_]" then
            found[#found + 1] = path .. ": " .. line
          end
        end
      end
    end
    nothing(found)
  end)

  it("process-wide state stands in os_*.c, handle.c and segment.c only", function()
    local found = {}
    for _, path in ipairs(c_files) do
      if not (path:match "/os_" or path == "src/handle.c" or path == "src/segment.c") then
        for line in code(path):gmatch "[^\n]+" do
          -- a variable: no parenthesis before its end or value
          if line:match "^%s*static%s+[^(]-[;=]" and not line:match "const%f[^%w]" then
            found[#found + 1] = path .. ": " .. line
          end
        end
      end
    end
    nothing(found)
  end)
end)

describe("rooms and parts:", function()
  for _, row in ipairs(rows) do
    it(row.name .. " has a source, a spec and an example", function()
      assert.is_true(exists("src/" .. row.name .. ".c"), "source")
      assert.is_true(exists("spec/" .. row.name .. "_spec.lua"), "spec")
      assert.is_true(exists("examples/" .. row.name .. ".lua"), "example")
    end)

    it(row.name .. " has no header, and nothing includes it", function()
      assert.is_false(exists("src/" .. row.name .. ".h"))
      for path, text in pairs(sources) do
        assert.is_nil(text:find('"' .. row.name .. ".[ch]\"", 1), path)
      end
    end)

    it(row.name .. " exports one thing: its Room", function()
      local path = "src/" .. row.name .. ".c"
      local found = {}
      for line in code(path):gmatch "[^\n]+" do
        if line:match "^const Room ipc_room_" then
          found[#found + 1] = line:match "ipc_room_([%w_]+)"
        elseif line:match "^%l[%w_ *]-[%w_]+%(" and not line:match "^static" and
          not line:match "^_Noreturn static" and not line:match "^typedef" then
          found[#found + 1] = line
        end
      end
      assert.are.same({ row.name }, found)
    end)
  end

  it("mechanisms are those of the rooms", function()
    local of = {}
    for _, mechanism in ipairs(ipc.mechanisms()) do of[mechanism.room] = true end
    -- Those that this system lacks are in no list.
    local rings = select(3, ipc.queue()) ~= ipc.errno.ENOTSUP
    local lacks = { shm = not rings, mmap = not rings, broadcast = not rings }
    for _, row in ipairs(rows) do
      assert.are.equal(not row.part and not lacks[row.name], of[row.name] == true, row.name)
    end
  end)

  it("core reaches each by its name", function()
    local core = require "ipc.core"
    for _, row in ipairs(rows) do assert.is_table(core[row.name], row.name) end
  end)
end)

describe("below the rooms:", function()
  it("what files share is called ipc_*", function()
    local found = {}
    for path in pairs(sources) do
      for line in code(path):gmatch "[^\n]+" do
        local name = line:match "^%l[%w_ *]-([%w_]+)%("
        if name and not line:match "^static" and not line:match "^_Noreturn static"
          and not line:match "^typedef" and not name:match "^ipc_"
          and not name:match "^luaopen_ipc_" and not name:match "^__attribute__" then
          found[#found + 1] = path .. ": " .. line
        end
      end
    end
    nothing(found)
  end)

  it("the system half of the library never heard of Lua", function()
    for path in pairs(sources) do
      if path:match "/os[_.]" or path:match "/buffer%." then
        assert.is_nil(code(path):find "lua_?[%u_]", path)
        assert.is_nil(sources[path]:find '#include%s+[<"]lua', path)
        assert.is_nil(sources[path]:find '#include%s+[<"]lauxlib', path)
        assert.is_nil(sources[path]:find '#include%s+"ipc%.h"', path)
      end
    end
  end)

  it("ops see no lua_State, neither as a parameter nor within", function()
    local tables, found = 0, {}
    local kinds = set { "HandleOps", "ChanOps", "StreamOps", "PacketOps" }
    for _, path in ipairs(c_files) do
      local text = code(path)
      for kind, body in text:gmatch "const%s+(%u%w+Ops)%s+[%w_]+%s*=%s*(%b{})" do
        if kinds[kind] then
          tables = tables + 1
          for slot, name in body:gmatch "%.([%w_]+)%s*=%s*([%w_]+)" do
            -- dup makes a handle: as constructors do
            local definition = slot ~= "dup" and text:match("\n[^\n]*%f[%w_]" .. name ..
              "(%([^;{]-%)%s*%b{})")
            if definition and definition:find "luaL?_" then
              found[#found + 1] = path .. ": " .. name
            end
          end
        end
      end
    end
    assert.is_true(tables > 4, "the tables were not found")
    nothing(found)
  end)

  it("dependencies point one way", function()
    -- what is below knows nothing of what is above it
    local below = {
      ["src/buffer.c"] = { "ipc.h", "frame.h", "packet.h", "msgpack.h", "os.h" },
      ["src/packet.c"] = { "msgpack.h", "rooms.h" },
      ["src/frame.c"] = { "msgpack.h", "rooms.h" },
      ["src/wait.c"] = { "frame.h", "packet.h", "msgpack.h", "rooms.h" },
      ["src/handle.c"] = { "frame.h", "packet.h", "msgpack.h", "rooms.h" },
      ["src/chan.c"] = { "frame.h", "packet.h", "rooms.h" },
    }
    for path, above in pairs(below) do
      for _, header in ipairs(above) do
        assert.is_nil(sources[path]:find('#include "' .. header .. '"', 1, true),
          path .. " includes " .. header)
      end
    end
    for path, text in pairs(sources) do
      assert.is_true(path == "src/core.c" or not text:find '#include "rooms.h"', path)
    end
  end)
end)

describe("the module:", function()
  local core = assert(package.searchpath("ipc.core", package.cpath))

  it("links libc and nothing else", function()
    local text = with.shell("readelf -d " .. with.quote(core))
    local strangers = {}
    for library in text:gmatch "NEEDED.-%[(.-)%]" do
      if not (library:match "^libc%." or library:match "^libpthread%." or library:match "^libdl%."
        or library:match "^ld%-" or library:match "san%.so") then
        strangers[#strangers + 1] = library
      end
    end
    assert.matches("Dynamic section", text)
    nothing(strangers)
  end)

  it("exports its opener, and nothing that is not called ipc_*", function()
    local exported = {}
    for _, line in ipairs(names("nm -D --defined-only " .. with.quote(core))) do
      local name = line:match " [TDBRVW] ([%w_]+)"
      if name and not name:match "^ipc_" and not name:match "san" and not name:match "^_" then
        exported[#exported + 1] = name
      end
    end
    assert.are.same({ "luaopen_ipc_core" }, exported)
  end)

  -- A fresh interpreter prints what `code` finds.
  local function fresh(chunk)
    local text, status = with.shell(with.command(chunk))
    assert.are.equal(0, status, text)
    return text
  end

  it("require does no work: no descriptor, thread, signal or further module", function()
    assert.are.equal("ipc ipc.core same", fresh [[
      local function look()
        local status = io.open "/proc/self/status":read "a"
        local maps = {}
        collectgarbage()
        for fd = 3, 40 do
          local file = io.open(("/proc/self/fdinfo/%d"):format(fd))
          if file then maps[#maps + 1] = fd file:close() end
        end
        return status:match "Threads:%s*%d+" .. status:match "SigBlk.-SigCgt:%s*%x+" .. #maps
      end
      look()
      local before, loaded = look(), {}
      for name in pairs(package.loaded) do loaded[name] = true end
      require "ipc"
      local new = {}
      for name in pairs(package.loaded) do
        if not loaded[name] then new[#new + 1] = name end
      end
      table.sort(new)
      io.write(table.concat(new, " "), before == look() and " same" or " different")
    ]])
  end)

  it("makes no globals and touches no table of Lua's", function()
    local modules = {}
    for _, path in ipairs(lua_files) do
      modules[#modules + 1] = path:match "^lua/(.*)%.lua$":gsub("/init$", ""):gsub("/", ".")
    end
    assert.are.equal("none", fresh(([[
      local seen = {}
      local function note(t, name, depth)
        if depth > 2 or t == package.loaded or t == package.preload then return end
        for key, value in pairs(t) do
          seen[name .. "." .. tostring(key)] = value
          if type(value) == "table" and value ~= t then
            note(value, name .. "." .. tostring(key), depth + 1)
          end
        end
      end
      pcall(require, "cqueues")
      note(_G, "_G", 1)
      local before = seen
      for name in ("%s"):gmatch "%%S+" do pcall(require, name) end
      seen = {}
      note(_G, "_G", 1)
      for name, value in pairs(seen) do
        if before[name] ~= value then print(name) end
      end
      for name in pairs(before) do
        if seen[name] == nil then print(name) end
      end
      io.write "none"
    ]]):format(table.concat(modules, " "))))
  end)

  it("loads again in the same state", function()
    assert.are.equal("ok", fresh [[
      local first = require "ipc"
      local r, w = first.pipe()
      for name in pairs(package.loaded) do
        if name:match "^ipc" then package.loaded[name] = nil end
      end
      local second = require "ipc"
      local r2, w2 = second.pipe()
      assert(w:send "1" and w2:send "2" and r:recv() == "1" and r2:recv() == "2")
      assert(second.poll({ { w, "w" }, { w2, "w" } }, 1)[w])
      io.write "ok"
    ]])
  end)

  it("has names in lower case", function()
    for name in pairs(ipc) do assert.matches("^%l[%l%d_]*$", name) end
    for _, channel in ipairs { assert(ipc.pair "unix") } do
      for name in pairs(debug.getmetatable(channel).__index) do
        assert.matches("^%l[%l%d_]*$", name)
      end
      channel:close()
    end
  end)
end)

-- ---- what is said elsewhere about the code

-- Public names as the reference writes them: pack, channel:send, process:wait.
local function documented()
  local all = {}
  for _, comment in ipairs(reference) do
    for name in comment.text:gmatch "@function ([%w_.:]+)" do all[name] = comment.path end
    for name in comment.text:gmatch "@table ([%w_.:]+)" do all[name] = comment.path end
  end
  return all
end

local function annotated()
  local all, text = {}, read "types/ipc.lua"
  for name in text:gmatch "\nfunction ([%w_.:]+)%(" do all[name:gsub("^ipc%.", "")] = true end
  return all
end

-- class -> method names, from objects.
local function methods()
  local a, b = assert(ipc.pipe())
  a:close()
  b:close()
  local all = { channel = {}, listener = {}, view = {}, bytes = {} }
  for name in pairs(debug.getmetatable(a).__index) do all.channel[name] = true end
  for name in sources["src/listen.c"]:match("luaL_Reg listener_methods%[%] = (%b{})"):gmatch '{"(%l+)"' do
    all.listener[name] = true
  end
  for name in sources["src/view.c"]:match("luaL_Reg view_methods%[%] = (%b{})"):gmatch '{"(%l+)"' do
    all.view[name] = true
  end
  for name in sources["src/bytes.c"]:match("luaL_Reg bytes_methods%[%] = (%b{})"):gmatch '{"(%l+)"' do
    all.bytes[name] = true
  end
  for name in sources["src/source.c"]:match("luaL_Reg source_methods%[%] = (%b{})"):gmatch '{"(%l+)"' do
    all.source = all.source or {}
    all.source[name] = true
  end
  -- what a room adds to them
  for _, row in ipairs(rows) do
    local text = sources["src/" .. row.name .. ".c"]:match("luaL_Reg " .. row.name .. "_methods%[%] = (%b{})")
    if text then
      all[row.name] = all[row.name] or {}
      for name in text:gmatch '{"(%l+)"' do all[row.name][name] = true end
    end
  end
  -- what all locks have, and each kind
  for _, path in ipairs { "src/lock.c", "src/lockkinds.c" } do
    for kind, text in sources[path]:gmatch "luaL_Reg (%l+)_methods%[%] = (%b{})" do
      all[kind] = {}
      for name in text:gmatch '{"(%l[%l_]*)"' do all[kind][name] = true end
    end
  end
  return all
end

describe("reference, annotations and rockspec:", function()
  it("every public function has a docstring", function()
    local known, missing = documented(), {}
    for name, value in pairs(ipc) do
      if type(value) == "function" and not known[name] then missing[#missing + 1] = name end
    end
    for class, list in pairs(methods()) do
      for name in pairs(list) do
        if not known[class .. ":" .. name] then missing[#missing + 1] = class .. ":" .. name end
      end
    end
    nothing(missing, "without @function")
  end)

  it("and is annotated in types/ipc.lua", function()
    local known, missing = annotated(), {}
    for name, value in pairs(ipc) do
      if type(value) == "function" and not known[name] then missing[#missing + 1] = name end
    end
    local all = methods()
    for name in pairs(all.channel) do
      if not known["channel:" .. name] then missing[#missing + 1] = "channel:" .. name end
    end
    for class, list in pairs(all) do
      for name in pairs(list) do
        local own = class == "listener" or class == "view" or class == "bytes"
        if not (known[class .. ":" .. name] or not own and all.channel[name]) then
          missing[#missing + 1] = class .. ":" .. name
        end
      end
    end
    nothing(missing, "not in types/ipc.lua")
  end)

  it("nothing is annotated that is not there", function()
    local strangers, all = {}, methods()
    for name in pairs(annotated()) do
      local class, method = name:match "^([%w_]+)[:.]([%w_]+)$"
      if class and all[class] and not all[class][method] or not class and ipc[name] == nil then
        strangers[#strangers + 1] = name
      end
    end
    nothing(strangers)
  end)

  it("every docstring begins with a sentence", function()
    local found = {}
    for _, comment in ipairs(reference) do
      local first = comment.text:match "^[%s*]*(.-)%s*$"
      if comment.text:find "@function" and not first:match "^%u[^@]-[.:;]" then
        found[#found + 1] = comment.path .. ": " .. first:sub(1, 60)
      end
    end
    nothing(found)
  end)

  it("every option that the code knows is in the reference and the annotations", function()
    local text = {}
    for _, comment in ipairs(reference) do text[#text + 1] = comment.text end
    text = table.concat(text)
    local types = read "types/ipc.lua"
    local options, missing, count = {}, {}, 0
    for _, source in pairs(sources) do
      for name in source:gmatch 'ipc_option_%l+%(L, [%w_]+, "([%w_]+)"' do options[name] = true end
    end
    for list in sources["src/opts.c"]:gmatch "option_common%[%]%s*=%s*(%b{})" do
      for name in list:gmatch '"([%l_]+)"' do options[name] = true end
    end
    for name in pairs(options) do
      count = count + 1
      assert.matches("^%l[%l_]*$", name)
      if not text:find("`" .. name .. "`", 1, true) and not text:find("%f[%w_]" .. name .. "`")
        and not text:find("`" .. name .. "%f[^%w_]") then
        missing[#missing + 1] = name .. " is not in the reference"
      end
      if not types:find("@field " .. name .. "%??%s") then
        missing[#missing + 1] = name .. " is not in types/ipc.lua"
      end
    end
    assert.is_true(count > 8, "the options were not found")
    table.sort(missing)
    nothing(missing)
  end)

  it("of calls, both name the same functions, methods and options", function()
    local text, found, there = {}, {}, {}
    for _, comment in ipairs(reference) do
      if comment.path:find "^lua/ipc/rpc" then
        text[#text + 1] = comment.text
        for name in comment.text:gmatch "@function ([%w_:]+)" do
          there[name:find ":" and name:gsub("^server:", "rpc_server:") or "rpc." .. name] = true
        end
      end
    end
    local types = read "types/ipc.lua"
    local classes = set { "rpc.", "rpc_server:", "session:", "future:", "batch:", "remote_function:" }
    for class, method in types:gmatch "\nfunction ([%l_]+[.:])(%l+)%(" do
      if classes[class] and not there[class .. method] then found[#found + 1] = class .. method end
      there[class .. method] = nil
    end
    for name in pairs(there) do found[#found + 1] = name .. " is not in types/ipc.lua" end
    local known = read "lua/ipc/rpc/options.lua":match "local known = (%b{})"
    for name in known:gmatch "([%l_]+) = {" do
      if not table.concat(text):find("`" .. name .. "`", 1, true) or not types:find("@field " .. name .. "%? ") then
        found[#found + 1] = name
      end
    end
    nothing(found, "not in the reference and types/ipc.lua")
  end)

  it("the rockspec names every file of src and lua", function()
    local path = assert(names "ls rockspec/*-scm-*.rockspec"[1])
    local rock = {}
    assert(load(read(path), path, "t", rock))()
    local modules = rock.build.modules
    assert.are.same(c_files, modules["ipc.core"].sources)
    for _, file in ipairs(lua_files) do
      local name = file:match "^lua/(.*)%.lua$":gsub("/init$", ""):gsub("/", ".")
      assert.are.equal(file, modules[name])
      modules[name] = nil
    end
    modules["ipc.core"] = nil
    assert.is_nil(next(modules))
  end)

  it("every fallback that can be forced is forced by its name in CI", function()
    local text = read ".ci/run"
    local features = 0
    for _, source in pairs(sources) do
      for name in source:gmatch 'ipc_os_without%("([%w_]+)"%)' do
        features = features + 1
        assert.matches("^[%l%d_]+$", name)
      end
    end
    assert.is_true(features > 0)
    assert.matches("IPC_WITHOUT=", text)
  end)
end)
