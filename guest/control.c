#include "control.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* From linux/vm_sockets.h, which musl's compiler does not see on Debian. */
#define VSOCK_CID_HOST 2
struct vsock_address {
	sa_family_t family;
	unsigned short zero;
	unsigned int port;
	unsigned int cid;
	unsigned char flags;
	unsigned char padding[3];
};

#define PORT_NAME "org.ironworks.control\n"
#define PORTS "/sys/class/virtio-ports"

static int open_virtio_serial(void)
{
	DIR *ports = opendir(PORTS);
	struct dirent *entry;
	int fd = -1;

	if (!ports)
		return -1;
	while (fd < 0 && (entry = readdir(ports))) {
		char path[sizeof(PORTS) + sizeof(entry->d_name) + 8], name[64];
		ssize_t got;
		int file;

		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), PORTS "/%s/name", entry->d_name);
		file = open(path, O_RDONLY | O_CLOEXEC);
		if (file < 0)
			continue;
		got = read(file, name, sizeof(name) - 1);
		close(file);
		if (got <= 0)
			continue;
		name[got] = 0;
		if (strcmp(name, PORT_NAME) != 0)
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(ports);
	return fd;
}

static int open_vsock(uint32_t port)
{
	struct vsock_address host = {.family = AF_VSOCK, .port = port, .cid = VSOCK_CID_HOST};
	int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -1;
	if (connect(fd, (struct sockaddr *)&host, sizeof(host)) < 0 ||
	    fcntl(fd, F_SETFL, O_NONBLOCK) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

void control_init(struct control *control, uint32_t kind, uint32_t port)
{
	memset(control, 0, sizeof(*control));
	control->kind = kind;
	control->port = port;
	control->fd = -1;
}

int control_open(struct control *control)
{
	if (control->fd >= 0)
		return 1;
	if (control->kind == CONTROL_VIRTIO_SERIAL)
		control->fd = open_virtio_serial();
	else if (control->kind == CONTROL_VSOCK)
		control->fd = open_vsock(control->port);
	return control->fd >= 0;
}

/*
 * A stream that broke is opened anew; a line that was half sent starts again. A
 * port of virtio-serial breaks only if somebody in the guest takes it away.
 */
static void control_broken(struct control *control)
{
	close(control->fd);
	control->fd = -1;
	control->in_bytes = 0;
	control->in_overlong = 0;
}

int control_flush(struct control *control)
{
	while (control->out_bytes && control_open(control)) {
		ssize_t sent = write(control->fd, control->out, control->out_bytes);

		if (sent < 0) {
			if (errno != EAGAIN && errno != EINTR)
				control_broken(control);
			break;
		}
		control->out_bytes -= (size_t)sent;
		memmove(control->out, control->out + sent, control->out_bytes);
	}
	return control->out_bytes == 0;
}

void control_send(struct control *control, const char *line)
{
	size_t length = strlen(line);

	if (control->kind == CONTROL_NONE)
		return;
	/* init sends a handful of lines in its life; one that does not fit is a bug. */
	if (length + 1 > sizeof(control->out) - control->out_bytes)
		return;
	memcpy(control->out + control->out_bytes, line, length);
	control->out_bytes += length;
	control->out[control->out_bytes++] = '\n';
	control_flush(control);
}

static int take_line(struct control *control, char line[CONTROL_LINE_BYTES])
{
	char *newline;
	size_t length;
	int overlong;

	while ((newline = memchr(control->in, '\n', control->in_bytes))) {
		length = (size_t)(newline - control->in);
		overlong = control->in_overlong;
		memcpy(line, control->in, length);
		line[length] = 0;
		control->in_overlong = 0;
		control->in_bytes -= length + 1;
		memmove(control->in, newline + 1, control->in_bytes);
		if (!overlong)
			return 1;
	}
	if (control->in_bytes == sizeof(control->in)) {
		control->in_bytes = 0;
		control->in_overlong = 1;
	}
	return 0;
}

int control_receive(struct control *control, char line[CONTROL_LINE_BYTES])
{
	if (control->kind == CONTROL_NONE || !control_open(control))
		return 0;
	/* Bounded: a host that floods is read a few times a turn, no more. */
	for (int turn = 0; turn < 16; turn++) {
		ssize_t got;

		if (take_line(control, line))
			return 1;
		got = read(control->fd, control->in + control->in_bytes,
			   sizeof(control->in) - control->in_bytes);
		/* A port without a host at its other end reads as ended, and is not. */
		if ((got == 0 && control->kind == CONTROL_VSOCK) ||
		    (got < 0 && errno != EAGAIN && errno != EINTR))
			control_broken(control);
		if (got <= 0)
			return 0;
		control->in_bytes += (size_t)got;
	}
	return 0;
}
