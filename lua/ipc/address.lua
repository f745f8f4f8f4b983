--- Addresses: `scheme:rest[?option=value&...]` with %-escapes. What a scheme
-- means is said by the room that lists it.
-- @module ipc.address
local core = require "ipc.core"

local address = {}

local room_of = {}
for _, room in pairs(core) do
  for _, scheme in ipairs(room.schemes or {}) do
    room_of[scheme] = room
  end
end

local function unescape(text)
  return (text:gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

-- Text to what an option table would hold: true, false, a number, or itself.
local function value_of(text)
  if text == "true" then
    return true
  elseif text == "false" then
    return false
  end
  return math.tointeger(tonumber(text)) or tonumber(text) or text
end

--- Takes an address apart.
-- @string text
-- @treturn string scheme
-- @treturn string rest, unescaped; empty if there is none
-- @treturn table options
function address.parse(text)
  local body, query = text:match("^([^?]*)%??(.*)$")
  local scheme, rest = body:match("^([%w]+):?(.*)$")
  if not scheme then
    error(("not an address: %q"):format(text), 0)
  end
  local options = {}
  for name, value in query:gmatch("([^&=]+)=?([^&]*)") do
    options[unescape(name)] = value == "" and true or value_of(unescape(value))
  end
  return scheme, unescape(rest), options
end

-- The room that an address names; raises when none does.
local function resolve(text, options, call)
  if type(text) ~= "string" then
    error(("bad argument #1 to '%s' (string expected, got %s)"):format(call, type(text)), 4)
  end
  local scheme, rest, found = address.parse(text)
  local room = room_of[scheme]
  if not room then
    local known = {}
    for name in pairs(room_of) do
      known[#known + 1] = name
    end
    table.sort(known)
    error(("no mechanism is called %q; there are %s"):format(scheme, table.concat(known, ", ")), 4)
  end
  if options ~= nil and type(options) ~= "table" then
    error(("bad argument #2 to '%s' (table expected, got %s)"):format(call, type(options)), 4)
  end
  for name, value in pairs(options or {}) do
    found[name] = value
  end
  return room, rest, found
end

function address.pair(text, options)
  local room, rest, found = resolve(text, options, "pair")
  if rest ~= "" then
    error(("bad argument #1 to 'pair' (%q names something; a pair has no name)"):format(text), 3)
  end
  return room.pair(text, found)
end

return address
