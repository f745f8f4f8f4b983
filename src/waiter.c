/* A thread that waits where there is no descriptor; see waiter.h. No Lua, no
 * mechanism: what blocks is a function of the caller's. */
#include "prefix.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "os.h"
#include "waiter.h"

enum { SLEEPER_STACK = 256 << 10 }; /* bytes, touched where used */

int ipc_sleeper_descriptor(const Sleeper *s) { return s->made ? s->fd : -1; }

static void sleeper_set(Sleeper *s) { ipc_os_event_set(s->setter); }

/* Can be cancelled in the call that blocks and nowhere else. */
static void *sleeper_run(void *argument) {
  Sleeper *s = argument;
  int before;
  pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
  pthread_mutex_lock(&s->lock);
  for (;;) {
    while (!s->quits && !atomic_load_explicit(&s->asleep, memory_order_relaxed))
      pthread_cond_wait(&s->turn, &s->lock);
    if (s->quits)
      break;
    pthread_mutex_unlock(&s->lock);
    pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before);
    s->sleep(s->job);
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    atomic_store_explicit(&s->asleep, false, memory_order_release);
    sleeper_set(s);
    pthread_mutex_lock(&s->lock);
  }
  pthread_mutex_unlock(&s->lock);
  return NULL;
}

static int sleeper_make(Sleeper *s) {
  if (s->made)
    return 0;
  int err = ipc_os_event(&s->fd, &s->setter);
  if (err)
    return err;
  err = pthread_mutex_init(&s->lock, NULL);
  if (!err) {
    err = pthread_cond_init(&s->turn, NULL);
    if (err)
      pthread_mutex_destroy(&s->lock);
  }
  if (err) {
    close(s->fd);
    if (s->setter != s->fd)
      close(s->setter);
    return err;
  }
  s->made = true;
  return 0;
}

/* With signals blocked, which are for the program's own threads; but for the
 * one that memory sends whose file was cut, see ipc_os_guard. */
static int sleeper_begin(Sleeper *s) {
  pthread_attr_t attributes;
  sigset_t all, before;
  int err = pthread_attr_init(&attributes);
  if (err)
    return err;
  (void)pthread_attr_setstacksize(&attributes, SLEEPER_STACK);
  s->quits = false;
  sigfillset(&all);
  sigdelset(&all, SIGBUS);
  err = pthread_sigmask(SIG_SETMASK, &all, &before);
  if (!err) {
    err = pthread_create(&s->thread, &attributes, sleeper_run, s);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
  }
  pthread_attr_destroy(&attributes);
  s->runs = !err;
  return err;
}

int ipc_sleeper_start(Sleeper *s) {
  int err = s->runs || s->rouse ? 0 : ipc_os_cancellable();
  if (!err)
    err = sleeper_make(s);
  if (err)
    return err;
  ipc_os_event_clear(s->fd);
  if (!s->runs) {
    atomic_store_explicit(&s->asleep, true, memory_order_relaxed);
    return sleeper_begin(s);
  }
  pthread_mutex_lock(&s->lock);
  atomic_store_explicit(&s->asleep, true, memory_order_relaxed);
  pthread_cond_signal(&s->turn);
  pthread_mutex_unlock(&s->lock);
  return 0;
}

int ipc_sleeper_wake(Sleeper *s) {
  int err = sleeper_make(s);
  if (!err)
    sleeper_set(s);
  return err;
}

void ipc_sleeper_stop(Sleeper *s) {
  if (!s->runs)
    return;
  pthread_mutex_lock(&s->lock);
  s->quits = true;
  pthread_cond_signal(&s->turn);
  pthread_mutex_unlock(&s->lock);
  if (s->rouse)
    s->rouse(s->job);
  else
    pthread_cancel(s->thread);
  pthread_join(s->thread, NULL);
  s->runs = false;
  sleeper_set(s);
}

void ipc_sleeper_close(Sleeper *s, bool foreign) {
  if (!s->made)
    return;
  if (!foreign) {
    ipc_sleeper_stop(s);
    pthread_cond_destroy(&s->turn);
    pthread_mutex_destroy(&s->lock);
  }
  s->runs = s->made = false;
  close(s->fd);
  if (s->setter != s->fd)
    close(s->setter);
}
