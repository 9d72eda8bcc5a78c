//! A map from identifiers to values in which a look-up is two loads: decisions look up dozens of times.
//!
//! Identifiers are small numbers; values lie in pages of [`PAGE`], made when the first of a page comes and dropped with the last.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::ids::{GangId, VcpuId, VmId};

/// Values in a page.
const PAGE: usize = 32;

/// What identifies a value.
pub trait Key: Copy {
    /// A small number that no other key of the type has.
    fn index(self) -> usize;
}

impl Key for VcpuId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl Key for VmId {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl Key for GangId {
    fn index(self) -> usize {
        match self {
            GangId::Group(group) => group.0 as usize * 2,
            GangId::Vm(vm) => vm.0 as usize * 2 + 1,
        }
    }
}

#[derive(Debug)]
struct Page<V> {
    values: [Option<V>; PAGE],
    used: usize,
}

/// The map.
#[derive(Debug)]
pub struct Table<K, V> {
    pages: Vec<Option<Box<Page<V>>>>,
    keys: core::marker::PhantomData<K>,
}

impl<K: Key, V> Table<K, V> {
    /// Without values.
    #[must_use]
    pub const fn new() -> Table<K, V> {
        Table {
            pages: Vec::new(),
            keys: core::marker::PhantomData,
        }
    }

    /// The value of a key.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let index = key.index();
        let page = self.pages.get(index / PAGE)?.as_ref()?;
        page.values.get(index % PAGE)?.as_ref()
    }

    /// The value of a key, to be changed.
    #[inline]
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let index = key.index();
        let page = self.pages.get_mut(index / PAGE)?.as_mut()?;
        page.values.get_mut(index % PAGE)?.as_mut()
    }

    /// Whether the key has a value.
    #[must_use]
    pub fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    /// Gives a key a value; its old one, if it had one.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let index = key.index();
        let place = index / PAGE;
        if self.pages.len() <= place {
            self.pages.resize_with(place + 1, || None);
        }
        let page = self.pages.get_mut(place)?.get_or_insert_with(|| {
            Box::new(Page {
                values: [const { None }; PAGE],
                used: 0,
            })
        });
        let old = page.values.get_mut(index % PAGE)?.replace(value);
        page.used += usize::from(old.is_none());
        old
    }

    /// Takes a key's value away.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let index = key.index();
        let slot = self.pages.get_mut(index / PAGE)?;
        let page = slot.as_mut()?;
        let old = page.values.get_mut(index % PAGE)?.take()?;
        page.used -= 1;
        if page.used == 0 {
            *slot = None;
        }
        Some(old)
    }

    /// All values with their keys' numbers, in that order.
    #[cfg(test)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &V)> {
        self.pages
            .iter()
            .enumerate()
            .filter_map(|(place, page)| Some((place, page.as_ref()?)))
            .flat_map(|(place, page)| {
                (place as u32 * PAGE as u32..)
                    .zip(&page.values)
                    .filter_map(|(index, value)| Some((index, value.as_ref()?)))
            })
    }
}

impl<K: Key, V> Default for Table<K, V> {
    fn default() -> Table<K, V> {
        Table::new()
    }
}

#[cfg(test)]
impl<K: Key, V> core::ops::Index<&K> for Table<K, V> {
    type Output = V;

    fn index(&self, key: &K) -> &V {
        self.get(key).expect("the key has a value")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_table_is_a_map(operations in prop::collection::vec((any::<bool>(), 0_u32..200, any::<u16>()), 0..200)) {
            let mut table = Table::new();
            let mut model = BTreeMap::new();
            for (insert, key, value) in operations {
                if insert {
                    prop_assert_eq!(table.insert(VcpuId(key), value), model.insert(key, value));
                } else {
                    prop_assert_eq!(table.remove(&VcpuId(key)), model.remove(&key));
                }
                prop_assert_eq!(table.get(&VcpuId(key)), model.get(&key));
                prop_assert_eq!(table.contains_key(&VcpuId(key)), model.contains_key(&key));
            }
            prop_assert!(table.iter().eq(model.iter().map(|(key, value)| (*key, value))));
            for key in model.keys().copied().collect::<Vec<_>>() {
                table.remove(&VcpuId(key));
            }
            prop_assert!(table.pages.iter().all(Option::is_none), "empty pages are dropped");
        }
    }

    #[test]
    fn groups_and_vms_of_one_number_are_different_gangs() {
        let mut table = Table::new();
        table.insert(GangId::Group(crate::GroupId(3)), 1);
        table.insert(GangId::Vm(VmId(3)), 2);
        assert_eq!(table.get(&GangId::Group(crate::GroupId(3))), Some(&1));
        assert_eq!(table.get(&GangId::Vm(VmId(3))), Some(&2));
    }
}
