/* A thread that waits where the system offers no descriptor: it sits in a call
 * that blocks, and when that returns a descriptor becomes readable, which any
 * poll can wait for. It knows no mechanism and never sees a lua_State. */
#ifndef IPC_WAITER_H
#define IPC_WAITER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

/* Zeroed and with `sleep` and `job` set it is ready for use; the rest is its
 * own. All calls on one come from one thread. */
typedef struct Sleeper {
  /* Runs in the thread: waits in one call that is a cancellation point, and
   * leaves what it found in the job. Cancelled there it does not return; what
   * the job says must be right then, too. */
  void (*sleep)(void *job);
  void *job; /* the thread's while asleep, else the caller's */

  /* Ends a sleep that pthread_cancel(3) cannot end: called by who stops it,
   * after which `sleep` must return at once. NULL: it is cancelled. */
  void (*rouse)(void *job);

  bool made; /* the event and what the thread waits on */
  bool runs; /* there is a thread */
  bool quits;
  atomic_bool asleep;
  int fd, setter;
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

/* Makes the descriptor unreadable and has the thread sleep; it must not be
 * asleep. EAGAIN, EMFILE, ...: it does not. */
int ipc_sleeper_start(Sleeper *s);

/* Makes the descriptor readable without a sleep: what it would have waited for
 * is there. */
int ipc_sleeper_wake(Sleeper *s);

/* Ends a sleep and the thread; afterwards the job is the caller's. Who polls
 * the descriptor is woken to look again. */
void ipc_sleeper_stop(Sleeper *s);

/* Gives everything back; it can be used again. With `foreign`, in a child of
 * fork(2) that has no such thread, only what is the child's. */
void ipc_sleeper_close(Sleeper *s, bool foreign);

#endif
