//! Follows a file that another process writes, and yields whole lines.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Cuts a growing stream of bytes into lines. Bytes that are no UTF-8 become U+FFFD: a broken machine may send anything.
#[derive(Debug, Default)]
pub struct LineSplitter {
    pending: Vec<u8>,
}

impl LineSplitter {
    /// Takes further bytes, appends every line they complete (without `\n`) to `lines`.
    pub fn push(&mut self, bytes: &[u8], lines: &mut Vec<String>) {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = rest.split_at(end);
            self.pending.extend_from_slice(line);
            lines.push(String::from_utf8_lossy(&self.pending).into_owned());
            self.pending.clear();
            rest = after.get(1..).unwrap_or_default();
        }
        self.pending.extend_from_slice(rest);
    }

    /// What came after the last line end, if anything did.
    #[must_use]
    pub fn finish(self) -> Option<String> {
        (!self.pending.is_empty()).then(|| String::from_utf8_lossy(&self.pending).into_owned())
    }
}

/// A file that is followed while it is written. It need not exist yet.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    splitter: LineSplitter,
}

impl Tail {
    /// Follows the file at `path` from its beginning.
    #[must_use]
    pub fn new(path: &Path) -> Tail {
        Tail {
            path: path.to_owned(),
            file: None,
            splitter: LineSplitter::default(),
        }
    }

    /// The lines completed since the last call.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn poll(&mut self) -> io::Result<Vec<String>> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path) {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                Err(error) => return Err(error),
            },
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut lines = Vec::new();
        self.splitter.push(&bytes, &mut lines);
        Ok(lines)
    }

    /// The last lines, and what stands after the last line end: call it when the writer is gone.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub fn finish(mut self) -> io::Result<(Vec<String>, Option<String>)> {
        let lines = self.poll()?;
        Ok((lines, self.splitter.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn lines_come_out_whole_however_the_bytes_are_cut() {
        let text = "one\ntwo é\n\nfour";
        for cut in 1..text.len() {
            let mut splitter = LineSplitter::default();
            let mut lines = Vec::new();
            for piece in text.as_bytes().chunks(cut) {
                splitter.push(piece, &mut lines);
            }
            assert_eq!(lines, ["one", "two é", ""], "cut into {cut} bytes");
            assert_eq!(splitter.finish().as_deref(), Some("four"));
        }
    }

    #[test]
    fn a_file_is_followed_from_before_it_exists_to_its_unfinished_end() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("serial.log");
        let mut tail = Tail::new(&path);
        assert!(tail.poll().expect("absent is fine").is_empty());
        let mut file = File::create(&path).expect("create");
        file.write_all(b"first\nsec").expect("write");
        assert_eq!(tail.poll().expect("read"), ["first"]);
        file.write_all(b"ond\nthi").expect("write");
        let (lines, rest) = tail.finish().expect("read");
        assert_eq!(lines, ["second"]);
        assert_eq!(rest.as_deref(), Some("thi"));
    }
}
