/* How participants of segments are opened by name, from Lua: options, waiting,
 * words of errors, and the method remove; see member.h. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>
#include <string.h>

#include "member.h"
#include "os.h"

enum {
  MEMBER_NAME = 200,  /* characters of a name behind its slash */
  REMOVE_PATIENCE = 5 /* s */
};

/* ----------------------------------------------------------------- options */

const char *ipc_member_path(lua_State *L, int index, bool file, size_t *size) {
  if (lua_type(L, index) != LUA_TSTRING)
    luaL_typeerror(L, index, "string");
  const char *name = lua_tolstring(L, index, size);
  luaL_argcheck(L, !memchr(name, '\0', *size), index, "a name holds no NUL");
  if (file) {
    luaL_argcheck(L, *size > 0 && name[*size - 1] != '/', index,
                  "the path of a file expected");
    if (*size > MEMBER_PATH)
      luaL_argerror(L, index,
                    lua_pushfstring(L, "a path of %d characters; at most %d",
                                    (int)*size, MEMBER_PATH));
    lua_pushvalue(L, index);
    return name;
  }
  luaL_argcheck(L, name[0] == '/', index,
                "a name begins with a slash: \"/frames\"");
  luaL_argcheck(L, !strchr(name + 1, '/'), index,
                "a name has one slash, at its beginning: \"/frames\"");
  luaL_argcheck(L, name[1] != '.', index, "a name does not begin with a dot");
  if (*size < 2 || *size - 1 > MEMBER_NAME)
    luaL_argerror(L, index,
                  lua_pushfstring(L,
                                  "a name has 1 to %d characters behind the "
                                  "slash, not %d",
                                  MEMBER_NAME, (int)*size - 1));
  lua_pushfstring(L, "%s%s", ipc_os_memory_directory(), name + 1);
  return lua_tolstring(L, -1, size);
}

void ipc_member_flag(lua_State *L, int index, const char *name, uint32_t flag,
                     SegmentAsk *ask) {
  int top = lua_gettop(L);
  if (!lua_isnoneornil(L, index) && lua_getfield(L, index, name) != LUA_TNIL) {
    ask->insists |= flag;
    if (ipc_option_flag(L, index, name, false))
      ask->flags |= flag;
  }
  lua_settop(L, top);
}

Opening *ipc_member_ask(lua_State *L, int index, const MemberRoom *room,
                        const char *const options[], const char *path,
                        size_t size) {
  ipc_options(L, index, options);
  Opening *o = lua_newuserdatauv(L, sizeof *o + size + 1, 0);
  memset(o, 0, sizeof *o);
  o->room = room;
  memcpy(o->path, path, size);
  o->path[size] = '\0';
  SegmentAsk *s = &o->s;
  s->path = size ? o->path : NULL;
  s->kind = room->kind;
  s->kept = room->file;
  s->permissions = ipc_option_permissions(L, index);
  s->create = ipc_option_create(L, index);
  s->places = (uint32_t)ipc_option_size(L, index, "participants", 2,
                                        SEGMENT_SLOTS_MOST, 0);
  s->slots = s->places ? s->places : SEGMENT_SLOTS;
  s->huge = ipc_option_flag(L, index, "huge", false);
  s->populate = ipc_option_flag(L, index, "prefault", false);
  s->roles = IPC_READ | IPC_WRITE;
  ipc_member_flag(L, index, "persist", SEGMENT_PERSIST, s);
  o->temporary = ipc_option_flag(L, index, "temporary", false);
  o->retries = ipc_option_retry(L, index) > 0;
  return o;
}

/* ----------------------------------------------------------------- opening */

int ipc_member_explain(lua_State *L, Handle *h, const Opening *o, int err) {
  const Member *m = o->room->member(h);
  const char *name = o->s.path ? o->path : "a nameless one";
  const char *words = o->room->words ? o->room->words(L, h, o, err) : NULL;
  LUAI_UACINT total = (LUAI_UACINT)m->s.head.total;
  if (!words)
    words = m->s.why;
  if (!words && err == EEXIST && o->s.places && o->s.places != m->s.head.slots)
    words = lua_pushfstring(L, "participants is %d there, not %d",
                            (int)m->s.head.slots, (int)o->s.places);
  if (!words && err == EEXIST)
    words = (m->s.head.flags ^ o->s.flags) & o->s.insists & SEGMENT_PERSIST
                ? m->s.head.flags & SEGMENT_PERSIST ? "persist is true there"
                                                    : "persist is false there"
                : "it exists";
  if ((err == ENOSPC || err == ENOMEM) && o->s.huge && !o->s.path)
    return ipc_fail_limit(L, o->room->type, "open", err,
                          lua_pushfstring(L, "%I bytes in huge pages", total),
                          "vm.nr_hugepages");
  if (err == EUSERS)
    words = lua_pushfstring(L, "all places for participants are taken: %d",
                            (int)m->s.head.slots);
  else if (!words && (err == ENOSPC || err == ENOMEM || err == EFBIG))
    words = lua_pushfstring(L, "%I bytes", total);
  if (words)
    name = lua_pushfstring(L, "%s: %s", name, words);
  return ipc_fail(L, o->room->type, "open", err, name);
}

static int member_failed(lua_State *L, Handle *h, int err) {
  const Opening *o = lua_touserdata(L, 3);
  Member *m = o->room->member(h);
  if (m->s.made && o->joined)
    ipc_segment_leave(&m->s, o->path, SEGMENT_SETTLE);
  ipc_handle_release(h, IPC_DROP);
  return ipc_member_explain(L, h, o, err);
}

/* The segment is ours: 0, EAGAIN, or why it will not do. */
static int member_begin(Handle *h, Member *m, const Opening *o) {
  if (!m->path && o->s.path) {
    m->path = strdup(o->path);
    if (!m->path)
      return ENOMEM;
  }
  m->temporary = o->temporary;
  int err = o->room->begin ? o->room->begin(h, o) : 0;
  m->begun = !err;
  return err;
}

/* Whether an error of joining leaves open what else it may be. */
static bool member_doubts(int err) {
  return err == ENOMSG || err == ENOENT || err == EACCES || err == EROFS ||
         err == ELOOP || !ipc_segment_possible();
}

/* What else it may be, after joining answered *err; true: that counts. */
static bool member_other(Handle *h, Member *m, const Opening *o, int *err) {
  if (!*err || !o->room->other || !member_doubts(*err))
    return false;
  const char *why = m->s.why;
  m->s.why = NULL;
  int other = o->room->other(h, o);
  if (other == ENOMSG) {
    m->s.why = why;
    return false;
  }
  *err = other;
  return true;
}

/* Slots: 1 the handle, 2 the deadline, 3 what is asked for. */
static int member_attempt(lua_State *L, Handle *h) {
  Opening *o = lua_touserdata(L, 3);
  Member *m = o->room->member(h);
  int err = 0;
  if (!o->joined)
    err = o->apart ? ENOMSG : ipc_segment_attach(&m->s, &o->s);
  bool other = member_other(h, m, o, &err);
  o->joined = o->joined || (!err && !other);
  if (!err && !other)
    err = member_begin(h, m, o);
  bool waits = o->retries && (err == ENOENT || err == EBUSY);
  if (err == EAGAIN || (waits && ipc_now() < o->until)) {
    h->nap = MEMBER_NAP;
    return -IPC_READ;
  }
  if (waits)
    err = ETIMEDOUT;
  if (err)
    return member_failed(L, h, err);
  h->nap = 0;
  if (m->path)
    ipc_handle_owe(L, 1);
  lua_pushvalue(L, 1);
  return 1;
}

static const Op member_op = {.name = "open",
                             .attempt = member_attempt,
                             .failed = member_failed,
                             .want = IPC_READ,
                             .deadline = 2,
                             .top = 3};

int ipc_member_open(lua_State *L, Nanos retry) {
  Handle *h = lua_touserdata(L, 1);
  Opening *o = lua_touserdata(L, 2);
  Nanos patience = retry < MEMBER_PATIENCE ? MEMBER_PATIENCE : retry;
  o->until = retry == IPC_FOREVER ? retry : ipc_now() + retry;
  lua_pushnumber(L,
                 patience == IPC_FOREVER ? 1e18 : (lua_Number)patience / 1e9);
  lua_insert(L, 2);
  lua_settop(L, 3);
  ipc_handle_open(h);
  return ipc_run(L, &member_op);
}

/* ------------------------------------------------------------------ remove */

/* Slots: 1 the handle, 2 the deadline, 3 the room. */
static int remove_attempt(lua_State *L, Handle *h) {
  const MemberRoom *room = lua_touserdata(L, 3);
  Member *m = room->member(h);
  bool named = m->path && !m->hidden;
  int err = named ? ipc_segment_remove(&m->s, m->path) : ENOENT;
  if (err == EAGAIN) {
    h->nap = MEMBER_NAP;
    return -IPC_READ;
  }
  if (err)
    return ipc_fail(L, room->type, "remove", err,
                    named ? m->path : "it has no name");
  lua_pushboolean(L, 1);
  return 1;
}

static const Op remove_op = {.name = "remove",
                             .attempt = remove_attempt,
                             .want = IPC_READ,
                             .deadline = 2,
                             .top = 3};

int ipc_member_remove(lua_State *L, const MemberRoom *room) {
  Handle *h = lua_touserdata(L, 1);
  if (!ipc_handle_usable(h))
    return ipc_handle_refuse(L, h, "remove");
  lua_settop(L, 1);
  lua_pushnumber(L, REMOVE_PATIENCE);
  lua_pushlightuserdata(L, (void *)room);
  return ipc_run(L, &remove_op);
}
