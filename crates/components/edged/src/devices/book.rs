//! Which devices there are, and which container has which: the decision part, without sockets and files.

use super::checkpoint::Content;
use kedge_pods::allocatable::DeviceCount;
use kedge_pods::pinning::{Banks, Hint, Topology, device_hints};
use kedge_wire::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A plug-in that is away for longer is gone for good, as with a kubelet. Until then pods that had devices before a
/// restart of this agent wait for it.
pub(super) const PLUGIN_ABSENCE_MAX: Duration = Duration::from_secs(300);
/// So long after the start a pod that nobody knows any more gives its devices back.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);
/// A plug-in that registers tells its devices at once.
const FIRST_LIST_MAX: Duration = Duration::from_secs(10);
/// The place of a device that belongs to no memory bank in particular.
const NO_NUMA: i64 = -1;
/// Devices of one resource; a plug-in with more has gone wrong.
const DEVICES_MAX: usize = 4096;

/// Ids of devices by the memory bank that they belong to.
pub(super) type PerNuma = BTreeMap<i64, Vec<String>>;

/// Who has devices of what.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) uid: String,
    pub(super) container: String,
    pub(super) resource: String,
}

/// What one container has of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Held {
    pub(super) devices: PerNuma,
    /// What the plug-in said about them, as it said it; `None` while it is being asked.
    pub(super) answer: Option<Vec<u8>>,
}

impl Held {
    pub(super) fn ids(&self) -> BTreeSet<String> {
        self.devices.values().flatten().cloned().collect()
    }
}

/// A device as its plug-in tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) healthy: bool,
    pub(super) numa: Vec<i64>,
}

impl Device {
    fn banks(&self) -> Banks {
        self.numa
            .iter()
            .filter_map(|bank| u32::try_from(*bank).ok())
            .collect()
    }
}

/// Where the plug-in of a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plugin {
    /// It was there before this agent started.
    Awaited {
        since: Time,
    },
    /// Connected; a later registration has a higher number. What devices it has it tells a moment later.
    Here {
        serial: u64,
        since: Time,
        told: bool,
    },
    Away {
        since: Time,
    },
    /// For good.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Resource {
    plugin: Plugin,
    devices: BTreeMap<String, Device>,
}

/// What is to be done for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Plan {
    /// No plug-in has to do with this resource.
    NotOurs,
    /// It has them already.
    Held,
    /// Wait for the plug-in, or for pods that are forgotten, until then.
    Wait { until: Time },
    /// `must` are taken in any case; `missing` more of `free`.
    Choose {
        must: BTreeSet<String>,
        free: BTreeSet<String>,
        missing: usize,
    },
}

/// The state of all resources.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Book {
    started: Time,
    resources: BTreeMap<String, Resource>,
    held: BTreeMap<Place, Held>,
    /// Pods that were seen since the start.
    known: BTreeSet<String>,
    /// Pods that are getting devices now.
    allocating: BTreeSet<String>,
    serial: u64,
}

impl Book {
    /// What a former life of this agent left behind.
    pub(super) fn new(content: Content, now: Time) -> Self {
        let device = |id: String| {
            let device = Device {
                id: id.clone(),
                healthy: true,
                numa: Vec::new(),
            };
            (id, device)
        };
        let resource = |ids: Vec<String>| Resource {
            plugin: Plugin::Awaited { since: now },
            devices: ids.into_iter().map(device).collect(),
        };
        let registered = content.registered.into_iter();
        Self {
            started: now,
            resources: registered.map(|(name, ids)| (name, resource(ids))).collect(),
            held: content.held,
            known: BTreeSet::new(),
            allocating: BTreeSet::new(),
            serial: 0,
        }
    }

    /// What the next life must know.
    pub(super) fn content(&self) -> Content {
        let registered = self
            .resources
            .iter()
            .filter(|(_, resource)| resource.plugin != Plugin::Gone);
        let ids = |resource: &Resource| resource.devices.keys().cloned().collect();
        Content {
            // What is only reserved may never be had.
            held: self
                .held
                .iter()
                .filter(|(_, held)| held.answer.is_some())
                .map(|(place, held)| (place.clone(), held.clone()))
                .collect(),
            registered: registered
                .map(|(name, resource)| (name.clone(), ids(resource)))
                .collect(),
        }
    }

    /// What the node has. A resource whose plug-in is gone is there with nothing: so the cloud learns it.
    pub(super) fn counts(&self) -> BTreeMap<String, DeviceCount> {
        let count = |resource: &Resource| {
            let healthy = match resource.plugin {
                // Until it is known better, what was there is there.
                Plugin::Awaited { .. } | Plugin::Here { .. } => resource.healthy().count(),
                Plugin::Away { .. } | Plugin::Gone => 0,
            };
            DeviceCount {
                all: as_u64(resource.devices.len()),
                healthy: as_u64(healthy),
            }
        };
        let counts = self.resources.iter();
        counts
            .map(|(name, resource)| (name.clone(), count(resource)))
            .collect()
    }

    /// A plug-in came; gives back the number of its connection. Its devices are told later.
    pub(super) fn handle_registered(&mut self, resource: &str, now: Time) -> u64 {
        self.serial += 1;
        let plugin = Plugin::Here {
            serial: self.serial,
            since: now,
            told: false,
        };
        let known = self.resources.entry(resource.to_owned()).or_insert(Resource {
            plugin,
            devices: BTreeMap::new(),
        });
        known.plugin = plugin;
        self.serial
    }

    /// The plug-in told all its devices. What an older connection says is not heard.
    pub(super) fn handle_devices(&mut self, resource: &str, serial: u64, devices: Vec<Device>) {
        if let Some(known) = self.connected(resource, serial) {
            let devices = devices.into_iter().take(DEVICES_MAX);
            known.devices = devices.map(|device| (device.id.clone(), device)).collect();
            if let Plugin::Here { told, .. } = &mut known.plugin {
                *told = true;
            }
        }
    }

    /// The connection ended.
    pub(super) fn handle_away(&mut self, resource: &str, serial: u64, now: Time) {
        if let Some(known) = self.connected(resource, serial) {
            known.plugin = Plugin::Away { since: now };
        }
    }

    /// Forgets plug-ins that have been away for too long.
    pub(super) fn handle_timeout(&mut self, now: Time) {
        for resource in self.resources.values_mut() {
            let since = match resource.plugin {
                Plugin::Awaited { since } | Plugin::Away { since } => since,
                Plugin::Here { .. } | Plugin::Gone => continue,
            };
            if now.since(since) >= PLUGIN_ABSENCE_MAX {
                resource.plugin = Plugin::Gone;
                resource.devices.clear();
            }
        }
    }

    /// When the next plug-in is forgotten.
    pub(super) fn poll_timeout(&self) -> Option<Time> {
        let due = self
            .resources
            .values()
            .filter_map(|resource| match resource.plugin {
                Plugin::Awaited { since } | Plugin::Away { since } => Some(since + PLUGIN_ABSENCE_MAX),
                Plugin::Here { .. } | Plugin::Gone => None,
            });
        due.min()
    }

    /// The pods that use the node now; others give their devices back.
    pub(super) fn handle_pods(&mut self, active: &BTreeSet<String>, ended: &BTreeSet<String>, now: Time) {
        let forgotten = self.is_forgotten_time(now);
        let (known, allocating) = (&self.known, &self.allocating);
        self.held.retain(|place, _| {
            let uid = &place.uid;
            active.contains(uid)
                || allocating.contains(uid)
                || !ended.contains(uid) && !known.contains(uid) && !forgotten
        });
        self.known = active.clone();
    }

    fn is_forgotten_time(&self, now: Time) -> bool {
        now.since(self.started) >= FORGOTTEN_AFTER
    }

    /// The pod begins to get devices.
    pub(super) fn begin(&mut self, uid: &str) {
        self.allocating.insert(uid.to_owned());
    }

    /// It has them, or gets none: what was only reserved is free again.
    pub(super) fn finish(&mut self, uid: &str) {
        self.allocating.remove(uid);
        self.held
            .retain(|place, held| place.uid != uid || held.answer.is_some());
    }

    /// What to do so that the container has `count` devices. `reusable` are those of the pod's init containers that have
    /// ended by then. `runs`: it is running with what it has.
    pub(super) fn plan(
        &self,
        place: &Place,
        count: usize,
        reusable: &BTreeSet<String>,
        runs: bool,
        now: Time,
    ) -> Result<Plan, String> {
        let name = &place.resource;
        let held = self.held.get(place).map(Held::ids);
        let Some(resource) = self.resources.get(name) else {
            return if held.is_some() {
                Err(format!("cannot allocate unregistered device {name}"))
            } else {
                Ok(Plan::NotOurs)
            };
        };
        if let Some(held) = &held
            && held.len() != count
        {
            return Err(format!(
                "pod {:?} container {:?} changed request for resource {name:?} from {} to {count}",
                place.uid,
                place.container,
                held.len()
            ));
        }
        if held.is_some() && runs || count == 0 {
            return Ok(Plan::Held);
        }
        match resource.plugin {
            Plugin::Here { told: true, .. } => {}
            Plugin::Here { since, .. } => {
                let until = since + FIRST_LIST_MAX;
                return Ok(Plan::Wait { until });
            }
            Plugin::Awaited { since } => {
                let until = since + PLUGIN_ABSENCE_MAX;
                return Ok(Plan::Wait { until });
            }
            Plugin::Away { .. } => {
                return Err(format!(
                    "no healthy devices present; cannot allocate unhealthy devices {name}"
                ));
            }
            Plugin::Gone => return Err(format!("cannot allocate unregistered device {name}")),
        }
        let healthy: BTreeSet<String> = resource.healthy().cloned().collect();
        if healthy.is_empty() {
            return Err(format!(
                "no healthy devices present; cannot allocate unhealthy devices {name}"
            ));
        }
        if let Some(held) = held {
            return if held.is_subset(&healthy) {
                Ok(Plan::Held)
            } else {
                Err(format!(
                    "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {name}"
                ))
            };
        }
        self.choose(name, &healthy, count, reusable, now)
    }

    fn choose(
        &self,
        name: &str,
        healthy: &BTreeSet<String>,
        count: usize,
        reusable: &BTreeSet<String>,
        now: Time,
    ) -> Result<Plan, String> {
        let must: BTreeSet<String> = reusable.intersection(healthy).take(count).cloned().collect();
        let in_use = self.in_use(name);
        let free: BTreeSet<String> = healthy.difference(&in_use).cloned().collect();
        let missing = count - must.len();
        if free.len() >= missing {
            return Ok(Plan::Choose { must, free, missing });
        }
        let by_unknown = self
            .held
            .keys()
            .any(|place| place.resource == name && !self.known.contains(&place.uid));
        if by_unknown && !self.is_forgotten_time(now) {
            let until = self.started + FORGOTTEN_AFTER;
            return Ok(Plan::Wait { until });
        }
        Err(format!(
            "requested number of devices unavailable for {name}. Requested: {missing}, Available: {}",
            free.len()
        ))
    }

    /// From which banks `count` devices could come, beside those that are `own` already or must be taken again; `None`
    /// where that does not matter.
    pub(super) fn hints(
        &self,
        resource: &str,
        count: usize,
        own: &BTreeSet<String>,
        reusable: &BTreeSet<String>,
        topology: &Topology,
    ) -> Option<Vec<Hint>> {
        let known = &self.resources.get(resource)?.devices;
        if known.values().all(|device| device.numa.is_empty()) {
            return None;
        }
        let healthy: BTreeSet<String> = self.resources.get(resource)?.healthy().cloned().collect();
        let (free, must) = if own.is_empty() {
            let free = healthy.difference(&self.in_use(resource)).cloned().collect();
            (free, reusable.intersection(&healthy).cloned().collect())
        } else {
            (own.clone(), BTreeSet::new())
        };
        let enough = match own.len() {
            0 => free.len() + must.len() >= count,
            held => held == count,
        };
        if !enough {
            return Some(Vec::new());
        }
        let banks = |ids: &BTreeSet<String>| -> Vec<Banks> {
            ids.iter()
                .filter_map(|id| known.get(id))
                .map(Device::banks)
                .collect()
        };
        let all: Vec<Banks> = known.values().map(Device::banks).collect();
        Some(device_hints(topology, count, &all, &banks(&free), &banks(&must)))
    }

    /// The free devices in the order in which they are taken: near ones, those that are at home nowhere, others.
    pub(super) fn by_distance(
        &self,
        resource: &str,
        free: &BTreeSet<String>,
        near: Option<Banks>,
    ) -> [BTreeSet<String>; 3] {
        let mut groups: [BTreeSet<String>; 3] = Default::default();
        let banks = |id: &str| {
            let known = self.resources.get(resource)?;
            known.devices.get(id).map(Device::banks)
        };
        for id in free {
            let at = banks(id).unwrap_or_default();
            let group = match near {
                None => 0,
                Some(near) if !at.common(near).is_empty() => 0,
                Some(_) if at.is_empty() => 1,
                Some(_) => 2,
            };
            groups[group].insert(id.clone());
        }
        groups
    }

    /// Takes the devices for the container, unless somebody else did meanwhile.
    pub(super) fn reserve(
        &mut self,
        place: &Place,
        ids: &BTreeSet<String>,
        reusable: &BTreeSet<String>,
    ) -> bool {
        let in_use = self.in_use(&place.resource);
        let is_taken = |id: &String| in_use.contains(id) && !reusable.contains(id);
        let Some(resource) = self
            .resources
            .get(&place.resource)
            .filter(|_| !ids.iter().any(is_taken))
        else {
            return false;
        };
        let mut devices = PerNuma::new();
        for id in ids {
            let banks = resource.devices.get(id).map_or(&[][..], |device| &device.numa);
            for bank in if banks.is_empty() { &[NO_NUMA][..] } else { banks } {
                devices.entry(*bank).or_default().push(id.clone());
            }
        }
        let held = Held {
            devices,
            answer: None,
        };
        self.held.insert(place.clone(), held);
        true
    }

    /// The plug-in agreed.
    pub(super) fn commit(&mut self, place: &Place, answer: Vec<u8>) {
        if let Some(held) = self.held.get_mut(place) {
            held.answer = Some(answer);
        }
    }

    /// The container does not get them after all.
    pub(super) fn release(&mut self, place: &Place) {
        self.held.remove(place);
    }

    /// What the container has, by resource.
    pub(super) fn held_by(&self, uid: &str, container: &str) -> impl Iterator<Item = (&Place, &Held)> {
        let of = move |place: &Place| place.uid == uid && place.container == container;
        self.held.iter().filter(move |(place, _)| of(place))
    }

    pub(super) fn ids(&self, place: &Place) -> BTreeSet<String> {
        self.held.get(place).map(Held::ids).unwrap_or_default()
    }

    fn in_use(&self, resource: &str) -> BTreeSet<String> {
        let held = self.held.iter().filter(|(place, _)| place.resource == resource);
        held.flat_map(|(_, held)| held.ids()).collect()
    }

    fn connected(&mut self, resource: &str, serial: u64) -> Option<&mut Resource> {
        let known = self.resources.get_mut(resource)?;
        let is_it = matches!(known.plugin, Plugin::Here { serial: current, .. } if current == serial);
        is_it.then_some(known)
    }
}

impl Resource {
    fn healthy(&self) -> impl Iterator<Item = &String> {
        self.devices
            .values()
            .filter(|device| device.healthy)
            .map(|device| &device.id)
    }
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
