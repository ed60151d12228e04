/* The steps from the kernel's hand-over to a root that the image can run in. */
#ifndef IRONWORKS_BOOT_H
#define IRONWORKS_BOOT_H

#include "config.h"

/* proc, sys and dev of the initramfs; the console as stdin, stdout and stderr. */
void boot_first_mounts(void);

/*
 * Loads the modules of one stage, in the order of /modules.list, whose lines
 * read "<stage> <file>". A stage without lines is built into the kernel.
 */
void boot_load_modules(const char *stage);

/*
 * Loads one that the VM can live without: a failure is said on the console only.
 */
void boot_try_modules(const char *stage);

#define VIRTIO_ID_ENTROPY 4

/* Whether there is a virtio device of this kind. */
int boot_has_device(unsigned int virtio_id);

/* Finds, reads and parses the config disk. */
void boot_read_config(struct config *config);

/* Root disk, overlay and the mounts of the new root; ends inside of it. */
void boot_switch_root(const struct config *config);

/* Interfaces, addresses, routes. */
void net_up(const struct config *config);

/* /etc/hostname, hosts and resolv.conf of the new root, and the host name. */
void net_files(const struct config *config);

#endif
