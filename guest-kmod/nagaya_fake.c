// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * A stand-in for the hypervisor, so that the driver can be tried in any emulator:
 * built in only by `make NAGAYA_FAKE=1`.
 *
 * It is stricter than what it stands for: map_shared looks up every page as the
 * hypervisor would, and while the region is mapped it checks that its pages are not
 * freed. Its group has this VM as member 0; member 1 echoes doorbells, 2 is absent, 3
 * refuses, 4 is throttled, and 5 dies of a doorbell.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": fake: " fmt

#include <linux/io.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "nagaya_drv.h"
#include "nagaya_hypercall.h"

static unsigned int fake_abi = NAGAYA_ABI_MAJOR << 16 | NAGAYA_ABI_MINOR;
module_param(fake_abi, uint, 0444);
static bool fake_absent;
module_param(fake_absent, bool, 0444);

#define FAKE_PAGES	NAGAYA_DEFAULT_REGION_PAGES

static DEFINE_SPINLOCK(fake_lock);
static struct nagaya_abi_group_page *fake_group;
/* What the region holds while nobody has it mapped. */
static void *fake_content;
static struct page *fake_mapped[FAKE_PAGES];
static unsigned long fake_address;
static u64 fake_events;

bool nagaya_find(u32 *abi_version, u32 *features, u32 *vm_id)
{
	static const char *const names[] = { "me",   "echo",   "absent",
					     "busy", "slow", "mortal" };
	unsigned int i;

	if (fake_absent)
		return false;
	*abi_version = fake_abi;
	*features = NAGAYA_FEATURE_GROUP;
	*vm_id = 7;
	if (!fake_group) {
		/* Never freed: a test's kernel does not live long. */
		fake_group = (void *)get_zeroed_page(GFP_KERNEL);
		fake_content = vzalloc(FAKE_PAGES * PAGE_SIZE);
		if (!fake_group || !fake_content)
			return false;
	}
	fake_group->magic = NAGAYA_GROUP_MAGIC;
	fake_group->abi_version = fake_abi;
	fake_group->group_id = 3;
	fake_group->region_pages = FAKE_PAGES;
	fake_group->member_count = ARRAY_SIZE(names);
	strscpy((char *)fake_group->name, "fake", NAGAYA_NAME_BYTES);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		fake_group->members[i].state = i == 2 ? NAGAYA_MEMBER_EXITED :
							NAGAYA_MEMBER_RUNNING;
		fake_group->members[i].vm_id = 7 + i;
		fake_group->members[i].vcpus = 1;
		fake_group->members[i].incarnation = 1;
		strscpy((char *)fake_group->members[i].name, names[i],
			NAGAYA_NAME_BYTES);
	}
	return true;
}

static struct page *fake_walk(unsigned long address)
{
	struct page *page = NULL;

	if (is_vmalloc_addr((void *)address))
		return vmalloc_to_page((void *)address);
	/* Only what is in the page tables now, and can be written to. */
	if (get_user_pages_fast_only(address, 1, FOLL_WRITE, &page) != 1)
		return NULL;
	put_page(page);
	return page;
}

static long fake_map(unsigned long address)
{
	unsigned long i;

	if (offset_in_page(address))
		return -EINVAL;
	if (fake_address)
		return fake_address == address ? 0 : -EADDRINUSE;
	for (i = 0; i < FAKE_PAGES; i++) {
		fake_mapped[i] = fake_walk(address + i * PAGE_SIZE);
		if (!fake_mapped[i])
			return -EFAULT;
	}
	for (i = 0; i < FAKE_PAGES; i++)
		memcpy(page_address(fake_mapped[i]), fake_content + i * PAGE_SIZE,
		       PAGE_SIZE);
	fake_address = address;
	fake_group->region_va = address;
	fake_group->members[0].mapped = 1;
	return 0;
}

static long fake_unmap(unsigned long address)
{
	unsigned long i;

	if (!fake_address || fake_address != address)
		return -EINVAL;
	for (i = 0; i < FAKE_PAGES; i++) {
		if (page_count(fake_mapped[i]) < 1)
			pr_err("page %lu was freed while the region was there\n", i);
		memcpy(fake_content + i * PAGE_SIZE, page_address(fake_mapped[i]),
		       PAGE_SIZE);
		memset(page_address(fake_mapped[i]), 0, PAGE_SIZE);
	}
	fake_address = 0;
	fake_group->region_va = 0;
	fake_group->members[0].mapped = 0;
	return 0;
}

/* What an earlier kernel has left; the driver says when it begins. */
static long fake_forget(unsigned long what)
{
	if (what & ~(NAGAYA_FORGET_REGION | NAGAYA_FORGET_DOORBELLS |
		     NAGAYA_FORGET_VCPU))
		return -EINVAL;
	if (what & NAGAYA_FORGET_REGION && fake_address)
		fake_unmap(fake_address);
	return 0;
}

static long fake_doorbell(unsigned long member)
{
	unsigned long incarnation = member >> NAGAYA_LIFE_SHIFT;
	unsigned long flags;

	member &= BIT(NAGAYA_LIFE_SHIFT) - 1;
	/* All lead their first life. */
	if (incarnation > 1)
		return -ESRCH;
	switch (member) {
	case 0:
	case 1:
		spin_lock_irqsave(&fake_lock, flags);
		fake_events |= BIT(member);
		spin_unlock_irqrestore(&fake_lock, flags);
		return 0;
	case 3:
		return -EBUSY;
	case 4:
		return -EAGAIN;
	case 5:
		spin_lock_irqsave(&fake_lock, flags);
		fake_group->members[5].state = NAGAYA_MEMBER_DIED;
		fake_group->generation++;
		fake_events |= NAGAYA_EVENT_GROUP_CHANGED;
		spin_unlock_irqrestore(&fake_lock, flags);
		return 0;
	default:
		return -ESRCH;
	}
}

static long fake_group_info(struct nagaya_abi_group_info *info,
			    unsigned long bytes)
{
	if (bytes < sizeof(*info))
		return -EINVAL;
	*info = (struct nagaya_abi_group_info) {
		.abi_version = fake_abi,
		.group_id = fake_group->group_id,
		.member_count = fake_group->member_count,
		.region_pages = FAKE_PAGES,
		.region_va = fake_group->region_va,
		.group_page_gpa = virt_to_phys(fake_group),
	};
	return sizeof(*info);
}

static long fake_wait(void)
{
	unsigned long flags;
	u64 mask;

	spin_lock_irqsave(&fake_lock, flags);
	mask = fake_events;
	fake_events = 0;
	spin_unlock_irqrestore(&fake_lock, flags);
	return mask ? mask : -ETIMEDOUT;
}

long nagaya_call_raw(unsigned long number, unsigned long first,
		     unsigned long second)
{
	switch (number) {
	case NAGAYA_CALL_MAP_SHARED:
		return fake_map(first);
	case NAGAYA_CALL_UNMAP_SHARED:
		return fake_unmap(first);
	case NAGAYA_CALL_GROUP_INFO:
		return fake_group_info((void *)first, second);
	case NAGAYA_CALL_DOORBELL:
		return fake_doorbell(first);
	case NAGAYA_CALL_FORGET:
		return fake_forget(first);
	case NAGAYA_CALL_WAIT:
		return fake_wait();
	default:
		return -ENOSYS;
	}
}
