/* Socket addresses and their texts; see sockaddr.h. No Lua. */
#include "prefix.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "os.h"
#include "sockaddr.h"

enum { UNIX_HEAD = offsetof(struct sockaddr_un, sun_path) };

/* ------------------------------------------------------------------- unix */

/* One less than there is room for: bind(2) takes a path without its NUL, and
 * then getsockname(2) reports one that runs on. */
size_t ipc_sockaddr_longest(void) {
  return sizeof((struct sockaddr_un *)0)->sun_path - 1;
}

int ipc_sockaddr_unix(const char *text, size_t size, Sockaddr *a) {
  struct sockaddr_un u;
  memset(&u, 0, sizeof u);
  memset(a, 0, sizeof *a);
  u.sun_family = AF_UNIX;
  bool abstract = size > 0 && text[0] == '@';
  if (size == 0 || (abstract && size == 1) ||
      (!abstract && memchr(text, '\0', size)))
    return EINVAL;
  if (abstract && !ipc_os_abstract)
    return ENOTSUP;
  if (size > ipc_sockaddr_longest())
    return ENAMETOOLONG;
  memcpy(u.sun_path, text, size);
  if (abstract)
    u.sun_path[0] = '\0';
  memcpy(&a->s, &u, sizeof u);
  a->size = (socklen_t)(UNIX_HEAD + size + !abstract);
  return 0;
}

static const char *unix_path(const Sockaddr *a, size_t *size) {
  if (a->size <= UNIX_HEAD || a->s.ss_family != AF_UNIX)
    return NULL;
  *size = a->size - UNIX_HEAD;
  return (const char *)&a->s + UNIX_HEAD;
}

const char *ipc_sockaddr_path(const Sockaddr *a) {
  size_t size;
  const char *path = unix_path(a, &size);
  return path && path[0] ? path : NULL;
}

bool ipc_sockaddr_abstract(const Sockaddr *a) {
  size_t size;
  const char *path = unix_path(a, &size);
  return path && !path[0] && size > 1;
}

/* ------------------------------------------------------------------- inet */

int ipc_sockaddr_split(const char *text, size_t size, char host[SOCKADDR_HOST],
                       char port[SOCKADDR_PORT]) {
  const char *end = text + size, *colon = NULL, *name = text;
  size_t length = 0;
  if (memchr(text, '\0', size))
    return EINVAL;
  if (size > 0 && text[0] == '[') {
    const char *close = memchr(text, ']', size);
    if (!close || close + 1 == end || close[1] != ':')
      return EINVAL;
    name = text + 1;
    length = (size_t)(close - name);
    colon = close + 1;
  } else {
    colon = memchr(text, ':', size);
    length = colon ? (size_t)(colon - text) : 0;
    if (colon && memchr(colon + 1, ':', (size_t)(end - colon - 1)))
      return EINVAL; /* an IPv6 address without its brackets */
  }
  if (colon && length == 0)
    return EINVAL;
  const char *number = colon ? colon + 1 : text;
  size_t digits = (size_t)(end - number);
  if (digits == 0 || digits >= SOCKADDR_PORT || length >= SOCKADDR_HOST)
    return EINVAL;
  memcpy(port, number, digits);
  port[digits] = '\0';
  memcpy(host, name, length);
  host[length] = '\0';
  if (!colon)
    memcpy(host, "127.0.0.1", sizeof "127.0.0.1");
  else if (length == 1 && host[0] == '*')
    memcpy(host, "0.0.0.0", sizeof "0.0.0.0");
  return 0;
}

int ipc_sockaddr_inet(const char *host, const char *port, Sockaddr *a) {
  struct sockaddr_in four;
  struct sockaddr_in6 six;
  char *end;
  long number = strtol(port, &end, 10);
  if (*end || number < 0 || number > 65535 || strspn(port, "0123456789") == 0)
    return EINVAL;
  memset(a, 0, sizeof *a);
  memset(&four, 0, sizeof four);
  memset(&six, 0, sizeof six);
  if (inet_pton(AF_INET, host, &four.sin_addr) == 1) {
    four.sin_family = AF_INET;
    four.sin_port = htons((uint16_t)number);
    memcpy(&a->s, &four, sizeof four);
    a->size = sizeof four;
    return 0;
  }
  if (inet_pton(AF_INET6, host, &six.sin6_addr) == 1) {
    six.sin6_family = AF_INET6;
    six.sin6_port = htons((uint16_t)number);
    memcpy(&a->s, &six, sizeof six);
    a->size = sizeof six;
    return 0;
  }
  return EAGAIN;
}

/* ------------------------------------------------------------------- text */

/* What an address gives another meaning, and what cannot be seen, is escaped;
 * a path of 107 bytes becomes 321 at the most. */
static size_t text_escape(char *out, const char *bytes, size_t size) {
  static const char hex[] = "0123456789ABCDEF";
  size_t n = 0;
  for (size_t i = 0; i < size; i++) {
    unsigned char c = (unsigned char)bytes[i];
    if (c == '%' || c == '?' || c < ' ' || c == 0x7f) {
      out[n++] = '%';
      out[n++] = hex[c >> 4];
      out[n++] = hex[c & 15];
    } else {
      out[n++] = (char)c;
    }
  }
  return n;
}

size_t ipc_sockaddr_text(const Sockaddr *a, const char *scheme,
                         char text[SOCKADDR_TEXT]) {
  char host[INET6_ADDRSTRLEN];
  struct sockaddr_in four;
  struct sockaddr_in6 six;
  size_t size = 0, n = (size_t)snprintf(text, SOCKADDR_TEXT, "%s:", scheme);
  if (a->size >= sizeof four && a->s.ss_family == AF_INET) {
    memcpy(&four, &a->s, sizeof four);
    inet_ntop(AF_INET, &four.sin_addr, host, sizeof host);
    return n + (size_t)snprintf(text + n, SOCKADDR_TEXT - n, "%s:%u", host,
                                (unsigned)ntohs(four.sin_port));
  }
  if (a->size >= sizeof six && a->s.ss_family == AF_INET6) {
    memcpy(&six, &a->s, sizeof six);
    inet_ntop(AF_INET6, &six.sin6_addr, host, sizeof host);
    return n + (size_t)snprintf(text + n, SOCKADDR_TEXT - n, "[%s]:%u", host,
                                (unsigned)ntohs(six.sin6_port));
  }
  const char *path = unix_path(a, &size);
  if (!path)
    return n;
  if (path[0] == '\0') {
    text[n++] = '@';
    return n + text_escape(text + n, path + 1, size - 1);
  }
  const char *end = memchr(path, '\0', size);
  return n + text_escape(text + n, path, end ? (size_t)(end - path) : size);
}

static int text_digit(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  c = (char)(c | 0x20);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int ipc_sockaddr_parse(const char *text, size_t size, const char *scheme,
                       Sockaddr *a) {
  char plain[SOCKADDR_TEXT];
  char host[SOCKADDR_HOST], port[SOCKADDR_PORT];
  size_t head = strlen(scheme), n = 0;
  if (size <= head || size >= SOCKADDR_TEXT || text[head] != ':' ||
      memcmp(text, scheme, head) != 0)
    return EINVAL;
  for (size_t i = head + 1; i < size && text[i] != '?'; i++) {
    int high = text[i] == '%' && i + 2 < size ? text_digit(text[i + 1]) : -1;
    int low = high >= 0 ? text_digit(text[i + 2]) : -1;
    plain[n] = text[i];
    if (low >= 0) {
      plain[n] = (char)(high << 4 | low);
      i += 2;
    }
    n++;
  }
  if (strcmp(scheme, "unix") == 0)
    return ipc_sockaddr_unix(plain, n, a);
  int err = ipc_sockaddr_split(plain, n, host, port);
  return err ? err : ipc_sockaddr_inet(host, port, a);
}

bool ipc_sockaddr_equal(const Sockaddr *a, const Sockaddr *b) {
  return a->size == b->size && memcmp(&a->s, &b->s, a->size) == 0;
}
