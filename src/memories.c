/* Bytes that processes share, by a name, without one, or of a file; see
 * memories.h. What is done with the bytes is in bytes.c. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "memories.h"
#include "os.h"

/***
 * @submodule ipc
 */

/* Of Opening.own. */
enum { OWN_SIZE, OWN_HOW, OWN_CREATE, OWN_LOCKS };
/* Of OWN_HOW. */
enum { HOW_WRITE = 1, HOW_COPIED = 2 };

/* Given.place of a plain file: no slot of a participant. */
enum { PLACE_PLAIN = 0xff00, PLACE_COPIED = 4 };

/* ------------------------------------------------------------ system half */

static int memories_check(void *owner, View *v) {
  const Memory *m = owner;
  const Handle *h = &m->h;
  (void)v;
  if (!ipc_handle_usable(h))
    return h->foreign || (h->open && h->generation != ipc_generation) ? ECHILD
                                                                      : EPIPE;
  if (!m->damaged)
    return ECHILD;
  return atomic_load_explicit(m->damaged, memory_order_relaxed) ? EFAULT : 0;
}

static const ViewOps memory_bytes = {.check = memories_check};

void ipc_memories_settle(Memory *m) {
  const Segment *s = &m->m.s;
  if (m->plain) {
    m->all.bytes = m->f.base;
    m->all.size = m->f.size;
    m->damaged = m->f.damaged;
  } else if (m->m.begun) {
    m->all.bytes = s->bytes;
    m->all.size = (size_t)s->head.maxsize;
    m->damaged = s->damaged;
  } else {
    m->damaged = NULL;
  }
  m->all.shared = !(m->plain && m->f.copied);
  m->all.handle = &m->h;
  m->all.lost = m->damaged;
  m->fd = m->plain ? m->f.fd : s->fd;
}

static int memories_descriptor(const Handle *h, int want) {
  (void)h, (void)want;
  return -1;
}

static int memories_ready(Handle *h, int want, bool ask_kernel) {
  (void)h, (void)want, (void)ask_kernel;
  return EAGAIN;
}

static void memories_close(Handle *h, How how) {
  Memory *m = (Memory *)h;
  bool foreign = h->foreign || h->generation != ipc_generation;
  ipc_view_unsettle(&m->all);
  ipc_lock_part(&m->cells, how, foreign);
  if (!foreign)
    ipc_filelocks_end(&m->locks);
  if (m->plain && !foreign && how != IPC_DROP && m->m.temporary && m->f.made)
    (void)ipc_plain_remove(&m->f, m->m.path);
  if (m->plain)
    ipc_plain_close(&m->f, foreign);
  m->damaged = NULL;
  m->all.lost = NULL;
  m->fd = -1;
  ipc_member_close(&m->m, h, how);
}

static int memories_forking(Handle *h) {
  Memory *m = (Memory *)h;
  ipc_view_unsettle(&m->all);
  ipc_lock_pause(m->cells);
  if (m->plain)
    ipc_plain_forking(&m->f, m->m.path);
  return m->plain ? 0 : ipc_member_forking(&m->m, false);
}

static void memories_forked(Handle *h, bool child) {
  Memory *m = (Memory *)h;
  if (m->plain)
    ipc_plain_forked(&m->f, child);
  else
    ipc_member_forked(&m->m, false, child);
  if (child)
    ipc_lock_forked(m->cells);
  ipc_memories_settle(m);
}

static int memories_give(Handle *h, Given *g) {
  Memory *m = (Memory *)h;
  if (!m->plain) /* a participant can write: who only reads makes none */
    return m->all.writable ? ipc_member_give(&m->m, "memory", false, g)
                           : EACCES;
  int err = ipc_plain_spare(&m->f, m->m.path);
  if (err)
    return err;
  *g = (Given){.kind = "memory",
               .fd = {m->f.spare, -1},
               .count = 1,
               .place = PLACE_PLAIN | IPC_READ |
                        (m->all.writable ? IPC_WRITE : 0U) |
                        (m->f.copied ? PLACE_COPIED : 0U)};
  return 0;
}

const HandleOps ipc_memories_handle = {.type = "ipc.memory",
                                       .descriptor = memories_descriptor,
                                       .ready = memories_ready,
                                       .close = memories_close,
                                       .forking = memories_forking,
                                       .forked = memories_forked,
                                       .give = memories_give,
                                       .interest = IPC_NEVER};

/* ---------------------------------------------------------------- opening */

static Member *memories_member(Handle *h) { return &((Memory *)h)->m; }

static int memories_begin(Handle *h, const Opening *o) {
  Memory *m = (Memory *)h;
  if (o->own[OWN_LOCKS] && o->own[OWN_LOCKS] != ipc_cell_count(&m->m.s))
    return EEXIST;
  m->m.begun = true;
  ipc_memories_settle(m);
  return 0;
}

/* A file of somebody else's, or of ours without participants. */
static int memories_other(Handle *h, const Opening *o) {
  Memory *m = (Memory *)h;
  const PlainAsk ask = {.path = o->path,
                        .create = (int)o->own[OWN_CREATE],
                        .permissions = o->s.permissions,
                        .size = o->own[OWN_SIZE],
                        .write = o->own[OWN_HOW] & HOW_WRITE,
                        .copied = o->own[OWN_HOW] & HOW_COPIED,
                        .makes = o->room->file && !o->own[OWN_LOCKS],
                        .named = !o->room->file,
                        .huge = o->s.huge,
                        .populate = o->s.populate};
  int err = ipc_plain_open(&m->f, &ask);
  if (!err && ask.named && o->retries && m->f.size == 0) {
    ipc_plain_close(&m->f, false);
    return ENOENT; /* who makes it has not said its size yet */
  }
  if (err == ENOENT && !ask.makes && ask.create != IPC_ATTACH)
    return ENOMSG; /* why there are no participants says more */
  if (!err && o->own[OWN_LOCKS]) {
    ipc_plain_close(&m->f, false);
    err = EEXIST;
  }
  if (err)
    return err;
  m->m.path = strdup(o->path);
  m->m.temporary = o->temporary;
  if (!m->m.path) {
    if (m->f.made)
      (void)ipc_plain_remove(&m->f, o->path);
    ipc_plain_close(&m->f, false);
    return ENOMEM;
  }
  m->plain = true;
  ipc_memories_settle(m);
  return 0;
}

static const char *memories_words(lua_State *L, Handle *h, const Opening *o,
                                  int err) {
  const Memory *m = (const Memory *)h;
  uint64_t there = m->m.s.head.maxsize ? m->m.s.head.maxsize : m->f.size;
  LUAI_UACINT size = (LUAI_UACINT)o->own[OWN_SIZE];
  switch (err) {
  case EEXIST:
    if (size && (uint64_t)size != there)
      return lua_pushfstring(L, "size is %I there, not %I", (LUAI_UACINT)there,
                             size);
    if (o->own[OWN_LOCKS])
      return lua_pushfstring(
          L, "locks is %I there, not %I",
          (LUAI_UACINT)(m->m.s.head.maxsize ? ipc_cell_count(&m->m.s) : 0),
          (LUAI_UACINT)o->own[OWN_LOCKS]);
    return NULL;
  case ENOSPC:
  case ENOMEM:
  case EFBIG:
    return size ? lua_pushfstring(L, "%I bytes", size) : NULL;
  case EBADMSG:
    return m->m.s.why ? NULL : "it is of another kind";
  case ENODEV:
    return "it is no file of bytes";
  case ENOMSG:
    return "it is an ipc.memory with participants, and cannot be had so";
  default:
    return NULL;
  }
}

const MemberRoom ipc_memories_named = {.name = "memory",
                                       .type = "ipc.memory",
                                       .kind = SEGMENT_MEMORY,
                                       .member = memories_member,
                                       .begin = memories_begin,
                                       .other = memories_other,
                                       .words = memories_words};
static const MemberRoom memories_file = {.name = "memory",
                                         .type = "ipc.memory",
                                         .kind = SEGMENT_MEMORY,
                                         .file = true,
                                         .member = memories_member,
                                         .begin = memories_begin,
                                         .other = memories_other,
                                         .words = memories_words};

static Memory *memories_new(lua_State *L, bool write) {
  Memory *m = ipc_handle_new(L, sizeof *m, &ipc_memories_handle, 1);
  m->h.shares = true;
  m->m = MEMBER_NOBODY;
  m->f = PLAIN_NONE;
  m->timeout = IPC_FOREVER;
  m->fd = -1;
  m->all = (View){.ops = &memory_bytes,
                  .type = "ipc.memory",
                  .owner = m,
                  .timeout = &m->timeout,
                  .shared = true,
                  .writable = write,
                  .open = true,
                  .ended = "close"};
  return m;
}

static const char *const memories_options[] = {
    "file", "mode", "private", "locks", MEMBER_OPTIONS, NULL};

enum { NAME = 1, SIZE, OPTIONS };

/* The bytes asked for; 0: as many as there are. */
static size_t memories_size(lua_State *L) {
  if (lua_isnoneornil(L, SIZE))
    return 0;
  luaL_checktype(L, SIZE, LUA_TNUMBER);
  lua_Integer n = luaL_checkinteger(L, SIZE);
  const lua_Unsigned most =
      sizeof(size_t) > 4 ? (lua_Unsigned)1 << 47 : (lua_Unsigned)1 << 30;
  if (n < 1 || (lua_Unsigned)n > most)
    luaL_argerror(L, SIZE,
                  lua_pushfstring(L, "%I bytes: not in 1 .. %I", (LUAI_UACINT)n,
                                  (LUAI_UACINT)most));
  return (size_t)n;
}

/* Whether the options say "rw". */
static bool memories_writes(lua_State *L) {
  static const char *const modes[] = {"rw", "r", NULL};
  return ipc_option_choice(L, OPTIONS, "mode", modes) == 0;
}

/* Room for so many locks. */
static void memories_locks(lua_State *L, Opening *o) {
  const size_t most = (size_t)1 << 30;
  size_t cell = ipc_cell_size(o->s.slots);
  size_t locks = ipc_option_size(L, OPTIONS, "locks", 1, most / cell, 0);
  if (locks && (o->own[OWN_HOW] & HOW_COPIED))
    luaL_argerror(L, OPTIONS, "option 'locks': not of what is private");
  o->own[OWN_LOCKS] = locks;
  o->s.extra = (uint32_t)(locks * cell);
  o->s.swept = ipc_cell_swept;
}

/* Pushes what the arguments ask for. */
static Opening *memories_ask(lua_State *L) {
  size_t length = 0, size = memories_size(L);
  const char *path = "";
  bool file = false;
  if (lua_type(L, OPTIONS) == LUA_TTABLE) {
    lua_pushliteral(L, "file");
    file = lua_rawget(L, OPTIONS) != LUA_TNIL;
    if (file && lua_type(L, -1) != LUA_TSTRING)
      luaL_argerror(L, OPTIONS, "option 'file': a path expected");
    if (file && !lua_isnil(L, NAME))
      luaL_argerror(L, NAME, "a name, or option 'file'");
    if (file) {
      lua_replace(L, NAME);
      path = ipc_member_path(L, NAME, true, &length);
    }
  }
  if (!file && !lua_isnil(L, NAME))
    path = ipc_member_path(L, NAME, false, &length);
  Opening *o =
      ipc_member_ask(L, OPTIONS, file ? &memories_file : &ipc_memories_named,
                     memories_options, path, length);
  SegmentAsk *s = &o->s;
  o->own[OWN_SIZE] = s->maxsize = size;
  bool copied = ipc_option_flag(L, OPTIONS, "private", false);
  bool writes = memories_writes(L);
  o->own[OWN_HOW] =
      (copied ? HOW_COPIED : 0U) | (copied || writes ? HOW_WRITE : 0U);
  memories_locks(L, o);
  if (copied && !file)
    luaL_argerror(L, OPTIONS, "option 'private': of a file only");
  if (!size && length == 0)
    luaL_argerror(L, SIZE, "bytes: an integer expected");
  if (!size && s->create == IPC_CREATE_NEW)
    luaL_argerror(L, SIZE, "create = \"new\": say its size");
  if (s->create == IPC_CREATE_NEW && length > 0 && (copied || !writes))
    luaL_argerror(L, OPTIONS, "create = \"new\": of what is written");
  /* Who names no size, or could not fill it, only attaches. */
  if (!size || (length > 0 && (copied || !writes)))
    s->create = IPC_ATTACH;
  o->own[OWN_CREATE] = (uint64_t)s->create;
  o->apart = copied;
  if (file && !o->own[OWN_LOCKS])
    s->create = IPC_ATTACH; /* a new one has no participants */
  if (file) {               /* it stays, whatever was said */
    s->flags |= SEGMENT_PERSIST;
    s->insists &= ~(uint32_t)SEGMENT_PERSIST;
  }
  return o;
}

static int memories_nameless(lua_State *L, Memory *m, Opening *o) {
  int err = ipc_member_nameless(&m->m, &o->s);
  if (err) {
    ipc_segment_abandon(&m->m.s);
    return ipc_member_explain(L, &m->h, o, err);
  }
  ipc_memories_settle(m);
  ipc_handle_open(&m->h);
  if (m->m.path)
    ipc_handle_owe(L, -1);
  return 1;
}

/***
Opens bytes that processes share: by a name, without one, or those of a file.

Of a **name** whoever names a `size` makes it if there is none; who does not
only opens it, or answers ENOENT (`retry` waits). The bytes are 0 at first, and
all there: a full system answers ENOSPC now, not later. The last process that
has it open removes it, unless `persist`; what all of them left by being killed
is removed by the next that opens the name. The bytes begin the file of that
name in /dev/shm, for other programs; a file there that is not ours (Python's
multiprocessing.shared_memory) is opened as it is, with all its bytes, and
never removed.

Without a name it is memory that nobody can open or cut short, and goes with its
last process: `ipc.fork` takes it along, `put` sends it through a unix socket.

With option `file` it is the bytes of that file, which is made if there is none
and a size is named, and stays. Nothing else is written to it.
@function memory
@tparam[opt] ?string name `"/counters"`: a slash and 1 to 200 characters, the
first not a dot
@tparam[opt] ?integer size bytes. It is kept exactly; what exists must have it
@tparam[opt] table options every room's, and `file`: a path. `mode`: "rw" (the
default) or "r", only to be read; one with participants is not sent on then, its
receiver could write. `private`: true: what is written to a file's
bytes is seen here only, and never written to the file (which need not be
writable). `persist`: the last one out leaves it. `participants`: handles that
may have it open at once (112). `huge`: in huge pages, as of `ipc.shm`.
`prefault`: pages are touched at once. `temporary`: the close of who made it
removes it. `create`, `permissions`, `retry`: whether, how and how long.
`timeout`: seconds that its calls wait by default. `locks`: how many locks there
are beside the bytes (`mutex`, ...). A new file has them, and who has it open,
behind its bytes; one that exists must have been made with as many
@treturn memory; or nil, message, errno: ENOENT, EEXIST (of another size: both
are told), EACCES, EUSERS (no place for another participant), EBADMSG (damaged),
ENOSPC, EFBIG (RLIMIT_FSIZE), EISDIR, ENODEV (no file of bytes), ENOTSUP (no
locks of open file descriptions here; files are had without)
@usage local m = assert(ipc.memory("/counters", 4096))
local file = assert(ipc.memory(nil, nil, { file = "/etc/hostname", mode = "r"
}))
*/
int ipc_memories_open(lua_State *L) {
  lua_settop(L, OPTIONS);
  Opening *o = memories_ask(L);
  int asked = lua_gettop(L);
  Memory *m = memories_new(L, o->own[OWN_HOW] & HOW_WRITE);
  m->timeout = ipc_option_time(L, OPTIONS, "timeout", IPC_FOREVER);
  if (!o->s.path)
    return memories_nameless(L, m, o);
  Nanos retry = ipc_option_retry(L, OPTIONS);
  lua_replace(L, 1);
  lua_pushvalue(L, asked);
  lua_replace(L, 2);
  lua_settop(L, 2);
  return ipc_member_open(L, retry);
}

/* ---------------------------------------------------------------- passing */

/* Whether a file of somebody else's may be taken: what is cut short under our
 * hands answers EFAULT, but it should at least be a file of our own user. */
static int memories_trust(int fd) {
  struct stat is;
  if (fstat(fd, &is))
    return errno;
  return is.st_uid == geteuid() || is.st_uid == 0 ? 0 : EPERM;
}

static int memories_take_plain(Memory *m, const Given *g) {
  bool write = g->place & IPC_WRITE, copied = g->place & PLACE_COPIED;
  int flags = fcntl(g->fd[0], F_GETFL);
  if (flags < 0)
    return errno;
  int err = memories_trust(g->fd[0]);
  if (!err && write && !copied && (flags & O_ACCMODE) != O_RDWR)
    err = EBADMSG;
  if (!err)
    err = ipc_plain_adopt(&m->f, g->fd[0], write, copied);
  m->plain = !err;
  return err;
}

int ipc_memories_take(lua_State *L, Given *g) {
  bool plain = (g->place & PLACE_PLAIN) == PLACE_PLAIN;
  Memory *m = memories_new(L, g->place & IPC_WRITE);
  Given as = *g; /* who only reads takes part like any other */
  if (!plain)
    as.place |= IPC_READ | IPC_WRITE;
  int err = plain ? memories_take_plain(m, &as)
                  : ipc_member_take(&m->m, &ipc_memories_named, &as);
  if (err) {
    if (!plain)
      ipc_segment_abandon(&m->m.s);
    m->m.begun = false;
    lua_pop(L, 1);
    return err;
  }
  m->m.s.swept = ipc_cell_swept;
  ipc_memories_settle(m);
  ipc_member_taken(g);
  ipc_handle_open(&m->h);
  if (m->m.path && !plain)
    ipc_handle_owe(L, -1);
  return 0;
}
