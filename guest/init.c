/*
 * Ironworks' first process in a VM.
 *
 * It turns what the kernel hands over into what a container image expects, runs
 * the image's entrypoint as its child, and stays: to reap, to forward signals,
 * to obey the host, and at the end to report how it ended and to power off.
 * README.md beside this file tells the whole story.
 */
#include "boot.h"
#include "child.h"
#include "control.h"
#include "say.h"
#include "user.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How long the end of a VM waits for the host to take the last report. */
#define REPORT_WAIT_NS (2 * 1000000000LL)
/* How often a channel that is not there, or has nobody at its other end, is looked at. */
#define CHANNEL_POLL_MS 200
#define CHANNEL_POLL_EARLY_MS 10
#define CHANNEL_EARLY_NS (3 * 1000000000LL)

static struct config config;
static struct control control;
static int switched;

static long long now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void pause_ms(long milliseconds)
{
	const struct timespec pause = {.tv_sec = milliseconds / 1000,
				       .tv_nsec = milliseconds % 1000 * 1000000};

	nanosleep(&pause, NULL);
}

static void power_off(void) __attribute__((noreturn));

/* A host that is away keeps no VM alive: the console holds the report too. */
static void flush_control(void)
{
	long long deadline = now_ns() + REPORT_WAIT_NS;

	while (control.kind != CONTROL_NONE && !control_flush(&control) && now_ns() < deadline)
		pause_ms(CHANNEL_POLL_EARLY_MS);
}

static void power_off(void)
{
	flush_control();
	if (switched) {
		kill(-1, SIGKILL);
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
	}
	sync();
	reboot(config.power_off == POWER_OFF_REBOOT ? RB_AUTOBOOT : RB_POWER_OFF);
	for (;;)
		pause();
}

void fail(const char *format, ...)
{
	char sentence[SENTENCE_BYTES], line[SENTENCE_BYTES + 16];
	va_list args;

	va_start(args, format);
	vsnprintf(sentence, sizeof(sentence), format, args);
	va_end(args);
	/* One line is one message. */
	for (char *c = sentence; *c; c++)
		if ((unsigned char)*c < ' ')
			*c = ' ';
	say("failed: %s", sentence);
	snprintf(line, sizeof(line), "failed %s", sentence);
	/* A boot that fails before the configuration is read tries what QEMU has. */
	if (control.kind == CONTROL_NONE && config.control == CONTROL_NONE && !config.args[0]) {
		boot_try_modules("control-virtio-serial");
		control_init(&control, CONTROL_VIRTIO_SERIAL, 0);
	}
	control_send(&control, line);
	power_off();
}

static void set_clock(unsigned long long utc_ns)
{
	struct timespec then = {.tv_sec = (time_t)(utc_ns / 1000000000),
				.tv_nsec = (long)(utc_ns % 1000000000)};

	if (clock_settime(CLOCK_REALTIME, &then) < 0)
		say("the clock could not be set: %s", strerror(errno));
}

/* Only forward: a VMM with a clock of its own is righter than a disk. */
static void set_clock_at_boot(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if ((unsigned long long)now.tv_sec < config.clock_ns / 1000000000)
		set_clock(config.clock_ns);
}

static int block_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	/* Ctrl-Alt-Del, which Firecracker can send, comes as SIGINT of the kernel. */
	reboot(RB_DISABLE_CAD);
	return signalfd(-1, &all, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* Begins the stop of the entrypoint; returns when SIGKILL is due. */
static long long stop_child(pid_t child, uint32_t patience_ms)
{
	say("stopping: signal %u, then SIGKILL after %u ms", config.stop_signal, patience_ms);
	kill(child, (int)config.stop_signal);
	return now_ns() + patience_ms * 1000000LL;
}

/* Reaps all that ended; 1 and *status when the entrypoint is among them. */
static int reap(pid_t child, int *status)
{
	int ended = 0, one;
	pid_t pid;

	while ((pid = waitpid(-1, &one, WNOHANG)) > 0)
		if (pid == child) {
			*status = one;
			ended = 1;
		}
	return ended;
}

/* The number behind a word of the host's; 0 if there is none, or more than a number. */
static int number_after(const char *word, unsigned long long *number)
{
	char *end;

	if (*word != ' ' || word[1] < '0' || word[1] > '9')
		return 0;
	*number = strtoull(word + 1, &end, 10);
	return !*end;
}

/* What /proc/meminfo has for a name, in KiB; 0 if it has nothing. */
static unsigned long long memory_kib(const char *name)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long number = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file))
		if (strncmp(line, name, strlen(name)) == 0 &&
		    sscanf(line + strlen(name), ": %llu", &number) == 1)
			break;
	if (file)
		fclose(file);
	return number;
}

static void tell_memory(void)
{
	char line[64];

	snprintf(line, sizeof(line), "memory %llu %llu", memory_kib("MemTotal"),
		 memory_kib("MemAvailable"));
	control_send(&control, line);
}

/* Obeys the host; returns the time of SIGKILL, which a second stop can only bring forward. */
static long long obey(pid_t child, long long kill_at)
{
	char line[CONTROL_LINE_BYTES];
	unsigned long long number;
	long long at;

	while (control_receive(&control, line)) {
		if (strcmp(line, "status") == 0) {
			control_send(&control, "ready");
		} else if (strcmp(line, "memory") == 0) {
			tell_memory();
		} else if (strncmp(line, "clock", 5) == 0 && number_after(line + 5, &number)) {
			set_clock(number);
		} else if (strncmp(line, "stop", 4) == 0) {
			number = config.stop_ms;
			if (line[4] && (!number_after(line + 4, &number) || number > CONFIG_MAX_STOP_MS))
				continue;
			at = stop_child(child, (uint32_t)number);
			if (!kill_at || at < kill_at)
				kill_at = at;
		}
	}
	return kill_at;
}

static long long take_signals(int signals, pid_t child, long long kill_at, int *ended, int *status)
{
	struct signalfd_siginfo info;

	while (read(signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGCHLD) {
			if (reap(child, status))
				*ended = 1;
		} else if (info.ssi_signo == SIGINT && info.ssi_code == SI_KERNEL) {
			if (!kill_at)
				kill_at = stop_child(child, config.stop_ms);
		} else {
			kill(child, (int)info.ssi_signo);
		}
	}
	return kill_at;
}

/* How long to sleep: until SIGKILL is due, and while the channel cannot be polled, briefly. */
static int timeout_ms(long long started, long long kill_at, int channel_idle)
{
	long long now = now_ns(), left = -1;

	if (kill_at)
		left = kill_at > now ? (kill_at - now) / 1000000 + 1 : 0;
	if (channel_idle) {
		long long look = now - started < CHANNEL_EARLY_NS ? CHANNEL_POLL_EARLY_MS
								  : CHANNEL_POLL_MS;
		if (left < 0 || look < left)
			left = look;
	}
	return (int)left;
}

/* Stays until the entrypoint has ended; returns its wait status. */
static int tend(int signals, pid_t child)
{
	long long started = now_ns(), kill_at = 0;
	int status = 0, ended = 0, unplugged = 0;

	while (!ended) {
		struct pollfd fds[2] = {{.fd = signals, .events = POLLIN},
					{.fd = -1, .events = POLLIN}};
		int channel_idle;

		control_flush(&control);
		/* A channel with nobody at its other end polls as hung up at once: look now
		 * and then instead. */
		if (control.fd >= 0 && !unplugged)
			fds[1].fd = control.fd;
		if (fds[1].fd >= 0 && control.out_bytes)
			fds[1].events |= POLLOUT;
		channel_idle = control.kind != CONTROL_NONE && fds[1].fd < 0;
		if (poll(fds, 2, timeout_ms(started, kill_at, channel_idle)) < 0 && errno != EINTR)
			fail("init could not wait for its child: %s.", strerror(errno));
		unplugged = !unplugged && (fds[1].revents & (POLLHUP | POLLERR)) &&
			    !(fds[1].revents & POLLIN);
		kill_at = obey(child, kill_at);
		kill_at = take_signals(signals, child, kill_at, &ended, &status);
		if (!ended && kill_at && now_ns() >= kill_at) {
			say("the entrypoint did not stop in time: SIGKILL");
			kill(child, SIGKILL);
			kill_at = now_ns() + 1000000000LL;
		}
	}
	return status;
}

static void report(int status)
{
	char line[64];

	if (WIFSIGNALED(status))
		snprintf(line, sizeof(line), "signal %d", WTERMSIG(status));
	else
		snprintf(line, sizeof(line), "exited %d", WEXITSTATUS(status));
	say("%s", line);
	control_send(&control, line);
}

int main(int count, char **words)
{
	struct user user;
	const char *why;
	int signals;
	pid_t child;

	control_init(&control, CONTROL_NONE, 0);
	boot_first_mounts();
	/* The kernel hands on the words of its command line that it does not know. */
	if (count > 1 && strcmp(words[1], "probe") == 0) {
		say("probe passed");
		/* Firecracker ends on a reboot only. */
		if (count > 2 && strcmp(words[2], "reboot") == 0)
			config.power_off = POWER_OFF_REBOOT;
		power_off();
	}
	boot_load_modules("disk");
	boot_read_config(&config);
	if (config.control == CONTROL_VIRTIO_SERIAL)
		boot_load_modules("control-virtio-serial");
	if (config.control == CONTROL_VSOCK)
		boot_load_modules("control-vsock");
	control_init(&control, config.control, config.control_port);
	if (boot_has_device(VIRTIO_ID_ENTROPY))
		boot_try_modules("entropy");
	if (config.has_address)
		boot_load_modules("net");
	/* How the host asks an image's own init to stop. */
	if (config.image_init)
		boot_try_modules("power-button");
	set_clock_at_boot();
	boot_switch_root(&config);
	switched = 1;
	net_up(&config);
	net_files(&config);
	if (user_resolve(config.user, "/etc/passwd", "/etc/group", &user, &why) < 0)
		fail(why, config.user);
	if (config.image_init) {
		control_send(&control, "ready");
		flush_control();
		child_become_init(&config);
	}
	signals = block_signals();
	if (signals < 0)
		fail("init could not listen for signals: %s.", strerror(errno));
	child = child_start(&config, &user);
	control_send(&control, "ready");
	report(tend(signals, child));
	power_off();
}
