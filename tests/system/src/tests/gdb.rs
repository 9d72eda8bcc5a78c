//! Debian's gdb at a VM, by `nagayactl gdb`.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use guest_abi::boot::IMAGE_BASE_GPA;
use nagaya_harness::RunReport;
use serde_json::Value;

use crate::expect;
use crate::scenario::Scenario;
use crate::{Operator, SystemTest, Verdict};

pub(crate) fn add(tests: &mut Vec<SystemTest>) {
    let scenario = Scenario::new(2)
        .machine("control = true")
        .machine("linger = true")
        .vm("debuggee", None, 0, "debuggee", "")
        .text()
        .replace("cpu = 0", "vcpus = 2\ncpu = [0, 1]")
        + "\n[[vm]]\nname = \"other\"\nimage = \"clock\"\nmemory = \"16M\"\ncpu = 1\n";
    let mut test = SystemTest::new("gdb/native", scenario, ended_well);
    test.script = Some(native);
    tests.push(test);
}

/// The debuggee ended by itself, and found nothing amiss.
fn ended_well(reports: &[RunReport]) -> Verdict {
    let report = expect::first(reports)?;
    expect::passed(report, "debuggee", &["start", "remainder"])?;
    expect::ended(report, "debuggee", "exit", Some(0))?;
    expect::all_ended_well(reports)
}

/// `nagayactl gdb`, which ends with this value at the latest.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(operator: &Operator, arguments: &[&str]) -> Result<Server, String> {
        let (program, first) = operator.program.split_first().ok_or("no program")?;
        let mut child = Command::new(program)
            .args(first)
            .arg("--connect")
            .arg(&operator.socket)
            .args(["--timeout", "60", "--json", "gdb"])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no standard output")?;
        BufReader::new(stdout)
            .read_line(&mut line)
            .map_err(|error| error.to_string())?;
        let told: Value = serde_json::from_str(&line).unwrap_or_default();
        let address = told["listening"].as_str().map(str::to_owned);
        match address {
            Some(address) => Ok(Server { child, address }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                Err(format!("gdb {arguments:?} does not listen: {line}"))
            }
        }
    }

    /// Lets gdb do these commands; gives what it said.
    fn gdb(&self, symbols: &Symbols, commands: &[&str]) -> Result<String, String> {
        let attach = format!("target remote {}", self.address);
        let program = symbols.program.display();
        let load = format!("add-symbol-file {program} -o {IMAGE_BASE_GPA:#x}");
        let first = ["set language c", "set remotetimeout 60", &*attach, &*load];
        let output = Command::new("gdb")
            .args(["-nx", "-q", "-batch"])
            .args(first.iter().chain(commands).flat_map(|it| ["-ex", it]))
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("gdb: {error}"))?;
        Ok(format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    }

    /// It ends by itself once gdb has gone.
    fn ended(mut self, text: &str) -> Verdict {
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if status.success() {
            Ok(())
        } else {
            Err(format!(
                "nagayactl gdb ended with {status}; gdb had said:\n{text}"
            ))
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `print` said, in order.
fn printed(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| line.starts_with('$'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(_, value)| value)
        .collect()
}

fn contains(text: &str, all: &[&str]) -> Verdict {
    match all.iter().find(|word| !text.contains(**word)) {
        None => Ok(()),
        Some(word) => Err(format!("gdb does not say {word:?}:\n{text}")),
    }
}

/// Where the debuggee's functions and variables are.
struct Symbols {
    program: PathBuf,
    /// Mangled names and linear addresses.
    all: Vec<(String, u64)>,
}

impl Symbols {
    fn read(program: PathBuf) -> Result<Symbols, String> {
        let bytes = std::fs::read(&program).map_err(|error| error.to_string())?;
        let file = elf::ElfBytes::<elf::endian::LittleEndian>::minimal_parse(&bytes)
            .map_err(|error| error.to_string())?;
        let (symbols, names) = file
            .symbol_table()
            .map_err(|error| error.to_string())?
            .ok_or("the debuggee has no symbols")?;
        let all = symbols
            .iter()
            .filter_map(|symbol| {
                let name = names.get(symbol.st_name as usize).ok()?;
                Some((name.to_owned(), symbol.st_value + IMAGE_BASE_GPA))
            })
            .collect();
        Ok(Symbols { program, all })
    }

    /// The address of the item of that name, as text: mangled names end with their length and them.
    fn of(&self, name: &str) -> Result<String, String> {
        let end = format!("8debuggee{}{name}", name.len());
        self.all
            .iter()
            .find(|(mangled, _)| mangled.ends_with(&end))
            .map(|(_, address)| format!("{address:#x}"))
            .ok_or_else(|| format!("the debuggee has no {name}"))
    }
}

fn native(operator: &Operator) -> Verdict {
    let symbols = Symbols::read(operator.symbols.join("debuggee"))?;
    operator.await_state("debuggee", "running")?;
    operator.refused(&["gdb", "nobody"], "nobody")?;
    operator.refused(&["gdb", "debuggee", "--vcpu", "5"], "vCPU 5")?;
    operator.await_state("debuggee", "running")?;
    breakpoints_steps_and_watchpoints(operator, &symbols)?;
    // It runs again as if nothing had been.
    operator.await_state("debuggee", "running")?;
    gdb_dies(operator, &symbols)?;
    operator.await_state("debuggee", "running")?;

    let over = format!("*(unsigned long*){}", symbols.of("OVER")?);
    let server = Server::start(operator, &["debuggee"])?;
    let text = server.gdb(&symbols, &[&format!("set {over} = 1"), "continue"])?;
    server.ended(&text)?;
    contains(&text, &["exited"])?;
    operator.await_state("debuggee", "ended")?;
    // Nobody else was disturbed.
    operator.await_state("other", "running")?;
    operator.must(&["destroy", "other"])?;
    operator.must(&["shutdown"])
}

fn breakpoints_steps_and_watchpoints(operator: &Operator, symbols: &Symbols) -> Verdict {
    let advance = symbols.of("advance")?;
    let second = symbols.of("advance_second")?;
    let counter = format!("*(unsigned long*){}", symbols.of("COUNTER")?);
    let second_counter = format!("*(unsigned long*){}", symbols.of("SECOND")?);
    let is_at = |address: &str| format!("print (unsigned long)$rip == {address}");
    let server = Server::start(operator, &["debuggee"])?;
    let text = server.gdb(
        symbols,
        &[
            "info threads",
            // A software breakpoint, hit twice; memory is shown without it.
            &format!("break *{advance}"),
            "continue",
            &format!("print *(unsigned char*){advance} != 0xcc"),
            &is_at(&advance),
            &format!("set $before = {counter}"),
            "continue",
            &format!("print {counter} - $before"),
            "backtrace 1",
            "delete",
            // Steps of one instruction each, which leave no trap flag behind.
            "set $at = (unsigned long)$rip",
            "stepi",
            "print (unsigned long)$rip - $at < 16 && (unsigned long)$rip > $at",
            "stepi",
            "print ($eflags & 0x100)",
            // A watchpoint on the other vCPU's counter stops behind the write.
            &format!("set $before = {second_counter}"),
            &format!("watch {second_counter}"),
            "continue",
            &format!("print {second_counter} - $before"),
            "delete",
            // A hardware breakpoint, passed and met again.
            &format!("hbreak *{second}"),
            "continue",
            &is_at(&second),
            "continue",
            &is_at(&second),
            "delete",
            // Registers can be set, those of the system cannot; where no RAM is nothing is touched.
            "set $before = $rax",
            "set $rax = 0x1234",
            "print $rax",
            "set $rax = $before",
            "print ($cr0 & 0x80000001) == 0x80000001",
            "set $cr3 = 0",
            "x/1xg 0x123456789000",
            "detach",
        ],
    )?;
    server.ended(&text)?;
    contains(
        &text,
        &[
            "Thread 1.1",
            "Thread 1.2",
            "hit Breakpoint 1,",
            "debuggee.rs",
            "Hardware watchpoint 2",
            "Could not write registers",
            "Cannot access memory at address 0x123456789000",
        ],
    )?;
    let expected = ["1", "1", "3", "1", "0", "2", "1", "1", "4660", "1"];
    if printed(&text) != expected {
        return Err(format!(
            "gdb printed {:?} instead of {expected:?}:\n{text}",
            printed(&text)
        ));
    }
    Ok(())
}

/// gdb that dies leaves nothing behind: its breakpoint is taken away, and the VM goes on.
fn gdb_dies(operator: &Operator, symbols: &Symbols) -> Verdict {
    let server = Server::start(operator, &["debuggee", "--vcpu", "1"])?;
    let text = server.gdb(
        symbols,
        &[
            &format!("break *{}", symbols.of("advance")?),
            "continue",
            "shell kill -9 $PPID",
        ],
    )?;
    contains(&text, &["hit Breakpoint 1,"])?;
    server.ended(&text)
}
