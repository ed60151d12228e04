/*
 * Stays with one VMM for as long as it runs, so that metald need not.
 *
 * It joins the VM's cgroup and network namespace, opens the VM's tap, starts the
 * jailed VMM with all of that inherited, gives up its privileges, and then does
 * one thing: it takes what the VMM prints and keeps a bounded amount of it. A
 * metald that restarts, or dies, is not noticed by the VM; a guest that floods
 * its console fills no disk. It ends when the VMM ends, with its exit status.
 *
 *   keeper --cgroup FILE … --netns FILE --tap NAME --uid N --gid N
 *          --console FILE --console-bytes N --errors FILE --errors-bytes N
 *          [--orphans 1] -- PROGRAM ARGUMENT …
 *
 * The program's standard input is /dev/null, its output goes to the console's
 * log, its errors to the other, and the tap is at descriptor TAP_FD. Whatever
 * else is inherited is handed on as it is. With --orphans the program may leave a
 * child behind, as Firecracker's jailer does: that one is kept, and its status told.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define TAP_FD 10
#define MAX_CGROUPS 16
#define BUFFER_BYTES 65536
#define MIN_LOG_BYTES 4096

/* From linux/if_tun.h, which musl's compiler does not see on Debian. */
#define TUN_SET_INTERFACE _IOW('T', 202, int)
#define TUN_TAP 0x0002
#define TUN_NO_PACKET_INFORMATION 0x1000
#define TUN_VIRTIO_HEADER 0x4000

struct log {
	int pipe;
	int file;
	off_t size;
	off_t max;
};

struct options {
	const char *cgroups[MAX_CGROUPS];
	size_t cgroup_count;
	const char *netns;
	const char *tap;
	unsigned long uid;
	unsigned long gid;
	const char *console;
	unsigned long console_bytes;
	const char *errors;
	unsigned long errors_bytes;
	unsigned long orphans;
	char **program;
};

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vdprintf(STDERR_FILENO, format, args);
	va_end(args);
	dprintf(STDERR_FILENO, "\n");
	_exit(125);
}

static unsigned long number(const char *text)
{
	char *end;
	unsigned long value = strtoul(text, &end, 10);

	if (*text < '0' || *text > '9' || *end)
		die("keeper: %s is no number", text);
	return value;
}

static void parse(char **words, struct options *options)
{
	memset(options, 0, sizeof(*options));
	for (words++; *words && strcmp(*words, "--") != 0; words += 2) {
		const char *value = words[1];

		if (!value)
			die("keeper: %s lacks its value", *words);
		if (strcmp(*words, "--cgroup") == 0) {
			if (options->cgroup_count == MAX_CGROUPS)
				die("keeper: more than %d cgroups", MAX_CGROUPS);
			options->cgroups[options->cgroup_count++] = value;
		} else if (strcmp(*words, "--netns") == 0) {
			options->netns = value;
		} else if (strcmp(*words, "--tap") == 0) {
			options->tap = value;
		} else if (strcmp(*words, "--uid") == 0) {
			options->uid = number(value);
		} else if (strcmp(*words, "--gid") == 0) {
			options->gid = number(value);
		} else if (strcmp(*words, "--console") == 0) {
			options->console = value;
		} else if (strcmp(*words, "--console-bytes") == 0) {
			options->console_bytes = number(value);
		} else if (strcmp(*words, "--errors") == 0) {
			options->errors = value;
		} else if (strcmp(*words, "--errors-bytes") == 0) {
			options->errors_bytes = number(value);
		} else if (strcmp(*words, "--orphans") == 0) {
			options->orphans = number(value);
		} else {
			die("keeper: %s is not known", *words);
		}
	}
	if (!*words || !words[1])
		die("keeper: no program to keep");
	options->program = words + 1;
	if (!options->console || !options->errors || !options->uid || !options->gid)
		die("keeper: console, errors, uid and gid are needed");
}

static void join_cgroup(const char *path)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, "0", 1) != 1)
		die("The VM's cgroup %s cannot be joined: %s.", path, strerror(errno));
	close(fd);
}

static void join_netns(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
		die("The VM's network namespace %s cannot be joined: %s.", path, strerror(errno));
	close(fd);
}

static void open_tap(const char *name)
{
	struct ifreq interface = {0};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		die("/dev/net/tun cannot be opened: %s.", strerror(errno));
	if (strlen(name) >= IFNAMSIZ)
		die("The tap's name %s is too long.", name);
	memcpy(interface.ifr_name, name, strlen(name));
	interface.ifr_flags = TUN_TAP | TUN_NO_PACKET_INFORMATION | TUN_VIRTIO_HEADER;
	if (ioctl(fd, (int)TUN_SET_INTERFACE, &interface) < 0)
		die("The VM's tap %s cannot be attached: %s.", name, strerror(errno));
	if (dup2(fd, TAP_FD) < 0)
		die("The VM's tap %s cannot be handed on: %s.", name, strerror(errno));
	close(fd);
}

static void open_log(struct log *log, const char *path, unsigned long max, int *write_end)
{
	int ends[2];

	log->max = (off_t)(max < MIN_LOG_BYTES ? MIN_LOG_BYTES : max);
	log->file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (log->file < 0)
		die("The log %s cannot be opened: %s.", path, strerror(errno));
	log->size = lseek(log->file, 0, SEEK_END);
	if (pipe2(ends, O_CLOEXEC) < 0)
		die("A pipe to the VMM cannot be made: %s.", strerror(errno));
	log->pipe = ends[0];
	*write_end = ends[1];
	fcntl(log->pipe, F_SETFL, O_NONBLOCK);
}

/* Drops the older half: what happened last is what one looks for. */
static void halve(struct log *log)
{
	static char buffer[BUFFER_BYTES];
	off_t from = log->size - log->max / 2, to = 0;
	ssize_t got;

	while ((got = pread(log->file, buffer, sizeof(buffer), from)) > 0) {
		if (pwrite(log->file, buffer, (size_t)got, to) != got)
			break;
		from += got;
		to += got;
	}
	if (ftruncate(log->file, to) == 0)
		log->size = to;
}

/* Moves what the pipe holds to the log. Returns 0 at the pipe's end. */
static int pump(struct log *log)
{
	static char buffer[BUFFER_BYTES];
	ssize_t got = read(log->pipe, buffer, sizeof(buffer)), put;

	if (got < 0)
		return errno == EAGAIN || errno == EINTR;
	if (got == 0)
		return 0;
	for (ssize_t done = 0; done < got; done += put) {
		size_t part = (size_t)(got - done);

		if ((off_t)part > log->max / 2)
			part = (size_t)(log->max / 2);
		if (log->size + (off_t)part > log->max)
			halve(log);
		/* A full disk costs the output, not the VM. */
		put = pwrite(log->file, buffer + done, part, log->size);
		if (put <= 0)
			break;
		log->size += put;
	}
	return 1;
}

static pid_t start(const struct options *options, int out, int err)
{
	/* Hard limits too: without privileges nobody raises them again. */
	static const struct {
		int resource;
		rlim_t most;
	} limits[] = {
		{RLIMIT_CORE, 0},     {RLIMIT_NOFILE, 1024}, {RLIMIT_MSGQUEUE, 0},
		{RLIMIT_RTPRIO, 0},   {RLIMIT_NICE, 0},	     {RLIMIT_MEMLOCK, 64 << 20},
		{RLIMIT_NPROC, 4096},
	};
	pid_t pid = fork();

	if (pid != 0)
		return pid;
	if (dup2(out, STDOUT_FILENO) < 0 || dup2(err, STDERR_FILENO) < 0)
		_exit(125);
	signal(SIGPIPE, SIG_DFL);
	for (size_t i = 0; i < sizeof(limits) / sizeof(*limits); i++) {
		struct rlimit limit;

		/* Only ever lowered: a host may have given us less, and not the right to raise it. */
		if (getrlimit((int)limits[i].resource, &limit) < 0 || limit.rlim_max > limits[i].most)
			limit.rlim_max = limits[i].most;
		limit.rlim_cur = limit.rlim_max;
		if (setrlimit((int)limits[i].resource, &limit) < 0)
			die("keeper: the limit %d cannot be set: %s", limits[i].resource,
			    strerror(errno));
	}
	execv(options->program[0], options->program);
	die("%s cannot be started: %s.", options->program[0], strerror(errno));
}

/* What only reads two pipes and writes two files needs no privilege. */
static void drop_privileges(const struct options *options)
{
	gid_t gid = (gid_t)options->gid;

	for (int fd = 3; fd < 64; fd++)
		if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC))
			close(fd);
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || setgroups(1, &gid) < 0 ||
	    setgid(gid) < 0 || setuid((uid_t)options->uid) < 0)
		die("keeper: privileges cannot be given up: %s", strerror(errno));
}

static void keep(struct log logs[2])
{
	int open_pipes = 2;

	while (open_pipes) {
		struct pollfd fds[2] = {{.fd = logs[0].pipe, .events = POLLIN},
					{.fd = logs[1].pipe, .events = POLLIN}};

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return;
		for (int i = 0; i < 2; i++)
			if (fds[i].revents && !pump(&logs[i])) {
				close(logs[i].pipe);
				logs[i].pipe = -1;
				open_pipes--;
			}
	}
}

int main(int count, char **words)
{
	struct options options;
	struct log logs[2];
	int out, err, status;
	pid_t pid;

	(void)count;
	signal(SIGPIPE, SIG_IGN);
	if (chdir("/") < 0)
		die("keeper: / cannot be entered: %s", strerror(errno));
	parse(words, &options);
	for (size_t i = 0; i < options.cgroup_count; i++)
		join_cgroup(options.cgroups[i]);
	if (options.netns)
		join_netns(options.netns);
	if (options.tap)
		open_tap(options.tap);
	if (options.orphans && prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0)
		die("keeper: orphans cannot be kept: %s", strerror(errno));
	open_log(&logs[0], options.console, options.console_bytes, &out);
	open_log(&logs[1], options.errors, options.errors_bytes, &err);
	pid = start(&options, out, err);
	if (pid < 0)
		die("A process for the VMM cannot be made: %s.", strerror(errno));
	close(out);
	close(err);
	drop_privileges(&options);
	/* The pipes end when the last process that has them ends: the VMM, or its jail. */
	keep(logs);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			_exit(125);
	/* Nothing but the program writes to the pipes, so what is left has ended or is ending. */
	if (options.orphans)
		while (waitpid(-1, &status, 0) > 0 || errno == EINTR)
			;
	_exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
}
