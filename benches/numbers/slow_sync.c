/* A disk whose syncs take longer, for a machine that has none: `--sync-delay` of the bench preloads it, into the bench and
 * the agent alike. Each fsync and fdatasync is made, and returns STOKER_SYNC_DELAY_US microseconds later. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <time.h>

static int later(const char *name, int file)
{
	int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
	int done = real(file), error = errno;
	const char *text = getenv("STOKER_SYNC_DELAY_US");
	long delay_us = text ? atol(text) : 0;
	struct timespec left = { delay_us / 1000000, delay_us % 1000000 * 1000 };
	while (nanosleep(&left, &left) != 0 && errno == EINTR) {
	}
	errno = error;
	return done;
}

int fsync(int file)
{
	return later("fsync", file);
}

int fdatasync(int file)
{
	return later("fdatasync", file);
}
