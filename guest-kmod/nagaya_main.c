// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * The device /dev/nagaya for guests of the Nagaya hypervisor: finding the
 * hypervisor, the file, and its ioctls.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/compat.h>
#include <linux/init.h>
#include <linux/miscdevice.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "nagaya_drv.h"
#include "nagaya_hypercall.h"

static bool selftest;
module_param(selftest, bool, 0444);
MODULE_PARM_DESC(selftest,
		 "map the region at a kernel address once, use it, report, unmap");

static uint roundtrip;
module_param(roundtrip, uint, 0444);
MODULE_PARM_DESC(roundtrip,
		 "with selftest: measure with a peer, as its first (1) or second (2)");

u32 nagaya_abi_version;
u32 nagaya_features;
u32 nagaya_vm_id;
atomic64_t nagaya_counters[NAGAYA_COUNTERS];

static int nagaya_detect(void)
{
	if (!nagaya_find(&nagaya_abi_version, &nagaya_features, &nagaya_vm_id)) {
		pr_err("this machine is no guest of Nagaya\n");
		return -ENODEV;
	}
	if (nagaya_abi_version >> 16 != NAGAYA_ABI_MAJOR) {
		pr_err("the hypervisor's ABI is %u.%u, and this driver knows %u only\n",
		       nagaya_abi_version >> 16, nagaya_abi_version & 0xffff,
		       NAGAYA_ABI_MAJOR);
		return -ENODEV;
	}
	return 0;
}

static int nagaya_open(struct inode *inode, struct file *filp)
{
	struct nagaya_file *file = kzalloc(sizeof(*file), GFP_KERNEL);

	if (!file)
		return -ENOMEM;
	/* A group may have been made since the last look. */
	nagaya_group_find();
	nagaya_event_open(file);
	filp->private_data = file;
	return nonseekable_open(inode, filp);
}

static int nagaya_release(struct inode *inode, struct file *filp)
{
	struct nagaya_file *file = filp->private_data;

	nagaya_event_release(file);
	kfree(file);
	return 0;
}

static long nagaya_ioctl_version(void __user *argument)
{
	struct nagaya_version version = {
		.abi_version = nagaya_abi_version,
		.features = nagaya_features,
		.vm_id = nagaya_vm_id,
		.driver_version = NAGAYA_DRIVER_VERSION,
	};

	return copy_to_user(argument, &version, sizeof(version)) ? -EFAULT : 0;
}

static long nagaya_ioctl_group(void __user *argument)
{
	struct nagaya_group group = {};
	int error = nagaya_group_get(&group);

	if (error)
		return error;
	group.mapped_address = nagaya_region_mapped_address();
	return copy_to_user(argument, &group, sizeof(group)) ? -EFAULT : 0;
}

static long nagaya_ioctl_member(void __user *argument)
{
	struct nagaya_member member;
	int error;

	if (copy_from_user(&member, argument, sizeof(member)))
		return -EFAULT;
	error = nagaya_group_member(member.index, &member);
	if (error)
		return error;
	return copy_to_user(argument, &member, sizeof(member)) ? -EFAULT : 0;
}

static long nagaya_ioctl_map(struct file *filp, void __user *argument)
{
	unsigned long protection = PROT_READ | PROT_WRITE;
	unsigned long flags = MAP_SHARED;
	struct nagaya_map map;
	unsigned long address;

	if (copy_from_user(&map, argument, sizeof(map)))
		return -EFAULT;
	if ((map.flags & ~NAGAYA_MAP_READ_ONLY) || map.reserved)
		return -EINVAL;
	if (map.flags & NAGAYA_MAP_READ_ONLY)
		protection = PROT_READ;
	map.bytes = nagaya_group_region_pages() << PAGE_SHIFT;
	if (!map.bytes)
		return -EPERM;
	if (map.address)
		flags |= MAP_FIXED_NOREPLACE;
	address = vm_mmap(filp, map.address, map.bytes, protection, flags,
			  NAGAYA_OFFSET_REGION);
	if (IS_ERR_VALUE(address))
		return address;
	map.address = address;
	if (copy_to_user(argument, &map, sizeof(map))) {
		vm_munmap(address, map.bytes);
		return -EFAULT;
	}
	return 0;
}

/* Only what is the region of this device: not whatever else may be at an address. */
static long nagaya_ioctl_unmap(struct file *filp, void __user *argument)
{
	struct vm_area_struct *vma;
	struct nagaya_map map;
	bool ours;

	if (copy_from_user(&map, argument, sizeof(map)))
		return -EFAULT;
	map.bytes = nagaya_group_region_pages() << PAGE_SHIFT;
	if (map.flags || map.reserved || !map.bytes)
		return -EINVAL;
	mmap_read_lock(current->mm);
	vma = find_vma(current->mm, map.address);
	ours = vma && vma->vm_start == map.address && vma->vm_pgoff == 0 &&
	       vma->vm_end - vma->vm_start == map.bytes && vma->vm_file &&
	       vma->vm_file->f_op == filp->f_op;
	mmap_read_unlock(current->mm);
	return ours ? vm_munmap(map.address, map.bytes) : -EINVAL;
}

static long nagaya_ioctl_doorbell(struct file *filp, void __user *argument)
{
	u32 member;

	/* Whoever may only read must not reach out to others. */
	if (!(filp->f_mode & FMODE_WRITE))
		return -EBADF;
	if (copy_from_user(&member, argument, sizeof(member)))
		return -EFAULT;
	return nagaya_doorbell(member, 0);
}

static long nagaya_ioctl_doorbell_life(struct file *filp, void __user *argument)
{
	struct nagaya_life life;

	if (!(filp->f_mode & FMODE_WRITE))
		return -EBADF;
	if (copy_from_user(&life, argument, sizeof(life)))
		return -EFAULT;
	if (life.reserved || life.incarnation > NAGAYA_MOST_INCARNATION)
		return -EINVAL;
	return nagaya_doorbell(life.member, life.incarnation);
}

static long nagaya_ioctl_wait(struct file *filp, void __user *argument)
{
	struct nagaya_wait wait;
	int error;

	if (copy_from_user(&wait, argument, sizeof(wait)))
		return -EFAULT;
	error = nagaya_event_wait(filp->private_data, wait.timeout_ns,
				  &wait.events);
	if (error)
		return error;
	return copy_to_user(argument, &wait, sizeof(wait)) ? -EFAULT : 0;
}

static long nagaya_ioctl(struct file *filp, unsigned int command,
			 unsigned long value)
{
	void __user *argument = (void __user *)value;

	switch (command) {
	case NAGAYA_IOC_VERSION:
		return nagaya_ioctl_version(argument);
	case NAGAYA_IOC_GROUP:
		return nagaya_ioctl_group(argument);
	case NAGAYA_IOC_MEMBER:
		return nagaya_ioctl_member(argument);
	case NAGAYA_IOC_MAP:
		return nagaya_ioctl_map(filp, argument);
	case NAGAYA_IOC_UNMAP:
		return nagaya_ioctl_unmap(filp, argument);
	case NAGAYA_IOC_DOORBELL:
		return nagaya_ioctl_doorbell(filp, argument);
	case NAGAYA_IOC_DOORBELL_LIFE:
		return nagaya_ioctl_doorbell_life(filp, argument);
	case NAGAYA_IOC_WAIT:
		return nagaya_ioctl_wait(filp, argument);
	default:
		return -ENOTTY;
	}
}

static ssize_t nagaya_read(struct file *filp, char __user *buffer, size_t bytes,
			   loff_t *offset)
{
	u64 events;
	int error;

	if (bytes < sizeof(events))
		return -EINVAL;
	error = nagaya_event_wait(filp->private_data,
				  filp->f_flags & O_NONBLOCK ? 0 : -1, &events);
	if (error)
		return error == -ETIMEDOUT ? -EAGAIN : error;
	return copy_to_user(buffer, &events, sizeof(events)) ? -EFAULT :
							       sizeof(events);
}

static __poll_t nagaya_poll(struct file *filp, poll_table *table)
{
	return nagaya_event_poll(filp->private_data, filp, table);
}

static int nagaya_mmap(struct file *filp, struct vm_area_struct *vma)
{
	u64 offset = (u64)vma->vm_pgoff << PAGE_SHIFT;

	if (offset == NAGAYA_OFFSET_REGION)
		return nagaya_region_mmap(filp, vma);
	if (offset == NAGAYA_OFFSET_GROUP_PAGE)
		return nagaya_group_mmap(vma);
	if (offset >= NAGAYA_OFFSET_INFO_PAGE(0) &&
	    offset < NAGAYA_OFFSET_INFO_PAGE(NAGAYA_MAX_VCPUS))
		return nagaya_info_mmap(vma, (offset - NAGAYA_OFFSET_INFO_PAGE(0)) >>
						     PAGE_SHIFT);
	return -EINVAL;
}

static const struct file_operations nagaya_operations = {
	.owner = THIS_MODULE,
	.open = nagaya_open,
	.release = nagaya_release,
	.read = nagaya_read,
	.poll = nagaya_poll,
	.unlocked_ioctl = nagaya_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = nagaya_mmap,
	.get_unmapped_area = nagaya_region_get_unmapped_area,
};

static struct miscdevice nagaya_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "nagaya",
	.fops = &nagaya_operations,
	.groups = nagaya_sysfs_groups,
	.mode = 0600,
};

static int __init nagaya_init(void)
{
	int error = nagaya_detect();

	if (error)
		return error;
	nagaya_group_find();
	nagaya_region_forget_earlier();
	error = nagaya_region_init();
	if (error)
		goto forget_group;
	if (selftest) {
		error = nagaya_region_selftest(roundtrip);
		if (error)
			goto exit_region;
	}
	error = nagaya_event_init();
	if (error)
		goto exit_region;
	error = misc_register(&nagaya_device);
	if (error)
		goto exit_event;
	pr_info("ABI %u.%u, VM %u, %s\n", nagaya_abi_version >> 16,
		nagaya_abi_version & 0xffff, nagaya_vm_id,
		nagaya_group_is_known() ? "in a group" : "in no group");
	return 0;

exit_event:
	nagaya_event_exit();
exit_region:
	nagaya_region_exit();
forget_group:
	nagaya_group_forget();
	return error;
}

/* Nothing is open or mapped here: files and mappings hold the module. */
static void __exit nagaya_exit(void)
{
	misc_deregister(&nagaya_device);
	nagaya_event_exit();
	nagaya_region_exit();
	nagaya_group_forget();
}

module_init(nagaya_init);
module_exit(nagaya_exit);

MODULE_DESCRIPTION("Shared regions and doorbells between guests of Nagaya");
MODULE_VERSION("1.0");
MODULE_LICENSE("Dual MIT/GPL");
