//! Turning log files over, for runtimes that leave it to the node agent.
//!
//! ```text
//!   0.log                        written by the runtime
//!   0.log.20260101-000000        the one before, still plain: a reader may be in the middle of it
//!   0.log.20251231-235500.gz     older ones
//! ```

use crate::beside::Beside;
use flate2::Compression;
use flate2::write::GzEncoder;
use kedge_api::Timestamp;
use kedge_containers::{ContainerId, ContainerState};
use kedge_runtime::Runtime;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// A file that is being packed; what is left of one by a power cut is removed.
const UNFINISHED: &str = ".tmp";
const PACKED: &str = ".gz";
/// A runtime that does not open a new file within this time writes to the old one until the next look.
const REOPEN_MAX: Duration = Duration::from_secs(30);

/// How large logs may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    pub bytes_max: u64,
    /// Files of one container, with the one that is being written; two at least.
    pub files_max: u32,
    /// Containers whose logs are turned over at one time.
    pub workers: u32,
    pub interval: Duration,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            bytes_max: 10 * 1024 * 1024,
            files_max: 5,
            workers: 1,
            interval: Duration::from_secs(10),
        }
    }
}

/// Looks at the log of each running container now and then: a `stat` each, and nothing more while they are small.
pub(super) async fn run(beside: Beside) {
    let settings = beside.config.log_rotation;
    let places = Arc::new(Semaphore::new(settings.workers.max(1) as usize));
    let mut workers = JoinSet::new();
    loop {
        tokio::time::sleep(settings.interval).await;
        let seen = beside.seen.borrow().clone();
        for container in seen.iter().flat_map(|sandbox| &sandbox.containers) {
            let running = match container.state {
                ContainerState::Running { .. } => true,
                ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => false,
            };
            if !running || !needs_attention(&container.log_path, settings.bytes_max) {
                continue;
            }
            let (places, runtime) = (Arc::clone(&places), Arc::clone(&beside.runtime));
            let (id, path) = (container.id.clone(), container.log_path.clone());
            workers.spawn(async move {
                let _place = places.acquire().await;
                if let Err(error) = turn_over(runtime.as_ref(), &id, &path, settings).await {
                    tracing::warn!(log = %path.display(), %error, "log not turned over, will be tried again");
                }
            });
        }
        // The next look begins when this one has ended, so no file is turned over twice at one time.
        while workers.join_next().await.is_some() {}
    }
}

/// It is too large, or somebody took it away under the runtime.
fn needs_attention(path: &Path, bytes_max: u64) -> bool {
    match std::fs::metadata(path) {
        Ok(file) => file.len() >= bytes_max,
        Err(error) => error.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::exists),
    }
}

async fn turn_over(
    runtime: &dyn Runtime,
    id: &ContainerId,
    path: &Path,
    settings: Rotation,
) -> Result<(), String> {
    let now = kedge_telemetry::clock::now_ms();
    let (log, files_max) = (path.to_owned(), settings.files_max);
    let moved = tokio::task::spawn_blocking(move || make_room_and_move(&log, files_max, now)).await;
    let moved = moved
        .map_err(|_| "it was stopped".to_owned())?
        .map_err(|error| error.to_string())?;
    let reopened = match tokio::time::timeout(REOPEN_MAX, runtime.reopen_log(id)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(crate::hands::chain(&error)),
        Err(_) => Err(format!("the runtime took longer than {}s", REOPEN_MAX.as_secs())),
    };
    if let (Err(_), Some(moved)) = (&reopened, moved) {
        // The runtime goes on writing to the moved file: give it its name back, so that readers see all of it.
        let _ = std::fs::rename(&moved, path);
    }
    reopened
}

/// Packs the older files, removes the oldest, and moves the present one away. The answer is where it is now; nothing if
/// there was none.
fn make_room_and_move(path: &Path, files_max: u32, now_ms: u64) -> io::Result<Option<PathBuf>> {
    let older = clean(older(path)?)?;
    // The one being written and the one that is moved now are not among these.
    let keep = (files_max.max(2) as usize).saturating_sub(2);
    let (excess, kept) = older.split_at(older.len().saturating_sub(keep));
    for file in excess {
        std::fs::remove_file(file)?;
    }
    for file in kept.iter().filter(|file| !ends_with(file, PACKED)) {
        pack(file)?;
    }
    let moved = with_suffix(path, &format!(".{}", stamp(now_ms)));
    match std::fs::rename(path, &moved) {
        Ok(()) => Ok(Some(moved)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The other files of a log, oldest first; their names hold the time.
fn older(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let mut prefix = name.to_owned();
    prefix.push(".");
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_encoded_bytes())
        {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Removes what an interrupted packing left behind.
fn clean(files: Vec<PathBuf>) -> io::Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    for file in &files {
        if ends_with(file, UNFINISHED) || files.contains(&with_suffix(file, PACKED)) {
            std::fs::remove_file(file)?;
        } else {
            kept.push(file.clone());
        }
    }
    Ok(kept)
}

fn pack(path: &Path) -> io::Result<()> {
    let unfinished = with_suffix(path, UNFINISHED);
    let mut packed = GzEncoder::new(File::create(&unfinished)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut packed)?;
    packed.finish()?.sync_all()?;
    std::fs::rename(&unfinished, with_suffix(path, PACKED))?;
    std::fs::remove_file(path)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn ends_with(path: &Path, suffix: &str) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(suffix.as_bytes())
}

/// `20260102-030405`.
fn stamp(now_ms: u64) -> String {
    // RFC 3339 without what stands between the numbers.
    let text = Timestamp::from_ms(now_ms).to_string();
    let digits = |range: std::ops::Range<usize>| -> String {
        let part = text.get(range).unwrap_or_default();
        part.chars().filter(char::is_ascii_digit).collect()
    };
    format!("{}-{}", digits(0..10), digits(11..19))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_of_a_log() {
        let dir = std::env::temp_dir().join(format!("kedge-rotation-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("0.log");
        std::fs::write(dir.join("0.log.20250101-000000.tmp"), "half").unwrap();
        for n in 0..5_u64 {
            std::fs::write(&log, format!("text {n}")).unwrap();
            let moved = make_room_and_move(&log, 4, 1_767_323_045_000 + n * 1000).unwrap();
            assert!(moved.unwrap().exists());
        }
        let wanted = [
            "0.log.20260102-030407.gz",
            "0.log.20260102-030408.gz",
            "0.log.20260102-030409",
        ];
        assert_eq!(names(&dir), wanted);
        let mut text = String::new();
        let packed = File::open(dir.join(wanted[0])).unwrap();
        flate2::read::GzDecoder::new(packed)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "text 2");
        assert_eq!(make_room_and_move(&log, 4, 0).unwrap(), None);
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn attention() {
        let dir = std::env::temp_dir().join(format!("kedge-attention-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let log = dir.join("0.log");
        assert!(needs_attention(&log, 10), "taken away");
        std::fs::write(&log, "12345").unwrap();
        assert!(!needs_attention(&log, 10));
        assert!(needs_attention(&log, 5));
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(!needs_attention(&log, 10), "the pod is gone");
    }
}
