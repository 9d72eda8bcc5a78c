/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * What the parts of the driver share.
 *
 * Locks, outermost first: a process's mmap_lock; region.lock; events.lock (an
 * interrupt takes it). Nothing below takes mmap_lock while it holds another.
 */
#ifndef _NAGAYA_DRV_H
#define _NAGAYA_DRV_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/sysfs.h>

#include <nagaya.h>

/* What was counted since the module was loaded; shown in sysfs. */
enum nagaya_counter {
	NAGAYA_COUNT_MAPS,
	NAGAYA_COUNT_UNMAPS,
	NAGAYA_COUNT_DOORBELLS_SENT,
	NAGAYA_COUNT_DOORBELLS_REFUSED,
	NAGAYA_COUNT_EVENTS,
	NAGAYA_COUNT_INTERRUPTS,
	NAGAYA_COUNT_POLLS,
	NAGAYA_COUNTERS
};

extern atomic64_t nagaya_counters[NAGAYA_COUNTERS];

static inline void nagaya_count(enum nagaya_counter counter)
{
	atomic64_inc(&nagaya_counters[counter]);
}

/* One open file. */
struct nagaya_file {
	struct list_head list;
	u64 events;		/* not yet taken; under events.lock */
};

/* nagaya_main.c */
extern u32 nagaya_abi_version;
extern u32 nagaya_features;
extern u32 nagaya_vm_id;

/* nagaya_group.c: the group page, by plain loads. */
void nagaya_group_find(void);
void nagaya_group_forget(void);
bool nagaya_group_is_known(void);
int nagaya_group_get(struct nagaya_group *group);
int nagaya_group_member(u32 index, struct nagaya_member *member);
const char *nagaya_state_name(u32 state);
u64 nagaya_group_region_pages(void);
u64 nagaya_group_region_address(void);
int nagaya_group_mmap(struct vm_area_struct *vma);
int nagaya_info_mmap(struct vm_area_struct *vma, unsigned long vcpu);
int nagaya_info_exits(u64 exits[NAGAYA_EXIT_KINDS]);

/* nagaya_region.c */
int nagaya_region_init(void);
void nagaya_region_exit(void);
void nagaya_region_forget_earlier(void);
int nagaya_region_mmap(struct file *file, struct vm_area_struct *vma);
unsigned long nagaya_region_get_unmapped_area(struct file *file,
					      unsigned long address,
					      unsigned long bytes,
					      unsigned long offset,
					      unsigned long flags);
u64 nagaya_region_mapped_address(void);
unsigned int nagaya_region_users(void);
int nagaya_region_selftest(unsigned int roundtrip);

/* nagaya_event.c */
extern wait_queue_head_t nagaya_event_queue;
int nagaya_event_init(void);
void nagaya_event_exit(void);
void nagaya_event_open(struct nagaya_file *file);
void nagaya_event_release(struct nagaya_file *file);
int nagaya_event_wait(struct nagaya_file *file, s64 timeout_ns, u64 *events);
__poll_t nagaya_event_poll(struct nagaya_file *file, struct file *filp,
			   poll_table *table);
int nagaya_doorbell(u32 member, u64 incarnation);

/* nagaya_sysfs.c */
extern const struct attribute_group *nagaya_sysfs_groups[];

#endif /* _NAGAYA_DRV_H */
