#include "boot.h"
#include "say.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LIST "/modules.list"
#define VIRTIO_DEVICES "/sys/bus/virtio/devices"

/* Each module stands once in the archive; once loaded its file only takes memory. */
static int load(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int error = 0;

	if (fd < 0)
		return errno == ENOENT ? 0 : errno; /* an earlier stage loaded it */
	if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
		error = errno;
	close(fd);
	unlink(path);
	return error;
}

static void load_stage(const char *stage, int must)
{
	char line[256], wanted[64], path[192];
	FILE *list = fopen(LIST, "re");
	int error;

	if (!list)
		fail("The initramfs has no module list: rebuild the guest.");
	while (fgets(line, sizeof(line), list)) {
		if (sscanf(line, "%63s %191s", wanted, path) != 2 || strcmp(wanted, stage) != 0)
			continue;
		error = load(path);
		if (error && must)
			fail("The kernel did not take its module %s: %s.", path, strerror(error));
		if (error)
			say("the kernel did not take its module %s: %s", path, strerror(error));
	}
	fclose(list);
}

void boot_load_modules(const char *stage)
{
	load_stage(stage, 1);
}

void boot_try_modules(const char *stage)
{
	load_stage(stage, 0);
}

int boot_has_device(unsigned int virtio_id)
{
	DIR *devices = opendir(VIRTIO_DEVICES);
	struct dirent *entry;
	int found = 0;

	while (devices && !found && (entry = readdir(devices))) {
		char path[sizeof(VIRTIO_DEVICES) + sizeof(entry->d_name) + 8];
		unsigned int id;
		FILE *file;

		snprintf(path, sizeof(path), VIRTIO_DEVICES "/%s/device", entry->d_name);
		file = fopen(path, "re");
		if (!file)
			continue;
		found = fscanf(file, "%x", &id) == 1 && id == virtio_id;
		fclose(file);
	}
	if (devices)
		closedir(devices);
	return found;
}
