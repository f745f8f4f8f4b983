/* A thread that waits where there is no descriptor; see waiter.h. No Lua, no
 * mechanism: what blocks is a function of the caller's. */
#include "prefix.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "os.h"
#include "sleepers.h"
#include "waiter.h"

enum { SLEEPER_STACK = 256 << 10 }; /* bytes, touched where used */

int ipc_sleeper_descriptor(const Sleeper *s) { return s->made ? s->fd : -1; }

static void sleeper_set(Sleeper *s) { ipc_os_event_set(s->setter); }

/* The sleep of one that waits at a word: in slices. */
static void sleeper_at_word(Sleeper *s) {
  int64_t slice = OS_SLICE;
  while (!atomic_load(&s->stop)) {
    if (s->look(s->job, &s->at) || atomic_load(&s->stop))
      return;
    int err = ipc_os_word_wait(s->at.word, s->at.value, slice);
    if ((err == 0 && s->woken(s->job, 0)) ||
        (err == ETIMEDOUT && s->woken(s->job, slice)))
      return;
    if (err == ETIMEDOUT && slice < OS_SLICE_MOST)
      slice *= 2;
  }
}

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
    if (s->look) {
      sleeper_at_word(s);
    } else {
      pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before);
      s->sleep(s->job);
      pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    }
    if (s->look) /* a loop that takes over at once trusts the descriptor */
      sleeper_set(s);
    atomic_store_explicit(&s->asleep, false, memory_order_release);
    if (!s->look)
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

static int sleeper_thread(Sleeper *s) {
  int err = s->runs || s->rouse || s->look ? 0 : ipc_os_cancellable();
  if (err)
    return err;
  ipc_sleepers_part(s);
  ipc_os_event_clear(s->fd);
  s->loud = true;
  atomic_store(&s->stop, false);
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

int ipc_sleeper_start(Sleeper *s, Sleepers *by) {
  int err = sleeper_make(s);
  if (err)
    return err;
  s->polled = s->polled || !by;
  if (s->look && !s->polled && ipc_sleepers_enter(by, s))
    return 0;
  return sleeper_thread(s);
}

/* The descriptor is readable from now on, or soon. */
static void sleeper_shout(Sleeper *s) {
  ipc_sleepers_part(s);
  s->loud = true;
  sleeper_set(s);
}

int ipc_sleeper_wake(Sleeper *s, Sleepers *by) {
  int err = sleeper_make(s);
  if (err)
    return err;
  s->polled = s->polled || !by;
  if (s->look && !s->polled && !ipc_sleeper_asleep(s) &&
      ipc_sleepers_enter(by, s))
    s->there = true;
  else
    sleeper_shout(s);
  return 0;
}

bool ipc_sleeper_keep(Sleeper *s, Sleepers *by) {
  s->polled = s->polled || !by;
  if (!s->link)
    return ipc_sleeper_asleep(s);
  if (s->polled || s->home != by) {
    ipc_sleepers_part(s);
    return false;
  }
  return !s->there;
}

bool ipc_sleeper_nudge(Sleeper *s) {
  if (s->link)
    return s->announced = false, true;
  s->nudge(s->job);
  return ipc_sleeper_asleep(s);
}

int ipc_sleeper_detach(Sleeper *s) {
  if (!s->there)
    return sleeper_thread(s);
  sleeper_shout(s);
  return 0;
}

void ipc_sleeper_stop(Sleeper *s) {
  if (s->link)
    sleeper_shout(s);
  if (!s->runs)
    return;
  pthread_mutex_lock(&s->lock);
  s->quits = true;
  pthread_cond_signal(&s->turn);
  pthread_mutex_unlock(&s->lock);
  if (s->look) {
    atomic_store(&s->stop, true);
    s->nudge(s->job);
  } else if (s->rouse) {
    s->rouse(s->job);
  } else {
    pthread_cancel(s->thread);
  }
  pthread_join(s->thread, NULL);
  s->runs = false;
  sleeper_shout(s);
}

void ipc_sleeper_close(Sleeper *s, bool foreign) {
  if (!s->made)
    return;
  ipc_sleepers_part(s);
  if (!foreign) {
    ipc_sleeper_stop(s);
    pthread_cond_destroy(&s->turn);
    pthread_mutex_destroy(&s->lock);
  }
  s->runs = s->made = s->polled = s->loud = s->there = false;
  s->due = 0;
  close(s->fd);
  if (s->setter != s->fd)
    close(s->setter);
}
