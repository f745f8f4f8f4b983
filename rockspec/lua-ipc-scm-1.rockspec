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
        "src/bind.c",
        "src/broadcast.c",
        "src/buffer.c",
        "src/bytes.c",
        "src/cell.c",
        "src/chan.c",
        "src/cmsg.c",
        "src/core.c",
        "src/crc32c.c",
        "src/decoder.c",
        "src/dial.c",
        "src/encode.c",
        "src/error.c",
        "src/fields.c",
        "src/fifo.c",
        "src/filelock.c",
        "src/fork.c",
        "src/format.c",
        "src/frame.c",
        "src/handle.c",
        "src/journal.c",
        "src/journals.c",
        "src/layout.c",
        "src/listen.c",
        "src/listener.c",
        "src/lock.c",
        "src/lockkinds.c",
        "src/lockopen.c",
        "src/locks.c",
        "src/log.c",
        "src/logcheck.c",
        "src/logfile.c",
        "src/logkeep.c",
        "src/logread.c",
        "src/lookup.c",
        "src/member.c",
        "src/memories.c",
        "src/memory.c",
        "src/mmap.c",
        "src/mqueue.c",
        "src/msgpack.c",
        "src/msgq.c",
        "src/node.c",
        "src/opening.c",
        "src/opts.c",
        "src/os_linux.c",
        "src/os_memory.c",
        "src/os_mqueue.c",
        "src/os_posix.c",
        "src/os_unix.c",
        "src/pack.c",
        "src/packet.c",
        "src/passing.c",
        "src/pipe.c",
        "src/plain.c",
        "src/poller.c",
        "src/process.c",
        "src/record.c",
        "src/recv.c",
        "src/ring.c",
        "src/ringlend.c",
        "src/rings.c",
        "src/ringwait.c",
        "src/segment.c",
        "src/send.c",
        "src/shm.c",
        "src/sock.c",
        "src/sockaddr.c",
        "src/socket.c",
        "src/stdio.c",
        "src/struct.c",
        "src/sysv.c",
        "src/task.c",
        "src/unpack.c",
        "src/vector.c",
        "src/versioned.c",
        "src/view.c",
        "src/wait.c",
        "src/waiter.c",
        "src/watch.c",
        "src/words.c",
      },
      libraries = { "pthread" },
    },
    ["ipc.address"] = "lua/ipc/address.lua",
    ["ipc.clock"] = "lua/ipc/clock.lua",
    ["ipc.cqueues"] = "lua/ipc/cqueues.lua",
    ["ipc.handover"] = "lua/ipc/handover.lua",
    ["ipc"] = "lua/ipc/init.lua",
    ["ipc.rendezvous"] = "lua/ipc/rendezvous.lua",
  },
}

test = {
  type = "command",
  command = "busted",
}
