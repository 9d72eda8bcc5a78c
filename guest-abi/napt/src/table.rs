//! Sessions, and what is looked up in them: each operation is logarithmic in their number.
//!
//! The sets beside the sessions say nothing new: they are the sessions in other orders, and change together with them.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use crate::timeout::State;
use crate::{Endpoint, Inside, Protocol};

/// What a session is found by from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) protocol: Protocol,
    /// The port outside.
    pub(crate) port: u16,
    pub(crate) remote: Endpoint,
}

/// A session: an inside endpoint and one peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) inside: Inside,
    pub(crate) state: State,
    pub(crate) expires_at: u64,
}

/// An inside endpoint's port, and how many sessions it serves.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    port: u16,
    sessions: usize,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    sessions: BTreeMap<Key, Session>,
    mappings: BTreeMap<(Protocol, Inside), Mapping>,
    ports: BTreeSet<(Protocol, u16)>,
    by_expiry: BTreeSet<(u64, Key)>,
    /// By VM, what they are worth, and when they end.
    by_worth: BTreeSet<(u16, u8, u64, Key)>,
    counts: BTreeMap<u16, usize>,
    by_count: BTreeSet<(usize, u16)>,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.sessions.len()
    }

    pub(crate) fn len_of(&self, vm: u16) -> usize {
        self.counts.get(&vm).map_or(0, |count| *count)
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Session> {
        self.sessions.get(key)
    }

    /// The port by which an endpoint speaks already.
    pub(crate) fn port_of(&self, protocol: Protocol, inside: Inside) -> Option<u16> {
        Some(self.mappings.get(&(protocol, inside))?.port)
    }

    fn count(&mut self, vm: u16, change: impl FnOnce(usize) -> usize) {
        let before = self.len_of(vm);
        let after = change(before);
        self.by_count.remove(&(before, vm));
        if after == 0 {
            self.counts.remove(&vm);
        } else {
            self.counts.insert(vm, after);
            self.by_count.insert((after, vm));
        }
    }

    /// Adds a session or changes it.
    pub(crate) fn put(&mut self, key: Key, session: Session) {
        let vm = session.inside.vm;
        if let Some(before) = self.sessions.insert(key, session) {
            self.by_expiry.remove(&(before.expires_at, key));
            self.by_worth
                .remove(&(vm, before.state.worth(), before.expires_at, key));
        } else {
            let mapping = (key.protocol, session.inside);
            let port = key.port;
            let new = Mapping { port, sessions: 0 };
            self.mappings.entry(mapping).or_insert(new).sessions += 1;
            self.ports.insert((key.protocol, port));
            self.count(vm, |count| count + 1);
        }
        self.by_expiry.insert((session.expires_at, key));
        self.by_worth
            .insert((vm, session.state.worth(), session.expires_at, key));
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(session) = self.sessions.remove(key) else {
            return;
        };
        let vm = session.inside.vm;
        self.by_expiry.remove(&(session.expires_at, *key));
        self.by_worth
            .remove(&(vm, session.state.worth(), session.expires_at, *key));
        self.count(vm, |count| count.saturating_sub(1));
        let place = (key.protocol, session.inside);
        if let Some(mapping) = self.mappings.get_mut(&place) {
            mapping.sessions -= 1;
            if mapping.sessions == 0 {
                self.mappings.remove(&place);
                self.ports.remove(&(key.protocol, key.port));
            }
        }
    }

    pub(crate) fn remove_vm(&mut self, vm: u16) {
        while let Some(key) = self.least_wanted(vm) {
            self.remove(&key);
        }
    }

    pub(crate) fn remove_inside(&mut self, protocol: Protocol, inside: Inside) {
        let Some(port) = self.port_of(protocol, inside) else {
            return;
        };
        let least = Endpoint::new([0; 4], 0);
        let first = Key {
            protocol,
            port,
            remote: least,
        };
        let keys: Vec<Key> = self
            .sessions
            .range(first..)
            .map(|(key, _)| *key)
            .take_while(|key| key.protocol == protocol && key.port == port)
            .collect();
        keys.iter().for_each(|key| self.remove(key));
    }

    pub(crate) fn expire(&mut self, now: u64) -> usize {
        let mut ended = 0;
        while let Some((at, key)) = self.by_expiry.first().copied()
            && at <= now
        {
            self.remove(&key);
            ended += 1;
        }
        ended
    }

    /// The VM that has the most sessions, with one more for the one that wants it.
    pub(crate) fn largest(&self, wanting: u16) -> Option<u16> {
        let (count, vm) = *self.by_count.last()?;
        Some(if self.len_of(wanting) + 1 > count {
            wanting
        } else {
            vm
        })
    }

    /// The session of a VM's that is worth the least, and ends first of those.
    pub(crate) fn least_wanted(&self, vm: u16) -> Option<Key> {
        let least = Endpoint::new([0; 4], 0);
        let first = Key {
            protocol: Protocol::Tcp,
            port: 0,
            remote: least,
        };
        let (of, _, _, key) = self.by_worth.range((vm, 0, 0, first)..).next()?;
        (*of == vm).then_some(*key)
    }

    /// The first port from `first` to `last` that no flow has.
    pub(crate) fn free_port(&self, protocol: Protocol, first: u16, last: u16) -> Option<u16> {
        let mut wanted = first;
        for (_, port) in self.ports.range((protocol, first)..=(protocol, last)) {
            if *port != wanted {
                break;
            }
            wanted = wanted.checked_add(1)?;
        }
        (wanted <= last).then_some(wanted)
    }
}
