/* Sockets that wait for clients: unix(7), tcp(7). Binding is bind.c's; what a
 * client's channel is, sock.c's. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc.h"
#include "os.h"
#include "sock.h"

/***
 * @submodule ipc
 */

enum {
  ACCEPT_TRIES = 64,    /* clients refused before others have their turn */
  ACCEPT_NAP = 10000,   /* us without a free descriptor, to begin with, */
  ACCEPT_DOZE = 1000000 /* and at the most */
};

typedef struct SocketListener {
  Listener l;
  Extra *x;
  int fd, pending; /* a client not handed out yet; -1 */
  Nanos tired;     /* no descriptor was free: not before then */
  uint32_t nap;
  Nanos timeout, linger; /* of clients */
  size_t limit;
  uint32_t spin;
  bool shared; /* came from another process */
} SocketListener;

static int listener_descriptor(const Handle *h, int want) {
  const SocketListener *l = (const SocketListener *)h;
  (void)want;
  if (l->fd < 0)
    return l->x ? l->x->wanted.fd : -1;
  return l->tired ? -1 : l->fd;
}

static int listener_ready(Handle *h, int want, bool ask_kernel) {
  SocketListener *l = (SocketListener *)h;
  struct pollfd p = {l->fd, POLLIN, 0};
  size_t ready = 0;
  (void)want;
  if (l->pending >= 0)
    return 0;
  if (l->tired) {
    Nanos now = ipc_now();
    if (now < l->tired) {
      h->nap = (uint32_t)((l->tired - now) / 1000 + 1);
      return EAGAIN;
    }
    l->tired = 0;
    h->nap = 0;
  }
  if (!ask_kernel || l->fd < 0)
    return EAGAIN;
  int err = ipc_os_poll(&p, 1, 0, &ready);
  return !err && ready ? 0 : EAGAIN;
}

static void listener_close(Handle *h, How how) {
  SocketListener *l = (SocketListener *)h;
  if (l->x) {
    ipc_dial_end(&l->x->dial, h->foreign);
    if (how != IPC_DROP)
      ipc_bound_remove(&l->x->bound);
    free(l->x);
    l->x = NULL;
  }
  if (l->pending >= 0)
    close(l->pending);
  if (l->fd >= 0)
    close(l->fd);
  l->fd = l->pending = -1;
}

static int listener_give(Handle *h, Given *g) {
  const SocketListener *l = (const SocketListener *)h;
  *g = (Given){.kind = "listener",
               .fd = {l->fd, -1},
               .count = 1,
               .stream = l->x->setup.stream,
               .limit = l->limit,
               .handles = l->x->setup.handles};
  return l->fd < 0 ? EBUSY : 0;
}

/* A child that shares it leaves the name to the parent. */
static void listener_forked(Handle *h, bool child) {
  if (!child)
    return;
  SocketListener *l = (SocketListener *)h;
  if (l->pending >= 0)
    close(l->pending);
  l->pending = -1;
  l->x->bound.there = false;
}

static const HandleOps listener_handle = {.type = "ipc.listener",
                                          .descriptor = listener_descriptor,
                                          .ready = listener_ready,
                                          .close = listener_close,
                                          .forked = listener_forked,
                                          .give = listener_give,
                                          .interest = IPC_READ};

/* Whether it does not block. The flag is shared by all who have the listener;
 * we do not set it on what others made. */
static bool listener_is_ours(int fd) {
  int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_NONBLOCK);
}

/* The next client's descriptor into l->pending. */
static int listener_next(SocketListener *l) {
  if (l->shared && !listener_is_ours(l->fd))
    return EBUSY; /* somebody made it block meanwhile */
  for (int turn = 0; l->pending < 0 && turn < ACCEPT_TRIES; turn++) {
    int fd, err = ipc_os_accept(l->fd, &fd);
    if (err == EWOULDBLOCK)
      return EAGAIN;
    if (err == ECONNABORTED || err == EPROTO || err == EINTR) {
      l->l.refused++; /* gone again */
      continue;
    }
    if (err)
      return err;
    err = ipc_setup_allows(&l->x->setup, fd);
    if (!err)
      err = ipc_setup_apply(&l->x->setup, fd);
    if (err) {
      close(fd);
      l->l.refused++;
      continue;
    }
    l->pending = fd;
  }
  if (l->pending >= 0)
    return 0;
  l->l.h.nap = 1;
  return EAGAIN;
}

/* Without a descriptor a client stays in the backlog and the listener readable:
 * who asks again and again must not find so at once. */
static int listener_tire(SocketListener *l, int err) {
  if (err != EMFILE && err != ENFILE && err != ENOBUFS && err != ENOMEM)
    return err;
  l->nap = l->nap == 0 ? ACCEPT_NAP : l->nap * 2;
  if (l->nap > ACCEPT_DOZE)
    l->nap = ACCEPT_DOZE;
  l->tired = ipc_now() + (Nanos)l->nap * 1000;
  return err;
}

static int listener_accept(lua_State *L, Listener *listener) {
  SocketListener *l = (SocketListener *)listener;
  const Setup *setup = &l->x->setup;
  if (l->tired) {
    Nanos now = ipc_now();
    if (now < l->tired) {
      l->l.h.nap = (uint32_t)((l->tired - now) / 1000 + 1);
      return EAGAIN;
    }
    l->tired = 0;
  }
  int err = listener_next(l);
  if (err)
    return err == EAGAIN ? err : listener_tire(l, err);
  l->nap = 0;
  Socket *s = ipc_sock_new(L, setup, IPC_READ | IPC_WRITE);
  s->f.c.timeout = l->timeout;
  s->f.c.linger = l->linger;
  s->f.c.limit = l->limit;
  s->f.c.spin[0].budget = s->f.c.spin[1].budget = l->spin;
  if (l->pending < 0) { /* a finaliser took it */
    lua_pop(L, 1);
    l->l.h.nap = 1;
    return EAGAIN;
  }
  int fd = l->pending;
  l->pending = -1;
  err = ipc_sock_take(s, setup, fd);
  if (err) {
    close(fd);
    lua_pop(L, 1);
    return err;
  }
  ipc_handle_open(&s->f.c.h);
  return 0;
}

static void listener_address(lua_State *L, Listener *listener) {
  SocketListener *l = (SocketListener *)listener;
  Sockaddr a;
  char text[SOCKADDR_TEXT];
  a.size = sizeof a.s;
  if (getsockname(l->fd, (struct sockaddr *)&a.s, &a.size))
    a.size = 0;
  const Setup *s = &l->x->setup;
  lua_pushlstring(L, text, ipc_sockaddr_text(&a, s->scheme, text));
  if (s->type == SOCK_SEQPACKET)
    lua_pushliteral(L, "?type=seqpacket");
  else
    lua_pushstring(L, s->stream ? "?unit=stream" : "");
  lua_concat(L, 2);
}

static const ListenerOps listener_ops = {.accept = listener_accept,
                                         .address = listener_address};

static int listen_failed(lua_State *L, Handle *h, int err) {
  return ipc_sock_failed(L, h, ((SocketListener *)h)->x, "listen", err);
}

static int listen_attempt(lua_State *L, Handle *h) {
  SocketListener *l = (SocketListener *)h;
  int fd, err = ipc_sock_bind(L, h, l->x, &fd);
  if (err == EAGAIN)
    return -IPC_READ;
  if (err)
    return listen_failed(L, h, err);
  l->fd = fd;
  lua_pushvalue(L, 1);
  return 1;
}

static const Op listen_op = {.name = "listen",
                             .attempt = listen_attempt,
                             .failed = listen_failed,
                             .want = IPC_READ,
                             .deadline = WAY_DEADLINE,
                             .top = WAY_TOP};

static int listener_listen(lua_State *L) {
  Target to;
  lua_settop(L, 3);
  const char *scheme = lua_tostring(L, 3);
  Setup setup = ipc_sock_options(L, 2, scheme, 0);
  if (setup.type == SOCK_DGRAM)
    luaL_argerror(L, 1,
                  "datagrams have no connections: "
                  "ipc.open(address, \"rw\") receives them");
  int err = ipc_sock_target(L, 1, &setup, &to);
  if (err)
    return ipc_sock_fail(L, "listen", err, scheme, lua_tostring(L, 1), NULL);
  ipc_sock_guard(&setup, &to);
  SocketListener *l =
      ipc_listener_new(L, sizeof *l, &listener_handle, &listener_ops, 1);
  Socket *like = ipc_sock_new(L, &setup, IPC_READ | IPC_WRITE);
  ipc_chan_options(L, 2, &like->f.c, FRAME_MOST);
  l->l.timeout = l->timeout = like->f.c.timeout;
  l->linger = like->f.c.linger;
  l->limit = like->f.c.limit;
  l->spin = like->f.c.spin[0].budget;
  lua_pop(L, 1);
  l->fd = l->pending = -1;
  l->x = calloc(1, sizeof *l->x);
  if (!l->x)
    return ipc_fail(L, listener_handle.type, "listen", ENOMEM, NULL);
  l->x->setup = setup;
  l->x->dial.fd = l->x->waiting = l->x->wanted.fd = -1;
  l->x->dial.to = to;
  ipc_handle_open(&l->l.h);
  ipc_handle_owe(L, -1); /* now: it may raise, and there is no name yet */
  return ipc_sock_run(L, &listen_op, l->timeout);
}

static int listener_take(lua_State *L, Given *g, const Setup *setup) {
  SocketListener *l =
      ipc_listener_new(L, sizeof *l, &listener_handle, &listener_ops, 1);
  l->pending = -1;
  l->timeout = IPC_FOREVER;
  l->linger = IPC_SECOND;
  l->limit = g->limit;
  l->spin = IPC_SPIN;
  l->x = calloc(1, sizeof *l->x);
  if (!l->x) {
    lua_pop(L, 1);
    return ENOMEM;
  }
  l->x->setup = *setup;
  l->x->dial.fd = l->x->waiting = l->x->wanted.fd = -1;
  l->fd = g->fd[0];
  l->shared = true;
  ipc_handle_open(&l->l.h);
  return 0;
}

/* Of a socket that came from elsewhere. */
static int listener_taken(lua_State *L, Given *g) {
  Setup setup;
  bool listens = false;
  int err = ipc_sock_look(g->fd[0], &setup, &listens);
  if (err || !listens)
    return err ? err : EINVAL;
  if (!listener_is_ours(g->fd[0])) /* accept(2) would wait */
    return EINVAL;
  setup.stream = g->stream;
  setup.handles = g->handles;
  g->count = 1;
  return listener_take(L, g, &setup);
}

static void listener_setup(lua_State *L) {
  ipc_listener_type(L, &listener_handle);
}

static const char *const listener_schemes[] = {"unix", "tcp", "udp", NULL};

const Room ipc_room_listener = {.name = "listener",
                                .schemes = listener_schemes,
                                .listen = listener_listen,
                                .take = listener_taken,
                                .types = listener_setup};
