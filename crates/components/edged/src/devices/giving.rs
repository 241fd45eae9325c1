//! Devices for the containers of one pod, one container after the other.

use super::book::{Place, Plan};
use super::{Devices, Shared, plugin};
use kedge_api::{Container, Pod};
use kedge_pods::Refusal;
use kedge_pods::pinning::{Banks, Hints, Topology, in_turn};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A pod that waits for its plug-in looks again at least this often: another pod may have ended.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A pod that gets devices; when it is dropped, what was only reserved is free again.
pub(crate) struct Giving<'a> {
    /// `None`: this node has no plug-ins.
    shared: Option<&'a Shared>,
    pod: &'a Pod,
    /// What init containers had that have ended by now, by resource.
    reusable: BTreeMap<String, BTreeSet<String>>,
    made: Vec<Place>,
}

/// A container's wish.
struct Wish<'a> {
    place: Place,
    count: usize,
    /// Of the pod's init containers that have ended by then.
    reusable: &'a BTreeSet<String>,
    near: Option<Banks>,
}

impl Devices {
    /// Begins to give the pod's containers the devices that they ask for; those that have them keep them.
    pub(crate) fn begin<'a>(&'a self, pod: &'a Pod) -> Giving<'a> {
        let shared = self.shared.as_deref();
        if let Some(shared) = shared {
            shared.change(|state| state.book.begin(pod.uid()));
        }
        Giving {
            shared,
            pod,
            reusable: BTreeMap::new(),
            made: Vec::new(),
        }
    }
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.shared {
            shared.change(|state| state.book.finish(self.pod.uid()));
        }
    }
}

impl Giving<'_> {
    /// Whether the pod asks for anything that comes from plug-ins.
    pub(crate) fn is_asked(&self) -> bool {
        self.shared.is_some() && in_turn(self.pod).any(|(container, _)| !wishes(container).is_empty())
    }

    /// Waits for the plug-ins that were there before a restart, as long as that may help.
    pub(crate) async fn settled(&self) {
        let Some(shared) = self.shared else { return };
        let none = BTreeSet::new();
        for (container, _) in in_turn(self.pod) {
            for (resource, count) in wishes(container) {
                let wish = Wish {
                    place: self.place(container, resource),
                    count,
                    reusable: &none,
                    near: None,
                };
                // What is wrong with it is said when it is its turn.
                drop(shared.settled(&wish).await);
            }
        }
    }

    /// From which banks the devices of a container could come.
    pub(crate) fn hints(&self, container: &Container, topology: &Topology) -> Hints {
        let Some(shared) = self.shared else {
            return Hints::new();
        };
        let none = BTreeSet::new();
        let state = shared.state.borrow();
        let hints = wishes(container).into_iter().filter_map(|(resource, count)| {
            let own = state.book.ids(&self.place(container, resource));
            let reusable = self.reusable.get(resource).unwrap_or(&none);
            let hints = state.book.hints(resource, count, &own, reusable, topology)?;
            Some((resource.to_owned(), hints))
        });
        hints.collect()
    }

    /// The same for all containers of the pod together.
    pub(crate) fn pod_hints(&self, topology: &Topology) -> Hints {
        let Some(shared) = self.shared else {
            return Hints::new();
        };
        let (none, state) = (BTreeSet::new(), shared.state.borrow());
        let hints = pod_wishes(self.pod).into_iter().filter_map(|(resource, count)| {
            let places = in_turn(self.pod).map(|(container, _)| self.place(container, resource));
            let own = places.flat_map(|place| state.book.ids(&place)).collect();
            let hints = state.book.hints(resource, count, &own, &none, topology)?;
            Some((resource.to_owned(), hints))
        });
        hints.collect()
    }

    /// Gives a container its devices, near ones first. Waits for plug-ins that were there before a restart. The refusal
    /// rejects the pod. `ends`: others may have them after it.
    pub(crate) async fn give(
        &mut self,
        container: &Container,
        ends: bool,
        near: Option<Banks>,
    ) -> Result<(), Refusal> {
        let Some(shared) = self.shared else { return Ok(()) };
        for (resource, count) in wishes(container) {
            let place = self.place(container, resource);
            let reusable = self.reusable.entry(resource.to_owned()).or_default();
            let wish = Wish {
                place,
                count,
                reusable,
                near,
            };
            let allocated = shared.allocate_one(&wish).await.map_err(|why| {
                let message = format!("Allocate failed due to {why}, which is unexpected");
                Refusal::new("UnexpectedAdmissionError", message)
            });
            if allocated? {
                self.made.push(wish.place.clone());
            }
            let ids = shared.state.borrow().book.ids(&wish.place);
            if ends {
                reusable.extend(ids);
            } else {
                reusable.retain(|id| !ids.contains(id));
            }
        }
        Ok(())
    }

    /// The pod has what it asked for.
    pub(crate) async fn keep(self) {
        if let Some(shared) = self.shared {
            shared.save().await;
        }
    }

    /// It gets nothing after all.
    pub(crate) async fn give_back(self) {
        if let Some(shared) = self.shared {
            shared.change(|state| self.made.iter().for_each(|place| state.book.release(place)));
            shared.save().await;
        }
    }

    fn place(&self, container: &Container, resource: &str) -> Place {
        Place {
            uid: self.pod.uid().to_owned(),
            container: container.name.clone(),
            resource: resource.to_owned(),
        }
    }
}

impl Shared {
    /// What is to be done for a container, when it is known.
    async fn settled(&self, wish: &Wish<'_>) -> Result<Plan, String> {
        let mut changes = self.state.subscribe();
        loop {
            changes.mark_unchanged();
            match self.plan(wish)? {
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
                plan @ (Plan::NotOurs | Plan::Held | Plan::Choose { .. }) => return Ok(plan),
            }
        }
    }

    /// True when something new was allocated.
    async fn allocate_one(&self, wish: &Wish<'_>) -> Result<bool, String> {
        loop {
            match self.settled(wish).await? {
                Plan::NotOurs | Plan::Held | Plan::Wait { .. } => return Ok(false),
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
        let groups = self.state.borrow().book.by_distance(resource, free, wish.near);
        let mut ids = must;
        let wanted = ids.len() + missing;
        for group in groups {
            let missing = wanted - ids.len();
            if group.len() <= missing {
                ids.extend(group);
                continue;
            }
            let preferred = if client.preferred && missing > 0 {
                client.prefer(&group, &ids, wish.count).await
            } else {
                BTreeSet::new()
            };
            let best = preferred.intersection(&group);
            let others = group.iter().filter(|id| !preferred.contains(*id));
            ids.extend(best.chain(others).take(missing).cloned());
        }
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

/// What a pod has of each at one time: init containers have ended when the next begins.
fn pod_wishes(pod: &Pod) -> BTreeMap<&str, usize> {
    let (mut lasting, mut peak): (BTreeMap<&str, usize>, BTreeMap<&str, usize>) = Default::default();
    for (container, ends) in in_turn(pod) {
        for (resource, count) in wishes(container) {
            let before = lasting.entry(resource).or_default();
            let now = *before + count;
            if !ends {
                *before = now;
            }
            let most = peak.entry(resource).or_default();
            *most = now.max(*most);
        }
    }
    peak
}
