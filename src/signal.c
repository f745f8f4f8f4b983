/* Signals as something to receive. Who takes which is os_signal.c's. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "ipc.h"
#include "os.h"
#include "source.h"

/***
 * @submodule ipc
 */

enum { SIGNALS_MOST = 128 };

typedef struct Signals {
  Source s;
  OsSignals *os;
} Signals;

static int signal_descriptor(const Handle *h, int want) {
  const Signals *s = (const Signals *)h;
  (void)want;
  return s->os ? ipc_os_signals_descriptor(s->os) : -1;
}

static int signal_ready(Handle *h, int want, bool ask_kernel) {
  (void)want, (void)ask_kernel; /* the handler has left it here */
  return ipc_os_signals_some(((Signals *)h)->os) ? 0 : EAGAIN;
}

static void signal_close(Handle *h, How how) {
  Signals *s = (Signals *)h;
  (void)how;
  ipc_os_signals_close(s->os);
  s->os = NULL;
}

static const HandleOps signal_handle = {.type = "ipc.signals",
                                        .descriptor = signal_descriptor,
                                        .ready = signal_ready,
                                        .close = signal_close,
                                        .interest = IPC_READ};

static int signal_take(lua_State *L, Source *source) {
  int signal = ipc_os_signals_next(((Signals *)source)->os);
  if (signal == 0)
    return EAGAIN;
  const char *name = ipc_signal_name(signal);
  if (name)
    lua_pushstring(L, name);
  else
    lua_pushinteger(L, signal);
  return 0;
}

/* Those that cannot be caught, and those by which the system reports a fault of
 * the program itself: who returns from them runs into it again. */
static void signal_check(lua_State *L, int i, int signal) {
  static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
  if (signal < 0)
    luaL_argerror(L, 1,
                  lua_pushfstring(L,
                                  "entry %d: a signal expected: \"TERM\", "
                                  "\"HUP\", 15",
                                  i));
  const char *why = signal == SIGKILL || signal == SIGSTOP ? "cannot be caught"
                    : signal == 0                          ? "is no signal"
                                                           : NULL;
  for (size_t f = 0; f < sizeof faults / sizeof *faults; f++)
    if (signal == faults[f])
      why = "is a fault of the program, which cannot be waited for";
  if (!why)
    return;
  const char *name = ipc_signal_name(signal);
  luaL_argerror(
      L, 1, lua_pushfstring(L, "entry %d: %s %s", i, name ? name : "0", why));
}

/***
Takes signals: instead of what they did before they are received. Several may
take the same, and each is told. Equal ones that have not been received may
become one; no kind is lost. Closing restores what they did before, unless
somebody has set something else since; a child of a fork has that back at once.
Handlers do not interrupt: what takes signals is a pipe that a handler writes
to, and the thread's mask stays as it is.
@function signals
@tparam {string|integer,...} list names without SIG ("TERM", "HUP", "USR1"), or
numbers; KILL, STOP and the program's own faults (SEGV, BUS, FPE, ILL) raise
@tparam ?table options `timeout` (seconds that calls wait by default)
@treturn source of names, in the order they came; or nil, message, errno: EMFILE
@usage local signals <close> = assert(ipc.signals { "TERM", "HUP" })
for signal in signals:values() do print(signal) end
*/
static int signal_signals(lua_State *L) {
  static const char *const names[] = {NULL};
  int list[SIGNALS_MOST + 1] = {0};
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_settop(L, 2);
  ipc_options(L, 2, names);
  Nanos timeout = ipc_option_time(L, 2, "timeout", IPC_FOREVER);
  lua_Unsigned count = lua_rawlen(L, 1);
  luaL_argcheck(L, count > 0, 1, "no signals");
  luaL_argcheck(L, count <= SIGNALS_MOST, 1, "too many signals");
  for (int i = 0; i < (int)count; i++) {
    lua_rawgeti(L, 1, i + 1);
    list[i] = ipc_signal_number(L, -1);
    signal_check(L, i + 1, list[i]);
    lua_pop(L, 1);
  }
  Signals *s = ipc_source_new(L, sizeof *s, &signal_handle, signal_take);
  s->s.timeout = timeout;
  int err = ipc_os_signals_open(&s->os, list);
  if (err == EINVAL)
    return luaL_argerror(L, 1, "a signal that cannot be caught here");
  if (err)
    return ipc_fail(L, "ipc", "signals", err, NULL);
  ipc_handle_open(&s->s.h);
  ipc_handle_owe(L, -1);
  return 1;
}

/* (signals): the handle takes one that no other takes, and after it they do
 * again what they do by default. */
static int signal_once(lua_State *L) {
  Handle *h = ipc_handle_at(L, 1);
  luaL_argcheck(L, h && h->ops == &signal_handle && ipc_handle_usable(h), 1,
                "signals expected");
  ipc_os_signals_once(((Signals *)h)->os);
  return 0;
}

/* (signal): what was written with C's files is flushed, and the process dies of
 * it. Does not return. */
static int signal_die(lua_State *L) {
  int signal = ipc_check_signal(L, 1, SIGTERM);
  fflush(NULL);
  ipc_os_signals_die(signal);
  return 0;
}

/* (signal): whether programs started now ignore it, as who started this one
 * may have wished. */
static int signal_ignored(lua_State *L) {
  lua_pushboolean(L, ipc_os_signals_ignored(ipc_check_signal(L, 1, 0)));
  return 1;
}

static const luaL_Reg signal_inner[] = {{"ignored", signal_ignored},
                                        {"once", signal_once},
                                        {"die", signal_die},
                                        {NULL, NULL}};

static void signal_setup(lua_State *L) { ipc_source_type(L, &signal_handle); }

static const luaL_Reg signal_functions[] = {{"signals", signal_signals},
                                            {NULL, NULL}};

const Room ipc_room_signal = {.name = "signal",
                              .functions = signal_functions,
                              .inner = signal_inner,
                              .types = signal_setup};
