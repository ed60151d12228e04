/* resolve_user SPEC PASSWD GROUP: prints what user.c made of it, or why it refused. */
#include "user.h"

#include <stdio.h>

int main(int count, char **words)
{
	struct user user;
	const char *why = NULL;

	if (count != 4)
		return 2;
	if (user_resolve(words[1], words[2], words[3], &user, &why) < 0) {
		printf("refused: ");
		printf(why, words[1]);
		return 3;
	}
	printf("%u:%u", user.uid, user.gid);
	for (size_t i = 0; i < user.group_count; i++)
		printf(" %u", user.groups[i]);
	printf(" %s", user.home);
	return 0;
}
