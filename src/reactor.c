/* What lua/ipc/loop/reactor.lua stands on: a set of descriptors for a loop that
 * keeps the rest in tables. Not a poller: here a descriptor is a number without
 * an owner, a chain of waiters or a hot list, so that a task that waits again
 * costs no call of the system and no memory, and a wait fills a list that is
 * there. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "ipc.h"
#include "os.h"
#include "sleepers.h"

enum { REACTOR_MOST = 256 }; /* that one wait tells; the others come next */

/* Tells a loop that sleeps at words of its descriptors, from a thread. */
typedef struct Bell {
  Sleeper sleeper;
  atomic_bool stop;
  _Atomic uint32_t rung; /* 1: the thread waits until it is 0 again */
  int fd;                /* of the set */
} Bell;

/* Where words and descriptors are to be slept at, one of them pays for the way
 * by a thread: the one that was not what ended the last sleeps. */
typedef struct Reactor {
  Handle h;
  OsSet *set;
  Sleepers *words;
  Bell bell;
  Spin spin;
  Nanos asked;     /* when the kernel was last asked for descriptors */
  bool exposed;    /* others poll the set's descriptor */
  bool kernel;     /* the sleep is at descriptors */
  unsigned streak; /* sleeps that the other kind ended since */
  size_t by_words; /* of the ready: the first */
  OsReady ready[REACTOR_MOST];
} Reactor;

/* ------------------------------------------------------------ system half */

static void bell_ring(Bell *b) {
  atomic_store(&b->rung, 1);
  ipc_os_word_wake(&b->rung, true);
}

/* In the thread. Its own descriptor is readable when it is to stop. */
static void bell_sleep(void *argument) {
  Bell *b = argument;
  struct pollfd p[] = {{b->fd, POLLIN, 0}, {b->sleeper.fd, POLLIN, 0}};
  size_t ready;
  while (!atomic_load(&b->stop)) {
    (void)ipc_os_poll(p, 2, IPC_FOREVER, &ready);
    bell_ring(b);
    while (atomic_load(&b->rung) && !atomic_load(&b->stop))
      (void)ipc_os_word_wait(&b->rung, 1, 3600 * IPC_SECOND);
  }
}

static void bell_rouse(void *argument) {
  Bell *b = argument;
  atomic_store(&b->stop, true);
  atomic_store(&b->rung, 0); /* who is about to wait at it does not */
  ipc_os_event_set(b->sleeper.setter);
  ipc_os_word_wake(&b->rung, true);
}

/* It rings when the set has something, from now on; an errno: it cannot. */
static int bell_set(Bell *b, int fd) {
  if (fd < 0)
    return ENOTSUP;
  if (ipc_sleeper_asleep(&b->sleeper)) {
    if (atomic_exchange(&b->rung, 0))
      ipc_os_word_wake(&b->rung, true);
    return 0;
  }
  b->sleeper.sleep = bell_sleep;
  b->sleeper.rouse = bell_rouse;
  b->sleeper.job = b;
  b->fd = fd;
  atomic_store(&b->stop, false);
  atomic_store(&b->rung, 0);
  return ipc_sleeper_start(&b->sleeper, NULL);
}

static int reactor_descriptor(const Handle *h, int want) {
  const Reactor *r = (const Reactor *)h;
  (void)want;
  return r->set ? ipc_os_set_descriptor(r->set) : -1;
}

/* A host polls the descriptor, now or later: it is to tell all. */
static int reactor_arm(Handle *h, int want, Sleepers *by) {
  Reactor *r = (Reactor *)h;
  (void)want, (void)by;
  r->exposed = true;
  (void)ipc_sleepers_detach(r->words); /* or later: reactor_blind */
  return 0;
}

static int reactor_ready(Handle *h, int want, bool ask_kernel) {
  const Reactor *r = (const Reactor *)h;
  struct pollfd p = {reactor_descriptor(h, want), POLLIN, 0};
  size_t ready = 0;
  if (ipc_sleepers_some(r->words))
    return 0;
  if (!ask_kernel || p.fd < 0)
    return EAGAIN;
  return ipc_os_poll(&p, 1, 0, &ready) == 0 && ready > 0 ? 0 : EAGAIN;
}

static void reactor_close(Handle *h, How how) {
  Reactor *r = (Reactor *)h;
  (void)how;
  ipc_sleeper_close(&r->bell.sleeper,
                    h->foreign || h->generation != ipc_generation);
  ipc_sleepers_close(r->words);
  ipc_os_set_close(r->set);
  r->set = NULL;
  if (h->state->reactor == h)
    h->state->reactor = NULL;
}

Sleepers *ipc_reactor_sleepers(const State *S) {
  const Reactor *r = (const Reactor *)S->reactor;
  return S->looped && r && ipc_handle_usable(&r->h) && !r->exposed ? r->words
                                                                   : NULL;
}

/* Whether there may be descriptors that the kernel has to be asked for. */
static bool reactor_mixed(const Reactor *r) {
  return r->words->others > 0 || r->words->blind;
}

bool ipc_reactor_calls(const State *S) {
  const Reactor *r = (const Reactor *)S->reactor;
  OsReady ready;
  size_t count = 0;
  if (!r || !ipc_handle_usable(&r->h))
    return false;
  if (ipc_sleepers_some(r->words))
    return true;
  return reactor_mixed(r) &&
         ipc_os_set_wait(r->set, &ready, 1, 0, &count) == 0 && count > 0;
}

uint16_t ipc_reactor_penalty(const State *S) {
  const Reactor *r = (const Reactor *)S->reactor;
  return r ? r->spin.penalty : 0;
}

/* What ended a sleep. */
static void reactor_note(Reactor *r, bool kernel) {
  enum { STREAK = 2 };
  if (kernel == r->kernel) {
    r->streak = 0;
  } else if (++r->streak >= STREAK) {
    r->kernel = kernel;
    r->streak = 0;
  }
}

static int reactor_kernel(Reactor *r, Nanos left, size_t *count) {
  size_t have = *count, more = 0;
  int err = ipc_os_set_wait(r->set, r->ready + have, REACTOR_MOST - have, left,
                            &more);
  *count += more;
  return err;
}

/* Whether the bell says that no descriptor was ready just now. */
static bool reactor_silent(const Reactor *r, Nanos now) {
  enum { TRUST = 1000000 }; /* ns */
  return !r->kernel && now - r->asked < TRUST &&
         ipc_sleeper_asleep(&r->bell.sleeper) && !atomic_load(&r->bell.rung);
}

/* What is there now: in words, then in descriptors; who does not insist on
 * these (`asks`) hears of them if there were words, or if the bell rang. */
static int reactor_look(Reactor *r, Nanos now, bool slice, bool asks,
                        size_t *count) {
  *count = 0;
  if (r->words->count > 0) {
    *count = ipc_sleepers_look(r->words, r->ready, REACTOR_MOST, now, slice);
    r->by_words = *count;
    if (!reactor_mixed(r))
      return 0;
    if (!asks && (reactor_silent(r, now) ||
                  (*count == 0 && !atomic_load(&r->bell.rung))))
      return 0;
  }
  r->asked = now;
  int err = reactor_kernel(r, 0, count);
  return err == EINTR && *count > 0 ? 0 : err; /* what is told is heard */
}

/* At descriptors alone, while threads wait at words; where there is no memory
 * for these it looks again soon. */
static int reactor_poll(Reactor *r, Nanos left, size_t *count) {
  enum { NAP = 1000000 }; /* ns */
  bool nap =
      r->words->count > 0 && !ipc_sleepers_detach(r->words) && left > NAP;
  int err = reactor_kernel(r, nap ? NAP : left, count);
  if (nap && !err && *count == 0)
    err = ETIMEDOUT;
  bool words = false;
  for (size_t i = 0; i < *count && !words; i++)
    words = ipc_sleepers_detached(r->words, r->ready[i].fd);
  if (*count > 0)
    reactor_note(r, !words);
  return err;
}

/* One sleep: 0, ETIMEDOUT: look. EINTR. */
static int reactor_doze(Reactor *r, Nanos now, Nanos left, size_t *count) {
  size_t most = ipc_os_words();
  bool mixed = reactor_mixed(r);
  if (r->words->count == 0 || r->words->count + mixed > most ||
      (mixed &&
       (r->kernel || bell_set(&r->bell, reactor_descriptor(&r->h, 0)))))
    return reactor_poll(r, left, count);
  int err =
      ipc_sleepers_wait(r->words, mixed ? &r->bell.rung : NULL, now, left);
  if (err == 0)
    reactor_note(r, mixed && atomic_load(&r->bell.rung));
  return err;
}

/* Looks again and again before it sleeps. Whether that paid. */
static bool reactor_spin(Reactor *r, Nanos *now, Nanos deadline, size_t *count,
                         int *err) {
  Nanos until;
  if (!ipc_spin_start(&r->spin, *now, deadline, &until))
    return false;
  do {
    *err = reactor_look(r, *now, false, true, count);
    if (*count > 0)
      ipc_spin_paid(&r->spin);
    if (*err || *count > 0)
      return true;
    *now = ipc_now();
  } while (*now < until);
  ipc_spin_failed(&r->spin);
  return false;
}

/* Waits for the first. *lapsed: a slice of words is over, and there is time
 * left; the same before, if it was so the last time. */
static int reactor_sleep(Reactor *r, Nanos deadline, bool *lapsed,
                         size_t *count) {
  Nanos now = ipc_now();
  bool slice = *lapsed;
  int err = 0;
  *lapsed = false;
  if (now >= deadline)
    return reactor_look(r, now, slice, true, count);
  if (!slice && reactor_spin(r, &now, deadline, count, &err))
    return err;
  for (;;) {
    if (r->words->count > 0)
      err = reactor_look(r, now, slice, false, count);
    if (err || *count > 0 || now >= deadline)
      return err;
    Nanos left = deadline == IPC_FOREVER ? IPC_FOREVER : deadline - now;
    err = reactor_doze(r, now, left, count);
    slice = err == ETIMEDOUT;
    if (*count > 0 || (err && !slice))
      return err;
    err = 0;
    now = ipc_now();
    if (slice && now < deadline) {
      *lapsed = true;
      return 0;
    }
  }
}

static const HandleOps reactor_handle = {.type = "ipc.reactor",
                                         .descriptor = reactor_descriptor,
                                         .arm = reactor_arm,
                                         .ready = reactor_ready,
                                         .close = reactor_close,
                                         .interest = IPC_READ};

/* --------------------------------------------------------------- Lua half */

static Reactor *reactor_self(lua_State *L) {
  Reactor *r = (Reactor *)ipc_handle_self(L);
  if (!ipc_handle_usable(&r->h))
    luaL_error(L, "ipc.reactor: closed");
  return r;
}

/* (descriptor, bits: 1 to read, 2 to write, 0 not any more, whether it is new)
 */
static int reactor_change(lua_State *L) {
  Reactor *r = reactor_self(L);
  int fd = (int)luaL_checkinteger(L, 2);
  lua_Integer bits = luaL_checkinteger(L, 3);
  short events = (short)((bits & 1 ? POLLIN : 0) | (bits & 2 ? POLLOUT : 0));
  int err = ipc_os_set_change(r->set, fd, events, lua_toboolean(L, 4));
  if (err)
    return ipc_fail(L, "ipc.reactor", "change", err, NULL);
  ipc_sleepers_change(r->words, fd, events != 0);
  lua_pushboolean(L, 1);
  return 1;
}

static int reactor_interrupted(lua_State *L, int status, lua_KContext context) {
  (void)status, (void)context;
  lua_pushinteger(L, 0);
  lua_pushinteger(L, 0);
  return 2;
}

/* Whether nothing but a look tells all: the system has no such descriptor, or
 * no thread for what a host is to hear of. */
static int reactor_blind(lua_State *L) {
  Reactor *r = reactor_self(L);
  bool blind = reactor_descriptor(&r->h, IPC_READ) < 0 ||
               (r->exposed && !ipc_sleepers_detach(r->words));
  return lua_pushboolean(L, blind), 1;
}

/* Nobody polls its descriptor any more. */
static int reactor_own(lua_State *L) {
  reactor_self(L)->exposed = false;
  return 0;
}

/* (list, seconds or nil, whether all that was told last has been heard) -> n,
 * words; the list has n descriptors and their bits, one after the other, the
 * first of them told by so many words, the others by the kernel. What is wrong
 * with one is ready for all. */
static int reactor_wait(lua_State *L) {
  Reactor *r = reactor_self(L);
  lua_Hook was = lua_gethook(r->h.state->main);
  size_t count = 0;
  luaL_checktype(L, 2, LUA_TTABLE);
  Nanos left =
      lua_isnoneornil(L, 3) ? IPC_FOREVER : ipc_seconds(luaL_checknumber(L, 3));
  Nanos now = left == 0 && r->words->count == 0 ? 0 : ipc_now();
  Nanos deadline = left == IPC_FOREVER ? IPC_FOREVER : now + left;
  bool lapsed = false;
  int err;
  r->by_words = 0;
  r->h.state->reactor = &r->h; /* tasks that go on now wait here next */
  if (lua_toboolean(L, 4))
    ipc_sleepers_settle(r->words);
  do {
    err = left == 0 ? reactor_look(r, now, false, true, &count)
                    : reactor_sleep(r, deadline, &lapsed, &count);
  } while (lapsed && !err && lua_gethook(r->h.state->main) == was);
  if (lapsed && !err)
    err = EINTR; /* a signal came between two sleeps */
  r->h.state->looked = ipc_now();
  ipc_os_sweep();
  if (err == EINTR) {
    err = ipc_run_hooks(L, r->h.state, was, 0, reactor_interrupted);
    if (err == 0)
      return reactor_interrupted(L, LUA_OK, 0);
  }
  if (err)
    return ipc_fail(L, "ipc.reactor", "wait", err, NULL);
  for (size_t i = 0; i < count; i++) {
    short events = r->ready[i].events;
    int bits = (events & POLLIN ? 1 : 0) | (events & POLLOUT ? 2 : 0);
    if (events & (POLLERR | POLLHUP | POLLNVAL))
      bits = 3;
    lua_pushinteger(L, r->ready[i].fd);
    lua_rawseti(L, 2, (lua_Integer)(2 * i + 1));
    lua_pushinteger(L, bits);
    lua_rawseti(L, 2, (lua_Integer)(2 * i + 2));
  }
  lua_pushinteger(L, (lua_Integer)count);
  lua_pushinteger(L, (lua_Integer)r->by_words);
  return 2;
}

static const luaL_Reg reactor_methods[] = {{"change", reactor_change},
                                           {"wait", reactor_wait},
                                           {"blind", reactor_blind},
                                           {"own", reactor_own},
                                           {NULL, NULL}};

int ipc_reactor_new(lua_State *L) {
  ipc_handle_type(L, &reactor_handle, reactor_methods);
  lua_pop(L, 1);
  Reactor *r = ipc_handle_new(L, sizeof *r, &reactor_handle, 1);
  int err = ipc_os_set_open(&r->set);
  if (!err && !(r->words = ipc_sleepers_open())) {
    ipc_os_set_close(r->set);
    err = ENOMEM;
  }
  if (err)
    return ipc_fail(L, "ipc", "loop", err, NULL);
  r->spin.budget = IPC_SPIN;
  ipc_handle_open(&r->h);
  return 1;
}
