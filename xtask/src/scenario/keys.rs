//! Every table and key of a scenario file, with what a person has to know of each. What is not here is refused, and what is
//! here is what `docs/SCENARIO.md` is made of ([`super::reference`]).

/// A table of the file.
#[derive(Debug)]
pub(crate) struct Table {
    /// As it is named inside its parent: `nic`.
    pub(crate) key: &'static str,
    /// As its head names it: `vm.nic`.
    pub(crate) path: &'static str,
    /// There may be several: its head is `[[vm.nic]]`.
    pub(crate) repeated: bool,
    /// What it describes, for the reference.
    pub(crate) text: &'static str,
    /// Its keys, those of tables inside it included.
    pub(crate) keys: &'static [Key],
}

impl Table {
    /// Its head as it is written.
    pub(crate) fn head(&self) -> String {
        if self.repeated {
            format!("[[{}]]", self.path)
        } else {
            format!("[{}]", self.path)
        }
    }
}

/// A key of a table.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) name: &'static str,
    /// What its value looks like.
    pub(crate) form: Form,
    /// What holds without it, in words; empty where it must be there.
    pub(crate) default: &'static str,
    /// What it does.
    pub(crate) text: &'static str,
}

/// What values look like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// A string whose meaning the key's text gives.
    Text,
    /// A whole number.
    Number,
    /// Strings whose meaning the key's text gives.
    Texts,
    /// `true` or `false`.
    Boolean,
    /// Bytes: `"128M"`.
    Size,
    /// A wall-clock time: `"60s"`, `"5m"`.
    Duration,
    /// A time of the machine: `"10ms"`, `"500us"`.
    Micros,
    /// Bits a second: `"100M"`.
    Rate,
    /// CPUs: `"0-3,5"`.
    CpuSet,
    /// A whole number, or a list of them.
    Numbers,
    /// A table of its own.
    Table(&'static Table),
}

impl Form {
    /// In a word or two, with an example.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Form::Text => "string",
            Form::Number => "number",
            Form::Boolean => "true or false",
            Form::Size => "size: `\"128M\"` (K, M, G: powers of 1024)",
            Form::Duration => "time: `\"90s\"`, `\"5m\"`",
            Form::Micros => "time: `\"10ms\"`, `\"500us\"`",
            Form::Rate => "rate: `\"100M\"` (K, M, G: thousands of bits a second)",
            Form::CpuSet => "CPUs: `\"0-3,5\"`",
            Form::Numbers => "number, or list of numbers",
            Form::Texts => "list of strings",
            Form::Table(_) => "table, below",
        }
    }
}

const fn key(name: &'static str, form: Form, default: &'static str, text: &'static str) -> Key {
    Key {
        name,
        form,
        default,
        text,
    }
}

const fn tables(table: &'static Table, text: &'static str) -> Key {
    key(table.key, Form::Table(table), "none", text)
}

/// The file itself.
pub(crate) static TOP: Table = Table {
    key: "",
    path: "",
    repeated: false,
    text: "",
    keys: &[
        tables(&MACHINE, "the machine"),
        tables(&GROUP, "a group of VMs"),
        tables(&VM, "a VM"),
    ],
};

/// `[machine]`.
pub(crate) static MACHINE: Table = Table {
    key: "machine",
    path: "machine",
    repeated: false,
    text: "The machine that is emulated, and what concerns the hypervisor as a whole. On hardware `cpus`, `memory` and `timeout` mean \
           nothing but the bounds that the file is checked against.",
    keys: &[
        key(
            "cpus",
            Form::Number,
            "as many as `cpu` keys name",
            "CPUs of the machine, 1 to 8.",
        ),
        key(
            "memory",
            Form::Size,
            "`\"512M\"`",
            "RAM of the machine, 64M or more in whole megabytes; Bochs takes at most 2G.",
        ),
        key(
            "timeout",
            Form::Duration,
            "`\"60s\"`; `\"10m\"` with a VM that is not native; none with `linger`",
            "Wall-clock limit of a run, after which the machine is switched off and the run has failed. `--timeout` goes before it.",
        ),
        tables(&BOCHS, "What only Bochs is told."),
        tables(&QEMU, "What only QEMU is told."),
        key(
            "deterministic",
            Form::Boolean,
            "`false`",
            "Hide from guests what differs from run to run (RDRAND, RDSEED), and leave the control port closed unless `control` opens it.",
        ),
        key(
            "apic_virtualization",
            Form::Boolean,
            "`true`",
            "Let the CPU keep guests' interrupts where it can; else software does everywhere.",
        ),
        key(
            "selftest",
            Form::Text,
            "none",
            "A fault that the hypervisor makes on purpose: docs/TESTING.md.",
        ),
        key(
            "allow_bare",
            Form::Boolean,
            "`false`",
            "Allow VMs with `bare = true`, which run with the hypervisor's own rights.",
        ),
        key(
            "slice",
            Form::Micros,
            "`\"10ms\"`",
            "Length of a time slice, 100us to 1000ms.",
        ),
        key(
            "rate_limit",
            Form::Micros,
            "`\"1ms\"`, or the slice if that is shorter",
            "How long a vCPU runs at least before one that wakes up may take its CPU.",
        ),
        key(
            "control",
            Form::Boolean,
            "`false`; `run` sets it unless `deterministic`",
            "Serve the control port (docs/CONTROL.md).",
        ),
        key(
            "linger",
            Form::Boolean,
            "`false`",
            "Go on when the last VM has ended, until `nagayactl shutdown`. Opens the control port.",
        ),
    ],
};

/// `[machine.bochs]`.
pub(crate) static BOCHS: Table = Table {
    key: "bochs",
    path: "machine.bochs",
    repeated: false,
    text: "What only Bochs is told; another machine is not concerned.",
    keys: &[
        key(
            "cpu_model",
            Form::Text,
            "`\"tigerlake\"`",
            "CPU model, by the name that `bochs --help cpu` lists.",
        ),
        key(
            "ips",
            Form::Number,
            "10000000",
            "Simulated instructions a second, 1000000 to 1000000000: how many ticks a second has. A distribution's time limits fit 100000000, the BIOS then waits longer.",
        ),
    ],
};

/// `[machine.qemu]`.
pub(crate) static QEMU: Table = Table {
    key: "qemu",
    path: "machine.qemu",
    repeated: false,
    text: "What only QEMU is told; another machine is not concerned.",
    keys: &[key(
        "cpu_model",
        Form::Text,
        "`\"host\"` on KVM, else `\"max\"`",
        "CPU model, by the name that `qemu-system-x86_64 -cpu help` lists.",
    )],
};

/// `[[group]]`.
pub(crate) static GROUP: Table = Table {
    key: "group",
    path: "group",
    repeated: true,
    text: "VMs that run one parallel program: they share memory, ring each other's doorbells and are scheduled together.",
    keys: &[
        key(
            "name",
            Form::Text,
            "",
            "1 to 31 of the characters A-Z a-z 0-9 - _, the first no -, unique among groups.",
        ),
        key(
            "pages",
            Form::Number,
            "1025",
            "Pages of 4 KiB of the shared region, 1 to 1048576: one for the group's own use, then yours.",
        ),
        key(
            "address",
            Form::Text,
            "`\"fixed\"`",
            "`\"fixed\"`: the first member that maps the region chooses its address for all; `\"any\"`: each chooses.",
        ),
        key(
            "doorbells_per_second",
            Form::Number,
            "1000000",
            "Doorbells a second that one member may ring at another before it is throttled; at least 1.",
        ),
        key(
            "mode",
            Form::Text,
            "`\"relaxed\"`",
            "How its members are scheduled: `\"off\"`, `\"relaxed\"` or `\"strict\"` (docs/SCHEDULING.md).",
        ),
        key(
            "directed_yield",
            Form::Boolean,
            "`true`",
            "Turn a member's spinning into a yield to the member that should run.",
        ),
        key(
            "weight",
            Form::Number,
            "256",
            "Share of CPU time of the group as one account, 1 to 65535.",
        ),
        key(
            "cap",
            Form::Number,
            "0",
            "The most CPU time it gets, in percent of one CPU; 0 for no bound.",
        ),
    ],
};

/// `[[vm]]`.
pub(crate) static VM: Table = Table {
    key: "vm",
    path: "vm",
    repeated: true,
    text: "A VM. They start in the order of the file.",
    keys: &[
        key(
            "name",
            Form::Text,
            "",
            "1 to 31 of the characters A-Z a-z 0-9 - _, the first no -, unique among VMs.",
        ),
        key("group", Form::Text, "none", "The group it is a member of."),
        key(
            "image",
            Form::Text,
            "",
            "What it boots: with a `/` in it a file, or the folder of a Cargo package, which is built then, relative to the scenario's file; without one a \
             program of tests/guests, or else a file beside the scenario. \
             Names that begin with `debian/` or `built/` are made on demand if no such file is there (`cargo xtask artefact` lists them).",
        ),
        key(
            "kind",
            Form::Text,
            "`\"native\"`",
            "What the image is: `\"native\"` (docs/ABI.md), `\"linux\"` (docs/LINUX.md) or `\"multiboot\"` (docs/MULTIBOOT.md).",
        ),
        key(
            "cmdline",
            Form::Text,
            "`\"\"`",
            "Its command line, at most 4096 bytes.",
        ),
        key(
            "memory",
            Form::Size,
            "`\"128M\"`",
            "RAM, a multiple of 2M; a Linux VM has 16M or more.",
        ),
        key(
            "memory_below_4g",
            Form::Size,
            "as much as fits",
            "How much of it lies below the devices; the rest is from 4 GiB on. Not of native VMs.",
        ),
        key("vcpus", Form::Number, "1", "vCPUs, 1 to 8."),
        key(
            "cpu",
            Form::Numbers,
            "not pinned",
            "The CPU that each vCPU is pinned to: one number for each vCPU.",
        ),
        key(
            "affinity",
            Form::CpuSet,
            "all",
            "The CPUs that its vCPUs may run on if they are not pinned.",
        ),
        key(
            "soft_affinity",
            Form::CpuSet,
            "all",
            "The CPUs that its vCPUs run on rather than on others.",
        ),
        key(
            "weight",
            Form::Number,
            "256",
            "Share of CPU time, within its group if it is in one, 1 to 65535.",
        ),
        key(
            "cap",
            Form::Number,
            "0",
            "The most CPU time it gets, in percent of one CPU; 0 for no bound.",
        ),
        tables(&NIC, "A network card."),
        tables(&DISK, "A virtio disk."),
        key(
            "rng",
            Form::Boolean,
            "`false`",
            "It has a virtio source of entropy.",
        ),
        key(
            "virtio_console",
            Form::Boolean,
            "`false`",
            "It has a virtio console.",
        ),
        key(
            "initramfs",
            Form::Text,
            "none",
            "The first file system of a Linux kernel, a file as for `image`. Only of kind `linux`.",
        ),
        tables(&MODULE, "A file that a multiboot kernel is handed."),
        key(
            "debug_exit",
            Form::Boolean,
            "`false`",
            "A write to port 0xF4 ends it with that value as its exit code. Not of native VMs.",
        ),
        key(
            "debug_console",
            Form::Boolean,
            "`false`",
            "A write to port 0xE9 goes to its console. Not of native VMs.",
        ),
        key(
            "restarts",
            Form::Number,
            "1000",
            "How often its guest may reset it before it is given up; pauses between short lives grow up to 2 s. Where the key is given a triple fault resets the VM, too, as it does a PC; without it a triple fault ends it.",
        ),
        key(
            "may",
            Form::Texts,
            "nothing",
            "What it may do with VMs of its own: `\"fork\"`, `\"kill\"` (docs/PROCESSES.md). Of native VMs without devices.",
        ),
        key(
            "max_children",
            Form::Number,
            "16",
            "How many VMs may live at a time that descend from it, at most 1024.",
        ),
        key(
            "max_memory",
            Form::Size,
            "twice `memory`",
            "RAM that it and all that descend from it may have together: what they share counts once.",
        ),
        key(
            "bare",
            Form::Boolean,
            "`false`",
            "Run the image as a bare loop outside VMX, to measure the floor. Needs `allow_bare`.",
        ),
    ],
};

/// `[[vm.nic]]`.
pub(crate) static NIC: Table = Table {
    key: "nic",
    path: "vm.nic",
    repeated: true,
    text: "A virtio network card of the VM above, at most 8 (docs/DEVICES.md).",
    keys: &[
        key(
            "segment",
            Form::Text,
            "that of the group",
            "The segment it is on: cards of one segment reach each other.",
        ),
        key(
            "mac",
            Form::Text,
            "by the VM's number",
            "Its address: `\"02:00:00:00:00:01\"`.",
        ),
        key(
            "mtu",
            Form::Number,
            "not told",
            "The largest packet in bytes without its Ethernet header, 68 to 65521.",
        ),
        key(
            "offloads",
            Form::Boolean,
            "`true`",
            "Offer checksum and segmentation offload.",
        ),
        key(
            "check_source",
            Form::Boolean,
            "`false`",
            "Drop what is sent with another source address than its own.",
        ),
        key(
            "rate",
            Form::Rate,
            "no bound",
            "The most that it sends in bits a second, 8K or more.",
        ),
    ],
};

/// `[[vm.module]]`.
pub(crate) static MODULE: Table = Table {
    key: "module",
    path: "vm.module",
    repeated: true,
    text: "A file that the multiboot kernel of the VM above is handed, at most 16.",
    keys: &[
        key("image", Form::Text, "", "A file, as for the VM's `image`."),
        key(
            "cmdline",
            Form::Text,
            "`\"\"`",
            "The string that goes with it, at most 1024 bytes.",
        ),
    ],
};

/// `[[vm.disk]]`.
pub(crate) static DISK: Table = Table {
    key: "disk",
    path: "vm.disk",
    repeated: true,
    text: "A virtio disk of the VM above, at most 8: either a file or empty RAM.",
    keys: &[
        key(
            "image",
            Form::Text,
            "one of the two",
            "A file, as for the VM's `image`. What the guest writes is kept while the VM runs.",
        ),
        key(
            "ram",
            Form::Size,
            "one of the two",
            "A disk of zeros in RAM, 4K to 2G.",
        ),
        key(
            "read_only",
            Form::Boolean,
            "`false`",
            "The guest cannot write to it.",
        ),
    ],
};
