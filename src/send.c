/* The calls that send, over ops->send: a message is accepted or untouched. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <limits.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chan.h"
#include "cmsg.h"
#include "ipc.h"
#include "msgpack.h"
#include "os.h"
#include "passing.h"
#include "view.h"

/***
 * @submodule ipc.channel
 */

enum {
  SEND_SCRATCH = 1 << 20, /* bytes of scratch worth keeping */
  SEND_BATCH = 256        /* messages gathered for one crossing */
};

static int chan_check_size(lua_State *L, Chan *c, const char *call,
                           size_t size) {
  char detail[96];
  if (size <= c->limit)
    return 0;
  long long bound = -1;
  if (c->ops->bound && ipc_os_limit(c->ops->bound, &bound) == 0 &&
      bound == (long long)c->limit) {
    snprintf(detail, sizeof detail, "%zu bytes", size);
    return ipc_fail_limit(L, c->h.ops->type, call, EMSGSIZE, detail,
                          c->ops->bound);
  }
  snprintf(detail, sizeof detail, "%zu bytes, but maxsize is %zu", size,
           c->limit);
  return ipc_fail(L, c->h.ops->type, call, EMSGSIZE, detail);
}

/* ------------------------------------------------------------------- send */

/* Slots of send and put: 2 message, 3 tag, 4 timeout, 5 progress: nil, or the
 * serial of the rest that is this call's own accepted message, 6 nil or the
 * handles that go with it. */
enum {
  SEND_BYTES = 2,
  SEND_TAG,
  SEND_TIMEOUT,
  SEND_PROGRESS,
  SEND_HANDLES,
  SEND_TOP = SEND_HANDLES
};

/* A numbered message is in: answers true and its number, once it is where it
 * must be before. */
static int send_numbered(lua_State *L, Chan *self, Chan *c, const char *call,
                         lua_Integer number) {
  int err = c->ops->settled(c, (uint64_t)number, IPC_SENT);
  if (err == EAGAIN) {
    lua_pushinteger(L, number);
    lua_replace(L, SEND_PROGRESS);
    return -IPC_ENDED;
  }
  if (err)
    return ipc_fail(L, self->h.ops->type, call, err, c->why);
  lua_pushboolean(L, 1);
  lua_pushinteger(L, number);
  return 2;
}

/* After ops->send: the number of results, or what to wait for. */
static int send_result(lua_State *L, Chan *self, Chan *c, const char *call,
                       size_t size, int err) {
  switch (err) {
  case 0:
  case EINPROGRESS:
    c->sent++;
    c->bytes_out += size;
    if (c->ops->number)
      return send_numbered(L, self, c, call, (lua_Integer)c->ops->number(c));
    if (err == 0)
      return lua_pushboolean(L, 1), 1;
    lua_pushinteger(L, c->rest.serial);
    lua_replace(L, SEND_PROGRESS);
    return -IPC_WRITE;
  case EAGAIN:
    return -IPC_WRITE;
  case EMSGSIZE:
    if (size > c->limit) /* the system's limit shrank */
      return chan_check_size(L, c, call, size);
  /* fall through */
  default:
    return ipc_fail(L, self->h.ops->type, call, ipc_chan_errno(err), c->why);
  }
}

/* What became of the rest of this serial: 0 if it is out. Who is told here that
 * it is lost need not hear so again at the end. */
static int chan_progress(lua_State *L, Chan *c, lua_Integer serial) {
  if (c->rest.link && c->rest.serial == serial) {
    int err = ipc_chan_flush(L, c);
    if (err == 0 || err == EAGAIN)
      return err;
  }
  if (!c->failed || c->failed_serial != serial)
    return 0;
  c->lost = 0;
  return c->failed;
}

/* With handles beside the bytes, which are elsewhere once it is accepted. */
static int send_handles(lua_State *L, Chan *self, Chan *c, Message *m) {
  int fds[CMSG_MOST];
  int err = ipc_passing_gather(L, SEND_HANDLES, fds, &m->fd_count);
  if (err) {
    ipc_passing_kept(L, SEND_HANDLES);
    return ipc_fail(L, self->h.ops->type, "send", err,
                    err == EBUSY   ? "a handle has bytes on their way"
                    : err == E2BIG ? "more than 253 descriptors"
                    : err == EBADF ? "a handle to be sent is closed"
                    : err == EACCES
                        ? "a handle to be sent only reads, and its receiver "
                          "could write"
                    : err == EUSERS ? "all places for participants are taken"
                    : err == EAGAIN ? "others join or leave just now"
                                    : "a handle to be sent");
  }
  m->fds = fds;
  err = c->ops->send(c, m);
  m->fds = NULL;
  if (err && err != EINPROGRESS && err != EAGAIN)
    ipc_passing_kept(L, SEND_HANDLES);
  if (err == EINPROGRESS)
    ipc_chan_anchor(L, self, c, SEND_BYTES);
  if (err == 0 || err == EINPROGRESS)
    ipc_passing_gone(L, c, SEND_HANDLES);
  return send_result(L, self, c, "send", m->size, err);
}

static int send_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  if (lua_isinteger(L, SEND_PROGRESS)) {
    if (c->ops->number)
      return send_numbered(L, self, c, "send", lua_tointeger(L, SEND_PROGRESS));
    int err = chan_progress(L, c, lua_tointeger(L, SEND_PROGRESS));
    if (err == EAGAIN)
      return -IPC_WRITE;
    if (err)
      return ipc_fail(L, h->ops->type, "send", ipc_chan_errno(err), NULL);
    ipc_chan_unanchor(L, self, c);
    return lua_pushboolean(L, 1), 1;
  }
  if (c != self && !ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &c->h, "send");
  if (c->shut || c->failed)
    return ipc_fail(L, h->ops->type, "send", EPIPE, NULL);
  Message m = {0};
  m.bytes = lua_tolstring(L, SEND_BYTES, &m.size);
  ipc_chan_tag(L, c->ops->tags, SEND_TAG, &m);
  if (m.size > c->limit)
    return chan_check_size(L, c, "send", m.size);
  if (lua_istable(L, SEND_HANDLES))
    return send_handles(L, self, c, &m);
  int err = c->ops->send(c, &m);
  if (err == EINPROGRESS)
    ipc_chan_anchor(L, self, c, SEND_BYTES);
  return send_result(L, self, c, "send", m.size, err);
}

/* Accepted is accepted; but what is numbered is not yet where it must be. */
static int send_failed(lua_State *L, Handle *h, int err) {
  if (!lua_isinteger(L, SEND_PROGRESS) && lua_istable(L, SEND_HANDLES))
    ipc_passing_kept(L, SEND_HANDLES);
  if (lua_isinteger(L, SEND_PROGRESS) && ((Chan *)h)->writer->ops->number) {
    lua_Integer number = lua_tointeger(L, SEND_PROGRESS);
    int n = ipc_fail(L, h->ops->type, "send", err, NULL);
    lua_pushinteger(L, number);
    return n + 1;
  }
  if (lua_isinteger(L, SEND_PROGRESS))
    return lua_pushboolean(L, 1), 1;
  return ipc_fail(L, h->ops->type, "send", err, NULL);
}

static const Op send_op = {.name = "send",
                           .attempt = send_attempt,
                           .failed = send_failed,
                           .want = IPC_WRITE,
                           .deadline = SEND_TIMEOUT,
                           .top = SEND_TOP};

/* Without a word to wait for: 1, or 0 when there is more to it. What the op
 * answers here it answers again. */
static int send_direct(lua_State *L, Chan *self, Chan *c) {
  Message m = {0};
  m.bytes = lua_tolstring(L, SEND_BYTES, &m.size);
  if (!ipc_chan_direct(L, self, c) || c->shut || c->failed || c->ops->tags ||
      c->ops->number || m.size > c->limit)
    return 0;
  int err = c->ops->send(c, &m);
  if (err == EINPROGRESS) {
    lua_settop(L, SEND_TOP);
    ipc_chan_anchor(L, self, c, SEND_BYTES);
    (void)send_result(L, self, c, "send", m.size, err);
    return ipc_run(L, &send_op);
  }
  if (err)
    return 0;
  c->sent++;
  c->bytes_out += m.size;
  lua_pushboolean(L, 1);
  return 1;
}

/***
Sends a message whole: what one send puts in, one recv takes out. On a stream
the bytes go out as they are.

Once the first byte is out the message is accepted: `true` even if the deadline
passes then; the channel writes the rest before anything else, in any later
wait of the program, in `flush` and in `close`. Before that a failure leaves it
untouched.
@function channel:send
@tparam string|view bytes may be empty; at most `maxsize()` bytes. A view's are
copied when it is called
@tparam ?integer tag where the mechanism has tags
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno: `"timeout"` (ETIMEDOUT),
`"closed"` (EPIPE), EMSGSIZE when it is over the limit
@usage assert(ch:send("hello", nil, 1.5))
*/
static int chan_send(lua_State *L) {
  Chan *c = ipc_chan_sender(L);
  if (lua_gettop(L) == 2 && lua_type(L, SEND_BYTES) == LUA_TSTRING) {
    int n = send_direct(L, c, c->writer);
    if (n > 0)
      return n;
  }
  if (lua_type(L, SEND_BYTES) != LUA_TSTRING) {
    int n = ipc_view_string(L, SEND_BYTES, c->h.ops->type, "send");
    if (n)
      return n;
  }
  ipc_chan_check_tag(L, c, SEND_TAG, true);
  ipc_check_timeout(L, SEND_TIMEOUT);
  lua_settop(L, SEND_TOP);
  return ipc_run(L, &send_op);
}

/* Encodes the value into S->scratch; whether there are handles in it, which are
 * in SEND_HANDLES then. */
static bool put_handles(lua_State *L, const Chan *self, State *S) {
  PackForeign f = {.type = PASSING_EXT, .pack = ipc_passing_pack};
  ipc_passing_start(L, self, &f);
  S->scratch.size = 0;
  ipc_value_encode_with(L, SEND_BYTES, &S->scratch, &f);
  bool some = ipc_passing_some(L);
  if (some)
    lua_replace(L, SEND_HANDLES);
  lua_settop(L, SEND_TOP);
  return some;
}

/***
Sends a Lua value as MessagePack; `get` receives it. On a stream it is bare
MessagePack, as other programs write it.
@function channel:put
@param value nil, boolean, number, string, table, `ipc.null`, `ipc.ext`, a view
(as binary); what cannot be encoded (functions, cycles, a view whose bytes are
gone) raises, naming the path to it
@tparam ?integer tag where the mechanism has tags
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno as `send`
@usage assert(ch:put { name = "job", args = { 1, 2 } })
*/
static int chan_put(lua_State *L) {
  Chan *self = ipc_chan_sender(L), *c = self->writer;
  State *S = c->h.state;
  luaL_checkany(L, SEND_BYTES);
  ipc_chan_check_tag(L, self, SEND_TAG, true);
  ipc_check_timeout(L, SEND_TIMEOUT);
  lua_settop(L, SEND_TOP);
  bool some = c->passes && put_handles(L, self, S);
  if (!c->passes) {
    S->scratch.size = 0;
    ipc_value_encode(L, SEND_BYTES, &S->scratch);
  }
  Message m = {.bytes = S->scratch.bytes, .size = S->scratch.size};
  ipc_chan_tag(L, c->ops->tags, SEND_TAG, &m);
  if (ipc_handle_usable(&self->h) && ipc_handle_usable(&c->h) && !c->shut &&
      !c->failed && !self->h.queue && !some) {
    if (m.size > c->limit) {
      if (S->scratch.room > SEND_SCRATCH)
        ipc_buffer_free(&S->scratch);
      return chan_check_size(L, c, "put", m.size);
    }
    int err = c->ops->send(c, &m);
    if (err == EINPROGRESS) {
      c->rest.owned = S->scratch.bytes;
      S->scratch = (Buffer){NULL, 0, 0};
    }
    if (S->scratch.room > SEND_SCRATCH && err != EAGAIN)
      ipc_buffer_free(&S->scratch);
    int n = err == EAGAIN ? 0 : send_result(L, self, c, "put", m.size, err);
    if (n > 0)
      return n;
    if (n < 0)
      return ipc_run(L, &send_op);
  }
  lua_pushlstring(L, m.bytes, m.size);
  lua_replace(L, SEND_BYTES);
  if (S->scratch.room > SEND_SCRATCH)
    ipc_buffer_free(&S->scratch);
  return ipc_run(L, &send_op);
}

/***
Sends a message and, beside it, handles: pipes, sockets, listeners. Ends move:
once they are sent they are closed here. A duplex pipe arrives as two.
@function socket:sendmsg
@tparam string|view bytes at least one on a stream
@tparam {channel,...} handles at most 253 descriptors, and what the receiver
allows by its option `handles`
@tparam ?string tag whom to, of datagrams
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno as `channel:send`, and EBUSY while
a handle has bytes read ahead or not all out, EBADF when one was closed
@usage assert(socket:sendmsg("take these", { reader, writer }))
*/
int ipc_passing_send(lua_State *L) {
  Chan *c = ipc_chan_sender(L);
  if (lua_type(L, SEND_BYTES) != LUA_TSTRING) {
    int n = ipc_view_string(L, SEND_BYTES, c->h.ops->type, "sendmsg");
    if (n)
      return n;
  }
  ipc_passing_check(L, c, 3);
  ipc_chan_check_tag(L, c, 4, true);
  ipc_check_timeout(L, 5);
  lua_settop(L, 5);
  if (!c->passes)
    luaL_error(L, "%s: handles go through unix sockets only", c->h.ops->type);
  lua_createtable(L, 0, 0); /* a list of our own: theirs may change */
  lua_Integer n = (lua_Integer)lua_rawlen(L, 3);
  for (lua_Integer i = 1; i <= n; i++) {
    lua_rawgeti(L, 3, i);
    lua_rawseti(L, 6, i);
  }
  lua_remove(L, 3); /* 3 tag, 4 timeout, 5 the list */
  lua_pushnil(L);
  lua_insert(L, SEND_PROGRESS);
  if (n == 0) {
    lua_pushnil(L);
    lua_replace(L, SEND_HANDLES);
  }
  return ipc_run(L, &send_op);
}

/* Slots of sendmany: as send, then how many are accepted. */
enum { MANY_SENT = SEND_TOP + 1, MANY_TOP = MANY_SENT };

static int many_failed(lua_State *L, Handle *h, int err) {
  lua_Integer sent = lua_tointeger(L, MANY_SENT);
  int n;
  if (err == EMSGSIZE) { /* the next one is */
    lua_rawgeti(L, SEND_BYTES, sent + 1);
    size_t size = (size_t)lua_rawlen(L, -1);
    n = chan_check_size(L, ((Chan *)h)->writer, "sendmany", size);
  } else {
    n = ipc_fail(L, h->ops->type, "sendmany", err, ((Chan *)h)->writer->why);
  }
  lua_pushinteger(L, sent);
  return n + 1;
}

static int many_result(lua_State *L, Handle *h, int err) {
  lua_Integer sent = lua_tointeger(L, MANY_SENT);
  bool numbered = ((Chan *)h)->writer->ops->number && err;
  if (numbered || sent < (lua_Integer)lua_rawlen(L, SEND_BYTES))
    return many_failed(L, h, err);
  lua_pushinteger(L, sent);
  return 1;
}

/* Looks at the messages from `sent` on; the views stay valid because the list
 * holds the strings and no Lua runs meanwhile. */
static size_t many_gather(lua_State *L, Chan *c, size_t sent, Message *views) {
  size_t count = 0, total = (size_t)lua_rawlen(L, SEND_BYTES);
  while (count < SEND_BATCH && sent + count < total) {
    Message *m = &views[count];
    if (lua_rawgeti(L, SEND_BYTES, (lua_Integer)(sent + count + 1)) !=
        LUA_TSTRING)
      luaL_error(L, "ipc.sendmany: list[%d] is a %s now",
                 (int)(sent + count + 1), luaL_typename(L, -1));
    *m = (Message){0};
    m->bytes = lua_tolstring(L, -1, &m->size);
    ipc_chan_tag(L, c->ops->tags, SEND_TAG, m);
    lua_pop(L, 1);
    if (m->size > c->limit)
      break;
    count++;
  }
  return count;
}

static int many_send(Chan *c, const Message *m, size_t count, size_t *sent) {
  if (c->ops->sendmany)
    return c->ops->sendmany(c, m, count, sent);
  for (*sent = 0; *sent < count; ++*sent) {
    int err = c->ops->send(c, &m[*sent]);
    if (err)
      return err;
  }
  return 0;
}

/* All are in; of numbered ones the last must be where it must be, too. */
static int many_settled(lua_State *L, Handle *h, Chan *c) {
  int err =
      c->ops->settled(c, (uint64_t)lua_tointeger(L, SEND_PROGRESS), IPC_SENT);
  if (err == EAGAIN)
    return -IPC_ENDED;
  return err ? many_failed(L, h, err) : many_result(L, h, 0);
}

static int many_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  size_t total = (size_t)lua_rawlen(L, SEND_BYTES);
  if (lua_isinteger(L, SEND_PROGRESS) && c->ops->number)
    return many_settled(L, h, c);
  if (lua_isinteger(L, SEND_PROGRESS)) {
    int err = chan_progress(L, c, lua_tointeger(L, SEND_PROGRESS));
    if (err == EAGAIN)
      return -IPC_WRITE;
    if (err) { /* the last one did not arrive */
      lua_pushinteger(L, lua_tointeger(L, MANY_SENT) - 1);
      lua_replace(L, MANY_SENT);
      return many_result(L, h, ipc_chan_errno(err));
    }
    lua_pushnil(L);
    lua_replace(L, SEND_PROGRESS);
    ipc_chan_unanchor(L, self, c);
  }
  for (;;) {
    Message views[SEND_BATCH];
    size_t sent = (size_t)lua_tointeger(L, MANY_SENT), now = 0;
    if (sent >= total)
      return many_result(L, h, 0);
    if (c->shut || c->failed || !ipc_handle_usable(&c->h))
      return many_result(L, h, EPIPE);
    size_t count = many_gather(L, c, sent, views);
    if (count == 0)
      return many_result(L, h, EMSGSIZE);
    int err = many_send(c, views, count, &now);
    for (size_t i = 0; i < now; i++)
      c->bytes_out += views[i].size;
    c->sent += now;
    lua_pushinteger(L, (lua_Integer)(sent + now));
    lua_replace(L, MANY_SENT);
    if (err == EINPROGRESS) { /* the last of them is not all out */
      lua_rawgeti(L, SEND_BYTES, (lua_Integer)(sent + now));
      ipc_chan_anchor(L, self, c, -1);
      lua_pop(L, 1);
      lua_pushinteger(L, c->rest.serial);
      lua_replace(L, SEND_PROGRESS);
      return -IPC_WRITE;
    }
    if (err == EAGAIN)
      return -IPC_WRITE;
    if (err)
      return many_result(L, h, ipc_chan_errno(err));
    if (c->ops->number && sent + now >= total) {
      lua_pushinteger(L, (lua_Integer)c->ops->number(c));
      lua_replace(L, SEND_PROGRESS);
      return many_settled(L, h, c);
    }
  }
}

static const Op many_op = {.name = "sendmany",
                           .attempt = many_attempt,
                           .failed = many_result,
                           .want = IPC_WRITE,
                           .deadline = SEND_TIMEOUT,
                           .top = MANY_TOP};

/* The list with the views in it, the first of which is at `first`, as strings:
 * one of our own. 0, or 4 results. */
static int many_views(lua_State *L, Chan *c, size_t first, size_t total) {
  lua_createtable(L, total < INT_MAX ? (int)total : 0, 0);
  for (size_t i = 1; i <= total; i++) {
    int type = lua_rawgeti(L, SEND_BYTES, (lua_Integer)i);
    if (i >= first && type == LUA_TUSERDATA && ipc_view_test(L, -1)) {
      int n = ipc_view_string(L, lua_gettop(L), c->h.ops->type, "sendmany");
      if (n) {
        lua_pushinteger(L, 0);
        return n + 1;
      }
    }
    lua_rawseti(L, -2, (lua_Integer)i);
  }
  lua_replace(L, SEND_BYTES);
  return 0;
}

/***
Sends every string of a list, crossing into the kernel once for many of them.
@function channel:sendmany
@tparam {string,...} list strings, or views
@tparam ?integer tag where the mechanism has tags, for all of them
@tparam[opt=the channel's] ?number timeout seconds, for all together
@treturn integer `#list`; or nil, message, errno, n: list[1..n] were accepted
*/
static int chan_sendmany(lua_State *L) {
  Chan *c = ipc_chan_sender(L);
  luaL_checktype(L, SEND_BYTES, LUA_TTABLE);
  ipc_chan_check_tag(L, c, SEND_TAG, true);
  ipc_check_timeout(L, SEND_TIMEOUT);
  lua_settop(L, SEND_TOP);
  size_t total = (size_t)lua_rawlen(L, SEND_BYTES), view = 0;
  for (size_t i = 1; i <= total; i++) {
    if (lua_rawgeti(L, SEND_BYTES, (lua_Integer)i) != LUA_TSTRING) {
      if (!ipc_view_test(L, -1))
        luaL_argerror(L, SEND_BYTES,
                      lua_pushfstring(L, "list[%d]: string expected, got %s",
                                      (int)i, luaL_typename(L, -1)));
      view = view ? view : i;
    }
    lua_pop(L, 1);
  }
  int n = view ? many_views(L, c, view, total) : 0;
  if (n)
    return n;
  lua_pushinteger(L, 0);
  return ipc_run(L, &many_op);
}

/***
Waits until what earlier sends left behind is written.
@function channel:flush
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno
*/
static int flush_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  int err = ipc_chan_flush(L, c);
  if (!err)
    err = c->failed; /* another wait found out */
  if (!err && c->ops->number && c->h.open) {
    err = c->ops->settled(c, c->ops->number(c), IPC_FLUSHED);
    if (err == EAGAIN)
      return -IPC_ENDED;
  }
  if (err == EAGAIN)
    return -IPC_WRITE;
  if (err)
    return ipc_fail(L, h->ops->type, "flush", ipc_chan_errno(err), c->why);
  ipc_chan_unanchor(L, self, c);
  return lua_pushboolean(L, 1), 1;
}

static const Op flush_op = {.name = "flush",
                            .attempt = flush_attempt,
                            .want = IPC_WRITE,
                            .deadline = 2,
                            .top = 2};

static int chan_flush(lua_State *L) {
  ipc_chan_sender(L);
  ipc_check_timeout(L, 2);
  lua_settop(L, 2);
  return ipc_run(L, &flush_op);
}

const luaL_Reg ipc_send_methods[] = {{"send", chan_send},
                                     {"put", chan_put},
                                     {"sendmany", chan_sendmany},
                                     {"flush", chan_flush},
                                     {NULL, NULL}};
