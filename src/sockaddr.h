/* Socket addresses and their texts: what stands behind "unix:", "tcp:" and
 * "udp:". No Lua, and no looking up of names: that is lookup.c. */
#ifndef IPC_SOCKADDR_H
#define IPC_SOCKADDR_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>

typedef struct Sockaddr {
  socklen_t size; /* 0: there is none */
  struct sockaddr_storage s;
} Sockaddr;

enum {
  SOCKADDR_TEXT = 512, /* bytes of any address as text, escapes included */
  SOCKADDR_HOST = 256, /* of a host's name, RFC 1035 */
  SOCKADDR_PORT = 32
};

/* A path, or "@name" in Linux's abstract namespace (exactly these bytes).
 * ENAMETOOLONG, EINVAL (empty, or a NUL in it), ENOTSUP (no such namespace). */
int ipc_sockaddr_unix(const char *text, size_t size, Sockaddr *a);

/* The longest path there can be. */
size_t ipc_sockaddr_longest(void);

/* Its path; NULL: not a unix socket's, or without one in the file system. */
const char *ipc_sockaddr_path(const Sockaddr *a);
bool ipc_sockaddr_abstract(const Sockaddr *a);

/* Takes "host:port", "[::1]:port", "*:port" or "port" apart. Without a host it
 * is the loopback address; "*" is every one. EINVAL if it is none of these. */
int ipc_sockaddr_split(const char *text, size_t size, char host[SOCKADDR_HOST],
                       char port[SOCKADDR_PORT]);

/* Numbers only: EAGAIN if the host is a name, EINVAL for a bad port. */
int ipc_sockaddr_inet(const char *host, const char *port, Sockaddr *a);

/* "tcp:127.0.0.1:7000", "unix:/path", with %-escapes as addresses have them;
 * the bytes written (no NUL at the end is counted). "unix:" has no name. */
size_t ipc_sockaddr_text(const Sockaddr *a, const char *scheme,
                         char text[SOCKADDR_TEXT]);

/* The opposite, of unix and numeric addresses: EINVAL, or as above. */
int ipc_sockaddr_parse(const char *text, size_t size, const char *scheme,
                       Sockaddr *a);

bool ipc_sockaddr_equal(const Sockaddr *a, const Sockaddr *b);

#endif
