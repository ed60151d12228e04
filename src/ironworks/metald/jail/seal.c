/*
 * Gives up the system calls of FILTER, then becomes the VMM: what bubblewrap does
 * for QEMU, for a Firecracker whose jailer sets no filter.
 *
 * The jailer starts it in Firecracker's place, within the jail and as the VM's
 * user; its arguments are Firecracker's. It holds nothing open and stays nowhere.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define STATUS 125

static struct sock_filter filter[] = FILTER;

static int die(const char *what)
{
	dprintf(STDERR_FILENO, "seal: %s: %s.\n", what, strerror(errno));
	return STATUS;
}

int main(int count, char **words)
{
	struct sock_fprog program = {.len = sizeof(filter) / sizeof(*filter), .filter = filter};

	(void)count;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return die("privileges could not be given up");
	/* No filter is known for some architectures. */
	if (program.len && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
		return die("system calls could not be given up");
	execv(VMM, words);
	return die("The VMM could not be started");
}
