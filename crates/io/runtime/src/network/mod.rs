//! The network of pods on this node.
//!
//! **Duty.** Where the operator has put a configuration of the Container Network Interface, its plug-ins connect the
//! pods ([`cni`]). Otherwise there is a bridge with addresses of its own ([`addresses`]); what leaves the node goes
//! under the node's address, and ports of the node lead to pods ([`rules`]).
//!
//! ```text
//!   plan ----> the sandbox's record ----> up ----> pod runs ----> down ----> free
//!   address      on disk before           rules                   rules      address
//!   and ports    anything is made         or plug-ins             or plug-ins
//! ```
//!
//! **Inputs.** The records of sandboxes on disk, which say what is taken; orders. **Outputs.** Interfaces, rules in one
//! table of our own, files of plug-ins.
//!
//! **Never.** It touches no rule of somebody else, and keeps nothing in memory that the records do not say: killed at
//! any moment, it is put right by [`Network::reconcile`] and by taking sandboxes down.

mod addresses;
pub(crate) mod cni;
mod family;
mod filter;
mod flows;
mod iptables;
pub(crate) mod links;
mod netlink;
mod nft;
mod ports;
mod rules;
#[cfg(test)]
mod tests;

use crate::Error;
use crate::embedded::records::SandboxRecord;
use addresses::Addresses;
pub(crate) use addresses::Assigned;
use cni::Cni;
use family::{Cidr, Family};
use filter::Filter;
use kedge_containers::{PortMapping, SandboxConfig};
use links::Links;
use rules::{Forward, Open, rules, table_of};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An interface's name has at most 15 bytes.
const VETH_ID_BYTES: usize = 11;

/// A held namespace's file system says so.
const NAMESPACE_MAGIC: i64 = 0x6e73_6673;

/// How the pods' network is set up.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Name of the bridge, made when it is missing.
    pub bridge: String,
    /// Pods get an address from each; the bridge has the first. One IPv4 network, one IPv6 network, or one of each: then
    /// pods are usually called by their address of the one that comes first.
    pub pod_cidrs: Vec<(IpAddr, u8)>,
    /// Where plug-ins are looked for, which go before the bridge.
    pub cni: Option<CniDirectories>,
}

/// Where the Container Network Interface has its files.
#[derive(Debug, Clone)]
pub struct CniDirectories {
    /// The first configuration in it counts; without any, pods are on the bridge.
    pub configurations: PathBuf,
    /// The programs; the first directory that has one counts.
    pub programs: Vec<PathBuf>,
}

/// A sandbox's place in the network, as its record keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum SandboxNetwork {
    Bridge(OnBridge),
    Cni(OnCni),
}

/// A place on our own bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OnBridge {
    pub(crate) bridge: String,
    /// The node's end of the pair; the pod's end is `eth0`.
    pub(crate) veth: String,
    #[serde(flatten)]
    pub(crate) first: Assigned,
    /// Of the other kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) second: Option<Assigned>,
    /// Ports of the node lead to it, so it may meet itself.
    #[serde(default)]
    pub(crate) has_ports: bool,
}

impl OnBridge {
    pub(crate) fn assigned(&self) -> impl Iterator<Item = Assigned> {
        [Some(self.first), self.second].into_iter().flatten()
    }

    fn addresses(&self) -> Vec<IpAddr> {
        self.assigned().map(|assigned| assigned.address).collect()
    }
}

/// A place in a network of plug-ins. What they need to take it away lies beside the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OnCni {
    pub(crate) network: String,
    /// Empty until the plug-ins have answered.
    pub(crate) addresses: Vec<IpAddr>,
}

impl SandboxNetwork {
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Bridge(place) => place.addresses(),
            Self::Cni(place) => place.addresses.clone(),
        }
    }

    /// For the helper, which makes interfaces on our bridge; plug-ins make their own.
    pub(crate) fn bridge(&self) -> Option<&OnBridge> {
        match self {
            Self::Bridge(place) => Some(place),
            Self::Cni(_) => None,
        }
    }
}

/// The network of one runtime. Every method may block.
#[derive(Debug)]
pub(crate) struct Network {
    bridge: Option<Bridge>,
    cni: Option<Cni>,
    state: Mutex<State>,
}

/// The bridge as it is configured.
#[derive(Debug)]
struct Bridge {
    name: String,
    pods: Vec<Cidr>,
    /// Why no pod can be connected to it.
    trouble: Option<String>,
}

impl Bridge {
    fn of(config: &NetworkConfig, has_ipv6: bool) -> Self {
        let ipv6 = config.pod_cidrs.iter().find(|(address, _)| address.is_ipv6());
        let trouble = ipv6.filter(|_| !has_ipv6).map(|(address, prefix)| {
            format!(
                "pods shall have addresses of {address}/{prefix}, but IPv6 is off in this kernel; switch it on \
                 (ipv6.disable=0 on the kernel's command line) or take the network out of podCIDR"
            )
        });
        Self {
            name: config.bridge.clone(),
            pods: config.pod_cidrs.clone(),
            trouble,
        }
    }

    fn families(&self) -> Vec<Family> {
        self.pods
            .iter()
            .map(|(address, _)| Family::of(*address))
            .collect()
    }
}

/// What was read from the records, kept up to date.
#[derive(Debug)]
struct State {
    addresses: Addresses,
    /// The ports of all sandboxes that were not taken down.
    forwards: Vec<Forward>,
    filter: Filter,
    /// Ports that somebody outside opens only when they are listened on.
    shown: ports::Shown,
    /// Our table was written since this runtime was opened.
    enforced: bool,
}

impl Network {
    /// Reads from the records of sandboxes what is taken. `boot_id` is that of now: what was made before the node was
    /// started holds its address until it is removed, but nothing else.
    pub(crate) fn open(
        config: Option<&NetworkConfig>,
        records: &[SandboxRecord],
        boot_id: &str,
    ) -> Result<Self, Error> {
        let places = || {
            records.iter().filter_map(|record| {
                let place = record.network.as_ref().and_then(SandboxNetwork::bridge)?;
                Some((record, place))
            })
        };
        let taken = places().flat_map(|(_, place)| place.addresses()).collect();
        let forwards = places()
            .filter(|(record, _)| !record.stopped && record.boot_id == boot_id)
            .flat_map(|(record, place)| forwards(&record.id, &record.config, &place.addresses()))
            .collect();
        let cidrs = config.map_or(&[][..], |config| &config.pod_cidrs);
        Ok(Self {
            bridge: config.map(|config| Bridge::of(config, family::has_ipv6())),
            cni: config.and_then(|config| config.cni.clone()).map(Cni::new),
            state: Mutex::new(State {
                addresses: Addresses::new(cidrs, taken)?,
                forwards,
                filter: Filter::open(),
                shown: ports::Shown::new(),
                enforced: false,
            }),
        })
    }

    /// Chooses a sandbox's place. What is chosen must be in its record before [`Network::up`], and given back by
    /// [`Network::down`] and [`Network::free`].
    pub(crate) fn plan(&self, id: &str, config: &SandboxConfig) -> Result<Option<SandboxNetwork>, Error> {
        if config.host_network {
            return Ok(None);
        }
        if let Some(network) = self.cni.as_ref().map_or(Ok(None), Cni::current)? {
            return Ok(Some(SandboxNetwork::Cni(OnCni {
                network: network.name,
                addresses: Vec::new(),
            })));
        }
        let (name, families) = match &self.bridge {
            Some(bridge) => {
                if let Some(trouble) = &bridge.trouble {
                    return Err(Error::failed("connect a pod to bridge", &bridge.name, trouble));
                }
                (bridge.name.clone(), bridge.families())
            }
            None if !crate::kernel::owns_network() => {
                let pod = format!("{}/{}", config.pod.namespace, config.pod.name);
                let reason = format!(
                    "this node runs without root and without a network of its own, so only pods with hostNetwork: true \
                     run; {}, and end the node (kedge down) and start it again",
                    crate::rootless::NETWORK_ADVICE
                );
                return Err(Error::failed("connect pod", pod, reason));
            }
            None => Default::default(),
        };
        let mut state = self.state();
        ports::check(config, &state.forwards, &families)?;
        let (first, second) = state.addresses.take()?;
        let mut place = OnBridge {
            bridge: name,
            veth: format!("kv{}", &id[..VETH_ID_BYTES.min(id.len())]),
            first,
            second,
            has_ports: false,
        };
        let opened = forwards(id, config, &place.addresses());
        place.has_ports = !opened.is_empty();
        state.forwards.extend(opened);
        Ok(Some(SandboxNetwork::Bridge(place)))
    }

    /// Connects a sandbox whose namespace and, on our bridge, interfaces have been made. `namespace` is where it is
    /// pinned, `directory` that of the sandbox. Gives back its place, with the addresses that plug-ins gave.
    pub(crate) fn up(
        &self,
        record: &SandboxRecord,
        namespace: &Path,
        directory: &Path,
    ) -> Result<Option<SandboxNetwork>, Error> {
        match (&record.network, &self.cni) {
            (None, _) => Ok(None),
            (Some(SandboxNetwork::Bridge(place)), _) => {
                self.open_ports(&record.id, place)?;
                Ok(record.network.clone())
            }
            (Some(SandboxNetwork::Cni(place)), Some(cni)) => {
                let addresses = cni.add(&record.id, &record.config, namespace, directory)?;
                Ok(Some(SandboxNetwork::Cni(OnCni {
                    network: place.network.clone(),
                    addresses,
                })))
            }
            (Some(SandboxNetwork::Cni(place)), None) => Err(Error::failed(
                "connect to network",
                &place.network,
                "plug-ins are no longer configured",
            )),
        }
    }

    /// Disconnects a sandbox before its interfaces and namespace go; done twice, it is no error.
    pub(crate) fn down(
        &self,
        record: &SandboxRecord,
        namespace: &Path,
        directory: &Path,
    ) -> Result<(), Error> {
        match &record.network {
            None => Ok(()),
            Some(SandboxNetwork::Bridge(place)) => self.close_ports(&record.id, place),
            Some(SandboxNetwork::Cni(_)) => cni::delete(
                self.cni.as_ref(),
                &record.id,
                &record.config,
                namespace,
                directory,
            ),
        }
    }

    /// Disconnects a sandbox whose record is not understood, by what lies beside the record.
    pub(crate) fn down_unknown(&self, id: &str, namespace: &Path, directory: &Path) {
        let config = SandboxConfig::default();
        if let Err(error) = cni::delete(self.cni.as_ref(), id, &config, namespace, directory) {
            tracing::warn!(sandbox = id, %error, "what plug-ins gave to a sandbox is not given back");
        }
    }

    /// The sandbox is gone: its address may be given to another.
    pub(crate) fn free(&self, network: Option<&SandboxNetwork>) {
        if let Some(place) = network.and_then(SandboxNetwork::bridge) {
            let mut state = self.state();
            for address in place.addresses() {
                state.addresses.give_back(address);
            }
        }
    }

    /// Brings the kernel's rules in line with the records: those of vanished sandboxes go, missing ones come back.
    pub(crate) fn reconcile(&self) {
        let Some(bridge) = &self.bridge else {
            return;
        };
        let mut state = self.state();
        // The table lives as long as the bridge: before the first pod there is neither.
        let has_bridge = Links::open().and_then(|mut links| links.index(&bridge.name));
        let none = state.addresses.is_empty() && has_bridge.is_ok_and(|index| index.is_none());
        let wanted = if none { Vec::new() } else { bridge.families() };
        // Pods may have had addresses of a kind that is no longer configured.
        let removed = Family::ALL
            .into_iter()
            .filter(|family| !wanted.contains(family))
            .try_for_each(|family| state.filter.remove(family, &table_of(&bridge.name)));
        let done = removed.and_then(|()| match none {
            true => Ok(()),
            false => self.enforce(&mut state),
        });
        if let Err(reason) = done {
            tracing::warn!(
                bridge = bridge.name,
                reason,
                "the rules of the pods' network cannot be put right"
            );
        }
    }

    /// What keeps pods from being connected. Rules that somebody removed are put back meanwhile.
    pub(crate) fn trouble(&self) -> Option<String> {
        let bridge = self.bridge.as_ref()?;
        let mut state = self.state();
        if state.enforced && state.filter.is_disturbed(&table_of(&bridge.name)) {
            match self.enforce(&mut state) {
                Ok(()) => tracing::info!("rules of the pods' network were changed and are put back"),
                Err(reason) => tracing::warn!(reason, "the rules of the pods' network cannot be put back"),
            }
        }
        drop(state);
        let plugins = self.cni.as_ref();
        let of_bridge = || {
            let why = bridge.trouble.as_deref()?;
            let is_used = plugins.is_none_or(|cni| matches!(cni.current(), Ok(None)));
            is_used.then(|| not_ready(why))
        };
        plugins.and_then(Cni::trouble).or_else(of_bridge)
    }

    /// The name of our bridge.
    pub(crate) fn bridge(&self) -> Option<&str> {
        self.bridge.as_ref().map(|bridge| bridge.name.as_str())
    }

    /// Removes all rules.
    pub(crate) fn purge(&self) -> Result<(), Error> {
        let Some(bridge) = self.bridge() else {
            return Ok(());
        };
        let mut state = self.state();
        state.enforced = false;
        for family in Family::ALL {
            let removed = state.filter.remove(family, &table_of(bridge));
            removed.map_err(|reason| Error::failed("remove the rules of bridge", bridge, reason))?;
        }
        Ok(())
    }

    fn open_ports(&self, id: &str, place: &OnBridge) -> Result<(), Error> {
        let mut state = self.state();
        if !place.has_ports && state.enforced {
            return Ok(());
        }
        match self.enforce(&mut state) {
            Ok(()) if place.has_ports => {
                let opened: Vec<_> = of_sandbox(&state.forwards, id).cloned().collect();
                ports::require_tracked(&opened)?;
                if place.addresses().iter().any(IpAddr::is_ipv4) {
                    ports::open_loopback(&place.bridge)?;
                }
                flows::forget(&opened);
                Ok(())
            }
            Ok(()) => Ok(()),
            Err(reason) if place.has_ports => Err(Error::failed(
                "open the host ports of",
                place.first.address.to_string(),
                reason,
            )),
            // Pods reach each other and the node without any rule.
            Err(reason) => {
                tracing::warn!(reason, "pods reach nothing beyond this node");
                Ok(())
            }
        }
    }

    fn close_ports(&self, id: &str, place: &OnBridge) -> Result<(), Error> {
        let mut state = self.state();
        let closed: Vec<_> = state
            .forwards
            .extract_if(.., |forward| forward.sandbox == id)
            .collect();
        if closed.is_empty() || state.filter.is_powerless() {
            return Ok(());
        }
        if let Err(reason) = self.enforce(&mut state) {
            state.forwards.extend(closed);
            return Err(Error::failed(
                "close the host ports of",
                place.first.address.to_string(),
                reason,
            ));
        }
        flows::forget(&closed);
        Ok(())
    }

    fn enforce(&self, state: &mut State) -> Result<(), String> {
        let Some(bridge) = &self.bridge else {
            return Ok(());
        };
        let wanted: Vec<_> = bridge
            .pods
            .iter()
            .map(|pods| rules(&bridge.name, *pods, &state.forwards))
            .collect();
        state.filter.enforce(&wanted)?;
        if !state.enforced
            && let Some(chain) = state.filter.forbids_forwarding()
        {
            let bridge = &bridge.name;
            let what = "packets between pods and the world are dropped unless a rule of this chain lets them pass; \
                        add rules that accept what comes from the bridge and what goes to it";
            tracing::warn!(chain, bridge, "{what}");
        }
        state.enforced = true;
        if kedge_host::users::in_namespace() {
            let State { shown, forwards, .. } = state;
            ports::show(shown, forwards);
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // What is half done after a panic is put right by the next change, which writes everything.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a namespace is held at a path.
#[allow(
    clippy::useless_conversion,
    reason = "the kernel's type is narrower on 32-bit machines"
)]
pub(crate) fn is_namespace(pin: &Path) -> bool {
    rustix::fs::statfs(pin).is_ok_and(|system| i64::from(system.f_type) == NAMESPACE_MAGIC)
}

/// As kubelets and container runtimes put it.
fn not_ready(why: &str) -> String {
    format!("NetworkReady=false reason:NetworkPluginNotReady message:{why}")
}

/// Each port of the node with each address that it leads to.
fn forwards(id: &str, config: &SandboxConfig, addresses: &[IpAddr]) -> Vec<Forward> {
    let pod = format!("{}/{}", config.pod.namespace, config.pod.name);
    let forward = |port: &PortMapping, to| Forward {
        sandbox: id.to_owned(),
        pod: pod.clone(),
        to,
        port: port.clone(),
    };
    let of_port = |port| {
        let open = Open::of(port);
        let reached = addresses
            .iter()
            .filter(move |address| open.includes(Family::of(**address)));
        reached.map(move |address| (port, *address))
    };
    ports::wanted(config)
        .flat_map(of_port)
        .map(|(port, to)| forward(port, to))
        .collect()
}

fn of_sandbox<'a>(forwards: &'a [Forward], id: &str) -> impl Iterator<Item = &'a Forward> {
    forwards.iter().filter(move |forward| forward.sandbox == id)
}
