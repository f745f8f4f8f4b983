-- What `make bench` measures: its sections, and the goals of their rows.

local sections = {}

-- What raw C calls it.
sections.RAW = {
  ["pipe"] = "pipe",
  ["fifo"] = "fifo",
  ["fifo, with its lock"] = "fifo",
  ["pipe, packets"] = "packets",
  ["unix stream"] = "stream",
  ["unix seqpacket"] = "seqpacket",
  ["unix datagram"] = "datagram",
  ["tcp"] = "tcp",
  ["udp"] = "udp",
  ["System V queue"] = "sysv",
  ["POSIX queue"] = "mqueue",
  ["queue"] = "ring",
  ["shm"] = "ring",
  ["mmap"] = "ring",
}

-- Ways to use a mechanism that cost something else.
sections.MORE = { { name = "fifo, with its lock", address = "fifo?writers=2", of = "fifo" } }

-- Rings in shared memory: ring.lua's word for each.
sections.RINGS = {
  { name = "queue, 1 to 1", kind = "sole" },
  { name = "queue, many", kind = "queue" },
  { name = "shm", kind = "shm" },
  { name = "mmap", kind = "mmap" },
}

-- Other libraries that do the same between two processes: programs in peers/.
-- `header`: what is there if it is installed; `needs`: what it runs. In Debian:
-- libboost-dev, libzmq3-dev, libnng-dev, libiceoryx-posh-dev and iceoryx.
sections.PEERS = {
  boost = {
    name = "Boost message_queue", source = "boost.cpp",
    header = "boost/interprocess/ipc/message_queue.hpp", flags = "-lrt -pthread",
  },
  zeromq = { name = "ZeroMQ", source = "zeromq.c", header = "zmq.h", flags = "-lzmq" },
  nng = { name = "nng", source = "nng.c", header = "nng/nng.h", flags = "-lnng" },
  iceoryx = {
    name = "iceoryx, polling", source = "iceoryx.cpp",
    header = "iceoryx_posh/runtime/posh_runtime.hpp", needs = "iox-roudi",
    flags = "-std=c++17 -liceoryx_posh -liceoryx_hoofs -liceoryx_platform -pthread",
    include = "/usr/include/iceoryx/v*",
  },
  shared = { name = "python, polling", python = "shared" },
  pipe = { name = "python Pipe", python = "pipe" },
}

-- `raw`: at most so many times raw C's time; `python`: at least so many times
-- faster than python3; `most`: at most so much on the reference machine (two
-- cores of a virtual machine, Linux 6.18), where there is no such raw C;
-- `beside`: at most so many times the time of another mechanism's raw C.
--
-- Of rings, `than`: at most so many times the time of another row of this
-- library; `peers`: so many times faster the first row is to be, at least.
sections.LIST = {
  {
    title = "Round trip of 64 bytes, across cores",
    unit = "us", work = "pingpong", place = "across", against = "learning", python = 12,
    raw = {
      fifo = 1.25, pipe = 1.25, ["pipe, packets"] = 1.25, ["unix stream"] = 1.2, ["unix seqpacket"] = 1.2,
      ["unix datagram"] = 1.2, tcp = 1.15, udp = 1.2, ["POSIX queue"] = 1.25,
    },
    beside = { ["System V queue"] = { "pipe", 1.25 } },
  },
  {
    title = "Round trip of 64 bytes, on one core",
    unit = "us", work = "pingpong", place = "one", against = "learning", python = 1,
    raw = {
      fifo = 1.25, pipe = 1.25, ["pipe, packets"] = 1.25, ["unix stream"] = 1.2, ["unix seqpacket"] = 1.2,
      ["unix datagram"] = 1.2, tcp = 1.15, udp = 1.2, ["POSIX queue"] = 1.25,
    },
    beside = { ["System V queue"] = { "pipe", 1.25 } },
  },
  {
    title = "One way, 64 bytes, send and recv, across cores",
    unit = "ns", work = "small", place = "across", python = 1,
    raw = {
      fifo = 1.5, pipe = 1.5, ["pipe, packets"] = 1.5, ["unix stream"] = 1.15, ["unix seqpacket"] = 1.25,
      ["unix datagram"] = 1.25, tcp = 1.1, ["System V queue"] = 1.3, ["POSIX queue"] = 1.1,
    },
  },
  {
    title = "One way, 64 bytes, sendmany and recvmany, across cores",
    unit = "ns", work = "many", place = "across",
    most = { pipe = 130, fifo = 130, ["unix stream"] = 110, tcp = 120 },
  },
  {
    title = "One way, 1 MiB, across cores",
    unit = "us", work = "large", place = "across", python = 1,
    raw = {
      pipe = 1.15, fifo = 1.15, ["unix stream"] = 1.4, ["unix seqpacket"] = 1.8, ["unix datagram"] = 1.8,
      tcp = 1.4,
    },
  },
  {
    -- Who polls is not there on one core, and has no wake-up to pay for across.
    title = "Shared memory: round trip of 64 bytes, across cores",
    unit = "us", work = "pingpong", place = "across", against = "learning", rings = true,
    raw = { ["queue, 1 to 1"] = 1.6 },
    peers = { boost = 100, zeromq = 100, nng = 100, pipe = 100, iceoryx = 5, shared = 1 },
  },
  {
    title = "Shared memory: round trip of 64 bytes, on one core",
    unit = "us", work = "pingpong", place = "one", against = "learning", rings = true,
    raw = { ["queue, 1 to 1"] = 1.4 },
    peers = { boost = 1, zeromq = 1, nng = 1, pipe = 1 },
  },
  {
    title = "Shared memory: one way, 64 bytes, send and recv, across cores",
    unit = "ns", work = "small", place = "across", rings = true,
    most = { ["queue, 1 to 1"] = 78 },
    than = { ["queue, many"] = { "queue, 1 to 1", 1.3 } },
    peers = { boost = 2, zeromq = 2, nng = 2, pipe = 2, iceoryx = 2, shared = 2 },
  },
  {
    title = "Shared memory: one way, 64 bytes, sendmany and recvmany, across cores",
    unit = "ns", work = "many", place = "across", rings = true,
    most = { ["queue, 1 to 1"] = 43 },
  },
  {
    title = "Shared memory: one way, 1 MiB, across cores",
    unit = "us", work = "large", place = "across", rings = true,
    raw = { ["queue, 1 to 1"] = 1.5 },
    peers = { boost = 1, zeromq = 1, nng = 1, pipe = 1, iceoryx = 1, shared = 1 },
  },
  {
    title = "Shared memory: one way, 1 MiB, written and read in place, across cores",
    unit = "us", work = "place", place = "across", rings = true, only = "queue, 1 to 1",
    most = { ["queue, 1 to 1"] = 1 },
  },
  {
    title = "Shared memory: 64 bytes, writers to readers on all cores",
    unit = "ns", work = "crowd", place = "across",
    crowds = {
      { "1 to 1", 1, 1, "sole" }, { "1 to 1, of many", 1, 1, "many" }, { "4 to 4", 4, 4, "many" },
    },
    than = { ["4 to 4"] = { "1 to 1", 1.3 } },
  },
  {
    title = "Broadcast of 64 bytes, across cores: what one subscriber gets, what is sent",
    unit = "ns", work = "crowd", place = "across",
    crowds = {
      { "got, of 1", 1, 1, "broadcast" }, { "got, of 3", 1, 3, "broadcast" },
      { "sent, to 1", 1, 1, "broadcast", "sent" }, { "sent, to 3", 1, 3, "broadcast", "sent" },
    },
  },
  {
    -- "there": a recv with a timeout beside a msgrcv that would block; "wake":
    -- round trips in which both sides sleep, beside a pipe's.
    title = "System V queue: what is there, beside msgrcv; a wake-up, beside a pipe's",
    unit = "us", work = "waiting", place = "across", needs = "sysv", rows = { "there", "wake" },
    names = { there = "timed recv, is there", wake = "wake-up, spin = 0" },
    raw = { there = 1.1, wake = 2 },
  },
  {
    title = "Making and closing",
    unit = "us", work = "objects", rows = { "pipe", "unix", "fork" },
    names = { unix = "unix stream", fork = "fork, first message" },
    raw = { pipe = 2, unix = 2, fork = 1.3 },
  },
}

return sections
