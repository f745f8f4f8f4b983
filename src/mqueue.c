/* POSIX message queues: mq_overview(7). Named, kept by the kernel until
 * removed; messages with a priority, the highest first. Any number of processes
 * at either side, none of which is told when another goes. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "ipc.h"
#include "os.h"

/***
 * @submodule ipc
 */

/* ------------------------------------------------------------ system half */

#ifndef MQ_PRIO_MAX
#define MQ_PRIO_MAX 32 /* _POSIX_MQ_PRIO_MAX */
#endif

enum {
  MQUEUE_NAME = 254,       /* characters behind the slash */
  MQUEUE_MESSAGES = 65536, /* of a queue, at the very most */
  MQUEUE_BYTES = 16 << 20, /* of a message, likewise */
  MQUEUE_TURNS = 100,      /* of opening what others make and remove */
  MQUEUE_NAP = 5000        /* us until it is looked for again */
};

typedef struct Mqueue {
  Chan c;
  int fd;
  Buffer in; /* the message in hand, or room for it */
  unsigned priority;
  bool whole;     /* there is one in hand */
  bool temporary; /* close removes what was made here */
  bool made;
  OsQueue is;     /* as it was when opened */
  OsQueue wanted; /* what was asked for; 0: nothing */
  size_t maxsize; /* likewise */
  int create;
  bool guarded; /* permissions were asked for */
  bool retry;
  char name[]; /* empty: it has none */
} Mqueue;

static int mqueue_access(const Chan *c) {
  return !c->writer ? O_RDONLY : c->reader ? O_RDWR : O_WRONLY;
}

static int mqueue_descriptor(const Handle *h, int want) {
  (void)want;
  return ((const Mqueue *)h)->fd;
}

static int mqueue_poll(int fd, short events) {
  struct pollfd p = {fd, events, 0};
  size_t ready = 0;
  int err = fd < 0 ? EPIPE : ipc_os_poll(&p, 1, 0, &ready);
  if (err)
    return err == EINTR ? EAGAIN : err;
  return ready ? 0 : EAGAIN;
}

/* Nothing is read ahead: what is not taken stays there for other readers. */
static int mqueue_ready(Handle *h, int want, bool ask_kernel) {
  Mqueue *q = (Mqueue *)h;
  if (want == IPC_WRITE) {
    if (q->c.shut)
      return EPIPE;
    return ask_kernel ? mqueue_poll(q->fd, POLLOUT) : EAGAIN;
  }
  if (q->c.held)
    return q->c.held;
  if (q->whole)
    return 0;
  return ask_kernel ? mqueue_poll(q->fd, POLLIN) : EAGAIN;
}

/* Whether the name means this very queue now: 0, ENOENT, or why it cannot be
 * told. Two that the system does not tell apart are taken for the same. */
static int mqueue_same(const Mqueue *q) {
  OsQueue now;
  int fd, err = ipc_os_mqueue_open(q->name, O_RDONLY, &fd);
  if (err == EACCES)
    err = ipc_os_mqueue_open(q->name, O_WRONLY, &fd);
  if (err)
    return err;
  err = ipc_os_mqueue_look(fd, &now);
  close(fd);
  if (!err && (now.device != q->is.device || now.inode != q->is.inode))
    err = ENOENT;
  return err;
}

static int mqueue_unlink(const Mqueue *q) {
  int err = q->name[0] ? mqueue_same(q) : ENOENT;
  return err ? err : ipc_os_mqueue_remove(q->name);
}

static void mqueue_close(Handle *h, How how) {
  Mqueue *q = (Mqueue *)h;
  if (q->fd >= 0)
    close(q->fd); /* first: looking at the name takes a descriptor */
  q->fd = -1;
  ipc_buffer_free(&q->in);
  q->whole = false;
  if (q->made && q->temporary && how != IPC_DROP)
    (void)mqueue_unlink(q);
}

/* What the parent has in hand or has made is the parent's. */
static void mqueue_forked(Handle *h, bool child) {
  if (!child)
    return;
  Mqueue *q = (Mqueue *)h;
  if (!h->moves) /* else it came with all that it has */
    q->whole = q->made = false;
}

static const HandleOps mqueue_handle = {.type = "ipc.mqueue",
                                        .descriptor = mqueue_descriptor,
                                        .ready = mqueue_ready,
                                        .close = mqueue_close,
                                        .forked = mqueue_forked};

static int mqueue_recv(Chan *c, Message *m) {
  Mqueue *q = (Mqueue *)c;
  if (!q->whole) {
    size_t got = 0, room = (size_t)q->is.size;
    if (q->fd < 0)
      return EPIPE;
    int err = q->in.room < room ? ipc_buffer_resize(&q->in, room) : 0;
    if (!err)
      err = ipc_os_mqueue_receive(q->fd, q->in.bytes, q->in.room, &got,
                                  &q->priority);
    if (err)
      return err;
    m->size = got;
    if (got > c->limit)
      return EMSGSIZE;
    q->in.size = got;
    q->whole = true;
  }
  m->bytes = q->in.bytes;
  m->size = q->in.size;
  m->tag = q->priority;
  return 0;
}

static void mqueue_took(Chan *c, size_t size) {
  (void)size;
  ((Mqueue *)c)->whole = false;
}

static int mqueue_send(Chan *c, const Message *m) {
  const Mqueue *q = (const Mqueue *)c;
  if (q->fd < 0)
    return EPIPE;
  return ipc_os_mqueue_send(q->fd, m->bytes, m->size, (unsigned)m->tag);
}

static int mqueue_flush(Chan *c) {
  (void)c; /* a message is in the queue or not */
  return 0;
}

static int mqueue_shutdown(Chan *c) {
  (void)c; /* nobody can be told */
  return 0;
}

static const Tags mqueue_tags = {.kind = IPC_TAG_INTEGER,
                                 .least = 0,
                                 .most = MQ_PRIO_MAX - 1,
                                 .otherwise = 0};

static int mqueue_dup(lua_State *L, Chan *c);

static const ChanOps mqueue_chan = {.recv = mqueue_recv,
                                    .took = mqueue_took,
                                    .send = mqueue_send,
                                    .flush = mqueue_flush,
                                    .shutdown = mqueue_shutdown,
                                    .tags = &mqueue_tags,
                                    .dup = mqueue_dup};

/* Opens what there is, or makes it, as q->create says. */
static int mqueue_acquire(Mqueue *q) {
  int access = mqueue_access(&q->c), err = ENOENT;
  OsQueue want = q->wanted;
  if (!want.size)
    want.size = (long)q->maxsize;
  for (int turn = 0; err == ENOENT && turn < MQUEUE_TURNS; turn++) {
    if (q->create != IPC_ATTACH) {
      err =
          ipc_os_mqueue_make(q->name, access, want.permissions, &want, &q->fd);
      q->made = err == 0;
      if (err != EEXIST || q->create == IPC_CREATE_NEW)
        break;
    }
    err = ipc_os_mqueue_open(q->name, access, &q->fd);
    if (q->create == IPC_ATTACH)
      break;
  }
  if (!err)
    err = ipc_os_mqueue_look(q->fd, &q->is);
  if (err && q->made)
    (void)ipc_os_mqueue_remove(q->name);
  if (!err && q->c.limit > (size_t)q->is.size)
    q->c.limit = (size_t)q->is.size;
  return err;
}

/* --------------------------------------------------------------- Lua half */

static Mqueue *mqueue_new(lua_State *L, const char *name, int mode) {
  size_t size = strlen(name) + 1;
  Mqueue *q =
      ipc_chan_new(L, sizeof *q + size, &mqueue_handle, &mqueue_chan, mode);
  memcpy(q->name, name, size);
  q->fd = -1;
  return q;
}

static int mqueue_dup(lua_State *L, Chan *c) {
  const Mqueue *q = (const Mqueue *)c;
  if (q->whole)
    return EBUSY;
  Mqueue *p = mqueue_new(
      L, q->name, (c->reader ? IPC_READ : 0) | (c->writer ? IPC_WRITE : 0));
  p->is = q->is;
  p->c.timeout = c->timeout;
  p->c.linger = c->linger;
  p->c.limit = c->limit;
  p->c.shut = c->shut;
  p->c.spin[0].budget = p->c.spin[1].budget = c->spin[0].budget;
  p->c.h.moves = c->h.moves;
  p->c.h.shares = c->h.shares;
  int err = ipc_os_dup(q->fd, &p->fd);
  if (err) {
    lua_pop(L, 1);
    return err;
  }
  ipc_handle_open(&p->c.h);
  return 0;
}

/* Whether the options say anything of this. */
static bool mqueue_given(lua_State *L, int index, const char *name) {
  if (lua_isnoneornil(L, index))
    return false;
  lua_pushstring(L, name);
  bool given = lua_rawget(L, index) != LUA_TNIL;
  lua_pop(L, 1);
  return given;
}

static const char *mqueue_check_name(lua_State *L, int index) {
  size_t size;
  if (lua_type(L, index) != LUA_TSTRING)
    luaL_typeerror(L, index, "string");
  const char *name = lua_tolstring(L, index, &size);
  if (memchr(name, '\0', size))
    luaL_argerror(L, index, "a queue's name holds no NUL");
  if (name[0] != '/')
    luaL_argerror(L, index, "a queue's name begins with a slash: \"/jobs\"");
  if (strchr(name + 1, '/'))
    luaL_argerror(L, index,
                  "a queue's name has one slash, at its beginning: \"/jobs\"");
  if (size < 2 || size - 1 > MQUEUE_NAME)
    luaL_argerror(
        L, index,
        lua_pushfstring(L,
                        "a queue's name has 1 to %d characters behind the "
                        "slash, not %d",
                        MQUEUE_NAME, (int)size - 1));
  if (strcmp(name, "/.") == 0 || strcmp(name, "/..") == 0)
    luaL_argerror(L, index, "no queue is called \"/.\" or \"/..\"");
  return name;
}

/* What a queue is asked to be; checked, nothing done. */
static void mqueue_options(lua_State *L, int index, Mqueue *q) {
  q->wanted.most =
      (long)ipc_option_size(L, index, "maxmsg", 1, MQUEUE_MESSAGES, 0);
  q->wanted.size =
      (long)ipc_option_size(L, index, "msgsize", 1, MQUEUE_BYTES, 0);
  q->maxsize = ipc_option_size(L, index, "maxsize", 1, MQUEUE_BYTES, 0);
  if (q->wanted.size && q->maxsize > (size_t)q->wanted.size)
    luaL_argerror(L, index, "option 'maxsize': more than msgsize");
  ipc_chan_options(L, index, &q->c, MQUEUE_BYTES);
  q->wanted.permissions = ipc_option_permissions(L, index);
  q->guarded = mqueue_given(L, index, "permissions");
  q->create = ipc_option_create(L, index);
  q->temporary = ipc_option_flag(L, index, "temporary", false);
  q->retry = ipc_option_retry(L, index) > 0;
}

/* Whether it was too much; where the limit is not told, if nothing else can
 * have been. */
static bool mqueue_over(const char *limit, long asked, long other) {
  long long value = 0;
  if (ipc_os_limit(limit, &value))
    return asked > 0 && other == 0;
  return value >= 0 && asked > value;
}

/* EMFILE is two limits: are there still descriptors? */
static bool mqueue_descriptors(void) {
  int fd = open("/", O_RDONLY | O_CLOEXEC);
  if (fd >= 0)
    close(fd);
  return fd >= 0;
}

/* Pushes why a queue was not opened or made. */
static int mqueue_explain(lua_State *L, const Mqueue *q, int err) {
  const char *type = mqueue_handle.type, *name = *q->name ? q->name : "a pair",
             *limit = NULL, *what = name;
  long size = q->wanted.size ? q->wanted.size : (long)q->maxsize;
  if (err == EINVAL || err == EPERM) {
    if (mqueue_over(ipc_os_mqueue_messages, q->wanted.most, size)) {
      limit = ipc_os_mqueue_messages;
      what = lua_pushfstring(L, "%s: maxmsg is %I", name,
                             (LUAI_UACINT)q->wanted.most);
    } else if (mqueue_over(ipc_os_mqueue_bytes, size, q->wanted.most)) {
      limit = ipc_os_mqueue_bytes;
      what = lua_pushfstring(L, "%s: msgsize is %I", name, (LUAI_UACINT)size);
    }
  } else if (err == EMFILE) {
    limit = mqueue_descriptors() ? "RLIMIT_MSGQUEUE" : "RLIMIT_NOFILE";
    what = lua_pushfstring(L, "%s: one more", name);
  } else if (err == ENOSPC) {
    limit = ipc_os_mqueue_queues;
    what = lua_pushfstring(L, "%s: one more", name);
  } else if (err == ENOTSUP) {
    what = "there are no POSIX message queues here";
  }
  if (limit)
    return ipc_fail_limit(L, type, "open", err, what, limit);
  return ipc_fail(L, type, "open", err, what);
}

/* Whether what was there before is what was asked for: 0 results, or pushes why
 * not. */
static int mqueue_refuse(lua_State *L, const Mqueue *q) {
  const char *type = mqueue_handle.type, *what = NULL;
  const OsQueue *is = &q->is, *wanted = &q->wanted;
  if (q->made)
    return 0;
  if (q->create == IPC_CREATE && is->uid != 0 && is->uid != (long)geteuid())
    return ipc_fail(L, type, "open", EACCES,
                    lua_pushfstring(L,
                                    "%s belongs to user %I (create = false "
                                    "opens it all the same)",
                                    q->name, (LUAI_UACINT)is->uid));
  if (wanted->most && wanted->most != is->most)
    what = lua_pushfstring(L, "%s: maxmsg is %I there, not %I", q->name,
                           (LUAI_UACINT)is->most, (LUAI_UACINT)wanted->most);
  else if (wanted->size && wanted->size != is->size)
    what = lua_pushfstring(L, "%s: msgsize is %I there, not %I", q->name,
                           (LUAI_UACINT)is->size, (LUAI_UACINT)wanted->size);
  else if (q->maxsize > (size_t)is->size)
    what = lua_pushfstring(L, "%s: msgsize is %I there, less than maxsize, %I",
                           q->name, (LUAI_UACINT)is->size,
                           (LUAI_UACINT)q->maxsize);
  else if (q->guarded && wanted->permissions != is->permissions) {
    char text[48];
    snprintf(text, sizeof text, "permissions are %04o there, not %04o",
             is->permissions, wanted->permissions);
    what = lua_pushfstring(L, "%s: %s", q->name, text);
  }
  return what ? ipc_fail(L, type, "open", EEXIST, what) : 0;
}

static int open_failed(lua_State *L, Handle *h, int err) {
  ipc_handle_release(h, IPC_DROP);
  return mqueue_explain(L, (Mqueue *)h, err);
}

static int open_attempt(lua_State *L, Handle *h) {
  Mqueue *q = (Mqueue *)h;
  int err = mqueue_acquire(q);
  if (err == ENOENT && q->retry) {
    h->nap = MQUEUE_NAP;
    return -IPC_READ;
  }
  if (err)
    return open_failed(L, h, err);
  int refused = mqueue_refuse(L, q);
  if (refused) {
    ipc_handle_release(h, IPC_DROP);
    return refused;
  }
  lua_pushvalue(L, 1);
  return 1;
}

static const Op open_op = {.name = "open",
                           .attempt = open_attempt,
                           .failed = open_failed,
                           .want = IPC_READ,
                           .deadline = 2,
                           .top = 2};

/***
Opens a POSIX message queue, mq_overview(7), by its name; makes it if there is
none. One way by convention, both ways for whoever opens it so: what anybody
sends anybody may receive.

The tag is the priority, 0 to 32,767 on Linux, 0 by default: the highest comes
first, equals in their order. `recv` does not select by it. There is no
`closed`: nobody is told when others close or die. The queue and what is in it
stay until `remove` or the end of the system. A handle stays usable in both
processes after `ipc.fork`; the ends of `ipc.pair "mqueue"` (two queues without
a name) move.
@function mqueue
@string name `"/jobs"`: a slash and 1 to 254 characters without another
@tparam[opt="rw"] string mode "r", "w" or "rw"
@tparam[opt] table options every room's, and of a queue that is made: `maxmsg`,
messages it holds (10 on Linux); `msgsize`, bytes of the longest (8,192 there;
`maxsize` alone means it, too). What is there already must be so: EEXIST.
`create`: true (the default), false (only what is there), `"new"` (only what is
not); `retry`: with `create = false`, how long to wait for one; `permissions`
("0600", whatever the umask); `temporary`: the close of who made it removes it.
A `maxsize` below msgsize bounds what this handle carries
@treturn channel with `stat`, `remove` and `notify`; or nil, message, errno:
ENOENT, EEXIST, EACCES (also for one that another user made, unless
`create = false`), EINVAL above fs.mqueue.msg_max or fs.mqueue.msgsize_max,
ENOSPC above fs.mqueue.queues_max, EMFILE above RLIMIT_MSGQUEUE, ENOTSUP (macOS,
OpenBSD)
@usage local jobs = assert(ipc.mqueue("/jobs", "w", { maxmsg = 5 }))
assert(jobs:put({ urgent = true }, 9))
*/
static int mqueue_open(lua_State *L) {
  static const char *const names[] = {"maxmsg", "msgsize", NULL};
  enum { NAME = 1, MODE, OPTIONS };
  lua_settop(L, OPTIONS);
  const char *name = mqueue_check_name(L, NAME);
  int mode = ipc_check_mode(L, MODE, IPC_READ | IPC_WRITE);
  ipc_options(L, OPTIONS, names);
  Mqueue *q = mqueue_new(L, name, mode);
  mqueue_options(L, OPTIONS, q);
  q->c.h.moves = false;
  q->c.h.shares = true;
  if (q->temporary)
    ipc_handle_owe(L, -1);
  lua_pushnumber(L, (lua_Number)ipc_option_retry(L, OPTIONS) / 1e9);
  lua_replace(L, 2);
  lua_replace(L, 1); /* the name is in the handle */
  lua_settop(L, 2);
  ipc_handle_open(&q->c.h);
  return ipc_run(L, &open_op);
}

/* ------------------------------------------------------------------ pairs */

/* A queue without a name: it goes with its last descriptor. */
static int mqueue_nameless(const Mqueue *like, int fd[2], OsQueue *is) {
  OsQueue want = like->wanted;
  char name[64];
  int err = EEXIST;
  want.permissions = 0600;
  if (!want.size)
    want.size = (long)like->maxsize;
  for (int turn = 0; err == EEXIST && turn < MQUEUE_TURNS; turn++) {
    snprintf(name, sizeof name, "/ipc.%ld.%llx", (long)getpid(),
             (unsigned long long)ipc_now());
    err = ipc_os_mqueue_make(name, O_RDWR, want.permissions, &want, &fd[0]);
  }
  if (err)
    return err;
  err = ipc_os_mqueue_remove(name);
  if (!err)
    err = ipc_os_mqueue_look(fd[0], is);
  if (!err)
    err = ipc_os_dup(fd[0], &fd[1]);
  if (err)
    close(fd[0]);
  return err;
}

/* Commits both ends of one queue. */
static void mqueue_join(Mqueue *reader, Mqueue *writer, const int fd[2],
                        const OsQueue *is) {
  Mqueue *ends[] = {reader, writer};
  for (int i = 0; i < 2; i++) {
    ends[i]->fd = fd[i];
    ends[i]->is = *is;
    if (ends[i]->c.limit > (size_t)is->size)
      ends[i]->c.limit = (size_t)is->size;
    ipc_handle_open(&ends[i]->c.h);
  }
}

static int mqueue_pair(lua_State *L) {
  static const char *const names[] = {"maxmsg", "msgsize", NULL};
  enum { OPTIONS = 2, PARTS = 4 };
  Mqueue *part[PARTS]; /* reader, writer of one end; of the other */
  int fd[2][2];
  OsQueue is[2];
  lua_settop(L, OPTIONS);
  ipc_options(L, OPTIONS, names);
  for (int i = 0; i < PARTS; i++) {
    part[i] = mqueue_new(L, "", i % 2 ? IPC_WRITE : IPC_READ);
    mqueue_options(L, OPTIONS, part[i]);
  }
  int err = mqueue_nameless(part[0], fd[0], &is[0]);
  if (!err) {
    err = mqueue_nameless(part[0], fd[1], &is[1]);
    if (err) {
      close(fd[0][0]);
      close(fd[0][1]);
    }
  }
  if (err)
    return mqueue_explain(L, part[0], err);
  mqueue_join(part[0], part[3], fd[0], &is[0]);
  mqueue_join(part[2], part[1], fd[1], &is[1]);
  for (int i = 0; i < PARTS; i += 2) {
    lua_pushvalue(L, OPTIONS + 1 + i);
    lua_pushvalue(L, OPTIONS + 2 + i);
    ipc_duplex_push(L, &part[i]->c, &part[i + 1]->c);
  }
  return 2;
}

/* ---------------------------------------------------------------- methods */

/***
What the system knows of the queue now.
@function mqueue:stat
@treturn table `messages` in it; `maxmsg`, `msgsize`: its limits; `uid`, `gid`,
`permissions` ("0600"): whose it is; or nil, message, errno
*/
static int mqueue_stat(lua_State *L) {
  const Mqueue *q = (Mqueue *)ipc_handle_self(L);
  OsQueue now;
  char text[8];
  if (!ipc_handle_usable(&q->c.h))
    return ipc_handle_refuse(L, &q->c.h, "stat");
  int err = ipc_os_mqueue_look(q->fd, &now);
  if (err)
    return ipc_fail(L, mqueue_handle.type, "stat", err, q->name);
  const struct {
    const char *name;
    long value;
  } rows[] = {{"messages", now.count},
              {"maxmsg", now.most},
              {"msgsize", now.size},
              {"uid", now.uid},
              {"gid", now.gid}};
  lua_createtable(L, 0, 6);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    lua_pushinteger(L, rows[i].value);
    lua_setfield(L, -2, rows[i].name);
  }
  snprintf(text, sizeof text, "%04o", now.permissions & 0777U);
  lua_pushstring(L, text);
  lua_setfield(L, -2, "permissions");
  return 1;
}

/***
Removes the queue's name. Who has it open goes on with it; what it holds goes
with the last of them.
@function mqueue:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone, or the
name is another queue's by now; EACCES
*/
static int mqueue_remove(lua_State *L) {
  const Mqueue *q = (Mqueue *)ipc_handle_self(L);
  if (!ipc_handle_usable(&q->c.h))
    return ipc_handle_refuse(L, &q->c.h, "remove");
  int err = mqueue_unlink(q);
  if (err)
    return ipc_fail(L, mqueue_handle.type, "remove", err, q->name);
  lua_pushboolean(L, 1);
  return 1;
}

/***
Asks the kernel for a signal when a message comes to the empty queue,
mq_notify(3): to one process at a time, and once; ask again for the next.
Waiting in `recv` or `ipc.poll` needs none of this.
@function mqueue:notify
@tparam ?string|integer signal name without SIG, or number; nil: none any more
@treturn boolean true; or nil, message, errno: EBUSY while some process (this
one, perhaps) is to be told
@usage assert(jobs:notify "USR1")
*/
static int mqueue_notify(lua_State *L) {
  const Mqueue *q = (Mqueue *)ipc_handle_self(L);
  int number = ipc_check_signal(L, 2, 0);
  luaL_argcheck(L, number != 0 || lua_isnoneornil(L, 2), 2,
                "0 is no signal: nil asks for none");
  if (!ipc_handle_usable(&q->c.h))
    return ipc_handle_refuse(L, &q->c.h, "notify");
  int err = ipc_os_mqueue_notify(q->fd, number);
  if (err)
    return ipc_fail(L, mqueue_handle.type, "notify", err, q->name);
  lua_pushboolean(L, 1);
  return 1;
}

static const luaL_Reg mqueue_methods[] = {{"stat", mqueue_stat},
                                          {"remove", mqueue_remove},
                                          {"notify", mqueue_notify},
                                          {NULL, NULL}};

static void mqueue_setup(lua_State *L) {
  ipc_chan_type(L, &mqueue_handle, mqueue_methods);
}

/* ------------------------------------------------------------------- room */

static const luaL_Reg mqueue_functions[] = {{"mqueue", mqueue_open},
                                            {NULL, NULL}};

static const char *const mqueue_schemes[] = {"mqueue", NULL};

static const Kind mqueue_kinds[] = {
    {"POSIX queue", "mqueue", "both ways", "message", "this system",
     IPC_TAG_INTEGER | IPC_MANY_READERS | IPC_MANY_WRITERS | IPC_EMPTY |
         IPC_DESCRIPTOR},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool mqueue_has(const Kind *k) {
  (void)k;
  return ipc_os_has_mqueue();
}

static const Limit mqueue_limits[] = {
    {ipc_os_mqueue_messages, "messages in a POSIX queue", "messages"},
    {ipc_os_mqueue_bytes, "a message of a POSIX queue", "bytes"},
    {ipc_os_mqueue_queues, "POSIX queues of the system", "queues"},
    {"RLIMIT_MSGQUEUE", "all POSIX queues of a user", "bytes"},
    {NULL, NULL, NULL}};

const Room ipc_room_mqueue = {.name = "mqueue",
                              .schemes = mqueue_schemes,
                              .functions = mqueue_functions,
                              .kinds = mqueue_kinds,
                              .has = mqueue_has,
                              .limits = mqueue_limits,
                              .pair = mqueue_pair,
                              .open = mqueue_open,
                              .types = mqueue_setup};
