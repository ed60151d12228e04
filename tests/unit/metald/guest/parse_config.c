/* Reads a config disk on standard input; prints what config.c made of it, or why it refused. */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(void)
{
	/* Exactly as large as the input, so that a byte too far is seen by the sanitizer. */
	size_t size = 0, room = 2 * CONFIG_MAX_BYTES;
	uint8_t *all = malloc(room), *bytes;
	struct config *config = malloc(sizeof(*config));
	const char *why = NULL;
	ssize_t got;

	while (size < room && (got = read(0, all + size, room - size)) > 0)
		size += (size_t)got;
	bytes = malloc(size ? size : 1);
	for (size_t i = 0; i < size; i++)
		bytes[i] = all[i];
	if (config_parse(bytes, size, config, &why) < 0) {
		printf("refused: %s\n", why);
		return 3;
	}
	printf("hostname=%s\nformat=%s\noverlay=%llu\n", config->hostname, config->root_format,
	       (unsigned long long)config->overlay_bytes);
	printf("address=%u.%u.%u.%u/%u\n", config->address[0], config->address[1], config->address[2],
	       config->address[3], config->prefix_length);
	printf("gateway=%u.%u.%u.%u\nmtu=%u\ndns=%zu\n", config->gateway[0], config->gateway[1],
	       config->gateway[2], config->gateway[3], config->mtu, config->dns_count);
	printf("user=%s\nworkdir=%s\n", config->user, config->workdir);
	for (size_t i = 0; i < config->env_count; i++)
		printf("env=%s\n", config->env[i]);
	for (size_t i = 0; i < config->arg_count; i++)
		printf("arg=%s\n", config->args[i]);
	printf("stop=%u after %u\npower_off=%u\ncontrol=%u:%u\nclock=%llu\n", config->stop_signal,
	       config->stop_ms, config->power_off, config->control, config->control_port,
	       (unsigned long long)config->clock_ns);
	if (config->has_address_v6)
		printf("v6=%02x%02x..%02x/%u gateway=%02x..%02x\n", config->address_v6[0],
		       config->address_v6[1], config->address_v6[15], config->prefix_length_v6,
		       config->gateway_v6[0], config->gateway_v6[15]);
	for (size_t i = 0; config->has_address_v6 && i < config->dns_count; i++)
		printf("dns%zu=%s %02x\n", i, config->dns[i].v6 ? "v6" : "v4",
		       config->dns[i].address[0]);
	if (config->image_init || config->scratch)
		printf("image_init=%u scratch=%u\n", config->image_init, config->scratch);
	return 0;
}
