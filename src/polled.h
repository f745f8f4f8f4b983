/* ipc.poll, and what it shares with pollers: objects of other libraries that
 * can be polled because they have pollfd, events and timeout. */
#ifndef IPC_POLLED_H
#define IPC_POLLED_H

#include "ipc.h"

int ipc_poll(lua_State *L);

/* "r", "w", "rw" as IPC_READ and IPC_WRITE bits; 0: it is none of them. */
int ipc_poll_wants(const char *events);

bool ipc_poll_is_foreign(lua_State *L, int index);

typedef struct Foreign {
  int fd; /* -1: none */
  int want;
  Nanos due; /* it is ready then, whatever its descriptor */
} Foreign;

/* Asks the foreign object on top. False: its events are none; they are on top
 * then. Runs Lua. */
bool ipc_poll_ask(lua_State *L, Foreign *f);

#endif
