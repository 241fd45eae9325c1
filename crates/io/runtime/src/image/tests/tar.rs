//! Tars that no tool would write.

/// One entry as it stands in the archive.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) flag: u8,
    pub(super) path: Vec<u8>,
    pub(super) target: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) device: (u32, u32),
    pub(super) mtime: u64,
    pub(super) bytes: Vec<u8>,
    /// Records of an extended header before it.
    pub(super) records: Vec<(String, Vec<u8>)>,
}

pub(super) fn entry(flag: u8, path: &str) -> Written {
    Written {
        flag,
        path: path.as_bytes().to_vec(),
        target: Vec::new(),
        mode: 0o644,
        uid: 0,
        device: (0, 0),
        mtime: 0,
        bytes: Vec::new(),
        records: Vec::new(),
    }
}

pub(super) fn file(path: &str, bytes: &[u8]) -> Written {
    Written {
        bytes: bytes.to_vec(),
        ..entry(b'0', path)
    }
}

pub(super) fn directory(path: &str) -> Written {
    Written {
        mode: 0o755,
        ..entry(b'5', path)
    }
}

pub(super) fn link(flag: u8, path: &str, target: &str) -> Written {
    Written {
        target: target.as_bytes().to_vec(),
        ..entry(flag, path)
    }
}

pub(super) fn symlink(path: &str, target: &str) -> Written {
    link(b'2', path, target)
}

pub(super) fn hard_link(path: &str, target: &str) -> Written {
    link(b'1', path, target)
}

impl Written {
    pub(super) fn with(mut self, key: &str, value: &[u8]) -> Self {
        self.records.push((key.to_owned(), value.to_vec()));
        self
    }

    fn write(&self, to: &mut Vec<u8>) {
        if !self.records.is_empty() {
            let records: Vec<u8> = self
                .records
                .iter()
                .flat_map(|(key, value)| record(key, value))
                .collect();
            raw(
                to,
                &Self {
                    bytes: records,
                    records: Vec::new(),
                    path: b"extended".to_vec(),
                    target: Vec::new(),
                    ..self.clone()
                },
                b'x',
            );
        }
        raw(to, self, self.flag);
    }
}

/// `length key=value`, where the length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

fn raw(to: &mut Vec<u8>, written: &Written, flag: u8) {
    let mut header = ::tar::Header::new_gnu();
    header.set_mode(written.mode);
    header.set_uid(written.uid);
    header.set_gid(written.uid);
    header.set_mtime(written.mtime);
    header.set_size(written.bytes.len() as u64);
    header.set_entry_type(::tar::EntryType::new(flag));
    header.set_device_major(written.device.0).unwrap();
    header.set_device_minor(written.device.1).unwrap();
    let gnu = header.as_gnu_mut().unwrap();
    let length = written.path.len().min(100);
    gnu.name[..length].copy_from_slice(&written.path[..length]);
    let length = written.target.len().min(100);
    gnu.linkname[..length].copy_from_slice(&written.target[..length]);
    header.set_cksum();
    to.extend_from_slice(header.as_bytes());
    to.extend_from_slice(&written.bytes);
    to.resize(to.len().next_multiple_of(512), 0);
}

pub(super) fn tar(entries: &[Written]) -> Vec<u8> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut bytes));
    bytes.resize((bytes.len() + 1024).next_multiple_of(10_240), 0);
    bytes
}
