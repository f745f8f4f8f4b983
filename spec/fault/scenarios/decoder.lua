-- Values in pieces. A decoder that ran out of memory says so from then on; a
-- feed that did is as if it had not been.
local fault = ...
local ipc = require "ipc"

local function fresh()
  return fault.sure(ipc.decoder)
end
local value = { 1, "two", { three = { 3, ("3"):rep(3000) } }, ipc.ext(4, "four") }
local bytes = ipc.pack(value)
for size = 1, #bytes, 701 do
  local decoder = fresh()
  local got
  for at = 1, #bytes, size do
    fault.equal(fault.sure(decoder.feed, decoder, bytes:sub(at, at + size - 1)), true, "feed")
    local ok, result, message = fault.try(decoder.get, decoder)
    if not ok then
      fault.failed(ok, result)
      local errno
      result, message, errno = decoder:get()
      if result == nil and errno == ipc.errno.EBADMSG then
        assert(message)
        decoder:close()
        decoder = fresh()
        decoder:feed(bytes)
        got = assert(decoder:get())
        break
      end
    end
    if result ~= nil then
      got = result
    else
      fault.equal(message, "incomplete")
    end
  end
  fault.equal(ipc.pack(got), bytes)
  assert(fault.sure(decoder.close, decoder))
end
