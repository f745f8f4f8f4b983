-- Values through channels.
local fault = ...
local ipc = require "ipc"

local function deep(n)
  return n == 0 and { "leaf", 1.5, true } or { n, deep(n - 1), key = { deep(n - 1) } }
end
local wide = {}
for i = 1, 20 do
  wide[i] = { id = i, name = "name " .. i, ("long string "):rep(200) .. i }
end
local samples = {
  1, "text", true, 2 ^ 53, ("bytes \0\255"):rep(2000), deep(3), wide,
  ipc.ext(5, "opaque"), ipc.map {}, ipc.array { 1, nil, 3 },
}

for _, address in ipairs { "pipe", "unix", "unix?type=seqpacket" } do
  local r, w = assert(ipc.pair(address))
  for i, value in ipairs(samples) do
    fault.equal(fault.call(w, "put", value, nil, 5), true, "put " .. i)
    local got = fault.call(r, "get", 5)
    if getmetatable(value) and type(value) == "userdata" then
      fault.equal(got.data, value.data)
    else
      fault.same(got, value, "get " .. i)
    end
  end
  fault.equal(fault.call(w, "put", nil, nil, 5), true)
  fault.equal(fault.call(r, "get", 5), ipc.null)
  -- What is no value is reported or was: either way it is gone.
  assert(w:send "\xc1")
  local ok, value, message, errno = fault.try(r.get, r, 5)
  assert(not ok and fault.failed(ok, value) or value == nil and
    (errno == ipc.errno.EBADMSG or errno == fault.errno), message)
  if ok and errno == fault.errno and errno ~= ipc.errno.EBADMSG then
    r:get(5)
  end
  assert(w:put "after")
  value = r:get(5)
  if value == nil then
    value = r:get(5)
  end
  fault.equal(value, "after")
  -- What cannot be packed raises and sends nothing.
  ok, value = fault.try(w.put, w, { a = { print } })
  assert(not ok, "a function was sent")
  assert(tostring(value):find "cannot be packed" or fault.failed(ok, value))
  fault.nothing(r)
  w:close()
  r:close()
end
