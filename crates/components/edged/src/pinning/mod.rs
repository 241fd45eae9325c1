//! CPUs that containers have to themselves, on this node.
//!
//! [`kedge_pods::pinning`] decides who gets which; here the machine is read, what was given is kept in a kubelet's file,
//! so that a restart gives a container the same again, and containers that run are told when what they share changes.
//!
//! ```text
//!   /sys --> Topology --> Cpus <--take-- pods (an action each, before anything of a pod is made)
//!                          | ^-- what a former life gave <-- cpu_manager_state
//!                          +--> cpu_manager_state, when it changed
//!                          +--> keep.rs --> update of containers that run, when it changed
//! ```
//!
//! A file that cannot be used stops nothing: what of it still can be so stays, the rest is said and given anew.

mod keep;
mod state;

use crate::beside::PodView;
use crate::checkpoint;
use crate::clock::Clock;
use crate::devices::{Devices, Giving};
use kedge_api::{Container, Pod, PodPhase};
use kedge_containers::{ContainerId, ContainerState, ObservedSandbox, Resources};
use kedge_host::Root;
use kedge_pods::Refusal;
use kedge_pods::pinning::{
    Alignment, Assigned, BANKS_MAX, Banks, CpuOptions, CpuReserve, CpuSet, CpuTrouble, Cpus, Hints, Policy,
    Processor, Scope as Together, Shortage, Topology, in_turn,
};
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use kedge_wire::Time;
use state::Content;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Another pod may just be going, and nobody has looked since: so long a pod that finds no room waits for it.
const ROOM_WAIT_MIN: Duration = Duration::from_secs(1);
/// Somebody with CPUs is known to be going, or not known to have come again since the start.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(60);
/// So long after the start a pod that nobody knows any more gives its CPUs back.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// What was given so lately belongs to a pod that the board may not show yet.
const GIVEN_LATELY: Duration = Duration::from_secs(10);
/// Highest number of a bank that can be told apart.
const BANK_MAX: u32 = 63;

/// What the operator decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// `cpuManagerPolicy: static`; `None`: nobody has CPUs alone.
    pub cpus: Option<CpuRules>,
    /// `topologyManagerPolicy` and what belongs to it.
    pub alignment: Alignment,
    /// `cpuManagerReconcilePeriod`: when a container could not be told where it runs, it is told again after this time.
    pub retry: Duration,
}

/// `cpuManagerPolicyOptions` and the reserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuRules {
    pub options: CpuOptions,
    pub reserve: CpuReserve,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            cpus: None,
            alignment: Alignment::default(),
            retry: Duration::from_secs(10),
        }
    }
}

/// Why the node cannot bind containers as it shall.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("read how the CPUs of this machine belong together")]
    Machine(#[source] kedge_host::Error),
    #[error("bind containers to CPUs")]
    Cpus(#[source] CpuTrouble),
    #[error("align what containers have to themselves")]
    Alignment(#[source] CpuTrouble),
}

/// What is known before anything runs.
#[derive(Debug)]
pub(crate) struct Prepared {
    rules: Rules,
    topology: Topology,
    giver: Giver,
    /// What the file says; `None`: nothing that is of use.
    written: Option<Content>,
    file: PathBuf,
}

/// Who has what.
#[derive(Debug)]
enum Giver {
    Cpus(Cpus),
    /// Nobody has CPUs alone any more: containers of before are given all of them back.
    Undo(CpuSet),
    /// Nobody ever had.
    Nothing,
}

/// CPUs of this node. Cheap to clone: all clones are the same.
#[derive(Clone)]
pub(crate) struct Pinning {
    /// `None`: nothing is bound to anything.
    shared: Option<Arc<Shared>>,
}

/// What the tasks share.
struct Shared {
    rules: Rules,
    topology: Topology,
    file: PathBuf,
    clock: Clock,
    started: Time,
    runtime: Arc<dyn Runtime>,
    state: latest::Sender<State>,
    pods: latest::Receiver<Arc<Vec<PodView>>>,
    seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
    /// What the file says; who writes has the lock.
    written: Arc<tokio::sync::Mutex<Option<Content>>>,
    /// Where containers are known to run.
    told: Mutex<BTreeMap<ContainerId, CpuSet>>,
    /// Pods that ask for devices and for something beside them, one after the other: between a hint about a device and
    /// its reservation nobody may take it.
    turn: tokio::sync::Mutex<()>,
}

struct State {
    giver: Giver,
    /// Pods that were seen since the start.
    known: BTreeSet<String>,
    /// Pods that got something, and when.
    given: BTreeMap<String, Time>,
}

/// Reads the machine and what a former life of this agent left; `None` where nothing is bound to anything.
pub(crate) fn prepare(rules: &Rules, machine: &Root, root_dir: &Path) -> Result<Option<Prepared>, Error> {
    let file = root_dir.join(state::FILE);
    let written = checkpoint::read(&file, state::parse).unwrap_or_else(|error| {
        tracing::error!(error = crate::hands::chain(&error), "which container has which CPUs is not known from before: those that run get others; restart pods that cannot bear it");
        None
    });
    let was_static = written
        .as_ref()
        .is_some_and(|content| content.policy == state::STATIC);
    let binds = rules.cpus.is_some() || rules.alignment.policy != Policy::None;
    if !binds && !was_static {
        return Ok(None);
    }
    let topology = match topology(machine) {
        Ok(topology) => topology,
        // Nobody asked for anything; there is only something to be undone.
        Err(error) if !binds => {
            let error = crate::hands::chain(&error);
            tracing::error!(
                error,
                "containers that run keep to their CPUs until they are started again"
            );
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let banks: Vec<u32> = topology.banks().collect();
    let too_many = banks.len() > BANKS_MAX || banks.last().is_some_and(|bank| *bank > BANK_MAX);
    if rules.alignment.policy != Policy::None && too_many {
        return Err(Error::Alignment(CpuTrouble::TooManyBanks(banks.len())));
    }
    let giver = match &rules.cpus {
        Some(cpus) => {
            let new = Cpus::new(topology.clone(), cpus.options, &cpus.reserve);
            let mut cpus = new.map_err(Error::Cpus)?;
            let before = written.as_ref().map(|content| content.assigned.clone());
            for trouble in cpus.restore(before.unwrap_or_default()) {
                tracing::error!(%trouble, "a container that runs gets other CPUs; restart its pod if it cannot bear it");
            }
            Giver::Cpus(cpus)
        }
        None if was_static => Giver::Undo(topology.all()),
        None => Giver::Nothing,
    };
    Ok(Some(Prepared {
        rules: rules.clone(),
        topology,
        giver,
        written,
        file,
    }))
}

fn topology(machine: &Root) -> Result<Topology, Error> {
    let found = kedge_host::processors::processors(machine).map_err(Error::Machine)?;
    let cpus = found.cpus.iter().map(|cpu| Processor {
        id: cpu.id,
        core: cpu.core,
        socket: cpu.socket,
        bank: cpu.node,
        cache: cpu.cache,
    });
    let numbers: Vec<u32> = found.nodes.iter().map(|node| node.id).collect();
    let with_bank = |topology: Topology, node: &kedge_host::processors::NumaNode| {
        let far: Vec<(u32, u32)> = numbers
            .iter()
            .copied()
            .zip(node.distances.iter().copied())
            .collect();
        topology.with_bank(node.id, &far)
    };
    Ok(found.nodes.iter().fold(Topology::new(cpus), with_bank))
}

impl Prepared {
    /// How many CPUs there are.
    pub(crate) fn cpus(&self) -> u32 {
        u32::try_from(self.topology.all().len()).unwrap_or(u32::MAX)
    }
}

impl Pinning {
    /// Nothing is bound to anything.
    #[cfg(test)]
    pub(crate) fn off() -> Self {
        Self { shared: None }
    }

    pub(crate) fn start(
        prepared: Option<Prepared>,
        runtime: Arc<dyn Runtime>,
        pods: latest::Receiver<Arc<Vec<PodView>>>,
        seen: latest::Receiver<Arc<Vec<ObservedSandbox>>>,
        clock: Clock,
        scope: &Scope,
    ) -> Self {
        let Some(prepared) = prepared else {
            return Self { shared: None };
        };
        let state = State {
            giver: prepared.giver,
            known: BTreeSet::new(),
            given: BTreeMap::new(),
        };
        let shared = Arc::new(Shared {
            rules: prepared.rules,
            topology: prepared.topology,
            file: prepared.file,
            clock,
            started: clock.now(),
            runtime,
            state: latest::channel(state).0,
            pods,
            seen,
            written: Arc::new(tokio::sync::Mutex::new(prepared.written)),
            told: Mutex::new(BTreeMap::new()),
            turn: tokio::sync::Mutex::new(()),
        });
        scope.spawn_until_cancelled("edged-pinning", keep::run(Arc::clone(&shared)));
        Self { shared: Some(shared) }
    }

    /// Whether containers may get something of their own here.
    pub(crate) fn binds(&self) -> bool {
        self.shared.is_some()
    }

    /// Gives the pod's containers what they have to themselves, devices and CPUs; those that have it keep it. The
    /// refusal rejects the pod, unless it stands already.
    pub(crate) async fn allocate(&self, pod: &Pod, devices: &Devices, standing: bool) -> Result<(), Refusal> {
        let Some(shared) = &self.shared else {
            let mut giving = devices.begin(pod);
            let given = give_devices(pod, &mut giving).await;
            return end(giving, given).await;
        };
        if standing {
            shared.adopt(pod);
            shared.save().await;
            return Ok(());
        }
        let mut giving = devices.begin(pod);
        let aligns = shared.rules.alignment.policy != Policy::None;
        let _turn = if aligns && giving.is_asked() {
            giving.settled().await;
            Some(shared.turn.lock().await)
        } else {
            None
        };
        let given = shared.give(pod, &mut giving).await;
        shared.save().await;
        end(giving, given).await
    }

    /// Where a new container runs; nothing where that is everywhere.
    pub(crate) fn place(&self, uid: &str, container: &str, resources: &mut Resources) {
        let place = self
            .shared
            .as_ref()
            .and_then(|shared| shared.place(uid, container));
        resources.cpuset_cpus = place.map(|cpus| cpus.to_string());
    }

    /// A container was made with these.
    pub(crate) fn made(&self, id: &ContainerId, resources: &Resources) {
        let cpus = resources.cpuset_cpus.as_ref().and_then(|cpus| cpus.parse().ok());
        if let (Some(shared), Some(cpus)) = (&self.shared, cpus) {
            shared.told().insert(id.clone(), cpus);
        }
    }
}

async fn give_devices(pod: &Pod, giving: &mut Giving<'_>) -> Result<(), Refusal> {
    for (container, ends) in in_turn(pod) {
        giving.give(container, ends, None).await?;
    }
    Ok(())
}

async fn end(giving: Giving<'_>, given: Result<(), Refusal>) -> Result<(), Refusal> {
    match &given {
        Ok(()) => giving.keep().await,
        Err(_) => giving.give_back().await,
    }
    given
}

/// A pod that gets CPUs; when it is dropped before it has everything, it has nothing.
struct Binding<'a> {
    shared: &'a Shared,
    uid: &'a str,
    made: Vec<&'a str>,
}

impl Drop for Binding<'_> {
    fn drop(&mut self) {
        if !self.made.is_empty() {
            self.shared.change(|state| {
                if let Giver::Cpus(cpus) = &mut state.giver {
                    self.made.iter().for_each(|name| cpus.give_back(self.uid, name));
                }
                true
            });
        }
    }
}

impl Shared {
    /// Gives one container after the other what it asks for.
    async fn give(&self, pod: &Pod, giving: &mut Giving<'_>) -> Result<(), Refusal> {
        let mut binding = Binding {
            shared: self,
            uid: pod.uid(),
            made: Vec::new(),
        };
        let mut whole_pod = None;
        for (container, ends) in in_turn(pod) {
            let (near, new) = self.take(pod, container, giving, whole_pod).await?;
            if self.rules.alignment.scope == Together::Pod {
                whole_pod = Some(near);
            }
            if new {
                binding.made.push(&container.name);
            }
            giving.give(container, ends, near).await?;
        }
        let cpus = |name: &&str| self.place(pod.uid(), name).map(|cpus| format!("{name}={cpus}"));
        let given: Vec<String> = binding.made.iter().filter_map(cpus).collect();
        if !given.is_empty() {
            tracing::info!(
                uid = pod.uid(),
                cpus = given.join(" "),
                "containers have CPUs to themselves"
            );
        }
        binding.made.clear();
        Ok(())
    }

    /// Gives a container its CPUs, and says near to which banks its devices shall be, unless that is `decided`. Waits a
    /// little where there is no room: another pod may be going.
    async fn take(
        &self,
        pod: &Pod,
        container: &Container,
        giving: &Giving<'_>,
        decided: Option<Option<Banks>>,
    ) -> Result<(Option<Banks>, bool), Refusal> {
        let begin = self.clock.now();
        let (mut pods, mut seen) = (self.pods.clone(), self.seen.clone());
        let mut changes = self.state.subscribe();
        loop {
            pods.mark_unchanged();
            seen.mark_unchanged();
            changes.mark_unchanged();
            self.release_gone();
            let shortage = match self.try_take(pod, container, giving, decided) {
                Ok(taken) => return Ok(taken),
                Err(shortage) => shortage,
            };
            let patience = self.patience();
            let waited = self.clock.now().since(begin);
            if !shortage.may_pass() || waited >= patience {
                return Err(shortage.refusal());
            }
            tokio::select! {
                // Whichever it is, it is tried anew.
                _ = pods.changed() => {}
                _ = seen.changed() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep((patience - waited).min(ROOM_WAIT_MIN)) => {}
            }
        }
    }

    fn try_take(
        &self,
        pod: &Pod,
        container: &Container,
        giving: &Giving<'_>,
        decided: Option<Option<Banks>>,
    ) -> Result<(Option<Banks>, bool), Shortage> {
        let alignment = self.rules.alignment;
        let devices = match (alignment.policy, alignment.scope) {
            (Policy::None, _) => Hints::new(),
            (_, Together::Container) => giving.hints(container, &self.topology),
            (_, Together::Pod) => giving.pod_hints(&self.topology),
        };
        let now = self.clock.now();
        let mut taken = Err(Shortage::Apart);
        self.change(|state| {
            taken = match decided {
                Some(near) => Ok(near),
                None => state.choose(pod, container, alignment, &self.topology, devices),
            }
            .and_then(|near| Ok((near, state.take(pod, container, near)?)));
            let new = matches!(taken, Ok((_, true)));
            if new {
                state.given.insert(pod.uid().to_owned(), now);
            }
            new
        });
        taken
    }

    /// A pod that was made before this process began gets what it lacks, if there is any.
    fn adopt(&self, pod: &Pod) {
        let now = self.clock.now();
        self.change(|state| {
            let Giver::Cpus(cpus) = &mut state.giver else {
                return false;
            };
            let mut new = false;
            for (container, _) in in_turn(pod) {
                match cpus.take(pod, container, None) {
                    Ok(taken) => new |= taken,
                    Err(shortage) => {
                        let why = shortage.refusal().message;
                        tracing::warn!(
                            uid = pod.uid(),
                            container = container.name,
                            why,
                            "a container that runs gets no CPUs to itself and shares those of all others"
                        );
                    }
                }
            }
            if new {
                state.given.insert(pod.uid().to_owned(), now);
            }
            new
        });
    }

    /// Changes the state; true when others shall know of it.
    fn change(&self, change: impl FnOnce(&mut State) -> bool) -> bool {
        self.state.send_if_modified(change)
    }

    fn told(&self) -> std::sync::MutexGuard<'_, BTreeMap<ContainerId, CpuSet>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, uid: &str, container: &str) -> Option<CpuSet> {
        match &self.state.borrow().giver {
            Giver::Cpus(cpus) => Some(cpus.of(uid, container).clone()),
            Giver::Undo(all) => Some(all.clone()),
            Giver::Nothing => None,
        }
    }

    /// How long a pod waits for room.
    fn patience(&self) -> Duration {
        let (state, pods) = (self.state.borrow(), self.pods.borrow());
        let Giver::Cpus(cpus) = &state.giver else {
            return ROOM_WAIT_MIN;
        };
        let goes_or_is_missed = |uid: &str| match pods.iter().find(|view| view.pod.uid() == uid) {
            Some(view) => view.pod.metadata.deletion_timestamp.is_some() || has_ended(view),
            None => !state.given.contains_key(uid),
        };
        if cpus.pods().into_iter().any(goes_or_is_missed) {
            ROOM_WAIT_MAX
        } else {
            ROOM_WAIT_MIN
        }
    }

    /// Pods that have ended give their CPUs back, and those that nobody has known for long. True when one did.
    fn release_gone(&self) -> bool {
        let (pods, seen) = (self.pods.borrow().clone(), self.seen.borrow().clone());
        let runs: BTreeSet<&str> = seen
            .iter()
            .filter(|sandbox| sandbox.containers.iter().any(|c| is_alive(&c.state)))
            .map(|sandbox| sandbox.pod.uid.as_str())
            .collect();
        let now = self.clock.now();
        let forgotten = now.since(self.started) >= FORGOTTEN_AFTER;
        self.change(|state| {
            state.given.retain(|_, given| now.since(*given) < GIVEN_LATELY);
            let views: BTreeMap<&str, &PodView> = pods.iter().map(|view| (view.pod.uid(), view)).collect();
            let (known, given) = (&state.known, &state.given);
            let goes_on = |uid: &str| {
                let wanted = match views.get(uid) {
                    Some(view) => !has_ended(view),
                    None => given.contains_key(uid) || !known.contains(uid) && !forgotten,
                };
                wanted || runs.contains(uid)
            };
            let gone = match &mut state.giver {
                Giver::Cpus(cpus) => cpus.keep(goes_on),
                Giver::Undo(_) | Giver::Nothing => false,
            };
            state.known = views.keys().map(|uid| (*uid).to_owned()).collect();
            gone
        })
    }

    /// Writes the file if it does not say the truth any more.
    async fn save(&self) {
        let mut written = Arc::clone(&self.written).lock_owned().await;
        let content = match &self.state.borrow().giver {
            Giver::Cpus(cpus) => Content::of(cpus),
            Giver::Undo(_) | Giver::Nothing => return,
        };
        if written.as_ref() == Some(&content) {
            return;
        }
        let file = self.file.clone();
        let write = move || {
            checkpoint::write(&file, &state::print(&content))?;
            *written = Some(content);
            Ok::<(), checkpoint::Error>(())
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(
                    error = crate::hands::chain(&error),
                    "a restart would not know which container has which CPUs"
                );
            }
            Err(error) => {
                tracing::error!(%error, "a restart would not know which container has which CPUs");
            }
        }
    }
}

impl State {
    /// The banks that the container, or its pod, is to get everything from.
    fn choose(
        &self,
        pod: &Pod,
        container: &Container,
        alignment: Alignment,
        topology: &Topology,
        devices: Hints,
    ) -> Result<Option<Banks>, Shortage> {
        if alignment.policy == Policy::None {
            return Ok(None);
        }
        let mut own = Hints::new();
        if let Giver::Cpus(cpus) = &self.giver {
            let hints = match alignment.scope {
                Together::Container => cpus.hints(pod, container),
                Together::Pod => cpus.pod_hints(pod),
            };
            own.extend(hints.map(|hints| ("cpu".to_owned(), hints)));
        }
        alignment.choose(topology, &[devices, own])
    }

    /// True when the container got something new.
    fn take(&mut self, pod: &Pod, container: &Container, near: Option<Banks>) -> Result<bool, Shortage> {
        match &mut self.giver {
            Giver::Cpus(cpus) => cpus.take(pod, container, near),
            Giver::Undo(_) | Giver::Nothing => Ok(false),
        }
    }
}

fn has_ended(view: &PodView) -> bool {
    matches!(view.status.phase, Some(PodPhase::Failed | PodPhase::Succeeded))
}

fn is_alive(state: &ContainerState) -> bool {
    match state {
        ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown => true,
        ContainerState::Exited { .. } => false,
    }
}
