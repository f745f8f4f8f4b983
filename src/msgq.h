/* One System V message queue as a channel's medium: what is taken in hand, the
 * thread that sleeps in msgrcv(2), who holds the ends of one without a name.
 * Opening them, and Lua, are the room's. */
#ifndef IPC_MSGQ_H
#define IPC_MSGQ_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ipc.h"
#include "waiter.h"

struct msqid_ds;

/* The type of what wakes the readers of a pair at its end: no message's. */
#define IPC_MSGQ_END LONG_MAX

typedef struct Held Held;
typedef struct Ends Ends;

/* What is received: types as msgrcv(2) has them. */
typedef struct Want {
  long type;
  bool except;
} Want;

/* What the thread that sleeps is to wait for. */
typedef struct Job {
  int id;
  Want want;
  long found; /* the type of an empty message that it took; 0 */
} Job;

/* Zeroed and with `id` and `refused` set it is ready for use. */
typedef struct MsgQueue {
  Chan c;
  int id;         /* -1: not open yet */
  bool owner;     /* close by the user, or the program's end, removes it */
  bool heir;      /* so it does once the process that received last has died */
  bool gone;      /* it was removed */
  size_t most;    /* bytes of a message; 0: unknown */
  size_t refused; /* bytes that the last full queue had no room for; 1 */
  uint32_t nap;   /* us, of senders */
  Ends *ends;     /* of a pair's queue; else NULL */
  int place;      /* in their census */
  bool left;      /* its writers are counted without this one */
  Want want;      /* of the last recv */
  Held *hand;     /* taken from the kernel, first come first */
  Held *spare;    /* for the next */
  const Held *viewed;
  Buffer out;
  bool blind; /* no thread could be had for the last wait */
  Job job;
  Sleeper sleeper;
} MsgQueue;

/* Slots of HandleOps and ChanOps. */
int ipc_msgq_descriptor(const Handle *h, int want);
int ipc_msgq_arm(Handle *h, int want, Sleepers *by);
int ipc_msgq_wait(Handle *h, int want, Nanos deadline);
int ipc_msgq_ready(Handle *h, int want, bool ask_kernel);
void ipc_msgq_close(Handle *h, How how);
int ipc_msgq_forking(Handle *h);
void ipc_msgq_forked(Handle *h, bool child);
int ipc_msgq_recv(Chan *c, Message *m);
void ipc_msgq_took(Chan *c, size_t size);
int ipc_msgq_send(Chan *c, const Message *m);
int ipc_msgq_flush(Chan *c);
int ipc_msgq_shutdown(Chan *c);

/* The two ends of a queue without a name. ENOMEM: they are not. */
int ipc_msgq_pair(MsgQueue *reader, MsgQueue *writer);

/* Makes `copy`, closed, a second handle on the same queue, or end of it. */
void ipc_msgq_copy(MsgQueue *copy, const MsgQueue *q);

/* Whether an errno says that the queue was removed; notes that: EPIPE. */
bool ipc_msgq_removed(int err);
int ipc_msgq_gone(MsgQueue *q);

/* msgctl(2), IPC_STAT. */
int ipc_msgq_status(const MsgQueue *q, struct msqid_ds *status);

#endif
