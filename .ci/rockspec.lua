-- The rockspec names every file of src/ and lua/, because luarocks has no
-- wildcards. Without an argument: fails where the list and the tree differ.
-- With `write`: rewrites the list.
local name = "rockspec/lua-ipc-scm-1.rockspec"
local write = arg[1] == "write"

local function files(command)
  local list = {}
  for file in assert(io.popen("LC_ALL=C " .. command)):lines() do
    list[#list + 1] = file
  end
  return list
end

local lines = { '    ["ipc.core"] = {\n      sources = {\n' }
for _, file in ipairs(files "ls src/*.c") do
  lines[#lines + 1] = ("        %q,\n"):format(file)
end
-- luarocks links with nothing else by itself; pthread is libc's where this is
-- a system of this century, and an empty library elsewhere.
lines[#lines + 1] = '      },\n      libraries = { "pthread" },\n    },\n'
for _, file in ipairs(files "find lua -name '*.lua' | sort") do
  local module = file:match("^lua/(.*)%.lua$"):gsub("/init$", ""):gsub("/", ".")
  lines[#lines + 1] = ("    [%q] = %q,\n"):format(module, file)
end

local file = assert(io.open(name))
local old = file:read "a"
file:close()
local head, tail = old:match "^(.-\n  modules = {\n).-(\n  },\n}\n.*)$"
local new = head .. table.concat(lines):gsub("\n$", "") .. tail

if write then
  file = assert(io.open(name, "w"))
  file:write(new)
  file:close()
elseif new ~= old then
  io.stderr:write(name, ": not the files of src/ and lua/; run `make rockspec`\n")
  os.exit(1)
end
