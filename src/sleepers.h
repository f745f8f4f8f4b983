/* Those for whom a loop waits itself, in one call at all of their words, where
 * else each would have a thread that writes to a descriptor which the loop
 * polls. The loop has that descriptor in its set all the same: whoever is to be
 * told otherwise (a poller, a host) has the thread, from then on. No Lua. */
#ifndef IPC_SLEEPERS_H
#define IPC_SLEEPERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "os.h"
#include "waiter.h"

enum { SLEEPERS_MOST = 120 }; /* whom one loop waits for */

struct Sleepers {
  Sleeper *first; /* who waits */
  size_t count;   /* of them */
  size_t homes;   /* of those whose home this is, whether they wait or not */
  size_t others;  /* descriptors of the set that the kernel may report */
  unsigned char *fds; /* by descriptor: see sleepers.c */
  size_t known;
  bool blind; /* there may be more of the others than that */
  bool gone;  /* the loop: freed with the last whose home it is */
};

/* NULL: no memory. */
Sleepers *ipc_sleepers_open(void);

/* Nobody waits for those who are left; they may be closed later. */
void ipc_sleepers_close(Sleepers *l);

/* From now on the loop waits for one that nobody waits for, with its descriptor
 * made, if it can: then that is not readable until it is made so. */
bool ipc_sleepers_enter(Sleepers *l, Sleeper *s);

/* It does so no longer, and the kernel may report the descriptor. Harmless for
 * one for whom no loop waits. */
void ipc_sleepers_part(Sleeper *s);

/* The loop's set has a descriptor, or has it no more. */
void ipc_sleepers_change(Sleepers *l, int fd, bool in);

/* Whether the descriptor was that of one whom a thread took over. */
bool ipc_sleepers_detached(const Sleepers *l, int fd);

/* All that was reported has been heard: it is forgotten. */
void ipc_sleepers_settle(Sleepers *l);

/* Reports those that need not wait, until they are started anew or settled;
 * `room` at most. `slice`: what is left of their slices is over, too. */
size_t ipc_sleepers_look(Sleepers *l, OsReady *ready, size_t room, int64_t now,
                         bool slice);

/* Whether it would report some that it has not. */
bool ipc_sleepers_some(const Sleepers *l);

/* Sleeps until it may, or `bell` (NULL: none) is not 0, for `ns` at most from
 * `now`, and no longer than the next slice. 0: look. ETIMEDOUT, EINTR. */
int ipc_sleepers_wait(Sleepers *l, _Atomic uint32_t *bell, int64_t now,
                      int64_t ns);

/* Threads wait for all of them. False: not for some, which are still here. */
bool ipc_sleepers_detach(Sleepers *l);

#endif
