-- Errors of calls: objects with `message`, `errno`, `code`, and of the other side's
-- `traceback` and `data`; and what of them goes over the wire.
local core = require "ipc.core"
local tasks = require "ipc.loop.tasks"

local E = core.flat.errno

local errors = {}

local TEXT <const> = 8192 -- bytes of a message or traceback that travel, at most

local Error = { __name = "ipc.rpc.error" }
Error.__index = Error

function Error:__tostring()
  return self.message
end

-- A task that is ended by an error whose raw errno is ECANCELED was cancelled itself:
-- what was cancelled elsewhere has it in its metatable.
local Cancelled = { __name = "ipc.rpc.error", __tostring = Error.__tostring, errno = E.ECANCELED }
Cancelled.__index = Cancelled

-- An error object of what has happened here, or there.
function errors.new(message, errno, code)
  if errno == E.ECANCELED then
    return setmetatable({ message = message, code = code }, Cancelled)
  end
  return setmetatable({ message = message, errno = errno or 0, code = code }, Error)
end

function errors.is(value)
  local meta = type(value) == "table" and getmetatable(value)
  return meta == Error or meta == Cancelled
end

-- What the encoder raises of results, as an error that is not their function's.
function errors.unfit(value)
  if type(value) == "string" and value:find("^result ") then
    return errors.new(value, E.EINVAL)
  end
  return value
end

local function text_of(value)
  if type(value) == "string" then
    return value
  end
  local message = type(value) == "table" and rawget(value, "message")
  return type(message) == "string" and message or tasks.text(value)
end

-- What a response's error is: [code, text], [code, text, { errno, traceback, data }], a
-- string, or anything that a stranger thinks is one: what stands for an object of the other
-- side is not asked for anything.
function errors.received(value)
  if errors.is(value) then
    return value
  elseif type(value) ~= "table" then
    return errors.new(text_of(value), 0)
  end
  local code, text, more = rawget(value, 1), rawget(value, 2), rawget(value, 3)
  if type(text) ~= "string" then
    local object = errors.new(text_of(value), 0)
    object.data = value
    return object
  end
  more = type(more) == "table" and more or {}
  local errno, traceback = rawget(more, "errno"), rawget(more, "traceback")
  errno = math.type(errno) == "integer" and errno or 0
  if code == 1 and errno == 0 and text:find("^no method: ") then
    errno = E.ENOSYS
  end
  local object = errors.new(text, errno, math.type(code) == "integer" and code or 0)
  object.traceback = type(traceback) == "string" and traceback or nil
  object.data = rawget(more, "data")
  return object
end

-- The text, not longer than what travels, and not cut within a character.
local function cut(text)
  if not text or #text <= TEXT then
    return text
  end
  local at = TEXT + 1
  while at > TEXT - 3 and text:byte(at) & 0xC0 == 0x80 do
    at = at - 1
  end
  return text:sub(1, at - 1)
end

-- What a function here has raised, as what is sent of it.
-- `ours`: the peer knows tables behind the text; `how` is "array" or "string".
function errors.sent(value, trace, ours, how)
  local message, errno = tasks.explain(value)
  local object = type(value) == "table" and value or nil
  local data, text = object and rawget(object, "data"), object and rawget(object, "message")
  if type(text) == "string" then
    message = text
  elseif object and getmetatable(object) == nil and text == nil then
    message = "error object is a table"
    data = data == nil and object or data
  end
  message = message:gsub("^[^:\n]*ipc/rpc/%w+%.lua:%d+: ", "")
  local code = object and math.type(rawget(object, "code")) == "integer" and object.code or 0
  if errno == E.ECANCELED and tasks.is_cancelled(value) then
    message = "cancelled"
  end
  message, trace = cut(message), cut(trace)
  if how == "string" then
    return trace and message .. "\n" .. trace or message
  elseif not ours then
    return { code == 1 and 1 or 0, trace and message .. "\n" .. trace or message }
  end
  if errno == 0 and not trace and data == nil then
    return { code, message }
  end
  return { code, message, { errno = errno ~= 0 and errno or nil, traceback = trace, data = data } }
end

-- Where the library's own code is: what goes before "rpc/errors.lua".
local home = debug.getinfo(1, "S").source:match "^(.*)rpc/errors%.lua$"

-- A text with the place in the user's code that called the library, as error() would give
-- it: how deep calls are inside of the library is nobody's business.
function errors.blame(text)
  local level = 2
  local info = debug.getinfo(level, "Sl")
  while info do
    if info.currentline > 0 and (not home or info.source:sub(1, #home) ~= home) then
      return ("%s:%d: %s"):format(info.short_src, info.currentline, text)
    end
    level = level + 1
    info = debug.getinfo(level, "Sl")
  end
  return text
end

return errors
