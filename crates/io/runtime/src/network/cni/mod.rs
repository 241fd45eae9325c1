//! The Container Network Interface: plug-ins connect the pods, as their specification (0.3 to 1.1) says.
//!
//! The configuration is read anew for each pod, so that one that is put there later counts from the next pod on. What
//! a pod was connected by is kept beside its record, before the first plug-in runs: it can be taken away by the same, also
//! after a restart, and after the configuration was changed.

mod config;
mod plugin;
mod wishes;

use super::CniDirectories;
use crate::{Error, durable};
use config::NetworkList;
use kedge_containers::SandboxConfig;
use plugin::{Call, Verb};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The pod's interface, as everybody calls it.
const INTERFACE: &str = "eth0";

/// The first version in which plug-ins can be asked how they are.
const WITH_STATUS: &str = "1.1.0";

/// Plug-ins are programs: to start them at each look would be most of what an idle node does.
const STATUS_EVERY: Duration = Duration::from_secs(60);

/// The plug-ins of this node.
#[derive(Debug)]
pub(super) struct Cni {
    directories: CniDirectories,
    /// What they said of themselves.
    asked: Mutex<Option<Asked>>,
}

/// An answer of plug-ins that is not old.
#[derive(Debug)]
struct Asked {
    at: Instant,
    network: NetworkList,
    trouble: Option<String>,
}

/// `cni.json` of a sandbox: what its plug-ins were told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Attachment {
    container: String,
    arguments: String,
    network: NetworkList,
    /// What plug-ins get that declare to be capable of it.
    wishes: Map<String, Value>,
    /// What the last plug-in answered; `None` while they work.
    result: Option<Value>,
}

impl Cni {
    pub(super) fn new(directories: CniDirectories) -> Self {
        Self {
            directories,
            asked: Mutex::new(None),
        }
    }

    /// The network that a pod would be connected to now; `None` when the operator has not configured any.
    pub(super) fn current(&self) -> Result<Option<NetworkList>, Error> {
        config::first(&self.directories.configurations)
    }

    /// Why pods cannot be connected, in the words of a runtime.
    pub(super) fn trouble(&self) -> Option<String> {
        let trouble = match self.current() {
            Ok(None) => None,
            Ok(Some(network)) => match self.check(&network) {
                Ok(()) => self.ask(network),
                Err(error) => Some(whole(&error)),
            },
            Err(error) => Some(whole(&error)),
        };
        trouble.map(|why| super::not_ready(&why))
    }

    fn check(&self, network: &NetworkList) -> Result<(), Error> {
        for plugin in &network.plugins {
            plugin::find(&self.directories.programs, config::kind(plugin))?;
        }
        Ok(())
    }

    /// Asks plug-ins that can be asked how they are; what they said just now is not asked again.
    fn ask(&self, network: NetworkList) -> Option<String> {
        if network.version.as_str() < WITH_STATUS {
            return None;
        }
        // An answer is written in one step; a panic cannot leave it half written.
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = asked.as_ref()
            && answer.network == network
            && answer.at.elapsed() < STATUS_EVERY
        {
            return answer.trouble.clone();
        }
        let trouble = self.status(network.clone()).err().map(|error| whole(&error));
        *asked = Some(Asked {
            at: Instant::now(),
            network,
            trouble: trouble.clone(),
        });
        trouble
    }

    fn status(&self, mut network: NetworkList) -> Result<(), Error> {
        let programs = &self.directories.programs;
        plugin::negotiate(&mut network, programs)?;
        if network.version.as_str() < WITH_STATUS {
            return Ok(());
        }
        for plugin in &network.plugins {
            let input = network.input(plugin, &Map::new(), None);
            Call::to(Verb::Status, programs).make(plugin, &input)?;
        }
        Ok(())
    }

    /// Connects a sandbox and gives back its addresses.
    pub(super) fn add(
        &self,
        id: &str,
        config: &SandboxConfig,
        namespace: &Path,
        directory: &Path,
    ) -> Result<Vec<IpAddr>, Error> {
        let Some(mut network) = self.current()? else {
            let place = self.directories.configurations.display().to_string();
            return Err(Error::failed(
                "connect a pod by",
                place,
                "the configuration is gone",
            ));
        };
        plugin::negotiate(&mut network, &self.directories.programs)?;
        let mut attachment = Attachment::new(id, config, network)?;
        wishes::warn_of_unheard(&attachment.network, config);
        durable::write_record(&file(directory), &attachment)?;
        for plugin in &attachment.network.plugins {
            let call = attachment.call(Verb::Add, &self.directories.programs, Some(namespace));
            let input = attachment
                .network
                .input(plugin, &attachment.wishes, attachment.result.as_ref());
            attachment.result = Some(plugin::result(plugin, &call.make(plugin, &input)?)?);
        }
        let addresses = plugin::addresses(&attachment.network.name, attachment.result.as_ref())?;
        durable::write_record(&file(directory), &attachment)?;
        Ok(addresses)
    }
}

/// Takes a sandbox out of its network, by the plug-ins that put it there, the last one first. A sandbox that they were
/// never called for, or that was taken out before, is no error.
pub(super) fn delete(
    cni: Option<&Cni>,
    id: &str,
    config: &SandboxConfig,
    namespace: &Path,
    directory: &Path,
) -> Result<(), Error> {
    let read = durable::read_record::<Attachment>(&file(directory));
    let Some(attachment) = read.or_else(|error| guess(cni, id, config, &error))? else {
        return Ok(());
    };
    let programs = cni
        .map(|cni| cni.directories.programs.as_slice())
        .unwrap_or_default();
    // After a restart of the node the pin is an empty file; plug-ins know what to do without a namespace.
    let namespace = super::is_namespace(namespace).then_some(namespace);
    let call = attachment.call(Verb::Del, programs, namespace);
    for plugin in attachment.network.plugins.iter().rev() {
        let input = attachment
            .network
            .input(plugin, &attachment.wishes, attachment.result.as_ref());
        call.make(plugin, &input)?;
    }
    durable::remove_file(&file(directory))
}

/// What a sandbox was probably connected by, when its file is not understood: the configuration of now.
fn guess(
    cni: Option<&Cni>,
    id: &str,
    config: &SandboxConfig,
    error: &Error,
) -> Result<Option<Attachment>, Error> {
    let why = whole(error);
    tracing::warn!(
        sandbox = id,
        why,
        "what connected a pod is not known; the plug-ins of now take it away"
    );
    let Some(cni) = cni else {
        return Ok(None);
    };
    let Some(mut network) = cni.current()? else {
        return Ok(None);
    };
    plugin::negotiate(&mut network, &cni.directories.programs)?;
    Attachment::new(id, config, network).map(Some)
}

impl Attachment {
    fn new(id: &str, config: &SandboxConfig, network: NetworkList) -> Result<Self, Error> {
        Ok(Self {
            container: id.to_owned(),
            arguments: wishes::arguments(id, &config.pod),
            wishes: wishes::of(config)?,
            network,
            result: None,
        })
    }

    fn call<'a>(&'a self, verb: Verb, programs: &'a [PathBuf], namespace: Option<&Path>) -> Call<'a> {
        Call::to(verb, programs)
            .with("CNI_CONTAINERID", &self.container)
            .with("CNI_IFNAME", INTERFACE)
            .with("CNI_ARGS", &self.arguments)
            .with(
                "CNI_NETNS",
                &namespace
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
            )
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("cni.json")
}

/// An error with its cause, on one line.
fn whole(error: &Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
