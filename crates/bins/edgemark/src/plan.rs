//! What is going to be played: everything that was typed, checked before anything is started.

use crate::budget::{self, Machine, Shortage};
use crate::cli::{Load, Newcomers, Scenario, Transport};
use kedge_wire::NodeName;
use std::path::PathBuf;
use std::time::Duration;

/// More edges than this have never been tried.
const NODES_MAX: u32 = 1_000_000;
/// As many as a node says that it takes.
const PODS_PER_NODE_MAX: u32 = 110;

/// A run that makes sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub scenario: Scenario,
    pub nodes: u32,
    pub pods_per_node: u32,
    /// Edges that run meanwhile; only in `neighbours`.
    pub running: u32,
    pub newcomers: Newcomers,
    pub transport: Transport,
    pub duration: Duration,
    pub arrive_within: Duration,
    pub rounds: u32,
    /// For `nodes`; those that run meanwhile have processes of their own.
    pub processes: u32,
    pub running_processes: u32,
    pub prefix: String,
    pub state: Option<PathBuf>,
    pub keep: bool,
    pub log: String,
}

/// Why it cannot be played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    #[error("--{option} {seen}: a number from {min} to {max} is expected")]
    Range {
        option: &'static str,
        seen: u32,
        min: u32,
        max: u32,
    },
    #[error("--{option} belongs to the scenario {belongs}, not to {scenario}")]
    OtherScenario {
        option: &'static str,
        belongs: &'static str,
        scenario: &'static str,
    },
    #[error("--name-prefix {prefix:?}: {why}")]
    Prefix { prefix: String, why: String },
    #[error(
        "the scenario join measures how certificates are made, and --state keeps those of earlier runs: leave it out"
    )]
    StateInJoin,
    #[error(
        "the scenario replica kills a CloudCore, so it needs one of its own: use `edgemark bench replica`"
    )]
    ReplicaOfOthers,
    #[error("pods need a client of the Kubernetes API: give --kubeconfig, or --pods-per-node 0")]
    PodsWithoutApi,
    #[error(
        "edges need a join token to get their certificates: give --token, or --kubeconfig to read it with"
    )]
    NoToken,
    #[error(transparent)]
    Shortage(#[from] Shortage),
}

impl Plan {
    /// Fills in what the scenario says and checks the rest against the machine.
    pub fn new(scenario: Scenario, load: &Load, machine: &Machine) -> Result<Self, Nonsense> {
        check_options(scenario, load)?;
        let neighbours = scenario == Scenario::Neighbours;
        let nodes = load.nodes.unwrap_or(if neighbours { 10_000 } else { 1_000 });
        in_range("nodes", nodes, 1, NODES_MAX)?;
        let pods = load
            .pods_per_node
            .unwrap_or(u32::from(scenario != Scenario::Join));
        in_range("pods-per-node", pods, 0, PODS_PER_NODE_MAX)?;
        if matches!(scenario, Scenario::ConfigFanout | Scenario::Replica) {
            in_range("pods-per-node", pods, 1, PODS_PER_NODE_MAX)?;
        }
        let running = if neighbours {
            load.running.unwrap_or(1_000)
        } else {
            0
        };
        if neighbours {
            in_range("running", running, 1, NODES_MAX)?;
        }
        let rounds = load.rounds.unwrap_or(5);
        in_range("rounds", rounds, 1, 1_000)?;
        let longest = format!("{}-new-{NODES_MAX}", load.name_prefix);
        if let Err(error) = NodeName::new(longest) {
            return Err(Nonsense::Prefix {
                prefix: load.name_prefix.clone(),
                why: error.rule.to_owned(),
            });
        }
        machine.check_ports(nodes.saturating_add(running))?;
        Ok(Self {
            scenario,
            nodes,
            pods_per_node: pods,
            running,
            newcomers: load.newcomers.unwrap_or(Newcomers::Join),
            transport: load.transport,
            duration: load.duration,
            arrive_within: load.arrive_within,
            rounds,
            processes: machine.processes(nodes, load.processes)?,
            running_processes: machine.processes(running, None)?,
            prefix: load.name_prefix.clone(),
            state: load.state.clone(),
            keep: load.keep,
            log: load.log.clone(),
        })
    }

    /// All edges.
    pub fn edges(&self) -> u32 {
        self.nodes.saturating_add(self.running)
    }

    /// Whether it can be played against a CloudCore of others.
    pub fn check_given(&self, has_token: bool, has_kubeconfig: bool) -> Result<(), Nonsense> {
        if self.scenario == Scenario::Replica {
            return Err(Nonsense::ReplicaOfOthers);
        }
        if !has_token && !has_kubeconfig {
            return Err(Nonsense::NoToken);
        }
        if self.pods_per_node > 0 && !has_kubeconfig {
            return Err(Nonsense::PodsWithoutApi);
        }
        Ok(())
    }

    /// What the run needs of this machine, in a sentence.
    pub fn needs(&self, machine: &Machine) -> String {
        let each = self.nodes.div_ceil(self.processes);
        format!(
            "{} edges in {} process(es), at most {} file descriptors in each (limit {})",
            self.edges(),
            self.processes
                + if self.running > 0 {
                    self.running_processes
                } else {
                    0
                },
            u64::from(each.max(self.running.div_ceil(self.running_processes))) + budget::DESCRIPTORS_KEPT,
            machine.descriptors,
        )
    }
}

fn check_options(scenario: Scenario, load: &Load) -> Result<(), Nonsense> {
    let options = [
        ("running", load.running.is_some(), Scenario::Neighbours),
        ("newcomers", load.newcomers.is_some(), Scenario::Neighbours),
        ("rounds", load.rounds.is_some(), Scenario::ConfigFanout),
    ];
    for (option, given, belongs) in options {
        if given && scenario != belongs {
            return Err(Nonsense::OtherScenario {
                option,
                belongs: belongs.name(),
                scenario: scenario.name(),
            });
        }
    }
    if scenario == Scenario::Join && load.state.is_some() {
        return Err(Nonsense::StateInJoin);
    }
    Ok(())
}

fn in_range(option: &'static str, seen: u32, min: u32, max: u32) -> Result<(), Nonsense> {
    if (min..=max).contains(&seen) {
        return Ok(());
    }
    Err(Nonsense::Range {
        option,
        seen,
        min,
        max,
    })
}

/// `HOST` or `HOST:PORT`, with the port.
pub fn address(text: &str, port: u16) -> String {
    let bare_ipv6 = text.matches(':').count() > 1 && !text.starts_with('[');
    let has_port = !bare_ipv6
        && text
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    match (has_port, bare_ipv6) {
        (true, _) => text.to_owned(),
        (false, true) => format!("[{text}]:{port}"),
        (false, false) => format!("{text}:{port}"),
    }
}

/// The host of an address that has a port.
pub fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;
    use expect_test::expect;

    const MACHINE: Machine = Machine {
        descriptors: 20_000,
        ports: 28_232,
    };

    fn plan(words: &str) -> Result<Plan, Nonsense> {
        let words = ["edgemark", "bench"].into_iter().chain(words.split_whitespace());
        match Cli::try_parse_from(words).expect("it can be typed").command {
            Command::Bench(bench) => Plan::new(bench.scenario, &bench.load, &MACHINE),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_scenario_has_its_defaults() {
        let shown: Vec<String> = ["idle", "join", "storm", "neighbours", "config-fanout", "replica"]
            .into_iter()
            .map(|name| {
                let plan = plan(name).expect("the defaults can be played");
                format!(
                    "{name}: {} nodes x {} pods, {} running; {}",
                    plan.nodes,
                    plan.pods_per_node,
                    plan.running,
                    plan.needs(&MACHINE)
                )
            })
            .collect();
        expect![[r"
            idle: 1000 nodes x 1 pods, 0 running; 1000 edges in 1 process(es), at most 1128 file descriptors in each (limit 20000)
            join: 1000 nodes x 0 pods, 0 running; 1000 edges in 1 process(es), at most 1128 file descriptors in each (limit 20000)
            storm: 1000 nodes x 1 pods, 0 running; 1000 edges in 1 process(es), at most 1128 file descriptors in each (limit 20000)
            neighbours: 10000 nodes x 1 pods, 1000 running; 11000 edges in 2 process(es), at most 10128 file descriptors in each (limit 20000)
            config-fanout: 1000 nodes x 1 pods, 0 running; 1000 edges in 1 process(es), at most 1128 file descriptors in each (limit 20000)
            replica: 1000 nodes x 1 pods, 0 running; 1000 edges in 1 process(es), at most 1128 file descriptors in each (limit 20000)"]]
        .assert_eq(&shown.join("\n"));
    }

    #[test]
    fn nonsense_is_refused_with_the_reason() {
        let told: Vec<String> = [
            "idle --nodes 0",
            "idle --pods-per-node 111",
            "config-fanout --pods-per-node 0",
            "idle --running 5",
            "join --rounds 2",
            "storm --newcomers return",
            "join --state /tmp/x",
            "idle --name-prefix Hollow",
            "idle --nodes 40000",
            "idle --nodes 25000 --processes 1",
        ]
        .into_iter()
        .map(|words| plan(words).expect_err(words).to_string())
        .collect();
        expect![[r#"
            --nodes 0: a number from 1 to 1000000 is expected
            --pods-per-node 111: a number from 0 to 110 is expected
            --pods-per-node 0: a number from 1 to 110 is expected
            --running belongs to the scenario neighbours, not to idle
            --rounds belongs to the scenario config-fanout, not to join
            --newcomers belongs to the scenario neighbours, not to storm
            the scenario join measures how certificates are made, and --state keeps those of earlier runs: leave it out
            --name-prefix "Hollow": a node name has 1 to 253 of a-z, 0-9, '-' and '.', and begins and ends with a letter or digit
            40000 edges need as many local ports towards CloudCore, and this machine gives 27232 to one address (net.ipv4.ip_local_port_range; 1000 are kept for others): use fewer edges, or several machines
            25000 edges in 1 process need 25128 file descriptors in each, and a process of this machine may hold 20000: use --processes 2, or raise the limit above 20000 with `ulimit -n`"#]]
        .assert_eq(&told.join("\n"));
        let idle = plan("idle").expect("the defaults can be played");
        let replica = plan("replica").expect("the defaults can be played");
        let table = [
            (idle.check_given(false, false), Err(Nonsense::NoToken)),
            (idle.check_given(true, false), Err(Nonsense::PodsWithoutApi)),
            (idle.check_given(false, true), Ok(())),
            (replica.check_given(true, true), Err(Nonsense::ReplicaOfOthers)),
        ];
        for (seen, wanted) in table {
            assert_eq!(seen, wanted);
        }
        assert_eq!(plan("idle --nodes 25000").map(|plan| plan.processes), Ok(2));
    }

    #[test]
    fn addresses_get_their_port() {
        let table = [
            ("cloud", "cloud:10000"),
            ("cloud:1234", "cloud:1234"),
            ("10.0.0.1", "10.0.0.1:10000"),
            ("::1", "[::1]:10000"),
            ("[::1]:5", "[::1]:5"),
            ("[::1]", "[::1]:10000"),
        ];
        for (text, wanted) in table {
            assert_eq!(address(text, 10000), wanted);
        }
        assert_eq!(host("[::1]:5"), "[::1]");
    }
}
