//! The directories with files of the interface.

use super::document::{ContainerEdits, Document, Syntax};
use super::names::Name;
use super::others_may_write;
use crate::Error;
use rustix::fs::{CWD, Mode, OFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A vendor's tool writes one file, some write one for each container that runs.
const FILES_MAX: usize = 512;
/// A directory with more has another use.
const ENTRIES_MAX: usize = 4096;
/// A file for eight large graphics cards with all their partitions has some hundred kilobytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Of all files together, because one container makes us read them all.
const ALL_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// What one container is given, in all: more is a mistake in a file, and would fill a configuration.
const EDITS_MAX: usize = 2048;
/// Broken files, and other devices, that an error names.
const NAMED_MAX: usize = 8;

/// Where devices are described.
#[derive(Debug, Clone, Default)]
pub(in crate::embedded) struct Registry {
    /// The later counts more.
    directories: Vec<PathBuf>,
}

/// What one device, or the file that describes it, adds to a container.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::embedded) struct Part {
    /// The device because of which it is added.
    pub(in crate::embedded) device: String,
    /// The file that says it.
    pub(in crate::embedded) file: PathBuf,
    pub(in crate::embedded) edits: ContainerEdits,
}

impl Part {
    /// Why it cannot be added.
    pub(in crate::embedded) fn refusal(&self, why: impl std::fmt::Display) -> Error {
        refusal(&self.device, format!("{why} ({})", self.file.display()))
    }
}

/// What is in the directories.
#[derive(Default)]
struct Shelf {
    files: Vec<Described>,
    /// What cannot be used, and why.
    broken: Vec<String>,
}

struct Described {
    path: PathBuf,
    /// The place of its directory.
    priority: usize,
    document: Document,
}

impl Registry {
    pub(in crate::embedded) fn new(directories: Vec<PathBuf>) -> Self {
        Self { directories }
    }

    /// What these devices add, in their order; what a file says for all of its devices comes before the first of them.
    pub(in crate::embedded) fn resolve(&self, names: &[String]) -> Result<Vec<Part>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let shelf = self.read();
        let (mut parts, mut begun, mut count) = (Vec::new(), Vec::new(), 0);
        for name in names {
            let place = self.find(&shelf, name).map_err(|why| refusal(name, why))?;
            let file = &shelf.files[place.file];
            let common = (!begun.contains(&place.file)).then_some(&file.document.container_edits);
            begun.push(place.file);
            let own = &file.document.devices[place.device].container_edits;
            for edits in common.into_iter().chain([own]) {
                count += edits.count();
                if count > EDITS_MAX {
                    let why = format!("its devices give one container more than {EDITS_MAX} things");
                    return Err(refusal(name, why));
                }
                parts.push(Part {
                    device: name.clone(),
                    file: file.path.clone(),
                    edits: edits.clone(),
                });
            }
        }
        Ok(parts)
    }

    fn find(&self, shelf: &Shelf, name: &str) -> Result<Place, String> {
        let name = Name::parse(name)?;
        let kind = name.kind.to_string();
        let mut places: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
        for (number, file) in shelf
            .files
            .iter()
            .enumerate()
            .filter(|(_, file)| file.document.kind == kind)
        {
            let device = file
                .document
                .devices
                .iter()
                .position(|device| device.name == name.device);
            let place = device.map(|device| Place { file: number, device });
            places.entry(file.priority).or_default().extend(place);
        }
        let found = places.values().rev().find(|places| !places.is_empty());
        match found.map(Vec::as_slice) {
            Some([place]) => Ok(*place),
            Some(several) => {
                let paths = several
                    .iter()
                    .map(|place| shelf.files[place.file].path.display().to_string());
                let paths = paths.collect::<Vec<_>>().join(" and ");
                Err(format!("{paths} both describe it; remove one of them"))
            }
            None => Err(self.missing(shelf, &kind)),
        }
    }

    fn missing(&self, shelf: &Shelf, kind: &str) -> String {
        let directories: Vec<_> = self
            .directories
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let mut told = match directories.as_slice() {
            [] => "there is no directory with files of the Container Device Interface (kedge.cdiSpecDirs)"
                .to_owned(),
            some => format!("no file in {} describes it", some.join(", ")),
        };
        let of_kind = shelf.files.iter().filter(|file| file.document.kind == kind);
        let others = of_kind.flat_map(|file| &file.document.devices);
        let others: BTreeSet<_> = others.map(|device| device.name.as_str()).collect();
        if !others.is_empty() {
            let others: Vec<_> = others.into_iter().take(NAMED_MAX).collect();
            told = format!("{told}; of {kind} there are {}", others.join(", "));
        }
        let broken = shelf.broken.iter().take(NAMED_MAX);
        broken.fold(told, |told, broken| format!("{told}; {broken}"))
    }

    fn read(&self) -> Shelf {
        let (mut shelf, mut left) = (Shelf::default(), ALL_BYTES_MAX);
        for (priority, directory) in self.directories.iter().enumerate() {
            let (paths, complaint) = files_in(directory);
            shelf.broken.extend(complaint);
            for (path, syntax) in paths {
                let read = read_file(&path, &mut left).and_then(|text| Document::parse(&text, syntax));
                match read {
                    Ok(document) => shelf.files.push(Described {
                        path,
                        priority,
                        document,
                    }),
                    Err(why) => shelf
                        .broken
                        .push(format!("{} is not used: {why}", path.display())),
                }
            }
        }
        shelf
    }
}

/// A device in a file.
#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    device: usize,
}

fn refusal(device: &str, why: String) -> Error {
    Error::failed("give a container device", device, why)
}

/// The files of the interface in a directory, by name; and what is wrong with the directory.
fn files_in(directory: &Path) -> (Vec<(PathBuf, Syntax)>, Option<String>) {
    let unusable = |why: String| Some(format!("{} is not used: {why}", directory.display()));
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return (Vec::new(), None),
        Err(error) => return (Vec::new(), unusable(error.to_string())),
    };
    let mut entries = entries.flatten();
    let paths = entries
        .by_ref()
        .take(ENTRIES_MAX)
        .filter(|entry| !entry.path().is_dir());
    let mut files: Vec<_> = paths
        .filter_map(|entry| Some((entry.path(), Syntax::of(&entry.path())?)))
        .collect();
    if files.len() > FILES_MAX || entries.next().is_some() {
        return (
            Vec::new(),
            unusable(format!("it has more than {FILES_MAX} files")),
        );
    }
    files.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    (files, None)
}

/// Reads a file that nobody but root, or whoever this process is, can have written: what it says is done with all rights.
fn read_file(path: &Path, left: &mut u64) -> Result<String, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|errno| errno.to_string())?;
    let file = File::from(file);
    let meta = file.metadata().map_err(|error| error.to_string())?;
    if !meta.is_file() {
        return Err("it is not a file".to_owned());
    }
    if others_may_write(&meta) {
        return Err("others than root may write to it; make it root's, with mode 0644".to_owned());
    }
    let limit = FILE_BYTES_MAX.min(*left);
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    let read = bytes.len() as u64;
    if read > limit {
        return Err(format!(
            "it is larger than {FILE_BYTES_MAX} bytes, or all files are larger than {ALL_BYTES_MAX}"
        ));
    }
    *left -= read;
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
