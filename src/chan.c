/* What every channel has on top of its room: the calls that send, receive and
 * close, over the ops in ipc.h. Values are msgpack.c's, waiting is wait.c's. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ipc.h"
#include "msgpack.h"

enum {
  CHAN_LIMIT = 64 << 20,    /* bytes of a message, by default */
  CHAN_SCRATCH = 1 << 20,   /* bytes of scratch worth keeping */
  CHAN_DECODE = 2048,       /* bytes decoded off the C stack */
  CHAN_BATCH = 512          /* messages gathered for one crossing */
};

/* ------------------------------------------------------------------ rests */

int ipc_chan_flush(Chan *c) {
  if (c->rest.link) {
    int err = c->ops->flush(c);
    if (err)
      return err;
  }
  if (c->shutting) {
    c->shutting = false;
    return c->ops->shutdown(c);
  }
  return 0;
}

void ipc_chan_set_rest(Chan *c, const char *head, size_t headed,
                       const char *bytes, size_t size) {
  State *S = c->h.state;
  memcpy(c->rest.head, head, headed);
  c->rest.headed = (uint8_t)headed;
  c->rest.bytes = bytes;
  c->rest.size = size;
  c->rest.serial++;
  c->rest.next = S->rests;
  c->rest.link = &S->rests;
  if (c->rest.next)
    c->rest.next->rest.link = &c->rest.next;
  S->rests = c;
}

void ipc_chan_end_rest(Chan *c, int err) {
  if (!c->rest.link)
    return;
  if (err) {
    c->lost += c->rest.size + c->rest.headed;
    c->failed = err;
  }
  *c->rest.link = c->rest.next;
  if (c->rest.next)
    c->rest.next->rest.link = c->rest.link;
  c->rest.link = NULL;
  free(c->rest.owned);
  c->rest.owned = NULL;
  c->rest.bytes = NULL;
  c->rest.size = c->rest.headed = 0;
}

/* Pushes the userdata of `c`, which is `self` or one of its parts. */
static void chan_push(lua_State *L, Chan *self, Chan *c) {
  if (c == self)
    lua_pushvalue(L, 1);
  else
    lua_getiuservalue(L, 1, c == self->reader ? IPC_UV_READER : IPC_UV_WRITER);
}

/* Ties the string at `index` to the rest that points into it. */
static void chan_anchor(lua_State *L, Chan *self, Chan *c, int index) {
  index = lua_absindex(L, index);
  chan_push(L, self, c);
  lua_pushvalue(L, index);
  lua_setiuservalue(L, -2, IPC_UV_REST);
  lua_pop(L, 1);
  c->rest.anchored = true;
}

/* Lets go of a string whose bytes are out. */
static void chan_unanchor(lua_State *L, Chan *self, Chan *c) {
  if (!c->rest.anchored || c->rest.link)
    return;
  chan_push(L, self, c);
  lua_pushnil(L);
  lua_setiuservalue(L, -2, IPC_UV_REST);
  lua_pop(L, 1);
  c->rest.anchored = false;
}

/* ------------------------------------------------------------- arguments */

static Chan *chan_self(lua_State *L) { return (Chan *)ipc_handle_self(L); }

static Chan *chan_sender(lua_State *L) {
  Chan *c = chan_self(L);
  if (!c->writer)
    luaL_error(L, "%s: this end only receives", c->h.ops->type);
  return c;
}

static Chan *chan_receiver(lua_State *L) {
  Chan *c = chan_self(L);
  if (!c->reader)
    luaL_error(L, "%s: this end only sends", c->h.ops->type);
  return c;
}

/* A tag argument, and the timeout behind or before it. */
static void chan_check_tag(lua_State *L, const Chan *c, int index) {
  if (lua_isnoneornil(L, index))
    return;
  if (!c->tagged)
    luaL_argerror(L, index,
                  lua_type(L, index) == LUA_TNUMBER && index == 3
                      ? "no tags here: the timeout is the third argument"
                      : "no tags here");
}

static int chan_check_size(lua_State *L, Chan *c, const char *call,
                           size_t size) {
  char detail[96];
  if (size <= c->limit)
    return 0;
  snprintf(detail, sizeof detail, "%zu bytes, but maxsize is %zu", size,
           c->limit);
  return ipc_fail(L, c->h.ops->type, call, EMSGSIZE, detail);
}

/* ------------------------------------------------------------------- send */

/* Slots of send and put: 2 message, 3 tag, 4 timeout, 5 progress: nil, or the
 * serial of the rest that is this call's own accepted message. */
enum { SEND_BYTES = 2, SEND_TAG, SEND_TIMEOUT, SEND_PROGRESS, SEND_TOP = 5 };

/* The peer is gone, whichever way the system says so. */
static int chan_end(int err) {
  return err == ECONNRESET || err == ENOTCONN || err == ESHUTDOWN ? EPIPE : err;
}

/* After ops->send: the number of results, or what to wait for. */
static int send_result(lua_State *L, Chan *self, Chan *c, const char *call,
                       size_t size, int err) {
  switch (err) {
  case 0:
  case EINPROGRESS:
    c->sent++;
    c->bytes_out += size;
    if (err == 0)
      return lua_pushboolean(L, 1), 1;
    lua_pushinteger(L, c->rest.serial);
    lua_replace(L, SEND_PROGRESS);
    return -IPC_WRITE;
  case EAGAIN:
    return -IPC_WRITE;
  default:
    return ipc_fail(L, self->h.ops->type, call, chan_end(err), NULL);
  }
}

/* Whether a rest of this serial is still pending: 0 if it is out. */
static int chan_progress(Chan *c, lua_Integer serial) {
  if (c->rest.link && c->rest.serial == serial)
    return ipc_chan_flush(c);
  return c->failed;
}

static int send_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  if (lua_isinteger(L, SEND_PROGRESS)) {
    int err = chan_progress(c, lua_tointeger(L, SEND_PROGRESS));
    if (err == EAGAIN)
      return -IPC_WRITE;
    if (err)
      return ipc_fail(L, h->ops->type, "send", chan_end(err), NULL);
    chan_unanchor(L, self, c);
    return lua_pushboolean(L, 1), 1;
  }
  if (c != self && !ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &c->h, "send");
  if (c->shut || c->failed)
    return ipc_fail(L, h->ops->type, "send", EPIPE, NULL);
  Message m = {NULL, 0, 0};
  m.bytes = lua_tolstring(L, SEND_BYTES, &m.size);
  if (c->tagged)
    m.tag = lua_tointeger(L, SEND_TAG);
  if (m.size > c->limit)
    return chan_check_size(L, c, "send", m.size);
  int err = c->ops->send(c, &m);
  if (err == EINPROGRESS)
    chan_anchor(L, self, c, SEND_BYTES);
  return send_result(L, self, c, "send", m.size, err);
}

/* Accepted is accepted. */
static int send_failed(lua_State *L, Handle *h, int err) {
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

/***
Sends a message whole: what one send puts in, one recv takes out. On a stream
the bytes go out as they are.

Once the first byte is out the message is accepted: `true` even if the deadline
passes then; the channel writes the rest before anything else, in any later
wait of the program, in `flush` and in `close`. Before that a failure leaves it
untouched.
@function channel:send
@string bytes may be empty; at most `maxsize()` bytes
@tparam ?integer tag where the mechanism has tags
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno: `"timeout"` (ETIMEDOUT),
`"closed"` (EPIPE), EMSGSIZE when it is over the limit
@usage assert(ch:send("hello", nil, 1.5))
*/
static int chan_send(lua_State *L) {
  Chan *c = chan_sender(L);
  if (lua_type(L, SEND_BYTES) != LUA_TSTRING)
    luaL_typeerror(L, SEND_BYTES, "string");
  chan_check_tag(L, c, SEND_TAG);
  ipc_check_timeout(L, SEND_TIMEOUT);
  lua_settop(L, SEND_TOP);
  return ipc_run(L, &send_op);
}

/***
Sends a Lua value as MessagePack; `get` receives it. On a stream it is bare
MessagePack, as other programs write it.
@function channel:put
@param value nil, boolean, number, string, table, `ipc.null`, `ipc.ext`; what
cannot be encoded (functions, cycles) raises, naming the path to it
@tparam ?integer tag where the mechanism has tags
@tparam[opt=the channel's] ?number timeout seconds
@treturn boolean true; or nil, message, errno as `send`
@usage assert(ch:put { name = "job", args = { 1, 2 } })
*/
static int chan_put(lua_State *L) {
  Chan *self = chan_sender(L), *c = self->writer;
  State *S = c->h.state;
  luaL_checkany(L, SEND_BYTES);
  chan_check_tag(L, self, SEND_TAG);
  ipc_check_timeout(L, SEND_TIMEOUT);
  lua_settop(L, SEND_TOP);
  S->scratch.size = 0;
  ipc_value_encode(L, SEND_BYTES, &S->scratch);
  Message m = {S->scratch.bytes, S->scratch.size, 0};
  if (c->tagged)
    m.tag = lua_tointeger(L, SEND_TAG);
  if (ipc_handle_usable(&self->h) && ipc_handle_usable(&c->h) && !c->shut &&
      !c->failed && !self->h.queue && m.size <= c->limit) {
    int err = c->ops->send(c, &m);
    if (err == EINPROGRESS) {
      c->rest.owned = S->scratch.bytes;
      S->scratch = (Buffer){NULL, 0, 0};
    }
    if (S->scratch.room > CHAN_SCRATCH && err != EAGAIN)
      ipc_buffer_free(&S->scratch);
    int n = err == EAGAIN
                ? 0
                : send_result(L, self, c, "put", m.size, err);
    if (n > 0)
      return n;
    if (n < 0)
      return ipc_run(L, &send_op);
  }
  lua_pushlstring(L, m.bytes, m.size);
  lua_replace(L, SEND_BYTES);
  if (S->scratch.room > CHAN_SCRATCH)
    ipc_buffer_free(&S->scratch);
  return ipc_run(L, &send_op);
}

/* Slots of sendmany: as send, then how many are accepted. */
enum { MANY_SENT = SEND_TOP + 1, MANY_TOP = MANY_SENT };

static int many_result(lua_State *L, Handle *h, int err) {
  lua_Integer sent = lua_tointeger(L, MANY_SENT);
  if (sent == (lua_Integer)lua_rawlen(L, SEND_BYTES)) {
    lua_pushinteger(L, sent);
    return 1;
  }
  int n = ipc_fail(L, h->ops->type, "sendmany", err, NULL);
  lua_pushinteger(L, sent);
  return n + 1;
}

/* Looks at the messages from `sent` on; the views stay valid because the list
 * holds the strings and no Lua runs meanwhile. */
static size_t many_gather(lua_State *L, Chan *c, size_t sent, Message *views) {
  size_t count = 0, total = lua_rawlen(L, SEND_BYTES);
  while (count < CHAN_BATCH && sent + count < total) {
    Message *m = &views[count];
    if (lua_rawgeti(L, SEND_BYTES, (lua_Integer)(sent + count + 1)) !=
        LUA_TSTRING)
      luaL_error(L, "ipc.sendmany: list[%d] is a %s now",
                 (int)(sent + count + 1), luaL_typename(L, -1));
    m->bytes = lua_tolstring(L, -1, &m->size);
    m->tag = lua_tointeger(L, SEND_TAG);
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

static int many_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  size_t total = lua_rawlen(L, SEND_BYTES);
  if (lua_isinteger(L, SEND_PROGRESS)) {
    int err = chan_progress(c, lua_tointeger(L, SEND_PROGRESS));
    if (err == EAGAIN)
      return -IPC_WRITE;
    if (err)
      return many_result(L, h, chan_end(err));
    lua_pushnil(L);
    lua_replace(L, SEND_PROGRESS);
    chan_unanchor(L, self, c);
  }
  for (;;) {
    Message views[CHAN_BATCH];
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
      chan_anchor(L, self, c, -1);
      lua_pop(L, 1);
      lua_pushinteger(L, c->rest.serial);
      lua_replace(L, SEND_PROGRESS);
      return -IPC_WRITE;
    }
    if (err == EAGAIN)
      return -IPC_WRITE;
    if (err)
      return many_result(L, h, chan_end(err));
  }
}

static const Op many_op = {.name = "sendmany",
                           .attempt = many_attempt,
                           .failed = many_result,
                           .want = IPC_WRITE,
                           .deadline = SEND_TIMEOUT,
                           .top = MANY_TOP};

/***
Sends every string of a list, crossing into the kernel once for many of them.
@function channel:sendmany
@tparam {string,...} list
@tparam ?integer tag where the mechanism has tags, for all of them
@tparam[opt=the channel's] ?number timeout seconds, for all together
@treturn integer `#list`; or nil, message, errno, n: list[1..n] were accepted
*/
static int chan_sendmany(lua_State *L) {
  Chan *c = chan_sender(L);
  luaL_checktype(L, SEND_BYTES, LUA_TTABLE);
  chan_check_tag(L, c, SEND_TAG);
  ipc_check_timeout(L, SEND_TIMEOUT);
  lua_settop(L, SEND_PROGRESS);
  size_t total = lua_rawlen(L, SEND_BYTES);
  for (size_t i = 1; i <= total; i++) {
    if (lua_rawgeti(L, SEND_BYTES, (lua_Integer)i) != LUA_TSTRING)
      luaL_argerror(L, SEND_BYTES,
                    lua_pushfstring(L, "list[%d]: string expected, got %s",
                                    (int)i, luaL_typename(L, -1)));
    lua_pop(L, 1);
  }
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
  int err = ipc_chan_flush(c);
  if (err == EAGAIN)
    return -IPC_WRITE;
  if (err)
    return ipc_fail(L, h->ops->type, "flush", chan_end(err), NULL);
  chan_unanchor(L, self, c);
  return lua_pushboolean(L, 1), 1;
}

static const Op flush_op = {.name = "flush",
                            .attempt = flush_attempt,
                            .want = IPC_WRITE,
                            .deadline = 2,
                            .top = 2};

static int chan_flush(lua_State *L) {
  chan_sender(L);
  ipc_check_timeout(L, 2);
  lua_settop(L, 2);
  return ipc_run(L, &flush_op);
}

/* ---------------------------------------------------------------- receive */

/* Slots of everything that receives: 2 timeout, 3 tag. */
enum { RECV_TIMEOUT = 2, RECV_TAG, RECV_TOP = 3 };

/* The next message into *m: 0, or as ops->recv, an error found by recvmany
 * first. */
static int recv_next(Chan *c, Message *m) {
  if (c->held) {
    int err = c->held;
    m->size = c->held_size;
    c->held = 0;
    return err;
  }
  if (c->h.generation != ipc_generation)
    return ECHILD;
  return c->h.open ? c->ops->recv(c, m) : EPIPE;
}

static int recv_error(lua_State *L, Chan *self, const char *call, int err,
                      size_t size) {
  char detail[128];
  switch (err) {
  case EAGAIN:
    return -IPC_READ;
  case EMSGSIZE:
    snprintf(detail, sizeof detail,
             "%zu bytes, but maxsize is %zu (does the peer speak frames?)",
             size, self->reader->limit);
    return ipc_fail(L, self->h.ops->type, call, err, detail);
  case EBADMSG:
    return ipc_fail(L, self->h.ops->type, call, err,
                    "not a frame's length (does the peer speak frames? "
                    "else unit = \"stream\")");
  case ECHILD:
    return ipc_handle_refuse(L, &self->reader->h, call);
  default:
    return ipc_fail(L, self->h.ops->type, call, chan_end(err), NULL);
  }
}

/* The message just copied to Lua is taken. */
static void recv_took(Chan *c, size_t size) {
  c->ops->took(c, size);
  c->serial++;
  c->received++;
  c->bytes_in += size;
}

static int recv_pushed(lua_State *L, const Chan *c, const Message *m) {
  if (!c->tagged)
    return 1;
  lua_pushinteger(L, m->tag);
  return 2;
}

static int recv_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  for (;;) {
    Message m = {NULL, 0, lua_tointeger(L, RECV_TAG)};
    int err = recv_next(c, &m);
    if (err)
      return recv_error(L, self, "recv", err, m.size);
    uint32_t serial = c->serial;
    lua_pushlstring(L, m.bytes, m.size);
    if (serial == c->serial) {
      recv_took(c, m.size);
      return recv_pushed(L, c, &m);
    }
    /* A finaliser ran in the allocation and received this very message. */
    lua_pop(L, 1);
  }
}

static const Op recv_op = {.name = "recv",
                           .attempt = recv_attempt,
                           .want = IPC_READ,
                           .deadline = RECV_TIMEOUT,
                           .top = RECV_TOP};

static const Op messages_op = {.name = "recv",
                               .attempt = recv_attempt,
                               .want = IPC_READ,
                               .deadline = RECV_TIMEOUT,
                               .top = RECV_TOP,
                               .quiet = true};

static void recv_arguments(lua_State *L) {
  Chan *c = chan_receiver(L);
  ipc_check_timeout(L, RECV_TIMEOUT);
  chan_check_tag(L, c, RECV_TAG);
  lua_settop(L, RECV_TOP);
}

/***
Receives the next message whole; on a stream the bytes that are there, 1 byte
to 64 KiB.
@function channel:recv
@tparam[opt=the channel's] ?number timeout seconds; 0 never waits
@tparam ?integer tag where the mechanism selects by tag
@treturn string bytes, then the tag where there is one; or nil, message, errno:
`"timeout"` (ETIMEDOUT), `"closed"` (EPIPE) after the last message, EMSGSIZE
for one over the limit (it is gone, the next recv goes on)
*/
static int chan_recv(lua_State *L) {
  recv_arguments(L);
  return ipc_run(L, &recv_op);
}

/* One value out of a stream of them. 0, EAGAIN, EPIPE, EBADMSG (pushed). The
 * decoder gets them off the C stack: it runs Lua's allocator, hence finalisers,
 * and these may use the channel and move its buffer. */
static int get_streamed(lua_State *L, Chan *self, Chan *c) {
  chan_push(L, self, c);
  if (lua_getiuservalue(L, -1, IPC_UV_DECODER) == LUA_TNIL) {
    lua_pop(L, 1);
    ipc_decoder_push(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, -3, IPC_UV_DECODER);
  }
  lua_replace(L, -2);
  int decoder = lua_gettop(L);
  for (;;) {
    char bytes[CHAN_DECODE];
    Message m = {NULL, 0, 0};
    size_t used = 0;
    int err = recv_next(c, &m);
    if (err) {
      lua_settop(L, decoder - 1);
      return err;
    }
    if (m.size > sizeof bytes)
      m.size = sizeof bytes;
    memcpy(bytes, m.bytes, m.size);
    uint32_t serial = c->serial;
    err = ipc_decoder_feed(L, decoder, bytes, m.size, &used);
    if (serial == c->serial) {
      c->ops->took(c, used);
      c->serial++;
      c->bytes_in += used;
    }
    if (err == EAGAIN)
      continue;
    lua_remove(L, decoder);
    return err;
  }
}

static int get_failed(lua_State *L, Chan *self) {
  lua_pushnil(L);
  lua_pushfstring(L, "%s.get: %s", self->h.ops->type, lua_tostring(L, -2));
  lua_pushinteger(L, EBADMSG);
  return 3;
}

static int get_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  if (c->stream) {
    int err = get_streamed(L, self, c);
    if (err == EBADMSG)
      return get_failed(L, self);
    if (err)
      return recv_error(L, self, "get", err, 0);
    c->received++;
    return 1;
  }
  for (;;) {
    char bytes[CHAN_DECODE];
    Message m = {NULL, 0, lua_tointeger(L, RECV_TAG)};
    int top = lua_gettop(L), err = recv_next(c, &m);
    if (err)
      return recv_error(L, self, "get", err, m.size);
    uint32_t serial = c->serial;
    /* Out of the channel's buffer first: see get_streamed. */
    if (m.size <= sizeof bytes) {
      memcpy(bytes, m.bytes, m.size);
      err = ipc_value_decode(L, bytes, m.size);
    } else {
      lua_pushlstring(L, m.bytes, m.size);
      err = ipc_value_decode(L, lua_tostring(L, -1), m.size);
    }
    if (serial == c->serial) {
      recv_took(c, m.size);
      return err ? get_failed(L, self) : recv_pushed(L, c, &m);
    }
    lua_settop(L, top);
  }
}

static const Op get_op = {.name = "get",
                          .attempt = get_attempt,
                          .want = IPC_READ,
                          .deadline = RECV_TIMEOUT,
                          .top = RECV_TOP};

static const Op values_op = {.name = "get",
                             .attempt = get_attempt,
                             .want = IPC_READ,
                             .deadline = RECV_TIMEOUT,
                             .top = RECV_TOP,
                             .quiet = true};

/***
Receives the next value that `put` sent. A nil arrives as `ipc.null`.
@function channel:get
@tparam[opt=the channel's] ?number timeout seconds; 0 never waits
@tparam ?integer tag where the mechanism selects by tag
@return the value, then the tag where there is one; or nil, message, errno as
`recv`, and EBADMSG for a message that is no value (it is gone)
*/
static int chan_get(lua_State *L) {
  recv_arguments(L);
  return ipc_run(L, &get_op);
}

/* Slots of recvmany: 2 timeout, 3 tag (after rearranging), 4 max. */
enum { RECVMANY_MAX = RECV_TOP + 1, RECVMANY_TOP = RECVMANY_MAX };

/* Collects into the table at 2: (channel, table, max, tag, first). Called
 * protected: what is in the table is taken, what is not is not. */
static int many_collect(lua_State *L) {
  Chan *c = lua_touserdata(L, 1);
  lua_Integer max = lua_tointeger(L, 3), count = 0;
  Message m = *(Message *)lua_touserdata(L, 4);
  for (;;) {
    uint32_t serial = c->serial;
    lua_pushlstring(L, m.bytes, m.size);
    if (serial == c->serial) {
      lua_rawseti(L, 2, ++count);
      recv_took(c, m.size);
    }
    lua_settop(L, 4);
    if (count == max || (c->ahead && c->h.ops->ready(&c->h, IPC_READ, false)))
      return 0;
    int err = recv_next(c, &m);
    if (err) {
      if (err != EAGAIN) {
        c->held = err;
        c->held_size = m.size;
      }
      return 0;
    }
  }
}

static int recvmany_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  Message m = {NULL, 0, lua_tointeger(L, RECV_TAG)};
  int err = recv_next(c, &m);
  if (err)
    return recv_error(L, self, "recvmany", err, m.size);
  lua_pushcfunction(L, many_collect);
  lua_pushlightuserdata(L, c);
  lua_newtable(L);
  lua_pushvalue(L, -1);
  lua_insert(L, -4); /* the table stays below the call */
  lua_pushvalue(L, RECVMANY_MAX);
  lua_pushlightuserdata(L, &m);
  /* The table's allocation ran finalisers perhaps: look again. */
  err = recv_next(c, &m);
  if (err) {
    lua_settop(L, RECVMANY_TOP);
    return recv_error(L, self, "recvmany", err, m.size);
  }
  int status = lua_pcall(L, 4, 0, 0);
  if (status != LUA_OK && lua_rawlen(L, RECVMANY_TOP + 1) == 0)
    return lua_error(L);
  lua_settop(L, RECVMANY_TOP + 1);
  return 1;
}

static const Op recvmany_op = {.name = "recvmany",
                               .attempt = recvmany_attempt,
                               .want = IPC_READ,
                               .deadline = RECV_TIMEOUT,
                               .top = RECVMANY_TOP};

/***
Receives the messages that are there, waiting only for the first.
@function channel:recvmany
@int max at most so many, 1 or more
@tparam[opt=the channel's] ?number timeout seconds
@tparam ?integer tag where the mechanism selects by tag
@treturn {string,...} a list of 1 to max messages; or nil, message, errno as
`recv`
*/
static int chan_recvmany(lua_State *L) {
  Chan *c = chan_receiver(L);
  lua_Integer max = luaL_checkinteger(L, 2);
  luaL_argcheck(L, max >= 1, 2, "at least 1 expected");
  ipc_check_timeout(L, 3);
  chan_check_tag(L, c, 4);
  lua_settop(L, 4);
  lua_rotate(L, 2, -1); /* max behind timeout and tag */
  return ipc_run(L, &recvmany_op);
}

/* ---------------------------------------------------------------- streams */

/* Slots of read: 2 timeout, 3 what: a count, or "l", "L", "a". */
enum { READ_WHAT = 3, READ_TOP = 3 };

static int read_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  size_t size = SIZE_MAX;
  char what = 'n';
  if (lua_type(L, READ_WHAT) == LUA_TNUMBER)
    size = (size_t)lua_tointeger(L, READ_WHAT);
  else
    what = *lua_tostring(L, READ_WHAT);
  for (;;) {
    Message m = {NULL, 0, 0};
    int err = ipc_handle_usable(&c->h)
                  ? c->ops->read(c, size, what == 'l' || what == 'L', &m)
                  : EPIPE;
    if (err)
      return recv_error(L, self, "read", err, m.size);
    uint32_t serial = c->serial;
    size_t keep = m.size;
    if (what == 'l' && keep > 0 && m.bytes[keep - 1] == '\n')
      keep--;
    lua_pushlstring(L, m.bytes, keep);
    if (serial == c->serial) {
      recv_took(c, m.size);
      return 1;
    }
    lua_pop(L, 1);
  }
}

static const Op read_op = {.name = "read",
                           .attempt = read_attempt,
                           .want = IPC_READ,
                           .deadline = RECV_TIMEOUT,
                           .top = READ_TOP};

static const Op lines_op = {.name = "read",
                            .attempt = read_attempt,
                            .want = IPC_READ,
                            .deadline = RECV_TIMEOUT,
                            .top = READ_TOP,
                            .quiet = true};

static Chan *chan_streamer(lua_State *L, const char *call) {
  Chan *c = chan_receiver(L);
  if (!c->reader->stream)
    luaL_error(L, "%s.%s: needs unit = \"stream\"", c->h.ops->type, call);
  return c;
}

/***
Reads from a stream. What was gathered before a timeout stays for the next.
@function channel:read
@tparam integer|string what exactly so many bytes; `"l"` a line without its end,
`"L"` with it; `"a"` all until the end (perhaps the empty string)
@tparam[opt=the channel's] ?number timeout seconds
@treturn string bytes; or nil, message, errno: `"closed"` when the stream ended
before (what is left can be had by `recv`), EMSGSIZE when a line is longer than
maxsize (1 MiB unless set) or more was asked for than maxsize
*/
static int chan_read(lua_State *L) {
  Chan *c = chan_streamer(L, "read");
  if (lua_type(L, 2) == LUA_TNUMBER) {
    lua_Integer n = luaL_checkinteger(L, 2);
    luaL_argcheck(L, n >= 0, 2, "a negative count");
    luaL_argcheck(L, (lua_Unsigned)n <= c->reader->limit, 2,
                  "more than maxsize");
  } else {
    static const char *const whats[] = {"l", "L", "a", NULL};
    luaL_checkoption(L, 2, NULL, whats);
  }
  ipc_check_timeout(L, 3);
  lua_settop(L, 3);
  lua_insert(L, 2);
  return ipc_run(L, &read_op);
}

/* -------------------------------------------------------------- iterators */

/* Upvalues: the handle, the timeout, the tag or what to read. */
static int iterate(lua_State *L, const Op *op) {
  lua_settop(L, 0);
  for (int i = 1; i <= op->top; i++)
    lua_pushvalue(L, lua_upvalueindex(i));
  return ipc_run(L, op);
}

static int messages_next(lua_State *L) { return iterate(L, &messages_op); }
static int values_next(lua_State *L) { return iterate(L, &values_op); }
static int lines_next(lua_State *L) { return iterate(L, &lines_op); }

/***
Iterates over messages until the channel is closed; any other failure, timeout
too, raises an error object with `message` and `errno`.
@function channel:messages
@tparam[opt=the channel's] ?number timeout seconds, for each message
@tparam ?integer tag where the mechanism selects by tag
@treturn function for a generic `for`: message, then tag where there is one
@usage for message in ch:messages() do print(message) end
*/
static int chan_messages(lua_State *L) {
  recv_arguments(L);
  lua_pushcclosure(L, messages_next, 3);
  return 1;
}

/***
Iterates over values until the channel is closed; as `messages`.
@function channel:values
@tparam[opt=the channel's] ?number timeout seconds, for each value
@tparam ?integer tag where the mechanism selects by tag
@treturn function for a generic `for`: value, then tag where there is one
*/
static int chan_values(lua_State *L) {
  recv_arguments(L);
  lua_pushcclosure(L, values_next, 3);
  return 1;
}

/***
Iterates over the lines of a stream, without their ends; as `messages`.
@function channel:lines
@tparam[opt=the channel's] ?number timeout seconds, for each line
@treturn function for a generic `for`: line
*/
static int chan_lines(lua_State *L) {
  chan_streamer(L, "lines");
  ipc_check_timeout(L, 2);
  lua_settop(L, 2);
  lua_pushliteral(L, "l");
  lua_pushcclosure(L, lines_next, 3);
  return 1;
}

/* ---------------------------------------------------------- the end of it */

/* Slot 2: the deadline. */
static int close_done(lua_State *L, Handle *h, int err) {
  Chan *self = (Chan *)h, *c = self->writer;
  size_t unsent = 0;
  if (c) {
    ipc_chan_end_rest(c, err);
    unsent = c->lost;
    if (!err)
      err = c->failed ? c->failed : EPIPE;
    c->lost = 0;
  }
  h->closing = false;
  ipc_handle_close(L, h);
  if (unsent == 0)
    return lua_pushboolean(L, 1), 1;
  char text[40];
  snprintf(text, sizeof text, "%zu bytes unsent", unsent);
  lua_pushnil(L);
  lua_pushstring(L, text);
  lua_pushinteger(L, err);
  return 3;
}

static int close_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  if (!h->open) /* another task closed it meanwhile */
    return lua_pushboolean(L, 1), 1;
  int err = c && c->h.open ? ipc_chan_flush(c) : 0;
  return err == EAGAIN ? -IPC_WRITE : close_done(L, h, err);
}

const Op ipc_chan_close_op = {.name = "close",
                              .attempt = close_attempt,
                              .failed = close_done,
                              .want = IPC_WRITE,
                              .deadline = 2,
                              .top = 2,
                              .closing = true};

/***
Closes the channel; also what `<close>` does. Accepted messages are written
first, for up to `linger` seconds. Any number of times.
@function channel:close
@treturn boolean true; or the first time nil, "N bytes unsent", errno
*/
static int chan_close(lua_State *L) {
  Chan *self = chan_self(L);
  Handle *h = &self->h;
  lua_settop(L, 1);
  if (!h->open || h->closing)
    return lua_pushboolean(L, 1), 1;
  if (h->generation != ipc_generation) {
    ipc_handle_release(h, IPC_DROP);
    return lua_pushboolean(L, 1), 1;
  }
  h->closing = true;
  if (h->queue)
    ipc_wake(L, h);
  lua_pushnumber(L, (lua_Number)self->linger / 1e9);
  return ipc_run(L, &ipc_chan_close_op);
}

/***
Ends sending: the peer sees `closed` after what was sent. Receiving goes on.
@function channel:shutdown
@treturn boolean true; or nil, message, errno
*/
static int chan_shutdown(lua_State *L) {
  Chan *self = chan_sender(L), *c = self->writer;
  if (!ipc_handle_usable(&self->h) || !ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &self->h, "shutdown");
  if (!c->shut) {
    c->shut = c->shutting = true;
    int err = ipc_chan_flush(c);
    if (err && err != EAGAIN && chan_end(err) != EPIPE)
      return ipc_fail(L, self->h.ops->type, "shutdown", err, NULL);
  }
  lua_pushboolean(L, 1);
  return 1;
}

/***
Sets how long every later call waits by default.
@function channel:settimeout
@tparam ?number seconds nil: for ever; 0: never
@treturn boolean true
*/
static int chan_settimeout(lua_State *L) {
  Chan *c = chan_self(L);
  ipc_check_timeout(L, 2);
  c->timeout = lua_isnoneornil(L, 2) ? IPC_FOREVER
                                     : ipc_seconds(lua_tonumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

/***
The largest message the channel carries.
@function channel:maxsize
@treturn integer bytes
*/
static int chan_maxsize(lua_State *L) {
  Chan *c = chan_self(L);
  lua_pushinteger(L,
                  (lua_Integer)(c->writer ? c->writer : c->reader)->limit);
  return 1;
}

/***
What went through the channel so far.
@function channel:stats
@treturn table `sent`, `received` (messages), `bytes_sent`, `bytes_received`,
`sleeps` (waits that had to sleep in the kernel), `unsent` (accepted bytes still
here)
*/
static int chan_stats(lua_State *L) {
  Chan *c = chan_self(L), *r = c->reader ? c->reader : c,
       *w = c->writer ? c->writer : c;
  const struct {
    const char *name;
    uint64_t value;
  } rows[] = {{"sent", w->sent},
              {"received", r->received},
              {"bytes_sent", w->bytes_out},
              {"bytes_received", r->bytes_in},
              {"sleeps", c->sleeps},
              {"unsent", w->rest.size + w->rest.headed}};
  lua_createtable(L, 0, sizeof rows / sizeof *rows);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    lua_pushinteger(L, (lua_Integer)rows[i].value);
    lua_setfield(L, -2, rows[i].name);
  }
  return 1;
}

/***
A second handle on the same end, for another process or for keeping one.
@function channel:dup
@return the channel; or nil, message, errno: EBUSY while something has been
read ahead or is not all out
*/
static int chan_dup(lua_State *L) {
  Chan *c = chan_self(L);
  if (!ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &c->h, "dup");
  int err = c->rest.link ? EBUSY : c->ops->dup(L, c);
  if (err == EBUSY)
    return ipc_fail(L, c->h.ops->type, "dup", err, "bytes are on their way");
  return err ? ipc_fail(L, c->h.ops->type, "dup", err, NULL) : 1;
}

static const luaL_Reg chan_methods[] = {{"send", chan_send},
                                        {"recv", chan_recv},
                                        {"put", chan_put},
                                        {"get", chan_get},
                                        {"sendmany", chan_sendmany},
                                        {"recvmany", chan_recvmany},
                                        {"messages", chan_messages},
                                        {"values", chan_values},
                                        {"lines", chan_lines},
                                        {"read", chan_read},
                                        {"flush", chan_flush},
                                        {"close", chan_close},
                                        {"__close", chan_close},
                                        {"shutdown", chan_shutdown},
                                        {"settimeout", chan_settimeout},
                                        {"maxsize", chan_maxsize},
                                        {"stats", chan_stats},
                                        {"dup", chan_dup},
                                        {NULL, NULL}};

/* --------------------------------------------------------------- building */

void *ipc_chan_new(lua_State *L, size_t size, const HandleOps *h,
                   const ChanOps *ops, int mode) {
  Chan *c = ipc_handle_new(L, size, h, IPC_UV_WRITER);
  c->ops = ops;
  c->reader = mode & IPC_READ ? c : NULL;
  c->writer = mode & IPC_WRITE ? c : NULL;
  c->timeout = IPC_FOREVER;
  c->linger = IPC_SECOND;
  c->limit = CHAN_LIMIT;
  c->spin[0].budget = c->spin[1].budget = IPC_SPIN;
  c->h.channel = c->h.moves = true;
  return c;
}

void ipc_chan_options(lua_State *L, int index, Chan *c, size_t most) {
  c->timeout = ipc_option_time(L, index, "timeout", c->timeout);
  c->linger = ipc_option_time(L, index, "linger", c->linger);
  c->limit = ipc_option_size(L, index, "maxsize", 1, most,
                             c->limit < most ? c->limit : most);
  Nanos spin = ipc_option_time(L, index, "spin", IPC_SPIN);
  if (spin > IPC_SECOND)
    luaL_argerror(L, index, "option 'spin': more than a second");
  c->spin[0].budget = c->spin[1].budget = (uint32_t)spin;
}

void ipc_chan_type(lua_State *L, const HandleOps *ops,
                   const luaL_Reg *methods) {
  ipc_handle_type(L, ops, chan_methods);
  ipc_handle_methods(L, methods);
  lua_pop(L, 1);
}

/* ----------------------------------------------------------------- duplex */

/* Two channels as one: receives on the first, sends on the second. Both are
 * kept by it and closed with it. */

static int duplex_descriptor(const Handle *h, int want) {
  const Chan *c = (const Chan *)h;
  const Chan *part = want == IPC_WRITE ? c->writer : c->reader;
  return part->h.open ? part->h.ops->descriptor(&part->h, want) : -1;
}

static int duplex_ready(Handle *h, int want, bool ask_kernel) {
  Chan *c = (Chan *)h;
  Chan *part = want == IPC_WRITE ? c->writer : c->reader;
  if (!ipc_handle_usable(&part->h))
    return EPIPE;
  return part->h.ops->ready(&part->h, want, ask_kernel);
}

static void duplex_close(Handle *h, How how) {
  Chan *c = (Chan *)h;
  if (how == IPC_DROP) /* each part has a finaliser of its own */
    return;
  ipc_handle_release(&c->reader->h, how);
  ipc_handle_release(&c->writer->h, how);
}

static const HandleOps duplex_handle = {.type = "ipc.duplex",
                                        .descriptor = duplex_descriptor,
                                        .ready = duplex_ready,
                                        .close = duplex_close};

static int duplex_dup(lua_State *L, Chan *c) {
  (void)L, (void)c;
  return ENOTSUP;
}

static const ChanOps duplex_chan = {.dup = duplex_dup};

/***
Makes one channel of two: receives on the first, sends on the second, closes
both.
@function duplex
@tparam channel reader
@tparam channel writer
@treturn channel
@usage local both = ipc.duplex(answers, questions)
*/
static int chan_duplex(lua_State *L) {
  Chan *part[2];
  for (int i = 0; i < 2; i++) {
    part[i] = (Chan *)ipc_handle_at(L, i + 1);
    if (!part[i] || !part[i]->h.channel)
      luaL_typeerror(L, i + 1, "channel");
    if (!ipc_handle_usable(&part[i]->h))
      luaL_argerror(L, i + 1, "closed");
  }
  luaL_argcheck(L, part[0]->reader == part[0], 1, "this end only sends");
  luaL_argcheck(L, part[1]->writer == part[1], 2, "this end only receives");
  lua_settop(L, 2);
  Chan *c = ipc_chan_new(L, sizeof *c, &duplex_handle, &duplex_chan, 0);
  c->reader = part[0];
  c->writer = part[1];
  c->stream = part[0]->stream;
  c->tagged = part[0]->tagged && part[1]->tagged;
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, 3, IPC_UV_READER);
  lua_pushvalue(L, 2);
  lua_setiuservalue(L, 3, IPC_UV_WRITER);
  ipc_handle_open(&c->h);
  return 1;
}

void ipc_chan_open(lua_State *L) {
  lua_pushcfunction(L, chan_duplex);
  lua_setfield(L, -2, "duplex");
  ipc_chan_type(L, &duplex_handle, NULL);
}
