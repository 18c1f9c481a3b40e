/* A clock that goes faster, for a program that waits for minutes: preloaded, each second on the monotonic clock is
 * STOKER_CLOCK_TIMES of them, and waits for descriptors are as much shorter. The time of day stays what it is. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

static long times = 1;
static long long begun;
static int (*real_gettime)(clockid_t, struct timespec *);
static int (*real_wait)(int, struct epoll_event *, int, int);

static long long nanos(const struct timespec *at)
{
	return at->tv_sec * 1000000000LL + at->tv_nsec;
}

__attribute__((constructor)) static void begin(void)
{
	struct timespec now;
	const char *text = getenv("STOKER_CLOCK_TIMES");
	real_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
	real_wait = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
	real_gettime(CLOCK_MONOTONIC, &now);
	begun = nanos(&now);
	times = text && atol(text) > 0 ? atol(text) : 1;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
	int done;
	if (!real_gettime)
		begin();
	done = real_gettime(clock, at);
	if (done == 0 && clock == CLOCK_MONOTONIC) {
		long long fast = begun + (nanos(at) - begun) * times;
		at->tv_sec = fast / 1000000000LL;
		at->tv_nsec = fast % 1000000000LL;
	}
	return done;
}

int epoll_wait(int poll, struct epoll_event *events, int max, int timeout)
{
	if (!real_wait)
		begin();
	return real_wait(poll, events, max, timeout > 0 ? (timeout + times - 1) / times : timeout);
}
