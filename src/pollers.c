/* A poller's waits: what was found becomes an answer in Lua. */
#include "prefix.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "ipc.h"
#include "os.h"
#include "polled.h"
#include "pollers.h"

/***
 * @submodule ipc.poller
 */

void ipc_poller_remove(lua_State *L, Poller *p, Member *m) {
  lua_Integer at = m->at;
  if (m->foreign)
    p->foreign--;
  ipc_pollset_remove(m);
  free(m);
  p->members[at - 1] = NULL;
  p->vacant[p->vacancies++] = at;
  lua_getiuservalue(L, 1, POLLER_OBJECTS);
  lua_rawgeti(L, -1, at);
  lua_pushboolean(L, 0); /* not nil: the table keeps its size */
  lua_rawseti(L, -3, at);
  lua_replace(L, -2);
  lua_getiuservalue(L, 1, POLLER_PLACES);
  lua_pushvalue(L, -2);
  lua_pushnil(L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
}

/* Slots: 2 timeout, 3 the most to answer, 4 a task's waiter; above it what its
 * scheduler returned. */
enum { WAIT_TIMEOUT = 2, WAIT_MOST, WAIT_TOP = WAIT_MOST, WAIT_WAITER };

/* Asks the foreign objects what they want, `again` in the same wait: their time
 * comes when they said first. Runs Lua, which may do anything to the poller.
 * Found: those whose time has come, and those without a descriptor that the
 * scheduler returned (a condition of cqueues). */
static void wait_ask(lua_State *L, Poller *p, bool again, int returned) {
  for (lua_Integer i = 0; i < p->room && p->foreign > 0; i++) {
    Member *m = p->members[i];
    Foreign f;
    if (!m || !m->foreign || m->asleep)
      continue;
    lua_getiuservalue(L, 1, POLLER_OBJECTS);
    lua_rawgeti(L, -1, i + 1);
    lua_replace(L, -2);
    bool asked = ipc_poll_ask(L, &f);
    if (!asked)
      luaL_error(L, "ipc.poller: events(): \"r\", \"w\" or \"rw\" expected");
    if (i < p->room && p->members[i] == m && m->foreign) {
      m->due = again && m->due < f.due ? m->due : f.due;
      bool found = m->due <= ipc_now();
      for (int at = WAIT_WAITER + 1; at <= returned && f.fd < 0; at++)
        found = found || lua_rawequal(L, at, -1);
      m->fd = f.fd;
      m->want = f.want;
      ipc_pollset_sync(m);
      if (found)
        ipc_pollset_find(m, 0);
    }
    lua_pop(L, 1);
  }
}

/* Pushes the next that was found, with what it is ready for: one of the words
 * from slot `words` on. Allocates nothing. */
static bool wait_next(lua_State *L, Poller *p, int words) {
  int hits = 0;
  Member *m = ipc_pollset_next(&p->set, &hits);
  if (!m)
    return false;
  if (m->gone) {
    ipc_poller_remove(L, p, m);
  } else {
    lua_getiuservalue(L, 1, POLLER_OBJECTS);
    lua_rawgeti(L, -1, m->at);
    lua_replace(L, -2);
  }
  lua_pushvalue(L, words + (hits & (IPC_READ | IPC_ENDED) ? 1 : 0) +
                       (hits & IPC_WRITE ? 2 : 0));
  return true;
}

void ipc_poller_asked(lua_State *L, Handle *h) {
  Handle *part = ipc_handle_part(h, IPC_READ);
  Poller *p = (Poller *)h;
  if (!h->state->scheduled)
    return;
  if (part->queue)
    ipc_wake_next(L, part, IPC_READ);
  if (part->observers)
    ipc_handle_changed(L, part);
  if (strcmp(h->ops->type, "ipc.poller") != 0)
    return;
  for (lua_Integer i = 0; i < p->room; i++)
    if (p->members[i] && p->members[i]->handle && p->members[i]->hot.next)
      ipc_poller_asked(L, p->members[i]->handle);
}

/* The handles among the first `n` of a list: what was answered about them came
 * from asking. */
static void wait_asked(lua_State *L, const State *S, int list, lua_Integer n) {
  for (lua_Integer i = 1; S->scheduled && i <= n; i++) {
    lua_rawgeti(L, list, i);
    Handle *h = lua_isinteger(L, -1) ? NULL : ipc_handle_at(L, -1);
    if (h)
      ipc_poller_asked(L, h);
    lua_pop(L, 1);
  }
}

/* Pushes "", "r", "w", "rw". */
static int wait_words(lua_State *L) {
  lua_pushliteral(L, "");
  lua_pushliteral(L, "r");
  lua_pushliteral(L, "w");
  lua_pushliteral(L, "rw");
  return lua_gettop(L) - 3;
}

/* A list of what was found, with what it is ready for by object, too; and the
 * same in the order of the list. 0: nothing is left of it. */
static int wait_answer(lua_State *L, Poller *p, size_t most) {
  size_t count = p->set.found_count < most ? p->set.found_count : most;
  size_t n = 0;
  int words = wait_words(L), list = words + 4;
  lua_createtable(L, (int)count, (int)count);
  lua_createtable(L, (int)count, 0);
  /* From here on nothing is allocated: what is told arrives. */
  for (; n < count && wait_next(L, p, words); n++) {
    if (!lua_isinteger(L, -2)) {
      lua_pushvalue(L, -2);
      lua_pushvalue(L, -2);
      lua_rawset(L, list);
    }
    lua_rawseti(L, list + 1, (lua_Integer)n + 1);
    lua_rawseti(L, list, (lua_Integer)n + 1);
  }
  wait_asked(L, p->h.state, list, (lua_Integer)n);
  return n > 0 ? 2 : 0;
}

/* Sleeps on the kernel, and on what is still to be written. */
static int wait_sleep(Poller *p, State *S, size_t most, Nanos until) {
  Nanos left = IPC_FOREVER;
  if (!S->rests) {
    until = ipc_owed_nap(S, until);
    if (until != IPC_FOREVER) {
      left = until - ipc_now();
      left = left < 0 ? 0 : left;
    }
    int err = ipc_pollset_kernel(&p->set, most, left);
    ipc_os_sweep();
    return err;
  }
  size_t count = ipc_os_set_polls(p->set.os, NULL, 0);
  S->polls.size = 0;
  if (ipc_buffer_reserve(&S->polls, count * sizeof(struct pollfd)))
    return ENOMEM;
  (void)ipc_os_set_polls(p->set.os, (struct pollfd *)(void *)S->polls.bytes,
                         count);
  int err = ipc_sleep(S, count, until);
  return err == ETIMEDOUT ? 0 : err;
}

static int wait_again(lua_State *L, int status, lua_KContext context);

/* In a task: its scheduler polls our descriptor, and the foreign objects that
 * have none. */
static void wait_suspend(lua_State *L, Poller *p, Nanos deadline) {
  Nanos until = ipc_pollset_arm(&p->set, deadline);
  if (ipc_os_set_descriptor(p->set.os) < 0) {
    Nanos soon = ipc_now() + IPC_SECOND / 1000;
    until = soon < until ? soon : until;
  }
  if (lua_gettop(L) == WAIT_TOP)
    (void)ipc_waiter_open(L, &p->h, IPC_READ, false);
  lua_getiuservalue(L, 1, POLLER_OBJECTS);
  int objects = lua_gettop(L), count = 0;
  for (lua_Integer i = 0; i < p->room && p->foreign > 0; i++) {
    const Member *m = p->members[i];
    if (!m || !m->foreign || m->asleep || m->fd >= 0)
      continue;
    luaL_checkstack(L, 16, "too many objects to wait for");
    lua_rawgeti(L, objects, i + 1);
    count++;
  }
  lua_remove(L, objects);
  ipc_suspend(L, WAIT_WAITER, count, until, LUA_MULTRET, 0, wait_again);
}

/* What is ready now, without waiting: whether there is some. The kernel is
 * asked only if nobody will ask it at once; `again`: as in wait_ask. */
static bool wait_look(lua_State *L, Poller *p, size_t most, bool again,
                      bool ask_kernel) {
  int returned = lua_gettop(L);
  if (returned >= WAIT_WAITER)
    ipc_waiter_settle(L, WAIT_WAITER);
  ipc_flush_rests(L, p->h.state);
  p->h.nap = 0;
  if (!ipc_handle_usable(&p->h))
    return true;
  ipc_pollset_forget(&p->set);
  if (p->foreign > 0)
    wait_ask(L, p, again, returned);
  if (returned > WAIT_WAITER)
    lua_settop(L, WAIT_WAITER);
  if (!ipc_handle_usable(&p->h))
    return true;
  if (most < p->set.count && (p->turn = !p->turn))
    (void)ipc_pollset_kernel(&p->set, most, 0);
  if (p->set.found_count < most)
    ipc_pollset_look(&p->set, most);
  if ((ask_kernel || p->set.found_count > 0) && p->set.found_count < most)
    (void)ipc_pollset_kernel(&p->set, most - p->set.found_count, 0);
  return p->set.found_count > 0;
}

static int wait_again(lua_State *L, int status, lua_KContext context) {
  Poller *p = lua_touserdata(L, 1);
  State *S = p->h.state;
  lua_Hook was = lua_gethook(S->main);
  lua_Integer max = lua_tointeger(L, WAIT_MOST);
  size_t most = max > INT_MAX || max <= 0 ? INT_MAX : (size_t)max;
  bool again = status != LUA_OK, asked = false;
  bool task = S->scheduled && lua_isyieldable(L);
  (void)context;
  for (;;) {
    Nanos deadline;
    if (ipc_deadline(L, WAIT_TIMEOUT, IPC_FOREVER, &deadline))
      deadline = 0;
    bool ask = !asked && (deadline == 0 || task || S->rests);
    bool some = wait_look(L, p, most, again, ask);
    asked = asked || ask;
    again = true;
    if (!ipc_handle_usable(&p->h))
      return ipc_handle_refuse(L, &p->h, "wait");
    if (!some) {
      Nanos now = ipc_now();
      int err = 0;
      if (now >= deadline && asked)
        return ipc_fail(L, p->h.ops->type, "wait", ETIMEDOUT, NULL);
      if (now < deadline && task && ipc_in_task(L, S)) {
        asked = false;
        if (ipc_handle_usable(&p->h))
          wait_suspend(L, p, deadline);
        continue;
      }
      if (now < deadline)
        err = ipc_run_hooks(L, S, was, 0, wait_again);
      if (!err && ipc_handle_usable(&p->h)) {
        lua_Hook before = lua_gethook(S->main);
        Nanos until = ipc_pollset_arm(&p->set, deadline);
        if (now < deadline && lua_gethook(S->main) != before)
          err = EINTR; /* a signal, while that was set up */
        else
          err = wait_sleep(p, S, most, until);
        asked = !S->rests;
      }
      if (err == EINTR)
        err = ipc_run_hooks(L, S, was, 0, wait_again);
      if (err)
        return ipc_fail(L, p->h.ops->type, "wait", err, NULL);
    }
    if (p->set.found_count > 0) {
      int top = lua_gettop(L);
      int n = wait_answer(L, p, most);
      if (n > 0)
        return n;
      lua_settop(L, top);
    }
  }
}

/***
Waits until something in it is ready: the next `recv(0)` (or `send`) on it will
not answer `"timeout"`. As long as it is, every wait says so. In a task of a
scheduler the others go on meanwhile.
@function poller:wait
@tparam[opt=for ever] ?number timeout seconds; 0 never waits
@tparam[opt=all] ?integer max the most to answer; the others have their turn in
the next waits
@treturn table the ready objects; of handles and foreign objects also what each
is ready for, by object: `ready[ch]` is "r", "w" or "rw"
@treturn {string,...} the same in the order of the list; "" of a foreign object
whose time has come; or nil, message, errno: `"timeout"` (ETIMEDOUT), `"closed"`
(EPIPE)
@usage for i, ch in ipairs(assert(p:wait())) do print(i, ch, ch:recv(0)) end
*/
int ipc_poller_wait(lua_State *L) {
  Handle *h = ipc_handle_self(L);
  lua_settop(L, WAIT_TOP);
  ipc_check_timeout(L, WAIT_TIMEOUT);
  int whole = lua_isnil(L, WAIT_MOST);
  if (lua_type(L, WAIT_MOST) == LUA_TNUMBER) /* no coercion */
    (void)lua_tointegerx(L, WAIT_MOST, &whole);
  luaL_argcheck(
      L, whole && (lua_isnil(L, WAIT_MOST) || lua_tointeger(L, WAIT_MOST) >= 1),
      WAIT_MOST, "an integer of 1 or more expected");
  if (!ipc_handle_usable(h))
    return ipc_handle_refuse(L, h, "wait");
  return wait_again(L, LUA_OK, 0);
}
