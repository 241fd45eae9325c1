//! Log lines as the Container Runtime Interface has them: `<time> <stream> <F|P> <text>`.

use jiff::Timestamp;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Longer lines are written in parts tagged `P`, as every CRI runtime does.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// The current file and this many older ones (`.1` is the newest of them) exist at most.
const ROTATED_FILES_MAX: u32 = 4;

/// Which of the two outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts what a stream writes into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    stream: Stream,
    unfinished: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            unfinished: Vec::new(),
        }
    }

    /// Takes bytes as they came and appends finished records to `out`.
    pub(crate) fn push(&mut self, mut bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.unfinished.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                self.unfinished.extend_from_slice(&window[..end]);
                self.emit('F', now, out);
                bytes = &bytes[end + 1..];
            } else {
                self.unfinished.extend_from_slice(window);
                bytes = &bytes[window.len()..];
                if self.unfinished.len() == LINE_BYTES_MAX {
                    self.emit('P', now, out);
                }
            }
        }
    }

    /// The stream ended: what is left is a line, though nothing ended it.
    pub(crate) fn finish(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if !self.unfinished.is_empty() {
            self.emit('F', now, out);
        }
    }

    fn emit(&mut self, tag: char, now: Timestamp, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{now:.9} {} {tag} ", self.stream.name()).as_bytes());
        out.append(&mut self.unfinished);
        out.push(b'\n');
    }
}

/// A log file that is rotated at a size.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    /// Opens or makes the file and its directory.
    pub(crate) fn open(path: &Path, bytes_max: u64) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
        }
        let file = append(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            bytes_max,
        })
    }

    /// Appends whole records, rotating where the next would not fit. One record may be larger than a file.
    pub(crate) fn write(&mut self, mut records: &[u8]) -> std::io::Result<()> {
        while !records.is_empty() {
            let room = usize::try_from(self.bytes_max.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
            let fitting = whole_records(records, room);
            let next = match fitting {
                0 if self.bytes > 0 => {
                    self.rotate()?;
                    continue;
                }
                0 => records
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(records.len(), |end| end + 1),
                fitting => fitting,
            };
            self.file.write_all(&records[..next])?;
            self.bytes += next as u64;
            records = &records[next..];
        }
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        for number in (1..ROTATED_FILES_MAX).rev() {
            rename_if_there(&self.rotated(number), &self.rotated(number + 1))?;
        }
        rename_if_there(&self.path, &self.rotated(1))?;
        self.file = append(&self.path)?;
        self.bytes = 0;
        Ok(())
    }

    fn rotated(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// How many bytes of `records` are whole records within `room`.
fn whole_records(records: &[u8], room: usize) -> usize {
    if records.len() <= room {
        return records.len();
    }
    records[..room]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1)
}

fn append(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(path)
}

fn rename_if_there(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(pieces: &[&str], want: Expect) {
        let now: Timestamp = "2016-10-06T00:17:09.669794202Z".parse().unwrap();
        let mut out = Vec::new();
        let mut lines = Lines::new(Stream::Stdout);
        for piece in pieces {
            lines.push(piece.as_bytes(), now, &mut out);
        }
        lines.finish(now, &mut out);
        want.assert_eq(&String::from_utf8(out).unwrap());
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        check(
            &["one\ntw", "o\n", "\nlast"],
            expect![[r#"
                2016-10-06T00:17:09.669794202Z stdout F one
                2016-10-06T00:17:09.669794202Z stdout F two
                2016-10-06T00:17:09.669794202Z stdout F 
                2016-10-06T00:17:09.669794202Z stdout F last
            "#]],
        );
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let now = Timestamp::UNIX_EPOCH;
        let mut out = Vec::new();
        let mut lines = Lines::new(Stream::Stderr);
        lines.push(&vec![b'x'; LINE_BYTES_MAX + 1], now, &mut out);
        lines.push(b"\n", now, &mut out);
        let text = String::from_utf8(out).unwrap();
        let tags: Vec<_> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "F"]);
        assert!(text.ends_with(" stderr F x\n"));
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_goes() {
        let directory = std::env::temp_dir().join(format!("kedge-log-{}", std::process::id()));
        let path = directory.join("c/0.log");
        let mut file = LogFile::open(&path, 10).unwrap();
        for number in 0..8 {
            file.write(format!("record {number}\n").as_bytes()).unwrap();
        }
        let read = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display()));
        assert_eq!(read("").unwrap(), "record 7\n");
        assert_eq!(read(".1").unwrap(), "record 6\n");
        assert_eq!(read(".4").unwrap(), "record 3\n");
        assert!(read(".5").is_err());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
