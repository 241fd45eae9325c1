//! What a kubelet tells about its node: to local programs on `address:readOnlyPort`, and through the tunnel to the cloud.
//! Both get the same answers.
//!
//! It only tells. A kubelet's read-only port also runs commands in containers, attaches to them, forwards ports and
//! serves the node's log files, for whoever can reach the port; here these paths are refused with a sentence, because
//! the port asks nobody who they are. Commands and connections come through the tunnel ([`streams`]), where the API
//! server has asked.
//!
//! A port that is taken does not keep pods from running: it is said, and tried again.

mod cadvisor;
mod kubelet;
mod pods;
mod probes;
mod resource;
mod streams;
mod text;

pub(crate) use probes::ProbeCounts;

use crate::LogAnswer;
use crate::beside::Beside;
use crate::stats::summary::{About, Own, Summary};
use bytes::Bytes;
use kedge_telemetry::channel::ask::Question;
use kedge_telemetry::channel::{ask, latest, queue};
use kedge_telemetry::http::{Answer, Content, Get, Limits, PROMETHEUS_TEXT, Server};
use kedge_telemetry::metrics::Registry;
use kedge_wire::Time;
use kedge_wire::tunnel::NodeGet;
use serde::Serialize;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// What local programs may do to the server.
const LIMITS: Limits = Limits {
    // Scrapers, an operator and some followers of logs.
    connections: 64,
    head: Duration::from_secs(10),
    stall: Duration::from_secs(30),
    // As long as a kubelet lets a log be followed.
    connection: Duration::from_secs(4 * 3600),
};
/// A port that is taken is tried again this often.
const BIND_PAUSE: Duration = Duration::from_secs(30);
/// The owner of the pods answers at once or is overloaded.
const LOG_WAIT: Duration = Duration::from_secs(30);
/// The owner turns at least every ten seconds; one that has not for this long hangs.
const BEAT_MAX: Duration = Duration::from_secs(60);
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the operator decides about the local port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `address:readOnlyPort`; `None`: only the tunnel is answered.
    pub listen: Option<SocketAddr>,
    /// `enableDebuggingHandlers`: without it there are no logs and no list of running pods.
    pub debugging_handlers: bool,
    /// The effective configuration as JSON, without secrets, for `/configz`.
    pub configz: String,
    /// Where the control groups of pods are looked for.
    pub cgroup_roots: Vec<String>,
    /// `streamingConnectionIdleTimeout`: a conversation in which nothing is said for so long is ended.
    pub streaming_idle: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: None,
            debugging_handlers: true,
            configz: "{}".to_owned(),
            cgroup_roots: Self::roots_below(""),
            streaming_idle: Duration::from_secs(4 * 3600),
        }
    }
}

impl Settings {
    /// Where pods are, below the operator's `cgroupRoot`, under either way of naming: `/own/kubepods` where directories
    /// are made, `/own.slice/own-kubepods.slice` where systemd is asked.
    pub fn roots_below(root: &str) -> Vec<String> {
        let names: Vec<&str> = root
            .split('/')
            .filter(|name| !name.is_empty())
            .chain(["kubepods"])
            .collect();
        let slices = (1..=names.len()).map(|count| format!("/{}.slice", names[..count].join("-")));
        vec![format!("/{}", names.join("/")), slices.collect()]
    }
}

/// What the face is connected to, besides what all tasks beside the owner see.
#[derive(Debug)]
pub(crate) struct Ports {
    /// Questions through the tunnel.
    pub(crate) node_get: ask::Receiver<NodeGet, LogAnswer>,
    /// Connections through the tunnel.
    pub(crate) node_connect: queue::Receiver<kedge_streaming::Connection>,
    /// To the owner of the logs.
    pub(crate) logs: ask::Sender<NodeGet, LogAnswer>,
    /// When the owner of the pods was last seen alive.
    pub(crate) beat: latest::Receiver<Time>,
    /// What this process counts.
    pub(crate) metrics: Registry,
    pub(crate) probes: ProbeCounts,
}

/// Starts both doors.
pub(crate) fn start(beside: Beside, ports: Ports) {
    let scope = beside.scope.clone();
    let listen = beside.config.face.listen;
    let (node_get, node_connect) = (ports.node_get, ports.node_connect);
    let face = Face {
        beside: Arc::new(beside),
        logs: ports.logs,
        beat: ports.beat,
        metrics: ports.metrics,
        probes: ports.probes,
        checks: Arc::default(),
    };
    if let Some(address) = listen {
        scope.spawn_until_cancelled("edged-port", listen_on(address, face.clone()));
    }
    scope.spawn_until_cancelled(
        "edged-tunnel-connections",
        streams::serve_all(Arc::clone(&face.beside), node_connect),
    );
    scope.spawn_until_cancelled("edged-tunnel-questions", face.answer_tunnel(node_get));
}

async fn listen_on(address: SocketAddr, face: Face) {
    let scope = face.beside.scope.clone();
    let mut complained = false;
    let server = loop {
        match Server::bind(address, LIMITS).await {
            Ok(server) => break server,
            Err(error) => {
                if !complained {
                    let why = "logs and metrics of this node are not to be had here; pods run all the same";
                    tracing::error!(%address, %error, "the local port cannot be opened: {why}");
                }
                complained = true;
                tokio::time::sleep(BIND_PAUSE).await;
            }
        }
    };
    tracing::info!(address = %server.local_address(), "local port open");
    let is_local = address.ip().is_loopback();
    if !is_local {
        tracing::warn!(%address, "whoever reaches this port reads pods and logs of this node; 127.0.0.1 keeps it local");
    }
    let answer = move |get: Get| {
        let face = face.clone();
        async move {
            if is_local && !get.is_for_address() {
                return Answer::text(403, "this port is asked by its address, or as localhost\n");
            }
            face.answer(get).await
        }
    };
    server.run("edged-port connection", scope, answer).await;
}

/// Answers GETs, whichever way they came.
#[derive(Clone)]
pub(crate) struct Face {
    beside: Arc<Beside>,
    logs: ask::Sender<NodeGet, LogAnswer>,
    beat: latest::Receiver<Time>,
    metrics: Registry,
    probes: ProbeCounts,
    checks: Arc<kubelet::Checks>,
}

impl Face {
    async fn answer_tunnel(self, mut questions: ask::Receiver<NodeGet, LogAnswer>) {
        while let Some(Question { question, reply }) = questions.recv().await {
            let face = self.clone();
            // Bounded by the tunnel, which has a limit of streams.
            self.beside
                .scope
                .spawn_until_cancelled("edged-tunnel-answer", async move {
                    let get = Get {
                        host: String::new(),
                        path: question.path,
                        query: question.query,
                    };
                    reply.send(pieces(face.answer(get).await));
                });
        }
    }

    pub(crate) async fn answer(&self, get: Get) -> Answer {
        let path = get.path.trim_end_matches('/');
        if let Some(refused) = refused(path) {
            return refused;
        }
        if path.starts_with("/containerLogs/") {
            return self.log(get).await;
        }
        match path {
            "/healthz" => self.health(),
            "/healthz/ping" | "/healthz/log" => Answer::text(200, "ok"),
            "/healthz/syncloop" => match self.is_turning() {
                true => Answer::text(200, "ok"),
                false => Answer::text(500, "the owner of the pods does not turn\n"),
            },
            "/pods" => json(&pods::desired(&self.beside.pods.borrow())),
            "/runningpods" if !self.beside.config.face.debugging_handlers => disabled(),
            "/runningpods" => json(&pods::running(&self.beside.seen.borrow())),
            "/stats/summary" => self.summary(&get.query).await,
            "/metrics" => prometheus(self.own_metrics().await),
            "/metrics/cadvisor" => self.cadvisor().await,
            "/metrics/resource" => {
                let usage = self.beside.stats.usage(false).await;
                prometheus(resource::print(&usage))
            }
            "/metrics/probes" => prometheus(self.probes.print()),
            "/metrics/slis" => prometheus(self.checks.print(self.is_turning())),
            "/configz" => {
                let configz = &self.beside.config.face.configz;
                Answer::whole(200, JSON, format!("{{\"kubeletconfig\":{configz}}}"))
            }
            unknown => {
                let shown: String = unknown.chars().take(PATH_CHARS_MAX).collect();
                Answer::text(404, format!("there is no {shown} here\n"))
            }
        }
    }

    async fn log(&self, get: Get) -> Answer {
        if !self.beside.config.face.debugging_handlers {
            return disabled();
        }
        let question = NodeGet {
            path: get.path.clone(),
            query: get.query,
        };
        match self.logs.ask(question, LOG_WAIT).await {
            Ok(Ok(pieces)) => Answer {
                status: 200,
                content_type: TEXT,
                content: Content::Stream(pieces),
            },
            Ok(Err(why)) => {
                let status = if self.knows_container(&get.path) { 400 } else { 404 };
                Answer::text(status, format!("{why}\n"))
            }
            Err(error) => Answer::text(503, format!("the log is not to be had now: {error}\n")),
        }
    }

    /// Whether the path of a log names a container of a pod of this node.
    fn knows_container(&self, path: &str) -> bool {
        let mut parts = path.trim_matches('/').split('/').skip(1);
        let (Some(namespace), Some(pod), Some(container)) = (parts.next(), parts.next(), parts.next()) else {
            return false;
        };
        let pods = self.beside.pods.borrow();
        let mut views = pods.iter().map(|view| &view.pod);
        views.any(|of| {
            of.namespace() == namespace && of.metadata.name == pod && of.container(container).is_some()
        })
    }

    fn is_turning(&self) -> bool {
        let turning = self.beside.clock.now().since(*self.beat.borrow()) < BEAT_MAX;
        self.checks.count(turning);
        turning
    }

    fn health(&self) -> Answer {
        if self.is_turning() {
            Answer::text(200, "ok")
        } else {
            Answer::text(
                500,
                "[+]ping ok\n[+]log ok\n[-]syncloop failed: the owner of the pods does not turn\nhealthz check failed\n",
            )
        }
    }

    async fn summary(&self, query: &str) -> Answer {
        let short = query.split('&').any(|pair| pair == "only_cpu_and_memory=true");
        let stats = &self.beside.stats;
        let usage = stats.usage(true).await;
        let disks = match short {
            true => None,
            false => Some(stats.disks().await),
        };
        json(&Summary::new(&self.about(), &usage, disks.as_deref()))
    }

    fn about(&self) -> About {
        let facts = &self.beside.facts;
        let own = kedge_host::own::own_usage().unwrap_or_default();
        let processes = kedge_host::usage(&self.beside.config.root_dir).ok();
        About {
            node_name: self.beside.config.node_name.to_string(),
            booted: Time::from_ms(kedge_host::own::booted_ms().unwrap_or_default()),
            memory_bytes: facts.memory_bytes,
            swap_bytes: kedge_host::own::swap_bytes(),
            pids_max: processes.as_ref().map(|usage| usage.pids_max),
            processes: processes.map(|usage| usage.pids),
            own: Own {
                started: Time::from_ms(own.started_ms),
                cpu_ns: own.cpu_ns,
                resident_bytes: own.resident_bytes,
                page_faults: own.page_faults,
                major_page_faults: own.major_page_faults,
            },
        }
    }

    async fn cadvisor(&self) -> Answer {
        let stats = &self.beside.stats;
        let (usage, disks) = (stats.usage(false).await, stats.disks().await);
        let facts = &self.beside.facts;
        let device = kedge_host::disks::device(&self.beside.config.root_dir);
        let machine = cadvisor::Machine {
            cpus: facts.cpus,
            memory_bytes: facts.memory_bytes,
            swap_bytes: kedge_host::own::swap_bytes(),
            kernel: &facts.kernel_version,
            os: &facts.os_image,
            device: device.as_deref().unwrap_or_default(),
        };
        prometheus(cadvisor::print(&machine, &usage, &disks))
    }

    async fn own_metrics(&self) -> String {
        let pods = Arc::clone(&self.beside.pods.borrow());
        let seen = Arc::clone(&self.beside.seen.borrow());
        let has_claims = pods.iter().any(|view| {
            let mut volumes = view.pod.spec.volumes.iter();
            volumes.any(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some())
        });
        let disks = match has_claims {
            true => Some(self.beside.stats.disks().await),
            false => None,
        };
        let node = kubelet::Node {
            name: self.beside.config.node_name.to_string(),
            version: &self.beside.config.node.kubelet_version,
            architecture: &self.beside.facts.architecture,
        };
        kubelet::print(&self.metrics, &node, &pods, &seen, disks.as_deref())
    }
}

/// How much of an unknown path is shown again.
const PATH_CHARS_MAX: usize = 80;

/// What a kubelet does for whoever asks, and this port does for nobody.
fn refused(path: &str) -> Option<Answer> {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let why = match first {
        "exec" | "attach" | "run" | "cri" => {
            "commands are not run from this port, which asks nobody who they are; \
             kubectl exec and attach reach them through the tunnel of CloudStream"
        }
        "portForward" => {
            "ports are not forwarded from this port, which asks nobody who they are: \
             kubectl port-forward reaches them through the tunnel of CloudStream"
        }
        "checkpoint" => {
            "containers are not checkpointed from this port, which asks nobody who they are; \
             the tunnel of CloudStream does not carry checkpoints either"
        }
        "debug" => {
            "this program has no profiler behind this port; \
             metrics are under /metrics, here and through the tunnel of CloudStream"
        }
        "logs" => {
            "the node's own log files are not served, here or through the tunnel of CloudStream: \
             logs of containers are under /containerLogs"
        }
        _ => return None,
    };
    Some(Answer::text(403, format!("{why}\n")))
}

fn disabled() -> Answer {
    Answer::text(405, "Debug endpoints are disabled.\n")
}

fn prometheus(text: String) -> Answer {
    Answer::whole(200, PROMETHEUS_TEXT, text)
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(bytes) => Answer::whole(200, JSON, bytes),
        Err(error) => Answer::text(500, format!("the answer cannot be printed: {error}\n")),
    }
}

/// The tunnel carries no status: what is not there is told as a sentence.
fn pieces(answer: Answer) -> LogAnswer {
    match answer.content {
        Content::Stream(pieces) => Ok(pieces),
        Content::Whole(bytes) if answer.status == 200 => {
            let (tx, rx) = queue::channel("edged-answer", 1);
            // There is room for it: it is the first and the last.
            let _: Result<(), Bytes> = tx.try_send(bytes);
            Ok(rx)
        }
        Content::Whole(why) => Err(String::from_utf8_lossy(&why).trim_end().to_owned()),
    }
}

#[cfg(test)]
mod tests;
