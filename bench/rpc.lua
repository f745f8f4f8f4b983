-- A call of add(1, 2) in another process: over shm, unix and tcp, beside raw C's
-- bare messages and what others bring (peers/call*). One client, one call after
-- the other, on two cores and on one; 64 calls in flight; 8 clients. Rounds in
-- which all take turns, then medians, and ratios of single rounds. Arguments:
-- [rounds (5) [seconds of each measurement (0.3) [a word of the names wanted]]];
-- or, as it calls itself, what is done, the cores, seconds, the mechanism.
local ipc = require "ipc"
local measure = dofile "bench/measure.lua"

local PATIENCE <const> = 60 -- seconds until a benchmark counts as hung
local FLIGHT <const>, CLIENTS <const>, BATCH <const> = 64, 8, 50
local LUA <const> = arg[-1] or "lua5.4"

-- ---- as it calls itself: each gives ns a call

local address = {
  shm = ("shm:/ipc-bench.%d"):format(ipc.pid()),
  unix = ("unix:/tmp/ipc-bench.%d"):format(ipc.pid()),
  tcp = "tcp:127.0.0.1:0",
}

local function place(where, core)
  if where ~= "any" then
    measure.pin(where == "across" and core or 0)
  end
end

local function serve(at, where)
  place(where, 1)
  ipc.main(function()
    local server <close> = assert(ipc.rpc.serve(at, {
      add = function(a, b) return a + b end,
    }))
    ipc.parent:put(server.address)
    ipc.parent:get() -- until the parent ends
  end)
end

local function connect(at)
  return assert(ipc.rpc.connect(at, { timeout = PATIENCE }))
end

local work = {}

function work.sequence(at, seconds)
  local session <close> = connect(at)
  local add = session.remote.add
  return measure.run(function()
    for _ = 1, BATCH do
      assert(add(1, 2) == 3)
    end
  end, BATCH, seconds)
end

function work.flight(at, seconds)
  local session <close> = connect(at)
  local futures = {}
  return measure.run(function()
    local batch <close> = session:batch()
    for i = 1, FLIGHT do
      futures[i] = batch:async("add", 1, 2)
    end
    assert(batch:send())
    for i = 1, FLIGHT do
      local fine, sum = futures[i]:wait()
      assert(fine and sum == 3)
    end
  end, FLIGHT, seconds)
end

local function client(at, seconds)
  local session <close> = connect(at)
  local add = session.remote.add
  assert(add(1, 2) == 3)
  ipc.parent:put "ready"
  assert(ipc.parent:get(PATIENCE))
  local n, finish = 0, ipc.now() + seconds
  repeat
    for _ = 1, BATCH do
      assert(add(1, 2) == 3)
    end
    n = n + BATCH
  until ipc.now() >= finish
  return n
end

function work.clients(at, seconds)
  local crew, total = {}, 0
  for i = 1, CLIENTS do
    crew[i] = assert(ipc.fork(client, at, seconds))
    assert(crew[i]:get(PATIENCE))
  end
  for _, each in ipairs(crew) do
    assert(each:put "go")
  end
  for _, each in ipairs(crew) do
    total = total + select(2, assert(each:wait(PATIENCE)))
  end
  return seconds / total * 1e9
end

if work[arg[1]] then
  local what, where, seconds, mechanism = table.unpack(arg)
  local server <close> = assert(ipc.fork(serve, address[mechanism], where))
  local at = assert(server:get(PATIENCE))
  place(where, 0)
  print(("%.1f"):format(work[what](at, tonumber(seconds))))
  server:stop()
  os.exit(true, true)
end

-- ---- the rounds

local rounds, seconds, wanted = tonumber(arg[1]) or 5, tonumber(arg[2]) or 0.3, arg[3] or ""
local BUILD <const>, PEERS <const> = "build/bench/", "build/bench/peers/"

local function has(command)
  return os.execute("{ " .. command .. "; } >/dev/null 2>&1")
end

local function sh(format, ...)
  local command = format:format(...)
  if not os.execute(command) then
    error("failed: " .. command, 0)
  end
end

sh("mkdir -p %s", PEERS)
sh("${CC:-cc} -O2 -o %spingpong bench/pingpong.c", BUILD)

-- A program of peers/, compiled; nil where `headers` and `programs` are missing.
local function peer(source, headers, programs, flags, generate)
  for header in headers:gmatch "%S+" do
    if not has(("echo '#include <%s>' | ${CXX:-c++} -E -xc++ -"):format(header)) then
      return nil
    end
  end
  for program in programs:gmatch "%S+" do
    if not has("command -v " .. program) then
      return nil
    end
  end
  if generate then
    sh("cd bench/peers && " .. generate, PEERS, PEERS)
  end
  local program = PEERS .. source:gsub("%.%w+$", "")
  sh("%s -O2 -I%s -o %s bench/peers/%s %s", source:find "%.cpp$" and "${CXX:-c++}" or "${CC:-cc}", PEERS,
    program, source, flags)
  return function(what, where)
    return ("%s %s %s %g"):format(program, what, where, seconds)
  end
end

-- One of python3's, which is not always the one that has the modules.
local function python(kind, module, program)
  for _, name in ipairs { "python3", "/usr/bin/python3" } do
    if has(("%s -c 'import %s' && command -v %s"):format(name, module, program)) then
      return function(what, where)
        return ("%s bench/peers/call.py %s %s %g %s"):format(name, what, where, seconds, kind)
      end
    end
  end
end

local function ours(mechanism)
  return function(what, where)
    return ("%s bench/rpc.lua %s %s %g %s"):format(LUA, what, where, seconds, mechanism)
  end
end

-- 64 bytes there and back, which are no calls.
local function raw(mechanism)
  return function(what, where)
    return what == "sequence" and
      ("%spingpong %s learning %s %g"):format(BUILD, mechanism, where, seconds) or nil
  end
end

local COLUMNS <const> = {
  { "across", "sequence", "across" }, { "one core", "sequence", "one" }, { "in flight", "flight", "across" },
  { "clients", "clients", "any" },
}

-- `most`: us of each column at the most, on the reference machine (two cores of a
-- virtual machine, Linux 6.18). `unix`: how many times unix's time a peer's is to
-- be, at least; shm's is to be less than each of them in each column.
local NEVER_BEHIND <const> = { 7, 1, 1 }
local rows = {
  { name = "ours, shm", command = ours "shm", most = { 1.5, 4, 0.8 } },
  { name = "ours, unix", command = ours "unix", most = { 6, 8, 2 } },
  { name = "ours, tcp", command = ours "tcp" },
  { name = "raw C, ring", command = raw "ring" },
  { name = "raw C, unix stream", command = raw "stream" },
  { name = "Redis PING, hiredis", unix = NEVER_BEHIND,
    command = peer("call_redis.c", "hiredis/hiredis.h", "redis-server", "-lhiredis") },
  { name = "python managers", command = python("managers", "multiprocessing.managers", "true"), unix = NEVER_BEHIND },
  { name = "Cap'n Proto, C++", unix = NEVER_BEHIND,
    command = peer("call_capnp.cpp", "capnp/ez-rpc.h", "capnp", PEERS ..
      "call.capnp.c++ -lcapnp-rpc -lcapnp -lkj-async -lkj", "capnp compile -oc++:../../%s call.capnp") },
  { name = "ZeroMQ, C", command = peer("call_zeromq.c", "zmq.h", "", "-lzmq"), unix = NEVER_BEHIND },
  { name = "gRPC, C++", unix = NEVER_BEHIND,
    command = peer("call_grpc.cpp", "grpcpp/grpcpp.h", "protoc grpc_cpp_plugin pkg-config", PEERS ..
      "call.pb.cc " .. PEERS .. "call.grpc.pb.cc $(pkg-config --libs grpc++ protobuf) -pthread",
      "protoc --cpp_out=../../%s --grpc_out=../../%s" ..
      " --plugin=protoc-gen-grpc=$(command -v grpc_cpp_plugin) call.proto") },
  { name = "nng, C", command = peer("call_nng.c", "nng/nng.h", "", "-lnng"), unix = NEVER_BEHIND },
  { name = "NATS request, C", unix = NEVER_BEHIND,
    command = peer("call_nats.c", "nats/nats.h", "nats-server", "-lnats") },
  { name = "pynvim to Neovim", command = python("pynvim", "pynvim", "nvim"), unix = NEVER_BEHIND },
}

local troubles = {}

-- The number a program prints, or nil.
local function run(command)
  local p <close> = assert(io.popen("timeout 120 " .. command .. " 2>&1"))
  local said = p:read "a"
  local number = tonumber(said)
  if not number and not said:find "^one at a time" and not troubles[command] then
    troubles[command] = true
    troubles[#troubles + 1] = command .. "\n    " .. said:gsub("\n", "\n    ")
  end
  return number
end

local function median(list)
  local sorted = {}
  for i = 1, rounds do
    sorted[#sorted + 1] = list[i] or nil
  end
  table.sort(sorted)
  return sorted[#sorted // 2 + 1]
end

-- The median of a's samples over b's, round by round.
local function ratio(a, b)
  local list = {}
  for round = 1, rounds do
    list[round] = a[round] and b[round] and a[round] / b[round]
  end
  return median(list)
end

local chosen = {}
for i, row in ipairs(rows) do
  row.samples = { {}, {}, {}, {} }
  if i <= 2 or row.name:lower():find(wanted:lower(), 1, true) then
    chosen[#chosen + 1] = row
  end
end

for round = 1, rounds do
  for _, row in ipairs(chosen) do
    for i, column in ipairs(COLUMNS) do
      local what, where = column[2], column[3]
      local command = row.command and (where ~= "across" or ipc.cpus() > 1) and row.command(what, where)
      row.samples[i][round] = command and run(command)
    end
  end
end

local function number(x)
  return x and (x < 10 and "%.2f" or x < 100 and "%.1f" or "%.0f"):format(x) or "-"
end

local shorts = {}

local function goal(met, format, ...)
  if not met then
    shorts[#shorts + 1] = format:format(...)
  end
end

local LINE <const> = "%-20s %8s %8s %9s %8s   %s"
local titles = {}
for i, column in ipairs(COLUMNS) do
  titles[i] = column[1]
end
titles[#titles + 1] = "the same, times shm / times unix"
print(("us a call of add(1, 2), medians of %d rounds"):format(rounds))
print((LINE:format("", table.unpack(titles)):gsub(" +$", "")))
local shm, unix = rows[1].samples, rows[2].samples
for _, row in ipairs(chosen) do
  if not row.command then
    print(("%-20s not installed"):format(row.name))
  else
    local cells, times = {}, {}
    for i in ipairs(COLUMNS) do
      local ns, name = median(row.samples[i]), row.name .. ", " .. COLUMNS[i][1]
      local x, y = ratio(row.samples[i], shm[i]), ratio(row.samples[i], unix[i])
      cells[i] = number(ns and ns / 1e3)
      times[i] = x and y and row.unix and ("%s / %s"):format(number(x), number(y)) or nil
      if ns and row.most and row.most[i] then
        goal(ns / 1e3 <= row.most[i], "%s: %s us, goal %g", name, number(ns / 1e3), row.most[i])
      end
      if x and row.unix then
        goal(x > 1, "%s: shm takes %s of its time, goal less", name, number(1 / x))
      end
      if y and row.unix and row.unix[i] then
        goal(y >= row.unix[i], "%s: unix is %s times faster, goal %g", name, number(y), row.unix[i])
      end
    end
    for i in ipairs(COLUMNS) do
      times[i] = times[i] or row.unix and "-" or ""
    end
    print((LINE:format(row.name, cells[1], cells[2], cells[3], cells[4], table.concat(times, "  ")):gsub(" +$", "")))
  end
end

print(("\n%d short of their goals%s"):format(#shorts, #shorts > 0 and ":" or "."))
for _, text in ipairs(shorts) do
  print("  " .. text)
end
for _, text in ipairs(troubles) do
  io.stderr:write("failed: ", text, "\n")
end
os.exit(#troubles == 0)
