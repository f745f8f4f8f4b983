--- The calls that take addresses.
-- @module ipc
local addresses = require "ipc.address"
local core = require "ipc.core"

local ipc = core.flat

--- Opens two connected ends of a mechanism, for this process and its children.
-- Changing the mechanism is changing one string.
-- @function pair
-- @tparam string address a scheme, perhaps with options: `"pipe"`, `"unix"`,
-- `"unix?type=seqpacket"`
-- @tparam[opt] table options of the mechanism; they win over the address's
-- @treturn channel one end
-- @treturn channel the other; or nil, message, errno
-- @usage local a, b = ipc.pair("unix")
function ipc.pair(address, options)
  local one, other, errno = addresses.pair(address, options)
  if errno then -- no tail calls here: errors blame our caller by level
    return one, other, errno
  end
  return one, other
end

--- Opens a mechanism by its name. Changing the mechanism is changing one string:
-- one process opens an address with "r", another with "w", and what the second
-- sends the first receives.
-- @function open
-- @tparam string address `"fifo:/tmp/f"`, `"unix:/tmp/s"`, `"tcp:127.0.0.1:7000"`,
-- `"udp:127.0.0.1:7000"`, `"sysv:0x4a42"`, `"mqueue:/name"`, `"shm:/name"`,
-- `"mmap:/tmp/ring"`, `"broadcast:/name"`, `"journal:/var/log/app"`, `"fd:3"`, with
-- options behind a `?`:
-- `"fifo:/tmp/f?unit=stream"`
-- @tparam[opt] string mode "r", "w" or "rw"; what it is by default the mechanism says
-- @tparam[opt] table options of the mechanism; they win over the address's
-- @treturn channel; or nil, message, errno
-- @usage local jobs = ipc.open("fifo:/tmp/jobs", "w", { retry = 5 })
function ipc.open(address, mode, options)
  local channel, message, errno = addresses.open(address, mode, options)
  if errno then -- no tail calls here: errors blame our caller by level
    return channel, message, errno
  end
  return channel
end

-- A copy of the options with `retry` as given.
local function retrying(options, retry)
  if options ~= nil and type(options) ~= "table" then
    return options -- to be complained of
  end
  local all = {}
  for name, value in pairs(options or {}) do
    all[name] = value
  end
  all.retry = retry
  return all
end

--- Makes one channel of two: receives on the first, sends on the second, closes
-- both. Of addresses it opens the first for reading, which does not wait, then
-- the second for writing, which by default waits until the other side is there
-- (`retry = true`, bounded by `timeout`): two processes that open the same two
-- crosswise find each other, whoever comes first.
-- @function duplex
-- @param reader a channel, or an address
-- @param writer a channel, or an address, as the first is
-- @tparam[opt] table options of the mechanism, of addresses only
-- @treturn channel; or nil, message, errno
-- @usage local both = ipc.duplex(answers, questions)
-- local peer = assert(ipc.duplex("fifo:/tmp/a", "fifo:/tmp/b", { timeout = 5 }))
function ipc.duplex(reader, writer, options)
  if type(reader) ~= "string" then
    local both = addresses.duplex(core.pipe.duplex, reader, writer, options)
    return both
  end
  if type(writer) ~= "string" then
    error(("bad argument #2 to 'duplex' (address expected, got %s)"):format(type(writer)), 2)
  end
  -- What has been opened is closed when the rest fails, raises or is dropped.
  local opened <close> = setmetatable({}, {
    __close = function(list)
      for _, channel in ipairs(list) do
        channel:close()
      end
    end,
  })
  local input, message, errno = addresses.open(reader, "r", retrying(options, nil))
  if errno then
    return input, message, errno
  end
  opened[1] = input
  local retry = options and options.retry
  local output
  output, message, errno = addresses.open(writer, "w", retrying(options, retry == nil or retry))
  if errno then
    return output, message, errno
  end
  opened[1] = nil
  local both = addresses.duplex(core.pipe.duplex, input, output)
  return both
end

--- Waits for clients at an address: `listener:accept` gives a channel to each.
-- @function listen
-- @tparam string address `"unix:/tmp/s"`, `"tcp:7000"` (on the loopback
-- interface), `"tcp:0.0.0.0:7000"`, `"fifo:/tmp/f"`, `"sysv:0x4a42"`, `"mqueue:/name"`,
-- `"shm:/name"` (whose clients are each given a pair of rings of their own)
-- @tparam[opt] table options of the mechanism; accepted channels have them too
-- @treturn listener; or nil, message, errno: EADDRINUSE where somebody listens
-- (queues cannot tell: their listeners share the clients). One of a FIFO, queue
-- or shared memory is a Lua table with the same methods: it does not cross
-- `ipc.fork`, what it accepts does; its close removes the FIFO or queue, unless
-- `create = false` opened one that was there
-- @usage local listener <close> = assert(ipc.listen "unix:/tmp/s")
function ipc.listen(address, options)
  local listener, message, errno = addresses.listen(address, options)
  if errno then
    return listener, message, errno
  end
  return listener
end

--- Connects to a listener.
-- @function connect
-- @tparam string address the listener's
-- @tparam[opt] table options of the mechanism; `timeout` bounds this call, too;
-- `retry` (seconds, or true) waits until there is a listener
-- @treturn channel; or nil, message, errno: ECONNREFUSED, ENOENT when nobody
-- listens, `"timeout"` (ETIMEDOUT)
-- @usage local server = assert(ipc.connect("unix:/tmp/s", { retry = 5 }))
function ipc.connect(address, options)
  local channel, message, errno = addresses.connect(address, options)
  if errno then
    return channel, message, errno
  end
  return channel
end

return ipc
