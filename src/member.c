/* Participants of segments as handles have them; see member.h. */
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

/* ---------------------------------------------------------------- nameless */

/* Where memory has no nameless files: by a name that nobody guesses, until the
 * last one is out, or for a moment where what is open can be opened again. */
static int member_hidden(Member *m, SegmentAsk *ask) {
  char path[MEMBER_PATH];
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
  int err = ipc_segment_attach(&m->s, ask);
  ask->path = NULL;
  if (err)
    return err;
  m->path = strdup(path);
  m->hidden = true;
  if (!m->path) {
    ipc_segment_leave(&m->s, path, SEGMENT_REMOVE);
    return ENOMEM;
  }
  if (ipc_os_reopen(m->s.fd, O_RDWR | O_CLOEXEC, &again) == 0) {
    close(again);
    while (ipc_segment_remove(&m->s, path) == EAGAIN)
      continue;
    free(m->path);
    m->path = NULL;
    m->hidden = false;
  }
  return 0;
}

/* Whether what has no name cannot be opened again: nobody could join it. */
static bool member_lonely(const Segment *s) {
  int again, err = ipc_os_reopen(s->fd, O_RDWR | O_CLOEXEC, &again);
  if (!err)
    close(again);
  return err == ENOTSUP;
}

int ipc_member_nameless(Member *m, SegmentAsk *ask) {
  int err = ENOTSUP;
  ask->create = IPC_CREATE;
  if (!ask->kept)
    err = ipc_segment_attach(&m->s, ask);
  if (!err && member_lonely(&m->s))
    err = ENOTSUP;
  if ((err == ENOSYS || err == ENOTSUP) && ipc_segment_possible()) {
    ipc_segment_abandon(&m->s);
    err = member_hidden(m, ask);
  }
  m->begun = !err;
  return err;
}

/* ------------------------------------------------------------- close, fork */

void ipc_member_spare_end(Member *m) {
  if (m->spare)
    ipc_segment_abandon(m->spare);
  free(m->spare);
  m->spare = NULL;
}

void ipc_member_close(Member *m, const Handle *h, How how) {
  bool foreign = h->foreign || h->generation != ipc_generation;
  if (foreign) /* closed when the process forked */
    m->s.fd = -1;
  if (foreign && m->spare)
    m->spare->fd = -1;
  ipc_member_spare_end(m);
  if (foreign || h->moved || !m->begun)
    ipc_segment_abandon(&m->s);
  else
    ipc_segment_leave(&m->s, m->path,
                      how == IPC_DROP             ? SEGMENT_LEAVE
                      : m->temporary && m->s.made ? SEGMENT_REMOVE
                                                  : SEGMENT_SETTLE);
  m->begun = false;
  free(m->path);
  m->path = NULL;
}

int ipc_member_spare(Member *m, Nanos patience) {
  if (m->spare)
    return 0;
  m->spare = calloc(1, sizeof *m->spare);
  if (!m->spare)
    return ENOMEM;
  int err = ipc_segment_second(m->spare, &m->s, m->path, m->s.roles, patience);
  if (err) {
    free(m->spare);
    m->spare = NULL;
  }
  return err;
}

int ipc_member_forking(Member *m, bool moves) {
  int err = moves ? 0 : ipc_member_spare(m, MEMBER_FORK_PATIENCE);
  if (!err)
    ipc_os_fork_keep(moves ? m->s.fd : m->spare->fd, true);
  /* Without a place the child has none, as it is told when it wants one. */
  return err == ENOTSUP || err == EBUSY || err == EUSERS ? 0 : err;
}

void ipc_member_forked(Member *m, bool moves, bool child) {
  if (moves) {
    ipc_os_fork_keep(m->s.fd, false);
    return;
  }
  if (m->spare)
    ipc_os_fork_keep(m->spare->fd, false);
  if (child) {
    m->s.fd = -1; /* closed when the process forked */
    ipc_segment_abandon(&m->s);
    if (m->spare)
      m->s = *m->spare;
    else
      m->begun = false;
    free(m->spare);
    m->spare = NULL;
  } else {
    ipc_member_spare_end(m); /* the child has it, or there is no child */
  }
}

/* ----------------------------------------------------------------- passing */

int ipc_member_give(Member *m, const char *kind, bool moves, Given *g) {
  const Segment *s = &m->s;
  if (!moves) { /* an object: a participant of its own goes */
    int err = ipc_member_spare(m, MEMBER_GIVE_PATIENCE);
    if (err)
      return err == EBUSY ? EUSERS : err;
    s = m->spare;
  }
  *g = (Given){.kind = kind,
               .fd = {s->fd, -1},
               .count = 1,
               .place = s->slot << 2 | s->roles};
  return 0;
}

/* From whoever it may be: what has no name must be sealed, or they could cut
 * it under our hands. */
static int member_trust(int fd, bool file) {
  struct stat is;
  if (fstat(fd, &is))
    return errno;
  if (ipc_os_memory_sealed(fd))
    return 0;
  if (is.st_uid != geteuid())
    return EPERM;
  if (is.st_nlink > 0 || file)
    return 0;
  size_t page;
  int sealable, err = ipc_os_memory_sealable(false, &sealable, &page);
  if (!err)
    close(sealable);
  return err == ENOSYS || err == ENOTSUP ? 0 /* nobody can seal here */ : EPERM;
}

/* The name that it came without, so that the last one out removes it. */
static void member_named(Member *m) {
  char path[MEMBER_PATH];
  if (ipc_os_path(m->s.fd, path, sizeof path) ||
      !ipc_segment_named(&m->s, path))
    return;
  const char *slash = strrchr(path, '/');
  m->path = strdup(path);
  m->hidden = slash && strncmp(slash, "/.ipc.", 6) == 0;
}

int ipc_member_take(Member *m, const MemberRoom *room, const Given *g) {
  unsigned roles = g->place & 3;
  if (!roles)
    return EINVAL;
  int err = member_trust(g->fd[0], room->file);
  if (!err)
    err = ipc_segment_adopt(&m->s, g->fd[0], room->kind, g->place >> 2, roles);
  m->begun = !err;
  if (!err)
    member_named(m);
  return err;
}

void ipc_member_taken(Given *g) {
  close(g->fd[0]); /* the segment has one of its own */
  g->count = 1;
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
