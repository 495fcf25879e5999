/*
 * noxen.so lets a stock xenstored, the C one or the OCaml one, run on a machine
 * without Xen, so that tests can talk to the real thing. It is preloaded in
 * front of libxenevtchn, libxengnttab and libxenctrl and answers what xenstored
 * asks them at start: there is one domain, dom0; its xenstore page is an empty
 * page; its event channel never fires. Only unix socket clients are then
 * served.
 *
 *   gcc -shared -fPIC -O1 -o noxen.so noxen.c
 *   LD_PRELOAD=$PWD/noxen.so LD_LIBRARY_PATH=... XENSTORED_RUNDIR=/tmp/x \
 *       xenstored --no-fork          (or oxenstored --no-fork --config-file ...)
 *
 * xenstored's own --no-domain-init is no way round this: the C one of 4.17.7
 * starts with it and dies of SIGSEGV at the first request.
 *
 * Test scaffolding only: nothing of it is linked into a Go program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define PAGE 4096

static char handle; /* what every *_open returns: only its address counts */

/* The two files of xenfs that tell dom0's xenstored where dom0's ring is. */
int open(const char *path, int flags, ...)
{
	mode_t mode = 0;
	int fd;

	if (flags & O_CREAT) {
		va_list ap;
		va_start(ap, flags);
		mode = va_arg(ap, mode_t);
		va_end(ap);
	}
	if (strcmp(path, "/proc/xen/xsd_kva") == 0) {
		fd = memfd_create("xsd_kva", 0);
		if (fd >= 0 && ftruncate(fd, PAGE) != 0)
			return -1;
		return fd;
	}
	if (strcmp(path, "/proc/xen/xsd_port") == 0) {
		fd = memfd_create("xsd_port", 0);
		if (fd >= 0 && pwrite(fd, "1", 1, 0) != 1)
			return -1;
		return fd;
	}
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

/* oxenstored has its socket's path built in; C xenstored's is this already. */
int bind(int fd, const struct sockaddr *addr, socklen_t len)
{
	const char *dir = getenv("XENSTORED_RUNDIR");
	struct sockaddr_un un = { .sun_family = AF_UNIX };

	if (addr->sa_family == AF_UNIX && dir) {
		snprintf(un.sun_path, sizeof(un.sun_path), "%s/socket", dir);
		addr = (struct sockaddr *)&un;
		len = sizeof(un);
	}
	return syscall(SYS_bind, fd, addr, len);
}

/* oxenstored would also make that path's directory on the machine. */
int mkdir(const char *path, mode_t mode)
{
	if (strncmp(path, "/run/xen", 8) == 0 || strncmp(path, "/var/run/xen", 12) == 0)
		return 0;
	return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
}

/* oxenstored raises its limit of descriptors, which a container forbids. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	return 0;
}

/* Event channels: a descriptor that is never readable. */
void *xenevtchn_open(void *logger, unsigned int flags)
{
	return &handle;
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned int flags)
{
	return &handle;
}

int xenevtchn_fd(void *xce)
{
	static int fd = -1;

	if (fd < 0)
		fd = eventfd(0, EFD_CLOEXEC);
	return fd;
}

int xenevtchn_bind_interdomain(void *xce, uint32_t domid, uint32_t port)
{
	return port;
}

int xenevtchn_bind_virq(void *xce, unsigned int virq)
{
	return 2;
}

int xenevtchn_notify(void *xce, uint32_t port) { return 0; }
int xenevtchn_pending(void *xce) { return -1; }
int xenevtchn_unbind(void *xce, uint32_t port) { return 0; }
int xenevtchn_unmask(void *xce, uint32_t port) { return 0; }

/* Grants: no other domain is ever introduced, so nothing is ever mapped. */
void *xengnttab_open(void *logger, unsigned int flags) { return &handle; }
int xengnttab_close(void *xgt) { return 0; }
int xengnttab_set_max_grants(void *xgt, uint32_t n) { return 0; }
int xengnttab_unmap(void *xgt, void *addr, uint32_t count) { return 0; }

void *xengnttab_map_grant_ref(void *xgt, uint32_t domid, uint32_t ref, int prot)
{
	errno = ENOSYS;
	return NULL;
}

/* The domain list: dom0, running. xc_dominfo_t opens with domid, ssidref and
 * a word of flags (dying, crashed, shutdown, ...); none may be set. */
void *xc_interface_open(void *logger, void *dombuild, unsigned int flags)
{
	return &handle;
}

int xc_interface_close(void *xch) { return 0; }

int xc_domain_getinfo(void *xch, uint32_t first, unsigned int max, void *info)
{
	if (first != 0 || max == 0)
		return 0;
	memset(info, 0, 3 * sizeof(uint32_t));
	return 1;
}

int xc_domain_getinfo_single(void *xch, uint32_t domid, void *info)
{
	if (domid != 0) {
		errno = ESRCH;
		return -1;
	}
	memset(info, 0, 3 * sizeof(uint32_t));
	return 0;
}
