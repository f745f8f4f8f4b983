/* Looking up the name of a host in a thread; see lookup.h. */
#include "prefix.h"

#include <errno.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lookup.h"
#include "os.h"

/* Of two owners, the caller and the thread; the last one frees it. */
struct Lookup {
  pthread_mutex_t mutex;
  int owners;
  int fd, setter;
  char host[SOCKADDR_HOST], port[SOCKADDR_PORT];
  int type;
  bool done;
  int err, system; /* of getaddrinfo; errno with EAI_SYSTEM */
  size_t count;
  Sockaddr list[LOOKUP_MOST];
};

static void lookup_free(Lookup *l, bool forked) {
  close(l->fd);
  if (l->setter != l->fd)
    close(l->setter);
  if (!forked) /* there it may be anyone's */
    pthread_mutex_destroy(&l->mutex);
  free(l);
}

static void lookup_leave(Lookup *l) {
  pthread_mutex_lock(&l->mutex);
  bool last = --l->owners == 0;
  pthread_mutex_unlock(&l->mutex);
  if (last)
    lookup_free(l, false);
}

static void *lookup_run(void *argument) {
  Lookup *l = argument;
  struct addrinfo hints, *found = NULL;
  memset(&hints, 0, sizeof hints);
  hints.ai_socktype = l->type;
  hints.ai_flags = AI_ADDRCONFIG;
  int err = getaddrinfo(l->host, l->port, &hints, &found), system = errno;
  pthread_mutex_lock(&l->mutex);
  for (struct addrinfo *at = err ? NULL : found; at && l->count < LOOKUP_MOST;
       at = at->ai_next) {
    if (at->ai_addrlen > sizeof l->list[0].s)
      continue;
    Sockaddr *a = &l->list[l->count++];
    a->size = at->ai_addrlen;
    memcpy(&a->s, at->ai_addr, at->ai_addrlen);
  }
  l->err = err;
  l->system = system;
  l->done = true;
  ipc_os_event_set(l->setter);
  pthread_mutex_unlock(&l->mutex);
  if (!err)
    freeaddrinfo(found);
  lookup_leave(l);
  return NULL;
}

int ipc_lookup_start(const char *host, const char *port, int type,
                     Lookup **made) {
  Lookup *l = calloc(1, sizeof *l);
  pthread_t thread;
  sigset_t all, before;
  if (!l)
    return ENOMEM;
  int err = ipc_os_event(&l->fd, &l->setter);
  if (err) {
    free(l);
    return err;
  }
  snprintf(l->host, sizeof l->host, "%s", host);
  snprintf(l->port, sizeof l->port, "%s", port);
  l->type = type;
  l->owners = 2;
  pthread_mutex_init(&l->mutex, NULL);
  sigfillset(&all); /* signals are for the program's own threads */
  pthread_sigmask(SIG_SETMASK, &all, &before);
  err = pthread_create(&thread, NULL, lookup_run, l);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (err) {
    lookup_free(l, false);
    return err;
  }
  pthread_detach(thread);
  *made = l;
  return 0;
}

int ipc_lookup_fd(const Lookup *l) { return l->fd; }

int ipc_lookup_result(Lookup *l, Sockaddr list[LOOKUP_MOST], size_t *count,
                      const char **why) {
  pthread_mutex_lock(&l->mutex);
  bool done = l->done;
  pthread_mutex_unlock(&l->mutex);
  if (!done)
    return EAGAIN;
  *count = l->count;
  memcpy(list, l->list, l->count * sizeof *list);
  if (l->err == 0)
    return l->count ? 0 : EADDRNOTAVAIL;
  *why = gai_strerror(l->err);
  switch (l->err) {
  case EAI_MEMORY:
    return ENOMEM;
  case EAI_SYSTEM:
    return l->system ? l->system : EIO;
  case EAI_AGAIN:
    return EHOSTUNREACH; /* no answer from the name server */
  default:
    return EADDRNOTAVAIL;
  }
}

void ipc_lookup_drop(Lookup *l, int forked) {
  if (!l)
    return;
  if (forked)
    lookup_free(l, true);
  else
    lookup_leave(l);
}
