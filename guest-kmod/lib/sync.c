// SPDX-License-Identifier: MIT
/*
 * Lock, barrier and ring: the same words, the same orders of loads and stores and
 * the same checks as guest-abi/rt/src/sync, where they are model-checked.
 */
#include "libnagaya.h"

#include <errno.h>
#include <sched.h>
#include <time.h>

/* How often a waiting loop looks before it asks for the time and for the peer. */
#define LOOKS		256

#define FREE		UINT64_C(0)
#define POISONED	UINT64_MAX
#define INDEX_BITS	8

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int64_t deadline_after(int64_t timeout_ns)
{
	int64_t now = now_ns();

	if (timeout_ns < 0 || timeout_ns > INT64_MAX - now)
		return INT64_MAX;
	return now + timeout_ns;
}

static int has_passed(int64_t deadline)
{
	return deadline != INT64_MAX && now_ns() >= deadline;
}

static void relax(void)
{
	__builtin_ia32_pause();
}

static uint64_t pack(uint32_t member, uint64_t incarnation)
{
	return incarnation << INDEX_BITS | (member + 1);
}

/* Whether the holder that a word names is still that member; -EUCLEAN for no word of ours. */
static int holder_lives(const struct nagaya *nagaya, uint64_t word)
{
	uint64_t index = word & ((1 << INDEX_BITS) - 1);
	uint32_t member = (uint32_t)index - 1;

	if (index == 0 || index > NAGAYA_MAX_MEMBERS)
		return -EUCLEAN;
	if (!nagaya_is_alive(nagaya, member))
		return 0;
	return pack(member, nagaya_incarnation(nagaya, member)) == word;
}

int nagaya_lock(const struct nagaya *nagaya, struct nagaya_lock *lock,
		int64_t timeout_ns)
{
	uint64_t mine = pack(nagaya->me, nagaya_incarnation(nagaya, nagaya->me));
	int64_t deadline = deadline_after(timeout_ns);

	for (;;) {
		uint64_t holder = FREE;
		int lives;

		for (int look = 0; look < LOOKS; look++) {
			holder = FREE;
			if (atomic_compare_exchange_strong_explicit(
				    &lock->word, &holder, mine, memory_order_acquire,
				    memory_order_relaxed))
				return 0;
			if (holder == POISONED)
				return -ENOTRECOVERABLE;
			relax();
		}
		lives = holder_lives(nagaya, holder);
		if (lives < 0)
			return lives;
		/* Fails if it was opened before its holder died, or another inherits first. */
		if (!lives && atomic_compare_exchange_strong_explicit(
				      &lock->word, &holder, mine,
				      memory_order_acquire, memory_order_relaxed))
			return -EOWNERDEAD;
		if (lives && has_passed(deadline))
			return -ETIMEDOUT;
		/* The holder may be another process of this very CPU. */
		sched_yield();
	}
}

/* Not a plain store: if a peer has overwritten the word it is not ours to change. */
static void leave(const struct nagaya *nagaya, struct nagaya_lock *lock,
		  uint64_t word)
{
	uint64_t mine = pack(nagaya->me, nagaya_incarnation(nagaya, nagaya->me));

	atomic_compare_exchange_strong_explicit(&lock->word, &mine, word,
						memory_order_release,
						memory_order_relaxed);
}

void nagaya_unlock(const struct nagaya *nagaya, struct nagaya_lock *lock)
{
	leave(nagaya, lock, FREE);
}

void nagaya_lock_abandon(const struct nagaya *nagaya, struct nagaya_lock *lock)
{
	leave(nagaya, lock, POISONED);
}

/* One life of a member. */
struct life {
	uint32_t member;
	uint64_t incarnation;
};

static struct life life_now(const struct nagaya *nagaya, uint32_t member)
{
	return (struct life){ member, nagaya_incarnation(nagaya, member) };
}

/*
 * Whether no other life has begun: what was found before this call is that one's, even
 * if it has ended.
 */
static int is_latest(const struct nagaya *nagaya, struct life life)
{
	atomic_thread_fence(memory_order_acquire);
	return nagaya_incarnation(nagaya, life.member) == life.incarnation;
}

/*
 * In this order: a new incarnation is written before the state that goes with it, so
 * that the next life's state is never taken for this one's.
 */
static int is_on(const struct nagaya *nagaya, struct life life)
{
	return nagaya_is_alive(nagaya, life.member) && is_latest(nagaya, life);
}

/* What ready() says, unless it may be the next life's doing. */
static int look(const struct nagaya *nagaya, struct life life, int (*ready)(void *),
		void *state)
{
	int result = ready(state);

	return result == -EAGAIN || is_latest(nagaya, life) ? result : -EOWNERDEAD;
}

/* Waits until ready() is not -EAGAIN; what a life did before it ended counts. */
static int wait_for(const struct nagaya *nagaya, struct life life, int64_t deadline,
		    int (*ready)(void *), void *state)
{
	for (;;) {
		int result;

		for (int i = 0; i < LOOKS; i++) {
			result = look(nagaya, life, ready, state);
			if (result != -EAGAIN)
				return result;
			relax();
		}
		if (!is_on(nagaya, life)) {
			result = look(nagaya, life, ready, state);
			return result == -EAGAIN ? -EOWNERDEAD : result;
		}
		if (has_passed(deadline))
			return -ETIMEDOUT;
		sched_yield();
	}
}

/* A meeting at a barrier. */
struct meeting {
	struct nagaya_barrier *barrier;
	uint64_t round;
	uint32_t left;				/* who has not come */
	struct life lives[NAGAYA_MAX_MEMBERS];	/* as they were when the wait began */
};

static int has_arrived(const struct meeting *meeting, uint32_t member)
{
	uint64_t found = atomic_load_explicit(&meeting->barrier->arrivals[member],
					      memory_order_acquire);

	return (int64_t)(found - meeting->round) >= 0;
}

/* Takes out who has come: 0 if nobody is left, -EAGAIN, or -EOWNERDEAD of *missing. */
static int look_round(const struct nagaya *nagaya, struct meeting *meeting,
		      uint32_t *missing)
{
	for (uint32_t member = 0; member < NAGAYA_MAX_MEMBERS; member++) {
		if (!(meeting->left >> member & 1) || !has_arrived(meeting, member))
			continue;
		/* It may be the next life that has come. */
		if (!is_latest(nagaya, meeting->lives[member])) {
			*missing = member;
			return -EOWNERDEAD;
		}
		meeting->left &= ~(UINT32_C(1) << member);
	}
	return meeting->left ? -EAGAIN : 0;
}

/* The first of those who are waited for whose life is over; NAGAYA_MAX_MEMBERS if none's. */
static uint32_t first_ended(const struct nagaya *nagaya, const struct meeting *meeting)
{
	uint32_t member;

	for (member = 0; member < NAGAYA_MAX_MEMBERS; member++)
		if (meeting->left >> member & 1 &&
		    !is_on(nagaya, meeting->lives[member]))
			break;
	return member;
}

static int meet(const struct nagaya *nagaya, struct meeting *meeting, int64_t deadline,
		uint32_t *missing)
{
	for (;;) {
		uint32_t ended;
		int result;

		for (int i = 0; i < LOOKS; i++) {
			result = look_round(nagaya, meeting, missing);
			if (result != -EAGAIN)
				return result;
			relax();
		}
		ended = first_ended(nagaya, meeting);
		if (ended < NAGAYA_MAX_MEMBERS) {
			/* What it did before it died counts. */
			result = look_round(nagaya, meeting, missing);
			if (result != -EAGAIN)
				return result;
			if (meeting->left >> ended & 1) {
				*missing = ended;
				return -EOWNERDEAD;
			}
		}
		if (has_passed(deadline)) {
			*missing = (uint32_t)__builtin_ctz(meeting->left);
			return -ETIMEDOUT;
		}
		sched_yield();
	}
}

int nagaya_barrier(const struct nagaya *nagaya, struct nagaya_barrier *barrier,
		   uint32_t participants, int64_t timeout_ns, uint32_t *missing)
{
	_Atomic uint64_t *mine = &barrier->arrivals[nagaya->me];
	struct meeting meeting = { .barrier = barrier };
	int64_t deadline = deadline_after(timeout_ns);
	uint32_t nobody;

	meeting.round = atomic_load_explicit(mine, memory_order_relaxed) + 1;
	atomic_store_explicit(mine, meeting.round, memory_order_release);
	meeting.left = participants & ~(UINT32_C(1) << nagaya->me);
	/* All of them now: one may be reset while another is waited for. */
	for (uint32_t member = 0; member < NAGAYA_MAX_MEMBERS; member++)
		meeting.lives[member] = life_now(nagaya, member);
	return meet(nagaya, &meeting, deadline, missing ? missing : &nobody);
}

void nagaya_ring_init(struct nagaya_ring *ring, struct nagaya_ring_header *header,
		      _Atomic uint64_t *slots, uint64_t count, uint32_t peer)
{
	*ring = (struct nagaya_ring){
		.header = header,
		.slots = slots,
		.count = count,
		.peer = peer,
	};
}

int nagaya_ring_try_push(struct nagaya_ring *ring, uint64_t value)
{
	if (ring->mine - ring->theirs >= ring->count) {
		uint64_t found = atomic_load_explicit(&ring->header->taken,
						      memory_order_acquire);

		/* It may only grow, and never past what was put. */
		if (found < ring->theirs || found > ring->mine)
			return -EUCLEAN;
		ring->theirs = found;
		if (ring->mine - found >= ring->count)
			return -EAGAIN;
	}
	atomic_store_explicit(&ring->slots[ring->mine % ring->count], value,
			      memory_order_relaxed);
	ring->mine++;
	atomic_store_explicit(&ring->header->put, ring->mine, memory_order_release);
	return 0;
}

int nagaya_ring_try_pop(struct nagaya_ring *ring, uint64_t *value)
{
	if (ring->mine == ring->theirs) {
		uint64_t found = atomic_load_explicit(&ring->header->put,
						      memory_order_acquire);

		/* It may only grow, and never further ahead than the ring is long. */
		if (found < ring->theirs || found - ring->mine > ring->count)
			return -EUCLEAN;
		ring->theirs = found;
		if (found == ring->mine)
			return -EAGAIN;
	}
	*value = atomic_load_explicit(&ring->slots[ring->mine % ring->count],
				      memory_order_relaxed);
	ring->mine++;
	atomic_store_explicit(&ring->header->taken, ring->mine, memory_order_release);
	return 0;
}

/* The peer's life, which is the one that it led when this was first asked. */
static struct life peer_of(const struct nagaya *nagaya, struct nagaya_ring *ring)
{
	if (!ring->incarnation)
		ring->incarnation = nagaya_incarnation(nagaya, ring->peer);
	return (struct life){ ring->peer, ring->incarnation };
}

struct push {
	struct nagaya_ring *ring;
	uint64_t value;
};

static int push(void *state)
{
	struct push *push = state;

	return nagaya_ring_try_push(push->ring, push->value);
}

int nagaya_ring_push(const struct nagaya *nagaya, struct nagaya_ring *ring,
		     uint64_t value, int64_t timeout_ns)
{
	struct push state = { ring, value };

	return wait_for(nagaya, peer_of(nagaya, ring), deadline_after(timeout_ns), push,
			&state);
}

struct pop {
	struct nagaya_ring *ring;
	uint64_t *value;
};

static int pop(void *state)
{
	struct pop *pop = state;

	return nagaya_ring_try_pop(pop->ring, pop->value);
}

int nagaya_ring_pop(const struct nagaya *nagaya, struct nagaya_ring *ring,
		    uint64_t *value, int64_t timeout_ns)
{
	struct pop state = { ring, value };

	return wait_for(nagaya, peer_of(nagaya, ring), deadline_after(timeout_ns), pop,
			&state);
}
