/* SPDX-License-Identifier: GPL-2.0 OR MIT */
/*
 * Hypercalls: VMCALL, number in RAX, arguments in RDI and RSI (none of ours has
 * more), result in RAX; all other registers are kept.
 */
#ifndef _NAGAYA_HYPERCALL_H
#define _NAGAYA_HYPERCALL_H

#include <linux/compiler.h>
#include <linux/err.h>
#include <linux/errno.h>
#include <linux/types.h>

#include <nagaya_abi.h>

#ifdef NAGAYA_FAKE

/* nagaya_fake.c: the driver's tests in an emulator without Nagaya. */
long nagaya_call_raw(unsigned long number, unsigned long first,
		     unsigned long second);
bool nagaya_find(u32 *abi_version, u32 *features, u32 *vm_id);

#else

#include <linux/string.h>
#include <asm/processor.h>

#include "nagaya_compat.h"

static inline long nagaya_call_raw(unsigned long number, unsigned long first,
				   unsigned long second)
{
	long result;

	asm volatile("vmcall"
		     : "=a" (result)
		     : "a" (number), "D" (first), "S" (second)
		     : "memory");
	return result;
}

/*
 * Looks for the hypervisor's CPUID leaves, which may stand behind those of others:
 * each kind begins at a multiple of 0x100.
 */
static inline bool nagaya_find(u32 *abi_version, u32 *features, u32 *vm_id)
{
	u32 base, most, vcpu, text[3];

	if (!boot_cpu_has(X86_FEATURE_HYPERVISOR))
		return false;
	for (base = 0x40000000; base < 0x40010000; base += 0x100) {
		cpuid(base, &most, &text[0], &text[1], &text[2]);
		if (memcmp(text, NAGAYA_CPUID_SIGNATURE, sizeof(text)) ||
		    most < base + NAGAYA_CPUID_VERSION)
			continue;
		cpuid(base + NAGAYA_CPUID_VERSION, abi_version, features, vm_id,
		      &vcpu);
		return true;
	}
	return false;
}

#endif /* NAGAYA_FAKE */

/*
 * For calls that answer 0 or an error. The contract's errors are errno's; what is
 * none, of a newer hypervisor, must not be taken for a pointer or a length.
 */
static inline int nagaya_call(unsigned long number, unsigned long first,
			      unsigned long second)
{
	long result = nagaya_call_raw(number, first, second);

	if (result >= 0)
		return 0;
	return result >= -MAX_ERRNO ? (int)result : -EIO;
}

/* Takes the pending events; 0 if there are none. */
static inline u64 nagaya_call_take_events(void)
{
	long result = nagaya_call_raw(NAGAYA_CALL_WAIT, 0, 0);

	return result > 0 ? result : 0;
}

#endif /* _NAGAYA_HYPERCALL_H */
