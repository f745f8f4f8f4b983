/* Waiting at a word of shared memory until it changes. Every sleep is a slice,
 * after which the caller may look who is dead. Knows no segment. */
#ifndef IPC_WATCH_H
#define IPC_WATCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "ipc.h"
#include "os.h"
#include "waiter.h"

/* In this thread, as HandleOps.wait: sleeps while *word is `value`. *slice is
 * the caller's, 0 before the first sleep for something; *lapsed is set when
 * nothing ended a sleep, or the deadline has passed: time to look for the dead.
 * 0: look again. EINTR. */
int ipc_watch_wait(_Atomic uint32_t *word, uint32_t value, Nanos deadline,
                   Nanos *slice, bool *lapsed);

/* Beside this thread or in the loop's sleep, for who polls or yields. Zeroed it
 * is ready for use, with `doubts` set where deaths matter. */
typedef struct Watch {
  /* A slice passed: whether a death may have changed what is waited for; then
   * the descriptor becomes readable. For any thread. NULL: never. */
  bool (*doubts)(void *of);
  void *of;

  Sleeper sleeper;
  _Atomic uint32_t *_Atomic word;
  _Atomic uint32_t value;
  OsWord last;              /* of the last look */
  _Atomic uint32_t *nudged; /* what a thread sleeps on */
} Watch;

/* What is readable once the word is not what it was armed with; -1 before. */
int ipc_watch_descriptor(const Watch *w);

/* As HandleOps.arm. The word must stay mapped until the watch is stopped. */
int ipc_watch_arm(Watch *w, _Atomic uint32_t *word, uint32_t value,
                  Sleepers *by);

/* It waits no more; who polls looks again. */
void ipc_watch_stop(Watch *w);

/* The same, and all is given back; `foreign` as ipc_sleeper_close. */
void ipc_watch_close(Watch *w, bool foreign);

#endif
