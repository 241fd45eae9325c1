//! A certificate and its key in files: mode 0600, replaced together or not at all.

use crate::{Certificate, Error, Identity, Key, NodeRequest};
use kedge_wire::NodeName;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// A certificate file is a few KiB.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where an identity lives. Official places: `rootCA.crt`, `server.crt`, `server.key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Why certificate files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("use {path}")]
    Content { path: PathBuf, source: Error },
}

impl IdentityFiles {
    /// The official names in a directory for certificates and one for the authority.
    pub fn in_directories(authority: &Path, certificates: &Path) -> Self {
        Self {
            authority: authority.join("rootCA.crt"),
            certificate: certificates.join("server.crt"),
            key: certificates.join("server.key"),
        }
    }

    /// The identity; `None` when any of the files does not exist yet. A replacement that was cut short is finished.
    pub fn load(&self) -> Result<Option<Identity>, FileError> {
        let present = self.load_present();
        let Some(replacement) = self.load_replacement()? else {
            return present;
        };
        let newer_stands = match &present {
            // Another program, such as the official EdgeCore, has replaced the files since.
            Ok(Some(present)) => {
                present.certificate().info().not_before.as_secs()
                    > replacement.certificate().info().not_before.as_secs()
            }
            Ok(None) | Err(_) => false,
        };
        if newer_stands {
            remove(&replacing(&self.key))?;
            return present;
        }
        self.finish(&replacement)?;
        Ok(Some(replacement))
    }

    fn load_present(&self) -> Result<Option<Identity>, FileError> {
        let (Some(key), Some(authority)) = (read(&self.key)?, read(&self.authority)?) else {
            return Ok(None);
        };
        let key = Key::from_pem(&key).map_err(content(&self.key))?;
        let authority = Certificate::from_pem(&authority).map_err(content(&self.authority))?;
        let Some(certificate) = read(&self.certificate)? else {
            return Ok(None);
        };
        let chain = Certificate::chain_from_pem(&certificate).map_err(content(&self.certificate))?;
        Identity::new(chain, key, authority)
            .map(Some)
            .map_err(content(&self.certificate))
    }

    /// What [`IdentityFiles::save`] has put down and not taken away again. A damaged one was never agreed to.
    fn load_replacement(&self) -> Result<Option<Identity>, FileError> {
        let path = replacing(&self.key);
        let Some(pem) = read(&path)? else {
            return Ok(None);
        };
        match read_replacement(&pem) {
            Ok(identity) => Ok(Some(identity)),
            Err(_damaged) => remove(&path).map(|()| None),
        }
    }

    /// The authority alone, which is fetched before there is a certificate.
    pub fn load_authority(&self) -> Result<Option<Certificate>, FileError> {
        let Some(authority) = read(&self.authority)? else {
            return Ok(None);
        };
        Certificate::from_pem(&authority)
            .map(Some)
            .map_err(content(&self.authority))
    }

    /// The request of a node that has no certificate yet. Its key is kept until an identity is saved: a one-time token
    /// is bound to the key that it was used with, so a device whose answer was lost must ask again with the same key.
    pub fn first_request(&self, node: &NodeName) -> Result<NodeRequest, FileError> {
        let waiting = requested(&self.key);
        let kept = read(&waiting)?.and_then(|pem| Key::from_pem(&pem).ok());
        let request = match kept {
            Some(key) => NodeRequest::of(node, key).map_err(content(&waiting))?,
            None => NodeRequest::create(node).map_err(content(&waiting))?,
        };
        write_private(&waiting, request.key().pem().as_bytes())?;
        Ok(request)
    }

    /// Replaces the files. After a crash at any point [`IdentityFiles::load`] gives the old identity or the new one,
    /// whole: everything new is written to one file first, whose rename decides, and then to its places.
    pub fn save(&self, identity: &Identity) -> Result<(), FileError> {
        Step::Write(replacing(&self.key), write_replacement(identity)).perform()?;
        self.finish(identity)
    }

    fn finish(&self, identity: &Identity) -> Result<(), FileError> {
        self.last_steps(identity).iter().try_for_each(Step::perform)
    }

    /// From the replacement to its places.
    fn last_steps(&self, identity: &Identity) -> [Step; 5] {
        [
            Step::Write(self.authority.clone(), identity.authority().pem()),
            Step::Write(self.key.clone(), identity.key().pem()),
            Step::Write(self.certificate.clone(), identity.chain_pem()),
            Step::Remove(requested(&self.key)),
            Step::Remove(replacing(&self.key)),
        ]
    }
}

/// One change that is done or not done after a crash.
#[derive(Debug)]
enum Step {
    Write(PathBuf, String),
    Remove(PathBuf),
}

impl Step {
    fn perform(&self) -> Result<(), FileError> {
        match self {
            Self::Write(path, text) => write_private(path, text.as_bytes()),
            Self::Remove(path) => remove(path),
        }
    }
}

/// The authority, the key, and the chain behind it, in one text.
fn write_replacement(identity: &Identity) -> String {
    let (authority, key) = (identity.authority().pem(), identity.key().pem());
    format!("{authority}{key}{}", identity.chain_pem())
}

fn read_replacement(pem: &[u8]) -> Result<Identity, Error> {
    let mut certificates = Certificate::chain_from_pem(pem)?;
    let authority = certificates.remove(0);
    Identity::new(certificates, Key::from_pem(pem)?, authority)
}

/// Writes a file that only its owner may read: whole or not at all, and durable when this returns. Missing
/// directories are made with mode 0700.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    kedge_files::make_directory(kedge_files::directory_of(path))
        .and_then(|()| kedge_files::replace(path, content))
        .map_err(|source| FileError::Write {
            path: path.to_owned(),
            source,
        })
}

fn remove(path: &Path) -> Result<(), FileError> {
    kedge_files::remove(path).map_err(|source| FileError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The key of a request that waits for its certificate.
fn requested(key: &Path) -> PathBuf {
    let mut waiting = key.as_os_str().to_owned();
    waiting.push(".requested");
    PathBuf::from(waiting)
}

/// A whole identity that is on its way to its places.
fn replacing(key: &Path) -> PathBuf {
    let mut replacing = key.as_os_str().to_owned();
    replacing.push(".replacing");
    PathBuf::from(replacing)
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let failed = |source: io::Error| FileError::Read {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(Some(bytes))
}

fn content(path: &Path) -> impl Fn(Error) -> FileError + '_ {
    move |source| FileError::Content {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authority, UnixTime};
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kedge-pki-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }

        fn files(&self) -> IdentityFiles {
            IdentityFiles::in_directories(&self.0.join("ca"), &self.0.join("certs"))
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn identities() -> (Identity, Identity) {
        let now = UnixTime::now();
        let authority = Authority::create(now).unwrap();
        let issue = || {
            authority.issue_client(
                "system:node:edge-1",
                &["system:nodes"],
                Duration::from_secs(60),
                now,
            )
        };
        (issue().unwrap(), issue().unwrap())
    }

    #[test]
    fn an_identity_comes_back_and_only_its_owner_may_read_it() {
        let directory = Directory::new("roundtrip");
        let files = directory.files();
        assert_eq!(files.load().unwrap(), None);
        let (first, second) = identities();
        for identity in [first, second] {
            files.save(&identity).unwrap();
            assert_eq!(files.load().unwrap(), Some(identity));
        }
        for path in [&files.authority, &files.certificate, &files.key] {
            assert_eq!(
                std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }

    /// The cloud has another authority, too: of three files none may come alone.
    #[test]
    fn a_replacement_cut_at_any_write_leaves_the_old_identity_or_the_new_one() {
        let (old, new) = (identities().0, identities().0);
        let mut story = String::new();
        for cut in 0..=6 {
            for torn in [false, true] {
                let directory = Directory::new(&format!("cut-{cut}-{torn}"));
                let files = directory.files();
                let replacement = replacing(&files.key);
                files.save(&old).unwrap();
                let mut steps = vec![Step::Write(replacement.clone(), write_replacement(&new))];
                steps.extend(files.last_steps(&new));
                for step in &steps[..cut] {
                    step.perform().unwrap();
                }
                if torn && let Some(Step::Write(path, text)) = steps.get(cut) {
                    // The power went while the file beside it was written.
                    let name = format!(".{}.tmp", path.file_name().unwrap().display());
                    std::fs::write(path.with_file_name(name), &text[..text.len() / 2]).unwrap();
                }
                let found = files.load().unwrap().unwrap();
                let name = if found == old { "old" } else { "new" };
                assert!(found == old || found == new, "cut {cut}");
                assert_eq!(files.load().unwrap(), Some(found.clone()));
                // What other programs read is whole, too, and nothing is left behind.
                assert_eq!(files.load_present().unwrap(), Some(found));
                assert!(!replacement.exists());
                story.push_str(name);
                story.push(' ');
            }
        }
        assert_eq!(
            story.trim(),
            "old old new new new new new new new new new new new new"
        );
    }

    #[test]
    fn a_replacement_that_was_overtaken_or_damaged_is_forgotten() {
        let directory = Directory::new("overtaken");
        let files = directory.files();
        let old = identities().0;
        let later = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() + 60));
        let newer = Authority::create(later)
            .unwrap()
            .issue_client("system:node:edge-1", &[], Duration::from_secs(60), later)
            .unwrap();
        files.save(&newer).unwrap();
        for left in [write_replacement(&old), "-----BEGIN".to_owned()] {
            write_private(&replacing(&files.key), left.as_bytes()).unwrap();
            assert_eq!(files.load().unwrap(), Some(newer.clone()));
            assert!(!replacing(&files.key).exists());
        }
    }

    #[test]
    fn a_disk_that_takes_nothing_leaves_the_old_identity() {
        let directory = Directory::new("full");
        let files = directory.files();
        let (old, new) = identities();
        files.save(&old).unwrap();
        // A folder where the file should come stands for any write that fails.
        std::fs::create_dir_all(replacing(&files.key).join("in-the-way")).unwrap();
        assert!(files.save(&new).is_err());
        std::fs::remove_dir_all(replacing(&files.key)).unwrap();
        assert_eq!(files.load().unwrap(), Some(old));
    }

    #[test]
    fn a_node_asks_with_the_same_key_until_it_has_its_certificate() {
        let directory = Directory::new("asking");
        let files = directory.files();
        let node = NodeName::new("edge-1").unwrap();
        let first = files.first_request(&node).unwrap();
        assert_eq!(files.first_request(&node).unwrap().key(), first.key());
        // A key that was cut short is replaced.
        write_private(&requested(&files.key), b"-----BEGIN").unwrap();
        let second = files.first_request(&node).unwrap();
        assert_ne!(second.key(), first.key());
        files.save(&identities().0).unwrap();
        assert_ne!(files.first_request(&node).unwrap().key(), second.key());
    }

    #[test]
    fn a_broken_file_is_named() {
        let directory = Directory::new("broken");
        let files = directory.files();
        files.save(&identities().0).unwrap();
        write_private(&files.key, b"nonsense").unwrap();
        let error = files.load().unwrap_err();
        assert!(error.to_string().ends_with("certs/server.key"), "{error}");
    }
}
