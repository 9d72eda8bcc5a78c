use std::time::Duration;

use nagaya_harness::MachineKind;
use nagaya_vmm::config::{
    AddressPolicy, DiskConfig, DiskSource, GuestKind, ModuleConfig, NicConfig, VmConfig,
};
use nagaya_vmm::control::{CpuSet, GroupMode};

use super::*;

const GOOD: &str = r#"[machine]
cpus = 2
memory = "512M"
timeout = "90s"
deterministic = true

[[group]]
name = "pair"
pages = 1025

[[vm]]
name = "ping"
group = "pair"
image = "pingpong"
memory = "128M"
cpu = 0
cmdline = "role=ping"

[[vm]]
name = "pong"
group = "pair"
image = "pingpong"
cpu = 1
"#;

fn read(text: &str) -> Result<Loaded> {
    let guests = ["idle".to_string(), "pingpong".to_string()];
    read_at(
        Path::new("dir/s.toml"),
        text,
        &Overrides::default(),
        &guests,
    )
}

/// A scenario in that file.
fn read_at(file: &Path, text: &str, overrides: &Overrides, guests: &[String]) -> Result<Loaded> {
    let folder = file.parent().expect("is in a folder");
    parse_with(text, (file, folder), overrides, guests)
}

/// Asserts that with `from` replaced by `to` the scenario is refused at `line:column`, and that the words are in the text.
#[track_caller]
fn refused(from: &str, to: &str, place: &str, words: &[&str]) {
    assert!(GOOD.contains(from), "{from:?} is not in the scenario");
    let error = read(&GOOD.replacen(from, to, 1))
        .expect_err("must be refused")
        .to_string();
    assert!(error.contains(&format!("dir/s.toml:{place}: ")), "{error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
}

#[test]
fn a_right_scenario_is_read_whole() {
    let loaded = read(GOOD).expect("is right");
    assert_eq!(loaded.name, "s");
    let host = HostMachine {
        cpus: 2,
        memory_bytes: 512 << 20,
        timeout: Duration::from_secs(90),
        bochs_cpu_model: None,
        ips: None,
        qemu_cpu_model: None,
    };
    assert_eq!(loaded.host, host);
    assert!(loaded.scenario.machine.deterministic && !loaded.scenario.machine.allow_bare);
    let mut ping = VmConfig::new("ping", "pingpong");
    ping.group = Some("pair".into());
    ping.cpus = vec![0];
    ping.cmdline = "role=ping".into();
    assert_eq!(loaded.scenario.vms[0], ping);
    assert_eq!(loaded.scenario.vms[1].cpus, [1]);
    assert_eq!(
        loaded.images,
        BTreeMap::from([("pingpong".into(), Source::Guest)]),
        "one image for both"
    );
}

#[test]
fn the_scenarios_in_the_tree_are_right() {
    for name in names().expect("tests/scenarios is there") {
        load(&name, &Overrides::default()).unwrap_or_else(|error| panic!("{error:#}"));
    }
}

#[test]
fn bad_syntax_is_told_with_its_place() {
    refused("cpus = 2", "cpus = = 2", "2:8", &["cpus = = 2"]);
}

#[test]
fn unknown_keys_are_told_with_the_known_ones() {
    refused(
        "memory = \"512M\"",
        "memroy = \"512M\"",
        "3:1",
        &[
            "\"memroy\"",
            "did you mean \"memory\"?",
            "[machine]",
            "timeout",
        ],
    );
    refused(
        "pages = 1025",
        "page = 1025",
        "9:1",
        &["did you mean \"pages\"?"],
    );
    refused(
        "cmdline",
        "cmd_line",
        "17:1",
        &["did you mean \"cmdline\"?"],
    );
    refused(
        "[machine]",
        "[machina]",
        "1:2",
        &["did you mean \"machine\"?", "group, vm"],
    );
}

#[test]
fn unknown_groups_are_told_with_a_near_one() {
    refused(
        "group = \"pair\"",
        "group = \"pear\"",
        "13:9",
        &["\"pear\"", "did you mean \"pair\"?"],
    );
}

#[test]
fn unknown_images_are_told_with_a_near_one() {
    refused(
        "\"pingpong\"",
        "\"pingpnog\"",
        "14:9",
        &["did you mean \"pingpong\"?", "idle, pingpong"],
    );
}

#[test]
fn an_image_by_path_must_be_an_elf_file() {
    refused(
        "\"pingpong\"",
        "\"./none.elf\"",
        "14:9",
        &["none.elf", "cannot be read"],
    );
    let text = concat!("\"", env!("CARGO_MANIFEST_DIR"), "/Cargo.toml\"");
    refused("\"pingpong\"", text, "14:9", &["no ELF file"]);
}

#[test]
fn an_image_by_path_is_found_beside_the_scenario() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("mine"), b"\x7fELF...").expect("is written");
    fs::write(folder.path().join("pingpong"), b"\x7fELF...").expect("is written");
    let file = folder.path().join("s.toml");
    for path in ["./mine", "mine"] {
        let text = GOOD.replacen("\"pingpong\"", &format!("\"{path}\""), 1);
        let loaded =
            read_at(&file, &text, &Overrides::default(), &["pingpong".into()]).expect("is right");
        assert_eq!(loaded.scenario.vms[0].image, "mine");
        assert_eq!(
            loaded.images["mine"],
            Source::File(folder.path().join(path))
        );
        // A program of ours is that, whatever lies beside the scenario.
        assert_eq!(loaded.images["pingpong"], Source::Guest);
    }
}

#[test]
fn two_images_of_one_name_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("pingpong"), b"\x7fELF...").expect("is written");
    let text = GOOD.replacen("\"pingpong\"", "\"./pingpong\"", 1);
    let file = folder.path().join("s.toml");
    let error =
        read_at(&file, &text, &Overrides::default(), &["pingpong".into()]).expect_err("is refused");
    assert!(
        error.to_string().contains("two different images"),
        "{error}"
    );
}

#[test]
fn memory_that_does_not_fit_is_told_at_the_vm() {
    refused(
        "memory = \"128M\"",
        "memory = \"448M\"",
        "15:10",
        &["448M", "left"],
    );
    refused(
        "memory = \"512M\"",
        "memory = \"256M\"",
        "19:1",
        &["128M", "left"],
    );
}

#[test]
fn bad_sizes_are_told_with_a_right_one() {
    refused("\"128M\"", "\"128\"", "15:10", &["\"128\"", "\"128M\""]);
    refused("\"128M\"", "128", "15:10", &["integer", "string"]);
    refused("\"128M\"", "\"5M\"", "15:10", &["multiple of 2M"]);
    refused("\"512M\"", "\"32M\"", "3:10", &["64M or more"]);
    refused("\"90s\"", "\"0s\"", "4:11", &["\"60s\""]);
}

#[test]
fn two_vms_or_groups_of_one_name_are_refused() {
    refused("\"pong\"", "\"ping\"", "20:8", &["\"ping\"", "unique"]);
    refused(
        "[[vm]]",
        "[[group]]\nname = \"pair\"\n\n[[vm]]",
        "12:8",
        &["\"pair\"", "unique"],
    );
}

#[test]
fn zero_and_negative_pages_are_refused() {
    refused("1025", "0", "9:9", &["0 pages"]);
    refused("1025", "-1", "9:9", &["-1", "0 or more"]);
    refused("1025", "\"1025\"", "9:9", &["string", "whole number"]);
    refused(
        "1025",
        "99999999999999999999999999999999999999999",
        "9:9",
        &["far too large"],
    );
}

#[test]
fn a_cpu_must_exist_and_each_vcpu_has_one() {
    refused("cpu = 1", "cpu = 2", "23:7", &["CPU 2", "0 to 1"]);
    refused("cpu = 1", "cpu = -1", "23:7", &["-1", "out of range"]);
    refused(
        "cpu = 1",
        "cpu = 1\nvcpus = 2",
        "23:7",
        &["1 CPUs for 2 vCPUs"],
    );
    refused("cpus = 2", "cpus = 9", "2:8", &["9", "1 to 8"]);
    refused("cpus = 2", "cpus = 0", "2:8", &["0", "1 to 8"]);
}

#[test]
fn the_command_line_is_checked_as_if_it_stood_in_the_file() {
    let guests = ["pingpong".to_string()];
    let one = Overrides {
        cpus: Some(1),
        ..Overrides::default()
    };
    let error = read_at(Path::new("s.toml"), GOOD, &one, &guests).expect_err("there is no CPU 1");
    assert!(error.to_string().contains("s.toml:23:7: "), "{error}");
    let four = Overrides {
        cpus: Some(4),
        timeout: Some(Duration::from_secs(5)),
        ..Overrides::default()
    };
    let host = read_at(Path::new("s.toml"), GOOD, &four, &guests)
        .expect("is right")
        .host;
    assert_eq!((host.cpus, host.timeout), (4, Duration::from_secs(5)));
}

#[test]
fn without_a_number_the_machine_has_the_cpus_that_the_vms_name() {
    let text = GOOD
        .replacen("cpus = 2\n", "", 1)
        .replacen("cpu = 1", "cpu = [1, 5]\nvcpus = 2", 1);
    assert_eq!(read(&text).expect("is right").host.cpus, 6);
}

#[test]
fn what_must_be_there_is_missed() {
    refused("name = \"ping\"\n", "", "11:1", &["[[vm]] has no name"]);
    refused(
        "image = \"pingpong\"\n",
        "",
        "11:1",
        &["[[vm]] has no image"],
    );
    refused("name = \"pair\"\n", "", "7:1", &["[[group]] has no name"]);
    let error = read("[machine]\n").expect_err("no VM").to_string();
    assert!(error.contains("at least one [[vm]]"), "{error}");
}

#[test]
fn tables_of_the_wrong_kind_are_told() {
    let error = read("[vm]\nname = \"a\"\n")
        .expect_err("is no list")
        .to_string();
    assert!(error.contains("write [[vm]]"), "{error}");
    let error = read("machine = 1\n").expect_err("is no table").to_string();
    assert!(
        error.contains("s.toml:1:11: ") && error.contains("write [machine]"),
        "{error}"
    );
}

#[test]
fn address_policies_are_two() {
    refused(
        "pages = 1025",
        "address = \"fixd\"",
        "9:11",
        &["did you mean \"fixed\"?", "\"any\""],
    );
    let loaded = read(&GOOD.replacen("pages = 1025", "address = \"any\"", 1)).expect("is right");
    assert_eq!(loaded.scenario.groups[0].address, AddressPolicy::Any);
}

#[test]
fn a_bare_vm_needs_leave() {
    refused("cpu = 1", "cpu = 1\nbare = true", "24:8", &["allow_bare"]);
    refused("cpu = 1", "cpu = 1\nbare = 1", "24:8", &["true or false"]);
}

#[test]
fn all_errors_are_told_in_one_go_and_in_order() {
    let text = GOOD
        .replacen("cpus = 2", "cpus = 99", 1)
        .replacen("cpu = 1", "cqu = 1", 1);
    let error = read(&text).expect_err("is refused").to_string();
    let first = error.find("s.toml:2:8").expect("the first is told");
    let second = error.find("s.toml:23:1").expect("the second is told");
    assert!(first < second, "{error}");
}

#[test]
fn the_keys_of_the_scheduler_are_read() {
    let text = GOOD
        .replacen("timeout", "slice = \"500us\"\nlinger = true\ntimeout", 1)
        .replacen(
            "pages = 1025",
            "mode = \"strict\"\ndirected_yield = false\nweight = 512\ncap = 150",
            1,
        )
        .replacen(
            "cpu = 0",
            "affinity = \"0-1\"\nsoft_affinity = \"1\"\nweight = 3\ncap = 25",
            1,
        );
    let scenario = read(&text).expect("is right").scenario;
    assert_eq!(scenario.machine.slice_us, 500);
    assert_eq!(
        scenario.machine.rate_limit_us, 500,
        "never longer than the slice"
    );
    assert!(scenario.machine.control && scenario.machine.linger);
    let group = &scenario.groups[0];
    assert_eq!(group.mode, GroupMode::Strict);
    assert_eq!(
        (group.weight, group.cap_percent, group.directed_yield),
        (512, 150, false)
    );
    let vm = &scenario.vms[0];
    assert_eq!((vm.weight, vm.cap_percent), (3, 25));
    assert_eq!((vm.affinity, vm.soft_affinity), (CpuSet(3), CpuSet(2)));
    assert!(vm.cpus.is_empty());
}

#[test]
fn wrong_keys_of_the_scheduler_are_told_with_their_place() {
    refused(
        "pages = 1025",
        "mode = \"strickt\"",
        "9:8",
        &["strickt", "did you mean \"strict\"", "relaxed"],
    );
    refused(
        "pages = 1025",
        "weight = 0",
        "9:10",
        &["weight of 0", "65535"],
    );
    refused(
        "cpu = 0",
        "affinity = \"8\"",
        "16:12",
        &["CPUs 8", "the machine has 2"],
    );
    refused(
        "cpu = 0",
        "affinity = \"x\"",
        "16:12",
        &["no set of CPUs", "0-3,5"],
    );
    refused("timeout = \"90s\"", "slice = \"10\"", "4:9", &["10ms"]);
    refused(
        "timeout = \"90s\"",
        "slice = \"2000ms\"",
        "4:9",
        &["2000000 us"],
    );
    refused(
        "timeout = \"90s\"",
        "linger = true\ncontrol = false",
        "4:10",
        &["control = true"],
    );
    refused(
        "timeout = \"90s\"",
        "selftest = \"panik\"",
        "4:12",
        &["did you mean \"panic\""],
    );
}

/// The good scenario with a card added to its first VM, and these lines in it.
fn with_nic(lines: &str) -> String {
    let card = format!("cmdline = \"role=ping\"\nrng = true\n\n[[vm.nic]]\n{lines}");
    GOOD.replacen("cmdline = \"role=ping\"", &card, 1)
}

#[test]
fn devices_are_read() {
    let text = with_nic(
        "segment = \"lan\"\nmac = \"02:00:00:00:00:09\"\nmtu = 9000\noffloads = false\ncheck_source = true\nrate = \"100M\"\n\n[[vm.nic]]\n",
    );
    let vm = &read(&text).expect("is right").scenario.vms[0];
    let first = NicConfig {
        segment: Some("lan".into()),
        mac: Some(nagaya_vmm::config::Mac([2, 0, 0, 0, 0, 9])),
        mtu: Some(9000),
        offloads: false,
        check_source: true,
        rate: Some(100_000_000),
    };
    assert_eq!(vm.nics, [first, NicConfig::default()]);
    assert!(vm.rng && !vm.virtio_console);
}

#[test]
fn wrong_values_of_a_card_are_told_with_their_place() {
    let cases = [
        ("mac = \"02:00\"", "\"02:00\" is no MAC address"),
        (
            "mac = \"01:00:00:00:00:01\"",
            "01:00:00:00:00:01 is no address of a card",
        ),
        ("mtu = 20", "an MTU of 20 bytes"),
        ("mtu = 99999", "out of range"),
        ("rate = \"5K\"", "a rate of 5000 bits"),
        ("rate = \"fast\"", "\"fast\" is no rate"),
        ("segment = \"a b\"", "\"a b\" is no name"),
        ("sgment = \"lan\"", "did you mean \"segment\""),
        ("offloads = 1", "true or false"),
    ];
    for (line, words) in cases {
        let error = read(&with_nic(line)).expect_err(line).to_string();
        assert!(error.contains("dir/s.toml:21:"), "{error}");
        assert!(error.contains(words), "{words:?} is not in: {error}");
    }
    let alone = with_nic("").replacen(
        "group = \"pair\"\nimage = \"pingpong\"\nmemory",
        "image = \"pingpong\"\nmemory",
        1,
    );
    let error = read(&alone).expect_err("no segment").to_string();
    assert!(error.contains("add segment"), "{error}");
}

/// The good scenario in a folder with these files, all of the first VM from its image on replaced by `lines`.
fn read_beside(files: &[(&str, &[u8])], lines: &str) -> Result<Loaded> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).expect("is written");
    }
    let (before, rest) = GOOD.split_once("image = ").expect("is there");
    let (_, after) = rest.split_once("\n\n").expect("is there");
    let text = format!("{before}{lines}\n\n{after}");
    let file = folder.path().join("s.toml");
    let guests = ["pingpong".to_string()];
    read_at(&file, &text, &Overrides::default(), &guests)
}

fn bzimage() -> Vec<u8> {
    let mut bytes = vec![0; 0x300];
    bytes[0x202..0x206].copy_from_slice(b"HdrS");
    bytes
}

#[test]
fn a_linux_vm_is_read_whole() {
    let lines = "kind = \"linux\"\nimage = \"./vmlinuz\"\ninitramfs = \"built/initramfs-busybox\"\n\
                 debug_exit = true\ndebug_console = true\n\
                 disk = [{ image = \"./root.img\", read_only = true }, { ram = \"64M\" }]";
    let loaded =
        read_beside(&[("vmlinuz", &bzimage()), ("root.img", b"")], lines).expect("is right");
    let vm = &loaded.scenario.vms[0];
    assert_eq!((vm.kind, vm.image.as_str()), (GuestKind::Linux, "vmlinuz"));
    assert_eq!(vm.initramfs.as_deref(), Some("built/initramfs-busybox"));
    assert!(vm.debug_exit && vm.debug_console && vm.modules.is_empty());
    let image = DiskConfig {
        source: DiskSource::Image("root.img".into()),
        read_only: true,
    };
    let ram = DiskConfig {
        source: DiskSource::Ram { bytes: 64 << 20 },
        read_only: false,
    };
    assert_eq!(vm.disks, [image, ram]);
    assert!(matches!(&loaded.images["vmlinuz"], Source::File(_)));
    assert!(matches!(&loaded.images["root.img"], Source::File(_)));
    assert_eq!(
        loaded.images["built/initramfs-busybox"],
        Source::Artefact("built/initramfs-busybox".into())
    );
    assert_eq!(loaded.images["pingpong"], Source::Guest);
}

#[test]
fn a_multiboot_vm_has_modules() {
    let lines = "kind = \"multiboot\"\nimage = \"./kernel\"\n\
                 module = [{ image = \"./a\", cmdline = \"one two\" }, { image = \"./a\" }]";
    let loaded = read_beside(&[("kernel", b"any"), ("a", b"")], lines).expect("is right");
    let vm = &loaded.scenario.vms[0];
    let module = |cmdline: &str| ModuleConfig {
        image: "a".into(),
        cmdline: cmdline.into(),
    };
    assert_eq!(vm.modules, [module("one two"), module("")]);
    assert_eq!(vm.kind, GuestKind::Multiboot);
}

#[test]
fn a_file_goes_before_an_artefact_of_its_name() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("debian")).expect("is made");
    fs::write(folder.path().join("debian/vmlinux"), b"\x7fELF").expect("is written");
    let text = GOOD.replacen(
        "image = \"pingpong\"",
        "kind = \"linux\"\nimage = \"debian/vmlinux\"",
        1,
    );
    let file = folder.path().join("s.toml");
    let loaded =
        read_at(&file, &text, &Overrides::default(), &["pingpong".into()]).expect("is right");
    let path = folder.path().join("debian/vmlinux");
    assert_eq!(loaded.images["vmlinux"], Source::File(path));
}

#[test]
fn what_does_not_fit_the_kind_is_told_with_its_place() {
    let linux = "kind = \"linux\"\nimage = \"./k\"\n";
    let files: &[(&str, &[u8])] = &[("k", b"\x7fELF"), ("d", b"")];
    let cases: [(&str, &[&str]); 13] = [
        (
            "kind = \"linx\"\nimage = \"./k\"",
            &["s.toml:14:8", "did you mean \"linux\"?", "multiboot"],
        ),
        (
            "kind = \"linux\"\nimage = \"./d\"",
            &["s.toml:15:9", "no Linux kernel", "bzImage"],
        ),
        (
            "kind = \"linux\"\nimage = \"./none\"",
            &["s.toml:15:9", "there should be a kernel"],
        ),
        ("image = \"./d\"", &["no ELF file", "kind"]),
        (
            "image = \"./\"",
            &["s.toml:14:9", "without a Cargo package"],
        ),
        (
            "image = \"./k\"\ninitramfs = \"./d\"",
            &["s.toml:15:13", "initramfs", "\"native\""],
        ),
        ("{linux}initramfs = \"e\"", &["s.toml:16:13", "\"./e\""]),
        ("{linux}memory = \"8M\"", &["s.toml:16:10", "16M"]),
        (
            "{linux}[[vm.module]]\nimage = \"./d\"",
            &["[[vm.module]]", "multiboot"],
        ),
        (
            "{linux}[[vm.disk]]\nimage = \"./d\"\nram = \"1M\"",
            &["s.toml:16:1", "both"],
        ),
        (
            "{linux}[[vm.disk]]\nread_only = true",
            &["no source", "ram = \"64M\""],
        ),
        (
            "{linux}[[vm.disk]]\nram = \"1K\"",
            &["s.toml:17:7", "RAM disk of 1K", "4K"],
        ),
        (
            "image = \"./k\"\ndebug_exit = true",
            &["s.toml:15:14", "debug_exit"],
        ),
    ];
    for (lines, words) in cases {
        let lines = lines.replace("{linux}", linux);
        let error = read_beside(files, &lines).expect_err(&lines).to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in: {error}");
        }
    }
}

#[test]
fn names_of_a_back_end_concern_that_back_end_only() {
    let text = GOOD.replacen(
        "timeout",
        "bochs.cpu_model = \"corei7_haswell_4770\"\nbochs.ips = 100_000_000\ntimeout",
        1,
    );
    let host = read(&text).expect("is right").host;
    assert_eq!(
        host.cpu_model(MachineKind::Bochs).as_deref(),
        Some("corei7_haswell_4770")
    );
    assert_eq!(host.cpu_model(MachineKind::QemuKvm), None);
    assert_eq!(host.ips, Some(100_000_000));
    refused(
        "timeout = \"90s\"",
        "cpu_model = \"corei7_haswell_4770\"",
        "4:1",
        &["did you mean \"bochs.cpu_model\"?"],
    );
    refused(
        "timeout = \"90s\"",
        "bochs.ips = 10",
        "4:13",
        &["10 is out of range", "1000000 to 1000000000"],
    );
    refused(
        "timeout = \"90s\"",
        "bochs.cpu = \"x\"",
        "4:7",
        &["[machine.bochs]", "cpu_model, ips"],
    );
}

#[test]
fn the_time_limit_fits_what_is_booted_unless_the_file_has_one() {
    let timeout = |text: &str| read(text).expect("is right").host.timeout;
    let text = GOOD.replacen("timeout = \"90s\"\n", "", 1);
    assert_eq!(timeout(&text), Duration::from_secs(60));
    let lingers = text.replacen("[machine]\n", "[machine]\nlinger = true\n", 1);
    assert_eq!(timeout(&lingers), Duration::MAX);
    let linux = "[[vm]]\nname = \"a\"\nkind = \"linux\"\nimage = \"debian/vmlinux\"\n";
    assert_eq!(timeout(linux), Duration::from_secs(600));
    let limited = format!("[machine]\ntimeout = \"90s\"\n{linux}");
    assert_eq!(timeout(&limited), Duration::from_secs(90), "the file's own");
}

#[test]
fn a_scenario_is_found_from_every_folder_and_so_are_its_images() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("inner")).expect("is made");
    fs::write(folder.path().join("mine"), b"\x7fELF...").expect("is written");
    fs::write(
        folder.path().join("inner/s.toml"),
        "[[vm]]\nname = \"a\"\nimage = \"../mine\"\n",
    )
    .expect("is written");
    // As somebody types it who stands elsewhere: relative to where the program runs, with an image beside the file.
    let here = std::env::current_dir().expect("is somewhere");
    let up = "../".repeat(here.components().count() - 1);
    let below = folder.path().strip_prefix("/").expect("is absolute");
    let relative = format!("{up}{}/inner/s.toml", below.display());
    let loaded = load(&relative, &Overrides::default()).expect("is right");
    let Source::File(image) = &loaded.images["mine"] else {
        panic!("{:?}", loaded.images);
    };
    assert!(image.is_absolute() && image.exists(), "{}", image.display());
}

#[test]
fn every_key_of_the_reference_is_read_and_a_value_of_another_type_is_told() {
    fn each(table: &'static keys::Table) {
        for key in table.keys {
            if let keys::Form::Table(inner) = key.form {
                each(inner);
            }
            if table.key.is_empty() {
                continue;
            }
            let wrong = match key.form {
                keys::Form::Number | keys::Form::Numbers | keys::Form::Table(_) => "\"x\"",
                _ => "3.5",
            };
            let parent = if table.path.starts_with("vm.") {
                "[[vm]]\n"
            } else {
                ""
            };
            let text = format!("{parent}{}\n{} = {wrong}\n", table.head(), key.name);
            let error = read(&text).expect_err(&text).to_string();
            let told = format!("{} is of type", key.name);
            assert!(error.contains(&told), "{told:?} is not in: {error}");
        }
    }
    each(&keys::TOP);
}
