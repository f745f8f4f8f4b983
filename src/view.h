/* Bytes at an address that belong to something else: a record of a ring, a
 * range of a memory. Who lends them makes an ipc.view of them by this; what Lua
 * can do with one is in view.c. */
#ifndef IPC_VIEW_H
#define IPC_VIEW_H

#include <lua.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct View View;

/* What the owner says about a view. Neither op sees Lua, blocks or raises. */
typedef struct ViewOps {
  /* 0: the bytes may be touched until Lua runs again. EPIPE: what they belong
   * to is closed; ECHILD: it is another process's. EFAULT: the memory was lost;
   * asked after the bytes were touched, too. */
  int (*check)(void *owner, const View *v);

  /* Ends the view: `done` as it was meant to end, with `size` bytes (commit) or
   * all; else it was dropped. 0 or an errno. Called once at most, with v->open
   * false, and not when check says EPIPE or ECHILD: nothing is left to end
   * then. */
  int (*end)(void *owner, View *v, bool done, size_t size);
} ViewOps;

struct View {
  const ViewOps *ops;
  void *owner; /* a userdata, kept alive by the view's user value */
  char *bytes;
  size_t size;
  uint64_t place; /* the owner's own */
  bool writable;
  bool commits; /* reserved: ends by commit(); else by release() */
  bool open;
  const char *ended; /* by which call */
};

/* Pushes a view of what the userdata at `owner` will lend: closed, of no bytes.
 * Raises on lack of memory only. The caller then acquires the bytes, fills in
 * the fields and sets `open`. */
View *ipc_view_new(lua_State *L, int owner, const ViewOps *ops);

/* The view at `index`, or NULL if that is none. */
View *ipc_view_test(lua_State *L, int index);

/* Why the bytes of v cannot be touched now: 0 or an errno; EBADF when the view
 * has ended, which is a mistake of the caller. */
int ipc_view_check(const View *v);

/* Where bytes are wanted and the value at `index` is no string: replaces a view
 * by a string of its bytes. 0, or the 3 results of a failed `type.call`. Raises
 * on a view that has ended and on anything else. */
int ipc_view_string(lua_State *L, int index, const char *type,
                    const char *call);

/* Makes the metatable. */
void ipc_view_open(lua_State *L);

#endif
