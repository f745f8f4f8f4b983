/* What a poller is, and its waits. */
#ifndef IPC_POLLERS_H
#define IPC_POLLERS_H

#include "pollset.h"

/* User values: where a handle moved (as all have), the objects in the order of
 * `members`, and for each object its place there. */
enum { POLLER_OBJECTS = 2, POLLER_PLACES, POLLER_VALUES = POLLER_PLACES };

typedef struct Poller {
  Handle h;
  Pollset set;
  Member **members; /* by place, less 1; NULL: nobody's */
  lua_Integer room;
  lua_Integer *vacant; /* places */
  size_t vacancies;
  size_t foreign;
  bool turn; /* whose it is when not all can be answered: the kernel's */
} Poller;

/* Forgets a member of the poller in slot 1; pushes its object. Allocates
 * nothing. */
void ipc_poller_remove(lua_State *L, Poller *p, Member *m);

/* A handle was asked what it is ready for, and has read ahead perhaps: tasks
 * that wait on it, or on a poller that it is in, look. If it is a poller
 * itself, those of what is in it, too. May run Lua. */
void ipc_poller_asked(lua_State *L, Handle *h);

int ipc_poller_wait(lua_State *L);

#endif
