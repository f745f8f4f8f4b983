--- Calling functions of other processes as if they were here: MessagePack-RPC over any
-- channel. Either side may call. `ipc.rpc`, loaded when first used.
-- @module ipc.rpc
-- @usage
-- local server <close> = assert(ipc.rpc.serve("unix:/tmp/calc.sock", {
--   add = function(a, b) return a + b end,
-- }))
-- local calc <close> = assert(ipc.rpc.connect "unix:/tmp/calc.sock")
-- print(calc.remote.add(1, 2))  --> 3
require "ipc"
local client = require "ipc.rpc.client"
local incoming = require "ipc.rpc.incoming"
local object = require "ipc.rpc.object"
local remote = require "ipc.rpc.remote"
local server = require "ipc.rpc.server"
local stream = require "ipc.rpc.stream"

local rpc = { object = object.object, stream = stream.stream, release = remote.release }

-- A mistake in a call is that of who has made it.
local function checked(ok, ...)
  if not ok then
    local problem = ...
    error(problem, type(problem) == "string" and 3 or 0)
  end
  return ...
end

--- Lets others call functions: a server, at once. It answers while tasks run: in
-- `ipc.main`, or while somebody waits for it. Each call runs in a task; an error
-- that a function raises goes to its caller.
--
-- What crosses: nil, booleans, numbers (3.0 stays 3.0), strings, tables of these, by
-- value; functions, and what `ipc.rpc.object` and `ipc.rpc.stream` mark, as references;
-- never code, channels or other userdata, coroutines. Sessions, their functions, objects
-- and streams cross in calls alone: `channel:put`, `ipc.pack` and `ipc.spawn` raise.
--
-- Options of both sides. `name`: what the other side sees. `docs`: a table of texts by
-- function, for `session:methods`. `timeout`: seconds that a call may take, here and
-- there (30); the shorter one counts; math.huge: for ever, 0: none that has to wait for
-- its answer. `on_open`(session); in a server it has returned before a call of that client
-- begins, and so cannot wait for one that calls back. `on_close`(session, message, errno), of
-- a session that on_open was told of. `on_error`(error, session, traceback), which else goes
-- to the standard error, as it does together with what on_error itself raises.
-- `peer`: `"ours"`; `"plain"` for others that speak MessagePack-RPC, which are not asked
-- what they know; `"nvim"`. `errors`: `"array"`, code and text; `"string"` for peers that
-- want that. `nvim`: whether it answers nvim_get_api_info, as Neovim's clients ask.
-- `traceback`: whether errors take it along; by default to the same user, not over TCP.
--
-- Who may call. `allow`(session) answers true, or false and why; it is asked of every
-- connection, before anything of the other side is answered. Without it, at an address or
-- listener that is a unix socket, the same user and root may; who is at a channel that is
-- served, and at the other end of a connection that was made here, may: whoever gave the
-- channel or the address has chosen them. One that may not is answered so, and left;
-- where `connect` finds it, that answers nil, "not allowed", EACCES. `authkey`: a text
-- that both sides know; each proves that it does, without sending it. Calls are served at
-- addresses of this machine only: nothing is encrypted.
--
-- Limits. `calls`: in flight of a connection (1000). `params`: arguments of a call, and
-- its results (250). `method`: bytes of a name (100). `nested`: calls within calls that
-- plain scripts serve (16). `unsent`: bytes of answers and notifications that the other
-- side may leave unread for as long as it likes (16 MiB); with more it is read no more,
-- notifying it waits, and it is left when it takes nothing of them for `stall` seconds.
-- `first`: seconds to the first message (10). `stall`: seconds for the rest of one (30).
-- `references`: functions and objects that the other side may hold (10000). `maxsize`:
-- bytes of a message (16 MiB; 4 KiB before the key is proved). `depth`, `values`,
-- `tables`: of a message (64, 1,000,000, 100,000). `keys`: of a table that are not
-- strings (1024). What the library itself says has to fit: `maxsize` is 512 at least,
-- `depth` 4, `values` 64, `tables` 8, `params` 2. More of `depth`, up to 1000, is for
-- what is sent as well; the other side has its own limits. A call over one is answered so;
-- a notification is dropped, and on_error told.
--
-- Of the server: `limit`, connections at once (256); `grace`, seconds that `close` gives
-- the calls that run (5); `process`: true for one in a process of its own; `workers`: in
-- so many, which are replaced when they die, while the loop of this process runs: in
-- `ipc.main`, or while somebody waits for the server; not while a plain script waits for
-- something else. These are copies of this process, in which its handles are dead:
-- functions open there what they need. All others are those of `ipc.listen`.
-- @function serve
-- @param where an address as `ipc.listen` takes it; a listener, made with
-- `unit = "stream"` if clients come by its address; a list of such; or a channel
-- @tparam table exports name -> function; functions in tables in it are called by
-- `"table.name"`. Nothing else can be called.
-- @tparam[opt] table options
-- @treturn server with `address` and `addresses`; `#server`: connections, or processes
-- where it has its own; of a channel the session, which a task serves; or nil, message,
-- errno as `ipc.listen`
-- @usage local server <close> = assert(ipc.rpc.serve("unix:/tmp/calc", {
--   add = function(a, b) return a + b end,
-- }, { process = true }))
function rpc.serve(where, exports, options)
  local found, message, errno = checked(pcall(server.serve, where, exports, options))
  if errno then
    return found, message, errno
  end
  return found
end

--- Connects to a server: a session, whose `remote` has its functions. A call is made
-- at most once: when the connection breaks, calls in flight fail with EPIPE, and
-- nobody knows whether they ran.
--
-- `session.remote.name(...)`, and `session.remote.table.name(...)`, answers the results
-- or raises the error: a table with `message` (also what tostring gives), `errno`, 0
-- where the function itself raised it, `method`, its name, or a property's, `traceback`
-- where it was told, and `data`. A function that raises a table sends its `message`,
-- `errno`, `code` and `data`.
--
-- A session has, besides: `peer`, the other side's address; `name`, what it calls itself;
-- `uid` and `pid` of who is there, on unix sockets (of a pair: of who made it); `data`, a
-- table for whatever belongs to this session; and of the call that runs `deadline`,
-- seconds left, and `trace`.
--
-- It is read while somebody waits on it: for an answer, in `session:serve` or
-- `session:wait`. Who connects and then only waits to be called has a task for that:
-- `ipc.loop.go(session.serve, session)`.
--
-- Options: the limits of `ipc.rpc.serve`, and what is there of both sides; `exports`:
-- what the server may call; `reconnect`, true or seconds: when the connection is gone,
-- calls that follow try for so long to get another, `session:async` as well; where there
-- is none they are answered what the last try was (ENOENT, ECONNREFUSED ...), not sent;
-- `idempotent`, true or a list of names: what is then called again if it was in flight.
-- All others are those of `ipc.connect`; after `retry` the answer is that of the last
-- try, too.
-- @function connect
-- @param where an address as `ipc.connect` takes it; a channel that has no session; or a
-- program and its arguments, which is spoken to on its standard input and output, and
-- ended by `close`
-- @tparam[opt] table options
-- @treturn session or nil, message, errno as `ipc.connect`
-- @usage local nvim <close> = assert(ipc.rpc.connect({ "nvim", "--embed" },
--   { peer = "nvim" }))
-- print(nvim.remote.nvim_eval "6 * 7")
function rpc.connect(where, options)
  local found, message, errno = checked(pcall(client.connect, where, options))
  if errno then
    return found, message, errno
  end
  return found
end

--- The session of the call that runs.
-- @function caller
-- @treturn ?session nil outside of calls
function rpc.caller()
  local frame = incoming.frame()
  return frame and frame.session.face
end

return rpc
