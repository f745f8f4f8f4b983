/* What handles share that something comes out of which was never sent: signals,
 * the time. They receive as channels do, without their media. */
#ifndef IPC_SOURCE_H
#define IPC_SOURCE_H

#include "ipc.h"

typedef struct Source {
  Handle h;
  Nanos timeout; /* the default of every call */
  uint64_t received;

  /* Pushes the next and returns 0; EAGAIN: there is none yet; EPIPE: there will
   * be none. */
  int (*take)(lua_State *L, struct Source *s);
} Source;

/* A new one on the stack, closed. Its HandleOps have IPC_READ as their
 * interest. */
void *ipc_source_new(lua_State *L, size_t size, const HandleOps *h,
                     int (*take)(lua_State *L, Source *s));

/* Makes its type: recv, get, messages, values, settimeout, stats, close. */
void ipc_source_type(lua_State *L, const HandleOps *h);

#endif
