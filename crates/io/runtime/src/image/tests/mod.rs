//! Layers and archives, good ones, hostile ones and broken ones, against the store itself. Needs root, because layers
//! belong to many users and hold devices.

mod archives;
mod hostile;
mod layers;
mod stacked;
mod tar;

use super::recipe::replay;
use super::{layer, packing};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that goes with the test. What a layer must not touch stands in it beside the layer.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-image-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn is_root() -> bool {
    let is_root = kedge_host::is_root();
    if !is_root {
        eprintln!("skipped: layers need root");
    }
    is_root
}

/// Unpacks a tar into `layer` and says what came of it: a tree, or the refusal.
fn unpack(place: &Place, tar: &[u8]) -> Result<layer::Unpacked, layer::LayerError> {
    unpack_over(place, tar, &[])
}

/// The same on top of other layers, uppermost first.
fn unpack_over(place: &Place, tar: &[u8], below: &[&str]) -> Result<layer::Unpacked, layer::LayerError> {
    let directory = place.path("layer");
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir(&directory).unwrap();
    let plain = packing::unpacked(tar).map_err(layer::LayerError::Tar)?;
    let below = || {
        let open = |name: &&str| layer::open_top(&place.path(name));
        let opened = below.iter().map(open).collect::<Result<_, _>>();
        Ok(opened.unwrap())
    };
    layer::unpack(
        plain,
        &directory,
        &place.path("recipe"),
        layer::Devices::Made,
        &below,
    )
}

/// The tar that the recipe leads to.
fn made_again(place: &Place) -> Vec<u8> {
    let mut tar = Vec::new();
    let top = layer::open_top(&place.path("layer")).unwrap();
    replay(&place.path("recipe"), &top, &mut tar).unwrap();
    tar
}

/// Everything below a directory, a line each.
pub(super) fn tree(directory: &Path) -> String {
    let mut lines = BTreeMap::new();
    walk(directory, directory, &mut lines);
    lines.into_iter().fold(String::new(), |all, (path, line)| {
        all + &path + " " + &line + "\n"
    })
}

fn walk(top: &Path, directory: &Path, lines: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_symlink() {
            format!("-> {}", std::fs::read_link(&path).unwrap().display())
        } else if kind.is_dir() {
            "dir".to_owned()
        } else if kind.is_fifo() {
            "fifo".to_owned()
        } else if kind.is_char_device() || kind.is_block_device() {
            let device = meta.rdev();
            format!(
                "device {}:{}",
                rustix::fs::major(device),
                rustix::fs::minor(device)
            )
        } else {
            let mut text = Vec::new();
            std::fs::File::open(&path)
                .unwrap()
                .take(32)
                .read_to_end(&mut text)
                .unwrap();
            format!("{} bytes {:?}", meta.len(), String::from_utf8_lossy(&text))
        };
        let mut line = format!("{:o} {}:{} {what}", meta.mode() & 0o7777, meta.uid(), meta.gid());
        if kind.is_file() && meta.nlink() > 1 {
            line += &format!(" x{}", meta.nlink());
        }
        let name = path.strip_prefix(top).unwrap();
        lines.insert(
            String::from_utf8_lossy(name.as_os_str().as_bytes()).into_owned(),
            line,
        );
        if kind.is_dir() {
            walk(top, &path, lines);
        }
    }
}
