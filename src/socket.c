/* Sockets: unix(7), tcp(7), udp(7). Connecting, opening by a name, pairs. The
 * channel itself is sock.c's, listening listener.c's, handles beside messages
 * passing.c's. */
#include "prefix.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc.h"
#include "os.h"
#include "packet.h"
#include "passing.h"
#include "sock.h"

/***
 * @submodule ipc
 */

/* ------------------------------------------------------------- connecting */

static int connect_failed(lua_State *L, Handle *h, int err) {
  return ipc_sock_failed(L, h, ((Socket *)h)->x, "connect", err);
}

static int connect_attempt(lua_State *L, Handle *h) {
  Socket *s = (Socket *)h;
  Extra *x = s->x;
  int fd = -1, stale = -1;
  Wanted wanted = {-1, IPC_WRITE, 0};
  int err = ipc_dial_step(&x->dial, &x->setup, ipc_now(), &wanted, &fd, &stale);
  if (h->waited && wanted.fd != x->wanted.fd)
    ipc_wake(L, h);
  if (stale >= 0)
    close(stale);
  x->wanted = wanted;
  if (err == EAGAIN) {
    h->nap = wanted.nap;
    return -wanted.want;
  }
  if (!err)
    err = ipc_sock_take(s, &x->setup, fd);
  if (err) {
    if (fd >= 0 && s->f.rfd != fd)
      close(fd);
    return connect_failed(L, h, err);
  }
  ipc_dial_end(&x->dial, false);
  s->dialing = false;
  x->bound = x->dial.bound;
  x->dial.bound.there = false;
  if (x->bound.there) {
    ipc_handle_owe(L, 1);
  } else {
    free(x);
    s->x = NULL;
  }
  lua_pushvalue(L, 1);
  return 1;
}

static const Op connect_op = {.name = "connect",
                              .attempt = connect_attempt,
                              .failed = connect_failed,
                              .want = IPC_WRITE,
                              .deadline = WAY_DEADLINE,
                              .top = WAY_TOP};

/* (rest, options, scheme) -> a channel that can do what `mode` says. */
static int socket_dial(lua_State *L, int options, const char *scheme,
                       int mode) {
  Target to;
  Sockaddr local;
  Setup setup = ipc_sock_options(L, options, scheme, 0);
  Nanos retry = ipc_option_retry(L, options);
  int err = ipc_sock_target(L, 1, &setup, &to);
  if (err)
    return ipc_sock_fail(L, "connect", err, scheme, lua_tostring(L, 1), NULL);
  err = ipc_sock_local(L, options, &setup, &local);
  if (err)
    return ipc_sock_fail(L, "connect", err, scheme, lua_tostring(L, -1), NULL);
  ipc_sock_guard(&setup, &to);
  Socket *s = ipc_sock_new(L, &setup, mode);
  ipc_chan_options(L, options, &s->f.c, FRAME_MOST);
  err = ipc_sock_extra(s, &setup);
  if (err)
    return ipc_fail(L, ipc_sock_handle.type, "connect", err, NULL);
  s->x->dial.to = to;
  s->x->dial.local = local;
  s->x->dial.retry = retry;
  s->x->wanted.fd = -1;
  s->dialing = true;
  ipc_handle_open(&s->f.c.h);
  return ipc_sock_run(L, &connect_op, IPC_FOREVER);
}

/***
Sockets: `ipc.connect(address, options)` with `unix:/path`, `unix:@name`
(Linux's abstract namespace), `tcp:host:port`, `tcp:[v6]:port`, `tcp:port`
(loopback) or `udp:` likewise. A host's name is looked up within the call's
deadline.

The other side is `ipc.listen` (or `ipc.open(address, "r")`, which serves one
client); a datagram socket's is `ipc.open(address, "rw")`: each message comes
with its sender's address as tag and `u:send(u:recv())` answers it.
Options of all: `timeout` bounds connecting, too; `bind` is the address that the
socket itself is to have (the path for answers to unix datagrams, which goes
with the socket; the interface to go out by); `capacity` is how many bytes the
kernel may hold in each direction (SO_SNDBUF, SO_RCVBUF); `backlog`, how many
clients may wait to be accepted (511, or net.core.somaxconn). Of streams:
`unit`, "message" (frames; the default) or "stream".

Of unix sockets: `type`, "stream" (the default), "seqpacket" (one packet a
message) or "datagram" (no connection); `handles`, how many descriptors one
message may bring (0; in `ipc.pair` 16): others that come are closed and counted
in `stats().strangers`, and where some may come, a message with more is E2BIG;
`allow_uids`, a list of at most 32 user ids that may be at the other end: others
are turned away. By default that is everybody who may open the path, and at an
abstract name, which has no permissions, our own user and root.

Of TCP: `nodelay`, whether small messages go out at once (true; false for
streams); `keepalive`, whether a silent peer is tried, after 30 s, three times,
every 10 s (true); `user_timeout`, seconds until a peer that acknowledges
nothing is given up (the system's; Linux): it counts as closed then. That the
peer has closed TCP tells by what comes back to a message that it still took: a
later send answers closed.
@table socket
*/
static int socket_connect(lua_State *L) {
  lua_settop(L, 3);
  return socket_dial(L, 2, lua_tostring(L, 3), IPC_READ | IPC_WRITE);
}

/* ---------------------------------------------------- opening by a name */

static int open_failed(lua_State *L, Handle *h, int err) {
  return ipc_sock_failed(L, h, ((Socket *)h)->x, "open", err);
}

static int open_attempt(lua_State *L, Handle *h) {
  Socket *s = (Socket *)h;
  int fd, err = ipc_sock_bind(L, h, s->x, &fd);
  if (err == EAGAIN)
    return -IPC_READ;
  if (!err && s->type == SOCK_DGRAM) {
    err = ipc_sock_take(s, &s->x->setup, fd);
    if (err)
      close(fd);
    s->f.wfd = err ? -1 : fd;
  } else if (!err) {
    s->x->waiting = s->f.rfd = fd;
    s->f.awaits = true;
  }
  if (err)
    return open_failed(L, h, err);
  s->dialing = false;
  lua_pushvalue(L, 1);
  return 1;
}

static const Op open_op = {.name = "open",
                           .attempt = open_attempt,
                           .failed = open_failed,
                           .want = IPC_READ,
                           .deadline = WAY_DEADLINE,
                           .top = WAY_TOP};

/* (rest, mode, options, scheme): "r" is where "w" connects to. */
static int socket_open(lua_State *L) {
  Target to;
  lua_settop(L, 4);
  const char *scheme = lua_tostring(L, 4);
  Setup setup = ipc_sock_options(L, 3, scheme, 0);
  int mode = ipc_check_mode(L, 2, IPC_READ | IPC_WRITE);
  bool datagram = setup.type == SOCK_DGRAM;
  if (mode == IPC_WRITE || (mode == (IPC_READ | IPC_WRITE) && !datagram))
    return socket_dial(L, 3, scheme, mode);
  int err = ipc_sock_target(L, 1, &setup, &to);
  if (err)
    return ipc_sock_fail(L, "open", err, scheme, lua_tostring(L, 1), NULL);
  ipc_sock_guard(&setup, &to);
  Socket *s = ipc_sock_new(L, &setup, mode);
  ipc_chan_options(L, 3, &s->f.c, FRAME_MOST);
  err = ipc_sock_extra(s, &setup);
  if (err)
    return ipc_fail(L, ipc_sock_handle.type, "open", err, NULL);
  s->x->dial.to = to;
  s->x->wanted.fd = -1;
  s->dialing = true;
  s->many = datagram;
  ipc_handle_open(&s->f.c.h);
  ipc_handle_owe(L, -1); /* now: it may raise, and there is no name yet */
  return ipc_sock_run(L, &open_op, s->f.c.timeout);
}

/* ------------------------------------------------------------------ pairs */

/* Two connected sockets of the loopback interface. Nobody else can have got in
 * between: each knows the other's address. */
static int socket_inet_pair(const Setup *s, int fd[2]) {
  Sockaddr a[2];
  int listener = -1, err = 0;
  struct pollfd p = {-1, POLLIN, 0};
  size_t ready;
  fd[0] = fd[1] = -1;
  (void)ipc_sockaddr_inet("127.0.0.1", "0", &a[0]);
  bool udp = s->type == SOCK_DGRAM;
  for (int i = 0; i < (udp ? 2 : 1) && !err; i++) {
    Bound none;
    err = ipc_bind(s, &a[0], udp ? &fd[i] : &listener, &none);
  }
  if (!err && !udp)
    err = ipc_os_socket(AF_INET, SOCK_STREAM, &fd[0]);
  for (int i = 0; i < (udp ? 2 : 1) && !err; i++) {
    int from = udp ? fd[1 - i] : listener;
    a[i].size = sizeof a[i].s;
    if (getsockname(from, (struct sockaddr *)&a[i].s, &a[i].size) ||
        (connect(fd[i], (struct sockaddr *)&a[i].s, a[i].size) &&
         errno != EINPROGRESS))
      err = errno;
  }
  while (!err && !udp && fd[1] < 0) {
    Sockaddr mine, theirs;
    p.fd = listener;
    err = ipc_os_poll(&p, 1, IPC_SECOND, &ready); /* no network in between */
    if (!err)
      err = ipc_os_accept(listener, &fd[1]);
    mine.size = theirs.size = sizeof mine.s;
    if (!err &&
        (getsockname(fd[0], (struct sockaddr *)&mine.s, &mine.size) ||
         getpeername(fd[1], (struct sockaddr *)&theirs.s, &theirs.size) ||
         !ipc_sockaddr_equal(&mine, &theirs))) {
      close(fd[1]);
      fd[1] = -1;
    }
    if (err == EINTR)
      err = 0;
  }
  if (listener >= 0)
    close(listener);
  for (int i = 0; i < 2 && !err; i++)
    err = ipc_setup_apply(s, fd[i]);
  for (int i = 0; i < 2 && err; i++)
    if (fd[i] >= 0)
      close(fd[i]);
  return err;
}

static int socket_unix_pair(const Setup *s, int fd[2]) {
  int err = ipc_os_socketpair(s->type, fd);
  for (int i = 0; i < 2 && !err; i++) {
    err = ipc_setup_apply(s, fd[i]);
    if (err) {
      close(fd[0]);
      close(fd[1]);
    }
  }
  return err;
}

/***
Makes two connected sockets for this process and its children:
`ipc.pair("unix", options)`, `"tcp"`, `"udp"`. See `socket`.
@function pair
@string address "unix", "tcp" or "udp"
@tparam[opt] table options every room's, and those of `socket`. One packet of a
seqpacket or datagram pair carries up to SO_SNDBUF, 208 KiB unless maxsize asks
for more; any number of readers and writers
@treturn channel one end
@treturn channel the other; or nil, message, errno: EMFILE, EMSGSIZE when
maxsize is over what the system allows, ENOTSUP for seqpacket on macOS
@usage local a, b = ipc.pair("unix", { type = "seqpacket" })
*/
static int socket_pair(lua_State *L) {
  lua_settop(L, 2);
  const char *scheme = luaL_checkstring(L, 1);
  bool local = strncmp(scheme, "unix", 4) == 0;
  Setup setup = ipc_sock_options(L, 2,
                                 local                            ? "unix"
                                 : strncmp(scheme, "udp", 3) == 0 ? "udp"
                                                                  : "tcp",
                                 SOCK_HANDLES);
  Socket *end[2];
  int fd[2], err = 0;
  for (int i = 0; i < 2; i++) {
    end[i] = ipc_sock_new(L, &setup, IPC_READ | IPC_WRITE);
    ipc_chan_options(L, 2, &end[i]->f.c, FRAME_MOST);
  }
  err = local ? socket_unix_pair(&setup, fd) : socket_inet_pair(&setup, fd);
  if (err)
    return ipc_fail(L, ipc_sock_handle.type, "open", err, NULL);
  /* Where an empty packet cannot be told from the end, all are padded. */
  if (setup.type == SOCK_SEQPACKET &&
      (ipc_os_without("passcred") || ipc_os_mark_packets(fd[0])))
    end[0]->f.lead = end[1]->f.lead = 1;
  for (int i = 0; i < 2 && !err; i++) {
    Setup padded = setup;
    if (padded.maxsize)
      padded.maxsize += end[i]->f.lead;
    err = ipc_sock_take(end[i], &padded, fd[i]);
    if (!err && setup.type != SOCK_STREAM)
      end[i]->f.c.limit -= end[i]->f.lead;
    if (!err)
      ipc_handle_open(&end[i]->f.c.h);
  }
  if (err) {
    const char *why =
        err == EMSGSIZE ? ipc_sock_too_big(L, end[0], setup.maxsize) : NULL;
    for (int i = 0; i < 2; i++) {
      if (end[i]->f.c.h.open)
        ipc_handle_release(&end[i]->f.c.h, IPC_DROP);
      else
        close(fd[i]);
    }
    return ipc_sock_fail(L, "open", err, setup.scheme, "", why);
  }
  return 2;
}

/* --------------------------------------------------------------- questions */

static Socket *socket_self(lua_State *L) {
  return (Socket *)ipc_handle_self(L);
}

static int socket_named(lua_State *L, const char *call,
                        int (*get)(int, struct sockaddr *, socklen_t *)) {
  Socket *s = socket_self(L);
  Sockaddr a;
  char text[SOCKADDR_TEXT];
  if (!ipc_handle_usable(&s->f.c.h))
    return ipc_handle_refuse(L, &s->f.c.h, call);
  a.size = sizeof a.s;
  if (get(s->f.rfd, (struct sockaddr *)&a.s, &a.size))
    return ipc_fail(L, ipc_sock_handle.type, call, errno, NULL);
  lua_pushlstring(L, text, ipc_sockaddr_text(&a, ipc_sock_scheme(s), text));
  if (s->f.brings && s->type != SOCK_STREAM) { /* as ipc.open takes it */
    lua_pushstring(L, s->type == SOCK_DGRAM ? "?type=datagram"
                                            : "?type=seqpacket");
    lua_concat(L, 2);
  }
  return 1;
}

/***
The address of the other side.
@function socket:peer
@treturn string address, "unix:" if it has none; or nil, message, errno:
ENOTCONN while nobody is connected
*/
static int socket_peer(lua_State *L) {
  return socket_named(L, "peer", getpeername);
}

/***
The address of this side.
@function socket:address
@treturn string address, "unix:" if it has none; or nil, message, errno
*/
static int socket_address(lua_State *L) {
  return socket_named(L, "address", getsockname);
}

/***
Who connected a unix socket (or made the pair, or listens): as it was then,
unix(7), SO_PEERCRED.
@function socket:credentials
@treturn table `uid`, `gid`, and `pid` where the system tells it; or nil,
message, errno: ENOTSUP for tcp and udp
*/
static int socket_credentials(lua_State *L) {
  Socket *s = socket_self(L);
  long pid = -1, uid = -1, gid = -1;
  if (!ipc_handle_usable(&s->f.c.h))
    return ipc_handle_refuse(L, &s->f.c.h, "credentials");
  int err =
      !s->f.brings ? ENOTSUP : ipc_os_credentials(s->f.rfd, &pid, &uid, &gid);
  if (err || uid < 0)
    return ipc_fail(L, ipc_sock_handle.type, "credentials",
                    err ? err : ENOTCONN, NULL);
  lua_createtable(L, 0, 3);
  lua_pushinteger(L, uid);
  lua_setfield(L, -2, "uid");
  lua_pushinteger(L, gid);
  lua_setfield(L, -2, "gid");
  if (pid > 0) {
    lua_pushinteger(L, pid);
    lua_setfield(L, -2, "pid");
  }
  return 1;
}

/* ----------------------------------------------------------------- tables */

/* (descriptor [, handles]) -> a framed channel that owns it. */
static int socket_adopt(lua_State *L) {
  Setup plain = {.scheme = "unix", .type = SOCK_STREAM};
  int fd = (int)luaL_checkinteger(L, 1);
  plain.handles = (unsigned)luaL_optinteger(L, 2, SOCK_HANDLES);
  Socket *s = ipc_sock_new(L, &plain, IPC_READ | IPC_WRITE);
  s->f.rfd = s->f.wfd = fd;
  ipc_handle_open(&s->f.c.h);
  return 1;
}

static int socket_taken(lua_State *L, Given *g) {
  Setup setup;
  bool listens = false;
  int err = ipc_sock_look(g->fd[0], &setup, &listens);
  if (err)
    return err;
  g->count = 1;
  /* close(2) would wait as long as whoever made it wished. */
  const struct linger none = {0, 0};
  (void)setsockopt(g->fd[0], SOL_SOCKET, SO_LINGER, &none, sizeof none);
  setup.stream = g->stream && setup.type == SOCK_STREAM;
  setup.handles = strcmp(setup.scheme, "unix") == 0 ? g->handles : 0;
  if (listens)
    return EINVAL;
  Socket *s = ipc_sock_new(L, &setup, IPC_READ | IPC_WRITE);
  if (setup.type == SOCK_DGRAM) {
    Sockaddr peer;
    peer.size = sizeof peer.s;
    s->many =
        getpeername(g->fd[0], (struct sockaddr *)&peer.s, &peer.size) != 0;
    err = s->many ? ipc_sock_extra(s, &setup) : 0;
  }
  if (!err)
    err = ipc_sock_take(s, &setup, g->fd[0]);
  if (!err && s->f.packets) {
    s->f.lead = (uint8_t)g->lead;
    s->f.c.limit -= g->lead;
  }
  if (err) {
    free(s->x);
    s->x = NULL;
    lua_pop(L, 1);
    return err;
  }
  if (s->f.packets && g->limit < s->f.c.limit)
    s->f.limited = true;
  if (g->limit > 0 && g->limit <= (s->f.packets ? s->f.c.limit : FRAME_MOST))
    s->f.c.limit = g->limit;
  ipc_handle_open(&s->f.c.h);
  return 0;
}

static const luaL_Reg socket_methods[] = {{"peer", socket_peer},
                                          {"address", socket_address},
                                          {"credentials", socket_credentials},
                                          {"sendmsg", ipc_passing_send},
                                          {"recvmsg", ipc_passing_recv},
                                          {NULL, NULL}};

static void socket_setup(lua_State *L) {
  ipc_chan_type(L, &ipc_sock_handle, socket_methods);
}

static const char *const socket_schemes[] = {"unix", "tcp", "udp", NULL};

static const Kind socket_kinds[] = {
    {"unix stream", "unix", "both ways", "message, stream", "this system",
     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR | IPC_HANDLES},
    {"unix seqpacket", "unix?type=seqpacket", "both ways", "message",
     "this system",
     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR | IPC_HANDLES |
         IPC_MANY_READERS | IPC_MANY_WRITERS},
    {"unix datagram", "unix?type=datagram", "both ways", "message",
     "this system",
     IPC_EMPTY | IPC_DESCRIPTOR | IPC_HANDLES | IPC_TAG_ADDRESS |
         IPC_MANY_READERS | IPC_MANY_WRITERS},
    {"tcp", "tcp", "both ways", "message, stream", "other systems",
     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR},
    {"udp", "udp", "both ways", "message", "other systems",
     IPC_EMPTY | IPC_DESCRIPTOR | IPC_TAG_ADDRESS | IPC_MANY_READERS |
         IPC_MANY_WRITERS},
    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool socket_has(const Kind *k) {
  int fd[2];
  if (strcmp(k->name, "unix seqpacket") != 0)
    return true;
  int err = ipc_os_socketpair(SOCK_SEQPACKET, fd);
  if (!err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err != ENOTSUP;
}

static const Limit socket_limits[] = {
    {"net.core.wmem_max", "what a socket holds that is sent", "bytes"},
    {"net.core.rmem_max", "what a socket holds that is received", "bytes"},
    {"net.core.somaxconn", "clients that wait to be accepted", "clients"},
    {"net.unix.max_dgram_qlen", "datagrams that wait in a unix socket",
     "messages"},
    {NULL, NULL, NULL}};

const Room ipc_room_socket = {.name = "socket",
                              .schemes = socket_schemes,
                              .kinds = socket_kinds,
                              .has = socket_has,
                              .limits = socket_limits,
                              .pair = socket_pair,
                              .open = socket_open,
                              .connect = socket_connect,
                              .adopt = socket_adopt,
                              .take = socket_taken,
                              .setup = socket_setup};
