/* Signals of this process for any number of takers: a handler that writes to
 * the pipe of each. What the handler touches is atomic, and outlives it. No
 * Lua. */
#include "prefix.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "os.h"

enum { SIGNALS = 128, WORDS = SIGNALS / 32 };

typedef struct Set {
  _Atomic uint32_t words[WORDS];
} Set;

struct OsSignals {
  OsSignals *_Atomic next;
  int fd[2]; /* each signal of `pending` is a byte in it, but for those missed
              */
  Set wanted, pending;
  atomic_bool missed; /* a write failed: `pending` tells, not the pipe */
  atomic_bool once;   /* is told one, if nobody else is; see os.h */
  bool listed;
};

/* Changed under ipc_os_lock, walked by the handler without. */
static OsSignals *_Atomic signal_takers;
static atomic_uint signal_inside; /* handlers that run now */
static _Atomic long signal_owner; /* whose takers these are */

/* Of a child, which was told before it could have its own actions back. */
static Set signal_early;
static _Atomic long signal_early_of;

static struct {
  struct sigaction before; /* to be restored */
  unsigned takers;
} signal_actions[SIGNALS]; /* under ipc_os_lock */

static bool set_has(const Set *s, int signal) {
  return atomic_load(&s->words[signal / 32]) >> (signal % 32) & 1;
}

/* Whether it was there already. */
static bool set_put(Set *s, int signal) {
  uint32_t bit = UINT32_C(1) << (signal % 32);
  return (atomic_fetch_or(&s->words[signal / 32], bit) & bit) != 0;
}

static bool set_take(Set *s, int signal) {
  uint32_t bit = UINT32_C(1) << (signal % 32);
  return (atomic_fetch_and(&s->words[signal / 32], ~bit) & bit) != 0;
}

/* ------------------------------------------------------------- the handler */

static void signal_tell(OsSignals *s, int signal) {
  unsigned char byte = (unsigned char)signal;
  if (!set_has(&s->wanted, signal) || set_put(&s->pending, signal))
    return;
  ssize_t n;
  do
    n = write(s->fd[1], &byte, 1);
  while (n < 0 && errno == EINTR);
  if (n != 1)
    atomic_store(&s->missed, true);
}

static bool signal_shared(int signal) {
  OsSignals *s = atomic_load(&signal_takers);
  while (s && (atomic_load(&s->once) || !set_has(&s->wanted, signal)))
    s = atomic_load(&s->next);
  return s != NULL;
}

/* The next one does what it does by default, whatever else runs. */
static void signal_yield(const OsSignals *s) {
  struct sigaction fresh;
  memset(&fresh, 0, sizeof fresh);
  fresh.sa_handler = SIG_DFL;
  sigemptyset(&fresh.sa_mask);
  for (int signal = 1; signal < SIGNALS; signal++)
    if (set_has(&s->wanted, signal) && !signal_shared(signal))
      (void)sigaction(signal, &fresh, NULL);
}

static void signal_tell_all(int signal) {
  bool shared = signal_shared(signal);
  for (OsSignals *s = atomic_load(&signal_takers); s;
       s = atomic_load(&s->next)) {
    bool once = atomic_load(&s->once);
    if (once && (shared || !set_has(&s->wanted, signal)))
      continue;
    signal_tell(s, signal);
    if (once)
      signal_yield(s);
  }
}

/* signal-safety(7): atomics, getpid, write, sigaction. */
static void signal_handler(int signal) {
  int saved = errno;
  atomic_fetch_add(&signal_inside, 1);
  long self = (long)getpid();
  if (self == atomic_load(&signal_owner)) {
    signal_tell_all(signal);
  } else {
    atomic_store(&signal_early_of, self);
    (void)set_put(&signal_early, signal);
  }
  atomic_fetch_sub(&signal_inside, 1);
  errno = saved;
}

static bool signal_is_ours(const struct sigaction *a) {
  return !(a->sa_flags & SA_SIGINFO) && a->sa_handler == signal_handler;
}

/* --------------------------------------------------------- who takes which */

static int signal_catch(int signal) {
  struct sigaction now, ours;
  if (sigaction(signal, NULL, &now))
    return errno;
  if (!signal_is_ours(&now)) {
    memset(&ours, 0, sizeof ours);
    ours.sa_handler = signal_handler;
    ours.sa_flags = SA_RESTART | SA_ONSTACK;
    sigfillset(&ours.sa_mask);
    if (sigaction(signal, &ours, NULL))
      return errno;
    signal_actions[signal].before = now;
  }
  signal_actions[signal].takers++;
  return 0;
}

static void signal_restore(int signal) {
  struct sigaction now;
  if (sigaction(signal, NULL, &now) == 0 && signal_is_ours(&now))
    (void)sigaction(signal, &signal_actions[signal].before, NULL);
}

static void signal_release(int signal) {
  if (--signal_actions[signal].takers == 0)
    signal_restore(signal);
}

/* What it wants is caught from here on; before one is, it is in the list and
 * wants it. */
static int signals_catch(OsSignals *s, const int signals[]) {
  for (; *signals; signals++) {
    if (*signals < 0 || *signals >= SIGNALS)
      return EINVAL;
    if (set_put(&s->wanted, *signals))
      continue;
    int err = signal_catch(*signals);
    if (err) {
      (void)set_take(&s->wanted, *signals);
      return err;
    }
  }
  return 0;
}

/* Under the lock. Afterwards no handler knows it. */
static void signals_leave(OsSignals *s) {
  for (int signal = 1; signal < SIGNALS; signal++)
    if (set_take(&s->wanted, signal))
      signal_release(signal);
  OsSignals *_Atomic *at = &signal_takers;
  while (atomic_load(at) != s)
    at = &atomic_load(at)->next;
  atomic_store(at, atomic_load(&s->next));
  s->listed = false;
  while (atomic_load(&signal_inside))
    (void)sched_yield();
}

int ipc_os_signals_open(OsSignals **made, const int signals[]) {
  OsSignals *s = calloc(1, sizeof *s);
  *made = NULL;
  if (!s)
    return ENOMEM;
  int err = ipc_os_pipe(s->fd, false);
  if (err) {
    free(s);
    return err;
  }
  ipc_os_lock();
  atomic_store(&signal_owner, (long)getpid());
  atomic_store(&s->next, atomic_load(&signal_takers));
  atomic_store(&signal_takers, s);
  s->listed = true;
  err = signals_catch(s, signals);
  ipc_os_unlock();
  if (err)
    ipc_os_signals_close(s);
  else
    *made = s;
  return err;
}

void ipc_os_signals_close(OsSignals *s) {
  ipc_os_lock();
  if (s->listed) /* else: in a child, which has left the list */
    signals_leave(s);
  ipc_os_unlock();
  close(s->fd[0]);
  close(s->fd[1]);
  free(s);
}

int ipc_os_signals_descriptor(const OsSignals *s) { return s->fd[0]; }

bool ipc_os_signals_some(const OsSignals *s) {
  for (int i = 0; i < WORDS; i++)
    if (atomic_load(&s->pending.words[i]))
      return true;
  return false;
}

int ipc_os_signals_next(OsSignals *s) {
  unsigned char byte;
  size_t got = 0;
  while (ipc_os_read(s->fd[0], &byte, 1, &got) == 0 && got == 1)
    if (set_take(&s->pending, byte))
      return byte;
  if (!atomic_exchange(&s->missed, false))
    return 0;
  for (int signal = 1; signal < SIGNALS; signal++)
    if (set_take(&s->pending, signal)) {
      atomic_store(&s->missed, true); /* there may be more */
      return signal;
    }
  return 0;
}

void ipc_os_signals_once(OsSignals *s) { atomic_store(&s->once, true); }

bool ipc_os_signals_ignored(int signal) {
  struct sigaction now;
  if (sigaction(signal, NULL, &now))
    return false;
  if (signal_is_ours(&now)) /* its takers keep `before` as it is */
    now = signal_actions[signal].before;
  return !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_IGN;
}

void ipc_os_signals_die(int signal) {
  struct sigaction fresh;
  sigset_t only;
  memset(&fresh, 0, sizeof fresh);
  fresh.sa_handler = SIG_DFL;
  sigemptyset(&fresh.sa_mask);
  sigemptyset(&only);
  sigaddset(&only, signal);
  (void)sigaction(signal, &fresh, NULL);
  (void)pthread_sigmask(SIG_UNBLOCK, &only, NULL);
  (void)raise(signal);
  _exit(128 + signal); /* it is ignored by default, or cannot be raised */
}

/* Nobody else runs yet, and the lock is nobody's. */
void ipc_os_signals_in_child(void) {
  OsSignals *s = atomic_load(&signal_takers);
  for (; s; s = atomic_load(&s->next))
    s->listed = false;
  atomic_store(&signal_takers, NULL);
  atomic_store(&signal_inside, 0);
  for (int signal = 1; signal < SIGNALS; signal++) {
    if (signal_actions[signal].takers > 0)
      signal_restore(signal);
    signal_actions[signal].takers = 0;
  }
  bool early = atomic_load(&signal_early_of) == (long)getpid();
  for (int signal = 1; signal < SIGNALS; signal++)
    if (set_take(&signal_early, signal) && early)
      (void)kill(getpid(), signal);
}
