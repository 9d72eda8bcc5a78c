//! Fuzzing without a fuzzer: each target takes any bytes as a list of operations and checks what must hold after each. The inputs
//! are those of `corpus` and mutations of them, in an order that repeats exactly, for a bounded number of rounds.
//!
//! An input after which a target saw something new (another set of outcomes) is mutated further, as fuzzers do by coverage.
//! Targets that are [`Driven`] run a second time beside a twin that is saved and restored between its operations: what both answer is
//! the same.
//!
//! `NAGAYA_FUZZ_ROUNDS` sets the rounds (2,000), `NAGAYA_FUZZ_SEED` where they begin. An input that fails is printed in the
//! corpus's format: put it there, and it is tried first from then on.

mod apic;
mod blk;
mod pc;
mod pci;
mod queue;
mod switch;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use nagaya_devices::state::{StateError, TscShift};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Rounds of each target in `cargo test`.
const ROUNDS: u64 = 2_000;
/// Inputs that are mutated further, at most.
const MAX_POOL: usize = 256;
/// The longest input.
const MAX_BYTES: usize = 1024;

/// Bytes of an input, taken one after the other; zeros after the end.
#[derive(Clone)]
pub(crate) struct Input<'a>(&'a [u8]);

impl Input<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    pub(crate) fn number<const BYTES: usize>(&mut self) -> u64 {
        (0..BYTES).fold(0, |number, at| number | u64::from(self.byte()) << (at * 8))
    }
}

/// What a target saw: each outcome by a number of its own.
#[derive(Default)]
pub(crate) struct Seen {
    kinds: BTreeSet<String>,
    /// All of the last step, for who compares it.
    last: String,
}

impl Seen {
    pub(crate) fn note(&mut self, outcome: &impl std::fmt::Debug) {
        let mut text = String::new();
        let _ = write!(text, "{outcome:?}");
        self.last.push_str(&text);
        // The kind, not the numbers in it.
        text.retain(|letter| !letter.is_ascii_digit());
        self.kinds.insert(text);
    }

    /// An outcome that is of interest beside a twin's only.
    pub(crate) fn tell(&mut self, outcome: &impl std::fmt::Debug) {
        let _ = write!(self.last, "{outcome:?}");
    }
}

/// A device with whoever drives it.
pub(crate) trait Driven {
    fn new(input: &mut Input<'_>) -> Self;

    /// One operation. All that is answered is noted or told, times as distances from now.
    fn step(&mut self, input: &mut Input<'_>, seen: &mut Seen);

    /// Saves and restores the device. It goes on at another time, which is moved by `by` for all of it.
    fn save_and_restore(&mut self, by: TscShift);

    /// Its state in bytes.
    fn bytes(&self) -> Vec<u8>;

    /// Restores it from any bytes. `false`: they are refused.
    fn restore_from(&mut self, bytes: &[u8]) -> bool;

    /// What is left in the guest's memory.
    fn end(&mut self, _seen: &mut Seen) {}
}

/// A target that only drives.
pub(crate) fn drive<D: Driven>(input: &mut Input<'_>, seen: &mut Seen) {
    let mut device = D::new(input);
    while !input.is_empty() {
        device.step(input, seen);
        seen.last.clear();
    }
}

/// A target that drives a device and its twin, which is saved and restored before some of the operations.
pub(crate) fn drive_beside_twin<D: Driven>(input: &mut Input<'_>, seen: &mut Seen) {
    const MOVES: [(u64, u64); 3] = [(0, 0), (1 << 20, 0), (0, 77_777)];
    let every = 2 << (input.0.len() % 5);
    let (mut device, mut twin) = (D::new(&mut input.clone()), D::new(input));
    let mut of_twin = Seen::default();
    for step in 0.. {
        if input.is_empty() {
            break;
        }
        if step % every == 0 {
            let (saved, now) = MOVES[step / every % MOVES.len()];
            twin.save_and_restore(TscShift::between(saved, now));
        }
        let mut same = input.clone();
        device.step(input, seen);
        twin.step(&mut same, &mut of_twin);
        assert_eq!(seen.last, of_twin.last, "operation {step}");
        seen.last.clear();
        of_twin.last.clear();
    }
    device.end(seen);
    twin.end(&mut of_twin);
    assert!(seen.last == of_twin.last, "the guest's memory");
}

/// A target that drives a device, changes some bytes of its state and drives what is restored from it, if it is not refused.
pub(crate) fn drive_damaged<D: Driven>(input: &mut Input<'_>, seen: &mut Seen) {
    let changes = 1 + input.byte() % 4;
    let mut damaged: Vec<(usize, u8)> = Vec::new();
    for _ in 0..changes {
        damaged.push((input.number::<2>() as usize, input.byte()));
    }
    let steps = input.byte() % 8;
    let mut device = D::new(input);
    for _ in 0..steps {
        device.step(input, seen);
    }
    let mut bytes = device.bytes();
    for (at, change) in damaged {
        let at = at % bytes.len();
        match change % 8 {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] = 0xFF,
            2 => bytes.insert(at, change),
            _ => bytes[at] ^= change,
        }
    }
    let is_taken = device.restore_from(&bytes);
    seen.note(&is_taken);
    if is_taken {
        // What it is like is its own affair, and not that it panics or has no end.
        while !input.is_empty() {
            device.step(input, seen);
        }
    }
}

/// What is restored from any bytes, unless they are refused; the error says where.
pub(crate) fn from_bytes<S: DeserializeOwned, T>(
    bytes: &[u8],
    restore: impl Fn(&S) -> Result<T, StateError>,
) -> Option<T> {
    let state: S = postcard::from_bytes(bytes).ok()?;
    let restored = restore(&state);
    if let Err(error) = &restored {
        assert!(!error.field.is_empty(), "{error}");
    }
    restored.ok()
}

/// A state after its way through bytes, and what it is restored to; its state is the same.
pub(crate) fn through_bytes<S, T>(
    state: &S,
    restore: impl Fn(&S) -> Result<T, StateError>,
    save: impl Fn(&T) -> S,
) -> T
where
    S: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let bytes = postcard::to_stdvec(state).expect("is written");
    let read: S = postcard::from_bytes(&bytes).expect("is read");
    assert_eq!(&read, state);
    let restored = restore(&read).expect("was saved by one of ours");
    assert_eq!(
        postcard::to_stdvec(&save(&restored)).expect("is written"),
        bytes
    );
    restored
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

fn mutate(random: &mut Random, pool: &[Vec<u8>]) -> Vec<u8> {
    const EDGES: [u8; 8] = [0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x10];
    let mut input = pool[random.below(pool.len())].clone();
    for _ in 0..=random.below(4) {
        let at = random.below(input.len());
        match random.below(7) {
            _ if input.is_empty() => input.push(random.next() as u8),
            0 => input[at] ^= 1 << random.below(8),
            1 => input[at] = random.next() as u8,
            2 => input[at] = EDGES[random.below(EDGES.len())],
            3 => input.insert(at, random.next() as u8),
            4 => drop(input.drain(at..(at + 1 + random.below(8)).min(input.len()))),
            5 => {
                // A piece of itself, again.
                let end = (at + 1 + random.below(16)).min(input.len());
                let piece = input[at..end].to_vec();
                let to = random.below(input.len());
                input.splice(to..to, piece);
            }
            _ => {
                // Its beginning, and another's end.
                let other = &pool[random.below(pool.len())];
                input.truncate(at);
                input.extend(&other[random.below(other.len())..]);
            }
        }
    }
    input.truncate(MAX_BYTES);
    input
}

/// An input as the corpus has it: hexadecimal bytes, anything after `#` a comment.
fn parse(text: &str) -> Vec<u8> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(""));
    lines
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).expect("a byte in hexadecimal"))
        .collect()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let files = std::fs::read_dir(folder.join(name)).expect("the target has a corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("readable").path()).collect();
    files.sort();
    let read = |file: &PathBuf| parse(&std::fs::read_to_string(file).expect("readable"));
    files.iter().map(read).collect()
}

fn setting(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// Runs a target over its corpus and over mutations.
pub(crate) fn run(name: &str, target: impl Fn(&mut Input<'_>, &mut Seen)) {
    let mut known = BTreeSet::new();
    let mut attempt = |input: &[u8]| {
        let mut seen = Seen::default();
        let result = catch_unwind(AssertUnwindSafe(|| target(&mut Input(input), &mut seen)));
        if let Err(panic) = result {
            eprintln!("{name} fails with this input:\n{input:02x?}");
            resume_unwind(panic);
        }
        known.insert(seen.kinds)
    };
    let mut pool = corpus(name);
    assert!(!pool.is_empty(), "{name} has no corpus");
    pool.iter().for_each(|input| {
        attempt(input);
    });
    let mut random = Random(setting("NAGAYA_FUZZ_SEED", 1));
    for _ in 0..setting("NAGAYA_FUZZ_ROUNDS", ROUNDS) {
        let input = mutate(&mut random, &pool);
        if attempt(&input) && pool.len() < MAX_POOL {
            pool.push(input);
        }
    }
}

#[test]
fn the_corpus_is_read_as_it_is_written() {
    assert_eq!(parse("01 ff # one\n\n# two\n7f"), [1, 0xFF, 0x7F]);
}
