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
mod giving;
mod plugin;
#[cfg(test)]
mod tests;

use crate::beside::PodView;
use crate::clock::Clock;
use book::{Book, Device, Held, Place};
use checkpoint::Content;
pub(crate) use giving::Giving;
use kedge_api::PodPhase;
use kedge_containers::{ContainerState, ObservedSandbox};
use kedge_pods::Refusal;
use kedge_pods::allocatable::DeviceCount;
use kedge_pods::translate::Allocated;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use plugin::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Mutex;

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
            Ok::<(), crate::checkpoint::Error>(())
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

    /// A change that nobody waits for.
    fn change_quietly<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_if_modified(|state| {
            result = Some(change(state));
            false
        });
        result.expect("the change was made before it was told")
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
