//! Ids for pods with users of their own (`hostUsers: false`).
//!
//! What a pod has stands in its directory and nowhere else. So a restarted agent finds it there, another agent of this
//! node understands it, and it is given back when the directory goes, which is after the pod's last process.

use super::{Hands, within};
use kedge_api::Pod;
use kedge_containers::UserNamespace;
use kedge_pods::Refusal;
use kedge_pods::user_namespaces::{RECORD, RECORD_BYTES_MAX, Ranges, Trouble, print};
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The runtime only looks into its configuration.
const RUNTIME_MAX: Duration = Duration::from_secs(30);
/// As volumes make the directory of a pod.
const DIRECTORY_MODE: u32 = 0o750;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{act} {path}", path = .path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(transparent)]
    Ids(#[from] Trouble),
}

/// The records of this node.
#[derive(Debug)]
pub(crate) struct IdBook {
    pods: PathBuf,
    /// Held from the look at what is taken until that something else is taken is written down.
    giving: Mutex<()>,
}

impl IdBook {
    pub(crate) fn new(pods: PathBuf) -> Self {
        Self {
            pods,
            giving: Mutex::new(()),
        }
    }

    /// What the pod has, or from now on has.
    fn give(&self, uid: &str) -> Result<UserNamespace, Error> {
        // Nothing is left half done by a panic: the records are read anew.
        let _once = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ranges = self.read()?;
        if let Some(known) = ranges.of(uid) {
            return Ok(known);
        }
        let ids = ranges.give(uid)?;
        self.write(uid, &ids)?;
        Ok(ids)
    }

    /// What the pod has.
    fn known(&self, uid: &str) -> Result<Option<UserNamespace>, Error> {
        let mut ranges = Ranges::default();
        if let Some(text) = read(&self.pods.join(uid).join(RECORD))? {
            ranges.record(uid, &text)?;
        }
        Ok(ranges.of(uid))
    }

    /// What is taken. A record that is not understood may name any ids, so nothing is given away beside it.
    fn read(&self) -> Result<Ranges, Error> {
        let mut ranges = Ranges::default();
        let entries = match std::fs::read_dir(&self.pods) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ranges),
            found => found.map_err(file("read", &self.pods))?,
        };
        for entry in entries {
            let entry = entry.map_err(file("read", &self.pods))?;
            if let Some(text) = read(&entry.path().join(RECORD))? {
                ranges.record(&entry.file_name().to_string_lossy(), &text)?;
            }
        }
        Ok(ranges)
    }

    /// Before the first process with these ids runs, no power cut may take the record any more.
    fn write(&self, uid: &str, ids: &UserNamespace) -> Result<(), Error> {
        let directory = self.pods.join(uid);
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(&directory)
            .map_err(file("make", &directory))?;
        let path = directory.join(RECORD);
        kedge_files::replace(&path, print(ids).as_bytes())
            .and_then(|()| kedge_files::sync_directory(&self.pods))
            .map_err(file("write", &path))
    }
}

/// The record at this path; `None` when there is none.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let mut text = String::new();
    let found = File::open(path).and_then(|file| file.take(RECORD_BYTES_MAX).read_to_string(&mut text));
    match found {
        Ok(_) => Ok(Some(text)),
        // Beside the directories of pods may lie files.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(file("read", path)(source)),
    }
}

fn file(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { act, path, source }
}

impl Hands {
    /// The ids of a pod that is about to run, where it has its own.
    pub(super) async fn user_namespace(
        &self,
        pod: &Pod,
        handler: &str,
    ) -> Result<Option<UserNamespace>, Refusal> {
        if pod.spec.host_users != Some(false) {
            return Ok(None);
        }
        let asked = within(RUNTIME_MAX, "ask for the features", self.runtime.status()).await;
        let features = asked.map_err(refuse)?.features;
        if !features
            .get(handler)
            .is_some_and(|handler| handler.user_namespaces)
        {
            // Kubelets say it in these words.
            let who = match handler {
                "" => "runtime".to_owned(),
                name => format!("RuntimeClass handler {name:?}"),
            };
            return Err(refuse(format!(
                "can't set `spec.hostUsers: false`, {who} does not support user namespaces"
            )));
        }
        self.in_book(pod, |book, uid| book.give(uid).map(Some)).await
    }

    /// The ids of a pod that runs, where it has its own.
    pub(super) async fn known_user_namespace(&self, pod: &Pod) -> Result<Option<UserNamespace>, Refusal> {
        if pod.spec.host_users != Some(false) {
            return Ok(None);
        }
        let known = self.in_book(pod, IdBook::known).await?;
        known.map(Some).ok_or_else(|| {
            refuse(format!(
                "the record of the ids that the pod has ({RECORD}) is gone"
            ))
        })
    }

    async fn in_book(
        &self,
        pod: &Pod,
        work: impl FnOnce(&IdBook, &str) -> Result<Option<UserNamespace>, Error> + Send + 'static,
    ) -> Result<Option<UserNamespace>, Refusal> {
        let (book, uid) = (Arc::clone(&self.ids), pod.uid().to_owned());
        let done = tokio::task::spawn_blocking(move || work(&book, &uid)).await;
        match done {
            Ok(Ok(ids)) => Ok(ids),
            Ok(Err(error)) => Err(refuse(super::chain(&error))),
            Err(error) => Err(refuse(format!("look up the ids of the pod: {error}"))),
        }
    }
}

fn refuse(message: String) -> Refusal {
    Refusal::new("CreatePodSandboxError", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(ids: UserNamespace) -> u32 {
        ids.uids.host_id / 65536
    }

    #[test]
    fn what_a_pod_has_stands_in_its_directory_and_goes_with_it() {
        let pods = std::env::temp_dir().join(format!("kedge-ids-{}", std::process::id()));
        let given = |uid: &str| IdBook::new(pods.clone()).give(uid).map(first);
        let many: Vec<u32> = {
            let book = Arc::new(IdBook::new(pods.clone()));
            let threads = (0..8).map(|number| {
                let book = Arc::clone(&book);
                std::thread::spawn(move || first(book.give(&format!("p{number}")).unwrap()))
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        };
        let mut sorted = many.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 2, 3, 4, 5, 6, 7, 8], "nobody shares");
        let again: Vec<u32> = (0..8).map(|n| given(&format!("p{n}")).unwrap()).collect();
        assert_eq!(again, many, "another agent finds them");
        std::fs::remove_dir_all(pods.join("p3")).unwrap();
        assert_eq!(IdBook::new(pods.clone()).known("p3").unwrap(), None);
        assert_eq!(given("next").unwrap(), many[3]);
        std::fs::write(pods.join("a file"), "").unwrap();
        std::fs::write(pods.join("p5").join(RECORD), "{").unwrap();
        let refused = [given("p5"), given("new")].map(|given| given.unwrap_err().to_string());
        std::fs::remove_dir_all(&pods).unwrap();
        let why = "read which ids pod p5 has (its file userns): it is no JSON";
        assert_eq!(refused, [why, why]);
    }
}
