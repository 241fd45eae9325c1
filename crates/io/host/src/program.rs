//! Running another program to its end: arguments as a vector, a deadline, bounded output.

use crate::Error;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Output beyond this is read and thrown away, so that a chatty program neither blocks nor fills our memory.
pub const OUTPUT_BYTES_MAX: usize = 1024 * 1024;

/// Looking whether the program ended: seldom enough to cost nothing, often enough to be prompt.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What a program left behind.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Outcome {
    /// The last words of the program, for error messages.
    pub fn complaint(&self) -> String {
        last_line(&self.stderr).unwrap_or_else(|| self.status.to_string())
    }
}

/// The last line of what a program said that is not empty.
pub fn last_line(said: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(said);
    let mut lines = text.lines().rev().map(str::trim);
    lines.find(|line| !line.is_empty()).map(str::to_owned)
}

/// Runs `program` with `arguments`, gives it `input`, and waits for its end. Blocks: call it from a blocking thread.
pub fn run(program: &str, arguments: &[&str], input: &[u8], deadline: Duration) -> Result<Outcome, Error> {
    run_with(program, arguments, &[], input, deadline)
}

/// [`run`] with variables of the environment besides our own.
pub fn run_with(
    program: &str,
    arguments: &[&str],
    environment: &[(&str, &str)],
    input: &[u8],
    deadline: Duration,
) -> Result<Outcome, Error> {
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: at the deadline the program's children go with it, else they would hold its output open.
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Start {
            program: program.to_owned(),
            source,
        })?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take();
    let stderr = child.stderr.take();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that ends without reading its input has its reasons; its exit status tells them.
            if let Some(mut stdin) = stdin {
                drop(stdin.write_all(input));
            }
        });
        let stdout = scope.spawn(move || stdout.map(read_bounded).unwrap_or_default());
        let stderr = scope.spawn(move || stderr.map(read_bounded).unwrap_or_default());
        let status = wait(&mut child, program, deadline);
        let stdout = stdout.join().unwrap_or_default();
        let stderr = stderr.join().unwrap_or_default();
        Ok(Outcome {
            status: status?,
            stdout,
            stderr,
        })
    })
}

/// Runs a program whose children go on with its streams after it has ended, and waits for its own end only. Blocks.
pub fn run_on(
    program: &Path,
    arguments: &[&OsStr],
    streams: [OwnedFd; 3],
    deadline: Duration,
) -> Result<ExitStatus, Error> {
    run_child(Command::new(program).args(arguments), program, streams, deadline)
}

/// [`run_on`] for a program that is told by which name it is called, and, if one is given, its whole environment.
pub fn run_called<'a>(
    program: &Path,
    words: &[String],
    environment: Option<impl IntoIterator<Item = (&'a str, &'a str)>>,
    streams: [OwnedFd; 3],
    deadline: Duration,
) -> Result<ExitStatus, Error> {
    let mut command = Command::new(program);
    if let Some((name, arguments)) = words.split_first() {
        command.arg0(name).args(arguments);
    }
    if let Some(environment) = environment {
        command.env_clear().envs(environment);
    }
    run_child(&mut command, program, streams, deadline)
}

fn run_child(
    command: &mut Command,
    program: &Path,
    [stdin, stdout, stderr]: [OwnedFd; 3],
    deadline: Duration,
) -> Result<ExitStatus, Error> {
    let name = program.to_string_lossy();
    let mut child = command
        .stdin(stdin)
        .stdout(stdout)
        .stderr(stderr)
        .process_group(0)
        .spawn()
        .map_err(|source| Error::Start {
            program: name.clone().into_owned(),
            source,
        })?;
    wait(&mut child, &name, deadline)
}

fn wait(child: &mut Child, program: &str, deadline: Duration) -> Result<ExitStatus, Error> {
    let talk = |source| Error::Talk {
        program: program.to_owned(),
        source,
    };
    let end = Instant::now() + deadline;
    loop {
        if let Some(status) = child.try_wait().map_err(talk)? {
            return Ok(status);
        }
        if Instant::now() >= end {
            kill_group(child);
            drop(child.wait());
            return Err(Error::Deadline {
                program: program.to_owned(),
                seconds: deadline.as_secs(),
            });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// The child has not been waited for, so its id still means it and its group.
fn kill_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id())
        .ok()
        .and_then(rustix::process::Pid::from_raw)
    {
        // Fails only when the whole group has ended, which is what is wanted.
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
    }
}

fn read_bounded(mut from: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..read.min(room)]);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_goes_in_and_output_comes_out() {
        let outcome = run("/bin/cat", &[], b"hello", Duration::from_secs(10)).unwrap();
        assert!(outcome.status.success());
        assert_eq!(outcome.stdout, b"hello");
    }

    #[test]
    fn arguments_are_never_seen_by_a_shell() {
        let outcome = run("/bin/echo", &["$HOME;", "`id`"], b"", Duration::from_secs(10)).unwrap();
        assert_eq!(outcome.stdout, b"$HOME; `id`\n");
    }

    #[test]
    fn variables_are_added() {
        let environment = [("KEDGE_TOLD", "a b")];
        let outcome = run_with("/usr/bin/env", &[], &environment, b"", Duration::from_secs(10)).unwrap();
        let text = String::from_utf8(outcome.stdout).unwrap();
        assert!(
            text.lines().any(|line| line == "KEDGE_TOLD=a b") && text.contains("PATH="),
            "{text}"
        );
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let error = run("/bin/sleep", &["60"], b"", Duration::from_millis(20)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "/bin/sleep did not end within 0 s and was killed"
        );
    }

    #[test]
    fn output_beyond_the_limit_is_dropped() {
        let outcome = run(
            "/usr/bin/head",
            &["-c", "3000000", "/dev/zero"],
            b"",
            Duration::from_secs(30),
        )
        .unwrap();
        assert_eq!(outcome.stdout.len(), OUTPUT_BYTES_MAX);
    }

    #[test]
    fn children_keep_the_streams_when_the_program_has_ended() {
        let (mut read, write) = std::io::pipe().unwrap();
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let script = "(read line < /dev/null; echo later) & exit 3";
        let status = run_on(
            Path::new("/bin/sh"),
            &["-c", script].map(OsStr::new),
            [null(), write.into(), null()],
            Duration::from_secs(10),
        );
        assert_eq!(status.unwrap().code(), Some(3));
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "later\n");
    }

    #[test]
    fn a_program_is_called_as_ordered() {
        let called = |environment: Option<[(&str, &str); 1]>| {
            let (mut read, write) = std::io::pipe().unwrap();
            let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
            let words = ["other", "-c", "echo $0 $TOLD $CARGO_MANIFEST_DIR"].map(str::to_owned);
            let streams = [null(), write.into(), null()];
            let limit = Duration::from_secs(10);
            let status = run_called(Path::new("/bin/sh"), &words, environment, streams, limit);
            assert!(status.unwrap().success());
            let mut text = String::new();
            read.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(called(Some([("TOLD", "a b")])), "other a b\n");
        assert!(called(None).contains(env!("CARGO_MANIFEST_DIR")));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run("/no/such/program", &[], b"", Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.to_string(), "start /no/such/program");
    }
}
