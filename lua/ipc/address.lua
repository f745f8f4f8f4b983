--- Addresses: `scheme:rest[?option=value&...]` with %-escapes. What a scheme
-- means is said by the room that lists it.
-- @module ipc.address
local core = require "ipc.core"

local address = {}

-- What a scheme can do, from every room that lists it.
local room_of = {}
for _, room in pairs(core) do
  for _, scheme in ipairs(room.schemes or {}) do
    local slots = room_of[scheme] or {}
    for _, name in ipairs { "pair", "open", "listen", "connect" } do
      slots[name] = slots[name] or room[name]
    end
    room_of[scheme] = slots
  end
end

local function unescape(text)
  return (text:gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

-- Options whose value is text, even if it looks like something else.
local textual = { permissions = true, bind = true, type = true, unit = true }

-- Text to what an option table would hold: true, false, a number, or itself.
-- What begins with a zero more than a number does is no number.
local function value_of(name, text)
  if textual[name] or text:find "^[+-]?0%d" then
    return text
  end
  if text == "true" then
    return true
  elseif text == "false" then
    return false
  end
  return math.tointeger(tonumber(text)) or tonumber(text) or text
end

--- Takes an address apart.
-- @string text
-- @treturn ?string scheme, nil if it is no address
-- @treturn string rest, unescaped; empty if there is none
-- @treturn table options
function address.parse(text)
  local body, query = text:match("^([^?]*)%??(.*)$")
  local scheme, rest = body:match("^([%w]+):?(.*)$")
  if not scheme then
    return nil
  end
  local options = {}
  for name, value in query:gmatch("([^&=]+)=?([^&]*)") do
    name = unescape(name)
    options[name] = value == "" and true or value_of(name, unescape(value))
  end
  return scheme, unescape(rest), options
end

-- The room that an address names; raises when none does. `place` is the
-- argument that the options are.
local function resolve(text, options, call, place)
  if type(text) ~= "string" then
    error(("bad argument #1 to '%s' (string expected, got %s)"):format(call, type(text)), 4)
  end
  local scheme, rest, found = address.parse(text)
  if not scheme then
    error(("bad argument #1 to '%s' (not an address: %q)"):format(call, text), 4)
  end
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
    error(("bad argument #%d to '%s' (table expected, got %s)"):format(place, call, type(options)), 4)
  end
  for name, value in pairs(options or {}) do
    found[name] = value
  end
  return room, rest, found, scheme
end

local function blamed(call, ok, ...)
  if not ok then
    local message = ...
    if type(message) == "string" then
      message = message:gsub("^(bad argument #%d+ to )'.-'", ("%%1'%s'"):format(call))
    end
    error(message, 4)
  end
  return ...
end

-- Calls into the core so that its complaints blame our caller's caller. Nothing
-- is allocated afterwards: what has been opened could be lost by that.
local function blame(call, fn, ...) return blamed(call, pcall(fn, ...)) end

-- Mechanisms without listeners of their own meet in a lobby, or are handed over.
for scheme, module in pairs {
  fifo = "ipc.rendezvous", sysv = "ipc.rendezvous", mqueue = "ipc.rendezvous", shm = "ipc.handover",
} do
  for _, name in ipairs { "listen", "connect" } do
    if room_of[scheme] then
      room_of[scheme][name] = function(...)
        return require(module)[name](...)
      end
    end
  end
end

-- The scheme's own function, or a complaint that it has none.
local function slot(room, name, call, text, why)
  return room[name] or error(("bad argument #1 to '%s' (%q: %s)"):format(call, text, why), 4)
end

function address.open(text, mode, options)
  local room, rest, found, scheme = resolve(text, options, "open", 3)
  local open = slot(room, "open", "open", text, "nothing to open by name: ipc.pair makes two ends")
  local channel, message, errno = blame("open", open, rest, mode, found, scheme)
  if errno then
    return channel, message, errno
  end
  return channel
end

function address.listen(text, options)
  local room, rest, found, scheme = resolve(text, options, "listen", 2)
  local listen = slot(room, "listen", "listen", text, "has no listeners")
  local listener, message, errno = blame("listen", listen, rest, found, scheme)
  if errno then
    return listener, message, errno
  end
  return listener
end

function address.connect(text, options)
  local room, rest, found, scheme = resolve(text, options, "connect", 2)
  local connect = slot(room, "connect", "connect", text, "nothing to connect to")
  local channel, message, errno = blame("connect", connect, rest, found, scheme)
  if errno then
    return channel, message, errno
  end
  return channel
end

function address.pair(text, options)
  local room, rest, found = resolve(text, options, "pair", 2)
  slot(room, "pair", "pair", text, "has no pairs")
  if rest ~= "" then
    error(("bad argument #1 to 'pair' (%q names something; a pair has no name)"):format(text), 3)
  end
  local one, other, errno = blame("pair", room.pair, text, found)
  if errno then
    return one, other, errno
  end
  return one, other
end

-- Of two handles, by the core's `duplex`.
function address.duplex(duplex, reader, writer, options)
  if options ~= nil then
    error("bad argument #3 to 'duplex' (options are for addresses)", 3)
  end
  return (blame("duplex", duplex, reader, writer))
end

return address
