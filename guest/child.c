#include "child.h"
#include "say.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Which step failed in the child, and with what: all that a pipe must carry. */
enum step {
	STEP_STDIO,
	STEP_GROUPS,
	STEP_USER,
	STEP_WORKDIR,
	STEP_NOT_FOUND, /* no such file on PATH, or at the path given */
	STEP_EXEC,      /* the file is there, and the kernel did not run it */
};

struct failure {
	int step;
	int error;
};

static const char *get(char *const env[], const char *name)
{
	size_t length = strlen(name);

	/* The last one wins, as it would in the environment of a shell. */
	const char *value = NULL;

	for (; *env; env++)
		if (strncmp(*env, name, length) == 0 && (*env)[length] == '=')
			value = *env + length + 1;
	return value;
}

static char *join(const char *name, const char *value)
{
	size_t size = strlen(name) + strlen(value) + 2;
	char *text = malloc(size);

	if (!text)
		fail("The VM has too little memory to start its entrypoint.");
	snprintf(text, size, "%s=%s", name, value);
	return text;
}

/* The image's environment, with what every container runtime adds if it is not set. */
static char **environment(const struct config *config, const struct user *user)
{
	char **env = calloc(config->env_count + 4, sizeof(char *));
	size_t count = 0;

	if (!env)
		fail("The VM has too little memory to start its entrypoint.");
	for (; count < config->env_count; count++)
		env[count] = config->env[count];
	if (!get(config->env, "PATH"))
		env[count++] = join("PATH", DEFAULT_PATH);
	if (!get(config->env, "HOME"))
		env[count++] = join("HOME", user->home);
	if (!get(config->env, "HOSTNAME"))
		env[count++] = join("HOSTNAME", config->hostname);
	return env;
}

/* Makes the working directory if the image lacks it, as container runtimes do. */
static void make_path(const char *path)
{
	char part[PATH_MAX];
	size_t length = strlen(path);

	if (length >= sizeof(part))
		fail("The working directory's path is longer than %d bytes.", PATH_MAX - 1);
	memcpy(part, path, length + 1);
	for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = 0;
		mkdir(part, 0755);
		*slash = '/';
	}
	mkdir(part, 0755);
}

/*
 * Runs `file`. Returns the errno: ENOENT only if nothing is there. A file that
 * is there but whose interpreter is not also gives ENOENT, so it is told apart.
 */
static struct failure run(const char *file, char *const args[], char *const env[])
{
	struct failure failure = {.step = STEP_EXEC};
	struct stat status;

	execve(file, args, env);
	failure.error = errno;
	if ((errno == ENOENT || errno == ENOTDIR) && stat(file, &status) < 0)
		failure.step = STEP_NOT_FOUND;
	return failure;
}

/* Looks along PATH as execvp does: what cannot be run yields to a later one that can. */
static struct failure run_on_path(char *const args[], char *const env[])
{
	struct failure failure = {.step = STEP_NOT_FOUND, .error = ENOENT}, found;
	const char *path = get(env, "PATH");
	char file[PATH_MAX];

	if (strchr(args[0], '/'))
		return run(args[0], args, env);
	if (!*args[0])
		return failure;
	for (const char *at = path, *end; at; at = *end ? end + 1 : NULL) {
		end = strchrnul(at, ':');
		if (snprintf(file, sizeof(file), "%.*s%s%s", (int)(end - at), at, end > at ? "/" : "",
			     args[0]) >= (int)sizeof(file))
			continue;
		found = run(file, args, env);
		if (found.step == STEP_EXEC && failure.step == STEP_NOT_FOUND)
			failure = found;
	}
	return failure;
}

/* Output to the console's own device, owned by the user: an image may open /dev/stdout. */
static int own_output(const struct user *user)
{
	char name[64] = "", path[80];
	int active = open("/sys/class/tty/console/active", O_RDONLY | O_CLOEXEC);
	int null = open("/dev/null", O_RDONLY), out = -1;
	ssize_t got = active < 0 ? -1 : read(active, name, sizeof(name) - 1);

	if (active >= 0)
		close(active);
	if (null < 0 || dup2(null, 0) < 0)
		return -1;
	close(null);
	if (got > 0) {
		name[strcspn(name, "\n")] = 0;
		/* Several consoles: the kernel's /dev/console is the last. */
		const char *last = strrchr(name, ' ');
		snprintf(path, sizeof(path), "/dev/%.60s", last ? last + 1 : name);
		out = open(path, O_WRONLY | O_NOCTTY);
	}
	if (out < 0)
		return 0; /* keep /dev/console */
	if (fchown(out, user->uid, (gid_t)-1) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0)
		return -1;
	close(out);
	return 0;
}

static struct failure become(const struct config *config, const struct user *user,
			     char *const env[])
{
	struct rlimit files = {.rlim_cur = 65536, .rlim_max = 1048576};
	sigset_t none;

	setsid();
	for (int signal = 1; signal < 32; signal++)
		if (signal != SIGKILL && signal != SIGSTOP)
			sigaction(signal, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setrlimit(RLIMIT_NOFILE, &files);
	if (own_output(user) < 0)
		return (struct failure){STEP_STDIO, errno};
	if (setgroups(user->group_count, user->groups) < 0 || setgid(user->gid) < 0)
		return (struct failure){STEP_GROUPS, errno};
	if (setuid(user->uid) < 0)
		return (struct failure){STEP_USER, errno};
	if (chdir(config->workdir) < 0)
		return (struct failure){STEP_WORKDIR, errno};
	return run_on_path(config->args, env);
}

static void explain(const struct config *config, struct failure failure)
		__attribute__((noreturn));

static void explain(const struct config *config, struct failure failure)
{
	const char *program = config->args[0];

	switch (failure.step) {
	case STEP_NOT_FOUND:
		if (strchr(program, '/'))
			fail("The entrypoint \"%.200s\" does not exist in the image.", program);
		fail("The entrypoint \"%.200s\" is nowhere on the image's PATH.", program);
	case STEP_EXEC:
		if (failure.error == ENOENT)
			fail("The entrypoint \"%.200s\" needs an interpreter or a dynamic loader that "
			     "the image does not contain.", program);
		if (failure.error == ENOEXEC)
			fail("The entrypoint \"%.200s\" is not a program for this CPU architecture, nor "
			     "a script that begins with #!.", program);
		if (failure.error == EACCES)
			fail("The entrypoint \"%.200s\" may not be executed by the image's user "
			     "\"%.64s\".", program, *config->user ? config->user : "root");
		fail("The entrypoint \"%.200s\" could not be started: %s.", program,
		     strerror(failure.error));
	case STEP_WORKDIR:
		fail("The working directory \"%.200s\" cannot be entered by the image's user "
		     "\"%.64s\": %s.", config->workdir, *config->user ? config->user : "root",
		     strerror(failure.error));
	case STEP_STDIO:
		fail("The entrypoint's output could not be opened: %s.", strerror(failure.error));
	default:
		fail("The image's user \"%.64s\" could not be taken on: %s.", config->user,
		     strerror(failure.error));
	}
}

pid_t child_start(const struct config *config, const struct user *user)
{
	char **env = environment(config, user);
	struct failure failure;
	int report[2];
	ssize_t got;
	pid_t pid;

	make_path(config->workdir);
	if (pipe2(report, O_CLOEXEC) < 0)
		fail("The entrypoint could not be started: %s.", strerror(errno));
	pid = fork();
	if (pid < 0)
		fail("The entrypoint could not be started: %s.", strerror(errno));
	if (pid == 0) {
		failure = become(config, user, env);
		if (write(report[1], &failure, sizeof(failure)) < 0)
			_exit(126);
		_exit(127);
	}
	close(report[1]);
	do
		got = read(report[0], &failure, sizeof(failure));
	while (got < 0 && errno == EINTR);
	close(report[0]);
	if (got == (ssize_t)sizeof(failure))
		explain(config, failure);
	free(env);
	return pid;
}

void child_become_init(const struct config *config)
{
	static char path[] = "/sbin/init";
	static char *args[CONFIG_MAX_ARGS + 2];
	const struct user root = {.home = "/root"};
	char **env = environment(config, &root);
	size_t count = 0;
	sigset_t none;

	/* What the image calls its entrypoint may be that very init. */
	if (strcmp(config->args[0], path) != 0)
		args[count++] = path;
	for (size_t i = 0; i < config->arg_count; i++)
		args[count++] = config->args[i];
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	execve(path, args, env);
	fail("The image's own /sbin/init could not be started: %s.", strerror(errno));
}
