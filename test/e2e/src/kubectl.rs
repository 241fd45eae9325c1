//! The real kubectl.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// What a program printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn from(output: std::process::Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// The output of a run that must have succeeded.
    ///
    /// # Panics
    /// When it did not.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code,
            Some(0),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self.stdout
    }
}

/// Runs `kubectl --kubeconfig … args`, with `input` on its standard input.
pub fn kubectl(kubeconfig: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        // A home of its own: its discovery cache must not outlive the test.
        .env("HOME", kubeconfig.parent().unwrap_or(Path::new("/")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl is on PATH (Debian: kubernetes-client)");
    let mut stdin = child.stdin.take().expect("stdin was piped");
    // A kubectl that does not read its input closes it early; that is no fault.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Output::from(child.wait_with_output().expect("kubectl can be waited for"))
}
