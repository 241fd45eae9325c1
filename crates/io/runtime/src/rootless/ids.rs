//! The users and groups of a node: this user is its root, and `/etc/subuid` and `/etc/subgid` say which more it has.

use super::{failed, programs};
use crate::Error;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The kernel takes 340 ranges; people give one.
const RANGES_MAX: usize = 16;
/// A file of a machine with many users.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Images know at least the user `nobody`.
const IDS_MIN: u64 = 65_535;

/// The ids of this user, and who writes them into a namespace.
#[derive(Debug)]
pub(super) struct Ids {
    users: Map,
    groups: Map,
}

#[derive(Debug)]
struct Map {
    program: PathBuf,
    own: u32,
    ranges: Vec<(u32, u32)>,
}

impl Ids {
    /// Reads them. Without ranges a node would have one user, and could unpack hardly an image as it is.
    pub(super) fn of_this_user() -> Result<Self, Error> {
        let uid = nix::unistd::getuid();
        let name = nix::unistd::User::from_uid(uid)
            .ok()
            .flatten()
            .map(|user| user.name);
        let map = |file: &str, program: &str, own: u32| {
            let text = read(Path::new(file))?;
            let ranges = ranges(&text, name.as_deref(), uid.as_raw());
            let count: u64 = ranges.iter().map(|(_, count)| u64::from(*count)).sum();
            if count < IDS_MIN {
                return Err(too_few(file, name.as_deref(), uid.as_raw(), count));
            }
            let program = programs::find(program).ok_or_else(|| {
                failed(format!(
                    "{program} is not installed; it is in the package uidmap (Debian, Ubuntu) or shadow-utils"
                ))
            })?;
            Ok(Map { program, own, ranges })
        };
        Ok(Self {
            users: map("/etc/subuid", "newuidmap", uid.as_raw())?,
            groups: map("/etc/subgid", "newgidmap", nix::unistd::getgid().as_raw())?,
        })
    }

    /// Writes them into the user namespace of a process.
    pub(super) fn give_to(&self, pid: u32) -> Result<(), Error> {
        [&self.users, &self.groups].into_iter().try_for_each(|map| {
            let arguments = map.arguments(pid);
            let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
            programs::run(&map.program, &arguments)
        })
    }
}

impl Map {
    /// Each range is where it begins inside, where on the machine, and how many there are.
    fn arguments(&self, pid: u32) -> Vec<OsString> {
        let mut numbers = vec![pid, 0, self.own, 1];
        let mut inside = 1_u32;
        for (first, count) in &self.ranges {
            numbers.extend([inside, *first, *count]);
            inside = inside.saturating_add(*count);
        }
        numbers.iter().map(|number| number.to_string().into()).collect()
    }
}

/// The ranges of a user, who may be named or numbered.
fn ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<(u32, u32)> {
    let range = |line: &str| {
        let mut words = line.trim().split(':');
        let owner = words.next()?;
        let is_ours = Some(owner) == name || owner.parse() == Ok(uid);
        let (first, count) = (words.next()?.parse().ok()?, words.next()?.parse::<u32>().ok()?);
        (is_ours && count > 0).then_some((first, count))
    };
    text.lines().filter_map(range).take(RANGES_MAX).collect()
}

fn too_few(file: &str, name: Option<&str>, uid: u32, count: u64) -> Error {
    let user = name.map_or_else(|| uid.to_string(), str::to_owned);
    failed(format!(
        "{file} gives user {user} {count} ids, and images need {IDS_MIN} at least; let root give them: usermod \
         --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    ))
}

fn read(path: &Path) -> Result<String, Error> {
    use std::io::Read;
    let mut text = String::new();
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(text),
        Err(source) => return Err(Error::io("read", path, source)),
        Ok(file) => file.take(FILE_BYTES_MAX).read_to_string(&mut text),
    }
    .map_err(|source| Error::io("read", path, source))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_one_user_are_found() {
        let text =
            "root:1:2\nann:100000:65536\n# ann:1:1\n1000:300000:10\nann:x:1\nann:5:0\nanne:7:7\nann:9\n";
        assert_eq!(
            ranges(text, Some("ann"), 1000),
            [(100_000, 65_536), (300_000, 10)]
        );
        assert_eq!(ranges(text, None, 7), []);
    }

    #[test]
    fn a_map_begins_with_the_user_as_root() {
        let map = Map {
            program: PathBuf::new(),
            own: 1000,
            ranges: vec![(100_000, 65_536), (300_000, 10)],
        };
        let told: Vec<String> = map
            .arguments(7)
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        assert_eq!(told.join(" "), "7 0 1000 1 1 100000 65536 65537 300000 10");
    }

    #[test]
    fn who_has_too_few_is_told_how_to_get_them() {
        expect_test::expect![[
            "start without root the node: /etc/subuid gives user ann 0 ids, and images need 65535 at least; let root give \
             them: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 ann"
        ]]
        .assert_eq(&too_few("/etc/subuid", Some("ann"), 1000, 0).to_string());
    }

    proptest! {
        #[test]
        fn whatever_stands_in_the_file_is_read(text in "(?s).{0,300}") {
            let found = ranges(&text, Some("a"), 0);
            prop_assert!(found.len() <= RANGES_MAX && found.iter().all(|(_, count)| *count > 0));
        }
    }
}
