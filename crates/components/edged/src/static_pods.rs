//! Pods that files of this node describe.
//!
//! A task follows a directory (or one file): woken by inotify, and looking by itself now and then, because inotify does
//! not see everything (a network file system, a directory that appears later). Each file holds one pod as YAML or JSON.
//! A file that cannot be read or understood is said aloud once, with its path; it never stops the others, and a pod that
//! it held before goes on as it was.

use crate::events::Events;
use kedge_api::Pod;
use kedge_config::yaml;
use kedge_host::{Changes, Watch};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A manifest larger than this is none: the API takes no larger pod either.
const FILE_BYTES_MAX: u64 = 3 * 1024 * 1024;
/// Files of one directory that are read. A node does not run more pods.
const FILES_MAX: usize = 512;
/// An editor writes a file in several steps; what comes within this time is one change.
const SETTLE: Duration = Duration::from_millis(50);

/// Where static pods come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A directory or a file.
    pub path: PathBuf,
    /// How often it is looked at without a hint.
    pub check_interval: Duration,
}

impl Source {
    /// KubeEdge's defaults for this place.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            check_interval: Duration::from_secs(20),
        }
    }
}

/// Starts to follow the source; the receiver holds nothing until it was looked at for the first time.
pub(crate) fn start(source: Source, events: Events, scope: &Scope) -> latest::Receiver<Option<Vec<Pod>>> {
    let (tx, rx) = latest::channel(None);
    // An operator who was told of the directory shall find it.
    if let Err(error) = std::fs::create_dir_all(&source.path)
        && !source.path.is_file()
    {
        tracing::warn!(path = %source.path.display(), %error, "directory of static pods not created");
    }
    let follower = Follower {
        files: BTreeMap::new(),
        complained: None,
        source,
        events,
    };
    scope.spawn_until_cancelled("edged-static-pods", follower.run(tx));
    rx
}

struct Follower {
    source: Source,
    events: Events,
    files: BTreeMap<PathBuf, Known>,
    /// What was said about the source as a whole.
    complained: Option<String>,
}

/// A file as it was read last.
struct Known {
    stamp: Stamp,
    pod: Option<Pod>,
}

/// What changes when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Follower {
    async fn run(mut self, tx: latest::Sender<Option<Vec<Pod>>>) {
        loop {
            // Watched before it is read, so that nothing is missed between the two; and anew each time, because another
            // directory may stand under the name by now. There may be nothing to watch yet.
            let watch = Watch::open(self.directory(), Changes::Any).ok();
            let pods = self.look();
            tx.send_if_modified(|known| {
                let differs = known.as_ref() != Some(&pods);
                *known = Some(pods);
                differs
            });
            tokio::select! {
                biased;
                () = changed(watch) => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(self.source.check_interval) => {}
            }
        }
    }

    fn directory(&self) -> &Path {
        if self.source.path.is_file() {
            self.source.path.parent().unwrap_or(&self.source.path)
        } else {
            &self.source.path
        }
    }

    /// Reads what has changed. A directory of manifests is small and local: reading it takes less than a hand-over to
    /// another thread.
    fn look(&mut self) -> Vec<Pod> {
        let paths = match paths(&self.source.path) {
            Ok(paths) => {
                self.complained = None;
                paths
            }
            Err(error) => {
                let why = format!("read static pods of {}: {error}", self.source.path.display());
                if self.complained.as_ref() != Some(&why) {
                    tracing::error!(path = %self.source.path.display(), %error, "static pods cannot be listed");
                    self.complained = Some(why);
                }
                // What ran goes on: a directory that cannot be read now is no reason to end its pods.
                return self.pods();
            }
        };
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            self.look_at(path);
        }
        self.pods()
    }

    fn pods(&self) -> Vec<Pod> {
        self.files
            .values()
            .filter_map(|known| known.pod.clone())
            .collect()
    }

    fn look_at(&mut self, path: PathBuf) {
        // It may be gone since it was listed; then the next look forgets it.
        let Ok(stamp) = stamp(&path) else { return };
        let before = self.files.remove(&path);
        if let Some(known) = before.as_ref().filter(|known| known.stamp == stamp) {
            let pod = known.pod.clone();
            self.files.insert(path, Known { stamp, pod });
            return;
        }
        let pod = match read(&path) {
            Ok(pod) => {
                tracing::info!(file = %path.display(), pod = pod.metadata.name, "static pod");
                Some(pod)
            }
            Err(why) => {
                tracing::error!(file = %path.display(), why, "file holds no static pod");
                let message = format!("{}: {why}", path.display());
                self.events.tell_node("FailedStaticPod", true, message);
                before.and_then(|known| known.pod)
            }
        };
        self.files.insert(path, Known { stamp, pod });
    }
}

/// Completes when something happens there; never, where nothing can be watched.
async fn changed(watch: Option<Watch>) {
    let changed = match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    };
    if let Err(error) = changed {
        tracing::debug!(%error, "static pods are looked at now and then only");
        std::future::pending().await
    }
}

/// The files of a source, in the order of their names. Hidden ones are not for us: editors keep theirs there.
fn paths(source: &Path) -> io::Result<Vec<PathBuf>> {
    let kind = match std::fs::metadata(source) {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    if kind.is_file() {
        return Ok(vec![source.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(source)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // Followed, because a manifest may be a link.
        if !hidden && std::fs::metadata(entry.path()).is_ok_and(|kind| kind.is_file()) {
            paths.push(entry.path());
        }
        if paths.len() >= FILES_MAX {
            tracing::warn!(path = %source.display(), FILES_MAX, "more files than are read");
            break;
        }
    }
    paths.sort();
    Ok(paths)
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let file = std::fs::metadata(path)?;
    Ok(Stamp {
        inode: file.ino(),
        bytes: file.len(),
        modified: (file.mtime(), file.mtime_nsec()),
    })
}

fn read(path: &Path) -> Result<Pod, String> {
    let file = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if file.len() > FILE_BYTES_MAX {
        return Err(format!("it is larger than {FILE_BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse(&text)
}

/// JSON is YAML.
fn parse(text: &str) -> Result<Pod, String> {
    let documents = yaml::parse(text).map_err(|error| error.to_string())?;
    let [document] = <[Value; 1]>::try_from(documents)
        .map_err(|documents| format!("it holds {} objects instead of one pod", documents.len()))?;
    let field = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    let kind = (field("apiVersion"), field("kind"));
    if kind != ("v1", "Pod") {
        return Err(format!(
            "it holds apiVersion {:?}, kind {:?} instead of a v1 Pod",
            kind.0, kind.1
        ));
    }
    let mut pod: Pod = serde_json::from_value(document).map_err(|error| error.to_string())?;
    if pod.metadata.name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    if pod.spec.containers.is_empty() {
        return Err("spec.containers is empty".to_owned());
    }
    if let Some(container) = pod
        .spec
        .containers
        .iter()
        .find(|c| c.name.is_empty() || c.image.is_empty())
    {
        return Err(format!(
            "container {:?} lacks its name or its image",
            container.name
        ));
    }
    // What the cloud says about a pod does not come from a file.
    pod.status = kedge_api::PodStatus::default();
    Ok(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files() {
        let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: web:1}]}\n";
        assert_eq!(parse(pod).unwrap().metadata.name, "web");
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web"},"spec":{"containers":[{"name":"c","image":"i"}]}}"#;
        assert_eq!(parse(json).unwrap().spec.containers[0].image, "i");
        let table = [
            ("", "holds 0 objects"),
            ("a: [", "not valid YAML"),
            ("kind: ConfigMap\napiVersion: v1\n", "kind \"ConfigMap\""),
            (&format!("{pod}---\n{pod}"), "holds 2 objects"),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n",
                "spec.containers",
            ),
            (
                "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: c}]}\n",
                "metadata.name",
            ),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: c}]}\n",
                "its image",
            ),
            ("apiVersion: v1\nkind: Pod\nmetadata: 3\n", "invalid type"),
        ];
        for (text, wanted) in table {
            let why = parse(text).unwrap_err();
            assert!(why.contains(wanted), "{text:?}: {why}");
        }
    }
}
