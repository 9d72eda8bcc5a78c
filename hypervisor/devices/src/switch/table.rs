//! The addresses that were learned.

use alloc::collections::BTreeMap;

use super::{MAX_PORTS, MacAddress, PortId, Station, SwitchConfig};

#[derive(Clone, Copy, Debug)]
struct Entry {
    port: PortId,
    seen_at: u64,
}

#[derive(Debug)]
pub(super) struct Table {
    entries: BTreeMap<Station, Entry>,
    /// Entries of each port.
    counts: [usize; MAX_PORTS as usize],
    max_per_port: usize,
    age_ticks: u64,
    /// No old entries are looked for before: a full port must not cost a search for each frame.
    purge_at: u64,
}

/// In each age the table is searched for old entries at most so often.
const PURGES_PER_AGE: u64 = 8;

impl Table {
    pub(super) fn new(config: &SwitchConfig) -> Table {
        Table {
            entries: BTreeMap::new(),
            counts: [0; MAX_PORTS as usize],
            max_per_port: config.max_addresses_per_port,
            age_ticks: config.age_ticks,
            purge_at: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn count(&mut self, port: PortId) -> Option<&mut usize> {
        self.counts.get_mut(usize::from(port.number()))
    }

    fn is_old(&self, entry: &Entry, now: u64) -> bool {
        now.saturating_sub(entry.seen_at) > self.age_ticks
    }

    /// Where an address was seen last, if not too long ago.
    pub(super) fn find(&self, segment: u16, address: MacAddress, now: u64) -> Option<PortId> {
        let entry = self.entries.get(&Station::new(segment, address))?;
        (!self.is_old(entry, now)).then_some(entry.port)
    }

    /// Notes where an address was seen. If its port has no room it is not noted, and its frames go to all. What other ports have
    /// learned makes no difference.
    pub(super) fn learn(&mut self, segment: u16, address: MacAddress, port: PortId, now: u64) {
        let key = Station::new(segment, address);
        let known = self.entries.get_mut(&key);
        if let Some(entry) = known
            && entry.port == port
        {
            entry.seen_at = now;
            return;
        }
        if !self.has_room(port) && now >= self.purge_at {
            self.purge(now);
        }
        if !self.has_room(port) {
            // Where it was it is no more: better to all than to there.
            self.forget(&key);
            return;
        }
        let entry = Entry { port, seen_at: now };
        if let Some(before) = self.entries.insert(key, entry)
            && let Some(count) = self.count(before.port)
        {
            *count -= 1;
        }
        if let Some(count) = self.count(port) {
            *count += 1;
        }
    }

    fn forget(&mut self, key: &Station) {
        if let Some(entry) = self.entries.remove(key)
            && let Some(count) = self.count(entry.port)
        {
            *count -= 1;
        }
    }

    fn has_room(&self, port: PortId) -> bool {
        let count = self.counts.get(usize::from(port.number()));
        count.is_some_and(|count| *count < self.max_per_port)
    }

    fn purge(&mut self, now: u64) {
        self.purge_at = now.saturating_add((self.age_ticks / PURGES_PER_AGE).max(1));
        let age_ticks = self.age_ticks;
        self.retain(|entry| now.saturating_sub(entry.seen_at) <= age_ticks);
    }

    pub(super) fn forget_port(&mut self, port: PortId) {
        self.retain(|entry| entry.port != port);
    }

    fn retain(&mut self, keeps: impl Fn(&Entry) -> bool) {
        let counts = &mut self.counts;
        self.entries.retain(|_, entry| {
            let kept = keeps(entry);
            if !kept && let Some(count) = counts.get_mut(usize::from(entry.port.number())) {
                *count -= 1;
            }
            kept
        });
    }
}
