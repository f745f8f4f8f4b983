/* What a poller watches: handles, descriptors, objects of others. The kernel
 * tells of most of them, so that a wait costs what is ready, not what is there;
 * calls on a handle tell of what they read ahead; the few that nothing tells of
 * are looked at each time. No Lua. */
#ifndef IPC_POLLSET_H
#define IPC_POLLSET_H

#include "ipc.h"
#include "os.h"

/* A place in a list that its owner can leave at any time. */
typedef struct Knot {
  struct Knot *next, *prev; /* NULL: in no list */
} Knot;

typedef struct Member Member;

/* One direction of a member. */
typedef struct Watch {
  Observer part; /* of what is polled, where that is a part of the handle */
  Member *of;
  struct Watch *next; /* of the same descriptor */
  int want;           /* IPC_READ, IPC_WRITE or IPC_ENDED; 0: not this one */
  int fd;             /* under which the kernel tells of it; -1: not at all */
  short events;
} Watch;

struct Member {
  struct Pollset *set;
  Handle *handle; /* NULL: a descriptor, or another's object */
  Observer self;  /* of the handle */
  Knot hot;       /* perhaps ready without the kernel: to be asked */
  Knot restless;  /* to be asked each time */
  Knot found;     /* ready, and to be told */
  Watch watch[2];
  int fd;         /* of what is no handle; -1: none now */
  int want;       /* IPC_READ, IPC_WRITE, IPC_ENDED bits */
  int hits;       /* what it was found ready for */
  Nanos due;      /* another's object: ready then, whatever its descriptor */
  lua_Integer at; /* the poller's: where it is */
  bool foreign;   /* another's object */
  bool once;      /* to be told once, then asleep */
  bool asleep;
  bool gone;   /* closed: to be told once, then to be removed */
  bool always; /* a file that the kernel calls always ready */
};

typedef struct Slot {
  Watch *first;
  short events; /* that the kernel knows of */
} Slot;

typedef struct Pollset {
  Handle *by; /* the poller */
  OsSet *os;
  Slot *slots; /* by descriptor */
  size_t slot_count;
  OsReady *ready;
  size_t room;
  Knot hot, restless, found;
  size_t count, found_count;
  bool asked; /* ipc_pollset_ready is in progress */
} Pollset;

/* 0 or an errno; closed it may be again. */
int ipc_pollset_open(Pollset *p, Handle *by);
void ipc_pollset_close(Pollset *p);

/* Before that, of each member: nothing tells it any more. */
void ipc_pollset_abandon(Member *m);

/* m is zeroed, with handle, fd, want, once, foreign and due set; it stays where
 * it is until it is removed. An errno: it must be removed. */
int ipc_pollset_add(Pollset *p, Member *m);
void ipc_pollset_remove(Member *m);

/* The other thing to wait for is in m->want, m->once; it is awake again. */
int ipc_pollset_modify(Member *m);

/* The same without an end: m->fd, m->want of another's object have changed. */
void ipc_pollset_sync(Member *m);

/* Asks all that the kernel does not tell of; those that are ready are found,
 * `most` at most. */
void ipc_pollset_look(Pollset *p, size_t most);

/* The same of the kernel, for `timeout` ns. 0, EINTR, ENOMEM. */
int ipc_pollset_kernel(Pollset *p, size_t most, Nanos timeout);

/* Before somebody sleeps on the kernel: starts what makes it tell. The time to
 * look again, `deadline` at the latest. */
Nanos ipc_pollset_arm(Pollset *p, Nanos deadline);

/* Whether a look, of the kernel too perhaps, would find some. */
bool ipc_pollset_ready(Pollset *p, bool ask_kernel);

/* One is ready for `hits`. */
void ipc_pollset_find(Member *m, int hits);

/* The next that was found, or NULL; it is told from now on: asleep if once. */
Member *ipc_pollset_next(Pollset *p, int *hits);

/* What was found before is forgotten. */
void ipc_pollset_forget(Pollset *p);

#endif
