//! Running a plug-in: its verb and its parameters in the environment, its settings on the input, its answer on the
//! output.

use super::config::{NetworkList, kind};
use crate::Error;
use kedge_host::program::{self, Outcome};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// A plug-in that asks a DHCP server in a slow network needs most of it.
const WORK_MAX: Duration = Duration::from_secs(60);
/// A plug-in knows by itself what it answers.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// The words of a plug-in in our error; a stack trace would fill the pod's events.
const WORDS_MAX: usize = 1000;

/// What a plug-in shall do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Status,
    Version,
}

impl Verb {
    fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Add | Self::Del => WORK_MAX,
            Self::Status | Self::Version => ANSWER_MAX,
        }
    }

    fn act(self) -> &'static str {
        match self {
            Self::Add => "connect by the plug-in",
            Self::Del => "disconnect by the plug-in",
            Self::Status => "ask for the status of the plug-in",
            Self::Version => "ask for the versions of the plug-in",
        }
    }
}

/// How plug-ins are called.
#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    verb: Verb,
    programs: &'a [PathBuf],
    environment: Vec<(&'static str, String)>,
}

impl<'a> Call<'a> {
    pub(super) fn to(verb: Verb, programs: &'a [PathBuf]) -> Self {
        let path: Vec<_> = programs.iter().map(|path| path.to_string_lossy()).collect();
        let environment = vec![
            ("CNI_COMMAND", verb.name().to_owned()),
            ("CNI_PATH", path.join(":")),
        ];
        Self {
            verb,
            programs,
            environment,
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.environment.push((name, value.to_owned()));
        self
    }

    /// Runs one plug-in and gives back what it answers.
    pub(super) fn make(&self, plugin: &Map<String, Value>, input: &[u8]) -> Result<Vec<u8>, Error> {
        let kind = kind(plugin);
        let failed = |reason: String| Error::failed(self.verb.act(), kind, reason);
        let path = find(self.programs, kind)?;
        let environment: Vec<_> = self
            .environment
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let outcome = program::run_with(
            &path.to_string_lossy(),
            &[],
            &environment,
            input,
            self.verb.limit(),
        );
        let outcome = outcome.map_err(|error| failed(error_words(&error)))?;
        match outcome.status.success() {
            true => Ok(outcome.stdout),
            false => Err(failed(complaint(&outcome))),
        }
    }
}

fn error_words(error: &kedge_host::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The program of a plug-in, in the first directory that has it.
pub(super) fn find(programs: &[PathBuf], kind: &str) -> Result<PathBuf, Error> {
    let found = programs
        .iter()
        .map(|directory| directory.join(kind))
        .find(|path| path.is_file());
    found.ok_or_else(|| {
        let places: Vec<_> = programs.iter().map(|path| path.display().to_string()).collect();
        Error::failed(
            "find the plug-in",
            kind,
            format!("it is not in {}", places.join(" or ")),
        )
    })
}

/// What a plug-in says when it fails.
#[derive(Debug, Deserialize)]
struct Refusal {
    code: u64,
    msg: String,
    #[serde(default)]
    details: String,
}

fn complaint(outcome: &Outcome) -> String {
    let words = match serde_json::from_slice::<Refusal>(&outcome.stdout) {
        Ok(Refusal { code, msg, details }) if details.is_empty() => format!("{msg} (code {code})"),
        Ok(Refusal { code, msg, details }) => format!("{msg}; {details} (code {code})"),
        Err(_) => outcome.complaint(),
    };
    words.chars().take(WORDS_MAX).collect()
}

/// Finds the newest version that the configuration names, we speak, and all its plug-ins know.
pub(super) fn negotiate(network: &mut NetworkList, programs: &[PathBuf]) -> Result<(), Error> {
    // A single one needs no talk: a plug-in that does not know it says so.
    if network.versions.len() < 2 {
        return Ok(());
    }
    let mut common = network.versions.clone();
    for plugin in &network.plugins {
        let known = versions_of(plugin, programs)?;
        common.retain(|version| known.contains(version));
    }
    match common.into_iter().next() {
        Some(version) => network.version = version,
        None => {
            let reason = format!(
                "its plug-ins have none of the versions {} in common",
                network.versions.join(", ")
            );
            return Err(Error::failed("connect to network", &network.name, reason));
        }
    }
    Ok(())
}

fn versions_of(plugin: &Map<String, Value>, programs: &[PathBuf]) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Versions {
        #[serde(rename = "supportedVersions", default)]
        supported: Vec<String>,
    }
    // The specification wants a version in the question, too: the oldest that every plug-in reads.
    let told = Call::to(Verb::Version, programs).make(plugin, br#"{"cniVersion":"0.3.1"}"#)?;
    let versions: Versions = serde_json::from_slice(&told)
        .map_err(|error| Error::failed(Verb::Version.act(), kind(plugin), error))?;
    Ok(versions.supported)
}

/// Reads the result of a plug-in, for the next one and for us.
pub(super) fn result(plugin: &Map<String, Value>, told: &[u8]) -> Result<Value, Error> {
    let read: Result<Map<String, Value>, _> = serde_json::from_slice(told);
    read.map(Value::from)
        .map_err(|error| Error::failed("read the result of the plug-in", kind(plugin), error))
}

/// The part of a result that is of interest here.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Debug, Deserialize)]
struct Interface {
    /// Empty: on the node.
    #[serde(default)]
    sandbox: String,
}

#[derive(Debug, Deserialize)]
struct Ip {
    /// With the length of the network's prefix.
    address: String,
    interface: Option<usize>,
}

/// The addresses that a pod was given.
pub(super) fn addresses(network: &str, result: Option<&Value>) -> Result<Vec<IpAddr>, Error> {
    let failed = |reason: String| Error::failed("connect to network", network, reason);
    let answer = result.map(Answer::deserialize).transpose();
    let answer =
        answer.map_err(|error| failed(format!("the result of its plug-ins cannot be read: {error}")))?;
    let (interfaces, ips) = answer
        .map(|answer| (answer.interfaces, answer.ips))
        .unwrap_or_default();
    let of_pod = |ip: &&Ip| {
        let interface = ip.interface.and_then(|index| interfaces.get(index));
        interface.is_none_or(|interface| !interface.sandbox.is_empty())
    };
    let mut addresses = Vec::new();
    for ip in ips.iter().filter(of_pod) {
        let address = ip.address.split('/').next().unwrap_or_default().parse();
        addresses.push(address.map_err(|_| failed(format!("{:?} is not an address", ip.address)))?);
    }
    if addresses.is_empty() {
        return Err(failed("its plug-ins gave no address".to_owned()));
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use serde_json::json;
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    #[test]
    fn addresses_are_those_of_the_pod() {
        let told = |value: Value| match addresses("net", Some(&value)) {
            Ok(addresses) => format!("{addresses:?}"),
            Err(error) => error.to_string(),
        };
        let rows = [
            told(
                json!({"ips": [{"version": "4", "address": "10.1.0.5/16", "interface": 1}, {"address": "10.0.0.1/8", "interface": 0}],
                "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/x"}]}),
            ),
            told(json!({"ips": [{"address": "10.1.0.5/16"}, {"address": "fd00::5/64", "interface": 7}]})),
            told(json!({"ips": [{"address": "everywhere"}]})),
            told(json!({"interfaces": []})),
            told(json!({"ips": 5})),
        ];
        expect![[r#"
            [10.1.0.5]
            [10.1.0.5, fd00::5]
            connect to network net: "everywhere" is not an address
            connect to network net: its plug-ins gave no address
            connect to network net: the result of its plug-ins cannot be read: invalid type: integer `5`, expected a sequence
        "#]]
        .assert_eq(&(rows.join("\n") + "\n"));
    }

    #[test]
    fn plugins_are_quoted() {
        let outcome = |stdout: &str, stderr: &str| {
            complaint(&Outcome {
                status: ExitStatus::from_raw(256),
                stdout: stdout.as_bytes().to_vec(),
                stderr: stderr.as_bytes().to_vec(),
            })
        };
        let rows = [
            outcome(
                r#"{"cniVersion": "1.0.0", "code": 11, "msg": "try later", "details": "no lease"}"#,
                "",
            ),
            outcome(r#"{"code": 999, "msg": "no"}"#, ""),
            outcome("panic", "goroutine 1\nboom\n"),
            outcome("", ""),
        ];
        expect![[r"
            try later; no lease (code 11)
            no (code 999)
            boom
            exit status: 1
        "]]
        .assert_eq(&(rows.join("\n") + "\n"));
    }
}
