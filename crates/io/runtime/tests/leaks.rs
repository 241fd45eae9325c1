//! Whoever is killed, and whenever: what is left is found again, can be removed, and then nothing is left at all.
//!
//! An agent of its own process obeys orders, one act at a time. While it acts, or between two acts, somebody is killed;
//! then the runtime is opened anew, as by an agent that the service manager starts again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{
    ContainerConfig, ContainerId, ContainerState, IdMapping, PidNamespace, PortMapping, Protocol, Resources,
    SandboxConfig, SandboxId, Security, UserNamespace,
};
use kedge_runtime::{Embedded, Error, Runtime};
use node::census::Census;
use node::people::{self, Person};
use node::{Chance, Node, UNTIL_TERM, container, island};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// All stories together; a machine of a CI is slow.
const STORY_MAX: Duration = Duration::from_secs(240);
/// An act that takes this long hangs.
const ACT_MAX: Duration = Duration::from_secs(60);
/// How many kinds of pods there are, and which has several containers that see each other.
const PODS: usize = 4;
const SHARING: usize = 1;
const OWN_USERS: usize = 2;
/// A container may be asked to end before it listens.
const GRACE: Duration = Duration::from_secs(1);

/// What an agent does in the life of a pod, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Sandbox,
    Create,
    Start,
    Stop,
    Remove,
}

impl Act {
    const ALL: [Self; 5] = [Self::Sandbox, Self::Create, Self::Start, Self::Stop, Self::Remove];

    fn name(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
        }
    }
}

/// When somebody is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    During(Act),
    After(Act),
}

/// Who is killed, all at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victims {
    Agent,
    Supervisors,
    Containers,
    Helpers,
    AgentAndHelpers,
    Everybody,
}

impl Victims {
    const ALL: [Self; 6] = [
        Self::Agent,
        Self::Supervisors,
        Self::Containers,
        Self::Helpers,
        Self::AgentAndHelpers,
        Self::Everybody,
    ];

    fn has_agent(self) -> bool {
        matches!(self, Self::Agent | Self::AgentAndHelpers | Self::Everybody)
    }

    fn includes(self, person: Person) -> bool {
        match self {
            Self::Agent => person == Person::Agent,
            Self::Supervisors => person == Person::Supervisor,
            Self::Containers => person == Person::Container,
            Self::Helpers => person == Person::Helper,
            Self::AgentAndHelpers => matches!(person, Person::Agent | Person::Helper),
            Self::Everybody => true,
        }
    }
}

/// The pods that lives are tried with, by number.
fn pod(node: &Node, number: usize) -> (SandboxConfig, Vec<ContainerConfig>) {
    let pod = node.sandbox(&format!("p{number}"));
    let main = container("main", UNTIL_TERM);
    match number % PODS {
        0 => (
            SandboxConfig {
                ports: vec![PortMapping {
                    protocol: Protocol::Tcp,
                    container_port: 80,
                    host_port: 8080,
                    host_ip: None,
                }],
                ..pod
            },
            vec![main],
        ),
        kind @ (SHARING | OWN_USERS) => {
            let shared = |name: &str| ContainerConfig {
                security: Security {
                    pid: PidNamespace::Pod,
                    ..Security::default()
                },
                ..container(name, UNTIL_TERM)
            };
            let ids = IdMapping {
                host_id: 1 << 20,
                container_id: 0,
                length: 65536,
            };
            let pod = SandboxConfig {
                share_pid: true,
                user_namespace: (kind == OWN_USERS).then_some(UserNamespace { uids: ids, gids: ids }),
                ..pod
            };
            (pod, vec![shared("main"), shared("other")])
        }
        _ => (
            SandboxConfig {
                host_network: true,
                host_pid: true,
                resources: Resources {
                    pids_max: Some(50),
                    ..Resources::default()
                },
                ..pod
            },
            vec![main],
        ),
    }
}

/// The process that is killed: it does what it is told on its standard input, and says on its error output what came of
/// it.
#[test]
#[ignore = "started by the stories"]
fn agent() {
    let Some(node) = island::node() else { return };
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let runtime = node.runtime().await;
        let mut life = Life::default();
        eprintln!("ready");
        for line in std::io::stdin().lines() {
            let line = line.unwrap();
            let (act, number) = line.split_once(' ').unwrap();
            let (pod, containers) = pod(&node, number.parse().unwrap());
            let act = Act::ALL.into_iter().find(|known| known.name() == act).unwrap();
            match life.act(&runtime, act, &pod, &containers).await {
                Ok(()) => eprintln!("done"),
                Err(error) => eprintln!("failed: {}", node::sentence(&error)),
            }
        }
    });
}

/// What the agent has made of its pod.
#[derive(Default)]
struct Life {
    sandbox: Option<SandboxId>,
    containers: Vec<ContainerId>,
}

impl Life {
    async fn act(
        &mut self,
        runtime: &Embedded,
        act: Act,
        pod: &SandboxConfig,
        containers: &[ContainerConfig],
    ) -> Result<(), Error> {
        // What was never made is asked for, too.
        let sandbox = self
            .sandbox
            .clone()
            .unwrap_or_else(|| SandboxId("none".to_owned()));
        match act {
            Act::Sandbox => {
                *self = Self::default();
                self.sandbox = Some(runtime.run_sandbox(pod).await?);
            }
            Act::Create => {
                for config in containers {
                    self.containers
                        .push(runtime.create_container(&sandbox, pod, config).await?);
                }
            }
            Act::Start => {
                for id in &self.containers {
                    runtime.start_container(id).await?;
                }
            }
            Act::Stop => {
                for id in &self.containers {
                    runtime.stop_container(id, GRACE).await?;
                }
            }
            Act::Remove => runtime.remove_sandbox(&sandbox).await?,
        }
        Ok(())
    }
}

/// The driver's end of an agent.
struct Agent {
    process: Child,
    orders: ChildStdin,
    answers: Receiver<String>,
}

impl Agent {
    fn start(node: &Node) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "agent", "--ignored", "--nocapture", "--test-threads=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, answers) = mpsc::channel();
        let words = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in words.lines().map_while(Result::ok) {
                drop(said.send(line));
            }
        });
        let agent = Self {
            orders: process.stdin.take().unwrap(),
            process,
            answers,
        };
        assert_eq!(agent.answer(), "ready", "of {}", node.directory.display());
        agent
    }

    /// Orders an act and does not wait for it.
    fn order(&mut self, act: Act, number: usize) {
        writeln!(self.orders, "{} {number}", act.name()).unwrap();
    }

    fn answer(&self) -> String {
        self.answers.recv_timeout(ACT_MAX).expect("it answers in time")
    }

    fn does(&mut self, act: Act, number: usize) -> String {
        self.order(act, number);
        self.answer()
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// How long each act takes here, so that a moment in it can be chosen.
fn spans(node: &Node) -> BTreeMap<Act, Duration> {
    let mut agent = Agent::start(node);
    let mut spans = BTreeMap::new();
    for number in 0..PODS {
        for act in Act::ALL {
            let began = Instant::now();
            assert_eq!(agent.does(act, number), "done", "{act:?}");
            let span = spans.entry(act).or_insert(Duration::ZERO);
            *span = began.elapsed().max(*span);
        }
    }
    agent.kill();
    spans
}

/// One life with one violent death in it.
fn tell(node: &Node, spans: &BTreeMap<Act, Duration>, when: When, victims: Victims, chance: &mut Chance) {
    let number = chance.index(PODS);
    let mut agent = Agent::start(node);
    let own = agent.process.id();
    let mut last = "done".to_owned();
    for act in Act::ALL {
        if when != When::During(act) {
            last = agent.does(act, number);
            assert_eq!(last, "done", "before anybody is killed: {act:?}");
            if when == When::After(act) {
                people::kill(own, |person| victims.includes(person));
                break;
            }
            continue;
        }
        agent.order(act, number);
        let span = u64::try_from(spans[&act].as_micros()).unwrap();
        let moment = Duration::from_micros(chance.below(span.max(1)));
        let began = Instant::now();
        // Whom the act brings forth may come a little later.
        let mut killed = 0;
        while began.elapsed() < moment || killed == 0 && began.elapsed() < spans[&act] {
            if began.elapsed() >= moment {
                killed += people::kill(own, |person| victims.includes(person));
            }
            std::hint::spin_loop();
        }
        if killed == 0 {
            people::kill(own, |person| victims.includes(person));
        }
        if !victims.has_agent() {
            last = agent.answer();
        }
        break;
    }
    if !victims.has_agent() {
        // It goes on and clears up; what it never made is no error.
        let removed = agent.does(Act::Remove, number);
        assert_eq!(removed, "done", "the agent clears up; before that: {last}");
    }
    agent.kill();
}

/// What an agent that was started anew sees and does.
async fn clear_up(node: &Node, removed: bool) {
    let runtime = node.runtime().await;
    let seen = runtime.list().await.unwrap();
    assert!(!removed || seen.is_empty(), "{seen:?}");
    for sandbox in seen {
        for container in &sandbox.containers {
            let process = runtime.process_of(&container.id).await.unwrap();
            let running = matches!(container.state, ContainerState::Running { .. });
            assert!(
                !running || process.is_some(),
                "never wrongly running: {container:?}"
            );
        }
        runtime.remove_sandbox(&sandbox.id).await.unwrap();
    }
    drop(runtime);
    // The one after that finds nothing to do; only then are the firewall's rules those of a node without pods.
    assert_eq!(node.runtime().await.list().await.unwrap(), []);
}

#[test]
#[ignore = "on an island"]
fn killings() {
    let Some(node) = island::node() else { return };
    island::settle(&node);
    let tokio = tokio::runtime::Runtime::new().unwrap();
    tokio.block_on(async {
        let runtime = node.runtime_with_image().await;
        drop(runtime);
    });
    let seed = std::env::var("KEDGE_TEST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let mut chance = Chance::new(seed);
    // The first pods bring the bridge and the groups that stay.
    let spans = spans(&node);
    tokio.block_on(clear_up(&node, true));
    let before = Census::take(&node);
    let moments = [
        Act::ALL.map(When::During).to_vec(),
        [Act::Sandbox, Act::Create, Act::Start, Act::Stop]
            .map(When::After)
            .to_vec(),
    ];
    for when in moments.concat() {
        for victims in Victims::ALL {
            let began = Instant::now();
            tell(&node, &spans, when, victims, &mut chance);
            let told = began.elapsed();
            tokio.block_on(clear_up(&node, !victims.has_agent()));
            let cleared = began.elapsed() - told;
            before.assert_restored(&node, &format!("seed {seed}: {victims:?} killed {when:?}"));
            let settled = began.elapsed() - told - cleared;
            let ms = [told, cleared, settled].map(|time| time.as_millis());
            println!("{victims:?} killed {when:?}: life, clearing up and settling took {ms:?} ms");
        }
    }
    tokio.block_on(async { node.runtime().await.purge().await.unwrap() });
}

#[test]
fn nothing_leaks_whoever_is_killed_and_when() {
    island::run("killings", STORY_MAX);
}

/// Everything that a power cut may have left of the files of one pod.
#[test]
#[ignore = "on an island"]
fn torn_files() {
    let Some(node) = island::node() else { return };
    island::settle(&node);
    let tokio = tokio::runtime::Runtime::new().unwrap();
    let prepare = async {
        let runtime = node.runtime_with_image().await;
        live(&node, &runtime).await;
        let [seen] = &runtime.list().await.unwrap()[..] else {
            panic!("one sandbox")
        };
        runtime.remove_sandbox(&seen.id).await.unwrap();
    };
    tokio.block_on(prepare);
    tokio.block_on(clear_up(&node, true));
    let before = Census::take(&node);
    let mut number = 0;
    while let Some(file) = tokio.block_on(tear(&node, number)) {
        tokio.block_on(clear_up(&node, false));
        before.assert_restored(&node, &format!("{file} was torn"));
        number += 1;
    }
    tokio.block_on(async { node.runtime().await.purge().await.unwrap() });
    assert!(number > 6, "{number} files were torn");
}

#[test]
fn a_power_cut_may_tear_any_file() {
    island::run("torn_files", STORY_MAX);
}

/// A pod with several containers that run.
async fn live(node: &Node, runtime: &Embedded) {
    let (pod, containers) = pod(node, SHARING);
    let mut life = Life::default();
    for act in [Act::Sandbox, Act::Create, Act::Start] {
        life.act(runtime, act, &pod, &containers).await.unwrap();
    }
}

/// Runs a pod, kills everybody, and leaves one of its records as a power cut leaves what was not flushed.
async fn tear(node: &Node, number: usize) -> Option<String> {
    let runtime = node.runtime().await;
    live(node, &runtime).await;
    drop(runtime);
    people::kill(std::process::id(), |person| person != Person::Agent);
    people::wait_until_gone(|person| person != Person::Agent);
    node::pretend_reboot(node);
    island::forget_pods_groups(node);
    let mut records = node::records(&node.directory.join("runtime"));
    records.sort_unstable();
    let path = records.get(number)?;
    let bytes = std::fs::read(path).unwrap();
    let kept = if number.is_multiple_of(2) {
        0
    } else {
        bytes.len() / 2
    };
    std::fs::write(path, &bytes[..kept]).unwrap();
    Some(format!("{} at {kept} bytes", path.display()))
}
