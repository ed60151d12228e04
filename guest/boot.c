#include "boot.h"
#include "say.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define LOWER "/lower"
#define SCRATCH "/scratch"
#define ROOT "/root"

/* Disks are there as soon as their driver is; hot or slow ones get this long. */
#define DISK_WAIT_TURNS 1000
#define DISK_WAIT_NS 5000000

static void must_mount(const char *what, const char *from, const char *to, const char *type,
		       unsigned long flags, const char *options)
{
	if (mount(from, to, type, flags, options) < 0)
		fail("%s could not be mounted: %s.", what, strerror(errno));
}

/* A directory that may be there already, or that an image leaves out. */
static void make_directory(const char *path, mode_t mode)
{
	if (mkdir(path, mode) < 0) {
		if (errno != EEXIST)
			fail("The directory %s could not be made: %s.", path, strerror(errno));
		return;
	}
	chmod(path, mode); /* whatever the umask took away */
}

static void open_console(void)
{
	struct termios modes;
	int fd = open("/dev/console", O_RDWR | O_NOCTTY);

	if (fd < 0)
		fd = open("/dev/null", O_RDWR);
	if (fd < 0)
		return;
	for (int i = 0; i < 3; i++)
		dup2(fd, i);
	if (fd > 2)
		close(fd);
	/* What the entrypoint writes arrives as it was written: no added \r. */
	if (tcgetattr(0, &modes) == 0) {
		modes.c_oflag &= ~(tcflag_t)OPOST;
		modes.c_lflag &= ~(tcflag_t)(ECHO | ICANON);
		tcsetattr(0, TCSANOW, &modes);
	}
}

void boot_first_mounts(void)
{
	umask(022);
	mkdir("/dev", 0755);
	mkdir("/proc", 0555);
	mkdir("/sys", 0555);
	if (mount("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") < 0 && errno != EBUSY)
		fail("/dev could not be mounted: %s.", strerror(errno));
	open_console();
	must_mount("/proc", "proc", "/proc", "proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
	must_mount("/sys", "sys", "/sys", "sysfs", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
}

/* A virtio disk's serial, as the driver set it; empty where it set none. */
static void read_serial(const char *disk, char serial[32])
{
	char path[512];
	ssize_t got = -1;
	int fd;

	snprintf(path, sizeof(path), "/sys/block/%s/serial", disk);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		got = read(fd, serial, 31);
		close(fd);
	}
	serial[got > 0 ? got : 0] = 0;
	serial[strcspn(serial, "\n")] = 0;
}

/*
 * The disk with this serial. Firecracker gives its disks serials of its own, so
 * a VM in which no disk is called `rootfs` falls back to the order of disks.
 */
static int find_disk(const char *serial, const char *fallback, char path[64])
{
	char found[32];
	int named = 0, found_fallback = 0;
	struct dirent *entry;
	DIR *blocks = opendir("/sys/block");

	if (!blocks)
		return 0;
	*path = 0;
	while ((entry = readdir(blocks))) {
		if (strncmp(entry->d_name, "vd", 2) != 0 || strlen(entry->d_name) > 16)
			continue;
		read_serial(entry->d_name, found);
		if (strcmp(found, "rootfs") == 0)
			named = 1;
		if (strcmp(found, serial) == 0)
			snprintf(path, 64, "/dev/%.16s", entry->d_name);
		if (strcmp(entry->d_name, fallback) == 0)
			found_fallback = 1;
	}
	closedir(blocks);
	if (!*path && !named && found_fallback)
		snprintf(path, 64, "/dev/%s", fallback);
	return *path != 0;
}

static void wait_disk(const char *serial, const char *fallback, char path[64])
{
	const struct timespec pause = {.tv_nsec = DISK_WAIT_NS};

	for (int turn = 0; turn < DISK_WAIT_TURNS; turn++) {
		if (find_disk(serial, fallback, path))
			return;
		nanosleep(&pause, NULL);
	}
	fail("The VM has no disk \"%s\": the VMM did not attach it.", serial);
}

static void read_whole(int fd, uint8_t *bytes, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t got = read(fd, bytes + done, size - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			fail("The config disk could not be read: %s.", strerror(errno));
		if (got == 0)
			fail("The config disk is shorter than it claims.");
		done += (size_t)got;
	}
}

void boot_read_config(struct config *config)
{
	uint8_t header[CONFIG_HEADER_BYTES], *bytes;
	const char *why = NULL;
	char path[64];
	long length;
	int fd;

	wait_disk("config", "vdb", path);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		fail("The config disk could not be opened: %s.", strerror(errno));
	read_whole(fd, header, sizeof(header));
	length = config_header(header, &why);
	if (length < 0)
		fail("%s", why);
	/* Never freed: the configuration points into it for as long as init runs. */
	bytes = malloc((size_t)length + sizeof(header));
	if (!bytes)
		fail("The VM has too little memory for its configuration.");
	memcpy(bytes, header, sizeof(header));
	read_whole(fd, bytes + sizeof(header), (size_t)length);
	close(fd);
	if (config_parse(bytes, (size_t)length + sizeof(header), config, &why) < 0)
		fail("%s", why);
}

/* Where what is written to the root goes: to a disk of its own, else to memory. */
static void mount_scratch(const struct config *config)
{
	char disk[64], options[128];

	if (config->scratch) {
		wait_disk("scratch", "vdc", disk);
		must_mount("The VM's own disk", disk, SCRATCH, "ext4", 0, NULL);
		return;
	}
	if (config->overlay_bytes)
		snprintf(options, sizeof(options), "mode=0755,size=%llu",
			 (unsigned long long)config->overlay_bytes);
	else
		snprintf(options, sizeof(options), "mode=0755,size=50%%");
	must_mount("The writable layer", "scratch", SCRATCH, "tmpfs", 0, options);
}

static void mount_root(const struct config *config)
{
	char disk[64];
	int ext4 = strcmp(config->root_format, "ext4") == 0;

	if (!ext4 && strcmp(config->root_format, "squashfs") != 0 &&
	    strcmp(config->root_format, "erofs") != 0)
		fail("The root disk's format \"%.32s\" is not one that init can mount.",
		     config->root_format);
	if (!ext4)
		boot_load_modules(config->root_format);
	boot_load_modules("overlay");
	make_directory(LOWER, 0755);
	make_directory(SCRATCH, 0755);
	make_directory(ROOT, 0755);
	wait_disk("rootfs", "vda", disk);
	/* noload: a journal cannot be replayed on a disk that nobody may write. */
	if (mount(disk, LOWER, config->root_format, MS_RDONLY, ext4 ? "noload" : NULL) < 0)
		fail("The root disk is not a %s file system that this kernel can mount: %s.",
		     config->root_format, strerror(errno));
	mount_scratch(config);
	make_directory(SCRATCH "/upper", 0755);
	make_directory(SCRATCH "/work", 0755);
	must_mount("The root", "root", ROOT, "overlay", 0,
		   "lowerdir=" LOWER ",upperdir=" SCRATCH "/upper,workdir=" SCRATCH "/work");
}

/* An image may hold a symbolic link where a mount point belongs. */
static void mount_point(const char *path, mode_t mode)
{
	struct stat status;

	if (lstat(path, &status) == 0 && !S_ISDIR(status.st_mode))
		unlink(path);
	make_directory(path, mode);
}

static void move_mount(const char *from, const char *to)
{
	mount_point(to, 0755);
	must_mount(to, from, to, NULL, MS_MOVE, NULL);
}

static void mount_device_directories(void)
{
	static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"},
					       {"/proc/self/fd/0", "/dev/stdin"},
					       {"/proc/self/fd/1", "/dev/stdout"},
					       {"/proc/self/fd/2", "/dev/stderr"}};

	make_directory("/dev/pts", 0755);
	make_directory("/dev/shm", 01777);
	must_mount("/dev/pts", "pts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		   "mode=0620,gid=5,ptmxmode=0666");
	must_mount("/dev/shm", "shm", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777,size=50%");
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			say("%s could not be made: %s", links[i][1], strerror(errno));
}

void boot_switch_root(const struct config *config)
{
	mount_root(config);
	move_mount("/dev", ROOT "/dev");
	move_mount("/proc", ROOT "/proc");
	move_mount("/sys", ROOT "/sys");
	if (unlink("/modules.list") < 0 || unlink("/init") < 0)
		say("the initramfs could not be emptied: %s", strerror(errno));
	if (chdir(ROOT) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		fail("The root could not be switched to the image's: %s.", strerror(errno));
	mount_device_directories();
	/* The whole root is writable in memory already: a tmpfs on /tmp or /run would
	 * only hide what the image put there. */
	make_directory("/tmp", 01777);
	make_directory("/run", 0755);
	if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL) < 0)
		say("/sys/fs/cgroup could not be mounted: %s", strerror(errno));
}
