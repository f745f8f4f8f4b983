/* Starting programs: what the options ask for, and doing it. */
#ifndef IPC_EXEC_H
#define IPC_EXEC_H

#include <stdio.h>

#include "child.h"
#include "ipc.h"
#include "os.h"

/* One of the program's standard streams, beyond what OsStream says. */
typedef struct ExecStream {
  bool pipe;         /* to be made: */
  luaL_Stream *file; /* of io: what is buffered here is settled first */
  Chan *ours;        /* our end, */
  Chan *theirs;      /* the program's */
  Handle *given;     /* or a channel of which this goes along, */
  Handle *whole;     /* and this closes here */
} ExecStream;

typedef struct Exec {
  OsSpawn os;
  OsBorn born;
  ExecStream stream[3];
  const char *call;  /* "exec", for messages */
  const char *name;  /* the program's, without directory */
  const char *input; /* of stdin, input_size bytes; or NULL */
  size_t input_size;
  Nanos timeout; /* of the handle's calls */
  size_t limit;  /* its maxsize; 0: not said */
  int anchor;    /* the slot of a list of all that this points into */
  int anchored;  /* its length */
  int place[3];  /* where in the list our ends of pipes are */
  int moving[3]; /* and the channels that go */
  bool lua, detached;
  int socket[2]; /* of a Lua: ours, the child's */
  int held[2];   /* pipe by which its end is known: ours, the child's */
  int report;
  const char *failed; /* beside born.step: a limit's name, for messages */
} Exec;

/* Reads the option table in slot 1; raises. Leaves the anchor on the stack. */
void ipc_exec_options(lua_State *L, Exec *x, bool lua, const char *call);

/* Makes the pipes that were asked for. 0 or an errno. */
int ipc_exec_pipes(lua_State *L, Exec *x);

/* Pushes our end of stream i. */
void ipc_exec_push(lua_State *L, const Exec *x, int i);

/* Starts the program. 0 or an errno; nothing is left then. */
int ipc_exec_start(Exec *x, Child *c);

/* Pushes nil, message, errno; pipes that were made are closed. */
int ipc_exec_fail(lua_State *L, Exec *x, int err);

/* It runs: the ends that it has now are closed here. May run Lua. */
void ipc_exec_move(lua_State *L, Exec *x, int pid, int where);

#endif
