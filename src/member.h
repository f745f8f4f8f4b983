/* A participant of a segment as a handle has it: the name it was opened by, how
 * it is opened, closed, taken along by a fork and passed on. */
#ifndef IPC_MEMBER_H
#define IPC_MEMBER_H

#include "segment.h"

typedef struct Member {
  Segment s;      /* fd -1: nobody */
  Segment *spare; /* a participant on its way to another process */
  char *path;     /* NULL: nameless */
  bool begun;     /* all that belongs to it is known */
  bool hidden;    /* its name is nobody's business */
  bool temporary; /* its name goes with who made it */
} Member;

/* A Member that is nobody. */
#define MEMBER_NOBODY ((Member){.s = {.fd = -1}})

typedef struct Opening Opening;

/* What is one room's own. */
typedef struct MemberRoom {
  const char *name; /* of the room: "shm" */
  const char *type; /* "ipc.shm" */
  uint32_t kind;    /* SEGMENT_RING, ... */
  bool file; /* names are paths, and nobody alive does not make it stale */
  Member *(*member)(Handle *h);

  /* The segment is joined: 0, EAGAIN: again in a moment, or why it will not do.
   * Below the first 0 it may be asked again. NULL: nothing to do. */
  int (*begin)(Handle *h, const Opening *o);

  /* Joining answered ENOMSG, ENOENT, EACCES, EROFS or ELOOP, or was not tried:
   * what else it may be. 0: it is open (the member stays nobody), ENOMSG:
   * nothing else, or an errno. NULL: nothing else. */
  int (*other)(Handle *h, const Opening *o);

  /* Words for an errno, pushed: what differs (EEXIST), what `begin` did not
   * like. NULL: none. */
  const char *(*words)(lua_State *L, Handle *h, const Opening *o, int err);
} MemberRoom;

/* What an opening asks for; a userdata, because it may wait. */
struct Opening {
  SegmentAsk s;
  const MemberRoom *room;
  uint64_t own[4]; /* the room's */
  bool retries, temporary, joined;
  bool apart;  /* no segment: only the room's `other` is asked */
  Nanos until; /* retrying ends */
  char path[]; /* "": nameless */
};

/* Options of all that have participants; a room's list is these and its own. */
#define MEMBER_OPTIONS "persist", "participants", "huge", "prefault"

enum {
  MEMBER_NAP = 1000, /* us between looks while others join or leave */
  MEMBER_PATH = 4000 /* characters of a path, at most */
};

/* How long an opening bears with others that join or leave at the moment; what
 * makes a participant for another process does; and what sends one. */
#define MEMBER_PATIENCE (5 * IPC_SECOND)
#define MEMBER_FORK_PATIENCE IPC_SECOND
#define MEMBER_GIVE_PATIENCE (IPC_SECOND / 50)

/* The file behind the name at `index`: a path as it is, or a name "/x" in the
 * directory of memory, pushed. Raises what is none. */
const char *ipc_member_path(lua_State *L, int index, bool file, size_t *size);

/* Pushes what the options at `index` ask for (checked against `options`), of a
 * path that ends at `size`: create, permissions, retry, temporary and those of
 * MEMBER_OPTIONS are read. */
Opening *ipc_member_ask(lua_State *L, int index, const MemberRoom *room,
                        const char *const options[], const char *path,
                        size_t size);

/* A flag among the options: sets it in ask->flags and notes that it matters. */
void ipc_member_flag(lua_State *L, int index, const char *name, uint32_t flag,
                     SegmentAsk *ask);

/* Opens by name: on the stack are only the handle, still closed, and what it
 * asks for. `retry` is how long a missing one is waited for. Answers the
 * handle, or nil, message, errno; a tail call. */
int ipc_member_open(lua_State *L, Nanos retry);

/* Opens a nameless one. 0 or an errno (for ipc_member_explain). */
int ipc_member_nameless(Member *m, SegmentAsk *ask);

/* Pushes nil, message, errno. */
int ipc_member_explain(lua_State *L, Handle *h, const Opening *o, int err);

/* HandleOps.close, without what is the room's own. */
void ipc_member_close(Member *m, const Handle *h, How how);

/* HandleOps.forking, forked, of a handle that moves and of one that is shared:
 * its child becomes a participant of its own, or nobody. */
int ipc_member_forking(Member *m, bool moves);
void ipc_member_forked(Member *m, bool moves, bool child);

/* Makes m->spare, a participant beside it for another process to become, unless
 * there is one. EAGAIN: others joined or left for all of `patience`. */
int ipc_member_spare(Member *m, Nanos patience);
void ipc_member_spare_end(Member *m);

/* HandleOps.give of a handle that moves or is shared. */
int ipc_member_give(Member *m, const char *kind, bool moves, Given *g);

/* Room.take: becomes whom g names, whose descriptor stays the caller's until
 * ipc_member_taken; ipc_segment_abandon undoes it. EPERM: not sealed, and so
 * not to be trusted. */
int ipc_member_take(Member *m, const MemberRoom *room, const Given *g);
void ipc_member_taken(Given *g);

/* The handle in slot 1, of this room, is used: the method remove. */
int ipc_member_remove(lua_State *L, const MemberRoom *room);

#endif
