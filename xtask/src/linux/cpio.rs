//! An archive in the format that Linux unpacks as its initramfs: cpio "newc" (the kernel's Documentation,
//! "initramfs buffer format").
//!
//! Written here, not by a program, because device nodes then need no root, and because the same files are to give the same
//! bytes: owners are root, times are zero, the order is that of the names.

use std::collections::BTreeMap;

/// What stands under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File { mode: u32, bytes: Vec<u8> },
    Link { target: String },
    CharacterDevice { mode: u32, major: u32, minor: u32 },
}

/// An archive in the making.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    nodes: BTreeMap<String, Node>,
}

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds a folder.
    pub(crate) fn folder(&mut self, path: &str) {
        self.add(path, Node::Folder);
    }

    /// Adds a file with these permissions.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.add(path, Node::File { mode, bytes });
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let target = target.to_owned();
        self.add(path, Node::Link { target });
    }

    /// Adds a character device with these permissions.
    pub(crate) fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.add(path, Node::CharacterDevice { mode, major, minor });
    }

    /// Adds a node, and the folders above it. Folders stand before what is in them because their names are shorter.
    fn add(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.nodes
                .entry(path[..end].to_owned())
                .or_insert(Node::Folder);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The archive's bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (inode, (path, node)) in (1..).zip(&self.nodes) {
            let (mode, content, device): (u32, &[u8], (u32, u32)) = match node {
                Node::Folder => (FOLDER | 0o755, &[], (0, 0)),
                Node::File { mode, bytes } => (FILE | mode, bytes, (0, 0)),
                Node::Link { target } => (LINK | 0o777, target.as_bytes(), (0, 0)),
                Node::CharacterDevice { mode, major, minor } => {
                    (CHARACTER_DEVICE | mode, &[], (*major, *minor))
                }
            };
            entry(&mut bytes, inode, path, mode, content, device);
        }
        entry(&mut bytes, 0, "TRAILER!!!", 0, &[], (0, 0));
        bytes
    }
}

fn entry(
    bytes: &mut Vec<u8>,
    inode: u32,
    path: &str,
    mode: u32,
    content: &[u8],
    device: (u32, u32),
) {
    let fields = [
        inode,
        mode,
        0, // owner
        0, // group
        1, // links
        0, // time of change
        content.len() as u32,
        0, // device it stands on
        0,
        device.0,
        device.1,
        path.len() as u32 + 1,
        0, // checksum, of another variant
    ];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes);
    bytes.extend_from_slice(content);
    pad(bytes);
}

/// Names and contents end at a multiple of four.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Reads an archive back, as the kernel does: name, mode, content.
    pub(crate) fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let text = &bytes[at + 6 + index * 8..][..8];
                let text = std::str::from_utf8(text).expect("is text");
                usize::from_str_radix(text, 16).expect("is a number")
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let name = at + 110;
            let content = (name + name_size).next_multiple_of(4);
            let name = String::from_utf8(bytes[name..name + name_size - 1].to_vec());
            let name = name.expect("is text");
            if name == "TRAILER!!!" {
                return found;
            }
            found.push((name, mode as u32, bytes[content..content + size].to_vec()));
            at = (content + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_is_put_in_comes_out_with_the_folders_above_it_first() {
        let mut archive = Archive::default();
        archive.file("/bin/sh/odd", 0o755, *b"12345");
        archive.link("init", "bin/sh");
        archive.character_device("dev/console", 0o600, 5, 1);
        let read = read(&archive.finish());
        let names: Vec<&str> = read.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["bin", "bin/sh", "bin/sh/odd", "dev", "dev/console", "init"]
        );
        assert_eq!(read[2], ("bin/sh/odd".into(), 0o100_755, b"12345".to_vec()));
        assert_eq!(read[4].1, 0o020_600);
        assert_eq!(read[5], ("init".into(), 0o120_777, b"bin/sh".to_vec()));
    }
}
