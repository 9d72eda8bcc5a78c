// SPDX-License-Identifier: MIT
/*
 * A lock whose holder's whole VM is killed, in the other members' eyes:
 *
 *   robust-lock hold       takes it, leaves what it protects half done, shows that it lives, and never ends
 *   robust-lock inherit    waits for it, and for the news by epoll; mends, opens and takes it again
 *
 * Times are the TSC, which is one clock for all members: the holder writes it into the region all the time, so that the
 * last it wrote is when it was last alive.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>
#include <x86intrin.h>

#include "libnagaya.h"

#define ADDRESS		UINT64_C(0x4000000000)
#define FOR_LONG_NS	(INT64_C(3600) * 1000000000)

struct shared {
	struct nagaya_lock lock;
	_Atomic uint64_t alive_at;
	/* The lock protects that both are the same. */
	uint64_t first;
	uint64_t second;
	/* When the heir got the lock, and the news. Shown at the end: a line takes longer than either. */
	uint64_t inherited_at;
	uint64_t news_at;
};

/* What a unikernel in Rust inherits: tests/guests/src/bin/heir.rs. */
struct heirloom {
	struct nagaya_lock lock;
	_Atomic uint64_t first;
	uint64_t second;
};

#define HEIRLOOM	4096

static struct nagaya nagaya;
static struct shared *shared;

static void say(const char *what, uint64_t at)
{
	printf("NAGAYA-ROBUST %s %" PRIu64 "\n", what, at);
	fflush(stdout);
}

static int fail(const char *what, int error)
{
	printf("NAGAYA-ROBUST FAILED %s: %s\n", what, strerror(error < 0 ? -error : error));
	fflush(stdout);
	return 1;
}

static int hold(void)
{
	struct heirloom *heirloom = nagaya_at(&nagaya, HEIRLOOM, sizeof(*heirloom), 8);
	int error = nagaya_lock(&nagaya, &shared->lock, 0);

	if (!error)
		error = nagaya_lock(&nagaya, &heirloom->lock, 0);
	if (error)
		return fail("to take an open lock", error);
	atomic_fetch_add(&heirloom->first, 1);
	shared->first++;
	say("holds", nagaya.me);
	for (;;)
		atomic_store(&shared->alive_at, __rdtsc());
}

/* The holder's index once it holds the lock. */
static uint32_t await_holder(void)
{
	uint32_t holder;

	while (!atomic_load(&shared->alive_at))
		usleep(10000);
	for (holder = 0; holder < NAGAYA_MAX_MEMBERS; holder++)
		if (holder != nagaya.me && nagaya_is_alive(&nagaya, holder))
			break;
	return holder;
}

/* Sleeps until the device says that the group has changed, as a program with other things to do would. */
static int await_news(uint32_t holder, int queue)
{
	struct epoll_event event;
	uint64_t events = 0;
	int error;

	do {
		if (epoll_wait(queue, &event, 1, -1) != 1)
			return fail("to wait by epoll", errno);
		if (!(event.events & EPOLLPRI))
			return fail("to be told what changed", EPROTO);
		error = nagaya_wait(&nagaya, 0, &events);
		if (error)
			return fail("to take the events", error);
	} while (nagaya_is_alive(&nagaya, holder));
	shared->news_at = __rdtsc();
	if (!(events & NAGAYA_EVENT_GROUP_CHANGED))
		return fail("to find the change among the events", EPROTO);
	if (nagaya_member_state(&nagaya, holder) != NAGAYA_MEMBER_DIED)
		return fail("to find it dead", EPROTO);
	return 0;
}

static int take_over(void)
{
	int error = nagaya_lock(&nagaya, &shared->lock, FOR_LONG_NS);

	shared->inherited_at = __rdtsc();
	if (error != -EOWNERDEAD)
		return fail("to inherit", error);
	if (shared->first != shared->second + 1)
		return fail("to find what the holder has left", EPROTO);
	shared->second = shared->first;
	nagaya_unlock(&nagaya, &shared->lock);
	/* From then on it is a lock as any other. */
	error = nagaya_lock(&nagaya, &shared->lock, 0);
	if (error)
		return fail("to take it once more", error);
	nagaya_unlock(&nagaya, &shared->lock);
	return 0;
}

static int inherit(void)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLPRI };
	int queue = epoll_create1(0), status = 0, failed;
	uint32_t holder = await_holder();
	uint64_t events;

	if (holder == NAGAYA_MAX_MEMBERS)
		return fail("to find the holder", ESRCH);
	if (nagaya_lock(&nagaya, &shared->lock, 1000000) != -ETIMEDOUT)
		return fail("to be kept out while the holder lives", EPROTO);
	if (queue < 0 || epoll_ctl(queue, EPOLL_CTL_ADD, nagaya.fd, &event))
		return fail("to have epoll", errno);
	/* What came before is no news: the holder joined, or began. */
	while (!nagaya_wait(&nagaya, 0, &events))
		;
	say("waits for", holder);
	if (fork() == 0)
		_exit(await_news(holder, queue));
	failed = take_over();
	if (wait(&status) < 0 || status)
		failed = 1;
	say("alive", atomic_load(&shared->alive_at));
	say("inherits", shared->inherited_at);
	say("epoll", shared->news_at);
	if (!failed)
		say("well", 0);
	return failed;
}

int main(int count, char **words)
{
	int error = nagaya_open(&nagaya, ADDRESS);

	if (error)
		return fail("to have the region", error);
	shared = nagaya_at(&nagaya, 0, sizeof(*shared), 8);
	if (count > 1 && !strcmp(words[1], "hold"))
		return hold();
	return inherit();
}
