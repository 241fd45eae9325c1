//! The last words of containers: the termination message file, or the end of the log.

use crate::beside::PodView;
use kedge_api::Pod;
use kedge_containers::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox};
use kedge_pods::{Config, translate};
use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// Kubernetes keeps this much of the file.
const FILE_BYTES_MAX: usize = 4096;
/// And this much of the log, in this many lines.
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;
/// The messages of all containers of a pod together: the object of a pod must not grow without end.
const POD_BYTES_MAX: usize = 12 * 1024;
/// Each line of a log has a time and a stream before its text; reading twice the text finds enough of it.
const LOG_READ_BYTES: u64 = 4 * LOG_BYTES_MAX as u64;

/// Messages of ended containers; read once, because they do not change any more.
pub(crate) type Messages = BTreeMap<ContainerId, String>;

/// Whether a container in this list has ended whose last words were not read yet.
pub(crate) fn has_unread(list: &[ObservedSandbox], known: &Messages) -> bool {
    let mut containers = list.iter().flat_map(|sandbox| &sandbox.containers);
    containers.any(|container| has_ended(container) && !known.contains_key(&container.id))
}

fn has_ended(container: &ObservedContainer) -> bool {
    match container.state {
        ContainerState::Exited { .. } => true,
        ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown => false,
    }
}

/// Puts the messages of ended containers into an observation and forgets those of containers that are gone. Reads
/// files, where one was not read yet.
pub(crate) fn complete(
    list: &mut [ObservedSandbox],
    known: &Messages,
    config: &Config,
    pods: &[PodView],
) -> Messages {
    let mut messages = Messages::new();
    for sandbox in list {
        let mut pods = pods.iter().map(|view| &view.pod);
        let pod = pods.find(|pod| pod.uid() == sandbox.pod.uid);
        for container in sandbox.containers.iter_mut().filter(|c| has_ended(c)) {
            let words = match known.get(&container.id) {
                Some(words) => words.clone(),
                None => pod.map(|pod| read(config, pod, container)).unwrap_or_default(),
            };
            if let ContainerState::Exited { message, .. } = &mut container.state
                && !words.is_empty()
            {
                if !message.is_empty() {
                    message.push_str(": ");
                }
                message.push_str(&words);
                shorten(message, pod.map_or(POD_BYTES_MAX, |pod| share(pod)));
            }
            messages.insert(container.id.clone(), words);
        }
    }
    messages
}

/// The part of [`POD_BYTES_MAX`] that each container of the pod has.
fn share(pod: &Pod) -> usize {
    POD_BYTES_MAX / all_containers(pod).max(1)
}

fn all_containers(pod: &Pod) -> usize {
    pod.spec.init_containers.len() + pod.spec.containers.len() + pod.spec.ephemeral_containers.len()
}

fn shorten(text: &mut String, bytes_max: usize) {
    text.truncate(text.floor_char_boundary(bytes_max));
}

fn read(config: &Config, pod: &Pod, container: &ObservedContainer) -> String {
    let ContainerState::Exited { exit_code, .. } = &container.state else {
        return String::new();
    };
    let file = translate::termination_log(config, pod, &container.name, container.attempt);
    let words = tail(&file, FILE_BYTES_MAX as u64);
    let policy = pod
        .container(&container.name)
        .and_then(|spec| spec.termination_message_policy.as_deref());
    if !words.is_empty() || policy != Some("FallbackToLogsOnError") || *exit_code == 0 {
        return words;
    }
    last_lines(&tail(&container.log_path, LOG_READ_BYTES))
}

/// The text of the last records of a log.
fn last_lines(log: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    let mut bytes = 0;
    for line in log.lines().rev().take(LOG_LINES_MAX) {
        let Some(text) = line.splitn(4, ' ').nth(3) else {
            continue;
        };
        let room = LOG_BYTES_MAX - bytes;
        let from = text.ceil_char_boundary(text.len().saturating_sub(room));
        lines.push(&text[from..]);
        bytes += text.len() - from + 1;
        if bytes >= LOG_BYTES_MAX {
            break;
        }
    }
    lines.reverse();
    lines.join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    #[test]
    fn the_end_of_a_log() {
        let mut log = "cut off record\n".to_owned();
        for n in 0..100 {
            let _ = writeln!(log, "2026-01-01T00:00:00.1Z stderr F line {n}");
        }
        let words = last_lines(&log);
        assert!(
            words.starts_with("line 20\n") && words.ends_with("\nline 99"),
            "{words}"
        );
        let long = format!("t stderr F first\nt stderr F {}é\n", "x".repeat(3000));
        let words = last_lines(&long);
        assert!(
            words.len() <= LOG_BYTES_MAX && words.ends_with("xé"),
            "{}",
            words.len()
        );
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn a_pod_of_many_containers_shares_the_room() {
        let mut pod = Pod::default();
        pod.spec.containers = vec![kedge_api::Container::default(); 6];
        assert_eq!(share(&pod), 2048);
        let mut text = "é".repeat(2000);
        shorten(&mut text, 2049);
        assert_eq!(text.len(), 2048);
    }
}
