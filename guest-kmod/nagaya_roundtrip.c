// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The paper's measurement on the paper's path: 8192 ints to a peer and back through
 * the region at kernel addresses. The mailboxes are those of samples/roundtrip.c.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": selftest: " fmt

#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/timex.h>

#include "nagaya_drv.h"
#include "nagaya_region.h"

#define NAGAYA_MAILBOXES	65536	/* offset in the region */
#define NAGAYA_INTS		8192
#define NAGAYA_RUNS		10
#define NAGAYA_PATIENCE_S	120

struct nagaya_mailbox {
	u64 sent __aligned(64);
	s32 ints[NAGAYA_INTS] __aligned(64);
};

struct nagaya_mailboxes {
	struct nagaya_mailbox there;
	struct nagaya_mailbox back;
};

static bool nagaya_is_alive(const struct nagaya_member *member)
{
	return member->state == NAGAYA_MEMBER_CREATED ||
	       member->state == NAGAYA_MEMBER_RUNNING;
}

/* The member that plays the other part, as it is now: the first other one that lives. */
static int nagaya_roundtrip_peer(struct nagaya_member *peer)
{
	struct nagaya_group group;
	int error = nagaya_group_get(&group);
	u32 index;

	if (error)
		return error;
	for (index = 0; index < group.member_count; index++) {
		if (index == group.member_index)
			continue;
		error = nagaya_group_member(index, peer);
		if (error || nagaya_is_alive(peer))
			return error;
	}
	return -ESRCH;
}

/* Whether the peer still leads the life that it led when the measurement began. */
static bool nagaya_roundtrip_goes_on(const struct nagaya_member *peer)
{
	struct nagaya_member now;

	return !nagaya_group_member(peer->index, &now) && nagaya_is_alive(&now) &&
	       now.incarnation == peer->incarnation;
}

/* Waits for message number turn. */
static int nagaya_roundtrip_receive(const struct nagaya_member *peer,
				    struct nagaya_mailbox *box, u64 turn, s32 *ints)
{
	ktime_t end = ktime_add_ns(ktime_get(), NAGAYA_PATIENCE_S * NSEC_PER_SEC);
	unsigned int looks = 0;

	while (smp_load_acquire(&box->sent) != turn) {
		if (ktime_after(ktime_get(), end))
			return -ETIMEDOUT;
		if (!(++looks % 1024) && !nagaya_roundtrip_goes_on(peer))
			return -EOWNERDEAD;
		cond_resched();
		cpu_relax();
	}
	memcpy(ints, box->ints, sizeof(box->ints));
	return 0;
}

static void nagaya_roundtrip_send(struct nagaya_mailbox *box, u64 turn, const s32 *ints)
{
	memcpy(box->ints, ints, sizeof(box->ints));
	smp_store_release(&box->sent, turn);
}

static int nagaya_roundtrip_first(const struct nagaya_member *peer,
				  struct nagaya_mailboxes *boxes, s32 *ints, s32 *answer)
{
	u64 base = READ_ONCE(boxes->there.sent);
	u64 total = 0;
	u64 run;
	int i;

	for (run = 1; run <= NAGAYA_RUNS; run++) {
		cycles_t begin, ticks;
		int error;

		for (i = 0; i < NAGAYA_INTS; i++)
			ints[i] = run * NAGAYA_INTS + i;
		begin = get_cycles();
		nagaya_roundtrip_send(&boxes->there, base + run, ints);
		error = nagaya_roundtrip_receive(peer, &boxes->back, base + run, answer);
		ticks = get_cycles() - begin;
		if (error)
			return error;
		for (i = 0; i < NAGAYA_INTS; i++)
			if (answer[i] != ints[i] + 1)
				return -EIO;
		pr_info("roundtrip: run %llu %llu ticks\n", run, (u64)ticks);
		total += ticks;
	}
	pr_info("roundtrip: mean %llu ticks\n", total / NAGAYA_RUNS);
	return 0;
}

static int nagaya_roundtrip_second(const struct nagaya_member *peer,
				   struct nagaya_mailboxes *boxes, s32 *ints)
{
	u64 base = READ_ONCE(boxes->back.sent);
	u64 run;
	int i;

	for (run = 1; run <= NAGAYA_RUNS; run++) {
		int error = nagaya_roundtrip_receive(peer, &boxes->there, base + run, ints);

		if (error)
			return error;
		for (i = 0; i < NAGAYA_INTS; i++)
			ints[i]++;
		nagaya_roundtrip_send(&boxes->back, base + run, ints);
	}
	return 0;
}

/* Plays one part with a peer that plays the other, in the region that begins at start. */
int nagaya_roundtrip(void *start, unsigned long bytes, unsigned int part)
{
	struct nagaya_member peer;
	s32 *ints;
	int error;

	if (part > NAGAYA_ROUNDTRIP_SECOND)
		return -EINVAL;
	if (bytes < NAGAYA_MAILBOXES + sizeof(struct nagaya_mailboxes))
		return -ENOMEM;
	error = nagaya_roundtrip_peer(&peer);
	if (error)
		return error;
	ints = kcalloc(2 * NAGAYA_INTS, sizeof(*ints), GFP_KERNEL);
	if (!ints)
		return -ENOMEM;
	if (part == NAGAYA_ROUNDTRIP_FIRST)
		error = nagaya_roundtrip_first(&peer, start + NAGAYA_MAILBOXES, ints,
					       ints + NAGAYA_INTS);
	else
		error = nagaya_roundtrip_second(&peer, start + NAGAYA_MAILBOXES, ints);
	kfree(ints);
	return error;
}
