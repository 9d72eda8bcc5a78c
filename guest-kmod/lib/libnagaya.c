// SPDX-License-Identifier: MIT
/* The device and the region. */
#include "libnagaya.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int map_group_page(struct nagaya *nagaya)
{
	void *page = mmap(NULL, NAGAYA_PAGE_BYTES, PROT_READ, MAP_SHARED, nagaya->fd,
			  (off_t)NAGAYA_OFFSET_GROUP_PAGE);

	if (page == MAP_FAILED)
		return -errno;
	nagaya->group = page;
	return 0;
}

static int map_region(struct nagaya *nagaya, uint64_t address)
{
	struct nagaya_map map = { .address = address };

	if (ioctl(nagaya->fd, NAGAYA_IOC_MAP, &map))
		return -errno;
	nagaya->region = (unsigned char *)(uintptr_t)map.address;
	nagaya->bytes = map.bytes;
	return 0;
}

int nagaya_open(struct nagaya *nagaya, uint64_t address)
{
	struct nagaya_version version;
	struct nagaya_group group;
	int error;

	memset(nagaya, 0, sizeof(*nagaya));
	nagaya->fd = open(NAGAYA_DEVICE, O_RDWR | O_CLOEXEC);
	if (nagaya->fd < 0)
		return -errno;
	if (ioctl(nagaya->fd, NAGAYA_IOC_VERSION, &version) ||
	    ioctl(nagaya->fd, NAGAYA_IOC_GROUP, &group)) {
		error = -errno;
		goto fail;
	}
	error = -EPROTO;
	if (version.abi_version >> 16 != NAGAYA_ABI_MAJOR ||
	    group.member_index >= NAGAYA_MAX_MEMBERS)
		goto fail;
	nagaya->me = group.member_index;
	error = map_group_page(nagaya);
	if (!error)
		error = map_region(nagaya, address);
	if (!error)
		return 0;
fail:
	nagaya_close(nagaya);
	return error;
}

void nagaya_close(struct nagaya *nagaya)
{
	if (nagaya->region)
		munmap(nagaya->region, nagaya->bytes);
	if (nagaya->group)
		munmap((void *)nagaya->group, NAGAYA_PAGE_BYTES);
	if (nagaya->fd >= 0)
		close(nagaya->fd);
	memset(nagaya, 0, sizeof(*nagaya));
	nagaya->fd = -1;
}

void *nagaya_at(const struct nagaya *nagaya, uint64_t offset, size_t bytes,
		size_t align)
{
	if (!align || offset % align || offset > nagaya->bytes ||
	    bytes > nagaya->bytes - offset)
		return NULL;
	return nagaya->region + offset;
}

void *nagaya_pointer(const struct nagaya *nagaya, uint64_t address, size_t bytes,
		     size_t align)
{
	uint64_t start = (uintptr_t)nagaya->region;

	return address < start ? NULL :
				 nagaya_at(nagaya, address - start, bytes, align);
}

uint32_t nagaya_member_state(const struct nagaya *nagaya, uint32_t member)
{
	const volatile uint32_t *state;
	uint32_t found;

	if (member >= NAGAYA_MAX_MEMBERS)
		return NAGAYA_MEMBER_ABSENT;
	state = &nagaya->group->members[member].state;
	found = *state;
	atomic_thread_fence(memory_order_acquire);
	return found;
}

int nagaya_is_alive(const struct nagaya *nagaya, uint32_t member)
{
	uint32_t state = nagaya_member_state(nagaya, member);

	return state == NAGAYA_MEMBER_CREATED || state == NAGAYA_MEMBER_RUNNING;
}

uint64_t nagaya_incarnation(const struct nagaya *nagaya, uint32_t member)
{
	const volatile __u64 *incarnation;

	if (member >= NAGAYA_MAX_MEMBERS)
		return 0;
	incarnation = &nagaya->group->members[member].incarnation;
	return *incarnation;
}

int nagaya_doorbell(const struct nagaya *nagaya, uint32_t member)
{
	__u32 argument = member;

	return ioctl(nagaya->fd, NAGAYA_IOC_DOORBELL, &argument) ? -errno : 0;
}

int nagaya_doorbell_life(const struct nagaya *nagaya, uint32_t member,
			 uint64_t incarnation)
{
	struct nagaya_life life = { .member = member, .incarnation = incarnation };

	return ioctl(nagaya->fd, NAGAYA_IOC_DOORBELL_LIFE, &life) ? -errno : 0;
}

int nagaya_wait(const struct nagaya *nagaya, int64_t timeout_ns, uint64_t *events)
{
	struct nagaya_wait wait = { .timeout_ns = timeout_ns };

	if (ioctl(nagaya->fd, NAGAYA_IOC_WAIT, &wait))
		return -errno;
	*events = wait.events;
	return 0;
}
