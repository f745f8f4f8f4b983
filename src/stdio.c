/* Descriptors that this process was given: 0 and 1 as one channel, and any
 * other by its number. Their open file descriptions are shared with whoever
 * else holds them, so their flags are never touched. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frame.h"
#include "ipc.h"
#include "os.h"

/***
 * @submodule ipc
 */

/* ------------------------------------------------------------ system half */

typedef enum Nature { STDIO_OTHER, STDIO_FILE, STDIO_SOCKET } Nature;

/* By the natures of what is read and what is written. */
static const StreamOps stdio_stream[3][3] = {
    {{.read = ipc_os_read_shared, .write = ipc_os_write_shared},
     {.read = ipc_os_read_shared, .write = ipc_os_write},
     {.read = ipc_os_read_shared, .write = ipc_os_send}},
    {{.read = ipc_os_read, .write = ipc_os_write_shared},
     {.read = ipc_os_read, .write = ipc_os_write},
     {.read = ipc_os_read, .write = ipc_os_send}},
    {{.read = ipc_os_receive, .write = ipc_os_write_shared},
     {.read = ipc_os_receive, .write = ipc_os_write},
     {.read = ipc_os_receive,
      .write = ipc_os_send,
      .shutdown = ipc_os_end_sending}}};

static const HandleOps stdio_handle = {.type = "ipc.stdio",
                                       .descriptor = ipc_frame_descriptor,
                                       .ready = ipc_frame_ready,
                                       .close = ipc_frame_close};

static Nature stdio_nature(const struct stat *st) {
  return S_ISSOCK(st->st_mode)  ? STDIO_SOCKET
         : S_ISREG(st->st_mode) ? STDIO_FILE
                                : STDIO_OTHER;
}

/* What keeps messages apart by itself would lose here what a read has no room
 * for, in silence: EPROTOTYPE, and *what it is. */
static int stdio_packets(int fd, const char **what) {
  struct stat st;
  int type = SOCK_STREAM;
  socklen_t size = sizeof type;
  if (fd < 0 || fstat(fd, &st))
    return 0;
  if (S_ISSOCK(st.st_mode) &&
      getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 &&
      type != SOCK_STREAM) {
    *what = "a socket of packets";
    return EPROTOTYPE;
  }
  int flags = S_ISFIFO(st.st_mode) ? fcntl(fd, F_GETFL) : -1;
  if (flags >= 0 && ipc_os_is_packets(flags)) {
    *what = "a pipe of packets";
    return EPROTOTYPE;
  }
  return 0;
}

/* Gives f what it reads from and what it writes to (-1: nothing). */
static int stdio_own(Framed *f, int rfd, int wfd) {
  const int fd[2] = {rfd, wfd};
  Nature nature[2] = {STDIO_OTHER, STDIO_OTHER};
  struct stat st;
  for (int i = 0; i < 2; i++) {
    if (fd[i] >= 0 && fstat(fd[i], &st))
      return errno;
    if (fd[i] >= 0)
      nature[i] = stdio_nature(&st);
  }
  f->io = &stdio_stream[nature[0]][nature[1]];
  f->rfd = rfd;
  f->wfd = wfd;
  return 0;
}

/* What of mode bits the descriptor can; 0 and errno: it is none. */
static int stdio_mode(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0)
    return 0;
  switch (flags & O_ACCMODE) {
  case O_RDONLY:
    return IPC_READ;
  case O_WRONLY:
    return IPC_WRITE;
  default:
    return IPC_READ | IPC_WRITE;
  }
}

/* Takes the descriptor over. One that is no socket and serves both ways gets a
 * second one, so that sending can end alone. */
static int stdio_adopt(Framed *f, int fd, int mode) {
  int wfd = fd;
  struct stat st;
  if (fstat(fd, &st))
    return errno;
  int both = IPC_READ | IPC_WRITE;
  int err = mode == both && !S_ISSOCK(st.st_mode) ? ipc_os_dup(fd, &wfd) : 0;
  if (!err && fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
    err = errno;
  if (!err)
    err = stdio_own(f, mode & IPC_READ ? fd : -1, mode & IPC_WRITE ? wfd : -1);
  if (err && wfd != fd && wfd >= 0)
    close(wfd);
  return err;
}

/* Takes 0 and 1, which one socket may be (inetd). */
static int stdio_standard(Framed *f) {
  int fd[2];
  struct stat r, w;
  int err = ipc_os_take_standard(fd);
  if (err)
    return err;
  if (!fstat(fd[0], &r) && !fstat(fd[1], &w) && S_ISSOCK(r.st_mode) &&
      r.st_dev == w.st_dev && r.st_ino == w.st_ino) {
    close(fd[1]);
    fd[1] = fd[0];
  }
  return stdio_own(f, fd[0], fd[1]);
}

/* --------------------------------------------------------------- Lua half */

static Framed *stdio_new(lua_State *L, int options, int mode, bool stream) {
  Framed *f = ipc_frame_new(L, sizeof *f, &stdio_handle,
                            &stdio_stream[STDIO_OTHER][STDIO_OTHER], mode);
  f->c.stream = stream;
  f->limited = ipc_option_size(L, options, "maxsize", 0, SIZE_MAX, 0) > 0;
  ipc_chan_options(L, options, &f->c, FRAME_MOST);
  return f;
}

#define PACKETS "descriptor %d is %s, which reads would cut"

static const char *const stdio_names[] = {"unit", NULL};

static int stdio_take(lua_State *L, int options) {
  static const char *const units[] = {"stream", "message", NULL};
  ipc_options(L, options, stdio_names);
  bool stream = ipc_option_choice(L, options, "unit", units) == 0;
  for (int fd = 0; fd < 2; fd++) {
    const char *what;
    int err = stdio_packets(fd, &what);
    if (err)
      return ipc_fail(L, stdio_handle.type, "open", err,
                      lua_pushfstring(L, PACKETS, fd, what));
  }
  Framed *f = stdio_new(L, options, IPC_READ | IPC_WRITE, stream);
  int err = stdio_standard(f);
  if (err)
    return ipc_fail(L, stdio_handle.type, "open", err,
                    err == EBUSY ? "descriptors 0 and 1 are taken already"
                                 : "descriptors 0 and 1");
  ipc_handle_open(&f->c.h);
  return 1;
}

/***
Takes standard input and output as one channel, `stdio:`, for a program that
speaks with whoever started it: a filter in a shell pipe, a server under inetd,
the other side of a process with pipes. From then on `print` and `io.write` go
to standard error, and `io.read` finds the end: nothing disturbs what is said.
Call it before anything is read from `io.stdin`.

Other descriptors that the process was given are opened by their number,
`ipc.open("fd:3")`, and belong to the channel then: close closes them, programs
started later do not get them. Their mode is by default what they can.

The flags of such descriptors are shared with other processes and never
touched. Where the system cannot read or write without waiting for once (Linux
can on pipes and sockets), two processes that read the same terminal or FIFO may
make one of them wait for longer than its deadline.
@function stdio
@tparam[opt] table options every room's, and: `unit` ("stream" here, "message"
for `fd:`; or the other)
@treturn channel; or nil, message, errno: EBUSY: taken already; EBADF: not open,
or (`fd:`) not for what mode asks; EPROTOTYPE: a socket or pipe of packets, of
which a read would lose what it has no room for
@usage local peer = ipc.stdio()
for line in peer:lines() do peer:send(line:upper() .. "\n") end
*/
static int stdio_open(lua_State *L) {
  lua_settop(L, 1);
  return stdio_take(L, 1);
}

/* A handle of ours on this descriptor, or NULL. */
static const Handle *stdio_holder(lua_State *L, int fd) {
  for (const Handle *h = ipc_state(L)->handles; h; h = h->next)
    for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1)
      if (h->generation == ipc_generation && h->ops->descriptor(h, want) == fd)
        return h;
  return NULL;
}

static int stdio_number(lua_State *L) {
  const char *text = luaL_checkstring(L, 1);
  size_t digits = strspn(text, "0123456789");
  luaL_argcheck(L, digits > 0 && digits < 10 && !text[digits], 1,
                "fd: a descriptor's number expected");
  int fd = (int)strtol(text, NULL, 10);
  luaL_argcheck(L, fd > 2, 1, "fd: 0 to 2 are standard: see ipc.stdio");
  return fd;
}

/* fd:3 */
static int stdio_given(lua_State *L) {
  static const char *const units[] = {"message", "stream", NULL};
  enum { BOTH = IPC_READ | IPC_WRITE };
  int fd = stdio_number(L);
  int can = stdio_mode(fd), reason = errno;
  int mode = ipc_check_mode(L, 2, can ? can : BOTH);
  ipc_options(L, 3, stdio_names);
  bool stream = ipc_option_choice(L, 3, "unit", units) == 1;
  const Handle *holder = stdio_holder(L, fd);
  const char *what = lua_pushfstring(L, "descriptor %d", fd);
  Framed *f = stdio_new(L, 3, mode, stream);
  int err = 0;
  if (!can) {
    err = reason;
  } else if (holder) {
    err = EBUSY;
    what = lua_pushfstring(L, "%s is of an %s here", what, holder->ops->type);
  } else if (mode & ~can) {
    err = EBADF;
    what = lua_pushfstring(L, "%s is not open for %s", what,
                           can == IPC_READ ? "writing" : "reading");
  } else {
    const char *is;
    err = stdio_packets(fd, &is);
    if (err)
      what = lua_pushfstring(L, PACKETS, fd, is);
    else
      err = stdio_adopt(f, fd, mode);
  }
  if (err)
    return ipc_fail(L, stdio_handle.type, "open", err, what);
  ipc_handle_open(&f->c.h);
  lua_pushvalue(L, -1);
  return 1;
}

/* (rest, mode, options, scheme) */
static int stdio_address(lua_State *L) {
  lua_settop(L, 4);
  if (strcmp(luaL_checkstring(L, 4), "fd") == 0)
    return stdio_given(L);
  luaL_argcheck(L, lua_rawlen(L, 1) == 0, 1, "stdio: has no name");
  if (ipc_check_mode(L, 2, IPC_READ | IPC_WRITE) != (IPC_READ | IPC_WRITE))
    luaL_argerror(L, 2, "stdio: is both, mode \"rw\"");
  return stdio_take(L, 3);
}

static void stdio_setup(lua_State *L) { ipc_chan_type(L, &stdio_handle, NULL); }

static const luaL_Reg stdio_functions[] = {{"stdio", stdio_open}, {NULL, NULL}};

static const char *const stdio_schemes[] = {"stdio", "fd", NULL};

const Room ipc_room_stdio = {.name = "stdio",
                             .schemes = stdio_schemes,
                             .functions = stdio_functions,
                             .open = stdio_address,
                             .types = stdio_setup};
