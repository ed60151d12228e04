/* Who the entrypoint runs as: `user[:group]`, looked up in the image's own files. */
#ifndef IRONWORKS_USER_H
#define IRONWORKS_USER_H

#include <stddef.h>
#include <sys/types.h>

#define USER_MAX_GROUPS 256
#define USER_MAX_HOME 256

struct user {
	uid_t uid;
	gid_t gid;
	size_t group_count;
	gid_t groups[USER_MAX_GROUPS];
	char home[USER_MAX_HOME];
};

/*
 * Resolves `spec` as container runtimes do: "" is root; a name must be in
 * `passwd_path`; a number need not be (then its group is 0 and its home "/"). Without
 * ":group" the group is that of passwd, and the groups that list the user are
 * supplementary; with it, that group is the only one. `groups` holds `gid` too.
 * Returns 0, or -1 with *why set to a sentence with one %s for the spec.
 */
int user_resolve(const char *spec, const char *passwd_path, const char *group_path,
		 struct user *user, const char **why);

#endif
