//! A linked list of raw pointers that ping builds and pong walks.

use core::sync::atomic::Ordering;

use nagaya_rt::println;
use nagaya_rt::sync::PeerDied;

use crate::PING;
use crate::shared::{LIST_HEAD, Side};

/// Nodes: two words each, scattered over the region.
const NODES: u64 = 1000;

/// Ping builds, pong walks.
pub(crate) fn pass(side: &Side<'_>) -> Result<(), PeerDied> {
    let turn = side.next_turn();
    if side.role == PING {
        // The peer may still be booting: it is not absent, and the flag waits for it.
        build(side);
        side.publish(turn);
        side.await_turn(turn)
    } else {
        side.await_turn(turn)?;
        println!("walked the list of {} nodes that ping built", walk(side));
        side.publish(turn);
        Ok(())
    }
}

fn build(side: &Side<'_>) {
    let mut next = 0;
    for node in (0..NODES).rev() {
        // 4 KiB and a bit apart: every node lies on another page.
        let offset = node * (4096 + 16);
        side.cell(offset).store(next, Ordering::Relaxed);
        side.cell(offset + 8)
            .store(node * node + 7, Ordering::Relaxed);
        next = side.region.address() + offset;
    }
    side.cell(LIST_HEAD).store(next, Ordering::Relaxed);
}

fn walk(side: &Side<'_>) -> u64 {
    let mut at = side.cell(LIST_HEAD).load(Ordering::Relaxed);
    let mut node = 0;
    while at != 0 {
        let next = side
            .region
            .at(at)
            .expect("a pointer of the list leads out of the region")
            .load(Ordering::Relaxed);
        let value = side.region.at(at + 8).expect("as above");
        let value = value.load(Ordering::Relaxed);
        assert!(value == node * node + 7, "node {node} holds {value}");
        node += 1;
        at = next;
    }
    node
}
