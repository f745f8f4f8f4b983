/* A plain file in memory: its bytes and nothing else, as any program may have
 * made it. Who else of us has it open is told by a lock far behind its end. No
 * Lua. */
#ifndef IPC_PLAIN_H
#define IPC_PLAIN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct Plain {
  int fd; /* its own open file description; -1: not open */
  int spare;
  char *base;            /* NULL: it has no bytes */
  size_t size;           /* bytes, as the file had them */
  _Atomic bool *damaged; /* pages were lost */
  void *guard;
  bool write, copied, huge;
  bool made; /* by us */
} Plain;

typedef struct PlainAsk {
  const char *path;
  int create; /* IPC_ATTACH ... */
  unsigned permissions;
  uint64_t size; /* bytes; 0: as many as it has */
  bool write;    /* else it is only read */
  bool copied;   /* what is written stays here */
  bool makes;    /* one that is not there */
  bool named;    /* in a directory of everybody's: no link, and our own unless
                  * create is IPC_ATTACH */
  bool huge, populate;
} PlainAsk;

/* A Plain that is none. */
#define PLAIN_NONE ((Plain){.fd = -1, .spare = -1})

/* Makes or opens what is asked for. Tries once; 0, or EAGAIN: somebody changes
 * its size just now; ENOENT; EEXIST: it has f->size bytes, or create = "new";
 * ENOMSG: a memory with
 * participants; EBADMSG: another thing of ours; EISDIR, ENODEV: not a file of
 * bytes; EACCES; ENOSPC, EFBIG ... */
int ipc_plain_open(Plain *f, const PlainAsk *ask);

/* The same of an open description, which is another's: it is opened again. */
int ipc_plain_adopt(Plain *f, int fd, bool write, bool copied);

/* Releases all. `foreign`: in a child of fork(2), where the descriptors were
 * closed. */
void ipc_plain_close(Plain *f, bool foreign);

/* Removes the name, if it is still this file's; else ENOENT. */
int ipc_plain_remove(const Plain *f, const char *path);

/* More bytes, zero. 0, or EBUSY: others of us have it open; ENOTSUP: nothing
 * here tells. The bytes may be elsewhere afterwards. */
int ipc_plain_grow(Plain *f, uint64_t size, const char *path);

/* Asks the system whether it was cut: 0 or EFAULT. */
int ipc_plain_look(const Plain *f);

/* Makes f->spare, a description beside its own for another process, unless
 * there is one. `path` is where it was found, or NULL. */
int ipc_plain_spare(Plain *f, const char *path);

/* As HandleOps.forking, forked: the child gets a description of its own. */
void ipc_plain_forking(Plain *f, const char *path);
void ipc_plain_forked(Plain *f, bool child);

#endif
