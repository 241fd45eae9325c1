//! Programs of the node that run when a container has started, and when it has gone, because its devices want it. Those
//! before are run while it is made ([`crate::helper`]).
//!
//! As the OCI runtime specification has it, one that fails is told in the log and changes nothing: the container runs, or
//! goes. The second kind may be run again if the first attempt to remove a container was cut short.

use super::records::{ContainerRecord, LAUNCH_RECORD, LaunchRecord};
use super::{Inner, cdi, spec};
use crate::helper::Verb;
use crate::{Error, durable};
use kedge_containers::ContainerId;
use serde_json::json;
use std::collections::BTreeMap;

/// What has happened to the container.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// Its first process, if that has not ended already.
    Started(Option<u32>),
    Gone,
}

impl Inner {
    /// Another runtime has run them itself.
    pub(super) fn run_hooks_after_start(&self, container: &ContainerRecord) -> Result<(), Error> {
        let Some(launch) = self.hooked(container)? else {
            return Ok(());
        };
        if !launch.hooks.poststart.is_empty() && launch.handler.is_none() {
            let pid = self.process_of(&ContainerId(launch.id.clone()))?;
            self.run_hooks(&launch, Moment::Started(pid), &container.config.annotations);
        }
        Ok(())
    }

    /// Before its files are removed.
    pub(super) fn run_hooks_after_end(&self, container: &ContainerRecord) -> Result<(), Error> {
        if let Some(launch) = self.hooked(container)? {
            self.run_hooks_after_end_of(&launch, &container.config.annotations);
        }
        Ok(())
    }

    /// The same for a container that was not made to the end.
    pub(super) fn run_hooks_after_end_of(
        &self,
        launch: &LaunchRecord,
        annotations: &BTreeMap<String, String>,
    ) {
        if !launch.hooks.poststop.is_empty() {
            self.run_hooks(launch, Moment::Gone, annotations);
        }
    }

    /// What it was made by, if it has devices by name; others have no hooks, and their file is not read.
    fn hooked(&self, container: &ContainerRecord) -> Result<Option<LaunchRecord>, Error> {
        let config = &container.config;
        match cdi::wanted(&config.cdi_devices, &config.annotations) {
            Ok(names) if !names.is_empty() => {
                durable::read_record(&self.layout.container(&container.id).join(LAUNCH_RECORD))
            }
            Ok(_) | Err(_) => Ok(None),
        }
    }

    fn run_hooks(&self, launch: &LaunchRecord, moment: Moment, annotations: &BTreeMap<String, String>) {
        let (verb, status, pid) = match moment {
            Moment::Started(pid) => (Verb::StartedHooks, "running", pid),
            Moment::Gone => (Verb::StoppedHooks, "stopped", None),
        };
        let directory = self.layout.container(&launch.id);
        let mut state = json!({
            "ociVersion": spec::OCI_VERSION,
            "id": launch.id,
            "status": status,
            "bundle": directory,
            "annotations": annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = json!(pid);
        }
        if let Err(error) = self.launcher.run_hooks(verb, &directory, &state) {
            tracing::warn!(container = %launch.id, %error, "a hook failed");
        }
    }
}
