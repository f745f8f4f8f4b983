/* A journal as a handle: how it locks, waits, syncs, closes and crosses a fork.
 * On log.h, segment.h; opening it, and Lua, are the room's. */
#ifndef IPC_JOURNALS_H
#define IPC_JOURNALS_H

#include "log.h"
#include "member.h"
#include "watch.h"

/* A thread that brings to the disk what tasks wait for. */
typedef struct JournalJob {
  Sleeper sleeper;
  Log *log;
  _Atomic uint64_t target; /* the last sequence that is waited for */
  _Atomic int err;         /* of the last sync */
  atomic_bool stop;
} JournalJob;

typedef struct Journal {
  Chan c;
  Member m;
  Log log;
  LogReader r;
  Watch watch[2]; /* readers' event, writers' lock */
  JournalJob *job;
  Nanos slice;     /* of the next sleep; 0: the first */
  bool lapsed;     /* a sleep passed: look who is dead */
  bool made;       /* the directory, by us */
  bool temporary;  /* it goes with who made it */
  int trouble;     /* an errno of the last wait for the disk */
  size_t pending;  /* bytes that were sent and may not be on the disk */
  uint64_t number; /* of the last message that was sent */
  uint64_t target; /* what a wait for the disk is for */
  uint64_t taken;  /* sequence of the last message that was received */
  char *directory;
} Journal;

extern const ChanOps ipc_journal_ops;

/* HandleOps. */
int ipc_journal_descriptor(const Handle *h, int want);
int ipc_journal_arm(Handle *h, int want, Sleepers *by);
int ipc_journal_wait(Handle *h, int want, Nanos deadline);
int ipc_journal_ready(Handle *h, int want, bool ask_kernel);
void ipc_journal_close(Handle *h, How how);
int ipc_journal_forking(Handle *h);
void ipc_journal_forked(Handle *h, bool child);

/* The writers' lock. 0; EAGAIN: another has it. */
int ipc_journal_lock(Journal *j);
int ipc_journal_unlock(Journal *j);

/* Whether it was removed, by who has it open or behind our back. */
bool ipc_journal_gone(const Journal *j);

/* Removes all files of a journal, and the directory if nothing else is in it;
 * who has it open is told. Under the writers' lock, but for its maker's close.
 */
int ipc_journal_erase(Journal *j);

#endif
