/* Looking up the name of a host without waiting for it: getaddrinfo(3) has no
 * deadline, so a thread of its own runs it. No Lua. */
#ifndef IPC_LOOKUP_H
#define IPC_LOOKUP_H

#include <stddef.h>

#include "sockaddr.h"

typedef struct Lookup Lookup;

enum { LOOKUP_MOST = 16 /* addresses of one name */ };

/* Starts; *l must be ended by ipc_lookup_drop. 0 or an errno. */
int ipc_lookup_start(const char *host, const char *port, int type, Lookup **l);

/* Readable when there is a result. */
int ipc_lookup_fd(const Lookup *l);

/* 0: the addresses. EAGAIN: not yet. Else what went wrong, *why says it. */
int ipc_lookup_result(Lookup *l, Sockaddr list[LOOKUP_MOST], size_t *count,
                      const char **why);

/* Never waits: a thread still busy finds out when it is done. In a `forked`
 * child there is no thread. */
void ipc_lookup_drop(Lookup *l, int forked);

#endif
