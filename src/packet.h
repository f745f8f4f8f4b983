/* Messages over media that keep them apart by themselves: packet pipes and
 * packet sockets. On frame.h's handle, whose buffer holds one packet. */
#ifndef IPC_PACKET_H
#define IPC_PACKET_H

#include "frame.h"

/* How packets pass: 0 or an errno; neither blocks. */
typedef struct PacketOps {
  /* EMSGSIZE: it had *got bytes and is gone. */
  int (*receive)(int fd, void *bytes, size_t room, size_t *got, bool *end);
  int (*send)(int fd, const struct iovec *iov, int count, size_t *put);
} PacketOps;

/* Makes a handle of ipc_frame_new carry packets; `lead` is how many bytes of
 * padding go in front of each, where empty ones do not exist. */
void ipc_packet_make(Framed *f, const PacketOps *packets, int lead,
                     size_t limit);

/* HandleOps.ready for both kinds. */
int ipc_packet_ready(Handle *h, int want, bool ask_kernel);

#endif
