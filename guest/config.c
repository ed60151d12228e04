#include "config.h"

#include <string.h>

static uint32_t u16_at(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8;
}

static uint32_t u32_at(const uint8_t *bytes)
{
	return u16_at(bytes) | u16_at(bytes + 2) << 16;
}

static uint64_t u64_at(const uint8_t *bytes)
{
	return (uint64_t)u32_at(bytes) | (uint64_t)u32_at(bytes + 4) << 32;
}

static uint32_t crc32_of(const uint8_t *bytes, size_t size)
{
	uint32_t crc = 0xffffffffu;

	for (size_t i = 0; i < size; i++) {
		crc ^= bytes[i];
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (0xedb88320u & (0u - (crc & 1u)));
	}
	return ~crc;
}

long config_header(const uint8_t *header, const char **why)
{
	uint32_t length = u32_at(header + 12);

	if (memcmp(header, "IRONCFG\n", 8) != 0) {
		*why = "The config disk does not begin with the config format's magic.";
		return -1;
	}
	if (u32_at(header + 8) != CONFIG_VERSION) {
		*why = "The config disk has a version that this init does not know: rebuild the guest.";
		return -1;
	}
	if (length > CONFIG_MAX_BYTES) {
		*why = "The config disk claims more than 1 MiB of configuration.";
		return -1;
	}
	return (long)length;
}

/* A string of `length` bytes with its NUL, and with no other NUL; else NULL. */
static char *string_in(uint8_t *value, uint32_t length)
{
	if (length == 0 || memchr(value, 0, length) != value + length - 1)
		return NULL;
	return (char *)value;
}

static const char *set_string(struct config *c, uint32_t tag, char *text)
{
	if (!text)
		return "The config disk holds a string without its end, or with a NUL inside.";
	switch (tag) {
	case TAG_HOSTNAME:
		if (!*text || strlen(text) > CONFIG_MAX_HOSTNAME)
			return "The config disk's host name is empty or longer than 63 bytes.";
		c->hostname = text;
		return NULL;
	case TAG_ROOT_FORMAT:
		c->root_format = text;
		return NULL;
	case TAG_USER:
		c->user = text;
		return NULL;
	case TAG_WORKDIR:
		if (*text && *text != '/')
			return "The working directory is not an absolute path.";
		c->workdir = text;
		return NULL;
	case TAG_ENV:
		if (c->env_count == CONFIG_MAX_ENV)
			return "The image sets more than 1024 environment variables.";
		if (*text == '=' || !strchr(text, '='))
			return "The config disk holds an environment variable without a name or '='.";
		c->env[c->env_count++] = text;
		return NULL;
	case TAG_ARG:
		if (c->arg_count == CONFIG_MAX_ARGS)
			return "The image's command has more than 1024 arguments.";
		c->args[c->arg_count++] = text;
		return NULL;
	default: /* TAG_HOSTS_LINE */
		if (c->hosts_count == CONFIG_MAX_HOSTS)
			return "The config disk holds more than 16 lines for /etc/hosts.";
		c->hosts[c->hosts_count++] = text;
		return NULL;
	}
}

static const char *set_u32(struct config *c, uint32_t tag, uint32_t number)
{
	switch (tag) {
	case TAG_MTU:
		if (number < 68 || number > 65535)
			return "The config disk's MTU is not within 68 to 65535.";
		c->mtu = number;
		return NULL;
	case TAG_STOP_SIGNAL:
		if (number < 1 || number > 64)
			return "The image's stop signal is not within 1 to 64.";
		c->stop_signal = number;
		return NULL;
	case TAG_STOP_MS:
		if (number > CONFIG_MAX_STOP_MS)
			return "The config disk's stop time is longer than a day.";
		c->stop_ms = number;
		return NULL;
	case TAG_POWER_OFF:
		if (number > POWER_OFF_REBOOT)
			return "The config disk asks for a way to power off that this init does not know.";
		c->power_off = number;
		return NULL;
	case TAG_CONTROL:
		if (number > CONTROL_VSOCK)
			return "The config disk asks for a control channel that this init does not know.";
		c->control = number;
		return NULL;
	case TAG_IMAGE_INIT:
	case TAG_SCRATCH:
		if (number > 1)
			return "The config disk holds a switch that is neither 0 nor 1.";
		*(tag == TAG_SCRATCH ? &c->scratch : &c->image_init) = number;
		return NULL;
	default: /* TAG_CONTROL_PORT */
		c->control_port = number;
		return NULL;
	}
}

static const char *set_address(struct config *c, uint32_t tag, const uint8_t *value)
{
	switch (tag) {
	case TAG_ADDRESS:
		if (value[0] > 32)
			return "The config disk's prefix length is greater than 32.";
		c->prefix_length = value[0];
		memcpy(c->address, value + 1, 4);
		c->has_address = 1;
		return NULL;
	case TAG_GATEWAY:
		memcpy(c->gateway, value, 4);
		c->has_gateway = 1;
		return NULL;
	case TAG_ADDRESS_V6:
		if (value[0] > 128)
			return "The config disk's IPv6 prefix length is greater than 128.";
		c->prefix_length_v6 = value[0];
		memcpy(c->address_v6, value + 1, 16);
		c->has_address_v6 = 1;
		return NULL;
	case TAG_GATEWAY_V6:
		memcpy(c->gateway_v6, value, 16);
		c->has_gateway_v6 = 1;
		return NULL;
	default: /* TAG_DNS, TAG_DNS_V6 */
		if (c->dns_count == CONFIG_MAX_DNS)
			return "The config disk names more than 3 DNS servers.";
		c->dns[c->dns_count].v6 = tag == TAG_DNS_V6;
		memcpy(c->dns[c->dns_count++].address, value, tag == TAG_DNS_V6 ? 16 : 4);
		return NULL;
	}
}

static const char *set_record(struct config *c, uint32_t tag, uint8_t *value, uint32_t length)
{
	static const char wrong[] = "The config disk holds a number or address of the wrong size.";

	switch (tag) {
	case TAG_HOSTNAME:
	case TAG_ROOT_FORMAT:
	case TAG_ENV:
	case TAG_USER:
	case TAG_WORKDIR:
	case TAG_ARG:
	case TAG_HOSTS_LINE:
		return set_string(c, tag, string_in(value, length));
	case TAG_MTU:
	case TAG_STOP_SIGNAL:
	case TAG_STOP_MS:
	case TAG_POWER_OFF:
	case TAG_CONTROL:
	case TAG_CONTROL_PORT:
	case TAG_IMAGE_INIT:
	case TAG_SCRATCH:
		return length == 4 ? set_u32(c, tag, u32_at(value)) : wrong;
	case TAG_ADDRESS:
		return length == 5 ? set_address(c, tag, value) : wrong;
	case TAG_GATEWAY:
	case TAG_DNS:
		return length == 4 ? set_address(c, tag, value) : wrong;
	case TAG_ADDRESS_V6:
		return length == 17 ? set_address(c, tag, value) : wrong;
	case TAG_GATEWAY_V6:
	case TAG_DNS_V6:
		return length == 16 ? set_address(c, tag, value) : wrong;
	case TAG_OVERLAY_BYTES:
	case TAG_CLOCK:
		if (length != 8)
			return wrong;
		*(tag == TAG_CLOCK ? &c->clock_ns : &c->overlay_bytes) = u64_at(value);
		return NULL;
	default:
		if (tag & TAG_OPTIONAL)
			return NULL;
		return "The config disk holds a record that this init does not know: rebuild the guest.";
	}
}

int config_parse(uint8_t *bytes, size_t size, struct config *config, const char **why)
{
	uint8_t *at, *end;
	long length;

	memset(config, 0, sizeof(*config));
	config->hostname = "vm";
	config->root_format = "squashfs";
	config->user = "";
	config->workdir = "/";
	config->stop_signal = 15;
	config->stop_ms = 10000;
	config->mtu = 1500;

	if (size < CONFIG_HEADER_BYTES) {
		*why = "The config disk is shorter than its header.";
		return -1;
	}
	length = config_header(bytes, why);
	if (length < 0)
		return -1;
	if ((size_t)length > size - CONFIG_HEADER_BYTES) {
		*why = "The config disk is shorter than it claims.";
		return -1;
	}
	at = bytes + CONFIG_HEADER_BYTES;
	end = at + length;
	if (crc32_of(at, (size_t)length) != u32_at(bytes + 16)) {
		*why = "The config disk is damaged: its checksum does not match.";
		return -1;
	}
	while (at < end) {
		uint32_t tag, bytes_here;

		if (end - at < 8) {
			*why = "The config disk ends in the middle of a record.";
			return -1;
		}
		tag = u16_at(at);
		bytes_here = u32_at(at + 4);
		at += 8;
		if (bytes_here > (size_t)(end - at)) {
			*why = "The config disk holds a record that is longer than what is left.";
			return -1;
		}
		*why = set_record(config, tag, at, bytes_here);
		if (*why)
			return -1;
		at += bytes_here;
	}
	if (!*config->workdir)
		config->workdir = "/";
	if (config->arg_count == 0) {
		*why = "The image names no entrypoint and no command: nothing to run.";
		return -1;
	}
	return 0;
}
