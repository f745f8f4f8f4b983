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

/* Of Opening.own: what was asked for, before rounding. */
enum { OWN_MAXSIZE, OWN_CAPACITY };

/* ----------------------------------------------------------------- options */

static bool rings_given(lua_State *L, int index, const char *name) {
  return !lua_isnoneornil(L, index) && lua_getfield(L, index, name) != LUA_TNIL;
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
static void rings_capacity(lua_State *L, int index, Opening *ask) {
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
  ask->own[OWN_CAPACITY] = capacity;
  ask->s.ring = capacity ? ipc_segment_ring(capacity) : 0;
  if (capacity && !ask->s.ring)
    luaL_argerror(L, index, "option 'capacity': too much");
}

/* Reads all options, of which `room->options` are known, into a new userdata.
 */
static Opening *rings_ask(lua_State *L, int index, const RingRoom *room,
                          const char *path, size_t size) {
  Opening *ask = ipc_member_ask(L, index, &room->m, room->options, path, size);
  SegmentAsk *s = &ask->s;
  s->sound = room->m.file ? ipc_ring_sound : NULL;
  rings_capacity(L, index, ask);
  ipc_rings_side(L, index, "writers", SEGMENT_SOLE_WRITER, s);
  room->read(L, index, s);
  ask->own[OWN_MAXSIZE] =
      ipc_option_size(L, index, "maxsize", 1, PTRDIFF_MAX, 0);
  if (s->ring == 0 && s->create == IPC_CREATE_NEW && size)
    luaL_argerror(L, index, "create = \"new\": say its 'capacity'");
  if (s->ring == 0) /* who names no size only attaches */
    s->create = IPC_ATTACH;
  return ask;
}

static Ring *rings_new(lua_State *L, const RingRoom *room, unsigned mode) {
  Ring *r = ipc_chan_new(L, sizeof *r, room->handle, room->ops, (int)mode);
  r->room = room;
  r->m = MEMBER_NOBODY;
  return r;
}

/* What the options say of this handle alone. */
static void rings_handle(lua_State *L, int index, Ring *r) {
  ipc_chan_options(L, index, &r->c, PTRDIFF_MAX);
  r->keepalive = ipc_option_flag(L, index, "keepalive", false);
}

/* ---------------------------------------------------------------- opening */

/* Pushes why what is there is not what was asked for. */
static const char *rings_differ(lua_State *L, const Ring *r,
                                const SegmentAsk *ask) {
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
  const SegmentHead *h = &r->m.s.head;
  if (ask->ring && ask->ring != h->ring)
    return lua_pushfstring(L, "capacity is %I there, not %I",
                           (LUAI_UACINT)h->ring, (LUAI_UACINT)ask->ring);
  if (ask->maxsize && ask->maxsize != h->maxsize)
    return lua_pushfstring(L, "size is %I there, not %I",
                           (LUAI_UACINT)h->maxsize, (LUAI_UACINT)ask->maxsize);
  const char *what = NULL;
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if ((h->flags ^ ask->flags) & ask->insists & words[i].flag)
      what = h->flags & words[i].flag ? words[i].is : words[i].is_not;
  return what;
}

const char *ipc_rings_words(lua_State *L, Handle *h, const Opening *o,
                            int err) {
  const Ring *r = (const Ring *)h;
  if (err == EEXIST)
    return rings_differ(L, r, &o->s);
  if (err == EMSGSIZE)
    return lua_pushfstring(L,
                           "maxsize is %I, but messages have %I bytes at "
                           "most there",
                           (LUAI_UACINT)o->own[OWN_MAXSIZE],
                           (LUAI_UACINT)r->m.s.head.maxsize);
  return NULL;
}

Member *ipc_rings_member(Handle *h) { return &((Ring *)h)->m; }

int ipc_rings_begin(Handle *h, const Opening *o) {
  Ring *r = (Ring *)h;
  size_t most = (size_t)r->m.s.head.maxsize;
  size_t maxsize = (size_t)o->own[OWN_MAXSIZE];
  if (maxsize > most)
    return EMSGSIZE;
  r->c.limit = maxsize ? maxsize : most;
  return r->room->begin(r);
}

int ipc_rings_open(lua_State *L, const RingRoom *room) {
  enum { NAME = 1, MODE, OPTIONS };
  size_t size;
  lua_settop(L, OPTIONS);
  const char *path = ipc_member_path(L, NAME, room->m.file, &size);
  unsigned mode = (unsigned)ipc_check_mode(L, MODE, 0);
  Opening *ask = rings_ask(L, OPTIONS, room, path, size);
  ask->s.roles = mode;
  int asked = lua_gettop(L);
  Ring *r = rings_new(L, room, mode);
  rings_handle(L, OPTIONS, r);
  r->c.h.moves = false;
  r->c.h.shares = true;
  Nanos retry = ipc_option_retry(L, OPTIONS);
  lua_replace(L, 1);
  lua_pushvalue(L, asked);
  lua_replace(L, 2);
  lua_settop(L, 2);
  return ipc_member_open(L, retry);
}

int ipc_rings_place(lua_State *L, const RingRoom *room) {
  size_t size;
  lua_settop(L, 2);
  (void)ipc_member_path(L, 1, room->m.file, &size);
  int path = lua_gettop(L);
  (void)rings_ask(L, 2, room, "", 0);
  rings_handle(L, 2, rings_new(L, room, IPC_READ));
  lua_settop(L, path);
  return 1;
}

/* ---------------------------------------------------------------- nameless */

static int ends_join(Ring *reader, Ring *writer, Opening *ask) {
  ask->s.roles = IPC_READ;
  if (!ask->s.ring)
    ask->s.ring = ipc_segment_ring(RINGS_CAPACITY);
  int err = ipc_member_nameless(&reader->m, &ask->s);
  if (!err && reader->m.hidden) {
    writer->m.path = strdup(reader->m.path);
    writer->m.hidden = true;
    err = writer->m.path ? 0 : ENOMEM;
  }
  if (!err)
    err = ipc_segment_second(&writer->m.s, &reader->m.s, reader->m.path,
                             IPC_WRITE, MEMBER_FORK_PATIENCE);
  writer->m.begun = !err;
  if (!err)
    err = ipc_rings_begin(&reader->c.h, ask);
  if (!err)
    err = ipc_rings_begin(&writer->c.h, ask);
  if (err) { /* nobody has seen it */
    ipc_segment_leave(&reader->m.s, reader->m.path, SEGMENT_REMOVE);
    ipc_segment_abandon(&writer->m.s);
    free(reader->m.path);
    free(writer->m.path);
    const char *why = reader->m.s.why;
    reader->m = writer->m = MEMBER_NOBODY;
    reader->m.s.why = why;
  }
  return err;
}

int ipc_rings_ends(lua_State *L, int index, const RingRoom *room) {
  Opening *ask = rings_ask(L, index, room, "", 0);
  Ring *reader = rings_new(L, room, IPC_READ);
  rings_handle(L, index, reader);
  Ring *writer = rings_new(L, room, IPC_WRITE);
  rings_handle(L, index, writer);
  int err = ends_join(reader, writer, ask);
  if (err)
    return ipc_member_explain(L, &reader->c.h, ask, err);
  ipc_handle_open(&reader->c.h);
  ipc_handle_open(&writer->c.h);
  if (reader->m.path) {
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
  p->m.hidden = r->m.hidden;
  return p;
}

int ipc_rings_dup(lua_State *L, Chan *c) {
  const Ring *r = (const Ring *)c;
  if (r->ahead_at < r->ahead.size || r->leased)
    return EBUSY;
  Ring *p = rings_like(L, r);
  int err = 0;
  if (r->m.path) {
    p->m.path = strdup(r->m.path);
    err = p->m.path ? 0 : ENOMEM;
  }
  if (!err)
    err = ipc_segment_second(&p->m.s, &r->m.s, r->m.path, r->m.s.roles,
                             MEMBER_FORK_PATIENCE);
  if (!err)
    err = p->room->begin(p);
  p->m.begun = !err;
  if (err) {
    if (err == EAGAIN)
      c->why = "others join or leave just now";
    else if (p->m.s.why)
      c->why = p->m.s.why;
    ipc_segment_abandon(&p->m.s);
    free(p->m.path);
    p->m.path = NULL;
    lua_pop(L, 1);
    return err == EAGAIN ? EBUSY : err;
  }
  ipc_handle_open(&p->c.h);
  if (p->m.path)
    ipc_handle_owe(L, -1);
  return 0;
}

int ipc_rings_give(Handle *h, Given *g) {
  Ring *r = (Ring *)h;
  if (r->ahead_at < r->ahead.size || r->leased || r->reserved || r->peeked ||
      r->tickets)
    return EBUSY;
  int err = ipc_member_give(&r->m, r->room->m.name, h->moves, g);
  if (!err)
    g->limit = r->c.limit;
  return err;
}

int ipc_rings_take(lua_State *L, Given *g, const RingRoom *room) {
  unsigned roles = g->place & 3;
  if (!roles)
    return EINVAL;
  Ring *r = rings_new(L, room, roles);
  int err = ipc_member_take(&r->m, &room->m, g);
  if (!err) {
    size_t most = (size_t)r->m.s.head.maxsize;
    r->c.limit = g->limit && g->limit < most ? g->limit : most;
    err = room->begin(r);
  }
  if (err) {
    r->m.begun = false;
    ipc_segment_abandon(&r->m.s);
    lua_pop(L, 1);
    return err;
  }
  ipc_member_taken(g);
  ipc_handle_open(&r->c.h);
  if (r->m.path)
    ipc_handle_owe(L, -1);
  return 0;
}

/* ----------------------------------------------------------------- methods */

/***
Removes the name at once. Who has it open goes on with it; the next to open the
name makes another.
@function shm:remove
@treturn boolean true; or nil, message, errno: ENOENT when it is gone, or the
name is another's by now
*/
static int rings_remove(lua_State *L) {
  Ring *r = (Ring *)ipc_handle_self(L);
  return ipc_member_remove(L, &r->room->m);
}

const luaL_Reg ipc_rings_named[] = {{"remove", rings_remove}, {NULL, NULL}};
