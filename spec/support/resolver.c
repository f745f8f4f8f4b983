/* For specs of name look-ups, loaded by LD_PRELOAD: one that never answers. */
#include <netdb.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service,
                const struct addrinfo *hints, struct addrinfo **result) {
  (void)node;
  (void)service;
  (void)hints;
  (void)result;
  for (;;)
    pause();
}
