/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* The pages of the region, for those who map them. */
#ifndef _NAGAYA_REGION_H
#define _NAGAYA_REGION_H

#include <linux/mm_types.h>
#include <linux/types.h>

int nagaya_region_alloc(void);
void nagaya_region_free(void);
int nagaya_region_call_map(unsigned long address);
int nagaya_region_call_unmap(void);

/* Parts in the selftest's measurement with a peer. */
enum {
	NAGAYA_ROUNDTRIP_FIRST = 1,
	NAGAYA_ROUNDTRIP_SECOND = 2,
};

int nagaya_roundtrip(void *start, unsigned long bytes, unsigned int part);

extern struct mutex nagaya_region_lock;

/* Under nagaya_region_lock. */
struct nagaya_share {
	struct page **pages;	/* NULL if there are none */
	unsigned long count;
	unsigned long address;	/* where hypercall 39 had it; 0 if not called */
	unsigned int users;	/* mappings by processes, and the selftest */
	bool down;		/* the system goes down: nobody maps any more */
};

extern struct nagaya_share nagaya_share;

#endif /* _NAGAYA_REGION_H */
