#include "boot.h"
#include "say.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_BYTES 4096

/* The one interface that is not the loopback. */
static int find_interface(char name[IFNAMSIZ])
{
	DIR *interfaces = opendir("/sys/class/net");
	struct dirent *entry;
	int found = 0;

	if (!interfaces)
		return 0;
	while (!found && (entry = readdir(interfaces))) {
		if (entry->d_name[0] == '.' || strcmp(entry->d_name, "lo") == 0 ||
		    strlen(entry->d_name) >= IFNAMSIZ)
			continue;
		snprintf(name, IFNAMSIZ, "%.15s", entry->d_name);
		found = 1;
	}
	closedir(interfaces);
	return found;
}

static void set_inet(struct sockaddr *where, const uint8_t address[4])
{
	struct sockaddr_in inet = {.sin_family = AF_INET};

	memcpy(&inet.sin_addr, address, 4);
	memcpy(where, &inet, sizeof(inet));
}

static void interface_ioctl(int fd, unsigned long request, struct ifreq *interface, const char *what)
{
	if (ioctl(fd, (int)request, interface) < 0)
		fail("The network's %s could not be set on %s: %s.", what, interface->ifr_name,
		     strerror(errno));
}

static void bring_up(int fd, struct ifreq *interface)
{
	interface->ifr_flags = IFF_UP | IFF_RUNNING;
	interface_ioctl(fd, SIOCSIFFLAGS, interface, "state");
}

static void configure(int fd, struct ifreq *interface, const struct config *config)
{
	uint32_t mask = config->prefix_length ? htonl(~0u << (32 - config->prefix_length)) : 0;
	uint8_t mask_bytes[4];

	memcpy(mask_bytes, &mask, 4);
	set_inet(&interface->ifr_addr, config->address);
	interface_ioctl(fd, SIOCSIFADDR, interface, "address");
	set_inet(&interface->ifr_netmask, mask_bytes);
	interface_ioctl(fd, SIOCSIFNETMASK, interface, "netmask");
	interface->ifr_mtu = (int)config->mtu;
	interface_ioctl(fd, SIOCSIFMTU, interface, "MTU");
	bring_up(fd, interface);
}

static void add_default_route(int fd, const struct config *config)
{
	static const uint8_t any[4];
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};

	set_inet(&route.rt_dst, any);
	set_inet(&route.rt_genmask, any);
	set_inet(&route.rt_gateway, config->gateway);
	if (ioctl(fd, SIOCADDRT, &route) < 0)
		fail("The network's default route could not be set: %s.", strerror(errno));
}

static void set_sysctl(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, value, strlen(value)) < 0)
		say("%s could not be set: %s", path, strerror(errno));
	close(fd);
}

/* From linux/ipv6.h, which clashes with netinet/in.h. */
struct in6_interface {
	struct in6_addr address;
	uint32_t prefix_length;
	int index;
};

/* Before the interface is up: the address is ours alone on this link, and no router speaks. */
static void prepare_v6(const char *name)
{
	static const char *const settings[][2] = {{"accept_dad", "0"}, {"accept_ra", "0"}};
	char path[96];

	for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
		snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/%s", name, settings[i][0]);
		set_sysctl(path, settings[i][1]);
	}
}

static void configure_v6(const char *name, const struct config *config)
{
	struct in6_interface interface = {.prefix_length = config->prefix_length_v6};
	struct in6_rtmsg route = {.rtmsg_metric = 1, .rtmsg_flags = RTF_UP | RTF_GATEWAY};
	int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("The kernel has no IPv6: %s.", strerror(errno));
	interface.index = (int)if_nametoindex(name);
	memcpy(&interface.address, config->address_v6, 16);
	if (ioctl(fd, SIOCSIFADDR, &interface) < 0 && errno != EEXIST)
		fail("The network's IPv6 address could not be set on %s: %s.", name, strerror(errno));
	if (config->has_gateway_v6) {
		memcpy(&route.rtmsg_gateway, config->gateway_v6, 16);
		route.rtmsg_ifindex = interface.index;
		if (ioctl(fd, SIOCADDRT, &route) < 0)
			fail("The network's default IPv6 route could not be set: %s.", strerror(errno));
	}
	close(fd);
}

void net_up(const struct config *config)
{
	struct ifreq interface = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("The kernel has no network: %s.", strerror(errno));
	snprintf(interface.ifr_name, IFNAMSIZ, "lo");
	bring_up(fd, &interface);
	if (config->has_address) {
		memset(&interface, 0, sizeof(interface));
		if (!find_interface(interface.ifr_name))
			fail("The VM has no network interface: the VMM did not attach it.");
		if (config->has_address_v6)
			prepare_v6(interface.ifr_name);
		configure(fd, &interface, config);
		if (config->has_gateway)
			add_default_route(fd, config);
		if (config->has_address_v6)
			configure_v6(interface.ifr_name, config);
	}
	close(fd);
}

/* Replaces a file of the image, whatever stands there: a link is not followed. */
static void write_file(const char *path, const char *text)
{
	size_t length = strlen(text);
	int fd;

	unlink(path);
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
	if (fd < 0 || write(fd, text, length) != (ssize_t)length)
		say("%s could not be written: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

void net_files(const struct config *config)
{
	char text[FILE_BYTES], address[INET6_ADDRSTRLEN];
	size_t used;

	if (mkdir("/etc", 0755) < 0 && errno != EEXIST)
		say("/etc could not be made: %s", strerror(errno));
	if (sethostname(config->hostname, strlen(config->hostname)) < 0)
		say("the host name could not be set: %s", strerror(errno));
	snprintf(text, sizeof(text), "%s\n", config->hostname);
	write_file("/etc/hostname", text);

	used = (size_t)snprintf(text, sizeof(text),
				"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
	if (config->has_address) {
		inet_ntop(AF_INET, config->address, address, sizeof(address));
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\t%s\n", address,
					 config->hostname);
	}
	if (config->has_address_v6) {
		inet_ntop(AF_INET6, config->address_v6, address, sizeof(address));
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\t%s\n", address,
					 config->hostname);
	}
	for (size_t i = 0; i < config->hosts_count; i++) {
		if (strlen(config->hosts[i]) + 2 > sizeof(text) - used)
			break;
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s\n", config->hosts[i]);
	}
	write_file("/etc/hosts", text);

	if (config->dns_count) {
		used = 0;
		for (size_t i = 0; i < config->dns_count; i++) {
			inet_ntop(config->dns[i].v6 ? AF_INET6 : AF_INET, config->dns[i].address,
				  address, sizeof(address));
			used += (size_t)snprintf(text + used, sizeof(text) - used, "nameserver %s\n",
						 address);
		}
		write_file("/etc/resolv.conf", text);
	}
	/* As container runtimes do: a port below 1024 and ping need no root here. */
	set_sysctl("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
	set_sysctl("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
}
