/* Waiting at a word of shared memory; see watch.h. */
#include "prefix.h"

#include <errno.h>

#include "os.h"
#include "watch.h"

enum {
  SLICE = 1000000,      /* ns of the first sleep */
  SLICE_MOST = 16000000 /* twice as many each time, up to this */
};

int ipc_watch_wait(_Atomic uint32_t *word, uint32_t value, Nanos deadline,
                   Nanos *slice, bool *lapsed) {
  Nanos left = deadline - ipc_now();
  if (left <= 0) { /* the last look is one for the dead, too */
    *slice = 0;
    *lapsed = true;
    return 0;
  }
  if (*slice == 0)
    *slice = SLICE;
  int err = ipc_os_word_wait(word, value, *slice < left ? *slice : left);
  if (err != ETIMEDOUT) {
    *slice = 0;
    return err;
  }
  if (*slice < SLICE_MOST)
    *slice *= 2;
  *lapsed = true;
  return EINTR; /* a signal that came between two sleeps is heard, too */
}

/* Only looks; what it finds changed is for the caller to find again. */
static void watch_sleep(void *argument) {
  Watch *w = argument;
  Nanos slice = SLICE;
  while (!atomic_load(&w->stop)) {
    _Atomic uint32_t *word = atomic_load(&w->word);
    uint32_t value = atomic_load(&w->value);
    int err = ipc_os_word_wait(word, value, slice);
    if (err == ETIMEDOUT && slice < SLICE_MOST)
      slice *= 2;
    else if (err == ETIMEDOUT && w->doubts && w->doubts(w->of))
      return;
    else if (err == 0 && atomic_load(&w->word) == word &&
             atomic_load(&w->value) == value)
      return;
  }
}

/* A thread that is just about to sleep misses this; for one slice at most. */
static void watch_rouse(void *argument) {
  Watch *w = argument;
  atomic_store(&w->stop, true);
  ipc_os_word_wake(atomic_load(&w->word), true);
}

int ipc_watch_descriptor(const Watch *w) {
  return ipc_sleeper_descriptor(&w->sleeper);
}

int ipc_watch_arm(Watch *w, _Atomic uint32_t *word, uint32_t value) {
  w->sleeper.sleep = watch_sleep;
  w->sleeper.rouse = watch_rouse;
  w->sleeper.job = w;
  _Atomic uint32_t *before = atomic_load(&w->word);
  bool asleep = ipc_sleeper_asleep(&w->sleeper);
  if (asleep && before == word && atomic_load(&w->value) == value)
    return 0;
  atomic_store(&w->word, word);
  atomic_store(&w->value, value);
  if (asleep) {
    ipc_os_word_wake(before, true);
    if (ipc_sleeper_asleep(&w->sleeper))
      return 0; /* it looks at these from now on */
  }
  if (atomic_load(word) != value)
    return ipc_sleeper_wake(&w->sleeper);
  atomic_store(&w->stop, false);
  return ipc_sleeper_start(&w->sleeper);
}

void ipc_watch_stop(Watch *w) { ipc_sleeper_stop(&w->sleeper); }

void ipc_watch_close(Watch *w, bool foreign) {
  ipc_sleeper_close(&w->sleeper, foreign);
}
