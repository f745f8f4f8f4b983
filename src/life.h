/* The life of a child that runs a Lua function. */
#ifndef IPC_LIFE_H
#define IPC_LIFE_H

#include "ipc.h"

/* The descriptors that a program of its own is given. */
enum { LIFE_CHANNEL = 3, LIFE_REPORT, LIFE_HELD };

/* Calls the function in slot 1 with the arguments in slots 2 .. n, leaves its
 * results or its error in the file `report`, and ends the process. `channel` is
 * a socket to the parent, which becomes ipc.parent; -1: it has been. */
_Noreturn void ipc_life_run(lua_State *L, int n, int channel, int report);

/* The channel to the parent, or nil: a Lua function. */
int ipc_life_parent(lua_State *L);

/* In a program of its own: takes what it was given, and follows its parent.
 * Lua functions: () -> the channel; (function, ...), which does not return. */
int ipc_life_begin(lua_State *L);
int ipc_life_finish(lua_State *L);

#endif
