/*
 * The control channel: bounded lines between init and the host.
 *
 *   guest → host   ready                 the entrypoint runs
 *                  exited <code>         it ended by itself
 *                  signal <number>       a signal ended it
 *                  failed <sentence>     it never ran, and why
 *                  memory <KiB> <KiB>    in all, and available to a new program
 *   host → guest   stop [<milliseconds>]  stop signal now, SIGKILL after the patience
 *                  status                 answered by ready, once the entrypoint runs
 *                  clock <UTC ns>         set the clock, after a pause
 *                  memory                 answered by memory
 *
 * What the host does not take now is kept (CONTROL_OUT_BYTES at most) and sent
 * when it attaches: a host whose metald restarts misses nothing. Lines that are
 * too long or unknown are dropped.
 */
#ifndef IRONWORKS_CONTROL_H
#define IRONWORKS_CONTROL_H

#include "config.h"

#define CONTROL_LINE_BYTES 256
#define CONTROL_OUT_BYTES 2048

struct control {
	uint32_t kind;
	uint32_t port;
	int fd;
	size_t out_bytes;
	char out[CONTROL_OUT_BYTES];
	size_t in_bytes;
	int in_overlong;
	char in[CONTROL_LINE_BYTES];
};

void control_init(struct control *control, uint32_t kind, uint32_t port);

/* Opens the channel if it is there now; cheap to repeat. Returns 1 when open. */
int control_open(struct control *control);

/* Queues one line; sends what the host takes without waiting. */
void control_send(struct control *control, const char *line);

/* Sends more of what is queued. Returns 1 when nothing is left. */
int control_flush(struct control *control);

/*
 * Takes the next whole line, without its newline, into `line`. Returns 1, or 0
 * when there is none now. Never waits.
 */
int control_receive(struct control *control, char line[CONTROL_LINE_BYTES]);

#endif
