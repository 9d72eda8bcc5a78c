/* A guest in C: what docs/ABI.md promises at its entry, looked at with nothing but the C header. */
#include <nagaya_abi.h>

typedef unsigned long u64;
typedef double v2 __attribute__((vector_size(16)));

static long hypercall(u64 number, u64 a, u64 b, u64 c)
{
	register u64 third __asm__("rdx") = c;
	long result;

	__asm__ volatile("vmcall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "r"(third)
			 : "memory");
	return result;
}

static u64 length(const char *text)
{
	u64 bytes = 0;

	while (text[bytes])
		bytes++;
	return bytes;
}

static void say(const char *text)
{
	hypercall(NAGAYA_CALL_CONSOLE, (u64)text, length(text), NAGAYA_CONSOLE_TEXT);
}

static int failed;

static void check(int good, const char *pass, const char *fail)
{
	say(good ? pass : fail);
	failed |= !good;
}

#define CHECK(good, name) check((good), "PASS " name "\n", "FAIL " name "\n")

static u64 cr0(void)
{
	u64 value;

	__asm__("mov %%cr0, %0" : "=r"(value));
	return value;
}

static u64 cr4(void)
{
	u64 value;

	__asm__("mov %%cr4, %0" : "=r"(value));
	return value;
}

static u64 efer(void)
{
	unsigned int low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(0xC0000080));
	return (u64)high << 32 | low;
}

/* Aligned moves to the stack fault if that is not as a function finds it. */
static __attribute__((noinline)) double sum(double a, double b)
{
	volatile v2 pair = { a, b };

	return pair[0] + pair[1];
}

void _start(const struct nagaya_abi_boot_info *boot)
{
	static const char event[] = "{\"foreign\":\"c\"}";

	CHECK(boot->magic == NAGAYA_BOOT_MAGIC &&
	      boot->abi_version >> 16 == NAGAYA_ABI_MAJOR, "boot-info");
	CHECK((u64)boot == NAGAYA_BOOT_INFO_GPA && boot->vcpus == 1 &&
	      boot->member_index == 0xFFFFFFFF && boot->name[0] == 'c', "boot-fields");
	CHECK(boot->image_start_gpa <= (u64)&_start &&
	      (u64)&_start < boot->image_end_gpa &&
	      boot->image_end_gpa < boot->memory_bytes, "boot-image");
	CHECK(((u64)__builtin_frame_address(0) & 15) == 0, "stack-alignment");
	CHECK(sum(1.5, 2.25) == 3.75, "vector-registers");
	CHECK(cr0() == NAGAYA_BOOT_CR0 && cr4() == NAGAYA_BOOT_CR4 &&
	      efer() == NAGAYA_BOOT_EFER, "control-registers");
	CHECK(hypercall(NAGAYA_CALL_CONSOLE, (u64)event, sizeof(event) - 1,
			NAGAYA_CONSOLE_EVENT) == sizeof(event) - 1, "event");
	CHECK(hypercall(NAGAYA_CALL_CONSOLE, (u64)event, 1, 2) == -NAGAYA_ERROR_EINVAL,
	      "no-such-channel");
	hypercall(NAGAYA_CALL_EXIT, failed, 0, 0);
	__builtin_unreachable();
}
