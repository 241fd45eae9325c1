//! What can be typed.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Thousands of hollow edges against a CloudCore: how fast they join, what they cost, and whether anybody suffers.
///
/// Certificates, TLS, link and pod logic are the real ones; containers exist in memory only. Progress goes to standard
/// error, one JSON summary to standard output.
#[derive(Debug, Parser)]
#[command(name = "edgemark", version, about, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Play a scenario against a CloudCore that runs already, ours or the official one.
    ///
    /// With --kubeconfig the join token is read from the secret kubeedge/tokensecret, pods are created in the namespace
    /// edgemark, and nodes are watched; all of it is removed at the end.
    #[command(
        after_help = "Example:\n  edgemark run --cloud 10.0.0.1 --kubeconfig ~/.kube/config --scenario idle --nodes 500 \
                      --pods-per-node 2"
    )]
    Run(Box<Run>),
    /// Start an API and a CloudCore of its own, play a scenario, and end them: one command for one figure.
    #[command(after_help = "Example:\n  edgemark bench neighbours --nodes 10000 --running 1000")]
    Bench(Box<Bench>),
    /// A process of hollow edges.
    #[command(hide = true)]
    Crew,
    /// The embedded API of `bench`.
    #[command(hide = true)]
    Api { dir: PathBuf },
    /// Another program that ends with this one.
    #[command(hide = true)]
    Tethered {
        program: PathBuf,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub struct Run {
    /// CloudCore's hub; edges that do not reach the first try the next. The port of QUIC is 10001 unless given.
    #[arg(long, value_name = "HOST[:10000]", required = true)]
    pub cloud: Vec<String>,
    /// Where CloudCore gives certificates [default: port 10002 of the first --cloud].
    #[arg(long, value_name = "HOST:10002")]
    pub https: Option<String>,
    /// The join token, as `keadm gettoken` prints it [default: read with --kubeconfig].
    #[arg(long)]
    pub token: Option<String>,
    /// A client of the Kubernetes API that may read the join token, write pods and config maps, and watch nodes.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// What is played.
    #[arg(long, value_enum)]
    pub scenario: Scenario,
    /// CloudCore's process, if it runs on this machine: its memory and processor time are measured.
    #[arg(long, value_name = "PID")]
    pub cloudcore_pid: Option<u32>,
    /// CloudCore's metrics, for its calls on the API: http://127.0.0.1:9091/metrics.
    #[arg(long, value_name = "URL")]
    pub metrics: Option<String>,
    #[command(flatten)]
    pub load: Load,
}

#[derive(Debug, Args)]
pub struct Bench {
    /// What is played.
    #[arg(value_enum)]
    pub scenario: Scenario,
    /// The CloudCore that is measured [default: `cloudcore` beside this program].
    #[arg(long, value_name = "PROGRAM")]
    pub cloudcore: Option<PathBuf>,
    #[command(flatten)]
    pub load: Load,
}

/// What is the same against any CloudCore.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// Hollow edges; in `neighbours` those that join or return [default: 1000, in neighbours 10000].
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// Pods on each [default: 1, in join 0].
    #[arg(long, value_name = "P")]
    pub pods_per_node: Option<u32>,
    /// How long the edges are watched at rest.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Edges join, or return, spread over this time.
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    pub arrive_within: Duration,
    /// In `neighbours`: edges that run and are measured meanwhile [default: 1000].
    #[arg(long, value_name = "M")]
    pub running: Option<u32>,
    /// In `neighbours`: whether the others are new or have been there before [default: join].
    #[arg(long, value_enum)]
    pub newcomers: Option<Newcomers>,
    /// In `config-fanout`: how often the config map changes [default: 5].
    #[arg(long, value_name = "R")]
    pub rounds: Option<u32>,
    /// How edges dial the hub; QUIC is spoken by our CloudCore only.
    #[arg(long, value_enum, default_value_t = Transport::Websocket)]
    pub transport: Transport,
    /// Processes that the edges are spread over [default: as few as can hold their file descriptors].
    #[arg(long, value_name = "K")]
    pub processes: Option<u32>,
    /// Nodes are named <PREFIX>-<number>.
    #[arg(long, value_name = "PREFIX", default_value = "hollow")]
    pub name_prefix: String,
    /// Certificates are kept here between runs [default: a folder in memory, removed at the end].
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// Write the summary to a file, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Leave nodes, pods and, in `bench`, the folder with CloudCore's log.
    #[arg(long)]
    pub keep: bool,
    /// Log lines of the edges on standard error, for example warn or info,kedge_link=debug.
    #[arg(long, value_name = "FILTER", default_value = "error")]
    pub log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Connected edges with pods, at rest: memory of CloudCore per edge, calls on the API per node and minute.
    Idle,
    /// New nodes: certificate, connection, registration, first lease.
    Join,
    /// All connections break at once and return.
    Storm,
    /// Some edges run while many others join or return: what the running ones notice.
    Neighbours,
    /// A config map that a pod of each node uses changes: until every edge has committed it.
    ConfigFanout,
    /// Two CloudCores, one is killed: no node may become not ready, nothing may be lost. Only in `bench`.
    Replica,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Join => "join",
            Self::Storm => "storm",
            Self::Neighbours => "neighbours",
            Self::ConfigFanout => "config-fanout",
            Self::Replica => "replica",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Newcomers {
    /// Nodes that never were: certificates are made, nodes registered.
    Join,
    /// Nodes that lost their connections.
    Return,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    Websocket,
    Quic,
}

/// `500ms`, `10s`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; write for example 500ms, 10s or 2m");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _unknown => return Err(wrong()),
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect_file;

    #[test]
    fn times() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        for wrong in [
            "",
            "10",
            "s",
            "1h",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615m",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn help() {
        use clap::CommandFactory;
        let mut cli = Cli::command();
        let mut text = cli.render_long_help().to_string();
        for name in ["run", "bench"] {
            let command = cli.find_subcommand_mut(name).expect("it is there");
            text += &format!("\n---- {name}\n\n{}", command.render_help());
        }
        expect_file!["../tests/help.txt"].assert_eq(&text);
    }
}
