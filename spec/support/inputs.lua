-- What a hostile client may say to a server of calls: bytes, and what is expected of
-- the server. A function that expects something is given the connection (see
-- hostile.lua) and raises.
local ipc = require "ipc"

local inputs = { groups = {} }

-- ---- MessagePack by hand

local function pack(value) return ipc.pack(value) end
local function times(n, bytes) return bytes:rep(n) end

-- A request; id, method and params are bytes.
local function request(method, params, id) return "\x94\0" .. (id or "\1") .. method .. (params or "\x90") end
local function call(name, params, id) return request(pack(name), params, id) end
-- A request of one argument, which is answered as it came.
local function echo(bytes) return call("echo", "\x91" .. bytes) end
local function ext(type, bytes)
  return "\xc8" .. (">I2b"):pack(#bytes, type) .. bytes
end
local function reference(type, id, kind) return ext(type, "\x92" .. pack(id) .. pack(kind)) end

local HELLO <const> = call("$hello", "\x92\1\x80", "\x7e")

-- ---- what is expected of the server

-- It closes the connection; what was answered before is of no interest.
local function closed(raw)
  repeat
    local value, over = raw:get()
    assert(value ~= nil or over, "the connection is still open")
  until value == nil
end

-- The connection goes on.
local function goes_on(raw)
  local reply = raw:call(77, "add", 1, 2)
  assert(reply, "the connection is closed")
  local result = reply[4]
  if type(result) == "table" then result = result[1] end
  assert(result == 3, "3 expected")
end

local function response(raw, id)
  local reply = raw:get()
  assert(reply ~= nil, "no answer")
  assert(reply[1] == 1 and reply[2] == id, "another answer")
  return reply
end

-- An error of the call, as everybody understands it: [code, text].
local function complaint(reply)
  local problem = reply[3]
  assert(type(problem) == "table" and (problem[1] == 0 or problem[1] == 1), "no error, or none of ours")
  assert(type(problem[2]) == "string" and #problem[2] <= 8192 + 64, "no text, or too much")
end

local function refused(raw)
  complaint(response(raw, 1))
  goes_on(raw)
end

local function served(raw)
  assert(response(raw, 1)[3] == nil, "an error")
  goes_on(raw)
end

-- Answered with an error, or with a result.
local function answered(raw)
  local reply = response(raw, 1)
  if reply[3] ~= nil then complaint(reply) end
  goes_on(raw)
end

-- Nothing is answered.
local dropped = goes_on

-- Nothing is answered, or the connection is closed.
local function shrugged(raw)
  local reply = raw:call(77, "add", 1, 2)
  assert(reply == nil or reply[2] == 77)
end

-- ---- the inputs: in groups of { what, bytes, what is expected }

local rows -- of the group under way
local function group(name, often)
  rows = {}
  inputs.groups[#inputs.groups + 1] = { name = name, rows = rows, often = often }
end
local function input(what, bytes, expected) rows[#rows + 1] = { what, bytes, expected } end
local FEW <const> = 1 -- how often groups that take long are done

group "what is no MessagePack"
input("byte c1", "\xc1", closed)
input("byte c1 inside of a request", call("add", "\x92\1\xc1"), closed)
input("HTTP", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", closed)
input("TLS", "\x16\3\1\2\0\1\0\1\xfc\3\3" .. times(500, "\x17"), closed)

group "a top level that is no array"
input("nil", "\xc0", closed)
input("true", "\xc3", closed)
input("an integer", "\xcf" .. times(8, "\xff"), closed)
input("a float", "\xcb" .. times(8, "\xff"), closed)
input("a string", "\xa3add", closed)
input("bin", "\xc4\3add", closed)
input("a map", "\x84\0\0\1\1\2\2\3\3", closed)
input("an ext value", "\xd4\x40\0", closed)

group "an arity that is none"
input("0", "\x90", closed)
input("1", "\x91\0", closed)
input("2", "\x92\0\1", closed)
input("3 of a request", "\x93\0\1\xa3add", closed)
input("4 of a notification", "\x94\2\xa3add\x90\x90", closed)
input("5", "\x95\0\1\xa3add\x90\x90", closed)
input("65,535", "\xdc\xff\xff" .. times(65535, "\0"), closed)

group "a type that is none"
input("-1", "\x94\xff\1\xa3add\x90", closed)
input("3", "\x94\3\1\xa3add\x90", closed)
input("nil", "\x94\xc0\1\xa3add\x90", closed)
input("0.0", "\x94\xcb" .. times(8, "\0") .. "\1\xa3add\x90", closed)
input("2^32", "\x94\xcf\0\0\0\1\0\0\0\0\1\xa3add\x90", closed)
input("a string", "\x94\xa1\0\1\xa3add\x90", closed)
input("an array", "\x94\x91\0\1\xa3add\x90", closed)

group "an id that is none"
input("-1", request("\xa3add", "\x92\1\2", "\xff"), closed)
input("2^32", request("\xa3add", "\x92\1\2", "\xcf\0\0\0\1\0\0\0\0"), closed)
input("2^64 - 1", request("\xa3add", "\x92\1\2", "\xcf" .. times(8, "\xff")), closed)
input("1.0", request("\xa3add", "\x92\1\2", "\xcb\x3f\xf0" .. times(6, "\0")), closed)
input("a string", request("\xa3add", "\x92\1\2", "\xa11"), closed)
input("nil", request("\xa3add", "\x92\1\2", "\xc0"), closed)
input("an array", request("\xa3add", "\x92\1\2", "\x91\1"), closed)
input("-1 of a response", "\x94\1\xff\xc0\1", shrugged)
input("a string of a response", "\x94\1\xa11\xc0\1", shrugged)

group "an id that is one, in other words"
input("1 in nine bytes", request("\xa3add", "\x92\1\2", "\xcf" .. times(7, "\0") .. "\1"), served)
input("1 in nine signed bytes", request("\xa3add", "\x92\1\2", "\xd3" .. times(7, "\0") .. "\1"), served)
input("twice at once", call("sleep", "\x91" .. pack(0.001)) .. call("sleep", "\x91" .. pack(0.001)),
  function(raw)
    response(raw, 1)
    local second = response(raw, 1)
    if second[3] ~= nil then complaint(second) end
    goes_on(raw)
  end)

group "a method that is no name"
input("an integer", request "\5", refused)
input("nil", request "\xc0", refused)
input("true", request "\xc3", refused)
input("a map", request "\x80", refused)
input("an ext value", request "\xd4\x40\0", refused)
input("empty", call "", refused)
input("of 101 bytes", call(("m"):rep(101)), refused)
input("with NUL", call "add\0", refused)
input("NUL", call "\0", refused)
input("no UTF-8", call "\xff\xfe", refused)
input("bin", request("\xc4\3add", "\x92\1\2"), served)

group("a method of 1 MB", FEW)
input("str", call(("m"):rep(1 << 20)), refused)
input("bin", request("\xc6\0\x10\0\0" .. ("m"):rep(1 << 20)), refused)

group "a method that is not exported"
for _, name in ipairs {
  "__gc", "__index", "__newindex", "__call", "_G", "_ENV", "os.execute", "string.rep", "debug.debug", "load",
  "add.x", "nested", "nested.", ".nested", "nested.nested", "nested.__index", "nested..add", ".", "..", "nested.add.",
  "$", "$none", "$hello.x", "1", "table", "exports", "nvim_get_api_info", "nvim_exec_lua",
} do
  input(name, call(name, "\x91\1"), refused)
end

group "params that are none"
input("an integer", call("add", "\1"), refused)
input("a map", call("add", "\x82\1\1\2\2"), refused)
input("nil", call("add", "\xc0"), refused)
input("a string", call("add", "\xa212"), refused)
input("251", call("echo", "\xdc\0\xfb" .. times(251, "\1")), refused)
input("250 that are nil", call("echo", "\xdc\0\xfa" .. times(250, "\xc0")), served)

group("params, 300,000", FEW)
input("", call("echo", "\xdd\0\4\x93\xe0" .. times(300000, "\1")), refused)

group "keys"
input("a map", echo "\x81\x81\1\2\3", served)
input("an array", echo "\x81\x91\1\3", served)
input("nil", echo "\x81\xc0\3", refused)
input("NaN", echo("\x81\xcb\x7f\xf8" .. times(6, "\0") .. "\1"), refused)
input("the same twice", echo "\x82\xa1a\1\xa1a\2", served)
input("1 beside 1.0", echo("\x82\1\1\xcb\x3f\xf0" .. times(6, "\0") .. "\2"), served)

group "values at their limits"
input("uint64 max", echo("\xcf" .. times(8, "\xff")), served)
input("-0.0", echo("\xcb\x80" .. times(7, "\0")), served)
input("infinity, NaN", call("echo", "\x92\xcb\x7f\xf0" .. times(6, "\0") .. "\xcb\xff\xf8" .. times(6, "\0")), served)
input("a string that is no UTF-8", echo "\xa4\xff\xfe\xc0\x80", served)
input("a timestamp of 3 bytes", echo(ext(-1, "\1\2\3")), served)
input("a timestamp of 0 bytes", echo(ext(-1, "")), served)
input("a timestamp of 2^30 - 1 nanoseconds", echo("\xd7\xff" .. times(8, "\xff")), served)
input("a timestamp before all time", echo(ext(-1, times(12, "\xff"))), served)

group "notifications and responses that nobody waits for"
input("a method that is none", "\x93\2\xa7no such\x90", dropped)
input("a method that is an integer", "\x93\2\5\x90", shrugged)
input("params that are a map", "\x93\2\xa3add\x80", shrugged)
input("a method that fails", "\x93\2\xa4fail\x91\xa1x", dropped)
input("a response", "\x94\1\5\xc0\1", dropped)
input("an error that is a map", "\x94\1\5\x81\1\2\xc0", dropped)

group("very many messages", FEW)
input("responses, 10,000", times(10000, "\x94\1\5\xc0\1"), dropped)
input("notifications, 10,000", times(10000, "\x93\2\xa7no such\x90"), dropped)
input("requests of no method, 2,000", times(2000, request "\xa4none"), function(raw)
  for _ = 1, 2000 do complaint(response(raw, 1)) end
  goes_on(raw)
end)

-- Of a few bytes nothing is made.
group "lengths that never come"
for _, head in ipairs { { "array32", "\xdd" }, { "map32", "\xdf" }, { "str32", "\xdb" }, { "bin32", "\xc6" },
  { "ext32", "\xc9" } } do
  local huge = head[2] .. "\xff\xff\xff\xff\x40"
  input(head[1] .. " at top", huge, closed)
  input(head[1] .. " as the id", "\x94\0" .. huge, closed)
  input(head[1] .. " as the method", "\x94\0\1" .. huge, closed)
  input(head[1] .. " as params", "\x94\0\1\xa4echo" .. huge, closed)
  input(head[1] .. " in params", "\x94\0\1\xa4echo\x91" .. huge, closed)
  input(head[1] .. " as a key", "\x94\0\1\xa4echo\x91\x81" .. huge, closed)
  input(head[1] .. " as a result", "\x94\1\1\xc0" .. huge, closed)
end

for _, depth in ipairs { 33, 10000, 1000000 } do
  local deep = depth > 64
  group(depth .. " in each other", depth > 100000 and FEW or nil)
  input("arrays", echo(times(depth, "\x91") .. "\1"), deep and refused or served)
  input("maps", echo(times(depth, "\x81\1") .. "\1"), deep and refused or served)
  input("maps in key position", echo(times(depth, "\x81") .. times(depth + 1, "\1")), deep and refused or answered)
  input("headers and nothing more", times(depth, "\x91"), closed)
end

group("messages that cost more than they weigh", FEW)
do
  -- Lua places integers by their remainder, of a size that is a power of 2, less 1.
  local function flood(n)
    local keys = {}
    for i = 1, n do keys[i] = ("\xce%s\1"):format((">I4"):pack(i * 0x7fff)) end
    return "\xdf" .. (">I4"):pack(n) .. table.concat(keys)
  end
  input("a map of integer keys that collide", call("type", "\x91" .. flood(40000)), refused)
  input("a map of 1,000 keys that collide", call("type", "\x91" .. flood(1000)), served)
  local same = {}
  for i = 1, 1025 do same[i] = "\xcb" .. (">d"):pack(i + 0.5) .. "\1" end
  input("a map of 1,025 floats as keys", call("type", "\x91\xde\4\1" .. table.concat(same)), refused)
  input("tables, 200,000", call("type", "\x91\xdd\0\3\x0d\x40" .. times(200000, "\x90")), refused)
  input("ext values, 200,000", call("type", "\x91\xdd\0\3\x0d\x40" .. times(200000, "\xd4\5\0")), refused)
  input("values, 2,000,000", call("type", "\x91\xdd\0\x1e\x84\x80" .. times(2000000, "\xc0")), refused)
end

-- Our own additions, by one who does not keep to them: said after hello.
local function ours(what, bytes, expected)
  input(what, HELLO .. bytes, function(raw)
    assert(response(raw, 0x7e)[3] == nil, "an error of hello")
    return expected(raw)
  end)
end
local function shown(value) return (tostring(value):gsub("0x%x+", "...")) end

local STRANGE <const> = { -1, 0, 0.5, 1e308, -1e308, 0 / 0, math.huge, math.mininteger, math.maxinteger, "x", {} }

group "$hello that is none"
for _, params in ipairs {
  "\x90", "\x91\1", "\x91\xa1x", "\x92\1\1", "\x92\1\xc0", "\x92\2\x80", "\x92\xff\x80",
  "\x92\xcb\x7f\xf8" .. times(6, "\0") .. "\x80", "\x93\1\x80\1", "\x92\1\x81\xa6limits\1",
  "\x92\1\x81\xa8features\xc3", "\x92\1\x81\xa4name\5",
  "\x92\1\x81\xa4name\xdb\0\1\0\0" .. ("n"):rep(65536),
} do
  input(("%q"):format(params:sub(1, 20)), call("$hello", params), answered)
end
for _, value in ipairs(STRANGE) do
  for _, name in ipairs { "timeout", "calls", "references" } do
    input(name .. " = " .. shown(value),
      call("$hello", pack { 1, { limits = { [name] = value }, features = ipc.array {} } }), answered)
  end
end
ours("a second time", call("$hello", "\x92\1\x80"), answered)

group "$call that is none"
for _, value in ipairs(STRANGE) do
  ours("deadline = " .. shown(value), call("$call", pack { { deadline = value }, "add", { 1, 2 } }), answered)
  ours("trace = " .. shown(value), call("$call", pack { { trace = value }, "add", { 1, 2 } }), answered)
end
for _, params in ipairs {
  "\x90", "\x91\x80", "\x92\x80\xa3add", "\x93\1\xa3add\x90", "\x93\x80\1\x90", "\x93\x80\xa3add\1",
  "\x93\x80\xa3add\x80", "\x93\x80\xa0\x90", "\x93\x80\xa5$none\x90", "\x94\x80\xa3add\x90\x90",
  "\x93\x81\xa5trace\1\xa3add\x92\1\2", "\x93\x81\xa5trace\xda\xff\xff" .. ("t"):rep(65535) .. "\xa3add\x92\1\2",
} do
  ours(("%q"):format(params:sub(1, 20)), call("$call", params), answered)
end
do
  local inner = "\x93\x80\xa3add\x92\1\2"
  for _ = 1, 20 do inner = "\x93\x80\xa5$call" .. inner end
  ours("inside of itself", call("$call", inner), answered)
end

group "$cancel, $ping and the others with what they do not take"
for _, params in ipairs { "\x90", "\x91\5", "\x91\xff", "\x91\xa1x", "\x91\xc0", "\x91\x7e", "\x80", "\1",
  "\xdc\xff\xff" .. times(65535, "\5") } do
  input(("$cancel %q"):format(params:sub(1, 10)), "\x93\2\xa7$cancel" .. params, shrugged)
end
input("$cancel, as a call", call("$cancel", "\x91\1"), answered)
input("$ping, with more than there is", call("$ping", "\x91\1"), answered)
for _, name in ipairs { "$release", "$get", "$set", "$next", "$invoke", "$methods", "$auth" } do
  for _, params in ipairs { "\x90", "\x91\1", "\x93\1\2\3", "\x92" .. ext(0x41, "") .. "\1", "\x91\x92\1\2" } do
    ours(("%s %q"):format(name, params), call(name, params), shrugged)
  end
end
for _, value in ipairs(STRANGE) do
  ours("$next of " .. shown(value), call("$next", pack { 1, value }), refused)
end

group "references that are none"
for _, type in ipairs { 0x40, 0x41, 0x42 } do
  for _, payload in ipairs { "", "\1", "\x90", "\x91\1", "\x92\xff\0", "\x92\1\5", "\x92\1\xc0", "\x92\xc0\0",
    "\x92\xcf" .. times(8, "\xff") .. "\0", "\x92\xcb" .. times(8, "\xff") .. "\0", "\xdd\xff\xff\xff\xff",
    "\x92\1\0\1", times(200, "\x91"), "\xc1" } do
    local bytes = ext(type, payload)
    local what = ("ext %#x %q"):format(type, payload:sub(1, 10))
    input(what .. ", without hello", echo(bytes), shrugged)
    ours(what, call("hold", "\x91" .. bytes), shrugged)
    ours("$invoke of " .. what, call("$invoke", "\x93" .. bytes .. "\xc0\x90"), shrugged)
  end
end

group "references that were never given"
for _, kind in ipairs { 0, 1, 2 } do
  for _, id in ipairs { 0, 1, 2, 1000, 0xffffffff } do
    local bytes = reference(0x41, id, kind)
    local what = (" of %d, of kind %d"):format(id, kind)
    ours("argument" .. what, call("hold", "\x91" .. bytes), refused)
    ours("$invoke" .. what, call("$invoke", "\x93" .. bytes .. "\xa3now\x90"), refused)
    ours("$get" .. what, call("$get", "\x92" .. bytes .. "\xa3now"), refused)
    ours("$next" .. what, call("$next", "\x92" .. bytes .. "\1"), refused)
  end
end

group "$release of what was never given"
for _, list in ipairs { "\x90", "\x91\x92\1\1", "\x91\x92\1\xff", "\x91\x92\1\xcf" .. times(8, "\xff"), "\x91\1",
  "\x91\x92\xc0\1", "\x91\x92\1\xc0", "\x91\x91\1", "\x91\x80", "\xdc\xff\xff" .. times(65535, "\x92\1\1") } do
  ours(("%q"):format(list:sub(1, 12)), "\x93\2\xa8$release" .. list, shrugged)
end

inputs.HELLO, inputs.STRANGE = HELLO, STRANGE
inputs.pack, inputs.times, inputs.request, inputs.call, inputs.echo, inputs.ext = pack, times, request, call, echo, ext
inputs.reference, inputs.response, inputs.complaint = reference, response, complaint
inputs.closed, inputs.goes_on, inputs.refused = closed, goes_on, refused

return inputs
