/*
 * The config disk: what the host tells this VM, on a small read-only disk.
 *
 * Written by src/ironworks/metald/guest/config.py, which documents the format;
 * parsed here, where nothing of it is trusted to be well formed.
 *
 *   magic    8 bytes  "IRONCFG\n"
 *   version  u32      1
 *   length   u32      bytes of records that follow the header, at most CONFIG_MAX_BYTES
 *   crc      u32      CRC-32 (IEEE) of those bytes
 *   zero     u32
 *   records: tag u16, zero u16, length u32, value
 *
 * All integers are little-endian. A string's value ends in one NUL, counted in
 * its length, and holds no other. A tag with the bit TAG_OPTIONAL set may be
 * unknown to this init; any other unknown tag is refused, since the host would
 * believe it obeyed.
 */
#ifndef IRONWORKS_CONFIG_H
#define IRONWORKS_CONFIG_H

#include <stddef.h>
#include <stdint.h>

#define CONFIG_HEADER_BYTES 24
#define CONFIG_MAX_BYTES (1024 * 1024)
#define CONFIG_VERSION 1
#define CONFIG_MAX_ARGS 1024
#define CONFIG_MAX_ENV 1024
#define CONFIG_MAX_DNS 3
#define CONFIG_MAX_HOSTS 16
#define CONFIG_MAX_HOSTNAME 63
#define CONFIG_MAX_STOP_MS (24u * 60 * 60 * 1000)

enum config_tag {
	TAG_HOSTNAME = 1,      /* string, 1..63 bytes */
	TAG_ROOT_FORMAT = 2,   /* string: squashfs, ext4, erofs */
	TAG_OVERLAY_BYTES = 3, /* u64, bound of what the VM may write; 0: half of memory */
	TAG_ADDRESS = 4,       /* prefix length u8, then 4 bytes of IPv4 */
	TAG_GATEWAY = 5,       /* 4 bytes of IPv4 */
	TAG_MTU = 6,           /* u32, 68..65535 */
	TAG_DNS = 7,           /* 4 bytes of IPv4, up to 3 times */
	TAG_ENV = 8,           /* string NAME=value, in order */
	TAG_USER = 9,          /* string user[:group], "" is root */
	TAG_WORKDIR = 10,      /* string, absolute; "" is / */
	TAG_ARG = 11,          /* string, in order, at least one */
	TAG_STOP_SIGNAL = 12,  /* u32, 1..64 */
	TAG_STOP_MS = 13,      /* u32, patience between the stop signal and SIGKILL */
	TAG_POWER_OFF = 14,    /* u32, enum power_off */
	TAG_CONTROL = 15,      /* u32, enum control_kind */
	TAG_CONTROL_PORT = 16, /* u32, vsock port at the host */
	TAG_HOSTS_LINE = 17,   /* string, a line of /etc/hosts, up to 16 times */
	TAG_CLOCK = 18,        /* u64, UTC ns when the disk was written; 0: leave the clock */
	TAG_ADDRESS_V6 = 19,   /* prefix length u8, then 16 bytes of IPv6 */
	TAG_GATEWAY_V6 = 20,   /* 16 bytes of IPv6 */
	TAG_DNS_V6 = 21,       /* 16 bytes of IPv6; with TAG_DNS up to 3 times */
	TAG_IMAGE_INIT = 22,   /* u32, 1: the image's own init becomes process 1 */
	TAG_SCRATCH = 23,      /* u32, 1: a disk takes what is written to the root */
	TAG_OPTIONAL = 0x8000,
};

enum power_off {
	POWER_OFF_ACPI = 0,   /* QEMU: the VMM ends when the machine is off */
	POWER_OFF_REBOOT = 1, /* Firecracker: only a reboot ends it */
};

enum control_kind {
	CONTROL_NONE = 0,
	CONTROL_VIRTIO_SERIAL = 1,
	CONTROL_VSOCK = 2,
};

/* Strings point into the buffer that was parsed. Arrays end in NULL. */
struct config {
	const char *hostname;
	const char *root_format;
	uint64_t overlay_bytes;
	int has_address;
	uint8_t prefix_length;
	uint8_t address[4];
	int has_gateway;
	uint8_t gateway[4];
	uint32_t mtu;
	int has_address_v6;
	uint8_t prefix_length_v6;
	uint8_t address_v6[16];
	int has_gateway_v6;
	uint8_t gateway_v6[16];
	size_t dns_count;
	struct config_dns {
		int v6;
		uint8_t address[16]; /* the first 4 of them, if it is IPv4 */
	} dns[CONFIG_MAX_DNS];
	size_t env_count;
	char *env[CONFIG_MAX_ENV + 1];
	const char *user;
	const char *workdir;
	size_t arg_count;
	char *args[CONFIG_MAX_ARGS + 1];
	size_t hosts_count;
	const char *hosts[CONFIG_MAX_HOSTS];
	uint32_t stop_signal;
	uint32_t stop_ms;
	uint32_t power_off;
	uint32_t control;
	uint32_t control_port;
	uint32_t image_init;
	uint32_t scratch;
	uint64_t clock_ns;
};

/*
 * Reads a header of CONFIG_HEADER_BYTES. Returns how many bytes of records
 * follow, or -1 with *why set to a sentence.
 */
long config_header(const uint8_t *header, const char **why);

/*
 * Parses header and records together, `size` bytes in all; more than the header
 * promises may follow (a disk is padded to whole sectors). Returns 0, or -1
 * with *why set to a sentence.
 */
int config_parse(uint8_t *bytes, size_t size, struct config *config, const char **why);

#endif
