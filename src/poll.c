/* Waiting for several handles at once, once: ipc.poll. Costs what is there at
 * each call; a poller costs what is ready. */
#include "prefix.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>

#include "ipc.h"
#include "os.h"
#include "polled.h"
#include "pollers.h"

/***
 * @submodule ipc
 */

/* Slots: 1 list, 2 timeout, 3 the Entry array, 4 what the entries are (the
 * list may change while Lua runs), 5 a task's waiter. */
enum {
  POLL_LIST = 1,
  POLL_TIMEOUT,
  POLL_ENTRIES,
  POLL_OBJECTS,
  POLL_TOP = POLL_OBJECTS,
  POLL_WAITER
};

typedef struct Entry {
  Handle *handle; /* NULL: foreign */
  int want;       /* IPC_READ and IPC_WRITE bits, IPC_ENDED */
  int fd;         /* foreign: what to poll */
  Nanos due;      /* foreign: when it is ready whatever its descriptor */
  bool ready;
} Entry;

int ipc_poll_wants(const char *events) {
  int want = 0;
  for (; events && *events; events++) {
    if (*events == 'r')
      want |= IPC_READ;
    else if (*events == 'w')
      want |= IPC_WRITE;
    else
      return 0;
  }
  return want;
}

static int poll_wants(lua_State *L, int i, const char *events) {
  int want = ipc_poll_wants(events);
  if (want == 0)
    luaL_argerror(
        L, POLL_LIST,
        lua_pushfstring(L, "entry %d: \"r\", \"w\" or \"rw\" expected", i));
  return want;
}

/* A member of a foreign object: a value, or a method that returns one. */
static void poll_member(lua_State *L, int object, const char *name) {
  object = lua_absindex(L, object);
  lua_getfield(L, object, name);
  if (lua_isfunction(L, -1)) {
    lua_pushvalue(L, object);
    lua_call(L, 1, 1);
  }
}

bool ipc_poll_is_foreign(lua_State *L, int index) {
  int type = lua_type(L, index);
  if (type != LUA_TTABLE && type != LUA_TUSERDATA)
    return false;
  if (type == LUA_TUSERDATA && !luaL_getmetafield(L, index, "__index"))
    return false;
  if (type == LUA_TUSERDATA)
    lua_pop(L, 1);
  lua_getfield(L, index, "pollfd");
  bool foreign = !lua_isnil(L, -1);
  lua_pop(L, 1);
  return foreign;
}

static void poll_direction(lua_State *L, int i, const Entry *e) {
  const Chan *c = (const Chan *)e->handle;
  if (e->handle->channel && (((e->want & IPC_READ) && !c->reader) ||
                             ((e->want & IPC_WRITE) && !c->writer)))
    luaL_argerror(L, POLL_LIST,
                  lua_pushfstring(L, "entry %d: this end only %s", i,
                                  c->reader ? "receives" : "sends"));
}

/* The entry on top, if it is a handle or names one: then the handle takes its
 * place. */
static bool poll_handle(lua_State *L, int i, Entry *e) {
  e->handle = ipc_handle_at(L, -1);
  if (e->handle) {
    e->want = ipc_handle_interest(e->handle);
  } else if (lua_type(L, -1) == LUA_TTABLE) {
    lua_rawgeti(L, -1, 1);
    e->handle = ipc_handle_at(L, -1);
    if (e->handle) {
      lua_rawgeti(L, -2, 2);
      e->want = poll_wants(L, i, lua_tostring(L, -1));
      lua_pop(L, 1);
      poll_direction(L, i, e);
      lua_replace(L, -2);
    } else {
      lua_pop(L, 1);
    }
  }
  if (e->handle && ipc_handle_interest(e->handle) == IPC_NEVER)
    luaL_argerror(L, POLL_LIST,
                  lua_pushfstring(L,
                                  "entry %d: %s is not polled: its calls "
                                  "wait",
                                  i, e->handle->ops->type));
  if (e->handle && e->handle->moved)
    luaL_argerror(
        L, POLL_LIST,
        lua_pushfstring(L, "entry %d: moved to %d", i, e->handle->moved));
  return e->handle != NULL;
}

/* { object, events } on top: the object takes its place. Only its own events
 * can be waited for. */
static void poll_named(lua_State *L, int i) {
  if (lua_type(L, -1) != LUA_TTABLE || ipc_poll_is_foreign(L, -1))
    return;
  lua_rawgeti(L, -1, 1);
  if (!ipc_poll_is_foreign(L, -1)) {
    lua_pop(L, 1);
    return;
  }
  lua_rawgeti(L, -2, 2);
  int want = poll_wants(L, i, lua_tostring(L, -1));
  poll_member(L, -2, "events");
  const char *events = lua_tostring(L, -1);
  if (!events || want != poll_wants(L, i, events))
    luaL_argerror(L, POLL_LIST,
                  lua_pushfstring(L, "entry %d: waits for \"%s\" only", i,
                                  events ? events : "its own time"));
  lua_pop(L, 2);
  lua_replace(L, -2);
}

bool ipc_poll_ask(lua_State *L, Foreign *f) {
  lua_Integer fd = -1;
  *f = (Foreign){-1, 0, IPC_FOREVER};
  poll_member(L, -1, "pollfd");
  if (lua_isinteger(L, -1))
    fd = lua_tointeger(L, -1);
  f->fd = fd >= 0 && fd <= INT_MAX ? (int)fd : -1;
  lua_pop(L, 1);
  poll_member(L, -1, "events");
  const char *events = lua_tostring(L, -1);
  if (events && *events) {
    f->want = ipc_poll_wants(events);
    if (f->want == 0)
      return false;
  }
  lua_pop(L, 1);
  poll_member(L, -1, "timeout");
  if (lua_type(L, -1) == LUA_TNUMBER) {
    Nanos left = ipc_seconds(lua_tonumber(L, -1));
    f->due = left == IPC_FOREVER ? IPC_FOREVER : ipc_now() + left;
  }
  lua_pop(L, 1);
  return true;
}

/* What the foreign object on top wants, now. */
static void poll_foreign(lua_State *L, int i, Entry *e) {
  Foreign f;
  if (!ipc_poll_is_foreign(L, -1))
    luaL_argerror(L, POLL_LIST,
                  lua_pushfstring(L, "entry %d: a handle expected, got %s", i,
                                  luaL_typename(L, -1)));
  if (!ipc_poll_ask(L, &f))
    (void)poll_wants(L, i, lua_tostring(L, -1)); /* which raises */
  e->fd = f.fd;
  e->want = f.want;
  e->due = f.due;
}

/* Entry i of the list, into *e. Raises on what cannot be polled. */
static void poll_entry(lua_State *L, int i, Entry *e) {
  memset(e, 0, sizeof *e);
  e->fd = -1;
  e->due = IPC_FOREVER;
  lua_rawgeti(L, POLL_LIST, i);
  bool ours = poll_handle(L, i, e);
  if (!ours)
    poll_named(L, i);
  lua_pushvalue(L, -1);
  lua_rawseti(L, POLL_OBJECTS, i);
  if (!ours)
    poll_foreign(L, i, e);
  lua_pop(L, 1);
}

/* Marks the foreign objects whose time has come. */
static bool poll_due(Entry *e, int count, Nanos now) {
  bool some = false;
  for (int i = 0; i < count; i++)
    if (e[i].due <= now)
      e[i].ready = some = true;
  return some;
}

/* The list of ready entries, which is also a set. */
static int poll_answer(lua_State *L, const Entry *e, int count) {
  lua_newtable(L);
  int n = 0;
  for (int i = 0; i < count; i++) {
    if (!e[i].ready)
      continue;
    lua_rawgeti(L, POLL_OBJECTS, i + 1);
    lua_pushvalue(L, -1);
    lua_rawseti(L, -3, ++n);
    lua_pushboolean(L, 1);
    lua_rawset(L, -3);
    if (e[i].handle)
      ipc_poller_asked(L, e[i].handle);
  }
  return 1;
}

/* Adds what must be polled for e to S->polls. */
static int poll_add(State *S, const Entry *e, bool sleeps) {
  for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1) {
    if (!(e->want & want))
      continue;
    if (ipc_buffer_reserve(&S->polls, sizeof(struct pollfd)))
      return ENOMEM;
    struct pollfd p = {e->fd, want == IPC_WRITE ? POLLOUT : POLLIN, 0};
    if (e->handle) {
      Handle *part = ipc_handle_part(e->handle, want);
      p.fd = sleeps ? ipc_handle_watch(part, want, NULL)
                    : part->ops->descriptor(part, want);
      p.events = ipc_handle_events(part, want);
    }
    memcpy(S->polls.bytes + S->polls.size, &p, sizeof p);
    S->polls.size += sizeof p;
  }
  return 0;
}

/* Whether one of a handle's wants has nothing to be polled. */
static bool poll_naps(const Entry *e) {
  for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1) {
    const Handle *part = ipc_handle_part(e->handle, want);
    if ((e->want & want) && ipc_handle_usable(part) &&
        (part->nap || part->ops->arm || part->ops->descriptor(part, want) < 0))
      return true;
  }
  return false;
}

/* When to look again at those that nothing tells about. */
static Nanos poll_nap(const Entry *e, int count, Nanos deadline) {
  for (int i = 0; i < count && deadline > 0; i++)
    for (int want = IPC_READ; e[i].handle && want <= IPC_ENDED; want <<= 1)
      if (e[i].want & want)
        deadline = ipc_handle_nap(ipc_handle_part(e[i].handle, want), deadline);
  return deadline;
}

/* Polls all entries; marks those the kernel calls ready and the channel
 * confirms. EINTR before it sleeps where a signal has changed the hook `was`:
 * what wakes the sleep may have taken its time to start. */
static int poll_kernel(State *S, Entry *e, int count, Nanos deadline,
                       lua_Hook was, bool *some) {
  S->polls.size = 0;
  for (int i = 0; i < count; i++)
    if (poll_add(S, &e[i], deadline > 0))
      return ENOMEM;
  if (deadline > 0 && lua_gethook(S->main) != was)
    return EINTR;
  int err = ipc_sleep(S, S->polls.size / sizeof(struct pollfd),
                      poll_nap(e, count, deadline));
  if (err && err != ETIMEDOUT && err != EINTR)
    return err;
  const char *at = S->polls.bytes;
  for (int i = 0; i < count; i++) {
    bool hit = false;
    for (int want = IPC_READ; want <= IPC_ENDED; want <<= 1) {
      struct pollfd p;
      if (!(e[i].want & want))
        continue;
      memcpy(&p, at, sizeof p);
      at += sizeof p;
      hit = hit || p.revents;
    }
    if (e[i].handle && poll_naps(&e[i]))
      hit = true; /* nothing but asking tells */
    e[i].ready =
        e[i].ready || (hit && (!e[i].handle ||
                               ipc_handle_hits(e[i].handle, e[i].want, true)));
    *some = *some || e[i].ready;
  }
  return err;
}

/* Asks again and again instead of sleeping. */
static bool poll_retry(State *S, Entry *e, int count, Nanos until) {
  bool some = false;
  do {
    int err = poll_kernel(S, e, count, 0, NULL, &some);
    if (some) {
      ipc_spin_paid(&S->spin);
      return true;
    }
    if (err && err != ETIMEDOUT)
      return false;
  } while (ipc_now() < until);
  ipc_spin_failed(&S->spin);
  return false;
}

static int poll_again(lua_State *L, int status, lua_KContext context);

/* In a task: the scheduler polls, with a waiter for each entry and want. What
 * it returns is above POLL_WAITER afterwards. */
static void poll_suspend(lua_State *L, const Entry *e, int count,
                         Nanos deadline) {
  if (lua_gettop(L) == POLL_TOP)
    ipc_waiter_open(L, NULL, IPC_READ, false);
  for (int i = 0; i < count; i++) {
    luaL_checkstack(L, 16, "too many handles");
    if (!e[i].handle) /* foreign: as it is */
      lua_rawgeti(L, POLL_OBJECTS, i + 1);
    for (int want = IPC_READ; e[i].handle && want <= IPC_ENDED; want <<= 1) {
      if (!(e[i].want & want))
        continue;
      Handle *part = ipc_handle_part(e[i].handle, want);
      (void)ipc_handle_watch(part, want, ipc_reactor_sleepers(part->state));
      ipc_waiter_add(L, POLL_WAITER, part, want);
    }
  }
  luaL_checkstack(L, 16, "too many handles");
  ipc_suspend(L, POLL_WAITER, lua_gettop(L) - POLL_WAITER,
              poll_nap(e, count, deadline), LUA_MULTRET, 0, poll_again);
}

/* Whether the scheduler's wait returned entry i. Only it can tell of an object
 * without a descriptor, as a condition of cqueues is. */
static bool poll_returned(lua_State *L, int i, const Entry *e) {
  bool found = false;
  if (e->fd >= 0)
    return false;
  int top = lua_gettop(L);
  lua_rawgeti(L, POLL_OBJECTS, i);
  for (int at = POLL_WAITER + 1; at <= top && !found; at++)
    found = lua_rawequal(L, at, -1);
  lua_pop(L, 1);
  return found;
}

/* What one look at the list found. */
typedef struct Poll {
  Entry *entries; /* in slot POLL_ENTRIES */
  int count;
  Nanos deadline; /* of the call; 0: it must not wait */
  Nanos first;    /* that, or when a foreign object wants to be looked at */
  bool some, all; /* are ready without asking the kernel */
} Poll;

/* Looks at the list, which may be another than before Lua ran. */
static void poll_look(lua_State *L, Poll *p) {
  int count = (int)lua_rawlen(L, POLL_LIST);
  Entry *e = lua_newuserdatauv(L, (size_t)count * sizeof *e + 1, 0);
  lua_replace(L, POLL_ENTRIES);
  lua_createtable(L, count, 0);
  lua_replace(L, POLL_OBJECTS);
  *p = (Poll){e, count, 0, 0, false, true};
  if (ipc_deadline(L, POLL_TIMEOUT, IPC_FOREVER, &p->deadline))
    p->deadline = 0;
  p->first = p->deadline;
  for (int i = 0; i < count; i++) {
    poll_entry(L, i + 1, &e[i]);
    if (e[i].due < p->first)
      p->first = e[i].due;
  }
  for (int i = 0; i < count; i++) {
    e[i].ready = e[i].handle
                     ? ipc_handle_hits(e[i].handle, e[i].want, false) != 0
                     : poll_returned(L, i + 1, &e[i]);
    p->some = p->some || e[i].ready;
    p->all = p->all && e[i].ready;
  }
}

static int poll_again(lua_State *L, int status, lua_KContext context) {
  State *S = ipc_state(L);
  lua_Hook was = lua_gethook(S->main);
  (void)status, (void)context;
  for (;;) {
    Poll p;
    Nanos until;
    if (lua_gettop(L) >= POLL_WAITER)
      ipc_waiter_settle(L, POLL_WAITER);
    ipc_flush_rests(L, S);
    poll_look(L, &p);
    if (lua_gettop(L) > POLL_WAITER)
      lua_settop(L, POLL_WAITER);
    if (p.some && p.all)
      return poll_answer(L, p.entries, p.count);
    /* What the kernel has already: what is ready here does not hide it. */
    int err = poll_kernel(S, p.entries, p.count, 0, NULL, &p.some);
    Nanos now = ipc_now();
    if (p.some || poll_due(p.entries, p.count, now))
      return poll_answer(L, p.entries, p.count);
    if (now >= p.deadline)
      return ipc_fail(L, "ipc", "poll", ETIMEDOUT, NULL);
    if (err && err != ETIMEDOUT && err != EINTR)
      return ipc_fail(L, "ipc", "poll", err, NULL);
    if (ipc_in_task(L, S)) {
      poll_suspend(L, p.entries, p.count, p.first);
      continue;
    }
    if (ipc_spin_start(&S->spin, now, p.first, &until) &&
        poll_retry(S, p.entries, p.count, until))
      return poll_answer(L, p.entries, p.count);
    err = ipc_run_hooks(L, S, was, 0, poll_again);
    lua_Hook now_set = lua_gethook(S->main);
    if (!err)
      err = poll_kernel(S, p.entries, p.count, p.first, now_set, &p.some);
    if (p.some || poll_due(p.entries, p.count, ipc_now()))
      return poll_answer(L, p.entries, p.count);
    if (err == EINTR)
      err = ipc_run_hooks(L, S, was, 0, poll_again);
    if (err && err != ETIMEDOUT)
      return ipc_fail(L, "ipc", "poll", err, NULL);
  }
}

/***
Waits until one of several handles is ready: the next `recv(0)` (or `send`) on
it will not answer `"timeout"`. Messages that were read ahead count. Any number
of descriptors.
@function poll
@tparam table list of handles (a channel: to receive, or to send if it only
sends; a process: its channel), `{ handle, "r" | "w" | "rw" }`, or foreign
objects with `pollfd`, `events` and `timeout` as cqueues polls them
@tparam[opt=for ever] ?number timeout seconds
@treturn table the ready handles in list order, and a set of them:
`ready[ch]`; or nil, "timeout", ETIMEDOUT
@usage local ready = assert(ipc.poll({ a, { b, "w" } }, 1))
*/
int ipc_poll(lua_State *L) {
  luaL_checktype(L, POLL_LIST, LUA_TTABLE);
  ipc_check_timeout(L, POLL_TIMEOUT);
  lua_settop(L, POLL_TOP);
  luaL_argcheck(L, lua_rawlen(L, POLL_LIST) <= 1 << 20, POLL_LIST,
                "too many entries");
  return poll_again(L, LUA_OK, 0);
}
