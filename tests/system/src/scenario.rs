//! Scenarios of tests, written as a person would.

use std::fmt::Write;

/// A scenario under construction.
pub(crate) struct Scenario {
    text: String,
}

impl Scenario {
    /// A machine with that many CPUs.
    pub(crate) fn new(cpus: u32) -> Scenario {
        let text = format!("[machine]\ncpus = {cpus}\nmemory = \"512M\"\ntimeout = \"240s\"\n");
        Scenario { text }
    }

    /// A further line of `[machine]`; before groups and VMs.
    pub(crate) fn machine(mut self, line: &str) -> Scenario {
        self.text.push_str(line);
        self.text.push('\n');
        self
    }

    /// A group.
    pub(crate) fn group(mut self, name: &str) -> Scenario {
        let _ = write!(self.text, "\n[[group]]\nname = \"{name}\"\n");
        self
    }

    /// A VM of 32 MiB on that CPU, in a group if one is named.
    pub(crate) fn vm(
        mut self,
        name: &str,
        group: Option<&str>,
        cpu: u32,
        image: &str,
        cmdline: &str,
    ) -> Scenario {
        let _ = write!(
            self.text,
            "\n[[vm]]\nname = \"{name}\"\nimage = \"{image}\"\nmemory = \"32M\"\ncpu = {cpu}\ncmdline = \"{cmdline}\"\n"
        );
        if let Some(group) = group {
            let _ = writeln!(self.text, "group = \"{group}\"");
        }
        self
    }

    /// Further lines for the last VM.
    pub(crate) fn with(mut self, lines: &str) -> Scenario {
        let _ = writeln!(self.text, "{lines}");
        self
    }

    /// A network card of the last VM, with these lines.
    pub(crate) fn nic(self, lines: &str) -> Scenario {
        self.with(&format!("[[vm.nic]]\n{lines}"))
    }

    pub(crate) fn text(self) -> String {
        self.text
    }
}
