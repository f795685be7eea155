/*
 * The bare work of an ADD, for comparison: the netlink messages and sysctls for the same objects that the plugin makes
 * for an IPv4 pod, in as few round trips as the kernel allows, and nothing else: no configuration, no lease, no record,
 * no result. One static program, so that exec is as cheap as it gets.
 *
 *   bare add HOSTNAME NETNS ADDRESS    a veth with its pod's end in NETNS, addresses, neighbours, routes, up
 *   bare del HOSTNAME                  the veth's end
 *   bare nop                           nothing: what starting a program costs
 *   bare usage FILE PROGRAM [ARG..]    runs a program, and writes to FILE the largest resident set in KiB of it and of
 *                                      what it started
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/ip.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define GROUP 112
#define PROTOCOL 113
#define MTU 1450

static const uint8_t host_mac[6] = {0x02, 0x70, 0x77, 0, 0, 1}, pod_mac[6] = {0x02, 0x3e, 0x9a, 0xd4, 0x31, 0x8a};

static char buffer[8192];
static size_t used;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct nlmsghdr *message(uint16_t type, uint16_t flags, const void *body, size_t length)
{
    struct nlmsghdr *header = (void *)(buffer + used);
    memset(header, 0, NLMSG_SPACE(length));
    header->nlmsg_type = type;
    header->nlmsg_flags = NLM_F_REQUEST | flags;
    header->nlmsg_len = NLMSG_LENGTH(length);
    memcpy(NLMSG_DATA(header), body, length);
    used += NLMSG_SPACE(length);
    return header;
}

static struct rtattr *attribute(struct nlmsghdr *header, uint16_t type, const void *data, size_t length)
{
    struct rtattr *one = (void *)((char *)header + NLMSG_ALIGN(header->nlmsg_len));
    one->rta_type = type;
    one->rta_len = RTA_LENGTH(length);
    if (data)
        memcpy(RTA_DATA(one), data, length);
    header->nlmsg_len = NLMSG_ALIGN(header->nlmsg_len) + RTA_SPACE(length);
    used = (char *)header + header->nlmsg_len - buffer;
    return one;
}

static void number(struct nlmsghdr *header, uint16_t type, uint32_t value)
{
    attribute(header, type, &value, sizeof value);
}

/* Without them the kernel makes one for each processor, and waits for RCU when it turns the others off. */
static void queues(struct nlmsghdr *header)
{
    number(header, IFLA_NUM_TX_QUEUES, 1);
    number(header, IFLA_NUM_RX_QUEUES, 1);
}

static void end(struct nlmsghdr *header, struct rtattr *nest)
{
    nest->rta_len = (char *)header + header->nlmsg_len - (char *)nest;
}

/* Sends what has been gathered; the last message asks for an acknowledgement, errors of the others come before it. */
static void flush(int fd)
{
    char answer[4096];
    if (send(fd, buffer, used, 0) != (ssize_t)used)
        die("send");
    used = 0;
    ssize_t got = recv(fd, answer, sizeof answer, 0);
    struct nlmsghdr *header = (void *)answer;
    if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)) || header->nlmsg_type != NLMSG_ERROR)
        die("recv");
    int error = ((struct nlmsgerr *)NLMSG_DATA(header))->error;
    if (error) {
        fprintf(stderr, "netlink: %s\n", strerror(-error));
        exit(1);
    }
}

static int rtnetlink(void)
{
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    if (fd < 0)
        die("socket");
    return fd;
}

static void set(const char *name, const char *key)
{
    char path[128];
    snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/%s", name, key);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "0", 1) != 1)
        die(path);
    close(fd);
}

static void neighbour(int index, uint32_t address, const uint8_t *mac)
{
    struct ndmsg body = {.ndm_family = AF_INET, .ndm_ifindex = index, .ndm_state = NUD_PERMANENT};
    struct nlmsghdr *header = message(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    number(header, NDA_DST, address);
    attribute(header, NDA_LLADDR, mac, 6);
}

static void up(int index)
{
    struct ifinfomsg body = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    message(RTM_NEWLINK, 0, &body, sizeof body);
}

static void route(int index, int length, uint32_t to, uint32_t gateway, int scope, int protocol)
{
    struct rtmsg body = {.rtm_family = AF_INET, .rtm_dst_len = length, .rtm_table = RT_TABLE_MAIN,
                         .rtm_protocol = protocol, .rtm_scope = scope, .rtm_type = RTN_UNICAST,
                         .rtm_flags = gateway ? RTNH_F_ONLINK : 0};
    struct nlmsghdr *header =
        message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE | NLM_F_ACK, &body, sizeof body);
    if (length)
        number(header, RTA_DST, to);
    if (gateway)
        number(header, RTA_GATEWAY, gateway);
    number(header, RTA_OIF, index);
}

static int add(const char *name, const char *netns, const char *text)
{
    uint32_t address = inet_addr(text), gateway = inet_addr("169.254.1.1");
    int pod = open(netns, O_RDONLY | O_CLOEXEC), home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    if (pod < 0 || home < 0)
        die(netns);
    int fd = rtnetlink();
    struct ifinfomsg link = {0};
    struct nlmsghdr *header = message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK, &link, sizeof link);
    attribute(header, IFLA_IFNAME, name, strlen(name) + 1);
    attribute(header, IFLA_ADDRESS, host_mac, 6);
    number(header, IFLA_MTU, MTU);
    number(header, IFLA_GROUP, GROUP);
    queues(header);
    struct rtattr *info = attribute(header, IFLA_LINKINFO, NULL, 0);
    attribute(header, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = attribute(header, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = attribute(header, VETH_INFO_PEER, &link, sizeof link);
    attribute(header, IFLA_IFNAME, "eth0", 5);
    attribute(header, IFLA_ADDRESS, pod_mac, 6);
    number(header, IFLA_MTU, MTU);
    queues(header);
    number(header, IFLA_NET_NS_FD, pod);
    end(header, peer);
    end(header, data);
    end(header, info);
    flush(fd);

    int index = if_nametoindex(name);
    set(name, "accept_ra");
    set(name, "accept_redirects");
    /* Alias, no link-local address, IPv4 settings. */
    struct ifinfomsg mark = {.ifi_index = index};
    header = message(RTM_NEWLINK, 0, &mark, sizeof mark);
    attribute(header, IFLA_IFALIAS, "podway/bare/eth0", 16);
    struct rtattr *spec = attribute(header, IFLA_AF_SPEC, NULL, 0);
    struct rtattr *inet = attribute(header, AF_INET, NULL, 0);
    struct rtattr *conf = attribute(header, IFLA_INET_CONF, NULL, 0);
    number(header, IPV4_DEVCONF_PROXY_ARP, 1);
    number(header, IPV4_DEVCONF_SEND_REDIRECTS, 0);
    number(header, IPV4_DEVCONF_ACCEPT_REDIRECTS, 0);
    number(header, IPV4_DEVCONF_RP_FILTER, 0);
    end(header, conf);
    end(header, inet);
    struct rtattr *inet6 = attribute(header, AF_INET6, NULL, 0);
    uint8_t none = 1; /* IN6_ADDR_GEN_MODE_NONE */
    attribute(header, IFLA_INET6_ADDR_GEN_MODE, &none, 1);
    end(header, inet6);
    end(header, spec);
    neighbour(index, address, pod_mac);
    up(index);
    route(index, 32, address, 0, RT_SCOPE_LINK, PROTOCOL);
    flush(fd);

    if (setns(pod, CLONE_NEWNET))
        die("setns");
    set("eth0", "accept_dad");
    int inside = rtnetlink();
    int eth0 = if_nametoindex("eth0");
    struct ifaddrmsg body = {.ifa_family = AF_INET, .ifa_prefixlen = 32, .ifa_index = eth0};
    header = message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, &body, sizeof body);
    number(header, IFA_LOCAL, address);
    number(header, IFA_ADDRESS, address);
    neighbour(eth0, gateway, host_mac);
    up(1);
    up(eth0);
    route(eth0, 0, 0, gateway, RT_SCOPE_UNIVERSE, RTPROT_STATIC);
    flush(inside);
    return setns(home, CLONE_NEWNET);
}

static int del(const char *name)
{
    int fd = rtnetlink();
    struct ifinfomsg link = {0};
    struct nlmsghdr *header = message(RTM_DELLINK, NLM_F_ACK, &link, sizeof link);
    attribute(header, IFLA_IFNAME, name, strlen(name) + 1);
    flush(fd);
    return 0;
}

static int usage(const char *path, char **program)
{
    int status;
    struct rusage used_by_children;
    pid_t child = vfork();
    if (child == 0) {
        execv(program[0], program);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, NULL) != child || getrusage(RUSAGE_CHILDREN, &used_by_children))
        die("wait4");
    FILE *file = fopen(path, "w");
    if (!file || fprintf(file, "%ld\n", used_by_children.ru_maxrss) < 0 || fclose(file))
        die(path);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

int main(int count, char **word)
{
    if (count == 5 && !strcmp(word[1], "add"))
        return add(word[2], word[3], word[4]);
    if (count == 3 && !strcmp(word[1], "del"))
        return del(word[2]);
    if (count == 2 && !strcmp(word[1], "nop"))
        return 0;
    if (count >= 4 && !strcmp(word[1], "usage"))
        return usage(word[2], word + 3);
    fprintf(stderr, "add HOSTNAME NETNS ADDRESS, del HOSTNAME, nop or usage FILE PROGRAM [ARG..] expected\n");
    return 64;
}
