// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The group page and the info pages: memory that the hypervisor writes and the VM
 * can only read. A write there would end the VM, so that no pointer to it may be
 * anything but const, and no mapping of a process writable.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cpumask.h>
#include <linux/io.h>
#include <linux/mutex.h>
#include <linux/slab.h>

#include "nagaya_compat.h"
#include "nagaya_drv.h"
#include "nagaya_hypercall.h"

/* How often a reader tries to find the page at rest before it gives up. */
#define NAGAYA_SEQUENCE_TRIES 100000

static DEFINE_MUTEX(find_lock);
/* Set once and then kept until the module goes: the address never changes. */
static const struct nagaya_abi_group_page *group_page;
static phys_addr_t group_page_address;
static u32 member_index;

static const struct nagaya_abi_group_page *nagaya_page(void)
{
	/* Pairs with the release in nagaya_group_find(). */
	return smp_load_acquire(&group_page);
}

bool nagaya_group_is_known(void)
{
	return nagaya_page();
}

static void nagaya_group_map(const struct nagaya_abi_group_info *info)
{
	const struct nagaya_abi_group_page *page;

	if (!info->group_page_gpa || offset_in_page(info->group_page_gpa))
		return;
	page = memremap(info->group_page_gpa, PAGE_SIZE, MEMREMAP_WB);
	if (!page)
		return;
	if (READ_ONCE(page->magic) != NAGAYA_GROUP_MAGIC) {
		pr_err("there is no group page at %#llx\n", info->group_page_gpa);
		memunmap((void *)page);
		return;
	}
	group_page_address = info->group_page_gpa;
	member_index = info->member_index;
	/* What was set above is seen by whoever sees the page. */
	smp_store_release(&group_page, page);
}

/* Asks the hypervisor for the group, unless that has been answered before. */
void nagaya_group_find(void)
{
	struct nagaya_abi_group_info *info;

	if (nagaya_page())
		return;
	info = kzalloc(sizeof(*info), GFP_KERNEL);
	if (!info)
		return;
	mutex_lock(&find_lock);
	if (!group_page && !nagaya_call(NAGAYA_CALL_GROUP_INFO,
					(unsigned long)info, sizeof(*info)))
		nagaya_group_map(info);
	mutex_unlock(&find_lock);
	kfree(info);
}

void nagaya_group_forget(void)
{
	if (group_page)
		memunmap((void *)group_page);
	group_page = NULL;
}

/*
 * Calls of read() between these two see the page at one moment. The hypervisor
 * changes it in a few instructions; if it never comes to rest something is broken,
 * and the reader must not hang.
 */
static bool nagaya_sequence_begin(const struct nagaya_abi_group_page *page,
				  u64 *sequence)
{
	*sequence = READ_ONCE(page->sequence);
	/* The fields are read after the sequence, */
	smp_rmb();
	return !(*sequence & 1);
}

static bool nagaya_sequence_holds(const struct nagaya_abi_group_page *page,
				  u64 sequence)
{
	/* and before it is read again. */
	smp_rmb();
	return READ_ONCE(page->sequence) == sequence;
}

/* Names are for people: a torn one is not possible under the sequence. */
static void nagaya_copy_name(u8 *to, const u8 *from)
{
	unsigned int i;

	for (i = 0; i < NAGAYA_NAME_BYTES; i++)
		to[i] = READ_ONCE(from[i]);
}

int nagaya_group_get(struct nagaya_group *group)
{
	const struct nagaya_abi_group_page *page = nagaya_page();
	unsigned int tries;
	u64 sequence;

	if (!page)
		return -EPERM;
	for (tries = 0; tries < NAGAYA_SEQUENCE_TRIES; tries++, cpu_relax()) {
		if (!nagaya_sequence_begin(page, &sequence))
			continue;
		group->group_id = READ_ONCE(page->group_id);
		group->member_index = member_index;
		group->member_count = min_t(u32, READ_ONCE(page->member_count),
					    NAGAYA_MAX_MEMBERS);
		group->address_any = READ_ONCE(page->address_any);
		group->region_bytes = READ_ONCE(page->region_pages) << PAGE_SHIFT;
		group->region_address = READ_ONCE(page->region_va);
		group->generation = READ_ONCE(page->generation);
		nagaya_copy_name(group->name, page->name);
		if (nagaya_sequence_holds(page, sequence))
			return 0;
	}
	return -EIO;
}

int nagaya_group_member(u32 index, struct nagaya_member *member)
{
	const struct nagaya_abi_group_page *page = nagaya_page();
	const struct nagaya_abi_member *entry;
	unsigned int tries;
	u64 sequence;

	if (!page)
		return -EPERM;
	if (index >= NAGAYA_MAX_MEMBERS)
		return -EINVAL;
	entry = &page->members[index];
	memset(member, 0, sizeof(*member));
	member->index = index;
	for (tries = 0; tries < NAGAYA_SEQUENCE_TRIES; tries++, cpu_relax()) {
		if (!nagaya_sequence_begin(page, &sequence))
			continue;
		member->state = READ_ONCE(entry->state);
		member->vm_id = READ_ONCE(entry->vm_id);
		member->vcpus = READ_ONCE(entry->vcpus);
		member->mapped = READ_ONCE(entry->mapped);
		member->exit_code = READ_ONCE(entry->exit_code);
		member->incarnation = READ_ONCE(entry->incarnation);
		nagaya_copy_name(member->name, entry->name);
		if (nagaya_sequence_holds(page, sequence))
			return 0;
	}
	return -EIO;
}

const char *nagaya_state_name(u32 state)
{
	switch (state) {
	case NAGAYA_MEMBER_ABSENT:
		return "absent";
	case NAGAYA_MEMBER_CREATED:
		return "created";
	case NAGAYA_MEMBER_RUNNING:
		return "running";
	case NAGAYA_MEMBER_EXITED:
		return "exited";
	case NAGAYA_MEMBER_DIED:
		return "died";
	default:
		return "unknown";
	}
}

/* Pages of the region, which never change; 0 in no group. */
u64 nagaya_group_region_pages(void)
{
	const struct nagaya_abi_group_page *page = nagaya_page();

	return page ? READ_ONCE(page->region_pages) : 0;
}

u64 nagaya_group_region_address(void)
{
	const struct nagaya_abi_group_page *page = nagaya_page();

	return page ? READ_ONCE(page->region_va) : 0;
}

static int nagaya_map_read_only(struct vm_area_struct *vma, phys_addr_t address)
{
	if (vma->vm_end - vma->vm_start != PAGE_SIZE)
		return -EINVAL;
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EACCES;
	nagaya_vm_flags_mod(vma, VM_DONTEXPAND, VM_MAYWRITE | VM_MAYEXEC);
	return remap_pfn_range(vma, vma->vm_start, PHYS_PFN(address), PAGE_SIZE,
			       vma->vm_page_prot);
}

int nagaya_group_mmap(struct vm_area_struct *vma)
{
	if (!nagaya_page())
		return -EPERM;
	return nagaya_map_read_only(vma, group_page_address);
}

int nagaya_info_mmap(struct vm_area_struct *vma, unsigned long vcpu)
{
	if (vcpu >= num_present_cpus())
		return -EINVAL;
	return nagaya_map_read_only(vma, NAGAYA_INFO_PAGE_GPA + vcpu * PAGE_SIZE);
}

/* VM exits of all vCPUs together, by kind. */
int nagaya_info_exits(u64 exits[NAGAYA_EXIT_KINDS])
{
	unsigned int vcpus = min_t(unsigned int, num_present_cpus(),
				   NAGAYA_MAX_VCPUS);
	const struct nagaya_abi_info_page *page;
	unsigned int vcpu, kind;

	memset(exits, 0, NAGAYA_EXIT_KINDS * sizeof(exits[0]));
	for (vcpu = 0; vcpu < vcpus; vcpu++) {
		page = memremap(NAGAYA_INFO_PAGE_GPA + vcpu * PAGE_SIZE,
				PAGE_SIZE, MEMREMAP_WB);
		if (!page)
			return -ENOMEM;
		for (kind = 0; kind < NAGAYA_EXIT_KINDS; kind++)
			if (READ_ONCE(page->magic) == NAGAYA_INFO_MAGIC)
				exits[kind] += READ_ONCE(page->exits[kind]);
		memunmap((void *)page);
	}
	return 0;
}
