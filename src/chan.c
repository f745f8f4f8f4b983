/* What every channel has on top of its room: its arguments, its rest, its end;
 * and the channel made of two. Sending is send.c, receiving recv.c. */
#include "prefix.h"

#include <errno.h>
#include <lauxlib.h>
#include <lua.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chan.h"
#include "ipc.h"

/***
Channels: the calls that every mechanism answers.

A channel carries *messages*: what one `send` puts in, one `recv` takes out,
whole, empty ones too. Opened with `unit = "stream"` it carries bytes. These
rules hold for every mechanism; what one adds is said where it is opened.

- **Failure** is a first result of nil, then a message, then an errno. Messages
  are `"timeout"` (ETIMEDOUT), `"closed"` (EPIPE), `"died"` (EOWNERDEAD),
  `"cancelled"` (ECANCELED), `"interrupted"` (EINTR: in a coroutine, when a hook
  of the main one wants to run), or a text that may change. A mistake in the
  call raises.
- **Time** is seconds as a number: nil is the channel's default (for ever, until
  `settimeout`), 0 never waits, less counts as 0, infinity is for ever, NaN
  raises. One deadline a call, on the monotonic clock.
- **Accepted or untouched.** Once the first byte of a message is out, `send`
  answers true even if its deadline passes; the channel keeps the rest and
  writes it before anything else: in every wait of the program, on any later
  call, in `flush` and in `close`.
- **Closed** means closed by whichever side: this handle, the other end, the
  death of the last process that held it. Messages already sent come first; then
  every call answers nil, "closed", EPIPE, before it answers "timeout".
- **Too big** for the receiver's `maxsize`: dropped, reported once (EMSGSIZE).
- **Tags** belong to mechanisms that have them; elsewhere one raises.
- **Ready** (in `ipc.poll`, or by `pollfd`, `events` and `timeout` in a foreign
  loop) means that the next `recv(0)` does not answer "timeout".
- **Waiting** blocks the process; in a coroutine of a registered scheduler
  (`ipc.scheduler`) it yields. Tasks that wait on one channel are served in the
  order they came; `close` makes them return "closed".
- **One process.** A handle belongs to the process that opened it; `ipc.fork`
  moves it. In another forked child every call answers nil, message, ECHILD.

@module ipc.channel
*/

/* ------------------------------------------------------------------ rests */

int ipc_chan_flush(lua_State *L, Chan *c) {
  if (c->rest.link) {
    int err = c->ops->flush(c);
    if (err)
      return err;
  }
  /* The last task that waits to send ends the sending when it has left. */
  if (!c->shutting || ipc_waiter_any(&c->h, IPC_WRITE))
    return 0;
  c->shutting = false;
  ipc_wake(L, &c->h);
  return c->ops->shutdown(c);
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
    c->failed_serial = c->rest.serial;
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
void ipc_chan_push(lua_State *L, Chan *self, Chan *c) {
  if (c == self)
    lua_pushvalue(L, 1);
  else
    lua_getiuservalue(L, 1, c == self->reader ? IPC_UV_READER : IPC_UV_WRITER);
}

/* Ties the string at `index` to the rest that points into it. */
void ipc_chan_anchor(lua_State *L, Chan *self, Chan *c, int index) {
  index = lua_absindex(L, index);
  ipc_chan_push(L, self, c);
  lua_pushvalue(L, index);
  lua_setiuservalue(L, -2, IPC_UV_REST);
  lua_pop(L, 1);
  c->rest.anchored = true;
}

/* Lets go of a string whose bytes are out. */
void ipc_chan_unanchor(lua_State *L, Chan *self, Chan *c) {
  if (!c->rest.anchored || c->rest.link)
    return;
  ipc_chan_push(L, self, c);
  lua_pushnil(L);
  lua_setiuservalue(L, -2, IPC_UV_REST);
  lua_pop(L, 1);
  c->rest.anchored = false;
}

/* ------------------------------------------------------------- arguments */

Chan *ipc_chan_self(lua_State *L) { return (Chan *)ipc_handle_self(L); }

Chan *ipc_chan_sender(lua_State *L) {
  Chan *c = ipc_chan_self(L);
  if (!c->writer)
    luaL_error(L, "%s: this end %s", c->h.ops->type,
               c->reader ? "only receives" : "neither receives nor sends");
  return c;
}

Chan *ipc_chan_receiver(lua_State *L) {
  Chan *c = ipc_chan_self(L);
  if (!c->reader)
    luaL_error(L, "%s: this end %s", c->h.ops->type,
               c->writer ? "only sends" : "neither receives nor sends");
  return c;
}

/* A tag argument, and the timeout behind or before it. */
void ipc_chan_check_tag(lua_State *L, const Chan *c, int index, bool sends) {
  if (lua_isnoneornil(L, index))
    return;
  const Tags *tags = (sends ? c->writer : c->reader)->ops->tags;
  int type = lua_type(L, index);
  if (!tags)
    luaL_argerror(L, index,
                  sends && type == LUA_TNUMBER
                      ? "no tags here: the timeout is the third argument"
                      : "no tags here");
  if (!sends && !tags->selects)
    luaL_argerror(L, index, "nothing is selected by tag here");
  if (tags->kind == IPC_TAG_ADDRESS) {
    if (type != LUA_TSTRING)
      luaL_typeerror(L, index, "address");
    return;
  }
  int at = index; /* of the number */
  if (!sends && type == LUA_TTABLE) {
    lua_pushliteral(L, "except");
    lua_rawget(L, index);
    at = lua_gettop(L);
    type = lua_type(L, at);
  }
  int isnum = 0;
  lua_Integer tag = type == LUA_TNUMBER ? lua_tointegerx(L, at, &isnum) : 0;
  if (!isnum)
    luaL_typeerror(L, index, sends ? "integer" : "integer or { except = n }");
  lua_Integer least = tags->least;
  if (!sends) /* 0 is any, -n the lowest up to n */
    least = at == index ? -tags->most : 1;
  if (tag < least || tag > tags->most)
    luaL_argerror(L, index,
                  lua_pushfstring(L, "tag %I is not in %I .. %I",
                                  (LUAI_UACINT)tag, (LUAI_UACINT)least,
                                  (LUAI_UACINT)tags->most));
  lua_settop(L, at == index ? lua_gettop(L) : at - 1);
}

void ipc_chan_tag(lua_State *L, const Tags *tags, int index, Message *m) {
  if (!tags)
    return;
  m->tag = tags->otherwise;
  if (lua_type(L, index) == LUA_TNUMBER)
    m->tag = lua_tointeger(L, index);
  else if (tags->kind == IPC_TAG_ADDRESS && lua_type(L, index) == LUA_TSTRING)
    m->peer = lua_tolstring(L, index, &m->peer_size);
}

/* The peer is gone, whichever way the system says so. */
int ipc_chan_errno(int err) {
  return err == ECONNRESET || err == ENOTCONN || err == ESHUTDOWN ||
                 err == ETIMEDOUT
             ? EPIPE
             : err;
}

/* ---------------------------------------------------------- the end of it */

/* Slot 2: the deadline. */
int ipc_chan_closed(lua_State *L, Chan *self, int err) {
  Chan *c = self->writer;
  size_t unsent = 0;
  if (c) {
    ipc_chan_end_rest(c, err);
    unsent = c->lost;
    if (!err)
      err = c->failed ? ipc_chan_errno(c->failed) : EPIPE;
    c->lost = 0;
  }
  for (int want = IPC_READ; want <= IPC_WRITE; want <<= 1)
    ipc_handle_close(L, ipc_handle_part(&self->h, want));
  ipc_handle_close(L, &self->h);
  if (unsent == 0)
    return lua_pushboolean(L, 1), 1;
  char text[40];
  snprintf(text, sizeof text, "%zu bytes unsent", unsent);
  lua_pushnil(L);
  lua_pushstring(L, text);
  lua_pushinteger(L, err);
  return 3;
}

static int close_failed(lua_State *L, Handle *h, int err) {
  return ipc_chan_closed(L, (Chan *)h, err);
}

static int close_attempt(lua_State *L, Handle *h) {
  Chan *self = (Chan *)h, *c = self->writer;
  if (!h->open || h->leaving) /* another task closed it meanwhile */
    return lua_pushboolean(L, 1), 1;
  int err = c && c->h.open ? ipc_chan_flush(L, c) : 0;
  if (!err && c && c->h.open && c->ops->number && !c->failed) {
    err = c->ops->settled(c, c->ops->number(c), IPC_CLOSED);
    if (err == EAGAIN)
      return -IPC_ENDED;
  }
  return err == EAGAIN ? -IPC_WRITE : ipc_chan_closed(L, self, err);
}

static const Op close_op = {.name = "close",
                            .attempt = close_attempt,
                            .failed = close_failed,
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
  Chan *self = (Chan *)ipc_handle_closable(L);
  Handle *h = &self->h;
  lua_settop(L, 1);
  if (!ipc_handle_begin_close(L, h))
    return lua_pushboolean(L, 1), 1;
  lua_pushnumber(L, (lua_Number)self->linger / 1e9);
  return ipc_run(L, &close_op);
}

/***
Ends sending: the peer sees `closed` after what was sent. Receiving goes on.
@function channel:shutdown
@treturn boolean true; or nil, message, errno
*/
static int chan_shutdown(lua_State *L) {
  Chan *self = ipc_chan_sender(L), *c = self->writer;
  if (!ipc_handle_usable(&self->h) || !ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &self->h, "shutdown");
  if (!c->shut) {
    c->shut = c->shutting = true;
    ipc_wake(L, &c->h);
    int err = ipc_chan_flush(L, c);
    if (c->h.observers)
      ipc_handle_changed(L, &c->h);
    if (err && err != EAGAIN && ipc_chan_errno(err) != EPIPE)
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
  Chan *c = ipc_chan_self(L);
  ipc_check_timeout(L, 2);
  c->timeout =
      lua_isnoneornil(L, 2) ? IPC_FOREVER : ipc_seconds(lua_tonumber(L, 2));
  lua_pushboolean(L, 1);
  return 1;
}

/***
The largest message the channel carries.
@function channel:maxsize
@treturn integer bytes
*/
static int chan_maxsize(lua_State *L) {
  Chan *c = ipc_chan_self(L);
  const Chan *part = c->writer ? c->writer : c->reader ? c->reader : c;
  lua_pushinteger(L, (lua_Integer)part->limit);
  return 1;
}

/***
What went through the channel so far.
@function channel:stats
@treturn table `sent`, `received` (messages), `bytes_sent`, `bytes_received`,
`sleeps` (waits that had to sleep in the kernel), `strangers` (descriptors that
came beside messages and that nobody asked for), `unsent` (accepted bytes still
here), and what the mechanism adds
*/
static int chan_stats(lua_State *L) {
  Chan *c = ipc_chan_self(L), *r = c->reader ? c->reader : c,
       *w = c->writer ? c->writer : c;
  const struct {
    const char *name;
    uint64_t value;
  } rows[] = {{"sent", w->sent},
              {"received", r->received},
              {"bytes_sent", w->bytes_out},
              {"bytes_received", r->bytes_in},
              {"sleeps", c->sleeps},
              {"strangers", r->strangers},
              {"unsent", w->rest.size + w->rest.headed}};
  lua_createtable(L, 0, sizeof rows / sizeof *rows);
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
    lua_pushinteger(L, (lua_Integer)rows[i].value);
    lua_setfield(L, -2, rows[i].name);
  }
  Figure f;
  for (unsigned i = 0;
       ipc_handle_usable(&c->h) && c->ops->figure && c->ops->figure(c, i, &f);
       i++) {
    lua_pushinteger(L, (lua_Integer)f.value);
    lua_setfield(L, -2, f.name);
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
  Chan *c = ipc_chan_self(L);
  if (!ipc_handle_usable(&c->h))
    return ipc_handle_refuse(L, &c->h, "dup");
  int err = ENOTSUP;
  const char *why = c->why; /* of an error that recvmany found, perhaps */
  c->why = NULL;
  if ((c->h.moves || c->h.shares) && c->ops->dup)
    err = c->rest.link ? EBUSY : c->ops->dup(L, c);
  if (err == EBUSY && !c->why)
    c->why = "bytes are on their way";
  int n = err ? ipc_fail(L, c->h.ops->type, "dup", err, c->why) : 1;
  c->why = why;
  return n;
}

static const luaL_Reg chan_methods[] = {
    {"close", chan_close},       {"__close", chan_close},
    {"shutdown", chan_shutdown}, {"settimeout", chan_settimeout},
    {"maxsize", chan_maxsize},   {"stats", chan_stats},
    {"dup", chan_dup},           {NULL, NULL}};

/* --------------------------------------------------------------- building */

void *ipc_chan_new(lua_State *L, size_t size, const HandleOps *h,
                   const ChanOps *ops, int mode) {
  Chan *c = ipc_handle_new(L, size, h, IPC_UV_WRITER + h->values);
  c->ops = ops;
  c->reader = mode & IPC_READ ? c : NULL;
  c->writer = mode & IPC_WRITE ? c : NULL;
  c->timeout = IPC_FOREVER;
  c->linger = IPC_SECOND;
  c->limit = IPC_LIMIT;
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
  ipc_handle_methods(L, ipc_send_methods);
  ipc_handle_methods(L, ipc_recv_methods);
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

/* The parts are handles of their own: close has closed them, and whatever else
 * releases handles finds them by itself. */
static void duplex_close(Handle *h, How how) { (void)h, (void)how; }

static const HandleOps duplex_handle = {.type = "ipc.duplex",
                                        .descriptor = duplex_descriptor,
                                        .ready = duplex_ready,
                                        .close = duplex_close};

static int duplex_dup(lua_State *L, Chan *c);

static const ChanOps duplex_chan = {.dup = duplex_dup};

Chan *ipc_duplex_push(lua_State *L, Chan *reader, Chan *writer) {
  Chan *c = ipc_chan_new(L, sizeof *c, &duplex_handle, &duplex_chan, 0);
  c->reader = reader;
  c->writer = writer;
  c->stream = reader->stream;
  c->timeout = reader->timeout;
  c->linger = writer->linger;
  c->spin[0].budget = reader->spin[0].budget;
  c->spin[1].budget = writer->spin[1].budget;
  reader->h.moves = writer->h.moves = true; /* with the end they are now */
  reader->h.shares = writer->h.shares = false;
  lua_insert(L, -3);
  lua_setiuservalue(L, -3, IPC_UV_WRITER);
  lua_setiuservalue(L, -2, IPC_UV_READER);
  ipc_handle_open(&c->h);
  return c;
}

static int duplex_dup(lua_State *L, Chan *c) {
  int err = c->reader->ops->dup(L, c->reader);
  c->why = c->reader->why;
  if (err)
    return err;
  Chan *reader = lua_touserdata(L, -1);
  err = c->writer->rest.link ? EBUSY : c->writer->ops->dup(L, c->writer);
  if (err) {
    ipc_handle_release(&reader->h, IPC_DROP);
    lua_pop(L, 1);
    return err;
  }
  ipc_duplex_push(L, reader, lua_touserdata(L, -1));
  return 0;
}

/* (reader, writer) -> one channel of two handles; see ipc.duplex in Lua. */
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
  ipc_duplex_push(L, part[0], part[1]);
  return 1;
}

void ipc_chan_open(lua_State *L) {
  lua_pushcfunction(L, chan_duplex);
  lua_setfield(L, -2, "duplex");
  ipc_chan_type(L, &duplex_handle, NULL);
}
