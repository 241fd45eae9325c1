//! Paths of the node as volumes.

use super::directory::make_directory;
use super::error::Error;
use kedge_api::HostPathType;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Sees that what the pod says is at the path, and makes what may be made.
pub(super) fn check(path: &Path, want: HostPathType) -> Result<(), Error> {
    if !path.is_absolute() {
        return Err(Error::Unfit(format!(
            "hostPath {} is not absolute",
            path.display()
        )));
    }
    match want {
        // What is not there becomes a directory, as every container runtime makes it.
        HostPathType::Unchecked if path.exists() => return Ok(()),
        HostPathType::Unchecked | HostPathType::DirectoryOrCreate if !path.exists() => {
            return make_shared(path);
        }
        HostPathType::FileOrCreate if !path.exists() => return make_file(path),
        HostPathType::Unchecked
        | HostPathType::DirectoryOrCreate
        | HostPathType::Directory
        | HostPathType::FileOrCreate
        | HostPathType::File
        | HostPathType::Socket
        | HostPathType::CharDevice
        | HostPathType::BlockDevice => {}
    }
    let kind = std::fs::metadata(path).map(|found| found.file_type());
    let is = |fits: fn(&std::fs::FileType) -> bool| kind.as_ref().is_ok_and(fits);
    let (fits, name) = match want {
        HostPathType::Unchecked => (true, "anything"),
        HostPathType::DirectoryOrCreate | HostPathType::Directory => {
            (is(std::fs::FileType::is_dir), "a directory")
        }
        HostPathType::FileOrCreate | HostPathType::File => (is(std::fs::FileType::is_file), "a file"),
        HostPathType::Socket => (is(|kind| kind.is_socket()), "a socket file"),
        HostPathType::CharDevice => (is(|kind| kind.is_char_device()), "a character device"),
        HostPathType::BlockDevice => (is(|kind| kind.is_block_device()), "a block device"),
    };
    if fits {
        return Ok(());
    }
    Err(Error::Unfit(format!(
        "hostPath type check failed: {} is not {name}",
        path.display()
    )))
}

/// The directories above belong to the node's users as well.
fn make_shared(path: &Path) -> Result<(), Error> {
    let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
    missing
        .into_iter()
        .rev()
        .try_for_each(|path| make_directory(path, 0o755))
}

fn make_file(path: &Path) -> Result<(), Error> {
    let mut options = std::fs::OpenOptions::new();
    let made = options.write(true).create_new(true).mode(0o644).open(path);
    made.map(drop).map_err(Error::file("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::testing::TempDir;
    use expect_test::expect;

    #[test]
    fn every_type() {
        let top = TempDir::new();
        std::fs::create_dir(top.join("dir")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        let places = [
            "dir".into(),
            "file".into(),
            "socket".into(),
            "absent/below".into(),
            std::path::PathBuf::from("/dev/null"),
        ];
        let types = [
            HostPathType::Directory,
            HostPathType::File,
            HostPathType::Socket,
            HostPathType::CharDevice,
            HostPathType::BlockDevice,
            HostPathType::FileOrCreate,
            HostPathType::DirectoryOrCreate,
            HostPathType::Unchecked,
        ];
        let mut shown = String::new();
        for type_ in types {
            let mut fits = Vec::new();
            let mut last = String::new();
            for place in &places {
                match check(&top.join(place), type_) {
                    Ok(()) => fits.push(place.display().to_string()),
                    Err(error) => last = error.to_string().replace(&top.display().to_string(), ""),
                }
            }
            shown += &format!("{type_:?}: {}; {last}\n", fits.join(" "));
            let _ = std::fs::remove_dir(top.join("absent/below"));
            let _ = std::fs::remove_dir(top.join("absent"));
        }
        expect![[r#"
            Directory: dir; hostPath type check failed: /dev/null is not a directory
            File: file; hostPath type check failed: /dev/null is not a file
            Socket: socket; hostPath type check failed: /dev/null is not a socket file
            CharDevice: /dev/null; hostPath type check failed: /absent/below is not a character device
            BlockDevice: ; hostPath type check failed: /dev/null is not a block device
            FileOrCreate: file; hostPath type check failed: /dev/null is not a file
            DirectoryOrCreate: dir absent/below; hostPath type check failed: /dev/null is not a directory
            Unchecked: dir file socket absent/below /dev/null; 
        "#]]
        .assert_eq(&shown);
        assert!(check(Path::new("relative"), HostPathType::Unchecked).is_err());
    }
}
