//! Running the programs that a container's devices want to be run while it is made.
//!
//! ```text
//!   libcontainer, on the node            -- runs --> this helper, runtime-hooks   --> prestart, createRuntime
//!   its first process, before its root   -- runs --> this helper, container-hooks --> createContainer
//!   its first process, when it is started                                         --> startContainer
//!   the daemon, afterwards               -- runs --> this helper, started-hooks   --> poststart
//!                                                    stopped-hooks                --> poststop
//! ```
//!
//! Each is told on its input what the container is, has its time, and is ended with its children when that is over. What
//! the first one said that failed is left in a file, for the sentence that people get.

use super::Failure;
use crate::durable;
use crate::embedded::records::{Hook, Hooks, LAUNCH_RECORD, LaunchRecord};
use kedge_host::program;
use libcontainer::oci_spec::runtime::Spec;
use rustix::fs::{MemfdFlags, SealFlags};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Below the container's directory: why a hook failed.
const FAILURE: &str = "hook.failed";
const FAILURE_BYTES_MAX: u64 = 64 * 1024;
/// All hooks of one stage together: the supervisor waits for less than two minutes in all.
const STAGE_MAX: Duration = Duration::from_secs(80);
/// What a container is, with its annotations.
const STATE_BYTES_MAX: u64 = 1024 * 1024;
/// What a hook complains of; it cannot write more.
const COMPLAINT_BYTES: u64 = 64 * 1024;

/// When hooks are run by a helper of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// On the node, when the container's namespaces are there.
    Runtime,
    /// In the namespaces, with its mounts made, where programs of the node still are.
    Container,
}

/// Runs the hooks of a stage for the container in `directory`; what it is comes on standard input.
pub(super) fn run_before(directory: &Path, stage: Stage) -> ExitCode {
    let Err(Failure(why)) = before(directory, stage) else {
        return ExitCode::SUCCESS;
    };
    if let Err(error) = std::fs::write(directory.join(FAILURE), &why) {
        eprintln!("{why}; nobody is told: {error}");
    }
    ExitCode::FAILURE
}

fn before(directory: &Path, stage: Stage) -> Result<(), Failure> {
    let mut text = Vec::new();
    let read = std::io::stdin().take(STATE_BYTES_MAX).read_to_end(&mut text);
    read.map_err(|error| Failure::new("read what the container is", error))?;
    let mut state: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| Failure::new("read what the container is", error))?;
    // In the container's namespaces: whoever runs us is its first process, by the number that it has there.
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get());
    state.entry("pid").or_insert_with(|| json!(parent));
    let state = Value::Object(state);
    let launch = launch(directory)?;
    let Hooks {
        prestart,
        create_runtime,
        create_container,
        start_container: _,
        poststart: _,
        poststop: _,
    } = &launch.hooks;
    let end = Instant::now() + STAGE_MAX;
    match stage {
        Stage::Runtime => {
            run_all("prestart", prestart, &state, end)?;
            run_all("createRuntime", create_runtime, &state, end)
        }
        Stage::Container => run_all("createContainer", create_container, &state, end),
    }
}

fn launch(directory: &Path) -> Result<LaunchRecord, Failure> {
    let record = durable::read_record(&directory.join(LAUNCH_RECORD))?;
    record.ok_or_else(|| Failure::new("read the container's record", "there is none"))
}

/// When hooks are run on the node that the container does not wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    Start,
    End,
}

/// Runs all of them, whatever becomes of each; tells of those that failed.
pub(super) fn run_after(directory: &Path, state: &Value, after: After) -> Result<(), Failure> {
    let launch = launch(directory)?;
    let (stage, hooks) = match after {
        After::Start => ("poststart", &launch.hooks.poststart),
        After::End => ("poststop", &launch.hooks.poststop),
    };
    let end = Instant::now() + STAGE_MAX;
    let ran = hooks
        .iter()
        .map(|hook| run_all(stage, std::slice::from_ref(hook), state, end));
    let failed: Vec<String> = ran.filter_map(Result::err).map(|Failure(why)| why).collect();
    if failed.is_empty() {
        Ok(())
    } else {
        Err(Failure(failed.join("; ")))
    }
}

/// What hooks of an earlier attempt said is not about this one.
pub(super) fn forget_failure(directory: &Path) -> Result<(), Failure> {
    durable::remove_file(&directory.join(FAILURE)).map_err(Failure::from)
}

/// What a hook said that failed, if one did.
pub(super) fn failure(directory: &Path) -> Option<Failure> {
    let mut text = String::new();
    let file = File::open(directory.join(FAILURE)).ok()?;
    file.take(FAILURE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(Failure(text))
}

/// What runs in the container before its own program.
#[derive(Debug, Clone)]
pub(super) struct StartHooks {
    hooks: Vec<Hook>,
    id: String,
    bundle: PathBuf,
}

impl StartHooks {
    pub(super) fn of(launch: &LaunchRecord, directory: &Path) -> Self {
        Self {
            hooks: launch.hooks.start_container.clone(),
            id: launch.id.clone(),
            bundle: directory.to_owned(),
        }
    }

    /// What they say goes where the container's words go.
    pub(super) fn run(&self, spec: &Spec) -> Result<(), Failure> {
        if self.hooks.is_empty() {
            return Ok(());
        }
        let state = json!({
            "ociVersion": spec.version(),
            "id": self.id,
            "status": "created",
            "pid": std::process::id(),
            "bundle": self.bundle,
            "annotations": spec.annotations(),
        });
        let stderr = || std::io::stderr().as_fd().try_clone_to_owned();
        for hook in &self.hooks {
            let stderr = stderr().map_err(|error| failed("startContainer", hook, error))?;
            run(hook, &state, stderr, Duration::from_secs(hook.timeout_s))
                .map_err(|why| failed("startContainer", hook, why))?;
        }
        Ok(())
    }
}

fn run_all(stage: &str, hooks: &[Hook], state: &Value, end: Instant) -> Result<(), Failure> {
    for hook in hooks {
        let limit = Duration::from_secs(hook.timeout_s).min(end.saturating_duration_since(Instant::now()));
        let complaint = complaint().map_err(|error| failed(stage, hook, error))?;
        let stderr = complaint
            .try_clone()
            .map_err(|error| failed(stage, hook, error))?;
        let ran = run(hook, state, stderr.into(), limit);
        ran.map_err(|why| failed(stage, hook, last_words(complaint).unwrap_or(why)))?;
    }
    Ok(())
}

fn failed(stage: &str, hook: &Hook, why: impl std::fmt::Display) -> Failure {
    Failure::new(&format!("hook {} ({stage})", hook.path.display()), why)
}

/// Runs one; the error is why it failed.
fn run(hook: &Hook, state: &Value, stderr: OwnedFd, limit: Duration) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let stdout = File::options().write(true).open("/dev/null").map_err(text)?;
    let streams = [input(state).map_err(text)?, stdout.into(), stderr];
    let path = hook.path.to_string_lossy().into_owned();
    let words = if hook.args.is_empty() {
        &[path][..]
    } else {
        &hook.args
    };
    let environment = hook
        .env
        .as_ref()
        .map(|list| list.iter().filter_map(|variable| variable.split_once('=')));
    let ended = program::run_called(&hook.path, words, environment, streams, limit);
    let status = ended.map_err(|error| {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        cause.unwrap_or_else(|| error.to_string())
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(status.to_string())
    }
}

/// A file in memory with what the container is: a hook that does not read it holds nobody up.
fn input(state: &Value) -> std::io::Result<OwnedFd> {
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC)?);
    file.write_all(state.to_string().as_bytes())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file.into())
}

/// A file in memory of a fixed size, for what a hook complains of: one that leaves a process behind, or never stops
/// talking, holds nobody up.
fn complaint() -> std::io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("complaint", flags)?);
    file.set_len(COMPLAINT_BYTES)?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK)?;
    Ok(file)
}

/// The last line that is not empty.
fn last_words(mut complaint: File) -> Option<String> {
    let mut bytes = Vec::new();
    complaint.seek(SeekFrom::Start(0)).ok()?;
    complaint.take(COMPLAINT_BYTES).read_to_end(&mut bytes).ok()?;
    let end = bytes
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    program::last_line(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn hook(words: &[&str], timeout_s: u64) -> Hook {
        Hook {
            path: words[0].into(),
            args: words.iter().map(|word| (*word).to_owned()).collect(),
            env: Some(vec!["MARK=a=b".to_owned()]),
            timeout_s,
        }
    }

    fn shell(script: &str, timeout_s: u64) -> Hook {
        hook(&["/bin/sh", "-c", script], timeout_s)
    }

    fn run_one(hook: Hook, end: Duration) -> String {
        let ran = run_all(
            "createContainer",
            &[hook],
            &json!({ "id": "c1" }),
            Instant::now() + end,
        );
        ran.map_or_else(|Failure(why)| why, |()| "done".to_owned())
    }

    #[test]
    fn why_a_hook_failed_is_told() {
        let long = Duration::from_secs(30);
        let told = [
            run_one(
                shell("read state; test \"$state$MARK$HOME\" = '{\"id\":\"c1\"}a=b'", 30),
                long,
            ),
            run_one(shell("echo first >&2; echo last >&2; echo >&2; exit 3", 30), long),
            run_one(shell("exit 3", 30), long),
            run_one(shell("kill -9 $$", 30), long),
            run_one(hook(&["/no/such"], 30), long),
            run_one(shell("sleep 60", 0), long),
            run_one(shell("sleep 60", 30), Duration::ZERO),
            run_one(shell("while echo more; do :; done >&2; exit 4", 30), long),
            run_one(shell("sleep 0.3 >&2 &", 30), long),
            run_one(hook(&["/bin/true"], 30), long),
        ];
        expect![[r#"
            done
            hook /bin/sh (createContainer): last
            hook /bin/sh (createContainer): exit status: 3
            hook /bin/sh (createContainer): signal: 9 (SIGKILL)
            hook /no/such (createContainer): No such file or directory (os error 2)
            hook /bin/sh (createContainer): /bin/sh did not end within 0 s and was killed
            hook /bin/sh (createContainer): /bin/sh did not end within 0 s and was killed
            hook /bin/sh (createContainer): m
            done
            done"#]]
        .assert_eq(&told.join("\n"));
    }

    #[test]
    fn what_failed_is_left_for_the_one_who_tells() {
        let directory = std::env::temp_dir().join(format!("kedge-hooks-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        assert!(failure(&directory).is_none());
        std::fs::write(directory.join(FAILURE), "hook x: no").unwrap();
        let Failure(why) = failure(&directory).unwrap();
        forget_failure(&directory).unwrap();
        let forgotten = failure(&directory).is_none();
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!((why.as_str(), forgotten), ("hook x: no", true));
    }
}
