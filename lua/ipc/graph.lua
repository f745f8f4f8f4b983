-- Takes functions and values apart for another process: a flat list of nodes
-- that refer to each other by number, so that cycles, what is shared and any
-- depth go along. lua/ipc/thaw.lua puts them together again. Runs nobody's code:
-- no metamethods are called.
local core = require "ipc.core"
local assigned = require "ipc.assigned"

local ipc = core.flat
local graph = {}

-- What a node begins with; thaw.lua knows the same numbers.
local TABLE <const>, FUNCTION <const>, CELL <const>, NAMED <const> = 1, 2, 3, 4
local HANDLE <const>, DUPLEX <const>, STRUCT <const>, LIST <const> = 5, 6, 7, 8
local NULL <const> = 9

-- In the place of a metatable: that of ipc.array, of ipc.map.
local marks = {
  [debug.getmetatable(ipc.array {})] = -1,
  [debug.getmetatable(ipc.map {})] = -2,
}

-- Handles that go beside a message.
local travels = {}
for name in ("pipe socket listener shm mmap broadcast memory mutex rwlock semaphore condition event barrier")
  :gmatch "%a+" do
  travels["ipc." .. name] = true
end

-- ---- what is known by name on the other side, too

local standard = {}
for name in ([[assert collectgarbage dofile error getmetatable ipairs load loadfile next pairs pcall
  print rawequal rawget rawlen rawset require select setmetatable tonumber tostring type warn xpcall]])
  :gmatch "%a+" do
  standard[name] = true
end

local libraries = {}
for name in ("_G coroutine debug io math os package string table utf8"):gmatch "[%w_]+" do
  libraries[name] = true
end

local function is_c(fn) return debug.getinfo(fn, "S").what == "C" end

local function before(a, b) return #a < #b or #a == #b and a < b end

-- Modules by what `require` answers for them.
local function modules()
  local names = {}
  for name, value in next, package.loaded do
    local kind = type(value)
    if type(name) == "string" and (kind == "table" or kind == "function" or kind == "userdata")
      and (not names[value] or before(name, names[value])) then
      names[value] = name
    end
  end
  return names
end

-- What a handle or another object of ours is called; nil for all else.
local function kind_of(value)
  local meta = debug.getmetatable(value)
  local name = meta and rawget(meta, "__name")
  return type(name) == "string" and name or nil
end

-- Whether this name is the one to call a value by.
local function better(module, key, than)
  if not than or module == than[1] then
    return not than or before(key, than[2])
  end
  return module == "_G" or than[1] ~= "_G" and before(module, than[1])
end

-- What programs have added to the standard libraries is not there.
local function fits(name, key, value)
  local kind = type(value)
  if kind == "function" then
    return not libraries[name] or is_c(value) and (name ~= "_G" or standard[key])
  end
  return kind == "table" and name ~= "_G" or kind == "userdata" and kind_of(value) == "FILE*"
end

-- Their direct fields, as { module, field }; of all of them, or where one is found.
local function fields(named, one)
  local found = {}
  local ours = type(one) == "function" and not is_c(one)
  for module, name in next, named do
    if type(module) == "table" and not (ours and libraries[name]) then
      for key, value in next, module do
        if (one == nil or rawequal(value, one)) and type(key) == "string" and not named[value]
          and fits(name, key, value) and better(name, key, found[value]) then
          found[value] = { name, key }
        end
      end
    end
  end
  return found
end

-- ---- where something was found, for complaints

-- Instead of a key: what was found is itself a key, or the metatable.
local KEY <const>, META <const> = {}, {}

local function place_of(fn)
  local info = debug.getinfo(fn, "S")
  return ("the function at %s:%d"):format(info.short_src, info.linedefined)
end

local function step(key)
  if key == KEY or key == META then
    return key == KEY and "[a key]" or "'s metatable"
  elseif type(key) == "string" then
    return key:find "^[%a_][%w_]*$" and "." .. key or ("[%q]"):format(key)
  elseif type(key) == "number" or type(key) == "boolean" then
    return ("[%s]"):format(key)
  end
  return ("[a %s]"):format(type(key))
end

-- The way to what stands at `edge` of node i: "upvalue 'x'.jobs[3] of the
-- function at x.lua:12", and so on for that function.
local function path(g, i, edge)
  local steps = {}
  while g.shapes[i] == TABLE do
    table.insert(steps, 1, step(edge))
    i, edge = g.from[i], g.edges[i]
  end
  if g.shapes[i] == LIST then
    return g.labels[edge] .. table.concat(steps)
  end
  local fn, up = g.objects[i].fn, g.objects[i].up
  local text = ("upvalue '%s'%s of %s"):format((debug.getupvalue(fn, up)), table.concat(steps), place_of(fn))
  i, edge = g.from[g.from[i]], g.edges[g.from[i]]
  if g.shapes[i] == LIST and g.labels[edge] == "" then
    return text
  end
  return ("%s, which is %s"):format(text, path(g, i, edge))
end

-- What is raised of a value that cannot travel: `text` says why.
local Refusal = {}

local function complain(text) error(setmetatable({ text = text }, Refusal), 0) end

function graph.is_refusal(problem) return debug.getmetatable(problem) == Refusal end

local function refuse(g, i, edge, what)
  local where = path(g, i, edge)
  complain(where == "" and what or where .. ": " .. what)
end

local function article(name) return (name:find "^[aeio]" and "an " or "a ") .. name end

-- ---- taking apart

-- A node for the object, unless there is one: what stands for it in others.
local function node_for(g, object, shape, i, edge)
  local n = g.seen[object]
  if not n then
    n = #g.objects + 1
    g.seen[object], g.objects[n], g.shapes[n], g.from[n], g.edges[n] = n, object, shape, i, edge
  end
  return { n }
end

local FEW <const> = 4 -- searches that cost less than a list of all names

-- Whether `require` finds the module on the other side: what was preloaded, or put
-- into package.loaded by hand, is only here.
local function is_found(name)
  local root = name:match "^[^.]*"
  return libraries[name] or root == "ipc" or package.searchpath(name, package.path)
    or package.searchpath(name, package.cpath) or package.searchpath(root, package.cpath)
end

-- The name that both sides know it by, or nil.
local function name_of(g, value)
  g.modules = g.modules or modules()
  local name
  if g.modules[value] then
    name = { g.modules[value] }
  elseif g.asked < FEW then
    g.asked = g.asked + 1
    name = fields(g.modules, value)[value]
  else
    g.fields = g.fields or fields(g.modules)
    name = g.fields[value]
  end
  if name and g.found[name[1]] == nil then
    g.found[name[1]] = is_found(name[1]) and true or false
  end
  return name and g.found[name[1]] and name or nil
end

local function userdata(g, value, i, edge)
  local kind = kind_of(value)
  if kind == "ipc.ext" or kind == "ipc.view" then
    return value -- as the core packs it
  elseif travels[kind] then
    return node_for(g, value, HANDLE, i, edge)
  elseif kind == "ipc.duplex" then
    return node_for(g, value, DUPLEX, i, edge)
  elseif kind == "ipc.struct" then
    return node_for(g, value, STRUCT, i, edge)
  elseif name_of(g, value) then
    return node_for(g, value, NAMED, i, edge)
  end
  refuse(g, i, edge, kind == "FILE*" and "an open file cannot travel"
    or article(kind or "userdata") .. " cannot travel")
end

-- What stands for a value in a node: itself, or a list of the number of its own
-- node, 0 for nil. It is at `edge` of node i.
local function element(g, value, i, edge)
  local kind = type(value)
  if kind == "string" or kind == "number" or kind == "boolean" then
    return value
  elseif kind == "nil" then
    return { 0 }
  elseif value == ipc.null then
    return node_for(g, value, NULL, i, edge)
  elseif kind == "table" then
    return node_for(g, value, name_of(g, value) and NAMED or TABLE, i, edge)
  elseif kind == "function" then
    if name_of(g, value) then
      return node_for(g, value, NAMED, i, edge)
    elseif is_c(value) then
      refuse(g, i, edge, "a C function that is in no loaded module cannot travel")
    end
    return node_for(g, value, FUNCTION, i, edge)
  elseif kind == "userdata" and debug.getmetatable(value) then
    return userdata(g, value, i, edge)
  end
  refuse(g, i, edge, kind == "thread" and "a coroutine cannot travel" or "a userdata cannot travel")
end

local take = {}

take[TABLE] = function(g, t, i)
  local node, n = { TABLE, 0, 0 }, 3
  local meta = debug.getmetatable(t)
  if marks[meta] then
    node[2] = marks[meta]
  elseif meta then
    if rawget(meta, "__metatable") == "ipc" then
      refuse(g, g.from[i], g.edges[i], article(kind_of(t) or "handle") .. " of this kind cannot travel")
    elseif rawget(meta, core.rpc.mark) then
      local what = article(kind_of(t) or "table")
      refuse(g, g.from[i], g.edges[i], what .. " cannot travel: only calls of ipc.rpc know it")
    elseif rawget(meta, "__gc") ~= nil then
      refuse(g, g.from[i], g.edges[i], "a table with a finaliser (__gc) cannot travel")
    end
    node[2] = element(g, meta, i, META)[1]
  end
  local length = rawlen(t)
  for k = 1, length do
    node[n + k] = element(g, rawget(t, k), i, k)
  end
  node[3], n = length, n + length
  for k, v in next, t do
    if math.type(k) ~= "integer" or k < 1 or k > length then
      node[n + 1], node[n + 2] = element(g, k, i, KEY), element(g, v, i, k)
      n = n + 2
    end
  end
  return node
end

-- What the function to be run assigns nobody here would see. In others it is
-- state of their own, as the fields of a table are.
local function check_assigned(fn, dump)
  for up in next, assigned(dump) do
    complain(("upvalue '%s' of %s is assigned there, which would change nothing here: send it, or return it")
      :format((debug.getupvalue(fn, up)), place_of(fn)))
  end
end

take[FUNCTION] = function(g, fn, i)
  local dump = string.dump(fn)
  local node, up = { FUNCTION, dump }, 1
  if g.shapes[g.from[i]] == LIST and g.labels[g.edges[i]] == "" then
    check_assigned(fn, dump)
  end
  while true do
    local name = debug.getupvalue(fn, up)
    if not name then
      return node
    end
    local id = debug.upvalueid(fn, up)
    g.cells[id] = g.cells[id] or { fn = fn, up = up }
    node[up + 2] = node_for(g, g.cells[id], CELL, i, nil)[1]
    up = up + 1
  end
end

-- Globals are the other side's own. An _ENV that falls back on nothing is a table
-- like any other.
take[CELL] = function(g, cell, i)
  local name, value = debug.getupvalue(cell.fn, cell.up)
  if name == "_ENV" and type(value) == "table" and debug.getmetatable(value) then
    value = _G
  end
  return { CELL, element(g, value, i, nil) }
end

take[NAMED] = function(g, value)
  local name = name_of(g, value)
  return { NAMED, name[1], name[2] }
end

take[HANDLE] = function(g, handle, i)
  local ok, why = pcall(handle.events, handle)
  if not ok then -- it has moved
    refuse(g, g.from[i], g.edges[i], why)
  elseif tostring(handle):find " %(closed%)$" then
    refuse(g, g.from[i], g.edges[i], "it is closed")
  end
  g.handles[#g.handles + 1] = handle
  return { HANDLE, #g.handles, core.spawn.patience(handle) }
end

-- Of its two parts, which are its user values.
take[DUPLEX] = function(g, handle, i)
  return {
    DUPLEX, element(g, debug.getuservalue(handle, 2), g.from[i], g.edges[i])[1],
    element(g, debug.getuservalue(handle, 3), g.from[i], g.edges[i])[1],
    core.spawn.patience(handle),
  }
end

take[STRUCT] = function(g, struct, i)
  local all = struct:fields()
  local node = { STRUCT, all.packed or false, all.align or false, all.endian or false, all.versioned or false }
  for _, field in ipairs(all) do
    local n = #node
    node[n + 1], node[n + 2] = field.name, element(g, field.type, g.from[i], g.edges[i])
    node[n + 3] = field.count or 0
  end
  return node
end

take[NULL] = function() return { NULL } end

-- Takes `n` values apart: the nodes, to be packed, and the handles, in the order
-- that the nodes name them. Raises what cannot travel, naming the way to it;
-- `labels` say what to call each value, "" the function that is run.
function graph.take(values, n, labels)
  local g = {
    labels = labels, objects = { false }, shapes = { LIST }, from = {}, edges = {}, seen = {}, cells = {},
    handles = {}, asked = 0, found = {},
  }
  local root, nodes = { LIST }, {}
  for k = 1, n do
    root[k + 1] = element(g, values[k], 1, k)
  end
  nodes[1] = root
  local i = 2
  while g.objects[i] ~= nil do
    nodes[i] = take[g.shapes[i]](g, g.objects[i], i)
    i = i + 1
  end
  return nodes, g.handles
end

return graph
