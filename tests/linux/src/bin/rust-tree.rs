//! `rust-tree find KEY | double | sum`: what the C sample `tree` does, from Rust on Linux.
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;

use nagaya_guests::REGION_VA;
use nagaya_guests::tree::Tree;
use nagaya_rt::linux::Device;
use nagaya_rt::sync::LockError;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(text) => {
            println!("rust-tree: {text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("rust-tree: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[&str]) -> Result<String, Box<dyn Error>> {
    let device = Device::open()?;
    let region = device.map_at(REGION_VA)?;
    let tree = Tree::new(&region)
        .filter(Tree::is_there)
        .ok_or("nobody has built a tree")?;
    let lock = tree.lock().ok_or("the region is too small")?;
    let _held = match lock.lock(device.my_index(), &device) {
        Ok(held) => held,
        Err(LockError::OwnerDied(recovery)) => {
            return Err(format!("member {} died with the lock", recovery.died().member).into());
        }
        Err(error) => return Err(format!("{error:?}").into()),
    };
    let broken = |broken| format!("{broken:?}");
    match words {
        ["find", key] => {
            let key = key.parse()?;
            let value = tree.find(key).map_err(broken)?.ok_or("no such key")?;
            Ok(format!("{key} -> {value}"))
        }
        ["double"] => Ok(format!("sum {}", tree.multiply(2).map_err(broken)?)),
        ["sum"] => Ok(format!("sum {}", tree.multiply(1).map_err(broken)?)),
        _ => Err("find KEY | double | sum".into()),
    }
}
