/* What waits where the system offers no descriptor: a thread that sits in a
 * call that blocks; when that returns a descriptor becomes readable, which any
 * poll can wait for. At words of memory a loop waits itself, without a thread,
 * see sleepers.h. Knows no mechanism and never sees a lua_State. */
#ifndef IPC_WAITER_H
#define IPC_WAITER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "os.h"

typedef struct Sleepers Sleepers;

/* Zeroed and with `job` and `sleep`, or `look`, set it is ready for use; the
 * rest is its own. All calls on one come from one thread. */
typedef struct Sleeper {
  /* Runs in the thread: waits in one call that is a cancellation point, and
   * leaves what it found in the job. Cancelled there it does not return; what
   * the job says must be right then, too. */
  void (*sleep)(void *job);
  void *job; /* the thread's while asleep, else the caller's */

  /* Ends a sleep that pthread_cancel(3) cannot end: called by who stops it,
   * after which `sleep` must return at once. NULL: it is cancelled. */
  void (*rouse)(void *job);

  /* In place of both, where a word of memory tells. Whether what is waited for
   * is there, perhaps. With `word`: if not, whoever can change that has been
   * told of a sleep at *word, and it was not there after that either. */
  bool (*look)(void *job, OsWord *word);

  /* After that sleep, if the word was changed or woken: whether what is waited
   * for may be there; else it looks again. `slice`: nothing happened for so
   * many ns, time to look who is dead perhaps; 0: it did. */
  bool (*woken)(void *job, int64_t slice);

  /* Makes a thread that sleeps look again, in a moment at the latest. */
  void (*nudge)(void *job);

  bool made; /* the event and what the thread waits on */
  bool runs; /* there is a thread */
  bool quits;
  atomic_bool asleep, stop;
  int fd, setter;
  bool polled;    /* by others than a loop, perhaps: it always has a thread */
  bool loud;      /* the descriptor is readable, perhaps */
  bool announced; /* a loop: *at is what look told of a sleep at */
  bool woke;      /* the word was woken; it need not have changed */
  bool there;     /* what is waited for, perhaps */
  bool told;      /* and the loop was told */
  OsWord at;      /* of the last look: the thread's while asleep */
  int64_t slice, due; /* the next is over then, of ipc_now; 0: not begun */
  Sleepers *home; /* the loop's to which the descriptor is known as silent */
  struct Sleeper *next, **link; /* among those that it waits for; NULL */
  pthread_t thread;
  pthread_mutex_t lock;
  pthread_cond_t turn;
} Sleeper;

/* The descriptor that is readable once a sleep is over; -1 until the first. */
int ipc_sleeper_descriptor(const Sleeper *s);

/* Whether the job is the thread's now. Once it is not, what the thread wrote
 * can be seen. */
static inline bool ipc_sleeper_asleep(const Sleeper *s) {
  return s->runs && atomic_load_explicit(&s->asleep, memory_order_acquire);
}

/* Makes the descriptor unreadable and has the thread sleep, which must not be
 * asleep; or `by` wait for it, if that can (NULL: there is no loop, or others
 * poll the descriptor, too). EAGAIN, EMFILE, ...: nobody does. */
int ipc_sleeper_start(Sleeper *s, Sleepers *by);

/* Makes the descriptor readable without a sleep, at least for `by`: what it
 * would have waited for is there. */
int ipc_sleeper_wake(Sleeper *s, Sleepers *by);

/* Of one with `look`: whether it waits already so that `by` is woken, or (NULL)
 * who polls the descriptor. If not it must be started. */
bool ipc_sleeper_keep(Sleeper *s, Sleepers *by);

/* What a waiting one looks for is another now: whether it still waits. */
bool ipc_sleeper_nudge(Sleeper *s);

/* A thread takes it over from the loop that waits for it: 0 or an errno. */
int ipc_sleeper_detach(Sleeper *s);

/* Ends a sleep and the thread; afterwards the job is the caller's. Who polls
 * the descriptor, a loop too, is woken to look again. */
void ipc_sleeper_stop(Sleeper *s);

/* Gives everything back; it can be used again. With `foreign`, in a child of
 * fork(2) that has no such thread, only what is the child's. */
void ipc_sleeper_close(Sleeper *s, bool foreign);

#endif
