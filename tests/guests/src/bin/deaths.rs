//! Members that die at random points of everything that members do together, and two that survive them.
//!
//! Command line of all: `seed=`, `victims=`, `lives=`; of a victim also `victim=` its number, from 0. A victim locks, pushes, arrives, maps and
//! unmaps the region, rings, prints, and writes nonsense over its own words, until its timer resets it in the middle of that: so it
//! dies at any instruction, `lives` - 1 times. A survivor waits for victims by every kind of wait, and checks that each ends within a
//! bound, with a result of the life that it waited for or with that life's death, and that its own part of the region is untouched.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::Ordering;

use nagaya_guests::{REGION_VA, check};
use nagaya_rt::apic::{self, Apic};
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::{
    Barrier, BarrierError, Consumer, GroupPeers, Life, LockError, Patience, Producer, QueueError,
    QueueHeader, QueueSlot, Receiver, RingError, RingHeader, Sender, SpinLock, WaitError,
    spin_for_life,
};
use nagaya_rt::{Errno, MemberState, args, group, hypercall, interrupts, println, time, traps};

nagaya_rt::entry!(main);

/// Survivors are the members below.
const SURVIVORS: u32 = 2;
const MEMBERS: usize = nagaya_rt::abi::MAX_MEMBERS;
/// Victims that are done.
const FINISHED: u64 = 8;
/// How many lives each victim has begun.
const LIVES: u64 = 1024;
/// The survivors' own parts, and their words.
const OWN: u64 = 4096;
const OWN_WORDS: u64 = 256;
/// The members' parts: a page each.
const PARTS: u64 = 4 * 4096;
/// In a part: the life that has prepared it; the lock and what it protects; the ring; the barrier; the queue.
const READY: u64 = 0;
const LOCK: u64 = 64;
const FIRST: u64 = 72;
const SECOND: u64 = 80;
const RING: u64 = 128;
const RING_SLOTS: u64 = 256;
const BARRIER: u64 = 512;
const QUEUE: u64 = 1024;
const QUEUE_SLOTS: u64 = 1088;
const SLOTS: usize = 4;
/// No wait may be longer: far longer than a victim's life.
const BOUND_MS: u64 = 20_000;
/// The longest life, in ticks, beyond the shortest.
const LONGEST_TICKS: u64 = 40_000;
const SHORTEST_TICKS: u64 = 300;

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn new(words: [u64; 3]) -> Random {
        let mixed = words.iter().fold(0x9E37_79B9_7F4A_7C15_u64, |sum, word| {
            (sum ^ word)
                .wrapping_mul(0xBF58_476D_1CE4_E5B9)
                .rotate_left(27)
        });
        Random(mixed | 1)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) % most
    }
}

/// What a member has in the region.
struct Part<'a> {
    region: &'a SharedRegion,
    at: u64,
}

impl<'a> Part<'a> {
    fn of(region: &'a SharedRegion, member: u32) -> Part<'a> {
        let at = PARTS + u64::from(member) * 4096;
        Part { region, at }
    }

    fn word(&self, offset: u64) -> &'a core::sync::atomic::AtomicU64 {
        self.region
            .u64(self.at + offset)
            .expect("inside the region")
    }

    fn lock(&self) -> &'a SpinLock {
        self.region.cell(self.at + LOCK).expect("inside the region")
    }

    fn barrier(&self) -> &'a Barrier {
        let barrier = self.region.cell(self.at + BARRIER);
        barrier.expect("inside the region")
    }

    fn ring(&self) -> (&'a RingHeader, &'a [core::sync::atomic::AtomicU64]) {
        let header = self.region.cell(self.at + RING);
        let slots = self.region.slice(self.at + RING_SLOTS, SLOTS);
        (
            header.expect("inside the region"),
            slots.expect("inside the region"),
        )
    }

    fn queue(&self) -> (&'a QueueHeader, &'a [QueueSlot]) {
        let header = self.region.cell(self.at + QUEUE);
        let slots = self.region.slice(self.at + QUEUE_SLOTS, SLOTS);
        (
            header.expect("inside the region"),
            slots.expect("inside the region"),
        )
    }
}

fn main() -> Result<(), Errno> {
    let region = SharedRegion::map_at(REGION_VA)?;
    let me = group::my_index().ok_or(Errno::Perm)?;
    if let Some(victim) = args::get("victim").and_then(|number| number.parse().ok()) {
        return live(&region, me, victim);
    }
    Survivor::new(&region, me).watch();
    check::finish();
}

/// A victim's life. It returns from the last one only.
fn live(region: &SharedRegion, me: u32, victim: u64) -> Result<(), Errno> {
    let cell = |offset| region.u64(offset).expect("inside the region");
    let life = cell(LIVES + victim * 8).fetch_add(1, Ordering::AcqRel) + 1;
    let part = Part::of(region, me);
    let incarnation = group::incarnation(me);
    for offset in (RING..BARRIER).chain(QUEUE..QUEUE_SLOTS + 64).step_by(8) {
        part.word(offset).store(0, Ordering::Relaxed);
    }
    if life >= args::number("lives", 2) {
        cell(FINISHED).fetch_add(1, Ordering::AcqRel);
        return Ok(());
    }
    let mut random = Random::new([args::number("seed", 1), victim, life]);
    let apic = Apic::enable().ok_or(Errno::NoSys)?;
    let vector = interrupts::take_vector(die).ok_or(Errno::NoMem)?;
    part.word(READY).store(incarnation, Ordering::Release);
    apic.one_shot(vector, SHORTEST_TICKS + random.below(LONGEST_TICKS));
    traps::enable_interrupts();

    let (header, slots) = part.ring();
    let mut producer = Producer::new(header, slots, 0);
    let (header, slots) = part.queue();
    let sender = Sender::new(header, slots, me, 0, &GroupPeers).ok_or(Errno::Inval)?;
    let mut sent = 0;
    loop {
        sent += 1;
        let value = incarnation << 32 | sent;
        match random.below(9) {
            0 => hold(&part, me),
            1 => drop(producer.try_push(value)),
            2 => drop(sender.try_send(value)),
            3 => drop(part.barrier().arrive(me)),
            4 => {
                let _ = hypercall::unmap_shared(REGION_VA);
                let _ = hypercall::map_shared(REGION_VA);
            }
            5 => {
                let _ = hypercall::doorbell(random.below(u64::from(SURVIVORS)) as u32);
            }
            6 => {
                let _ = hypercall::wait(random.below(100_000));
            }
            7 => println!("{sent}"),
            // Now and then, and only over what is its own.
            _ if random.below(4) == 0 => {
                let at = [
                    LOCK,
                    RING,
                    RING + 64,
                    QUEUE,
                    QUEUE_SLOTS,
                    BARRIER + u64::from(me) * 8,
                ];
                let offset = at[random.below(at.len() as u64) as usize];
                let nonsense = random.below(u64::MAX);
                part.word(offset).store(nonsense, Ordering::Release);
            }
            _ => {}
        }
    }
}

/// The handler of the timer.
fn die() {
    apic::reset_vm()
}

/// Changes two words under the lock, one after the other.
fn hold(part: &Part<'_>, me: u32) {
    let guard = match part.lock().try_lock_for(me, &GroupPeers, 1000) {
        Ok(guard) => Some(guard),
        Err(LockError::OwnerDied(recovery)) => recovery.recovered(),
        Err(_) => None,
    };
    if guard.is_some() {
        part.word(FIRST).fetch_add(1, Ordering::Relaxed);
        part.word(SECOND).fetch_add(1, Ordering::Relaxed);
    }
}

struct Survivor<'a> {
    region: &'a SharedRegion,
    me: u32,
    random: Random,
    /// Incarnations whose ring and queue have been used: an end can be made once.
    ring_of: [u64; MEMBERS],
    queue_of: [u64; MEMBERS],
    deaths: u64,
    /// Waits by what they ended with: a result, a death, nonsense.
    ends: [u64; 3],
    /// What may not be.
    stale: u64,
    late: u64,
    wrong: u64,
}

#[derive(Clone, Copy)]
enum End {
    Result,
    Death(u64),
    Nonsense,
    Late,
    /// A result of another life, or the death of one that was not waited for.
    Stale,
}

impl<'a> Survivor<'a> {
    fn new(region: &'a SharedRegion, me: u32) -> Survivor<'a> {
        let survivor = Survivor {
            region,
            me,
            random: Random::new([args::number("seed", 1), 1 << 32, me.into()]),
            ring_of: [0; MEMBERS],
            queue_of: [0; MEMBERS],
            deaths: 0,
            ends: [0; 3],
            stale: 0,
            late: 0,
            wrong: 0,
        };
        for index in 0..OWN_WORDS {
            let word = survivor.own(index);
            word.store(survivor.own_value(index), Ordering::Relaxed);
        }
        survivor
    }

    fn own(&self, index: u64) -> &'a core::sync::atomic::AtomicU64 {
        let offset = OWN + u64::from(self.me) * 4096 + index * 8;
        self.region.u64(offset).expect("inside the region")
    }

    fn own_value(&self, index: u64) -> u64 {
        (u64::from(self.me) + 1) << 48 | index
    }

    fn watch(&mut self) {
        let victims = args::number("victims", 1);
        let finished = self.region.u64(FINISHED).expect("inside the region");
        let mut generation = group::generation();
        while finished.load(Ordering::Acquire) < victims {
            let rest = MEMBERS as u64 - u64::from(SURVIVORS);
            let member = SURVIVORS + self.random.below(rest) as u32;
            if group::is_alive(member) {
                self.engage(member);
            }
            let now = group::generation();
            self.wrong += u64::from(now < generation);
            generation = now;
        }
        let is_untouched = |index| self.own(index).load(Ordering::Relaxed) == self.own_value(index);
        check::holds("own-part-is-untouched", (0..OWN_WORDS).all(is_untouched));
        check::equal("nothing-stale", self.stale, 0);
        check::equal("nobody-waits-too-long", self.late, 0);
        check::equal("nothing-wrong", self.wrong, 0);
        check::holds("deaths-were-told", self.deaths > 0);
        let ended: u64 = (SURVIVORS..MEMBERS as u32).map(group::incarnation).sum();
        println!(
            "{ended} lives, {} deaths told, ends {:?}",
            self.deaths, self.ends
        );
        // Whoever goes on leaves last.
        let deadline = time::Deadline::after_ms(BOUND_MS);
        while (SURVIVORS..MEMBERS as u32).any(group::is_alive) && !deadline.has_passed() {
            let _ = hypercall::wait(1_000_000);
        }
    }

    /// Waits for a victim in one of the ways there are.
    fn engage(&mut self, member: u32) {
        let life = Life::now(&GroupPeers, member);
        let part = Part::of(self.region, member);
        let patience = Patience::Ticks(time::ms_to_ticks(BOUND_MS));
        let ready = || (part.word(READY).load(Ordering::Acquire) == life.incarnation).then_some(());
        let end = match spin_for_life(&GroupPeers, life, patience, ready) {
            Err(WaitError::PeerDied(died)) => End::Death(died.incarnation),
            Err(WaitError::TimedOut) => End::Late,
            Ok(()) => match self.random.below(5) {
                0 => self.lock(&part),
                1 => self.ring(&part, life, patience),
                2 => self.queue(&part, life, patience),
                3 => self.barrier(&part, life, patience),
                _ => match spin_for_life(&GroupPeers, life, patience, || None::<()>) {
                    Err(WaitError::PeerDied(died)) => End::Death(died.incarnation),
                    _ => End::Late,
                },
            },
        };
        match end {
            End::Result => self.ends[0] += 1,
            End::Nonsense => self.ends[2] += 1,
            End::Late => self.late += 1,
            End::Death(incarnation) if incarnation == life.incarnation => {
                self.ends[1] += 1;
                self.deaths += 1;
                self.after_death(life);
            }
            End::Death(_) | End::Stale => self.stale += 1,
        }
    }

    /// What is true of a life that is over.
    fn after_death(&mut self, life: Life) {
        let rung = hypercall::doorbell_life(life.member, life.incarnation);
        self.wrong += u64::from(rung != Err(Errno::NoPeer));
        let is_dead = matches!(
            group::member_state(life.member),
            MemberState::Died | MemberState::Exited
        );
        let is_next = group::incarnation(life.member) > life.incarnation;
        self.wrong += u64::from(!is_dead && !is_next);
    }

    fn lock(&mut self, part: &Part<'_>) -> End {
        let ticks = time::ms_to_ticks(BOUND_MS);
        let guard = match part.lock().try_lock_for(self.me, &GroupPeers, ticks) {
            Ok(guard) => Some(guard),
            Err(LockError::OwnerDied(recovery)) => {
                // Mended.
                let first = part.word(FIRST).load(Ordering::Relaxed);
                part.word(SECOND).store(first, Ordering::Relaxed);
                recovery.recovered()
            }
            Err(LockError::TimedOut) => return End::Late,
            Err(LockError::Corrupt(_) | LockError::NotRecoverable) => {
                // The victim wrote nonsense over it: it is open again.
                part.word(LOCK).store(0, Ordering::Release);
                return End::Nonsense;
            }
        };
        drop(guard);
        End::Result
    }

    fn ring(&mut self, part: &Part<'_>, life: Life, patience: Patience) -> End {
        if core::mem::replace(&mut self.ring_of[life.member as usize], life.incarnation)
            == life.incarnation
        {
            return End::Result;
        }
        let (header, slots) = part.ring();
        let mut consumer = Consumer::of_life(header, slots, life);
        for _ in 0..8 {
            match consumer.pop(&GroupPeers, patience) {
                Ok(value) if value >> 32 == life.incarnation => {}
                Ok(_) => return End::Stale,
                Err(RingError::PeerDied(died)) => return End::Death(died.incarnation),
                Err(RingError::Corrupt { .. }) => return End::Nonsense,
                Err(RingError::TimedOut) => return End::Late,
            }
        }
        End::Result
    }

    fn queue(&mut self, part: &Part<'_>, life: Life, patience: Patience) -> End {
        if core::mem::replace(&mut self.queue_of[life.member as usize], life.incarnation)
            == life.incarnation
        {
            return End::Result;
        }
        let (_, slots) = part.queue();
        let producers = 1 << life.member;
        let Some(mut receiver) = Receiver::new(slots, producers, &GroupPeers) else {
            return End::Stale;
        };
        for _ in 0..8 {
            match receiver.receive(&GroupPeers, patience) {
                // Its next life may have begun before the receiver was made.
                Ok(value) if value >> 32 >= life.incarnation => {}
                Ok(_) => return End::Stale,
                Err(QueueError::PeerDied(died)) if died.incarnation >= life.incarnation => {
                    return End::Death(life.incarnation);
                }
                Err(QueueError::PeerDied(_) | QueueError::NobodyLeft) => return End::Stale,
                Err(QueueError::Corrupt { .. }) => return End::Nonsense,
                Err(QueueError::TimedOut) => return End::Late,
            }
        }
        End::Result
    }

    fn barrier(&mut self, part: &Part<'_>, life: Life, patience: Patience) -> End {
        let participants = 1 << life.member;
        match part
            .barrier()
            .wait(self.me, participants, &GroupPeers, patience)
        {
            Ok(()) => End::Result,
            Err(BarrierError::PeerDied(died)) if died.incarnation >= life.incarnation => {
                End::Death(life.incarnation)
            }
            Err(BarrierError::PeerDied(_) | BarrierError::NoMember(_)) => End::Stale,
            Err(BarrierError::TimedOut(_)) => End::Late,
        }
    }
}
