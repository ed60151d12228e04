#include "user.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A line of passwd or group that is longer than this is passed over. */
#define LINE_BYTES 8192
#define MAX_FIELDS 8

/* Splits at colons, in place; returns how many fields there are. */
static size_t split(char *line, char *fields[MAX_FIELDS])
{
	size_t count = 0;
	char *at = line;

	while (count < MAX_FIELDS) {
		fields[count++] = at;
		at = strchr(at, ':');
		if (!at)
			break;
		*at++ = 0;
	}
	return count;
}

/* Reads a uid or gid; 0xffffffff is "no change" to the kernel, so no id. */
static int number_in(const char *text, unsigned long *number)
{
	char *end;

	if (*text < '0' || *text > '9')
		return 0;
	*number = strtoul(text, &end, 10);
	return !*end && *number < 0xffffffffUL;
}

/* The next line of at most LINE_BYTES, without its newline; 0 at the end. */
static int next_line(FILE *file, char line[LINE_BYTES])
{
	while (fgets(line, LINE_BYTES, file)) {
		size_t length = strlen(line);

		if (length && line[length - 1] == '\n') {
			line[length - 1] = 0;
			return 1;
		}
		if (feof(file))
			return 1;
		for (int c = 0; c != '\n' && c != EOF;)
			c = getc(file);
	}
	return 0;
}

/* Finds the passwd entry by name or by number; fills name, gid and home. */
static int find_passwd(const char *path, const char *who, int by_number, unsigned long uid,
		       struct user *user, char name[LINE_BYTES])
{
	char line[LINE_BYTES], *fields[MAX_FIELDS];
	unsigned long found_uid, found_gid;
	FILE *file = fopen(path, "re");
	int found = 0;

	if (!file)
		return 0;
	while (!found && next_line(file, line)) {
		if (split(line, fields) < 6 || !number_in(fields[2], &found_uid) ||
		    !number_in(fields[3], &found_gid))
			continue;
		if (by_number ? found_uid != uid : strcmp(fields[0], who) != 0)
			continue;
		user->uid = (uid_t)found_uid;
		user->gid = (gid_t)found_gid;
		snprintf(name, LINE_BYTES, "%s", fields[0]);
		snprintf(user->home, sizeof(user->home), "%s", *fields[5] ? fields[5] : "/");
		found = 1;
	}
	fclose(file);
	return found;
}

static int listed(char *members, const char *name)
{
	for (char *rest, *one = strtok_r(members, ",", &rest); one; one = strtok_r(NULL, ",", &rest))
		if (strcmp(one, name) == 0)
			return 1;
	return 0;
}

/* With a group name: its gid into user->gid. Without: user's supplementary groups. */
static int read_groups(const char *path, const char *group, const char *member, struct user *user)
{
	char line[LINE_BYTES], *fields[MAX_FIELDS];
	unsigned long gid;
	FILE *file = fopen(path, "re");
	int found = 0;

	if (!file)
		return 0;
	while (next_line(file, line)) {
		size_t count = split(line, fields);

		if (count < 3 || !number_in(fields[2], &gid))
			continue;
		if (group && strcmp(fields[0], group) == 0) {
			user->gid = (gid_t)gid;
			found = 1;
			break;
		}
		if (!group && count > 3 && user->group_count < USER_MAX_GROUPS - 1 &&
		    listed(fields[3], member))
			user->groups[user->group_count++] = (gid_t)gid;
	}
	fclose(file);
	return found;
}

/*
 * The main group is one of the supplementary ones too: otherwise a file that its
 * group may not read would be open to a member that has merely changed its group.
 */
static void add_main_group(struct user *user)
{
	for (size_t i = 0; i < user->group_count; i++)
		if (user->groups[i] == user->gid)
			return;
	memmove(user->groups + 1, user->groups, user->group_count * sizeof(gid_t));
	user->groups[0] = user->gid;
	user->group_count++;
}

int user_resolve(const char *spec, const char *passwd_path, const char *group_path,
		 struct user *user, const char **why)
{
	char copy[256], name[LINE_BYTES] = "", *group;
	const char *who = copy;
	unsigned long number = 0;
	int numeric, known;

	memset(user, 0, sizeof(*user));
	snprintf(user->home, sizeof(user->home), "/");
	if (strlen(spec) >= sizeof(copy)) {
		*why = "The image's user \"%.64s…\" is too long.";
		return -1;
	}
	snprintf(copy, sizeof(copy), "%s", spec);
	group = strchr(copy, ':');
	if (group) {
		*group++ = 0;
		if (!*group)
			group = NULL;
	}
	if (!*who)
		who = "0";
	numeric = number_in(who, &number);
	known = find_passwd(passwd_path, who, numeric, number, user, name);
	if (!known && !numeric) {
		*why = "The image's user \"%s\" is not in its /etc/passwd.";
		return -1;
	}
	if (!known) {
		user->uid = (uid_t)number;
		if (number == 0)
			snprintf(user->home, sizeof(user->home), "/root");
	}
	if (!group) {
		if (known)
			read_groups(group_path, NULL, name, user);
	} else if (number_in(group, &number)) {
		user->gid = (gid_t)number;
	} else if (!read_groups(group_path, group, NULL, user)) {
		*why = "The group of the image's user \"%s\" is not in its /etc/group.";
		return -1;
	}
	add_main_group(user);
	return 0;
}
