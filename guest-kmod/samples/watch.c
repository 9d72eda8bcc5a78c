// SPDX-License-Identifier: MIT
/*
 *   watch              shows the group, then doorbells and changes as they come
 *   watch ring INDEX   rings a member
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "libnagaya.h"

static const char *const states[] = { "absent", "created", "running", "exited",
				      "died" };

static void show(const struct nagaya *nagaya)
{
	for (uint32_t index = 0; index < NAGAYA_MAX_MEMBERS; index++) {
		struct nagaya_member member = { .index = index };

		if (ioctl(nagaya->fd, NAGAYA_IOC_MEMBER, &member) ||
		    member.state == NAGAYA_MEMBER_ABSENT || member.state > 4)
			continue;
		printf("watch: %" PRIu32 "%s %.*s %s\n", index,
		       index == nagaya->me ? " (me)" : "", NAGAYA_NAME_BYTES,
		       (const char *)member.name, states[member.state]);
	}
	fflush(stdout);
}

static int watch(const struct nagaya *nagaya)
{
	struct pollfd poller = { .fd = nagaya->fd, .events = POLLIN };
	uint64_t events;
	int error;

	show(nagaya);
	for (;;) {
		if (poll(&poller, 1, -1) < 0)
			return 0;
		error = nagaya_wait(nagaya, 0, &events);
		if (error)
			return error;
		for (uint32_t member = 0; member < NAGAYA_MAX_MEMBERS; member++)
			if (events >> member & 1)
				printf("watch: %" PRIu32 " rings\n", member);
		if (events & NAGAYA_EVENT_GROUP_CHANGED)
			show(nagaya);
		fflush(stdout);
	}
}

int main(int count, char **words)
{
	struct nagaya nagaya;
	int error = nagaya_open(&nagaya, UINT64_C(0x4000000000));

	if (!error && count > 2 && !strcmp(words[1], "ring"))
		error = nagaya_doorbell(&nagaya, (uint32_t)strtoul(words[2], NULL, 0));
	else if (!error)
		error = watch(&nagaya);
	if (error)
		fprintf(stderr, "watch: %s\n", strerror(-error));
	nagaya_close(&nagaya);
	return error ? 1 : 0;
}
