/* SPDX-License-Identifier: MIT */
/*
 * A group's shared region for C programs on Linux: the region itself, a lock, a
 * barrier, a ring, and doorbells. Layouts are those of the Rust runtime (nagaya-rt),
 * so that programs, unikernels and the two languages meet in one region; zeros are
 * the right beginning for all of them.
 *
 * Functions that can fail return 0 or a negative errno. What other members write is
 * not believed: an impossible value is -EUCLEAN, never a wild access. Who is alive is
 * a plain load from the group page, no system call.
 *
 * A member is a VM. Two processes of one VM exclude each other from a lock, but if
 * one of them dies with it, the VM lives on and nobody inherits: hold robust pthread
 * mutexes between processes of one VM.
 */
#ifndef LIBNAGAYA_H
#define LIBNAGAYA_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include <nagaya.h>

#define NAGAYA_DEVICE		"/dev/nagaya"
/* Waits as long as the peer lives. */
#define NAGAYA_FOREVER		((int64_t)-1)

struct nagaya {
	int fd;					/* for poll(2) */
	unsigned char *region;
	size_t bytes;
	const struct nagaya_abi_group_page *group;
	uint32_t me;				/* this VM's index */
};

/*
 * Opens the device and maps the region at address, or where the group has it if that
 * is 0. -ENOENT: no driver; -EPERM: in no group; -EADDRINUSE: the group has it
 * elsewhere; -EEXIST: something else of this process is there.
 */
int nagaya_open(struct nagaya *nagaya, uint64_t address);
void nagaya_close(struct nagaya *nagaya);

/* bytes bytes of the region at an offset that is a multiple of align; else NULL. */
void *nagaya_at(const struct nagaya *nagaya, uint64_t offset, size_t bytes,
		size_t align);
/* The same for an address that was found in the region. */
void *nagaya_pointer(const struct nagaya *nagaya, uint64_t address, size_t bytes,
		     size_t align);

/*
 * Members, by plain loads. What a dead one wrote before is visible after this. A peer
 * is one life of a member: one that was reset has ended, and its next life, which has
 * another incarnation, is another peer. Waits below remember the incarnation that they
 * began with.
 */
uint32_t nagaya_member_state(const struct nagaya *nagaya, uint32_t member);
int nagaya_is_alive(const struct nagaya *nagaya, uint32_t member);
uint64_t nagaya_incarnation(const struct nagaya *nagaya, uint32_t member);

/* -ESRCH, -EBUSY, -EAGAIN as NAGAYA_IOC_DOORBELL. */
int nagaya_doorbell(const struct nagaya *nagaya, uint32_t member);
/* Only if the member still leads the life with that incarnation; else -ESRCH. */
int nagaya_doorbell_life(const struct nagaya *nagaya, uint32_t member,
			 uint64_t incarnation);
/* 0 as timeout only looks, NAGAYA_FOREVER waits. -ETIMEDOUT, -EINTR. */
int nagaya_wait(const struct nagaya *nagaya, int64_t timeout_ns, uint64_t *events);

/* A lock whose holder may die. */
struct nagaya_lock {
	_Atomic uint64_t word;
};

/*
 * 0: held. -EOWNERDEAD: held, and its holder died with it: mend what it protects and
 * nagaya_unlock(), or give up by nagaya_lock_abandon(). Not held: -ENOTRECOVERABLE it
 * was given up; -ETIMEDOUT; -EUCLEAN.
 */
int nagaya_lock(const struct nagaya *nagaya, struct nagaya_lock *lock,
		int64_t timeout_ns);
void nagaya_unlock(const struct nagaya *nagaya, struct nagaya_lock *lock);
void nagaya_lock_abandon(const struct nagaya *nagaya, struct nagaya_lock *lock);

/* A barrier for up to 32 members. */
struct nagaya_barrier {
	_Alignas(64) _Atomic uint64_t arrivals[NAGAYA_MAX_MEMBERS];
};

/*
 * Meets the participants (bit n for member n), this one included. -EOWNERDEAD: *missing
 * has died, or was reset, before it came; meet without it from now on, or with its next
 * life. -ETIMEDOUT: the arrival stands.
 */
int nagaya_barrier(const struct nagaya *nagaya, struct nagaya_barrier *barrier,
		   uint32_t participants, int64_t timeout_ns, uint32_t *missing);

/* A ring: the counters in the region, and slots of 8 bytes behind or elsewhere. */
struct nagaya_ring_header {
	_Alignas(64) _Atomic uint64_t taken;
	_Alignas(64) _Atomic uint64_t put;
};

/* One end of it, in the process's own memory. */
struct nagaya_ring {
	struct nagaya_ring_header *header;
	_Atomic uint64_t *slots;
	uint64_t count;
	uint64_t mine;
	uint64_t theirs;
	uint32_t peer;
	uint64_t incarnation;	/* the peer's; 0 before it was asked for */
};

/*
 * One end of a fresh ring whose other end is the member peer's: of the life that it
 * leads when nagaya_ring_push() or nagaya_ring_pop() is first called.
 */
void nagaya_ring_init(struct nagaya_ring *ring, struct nagaya_ring_header *header,
		      _Atomic uint64_t *slots, uint64_t count, uint32_t peer);
/* -EAGAIN: no room. -EUCLEAN. */
int nagaya_ring_try_push(struct nagaya_ring *ring, uint64_t value);
/* -EAGAIN: nothing there. -EUCLEAN. */
int nagaya_ring_try_pop(struct nagaya_ring *ring, uint64_t *value);
/*
 * -EOWNERDEAD: the peer's life is over. What it had put is still taken, until its next
 * life begins; nothing of that one's is. -ETIMEDOUT; -EUCLEAN.
 */
int nagaya_ring_push(const struct nagaya *nagaya, struct nagaya_ring *ring,
		     uint64_t value, int64_t timeout_ns);
int nagaya_ring_pop(const struct nagaya *nagaya, struct nagaya_ring *ring,
		    uint64_t *value, int64_t timeout_ns);

/* Asserted on the side of Rust, too: guest-abi/rt/src/sync. */
_Static_assert(sizeof(struct nagaya_lock) == 8, "a lock is one word");
_Static_assert(sizeof(struct nagaya_barrier) == 256, "a barrier is 32 words");
_Static_assert(sizeof(struct nagaya_ring_header) == 128, "two lines");
_Static_assert(offsetof(struct nagaya_ring_header, put) == 64, "two lines");

#endif /* LIBNAGAYA_H */
