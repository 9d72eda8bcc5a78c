// SPDX-License-Identifier: MIT
/*
 * Paper 000's measurement: 8192 ints to the peer and back through the region.
 *
 *   roundtrip PEER first     sends, waits for the answer, 10 times; prints the times
 *   roundtrip PEER second    answers
 *
 * Two mailboxes from offset 64 KiB on: a word that says how many were sent, on a line
 * of its own, and the ints. The second adds one to each int, so that the first can
 * see that they came back.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <x86intrin.h>

#include "libnagaya.h"

#define ADDRESS	UINT64_C(0x4000000000)
#define OFFSET	65536
#define INTS	8192
#define RUNS	10

struct mailbox {
	_Alignas(64) _Atomic uint64_t sent;
	_Alignas(64) int32_t ints[INTS];
};

struct mailboxes {
	struct mailbox there;
	struct mailbox back;
};

static struct nagaya nagaya;

/* Waits for message number turn; -EOWNERDEAD if the peer dies. */
static int receive(struct mailbox *box, uint64_t turn, uint32_t peer, int32_t *ints)
{
	while (atomic_load_explicit(&box->sent, memory_order_acquire) != turn) {
		if (!nagaya_is_alive(&nagaya, peer))
			return -EOWNERDEAD;
		_mm_pause();
	}
	memcpy(ints, box->ints, sizeof(box->ints));
	return 0;
}

static void send(struct mailbox *box, uint64_t turn, const int32_t *ints)
{
	memcpy(box->ints, ints, sizeof(box->ints));
	atomic_store_explicit(&box->sent, turn, memory_order_release);
}

static int first(struct mailboxes *boxes, uint32_t peer)
{
	static int32_t ints[INTS], answer[INTS];
	uint64_t base = atomic_load(&boxes->there.sent);
	uint64_t total = 0;

	for (uint64_t run = 1; run <= RUNS; run++) {
		uint64_t begin, ticks;
		int error;

		for (int i = 0; i < INTS; i++)
			ints[i] = (int32_t)(run * INTS) + i;
		begin = __rdtsc();
		send(&boxes->there, base + run, ints);
		error = receive(&boxes->back, base + run, peer, answer);
		ticks = __rdtsc() - begin;
		if (error)
			return error;
		for (int i = 0; i < INTS; i++)
			if (answer[i] != ints[i] + 1)
				return -EIO;
		printf("roundtrip: run %" PRIu64 " %" PRIu64 " ticks\n", run, ticks);
		total += ticks;
	}
	printf("roundtrip: mean %" PRIu64 " ticks\n", total / RUNS);
	return 0;
}

static int second(struct mailboxes *boxes, uint32_t peer)
{
	static int32_t ints[INTS];
	uint64_t base = atomic_load(&boxes->back.sent);

	for (uint64_t run = 1; run <= RUNS; run++) {
		int error = receive(&boxes->there, base + run, peer, ints);

		if (error)
			return error;
		for (int i = 0; i < INTS; i++)
			ints[i]++;
		send(&boxes->back, base + run, ints);
	}
	return 0;
}

int main(int count, char **words)
{
	struct mailboxes *boxes;
	uint32_t peer;
	int error;

	if (count != 3) {
		fprintf(stderr, "roundtrip: PEER first | second\n");
		return 2;
	}
	peer = (uint32_t)strtoul(words[1], NULL, 0);
	error = nagaya_open(&nagaya, ADDRESS);
	if (!error) {
		boxes = nagaya_at(&nagaya, OFFSET, sizeof(*boxes), 64);
		error = !boxes			    ? -ENOMEM :
			strcmp(words[2], "first") ? second(boxes, peer) :
						    first(boxes, peer);
	}
	if (error)
		fprintf(stderr, "roundtrip: %s\n", strerror(-error));
	nagaya_close(&nagaya);
	return error ? 1 : 0;
}
