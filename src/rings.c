/* What rooms made of rings share on the Lua side: their options, how they are
 * opened, duplicated and passed on; see rings.h. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os.h"
#include "rings.h"

/***
 * @submodule ipc
 */

enum {
  RINGS_NAP = 1000, /* us between looks while others join or leave */
  RINGS_NAME = 200, /* characters of a name behind its slash */
  RINGS_PATH = 4000 /* of a path */
};

/* How long an opening bears with others that join or leave at the moment. */
#define RINGS_PATIENCE (5 * IPC_SECOND)

/* What an opening asks for; a userdata, because it may wait. */
typedef struct RingAsk {
  SegmentAsk s;
  const RingRoom *room;
  size_t maxsize;  /* asked for, or 0 */
  size_t capacity; /* as asked, before rounding */
  bool retries, temporary, joined;
  char path[];
} RingAsk;

/* ----------------------------------------------------------------- options */

static bool rings_given(lua_State *L, int index, const char *name) {
  return !lua_isnoneornil(L, index) && lua_getfield(L, index, name) != LUA_TNIL;
}

void ipc_rings_flag(lua_State *L, int index, const char *name, uint32_t flag,
                    SegmentAsk *ask) {
  int top = lua_gettop(L);
  if (rings_given(L, index, name)) {
    ask->insists |= flag;
    if (ipc_option_flag(L, index, name, false))
      ask->flags |= flag;
  }
  lua_settop(L, top);
}

void ipc_rings_side(lua_State *L, int index, const char *name, uint32_t flag,
                    SegmentAsk *ask) {
  int top = lua_gettop(L);
  if (rings_given(L, index, name)) {
    bool one = lua_isinteger(L, -1) && lua_tointeger(L, -1) == 1;
    if (!one && !(lua_type(L, -1) == LUA_TSTRING &&
                  strcmp(lua_tostring(L, -1), "many") == 0))
      luaL_argerror(L, index,
                    lua_pushfstring(L, "option '%s': 1 or \"many\"", name));
    ask->insists |= flag;
    if (one)
      ask->flags |= flag;
  }
  lua_settop(L, top);
}

/* The ring's bytes: a capacity, or so many messages of a size. */
static void rings_capacity(lua_State *L, int index, RingAsk *ask) {
  const size_t most = (size_t)1 << 30 << (sizeof(size_t) > 4 ? 10 : 0);
  size_t capacity = ipc_option_size(L, index, "capacity", 1, most, 0);
  size_t size = ipc_option_size(L, index, "size", 1, most / 2, 0);
  size_t count = ipc_option_size(L, index, "count", 1, most / 32, 0);
  if ((size == 0) != (count == 0))
    luaL_argerror(L, index, "options 'size' and 'count' go together");
  if (size && capacity)
    luaL_argerror(L, index, "option 'capacity', or 'size' and 'count'");
  if (size) {
    uint64_t need = ipc_ring_need(size);
    if (need > most / count)
      luaL_argerror(L, index, "options 'size' and 'count': too much");
    capacity = (size_t)need * count;
    ask->s.maxsize = size;
  }
  ask->capacity = capacity;
  ask->s.ring = capacity ? ipc_segment_ring(capacity) : 0;
  if (capacity && !ask->s.ring)
    luaL_argerror(L, index, "option 'capacity': too much");
}

/* Reads all options, of which `room->options` are known, into a new userdata.
 */
static RingAsk *rings_ask(lua_State *L, int index, const RingRoom *room,
                          const char *path, size_t size) {
  ipc_options(L, index, room->options);
  RingAsk *ask = lua_newuserdatauv(L, sizeof *ask + size + 1, 0);
  *ask = (RingAsk){.room = room};
  memcpy(ask->path, path, size);
  ask->path[size] = '\0';
  SegmentAsk *s = &ask->s;
  s->path = size ? ask->path : NULL;
  s->kind = room->kind;
  s->kept = room->file;
  s->permissions = ipc_option_permissions(L, index);
  s->create = ipc_option_create(L, index);
  s->slots = (uint32_t)ipc_option_size(L, index, "participants", 2,
                                       SEGMENT_SLOTS_MOST, SEGMENT_SLOTS);
  s->huge = ipc_option_flag(L, index, "huge", false);
  s->populate = ipc_option_flag(L, index, "prefault", false);
  s->sound = room->file ? ipc_ring_sound : NULL;
  rings_capacity(L, index, ask);
  ipc_rings_flag(L, index, "persist", SEGMENT_PERSIST, s);
  ipc_rings_side(L, index, "writers", SEGMENT_SOLE_WRITER, s);
  room->read(L, index, s);
  ask->maxsize = ipc_option_size(L, index, "maxsize", 1, PTRDIFF_MAX, 0);
  ask->temporary = ipc_option_flag(L, index, "temporary", false);
  ask->retries = ipc_option_retry(L, index) > 0;
  if (s->ring == 0 && s->create == IPC_CREATE_NEW && size)
    luaL_argerror(L, index, "create = \"new\": say its 'capacity'");
  if (s->ring == 0) /* who names no size only attaches */
    s->create = IPC_ATTACH;
  return ask;
}

static Ring *rings_new(lua_State *L, const RingRoom *room, unsigned mode) {
  Ring *r = ipc_chan_new(L, sizeof *r, room->handle, room->ops, (int)mode);
  r->room = room;
  r->s.fd = -1;
  return r;
}

/* What the options say of this handle alone. */
static void rings_handle(lua_State *L, int index, Ring *r, const RingAsk *ask) {
  ipc_chan_options(L, index, &r->c, PTRDIFF_MAX);
  r->keepalive = ipc_option_flag(L, index, "keepalive", false);
  r->temporary = ask->temporary;
}

/* ---------------------------------------------------------------- opening */

/* Pushes why what is there is not what was asked for. */
static int rings_differ(lua_State *L, const Ring *r, const RingAsk *ask) {
  static const struct {
    uint32_t flag;
    const char *is, *is_not;
  } words[] = {
      {SEGMENT_SOLE_WRITER, "writers is 1 there", "writers is \"many\" there"},
      {SEGMENT_SOLE_READER, "readers is 1 there", "readers is \"many\" there"},
      {SEGMENT_LEASE, "lease is true there", "lease is false there"},
      {SEGMENT_PERSIST, "persist is true there", "persist is false there"},
      {SEGMENT_HOLD, "slow is \"hold\" there", "slow is \"lose\" there"},
      {SEGMENT_LATEST, "latest is true there", "latest is false there"}};
  const SegmentHead *h = &r->s.head;
  const char *what = "it exists";
  if (ask->s.ring && ask->s.ring != h->ring)
    what = lua_pushfstring(L, "capacity is %I there, not %I",
                           (LUAI_UACINT)h->ring, (LUAI_UACINT)ask->s.ring);
  else if (ask->s.maxsize && ask->s.maxsize != h->maxsize)
    what =
        lua_pushfstring(L, "size is %I there, not %I", (LUAI_UACINT)h->maxsize,
                        (LUAI_UACINT)ask->s.maxsize);
  else
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
      if ((h->flags ^ ask->s.flags) & ask->s.insists & words[i].flag)
        what = h->flags & words[i].flag ? words[i].is : words[i].is_not;
  return ipc_fail(L, ask->room->handle->type, "open", EEXIST,
                  lua_pushfstring(L, "%s: %s", ask->path, what));
}

/* Pushes nil, message, errno. */
static int rings_explain(lua_State *L, const Ring *r, const RingAsk *ask,
                         int err) {
  const char *type = ask->room->handle->type, *why = r->s.why;
  const char *name = ask->s.path ? ask->path : "a nameless one";
  if (err == EEXIST)
    return rings_differ(L, r, ask);
  if ((err == ENOSPC || err == ENOMEM) && ask->s.huge && !ask->s.path)
    return ipc_fail_limit(L, type, "open", err,
                          lua_pushfstring(L, "%I bytes in huge pages",
                                          (LUAI_UACINT)r->s.head.total),
                          "vm.nr_hugepages");
  if (err == EUSERS)
    why = lua_pushfstring(L, "all places for participants are taken: %d",
                          (int)r->s.head.slots);
  else if (err == EMSGSIZE)
    why = lua_pushfstring(L,
                          "maxsize is %I, but messages have %I bytes at "
                          "most there",
                          (LUAI_UACINT)ask->maxsize,
                          (LUAI_UACINT)r->s.head.maxsize);
  else if (err == ENOSPC || err == ENOMEM)
    why = lua_pushfstring(L, "%I bytes",
                          (LUAI_UACINT)(ask->s.ring ? r->s.head.total : 0));
  if (why)
    name = lua_pushfstring(L, "%s: %s", name, why);
  return ipc_fail(L, type, "open", err, name);
}

static int open_failed(lua_State *L, Handle *h, int err) {
  Ring *r = (Ring *)h;
  const RingAsk *asked = lua_touserdata(L, 3);
  if (r->s.made && asked->joined)
    ipc_segment_leave(&r->s, asked->path, SEGMENT_SETTLE);
  ipc_handle_release(h, IPC_DROP);
  return rings_explain(L, (Ring *)h, lua_touserdata(L, 3), err);
}

/* The segment is ours: 0, EAGAIN, or why it will not do. */
static int rings_begin(Ring *r, const RingAsk *ask) {
  if (!r->path && ask->s.path) {
    r->path = strdup(ask->path);
    if (!r->path)
      return ENOMEM;
  }
  size_t most = (size_t)r->s.head.maxsize;
  if (ask->maxsize > most)
    return EMSGSIZE;
  r->c.limit = ask->maxsize ? ask->maxsize : most;
  int err = ask->room->begin(r);
  r->begun = !err;
  return err;
}

/* Slots: 1 the handle, 2 the deadline, 3 what is asked for. */
static int open_attempt(lua_State *L, Handle *h) {
  Ring *r = (Ring *)h;
  RingAsk *ask = lua_touserdata(L, 3);
  int err = 0;
  if (!ask->joined)
    err = ipc_segment_attach(&r->s, &ask->s);
  ask->joined = ask->joined || !err;
  if (!err)
    err = rings_begin(r, ask);
  if (err == EAGAIN || (ask->retries && (err == ENOENT || err == EBUSY))) {
    h->nap = RINGS_NAP;
    return -IPC_READ;
  }
  if (err)
    return open_failed(L, h, err);
  if (ask->s.path)
    ipc_handle_owe(L, 1);
  lua_pushvalue(L, 1);
  return 1;
}

static const Op open_op = {.name = "open",
                           .attempt = open_attempt,
                           .failed = open_failed,
                           .want = IPC_READ,
                           .deadline = 2,
                           .top = 3};

/* Where a name stands: a path as it is, or in the directory of memory. */
static const char *rings_path(lua_State *L, const RingRoom *room, size_t *n) {
  if (lua_type(L, 1) != LUA_TSTRING)
    luaL_typeerror(L, 1, "string");
  const char *name = lua_tolstring(L, 1, n);
  luaL_argcheck(L, !memchr(name, '\0', *n), 1, "a name holds no NUL");
  if (room->file) {
    luaL_argcheck(L, *n > 0 && name[*n - 1] != '/', 1,
                  "the path of a file expected");
    if (*n > RINGS_PATH)
      luaL_argerror(L, 1,
                    lua_pushfstring(L, "a path of %d characters; at most %d",
                                    (int)*n, RINGS_PATH));
    return name;
  }
  luaL_argcheck(L, name[0] == '/', 1,
                "a name begins with a slash: \"/frames\"");
  luaL_argcheck(L, !strchr(name + 1, '/'), 1,
                "a name has one slash, at its beginning: \"/frames\"");
  luaL_argcheck(L, name[1] != '.', 1, "a name does not begin with a dot");
  if (*n < 2 || *n - 1 > RINGS_NAME)
    luaL_argerror(L, 1,
                  lua_pushfstring(L,
                                  "a name has 1 to %d characters behind the "
                                  "slash, not %d",
                                  RINGS_NAME, (int)*n - 1));
  lua_pushfstring(L, "%s%s", ipc_os_memory_directory(), name + 1);
  return lua_tolstring(L, -1, n);
}

int ipc_rings_open(lua_State *L, const RingRoom *room) {
  enum { NAME = 1, MODE, OPTIONS };
  size_t size;
  lua_settop(L, OPTIONS);
  const char *path = rings_path(L, room, &size);
  unsigned mode = (unsigned)ipc_check_mode(L, MODE, 0);
  RingAsk *ask = rings_ask(L, OPTIONS, room, path, size);
  ask->s.roles = mode;
  int asked = lua_gettop(L);
  Ring *r = rings_new(L, room, mode);
  rings_handle(L, OPTIONS, r, ask);
  r->c.h.moves = false;
  r->c.h.shares = true;
  Nanos patience = ipc_option_retry(L, OPTIONS);
  if (patience < RINGS_PATIENCE)
    patience = RINGS_PATIENCE;
  lua_pushvalue(L, asked);
  lua_replace(L, OPTIONS);
  lua_replace(L, 1);
  if (patience == IPC_FOREVER)
    lua_pushnumber(L, 1e18);
  else
    lua_pushnumber(L, (lua_Number)patience / 1e9);
  lua_replace(L, 2);
  lua_settop(L, 3);
  ipc_handle_open(&r->c.h);
  return ipc_run(L, &open_op);
}

int ipc_rings_place(lua_State *L, const RingRoom *room) {
  size_t size;
  lua_settop(L, 2);
  (void)rings_path(L, room, &size);
  int path = lua_gettop(L);
  const RingAsk *ask = rings_ask(L, 2, room, "", 0);
  rings_handle(L, 2, rings_new(L, room, IPC_READ), ask);
  lua_settop(L, path);
  return 1;
}

/* ---------------------------------------------------------------- nameless */

/* Files, and where memory has no nameless ones that can be opened twice: a name
 * that nobody guesses, until the last one is out, or for a moment where what is
 * open can be opened again. */
static int ends_named(Ring *reader, Ring *writer, SegmentAsk *ask) {
  char path[RINGS_PATH];
  uint8_t bits[8]; /* as the names that are swept have them */
  int again;
  const char *folder = ask->kept ? getenv("TMPDIR") : ipc_os_memory_directory();
  folder = folder && *folder ? folder : "/tmp";
  int n = snprintf(path, sizeof path, "%s/ipc", folder);
  if (n < 0 || (size_t)n + 2 * sizeof bits + 3 >= sizeof path)
    return ENAMETOOLONG;
  ipc_segment_sweep(path);
  n = snprintf(path, sizeof path, "%s/.ipc.", folder);
  ipc_os_random(bits, sizeof bits);
  for (size_t i = 0; i < sizeof bits; i++)
    n += snprintf(path + n, 3, "%02x", bits[i]);
  ask->path = path;
  ask->create = IPC_CREATE_NEW;
  int err = ipc_segment_attach(&reader->s, ask);
  ask->path = NULL;
  if (err)
    return err;
  err = ipc_segment_second(&writer->s, &reader->s, path, IPC_WRITE);
  if (ipc_os_reopen(reader->s.fd, O_RDWR | O_CLOEXEC, &again) == 0) {
    close(again);
    while (ipc_segment_remove(&reader->s, path) == EAGAIN)
      continue;
    return err;
  }
  reader->path = strdup(path);
  writer->path = strdup(path);
  reader->hidden = writer->hidden = true;
  if (!err && (!reader->path || !writer->path))
    err = ENOMEM;
  if (err)
    ipc_segment_leave(&reader->s, path, SEGMENT_REMOVE);
  return err;
}

static int ends_join(Ring *reader, Ring *writer, RingAsk *ask) {
  ask->s.roles = IPC_READ;
  ask->s.create = IPC_CREATE;
  if (!ask->s.ring)
    ask->s.ring = ipc_segment_ring(RINGS_CAPACITY);
  int err = ENOTSUP;
  if (!ask->room->file)
    err = ipc_segment_attach(&reader->s, &ask->s);
  if (!err)
    err = ipc_segment_second(&writer->s, &reader->s, NULL, IPC_WRITE);
  if ((err == ENOSYS || err == ENOTSUP) && ipc_segment_possible()) {
    ipc_segment_abandon(&reader->s);
    err = ends_named(reader, writer, &ask->s);
  }
  if (!err)
    err = rings_begin(reader, ask);
  if (!err)
    err = rings_begin(writer, ask);
  if (err) {
    ipc_segment_abandon(&reader->s);
    ipc_segment_abandon(&writer->s);
    reader->begun = writer->begun = false;
  }
  return err;
}

int ipc_rings_ends(lua_State *L, int index, const RingRoom *room) {
  RingAsk *ask = rings_ask(L, index, room, "", 0);
  Ring *reader = rings_new(L, room, IPC_READ);
  rings_handle(L, index, reader, ask);
  Ring *writer = rings_new(L, room, IPC_WRITE);
  rings_handle(L, index, writer, ask);
  int err = ends_join(reader, writer, ask);
  if (err)
    return rings_explain(L, reader, ask, err);
  ipc_handle_open(&reader->c.h);
  ipc_handle_open(&writer->c.h);
  if (reader->path) {
    ipc_handle_owe(L, -2);
    ipc_handle_owe(L, -1);
  }
  return 2;
}

int ipc_rings_pair(lua_State *L, const RingRoom *room) {
  enum { OPTIONS = 2 };
  Chan *part[4]; /* the reader and the writer of one ring; of the other */
  lua_settop(L, OPTIONS);
  for (int i = 0; i < 4; i += 2) {
    int n = ipc_rings_ends(L, OPTIONS, room);
    if (n != 2)
      return n;
    part[i] = lua_touserdata(L, -2);
    part[i + 1] = lua_touserdata(L, -1);
    lua_remove(L, -3); /* what was asked for */
  }
  int base = lua_gettop(L) - 4;
  lua_pushvalue(L, base + 1);
  lua_pushvalue(L, base + 4);
  ipc_duplex_push(L, part[0], part[3]);
  lua_pushvalue(L, base + 3);
  lua_pushvalue(L, base + 2);
  ipc_duplex_push(L, part[2], part[1]);
  return 2;
}

/* ----------------------------------------------------------- others like it */

/* A closed handle like r, on top. */
static Ring *rings_like(lua_State *L, const Ring *r) {
  Ring *p =
      rings_new(L, r->room,
                (r->c.reader ? IPC_READ : 0U) | (r->c.writer ? IPC_WRITE : 0U));
  p->c.timeout = r->c.timeout;
  p->c.linger = r->c.linger;
  p->c.limit = r->c.limit;
  p->c.shut = r->c.shut;
  p->c.spin[0].budget = p->c.spin[1].budget = r->c.spin[0].budget;
  p->c.h.moves = r->c.h.moves;
  p->c.h.shares = r->c.h.shares;
  p->keepalive = r->keepalive;
  p->hidden = r->hidden;
  return p;
}

int ipc_rings_dup(lua_State *L, Chan *c) {
  const Ring *r = (const Ring *)c;
  if (r->ahead_at < r->ahead.size || r->leased)
    return EBUSY;
  Ring *p = rings_like(L, r);
  int err = 0;
  if (r->path) {
    p->path = strdup(r->path);
    err = p->path ? 0 : ENOMEM;
  }
  if (!err)
    err = ipc_segment_second(&p->s, &r->s, r->path, r->s.roles);
  if (!err)
    err = p->room->begin(p);
  p->begun = !err;
  if (err) {
    if (err == EAGAIN)
      c->why = "others join or leave just now";
    else if (p->s.why)
      c->why = p->s.why;
    ipc_segment_abandon(&p->s);
    free(p->path);
    p->path = NULL;
    lua_pop(L, 1);
    return err == EAGAIN ? EBUSY : err;
  }
  ipc_handle_open(&p->c.h);
  if (p->path)
    ipc_handle_owe(L, -1);
  return 0;
}

int ipc_rings_give(Handle *h, Given *g) {
  Ring *r = (Ring *)h;
  const Segment *s = &r->s;
  if (r->ahead_at < r->ahead.size || r->leased || r->reserved || r->peeked ||
      r->tickets)
    return EBUSY;
  if (!h->moves) { /* an object: a participant of its own goes */
    int err = ipc_ring_spare(r);
    if (err)
      return err == EBUSY ? EUSERS : err;
    s = r->spare;
  }
  *g = (Given){.kind = r->room->name,
               .fd = {s->fd, -1},
               .count = 1,
               .limit = r->c.limit,
               .place = s->slot << 2 | s->roles};
  return 0;
}

/* From whoever it may be: what has no name must be sealed, or they could cut
 * it under our hands. */
static int rings_trust(int fd, const RingRoom *room) {
  struct stat is;
  if (fstat(fd, &is))
    return errno;
  if (ipc_os_memory_sealed(fd))
    return 0;
  if (is.st_uid != geteuid())
    return EPERM;
  if (is.st_nlink > 0 || room->file)
    return 0;
  size_t page;
  int sealable;
  if (ipc_os_memory_sealable(false, &sealable, &page))
    return 0; /* nobody can seal here */
  close(sealable);
  return EPERM;
}

int ipc_rings_take(lua_State *L, Given *g, const RingRoom *room) {
  unsigned roles = g->place & 3;
  if (!roles)
    return EINVAL;
  int err = rings_trust(g->fd[0], room);
  if (err)
    return err;
  Ring *r = rings_new(L, room, roles);
  err = ipc_segment_adopt(&r->s, g->fd[0], room->kind, g->place >> 2, roles);
  if (!err) {
    size_t most = (size_t)r->s.head.maxsize;
    r->c.limit = g->limit && g->limit < most ? g->limit : most;
    err = room->begin(r);
    r->begun = !err;
  }
  if (err) {
    ipc_segment_abandon(&r->s);
    lua_pop(L, 1);
    return err;
  }
  close(g->fd[0]);
  g->count = 1;
  ipc_handle_open(&r->c.h);
  return 0;
}

/* ----------------------------------------------------------------- methods */

static int remove_attempt(lua_State *L, Handle *h) {
  Ring *r = (Ring *)h;
  bool named = r->path && !r->hidden;
  int err = named ? ipc_segment_remove(&r->s, r->path) : ENOENT;
  if (err == EAGAIN) {
    h->nap = RINGS_NAP;
    return -IPC_READ;
  }
  if (err)
    return ipc_fail(L, h->ops->type, "remove", err,
                    named ? r->path : "it has no name");
  lua_pushboolean(L, 1);
  return 1;
}

static const Op remove_op = {.name = "remove",
                             .attempt = remove_attempt,
                             .want = IPC_READ,
                             .deadline = 2,
                             .top = 2};

/***
Removes the name at once. Who has it open goes on with it; the next to open the
name makes another.
@function shm:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone, or the
name is another's by now
*/
static int rings_remove(lua_State *L) {
  Ring *r = (Ring *)ipc_handle_self(L);
  if (!ipc_handle_usable(&r->c.h))
    return ipc_handle_refuse(L, &r->c.h, "remove");
  lua_settop(L, 1);
  lua_pushnumber(L, 5);
  return ipc_run(L, &remove_op);
}

const luaL_Reg ipc_rings_named[] = {{"remove", rings_remove}, {NULL, NULL}};
