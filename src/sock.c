/* What connecting and listening sockets have in common; see sock.h. Streams
 * carry frames or bytes, packets and datagrams keep messages apart. */
#include "prefix.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmsg.h"
#include "os.h"
#include "packet.h"
#include "sock.h"

enum {
  SOCK_DATAGRAM = 65507, /* bytes of a UDP message over IPv4 */
  SOCK_TRIES = 64,       /* clients refused before others have their turn */
  SOCK_BACKLOG = 511,    /* the system makes it less if it must */
  SOCK_NAP = 500         /* us until a path's lock is tried again */
};

/* ------------------------------------------------------------ system half */

/* Only unix sockets can bring descriptors. */
const char *ipc_sock_scheme(const Socket *s) {
  return s->f.brings ? "unix" : s->type == SOCK_DGRAM ? "udp" : "tcp";
}

static int socket_copy(Framed *to, const Framed *from);
static int socket_await(Framed *f);

/* A connection that the system has given up, tcp(7), is one that has ended:
 * `timeout` is what our own deadlines answer. */
static int socket_given_up(int err) {
  return err == ETIMEDOUT || err == EHOSTUNREACH || err == ENETUNREACH
             ? ECONNRESET
             : err;
}

static int socket_read(int fd, void *bytes, size_t room, size_t *got) {
  return socket_given_up(ipc_os_receive(fd, bytes, room, got));
}

static int socket_write(int fd, const struct iovec *iov, int count,
                        size_t *put) {
  return socket_given_up(ipc_os_send(fd, iov, count, put));
}

static const StreamOps socket_stream = {.read = socket_read,
                                        .write = socket_write,
                                        .shutdown = ipc_os_end_sending,
                                        .size = sizeof(Socket),
                                        .copy = socket_copy,
                                        .await = socket_await};

/* An empty packet and the end both read as 0 bytes: only a packet comes with
 * the mark that was asked for. A datagram socket has no end. */
static int socket_receive(Framed *f, void *bytes, size_t room, size_t *got,
                          bool *end) {
  Socket *s = (Socket *)f;
  bool datagram = s->type == SOCK_DGRAM, marked = datagram;
  int flags = 0;
  Parcel none, *p = NULL;
  if (f->handles) {
    p = ipc_frame_parcel(f);
    if (!p)
      return ENOMEM;
    f->c.strangers += ipc_parcel_drop(p, p->count);
    p->cut = false;
  } else if (f->brings) {
    p = &none;
    ipc_parcel_start(p, 0, 0);
  }
  int err =
      ipc_cmsg_receive(f->rfd, bytes, room, got, &flags, p,
                       s->many ? &s->x->from : NULL, datagram ? NULL : &marked);
  if (err)
    return err;
  if (p) {
    f->c.strangers += (uint32_t)p->strangers;
    p->strangers = 0;
  }
  *end = *got == 0 && !marked;
  if (flags & MSG_TRUNC) {
    if (*got <= room)
      *got = room + 1;
    err = EMSGSIZE;
  } else if (f->handles && p->cut) {
    err = p->count < p->limit ? EMFILE : E2BIG;
  }
  if (err && p)
    f->c.strangers += ipc_parcel_drop(p, p->count);
  if (!err && s->many)
    s->x->from_size = 0; /* its text is made when asked for */
  return err;
}

/* Whom the tag names; the same one as the last time most often. */
static int socket_to(Socket *s, const Message *m, const Sockaddr **to) {
  if (!m->peer)
    return s->many ? EDESTADDRREQ : 0;
  if (!s->x && ipc_sock_extra(s, NULL))
    return ENOMEM;
  Extra *x = s->x;
  if (m->peer_size != x->to_size ||
      memcmp(m->peer, x->to_text, x->to_size) != 0) {
    x->to_size = 0;
    int err =
        ipc_sockaddr_parse(m->peer, m->peer_size, ipc_sock_scheme(s), &x->to);
    if (err)
      return err == EAGAIN ? EADDRNOTAVAIL : err; /* a name: not looked up */
    memcpy(x->to_text, m->peer, m->peer_size);
    x->to_size = m->peer_size;
  }
  *to = &x->to;
  return 0;
}

static int socket_send(Framed *f, const struct iovec *iov, int count,
                       const Message *m) {
  Socket *s = (Socket *)f;
  size_t put;
  const Sockaddr *to = NULL;
  int err = s->type == SOCK_DGRAM ? socket_to(s, m, &to) : 0;
  if (err)
    return err;
  /* What an earlier datagram met (udp(7)) is not this one's failure. */
  for (int turn = 0; turn < 2; turn++) {
    if (to || m->fd_count)
      err = ipc_cmsg_send(f->wfd, iov, count, &put, to, m->fds, m->fd_count);
    else
      err = ipc_os_send(f->wfd, iov, count, &put);
    if (err != ECONNREFUSED || s->type != SOCK_DGRAM)
      break;
  }
  /* The receiver's queue is full, or the interface's: later. */
  return err == ENOBUFS && s->type == SOCK_DGRAM ? EAGAIN : err;
}

static void socket_from(Framed *f, Message *m) {
  Socket *s = (Socket *)f;
  Extra *x = s->x;
  if (!s->many || x->from.size == 0)
    return;
  if (x->from_size == 0)
    x->from_size =
        ipc_sockaddr_text(&x->from, ipc_sock_scheme(s), x->from_text);
  if (x->from_size == strlen(ipc_sock_scheme(s)) + 1) /* one that has no name */
    return;
  m->peer = x->from_text;
  m->peer_size = x->from_size;
}

static const PacketOps socket_packets = {
    .receive = socket_receive, .send = socket_send, .from = socket_from};

static const Tags socket_tags = {.kind = IPC_TAG_ADDRESS};

/* Nothing is left behind to end, and nobody to hear of it. */
static int socket_datagram_shutdown(Chan *c) {
  (void)c;
  return 0;
}

static const ChanOps socket_datagrams = {.recv = ipc_packet_recv,
                                         .took = ipc_packet_took,
                                         .send = ipc_packet_send,
                                         .flush = ipc_packet_flush,
                                         .shutdown = socket_datagram_shutdown,
                                         .tags = &socket_tags,
                                         .dup = ipc_frame_dup};

static int socket_descriptor(const Handle *h, int want) {
  const Socket *s = (const Socket *)h;
  return s->dialing ? s->x->wanted.fd : ipc_frame_descriptor(h, want);
}

static void socket_close(Handle *h, How how) {
  Socket *s = (Socket *)h;
  Extra *x = s->x;
  if (x) {
    if (how != IPC_DROP) {
      ipc_bound_remove(&x->dial.bound);
      ipc_bound_remove(&x->bound);
    }
    ipc_dial_end(&x->dial, h->foreign);
    if (x->waiting >= 0 && x->waiting != s->f.rfd)
      close(x->waiting);
  }
  ipc_frame_close(h, how);
  free(x);
  s->x = NULL;
}

const HandleOps ipc_sock_handle = {.type = "ipc.socket",
                                   .descriptor = socket_descriptor,
                                   .ready = ipc_packet_ready,
                                   .close = socket_close,
                                   .give = ipc_frame_give};

static int socket_copy(Framed *to, const Framed *from) {
  Socket *s = (Socket *)to;
  const Socket *like = (const Socket *)from;
  s->type = like->type;
  s->many = like->many;
  return like->many ? ipc_sock_extra(s, &like->x->setup) : 0;
}

/* Lets fd carry messages of `want` bytes; *most is what it does carry. */
static int socket_room(const Socket *s, int fd, size_t want, size_t *most) {
  int err = 0;
  if (s->f.brings)
    err = ipc_os_packet_room(fd, want, most);
  else
    *most = SOCK_DATAGRAM;
  return !err && *most < want ? EMSGSIZE : err;
}

/* A connected or bound descriptor becomes the socket's. */
int ipc_sock_take(Socket *s, const Setup *setup, int fd) {
  size_t most = 0;
  int err = 0;
  if (s->f.packets) {
    if (s->type == SOCK_SEQPACKET && !ipc_os_without("passcred"))
      (void)ipc_os_mark_packets(fd);
    err = socket_room(s, fd, setup->maxsize, &most);
    s->f.c.limit = setup->maxsize && !err ? setup->maxsize : most;
  }
  if (err)
    return err;
  s->f.rfd = fd; /* of a sender, too: to close it, and to see the end */
  if (s->f.c.writer)
    s->f.wfd = fd;
  return 0;
}

/* For the one client of ipc.open(address, "r"). What listened is kept, shut, so
 * that whoever polls it wakes up. */
static int socket_await(Framed *f) {
  Socket *s = (Socket *)f;
  Extra *x = s->x;
  int fd = -1, err = 0;
  for (int turn = 0; fd < 0 && turn < SOCK_TRIES; turn++) {
    err = ipc_os_accept(x->waiting, &fd);
    if (err == ECONNABORTED || err == EPROTO || err == EINTR)
      continue;
    if (err)
      return err == EWOULDBLOCK ? EAGAIN : err;
    if (ipc_setup_allows(&x->setup, fd)) {
      close(fd);
      fd = -1;
    }
  }
  if (fd < 0) { /* others have their turn, and the clock */
    f->c.h.nap = 1;
    return EAGAIN;
  }
  err = ipc_setup_apply(&x->setup, fd);
  if (!err)
    err = ipc_sock_take(s, &x->setup, fd);
  if (err) {
    close(fd);
    return err;
  }
  f->awaits = false;
  ipc_bound_remove(&x->bound);
  (void)shutdown(x->waiting, SHUT_RD);
  while (ipc_os_accept(x->waiting, &fd) == 0)
    close(fd); /* who came second learns it */
  return 0;
}

/* ---------------------------------------------------------------- options */

static const char *const socket_units[] = {"message", "stream", NULL};

static int socket_uid(lua_State *L, int options, Setup *s) {
  lua_pushliteral(L, "allow_uids");
  if (lua_isnoneornil(L, options) || lua_rawget(L, options) == LUA_TNIL) {
    lua_pop(L, 1);
    return 0;
  }
  if (lua_type(L, -1) != LUA_TTABLE)
    luaL_argerror(L, options, "option 'allow_uids': a list expected");
  lua_Unsigned n = lua_rawlen(L, -1);
  if (n > SETUP_UIDS)
    luaL_argerror(L, options, "option 'allow_uids': more than 32");
  for (lua_Unsigned i = 1; i <= n; i++) {
    int isnum = lua_rawgeti(L, -1, (lua_Integer)i) == LUA_TNUMBER;
    lua_Integer uid = isnum ? lua_tointegerx(L, -1, &isnum) : 0;
    if (!isnum || uid < 0 || uid > UINT32_MAX)
      luaL_argerror(L, options, "option 'allow_uids': user ids expected");
    s->uids[s->uid_count++] = (long)uid;
    lua_pop(L, 1);
  }
  s->uids_checked = true;
  lua_pop(L, 1);
  return 0;
}

/* Reads the options at `index` for sockets of `scheme`; raises on mistakes. */
Setup ipc_sock_options(lua_State *L, int index, const char *scheme,
                       unsigned handles) {
  static const char *const unix_names[] = {"type",       "unit", "handles",
                                           "allow_uids", "bind", "backlog",
                                           "capacity",   NULL};
  static const char *const tcp_names[] = {
      "unit", "nodelay", "user_timeout", "bind", "backlog", "capacity", NULL};
  static const char *const udp_names[] = {"bind", "capacity", NULL};
  static const char *const types[] = {"stream", "seqpacket", "datagram", NULL};
  static const int numbers[] = {SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM};
  Setup s;
  memset(&s, 0, sizeof s);
  bool local = strcmp(scheme, "unix") == 0, udp = strcmp(scheme, "udp") == 0;
  s.scheme = local ? "unix" : udp ? "udp" : "tcp";
  ipc_options(L, index, local ? unix_names : udp ? udp_names : tcp_names);
  s.type = udp ? SOCK_DGRAM : SOCK_STREAM;
  if (local)
    s.type = numbers[ipc_option_choice(L, index, "type", types)];
  s.stream = !udp && ipc_option_choice(L, index, "unit", socket_units) == 1;
  if (s.stream && s.type != SOCK_STREAM)
    luaL_argerror(L, index, "packets are messages: unit = \"stream\" without");
  s.keepalive = ipc_option_flag(L, index, "keepalive", true);
  s.nodelay = ipc_option_flag(L, index, "nodelay", !s.stream);
  Nanos silence = ipc_option_time(L, index, "user_timeout", 0) / 1000000;
  s.user_timeout = silence > INT32_MAX ? INT32_MAX : (unsigned)silence;
  s.handles = local ? (unsigned)ipc_option_size(L, index, "handles", 0,
                                                CMSG_MOST, handles)
                    : 0;
  s.capacity = ipc_option_size(L, index, "capacity", 1, INT32_MAX / 2, 0);
  s.maxsize = ipc_option_size(L, index, "maxsize", 1, FRAME_MOST, 0);
  s.backlog =
      (int)ipc_option_size(L, index, "backlog", 1, 1 << 16, SOCK_BACKLOG);
  s.mode = ipc_option_permissions(L, index);
  s.create = ipc_option_create(L, index);
  socket_uid(L, index, &s);
  if (s.uids_checked && s.type == SOCK_DGRAM)
    luaL_argerror(L, index, "option 'allow_uids': datagrams tell no user");
  return s;
}

/* A new socket of that kind on the stack, without a descriptor. */
Socket *ipc_sock_new(lua_State *L, const Setup *setup, int mode) {
  Socket *s = (Socket *)ipc_frame_new(L, sizeof *s, &ipc_sock_handle,
                                      &socket_stream, mode);
  s->type = (uint8_t)setup->type;
  s->f.c.stream = setup->stream;
  s->f.handles = (uint8_t)setup->handles;
  s->f.brings = strcmp(setup->scheme, "unix") == 0;
  s->f.limited = setup->maxsize > 0;
  s->f.c.passes = strcmp(setup->scheme, "unix") == 0 && !setup->stream;
  if (setup->type == SOCK_SEQPACKET)
    ipc_packet_make(&s->f, &ipc_packet_ops, &socket_packets, 0, FRAME_MOST);
  else if (setup->type == SOCK_DGRAM)
    ipc_packet_make(&s->f, &socket_datagrams, &socket_packets, 0, FRAME_MOST);
  return s;
}

/* Datagrams with a peer of their own need its room too: a tag may still name
 * another. */
int ipc_sock_extra(Socket *s, const Setup *setup) {
  s->x = calloc(1, sizeof *s->x);
  if (!s->x)
    return ENOMEM;
  if (setup)
    s->x->setup = *setup;
  s->x->dial.fd = -1;
  s->x->waiting = -1;
  return 0;
}

/* Says what is wrong with an address, or with what stands there. */
int ipc_sock_fail(lua_State *L, const char *call, int err, const char *scheme,
                  const char *where, const char *why) {
  switch (err) {
  case ENAMETOOLONG:
    lua_pushfstring(L, "%s:%s: a socket's path has at most %d bytes", scheme,
                    where, (int)ipc_sockaddr_longest());
    break;
  case EADDRINUSE:
    lua_pushfstring(L, "%s:%s: %s", scheme, where,
                    why ? why : "somebody listens there");
    break;
  case EBUSY:
    lua_pushfstring(L, "%s:%s: another process has held %s%s for %d s", scheme,
                    where, where, IPC_BINDING, SOCK_PATIENCE);
    err = EBUSY;
    break;
  default:
    lua_pushfstring(L, why ? "%s:%s: %s" : "%s:%s", scheme, where, why);
  }
  return ipc_fail(L, ipc_sock_handle.type, call, err, lua_tostring(L, -1));
}

/* The address in slot `index`; raises when it can be none. */
int ipc_sock_target(lua_State *L, int index, const Setup *s, Target *t) {
  size_t size;
  const char *text = lua_tolstring(L, index, &size);
  int err = ipc_target_parse(t, s, text, size);
  if (err == EINVAL && strcmp(s->scheme, "unix") == 0)
    luaL_argerror(L, index, "a path or @name expected");
  if (err == EINVAL)
    luaL_argerror(L, index, "host:port, [v6]:port or port expected");
  return err;
}

/* The option `bind`: where the socket itself is to be. */
int ipc_sock_local(lua_State *L, int options, const Setup *s, Sockaddr *a) {
  Target t;
  a->size = 0;
  if (lua_isnoneornil(L, options))
    return 0;
  lua_pushliteral(L, "bind");
  if (lua_rawget(L, options) == LUA_TNIL)
    return 0;
  size_t size;
  if (lua_type(L, -1) != LUA_TSTRING)
    luaL_argerror(L, options, "option 'bind': an address expected");
  const char *text = lua_tolstring(L, -1, &size);
  size_t head = strlen(s->scheme);
  if (strncmp(text, s->scheme, head) == 0 && text[head] == ':') {
    text += head + 1; /* as address() answers it */
    size -= head + 1;
  }
  const char *query = memchr(text, '?', size);
  if (query && s->type == SOCK_DGRAM)
    size = (size_t)(query - text);
  int err = ipc_target_parse(&t, s, text, size);
  if (err == EINVAL || (!err && t.count == 0))
    luaL_argerror(L, options, "option 'bind': a path, or numbers as host:port");
  if (strcmp(s->scheme, "unix") == 0 && s->type != SOCK_DGRAM)
    luaL_argerror(L, options, "option 'bind': of unix sockets, datagrams only");
  *a = t.list[0];
  return err;
}

/* Who may be at an abstract name is not said by permissions: only our own, and
 * the system's, unless others are allowed. */
void ipc_sock_guard(Setup *s, const Target *t) {
  if (s->uids_checked || t->count == 0 || s->type == SOCK_DGRAM ||
      !ipc_sockaddr_abstract(t->list))
    return;
  s->uids_checked = true;
  s->uids[0] = (long)geteuid();
  s->uids[1] = 0;
  s->uid_count = 2;
}

/* The handle is on top, the address in slot 1. */
int ipc_sock_run(lua_State *L, const Op *op, Nanos limit) {
  if (limit == IPC_FOREVER)
    lua_pushnil(L);
  else
    lua_pushnumber(L, (lua_Number)limit / 1e9);
  lua_pushvalue(L, 1);
  lua_rotate(L, 1, 3);
  lua_settop(L, WAY_TOP);
  return ipc_run(L, op);
}

/* Another process binds the path: it does not take long, or never ends. */
static int sock_locked(Extra *x, Wanted *w) {
  Nanos now = ipc_now();
  if (!x->locked)
    x->locked = now;
  w->nap = SOCK_NAP;
  return now - x->locked < SOCK_PATIENCE * IPC_SECOND ? EAGAIN : EBUSY;
}

/* Binds, looking the name up first. 0, EAGAIN (what to wait for is in x->wanted
 * and h->nap), or what went wrong. */
int ipc_sock_bind(lua_State *L, Handle *h, Extra *x, int *fd) {
  Target *t = &x->dial.to;
  Wanted wanted = {-1, IPC_READ, 0};
  int err = ipc_target_step(t, &x->setup, &wanted);
  for (size_t i = 0; !err && i < t->count; i++) {
    err = ipc_bind(&x->setup, &t->list[i], fd, &x->bound);
    if (!err)
      break;
    if (err == EAGAIN)
      err = sock_locked(x, &wanted);
    else if ((err == EADDRNOTAVAIL || err == EAFNOSUPPORT) && i + 1 < t->count)
      err = 0; /* a name's next address */
  }
  if (h->waited && wanted.fd != x->wanted.fd)
    ipc_wake(L, h);
  x->wanted = wanted;
  h->nap = wanted.nap;
  if (err != EAGAIN)
    ipc_target_end(t, false);
  return err;
}

const char *ipc_sock_too_big(lua_State *L, const Socket *s, size_t want) {
  if (strcmp(ipc_sock_scheme(s), "unix") != 0)
    return "a datagram carries at most 65507 bytes";
  return lua_pushfstring(L, "maxsize %I, but net.core.wmem_max allows %I",
                         (LUAI_UACINT)want, (LUAI_UACINT)s->f.c.limit);
}

int ipc_sock_failed(lua_State *L, Handle *h, const Extra *x, const char *call,
                    int err) {
  const char *scheme = x->setup.scheme, *why = x->dial.to.why;
  if (x->dial.misplaced)
    why = "its own address, option bind";
  if (h->waited)
    ipc_wake(L, h);
  if (err == EMSGSIZE)
    why = ipc_sock_too_big(L, (Socket *)h, x->setup.maxsize);
  ipc_handle_release(h, IPC_CLOSE); /* frees x */
  return ipc_sock_fail(L, call, err, scheme, lua_tostring(L, WAY_TEXT), why);
}

/* What a descriptor that came from elsewhere is. */
int ipc_sock_look(int fd, Setup *s, bool *listens) {
  Sockaddr a;
  int type = 0, accepts = 0;
  socklen_t size = sizeof type, flag = sizeof accepts;
  memset(s, 0, sizeof *s);
  a.size = sizeof a.s;
  if (getsockname(fd, (struct sockaddr *)&a.s, &a.size) ||
      getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) ||
      getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepts, &flag))
    return errno;
  int family = a.s.ss_family;
  bool inet = family == AF_INET || family == AF_INET6;
  if (family != AF_UNIX && !inet)
    return EAFNOSUPPORT;
  s->type = type;
  s->scheme = !inet ? "unix" : type == SOCK_DGRAM ? "udp" : "tcp";
  s->nodelay = s->keepalive = true;
  *listens = accepts != 0;
  return type == SOCK_STREAM || type == SOCK_DGRAM ||
                 (type == SOCK_SEQPACKET && !inet)
             ? 0
             : EPROTOTYPE;
}
