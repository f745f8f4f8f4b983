-- References of one session: what of ours the other side holds, and what of its own came
-- here. Numbers stand for them on the wire; none is used again, or in another session.
local core = require "ipc.core"
local ipc = core.flat
local errors = require "ipc.rpc.errors"
local Future = require "ipc.rpc.future".class
local link = require "ipc.rpc.link"
local object = require "ipc.rpc.object"
local remote = require "ipc.rpc.remote"
local stream = require "ipc.rpc.stream"
local tasks = require "ipc.loop.tasks"

local E = ipc.errno

local MINE <const>, YOURS <const>, PROMISE <const> = 0x40, 0x41, 0x42 -- extension types
local FUNCTION <const>, OBJECT <const>, STREAM <const> = 0, 1, 2      -- kinds
local LONGEST <const> = 32         -- bytes of a reference
local PAIRS <const> = 1000         -- in a "$release"
local UNSENT <const> = 1 << 20     -- bytes in the way of one
local INTERFACES <const> = 256     -- of the other side's that are remembered
local FEW <const> = 1000           -- stand-ins that are no reason to collect garbage
local REST <const> = 20            -- times as long as that took it is left alone
local TIMES <const> = 10           -- as many of theirs as of ours may be here
local MOST <const> = 10000         -- references of the other side's, where it does not say
local LIST <const> = 100000        -- values of a stream, where it goes as a list
local AROUND <const> = 64          -- bytes of an answer around the values of a stream
local LOOK <const> = 0.05          -- seconds between looks whether a list is still wanted

local refs = {
  builtins = {}, -- what the other side can call: name -> function(session, frame, ...)
  LATER = {},    -- what one of them answers that goes on when another call has ended
}

local Refs = { builtins = refs.builtins, LATER = refs.LATER }
Refs.__index = Refs

-- `exports`: id -> entry; `ids`: value -> entry. An entry: `id`, `kind`, `value`, `sent`:
-- how often it went out and was not given back. `fresh`: entries that were never sent.
-- `imports`: id -> stand-in; `held`: how many are alive; `mark`: of them that make it
-- look for garbage, though not before `rested` or `floor` of them. `gone`: id -> how often
-- what is not held any more had come; `due`: there is something to say. `trouble`: what is
-- wrong with references in the message read last. `listed`: bytes of the lists that are
-- being made of streams. `answers`: id of a call that was answered -> that of the reference
-- that was its result, of the last `slots`.
function refs.new(session)
  local weak = { __mode = "v" }
  return setmetatable({
    session = session, pass = session.wire.pass, known = session.wire:refs(), exports = {}, ids = {}, count = 0,
    fresh = {},
    imports = setmetatable({}, weak), held = 0, mark = FEW, floor = FEW, rested = 0, gone = {}, dropped = 0,
    due = false, interfaces = {}, remembered = 0,
    exts = setmetatable({}, weak), listed = 0, trouble = false, promises = setmetatable({}, { __mode = "k" }),
    answers = {}, slots = {}, slot = 0, closed = false,
  }, Refs)
end

local last = 0 -- id of all sessions of this state

-- ------------------------------------------------------------------ what goes out

-- What stands for a future as the target of a call; and what came as one.
local Promise = { __name = "ipc.rpc.promise", [core.rpc.mark] = true }

-- What came as one, with its `id`; nil: it did not.
function refs.promise(value)
  return getmetatable(value) == Promise and value or nil
end

local function payload(kind, ...)
  return string.char(kind) .. ipc.pack { ... }
end

-- The kind of a value that travels by reference, and an object's interface; nil: of none.
local function kind_of(value)
  if type(value) == "function" then
    return FUNCTION
  elseif object.is(value) then
    return OBJECT, object.interface(value).id
  elseif stream.is(value) then
    return STREAM
  end
  local part = remote.part(value)
  if part then
    return part.kind
  end
  local by_reference = rawget(getmetatable(value), "by_reference")
  return by_reference and by_reference(value) and FUNCTION or nil
end

-- Whether an encoder asks for a reference of it.
local function is_special(value)
  local kind = type(value)
  if kind == "table" or kind == "userdata" then
    local meta = getmetatable(value)
    return type(meta) == "table" and rawget(meta, core.rpc.mark) ~= nil
  end
  return kind == "function"
end

-- Calls `found` for every value of the kind, with its path, in arguments or results.
local function walk(found, path, value, seen)
  if is_special(value) then
    found(value, path)
  elseif type(value) == "table" and not seen[value] then
    seen[value] = true
    for key, field in next, value do
      local name = math.type(key) == "integer" and ("[%d]"):format(key) or "." .. tostring(key)
      walk(found, path .. name, field, seen)
    end
  end
end

local function walk_all(found, what, ...)
  local seen = {}
  for i = 1, select("#", ...) do
    walk(found, what .. " " .. i, (select(i, ...)), seen)
  end
end

local function describe(value)
  local kind = type(value) == "function" and "function" or getmetatable(value).__name
  return (kind:gsub("^ipc%.rpc%.", ""):gsub("_", " "))
end

local function one(value)
  local kind = describe(value)
  return (kind == "object" and "an " or "a ") .. kind
end

-- What was sent is held by the other side no longer.
function Refs:drop(entry)
  self.exports[entry.id], self.ids[entry.value] = nil, nil
  self.known[entry.value] = nil
  self.count = self.count - 1
  self.fresh[entry] = nil
  local producer = entry.stream
  if producer then
    producer.users = producer.users - 1
    if producer.users == 0 then
      stream.cancel(producer)
    end
  end
end

-- Those that were made known for a message that came to nothing.
local function stale(self)
  local entry = next(self.fresh)
  while entry do
    self:drop(entry)
    entry = next(self.fresh)
  end
end

-- What is said of a stand-in whose connection is closed.
local function outlived(self, value, part)
  local mine, its = self.session, part.refs.session
  if mine ~= its and mine.face == its.face then
    return errors.new(("the %s is of an earlier connection"):format(describe(value)), E.ESTALE)
  end
  return errors.new("closed", E.EPIPE)
end

local function refuse(self, problem)
  stale(self)
  error(errors.unfit(problem), 0)
end

-- Makes a value known to the encoder.
local function export(self, value, path)
  if self.known[value] then
    return
  end
  local kind, interface = kind_of(value)
  local part = remote.part(value)
  if not kind then
    refuse(self, ("%s: %s cannot be sent%s"):format(path, one(value),
      describe(value) == "future" and ": wait for it" or ""))
  elseif part and part.released then
    refuse(self, ("%s: the %s was released"):format(path, describe(value)))
  elseif part and part.refs.closed then
    refuse(self, outlived(self, value, part))
  elseif self.count >= self.session.references then
    refuse(self, errors.new(("more than %d references at once"):format(self.session.references), E.E2BIG))
  end
  last = last + 1
  local entry = { id = last, kind = kind, value = value, sent = 0 }
  self.exports[last], self.ids[value], self.count = entry, entry, self.count + 1
  self.fresh[entry] = true
  self.known[value] = payload(MINE, last, kind, interface)
  if kind == STREAM then
    entry.stream = part and stream.of(value) or value
    entry.stream.users = entry.stream.users + 1
  end
end

-- The same value with streams replaced by what is in `lists`; what has none is not copied.
local function replaced(value, lists, seen)
  if lists[value] then
    return lists[value]
  elseif type(value) ~= "table" or is_special(value) then
    return value
  elseif seen[value] == nil then
    seen[value] = value -- of one that has itself inside: the encoder complains
    local copy
    for key, field in next, value do
      local new = replaced(field, lists, seen)
      if new ~= field then
        copy = copy or {}
        copy[key] = new
      end
    end
    if copy then
      for key, field in next, value do
        if copy[key] == nil then
          copy[key] = field
        end
      end
      seen[value] = setmetatable(copy, getmetatable(value))
    end
  end
  return seen[value]
end

-- Bytes that the values of a stream may have in one message; a peer that does not say what it
-- takes is not sent more than is taken here.
function Refs:room()
  local session = self.session
  local theirs = session.theirs
  return math.min(session.channel:maxsize() or math.huge, theirs and theirs.bytes or session.options.maxsize) - AROUND
end

-- What the lists of one message take, which are made of streams: all that are being made
-- for one peer have as much room as one message has.
local Meter = {}
Meter.__index = Meter

function Meter:add(bytes)
  local refs_of = self.refs
  self.bytes, refs_of.listed = self.bytes + bytes, refs_of.listed + bytes
  if refs_of.listed > self.room then
    local text = ("streams for this peer have more than %d bytes at once"):format(self.room)
    error(errors.new(text, E.EMSGSIZE), 0)
  end
end

function Meter:__close()
  self.refs.listed = self.refs.listed - self.bytes
end

local function unwanted(text, errno)
  local problem = errors.new(text, errno)
  problem.quiet = true
  error(problem, 0)
end

-- Until when values may be waited for; raises when the other side has left, or the call that
-- runs is to end. Outside of tasks nobody else finds that out: it is looked for often.
function Meter:moment()
  local session = self.refs.session
  local face = session.face
  local over, left = face:cancelled(), face.deadline
  if left == 0 then
    unwanted("timeout", E.ETIMEDOUT)
  elseif session.closed then
    unwanted("closed", E.EPIPE)
  elseif over then
    error(tasks.error("cancelled", E.ECANCELED), 0)
  elseif not tasks.running() then
    left = math.min(left or LOOK, LOOK)
  end
  return left and ipc.now() + left
end

-- Arguments for a peer that knows no references: streams as lists. Their iterators run
-- here.
local function plain(self, what, ...)
  local lists = {}
  walk_all(function(value, path)
    if not stream.is(value) then
      error(errors.unfit(("%s: %s cannot be sent to a peer that is not lua-ipc"):format(path, one(value))), 0)
    end
    lists[value] = false
  end, what, ...)
  local meter <close> = setmetatable({ refs = self, bytes = 0, room = self:room() }, Meter)
  for value in pairs(lists) do
    lists[value] = stream.drain(value, LIST, meter)
  end
  local all, seen = table.pack(...), {}
  for i = 1, all.n do
    all[i] = replaced(all[i], lists, seen)
  end
  return table.unpack(all, 1, all.n)
end

-- The encoder met a value that it does not know: answers the arguments to try again with.
-- `what`: "argument" or "result". Raises for what cannot be sent.
function Refs:admit(value, what, ...)
  if not self.session.ours then
    return plain(self, what, ...)
  end
  walk_all(function(found, path) export(self, found, path) end, what, ...)
  if not self.known[value] then
    export(self, value, what)
  end
  return ...
end

-- What was encoded holds these, each as often as it is listed.
function Refs:sent(list)
  for _, value in ipairs(list) do
    local entry = self.ids[value]
    if entry then
      entry.sent = entry.sent + 1
      self.fresh[entry] = nil
    end
  end
  stale(self)
end

-- A call was answered by these: calls on its result may be on their way here. There are
-- never more of them than calls at once. What the other side gives back is not kept.
function Refs:kept(id, first)
  local entry = first ~= nil and self.ids[first]
  if not entry then
    return
  end
  local slot = self.slot % math.min(self.session.calls, 1000) + 1
  local before = self.slots[slot]
  if before then
    self.answers[before] = nil
  end
  self.slot, self.slots[slot], self.answers[id] = slot, id, entry.id
end

-- --------------------------------------------------------------- targets of calls

local function pending(self, future)
  local promise = self.promises[future]
  if not promise then
    promise = setmetatable({}, Promise)
    self.promises[future] = promise
    self.known[promise] = payload(PROMISE, future.id)
  end
  return promise, true
end

-- What a future's answer has as its first result; nil and an error.
local function result_of(self, future)
  if future.problem ~= nil then
    return nil, select(4, future:wait())
  end
  local part = remote.part(future[1])
  if not part or part.refs.session ~= self.session then
    return nil, errors.new("the first result of that call is no reference", E.EINVAL)
  end
  return future[1]
end

-- Whether a method's name comes after a target: an object, or a future.
function refs.has_methods(target)
  local part = remote.part(target)
  return part and part.kind == OBJECT or getmetatable(target) == Future
end

-- Whether something can be the target of a call, but for its session; raises if it cannot.
function refs.check(target)
  local part = remote.part(target)
  if not (part and part.kind ~= STREAM or getmetatable(target) == Future) then
    error(errors.blame("bad argument #1 to a call (name, remote function or remote object expected, got "
      .. (part and "remote stream" or target == nil and "no value" or type(target)) .. ")"), 0)
  end
end

local function wrong(text)
  error(errors.blame("bad argument #1 to a call (" .. text .. ")"), 0)
end

-- What stands for the target of a call, and whether a method's name follows; nil and an
-- error: of a future that has failed, or a connection that is closed. Raises for what is
-- no target.
function Refs:target(target)
  local named, problem = false, nil
  if getmetatable(target) == Future then
    if target.session ~= self.session then
      wrong("the future belongs to another session")
    elseif not target.done then
      return pending(self, target)
    end
    named = true
    target, problem = result_of(self, target)
  end
  local part = target ~= nil and remote.part(target)
  if part and part.refs.closed then
    problem = outlived(self, target, part)
  end
  if problem then
    return nil, problem
  elseif not part or part.kind == STREAM then
    wrong("name, remote function or remote object expected, got " .. (part and "remote stream" or type(target)))
  elseif part.refs ~= self then
    wrong("the " .. describe(target) .. " belongs to another session")
  elseif part.released then
    wrong("the " .. describe(target) .. " was released")
  end
  return target, named or part.kind == OBJECT
end

-- ------------------------------------------------------------------- what comes in

local function bad(self, text)
  self.trouble = self.trouble or text
  return false
end

-- A reference's id, kind and interface; nil if it is none.
local function parse(data)
  local parts = #data <= LONGEST and ipc.unpack(data)
  if type(parts) ~= "table" then
    return nil
  end
  local id, kind, interface = parts[1], parts[2], parts[3]
  if math.type(id) ~= "integer" or id < 0 then
    return nil
  elseif interface ~= nil and math.type(interface) ~= "integer" then
    return nil
  end
  return id, kind, interface
end

local function import(self, data)
  local id, kind, interface = parse(data)
  if not id or kind ~= FUNCTION and kind ~= OBJECT and kind ~= STREAM then
    return bad(self, "malformed reference")
  end
  local value = self.imports[id]
  local part = value and remote.part(value)
  if part then
    if part.kind ~= kind then
      return bad(self, ("reference %d was of another kind"):format(id))
    end
    part.count = part.count + 1
    return value
  end
  if self.held >= TIMES * self.session.references then
    return bad(self, ("more than %d references at once"):format(TIMES * self.session.references))
  end
  value = remote.new(self, id, kind, interface)
  self.imports[id] = value
  self.known[value] = payload(YOURS, id, kind)
  self.held = self.held + 1
  if self.held >= self.mark then
    self.due = true
  end
  return value
end

local function home(self, data)
  local id, kind = parse(data)
  local entry = id and self.exports[id]
  if not entry or entry.kind ~= kind or entry.sent == 0 then
    return bad(self, id and ("no such reference: %d"):format(id) or "malformed reference")
  end
  return entry.value
end

-- An extension value of a message. Raises never: what is wrong is noted.
function Refs:resolve(type, data)
  if self.session.ours then
    if type == MINE then
      return import(self, data)
    elseif type == YOURS then
      return home(self, data)
    elseif type == PROMISE then
      local id = parse(data)
      if not id then
        return bad(self, "malformed reference")
      end
      self.promised = (self.promised or 0) + 1
      self.trouble = self.trouble or "a promise is no value"
      return setmetatable({ id = id }, Promise)
    end
  end
  local key = string.char(type & 0xFF) .. data
  local value = self.exts[key]
  if value == nil then
    value = ipc.ext(type, data)
    self.exts[key] = value
  end
  return value
end

-- What is wrong with the references of the message that was read last, which is told by
-- `trouble`; nil if nothing is: a promise may stand as what is called.
function Refs:fault(method, ref, name, third)
  local text, promised = self.trouble, self.promised
  self.trouble, self.promised = false, nil
  if promised == 1 and text == "a promise is no value" then
    if method == "$call" and name == "$invoke" then
      ref = third
    elseif method ~= "$invoke" then
      return text
    end
    if getmetatable(ref) == Promise then
      return nil
    end
  end
  return text
end

-- ------------------------------------------------------------------ what is given back

-- A stand-in is not held any more: called by finalisers, in the middle of anything.
function Refs:lost(part)
  local id = part.id
  self.held = self.held - 1
  if not self.closed then
    self.gone[id] = (self.gone[id] or 0) + part.count
    self.dropped = self.dropped + 1
    if not self.due then -- the wire runs no more calls by itself before it is said
      self.due = true
      pcall(self.pass, self.session.wire, true)
    end
  end
end

-- The same of one that is alive.
function Refs:forget(value, part)
  self.imports[part.id], self.known[value] = nil, nil
  self:lost(part)
end

-- A stream's values are all here: its producer need not be kept.
function Refs:done(value, part)
  if not part.released then
    part.released = true
    self:forget(value, part)
  end
end

local function collect(self)
  local began = ipc.now()
  if began < self.rested and self.held < self.floor then
    return
  end
  collectgarbage()
  local ended = ipc.now()
  self.rested = ended + REST * (ended - began)
  local theirs = self.session.theirs
  local most = theirs and math.type(theirs.references) == "integer" and theirs.references or MOST
  self.floor = self.held + FEW
  self.mark = self.held + math.max(1, math.min(FEW, most // 2), (most - self.held) // 2)
end

-- Writes "$release"; in halves where messages are too small for all.
local function give_back(wire, list)
  local ok, _, errno = wire:notify("$release", list)
  if not ok and errno == E.EMSGSIZE and #list > 1 then
    local half = #list // 2
    give_back(wire, table.move(list, 1, half, 1, {}))
    give_back(wire, table.move(list, half + 1, #list, 1, {}))
  end
end

-- Says what is not held any more; never waits.
function Refs:flush()
  local session, wire = self.session, self.session.wire
  if self.held >= self.mark then
    collect(self)
  end
  if session.closed or self.closed then
    return
  elseif wire:unsent() > UNSENT then
    if self.dropped > TIMES * session.references then
      link.fail(session, "the other side reads nothing, and sends references", E.E2BIG)
    end
    return
  end
  self.dropped = 0
  self.due = false
  wire:pass(session.leaving)
  local gone = self.gone
  self.gone = {} -- finalisers write while this is read
  local list = {}
  for id, count in next, gone do
    list[#list + 1] = { id, count }
    if #list == PAIRS then
      give_back(wire, list)
      list = {}
    end
  end
  if #list > 0 then
    give_back(wire, list)
  end
  link.flush(session)
end

-- The connection is no more: nothing is held by either side.
function Refs:close()
  self.closed, self.due = true, false
  local exports = self.exports
  self.exports = {} -- what a producer does at its end is not in the way
  for _, entry in pairs(exports) do
    self:drop(entry)
  end
  self.answers, self.slots, self.gone, self.interfaces = {}, {}, {}, {}
end

-- What objects of the other side are: as many as it may be asked for again.
function Refs:keep_interface(class, interface)
  if class then
    if self.remembered >= INTERFACES then
      self.interfaces, self.remembered = {}, 0
    end
    self.interfaces[class], self.remembered = interface, self.remembered + 1
  end
end

return refs
