//! Looking at the machine and at the runtime, with and without a cloud.

use super::conditions::{self, RuntimeSight};
use super::status::{self, Sight};
use super::{Looked, Sources, addresses};
use crate::beside::{Beside, Order};
use kedge_api::NodeStatus;
use kedge_containers::Image;
use kedge_pods::Amounts;
use kedge_pods::allocatable::Machine;
use kedge_telemetry::channel::latest;
use kedge_wire::Time;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A runtime that takes longer to say how it is does not work.
const RUNTIME_MAX: Duration = Duration::from_secs(10);
/// While the runtime has troubles it is asked this often: pods wait for the end of them.
const TROUBLED_INTERVAL: Duration = Duration::from_secs(1);
/// What rarely changes and costs more to ask is asked this often: the runtime's version, its images, the node's name.
const SLOW_INTERVAL: Duration = Duration::from_secs(60);

/// Looks for ever and tells what it saw whenever it differs.
pub(super) async fn run(beside: Beside, sources: Sources, told: latest::Sender<Looked>) {
    let mut observer = Observer::new(beside, sources);
    observer.tell_start();
    loop {
        let status = observer.look().await;
        observer.tell_conditions(told.borrow().as_deref(), &status);
        observer.order_allocatable(&status.allocatable).await;
        observer.order_recursive_read_only().await;
        told.send_if_modified(|old| {
            let differs = old.as_deref() != Some(&status);
            if differs {
                *old = Some(Arc::new(status));
            }
            differs
        });
        observer.wait().await;
    }
}

/// Why the node is not ready then, as a kubelet says it.
const SHUTTING_DOWN: &str = "node is shutting down";

struct Observer {
    beside: Beside,
    sources: Sources,
    sight: Sight,
    runtime: RuntimeSight,
    resolved: Option<IpAddr>,
    /// When the slow questions were asked last.
    asked_slowly: Option<Time>,
    ordered: Option<Amounts>,
    /// Handlers that make recursive read-only mounts, as the owner was told.
    read_only_handlers: BTreeSet<String>,
    troubled: bool,
}

impl Observer {
    fn new(beside: Beside, sources: Sources) -> Self {
        Self {
            beside,
            sources,
            sight: Sight::default(),
            runtime: RuntimeSight::default(),
            resolved: None,
            asked_slowly: None,
            ordered: None,
            read_only_handlers: BTreeSet::new(),
            troubled: true,
        }
    }

    async fn look(&mut self) -> NodeStatus {
        let now = self.beside.clock.now();
        self.look_at_runtime(now).await;
        let local = self.look_at_machine().await;
        let is_slow_due = self.asked_slowly.is_none_or(|at| now.since(at) >= SLOW_INTERVAL);
        // A runtime that came back may be another version.
        if is_slow_due || self.troubled {
            self.ask_slowly(&local).await;
            self.asked_slowly = Some(now);
        }
        let config = Arc::clone(&self.beside.config);
        self.sight.ip = addresses::internal_ip(&config.node, &local, self.resolved).map(|ip| ip.to_string());
        self.sight.machine.devices = self.sources.devices.borrow_and_update().clone();
        let in_use = Arc::clone(&self.sources.volumes_in_use.borrow_and_update());
        self.sight.volumes_in_use = in_use.iter().cloned().collect();
        let mut troubles = self.runtime.troubles(now);
        self.troubled = !troubles.is_empty();
        troubles.extend(status::missing_capacity(&config, &self.sight.machine));
        if *self.sources.shutting_down.borrow_and_update() {
            troubles.push(SHUTTING_DOWN.to_owned());
        }
        let pressures = *self.sources.pressures.borrow_and_update();
        let wall = self.beside.clock.wall();
        self.sight.conditions = conditions::conditions(pressures, &troubles, &self.sight.conditions, wall);
        status::status(&config, &self.beside.facts, &self.sight)
    }

    async fn look_at_runtime(&mut self, now: Time) {
        let told = tokio::time::timeout(RUNTIME_MAX, self.beside.runtime.status()).await;
        let runtime = &mut self.runtime;
        match told {
            Ok(Ok(status)) => {
                runtime.answered = Some(now);
                runtime.answers = true;
                runtime.runtime_trouble = status.runtime_trouble;
                runtime.network_trouble = status.network_trouble;
                self.sight.handlers = status.features;
            }
            Ok(Err(error)) => {
                runtime.answers = false;
                tracing::debug!(%error, "the runtime does not tell its status");
            }
            Err(_) => {
                runtime.answers = false;
                tracing::debug!(limit = ?RUNTIME_MAX, "the runtime did not tell its status in time");
            }
        }
        let trouble = self.beside.trouble.borrow_and_update().clone();
        let since = runtime.list_trouble.take().map_or(now, |(since, _)| since);
        runtime.list_trouble = trouble.map(|why| (since, why));
    }

    /// Measures the machine, and gives back its addresses.
    async fn look_at_machine(&mut self) -> Vec<IpAddr> {
        let (config, facts) = (Arc::clone(&self.beside.config), Arc::clone(&self.beside.facts));
        let look = move || {
            let local = kedge_host::addresses().unwrap_or_else(|error| {
                tracing::warn!(%error, "the addresses of this machine are those of its start");
                facts.addresses.clone()
            });
            (super::machine(&config, &facts), local)
        };
        match tokio::task::spawn_blocking(look).await {
            Ok((machine, local)) => {
                // A disk that cannot be measured for a moment has not lost its size.
                let nodefs_bytes = machine.nodefs_bytes.or(self.sight.machine.nodefs_bytes);
                self.sight.machine = Machine {
                    nodefs_bytes,
                    ..machine
                };
                local
            }
            Err(error) => {
                tracing::error!(%error, "the machine was not looked at");
                self.beside.facts.addresses.clone()
            }
        }
    }

    async fn ask_slowly(&mut self, local: &[IpAddr]) {
        let config = &self.beside.config;
        self.resolved = addresses::resolve(&config.node, config.node_name.as_str(), local).await;
        if !self.runtime.answers {
            return;
        }
        match tokio::time::timeout(RUNTIME_MAX, self.beside.runtime.version()).await {
            Ok(Ok(version)) => self.sight.version = Some(version),
            Ok(Err(_)) | Err(_) => tracing::debug!("the runtime does not tell its version"),
        }
        if config.node.images_max != Some(0)
            && let Some(images) = self.images().await
        {
            self.sight.images = images;
        }
    }

    async fn images(&self) -> Option<Vec<Image>> {
        let listed = tokio::time::timeout(RUNTIME_MAX, self.beside.runtime.images()).await;
        listed.ok()?.ok()
    }

    /// Tells that this agent is here, and whether the machine was started anew since the cloud heard of it.
    fn tell_start(&self) {
        let beside = &self.beside;
        beside
            .events
            .tell_node("Starting", false, "Starting kubelet.".to_owned());
        let known = beside.node.borrow().clone();
        let before = known.map_or_else(String::new, |node| node.status.node_info.boot_id.clone());
        let boot = &beside.facts.boot_id;
        if !before.is_empty() && before != *boot {
            let name = &beside.config.node_name;
            let message = format!("Node {name} has been rebooted, boot id: {boot}");
            beside.events.tell_node("Rebooted", true, message);
        }
    }

    /// Tells changes of conditions as events, once each.
    fn tell_conditions(&self, before: Option<&NodeStatus>, status: &NodeStatus) {
        let old = |type_: &str| before.and_then(|b| b.conditions.iter().find(|c| c.type_ == type_));
        for condition in &status.conditions {
            let is_same = old(&condition.type_).is_some_and(|old| old.status == condition.status);
            let Some(reason) = conditions::event_reason(condition).filter(|_| !is_same) else {
                continue;
            };
            let node = &self.beside.config.node_name;
            let message = format!("Node {node} status is now: {reason}");
            self.beside.events.tell_node(reason, false, message);
        }
    }

    /// The owner decides by it which pods fit.
    async fn order_allocatable(&mut self, amounts: &Amounts) {
        if self.ordered.as_ref() == Some(amounts) {
            return;
        }
        let order = Order::Allocatable(amounts.clone());
        if self.beside.orders.send(order).await.is_ok() {
            self.ordered = Some(amounts.clone());
        }
    }

    /// The statuses of pods tell by it how their mounts are.
    async fn order_recursive_read_only(&mut self) {
        let able = self.sight.handlers.iter();
        let able = able.filter(|(_, features)| features.recursive_read_only_mounts);
        let handlers: BTreeSet<String> = able.map(|(name, _)| name.clone()).collect();
        if self.read_only_handlers == handlers {
            return;
        }
        let order = Order::RecursiveReadOnly(handlers.clone());
        if self.beside.orders.send(order).await.is_ok() {
            self.read_only_handlers = handlers;
        }
    }

    /// Until something is told, or the time of the next look.
    async fn wait(&mut self) {
        let interval = self.beside.config.node.status_check_interval;
        let wait = if self.troubled {
            interval.min(TROUBLED_INTERVAL)
        } else {
            interval
        };
        let Sources {
            pressures,
            devices,
            volumes_in_use,
            shutting_down,
        } = &mut self.sources;
        // A source that has ended tells nothing any more; the interval is left.
        tokio::select! {
            biased;
            () = tokio::time::sleep(wait) => {}
            Ok(()) = self.beside.trouble.changed() => {}
            Ok(()) = pressures.changed() => {}
            Ok(()) = devices.changed() => {}
            Ok(()) = volumes_in_use.changed() => {}
            Ok(()) = shutting_down.changed() => {}
        }
    }
}
