/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/* Where kernels from 5.10 on differ; nothing else asks for a kernel's version. */
#ifndef _NAGAYA_COMPAT_H
#define _NAGAYA_COMPAT_H

#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/version.h>
#include <asm/processor.h>

/* cpuid() has moved. */
#if __has_include(<asm/cpuid/api.h>)
#include <asm/cpuid/api.h>
#endif

/* Only while a mapping is being made, with mmap_lock held for writing. */
static inline void nagaya_vm_flags_mod(struct vm_area_struct *vma,
				       unsigned long set, unsigned long clear)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 3, 0)
	vm_flags_mod(vma, set, clear);
#else
	vma->vm_flags |= set;
	vma->vm_flags &= ~clear;
#endif
}

/* Anywhere, as for a file without an operation of its own. */
static inline unsigned long
nagaya_any_unmapped_area(struct file *file, unsigned long address,
			 unsigned long bytes, unsigned long offset,
			 unsigned long flags)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	return mm_get_unmapped_area(file, address, bytes, offset, flags);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 10, 0)
	return mm_get_unmapped_area(current->mm, file, address, bytes, offset,
				    flags);
#else
	return current->mm->get_unmapped_area(file, address, bytes, offset,
					      flags);
#endif
}

/* The operation had flags for a short while. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(5, 11, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(5, 14, 0)
#define NAGAYA_MREMAP_ARGUMENTS	struct vm_area_struct *vma, unsigned long flags
#else
#define NAGAYA_MREMAP_ARGUMENTS	struct vm_area_struct *vma
#endif

#endif /* _NAGAYA_COMPAT_H */
