// SPDX-License-Identifier: MIT
/*
 * The lock, the barrier and the ring between threads of one program on any machine:
 * each plays a member, and the group page is a variable.
 */
#include "libnagaya.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHECK(condition)                                                         \
	do {                                                                     \
		if (!(condition)) {                                              \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__,       \
				#condition);                                     \
			exit(1);                                                 \
		}                                                                \
	} while (0)

#define ROUNDS 20000
#define SLOTS 7

static struct nagaya_abi_group_page page;
static struct nagaya_lock lock;
static struct nagaya_barrier barrier;
static struct nagaya_ring_header header;
static _Atomic uint64_t slots[SLOTS];
static uint64_t counter;

static struct nagaya member(uint32_t index)
{
	return (struct nagaya){ .fd = -1, .group = &page, .me = index };
}

static void *count(void *index)
{
	struct nagaya me = member((uint32_t)(uintptr_t)index);

	for (int i = 0; i < ROUNDS; i++) {
		CHECK(nagaya_lock(&me, &lock, NAGAYA_FOREVER) == 0);
		counter++;
		nagaya_unlock(&me, &lock);
		if (i % 1000 == 0)
			CHECK(nagaya_barrier(&me, &barrier, 3, NAGAYA_FOREVER,
					     NULL) == 0);
	}
	return NULL;
}

static void *consume(void *unused)
{
	struct nagaya me = member(1);
	struct nagaya_ring ring;
	uint64_t value;

	(void)unused;
	nagaya_ring_init(&ring, &header, slots, SLOTS, 0);
	for (uint64_t i = 0; i < ROUNDS; i++) {
		CHECK(nagaya_ring_pop(&me, &ring, &value, NAGAYA_FOREVER) == 0);
		CHECK(value == i * i);
	}
	return NULL;
}

static void a_lock_excludes_and_a_barrier_meets(void)
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, count, (void *)1) == 0);
	count((void *)0);
	pthread_join(other, NULL);
	CHECK(counter == 2 * ROUNDS);
}

static void a_ring_passes_everything_in_order(void)
{
	struct nagaya me = member(0);
	struct nagaya_ring ring;
	pthread_t other;

	CHECK(pthread_create(&other, NULL, consume, NULL) == 0);
	nagaya_ring_init(&ring, &header, slots, SLOTS, 1);
	for (uint64_t i = 0; i < ROUNDS; i++)
		CHECK(nagaya_ring_push(&me, &ring, i * i, NAGAYA_FOREVER) == 0);
	pthread_join(other, NULL);
}

static void a_dead_holders_lock_is_inherited_and_can_be_given_up(void)
{
	struct nagaya me = member(0), peer = member(1);

	CHECK(nagaya_lock(&peer, &lock, 0) == 0);
	CHECK(nagaya_lock(&me, &lock, 1000) == -ETIMEDOUT);
	page.members[1].state = NAGAYA_MEMBER_DIED;
	CHECK(nagaya_lock(&me, &lock, 0) == -EOWNERDEAD);
	nagaya_unlock(&me, &lock);
	CHECK(nagaya_lock(&me, &lock, 0) == 0);
	nagaya_unlock(&me, &lock);
	page.members[1].state = NAGAYA_MEMBER_RUNNING;
	CHECK(nagaya_lock(&peer, &lock, 0) == 0);
	/* The index has a new member: not the holder. */
	page.members[1].incarnation++;
	CHECK(nagaya_lock(&me, &lock, 0) == -EOWNERDEAD);
	nagaya_lock_abandon(&me, &lock);
	CHECK(nagaya_lock(&peer, &lock, 0) == -ENOTRECOVERABLE);
	atomic_store(&lock.word, 200);
	CHECK(nagaya_lock(&me, &lock, 0) == -EUCLEAN);
}

static void who_waits_for_the_dead_is_told(void)
{
	struct nagaya me = member(0);
	struct nagaya_ring ring;
	uint64_t value = 0;
	uint32_t missing = 77;

	page.members[1].state = NAGAYA_MEMBER_DIED;
	atomic_store(&header.put, 1);
	atomic_store(&header.taken, 0);
	atomic_store(&slots[0], 42);
	nagaya_ring_init(&ring, &header, slots, SLOTS, 1);
	/* What it had put is still taken. */
	CHECK(nagaya_ring_pop(&me, &ring, &value, NAGAYA_FOREVER) == 0);
	CHECK(value == 42);
	CHECK(nagaya_ring_pop(&me, &ring, &value, NAGAYA_FOREVER) == -EOWNERDEAD);
	CHECK(nagaya_barrier(&me, &barrier, 3, NAGAYA_FOREVER, &missing) ==
	      -EOWNERDEAD);
	CHECK(missing == 1);
	atomic_store(&header.put, 100);
	CHECK(nagaya_ring_try_pop(&ring, &value) == -EUCLEAN);
}

/* Begins member 1's next life a moment after the wait for it has begun. */
static void *reset_soon(void *unused)
{
	(void)unused;
	usleep(20000);
	*(volatile __u64 *)&page.members[1].incarnation += 1;
	return NULL;
}

static pthread_t begin_reset(void)
{
	pthread_t other;

	page.members[1].state = NAGAYA_MEMBER_RUNNING;
	CHECK(pthread_create(&other, NULL, reset_soon, NULL) == 0);
	return other;
}

/* Whoever looks finds it alive, before and after. */
static void a_member_that_is_reset_has_ended_for_who_waits(void)
{
	struct nagaya me = member(0), peer = member(1);
	struct nagaya_ring ring, next;
	uint64_t value = 0;
	uint32_t missing = 77;
	pthread_t other;

	atomic_store(&header.put, 0);
	atomic_store(&header.taken, 0);
	nagaya_ring_init(&ring, &header, slots, SLOTS, 1);
	other = begin_reset();
	CHECK(nagaya_ring_pop(&me, &ring, &value, NAGAYA_FOREVER) == -EOWNERDEAD);
	pthread_join(other, NULL);
	/* What its next life puts is none of this ring's. */
	nagaya_ring_init(&next, &header, slots, SLOTS, 0);
	CHECK(nagaya_ring_push(&peer, &next, 5, 0) == 0);
	CHECK(nagaya_ring_pop(&me, &ring, &value, NAGAYA_FOREVER) == -EOWNERDEAD);

	atomic_store(&header.put, 0);
	atomic_store(&header.taken, 0);
	nagaya_ring_init(&ring, &header, slots, SLOTS, 1);
	for (uint64_t i = 0; i < SLOTS; i++)
		CHECK(nagaya_ring_push(&me, &ring, i, 0) == 0);
	CHECK(nagaya_ring_push(&me, &ring, 0, 1000) == -ETIMEDOUT);
	other = begin_reset();
	CHECK(nagaya_ring_push(&me, &ring, 0, NAGAYA_FOREVER) == -EOWNERDEAD);
	pthread_join(other, NULL);

	other = begin_reset();
	CHECK(nagaya_barrier(&me, &barrier, 3, NAGAYA_FOREVER, &missing) ==
	      -EOWNERDEAD);
	CHECK(missing == 1);
	pthread_join(other, NULL);
	missing = 77;
	CHECK(nagaya_barrier(&me, &barrier, 3, 1000, &missing) == -ETIMEDOUT);
	CHECK(missing == 1);
}

static void nothing_outside_the_region_is_given_out(void)
{
	_Alignas(8) unsigned char memory[64];
	struct nagaya me = member(0);

	me.region = memory;
	me.bytes = sizeof(memory);
	CHECK(nagaya_at(&me, 56, 8, 8) == memory + 56);
	CHECK(!nagaya_at(&me, 60, 8, 4));
	CHECK(!nagaya_at(&me, 4, 8, 8));
	CHECK(!nagaya_at(&me, 8, SIZE_MAX, 8));
	CHECK(!nagaya_at(&me, UINT64_MAX - 7, 8, 8));
	CHECK(nagaya_pointer(&me, (uintptr_t)memory + 8, 8, 8) == memory + 8);
	CHECK(!nagaya_pointer(&me, (uintptr_t)memory - 8, 8, 8));
	CHECK(!nagaya_pointer(&me, 0, 8, 8));
}

int main(void)
{
	for (int i = 0; i < 2; i++) {
		page.members[i].state = NAGAYA_MEMBER_RUNNING;
		page.members[i].incarnation = 3;
	}
	a_lock_excludes_and_a_barrier_meets();
	a_ring_passes_everything_in_order();
	a_dead_holders_lock_is_inherited_and_can_be_given_up();
	who_waits_for_the_dead_is_told();
	a_member_that_is_reset_has_ended_for_who_waits();
	nothing_outside_the_region_is_given_out();
	puts("ok");
	return 0;
}
