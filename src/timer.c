/* The time as something to receive: timerfd_create(2), and without it a
 * deadline that every wait knows. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <unistd.h>

#include "ipc.h"
#include "os.h"
#include "source.h"

/***
 * @submodule ipc
 */

typedef struct Timer {
  Source s;
  int fd;         /* -1: the deadline tells */
  uint64_t count; /* expiries read ahead */
  Nanos next;     /* without a descriptor: when it expires next */
  Nanos every;    /* ns; 0: once */
} Timer;

static int timer_descriptor(const Handle *h, int want) {
  (void)want;
  return ((const Timer *)h)->fd;
}

/* Expiries since the last time into t->count. Without a descriptor a nap ends
 * when there is one. */
static void timer_look(Timer *t) {
  uint64_t count = 0;
  size_t got = 0;
  if (t->fd >= 0) {
    if (ipc_os_read(t->fd, &count, sizeof count, &got) == 0)
      t->count += count;
    return;
  }
  Nanos left = t->next == IPC_FOREVER ? IPC_FOREVER : t->next - ipc_now();
  if (left > 0) {
    Nanos nap = left / 1000 + 1;
    t->s.h.nap = nap < UINT32_MAX ? (uint32_t)nap : UINT32_MAX;
    return;
  }
  Nanos more = t->every ? -left / t->every : 0;
  t->count += (uint64_t)more + 1;
  t->next = t->every && t->every < IPC_FOREVER - t->next
                ? t->next + (more + 1) * t->every
                : IPC_FOREVER;
  t->s.h.nap = 0;
}

/* 0, EAGAIN, or EPIPE: it has expired the only time. */
static int timer_state(Timer *t, bool look) {
  if (t->count == 0 && t->every == 0 && t->s.received > 0)
    return EPIPE;
  if (t->count == 0 && look)
    timer_look(t);
  return t->count > 0 ? 0 : EAGAIN;
}

/* The clock is no system call, a descriptor is. */
static int timer_ready(Handle *h, int want, bool ask_kernel) {
  Timer *t = (Timer *)h;
  (void)want;
  return timer_state(t, ask_kernel || t->fd < 0);
}

static void timer_close(Handle *h, How how) {
  Timer *t = (Timer *)h;
  (void)how;
  if (t->fd >= 0)
    close(t->fd);
  t->fd = -1;
}

static const HandleOps timer_handle = {.type = "ipc.timer",
                                       .descriptor = timer_descriptor,
                                       .ready = timer_ready,
                                       .close = timer_close,
                                       .interest = IPC_READ};

static int timer_take(lua_State *L, Source *s) {
  Timer *t = (Timer *)s;
  int err = timer_state(t, true);
  if (err)
    return err;
  lua_pushinteger(L, (lua_Integer)t->count);
  t->count = 0;
  return 0;
}

/* An option in seconds, or `otherwise`. */
static Nanos timer_option(lua_State *L, const char *name, Nanos otherwise) {
  lua_Number seconds = 0;
  Nanos time = ipc_option_time(L, 1, name, otherwise);
  lua_getfield(L, 1, name);
  if (lua_type(L, -1) == LUA_TNUMBER)
    seconds = lua_tonumber(L, -1);
  lua_pop(L, 1);
  return seconds > 0 && time == 0 ? 1 : time; /* not less than a nanosecond */
}

/***
Makes a timer: what is received is how often it has expired since the last time,
an integer. One that expires once is closed by receiving that. It counts on the
monotonic clock, whether somebody waits or not, and does not drift.
@function timer
@tparam table options `after`: seconds until the first (0 or less: at once; by
default `every`); `every`: seconds from each to the next (more than 0; by
default there is one only); `timeout`: seconds that calls wait by default
@treturn source of counts; or nil, message, errno: EMFILE
@usage for n in ipc.timer({ after = 0, every = 1 }):values() do print(n) end
*/
static int timer_timer(lua_State *L) {
  static const char *const names[] = {"after", "every", NULL};
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 1);
  ipc_options(L, 1, names);
  Nanos timeout = ipc_option_time(L, 1, "timeout", IPC_FOREVER);
  Nanos every = timer_option(L, "every", -1);
  luaL_argcheck(L, every != 0, 1, "option 'every': more than 0 expected");
  Nanos after = timer_option(L, "after", every);
  luaL_argcheck(L, after >= 0, 1, "option 'after' or 'every' expected");
  if (after == 0)
    after = 1;
  if (every < 0)
    every = 0;
  Timer *t = ipc_source_new(L, sizeof *t, &timer_handle, timer_take);
  t->s.timeout = timeout;
  t->every = every;
  t->next = after == IPC_FOREVER ? IPC_FOREVER : ipc_now() + after;
  int err = ipc_os_timer(after == IPC_FOREVER ? 0 : after, every, &t->fd);
  if (err && err != ENOTSUP)
    return ipc_fail(L, "ipc", "timer", err, NULL);
  ipc_handle_open(&t->s.h);
  return 1;
}

static void timer_setup(lua_State *L) { ipc_source_type(L, &timer_handle); }

static const luaL_Reg timer_functions[] = {{"timer", timer_timer},
                                           {NULL, NULL}};

const Room ipc_room_timer = {
    .name = "timer", .functions = timer_functions, .types = timer_setup};
