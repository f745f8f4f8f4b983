rockspec_format = "3.0"
package = "lua-ipc"
version = "scm-1"

source = {
  url = "git+https://github.com/lua-ipc/lua-ipc.git",
}

description = {
  summary = "Inter-process communication",
  detailed = [[
Pipes, FIFOs, sockets, System V and POSIX message queues, shared memory and
memory maps behind one set of calls, with values, processes, waiting and RPC
on top.]],
  homepage = "https://github.com/lua-ipc/lua-ipc",
  license = "MIT",
  labels = { "ipc", "posix", "concurrency", "networking" },
}

supported_platforms = { "unix" }

dependencies = {
  "lua >= 5.4, < 5.5",
}

build = {
  type = "builtin",
  modules = {
    ["ipc.core"] = {
      sources = {
        "src/buffer.c",
        "src/chan.c",
        "src/core.c",
        "src/decoder.c",
        "src/encode.c",
        "src/error.c",
        "src/fork.c",
        "src/frame.c",
        "src/handle.c",
        "src/listener.c",
        "src/msgpack.c",
        "src/opts.c",
        "src/os_linux.c",
        "src/os_posix.c",
        "src/os_unix.c",
        "src/pack.c",
        "src/packet.c",
        "src/pipe.c",
        "src/poller.c",
        "src/process.c",
        "src/recv.c",
        "src/send.c",
        "src/socket.c",
        "src/task.c",
        "src/unpack.c",
        "src/wait.c",
      },
      libraries = { "pthread" },
    },
    ["ipc.address"] = "lua/ipc/address.lua",
    ["ipc.cqueues"] = "lua/ipc/cqueues.lua",
    ["ipc"] = "lua/ipc/init.lua",
  },
}

test = {
  type = "command",
  command = "busted",
}
