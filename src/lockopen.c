/* How locks are opened: by a name, without, as they come from another process,
 * and in a memory; see lock.h. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>
#include <unistd.h>

#include "lock.h"

/* Opening.own: what the cell is to be. */
enum {
  OWN_HOW,    /* kind and flags */
  OWN_COUNT,  /* permits, parties */
  OWN_INSISTS /* flags that an existing one must have just so; OWN_COUNTED */
};
#define OWN_COUNTED (UINT64_C(1) << 32) /* and the count */

/* ----------------------------------------------------------------- options */

/* Options of a kind, beside those of every lock. */
static const char *const *open_options(uint32_t kind) {
  static const char *const plain[] = {MEMBER_OPTIONS, NULL};
  static const char *const semaphore[] = {MEMBER_OPTIONS, "permits", "owned",
                                          NULL};
  static const char *const event[] = {MEMBER_OPTIONS, "auto", NULL};
  static const char *const barrier[] = {MEMBER_OPTIONS, "parties", NULL};
  return kind == CELL_SEMAPHORE ? semaphore
         : kind == CELL_EVENT   ? event
         : kind == CELL_BARRIER ? barrier
                                : plain;
}

static bool open_given(lua_State *L, int index, const char *name) {
  bool given =
      !lua_isnoneornil(L, index) && lua_getfield(L, index, name) != LUA_TNIL;
  if (!lua_isnoneornil(L, index))
    lua_pop(L, 1);
  return given;
}

/* A flag: `value` of the option sets it. */
static void open_flag(lua_State *L, int index, const char *name, bool value,
                      uint32_t flag, uint64_t own[4]) {
  if (!open_given(L, index, name))
    return;
  own[OWN_INSISTS] |= flag;
  if (ipc_option_flag(L, index, name, !value) == value)
    own[OWN_HOW] |= flag;
}

/* What the options at `index` say of the cell. */
static void open_cell(lua_State *L, int index, uint32_t kind, uint64_t own[4]) {
  own[OWN_HOW] = kind;
  if (kind == CELL_SEMAPHORE) {
    open_flag(L, index, "owned", false, CELL_COUNTS, own);
    own[OWN_COUNT] = ipc_option_size(L, index, "permits", 0, CELL_PERMITS, 1);
    if (open_given(L, index, "permits"))
      own[OWN_INSISTS] |= OWN_COUNTED;
    if (own[OWN_COUNT] == 0 && !(own[OWN_HOW] & CELL_COUNTS))
      luaL_argerror(L, index,
                    "option 'permits': 1 or more, unless owned = false");
  } else if (kind == CELL_BARRIER) {
    own[OWN_COUNT] = ipc_option_size(L, index, "parties", 1, CELL_PARTIES, 1);
    if (open_given(L, index, "parties"))
      own[OWN_INSISTS] |= OWN_COUNTED;
  } else if (kind == CELL_EVENT) {
    open_flag(L, index, "auto", true, CELL_AUTO, own);
  }
}

/* Whether who asks so says what a new one is to be. */
static bool open_makes(uint32_t kind, const uint64_t own[4]) {
  return (kind != CELL_SEMAPHORE && kind != CELL_BARRIER) ||
         (own[OWN_INSISTS] & OWN_COUNTED) != 0;
}

/* ----------------------------------------------------------------- the cell */

/* Makes the cell what is asked for, or looks whether it is. EEXIST; EAGAIN: it
 * is nothing yet, and not for us to make. */
static int open_make(Lock *l, const Segment *s, unsigned index,
                     const uint64_t own[4], bool makes) {
  Cell *cell = ipc_cell_at(s, index);
  uint32_t count = (uint32_t)own[OWN_COUNT];
  l->u.how = makes ? ipc_cell_make(cell, (uint32_t)own[OWN_HOW], &count)
                   : ipc_cell_is(cell, &count);
  l->u.count = count;
  if (l->u.how == 0)
    return EAGAIN;
  uint32_t kind = own[OWN_HOW] & CELL_KIND;
  bool same = (l->u.how & CELL_KIND) == kind &&
              ((l->u.how ^ own[OWN_HOW]) & own[OWN_INSISTS] & UINT32_MAX) == 0;
  if (own[OWN_INSISTS] & OWN_COUNTED)
    same = same && count == own[OWN_COUNT];
  if (!same)
    return EEXIST;
  uint32_t least = l->u.how & CELL_COUNTS ? 0 : 1;
  bool can = kind == CELL_SEMAPHORE ? count >= least && count <= CELL_PERMITS
             : kind == CELL_BARRIER ? count >= 1 && count <= CELL_PARTIES
                                    : true;
  return can ? 0 : EBADMSG;
}

/* Pushes what differs. */
static const char *open_differs(lua_State *L, const Lock *l,
                                const uint64_t own[4]) {
  uint32_t kind = own[OWN_HOW] & CELL_KIND, there = l->u.how & CELL_KIND;
  if (there == 0)
    return NULL;
  if (there >= CELL_KINDS)
    return "it is no lock of lua-ipc";
  if (there != kind)
    return lua_pushfstring(L, "it is %s", ipc_lock_names[there]);
  if ((own[OWN_INSISTS] & OWN_COUNTED) && l->u.count != own[OWN_COUNT])
    return lua_pushfstring(L, "%s is %I there, not %I",
                           kind == CELL_BARRIER ? "parties" : "permits",
                           (LUAI_UACINT)l->u.count,
                           (LUAI_UACINT)own[OWN_COUNT]);
  if ((l->u.how ^ own[OWN_HOW]) & own[OWN_INSISTS] & CELL_COUNTS)
    return l->u.how & CELL_COUNTS ? "owned is false there"
                                  : "owned is true there";
  if ((l->u.how ^ own[OWN_HOW]) & own[OWN_INSISTS] & CELL_AUTO)
    return l->u.how & CELL_AUTO ? "auto is true there" : "auto is false there";
  return NULL;
}

/* -------------------------------------------------------------- MemberRoom */

static Member *open_member(Handle *h) { return &((Lock *)h)->m; }

static int open_begin(Handle *h, const Opening *o) {
  Lock *l = (Lock *)h;
  if (ipc_cell_count(&l->m.s) < 1)
    return EBADMSG;
  int err = open_make(l, &l->m.s, 0, o->own,
                      o->s.create != IPC_ATTACH || l->m.s.made);
  return err || l->place ? err : ipc_lock_enter(l, NULL, &l->m.s, 0);
}

static const char *open_words(lua_State *L, Handle *h, const Opening *o,
                              int err) {
  return err == EEXIST ? open_differs(L, (Lock *)h, o->own) : NULL;
}

#define OPEN_ROOM(word)                                                        \
  {                                                                            \
    .name = "locks", .type = "ipc." word, .kind = SEGMENT_LOCKS,               \
    .member = open_member, .begin = open_begin, .words = open_words            \
  }

static const MemberRoom open_rooms[CELL_KINDS] = {
    OPEN_ROOM("lock"),      OPEN_ROOM("mutex"),     OPEN_ROOM("rwlock"),
    OPEN_ROOM("semaphore"), OPEN_ROOM("condition"), OPEN_ROOM("event"),
    OPEN_ROOM("barrier")};

const MemberRoom *ipc_lock_room(const Lock *l) {
  uint32_t kind = l->u.how & CELL_KIND;
  return &open_rooms[kind < CELL_KINDS ? kind : 0];
}

/* ------------------------------------------------------------ by the user */

static int open_nameless(lua_State *L, Lock *l, Opening *o) {
  int err = ipc_member_nameless(&l->m, &o->s);
  if (!err)
    err = open_begin(&l->h, o);
  if (err) {
    ipc_member_close(&l->m, &l->h, IPC_CLOSE);
    return ipc_member_explain(L, &l->h, o, err);
  }
  ipc_handle_open(&l->h);
  if (l->m.path)
    ipc_handle_owe(L, -1);
  return 1;
}

int ipc_lock_open(lua_State *L, uint32_t kind) {
  enum { NAME = 1, OPTIONS };
  size_t size = 0;
  const char *path = "";
  lua_settop(L, OPTIONS);
  if (!lua_isnil(L, NAME))
    path = ipc_member_path(L, NAME, false, &size);
  Opening *o = ipc_member_ask(L, OPTIONS, &open_rooms[kind], open_options(kind),
                              path, size);
  int asked = lua_gettop(L);
  open_cell(L, OPTIONS, kind, o->own);
  if (!open_makes(kind, o->own)) {
    if (size == 0 && kind == CELL_BARRIER)
      luaL_argerror(L, OPTIONS, "option 'parties': how many there are");
    if (size && o->s.create == IPC_CREATE_NEW)
      luaL_argerror(L, OPTIONS,
                    kind == CELL_BARRIER ? "create = \"new\": say its 'parties'"
                                         : "create = \"new\": say its "
                                           "'permits'");
    if (size) /* who does not say only attaches */
      o->s.create = IPC_ATTACH;
  }
  o->s.extra = ipc_cell_size(o->s.slots);
  o->s.swept = ipc_cell_swept;
  Nanos retry = ipc_option_retry(L, OPTIONS);
  Nanos timeout = ipc_option_time(L, OPTIONS, "timeout", IPC_FOREVER);
  Lock *l = ipc_lock_new(L, kind);
  l->timeout = timeout;
  if (size == 0)
    return open_nameless(L, l, o);
  lua_pushvalue(L, asked);
  lua_replace(L, OPTIONS);
  lua_replace(L, 1);
  lua_settop(L, 2);
  return ipc_member_open(L, retry);
}

int ipc_lock_take(lua_State *L, Given *g) {
  uint32_t kind = (uint32_t)g->limit;
  if (g->limit < CELL_MUTEX || g->limit >= CELL_KINDS)
    return EINVAL;
  Lock *l = ipc_lock_new(L, kind);
  int err = ipc_member_take(&l->m, &open_rooms[kind], g);
  uint64_t own[4] = {kind};
  if (!err) {
    l->m.s.swept = ipc_cell_swept;
    err = ipc_cell_count(&l->m.s) < 1 ? EBADMSG
                                      : open_make(l, &l->m.s, 0, own, false);
  }
  if (!err)
    err = ipc_lock_enter(l, NULL, &l->m.s, 0);
  if (err) { /* the descriptor is still the caller's */
    l->m.begun = false;
    ipc_member_close(&l->m, &l->h, IPC_DROP);
    lua_pop(L, 1);
    return err;
  }
  ipc_member_taken(g);
  ipc_handle_open(&l->h);
  if (l->m.path)
    ipc_handle_owe(L, -1);
  return 0;
}

/* -------------------------------------------------------------- in memory */

/* Permits or parties by themselves, or a table of options. */
static void in_options(lua_State *L, uint32_t kind, uint64_t own[4]) {
  static const char *const none[] = {NULL};
  static const char *const semaphore[] = {"permits", "owned", NULL};
  static const char *const event[] = {"auto", NULL};
  static const char *const barrier[] = {"parties", NULL};
  enum { OPTIONS = 3 };
  if (lua_type(L, OPTIONS) == LUA_TNUMBER &&
      (kind == CELL_SEMAPHORE || kind == CELL_BARRIER)) {
    lua_createtable(L, 0, 1);
    lua_pushvalue(L, OPTIONS);
    lua_setfield(L, -2, kind == CELL_BARRIER ? "parties" : "permits");
    lua_replace(L, OPTIONS);
  }
  ipc_options(L, OPTIONS,
              kind == CELL_SEMAPHORE ? semaphore
              : kind == CELL_EVENT   ? event
              : kind == CELL_BARRIER ? barrier
                                     : none);
  open_cell(L, OPTIONS, kind, own);
}

int ipc_lock_in(lua_State *L, Segment *s, LockPlace **place, uint32_t kind) {
  enum { MEMORY = 1, INDEX, OPTIONS };
  uint64_t own[4] = {0};
  lua_settop(L, OPTIONS);
  Handle *memory = lua_touserdata(L, MEMORY);
  lua_Integer i = luaL_checkinteger(L, INDEX), most = ipc_cell_count(s);
  if (i < 1 || i > most)
    luaL_argerror(L, INDEX,
                  most == 0
                      ? "the memory was made without 'locks'"
                      : lua_pushfstring(L, "lock %I of %I", (LUAI_UACINT)i,
                                        (LUAI_UACINT)most));
  in_options(L, kind, own);
  Lock *l = ipc_lock_new(L, kind);
  lua_pushvalue(L, MEMORY);
  lua_setiuservalue(L, -2, LOCK_UV_MEMORY);
  if (!ipc_handle_usable(memory)) /* a finaliser closed it */
    return ipc_handle_refuse(L, memory, "lock");
  int err = open_make(l, s, (unsigned)i - 1, own, open_makes(kind, own));
  if (err == EAGAIN) {
    luaL_argerror(L, OPTIONS,
                  kind == CELL_BARRIER ? "how many parties?"
                                       : "how many permits?");
  }
  if (!err)
    err = ipc_lock_enter(l, place, s, (unsigned)i - 1);
  if (err) {
    const char *words = err == EEXIST ? open_differs(L, l, own) : NULL;
    return ipc_fail(L, l->h.ops->type, "open", err,
                    lua_pushfstring(L, "lock %I%s%s", (LUAI_UACINT)i,
                                    words ? ": " : "", words ? words : ""));
  }
  l->memory = memory;
  ipc_handle_open(&l->h);
  return 1;
}
