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
