//! Paths that must not leave a directory, whoever can write into it.
//!
//! A container may put symbolic links into its volume and change them at any moment. So a path is not looked at and then
//! used: it is walked one name at a time, each from the open directory before it, and the caller gets the open file.
//! A link is followed as far as it stays below the base; `..` goes back along the directories that were opened, never by
//! the kernel's parent, so moving a directory meanwhile does not help. This works on every kernel, `openat2` does not.

use crate::Error;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
/// Names of one path; each open directory on the way holds a descriptor.
const NAMES_MAX: usize = 256;

/// What to do where a name does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Refuse,
    /// Make directories with this mode.
    MakeDirectories(u32),
}

/// Opens `path` below `base` without access to its content, only to name it.
pub fn open(base: &Path, path: &Path, missing: Missing) -> Result<OwnedFd, Error> {
    let mut walk = Walk {
        shown: base.join(path),
        opened: vec![open_base(base)?],
        left: VecDeque::new(),
        links: 0,
        missing,
    };
    walk.put_first(path)?;
    while let Some(name) = walk.left.pop_front() {
        walk.step(&name)?;
    }
    Ok(walk.opened.pop().expect("the base is never closed"))
}

/// Where an open file is now.
pub fn path_of(file: BorrowedFd<'_>) -> Result<PathBuf, Error> {
    let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    std::fs::read_link(&link).map_err(|source| Error::Read { path: link, source })
}

fn open_base(base: &Path) -> Result<OwnedFd, Error> {
    // The base itself is the node's business: a host path may be a link.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, base, flags, Mode::empty()).map_err(|errno| Error::Open {
        path: base.to_owned(),
        source: errno.into(),
    })
}

struct Walk {
    shown: PathBuf,
    /// The base and every directory below it that leads to where the walk is.
    opened: Vec<OwnedFd>,
    left: VecDeque<OsString>,
    links: usize,
    missing: Missing,
}

impl Walk {
    fn here(&self) -> BorrowedFd<'_> {
        self.opened.last().expect("the base is never closed").as_fd()
    }

    /// Puts the names of a relative path before those that are left.
    fn put_first(&mut self, path: &Path) -> Result<(), Error> {
        let mut names = Vec::new();
        for part in path.components() {
            match part {
                Component::Normal(name) => names.push(name.to_owned()),
                Component::ParentDir => names.push(OsString::from("..")),
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => return Err(self.leads_out()),
            }
        }
        if names.len() + self.left.len() > NAMES_MAX {
            return Err(self.failed(Errno::NAMETOOLONG));
        }
        for name in names.into_iter().rev() {
            self.left.push_front(name);
        }
        Ok(())
    }

    fn step(&mut self, name: &OsStr) -> Result<(), Error> {
        if name == ".." {
            if self.opened.len() == 1 {
                return Err(self.leads_out());
            }
            self.opened.pop();
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let next = match rustix::fs::openat(self.here(), name, flags, Mode::empty()) {
            Err(Errno::NOENT) => self.make(name)?,
            result => result.map_err(|errno| self.failed(errno))?,
        };
        let found = rustix::fs::fstat(&next).map_err(|errno| self.failed(errno))?;
        if FileType::from_raw_mode(found.st_mode) != FileType::Symlink {
            self.opened.push(next);
            return Ok(());
        }
        self.links += 1;
        if self.links > LINKS_MAX {
            return Err(Error::TooManyLinks {
                path: self.shown.clone(),
            });
        }
        let target = rustix::fs::readlinkat(&next, "", Vec::new()).map_err(|errno| self.failed(errno))?;
        self.put_first(Path::new(&OsString::from_vec(target.into_bytes())))
    }

    fn make(&self, name: &OsStr) -> Result<OwnedFd, Error> {
        let Missing::MakeDirectories(mode) = self.missing else {
            return Err(self.failed(Errno::NOENT));
        };
        let made = match rustix::fs::mkdirat(self.here(), name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            // Somebody else was faster; what it is shows below.
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(self.failed(errno)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(self.here(), name, flags, Mode::empty())
            .map_err(|errno| self.failed(errno))?;
        if made {
            // The mode that was asked for, not what this process's mask left of it.
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).map_err(|errno| self.failed(errno))?;
        }
        Ok(dir)
    }

    fn leads_out(&self) -> Error {
        Error::LeadsOut {
            path: self.shown.clone(),
        }
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::Open {
            path: self.shown.clone(),
            source: errno.into(),
        }
    }
}

/// Device and number of an open file: two with the same are the same file.
pub fn identity(file: BorrowedFd<'_>) -> Result<(u64, u64), Error> {
    let found = rustix::fs::statat(file, "", AtFlags::EMPTY_PATH).map_err(|errno| Error::Open {
        path: PathBuf::from("an open file"),
        source: errno.into(),
    })?;
    Ok((found.st_dev, found.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Dir(PathBuf);

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn dir() -> Dir {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let serial = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kedge-beneath-{}-{serial}", std::process::id()));
        std::fs::create_dir_all(path.join("base/a/b")).unwrap();
        std::fs::create_dir_all(path.join("outside")).unwrap();
        std::fs::write(path.join("outside/secret"), "s").unwrap();
        std::fs::write(path.join("base/file"), "f").unwrap();
        Dir(path.canonicalize().unwrap())
    }

    #[test]
    fn table() {
        let dir = dir();
        let base = dir.0.join("base");
        symlink("a", base.join("link")).unwrap();
        symlink("../file", base.join("a/up")).unwrap();
        symlink("../../outside", base.join("a/out")).unwrap();
        symlink("/etc", base.join("absolute")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        let table = [
            ("a/b", Ok("base/a/b")),
            ("", Ok("base")),
            (".", Ok("base")),
            ("link/b", Ok("base/a/b")),
            ("a/up", Ok("base/file")),
            ("a/../file", Ok("base/file")),
            ("a/out/secret", Err("leads out")),
            ("..", Err("leads out")),
            ("a/../../outside", Err("leads out")),
            ("absolute/passwd", Err("leads out")),
            ("/etc", Err("leads out")),
            ("loop", Err("too many")),
            ("absent", Err("open")),
            ("file/x", Err("open")),
        ];
        for (path, want) in table {
            let got = open(&base, Path::new(path), Missing::Refuse);
            match (want, got) {
                (Ok(want), Ok(file)) => {
                    assert_eq!(path_of(file.as_fd()).unwrap(), dir.0.join(want), "{path}")
                }
                (Err(want), Err(error)) => assert!(error.to_string().contains(want), "{path}: {error}"),
                (want, got) => panic!("{path}: want {want:?}, got {got:?}"),
            }
        }
    }

    #[test]
    fn missing_directories_are_made_where_the_links_lead() {
        let dir = dir();
        let base = dir.0.join("base");
        symlink("a/b", base.join("link")).unwrap();
        let made = open(&base, Path::new("link/x/y"), Missing::MakeDirectories(0o2777)).unwrap();
        assert_eq!(path_of(made.as_fd()).unwrap(), base.join("a/b/x/y"));
        let mode = rustix::fs::fstat(&made).unwrap().st_mode;
        assert_eq!(mode & 0o7777, 0o2777);
        let again = open(&base, Path::new("a/b/x/y"), Missing::Refuse).unwrap();
        assert_eq!(identity(made.as_fd()).unwrap(), identity(again.as_fd()).unwrap());
        symlink("../../../outside/new", base.join("a/b/dangling")).unwrap();
        assert!(open(&base, Path::new("a/b/dangling"), Missing::MakeDirectories(0o755)).is_err());
        assert!(!dir.0.join("outside/new").exists());
    }

    fn part() -> impl Strategy<Value = &'static str> {
        prop_oneof![
            Just(".."),
            Just("."),
            Just("a"),
            Just("b"),
            Just("l0"),
            Just("l1"),
            Just("l2"),
            Just("outside"),
            Just("secret"),
            Just("base"),
        ]
    }

    fn path() -> impl Strategy<Value = PathBuf> {
        proptest::collection::vec(part(), 1..6).prop_map(|parts| parts.iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Whatever links a container makes and whatever path is asked for: nothing outside is opened or made, and what
        /// is opened is what the kernel's own walk finds.
        #[test]
        fn nothing_outside_is_reached(
            links in proptest::collection::vec((path(), any::<bool>()), 3),
            asked in path(),
            make in any::<bool>(),
        ) {
            let dir = dir();
            let base = dir.0.join("base");
            for (number, (target, absolute)) in links.iter().enumerate() {
                let place = if number == 2 { base.join("a") } else { base.clone() };
                let target = if *absolute { dir.0.join(target) } else { target.clone() };
                symlink(target, place.join(format!("l{number}"))).unwrap();
            }
            let missing = if make { Missing::MakeDirectories(0o755) } else { Missing::Refuse };
            if let Ok(file) = open(&base, &asked, missing) {
                let real = path_of(file.as_fd()).unwrap();
                prop_assert!(real.starts_with(&base), "{real:?}");
                prop_assert_eq!(base.join(&asked).canonicalize().unwrap(), real);
            }
            let outside: Vec<_> = std::fs::read_dir(dir.0.join("outside")).unwrap().collect();
            prop_assert_eq!(outside.len(), 1);
            prop_assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 2);
        }
    }
}
