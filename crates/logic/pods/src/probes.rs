//! When containers are asked for their health, and what the answers mean.

use crate::translate::expand;
use crate::{EventReason, ProbeId, ProbeKind, ProbeResult, ProbeTarget};
use kedge_api::{Container, ContainerStatus, Pod, Probe};
use kedge_containers::ContainerId;
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// An answer that takes this much longer than the probe's timeout has got lost: the question counts as failed, so that
/// no container is left without a judge.
const ANSWER_SLACK: Duration = Duration::from_secs(30);

/// All probes of one pod.
#[derive(Debug, Clone)]
pub(crate) struct Probes {
    instances: BTreeMap<ContainerId, Instance>,
    /// Instances that are older than this were adopted: their first questions are spread over a period, so that a
    /// restart of this process does not ask all containers of the node in one moment.
    born: Time,
    seed: u64,
}

#[derive(Debug, Clone)]
struct Instance {
    name: String,
    probes: BTreeMap<ProbeKind, State>,
}

#[derive(Debug, Clone)]
struct State {
    due: Time,
    /// Since when an answer is awaited, and until when.
    in_flight: Option<Time>,
    successes: u32,
    failures: u32,
    /// `None` until a threshold is reached for the first time.
    healthy: Option<bool>,
}

/// A probe that is due now.
pub(crate) struct Due {
    pub(crate) id: ProbeId,
    pub(crate) target: Result<ProbeTarget, String>,
    pub(crate) timeout: Duration,
}

/// What an answer changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Nothing,
    /// Worth an event.
    Told {
        container: String,
        reason: EventReason,
        message: String,
    },
}

/// Which of the pod's probes are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    All,
    /// A pod that ends is not restarted any more, but what it still serves may be known.
    Readiness,
}

impl Asked {
    fn includes(self, kind: ProbeKind) -> bool {
        match self {
            Self::All => true,
            Self::Readiness => kind == ProbeKind::Readiness,
        }
    }
}

impl Probes {
    pub(crate) fn new(born: Time, seed: u64) -> Self {
        Self {
            instances: BTreeMap::new(),
            born,
            seed,
        }
    }

    /// Follows the running instances: new ones begin, others are forgotten. `known` is what the cloud was told
    /// before a restart of this process: an adopted container does not lose its readiness.
    pub(crate) fn follow(
        &mut self,
        pod: &Pod,
        running: &[(ContainerId, String, Time)],
        known: &[&ContainerStatus],
        now: Time,
    ) {
        self.instances
            .retain(|id, _| running.iter().any(|(running, _, _)| running == id));
        for (id, name, started) in running {
            if self.instances.contains_key(id) {
                continue;
            }
            let Some(container) = pod.container(name) else {
                continue;
            };
            let told = known
                .iter()
                .find(|s| s.container_id.as_ref().is_some_and(|c| c.ends_with(&id.0)));
            let probes = specs(container).map(|(kind, probe)| {
                // The runtime's clock may be ahead of ours: what runs has been started.
                let start = (*started).min(now) + Duration::from_secs(probe.initial_delay_seconds());
                let due = if *started < self.born {
                    start.max(now + self.share(id, kind, probe))
                } else {
                    start
                };
                (kind, State::begin(kind, due, told.copied()))
            });
            let instance = Instance {
                name: name.clone(),
                probes: probes.collect(),
            };
            self.instances.insert(id.clone(), instance);
        }
    }

    /// A part of the probe's period, which differs from container to container.
    fn share(&self, id: &ContainerId, kind: ProbeKind, probe: &Probe) -> Duration {
        let text = id.0.bytes().chain([kind as u8]);
        let hash = text.fold(0xcbf2_9ce4_8422_2325_u64 ^ self.seed, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let period_ms = probe.period_seconds().saturating_mul(1000);
        // The low bits of this hash differ least.
        Duration::from_millis((hash >> 16) % period_ms.max(1))
    }

    /// The startup probe, if there is one, has succeeded.
    pub(crate) fn started(&self, id: &ContainerId) -> bool {
        self.instances.get(id).is_some_and(Instance::started)
    }

    /// Started, and the readiness probe, if there is one, holds.
    pub(crate) fn ready(&self, id: &ContainerId) -> bool {
        self.instances.get(id).is_some_and(|instance| {
            instance.started()
                && instance
                    .probes
                    .get(&ProbeKind::Readiness)
                    .is_none_or(|s| s.healthy == Some(true))
        })
    }

    /// The probe that wants this instance to be restarted.
    pub(crate) fn condemned(&self, id: &ContainerId) -> Option<ProbeKind> {
        let instance = self.instances.get(id)?;
        [ProbeKind::Startup, ProbeKind::Liveness]
            .into_iter()
            .find(|kind| {
                instance
                    .probes
                    .get(kind)
                    .is_some_and(|state| state.healthy == Some(false))
            })
    }

    /// Takes the probes that are due.
    pub(crate) fn take_due(&mut self, pod: &Pod, pod_ip: Option<&str>, asked: Asked, now: Time) -> Vec<Due> {
        let mut due = Vec::new();
        for (id, instance) in &mut self.instances {
            let Some(container) = pod.container(&instance.name) else {
                continue;
            };
            let started = instance.started();
            for (kind, probe) in specs(container).filter(|(kind, _)| asked.includes(*kind)) {
                let Some(state) = instance.probes.get_mut(&kind) else {
                    continue;
                };
                if !state.waits(kind, started) || state.due > now {
                    continue;
                }
                let timeout = Duration::from_secs(probe.timeout_seconds());
                state.in_flight = Some(now + timeout + ANSWER_SLACK);
                due.push(Due {
                    id: ProbeId {
                        uid: pod.uid().to_owned(),
                        container: id.clone(),
                        kind,
                    },
                    target: target(container, id, probe, pod_ip),
                    timeout,
                });
            }
        }
        due
    }

    /// Takes the questions whose answers got lost.
    pub(crate) fn take_lost(&self, uid: &str, now: Time) -> Vec<ProbeId> {
        let mut lost = Vec::new();
        for (id, instance) in &self.instances {
            for (kind, state) in &instance.probes {
                if state.in_flight.is_some_and(|until| until <= now) {
                    lost.push(ProbeId {
                        uid: uid.to_owned(),
                        container: id.clone(),
                        kind: *kind,
                    });
                }
            }
        }
        lost
    }

    /// The moment of the next due probe, or of the next lost answer.
    pub(crate) fn next_due(&self, asked: Asked) -> Option<Time> {
        self.instances
            .values()
            .flat_map(|instance| {
                let started = instance.started();
                instance
                    .probes
                    .iter()
                    .filter(move |(kind, _)| asked.includes(**kind))
                    .filter_map(move |(kind, state)| {
                        let due = state.waits(*kind, started).then_some(state.due);
                        due.or(state.in_flight)
                    })
            })
            .min()
    }

    /// Takes an answer.
    pub(crate) fn answer(&mut self, pod: &Pod, id: &ProbeId, result: ProbeResult, now: Time) -> Verdict {
        let Some(instance) = self.instances.get_mut(&id.container) else {
            return Verdict::Nothing;
        };
        let Some(container) = pod.container(&instance.name) else {
            return Verdict::Nothing;
        };
        let Some((_, probe)) = specs(container).find(|(kind, _)| *kind == id.kind) else {
            return Verdict::Nothing;
        };
        let Some(state) = instance.probes.get_mut(&id.kind) else {
            return Verdict::Nothing;
        };
        state.in_flight = None;
        state.due = now + Duration::from_secs(probe.period_seconds());
        let (reason, message) = match result {
            ProbeResult::Success => {
                state.succeeded(probe);
                return Verdict::Nothing;
            }
            ProbeResult::Warning(message) => {
                state.succeeded(probe);
                (
                    EventReason::ProbeWarning,
                    format!("{} probe warning: {message}", id.kind),
                )
            }
            ProbeResult::Failure(message) => {
                state.failures = state.failures.saturating_add(1);
                state.successes = 0;
                if state.failures >= probe.failure_threshold() {
                    state.healthy = Some(false);
                }
                (
                    EventReason::Unhealthy,
                    format!("{} probe failed: {message}", id.kind),
                )
            }
            ProbeResult::Error(message) => (
                EventReason::Unhealthy,
                format!("{} probe errored: {message}", id.kind),
            ),
        };
        Verdict::Told {
            container: instance.name.clone(),
            reason,
            message,
        }
    }
}

impl Instance {
    fn started(&self) -> bool {
        self.probes
            .get(&ProbeKind::Startup)
            .is_none_or(|state| state.healthy == Some(true))
    }
}

impl State {
    fn begin(kind: ProbeKind, due: Time, told: Option<&ContainerStatus>) -> Self {
        let healthy = match kind {
            ProbeKind::Startup => told.and_then(|s| s.started).filter(|started| *started),
            ProbeKind::Readiness => told.map(|s| s.ready).filter(|ready| *ready),
            ProbeKind::Liveness => None,
        };
        Self {
            due,
            in_flight: None,
            successes: 0,
            failures: 0,
            healthy,
        }
    }

    fn succeeded(&mut self, probe: &Probe) {
        self.successes = self.successes.saturating_add(1);
        self.failures = 0;
        if self.successes >= probe.success_threshold() {
            self.healthy = Some(true);
        }
    }

    /// The startup probe is asked until it succeeds, the others from then on; a condemned instance is not asked.
    fn waits(&self, kind: ProbeKind, started: bool) -> bool {
        let turn = match kind {
            ProbeKind::Startup => self.healthy.is_none(),
            ProbeKind::Liveness => started && self.healthy != Some(false),
            ProbeKind::Readiness => started,
        };
        turn && self.in_flight.is_none()
    }
}

fn specs(container: &Container) -> impl Iterator<Item = (ProbeKind, &Probe)> {
    [
        (ProbeKind::Startup, container.startup_probe.as_ref()),
        (ProbeKind::Liveness, container.liveness_probe.as_ref()),
        (ProbeKind::Readiness, container.readiness_probe.as_ref()),
    ]
    .into_iter()
    .filter_map(|(kind, probe)| Some((kind, probe?)))
}

/// What to ask; or why it cannot be asked.
fn target(
    container: &Container,
    id: &ContainerId,
    probe: &Probe,
    pod_ip: Option<&str>,
) -> Result<ProbeTarget, String> {
    const NO_PORT: &str = "the port of the probe is not a port of the container";
    let handler = &probe.handler;
    let host = |given: &Option<String>| {
        given
            .clone()
            .filter(|host| !host.is_empty())
            .or_else(|| pod_ip.map(str::to_owned))
            .ok_or("the pod has no address")
    };
    if let Some(exec) = &handler.exec {
        let known = |name: &str| {
            let var = container.env.iter().rev().find(|var| var.name == name)?;
            var.value.clone()
        };
        let command = exec.command.iter().map(|word| expand(word, known)).collect();
        return Ok(ProbeTarget::Exec {
            container: id.clone(),
            command,
        });
    }
    if let Some(http) = &handler.http_get {
        let port = container.port(&http.port).ok_or(NO_PORT)?;
        let path = http.path.clone().unwrap_or_else(|| "/".to_owned());
        let path = if path.starts_with('/') {
            path
        } else {
            format!("/{path}")
        };
        let tls = http
            .scheme
            .as_deref()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        return Ok(ProbeTarget::Http {
            host: host(&http.host)?,
            port,
            path,
            tls,
            headers: http.http_headers.clone(),
        });
    }
    if let Some(tcp) = &handler.tcp_socket {
        let port = container.port(&tcp.port).ok_or(NO_PORT)?;
        return Ok(ProbeTarget::Tcp {
            host: host(&tcp.host)?,
            port,
        });
    }
    if let Some(grpc) = &handler.grpc {
        let port = u16::try_from(grpc.port).ok().filter(|port| *port > 0);
        return Ok(ProbeTarget::Grpc {
            host: host(&None)?,
            port: port.ok_or(NO_PORT)?,
            service: grpc.service.clone().unwrap_or_default(),
        });
    }
    Err("the probe names nothing to ask".to_owned())
}
