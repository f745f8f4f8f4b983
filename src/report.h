/* What a child that runs a Lua function leaves for its parent in a file: its
 * results, or its error. */
#ifndef IPC_REPORT_H
#define IPC_REPORT_H

#include "ipc.h"

typedef enum Report {
  REPORT_NONE,   /* nothing */
  REPORT_BEGUN,  /* that it has begun, and no more */
  REPORT_BROKEN, /* the beginning of one */
  REPORT_WHOLE
} Report;

/* Leaves that the child has begun, before all else. */
bool ipc_report_begin(int fd);

/* Leaves true and the values above `base`, or false and the two there: the
 * error and its text. False if that was not possible. */
bool ipc_report_leave(lua_State *L, int base, bool ok, int fd);

/* Pushes what was left if it is whole, a boolean first; else nothing. */
Report ipc_report_push(lua_State *L, int fd);

#endif
