/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR MIT) */
/*
 * The contract between Nagaya and its guests. Made from the Rust crate
 * guest-abi by `cargo xtask tidy --write`; do not change it here.
 */
#ifndef _UAPI_NAGAYA_ABI_H
#define _UAPI_NAGAYA_ABI_H

#include <linux/types.h>

/* Version and sizes */
#define NAGAYA_ABI_MAJOR			1
#define NAGAYA_ABI_MINOR			3
#define NAGAYA_PAGE_BYTES			4096
#define NAGAYA_DEFAULT_REGION_PAGES		1025
#define NAGAYA_MAX_MEMBERS			32
#define NAGAYA_LIFE_SHIFT			8
#define NAGAYA_MAX_VCPUS			8
#define NAGAYA_NAME_BYTES			32

/* CPUID: leaves, relative to the one with the signature; features */
#define NAGAYA_CPUID_SIGNATURE			"NagayaNagaya"
#define NAGAYA_CPUID_VERSION			1
#define NAGAYA_CPUID_TIME			2
#define NAGAYA_FEATURE_GROUP			0x1
#define NAGAYA_FEATURE_DOORBELL_VECTOR		0x2
#define NAGAYA_FEATURE_DETERMINISTIC		0x4
#define NAGAYA_FEATURE_EOI_WORD			0x8

/* Hypercalls */
#define NAGAYA_CALL_MAP_SHARED			0x27
#define NAGAYA_CALL_VERSION			0x100
#define NAGAYA_CALL_GROUP_INFO			0x101
#define NAGAYA_CALL_UNMAP_SHARED		0x102
#define NAGAYA_CALL_DOORBELL			0x103
#define NAGAYA_CALL_WAIT			0x104
#define NAGAYA_CALL_YIELD_TO			0x105
#define NAGAYA_CALL_EXIT			0x106
#define NAGAYA_CALL_CONSOLE			0x107
#define NAGAYA_CALL_START_VCPU			0x108
#define NAGAYA_CALL_DOORBELL_MASK		0x109
#define NAGAYA_CALL_DOORBELL_VECTOR		0x10a
#define NAGAYA_CALL_SET_DEADLINE		0x10b
#define NAGAYA_CALL_FORGET			0x10c
#define NAGAYA_CALL_DOORBELL_MASK_MANY		0x10d
#define NAGAYA_CALL_HALT_EVENTS			0x10e
#define NAGAYA_CALL_FORK			0x110
#define NAGAYA_CALL_WAIT_CHILD			0x111
#define NAGAYA_CALL_KILL			0x112
#define NAGAYA_CALL_VM_SELF			0x113
#define NAGAYA_CALL_PARENT			0x114
#define NAGAYA_CALL_CHILDREN			0x115

/* What NAGAYA_CALL_FORGET takes back */
#define NAGAYA_FORGET_REGION			0x1
#define NAGAYA_FORGET_DOORBELLS			0x2
#define NAGAYA_FORGET_VCPU			0x4

/* Channels of NAGAYA_CALL_CONSOLE */
#define NAGAYA_CONSOLE_TEXT			0
#define NAGAYA_CONSOLE_EVENT			1

/* A native guest's entry: RDI, RSP, control registers, where images begin, the magic of what RDI points to */
#define NAGAYA_BOOT_INFO_GPA			0x9000
#define NAGAYA_BOOT_STACK_POINTER		0x7fff8
#define NAGAYA_BOOT_CR0				0x80010033
#define NAGAYA_BOOT_CR4				0x620
#define NAGAYA_BOOT_EFER			0xd01
#define NAGAYA_IMAGE_BASE_GPA			0x200000
#define NAGAYA_BOOT_MAGIC			0x4d5641594147414e

/* Errors of hypercalls, negative in RAX; they are errno(3)'s */
#define NAGAYA_ERROR_EPERM			1
#define NAGAYA_ERROR_ESRCH			3
#define NAGAYA_ERROR_EBUSY			16
#define NAGAYA_ERROR_EAGAIN			11
#define NAGAYA_ERROR_ENOMEM			12
#define NAGAYA_ERROR_EFAULT			14
#define NAGAYA_ERROR_EINVAL			22
#define NAGAYA_ERROR_ENOSYS			38
#define NAGAYA_ERROR_EADDRINUSE			98
#define NAGAYA_ERROR_ETIMEDOUT			110

/* Events: bit n says that member n rang */
#define NAGAYA_EVENT_GROUP_CHANGED		(1ULL << 62)

/* Guest-physical addresses of pages, and what they begin with */
#define NAGAYA_GROUP_PAGE_GPA			0xfe000000
#define NAGAYA_INFO_PAGE_GPA			0xfe010000
#define NAGAYA_GROUP_MAGIC			0x504741594147414e
#define NAGAYA_INFO_MAGIC			0x504941594147414e

/* States of a member */
#define NAGAYA_MEMBER_ABSENT			0
#define NAGAYA_MEMBER_CREATED			1
#define NAGAYA_MEMBER_RUNNING			2
#define NAGAYA_MEMBER_EXITED			3
#define NAGAYA_MEMBER_DIED			4

/* Kinds of VM exits: indices into the info page */
#define NAGAYA_EXIT_HYPERCALL			0
#define NAGAYA_EXIT_CPUID			1
#define NAGAYA_EXIT_MSR_READ			2
#define NAGAYA_EXIT_MSR_WRITE			3
#define NAGAYA_EXIT_PORT			4
#define NAGAYA_EXIT_HALT			5
#define NAGAYA_EXIT_EXTERNAL_INTERRUPT		6
#define NAGAYA_EXIT_NMI				7
#define NAGAYA_EXIT_PREEMPTION_TIMER		8
#define NAGAYA_EXIT_MEMORY_VIOLATION		9
#define NAGAYA_EXIT_INTERRUPT_WINDOW		10
#define NAGAYA_EXIT_CONTROL_REGISTER		11
#define NAGAYA_EXIT_EXCEPTION			12
#define NAGAYA_EXIT_INSTRUCTION			13
#define NAGAYA_EXIT_OTHER			14
#define NAGAYA_EXIT_KINDS			15

/* One member in the group page. 64 bytes. */
struct nagaya_abi_member {
	__u32 state;
	__u32 vm_id;
	__u32 mapped;
	__u32 vcpus;
	__s64 exit_code;
	__u64 incarnation;
	__u8 name[NAGAYA_NAME_BYTES];
};

/* The group page, read-only; sequence is odd while it is being changed. 2176 bytes. */
struct nagaya_abi_group_page {
	__u64 magic;
	__u32 abi_version;
	__u32 group_id;
	__u64 sequence;
	__u64 generation;
	__u64 region_pages;
	__u64 region_va;
	__u32 member_count;
	__u32 address_any;
	__u8 name[NAGAYA_NAME_BYTES];
	__u64 reserved[5];
	struct nagaya_abi_member members[NAGAYA_MAX_MEMBERS];
};

/* What RDI points to at a native guest's entry. 128 bytes. */
struct nagaya_abi_boot_info {
	__u64 magic;
	__u32 abi_version;
	__u32 vm_id;
	__u64 memory_bytes;
	__u64 image_start_gpa;
	__u64 image_end_gpa;
	__u64 tsc_khz;
	__u64 group_page_gpa;
	__u64 info_page_gpa;
	__u64 cmdline_gpa;
	__u64 cmdline_bytes;
	__u32 vcpus;
	__u32 member_index;
	__u64 bare_hypercall;
	__u8 name[NAGAYA_NAME_BYTES];
};

/* What the hypercall group_info copies out. 48 bytes. */
struct nagaya_abi_group_info {
	__u32 abi_version;
	__u32 group_id;
	__u32 member_index;
	__u32 member_count;
	__u64 region_pages;
	__u64 region_va;
	__u64 group_page_gpa;
	__u64 generation;
};

/* The info page of one vCPU, read-only. 160 bytes. */
struct nagaya_abi_info_page {
	__u64 magic;
	__u32 abi_version;
	__u32 vcpu;
	__u64 exits[NAGAYA_EXIT_KINDS];
	__u64 doorbells_received;
	__u64 stolen_ticks;
	__u64 halt_events;
};

#if !defined(__cplusplus) && defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
_Static_assert(sizeof(struct nagaya_abi_member) == 64,
	       "size of nagaya_abi_member");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, state) == 0,
	       "offset of state");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, vm_id) == 4,
	       "offset of vm_id");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, mapped) == 8,
	       "offset of mapped");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, vcpus) == 12,
	       "offset of vcpus");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, exit_code) == 16,
	       "offset of exit_code");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, incarnation) == 24,
	       "offset of incarnation");
_Static_assert(__builtin_offsetof(struct nagaya_abi_member, name) == 32,
	       "offset of name");
_Static_assert(sizeof(struct nagaya_abi_group_page) == 2176,
	       "size of nagaya_abi_group_page");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, magic) == 0,
	       "offset of magic");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, abi_version) == 8,
	       "offset of abi_version");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, group_id) == 12,
	       "offset of group_id");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, sequence) == 16,
	       "offset of sequence");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, generation) == 24,
	       "offset of generation");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, region_pages) == 32,
	       "offset of region_pages");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, region_va) == 40,
	       "offset of region_va");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, member_count) == 48,
	       "offset of member_count");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, address_any) == 52,
	       "offset of address_any");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, name) == 56,
	       "offset of name");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, reserved) == 88,
	       "offset of reserved");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_page, members) == 128,
	       "offset of members");
_Static_assert(sizeof(struct nagaya_abi_boot_info) == 128,
	       "size of nagaya_abi_boot_info");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, magic) == 0,
	       "offset of magic");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, abi_version) == 8,
	       "offset of abi_version");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, vm_id) == 12,
	       "offset of vm_id");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, memory_bytes) == 16,
	       "offset of memory_bytes");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, image_start_gpa) == 24,
	       "offset of image_start_gpa");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, image_end_gpa) == 32,
	       "offset of image_end_gpa");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, tsc_khz) == 40,
	       "offset of tsc_khz");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, group_page_gpa) == 48,
	       "offset of group_page_gpa");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, info_page_gpa) == 56,
	       "offset of info_page_gpa");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, cmdline_gpa) == 64,
	       "offset of cmdline_gpa");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, cmdline_bytes) == 72,
	       "offset of cmdline_bytes");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, vcpus) == 80,
	       "offset of vcpus");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, member_index) == 84,
	       "offset of member_index");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, bare_hypercall) == 88,
	       "offset of bare_hypercall");
_Static_assert(__builtin_offsetof(struct nagaya_abi_boot_info, name) == 96,
	       "offset of name");
_Static_assert(sizeof(struct nagaya_abi_group_info) == 48,
	       "size of nagaya_abi_group_info");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, abi_version) == 0,
	       "offset of abi_version");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, group_id) == 4,
	       "offset of group_id");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, member_index) == 8,
	       "offset of member_index");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, member_count) == 12,
	       "offset of member_count");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, region_pages) == 16,
	       "offset of region_pages");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, region_va) == 24,
	       "offset of region_va");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, group_page_gpa) == 32,
	       "offset of group_page_gpa");
_Static_assert(__builtin_offsetof(struct nagaya_abi_group_info, generation) == 40,
	       "offset of generation");
_Static_assert(sizeof(struct nagaya_abi_info_page) == 160,
	       "size of nagaya_abi_info_page");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, magic) == 0,
	       "offset of magic");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, abi_version) == 8,
	       "offset of abi_version");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, vcpu) == 12,
	       "offset of vcpu");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, exits) == 16,
	       "offset of exits");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, doorbells_received) == 136,
	       "offset of doorbells_received");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, stolen_ticks) == 144,
	       "offset of stolen_ticks");
_Static_assert(__builtin_offsetof(struct nagaya_abi_info_page, halt_events) == 152,
	       "offset of halt_events");
#endif

#endif /* _UAPI_NAGAYA_ABI_H */
