// SPDX-License-Identifier: GPL-2.0 OR MIT
/*
 * Doorbells and changes of the group, as events that processes wait for.
 *
 * The hypervisor keeps one mask of pending events for the VM; whoever asks takes
 * it. The driver asks, and gives what it took to every open file; what comes while
 * no file is open is kept for the first that is.
 *
 * It asks when the interrupt of the ACPI device NGYA0001 says so. Where that device
 * has none, and only while somebody waits, it asks every poll_ms milliseconds. The
 * hypercall is never made with a timeout: it would block the CPU, not the process.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/acpi.h>
#include <linux/interrupt.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "nagaya_drv.h"
#include "nagaya_hypercall.h"

static unsigned int poll_ms = 10;
module_param(poll_ms, uint, 0644);
MODULE_PARM_DESC(poll_ms,
		 "without an interrupt, how often to look for events while somebody waits");

DECLARE_WAIT_QUEUE_HEAD(nagaya_event_queue);

static struct {
	spinlock_t lock;	/* an interrupt takes it */
	struct list_head files;
	u64 unclaimed;		/* came while no file was open */
	atomic_t waiters;	/* in nagaya_event_wait() */
	bool has_interrupt;
} events = {
	.lock = __SPIN_LOCK_UNLOCKED(events.lock),
	.files = LIST_HEAD_INIT(events.files),
};

static void nagaya_event_work(struct work_struct *work);
static DECLARE_DELAYED_WORK(event_work, nagaya_event_work);

/* Takes what is pending from the hypervisor and tells everybody. */
static void nagaya_event_collect(void)
{
	u64 mask = nagaya_call_take_events();
	struct nagaya_file *file;
	unsigned long flags;

	if (!mask)
		return;
	nagaya_count(NAGAYA_COUNT_EVENTS);
	spin_lock_irqsave(&events.lock, flags);
	if (list_empty(&events.files))
		events.unclaimed |= mask;
	list_for_each_entry(file, &events.files, list)
		file->events |= mask;
	spin_unlock_irqrestore(&events.lock, flags);
	wake_up_interruptible_poll(&nagaya_event_queue,
				   EPOLLIN | EPOLLRDNORM | EPOLLPRI);
}

static irqreturn_t nagaya_event_interrupt(int irq, void *data)
{
	nagaya_count(NAGAYA_COUNT_INTERRUPTS);
	nagaya_event_collect();
	return IRQ_HANDLED;
}

/* Makes sure that somebody looks, now that somebody waits. */
static void nagaya_event_look_later(void)
{
	if (!READ_ONCE(events.has_interrupt))
		queue_delayed_work(system_wq, &event_work,
				   msecs_to_jiffies(max(READ_ONCE(poll_ms), 1U)));
}

static void nagaya_event_work(struct work_struct *work)
{
	nagaya_count(NAGAYA_COUNT_POLLS);
	nagaya_event_collect();
	if (atomic_read(&events.waiters) || wq_has_sleeper(&nagaya_event_queue))
		nagaya_event_look_later();
}

void nagaya_event_open(struct nagaya_file *file)
{
	unsigned long flags;

	spin_lock_irqsave(&events.lock, flags);
	file->events = events.unclaimed;
	events.unclaimed = 0;
	list_add_tail(&file->list, &events.files);
	spin_unlock_irqrestore(&events.lock, flags);
}

void nagaya_event_release(struct nagaya_file *file)
{
	unsigned long flags;

	spin_lock_irqsave(&events.lock, flags);
	list_del(&file->list);
	spin_unlock_irqrestore(&events.lock, flags);
}

static bool nagaya_event_take(struct nagaya_file *file, u64 *mask)
{
	unsigned long flags;

	spin_lock_irqsave(&events.lock, flags);
	*mask = file->events;
	file->events = 0;
	spin_unlock_irqrestore(&events.lock, flags);
	return *mask;
}

static int nagaya_event_sleep(struct nagaya_file *file, s64 timeout_ns, u64 *mask)
{
	int error;

	if (timeout_ns < 0)
		return wait_event_interruptible(nagaya_event_queue,
						nagaya_event_take(file, mask));
	error = wait_event_interruptible_hrtimeout(nagaya_event_queue,
						   nagaya_event_take(file, mask),
						   ns_to_ktime(timeout_ns));
	if (error == -ETIME)
		return -ETIMEDOUT;
	/* Begun anew it would wait for the whole time once more. */
	return error == -ERESTARTSYS ? -EINTR : error;
}

/* Waits for events and takes them: at most timeout_ns, for ever if that is negative. */
int nagaya_event_wait(struct nagaya_file *file, s64 timeout_ns, u64 *mask)
{
	int error;

	if (!nagaya_group_is_known())
		return -EPERM;
	if (nagaya_event_take(file, mask))
		return 0;
	/* An interrupt would have told; but who only looks is to see what is there now. */
	if (!timeout_ns || !READ_ONCE(events.has_interrupt)) {
		nagaya_event_collect();
		if (nagaya_event_take(file, mask))
			return 0;
	}
	if (!timeout_ns)
		return -ETIMEDOUT;
	atomic_inc(&events.waiters);
	nagaya_event_look_later();
	error = nagaya_event_sleep(file, timeout_ns, mask);
	atomic_dec(&events.waiters);
	return error;
}

__poll_t nagaya_event_poll(struct nagaya_file *file, struct file *filp,
			   poll_table *table)
{
	unsigned long flags;
	u64 mask;

	poll_wait(filp, &nagaya_event_queue, table);
	if (!READ_ONCE(events.has_interrupt)) {
		nagaya_event_collect();
		nagaya_event_look_later();
	}
	spin_lock_irqsave(&events.lock, flags);
	mask = file->events;
	spin_unlock_irqrestore(&events.lock, flags);
	return (mask ? EPOLLIN | EPOLLRDNORM : 0) |
	       (mask & NAGAYA_EVENT_GROUP_CHANGED ? EPOLLPRI : 0);
}

/* Rings a member, if it still leads that life; incarnation 0: whichever it leads. */
int nagaya_doorbell(u32 member, u64 incarnation)
{
	int error = -ESRCH;

	/* What is no index must not become one by what stands above it. */
	if (member < NAGAYA_MAX_MEMBERS)
		error = nagaya_call(NAGAYA_CALL_DOORBELL,
				    incarnation << NAGAYA_LIFE_SHIFT | member, 0);

	nagaya_count(error ? NAGAYA_COUNT_DOORBELLS_REFUSED :
			     NAGAYA_COUNT_DOORBELLS_SENT);
	return error;
}

static int nagaya_platform_probe(struct platform_device *device)
{
	int irq = platform_get_irq_optional(device, 0);
	int error;

	if (irq == -EPROBE_DEFER)
		return irq;
	if (irq < 0)
		return 0;
	error = devm_request_irq(&device->dev, irq, nagaya_event_interrupt, 0,
				 KBUILD_MODNAME, &events);
	if (error) {
		dev_err(&device->dev, "cannot have interrupt %d: error %d\n", irq,
			error);
		return error;
	}
	WRITE_ONCE(events.has_interrupt, true);
	/* What rang before the handler was there has rung in vain. */
	nagaya_event_collect();
	return 0;
}

static const struct acpi_device_id nagaya_acpi_ids[] = {
	{ "NGYA0001" },
	{ }
};
MODULE_DEVICE_TABLE(acpi, nagaya_acpi_ids);

static struct platform_driver nagaya_platform_driver = {
	.probe = nagaya_platform_probe,
	.driver = {
		.name = KBUILD_MODNAME,
		.acpi_match_table = nagaya_acpi_ids,
		/* It goes with the module only: then nothing is open. */
		.suppress_bind_attrs = true,
	},
};

int nagaya_event_init(void)
{
	return platform_driver_register(&nagaya_platform_driver);
}

void nagaya_event_exit(void)
{
	platform_driver_unregister(&nagaya_platform_driver);
	WRITE_ONCE(events.has_interrupt, true);
	cancel_delayed_work_sync(&event_work);
}
