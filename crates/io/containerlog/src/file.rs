use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The current file and this many older ones (`.1` is the newest of them) exist at most.
const ROTATED_FILES_MAX: u32 = 4;

/// A log file that is turned over at a size.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    bytes_max: u64,
}

impl LogFile {
    /// Opens or makes the file and its directory.
    pub fn open(path: &Path, bytes_max: u64) -> std::io::Result<Self> {
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

    /// The file was moved away: writes to a new one from now on.
    pub fn reopen(&mut self) -> std::io::Result<()> {
        *self = Self::open(&self.path, self.bytes_max)?;
        Ok(())
    }

    /// Appends whole records, turning the file over where the next would not fit. One record may be larger than a file.
    /// What the disk did not take is not half there: the file ends with the last whole record before it.
    pub fn write(&mut self, mut records: &[u8]) -> Result<(), Lost> {
        while !records.is_empty() {
            match self.write_some(records) {
                Ok(written) => records = &records[written..],
                Err(source) => {
                    let lines = records.iter().filter(|byte| **byte == b'\n').count() as u64;
                    return Err(Lost { lines, source });
                }
            }
        }
        Ok(())
    }

    /// Appends as many records as fit into one file, at least one, and says how many bytes that were.
    fn write_some(&mut self, records: &[u8]) -> std::io::Result<usize> {
        loop {
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
            self.append(&records[..next])?;
            return Ok(next);
        }
    }

    fn append(&mut self, records: &[u8]) -> std::io::Result<()> {
        let written = self.file.write_all(records);
        match written {
            Ok(()) => self.bytes += records.len() as u64,
            // A disk that is full can still make a file shorter.
            Err(_) => self.file.set_len(self.bytes)?,
        }
        written
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

/// Lines that no file has.
#[derive(Debug)]
pub struct Lost {
    pub lines: u64,
    pub source: std::io::Error,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} lines of this log were lost: {}", self.lines, self.source)
    }
}

impl std::error::Error for Lost {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
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
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("kedge-log-{}-{name}", std::process::id()))
    }

    #[test]
    fn a_full_file_is_turned_over_and_the_oldest_goes() {
        let directory = directory("full");
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

    #[test]
    fn a_file_that_was_moved_away_is_written_anew() {
        let directory = directory("moved");
        let path = directory.join("0.log");
        let mut file = LogFile::open(&path, 1000).unwrap();
        file.write(b"old\n").unwrap();
        std::fs::rename(&path, directory.join("kept")).unwrap();
        file.reopen().unwrap();
        file.write(b"new\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "new\n");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
