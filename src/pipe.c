/* Anonymous pipes: pipe(7). One way, between related processes; a duplex pipe
 * is two of them. As messages (frames), as packets, or as a stream of bytes. */
#include "prefix.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include "frame.h"
#include "ipc.h"
#include "os.h"
#include "packet.h"

/***
 * @submodule ipc
 */

/* ------------------------------------------------------------ system half */

enum {
  PIPE_LEAD = 1,      /* an empty packet write is dropped, pipe(2) */
  PIPE_PACKET = 4096, /* and a longer one is split */
  PIPE_CAPACITY = 1 << 30
};

static const StreamOps pipe_stream = {
    .read = ipc_os_read, .write = ipc_os_write, .atomic = PIPE_BUF};

static int pipe_receive(int fd, void *bytes, size_t room, size_t *got,
                        bool *end) {
  int err = ipc_os_read(fd, bytes, room, got);
  *end = !err && *got == 0;
  return err;
}

static const PacketOps pipe_packets = {.receive = pipe_receive,
                                       .send = ipc_os_write};

static const HandleOps pipe_handle = {.type = "ipc.pipe",
                                      .descriptor = ipc_frame_descriptor,
                                      .ready = ipc_packet_ready,
                                      .close = ipc_frame_close};

typedef struct PipeOptions {
  bool duplex, packet, stream;
  size_t capacity;
} PipeOptions;

/* One pipe with its room; nothing is left open on failure. */
static int pipe_make(int fd[2], const PipeOptions *o) {
  size_t got = 0;
  int err = ipc_os_pipe(fd, o->packet);
  if (err || !o->capacity)
    return err;
  err = ipc_os_capacity(fd[1], o->capacity, &got);
  if (err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err;
}

/* --------------------------------------------------------------- Lua half */

static Framed *pipe_end(lua_State *L, int options, const PipeOptions *o,
                        int mode) {
  Framed *f = ipc_frame_new(L, sizeof *f, &pipe_handle, &pipe_stream, mode);
  f->c.stream = o->stream;
  if (o->packet)
    ipc_packet_make(f, &pipe_packets, PIPE_LEAD, PIPE_PACKET - PIPE_LEAD);
  f->limited = ipc_option_size(L, options, "maxsize", 0, SIZE_MAX, 0) > 0;
  ipc_chan_options(L, options, &f->c,
                   o->packet ? PIPE_PACKET - PIPE_LEAD : FRAME_MOST);
  return f;
}

static int pipe_pair(lua_State *L, int options, const PipeOptions *o) {
  Framed *a =
      pipe_end(L, options, o, o->duplex ? IPC_READ | IPC_WRITE : IPC_READ);
  Framed *b =
      pipe_end(L, options, o, o->duplex ? IPC_READ | IPC_WRITE : IPC_WRITE);
  int ab[2] = {-1, -1}, ba[2] = {-1, -1};
  int err = pipe_make(ba, o);
  if (!err && o->duplex) {
    err = pipe_make(ab, o);
    if (err) {
      close(ba[0]);
      close(ba[1]);
    }
  }
  if (err)
    return ipc_fail(L, pipe_handle.type, "open", err,
                    err == EPERM || err == EBUSY
                        ? "capacity is limited by fs.pipe-max-size, "
                          "fs.pipe-user-pages-soft and -hard"
                        : NULL);
  a->rfd = ba[0];
  b->wfd = ba[1];
  b->rfd = ab[0];
  a->wfd = ab[1];
  ipc_handle_open(&a->c.h);
  ipc_handle_open(&b->c.h);
  return 2;
}

static PipeOptions pipe_options(lua_State *L, int index) {
  static const char *const names[] = {"duplex", "packet", "capacity", "unit",
                                      NULL};
  static const char *const units[] = {"message", "stream", NULL};
  PipeOptions o;
  lua_settop(L, index);
  ipc_options(L, index, names);
  o.duplex = ipc_option_flag(L, index, "duplex", false);
  o.packet = ipc_option_flag(L, index, "packet", false);
  o.capacity = ipc_option_size(L, index, "capacity", 1, PIPE_CAPACITY, 0);
  o.stream = ipc_option_choice(L, index, "unit", units) == 1;
  if (o.packet && o.stream)
    luaL_argerror(L, index, "packets are messages: unit = \"stream\" without");
  return o;
}

/***
Makes an anonymous pipe, pipe(7), between this process and its children or
among them: a reader and a writer.

Several processes may write if their messages fit 4,092 bytes (PIPE_BUF less
the frame's length, which the kernel keeps whole); only one may read, unless
`packet = true`.
@function pipe
@tparam[opt] table options every room's, and: `duplex` (false): two pipes, both
ends send and receive; `capacity`: bytes the kernel holds (Linux; by default
the system's, 64 KiB there); `packet` (false): each message is one packet, at
most 4,095 bytes, any number of readers and writers (Linux); `unit` ("message"
or "stream")
@treturn channel reader (with `duplex`: one end)
@treturn channel writer (with `duplex`: the other); or nil, message, errno:
EMFILE, EPERM when capacity is over fs.pipe-max-size, ENOTSUP for packets and
capacity elsewhere
@usage local reader, writer = ipc.pipe()
*/
static int pipe_open(lua_State *L) {
  PipeOptions o = pipe_options(L, 1);
  return pipe_pair(L, 1, &o);
}

static int pipe_connected(lua_State *L) {
  PipeOptions o = pipe_options(L, 2);
  o.duplex = true;
  return pipe_pair(L, 2, &o);
}

static void pipe_setup(lua_State *L) { ipc_chan_type(L, &pipe_handle, NULL); }

static const luaL_Reg pipe_functions[] = {{"pipe", pipe_open}, {NULL, NULL}};

static const char *const pipe_schemes[] = {"pipe", NULL};

static const Kind pipe_kinds[] = {
    {"pipe", "pipe", "one way", "message, stream", "related",
     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR},
    {"pipe, packets", "pipe?packet=true", "one way", "message", "related",
     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR | IPC_MANY_READERS |
         IPC_MANY_WRITERS},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool pipe_has(const Kind *k) {
  int fd[2];
  int err = ipc_os_pipe(fd, (k->capabilities & IPC_MANY_READERS) != 0);
  if (!err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err != ENOTSUP;
}

const Room ipc_room_pipe = {.name = "pipe",
                            .schemes = pipe_schemes,
                            .functions = pipe_functions,
                            .kinds = pipe_kinds,
                            .has = pipe_has,
                            .pair = pipe_connected,
                            .setup = pipe_setup};
