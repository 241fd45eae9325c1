//! The last words of containers: the termination message file, or the end of the log.

use kedge_api::Pod;
use kedge_containers::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox};
use kedge_pods::{Config, PodKey, translate};
use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::sync::Arc;

/// Kubernetes keeps this much of the file.
const MESSAGE_BYTES_MAX: u64 = 4096;
/// And this much of the log, in this many lines.
const LOG_BYTES_MAX: u64 = 2048;
const LOG_LINES_MAX: usize = 80;

/// Messages of ended containers; read once, because they do not change any more.
pub(crate) type Messages = BTreeMap<ContainerId, String>;

/// Puts the messages of ended containers into an observation. Reads files, so it runs on a blocking thread.
pub(crate) fn complete(
    list: &mut [ObservedSandbox],
    known: &Messages,
    config: &Config,
    pods: &BTreeMap<PodKey, Arc<Pod>>,
) -> Messages {
    let mut messages = Messages::new();
    for sandbox in list {
        let pod = pods.get(&PodKey::new(&sandbox.pod.namespace, &sandbox.pod.name));
        let pod = pod.filter(|pod| pod.uid() == sandbox.pod.uid);
        for container in &mut sandbox.containers {
            let words = match known.get(&container.id) {
                Some(words) => words.clone(),
                None => pod.map(|pod| read(config, pod, container)).unwrap_or_default(),
            };
            if let ContainerState::Exited { message, .. } = &mut container.state {
                if message.is_empty() {
                    message.clone_from(&words);
                }
                messages.insert(container.id.clone(), words);
            }
        }
    }
    messages
}

fn read(config: &Config, pod: &Pod, container: &ObservedContainer) -> String {
    let ContainerState::Exited { exit_code, .. } = &container.state else {
        return String::new();
    };
    let file = translate::termination_log(config, pod, &container.name, container.attempt);
    let words = tail(&file, MESSAGE_BYTES_MAX);
    let policy = pod
        .container(&container.name)
        .and_then(|spec| spec.termination_message_policy.as_deref());
    if !words.is_empty() || policy != Some("FallbackToLogsOnError") || *exit_code == 0 {
        return words;
    }
    let log = tail(&container.log_path, LOG_BYTES_MAX * 2);
    let lines: Vec<&str> = log
        .lines()
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    let from = lines.len().saturating_sub(LOG_LINES_MAX);
    let text = lines[from..].join("\n");
    let cut = text
        .len()
        .saturating_sub(usize::try_from(LOG_BYTES_MAX).unwrap_or(usize::MAX));
    text.get(cut..).unwrap_or(&text).to_owned()
}

/// The end of a file as text; empty when it cannot be read.
fn tail(path: &Path, bytes_max: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(bytes_max)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read()
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
