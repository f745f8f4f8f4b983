-- The options of sessions and servers: what is ours of a table, checked, with what
-- is not there; the rest is the mechanism's.
local options = {}

-- Each answers whether a value is right, what is wanted, and the type of which one that
-- is wrong is told itself.

local function positive(value)
  return math.type(value) ~= nil and value == value and value >= 0, "seconds", "number"
end

local function more(value)
  return math.type(value) ~= nil and value == value and value > 0, "seconds, more than 0,", "number"
end

local function whole(value)
  return math.type(value) == "integer" and value >= 1 or value == math.huge, "a whole number from 1", "number"
end

-- What the wire can be told at most; math.huge is that.
local most = {
  maxsize = 1 << 40, depth = 1000, params = 100000, values = (1 << 31) - 1, tables = (1 << 31) - 1,
  keys = (1 << 31) - 1, method = (1 << 31) - 1,
}

-- The least that takes what the library itself says.
local least = { maxsize = 512, depth = 4, values = 64, tables = 8, params = 2 }

local function up_to(name)
  local from, to = least[name] or 1, most[name]
  return function(value)
    return value == math.huge or math.type(value) == "integer" and value >= from and value <= to,
      ("a whole number from %d to %d"):format(from, to), "number"
  end
end

local function is(kind)
  return function(value)
    return type(value) == kind, kind
  end
end

local function one_of(...)
  local names = { ... }
  return function(value)
    for _, name in ipairs(names) do
      if value == name then
        return true
      end
    end
    return false, '"' .. table.concat(names, '" or "') .. '"', "string"
  end
end

local function texts(value)
  if type(value) ~= "table" then
    return false, "table"
  end
  for name, text in next, value do
    if type(name) ~= "string" or type(text) ~= "string" then
      return false, "table of texts by name"
    end
  end
  return true
end

local function key(value)
  return type(value) == "string" and #value > 0, "a string that is not empty", "string"
end

local function again(value)
  return type(value) == "boolean" or positive(value), "true or seconds", "number"
end

local function repeatable(value)
  return value == true or type(value) == "table", "true or a list of names"
end

-- name -> what it must be, and where it is an option: "serve", "connect", nil: both.
local known = {
  name = { is "string" }, docs = { texts }, timeout = { positive }, calls = { whole }, params = { up_to "params" },
  method = { up_to "method" }, nested = { whole }, unsent = { whole }, first = { more }, stall = { more },
  references = { whole }, maxsize = { up_to "maxsize" }, depth = { up_to "depth" }, values = { up_to "values" },
  tables = { up_to "tables" }, keys = { up_to "keys" }, errors = { one_of("array", "string") },
  traceback = { is "boolean" }, authkey = { key }, allow = { is "function" },
  peer = { one_of("ours", "plain", "nvim") }, nvim = { is "boolean" },
  on_open = { is "function" }, on_close = { is "function" }, on_error = { is "function" },
  exports = { is "table", "connect" }, reconnect = { again, "connect" }, idempotent = { repeatable, "connect" },
  limit = { whole, "serve" }, grace = { positive }, process = { is "boolean", "serve" },
  workers = { whole, "serve" },
}

local default = {
  timeout = 30, limit = 256, calls = 1000, params = 250, method = 100, nested = 16, unsent = 16 << 20, first = 10,
  stall = 30, references = 10000, maxsize = 16 << 20, depth = 64, values = 1000000, tables = 100000, keys = 1024,
  errors = "array", peer = "ours", grace = 5,
}

-- Errors here have no place: who is called says where.

-- What somebody has given instead of what was wanted; a value itself, if it is a number
-- or a text of type `kind`.
function options.got(value, kind)
  if type(value) == kind then
    return kind == "string" and ("%q"):format(value:sub(1, 40)) or tostring(value)
  elseif value == nil then
    return "no value"
  end
  local name = type(value) == "userdata" and (debug.getmetatable(value) or {}).__name
  return type(name) == "string" and name or type(value)
end

-- Ours, and the rest. `call` is "serve" or "connect"; `place` the argument's.
function options.split(given, call, place)
  if given ~= nil and type(given) ~= "table" then
    error(("bad argument #%d to '%s' (table expected, got %s)"):format(place, call, type(given)), 0)
  end
  local own, rest = {}, {}
  for name, value in next, given or {} do
    local entry = known[name]
    if entry and (entry[2] == nil or entry[2] == call) then
      local ok, wanted, kind = entry[1](value)
      if not ok then
        error(("bad argument #%d to '%s' (%s: %s expected, got %s)"):format(place, call, name, wanted,
          options.got(value, kind)), 0)
      end
      own[name] = value
    else
      rest[name] = value
    end
  end
  own.given = given
  for name, value in pairs(default) do
    if own[name] == nil then
      own[name] = value
    end
  end
  return own, rest
end

-- Of the rest of options where nothing takes it.
function options.none(rest, call, place)
  local name = next(rest)
  if name ~= nil then
    error(("bad argument #%d to '%s' (unknown option '%s')"):format(place, call, tostring(name)), 0)
  end
end

-- What a mechanism says of the rest, as our own complaint.
function options.blamed(call, place, ok, ...)
  if not ok then
    local message = ...
    if type(message) == "string" then
      message = message:gsub("^bad argument #2 to '.-'", ("bad argument #%d to '%s'"):format(place, call))
        :gsub("^(bad argument #%d+ to )'.-'", ("%%1'%s'"):format(call))
    end
    error(message, 0)
  end
  return ...
end

-- Limits for the wire.
function options.limits(own)
  local limits = {}
  for name, largest in pairs(most) do
    limits[name] = own[name] == math.huge and largest or own[name]
  end
  limits.bytes, limits.maxsize = limits.maxsize, nil
  return limits
end

return options
