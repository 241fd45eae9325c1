//! When containers are asked for their health, and what the answers mean.

use crate::{ProbeId, ProbeKind, ProbeResult, ProbeTarget};
use kedge_api::{Container, ContainerStatus, Pod, Probe};
use kedge_containers::ContainerId;
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// All probes of one pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Probes {
    instances: BTreeMap<ContainerId, Instance>,
}

#[derive(Debug, Clone)]
struct Instance {
    name: String,
    probes: BTreeMap<ProbeKind, State>,
}

#[derive(Debug, Clone)]
struct State {
    due: Time,
    in_flight: bool,
    successes: u32,
    failures: u32,
    /// `None` until a threshold is reached for the first time.
    healthy: Option<bool>,
    told_unsupported: bool,
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
    Unhealthy {
        container: String,
        message: String,
    },
}

impl Probes {
    /// Follows the running instances: new ones begin, others are forgotten. `known` is what the cloud was told
    /// before a restart of this process: an adopted container does not lose its readiness.
    pub(crate) fn follow(
        &mut self,
        pod: &Pod,
        running: &[(ContainerId, String, Time)],
        known: &[ContainerStatus],
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
            let probes =
                specs(container).map(|(kind, probe)| (kind, State::begin(kind, probe, *started, told)));
            self.instances.insert(
                id.clone(),
                Instance {
                    name: name.clone(),
                    probes: probes.collect(),
                },
            );
        }
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
    pub(crate) fn take_due(&mut self, pod: &Pod, pod_ip: Option<&str>, now: Time) -> Vec<Due> {
        let mut due = Vec::new();
        for (id, instance) in &mut self.instances {
            let Some(container) = pod.container(&instance.name) else {
                continue;
            };
            let started = instance.started();
            for (kind, probe) in specs(container) {
                let Some(state) = instance.probes.get_mut(&kind) else {
                    continue;
                };
                if !state.waits(kind, started) || state.due > now {
                    continue;
                }
                state.in_flight = true;
                let id = ProbeId {
                    uid: pod.uid().to_owned(),
                    container: id.clone(),
                    kind,
                };
                let timeout = Duration::from_secs(probe.timeout_seconds());
                due.push(Due {
                    id,
                    target: target(container, probe, pod_ip),
                    timeout,
                });
            }
        }
        due
    }

    /// The moment of the next due probe.
    pub(crate) fn next_due(&self) -> Option<Time> {
        self.instances
            .values()
            .flat_map(|instance| {
                let started = instance.started();
                instance
                    .probes
                    .iter()
                    .filter(move |(kind, state)| state.waits(**kind, started))
                    .map(|(_, s)| s.due)
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
        state.in_flight = false;
        state.due = now + Duration::from_secs(probe.period_seconds());
        let message = match result {
            ProbeResult::Success => {
                state.successes = state.successes.saturating_add(1);
                state.failures = 0;
                if state.successes >= probe.success_threshold() {
                    state.healthy = Some(true);
                }
                return Verdict::Nothing;
            }
            ProbeResult::Failure(message) => {
                state.failures = state.failures.saturating_add(1);
                state.successes = 0;
                if state.failures >= probe.failure_threshold() {
                    state.healthy = Some(false);
                }
                message
            }
            ProbeResult::Unsupported(_) if state.told_unsupported => return Verdict::Nothing,
            ProbeResult::Unsupported(message) => {
                state.told_unsupported = true;
                message
            }
        };
        Verdict::Unhealthy {
            container: instance.name.clone(),
            message: format!("{} probe failed: {message}", id.kind),
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
    fn begin(kind: ProbeKind, probe: &Probe, started: Time, told: Option<&ContainerStatus>) -> Self {
        let healthy = match kind {
            ProbeKind::Startup => told.and_then(|s| s.started).filter(|started| *started),
            ProbeKind::Readiness => told.map(|s| s.ready).filter(|ready| *ready),
            ProbeKind::Liveness => None,
        };
        let due = started + Duration::from_secs(probe.initial_delay_seconds());
        Self {
            due,
            in_flight: false,
            successes: 0,
            failures: 0,
            healthy,
            told_unsupported: false,
        }
    }

    /// The startup probe is asked until it succeeds, the others from then on; a condemned instance is not asked.
    fn waits(&self, kind: ProbeKind, started: bool) -> bool {
        let turn = match kind {
            ProbeKind::Startup => self.healthy.is_none(),
            ProbeKind::Liveness => started && self.healthy != Some(false),
            ProbeKind::Readiness => started,
        };
        turn && !self.in_flight
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
fn target(container: &Container, probe: &Probe, pod_ip: Option<&str>) -> Result<ProbeTarget, String> {
    let handler = &probe.handler;
    let host = |given: &Option<String>| {
        given
            .clone()
            .filter(|host| !host.is_empty())
            .or_else(|| pod_ip.map(str::to_owned))
            .ok_or("the pod has no address")
    };
    if let Some(http) = &handler.http_get {
        let port = container
            .port(&http.port)
            .ok_or("the port of the probe is not a port of the container")?;
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
        let port = container
            .port(&tcp.port)
            .ok_or("the port of the probe is not a port of the container")?;
        return Ok(ProbeTarget::Tcp {
            host: host(&tcp.host)?,
            port,
        });
    }
    if handler.exec.is_some() {
        return Err(
            "this version cannot run commands in containers, so exec probes are neither passed nor failed; \
                    use httpGet or tcpSocket"
                .to_owned(),
        );
    }
    if handler.grpc.is_some() {
        return Err("this version does not ask by gRPC; use httpGet or tcpSocket".to_owned());
    }
    Err("the probe names nothing to ask".to_owned())
}
