/* A log on disk as a channel: what is sent is appended, every reader reads all
 * of it, and a power cut loses nothing that was synced. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "journals.h"
#include "os.h"

/***
 * @submodule ipc
 */

enum {
  JOURNAL_ROOM = 16 << 20,      /* bytes of a file */
  JOURNAL_LEAST = 64 << 10,     /* the same, at least */
  JOURNAL_PLACE = 64,           /* characters of a reader's name */
  JOURNAL_MESSAGE = 0x3fffffff, /* bytes, at most */
  JOURNAL_PATH = MEMBER_PATH - 16
};

static const HandleOps journal_handle = {.type = "ipc.journal",
                                         .descriptor = ipc_journal_descriptor,
                                         .arm = ipc_journal_arm,
                                         .wait = ipc_journal_wait,
                                         .ready = ipc_journal_ready,
                                         .close = ipc_journal_close,
                                         .forking = ipc_journal_forking,
                                         .forked = ipc_journal_forked,
                                         .events = true};

static Member *journal_member(Handle *h) { return &((Journal *)h)->m; }

/* ----------------------------------------------------------------- opening */

/* What an opening has in own[]. */
enum { OWN_FROM, OWN_SINCE, OWN_NAME, OWN_NEW };
enum { FROM_FIRST, FROM_END, FROM_TIME, FROM_SEQUENCE };

/* What a power cut made of a control file, whose bytes are on the disk or not:
 * a new one will do. EAGAIN: another is just at it. */
static int sweep_try(int dir) {
  static const char zeros[sizeof(SegmentHead)];
  SegmentHead h;
  struct stat is, named;
  size_t got;
  int fd =
      openat(dir, LOG_CONTROL, O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0)
    return 0;
  int err = 0;
  if (fstat(fd, &is) == 0 && S_ISREG(is.st_mode) &&
      ipc_log_read(fd, &h, sizeof h, 0, &got) == 0) {
    bool nothing = memcmp(&h, zeros, got) == 0;
    bool cut = got == sizeof h &&
               memcmp(h.magic, SEGMENT_MAGIC, sizeof h.magic) == 0 &&
               h.order == SEGMENT_ORDER && (uint64_t)is.st_size < h.total;
    if (nothing || cut) /* alone, and if it still has the name */
      err = ipc_os_byte_lock(fd, 0);
    if (!err && (nothing || cut) &&
        fstatat(dir, LOG_CONTROL, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
        named.st_ino == is.st_ino && named.st_dev == is.st_dev)
      (void)unlinkat(dir, LOG_CONTROL, 0);
  }
  close(fd);
  return err;
}

static void journal_sweep(int dir) {
  const struct timespec moment = {.tv_nsec = 200000};
  for (int turn = 0; turn < 100 && sweep_try(dir) == EAGAIN; turn++)
    nanosleep(&moment, NULL);
}

static int journal_begin_reading(Journal *j, const Opening *o) {
  LogReader *r = &j->r;
  Log *l = &j->log;
  bool known = false;
  int err = 0;
  if (o->own[OWN_NAME])
    err = ipc_log_place_open(l, r, o->path + o->own[OWN_NAME], &known);
  if (err || known) {
    r->next = r->acked + 1;
    return err;
  }
  uint64_t what = o->own[OWN_SINCE];
  switch (o->own[OWN_FROM]) {
  case FROM_FIRST:
    return ipc_log_first(l, &r->next);
  case FROM_END:
    r->next = ipc_log_committed(l) + 1;
    return 0;
  case FROM_TIME:
    return ipc_log_since(l, r, what);
  default:
    r->next = what;
    return 0;
  }
}

static int journal_begin(Handle *h, const Opening *o) {
  Journal *j = (Journal *)h;
  Log *l = &j->log;
  if (j->m.s.head.extra < sizeof(LogControl))
    return ENOTSUP;
  if (l->dir < 0) {
    l->dir = open(j->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (l->dir < 0)
      return errno;
  }
  l->s = &j->m.s;
  l->c = SEGMENT_EXTRA(&j->m.s);
  l->why[0] = '\0';
  j->lapsed = true;
  int err = ipc_journal_lock(j);
  if (err)
    return err;
  err = ipc_log_recover(l, !j->c.writer);
  if (err == EBADMSG) /* what control tells is not to be lost with it */
    j->m.s.made = false;
  uint64_t last = ipc_log_tail(l).number;
  int lost = ipc_journal_unlock(j);
  if (!err)
    err = lost;
  if (!err && o->own[OWN_NEW] && last)
    err = EEXIST;
  if (!err && j->c.reader)
    err = journal_begin_reading(j, o);
  return err;
}

static const char *journal_words(lua_State *L, Handle *h, const Opening *o,
                                 int err) {
  const Journal *j = (const Journal *)h;
  if (err == EBUSY && o->own[OWN_NAME])
    return lua_pushfstring(L, "a reader of the name %s has it open",
                           o->path + o->own[OWN_NAME]);
  if (err == EEXIST)
    return "there is a journal";
  return j->log.why[0] ? lua_pushstring(L, j->log.why) : NULL;
}

static const MemberRoom journal_room = {.name = "journal",
                                        .type = "ipc.journal",
                                        .kind = SEGMENT_JOURNAL,
                                        .member = journal_member,
                                        .begin = journal_begin,
                                        .words = journal_words};

static const char *journal_directory(lua_State *L, int index) {
  size_t n;
  if (lua_type(L, index) != LUA_TSTRING)
    luaL_typeerror(L, index, "string");
  const char *path = lua_tolstring(L, index, &n);
  luaL_argcheck(L, !memchr(path, '\0', n), index, "a path holds no NUL");
  luaL_argcheck(L, n > 0, index, "the path of a directory expected");
  if (n > JOURNAL_PATH)
    luaL_argerror(L, index,
                  lua_pushfstring(L, "a path of %d characters; at most %d",
                                  (int)n, JOURNAL_PATH));
  return path;
}

/* The option at `name`, pushed. */
static int journal_option(lua_State *L, int index, const char *name) {
  if (lua_isnoneornil(L, index))
    return lua_pushnil(L), LUA_TNIL;
  lua_pushstring(L, name);
  return lua_rawget(L, index);
}

/* `from` and `since` into own[]. */
static void journal_from(lua_State *L, int index, uint64_t own[]) {
  int top = lua_gettop(L), type = journal_option(L, index, "from"), isnum = 0;
  own[OWN_FROM] = FROM_FIRST;
  if (type == LUA_TNUMBER) {
    lua_Integer n = lua_tointegerx(L, -1, &isnum);
    if (!isnum || n < 1)
      luaL_argerror(L, index, "option 'from': sequences begin with 1");
    own[OWN_FROM] = FROM_SEQUENCE;
    own[OWN_SINCE] = (uint64_t)n;
  } else if (type != LUA_TNIL) {
    const char *word = type == LUA_TSTRING ? lua_tostring(L, -1) : "";
    if (strcmp(word, "end") == 0)
      own[OWN_FROM] = FROM_END;
    else if (strcmp(word, "first") != 0)
      luaL_argerror(L, index,
                    "option 'from': a sequence, \"first\" or \"end\"");
  }
  int when = journal_option(L, index, "since");
  if (when != LUA_TNIL) {
    lua_Number seconds = lua_tonumber(L, -1);
    if (when != LUA_TNUMBER || !(seconds >= 0 && seconds < 1.8e10))
      luaL_argerror(L, index,
                    "option 'since': seconds since 1970, as of os.time");
    if (type != LUA_TNIL)
      luaL_argerror(L, index, "option 'from', or 'since'");
    own[OWN_FROM] = FROM_TIME;
    own[OWN_SINCE] = (uint64_t)(seconds * 1e9);
  }
  lua_settop(L, top);
}

/* `reader`: its name, pushed, or NULL and nil. */
static const char *journal_name(lua_State *L, int index) {
  int type = journal_option(L, index, "reader");
  if (type == LUA_TNIL)
    return NULL;
  size_t n = 0;
  const char *name = type == LUA_TSTRING ? lua_tolstring(L, -1, &n) : "";
  if (n == 0 || n > JOURNAL_PLACE ||
      strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                   "0123456789_-") != n)
    luaL_argerror(
        L, index,
        "option 'reader': a name of 1 to 64 letters, digits, _ and -");
  return name;
}

static const char *const journal_options[] = {
    "durability",   "interval",       "segment",      "from",
    "since",        "reader",         "follow",       "slowest",
    "retain_bytes", "retain_seconds", "participants", NULL};

/* What the options say of this handle. */
static void journal_read(lua_State *L, int index, Journal *j) {
  static const char *const words[] = {"interval", "sync", "none", NULL};
  Log *l = &j->log;
  ipc_chan_options(L, index, &j->c, JOURNAL_MESSAGE);
  l->durability =
      (LogDurability)ipc_option_choice(L, index, "durability", words);
  l->interval = ipc_option_time(L, index, "interval", IPC_SECOND);
  l->room = ipc_option_size(L, index, "segment", JOURNAL_LEAST, (size_t)1 << 30,
                            JOURNAL_ROOM);
  l->room = (l->room + LOG_START - 1) / LOG_START * LOG_START;
  l->retain_bytes =
      ipc_option_size(L, index, "retain_bytes", 1, PTRDIFF_MAX, 0);
  Nanos keep = ipc_option_time(L, index, "retain_seconds", IPC_FOREVER);
  l->retain_ns = keep == IPC_FOREVER ? 0 : keep > 0 ? (uint64_t)keep : 1;
  l->slowest = ipc_option_flag(L, index, "slowest", false);
  j->r.follow = ipc_option_flag(L, index, "follow", true);
  j->temporary = ipc_option_flag(L, index, "temporary", false);
}

/* Makes the directory if it is to be made. 0 or an errno. */
static int journal_make(Journal *j, const Opening *o) {
  unsigned mode = o->s.permissions;
  mode |= (mode & 0444) >> 2; /* who may read may look into it */
  if (mkdir(j->directory, mode))
    return errno == EEXIST ? 0 : errno;
  j->made = true;
  if (chmod(j->directory, mode)) /* whatever the umask */
    return errno;
  int fd = open(j->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int up = fd < 0 ? -1 : openat(fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  int err = up < 0 ? errno : ipc_os_sync_file(up);
  if (up >= 0)
    close(up);
  if (fd >= 0)
    close(fd);
  return err == EACCES || err == EINVAL ? 0 : err; /* may not look at it */
}

/* Looks at the directory before anything is made in it: 0 or an errno. */
static int journal_prepare(Journal *j, Opening *o) {
  bool makes = j->c.writer && o->s.create != IPC_ATTACH;
  int err = makes ? journal_make(j, o) : 0;
  o->own[OWN_NEW] = makes && o->s.create == IPC_CREATE_NEW;
  o->s.create = makes ? IPC_CREATE : IPC_ATTACH;
  int dir = err ? -1 : open(j->directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0) {
    err = err ? err : errno;
    if (err == ENOENT && o->retries) {
      o->s.create = IPC_CREATE;
      return 0;
    }
    return err;
  }
  journal_sweep(dir);
  j->log.promised = ipc_log_promised(dir, j->log.promised_id);
  LogName *list;
  size_t count;
  err = ipc_log_list(dir, &list, &count);
  if (!err) {
    free(list);
    /* The control is made by whoever comes first; but not just anywhere. */
    if (count > 0 || o->retries)
      o->s.create = IPC_CREATE;
  }
  close(dir);
  return err;
}

/***
Opens a log on disk, in a directory of its own: what is sent is appended, every
reader gets all of it, in the order in which it was appended, with its number.
Any number of processes append and read.

Nothing that was synced is lost, whatever is killed, and if the power goes; what
was not synced then may be, from the end backwards, never something in the
middle. What was lost or changed behind the system's back is reported, with its
place, and never passed over: see `ipc.verify`. Reading a journal that ends in
damage goes on up to there. A disk that fails to write ends the journal for all
who have it open (EIO, on every call from then on, because trying again does not
bring back what the system has dropped); once all have closed it, it can be
opened again and is then what the disk really has.

`send` and `put` answer true and the number of the record, its *sequence*: 1 is
the first; the tag of a received message is its sequence (one that is given to
`send` is ignored, so that messages can be forwarded).
@function journal
@string directory its path; made if there is none and it is opened to append
@string mode "r" reads, "w" appends, "rw" both
@tparam[opt] table options To append: `durability`: "interval" syncs about every
`interval` seconds (1) while something is appended, in the call that finds it
due, and in close (so the last ones before a pause stay as unsure as with
"none" until then, some 30 seconds on Linux, unless `flush` is called); "sync":
each call returns when what it appended is on the disk, one sync for all that
processes and tasks have appended until then; "none": as the system sees fit.
Whatever the durability, records survive every kill of processes, and `flush`
syncs. The default is "interval", because with "sync" each record waits for the
disk. `segment`: bytes of a file (16 MiB; a larger message gets a larger one).
`retain_bytes`, `retain_seconds`: the oldest files are removed when a new one is
begun and all are larger, or their records older, than that; `slowest` (true):
but none that a named reader has not acknowledged; alone: all that all of them
have. `create`, `permissions`, `temporary` (who made the directory removes it in
close).
To read: `from`: a sequence, "first" (the default) or "end"; `since`: the first
at or after a time, seconds as of `os.time`; `follow` (true): waits for more;
false: "closed" at the end. `reader`: a name; its place is saved by `ack`, and
reading goes on there the next time, whatever `from` says (removing the file
`NAME.reader` forgets it). `retry`: waits for
the directory to be made.
`participants`: that have it open at a time (112)
@treturn channel it also has `ack` and `remove`. `recv` answers ESTALE when
records were removed before they were read, and goes on with the first that is
there; EBADMSG where records are damaged. `send` answers ENOSPC when the disk is
full, nothing of that message being visible then, and later calls go on when
there is room. Or nil, message, errno: ENOENT; EBUSY: the reader's name is in
use; EBADMSG: it is damaged, and would be appended to; EEXIST, with `create` =
"new"; ENOTSUP: of a machine of another byte order, or this system has no locks
for it
@usage local log = assert(ipc.journal("/var/lib/app/events", "w", { durability =
"sync" })) local ok, sequence = assert(log:put { user = 7, does = "login" }) for
event, sequence in ipc.journal("/var/lib/app/events", "r", { follow = false
}):values() do print(sequence, event.user, event.does) end
*/
static int journal_open(lua_State *L) {
  enum { DIRECTORY = 1, MODE, OPTIONS };
  lua_settop(L, OPTIONS);
  const char *directory = journal_directory(L, DIRECTORY);
  int mode = ipc_check_mode(L, MODE, 0);
  uint64_t own[4] = {0};
  ipc_options(L, OPTIONS, journal_options);
  journal_from(L, OPTIONS, own);
  const char *name = journal_name(L, OPTIONS);
  if (mode == IPC_READ && ipc_option_create(L, OPTIONS) == IPC_CREATE_NEW)
    luaL_argerror(L, OPTIONS,
                  "option 'create': \"new\", but who only reads makes none");
  /* The reader's name stands behind the path, in the same block. */
  size_t size = strlen(directory) + sizeof "/" LOG_CONTROL;
  lua_pushfstring(L, "%s/%s", directory, LOG_CONTROL);
  lua_pushlstring(L, "", 1);
  lua_pushstring(L, name && mode & IPC_READ ? name : "");
  lua_concat(L, 3);
  size_t all;
  const char *path = lua_tolstring(L, -1, &all);
  Opening *o =
      ipc_member_ask(L, OPTIONS, &journal_room, journal_options, path, all);
  memcpy(o->own, own, sizeof own);
  o->own[OWN_NAME] = name && mode & IPC_READ ? size : 0;
  o->s.extra = sizeof(LogControl);
  o->s.flags = 0;
  o->s.roles = (unsigned)mode;
  o->s.permissions = o->s.permissions | (o->s.permissions & 0444) >> 1;
  o->temporary = false;
  int asked = lua_gettop(L);
  Journal *j =
      ipc_chan_new(L, sizeof *j, &journal_handle, &ipc_journal_ops, mode);
  j->m = MEMBER_NOBODY;
  j->log = LOG_CLOSED;
  j->r = LOG_READER;
  j->c.h.moves = false;
  j->c.h.shares = true;
  journal_read(L, OPTIONS, j);
  Nanos retry = ipc_option_retry(L, OPTIONS);
  j->directory = strdup(directory);
  int err = j->directory ? journal_prepare(j, o) : ENOMEM;
  if (err) {
    if (j->directory && j->made)
      (void)rmdir(j->directory);
    free(j->directory);
    j->directory = NULL;
    return ipc_fail(L, journal_handle.type, "open", err, directory);
  }
  lua_replace(L, 1);
  lua_settop(L, asked);
  lua_replace(L, 2);
  lua_settop(L, 2);
  return ipc_member_open(L, retry);
}

/* ----------------------------------------------------------------- methods */

static Journal *journal_self(lua_State *L) {
  return (Journal *)ipc_handle_self(L);
}

/***
Saves the place of a named reader: all up to a record is done, and the next time
reading goes on behind it. With `durability` "sync" the place is on the disk
then; else a power cut may take it back, so that some records come again.
@function journal:ack
@tparam[opt] integer sequence the last that is done; the last received by
default
@treturn boolean true; or nil, message, errno
*/
static int journal_ack(lua_State *L) {
  Journal *j = journal_self(L);
  if (!j->c.reader)
    return luaL_error(L, "ipc.journal: this end only sends");
  bool given = !lua_isnoneornil(L, 2);
  if (given && !lua_isinteger(L, 2))
    luaL_typeerror(L, 2, "integer");
  lua_Integer n = given ? lua_tointeger(L, 2) : (lua_Integer)j->taken;
  if (!ipc_handle_usable(&j->c.h))
    return ipc_handle_refuse(L, &j->c.h, "ack");
  if (ipc_journal_gone(j))
    return ipc_fail(L, journal_handle.type, "ack", EPIPE, NULL);
  if (j->r.place < 0)
    return ipc_fail(L, journal_handle.type, "ack", EINVAL,
                    "it was opened without a `reader`");
  uint64_t last = ipc_log_committed(&j->log);
  if (given && (n < 0 || (uint64_t)n > last))
    luaL_argerror(L, 2,
                  lua_pushfstring(L, "%I is not in 0 .. %I", (LUAI_UACINT)n,
                                  (LUAI_UACINT)last));
  if (!given && j->taken == 0)
    return lua_pushboolean(L, 1), 1; /* nothing came yet */
  int err = ipc_log_place_save(&j->log, &j->r, (uint64_t)n,
                               j->log.durability == LOG_SYNC);
  if (err)
    return ipc_fail(L, journal_handle.type, "ack", err, NULL);
  lua_pushboolean(L, 1);
  return 1;
}

static int remove_attempt(lua_State *L, Handle *h) {
  Journal *j = (Journal *)h;
  j->lapsed = true;
  int err = ipc_journal_gone(j) ? ENOENT : ipc_journal_lock(j);
  if (err == EAGAIN) {
    h->nap = MEMBER_NAP;
    return -IPC_READ;
  }
  if (!err) {
    err = ipc_journal_erase(j);
    (void)ipc_journal_unlock(j);
  }
  if (err)
    return ipc_fail(L, h->ops->type, "remove", err, j->directory);
  lua_pushboolean(L, 1);
  return 1;
}

static const Op remove_op = {.name = "remove",
                             .attempt = remove_attempt,
                             .want = IPC_READ,
                             .deadline = 2,
                             .top = 2};

/***
Removes the journal: its files, and the directory unless there is something else
in it. For who has it open it is closed then.
@function journal:remove
@treturn boolean true; or nil, message, errno
*/
static int journal_remove(lua_State *L) {
  Journal *j = journal_self(L);
  if (!ipc_handle_usable(&j->c.h))
    return ipc_handle_refuse(L, &j->c.h, "remove");
  lua_settop(L, 1);
  lua_pushnumber(L, 5);
  return ipc_run(L, &remove_op);
}

/***
When the last received record was appended.
@function journal:time
@treturn number seconds since 1970; nil before the first
*/
static int journal_time(lua_State *L) {
  const Journal *j = journal_self(L);
  if (j->taken == 0)
    lua_pushnil(L);
  else
    lua_pushnumber(L, (lua_Number)j->r.record.time / 1e9);
  return 1;
}

static const luaL_Reg journal_methods[] = {{"ack", journal_ack},
                                           {"remove", journal_remove},
                                           {"time", journal_time},
                                           {NULL, NULL}};

/* ------------------------------------------------------------ verification */

/* Takes part while files are repaired, so that nobody else does. */
static int verify_alone(Segment *s, const char *control, unsigned permissions,
                        const LogReport *report) {
  const SegmentAsk ask = {.path = control,
                          .create = IPC_CREATE,
                          .roles = IPC_READ | IPC_WRITE,
                          .permissions = permissions,
                          .kind = SEGMENT_JOURNAL,
                          .slots = SEGMENT_SLOTS,
                          .extra = sizeof(LogControl)};
  int err = ipc_segment_attach(s, &ask);
  if (err)
    return err;
  err = ipc_segment_try(s, &SEGMENT_WRITERS(s)->lock);
  if (err || ipc_segment_others(s, IPC_READ | IPC_WRITE)) {
    ipc_segment_leave(s, control, SEGMENT_SETTLE);
    return EBUSY;
  }
  LogControl *c = SEGMENT_EXTRA(s);
  atomic_store(&c->durable, report->promised);
  memcpy(c->id, report->id, sizeof c->id);
  return 0;
}

static void verify_field(lua_State *L, const char *name, uint64_t value) {
  lua_pushinteger(L, (lua_Integer)value);
  lua_setfield(L, -2, name);
}

/* (report) -> a table. Called protected: the report has a block of its own. */
static int verify_table(lua_State *L) {
  const LogReport *r = lua_touserdata(L, 1);
  lua_createtable(L, 0, 8);
  verify_field(L, "files", r->files);
  verify_field(L, "records", r->records);
  verify_field(L, "first", r->first);
  verify_field(L, "last", r->last);
  verify_field(L, "bytes", r->bytes);
  verify_field(L, "torn", r->torn);
  verify_field(L, "repaired", r->repaired);
  lua_newtable(L);
  for (size_t i = 0; i < r->damages; i++) {
    const LogDamage *d = &r->damage[i];
    lua_createtable(L, 0, 4);
    lua_pushstring(L, d->file);
    lua_setfield(L, -2, "file");
    lua_pushstring(L, d->reason);
    lua_setfield(L, -2, "reason");
    verify_field(L, "offset", d->offset);
    verify_field(L, "sequence", d->sequence);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_setfield(L, -2, "damage");
  return 1;
}

static int verify_run(const char *directory, const char *control, bool repair,
                      LogReport *report, char words[LOG_WORDS]) {
  struct stat is;
  Segment s = {.fd = -1};
  int dir = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (dir < 0)
    return errno;
  int err = fstat(dir, &is) ? errno : 0;
  report->promised = ipc_log_promised(dir, report->id);
  if (!err && repair) {
    journal_sweep(dir);
    err = verify_alone(&s, control, (unsigned)is.st_mode & 0666, report);
    snprintf(words, LOG_WORDS, "%s", err ? LOG_CONTROL : "");
    if (err && (err == EBUSY || s.why))
      snprintf(words, LOG_WORDS, "%s",
               s.why ? s.why : "others have it open; repairing is done alone");
  }
  if (!err)
    err = ipc_log_verify(dir, repair, report, words);
  if (s.fd >= 0)
    ipc_segment_leave(&s, control, err ? SEGMENT_LEAVE : SEGMENT_SETTLE);
  close(dir);
  return err;
}

/***
Reads all of a journal and tells what is there and what is damaged; while others
use it, too. What the last kill or power cut left unfinished is no damage.

`repair`: makes a damaged one readable, while nobody has it open: every record
that is valid stays with its sequence, files with damage go on as `NAME.aside`,
nothing is removed. Readers are told about what is missing then (ESTALE), and go
on behind it; who appends can do so again.
@function verify
@string directory of the journal
@tparam[opt] table options `repair` (false)
@treturn table `files`, `records`, `first` and `last` (sequences), `bytes` (of
valid records), `torn` (files that end with what was not on the disk yet),
`repaired` (files put aside), `damage`: a list of { `file`, `offset`,
`sequence` (the first that is not there), `reason` }, as it was found, empty if
there is none; or nil, message, errno: EBUSY: others have it open, to be
repaired
@usage local report = assert(ipc.verify("/var/lib/app/events"))
for _, d in ipairs(report.damage) do print(d.file, d.offset, d.reason) end
*/
static int journal_verify(lua_State *L) {
  static const char *const names[] = {"repair", NULL};
  LogReport report = {.files = 0};
  char words[LOG_WORDS] = "";
  lua_settop(L, 2);
  const char *directory = journal_directory(L, 1);
  ipc_options(L, 2, names);
  bool repair = ipc_option_flag(L, 2, "repair", false);
  const char *control = lua_pushfstring(L, "%s/%s", directory, LOG_CONTROL);
  lua_pushcfunction(L, verify_table);
  lua_pushlightuserdata(L, &report);
  int err = verify_run(directory, control, repair, &report, words);
  if (err) {
    free(report.damage);
    if (words[0])
      directory = lua_pushfstring(L, "%s: %s", directory, words);
    return ipc_fail(L, "ipc", "verify", err, directory);
  }
  int status = lua_pcall(L, 1, 1, 0);
  free(report.damage);
  return status == LUA_OK ? 1 : lua_error(L);
}

static void journal_setup(lua_State *L) {
  ipc_chan_type(L, &journal_handle, journal_methods);
}

static const luaL_Reg journal_functions[] = {
    {"journal", journal_open}, {"verify", journal_verify}, {NULL, NULL}};

static const char *const journal_schemes[] = {"journal", NULL};

const Room ipc_room_journal = {.name = "journal",
                               .schemes = journal_schemes,
                               .functions = journal_functions,
                               .open = journal_open,
                               .types = journal_setup};
