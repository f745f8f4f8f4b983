/* Waiting at a word of shared memory; see watch.h. */
#include "prefix.h"

#include <errno.h>

#include "os.h"
#include "watch.h"

int ipc_watch_wait(_Atomic uint32_t *word, uint32_t value, Nanos deadline,
                   Nanos *slice, bool *lapsed) {
  Nanos left = deadline - ipc_now();
  if (left <= 0) { /* the last look is one for the dead, too */
    *slice = 0;
    *lapsed = true;
    return 0;
  }
  if (*slice == 0)
    *slice = OS_SLICE;
  int err = ipc_os_word_wait(word, value, *slice < left ? *slice : left);
  if (err != ETIMEDOUT) {
    *slice = 0;
    return err;
  }
  if (*slice < OS_SLICE_MOST)
    *slice *= 2;
  *lapsed = true;
  return EINTR; /* a signal that came between two sleeps is heard, too */
}

/* What it finds changed is for the caller to find again. */
static bool watch_look(void *argument, OsWord *word) {
  Watch *w = argument;
  OsWord now = {atomic_load(&w->word), atomic_load(&w->value)};
  if (word)
    *word = w->last = now;
  return atomic_load(now.word) != now.value;
}

static bool watch_woken(void *argument, int64_t slice) {
  Watch *w = argument;
  if (slice == 0)
    return atomic_load(&w->word) == w->last.word &&
           atomic_load(&w->value) == w->last.value;
  return slice >= OS_SLICE_MOST && w->doubts && w->doubts(w->of);
}

/* A thread that is just about to sleep misses this; for one slice at most. */
static void watch_nudge(void *argument) {
  Watch *w = argument;
  ipc_os_word_wake(w->nudged, true);
}

int ipc_watch_descriptor(const Watch *w) {
  return ipc_sleeper_descriptor(&w->sleeper);
}

int ipc_watch_arm(Watch *w, _Atomic uint32_t *word, uint32_t value,
                  Sleepers *by) {
  w->sleeper.look = watch_look;
  w->sleeper.woken = watch_woken;
  w->sleeper.nudge = watch_nudge;
  w->sleeper.job = w;
  _Atomic uint32_t *before = atomic_load(&w->word);
  bool waits = ipc_sleeper_keep(&w->sleeper, by);
  if (waits && before == word && atomic_load(&w->value) == value)
    return 0;
  w->nudged = before;
  atomic_store(&w->word, word);
  atomic_store(&w->value, value);
  waits = waits && ipc_sleeper_nudge(&w->sleeper);
  w->nudged = word;
  if (waits)
    return 0; /* it looks at these from now on */
  if (atomic_load(word) != value)
    return ipc_sleeper_wake(&w->sleeper, by);
  return ipc_sleeper_start(&w->sleeper, by);
}

void ipc_watch_stop(Watch *w) { ipc_sleeper_stop(&w->sleeper); }

void ipc_watch_close(Watch *w, bool foreign) {
  ipc_sleeper_close(&w->sleeper, foreign);
}
