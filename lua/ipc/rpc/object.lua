--- Objects that travel by reference: the other side gets a stand-in, whose methods run
-- here. What is made here is used in the same way where it was made.
-- @module ipc.rpc
local core = require "ipc.core"
local errors = require "ipc.rpc.errors"

local E = core.flat.errno

local object = {}

-- Keys of an object's own fields: names belong to the user.
local STATE, CLASS = {}, {}

local Object = { __name = "ipc.rpc.object", [core.rpc.mark] = true }

-- A class: what can be called (`methods`), read (`readable`) and assigned (`writable`),
-- and its `interface`. Interfaces are told by their names alone: `id`, `methods`,
-- `properties` and `writable`, lists in order.
local classes = setmetatable({}, { __mode = "k" })    -- methods -> signature of options -> class
local interfaces = setmetatable({}, { __mode = "v" }) -- signature of all names -> interface
local last = 0

local function complain(index, text, level)
  error(("bad argument #%d to 'object' (%s)"):format(index, text), level + 1)
end

local function sorted(set)
  local list = {}
  for name in pairs(set) do
    list[#list + 1] = name
  end
  table.sort(list)
  return list
end

local function join(...)
  local parts = {}
  for i, list in ipairs { ... } do
    for _, name in ipairs(list) do
      parts[#parts + 1] = string.pack("Bs4", i, name)
    end
  end
  return table.concat(parts)
end

-- Interfaces of the same names are the same one, so that the other side asks once.
local function interface_of(class)
  local methods, properties, writable = sorted(class.methods), sorted(class.readable), sorted(class.writable)
  local signature = join(methods, properties, writable)
  local interface = interfaces[signature]
  if not interface then
    last = last + 1
    interface = { id = last, methods = methods, properties = properties, writable = writable }
    interfaces[signature] = interface
  end
  return interface
end

local function add_names(set, options, field, methods, level)
  local list = rawget(options, field)
  if list == nil then
    return
  elseif type(list) ~= "table" then
    complain(3, ("%s: list of names expected, got %s"):format(field, type(list)), level + 1)
  end
  for i = 1, rawlen(list) do
    local name = rawget(list, i)
    if type(name) ~= "string" then
      complain(3, ("%s[%d]: name expected, got %s"):format(field, i, type(name)), level + 1)
    elseif methods[name] then
      complain(3, ("%s: there is a method of that name: %s"):format(field, name), level + 1)
    end
    set[name] = true
  end
end

local function new_class(methods, options, level)
  local class = { methods = {}, readable = {}, writable = {} }
  for name, fn in next, methods do
    if type(name) ~= "string" then
      complain(2, ("the key %s is no string"):format(tostring(name)), level + 1)
    elseif type(fn) ~= "function" then
      complain(2, ("%s: function expected, got %s"):format(name, type(fn)), level + 1)
    end
    class.methods[name] = fn
  end
  if options then
    add_names(class.readable, options, "properties", class.methods, level + 1)
    add_names(class.readable, options, "writable", class.methods, level + 1)
    add_names(class.writable, options, "writable", class.methods, level + 1)
  end
  class.interface = interface_of(class)
  return class
end

local function names_of(options, field, level)
  local list = rawget(options, field)
  local parts = {}
  for key in next, type(list) == "table" and list or parts do
    if math.type(key) ~= "integer" or key < 1 or key > rawlen(list) then
      complain(3, ("%s: list of names expected, got the key %s"):format(field, tostring(key)), level + 1)
    end
  end
  for i = 1, type(list) == "table" and rawlen(list) or 0 do
    local name = rawget(list, i)
    parts[i] = type(name) == "string" and name or "" -- it raises later
  end
  return parts
end

-- A table of methods is read when it is first used.
local function class_of(methods, options, level)
  local known = classes[methods]
  local signature = ""
  if options then
    signature = join(names_of(options, "properties", level + 1), names_of(options, "writable", level + 1))
  end
  local class = known and known[signature]
  if not class then
    class = new_class(methods, options, level + 1)
    classes[methods] = known or {}
    classes[methods][signature] = class
  end
  return class
end

--- Makes an object that travels by reference: as an argument or a result of a call it
-- reaches the other side as a stand-in, whose methods run here, and comes home as the
-- object itself. Here it is used in the same way: `o:deposit(5)`, `o.balance`.
--
-- What the other side can reach is exactly what is named: `methods` is read once, when
-- it is first used, by rawget, and a property is read and assigned only if it is
-- listed. The object lives while the other side holds it, or the connection lasts.
-- @function object
-- @param state what the methods get first; anything
-- @tparam table methods name -> function(state, ...)
-- @tparam[opt] table options `properties`, a list of the names of fields of the state
-- that can be read as `o.name`; `writable`, of those that can be assigned, too. Other
-- keys in these raise
-- @return the object, to be passed or returned; the same state twice makes two
-- @usage
-- local Account = {
--   deposit = function(self, n) self.balance = self.balance + n return self.balance end,
-- }
-- local exports = { open = function()
--   return ipc.rpc.object({ balance = 0 }, Account, { properties = { "balance" } })
-- end }
function object.object(state, methods, options)
  if type(methods) ~= "table" then
    complain(2, "table of functions expected, got " .. type(methods), 2)
  elseif options ~= nil and type(options) ~= "table" then
    complain(3, "table expected, got " .. type(options), 2)
  end
  for name in next, options or {} do
    if name ~= "properties" and name ~= "writable" then
      complain(3, ("unknown option '%s'"):format(tostring(name)), 2)
    end
  end
  return setmetatable({ [STATE] = state, [CLASS] = class_of(methods, options, 2) }, Object)
end

-- Whether a value is one of those.
function object.is(value)
  return getmetatable(value) == Object
end

function object.interface(self)
  return rawget(self, CLASS).interface
end

local function no_such(what, name)
  return errors.new(("no %s: %s"):format(what, tostring(name)), E.ENOSYS, 1)
end

-- What "$invoke", "$get" and "$set" do.
function object.invoke(self, name, ...)
  local method = rawget(self, CLASS).methods[name]
  if not method then
    error(no_such("method", name), 0)
  end
  return method(rawget(self, STATE), ...)
end

function object.get(self, name)
  if not rawget(self, CLASS).readable[name] then
    error(no_such("property", name), 0)
  end
  return rawget(self, STATE)[name]
end

function object.set(self, name, value)
  if not rawget(self, CLASS).writable[name] then
    error(no_such("property that can be assigned", name), 0)
  end
  rawget(self, STATE)[name] = value
end

-- Used here: as stand-ins are.
local function bound(class, name)
  return function(self, ...)
    if getmetatable(self) ~= Object or rawget(self, CLASS) ~= class then
      error(("bad self of '%s' (the object expected: use a colon)"):format(name), 2)
    end
    return class.methods[name](rawget(self, STATE), ...)
  end
end

function Object:__index(name)
  local class = rawget(self, CLASS)
  if class.readable[name] then
    return rawget(self, STATE)[name]
  elseif class.methods[name] then
    class.bound = class.bound or {}
    class.bound[name] = class.bound[name] or bound(class, name)
    return class.bound[name]
  end
end

function Object:__newindex(name, value)
  if not rawget(self, CLASS).writable[name] then
    error(no_such("property that can be assigned", name), 2)
  end
  rawget(self, STATE)[name] = value
end

function Object:__tostring()
  return "ipc.rpc.object: " .. table.concat(object.interface(self).methods, ", ")
end

return object
