-- Puts together what lua/ipc/graph.lua took apart, in another process.
local core = require "ipc.core"

local ipc = core.flat

-- What a node begins with; graph.lua knows the same numbers.
local TABLE <const>, FUNCTION <const>, CELL <const>, NAMED <const> = 1, 2, 3, 4
local HANDLE <const>, DUPLEX <const>, STRUCT <const> = 5, 6, 7
local NULL <const> = 9

local make = {}

make[TABLE] = function() return {} end

make[FUNCTION] = function(_, node) return assert(load(node[2], "=?", "b")) end

make[NAMED] = function(_, node)
  local module, field = require(node[2]), node[3]
  if field == nil then
    return module
  end
  local value = module[field]
  if value == nil then
    error(("module '%s' has no '%s' here"):format(node[2], field), 0)
  end
  return value
end

local function patient(handle, seconds)
  if seconds then
    handle:settimeout(seconds)
  end
  return handle
end

make[HANDLE] = function(all, node) return patient(all.handles[node[2]], node[3]) end

make[DUPLEX] = function(all, node)
  return patient((core.pipe.duplex or ipc.duplex)(all[node[2]], all[node[3]]), node[4])
end

make[STRUCT] = function(all, node)
  local fields = {
    packed = node[2] or nil, align = node[3] or nil, endian = node[4] or nil, versioned = node[5] or nil,
  }
  for i = 6, #node, 3 do
    local kind, count = node[i + 1], node[i + 2]
    if type(kind) == "table" then
      kind = all[kind[1]]
    end
    fields[#fields + 1] = { node[i], kind, count > 0 and count or nil }
  end
  return ipc.struct(fields)
end

make[NULL] = function() return ipc.null end

local function value_of(all, element)
  if type(element) == "table" then
    return element[1] > 0 and all[element[1]] or nil
  end
  return element
end

local function fill(all, t, node)
  local length = node[3]
  for i = 1, length do
    t[i] = value_of(all, node[3 + i])
  end
  for i = 4 + length, #node, 2 do
    t[value_of(all, node[i])] = value_of(all, node[i + 1])
  end
end

-- An upvalue that several functions share is one variable again.
local function join(all, nodes, cells, fn, node)
  for up = 1, #node - 2 do
    local cell = node[up + 2]
    local first = cells[cell]
    if first then
      debug.upvaluejoin(fn, up, first[1], first[2])
    else
      cells[cell] = { fn, up }
      debug.setupvalue(fn, up, value_of(all, nodes[cell][2]))
    end
  end
end

local function mark(all, t, node)
  local meta = node[2]
  if meta == -1 then
    ipc.array(t)
  elseif meta == -2 then
    ipc.map(t)
  elseif meta ~= 0 then
    debug.setmetatable(t, all[meta])
  end
end

-- The values again, as a list with its length in `n`.
return function(nodes, handles)
  local all = setmetatable({ handles = handles }, {
    __index = function(all, i) -- one that others are made of comes first
      local node = nodes[i]
      local object = node and make[node[1]](all, node)
      all[i] = object
      return object
    end,
  })
  local cells = {}
  for i = 2, #nodes do
    if nodes[i][1] ~= CELL then
      local _ = all[i]
    end
  end
  for i = 2, #nodes do
    local node = nodes[i]
    if node[1] == TABLE then
      fill(all, all[i], node)
    elseif node[1] == FUNCTION then
      join(all, nodes, cells, all[i], node)
    end
  end
  for i = 2, #nodes do
    if nodes[i][1] == TABLE then
      mark(all, all[i], nodes[i])
    end
  end
  local values = { n = #nodes[1] - 1 }
  for i = 1, values.n do
    values[i] = value_of(all, nodes[1][i + 1])
  end
  return values
end
