/* A child process as its parent knows it. No Lua. */
#ifndef IPC_CHILD_H
#define IPC_CHILD_H

#include <stdbool.h>
#include <sys/types.h>

#include "os.h"

/* In memory that lives as long as the last handle on it. The descriptors are
 * -1 where there is none. */
typedef struct Child {
  unsigned handles; /* that are open */
  pid_t pid;
  int ended;     /* readable once it has ended: a pidfd, or the reading end of a
                    pipe that only the child can write */
  int life;      /* its pipe breaks when we end, or close this */
  int report;    /* the file in which it leaves its results */
  bool pidfd;    /* that is what `ended` is */
  bool leads;    /* a process group of its own */
  bool stopped;  /* its group ends with it */
  bool detached; /* it goes on without us */
  bool begins;   /* it reports that it has begun */
  bool reaped;
  bool known;          /* status means something: nobody else reaped it */
  bool used;           /* usage does */
  int status;          /* of waitpid(2) */
  unsigned generation; /* whose child it is: ipc_generation */
  OsUsage usage;
} Child;

/* Nothing yet. */
#define CHILD_NONE ((Child){.pid = -1, .ended = -1, .life = -1, .report = -1})

/* 0 once it has ended, EAGAIN before. */
int ipc_child_reap(Child *c);

/* Sends a signal to it, or to its group. 0; ESRCH: it has ended. */
int ipc_child_kill(Child *c, int signal, bool group);

/* What is left of the group of a child that was stopped ends with it. */
void ipc_child_stop(Child *c);

/* One handle less. With the last the descriptors go; what still runs is reaped
 * later, if it is ours to reap. */
void ipc_child_drop(Child *c, bool ours);

#endif
