/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * The device /dev/nagaya: a group's shared region, doorbells, and who is there.
 *
 * All structures are the same for 32-bit and 64-bit programs. Fields called
 * reserved must be zero: a driver that knows more may give them a meaning.
 */
#ifndef _UAPI_NAGAYA_H
#define _UAPI_NAGAYA_H

#include <linux/ioctl.h>
#include <linux/types.h>

#include "nagaya_abi.h"

/*
 * What can be mapped, by its offset in the device file:
 *
 * - the region, shared, as a whole, at the address the group has given it (the
 *   first one to map it in the group chooses; without a hint the address is the
 *   group's);
 * - the group page, shared and read-only: struct nagaya_abi_group_page;
 * - the info page of a vCPU, likewise: struct nagaya_abi_info_page.
 */
#define NAGAYA_OFFSET_REGION		0x0ULL
#define NAGAYA_OFFSET_GROUP_PAGE	0x100000000ULL
#define NAGAYA_OFFSET_INFO_PAGE(vcpu)	(0x200000000ULL + (vcpu) * 4096ULL)

/* What the hypervisor and the driver are. */
struct nagaya_version {
	__u32 abi_version;	/* major << 16 | minor */
	__u32 features;		/* NAGAYA_FEATURE_* */
	__u32 vm_id;
	__u32 driver_version;	/* major << 16 | minor of this header */
};

#define NAGAYA_DRIVER_VERSION		0x00010000

/* The group this VM is in. */
struct nagaya_group {
	__u32 group_id;
	__u32 member_index;	/* this VM's */
	__u32 member_count;	/* how many indices were ever in use */
	__u32 address_any;	/* members may map at different addresses */
	__aligned_u64 region_bytes;
	__aligned_u64 region_address;	/* the group's; 0 if nobody has mapped */
	__aligned_u64 mapped_address;	/* where this VM has it; 0 if nowhere */
	__aligned_u64 generation;	/* grows when members come, go or die */
	__u8 name[NAGAYA_NAME_BYTES];
};

/* One member of it. */
struct nagaya_member {
	__u32 index;		/* in: which one */
	__u32 state;		/* NAGAYA_MEMBER_* */
	__u32 vm_id;
	__u32 vcpus;
	__u32 mapped;		/* it has the region mapped */
	__u32 reserved;
	__s64 exit_code;	/* in state NAGAYA_MEMBER_EXITED */
	__aligned_u64 incarnation;	/* tells it from earlier ones */
	__u8 name[NAGAYA_NAME_BYTES];
};

/* One life of a member: its next one, after a reset, has another incarnation. */
struct nagaya_life {
	__u32 member;
	__u32 reserved;
	__aligned_u64 incarnation;	/* as struct nagaya_member has it; 0: any */
};

/* Incarnations are smaller: in hypercalls they stand above an index. */
#define NAGAYA_MOST_INCARNATION		(~0ULL >> NAGAYA_LIFE_SHIFT)

/* A mapping of the region. */
struct nagaya_map {
	__aligned_u64 address;	/* in: where, 0 for the group's; out: where */
	__aligned_u64 bytes;	/* out: how much */
	__u32 flags;		/* in: NAGAYA_MAP_* */
	__u32 reserved;
};

#define NAGAYA_MAP_READ_ONLY		0x1

/* Waiting for doorbells and changes of the group. */
struct nagaya_wait {
	__s64 timeout_ns;	/* in: 0 only looks, below 0 waits for ever */
	__aligned_u64 events;	/* out: bit n: member n rang; or NAGAYA_EVENT_* */
};

#define NAGAYA_IOC_MAGIC		'N'

#define NAGAYA_IOC_VERSION	_IOR(NAGAYA_IOC_MAGIC, 0xa0, struct nagaya_version)
#define NAGAYA_IOC_GROUP	_IOR(NAGAYA_IOC_MAGIC, 0xa1, struct nagaya_group)
#define NAGAYA_IOC_MEMBER	_IOWR(NAGAYA_IOC_MAGIC, 0xa2, struct nagaya_member)
/* Maps the region; fails with EEXIST if something else is at the address. */
#define NAGAYA_IOC_MAP		_IOWR(NAGAYA_IOC_MAGIC, 0xa3, struct nagaya_map)
/* Unmaps what NAGAYA_IOC_MAP has mapped; munmap(2) does it, too. */
#define NAGAYA_IOC_UNMAP	_IOW(NAGAYA_IOC_MAGIC, 0xa4, struct nagaya_map)
/*
 * Rings a member: ESRCH it is not there, EBUSY it refuses doorbells, EAGAIN it
 * was rung too often: try later.
 */
#define NAGAYA_IOC_DOORBELL	_IOW(NAGAYA_IOC_MAGIC, 0xa5, __u32)
/* The same for one life of it: ESRCH if that is over, whatever its next one does. */
#define NAGAYA_IOC_DOORBELL_LIFE _IOW(NAGAYA_IOC_MAGIC, 0xa7, struct nagaya_life)
/*
 * Waits for events and takes them. Each open file is told of every event. Fails
 * with ETIMEDOUT, with EINTR. poll(2) says POLLIN when there are events, and
 * POLLPRI when the group has changed; read(2) of 8 bytes takes them, too.
 */
#define NAGAYA_IOC_WAIT		_IOWR(NAGAYA_IOC_MAGIC, 0xa6, struct nagaya_wait)

#endif /* _UAPI_NAGAYA_H */
