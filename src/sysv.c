/* System V message queues: sysvipc(7). Any number of processes, each message
 * whole and with a number on it (its type) that receivers select by. The kernel
 * gives neither descriptors nor deadlines for them; waiter.h does. */
#include "prefix.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <unistd.h>

#include "ipc.h"
#include "msgq.h"
#include "os.h"

/***
 * @submodule ipc
 */

/* ------------------------------------------------------------ system half */

static const HandleOps sysv_handle = {.type = "ipc.sysv",
                                      .descriptor = ipc_msgq_descriptor,
                                      .arm = ipc_msgq_arm,
                                      .wait = ipc_msgq_wait,
                                      .ready = ipc_msgq_ready,
                                      .close = ipc_msgq_close,
                                      .forking = ipc_msgq_forking,
                                      .forked = ipc_msgq_forked};

enum {
  SYSV_NAP_OPEN = 10000, /* us until who waits for a queue looks again */
  SYSV_TURNS = 8         /* of others that create and remove meanwhile */
};

/* What to open. */
typedef struct Asked {
  enum { BY_KEY, BY_PATH, BY_ID, PRIVATE } by;
  int mode;
  int project;
  key_t key;
  int id;
  int create;
  bool checks; /* permissions were asked for */
  unsigned permissions;
  size_t capacity; /* 0: whatever there is */
  size_t maxsize;
  Nanos retry;
} Asked;

typedef struct Sysv {
  MsgQueue q;
  Asked asked;
  bool made; /* by this very call */
} Sysv;

/* What went wrong besides the errno. */
typedef enum Why {
  WHY_ERRNO,
  WHY_OWNER,
  WHY_PERMISSIONS,
  WHY_CAPACITY,
  WHY_PRIVILEGE, /* for that capacity */
  WHY_COUNT,     /* of queues */
  WHY_MAXSIZE,
  WHY_MAXSIZE_HERE
} Why;

static const char *const sysv_limit_of[] = {[WHY_PRIVILEGE] = "kernel.msgmnb",
                                            [WHY_COUNT] = "kernel.msgmni",
                                            [WHY_MAXSIZE] = "kernel.msgmax",
                                            [WHY_MAXSIZE_HERE] = NULL};

static int sysv_get(key_t key, int flags, int *id, Why *why) {
  *id = msgget(key, flags);
  if (*id >= 0)
    return 0;
  if (errno == ENOSPC)
    *why = WHY_COUNT;
  return errno == ENOSYS ? ENOTSUP : errno;
}

/* A new queue; key IPC_PRIVATE: without a name. Nothing is left on failure. */
static int sysv_create(key_t key, const Asked *a, int *id, Why *why) {
  struct msqid_ds status;
  int err = sysv_get(key, IPC_CREAT | IPC_EXCL | (int)a->permissions, id, why);
  if (err || !a->capacity)
    return err;
  err = msgctl(*id, IPC_STAT, &status) ? errno : 0;
  if (!err) {
    status.msg_qbytes = (__typeof__(status.msg_qbytes))a->capacity;
    err = msgctl(*id, IPC_SET, &status) ? errno : 0;
  }
  if (err) {
    (void)msgctl(*id, IPC_RMID, NULL);
    *id = -1;
    *why = err == EPERM || err == EINVAL ? WHY_PRIVILEGE : WHY_ERRNO;
  }
  return err;
}

/* Whether an existing queue is what was asked for. */
static int sysv_check(const Asked *a, const struct msqid_ds *status, Why *why) {
  uid_t owner = status->msg_perm.uid;
  if (a->by != BY_ID && a->create == IPC_CREATE && owner != geteuid() &&
      owner != 0) {
    *why = WHY_OWNER;
    return EACCES;
  }
  if (a->checks && (status->msg_perm.mode & 0777) != a->permissions) {
    *why = WHY_PERMISSIONS;
    return EEXIST;
  }
  if (a->capacity && status->msg_qbytes != a->capacity) {
    *why = WHY_CAPACITY;
    return EEXIST;
  }
  return 0;
}

static int sysv_find(Sysv *s, key_t key, struct msqid_ds *status, Why *why) {
  const Asked *a = &s->asked;
  int need = (a->mode & IPC_READ ? 0400 : 0) | (a->mode & IPC_WRITE ? 0200 : 0);
  int id = a->id, err = 0;
  if (a->by != BY_ID)
    err = sysv_get(key, need, &id, why);
  if (!err) {
    err = msgctl(id, IPC_STAT, status) ? errno : 0;
    if (ipc_msgq_removed(err))
      err = ENOENT;
    /* It may be written and not looked at: whose it is cannot be told. */
    if (err == EACCES && !(a->mode & IPC_READ) &&
        (a->by == BY_ID || a->create == IPC_ATTACH) && !a->checks &&
        !a->capacity) {
      status->msg_qbytes = 0;
      err = 0;
    } else if (!err) {
      err = sysv_check(a, status, why);
    }
  }
  if (!err)
    s->q.id = id;
  return err;
}

/* Opens what was asked for. On failure s->q.id is -1 and nothing was made. */
static int sysv_acquire(Sysv *s, const char *path, bool temporary,
                        struct msqid_ds *status, Why *why) {
  const Asked *a = &s->asked;
  key_t key = a->by == PRIVATE ? IPC_PRIVATE : a->key;
  if (a->by == BY_PATH) {
    key = ftok(path, a->project);
    if (key == (key_t)-1)
      return errno;
    if (key == IPC_PRIVATE)
      return EINVAL; /* a file whose numbers make the key that is none */
  }
  int err = ENOENT;
  for (int turn = 0; turn < SYSV_TURNS; turn++) {
    if (a->by == BY_ID || (a->by != PRIVATE && a->create != IPC_CREATE_NEW)) {
      err = sysv_find(s, key, status, why);
      s->q.heir = !err && a->by == BY_ID && temporary;
      if (err != ENOENT || a->by == BY_ID || a->create == IPC_ATTACH)
        return err;
    }
    err = sysv_create(key, a, &s->q.id, why);
    if (!err) {
      s->made = true;
      s->q.owner = temporary;
      err = ipc_msgq_status(&s->q, status);
      if (!err || err == EACCES) /* permissions without reading */
        return 0;
      s->q.id = -1;
      err = ENOENT;
    }
    if (a->create == IPC_CREATE_NEW || a->by == PRIVATE ||
        (err != EEXIST && err != ENOENT))
      return err;
  }
  return err;
}

/* How long a message may be in a queue of that capacity, where the system does
 * not tell: what one takes of a queue made to try. */
static size_t sysv_try_size(size_t capacity) {
  size_t least = 0, most = capacity;
  int id = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
  long *message = calloc(1, sizeof *message + capacity);
  while (id >= 0 && message && least < most) {
    size_t size = least + (most - least + 1) / 2;
    *message = 1;
    if (msgsnd(id, message, size, IPC_NOWAIT) == 0)
      least = size;
    else
      most = size - 1;
    (void)msgrcv(id, message, 0, 0, IPC_NOWAIT | MSG_NOERROR);
  }
  free(message);
  if (id >= 0)
    (void)msgctl(id, IPC_RMID, NULL);
  return most;
}

/* How long a message may be: the system's limit and the queue's. */
static int sysv_measure(Sysv *s, size_t capacity, Why *why) {
  Chan *c = &s->q.c;
  long long system = 0;
  size_t asked = s->asked.maxsize;
  bool bound = false; /* by the system, not by the queue */
  s->q.most = capacity;
  if (ipc_os_limit("kernel.msgmax", &system)) {
    s->q.most = sysv_try_size(capacity);
  } else if (capacity == 0 || (unsigned long long)system < capacity) {
    s->q.most = (size_t)system;
    bound = true;
  }
  if (s->q.most > 0 && asked > s->q.most) {
    *why = bound ? WHY_MAXSIZE : WHY_MAXSIZE_HERE;
    return EMSGSIZE;
  }
  if (asked || s->q.most > 0)
    c->limit = asked ? asked : s->q.most;
  return 0;
}

/* --------------------------------------------------------------- Lua half */

static bool sysv_given(lua_State *L, int options, const char *name) {
  if (lua_isnoneornil(L, options))
    return false;
  lua_pushstring(L, name);
  bool given = lua_rawget(L, options) != LUA_TNIL;
  lua_pop(L, 1);
  return given;
}

/* 1 .. 255, or one character. */
static int sysv_option_project(lua_State *L, int options) {
  int project = 1;
  if (!sysv_given(L, options, "project"))
    return project;
  lua_pushliteral(L, "project");
  int type = lua_rawget(L, options);
  lua_Integer n = type == LUA_TNUMBER ? lua_tointeger(L, -1) : 0;
  if (type == LUA_TSTRING && lua_rawlen(L, -1) == 1)
    n = (unsigned char)*lua_tostring(L, -1);
  if (n < 1 || n > 255)
    luaL_argerror(L, options,
                  "option 'project': 1 to 255 or one character expected");
  lua_pop(L, 1);
  return (int)n;
}

/* The options; they are checked before there is anything to lose. */
static void sysv_ask(lua_State *L, int options, Asked *a) {
  a->create = ipc_option_create(L, options);
  a->checks = sysv_given(L, options, "permissions");
  a->permissions = ipc_option_permissions(L, options);
  a->capacity = ipc_option_size(L, options, "capacity", 1, INT_MAX, 0);
  a->maxsize = ipc_option_size(L, options, "maxsize", 1, SIZE_MAX / 4, 0);
  a->retry = ipc_option_retry(L, options);
}

static const Tags sysv_tags = {
    .kind = IPC_TAG_INTEGER, 1, LONG_MAX, 1, .selects = true};

static const Tags sysv_pair_tags = {
    .kind = IPC_TAG_INTEGER, 1, IPC_MSGQ_END - 1, 1, .selects = true};

static int sysv_dup(lua_State *L, Chan *c);

static const ChanOps sysv_chan = {.bound = "kernel.msgmax",
                                  .recv = ipc_msgq_recv,
                                  .took = ipc_msgq_took,
                                  .send = ipc_msgq_send,
                                  .flush = ipc_msgq_flush,
                                  .shutdown = ipc_msgq_shutdown,
                                  .tags = &sysv_tags,
                                  .dup = sysv_dup};

static const ChanOps sysv_pair_chan = {.bound = "kernel.msgmax",
                                       .recv = ipc_msgq_recv,
                                       .took = ipc_msgq_took,
                                       .send = ipc_msgq_send,
                                       .flush = ipc_msgq_flush,
                                       .shutdown = ipc_msgq_shutdown,
                                       .tags = &sysv_pair_tags,
                                       .dup = sysv_dup};

/* Pushes a handle, closed: of a named queue, or an end of a pair's. */
static Sysv *sysv_new(lua_State *L, const Asked *a, int mode, bool end) {
  Sysv *s = ipc_chan_new(L, sizeof *s, &sysv_handle,
                         end ? &sysv_pair_chan : &sysv_chan, mode);
  s->asked = *a;
  s->asked.mode = mode;
  s->q.id = -1;
  s->q.refused = 1;
  s->q.c.h.moves = end;
  s->q.c.h.shares = !end;
  return s;
}

static int sysv_dup(lua_State *L, Chan *c) {
  Sysv *s = (Sysv *)c;
  Sysv *g = sysv_new(L, &s->asked, s->asked.mode, s->q.ends != NULL);
  g->q.c.timeout = c->timeout;
  g->q.c.linger = c->linger;
  g->q.c.limit = c->limit;
  g->q.c.shut = c->shut;
  g->q.c.ended = c->ended;
  g->q.c.failed = c->failed;
  g->q.c.spin[0].budget = g->q.c.spin[1].budget = c->spin[0].budget;
  ipc_msgq_copy(&g->q, &s->q);
  ipc_handle_open(&g->q.c.h);
  return 0;
}

static int sysv_failed(lua_State *L, const Sysv *s,
                       const struct msqid_ds *status, int err, Why why) {
  const char *type = sysv_handle.type;
  const Asked *a = &s->asked;
  char text[160];
  switch (why) {
  case WHY_OWNER:
    snprintf(text, sizeof text,
             "the queue belongs to user %ld, not to user %ld or root "
             "(create = false opens it all the same)",
             (long)status->msg_perm.uid, (long)geteuid());
    return ipc_fail(L, type, "open", err, text);
  case WHY_PERMISSIONS:
    snprintf(text, sizeof text, "permissions are \"%04o\", not \"%04o\"",
             (unsigned)status->msg_perm.mode & 0777, a->permissions);
    return ipc_fail(L, type, "open", err, text);
  case WHY_CAPACITY:
    snprintf(text, sizeof text, "capacity is %lu, not %lu",
             (unsigned long)status->msg_qbytes, (unsigned long)a->capacity);
    return ipc_fail(L, type, "open", err, text);
  case WHY_PRIVILEGE:
    snprintf(text, sizeof text, "capacity %lu", (unsigned long)a->capacity);
    return ipc_fail_limit(L, type, "open", err, text, sysv_limit_of[why]);
  case WHY_COUNT:
    return ipc_fail_limit(L, type, "open", err, NULL, sysv_limit_of[why]);
  case WHY_MAXSIZE:
    snprintf(text, sizeof text, "maxsize %zu", a->maxsize);
    return ipc_fail_limit(L, type, "open", err, text, sysv_limit_of[why]);
  case WHY_MAXSIZE_HERE:
    snprintf(text, sizeof text,
             "maxsize %zu, but this queue carries messages of %zu bytes",
             a->maxsize, s->q.most);
    return ipc_fail(L, type, "open", err, text);
  default:
    return ipc_fail(L, type, "open", err,
                    err == ENOTSUP ? "no System V queues on this system"
                                   : NULL);
  }
}

/* Slots of opening: 1 the handle, 2 the path, 3 the deadline, 4 temporary. */
enum { OPEN_PATH = 2, OPEN_TIMEOUT, OPEN_TEMPORARY, OPEN_TOP = OPEN_TEMPORARY };

static int open_attempt(lua_State *L, Handle *h) {
  Sysv *s = (Sysv *)h;
  Why why = WHY_ERRNO;
  struct msqid_ds status;
  memset(&status, 0, sizeof status);
  int err = sysv_acquire(s, lua_tostring(L, OPEN_PATH),
                         lua_toboolean(L, OPEN_TEMPORARY), &status, &why);
  if (err == ENOENT && s->asked.retry > 0) {
    h->nap = SYSV_NAP_OPEN;
    return -IPC_READ;
  }
  if (!err) {
    err = sysv_measure(s, (size_t)status.msg_qbytes, &why);
    if (err && s->made) /* for nothing */
      (void)msgctl(s->q.id, IPC_RMID, NULL);
  }
  if (err) {
    s->q.id = -1;
    ipc_handle_release(h, IPC_DROP);
    return sysv_failed(L, s, &status, err, why);
  }
  s->q.c.spin[0].skip = s->q.c.spin[0].penalty =
      0; /* not what opening taught */
  lua_pushvalue(L, 1);
  return 1;
}

static int open_failed(lua_State *L, Handle *h, int err) {
  ipc_handle_release(h, IPC_DROP);
  return ipc_fail(L, h->ops->type, "open", err, NULL);
}

static const Op open_op = {.name = "open",
                           .attempt = open_attempt,
                           .failed = open_failed,
                           .want = IPC_READ,
                           .deadline = OPEN_TIMEOUT,
                           .top = OPEN_TOP};

/* What argument 1 names: a key, a path, "private", or with option id nothing.
 */
static void sysv_target(lua_State *L, Asked *a) {
  int type = lua_type(L, 1);
  if (sysv_given(L, 3, "id")) {
    luaL_argcheck(L, type == LUA_TNIL, 3, "a key or option 'id', not both");
    a->by = BY_ID;
    a->id = (int)ipc_option_size(L, 3, "id", 0, INT_MAX, 0);
  } else if (type == LUA_TNUMBER) {
    lua_Integer key = luaL_checkinteger(L, 1);
    luaL_argcheck(L, key != 0, 1,
                  "key 0 is IPC_PRIVATE: say \"private\" for a new queue");
    luaL_argcheck(L, key >= INT_MIN && key <= (lua_Integer)UINT_MAX, 1,
                  "a key has 32 bits");
    a->by = BY_KEY;
    a->key = (key_t)(uint32_t)key;
  } else if (type == LUA_TSTRING) {
    size_t size;
    const char *path = lua_tolstring(L, 1, &size);
    luaL_argcheck(L, size > 0 && strlen(path) == size, 1,
                  "a path is not empty and has no zero byte");
    a->by = strcmp(path, "private") == 0 ? PRIVATE : BY_PATH;
  } else {
    luaL_typeerror(L, 1, "key, path or \"private\"");
  }
}

static int sysv_open(lua_State *L) {
  static const char *const names[] = {"project", "capacity", "id", NULL};
  Asked a;
  memset(&a, 0, sizeof a);
  lua_settop(L, 3);
  ipc_options(L, 3, names);
  sysv_target(L, &a);
  int mode = ipc_check_mode(L, 2, IPC_READ | IPC_WRITE);
  a.project = sysv_option_project(L, 3);
  sysv_ask(L, 3, &a);
  bool temporary = ipc_option_flag(L, 3, "temporary", false);
  Sysv *s = sysv_new(L, &a, mode, false);
  ipc_chan_options(L, 3, &s->q.c, SIZE_MAX / 4);
  lua_insert(L, 1); /* handle, path, mode, options */
  lua_settop(L, OPEN_PATH);
  if (a.retry == IPC_FOREVER)
    lua_pushnumber(L, HUGE_VAL);
  else
    lua_pushnumber(L, (lua_Number)a.retry / 1e9);
  lua_pushboolean(L, temporary);
  if (temporary) /* it may raise: before there is anything to lose */
    ipc_handle_owe(L, 1);
  ipc_handle_open(&s->q.c.h);
  return ipc_run(L, &open_op);
}

/***
Opens a System V message queue, sysvipc(7): any number of processes send and
receive through it, each message whole and with a number on it. The tag is that
number, the message's type, 1 to LONG_MAX, 1 by default; `recv` takes the next
message of all (no tag, or 0), of type n (`n`), of the lowest type up to n
(`-n`), or of any type but n (`{ except = n }`; Linux, else ENOTSUP). A handle
waits for one selection at a time: tasks that wait for different ones take a
handle each (`dup`). What `ipc.poll` waits for is what the last recv asked for.

The kernel knows neither deadlines nor descriptors for these queues; here a
thread waits in msgrcv(2) and makes a descriptor readable, begun when somebody
sleeps for the first time. Who sends to a full queue looks again every 50 us to
2 ms. There is no `closed` when other processes end: only when the queue is
removed. A queue outlives its processes, with its messages, until it is removed:
by `sysv:remove`, by `temporary`, ipcrm(1) or a reboot.

A key made of a path, ftok(3), has 8 bits of `project`, 8 of the device and 16
of the inode: different files may make the same key. So an existing queue is
looked at: of somebody else (neither ours nor root's) it is not taken unless
`create = false` says so, and permissions and capacity must be what was asked.

A message that was received and not delivered (memory ran out; an empty one that
ended a wait) is put back at close, behind the others, or lost if the queue is
full; after `ipc.fork` it stays with the parent.
@function sysv
@tparam integer|string key a number other than 0; a path for ftok(3); or
"private": a new queue without a key, which others open by its `id`
@tparam[opt="rw"] string mode "r", "w", "rw"
@tparam[opt] table options every room's, and: `project` (1): 1 to 255 or one
character, for ftok(3); `capacity`: bytes the queue holds (by default
kernel.msgmnb, 16,384; more needs privilege); `id`: opens the queue of that
identifier, the key being nil; then `temporary` says that close removes it if
the process that has received from it last is dead. `maxsize` is at most
kernel.msgmax, 8,192
@treturn channel; or nil, message, errno: ENOENT with `create = false`, and
`"timeout"` if `retry` gave it time; EEXIST with `create = "new"`, or where
permissions or capacity are others than asked for; EACCES; EPERM for a capacity
over kernel.msgmnb; EMSGSIZE for a maxsize over kernel.msgmax; ENOSPC when
there are kernel.msgmni queues
@usage local jobs = assert(ipc.sysv(0x4a42))
jobs:put({ "resize", "a.png" }, 2)
local job, kind = jobs:get(1, -9)
*/
static int sysv_call(lua_State *L) { return sysv_open(L); }

/* (rest, mode, options): a key is written as in C. */
static int sysv_address(lua_State *L) {
  lua_settop(L, 3);
  const char *rest = luaL_checkstring(L, 1);
  size_t digits = strspn(rest + (*rest == '-'), "0123456789");
  if (*rest == '\0') {
    lua_pushnil(L);
    lua_replace(L, 1);
  } else if (digits > 0) {
    luaL_argcheck(L, lua_stringtonumber(L, rest) > 0 && lua_isinteger(L, -1), 1,
                  "a key is an integer, a path has a slash first");
    lua_replace(L, 1);
  }
  return sysv_open(L);
}

/* --------------------------------------------------------------- methods */

static Sysv *sysv_self(lua_State *L) { return (Sysv *)ipc_handle_self(L); }

static int sysv_method_failed(lua_State *L, Sysv *s, const char *call,
                              int err) {
  if (ipc_msgq_removed(err))
    err = ipc_msgq_gone(&s->q);
  return ipc_fail(L, sysv_handle.type, call, err, NULL);
}

/***
The number by which the kernel knows the queue; another process opens it by
`ipc.sysv(nil, mode, { id = n })`.
@function sysv:id
@treturn integer
*/
static int sysv_id(lua_State *L) {
  lua_pushinteger(L, sysv_self(L)->q.id);
  return 1;
}

static void sysv_stat_fields(lua_State *L, const struct msqid_ds *s) {
  const struct {
    const char *name;
    long long value;
  } fields[] = {{"messages", (long long)s->msg_qnum},
                {"bytes", (long long)ipc_os_msg_bytes(s)},
                {"capacity", (long long)s->msg_qbytes},
                {"last_send_pid", s->msg_lspid},
                {"last_recv_pid", s->msg_lrpid},
                {"send_time", s->msg_stime},
                {"recv_time", s->msg_rtime},
                {"change_time", s->msg_ctime},
                {"uid", s->msg_perm.uid},
                {"gid", s->msg_perm.gid},
                {"creator_uid", s->msg_perm.cuid},
                {"creator_gid", s->msg_perm.cgid},
                {"key", ipc_os_msg_key(s)}};
  for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
    lua_pushinteger(L, (lua_Integer)fields[i].value);
    lua_setfield(L, -2, fields[i].name);
  }
}

/***
What the kernel knows of the queue.
@function sysv:stat
@treturn table `messages` and `bytes` in it, `capacity` in bytes,
`last_send_pid`, `last_recv_pid`, `send_time`, `recv_time`, `change_time`
(seconds of os.time; 0: never), `uid`, `gid`, `creator_uid`, `creator_gid`,
`permissions` ("0600"), `key` (0: private), `id`; or nil, message, errno:
`"closed"` when it was removed, EACCES when it may not be read
*/
static int sysv_stat(lua_State *L) {
  Sysv *s = sysv_self(L);
  struct msqid_ds status;
  char text[8];
  if (!ipc_handle_usable(&s->q.c.h))
    return ipc_handle_refuse(L, &s->q.c.h, "stat");
  int err = ipc_msgq_status(&s->q, &status);
  if (err)
    return sysv_method_failed(L, s, "stat", err);
  lua_createtable(L, 0, 15);
  sysv_stat_fields(L, &status);
  snprintf(text, sizeof text, "%04o", (unsigned)status.msg_perm.mode & 0777);
  lua_pushstring(L, text);
  lua_setfield(L, -2, "permissions");
  lua_pushinteger(L, s->q.id);
  lua_setfield(L, -2, "id");
  return 1;
}

/***
Changes the queue, as its owner, its creator or root.
@function sysv:set
@tparam table changes any of `permissions` ("0660"), `capacity` (bytes), `uid`,
`gid` (of the new owner)
@treturn boolean true; or nil, message, errno: EPERM, also for a capacity over
kernel.msgmnb without privilege; `"closed"`
*/
static int sysv_set(lua_State *L) {
  static const char *const names[] = {"permissions", "capacity", "uid", "gid"};
  Sysv *s = sysv_self(L);
  struct msqid_ds status;
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  for (lua_pushnil(L); lua_next(L, 2); lua_pop(L, 1)) {
    size_t i = 0;
    if (lua_type(L, -2) != LUA_TSTRING)
      return luaL_argerror(L, 2, "a field's name must be a string");
    while (i < 4 && strcmp(names[i], lua_tostring(L, -2)) != 0)
      i++;
    if (i == 4)
      return luaL_argerror(
          L, 2, lua_pushfstring(L, "unknown field '%s'", lua_tostring(L, -2)));
  }
  unsigned permissions = ipc_option_permissions(L, 2);
  size_t capacity = ipc_option_size(L, 2, "capacity", 1, INT_MAX, 0);
  size_t uid = ipc_option_size(L, 2, "uid", 0, UINT_MAX - 1, 0);
  size_t gid = ipc_option_size(L, 2, "gid", 0, UINT_MAX - 1, 0);
  if (!ipc_handle_usable(&s->q.c.h))
    return ipc_handle_refuse(L, &s->q.c.h, "set");
  int err = ipc_msgq_status(&s->q, &status);
  if (err)
    return sysv_method_failed(L, s, "set", err);
  if (sysv_given(L, 2, "permissions"))
    status.msg_perm.mode =
        (__typeof__(status.msg_perm.mode))((status.msg_perm.mode & ~0777U) |
                                           permissions);
  if (capacity)
    status.msg_qbytes = (__typeof__(status.msg_qbytes))capacity;
  if (sysv_given(L, 2, "uid"))
    status.msg_perm.uid = (uid_t)uid;
  if (sysv_given(L, 2, "gid"))
    status.msg_perm.gid = (gid_t)gid;
  err = msgctl(s->q.id, IPC_SET, &status) ? errno : 0;
  if (err == EPERM && capacity) {
    char text[64];
    snprintf(text, sizeof text, "capacity %lu", (unsigned long)capacity);
    return ipc_fail_limit(L, sysv_handle.type, "set", err, text,
                          "kernel.msgmnb");
  }
  if (err)
    return sysv_method_failed(L, s, "set", err);
  if (capacity) {
    Why why = WHY_ERRNO;
    if (sysv_measure(s, capacity, &why)) /* less than was asked for */
      s->q.c.limit = s->q.most;
  }
  lua_pushboolean(L, 1);
  return 1;
}

/***
Removes the queue and the messages in it; whoever uses it gets `closed`.
@function sysv:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone already,
EPERM when it is another user's
*/
static int sysv_remove(lua_State *L) {
  Sysv *s = sysv_self(L);
  if (!ipc_handle_usable(&s->q.c.h))
    return ipc_handle_refuse(L, &s->q.c.h, "remove");
  int err = s->q.gone ? ENOENT : 0;
  if (!err && msgctl(s->q.id, IPC_RMID, NULL))
    err = ipc_msgq_removed(errno) ? ENOENT : errno;
  if (!err || err == ENOENT)
    (void)ipc_msgq_gone(&s->q);
  if (err)
    return ipc_fail(L, sysv_handle.type, "remove", err, NULL);
  ipc_wake(L, &s->q.c.h);
  lua_pushboolean(L, 1);
  return 1;
}

static const luaL_Reg sysv_methods[] = {{"id", sysv_id},
                                        {"stat", sysv_stat},
                                        {"set", sysv_set},
                                        {"remove", sysv_remove},
                                        {NULL, NULL}};

/* ------------------------------------------------------------------- pairs */

/* Makes a nameless queue for two ends, both closed. Nothing is left on failure.
 */
static int sysv_private(Sysv *reader, Sysv *writer, struct msqid_ds *status,
                        Why *why) {
  int err = sysv_create(IPC_PRIVATE, &reader->asked, &reader->q.id, why);
  if (err)
    return err;
  writer->q.id = reader->q.id;
  (void)ipc_msgq_status(&reader->q, status);
  err = sysv_measure(reader, (size_t)status->msg_qbytes, why);
  if (!err)
    err = sysv_measure(writer, (size_t)status->msg_qbytes, why);
  if (!err)
    err = ipc_msgq_pair(&reader->q, &writer->q);
  if (err) {
    (void)msgctl(reader->q.id, IPC_RMID, NULL);
    return err;
  }
  ipc_handle_open(&reader->q.c.h);
  ipc_handle_open(&writer->q.c.h);
  return 0;
}

/***
Makes two connected ends of two System V queues without names, for this process
and its children: `ipc.pair("sysv", options)`. Each end receives from one queue
and sends to the other, with tags from 1 to LONG_MAX - 1. A queue is removed
when the last end that receives from it is closed or collected, or its program
ends; a process that is killed leaves its queue behind and its peer waiting, as
System V has it (ipcs(1), ipcrm(1)).
@function pair
@string address "sysv"
@tparam[opt] table options every room's, and `capacity`
@treturn channel one end
@treturn channel the other; or nil, message, errno as `ipc.sysv`
@usage local a, b = ipc.pair "sysv"
*/
static int sysv_pair(lua_State *L) {
  static const char *const names[] = {"capacity", NULL};
  enum { FIRST = 3 };
  Asked a;
  Sysv *q[4]; /* one receives, sends; the other receives, sends */
  Why why = WHY_ERRNO;
  struct msqid_ds status;
  memset(&a, 0, sizeof a);
  memset(&status, 0, sizeof status);
  lua_settop(L, 2);
  ipc_options(L, 2, names);
  sysv_ask(L, 2, &a);
  for (int i = 0; i < 4; i++) {
    q[i] = sysv_new(L, &a, i % 2 ? IPC_WRITE : IPC_READ, true);
    ipc_chan_options(L, 2, &q[i]->q.c, SIZE_MAX / 4);
  }
  int err = sysv_private(q[0], q[3], &status, &why);
  if (!err) {
    err = sysv_private(q[2], q[1], &status, &why);
    if (err) {
      ipc_handle_release(&q[0]->q.c.h, IPC_CLOSE);
      ipc_handle_release(&q[3]->q.c.h, IPC_CLOSE);
    }
  }
  if (err)
    return sysv_failed(L, q[0], &status, err, why);
  for (int i = 0; i < 4; i += 2) {
    lua_pushvalue(L, FIRST + i);
    lua_pushvalue(L, FIRST + i + 1);
    ipc_duplex_push(L, &q[i]->q.c, &q[i + 1]->q.c);
  }
  return 2;
}

static void sysv_setup(lua_State *L) {
  ipc_chan_type(L, &sysv_handle, sysv_methods);
}

static const luaL_Reg sysv_functions[] = {{"sysv", sysv_call}, {NULL, NULL}};

static const char *const sysv_schemes[] = {"sysv", NULL};

static const Kind sysv_kinds[] = {
    {"System V queue", "sysv", "both ways", "message", "this system",
     IPC_TAG_INTEGER | IPC_MANY_READERS | IPC_MANY_WRITERS | IPC_EMPTY |
         IPC_DESCRIPTOR},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static const Limit sysv_limits[] = {
    {"kernel.msgmax", "a message of a System V queue", "bytes"},
    {"kernel.msgmnb", "what a System V queue holds", "bytes"},
    {"kernel.msgmni", "System V queues", "queues"},
    {NULL, NULL, NULL}};

static bool sysv_has(const Kind *k) {
  struct msqid_ds status;
  (void)k;
  return msgctl(-1, IPC_STAT, &status) == 0 || errno != ENOSYS;
}

const Room ipc_room_sysv = {.name = "sysv",
                            .schemes = sysv_schemes,
                            .functions = sysv_functions,
                            .kinds = sysv_kinds,
                            .has = sysv_has,
                            .limits = sysv_limits,
                            .pair = sysv_pair,
                            .open = sysv_address,
                            .types = sysv_setup};
