/* Bytes at an address that belong to something else: a record of a ring, a
 * memory, a range of either. Who lends them makes an ipc.view of them by this,
 * or has a View in a type of its own; how one ends is in view.c, what else Lua
 * can do with the bytes in bytes.c. */
#ifndef IPC_VIEW_H
#define IPC_VIEW_H

#include <lua.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct View View;

/* What the owner says about a view. Neither op sees Lua, blocks or raises. */
typedef struct ViewOps {
  /* 0: the bytes may be touched until Lua runs again, at v->bytes, which may be
   * another address than before. EPIPE: what they belong to is closed; ECHILD:
   * it is another process's. EFAULT: the memory was lost; asked after the bytes
   * were touched, too. */
  int (*check)(void *owner, View *v);

  /* Ends the view: `done` as it was meant to end, with `size` bytes (commit) or
   * all; else it was dropped. 0 or an errno. Called once at most, with v->open
   * false, and not when check says EPIPE or ECHILD: nothing is left to end
   * then. NULL: there is never anything to end. */
  int (*end)(void *owner, View *v, bool done, size_t size);
} ViewOps;

/* Who sleeps at a word of the bytes, perhaps in a thread. */
typedef struct ViewWait {
  struct ViewWait *next, **link; /* link NULL: does not */
  void (*stop)(struct ViewWait *w);
} ViewWait;

struct View {
  const ViewOps *ops;
  const char *type; /* of what has it: "ipc.view" */
  void *owner;      /* kept alive by the view's user value */
  View *parent;     /* it is a range of this one; or NULL */
  unsigned depth;   /* how many of these there are */
  char *bytes;
  size_t size;
  uint64_t place; /* the owner's own */
  ViewWait *waits;
  const int64_t *timeout; /* ns that such a wait takes by default; or NULL */
  bool shared;            /* words of it can be waited for */
  /* For who cannot spare the call: `check` says 0 while this handle is usable
   * and `lost` is not set. NULL: only `check` knows. */
  const struct Handle *handle;
  const _Atomic bool *lost;
  bool writable;
  bool commits; /* reserved: ends by commit(); else by release() */
  bool open;
  const char *ended; /* by which call */
};

/* Pushes a view of what the userdata at `owner` will lend: closed, of no bytes.
 * Raises on lack of memory only. The caller then acquires the bytes, fills in
 * the fields and sets `open`. */
View *ipc_view_new(lua_State *L, int owner, const ViewOps *ops);

/* The ipc.view at `index`, or NULL if that is none. */
View *ipc_view_test(lua_State *L, int index);

/* The View of what is at `index`: an ipc.view, or any type whose metatable got
 * the methods of bytes; else NULL. */
View *ipc_view_at(lua_State *L, int index);

/* Whether neither it nor what it is a range of has ended. */
bool ipc_view_open_all(const View *v);

/* Raises if the view has ended, which is a mistake of the caller. */
void ipc_view_alive(lua_State *L, const View *v);

/* Why the bytes of v cannot be touched now: 0 or an errno; EBADF when the view
 * has ended. */
int ipc_view_check(View *v);

/* Pushes nil, message, errno for what ipc_view_check said. */
int ipc_view_fail(lua_State *L, const char *type, const char *call, int err);

/* Pushes a copy of `size` bytes from `offset` on, which are there, each read
 * once. 0, or an errno and nothing pushed. No Lua code and no finaliser runs
 * before they are copied. */
int ipc_view_push(lua_State *L, View *v, size_t offset, size_t size);

/* Pushes a view of a range of v, which is at `index` and has it. Raises on lack
 * of memory, and on too many ranges of ranges. */
View *ipc_view_range(lua_State *L, int index, View *v, size_t offset,
                     size_t size);

/* Before the bytes go, or go elsewhere: no thread looks at them any more, and
 * who waits looks again. */
void ipc_view_unsettle(View *v);

/* Adds the methods of bytes to the metatable on top, of a type whose userdata
 * have a View `place` bytes behind their beginning. */
void ipc_view_methods(lua_State *L, size_t place);

/* Where bytes are wanted and the value at `index` is no string: replaces a view
 * by a string of its bytes. 0, or the 3 results of a failed `type.call`. Raises
 * on a view that has ended and on anything else. */
int ipc_view_string(lua_State *L, int index, const char *type,
                    const char *call);

#endif
