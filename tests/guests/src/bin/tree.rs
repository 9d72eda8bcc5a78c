//! A unikernel that changes the tree another member has built, perhaps a C program on Linux: waits for it (`seconds=`, 60),
//! multiplies all values (`by=`, 2), prints their sum, and ends.
#![cfg_attr(target_os = "none", no_std, no_main)]

use nagaya_guests::REGION_VA;
use nagaya_guests::tree::Tree;
use nagaya_rt::region::SharedRegion;
use nagaya_rt::sync::GroupPeers;
use nagaya_rt::{Errno, args, group, hypercall, println, time};

nagaya_rt::entry!(main);

fn number(key: &str, otherwise: u64) -> u64 {
    args::get(key)
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

fn main() -> Result<(), Errno> {
    let me = group::my_index().ok_or(Errno::Perm)?;
    let region = SharedRegion::map_at(REGION_VA)?;
    let tree = Tree::new(&region).ok_or(Errno::Inval)?;
    let deadline = time::Deadline::after_ms(number("seconds", 60) * 1000);
    while !tree.is_there() {
        assert!(!deadline.has_passed(), "nobody has built a tree");
        let _ = hypercall::wait(10_000_000);
    }
    let lock = tree.lock().ok_or(Errno::Inval)?;
    let by = number("by", 2);
    match lock.lock(me, &GroupPeers) {
        Ok(_held) => match tree.multiply(by) {
            Ok(sum) => println!("tree: multiplied by {by}, sum {sum}"),
            Err(broken) => panic!("{broken:?}"),
        },
        Err(error) => panic!("the tree's lock: {error:?}"),
    }
    Ok(())
}
