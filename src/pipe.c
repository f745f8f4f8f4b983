/* Anonymous pipes: pipe(7). One way, between related processes; a duplex pipe
 * is two of them. As messages (frames), as packets, or as a stream of bytes. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
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

/* One that came from elsewhere. */
static const StreamOps pipe_shared = {.read = ipc_os_read_shared,
                                      .write = ipc_os_write_shared,
                                      .atomic = PIPE_BUF};

static int pipe_receive(Framed *f, void *bytes, size_t room, size_t *got,
                        bool *end) {
  int err = f->io->read(f->rfd, bytes, room, got);
  *end = !err && *got == 0;
  return err;
}

static int pipe_send(Framed *f, const struct iovec *iov, int count,
                     const Message *m) {
  size_t put;
  (void)m;
  return f->io->write(f->wfd, iov, count, &put);
}

static const PacketOps pipe_packets = {.receive = pipe_receive,
                                       .send = pipe_send};

static const HandleOps pipe_handle = {.type = "ipc.pipe",
                                      .descriptor = ipc_frame_descriptor,
                                      .ready = ipc_packet_ready,
                                      .close = ipc_frame_close,
                                      .give = ipc_frame_give};

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

static const Limit pipe_limits[] = {
    {"RLIMIT_NOFILE", "descriptors of a process, of every mechanism",
     "descriptors"},
    {"fs.pipe-max-size", "the capacity of a pipe, without privilege", "bytes"},
    {"fs.pipe-user-pages-soft",
     "all pipes of a user, before new ones are smaller; 0: nothing", "pages"},
    {"fs.pipe-user-pages-hard", "all pipes of a user; 0: nothing", "pages"},
    {NULL, NULL, NULL}};

static int pipe_refused(lua_State *L, const PipeOptions *o, int err) {
  static const char size[] = "fs.pipe-max-size";
  long long most = 0;
  const char *limit = NULL, *what = NULL;
  if (o->capacity && (err == EPERM || err == EBUSY)) {
    bool larger =
        ipc_os_limit(size, &most) == 0 && (long long)o->capacity > most;
    limit = larger ? size : "fs.pipe-user-pages-soft";
    what = lua_pushfstring(L, "capacity is %I", (LUAI_UACINT)o->capacity);
  } else if (err == EMFILE) {
    limit = "RLIMIT_NOFILE";
  }
  return limit ? ipc_fail_limit(L, pipe_handle.type, "open", err, what, limit)
               : ipc_fail(L, pipe_handle.type, "open", err, NULL);
}

static Framed *pipe_end(lua_State *L, int options, const PipeOptions *o,
                        int mode) {
  Framed *f = ipc_frame_new(L, sizeof *f, &pipe_handle, &pipe_stream, mode);
  f->c.stream = o->stream;
  if (o->packet)
    ipc_packet_make(f, &ipc_packet_ops, &pipe_packets, PIPE_LEAD,
                    PIPE_PACKET - PIPE_LEAD);
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
    return pipe_refused(L, o, err);
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

/* What a descriptor that came from elsewhere can do: IPC_READ, IPC_WRITE, 0: it
 * is no pipe, or one whose other holders could make our calls wait: *shared,
 * and it blocks. */
static int pipe_look(int fd, bool *packet, bool *shared) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || !ipc_os_is_pipe(fd))
    return 0;
  if (ipc_os_renew(fd, flags)) {
    *shared = true;
    if (!(flags & O_NONBLOCK))
      return 0;
  }
  *packet = ipc_os_is_packets(flags);
  int mode = flags & O_ACCMODE;
  return mode == O_RDONLY ? IPC_READ : mode == O_WRONLY ? IPC_WRITE : 0;
}

static int pipe_take(lua_State *L, Given *g) {
  PipeOptions o = {.stream = g->stream, .duplex = g->count == 2};
  bool packet = false, shared = false;
  int mode = pipe_look(g->fd[0], &o.packet, &shared);
  if (mode == 0)
    return EINVAL;
  if (o.duplex &&
      (mode != IPC_READ || pipe_look(g->fd[1], &packet, &shared) != IPC_WRITE ||
       packet != o.packet))
    return EINVAL;
  if (o.packet)
    o.stream = false;
  lua_pushnil(L); /* no options */
  Framed *f =
      pipe_end(L, lua_gettop(L), &o, o.duplex ? IPC_READ | IPC_WRITE : mode);
  lua_remove(L, -2);
  if (shared)
    f->io = &pipe_shared;
  if (g->limit > 0 && g->limit <= (o.packet ? f->c.limit : FRAME_MOST))
    f->c.limit = g->limit;
  if (mode == IPC_READ)
    f->rfd = g->fd[0];
  else
    f->wfd = g->fd[0];
  if (o.duplex)
    f->wfd = g->fd[1];
  ipc_handle_open(&f->c.h);
  return 0;
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
                            .limits = pipe_limits,
                            .pair = pipe_connected,
                            .take = pipe_take,
                            .types = pipe_setup};
