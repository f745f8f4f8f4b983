/* The calls that receive, over ops->recv: what could not be handed to Lua is
 * not taken. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chan.h"
#include "frame.h"
#include "ipc.h"
#include "msgpack.h"
#include "os.h"
#include "passing.h"

/***
 * @submodule ipc.channel
 */

enum {
  RECV_DECODE = 2048,    /* bytes decoded off the C stack */
  RECV_LARGE = 128 << 10 /* bytes that malloc maps by themselves */
};

/* ---------------------------------------------------------------- receive */

/* Slots of everything that receives: 2 timeout, 3 tag. */
enum { RECV_TIMEOUT = 2, RECV_TAG, RECV_TOP = 3 };

/* What recv is asked for: the tag argument, checked before. */
static Message recv_wanted(lua_State *L, const Chan *c) {
  Message m = {0};
  if (!c->ops->tags || lua_isnil(L, RECV_TAG))
    return m;
  m.except = lua_type(L, RECV_TAG) == LUA_TTABLE;
  if (m.except) {
    lua_pushliteral(L, "except");
    lua_rawget(L, RECV_TAG);
    m.tag = lua_tointeger(L, -1);
    lua_pop(L, 1);
  } else {
    m.tag = lua_tointeger(L, RECV_TAG);
  }
  return m;
}

int ipc_chan_next(Chan *c, Message *m) {
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

int ipc_chan_received(lua_State *L, Chan *self, const char *call, int err,
                      size_t size) {
  char detail[128];
  switch (err) {
  case EAGAIN:
    return -IPC_READ;
  case EMSGSIZE:
    if (self->reader->stream) {
      snprintf(detail, sizeof detail, "longer than %zu bytes", size);
      return ipc_fail(L, self->h.ops->type, call, err, detail);
    }
    snprintf(detail, sizeof detail,
             "%zu bytes, but maxsize is %zu (does the peer speak frames?)",
             size, self->reader->limit);
    return ipc_fail(L, self->h.ops->type, call, err, detail);
  case EBADMSG:
    return ipc_fail(L, self->h.ops->type, call, err,
                    self->reader->why
                        ? self->reader->why
                        : "not a frame's length (does the peer speak frames? "
                          "else unit = \"stream\")");
  case E2BIG:
    return ipc_fail(L, self->h.ops->type, call, err,
                    "a message with more descriptors than `handles` allows");
  case EMFILE:
    return ipc_fail(L, self->h.ops->type, call, err,
                    "a message whose descriptors did not arrive");
  case ECHILD:
    return ipc_handle_refuse(L, &self->reader->h, call);
  default:
    return ipc_fail(L, self->h.ops->type, call, ipc_chan_errno(err),
                    self->reader->why);
  }
}

void ipc_chan_took(Chan *c, size_t size) {
  if (size >= RECV_LARGE)
    ipc_os_expect_large();
  c->ops->took(c, size);
  c->serial++;
  c->received++;
  c->bytes_in += size;
}

/* Pushes the tag that came with the message, before that is taken. */
static int recv_tag(lua_State *L, const Chan *c, const Message *m) {
  const Tags *tags = c->ops->tags;
  if (!tags)
    return 0;
  if (tags->kind == IPC_TAG_INTEGER)
    lua_pushinteger(L, m->tag);
  else if (m->peer)
    lua_pushlstring(L, m->peer, m->peer_size);
  else
    lua_pushnil(L);
  return 1;
}

static int recv_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  int top = lua_gettop(L);
  for (;;) {
    Message m = recv_wanted(L, c);
    int err = ipc_chan_next(c, &m);
    if (err)
      return ipc_chan_received(L, self, "recv", err, m.size);
    uint32_t serial = c->serial;
    lua_pushlstring(L, m.bytes, m.size);
    if (serial == c->serial) {
      int tags = recv_tag(L, c, &m);
      if (serial == c->serial) {
        ipc_chan_took(c, m.size);
        return 1 + tags;
      }
    }
    /* A finaliser ran in the allocation and received this very message. */
    lua_settop(L, top);
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
  Chan *c = ipc_chan_receiver(L);
  ipc_check_timeout(L, RECV_TIMEOUT);
  ipc_chan_check_tag(L, c, RECV_TAG, false);
  lua_settop(L, RECV_TOP);
}

/* Without a word to wait for: true and pushed, or false when there is more to
 * it. `tried`: only waiting is left, for a descriptor that tells. */
static bool recv_direct(lua_State *L, bool *tried) {
  Chan *self = ipc_chan_receiver(L), *c = self->reader;
  Message m = {0};
  if (!ipc_chan_direct(L, self, c) || c->held || c->ops->tags)
    return false;
  int err = c->ops->recv(c, &m);
  if (err &&
      err != EAGAIN) { /* told once: by the call that takes it from here */
    c->held = err;
    c->held_size = m.size;
  }
  *tried = err == EAGAIN && !c->h.nap && !c->h.ops->arm && !c->h.ops->wait;
  if (err)
    return false;
  uint32_t serial = c->serial;
  lua_pushlstring(L, m.bytes, m.size);
  if (serial != c->serial) {
    lua_settop(L, 1);
    return false;
  }
  ipc_chan_took(c, m.size);
  return true;
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
  bool tried = false;
  if (lua_gettop(L) == 1 && recv_direct(L, &tried))
    return 1;
  recv_arguments(L);
  return tried ? ipc_run_tried(L, &recv_op) : ipc_run(L, &recv_op);
}

/* One value out of a stream of them. 0, EAGAIN, EPIPE, EBADMSG (pushed). The
 * decoder gets them off the C stack: it runs Lua's allocator, hence finalisers,
 * and these may use the channel and move its buffer. */
static int get_streamed(lua_State *L, Chan *self, Chan *c) {
  ipc_chan_push(L, self, c);
  if (lua_getiuservalue(L, -1, IPC_UV_DECODER) == LUA_TNIL) {
    lua_pop(L, 1);
    ipc_decoder_push(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, -3, IPC_UV_DECODER);
  }
  lua_replace(L, -2);
  int decoder = lua_gettop(L);
  for (;;) {
    char bytes[RECV_DECODE];
    Message m = {0};
    size_t used = 0;
    int err = ipc_chan_next(c, &m);
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

/* A value with handles beside it; its tag is on top if it has one. The number
 * of results; 0: a finaliser received this very message. */
static int get_passed(lua_State *L, Chan *self, Chan *c, Message *m,
                      uint32_t serial) {
  UnpackForeign f = {.type = PASSING_EXT,
                     .unpack = ipc_passing_unpack,
                     .handles = PASSING_HANDLES,
                     .limit = ipc_frame_trusts(c)};
  int tags = c->ops->tags ? 1 : 0;
  lua_pushlstring(L, m->bytes, m->size);
  int bytes = lua_gettop(L);
  if (serial != c->serial)
    return 0;
  ipc_passing_hold(L, c, m, serial);
  int held = lua_gettop(L);
  if (serial != c->serial)
    return 0;
  ipc_chan_took(c, m->size);
  f.held = held;
  int err = ipc_value_decode_with(L, lua_tostring(L, bytes), m->size, &f);
  ipc_passing_settle(L, c, held);
  if (err)
    return get_failed(L, self);
  if (tags)
    lua_pushvalue(L, bytes - 1);
  return 1 + tags;
}

static int get_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  if (c->stream) {
    int err = get_streamed(L, self, c);
    if (err == EBADMSG)
      return get_failed(L, self);
    if (err)
      return ipc_chan_received(L, self, "get", err, 0);
    c->received++;
    return 1;
  }
  for (;;) {
    char bytes[RECV_DECODE];
    Message m = recv_wanted(L, c);
    int top = lua_gettop(L), err = ipc_chan_next(c, &m);
    if (err)
      return ipc_chan_received(L, self, "get", err, m.size);
    uint32_t serial = c->serial;
    int tags = recv_tag(L, c, &m);
    if (serial != c->serial) {
      lua_settop(L, top);
      continue;
    }
    if (m.fd_count > 0) {
      int n = get_passed(L, self, c, &m, serial);
      if (n > 0)
        return n;
      lua_settop(L, top);
      continue;
    }
    /* Out of the channel's buffer first: see get_streamed. */
    if (m.size <= sizeof bytes) {
      memcpy(bytes, m.bytes, m.size);
      err = ipc_value_decode(L, bytes, m.size);
    } else {
      lua_pushlstring(L, m.bytes, m.size);
      err = ipc_value_decode(L, lua_tostring(L, -1), m.size);
    }
    if (serial == c->serial) {
      ipc_chan_took(c, m.size);
      if (err)
        return get_failed(L, self);
      if (tags)
        lua_rotate(L, top + 1, -1); /* the value, then its tag */
      return 1 + tags;
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

/* Slots of recvmsg: 2 timeout, 3 nil, 4 whether the handles are streams. */
enum { RECVMSG_STREAM = RECV_TOP + 1, RECVMSG_TOP = RECVMSG_STREAM };

static int recvmsg_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->reader;
  for (;;) {
    Message m = recv_wanted(L, c);
    int err = ipc_chan_next(c, &m);
    if (err)
      return ipc_chan_received(L, self, "recvmsg", err, m.size);
    uint32_t serial = c->serial;
    lua_pushlstring(L, m.bytes, m.size);
    int bytes = lua_gettop(L), tags = 0;
    if (serial == c->serial)
      tags = recv_tag(L, c, &m);
    if (serial == c->serial)
      ipc_passing_hold(L, c, &m, serial);
    if (serial == c->serial) {
      int held = lua_gettop(L);
      ipc_chan_took(c, m.size);
      ipc_passing_list(L, c, held, lua_toboolean(L, RECVMSG_STREAM));
      ipc_passing_settle(L, c, held);
      lua_pushvalue(L, bytes);
      lua_insert(L, -2);
      if (tags)
        lua_pushvalue(L, bytes + 1);
      return 2 + tags;
    }
    lua_settop(L, RECVMSG_TOP);
  }
}

static const Op recvmsg_op = {.name = "recvmsg",
                              .attempt = recvmsg_attempt,
                              .want = IPC_READ,
                              .deadline = RECV_TIMEOUT,
                              .top = RECVMSG_TOP};

/***
Receives the next message and the handles that came beside it (those that a
value holds come out of `get` by themselves).
@function socket:recvmsg
@tparam[opt=the channel's] ?number timeout seconds
@tparam ?table options `unit` ("message" or "stream"): what the handles carry
@treturn string bytes
@treturn {channel,...} handles, perhaps none; then the tag where there is one;
or nil, message, errno as `channel:recv`, E2BIG for a message with more than
`handles` (it is gone), EMFILE when no descriptor was free for them (likewise)
*/
int ipc_passing_recv(lua_State *L) {
  static const char *const names[] = {"unit", NULL};
  static const char *const units[] = {"message", "stream", NULL};
  ipc_chan_receiver(L);
  ipc_check_timeout(L, RECV_TIMEOUT);
  lua_settop(L, 3);
  ipc_options(L, 3, names);
  bool stream = ipc_option_choice(L, 3, "unit", units) == 1;
  lua_settop(L, 2);
  lua_pushnil(L);
  lua_pushboolean(L, stream);
  return ipc_run(L, &recvmsg_op);
}

/* Slots of recvmany: 2 timeout, 3 tag (after rearranging), 4 max. */
enum { RECVMANY_MAX = RECV_TOP + 1, RECVMANY_TOP = RECVMANY_MAX };

/* Collects into the table at 2: (channel, table, max, Message[2]: what is
 * wanted, the first that came). Called protected: what is in the table is
 * taken, what is not is not. */
static int many_collect(lua_State *L) {
  Chan *c = lua_touserdata(L, 1);
  lua_Integer max = lua_tointeger(L, 3), count = 0;
  const Message *given = lua_touserdata(L, 4);
  Message m = given[1];
  for (;;) {
    uint32_t serial = c->serial;
    lua_pushlstring(L, m.bytes, m.size);
    if (serial == c->serial) {
      lua_rawseti(L, 2, ++count);
      ipc_chan_took(c, m.size);
    }
    lua_settop(L, 4);
    if (count == max || (c->ahead && c->h.ops->ready(&c->h, IPC_READ, false)))
      return 0;
    m = given[0];
    int err = ipc_chan_next(c, &m);
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
  Message given[2] = {recv_wanted(L, c), recv_wanted(L, c)}, *m = &given[1];
  int err = ipc_chan_next(c, m);
  if (err)
    return ipc_chan_received(L, self, "recvmany", err, m->size);
  lua_newtable(L);
  int list = lua_gettop(L);
  lua_pushcfunction(L, many_collect);
  lua_pushlightuserdata(L, c);
  lua_pushvalue(L, list);
  lua_pushvalue(L, RECVMANY_MAX);
  lua_pushlightuserdata(L, given);
  /* Allocating the table ran finalisers perhaps: look again. */
  *m = given[0];
  err = ipc_chan_next(c, m);
  if (err) {
    lua_settop(L, list - 1);
    return ipc_chan_received(L, self, "recvmany", err, m->size);
  }
  c->batch = (size_t)lua_tointeger(L, RECVMANY_MAX);
  int status = lua_pcall(L, 4, 0, 0);
  c->batch = 0;
  if (c->ops->settle)
    c->ops->settle(c);
  if (status != LUA_OK && lua_rawlen(L, list) == 0)
    return lua_error(L);
  lua_settop(L, list);
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
  Chan *c = ipc_chan_receiver(L);
  luaL_checktype(L, 2, LUA_TNUMBER); /* no coercion */
  lua_Integer max = luaL_checkinteger(L, 2);
  luaL_argcheck(L, max >= 1, 2, "at least 1 expected");
  ipc_check_timeout(L, 3);
  ipc_chan_check_tag(L, c, 4, false);
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
    Message m = {0};
    int err = ipc_handle_usable(&c->h)
                  ? c->ops->read(c, size, what == 'l' || what == 'L', &m)
                  : EPIPE;
    if (err)
      return ipc_chan_received(L, self, "read", err, m.size);
    uint32_t serial = c->serial;
    size_t keep = m.size;
    if (what == 'l' && keep > 0 && m.bytes[keep - 1] == '\n')
      keep--;
    lua_pushlstring(L, m.bytes, keep);
    if (serial == c->serial) {
      ipc_chan_took(c, m.size);
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
  Chan *c = ipc_chan_receiver(L);
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
maxsize (1 MiB unless set); asking for more than maxsize raises
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

const luaL_Reg ipc_recv_methods[] = {
    {"recv", chan_recv},         {"get", chan_get},
    {"recvmany", chan_recvmany}, {"read", chan_read},
    {"messages", chan_messages}, {"values", chan_values},
    {"lines", chan_lines},       {NULL, NULL}};
