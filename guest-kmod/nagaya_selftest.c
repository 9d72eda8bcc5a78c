// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The path of the paper that the hypercall comes from: a module reserves kernel
 * addresses, makes hypercall 39 with the first of them, and uses the region there.
 *
 * It takes the region's last eight bytes for a counter of those who came by, and
 * works where the group's address is free or everybody's own affair: a group that
 * has it at a user address answers EADDRINUSE.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": selftest: " fmt

#include <linux/mutex.h>
#include <linux/timex.h>
#include <linux/vmalloc.h>

#include "nagaya_drv.h"
#include "nagaya_region.h"

static void nagaya_selftest_use(void *start)
{
	unsigned long bytes = nagaya_share.count << PAGE_SHIFT;
	atomic64_t *visits = start + bytes - sizeof(*visits);
	s64 before, after;
	cycles_t begin;
	u64 sum = 0;
	unsigned long i;

	before = atomic64_read(visits);
	after = atomic64_inc_return(visits);
	/* Through another address of the same page: the kernel's own map of all RAM. */
	if (atomic64_read(page_address(nagaya_share.pages[nagaya_share.count - 1]) +
			  PAGE_SIZE - sizeof(*visits)) < after)
		pr_err("the pages show the region at one address and not at the other\n");
	begin = get_cycles();
	for (i = 0; i < bytes; i += PAGE_SIZE)
		sum += READ_ONCE(*(u64 *)(start + i));
	pr_info("visits %lld, then %lld; one word of each page read in %llu ticks (sum %#llx)\n",
		before, after, (u64)(get_cycles() - begin), sum);
}

static int nagaya_selftest_map(unsigned int roundtrip)
{
	cycles_t begin, mapped;
	void *start;
	int error, measured = 0;

	start = vmap(nagaya_share.pages, nagaya_share.count, VM_MAP, PAGE_KERNEL);
	if (!start)
		return -ENOMEM;
	begin = get_cycles();
	error = nagaya_region_call_map((unsigned long)start);
	mapped = get_cycles();
	if (error) {
		pr_err("hypercall 39 at %#lx answers %d\n", (unsigned long)start,
		       error);
		goto unmap;
	}
	pr_info("%lu pages at %#lx in %llu ticks\n", nagaya_share.count,
		(unsigned long)start, (u64)(mapped - begin));
	nagaya_selftest_use(start);
	if (roundtrip)
		measured = nagaya_roundtrip(start, nagaya_share.count << PAGE_SHIFT,
					    roundtrip);
	error = nagaya_region_call_unmap() ?: measured;
	if (!error)
		pr_info("passed\n");
unmap:
	vunmap(start);
	return error;
}

int nagaya_region_selftest(unsigned int roundtrip)
{
	int error;

	mutex_lock(&nagaya_region_lock);
	error = nagaya_region_alloc();
	if (!error)
		error = nagaya_selftest_map(roundtrip);
	/* The pages stay, for good, if the region could not be given back. */
	nagaya_region_free();
	mutex_unlock(&nagaya_region_lock);
	if (error)
		pr_err("failed: %d\n", error);
	return error;
}
