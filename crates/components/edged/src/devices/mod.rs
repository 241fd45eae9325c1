//! Device plug-ins: programs that bring hardware to containers.
//!
//! A plug-in registers at a socket of this node, tells the ids and the health of its devices on a stream, and is asked
//! for some of them when a pod begins: its answer says what the container gets. Which container has which device is
//! kept in a file, so that a restart of this agent, or of the machine, gives a container the same ones again.
//!
//! ```text
//!   plug-in --register--> kubelet.sock        pods ----allocate--+
//!      |                                                         v
//!      +--list, watch--> plugin.rs --devices--> book.rs <--reserve, commit--> checkpoint
//!      ^                                                         |
//!      +------------------allocate, pre-start--------------------+--counts--> node status, admission
//! ```

mod answer;
mod book;
mod checkpoint;
mod plugin;
#[cfg(test)]
mod tests;

use crate::beside::PodView;
use crate::clock::Clock;
use book::{Book, Device, Held, Place, Plan};
use checkpoint::Content;
use kedge_api::{Container, Pod, PodPhase, RestartPolicy};
use kedge_containers::{ContainerState, ObservedSandbox};
use kedge_pods::Refusal;
use kedge_pods::allocatable::DeviceCount;
use kedge_pods::translate::Allocated;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use plugin::Client;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;

/// A pod that waits for its plug-in looks again at least this often: another pod may have ended.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// The devices of this node. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub(crate) struct Devices {
    counts: latest::Receiver<BTreeMap<String, DeviceCount>>,
    /// `None`: this node has no plug-ins.
    shared: Option<Arc<Shared>>,
}

/// What the tasks share.
struct Shared {
    dir: PathBuf,
    clock: Clock,
    state: latest::Sender<State>,
    counts: latest::Sender<BTreeMap<String, DeviceCount>>,
    pods: latest::Receiver<Arc<Vec<PodView>>>,
    seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
    /// What the file holds; who writes has the lock, and keeps it when whoever waits for it is gone.
    written: Arc<Mutex<Content>>,
}

struct State {
    book: Book,
    clients: BTreeMap<String, Client>,
}

impl Devices {
    /// Serves the plug-ins in `dir`; without one there are none.
    pub(crate) fn start(
        dir: Option<&Path>,
        pods: latest::Receiver<Arc<Vec<PodView>>>,
        seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
        clock: Clock,
        scope: &Scope,
    ) -> Self {
        let Some(dir) = dir else {
            let (_, counts) = latest::channel(BTreeMap::new());
            return Self { counts, shared: None };
        };
        let content = checkpoint::read(&dir.join(checkpoint::FILE)).unwrap_or_else(|error| {
            tracing::warn!(%error, "which container has which device is not known from before");
            None
        });
        let content = content.unwrap_or_default();
        let book = Book::new(content.clone(), clock.now());
        let (counts_tx, counts) = latest::channel(book.counts());
        let clients = BTreeMap::new();
        let shared = Arc::new(Shared {
            dir: dir.to_owned(),
            clock,
            state: latest::channel(State { book, clients }).0,
            counts: counts_tx,
            pods,
            seen,
            written: Arc::new(Mutex::new(content)),
        });
        scope.spawn_until_cancelled("edged-devices", plugin::run(Arc::clone(&shared), scope.clone()));
        scope.spawn_until_cancelled("edged-devices-absence", forget_absent(Arc::clone(&shared)));
        Self {
            counts,
            shared: Some(shared),
        }
    }

    /// What the node has, by resource.
    pub(crate) fn counts(&self) -> latest::Receiver<BTreeMap<String, DeviceCount>> {
        self.counts.clone()
    }

    /// Gives the pod's containers the devices that they ask for; those that have them keep them. Waits for plug-ins that
    /// were there before a restart. The refusal rejects the pod.
    pub(crate) async fn allocate(&self, pod: &Pod) -> Result<(), Refusal> {
        let Some(shared) = &self.shared else {
            return Ok(());
        };
        let mut made = Vec::new();
        let allocated = shared.allocate_all(pod, &mut made).await;
        if allocated.is_err() {
            shared.change(|state| made.iter().for_each(|place| state.book.release(place)));
        }
        shared.save().await;
        allocated.map_err(|why| {
            let message = format!("Allocate failed due to {why}, which is unexpected");
            Refusal::new("UnexpectedAdmissionError", message)
        })
    }

    /// What the container gets with its devices. Its plug-ins are told that it is about to start, where they want that.
    pub(crate) async fn container(&self, uid: &str, container: &str) -> Result<Allocated, Refusal> {
        let Some(shared) = &self.shared else {
            return Ok(Allocated::default());
        };
        let rows: Vec<(Place, Held, Option<Client>)> = {
            let state = shared.state.borrow();
            let held = state.book.held_by(uid, container);
            held.map(|(place, held)| {
                (
                    place.clone(),
                    held.clone(),
                    state.client(&place.resource).cloned(),
                )
            })
            .collect()
        };
        let mut answers = Vec::new();
        for (place, held, client) in rows {
            if let Some(client) = client.filter(|client| client.pre_start) {
                client.prepare(&held.ids()).await.map_err(|why| {
                    tracing::debug!(
                        uid,
                        container,
                        resource = place.resource,
                        why,
                        "device not prepared"
                    );
                    let message = format!("device plugin PreStartContainer rpc failed with err: {why}");
                    Refusal::new("CreateContainerConfigError", message)
                })?;
            }
            answers.extend(held.answer);
        }
        answer::merge(&answers).map_err(|error| {
            let message = format!("what was kept about the devices of the container cannot be read: {error}");
            Refusal::new("CreateContainerConfigError", message)
        })
    }
}

/// Forgets plug-ins that stay away.
async fn forget_absent(shared: Arc<Shared>) {
    let mut state = shared.state.subscribe();
    loop {
        let due = state.borrow_and_update().book.poll_timeout();
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(shared.clock.instant(due)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = state.changed() => if changed.is_err() { return },
            () = due => {
                let now = shared.clock.now();
                shared.change(|state| state.book.handle_timeout(now));
                shared.save().await;
            }
        }
    }
}

/// A container's wish.
struct Wish<'a> {
    place: Place,
    count: usize,
    /// Of the pod's init containers that have ended by then.
    reusable: &'a BTreeSet<String>,
}

/// A pod that gets devices; when it is dropped, what was only reserved is free again.
struct Allocating<'a> {
    shared: &'a Shared,
    uid: &'a str,
}

impl Drop for Allocating<'_> {
    fn drop(&mut self) {
        self.shared.change(|state| state.book.finish(self.uid));
    }
}

impl Shared {
    /// Changes the state, and tells what the node has by then.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        let mut counts = BTreeMap::new();
        self.state.send_modify(|state| {
            result = Some(change(state));
            counts = state.book.counts();
        });
        self.counts.send_if_modified(|known| {
            let differs = *known != counts;
            *known = counts;
            differs
        });
        result.expect("the change was made before it was told")
    }

    fn connected(&self, resource: &str, client: Client) -> u64 {
        let now = self.clock.now();
        self.change(|state| {
            if let Some(old) = state.clients.insert(resource.to_owned(), client) {
                old.close();
            }
            state.book.handle_registered(resource, now)
        })
    }

    async fn told(&self, resource: &str, serial: u64, devices: Vec<Device>) {
        self.change(|state| state.book.handle_devices(resource, serial, devices));
        self.save().await;
    }

    async fn away(&self, resource: &str, serial: u64) {
        let now = self.clock.now();
        self.change(|state| state.book.handle_away(resource, serial, now));
    }

    /// Writes the file if it does not say the truth any more.
    async fn save(&self) {
        let mut written = Arc::clone(&self.written).lock_owned().await;
        let content = self.state.borrow().book.content();
        if *written == content {
            return;
        }
        let path = self.dir.join(checkpoint::FILE);
        let write = move || {
            checkpoint::write(&path, &content)?;
            *written = content;
            Ok::<(), checkpoint::Error>(())
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "a restart would not know which container has which device")
            }
            Err(error) => {
                tracing::error!(%error, "a restart would not know which container has which device")
            }
        }
    }

    /// Allocates for one container after the other. `made` is what is new, also where it fails.
    async fn allocate_all(&self, pod: &Pod, made: &mut Vec<Place>) -> Result<(), String> {
        let uid = pod.uid();
        self.change(|state| state.book.begin(uid));
        let _allocating = Allocating { shared: self, uid };
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let init = pod.spec.init_containers.iter().map(|container| (container, true));
        let mains = pod.spec.containers.iter().map(|container| (container, false));
        for (container, is_init) in init.chain(mains) {
            for (resource, count) in wishes(container) {
                let place = Place {
                    uid: uid.to_owned(),
                    container: container.name.clone(),
                    resource: resource.to_owned(),
                };
                let shareable = reusable.entry(resource.to_owned()).or_default();
                let wish = Wish {
                    place,
                    count,
                    reusable: shareable,
                };
                if self.allocate_one(&wish).await? {
                    made.push(wish.place.clone());
                }
                let ids = self.state.borrow().book.ids(&wish.place);
                if is_init && container.restart_policy != Some(RestartPolicy::Always) {
                    shareable.extend(ids);
                } else {
                    shareable.retain(|id| !ids.contains(id));
                }
            }
        }
        Ok(())
    }

    /// True when something new was allocated.
    async fn allocate_one(&self, wish: &Wish<'_>) -> Result<bool, String> {
        let mut changes = self.state.subscribe();
        loop {
            changes.mark_unchanged();
            match self.plan(wish)? {
                Plan::NotOurs | Plan::Held => return Ok(false),
                Plan::Wait { until } => {
                    let now = self.clock.now();
                    if now >= until {
                        return Err(format!(
                            "cannot allocate unregistered device {}",
                            wish.place.resource
                        ));
                    }
                    let pause = until.since(now).min(LOOK_AGAIN);
                    // Whoever it is that wakes, the plan is made anew.
                    let _ = tokio::time::timeout(pause, changes.changed()).await;
                }
                Plan::Choose { must, free, missing } => {
                    if self.take(wish, must, &free, missing).await? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    fn plan(&self, wish: &Wish<'_>) -> Result<Plan, String> {
        let (active, ended) = self.pods_now();
        let runs = self.runs(&wish.place);
        let now = self.clock.now();
        self.change_quietly(|state| {
            state.book.handle_pods(&active, &ended, now);
            state.book.plan(&wish.place, wish.count, wish.reusable, runs, now)
        })
    }

    /// A change that nobody waits for.
    fn change_quietly<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_if_modified(|state| {
            result = Some(change(state));
            false
        });
        result.expect("the change was made before it was told")
    }

    /// Reserves, asks the plug-in, and keeps what it says. False when another pod was faster.
    async fn take(
        &self,
        wish: &Wish<'_>,
        must: BTreeSet<String>,
        free: &BTreeSet<String>,
        missing: usize,
    ) -> Result<bool, String> {
        let resource = &wish.place.resource;
        let client = self.state.borrow().client(resource).cloned();
        let client = client.ok_or_else(|| format!("cannot allocate unregistered device {resource}"))?;
        let preferred = if client.preferred && free.len() > missing {
            client.prefer(free, &must, wish.count).await
        } else {
            BTreeSet::new()
        };
        let best = preferred.intersection(free);
        let others = free.iter().filter(|id| !preferred.contains(*id));
        let mut ids = must;
        ids.extend(best.chain(others).take(missing).cloned());
        if !self.change(|state| state.book.reserve(&wish.place, &ids, wish.reusable)) {
            return Ok(false);
        }
        match client.allocate(&ids).await {
            Ok(answer) => {
                self.change(|state| state.book.commit(&wish.place, answer.encode_to_vec()));
                tracing::info!(uid = wish.place.uid, container = wish.place.container, resource, devices = ?ids, "devices allocated");
                Ok(true)
            }
            Err(why) => {
                self.change(|state| state.book.release(&wish.place));
                Err(why)
            }
        }
    }

    /// The pods that use the node, and those that have ended, by UID.
    fn pods_now(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let pods = self.pods.borrow();
        let has_ended =
            |view: &&PodView| matches!(view.status.phase, Some(PodPhase::Failed | PodPhase::Succeeded));
        let (ended, active): (Vec<&PodView>, Vec<&PodView>) = pods.iter().partition(has_ended);
        let uids = |views: Vec<&PodView>| views.iter().map(|view| view.pod.uid().to_owned()).collect();
        (uids(active), uids(ended))
    }

    fn runs(&self, place: &Place) -> bool {
        let seen = self.seen.borrow();
        let of_pod = seen.iter().filter(|sandbox| sandbox.pod.uid == place.uid);
        of_pod
            .flat_map(|sandbox| &sandbox.containers)
            .any(|c| c.name == place.container && matches!(c.state, ContainerState::Running { .. }))
    }
}

/// The extended resources that a container asks for. Their request is always their limit.
fn wishes(container: &Container) -> Vec<(&str, usize)> {
    let limits = container.resources.limits.iter();
    limits
        .filter(|(name, _)| plugin::is_extended_resource(name))
        .filter_map(|(name, amount)| Some((name.as_str(), usize::try_from(amount.units()).ok()?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}
