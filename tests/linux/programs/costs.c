// SPDX-License-Identifier: MIT
/*
 * What it cost to come here, and what doing nothing costs: TSC ticks and VM exits.
 *
 *   costs                as the first process (rdinit=/bin/costs): prints both, goes on with /init
 *   costs sleep SECONDS  sleeps, and prints both for that time
 *
 * Exits are read from Nagaya's info pages by way of /dev/mem, so that no driver is
 * needed and looking causes no exit. On any other machine they are left out.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>
#include <x86intrin.h>

#include "nagaya_abi.h"

#define PAGE	4096
/* A name of our own: as the first process there is no /dev/mem yet. */
#define MEMORY	"/costs-memory"

static const char *const kinds[NAGAYA_EXIT_KINDS] = {
	[NAGAYA_EXIT_HYPERCALL] = "hypercall",
	[NAGAYA_EXIT_CPUID] = "cpuid",
	[NAGAYA_EXIT_MSR_READ] = "msr-read",
	[NAGAYA_EXIT_MSR_WRITE] = "msr-write",
	[NAGAYA_EXIT_PORT] = "port",
	[NAGAYA_EXIT_HALT] = "halt",
	[NAGAYA_EXIT_EXTERNAL_INTERRUPT] = "external-interrupt",
	[NAGAYA_EXIT_NMI] = "nmi",
	[NAGAYA_EXIT_PREEMPTION_TIMER] = "preemption-timer",
	[NAGAYA_EXIT_MEMORY_VIOLATION] = "memory-violation",
	[NAGAYA_EXIT_INTERRUPT_WINDOW] = "interrupt-window",
	[NAGAYA_EXIT_CONTROL_REGISTER] = "control-register",
	[NAGAYA_EXIT_EXCEPTION] = "exception",
	[NAGAYA_EXIT_INSTRUCTION] = "instruction",
	[NAGAYA_EXIT_OTHER] = "other",
};

struct moment {
	uint64_t ticks;
	uint64_t exits[NAGAYA_EXIT_KINDS];
};

static int is_on_nagaya(void)
{
	uint32_t base, eax, name[3];

	for (base = 0x40000000; base < 0x40010000; base += 0x100) {
		__cpuid(base, eax, name[0], name[1], name[2]);
		if (!memcmp(name, "NagayaNagaya", sizeof(name)))
			return 1;
	}
	return 0;
}

/* A VM that reads where it has no vCPU and thus no info page is ended: only as many as there are. */
static int vcpus(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
}

/* The info pages of all vCPUs; NULL if they cannot be had. */
static const volatile struct nagaya_abi_info_page *info_pages(void)
{
	void *pages;
	int memory;

	if (!is_on_nagaya())
		return NULL;
	mknod(MEMORY, S_IFCHR | 0400, makedev(1, 1));
	memory = open(MEMORY, O_RDONLY | O_CLOEXEC);
	pages = mmap(NULL, (size_t)vcpus() * PAGE, PROT_READ, MAP_SHARED, memory, NAGAYA_INFO_PAGE_GPA);
	if (memory >= 0)
		close(memory);
	unlink(MEMORY);
	return pages == MAP_FAILED ? NULL : pages;
}

static void look(struct moment *now, const volatile struct nagaya_abi_info_page *page)
{
	memset(now->exits, 0, sizeof(now->exits));
	now->ticks = __rdtsc();
	for (int vcpu = 0; page && vcpu < vcpus(); vcpu++) {
		for (int kind = 0; kind < NAGAYA_EXIT_KINDS; kind++)
			now->exits[kind] += page->exits[kind];
		page = (const volatile void *)((const volatile char *)page + PAGE);
	}
}

static void print(const char *what, const struct moment *from, const struct moment *to)
{
	printf("NAGAYA-COSTS %s ticks=%llu", what,
	       (unsigned long long)(to->ticks - from->ticks));
	for (int kind = 0; kind < NAGAYA_EXIT_KINDS; kind++)
		if (to->exits[kind] != from->exits[kind])
			printf(" %s=%llu", kinds[kind],
			       (unsigned long long)(to->exits[kind] - from->exits[kind]));
	printf("\n");
	fflush(stdout);
}

int main(int count, char **words)
{
	uint64_t entered = __rdtsc();
	const volatile struct nagaya_abi_info_page *pages = info_pages();
	struct moment from = { 0 }, to;

	if (count == 3 && !strcmp(words[1], "sleep")) {
		look(&from, pages);
		sleep((unsigned int)strtoul(words[2], NULL, 10));
		look(&to, pages);
		print("sleep", &from, &to);
		return 0;
	}
	look(&to, pages);
	to.ticks = entered;
	print("first-process", &from, &to);
	execv("/init", words);
	return 1;
}
