-- What the other side asks of references: calls of functions and methods, properties,
-- values of streams, and to keep no longer what it does not hold; and what a session
-- lets be called, with its documentation.
local core = require "ipc.core"
local ipc = core.flat
local errors = require "ipc.rpc.errors"
local object = require "ipc.rpc.object"
local refs = require "ipc.rpc.refs"
local remote = require "ipc.rpc.remote"
local stream = require "ipc.rpc.stream"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local FUNCTION <const>, OBJECT <const>, STREAM <const> = 0, 1, 2 -- kinds of references

local builtins = refs.builtins

local function refuse(text, errno)
  local problem = errors.new(text, errno or E.EINVAL, 1)
  problem.quiet = true
  error(problem, 0)
end

-- What the other side holds of ours, by the value that its reference became.
local function held(session, ref, kind)
  local entry = ref ~= nil and session.refs.ids[ref]
  if not entry then
    refuse("no reference of this side", E.ESTALE)
  elseif kind and entry.kind ~= kind then
    refuse(("reference %d is of another kind"):format(entry.id))
  end
  return entry
end

-- The entry that is the first result of another call; nil: that runs, and what this frame
-- is of goes on when it has ended. Of a notification nobody is told that the other has failed.
local function promised(session, frame, promise)
  local self, id, other = session.refs, promise.id, promise.other
  local entry
  if other then
    if not other.ok and frame.id then
      local problem = other.first
      error(tasks.is_cancelled(problem) and errors.new("cancelled", E.ECANCELED) or problem, 0)
    end
    entry = other.ok and other.first ~= nil and self.ids[other.first]
  else
    other = session.serving[id]
    if other and other ~= frame then
      promise.other, frame.waited = other, other
      other.after = other.after or {}
      table.insert(other.after, frame)
      return nil
    end
    entry = self.exports[self.answers[id]]
  end
  if not entry then
    refuse("no such call, or no reference is its first result: " .. id, E.ESTALE)
  end
  return entry
end

local function invoke(entry, name, ...)
  local value = entry.value
  if entry.kind == FUNCTION then
    if name ~= nil then
      refuse("a function has no methods: " .. tasks.text(name):sub(1, 100), E.ENOSYS)
    end
    return value(...)
  elseif entry.kind ~= OBJECT or type(name) ~= "string" then
    refuse(("reference %d cannot be called so"):format(entry.id))
  elseif object.is(value) then
    return object.invoke(value, name, ...)
  end
  return remote.part(value).refs.session.face:demand(value, name, ...)
end

builtins["$invoke"] = function(session, frame, ref, name, ...)
  local promise = refs.promise(ref)
  if not promise then
    return invoke(held(session, ref), name, ...)
  end
  local entry = promised(session, frame, promise)
  if not entry then
    return refs.LATER
  end
  return invoke(entry, name, ...)
end

local function object_of(session, ref, name)
  local value = held(session, ref, OBJECT).value
  if type(name) ~= "string" then
    refuse "name expected"
  end
  return value
end

builtins["$get"] = function(session, _, ref, name)
  local value = object_of(session, ref, name)
  if object.is(value) then
    return object.get(value, name)
  end
  return value[name]
end

builtins["$set"] = function(session, _, ref, name, new)
  local value = object_of(session, ref, name)
  if object.is(value) then
    object.set(value, name, new)
  else
    value[name] = new
  end
end

builtins["$next"] = function(session, _, ref, n)
  local entry = held(session, ref, STREAM)
  if math.type(n) ~= "integer" or n < 1 then
    refuse "a whole number from 1 expected"
  end
  local left = session.face.deadline
  return stream.take(entry.stream, n, left and ipc.now() + left / 2, session.refs:room())
end

-- Nothing is given back unless all of it is right.
builtins["$release"] = function(session, _, list)
  local self = session.refs
  if type(list) ~= "table" then
    refuse "list of references expected"
  end
  local counts = {}
  for i = 1, rawlen(list) do
    local id, n = nil, nil
    if type(list[i]) == "table" then
      id, n = list[i][1], list[i][2]
    end
    local entry = math.type(id) == "integer" and self.exports[id]
    if not entry then
      refuse("no such reference: " .. tasks.text(id):sub(1, 100), E.ESTALE)
    elseif math.type(n) ~= "integer" or n < 1 or n > entry.sent - (counts[entry] or 0) then
      refuse(("reference %d was not sent so often"):format(id))
    end
    counts[entry] = (counts[entry] or 0) + n
  end
  for entry, n in next, counts do
    entry.sent = entry.sent - n
    if entry.sent == 0 then
      self:drop(entry)
    end
  end
end

-- ---- what there is

-- What an object has.
local function interface_of(session, ref)
  local entry = held(session, ref)
  if entry.kind ~= OBJECT then
    return { methods = {}, properties = {}, writable = {} }
  elseif object.is(entry.value) then
    local interface = object.interface(entry.value)
    return { methods = interface.methods, properties = interface.properties, writable = interface.writable }
  end
  return (remote.part(entry.value).refs.session.face:demand("$methods", entry.value))
end

local function doc_of(session, name)
  local docs = session.options.docs
  local text = type(docs) == "table" and rawget(docs, name)
  return type(text) == "string" and text or ""
end

-- Of the session, or of what a reference stands for.
builtins["$methods"] = function(session, _, ref)
  if ref ~= nil then
    return interface_of(session, ref)
  end
  local all = ipc.map {}
  for name in next, session.exports do
    all[name] = doc_of(session, name)
  end
  return all
end

local channels = 0 -- numbers of those who asked

-- What attach() of Neovim's clients asks first: a number, and what there is.
local function api_info(session)
  local names, functions = {}, {}
  for name in next, session.exports do
    names[#names + 1] = name
  end
  table.sort(names)
  for i, name in ipairs(names) do
    functions[i] = {
      name = name, parameters = ipc.array {}, return_type = "Object", method = false, since = 1,
      doc = doc_of(session, name),
    }
  end
  channels = channels + 1
  return channels, {
    version = { major = 0, minor = 7, patch = 2, api_level = 9, api_compatible = 0, api_prerelease = false },
    functions = ipc.array(functions),
    types = {
      Buffer = { id = 0, prefix = "nvim_buf_" }, Window = { id = 1, prefix = "nvim_win_" },
      Tabpage = { id = 2, prefix = "nvim_tabpage_" },
    },
    error_types = { Exception = { id = 0 }, Validation = { id = 1 } },
    ui_events = ipc.array {}, ui_options = ipc.array {},
  }
end

builtins["nvim_get_api_info"] = api_info
builtins["vim_get_api_info"] = api_info
