/* For specs of signals, loaded by LD_PRELOAD: Ctrl-C comes when a thread is
 * about to start. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes,
                   void *(*start)(void *), void *argument) {
  static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *),
                     void *);
  if (!real) {
    *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    raise(SIGINT);
  }
  return real(thread, attributes, start, argument);
}
