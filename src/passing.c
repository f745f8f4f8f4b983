/* Handles on their way to another process; see passing.h. What a handle is made
 * of is said by HandleOps.give, and made of it by Room.take. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <string.h>
#include <unistd.h>

#include "cmsg.h"
#include "frame.h"
#include "ipc.h"
#include "os.h"
#include "passing.h"

/* ---------------------------------------------------------------- sending */

static const char list_key; /* registry: collects handles while encoding */

#define CARRIES "the message goes through it: pass its dup()"
#define TWICE "it is there twice: pass its dup()"

/* Whether h goes away with what self sends: itself or a part of it. What is not
 * all out then could not follow, and what it was sent for would be lost. */
static bool passing_carries(const Chan *self, const Handle *h) {
  return h == &self->h || (self->reader && h == &self->reader->h) ||
         (self->writer && h == &self->writer->h);
}

void ipc_passing_start(lua_State *L, const Chan *self, PackForeign *f) {
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &list_key) != LUA_TTABLE ||
      lua_rawlen(L, -1) > 0) { /* encoding raised the last time */
    lua_pop(L, 1);
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &list_key);
  }
  f->list = lua_gettop(L);
  f->descriptors = 0;
  f->carrier = self;
}

bool ipc_passing_some(lua_State *L) {
  if (lua_rawlen(L, -1) == 0)
    return false;
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, &list_key);
  return true;
}

static char *passing_word(char *at, const char *word) {
  *at++ = (char)(0xa0 | strlen(word)); /* fixstr */
  while (*word)
    *at++ = *word++;
  return at;
}

/* PackForeign: the extension that stands for the handle at `index`; 0: it is
 * none that can be passed. Allocates (the list grows) but runs no collector. */
size_t ipc_passing_pack(lua_State *L, int index, PackForeign *f,
                        char bytes[PACK_FOREIGN]) {
  Handle *h = ipc_handle_at(L, index);
  Given g = {.kind = "closed"};
  if (!h || !h->ops->give || h->moved || h->foreign)
    return 0;
  if (passing_carries(f->carrier, h)) {
    f->why = CARRIES;
    return 0;
  }
  /* What cannot go now, or not so many, ipc_passing_gather finds out. */
  if (ipc_handle_usable(h))
    (void)h->ops->give(h, &g);
  lua_Integer n = (lua_Integer)lua_rawlen(L, f->list) + 1;
  for (lua_Integer i = 1; g.place && i < n; i++) {
    lua_rawgeti(L, f->list, i);
    bool same = lua_touserdata(L, -1) == (void *)h;
    lua_pop(L, 1);
    if (same) {
      f->why = TWICE;
      return 0;
    }
  }
  if (g.place) { /* what the bytes say must hold when they go */
    lua_pushinteger(L, (lua_Integer)g.place);
    lua_rawseti(L, f->list, -n);
  }
  char *at = bytes;
  *at++ = (char)(g.place ? 0x95 : 0x94); /* an array of four, or five */
  *at++ = (char)0xcc;                    /* uint 8 */
  *at++ = (char)f->descriptors;
  at = passing_word(at, g.count == 2 ? "pipes" : g.lead ? "padded" : g.kind);
  at = passing_word(at, g.stream ? "stream" : "message");
  *at++ = (char)0xcf; /* uint 64 */
  for (int shift = 56; shift >= 0; shift -= 8)
    *at++ = (char)((uint64_t)g.limit >> shift & 0xff);
  if (g.place) {
    *at++ = (char)0xcd; /* uint 16 */
    *at++ = (char)(g.place >> 8 & 0xff);
    *at++ = (char)(g.place & 0xff);
  }
  f->descriptors += g.count;
  lua_pushvalue(L, index);
  lua_rawseti(L, f->list, n);
  return (size_t)(at - bytes);
}

int ipc_passing_gather(lua_State *L, int index, int *fds, unsigned *count) {
  *count = 0;
  lua_Integer n = (lua_Integer)lua_rawlen(L, index);
  for (lua_Integer i = 1; i <= n; i++) {
    Given g;
    lua_rawgeti(L, index, i);
    Handle *h = ipc_handle_at(L, -1);
    lua_pop(L, 1);
    if (!h || !ipc_handle_usable(h) || !h->ops->give)
      return EBADF;
    int err = h->ops->give(h, &g);
    if (err)
      return err;
    if (lua_rawgeti(L, index, -i) == LUA_TNUMBER &&
        lua_tointeger(L, -1) != (lua_Integer)g.place)
      err = EBUSY; /* another call sent the place that the bytes tell of */
    lua_pop(L, 1);
    if (err)
      return err;
    if (*count + g.count > CMSG_MOST)
      return E2BIG;
    for (unsigned k = 0; k < g.count; k++)
      fds[(*count)++] = g.fd[k];
  }
  return 0;
}

void ipc_passing_check(lua_State *L, const Chan *self, int index) {
  luaL_checktype(L, index, LUA_TTABLE);
  lua_Integer n = (lua_Integer)lua_rawlen(L, index);
  luaL_argcheck(L, n <= CMSG_MOST, index, "more than 253 handles");
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, index, i);
    Handle *h = ipc_handle_at(L, -1);
    if (!h || !h->ops->give)
      luaL_argerror(L, index,
                    lua_pushfstring(L, "handles[%I]: %s cannot be passed",
                                    (LUAI_UACINT)i,
                                    luaL_tolstring(L, -1, NULL)));
    if (passing_carries(self, h))
      luaL_argerror(
          L, index,
          lua_pushfstring(L, "handles[%I]: %s", (LUAI_UACINT)i, CARRIES));
    if (h->moved)
      luaL_argerror(L, index,
                    lua_pushfstring(L, "handles[%I]: moved to %d",
                                    (LUAI_UACINT)i, h->moved));
    Given g = {0};
    if (ipc_handle_usable(h) && h->ops->give(h, &g) == 0 && g.place)
      luaL_argerror(L, index,
                    lua_pushfstring(L,
                                    "handles[%I]: its place is told by put, "
                                    "sendmsg cannot",
                                    (LUAI_UACINT)i));
    if (ipc_handle_usable(h) && g.lead > 0)
      luaL_argerror(L, index,
                    lua_pushfstring(L,
                                    "handles[%I]: packets are padded here: "
                                    "put says so, sendmsg cannot",
                                    (LUAI_UACINT)i));
    lua_pop(L, 1);
  }
}

void ipc_passing_kept(lua_State *L, int index) {
  lua_Integer n = (lua_Integer)lua_rawlen(L, index);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, index, i);
    Handle *h = ipc_handle_at(L, -1);
    if (h && h->shares && h->open && h->ops->forked)
      h->ops->forked(h, false);
    lua_pop(L, 1);
  }
}

void ipc_passing_gone(lua_State *L, Chan *c, int index) {
  long pid = -1, uid, gid;
  int fd = c->h.ops->descriptor(&c->h, IPC_WRITE);
  /* Our own: a pair, whose other end is wherever it went. */
  if (c->peer)
    pid = c->peer;
  else if (ipc_os_credentials(fd, &pid, &uid, &gid) || pid <= 0 ||
           pid == getpid())
    pid = -1;
  ipc_passing_kept(L, index);
  lua_Integer n = (lua_Integer)lua_rawlen(L, index);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, index, i);
    Handle *h = ipc_handle_at(L, -1);
    if (h && h->moves && h->open) {
      lua_pushnil(L); /* no line of source: it may have waited since */
      ipc_handle_moved(L, -2, (int)pid);
    }
    lua_pop(L, 1);
  }
}

/* -------------------------------------------------------------- receiving */

static const char held_key; /* registry: the metatable */

typedef struct Held {
  unsigned count;
  int fd[]; /* -1: taken */
} Held;

static unsigned held_close(Held *p) {
  unsigned closed = 0;
  for (unsigned i = 0; i < p->count; i++)
    if (p->fd[i] >= 0) {
      ipc_cmsg_discard(p->fd[i]);
      closed++;
    }
  p->count = 0;
  return closed;
}

static int held_gc(lua_State *L) {
  held_close(lua_touserdata(L, 1));
  return 0;
}

void ipc_passing_hold(lua_State *L, Chan *c, const Message *m,
                      uint32_t serial) {
  unsigned count = m->fd_count;
  Held *p = lua_newuserdatauv(L, sizeof *p + count * sizeof *p->fd, 0);
  p->count = 0;
  if (lua_rawgetp(L, LUA_REGISTRYINDEX, &held_key) == LUA_TNIL) {
    lua_pop(L, 1);
    lua_createtable(L, 0, 1);
    lua_pushcfunction(L, held_gc);
    lua_setfield(L, -2, "__gc");
    lua_pushvalue(L, -1);
    lua_rawsetp(L, LUA_REGISTRYINDEX, &held_key);
  }
  lua_setmetatable(L, -2);
  if (serial != c->serial)
    return; /* a finaliser received this very message */
  for (unsigned i = 0; i < count; i++) {
    p->fd[p->count++] = m->fds[i];
    m->fds[i] = -1;
  }
}

void ipc_passing_settle(lua_State *L, Chan *c, int index) {
  c->strangers += held_close(lua_touserdata(L, index));
}

static bool passing_is(const unsigned char **at, const unsigned char *end,
                       const char *word) {
  size_t n = strlen(word);
  if ((size_t)(end - *at) < n + 1 || **at != (0xa0 | n) ||
      memcmp(*at + 1, word, n) != 0)
    return false;
  *at += n + 1;
  return true;
}

/* UnpackForeign: pushes the handle that the extension stands for. */
int ipc_passing_unpack(lua_State *L, const char *bytes, size_t size,
                       UnpackForeign *f) {
  static const struct {
    const char *word, *room;
    unsigned count, lead;
  } kinds[] = {{"pipe", "pipe", 1, 0},         {"pipes", "pipe", 2, 0},
               {"socket", "socket", 1, 0},     {"padded", "socket", 1, 1},
               {"listener", "listener", 1, 0}, {"shm", "shm", 1, 0},
               {"mmap", "mmap", 1, 0},         {"broadcast", "broadcast", 1, 0},
               {"locks", "locks", 1, 0},       {"memory", "memory", 1, 0}};
  const unsigned char *at = (const unsigned char *)bytes, *end = at + size;
  Held *p = lua_touserdata(L, f->held);
  Given g = {0};
  if (size < 3 || (at[0] & 0xfe) != 0x94 || at[1] != 0xcc)
    return EBADMSG;
  bool placed = at[0] == 0x95;
  unsigned index = at[2], wanted = 0;
  at += 3;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !g.kind; i++)
    if (passing_is(&at, end, kinds[i].word)) {
      g.kind = kinds[i].room;
      g.lead = kinds[i].lead;
      wanted = kinds[i].count;
    }
  g.stream = passing_is(&at, end, "stream");
  if (!g.kind || (!g.stream && !passing_is(&at, end, "message")) ||
      end - at != (placed ? 12 : 9) || *at++ != 0xcf)
    return EBADMSG;
  for (int i = 0; i < 8; i++)
    g.limit = g.limit << 8 | *at++;
  if (placed && *at != 0xcd)
    return EBADMSG;
  if (placed)
    g.place = (unsigned)at[1] << 8 | at[2];
  if (g.limit == 0 || g.limit > f->limit) /* theirs to ask for, not to say */
    g.limit = f->limit;
  g.handles = f->handles;
  for (; g.count < wanted; g.count++) {
    if (index + g.count >= p->count || p->fd[index + g.count] < 0)
      return EBADMSG;
    g.fd[g.count] = p->fd[index + g.count];
  }
  if (ipc_room(g.kind)->take(L, &g))
    return EBADMSG;
  for (unsigned k = 0; k < g.count; k++)
    p->fd[index + k] = -1;
  return 0;
}

/* The rooms that may take a descriptor of unknown origin. */
static int passing_take(lua_State *L, Given *g) {
  static const char *const kinds[] = {"pipe", "socket", "listener"};
  int err = EINVAL;
  for (size_t i = 0; err && i < sizeof kinds / sizeof *kinds; i++)
    err = ipc_room(kinds[i])->take(L, g);
  return err;
}

void ipc_passing_list(lua_State *L, Chan *c, int index, bool stream) {
  Held *p = lua_touserdata(L, index);
  unsigned count = p->count;
  lua_createtable(L, (int)count, 0);
  lua_Integer n = 0;
  for (unsigned i = 0; i < count; i++) {
    Given g = {.fd = {p->fd[i], -1},
               .count = 1,
               .stream = stream,
               .limit = ipc_frame_trusts(c)};
    if (passing_take(L, &g))
      continue; /* a stranger */
    p->fd[i] = -1;
    lua_rawseti(L, -2, ++n);
  }
}
