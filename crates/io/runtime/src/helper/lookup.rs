//! Whether a container's program is there and may be executed, asked as the user that executes it.

use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{Access, AtFlags, CWD, accessat};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// Says why the program of this configuration cannot be executed; to be asked in the container, by its first process.
pub(super) fn check(spec: &Spec) -> Result<(), String> {
    let process = spec.process().as_ref();
    let args = process.and_then(|process| process.args().as_ref());
    let name = args.and_then(|args| args.first()).ok_or("there is no command")?;
    let env = process
        .and_then(|process| process.env().clone())
        .unwrap_or_default();
    let path = env
        .iter()
        .rev()
        .find_map(|variable| variable.strip_prefix("PATH="));
    find(name, path.unwrap_or_default())
}

fn find(name: &str, path: &str) -> Result<(), String> {
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![PathBuf::from(name)]
    } else {
        let directories = path.split(':').filter(|directory| directory.starts_with('/'));
        directories
            .map(|directory| Path::new(directory).join(name))
            .collect()
    };
    let mut worst = None;
    for candidate in &candidates {
        match accessat(CWD, candidate, Access::EXEC_OK, AtFlags::EACCESS) {
            Ok(()) if candidate.is_file() => return Ok(()),
            Ok(()) => worst = Some(Errno::ISDIR),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => worst = Some(errno),
        }
    }
    Err(match worst {
        Some(errno) => format!("executable {name} cannot be executed: {errno}"),
        None if name.contains('/') => format!("executable {name} is not in the container"),
        None => format!("executable {name} is in no directory of PATH ({path})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn programs_are_looked_for_as_they_are_executed() {
        let top = std::env::temp_dir().join(format!("kedge-lookup-{}", std::process::id()));
        std::fs::create_dir_all(top.join("directory")).unwrap();
        for (name, mode) in [("mine", 0o500), ("plain", 0o644)] {
            std::fs::write(top.join(name), "").unwrap();
            std::fs::set_permissions(top.join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        let at = |name: &str| top.join(name).display().to_string();
        let path = format!("relative:/no/such:{}", top.display());
        let told = [
            &at("mine"),
            "mine",
            &at("plain"),
            "directory",
            "nowhere",
            "/no/such",
        ]
        .map(|name| find(name, &path));
        std::fs::remove_dir_all(&top).unwrap();
        assert_eq!(told[0], Ok(()), "not everybody has to be able to execute it");
        assert_eq!(told[1], Ok(()));
        assert!(
            told[2]
                .as_ref()
                .unwrap_err()
                .ends_with("Permission denied (os error 13)"),
            "{told:?}"
        );
        assert!(
            told[3].as_ref().unwrap_err().contains("Is a directory"),
            "{told:?}"
        );
        assert_eq!(
            told[4],
            Err(format!("executable nowhere is in no directory of PATH ({path})"))
        );
        assert_eq!(
            told[5],
            Err("executable /no/such is not in the container".to_owned())
        );
    }
}
