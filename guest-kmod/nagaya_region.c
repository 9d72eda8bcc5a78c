// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The group's region in this VM and in its processes.
 *
 * Hypercall 39 wants an address behind which pages of the VM's own RAM are mapped;
 * it then lets the region appear in their place, for the whole VM, and leaves page
 * tables alone. So the driver allocates pages, maps them into the first process
 * that asks, at the group's address, and makes the call there and then, in that
 * process's address space. Every further process gets the same pages at the same
 * address, which takes no call. When the last mapping has gone the region is given
 * back, and the pages, which are then the VM's own again, are freed.
 *
 * The pages are ordinary: they have struct pages, are mapped write-back, and
 * get_user_pages() takes them. They are on no LRU list and in no movable block, so
 * that nobody swaps or migrates them while the region stands behind them. Whoever
 * has pinned one beyond the last unmapping reaches the VM's own RAM then, not the
 * region. Where two MiB of them can be had in one piece the hypervisor maps them by
 * one entry of its own tables.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/gfp.h>
#include <linux/mman.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/reboot.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "nagaya_compat.h"
#include "nagaya_drv.h"
#include "nagaya_hypercall.h"
#include "nagaya_region.h"

#define NAGAYA_PIECE_ORDER	9
#define NAGAYA_PIECE_PAGES	BIT(NAGAYA_PIECE_ORDER)
/* 4 GiB: more than a VM can have. */
#define NAGAYA_MOST_PAGES	BIT(20)

/* Guards nagaya_share, and that map and unmap calls do not cross. */
DEFINE_MUTEX(nagaya_region_lock);
struct nagaya_share nagaya_share;

/* Fills pages[0..512] with neighbours if there are any; says whether it did. */
static bool nagaya_alloc_piece(struct page **pages)
{
	struct page *first;
	unsigned long i;

	first = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN | __GFP_NORETRY,
			    NAGAYA_PIECE_ORDER);
	if (!first)
		return false;
	/* Each is then a page of its own, which processes can map. */
	split_page(first, NAGAYA_PIECE_ORDER);
	for (i = 0; i < NAGAYA_PIECE_PAGES; i++)
		pages[i] = first + i;
	return true;
}

static void nagaya_free_pages(struct page **pages, unsigned long count)
{
	while (count--)
		__free_page(pages[count]);
	kvfree(pages);
}

/* Allocates the pages unless they are there. */
int nagaya_region_alloc(void)
{
	u64 count = nagaya_group_region_pages();
	struct page **pages;
	unsigned long done = 0;

	lockdep_assert_held(&nagaya_region_lock);
	if (nagaya_share.pages)
		return 0;
	if (!count)
		return -EPERM;
	if (count > NAGAYA_MOST_PAGES)
		return -ENOMEM;
	pages = kvcalloc(count, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	while (done < count) {
		/* Pieces only where the region has them, too: at multiples of their size. */
		if (!(done % NAGAYA_PIECE_PAGES) &&
		    count - done >= NAGAYA_PIECE_PAGES &&
		    nagaya_alloc_piece(pages + done)) {
			done += NAGAYA_PIECE_PAGES;
			continue;
		}
		pages[done] = alloc_page(GFP_KERNEL | __GFP_ZERO);
		if (!pages[done]) {
			nagaya_free_pages(pages, done);
			return -ENOMEM;
		}
		done++;
	}
	nagaya_share.pages = pages;
	nagaya_share.count = count;
	return 0;
}

/* Frees the pages, unless the region stands behind them still. */
void nagaya_region_free(void)
{
	lockdep_assert_held(&nagaya_region_lock);
	if (!nagaya_share.pages || nagaya_share.address)
		return;
	nagaya_free_pages(nagaya_share.pages, nagaya_share.count);
	nagaya_share.pages = NULL;
	nagaya_share.count = 0;
}

/* Hypercall 39: the pages are mapped and writable at the address, in this address space. */
int nagaya_region_call_map(unsigned long address)
{
	int error;

	lockdep_assert_held(&nagaya_region_lock);
	if (nagaya_share.down)
		return -ESHUTDOWN;
	if (nagaya_share.address)
		return nagaya_share.address == address ? 0 : -EADDRINUSE;
	error = nagaya_call(NAGAYA_CALL_MAP_SHARED, address, 0);
	if (error)
		return error;
	nagaya_share.address = address;
	nagaya_count(NAGAYA_COUNT_MAPS);
	return 0;
}

/*
 * Gives the region back. Should the hypervisor refuse, which the contract does not
 * know, the pages must never be freed: whoever got them next would write to the
 * region. They stay, for the next who maps.
 */
int nagaya_region_call_unmap(void)
{
	int error;

	lockdep_assert_held(&nagaya_region_lock);
	if (!nagaya_share.address)
		return 0;
	error = nagaya_call(NAGAYA_CALL_UNMAP_SHARED, nagaya_share.address, 0);
	if (error) {
		pr_err("the hypervisor keeps the region at %#lx: error %d\n",
		       nagaya_share.address, error);
		return error;
	}
	nagaya_share.address = 0;
	nagaya_count(NAGAYA_COUNT_UNMAPS);
	return 0;
}

/*
 * Before the driver does anything else: what an earlier kernel has left in the
 * hypervisor is no concern of this one's. A hypervisor that does not know the call
 * can still be asked for the region.
 */
void nagaya_region_forget_earlier(void)
{
	u64 address = nagaya_group_region_address();
	int error;

	error = nagaya_call(NAGAYA_CALL_FORGET,
			    NAGAYA_FORGET_REGION | NAGAYA_FORGET_DOORBELLS, 0);
	if (error == -ENOSYS && address &&
	    !nagaya_call(NAGAYA_CALL_UNMAP_SHARED, address, 0))
		pr_info("an earlier kernel had the region at %#llx\n", address);
	else if (error && error != -ENOSYS)
		pr_err("the hypervisor keeps what an earlier kernel left: error %d\n",
		       error);
}

/*
 * The system goes down, or on to another kernel. Processes that have the region mapped
 * keep its pages, which are the VM's own from here on, and cannot get it back.
 */
static int nagaya_region_down(struct notifier_block *notifier, unsigned long action,
			      void *data)
{
	mutex_lock(&nagaya_region_lock);
	nagaya_share.down = true;
	nagaya_region_call_unmap();
	mutex_unlock(&nagaya_region_lock);
	return NOTIFY_DONE;
}

static struct notifier_block nagaya_region_notifier = {
	.notifier_call = nagaya_region_down,
};

int nagaya_region_init(void)
{
	return register_reboot_notifier(&nagaya_region_notifier);
}

void nagaya_region_exit(void)
{
	unregister_reboot_notifier(&nagaya_region_notifier);
}

u64 nagaya_region_mapped_address(void)
{
	return READ_ONCE(nagaya_share.address);
}

unsigned int nagaya_region_users(void)
{
	return READ_ONCE(nagaya_share.users);
}

static void nagaya_vma_open(struct vm_area_struct *vma)
{
	mutex_lock(&nagaya_region_lock);
	nagaya_share.users++;
	mutex_unlock(&nagaya_region_lock);
}

/* Its pages are out of the process's page tables and TLBs here. */
static void nagaya_vma_close(struct vm_area_struct *vma)
{
	mutex_lock(&nagaya_region_lock);
	if (!--nagaya_share.users) {
		nagaya_region_call_unmap();
		nagaya_region_free();
	}
	mutex_unlock(&nagaya_region_lock);
}

/* All pages are mapped from the start; one is missed only after MADV_DONTNEED. */
static vm_fault_t nagaya_vma_fault(struct vm_fault *vmf)
{
	vm_fault_t result = VM_FAULT_SIGBUS;

	/*
	 * Without the lock: this mapping is a user, so that the pages stay; and the
	 * lock may be waited for by one who waits for pages.
	 */
	if (vmf->pgoff < nagaya_share.count) {
		vmf->page = nagaya_share.pages[vmf->pgoff];
		get_page(vmf->page);
		result = 0;
	}
	return result;
}

/* At another address the region's pointers would lead astray. */
static int nagaya_vma_mremap(NAGAYA_MREMAP_ARGUMENTS)
{
	return -EINVAL;
}

static const struct vm_operations_struct nagaya_vma_operations = {
	.open = nagaya_vma_open,
	.close = nagaya_vma_close,
	.fault = nagaya_vma_fault,
	.mremap = nagaya_vma_mremap,
};

/* Maps the pages into a process, and the region behind them if it is the first. */
static int nagaya_region_fill(struct vm_area_struct *vma)
{
	unsigned long left;
	int error;

	if (nagaya_share.address && nagaya_share.address != vma->vm_start)
		return -EADDRINUSE;
	/* The hypervisor maps only behind addresses that can be written to. */
	if (!nagaya_share.address && !(vma->vm_flags & VM_WRITE))
		return -EACCES;
	error = nagaya_region_alloc();
	if (error)
		return error;
	if (vma_pages(vma) != nagaya_share.count)
		return -EINVAL;
	left = nagaya_share.count;
	error = vm_insert_pages(vma, vma->vm_start, nagaya_share.pages, &left);
	if (error)
		return error;
	return nagaya_region_call_map(vma->vm_start);
}

int nagaya_region_mmap(struct file *file, struct vm_area_struct *vma)
{
	int error;

	/*
	 * A private copy of it would be shared with nobody. (VM_SHARED is not there if
	 * the file is open for reading only.)
	 */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	nagaya_vm_flags_mod(vma, VM_DONTEXPAND, 0);
	mutex_lock(&nagaya_region_lock);
	error = nagaya_region_fill(vma);
	if (!error) {
		nagaya_share.users++;
		vma->vm_ops = &nagaya_vma_operations;
	} else if (!nagaya_share.users) {
		/*
		 * What was inserted is taken out of the page tables by the caller,
		 * which holds the pages until then.
		 */
		nagaya_region_free();
	}
	mutex_unlock(&nagaya_region_lock);
	return error;
}

/*
 * Where a process shall have the region: where this VM or the group has it, else
 * where the caller says. Never on top of something else, unless MAP_FIXED says so.
 */
unsigned long nagaya_region_get_unmapped_area(struct file *file,
					      unsigned long address,
					      unsigned long bytes,
					      unsigned long offset,
					      unsigned long flags)
{
	if (flags & MAP_FIXED)
		return address;
	/* The other pages of the device can be anywhere. */
	if (offset)
		return nagaya_any_unmapped_area(file, address, bytes, offset, flags);
	if (nagaya_region_mapped_address())
		address = nagaya_region_mapped_address();
	else if (nagaya_group_region_address())
		address = nagaya_group_region_address();
	if (!address || offset_in_page(address) || address >= TASK_SIZE ||
	    bytes > TASK_SIZE - address)
		return -EINVAL;
	if (find_vma_intersection(current->mm, address, address + bytes))
		return -EEXIST;
	return address;
}
