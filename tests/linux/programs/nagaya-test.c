// SPDX-License-Identifier: MIT
/*
 * Promises of /dev/nagaya, checked by a program in a guest. Each test prints one line
 * `NAGAYA-KMOD ok NAME`; the first that fails ends the program.
 *
 *   nagaya-test          all that hold in any group
 *   nagaya-test fake     and those that want the members of nagaya_fake.c
 *   nagaya-test hold     maps, says so, and sleeps
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libnagaya.h"

#define ADDRESS ((void *)0x4000000000)

#define CHECK(condition)                                                          \
	do {                                                                      \
		if (!(condition)) {                                               \
			printf("NAGAYA-KMOD FAILED line %d: %s (errno %d %s)\n",  \
			       __LINE__, #condition, errno, strerror(errno));     \
			exit(1);                                                  \
		}                                                                 \
	} while (0)
#define FAILS(call, error) CHECK((call) == -1 && errno == (error))
#define MAP_FAILS(call, error) CHECK((call) == MAP_FAILED && errno == (error))

static size_t bytes;

static int device(int flags)
{
	int fd = open(NAGAYA_DEVICE, flags | O_CLOEXEC);

	CHECK(fd >= 0);
	return fd;
}

static void *map_at(int fd, void *address, int protection)
{
	return mmap(address, bytes, protection, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
}

static void *map(int fd)
{
	void *region = map_at(fd, ADDRESS, PROT_READ | PROT_WRITE);

	CHECK(region == ADDRESS);
	return region;
}

static uint64_t mapped_address(int fd)
{
	struct nagaya_group group;

	CHECK(ioctl(fd, NAGAYA_IOC_GROUP, &group) == 0);
	return group.mapped_address;
}

/* Runs in a child; gives its wait status. */
static int in_child(void (*body)(void))
{
	int status;
	pid_t child;

	fflush(stdout);
	child = fork();
	CHECK(child >= 0);
	if (!child) {
		body();
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	return status;
}

static void the_group_is_told(void)
{
	struct nagaya_version version;
	struct nagaya_group group;
	struct nagaya_member member = { .index = 0 };
	int fd = device(O_RDONLY);

	CHECK(ioctl(fd, NAGAYA_IOC_VERSION, &version) == 0);
	CHECK(version.abi_version >> 16 == NAGAYA_ABI_MAJOR);
	CHECK(ioctl(fd, NAGAYA_IOC_GROUP, &group) == 0);
	CHECK(group.region_bytes && group.member_index < group.member_count);
	bytes = group.region_bytes;
	member.index = group.member_index;
	CHECK(ioctl(fd, NAGAYA_IOC_MEMBER, &member) == 0);
	CHECK(member.state == NAGAYA_MEMBER_RUNNING && member.name[0]);
	close(fd);
}

static void wrong_ioctls_are_refused(void)
{
	void *nowhere = (void *)-4096L;
	struct nagaya_member member = { .index = NAGAYA_MAX_MEMBERS };
	struct nagaya_map map = { .flags = 2 };
	uint32_t absent = NAGAYA_MAX_MEMBERS - 1, none = UINT32_MAX;
	int fd = device(O_RDWR), reader = device(O_RDONLY);
	static const unsigned long calls[] = { NAGAYA_IOC_VERSION, NAGAYA_IOC_GROUP,
					       NAGAYA_IOC_MEMBER,  NAGAYA_IOC_MAP,
					       NAGAYA_IOC_UNMAP,   NAGAYA_IOC_DOORBELL,
					       NAGAYA_IOC_WAIT };

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		FAILS(ioctl(fd, calls[i], nowhere), EFAULT);
		FAILS(ioctl(fd, calls[i], NULL), EFAULT);
		/* The same number with another size is another call. */
		FAILS(ioctl(fd, calls[i] ^ 1 << _IOC_SIZESHIFT, nowhere), ENOTTY);
	}
	FAILS(ioctl(fd, _IO('N', 0xaf), 0), ENOTTY);
	FAILS(ioctl(fd, 0, 0), ENOTTY);
	FAILS(ioctl(fd, NAGAYA_IOC_MEMBER, &member), EINVAL);
	FAILS(ioctl(fd, NAGAYA_IOC_MAP, &map), EINVAL);
	map = (struct nagaya_map){ .reserved = 1 };
	FAILS(ioctl(fd, NAGAYA_IOC_MAP, &map), EINVAL);
	map = (struct nagaya_map){ .address = 0x4000000001 };
	FAILS(ioctl(fd, NAGAYA_IOC_MAP, &map), EINVAL);
	map = (struct nagaya_map){ .address = UINT64_C(0xffff800000000000) };
	FAILS(ioctl(fd, NAGAYA_IOC_MAP, &map), ENOMEM);
	map = (struct nagaya_map){ .address = 0 };
	if (!mapped_address(fd))
		FAILS(ioctl(fd, NAGAYA_IOC_UNMAP, &map), EINVAL);
	map.address = (uintptr_t)&map & ~4095UL;
	FAILS(ioctl(fd, NAGAYA_IOC_UNMAP, &map), EINVAL);
	FAILS(ioctl(fd, NAGAYA_IOC_DOORBELL, &absent), ESRCH);
	FAILS(ioctl(fd, NAGAYA_IOC_DOORBELL, &none), ESRCH);
	FAILS(ioctl(reader, NAGAYA_IOC_DOORBELL, &absent), EBADF);
	map = (struct nagaya_map){ .address = (uintptr_t)ADDRESS };
	FAILS(ioctl(reader, NAGAYA_IOC_MAP, &map), EACCES);
	CHECK(read(fd, &absent, sizeof(absent)) == -1 && errno == EINVAL);
	FAILS(write(fd, "x", 1), EINVAL);
	close(fd);
	close(reader);
}

static void wrong_mappings_are_refused(void)
{
	int both = PROT_READ | PROT_WRITE, fd = device(O_RDWR), reader = device(O_RDONLY);
	off_t group = (off_t)NAGAYA_OFFSET_GROUP_PAGE;
	void *page;

	MAP_FAILS(mmap(ADDRESS, bytes, both, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0), EINVAL);
	MAP_FAILS(mmap(ADDRESS, bytes - 4096, both, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0), EINVAL);
	MAP_FAILS(mmap(ADDRESS, bytes + 4096, both, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0), EINVAL);
	MAP_FAILS(mmap(ADDRESS, bytes, both, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 4096), EINVAL);
	MAP_FAILS(map_at(reader, ADDRESS, both), EACCES);
	/* The first needs to be able to write. */
	MAP_FAILS(map_at(reader, ADDRESS, PROT_READ), EACCES);
	CHECK(mapped_address(fd) == 0);
	/* Pages of the hypervisor's: never writable, not even later. */
	MAP_FAILS(mmap(NULL, 4096, both, MAP_SHARED, fd, group), EACCES);
	MAP_FAILS(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, group), EINVAL);
	MAP_FAILS(mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, group), EINVAL);
	MAP_FAILS(mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, (off_t)NAGAYA_OFFSET_INFO_PAGE(8)), EINVAL);
	page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, group);
	CHECK(page != MAP_FAILED);
	FAILS(mprotect(page, 4096, both), EACCES);
	CHECK(((struct nagaya_abi_group_page *)page)->magic == NAGAYA_GROUP_MAGIC);
	munmap(page, 4096);
	close(fd);
	close(reader);
}

static void what_is_there_is_not_replaced(void)
{
	int fd = device(O_RDWR);
	void *other = mmap((char *)ADDRESS + bytes - 4096, 4096, PROT_READ,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	struct nagaya_map map = { .address = (uintptr_t)ADDRESS };

	CHECK(other != MAP_FAILED);
	MAP_FAILS(map_at(fd, ADDRESS, PROT_READ | PROT_WRITE), EEXIST);
	FAILS(ioctl(fd, NAGAYA_IOC_MAP, &map), EEXIST);
	munmap(other, 4096);
	CHECK(ioctl(fd, NAGAYA_IOC_MAP, &map) == 0);
	CHECK(map.address == (uintptr_t)ADDRESS && map.bytes == bytes);
	/* Now this VM has it there, and nowhere else, in any process and by any way. */
	MAP_FAILS(map_at(fd, (char *)ADDRESS + (1 << 30), PROT_READ | PROT_WRITE), EADDRINUSE);
	MAP_FAILS(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), EEXIST);
	MAP_FAILS(mremap(ADDRESS, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
			 (char *)ADDRESS + (1 << 30)), EINVAL);
	MAP_FAILS(mremap(ADDRESS, bytes, bytes + 4096, MREMAP_MAYMOVE), EFAULT);
	*(volatile uint64_t *)ADDRESS = 5;
	map = (struct nagaya_map){ .address = (uintptr_t)ADDRESS };
	CHECK(ioctl(fd, NAGAYA_IOC_UNMAP, &map) == 0);
	FAILS(ioctl(fd, NAGAYA_IOC_UNMAP, &map), EINVAL);
	CHECK(mapped_address(fd) == 0);
	close(fd);
}

static void read_back_in_child(void)
{
	int fd = device(O_RDWR);
	/* Without an address: where this VM has it. */
	uint64_t *region = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	CHECK(region == ADDRESS);
	CHECK(region[0] == 0x1234);
	region[1] = 0x5678;
}

static void unmap_and_map(void)
{
	CHECK(munmap(ADDRESS, bytes) == 0);
	read_back_in_child();
}

static void processes_see_the_same(void)
{
	int fd = device(O_RDWR);
	volatile uint64_t *region = map(fd);

	region[0] = 0x1234;
	region[bytes / 8 - 1] = 99;
	CHECK(in_child(unmap_and_map) == 0);
	CHECK(region[1] == 0x5678);
	/* The child of a fork has it without doing anything. */
	CHECK(fork() != 0 || (_exit(region[0] == 0x1234 && (region[2] = 7) ? 0 : 1), 0));
	wait(NULL);
	CHECK(region[2] == 7);
	close(fd);
	/* The mapping needs no file. */
	CHECK(region[bytes / 8 - 1] == 99);
	munmap(ADDRESS, bytes);
}

static void crash(void)
{
	int fd = device(O_RDWR);
	volatile uint64_t *region = map(fd);

	region[3] = 33;
	raise(SIGKILL);
}

static void stray(void)
{
	int fd = device(O_RDWR);

	map(fd);
	signal(SIGSEGV, SIG_DFL);
	*((volatile char *)ADDRESS + bytes) = 1;
}

static void crashes_clean_up(void)
{
	int fd = device(O_RDWR);
	volatile uint64_t *region;

	CHECK(WTERMSIG(in_child(crash)) == SIGKILL);
	CHECK(mapped_address(fd) == 0);
	CHECK(WTERMSIG(in_child(stray)) == SIGSEGV);
	CHECK(mapped_address(fd) == 0);
	region = map(fd);
	/* With a second one mapped, its crash takes nothing from the first. */
	CHECK(in_child(unmap_and_map) != 0 || region[1] == 0x5678);
	CHECK(mapped_address(fd) == (uintptr_t)ADDRESS);
	CHECK(region[3] == 33);
	munmap(ADDRESS, bytes);
	close(fd);
}

static void pages_are_ordinary(void)
{
	int fd = device(O_RDWR), pipes[2], file;
	char *region = map(fd);

	/* A system call that copies, one that pins, and one that takes pages away. */
	memset(region, 'a', 8192);
	CHECK(pipe(pipes) == 0);
	CHECK(write(pipes[1], region + 4000, 200) == 200);
	memset(region + 4000, 0, 200);
	CHECK(read(pipes[0], region + 4000, 200) == 200 && region[4100] == 'a');
	CHECK(vmsplice(pipes[1], &(struct iovec){ region, 4096 }, 1, 0) == 4096);
	CHECK(read(pipes[0], region + 8192, 4096) == 4096 && region[8192] == 'a');
	CHECK(madvise(region, bytes, MADV_DONTNEED) == 0);
	CHECK(region[0] == 'a' && region[8192] == 'a');
	/* A part can be unmapped; what is left still is the region. */
	CHECK(munmap(region + 4096, 4096) == 0);
	CHECK(region[0] == 'a' && region[8192] == 'a');
	CHECK(mprotect(region, 4096, PROT_READ) == 0 && region[1] == 'a');
	file = open("/tmp/region", O_RDWR | O_CREAT | O_TRUNC, 0600);
	CHECK(file >= 0 && write(file, region + 8192, 65536) == 65536);
	close(file);
	munmap(region, bytes);
	CHECK(mapped_address(fd) == 0);
	close(fd);
}

static void a_reader_follows_a_writer(void)
{
	int fd = device(O_RDWR), reader = device(O_RDONLY);

	map(fd);
	CHECK(fork() != 0 || (munmap(ADDRESS, bytes),
			      _exit(map_at(reader, ADDRESS, PROT_READ) == ADDRESS &&
				    mprotect(ADDRESS, 4096, PROT_READ | PROT_WRITE) == -1 ?
				    0 : 1), 0));
	int status;

	CHECK(wait(&status) > 0 && status == 0);
	munmap(ADDRESS, bytes);
	close(fd);
	close(reader);
}

static void waiting_ends_in_time(void)
{
	int fd = device(O_RDWR | O_NONBLOCK);
	struct nagaya_wait wait = { .timeout_ns = 0 };
	struct pollfd poller = { .fd = fd, .events = POLLIN };
	uint64_t events;

	while (!ioctl(fd, NAGAYA_IOC_WAIT, &wait))
		;
	CHECK(errno == ETIMEDOUT);
	wait.timeout_ns = 30000000;
	FAILS(ioctl(fd, NAGAYA_IOC_WAIT, &wait), ETIMEDOUT);
	CHECK(poll(&poller, 1, 30) == 0);
	FAILS(read(fd, &events, sizeof(events)), EAGAIN);
	close(fd);
}

static void doorbells_come_to_everybody(void)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLPRI };
	struct nagaya_wait wait = { .timeout_ns = 2000000000 };
	struct nagaya_member mortal = { .index = 5 };
	uint32_t echo = 1, absent = 2, busy = 3, slow = 4, dies = 5;
	int fd = device(O_RDWR), other = device(O_RDONLY), queue = epoll_create1(0);
	uint64_t events;

	CHECK(epoll_ctl(queue, EPOLL_CTL_ADD, fd, &event) == 0);
	CHECK(epoll_wait(queue, &event, 1, 50) == 0);
	CHECK(ioctl(fd, NAGAYA_IOC_DOORBELL, &echo) == 0);
	CHECK(epoll_wait(queue, &event, 1, 2000) == 1 && event.events == EPOLLIN);
	CHECK(ioctl(fd, NAGAYA_IOC_WAIT, &wait) == 0 && wait.events == 2);
	CHECK(read(other, &events, sizeof(events)) == 8 && events == 2);
	CHECK(epoll_wait(queue, &event, 1, 0) == 0);
	FAILS(ioctl(fd, NAGAYA_IOC_DOORBELL, &absent), ESRCH);
	FAILS(ioctl(fd, NAGAYA_IOC_DOORBELL, &busy), EBUSY);
	FAILS(ioctl(fd, NAGAYA_IOC_DOORBELL, &slow), EAGAIN);
	CHECK(ioctl(fd, NAGAYA_IOC_DOORBELL, &dies) == 0);
	CHECK(epoll_wait(queue, &event, 1, 2000) == 1 && event.events == (EPOLLIN | EPOLLPRI));
	wait.timeout_ns = -1;
	CHECK(ioctl(other, NAGAYA_IOC_WAIT, &wait) == 0);
	CHECK(wait.events == NAGAYA_EVENT_GROUP_CHANGED);
	CHECK(ioctl(fd, NAGAYA_IOC_MEMBER, &mortal) == 0 && mortal.state == NAGAYA_MEMBER_DIED);
	/* What rings while nobody has the device open is not lost. */
	close(other);
	CHECK(ioctl(fd, NAGAYA_IOC_DOORBELL, &echo) == 0);
	close(fd);
	close(queue);
	fd = device(O_RDWR);
	wait.timeout_ns = 2000000000;
	CHECK(ioctl(fd, NAGAYA_IOC_WAIT, &wait) == 0 && wait.events & 2);
	close(fd);
}

static void on_alarm(int signal)
{
	(void)signal;
}

static void a_signal_ends_waiting(void)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct nagaya_wait wait = { .timeout_ns = 5000000000 };
	int fd = device(O_RDWR);

	sigaction(SIGALRM, &action, NULL);
	ualarm(50000, 0);
	FAILS(ioctl(fd, NAGAYA_IOC_WAIT, &wait), EINTR);
	ualarm(50000, 0);
	wait.timeout_ns = -1;
	FAILS(ioctl(fd, NAGAYA_IOC_WAIT, &wait), EINTR);
	close(fd);
}

static void the_library_works(void)
{
	struct nagaya nagaya;
	struct nagaya_lock *lock;

	CHECK(nagaya_open(&nagaya, (uintptr_t)ADDRESS) == 0);
	CHECK(nagaya.region == ADDRESS && nagaya_is_alive(&nagaya, nagaya.me));
	lock = nagaya_at(&nagaya, 1 << 20, sizeof(*lock), 8);
	CHECK(lock);
	atomic_store(&lock->word, 0);
	CHECK(nagaya_lock(&nagaya, lock, 0) == 0);
	CHECK(nagaya_lock(&nagaya, lock, 1000000) == -ETIMEDOUT);
	nagaya_unlock(&nagaya, lock);
	nagaya_close(&nagaya);
}

#define RUN(test)                                                                 \
	do {                                                                      \
		test();                                                           \
		printf("NAGAYA-KMOD ok %s\n", #test);                             \
		fflush(stdout);                                                   \
	} while (0)

int main(int count, char **words)
{
	RUN(the_group_is_told);
	if (count > 1 && !strcmp(words[1], "hold")) {
		map(device(O_RDWR));
		printf("NAGAYA-KMOD holds\n");
		fflush(stdout);
		pause();
	}
	RUN(wrong_ioctls_are_refused);
	RUN(wrong_mappings_are_refused);
	RUN(what_is_there_is_not_replaced);
	RUN(processes_see_the_same);
	RUN(crashes_clean_up);
	RUN(pages_are_ordinary);
	RUN(a_reader_follows_a_writer);
	RUN(waiting_ends_in_time);
	RUN(a_signal_ends_waiting);
	RUN(the_library_works);
	if (count > 1 && !strcmp(words[1], "fake"))
		RUN(doorbells_come_to_everybody);
	/* Whoever comes next finds the region as it was at the beginning. */
	memset(map(device(O_RDWR)), 0, bytes);
	printf("NAGAYA-KMOD passed\n");
	return 0;
}
