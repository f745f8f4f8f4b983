/* Unix sockets: unix(7). Two ways. A stream carries frames or bytes; seqpacket
 * keeps messages apart by itself, for any number of readers and writers. */
#include "prefix.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "frame.h"
#include "ipc.h"
#include "os.h"
#include "packet.h"

/***
 * @submodule ipc
 */

/* ------------------------------------------------------------ system half */

static const StreamOps socket_stream = {.read = ipc_os_receive,
                                        .write = ipc_os_send,
                                        .shutdown = ipc_os_end_sending};

static const PacketOps socket_packets = {.receive = ipc_os_receive_packet,
                                         .send = ipc_os_send};

static const HandleOps socket_handle = {.type = "ipc.socket",
                                        .descriptor = ipc_frame_descriptor,
                                        .ready = ipc_packet_ready,
                                        .close = ipc_frame_close};

/* Two connected packet sockets that carry `want` bytes (0: what the system
 * gives, told in *most). *lead: no empty packets here, pad each message. */
static int socket_packet_pair(int fd[2], size_t want, size_t *most, int *lead) {
  int err = ipc_os_socketpair(SOCK_SEQPACKET, fd);
  if (err)
    return err;
  *lead = ipc_os_without("passcred") || ipc_os_mark_packets(fd[0]) ||
          ipc_os_mark_packets(fd[1]);
  err = ipc_os_packet_room(fd[0], want ? want + 1 : 0, most);
  if (!err)
    err = ipc_os_packet_room(fd[1], want ? want + 1 : 0, most);
  *most -= (size_t)*lead;
  if (!err && *most < want)
    err = EMSGSIZE;
  if (err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err;
}

/* --------------------------------------------------------------- Lua half */

static Framed *socket_new(lua_State *L, bool stream) {
  Framed *f = ipc_frame_new(L, sizeof *f, &socket_handle, &socket_stream,
                            IPC_READ | IPC_WRITE);
  f->c.stream = stream;
  return f;
}

static void socket_own(Framed *f, int fd) {
  f->rfd = f->wfd = fd;
  ipc_handle_open(&f->c.h);
}

static int socket_packets_open(lua_State *L, Framed *end[2], size_t want) {
  int fd[2], lead = 0;
  size_t most = 0;
  int err = socket_packet_pair(fd, want, &most, &lead);
  if (err)
    return ipc_fail(L, socket_handle.type, "open", err,
                    err == EMSGSIZE
                        ? lua_pushfstring(L,
                                          "maxsize %I, but net.core.wmem_max "
                                          "allows %I",
                                          (LUAI_UACINT)want, (LUAI_UACINT)most)
                        : NULL);
  for (int i = 0; i < 2; i++) {
    ipc_packet_make(end[i], &socket_packets, lead, want ? want : most);
    socket_own(end[i], fd[i]);
  }
  return 2;
}

/***
Makes two connected unix sockets, unix(7), for this process and its children:
`ipc.pair("unix", options)`.
@function pair
@string address "unix"
@tparam[opt] table options every room's, and: `type` ("stream" or "seqpacket":
one packet a message, any number of readers and writers, messages up to
SO_SNDBUF, 208 KiB unless maxsize asks for more); `unit` ("message" or
"stream")
@treturn channel one end
@treturn channel the other; or nil, message, errno: EMFILE, EMSGSIZE when
maxsize is over what the system allows, ENOTSUP for seqpacket on macOS
@usage local a, b = ipc.pair("unix", { type = "seqpacket" })
*/
static int socket_pair(lua_State *L) {
  static const char *const names[] = {"type", "unit", NULL};
  static const char *const types[] = {"stream", "seqpacket", NULL};
  static const char *const units[] = {"message", "stream", NULL};
  lua_settop(L, 2);
  ipc_options(L, 2, names);
  bool packets = ipc_option_choice(L, 2, "type", types) == 1;
  bool stream = ipc_option_choice(L, 2, "unit", units) == 1;
  size_t want = ipc_option_size(L, 2, "maxsize", 1, FRAME_MOST, 0);
  if (packets && stream)
    luaL_argerror(L, 2, "packets are messages: unit = \"stream\" without");
  Framed *end[2];
  for (int i = 0; i < 2; i++) {
    end[i] = socket_new(L, stream);
    end[i]->limited = want > 0;
    ipc_chan_options(L, 2, &end[i]->c, FRAME_MOST);
  }
  if (packets)
    return socket_packets_open(L, end, want);
  int fd[2];
  int err = ipc_os_socketpair(SOCK_STREAM, fd);
  if (err)
    return ipc_fail(L, socket_handle.type, "open", err, NULL);
  socket_own(end[0], fd[0]);
  socket_own(end[1], fd[1]);
  return 2;
}

/* (descriptor) -> a framed channel that owns it. */
static int socket_adopt(lua_State *L) {
  int fd = (int)luaL_checkinteger(L, 1);
  Framed *f = socket_new(L, false);
  socket_own(f, fd);
  return 1;
}

static void socket_setup(lua_State *L) {
  ipc_chan_type(L, &socket_handle, NULL);
}

static const char *const socket_schemes[] = {"unix", NULL};

static const Kind socket_kinds[] = {{"unix stream", "unix", "both ways",
                                     "message, stream", "this system",
                                     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR},
                                    {"unix seqpacket", "unix?type=seqpacket",
                                     "both ways", "message", "this system",
                                     IPC_LIVENESS | IPC_EMPTY | IPC_DESCRIPTOR |
                                         IPC_MANY_READERS | IPC_MANY_WRITERS},
                                    {NULL, NULL, NULL, NULL, NULL, 0}};

static bool socket_has(const Kind *k) {
  int fd[2];
  bool packets = (k->capabilities & IPC_MANY_READERS) != 0;
  int err = ipc_os_socketpair(packets ? SOCK_SEQPACKET : SOCK_STREAM, fd);
  if (!err) {
    close(fd[0]);
    close(fd[1]);
  }
  return err != ENOTSUP;
}

const Room ipc_room_socket = {.name = "socket",
                              .schemes = socket_schemes,
                              .kinds = socket_kinds,
                              .has = socket_has,
                              .pair = socket_pair,
                              .adopt = socket_adopt,
                              .setup = socket_setup};
