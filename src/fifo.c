/* Named pipes: fifo(7), mkfifo(3). One way, between strangers that know a path,
 * as messages (frames) or a stream of bytes. Opening never blocks in the
 * kernel. Several writers keep frames of any size whole by a lock on the FIFO
 * itself, flock(2); foreign writers know nothing of it. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "frame.h"
#include "ipc.h"
#include "os.h"

/***
 * @submodule ipc
 */

#ifndef PATH_MAX
#define PATH_MAX 4096 /* systems without a limit */
#endif

enum {
  FIFO_HEAD = 4, /* of a frame */
  FIFO_WHY = 96, /* bytes of an explanation */
  FIFO_TURNS = 8,
  FIFO_CAPACITY = 1 << 30
};

typedef struct Fifo {
  Framed f;
  uint8_t create;       /* IPC_ATTACH, ... */
  uint16_t permissions; /* of one made here */
  bool strict;          /* one that is there must have them */
  bool temporary, keepalive;
  bool sole;         /* readers: nobody else may read so */
  bool waits;        /* opening waits for the other side */
  bool many;         /* writers: take the lock */
  bool created;      /* here */
  bool opening;      /* not yet the user's */
  bool blind;        /* writing waits for what cannot be polled */
  bool lockless;     /* no locks on FIFOs here */
  bool held;         /* the lock, by this handle */
  bool gone;         /* the last reader, once found */
  int keep;          /* the other side, against `closed`; or -1 */
  int lock;          /* an open file description of its own; or -1 */
  Nanos since;       /* it waits for what naps look for; 0 */
  uint32_t capacity; /* to ask for, or 0 */
  dev_t device;
  ino_t inode;
  char path[]; /* empty: it has none any more */
} Fifo;

/* ---------------------------------------------------------------- reading */

/* Without a writer read(2) answers 0 bytes, whether none came yet or the last
 * one left; only poll(2) tells: POLLHUP once there was one (fifo(7)). */
static int fifo_read(int fd, void *bytes, size_t room, size_t *got) {
  bool left = false;
  for (int turn = 0; turn < FIFO_TURNS; turn++) {
    int err = ipc_os_read(fd, bytes, room, got);
    if (err || *got > 0)
      return err;
    struct pollfd p = {fd, POLLIN, 0};
    size_t ready = 0;
    if (ipc_os_poll(&p, 1, 0, &ready) || !ready)
      return EAGAIN;
    left = (p.revents & POLLHUP) != 0;
    if (left && !(p.revents & POLLIN)) /* else one wrote meanwhile: again */
      return 0;
  }
  return left ? 0 : EAGAIN; /* where the end itself is POLLIN */
}

static const StreamOps fifo_stream = {.read = fifo_read, .write = ipc_os_write};

/* ------------------------------------------------------------------ naps */

/* How long to wait before looking again, the longer the longer it lasts. */
static void fifo_nap(Fifo *f, uint32_t least, uint32_t most) {
  Nanos now = ipc_now();
  if (!f->since)
    f->since = now;
  Nanos nap = (now - f->since) / 2000;
  f->f.c.h.nap = nap < least ? least : nap > most ? most : (uint32_t)nap;
}

/* ------------------------------------------------------------------ names */

static const char *fifo_kind(mode_t mode) {
  return S_ISREG(mode)                    ? "a file"
         : S_ISDIR(mode)                  ? "a directory"
         : S_ISSOCK(mode)                 ? "a socket"
         : S_ISCHR(mode) || S_ISBLK(mode) ? "a device"
                                          : "no FIFO";
}

/* Whether to use what another user may have put there. */
static int fifo_check_owner(const Fifo *f, const struct stat *st, char *why) {
  if (f->create == IPC_ATTACH || st->st_uid == geteuid() || st->st_uid == 0)
    return 0;
  snprintf(why, FIFO_WHY,
           "it belongs to user %lu (create = false opens it all the same)",
           (unsigned long)st->st_uid);
  return EACCES;
}

/* What is there already: a FIFO, and the one asked for? */
static int fifo_check(Fifo *f, char *why) {
  struct stat st;
  if (lstat(f->path, &st))
    return errno;
  int err = S_ISLNK(st.st_mode) ? fifo_check_owner(f, &st, why) : 0;
  if (!err && S_ISLNK(st.st_mode) && stat(f->path, &st))
    return errno;
  if (err)
    return err;
  if (!S_ISFIFO(st.st_mode)) {
    snprintf(why, FIFO_WHY, "it is %s", fifo_kind(st.st_mode));
    return EEXIST;
  }
  err = fifo_check_owner(f, &st, why);
  if (err)
    return err;
  unsigned is = (unsigned)st.st_mode & 0777;
  if (f->strict && is != f->permissions) {
    snprintf(why, FIFO_WHY, "permissions \"%04o\" were asked, it has \"%04o\"",
             (unsigned)f->permissions, is);
    return EEXIST;
  }
  f->device = st.st_dev;
  f->inode = st.st_ino;
  return 0;
}

/* The one just made: the umask has taken some of its permissions, perhaps. */
static int fifo_permit(Fifo *f, char *why) {
  bool strict = f->strict;
  f->strict = false;
  int err = fifo_check(f, why);
  f->strict = strict;
  struct stat st;
  if (!err && lstat(f->path, &st))
    err = errno;
  if (err || ((unsigned)st.st_mode & 0777) == f->permissions)
    return err;
  if (fchmodat(AT_FDCWD, f->path, (mode_t)f->permissions,
               AT_SYMLINK_NOFOLLOW) == 0)
    return 0;
  if (errno != ENOTSUP && errno != EOPNOTSUPP && errno != EINVAL)
    return errno;
  return chmod(f->path, (mode_t)f->permissions) ? errno : 0;
}

/* Makes it, or finds it. */
static int fifo_find(Fifo *f, char *why) {
  int err = ENOENT;
  if (f->created)
    return 0;
  /* Again if it vanished between the two. */
  for (int turn = 0; turn < FIFO_TURNS && err == ENOENT; turn++) {
    if (f->create == IPC_ATTACH)
      return fifo_check(f, why);
    if (mkfifo(f->path, (mode_t)f->permissions) == 0) {
      f->created = true;
      return fifo_permit(f, why);
    }
    if (errno != EEXIST || f->create == IPC_CREATE_NEW)
      return errno;
    err = fifo_check(f, why);
  }
  return err;
}

/* Opens one side. ESTALE: the path names another file now. */
static int fifo_side(const Fifo *f, int mode, int *fd) {
  struct stat st;
  int flags = mode == IPC_READ ? O_RDONLY : O_WRONLY;
  int opened = open(f->path, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
  if (opened < 0)
    return errno;
  int err = fstat(opened, &st) ? errno : 0;
  if (!err && (st.st_dev != f->device || st.st_ino != f->inode))
    err = ESTALE;
  if (err)
    close(opened);
  else
    *fd = opened;
  return err;
}

static int fifo_unlink(Fifo *f) {
  struct stat st;
  if (lstat(f->path, &st))
    return errno;
  if (st.st_dev != f->device || st.st_ino != f->inode)
    return ENOENT; /* another's: ours is gone */
  if (unlink(f->path))
    return errno;
  f->created = false;
  return 0;
}

/* ---------------------------------------------------------------- opening */

static void fifo_drop(int *fd) {
  if (*fd >= 0)
    close(*fd);
  *fd = -1;
}

/* Whether a writer is there, or has been. Reads ahead, since nothing else
 * tells one that has not written yet from none. */
static int fifo_connected(Fifo *f) {
  Framed *s = &f->f;
  size_t got = 0;
  if (s->in.size > s->at)
    return 0;
  int err = ipc_buffer_reserve(&s->in, PIPE_BUF);
  if (err)
    return err;
  err = ipc_os_read(s->rfd, s->in.bytes + s->in.size, PIPE_BUF, &got);
  s->in.size += got;
  if (err || got > 0)
    return err == EAGAIN ? 0 : err;
  struct pollfd p = {s->rfd, POLLIN, 0};
  size_t ready = 0;
  err = ipc_os_poll(&p, 1, 0, &ready);
  return err || !ready ? EAGAIN : 0;
}

static int fifo_open_side(Fifo *f, char *why) {
  Framed *s = &f->f;
  bool reads = s->c.reader != NULL;
  size_t got = 0;
  int *fd = reads ? &s->rfd : &s->wfd;
  int err = fifo_find(f, why);
  if (err == ENOENT && f->create == IPC_ATTACH && f->waits)
    return EAGAIN;
  if (!err && !reads && f->keepalive && !f->waits && f->keep < 0)
    err = fifo_side(f, IPC_READ, &f->keep);
  if (!err)
    err = fifo_side(f, reads ? IPC_READ : IPC_WRITE, fd);
  if (f->waits && (err == ENXIO || (err == ESTALE && !f->created)))
    return EAGAIN;
  if (err == ENXIO)
    snprintf(why, FIFO_WHY, "no reader (retry = seconds waits for one)");
  if (err || !f->capacity)
    return err;
  err = ipc_os_capacity(*fd, f->capacity, &got);
  if (err)
    snprintf(why, FIFO_WHY, "capacity %lu", (unsigned long)f->capacity);
  return err;
}

/* Takes the place of the sole reader, and with it the duty to remove the name;
 * `keep` holds it. ESTALE: the last one has removed the name meanwhile. */
static int fifo_claim(Fifo *f, char *why) {
  struct stat st;
  int err = fifo_side(f, IPC_WRITE, &f->keep);
  if (!err)
    err = ipc_os_claim(f->keep);
  if (err == ENOTSUP)
    return 0;
  if (err == EAGAIN) {
    f->created = false; /* who has it removes it, though we have made it */
    snprintf(why, FIFO_WHY, "it has its reader, with readers = 1");
    return EADDRINUSE;
  }
  if (err)
    return err;
  if (lstat(f->path, &st) || (!S_ISLNK(st.st_mode) && (st.st_dev != f->device ||
                                                       st.st_ino != f->inode)))
    return ESTALE;
  f->created = f->created || f->create == IPC_CREATE;
  return 0;
}

/* Opens and claims, again when the name was removed in between. */
static int fifo_open_sole(Fifo *f, char *why) {
  int err = ESTALE;
  for (int turn = 0; turn < FIFO_TURNS; turn++) {
    err = fifo_open_side(f, why);
    if (!err)
      err = fifo_claim(f, why);
    if (err != ESTALE && err != ENOENT)
      return err;
    fifo_drop(&f->f.rfd);
    fifo_drop(&f->keep);
    f->created = false;
  }
  return err;
}

/* As far as it goes now. EAGAIN: the other side is not there yet. */
static int fifo_acquire(Fifo *f, char *why) {
  if (f->sole)
    return fifo_open_sole(f, why);
  Framed *s = &f->f;
  bool reads = s->c.reader != NULL;
  int err = (reads ? s->rfd : s->wfd) < 0 ? fifo_open_side(f, why) : 0;
  if (!err && reads && f->waits)
    err = fifo_connected(f);
  if (!err && f->keepalive && f->keep < 0)
    err = fifo_side(f, reads ? IPC_WRITE : IPC_READ, &f->keep);
  return err;
}

/* --------------------------------------------------------------- the lock */

/* A description that dup or fork shares has one lock: so this handle, in this
 * process, opens one. It is a writing end: another kind would be a reader. */
static int fifo_lock_open(Fifo *f) {
  int err =
      ipc_os_reopen(f->f.wfd, O_WRONLY | O_NONBLOCK | O_CLOEXEC, &f->lock);
  if (err == ENOTSUP)
    err = fifo_side(f, IPC_WRITE, &f->lock);
  if (err == ENOENT || err == ESTALE) /* unlinked, and no other way to it */
    return ENOTSUP;
  if (err == ENXIO) {
    f->gone = true;
    return EPIPE;
  }
  return err;
}

/* Before so many bytes of frames: what the kernel keeps whole by itself shares
 * the lock, what it does not excludes all others. ENOTSUP: only the former. */
static int fifo_enter(Fifo *f, size_t size) {
  bool alone = size > PIPE_BUF;
  int err = 0;
  f->blind = false;
  if (!f->many || f->held)
    return 0;
  if (!f->lockless && f->lock < 0)
    err = fifo_lock_open(f);
  if (!err && !f->lockless)
    err = ipc_os_lock_file(f->lock, alone);
  if (err == ENOTSUP) {
    f->lockless = true;
    fifo_drop(&f->lock);
  }
  if (f->lockless)
    return alone ? ENOTSUP : 0;
  if (err == EAGAIN) { /* nothing tells when it is free */
    f->blind = true;
    fifo_nap(f, 50, 5000);
  }
  f->held = !err;
  if (!err)
    f->since = 0;
  return err;
}

/* After it, unless some of it is still to be written. */
static int fifo_leave(Fifo *f, int err) {
  if (f->held && !f->f.c.rest.link) {
    ipc_os_unlock_file(f->lock);
    f->held = false;
  }
  if (err == EPIPE) /* a later reader does not undo it: reopen does */
    f->gone = true;
  return err;
}

/* ---------------------------------------------------------------- sending */

static int fifo_flush(Chan *c) {
  return fifo_leave((Fifo *)c, ipc_frame_ops.flush(c));
}

static int fifo_begin(Fifo *f, size_t size) {
  if (f->gone)
    return EPIPE;
  int err = f->f.c.rest.link ? fifo_flush(&f->f.c) : 0;
  return err ? err : fifo_enter(f, size);
}

static int fifo_send(Chan *c, const Message *m) {
  Fifo *f = (Fifo *)c;
  int err = fifo_begin(f, FIFO_HEAD + m->size);
  return err ? err : fifo_leave(f, ipc_frame_ops.send(c, m));
}

/* All under one lock. */
static int fifo_sendmany(Chan *c, const Message *m, size_t count,
                         size_t *sent) {
  Fifo *f = (Fifo *)c;
  size_t size = 0;
  for (size_t i = 0; i < count; i++)
    size += FIFO_HEAD + m[i].size;
  *sent = 0;
  int err = fifo_begin(f, size);
  if (!err)
    return fifo_leave(f, ipc_frame_ops.sendmany(c, m, count, sent));
  if (err != ENOTSUP)
    return err;
  while (*sent < count) { /* without a lock: one by one */
    err = fifo_send(c, &m[*sent]);
    if (err)
      return err;
    ++*sent;
  }
  return 0;
}

static int fifo_shutdown(Chan *c) {
  Fifo *f = (Fifo *)c;
  int err = fifo_leave(f, ipc_frame_ops.shutdown(c));
  fifo_drop(&f->lock); /* a writing end, too */
  fifo_drop(&f->keep);
  return err;
}

/* ----------------------------------------------------------------- handle */

static int fifo_descriptor(const Handle *h, int want) {
  const Fifo *f = (const Fifo *)h;
  return want == IPC_WRITE && f->blind ? -1 : ipc_frame_descriptor(h, want);
}

/* A writer whose lock another one has is not ready. */
static int fifo_ready(Handle *h, int want, bool ask_kernel) {
  Fifo *f = (Fifo *)h;
  if (want != IPC_WRITE)
    return ipc_frame_ready(h, want, ask_kernel);
  if (f->gone)
    return EPIPE;
  int err = fifo_leave(f, ipc_frame_ready(h, want, ask_kernel));
  if (err || f->held)
    return err;
  h->nap = 0;
  err = fifo_enter(f, 1);
  return err ? err : fifo_leave(f, 0);
}

static void fifo_close(Handle *h, How how) {
  Fifo *f = (Fifo *)h;
  bool mine = !h->foreign && !h->moved;
  ipc_frame_close(h, how);
  if (mine)
    (void)fifo_leave(f, 0);
  fifo_drop(&f->lock);
  /* Before another can claim it. */
  if (mine && f->temporary && f->created && (how != IPC_DROP || f->opening))
    (void)fifo_unlink(f);
  fifo_drop(&f->keep);
}

/* In a child: the lock is the parent's, and so is the name. */
static void fifo_forked(Handle *h, bool child) {
  if (!child)
    return;
  Fifo *f = (Fifo *)h;
  if (h->moves)
    return; /* it came with all that it has */
  fifo_drop(&f->lock);
  f->held = f->created = false;
}

static const HandleOps fifo_handle = {.type = "ipc.fifo",
                                      .descriptor = fifo_descriptor,
                                      .ready = fifo_ready,
                                      .close = fifo_close,
                                      .forked = fifo_forked};

/* --------------------------------------------------------------- Lua half */

static int fifo_dup(lua_State *L, Chan *c);

static const ChanOps fifo_chan = {.recv = ipc_frame_recv,
                                  .took = ipc_frame_took,
                                  .send = fifo_send,
                                  .sendmany = fifo_sendmany,
                                  .flush = fifo_flush,
                                  .shutdown = fifo_shutdown,
                                  .read = ipc_frame_read,
                                  .dup = fifo_dup};

static Fifo *fifo_new(lua_State *L, const char *path, int mode) {
  size_t size = strlen(path) + 1;
  Fifo *f = (Fifo *)ipc_frame_new(L, sizeof *f + size, &fifo_handle,
                                  &fifo_stream, mode);
  f->f.c.ops = &fifo_chan;
  f->keep = f->lock = -1;
  memcpy(f->path, path, size);
  return f;
}

static int fifo_dup(lua_State *L, Chan *c) {
  Fifo *f = (Fifo *)c;
  if (f->f.in.size > 0 || f->f.skip)
    return EBUSY;
  Fifo *g = fifo_new(L, f->path,
                     (c->reader ? IPC_READ : 0) | (c->writer ? IPC_WRITE : 0));
  g->many = f->many = f->f.c.writer && !c->stream; /* from now on */
  g->keepalive = f->keepalive;
  g->device = f->device;
  g->inode = f->inode;
  g->gone = f->gone;
  g->f.c.h.moves = c->h.moves;
  g->f.c.h.shares = c->h.shares;
  int err = f->keep >= 0 ? ipc_os_dup(f->keep, &g->keep) : 0;
  if (!err)
    err = ipc_frame_copy(&g->f, &f->f);
  if (err) {
    fifo_drop(&g->keep);
    lua_pop(L, 1);
    return err;
  }
  ipc_handle_open(&g->f.c.h);
  return 0;
}

/* What went wrong with what, and nothing is left open. */
static int fifo_failed(lua_State *L, const Fifo *f, const char *call, int err,
                       const char *why) {
  const char *type = fifo_handle.type, *what = *f->path ? f->path : why;
  if (*f->path && *why)
    what = lua_pushfstring(L, "%s: %s", f->path, why);
  if (err == EMFILE)
    return ipc_fail_limit(L, type, call, err, what, "RLIMIT_NOFILE");
  if (f->capacity && (err == EPERM || err == EBUSY))
    return ipc_fail_limit(L, type, call, err, what, "fs.pipe-max-size");
  return ipc_fail(L, type, call, err, what);
}

/* `writers`: how many there are unless told. */
static Fifo *fifo_with(lua_State *L, const char *path, int mode, int options,
                       size_t writers) {
  static const char *const units[] = {"message", "stream", NULL};
  Fifo *f = fifo_new(L, path, mode);
  Chan *c = &f->f.c;
  c->stream = ipc_option_choice(L, options, "unit", units) == 1;
  f->f.limited = ipc_option_size(L, options, "maxsize", 0, SIZE_MAX, 0) > 0;
  ipc_chan_options(L, options, c, FRAME_MOST);
  f->capacity =
      (uint32_t)ipc_option_size(L, options, "capacity", 1, FIFO_CAPACITY, 0);
  f->many = ipc_option_size(L, options, "writers", 1, INT_MAX, writers) > 1 &&
            c->writer && !c->stream;
  f->keepalive = ipc_option_flag(L, options, "keepalive", false);
  f->sole = ipc_option_size(L, options, "readers", 1, INT_MAX, INT_MAX) == 1 &&
            mode == IPC_READ;
  return f;
}

static const char *const fifo_names[] = {"unit", "capacity", "writers",
                                         "readers", NULL};

/* Slots: 1 the handle, 2 the deadline. */
static int open_attempt(lua_State *L, Handle *h) {
  Fifo *f = (Fifo *)h;
  char why[FIFO_WHY] = "";
  int err = fifo_acquire(f, why);
  if (err == EAGAIN) {
    fifo_nap(f, 1000, 20000);
    return f->f.c.reader ? -IPC_READ : -IPC_WRITE;
  }
  if (err) {
    ipc_handle_close(L, h);
    return fifo_failed(L, f, "open", err, why);
  }
  f->opening = false;
  f->since = 0;
  for (int i = 0; i < 2; i++)
    f->f.c.spin[i].skip = f->f.c.spin[i].penalty = 0;
  lua_pushvalue(L, 1);
  return 1;
}

static int open_failed(lua_State *L, Handle *h, int err) {
  ipc_handle_close(L, h);
  return fifo_failed(L, (Fifo *)h, "open", err, "");
}

static const Op open_reader = {.name = "open",
                               .attempt = open_attempt,
                               .failed = open_failed,
                               .want = IPC_READ,
                               .deadline = 2,
                               .top = 2};

static const Op open_writer = {.name = "open",
                               .attempt = open_attempt,
                               .failed = open_failed,
                               .want = IPC_WRITE,
                               .deadline = 2,
                               .top = 2};

/***
Opens a named pipe, fifo(7): one way, for processes that share nothing but a
path; address `fifo:/path`. Made by whoever opens it first, reader or writer,
and kept until `fifo:remove`.

A reader opens at once, and receiving waits for the first writer: that none has
come yet is no end. `"closed"` comes when the last writer has left;
`fifo:reopen` waits for the next, `keepalive = true` never lets it come. A
writer needs a reader: without one opening fails with ENXIO, or waits with
`retry`. `"closed"` comes when the last reader has left.

Any number of processes of this library may write messages of any size to one
reading process: they take turns by a lock on the FIFO, flock(2), about 1 us a
message. Foreign writers know nothing of that, yet what is up to 4,096 bytes
(PIPE_BUF) they may mix in between messages that are as short. A writer that is
killed in the middle of a longer message leaves half of it behind: with other
writers the reader cannot tell and reads on wrongly; a sole writer ends in
`"closed"`. A reader that comes while writers stay takes what the last one left,
which may begin in the middle of a message. Systems without such locks on FIFOs
(macOS) answer ENOTSUP for messages above PIPE_BUF unless `writers = 1`.
@function fifo
@string path
@string mode "r" or "w"; `ipc.duplex` makes one channel of two
@tparam[opt] table options every room's, and: `unit` ("message" or "stream");
`capacity`: bytes the kernel holds (Linux); `writers` (any number): with 1 this
is the only writer, and no lock is taken; `readers` (any number): with 1 opening
for reading fails with EADDRINUSE while another handle reads so, does not wait,
and implies `keepalive`; whose it is by then removes it if `temporary`, unless
`create = false`. Readers that do not ask are not noticed (Linux; no effect on
systems without open file description locks). `retry`: seconds that opening
waits for the other side, or true; `timeout` bounds that as well. `keepalive`:
holds the other side open, too: a reader never sees `"closed"`, a writer needs
no reader. `temporary`: the close of who made it removes it
@treturn channel with `fifo:reopen` and `fifo:remove`; or nil, message, errno:
ENXIO: no reader; EADDRINUSE: see `readers`; `"timeout"` (ETIMEDOUT): nobody
came; EEXIST: the path is no FIFO, or has other permissions than asked; EACCES:
it belongs to another user
(`create = false` opens it all the same); ENOENT, ENAMETOOLONG. One that was
made for an opening that failed stays, unless it is `temporary`
@usage local jobs = assert(ipc.fifo("/run/app/jobs", "w", { retry = 5 }))
*/
static int fifo_open(lua_State *L) {
  size_t size;
  if (lua_type(L, 1) != LUA_TSTRING)
    luaL_typeerror(L, 1, "path");
  const char *path = lua_tolstring(L, 1, &size);
  luaL_argcheck(L, size > 0, 1, "an empty path");
  luaL_argcheck(L, strlen(path) == size, 1, "a path with a zero byte");
  int mode = ipc_check_mode(L, 2, 0);
  if (mode == (IPC_READ | IPC_WRITE))
    luaL_argerror(L, 2, "a FIFO is one way: ipc.duplex makes one of two");
  lua_settop(L, 3);
  ipc_options(L, 3, fifo_names);
  if (size >= PATH_MAX)
    return ipc_fail(L, fifo_handle.type, "open", ENAMETOOLONG,
                    lua_pushfstring(L, "%I bytes, but PATH_MAX is %d",
                                    (LUAI_UACINT)size, PATH_MAX));
  Fifo *f = fifo_with(L, path, mode, 3, INT_MAX);
  Handle *h = &f->f.c.h;
  f->create = (uint8_t)ipc_option_create(L, 3);
  f->permissions = (uint16_t)ipc_option_permissions(L, 3);
  f->temporary = ipc_option_flag(L, 3, "temporary", false);
  if (lua_istable(L, 3)) {
    lua_pushliteral(L, "permissions");
    f->strict = lua_rawget(L, 3) != LUA_TNIL;
    lua_pop(L, 1);
  }
  Nanos retry = ipc_option_retry(L, 3);
  f->waits = retry > 0 && !f->sole; /* it is its own other side */
  if (retry > f->f.c.timeout)
    retry = f->f.c.timeout;
  h->shares = mode == IPC_WRITE;
  h->moves = mode == IPC_READ; /* one process reads frames */
  f->opening = true;
  lua_replace(L, 1);
  lua_settop(L, 1);
  ipc_handle_open(h);
  if (f->temporary)
    ipc_handle_owe(L, 1);
  lua_pushnumber(L, (lua_Number)retry / 1e9);
  return ipc_run(L, mode == IPC_READ ? &open_reader : &open_writer);
}

/* The same by an address, under whose caller's name it complains. */
static int fifo_address(lua_State *L) { return fifo_open(L); }

/* ----------------------------------------------------------------- reopen */

/* Slots: 1 the handle, 2 the deadline, 3 whether a new descriptor is there. */
enum { REOPEN_DEADLINE = 2, REOPEN_DONE, REOPEN_TOP = REOPEN_DONE };

static int reopen_failed(lua_State *L, Handle *h, int err) {
  Fifo *f = (Fifo *)h;
  f->since = 0;
  f->gone = f->f.c.writer != NULL;
  return fifo_failed(L, f, "reopen", err,
                     err == ESTALE ? "another file is there now" : "");
}

static int reopen_attempt(lua_State *L, Handle *h) {
  Fifo *f = (Fifo *)h;
  bool reads = f->f.c.reader != NULL;
  int fd = -1, err = 0;
  if (!lua_toboolean(L, REOPEN_DONE)) {
    err = fifo_side(f, reads ? IPC_READ : IPC_WRITE, &fd);
    if (err == ENXIO)
      err = EAGAIN;
    else if (!err) { /* the new one is open: what is in the pipe stays */
      ipc_frame_renew(&f->f, reads ? fd : -1, reads ? -1 : fd);
      lua_pushboolean(L, 1);
      lua_replace(L, REOPEN_DONE);
    }
  }
  if (!err && reads)
    err = fifo_connected(f);
  if (err == EAGAIN) {
    fifo_nap(f, 1000, 20000);
    return reads ? -IPC_READ : -IPC_WRITE;
  }
  if (err)
    return reopen_failed(L, h, err);
  f->since = 0;
  return lua_pushboolean(L, 1), 1;
}

static const Op reopen_reader = {.name = "reopen",
                                 .attempt = reopen_attempt,
                                 .failed = reopen_failed,
                                 .want = IPC_READ,
                                 .deadline = REOPEN_DEADLINE,
                                 .top = REOPEN_TOP};

static const Op reopen_writer = {.name = "reopen",
                                 .attempt = reopen_attempt,
                                 .failed = reopen_failed,
                                 .want = IPC_WRITE,
                                 .deadline = REOPEN_DEADLINE,
                                 .top = REOPEN_TOP};

/* Whether the other side has left: only then there is something to do. What a
 * dead reader left half read is dropped with the last writing end. */
static bool reopen_begin(Fifo *f) {
  Framed *s = &f->f;
  struct pollfd p = {s->wfd, POLLOUT, 0};
  size_t ready = 0;
  if (s->c.reader)
    return s->c.ended != 0;
  if (!f->gone && !s->c.failed && !ipc_os_poll(&p, 1, 0, &ready) &&
      !(p.revents & (POLLERR | POLLHUP)))
    return false;
  fifo_drop(&s->wfd);
  fifo_drop(&f->lock);
  f->gone = false; /* not while it waits */
  s->c.failed = 0;
  return true;
}

/***
Waits for the next other side after the last has left: `"closed"` is forgotten,
half a message of a dead writer is dropped, and nothing is lost that a new
writer has written already. Before `"closed"` came it only waits until somebody
is there. After a timeout a reader is as just opened, a writer is closed still.
@function fifo:reopen
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno: `"timeout"` (ETIMEDOUT), ENOENT
when the FIFO was removed, ESTALE when another file is there now, EBUSY while
tasks wait on it or an accepted message is not all out
@usage repeat serve(jobs) until not jobs:reopen()
*/
static int fifo_reopen(lua_State *L) {
  Fifo *f = (Fifo *)ipc_handle_self(L);
  Handle *h = &f->f.c.h;
  ipc_check_timeout(L, 2);
  lua_settop(L, REOPEN_TOP);
  if (!ipc_handle_usable(h) || f->f.c.shut)
    return ipc_handle_refuse(L, h, "reopen");
  if (!*f->path)
    return fifo_failed(L, f, "reopen", ENOENT, "it has no name");
  if (h->queue || f->f.c.rest.link)
    return ipc_fail(L, fifo_handle.type, "reopen", EBUSY,
                    h->queue ? "tasks wait on it" : "bytes are on their way");
  ipc_wake(L, h); /* a scheduler forgets the old descriptor */
  bool left = reopen_begin(f);
  if (!left && f->f.c.writer)
    return lua_pushboolean(L, 1), 1;
  lua_pushboolean(L, !left);
  lua_replace(L, REOPEN_DONE);
  return ipc_run(L, f->f.c.reader ? &reopen_reader : &reopen_writer);
}

/***
Removes the FIFO's name: who has it open goes on, nobody finds it any more.
Only what this channel opened; not another file that is there by now.
@function fifo:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone already,
EACCES, EPERM
*/
static int fifo_remove(lua_State *L) {
  Fifo *f = (Fifo *)ipc_handle_self(L);
  if (!ipc_handle_usable(&f->f.c.h))
    return ipc_handle_refuse(L, &f->f.c.h, "remove");
  int err = fifo_unlink(f);
  if (err)
    return fifo_failed(L, f, "remove", err, *f->path ? "" : "it has no name");
  return lua_pushboolean(L, 1), 1;
}

/* ------------------------------------------------------------------- pair */

/* Opens both sides of a FIFO that is there for a moment. */
static int pair_open(Fifo *r, Fifo *w, const char *path) {
  size_t got = 0;
  if (mkfifo(path, 0600))
    return errno;
  int err = chmod(path, 0600) ? errno : 0; /* whatever the umask */
  if (!err) {
    r->f.rfd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (r->f.rfd < 0)
      err = errno;
  }
  if (!err) {
    w->f.wfd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (w->f.wfd < 0)
      err = errno;
  }
  if (!err && w->capacity)
    err = ipc_os_capacity(w->f.wfd, w->capacity, &got);
  (void)unlink(path);
  return err;
}

static int pair_make(Fifo *one, Fifo *other) {
  const char *folder = getenv("TMPDIR");
  char path[PATH_MAX], name[sizeof path + 2];
  int n = snprintf(path, sizeof path, "%s/ipc.XXXXXX",
                   folder && *folder ? folder : "/tmp");
  if (n < 0 || (size_t)n >= sizeof path)
    return ENAMETOOLONG;
  if (!mkdtemp(path))
    return errno;
  snprintf(name, sizeof name, "%s/f", path);
  int err = chmod(path, 0700) ? errno : 0;
  if (!err)
    err = pair_open(one, other, name);
  if (!err)
    err = pair_open(other, one, name);
  (void)rmdir(path);
  return err;
}

/* Two FIFOs without a name: both ends send and receive. */
static int fifo_pair(lua_State *L) {
  enum { BOTH = IPC_READ | IPC_WRITE };
  lua_settop(L, 2);
  ipc_options(L, 2, fifo_names);
  Fifo *one = fifo_with(L, "", BOTH, 2, 1); /* one writer, until dup */
  Fifo *other = fifo_with(L, "", BOTH, 2, 1);
  int err = pair_make(one, other);
  ipc_handle_open(&one->f.c.h); /* whatever they have, they own it */
  ipc_handle_open(&other->f.c.h);
  if (err) {
    ipc_handle_release(&one->f.c.h, IPC_DROP);
    ipc_handle_release(&other->f.c.h, IPC_DROP);
    return fifo_failed(L, one, "open", err,
                       "a folder for it in TMPDIR or /tmp");
  }
  return 2;
}

static const luaL_Reg fifo_methods[] = {
    {"reopen", fifo_reopen}, {"remove", fifo_remove}, {NULL, NULL}};

static void fifo_setup(lua_State *L) {
  ipc_chan_type(L, &fifo_handle, fifo_methods);
}

static const luaL_Reg fifo_functions[] = {{"fifo", fifo_open}, {NULL, NULL}};

static const char *const fifo_schemes[] = {"fifo", NULL};

static const Kind fifo_kinds[] = {
    {"fifo", "fifo", "one way", "message, stream", "this system",
     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR | IPC_MANY_WRITERS},
    {NULL, NULL, NULL, NULL, NULL, 0}};

const Room ipc_room_fifo = {.name = "fifo",
                            .schemes = fifo_schemes,
                            .functions = fifo_functions,
                            .kinds = fifo_kinds,
                            .pair = fifo_pair,
                            .open = fifo_address,
                            .types = fifo_setup};
