// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * /sys/class/misc/nagaya: what there is to know, one value in each file.
 *
 *   abi_version, vm_id
 *   group/{id,name,generation,region_pages,region_address,address_any,member_index}
 *   members/N            state of member N; names/N its name
 *   counters/..          what this driver did
 *   exits/..             VM exits of all vCPUs by kind
 */
#include <linux/device.h>
#include <linux/kernel.h>

#include "nagaya_drv.h"

static ssize_t abi_version_show(struct device *device,
				struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%u.%u\n", nagaya_abi_version >> 16,
			  nagaya_abi_version & 0xffff);
}
static DEVICE_ATTR_RO(abi_version);

static ssize_t vm_id_show(struct device *device,
			  struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%u\n", nagaya_vm_id);
}
static DEVICE_ATTR_RO(vm_id);

static ssize_t mapped_address_show(struct device *device,
				   struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%#llx\n", nagaya_region_mapped_address());
}
static DEVICE_ATTR_RO(mapped_address);

static ssize_t mappings_show(struct device *device,
			     struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%u\n", nagaya_region_users());
}
static DEVICE_ATTR_RO(mappings);

static struct attribute *nagaya_attributes[] = {
	&dev_attr_abi_version.attr,
	&dev_attr_vm_id.attr,
	&dev_attr_mapped_address.attr,
	&dev_attr_mappings.attr,
	NULL
};

static const struct attribute_group nagaya_group = {
	.attrs = nagaya_attributes,
};

#define NAGAYA_GROUP_ATTRIBUTE(_field, _format, ...)				\
static ssize_t _field##_show(struct device *device,				\
			     struct device_attribute *attribute, char *text)	\
{										\
	struct nagaya_group group;						\
	int error = nagaya_group_get(&group);					\
										\
	return error ? error : sysfs_emit(text, _format "\n", __VA_ARGS__);		\
}										\
static DEVICE_ATTR_RO(_field)

NAGAYA_GROUP_ATTRIBUTE(id, "%u", group.group_id);
NAGAYA_GROUP_ATTRIBUTE(name, "%.*s", NAGAYA_NAME_BYTES, group.name);
NAGAYA_GROUP_ATTRIBUTE(generation, "%llu", group.generation);
NAGAYA_GROUP_ATTRIBUTE(region_pages, "%llu", group.region_bytes >> PAGE_SHIFT);
NAGAYA_GROUP_ATTRIBUTE(region_address, "%#llx", group.region_address);
NAGAYA_GROUP_ATTRIBUTE(address_any, "%u", group.address_any);
NAGAYA_GROUP_ATTRIBUTE(member_index, "%u", group.member_index);
NAGAYA_GROUP_ATTRIBUTE(member_count, "%u", group.member_count);

static struct attribute *nagaya_group_attributes[] = {
	&dev_attr_id.attr,
	&dev_attr_name.attr,
	&dev_attr_generation.attr,
	&dev_attr_region_pages.attr,
	&dev_attr_region_address.attr,
	&dev_attr_address_any.attr,
	&dev_attr_member_index.attr,
	&dev_attr_member_count.attr,
	NULL
};

static const struct attribute_group nagaya_group_group = {
	.name = "group",
	.attrs = nagaya_group_attributes,
};

/* Files that differ in a number only. */
struct nagaya_indexed {
	struct device_attribute attribute;
	unsigned int index;
};

#define NAGAYA_INDEX(_attribute)						\
	(container_of(_attribute, struct nagaya_indexed, attribute)->index)

#define NAGAYA_INDEXED(_name, _show, _index)					\
	(&((struct nagaya_indexed) {						\
		.attribute = __ATTR(_name, 0444, _show, NULL),			\
		.index = (_index),						\
	}).attribute.attr)

static ssize_t nagaya_state_show(struct device *device,
				 struct device_attribute *attribute, char *text)
{
	struct nagaya_member member;
	int error = nagaya_group_member(NAGAYA_INDEX(attribute), &member);

	if (error)
		return error;
	return sysfs_emit(text, "%s\n", nagaya_state_name(member.state));
}

static ssize_t nagaya_name_show(struct device *device,
				struct device_attribute *attribute, char *text)
{
	struct nagaya_member member;
	int error = nagaya_group_member(NAGAYA_INDEX(attribute), &member);

	if (error)
		return error;
	return sysfs_emit(text, "%.*s\n", NAGAYA_NAME_BYTES, member.name);
}

#define NAGAYA_EIGHT(_show, _a, _b, _c, _d, _e, _f, _g, _h)			\
	NAGAYA_INDEXED(_a, _show, _a), NAGAYA_INDEXED(_b, _show, _b),		\
	NAGAYA_INDEXED(_c, _show, _c), NAGAYA_INDEXED(_d, _show, _d),		\
	NAGAYA_INDEXED(_e, _show, _e), NAGAYA_INDEXED(_f, _show, _f),		\
	NAGAYA_INDEXED(_g, _show, _g), NAGAYA_INDEXED(_h, _show, _h)

#define NAGAYA_ALL_MEMBERS(_show)						\
	NAGAYA_EIGHT(_show, 0, 1, 2, 3, 4, 5, 6, 7),				\
	NAGAYA_EIGHT(_show, 8, 9, 10, 11, 12, 13, 14, 15),			\
	NAGAYA_EIGHT(_show, 16, 17, 18, 19, 20, 21, 22, 23),			\
	NAGAYA_EIGHT(_show, 24, 25, 26, 27, 28, 29, 30, 31)

static struct attribute *nagaya_member_attributes[] = {
	NAGAYA_ALL_MEMBERS(nagaya_state_show),
	NULL
};
static_assert(ARRAY_SIZE(nagaya_member_attributes) == NAGAYA_MAX_MEMBERS + 1);

static const struct attribute_group nagaya_members_group = {
	.name = "members",
	.attrs = nagaya_member_attributes,
};

static struct attribute *nagaya_name_attributes[] = {
	NAGAYA_ALL_MEMBERS(nagaya_name_show),
	NULL
};

static const struct attribute_group nagaya_names_group = {
	.name = "names",
	.attrs = nagaya_name_attributes,
};

static ssize_t nagaya_counter_show(struct device *device,
				   struct device_attribute *attribute, char *text)
{
	return sysfs_emit(text, "%lld\n",
			  atomic64_read(&nagaya_counters[NAGAYA_INDEX(attribute)]));
}

static struct attribute *nagaya_counter_attributes[] = {
	NAGAYA_INDEXED(maps, nagaya_counter_show, NAGAYA_COUNT_MAPS),
	NAGAYA_INDEXED(unmaps, nagaya_counter_show, NAGAYA_COUNT_UNMAPS),
	NAGAYA_INDEXED(doorbells_sent, nagaya_counter_show,
		       NAGAYA_COUNT_DOORBELLS_SENT),
	NAGAYA_INDEXED(doorbells_refused, nagaya_counter_show,
		       NAGAYA_COUNT_DOORBELLS_REFUSED),
	NAGAYA_INDEXED(events, nagaya_counter_show, NAGAYA_COUNT_EVENTS),
	NAGAYA_INDEXED(interrupts, nagaya_counter_show, NAGAYA_COUNT_INTERRUPTS),
	NAGAYA_INDEXED(polls, nagaya_counter_show, NAGAYA_COUNT_POLLS),
	NULL
};
static_assert(ARRAY_SIZE(nagaya_counter_attributes) == NAGAYA_COUNTERS + 1);

static const struct attribute_group nagaya_counters_group = {
	.name = "counters",
	.attrs = nagaya_counter_attributes,
};

static ssize_t nagaya_exit_show(struct device *device,
				struct device_attribute *attribute, char *text)
{
	u64 exits[NAGAYA_EXIT_KINDS];
	int error = nagaya_info_exits(exits);

	if (error)
		return error;
	return sysfs_emit(text, "%llu\n", exits[NAGAYA_INDEX(attribute)]);
}

#define NAGAYA_EXIT(_name, _kind)						\
	NAGAYA_INDEXED(_name, nagaya_exit_show, NAGAYA_EXIT_##_kind)

static struct attribute *nagaya_exit_attributes[] = {
	NAGAYA_EXIT(hypercall, HYPERCALL),
	NAGAYA_EXIT(cpuid, CPUID),
	NAGAYA_EXIT(msr_read, MSR_READ),
	NAGAYA_EXIT(msr_write, MSR_WRITE),
	NAGAYA_EXIT(port, PORT),
	NAGAYA_EXIT(halt, HALT),
	NAGAYA_EXIT(external_interrupt, EXTERNAL_INTERRUPT),
	NAGAYA_EXIT(nmi, NMI),
	NAGAYA_EXIT(preemption_timer, PREEMPTION_TIMER),
	NAGAYA_EXIT(memory_violation, MEMORY_VIOLATION),
	NAGAYA_EXIT(interrupt_window, INTERRUPT_WINDOW),
	NAGAYA_EXIT(control_register, CONTROL_REGISTER),
	NAGAYA_EXIT(exception, EXCEPTION),
	NAGAYA_EXIT(instruction, INSTRUCTION),
	NAGAYA_EXIT(other, OTHER),
	NULL
};
static_assert(ARRAY_SIZE(nagaya_exit_attributes) == NAGAYA_EXIT_KINDS + 1);

static const struct attribute_group nagaya_exits_group = {
	.name = "exits",
	.attrs = nagaya_exit_attributes,
};

const struct attribute_group *nagaya_sysfs_groups[] = {
	&nagaya_group,
	&nagaya_group_group,
	&nagaya_members_group,
	&nagaya_names_group,
	&nagaya_counters_group,
	&nagaya_exits_group,
	NULL
};
