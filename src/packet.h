/* Messages over media that keep them apart by themselves: packet pipes and
 * packet sockets. On frame.h's handle, whose buffer holds one packet. */
#ifndef IPC_PACKET_H
#define IPC_PACKET_H

#include "frame.h"

/* How packets pass: 0 or an errno; neither blocks. */
typedef struct PacketOps {
  /* EMSGSIZE: it had *got bytes and is gone. */
  int (*receive)(Framed *f, void *bytes, size_t room, size_t *got, bool *end);
  /* m: whom to, and what goes beside the bytes, which are in iov. */
  int (*send)(Framed *f, const struct iovec *iov, int count, const Message *m);
  /* Adds to *m whom the packet in hand is from. NULL: nobody knows. */
  void (*from)(Framed *f, Message *m);
} PacketOps;

/* Makes a handle of ipc_frame_new carry packets; `lead` is how many bytes of
 * padding go in front of each, where empty ones do not exist. */
void ipc_packet_make(Framed *f, const ChanOps *ops, const PacketOps *packets,
                     int lead, size_t limit);

/* For those without tags. */
extern const ChanOps ipc_packet_ops;

/* To make ChanOps with others of. */
int ipc_packet_recv(Chan *c, Message *m);
void ipc_packet_took(Chan *c, size_t size);
int ipc_packet_send(Chan *c, const Message *m);
int ipc_packet_flush(Chan *c);
int ipc_packet_shutdown(Chan *c);

/* HandleOps.ready for both kinds. */
int ipc_packet_ready(Handle *h, int want, bool ask_kernel);

#endif
