use super::handlers::Maker;
use super::records::{
    self, ContainerRecord, DevicePath, LAUNCH_RECORD, LaunchRecord, OwnUsers, SandboxRecord,
};
use super::sandboxes::user_pin;
use super::supervisors::{ask, done};
use super::users::{self, User};
use super::{Inner, cdi, cgroup, launch, makers, new_id, now_ms, spec};
use crate::helper::Verb;
use crate::helper::container::start_socket;
use crate::helper::foreign;
use crate::image::store::StoredImage;
use crate::{Error, durable};
use kedge_containers::{ContainerConfig, ContainerId, PidNamespace, SandboxId, Selinux};
use kedge_supervision::Order;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Creating a container takes milliseconds; copying a large image without overlayfs on a slow card takes a minute. The
/// supervisor gives up before.
const CREATE_WAIT_MAX: Duration = Duration::from_secs(120);
/// Another runtime writes down that it has started a container, maybe after that has ended; who serves a root file system
/// hears that nobody has it any more. They end at once.
const MAKERS_WAIT_MAX: Duration = Duration::from_secs(10);
/// Starting is a word to a process that waits for it, and a small file.
const START_WAIT_MAX: Duration = Duration::from_secs(20);

impl Inner {
    pub(super) fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, Error> {
        let Some(sandbox) = self.sandbox_record(&sandbox.0)? else {
            return Err(Error::NoSandbox(sandbox.0.clone()));
        };
        let boot_id =
            kedge_host::boot_id().map_err(|error| Error::failed("create container", &config.name, error))?;
        self.require_supervisor(&sandbox, &boot_id)?;
        if !self.is_ready(&sandbox, &boot_id) {
            return Err(Error::failed(
                "create container",
                &config.name,
                "its sandbox is stopped",
            ));
        }
        // Until the container's record is written, only this says that its image is needed.
        let _used = self.images.hold()?;
        let Some(image) = self.images.find(&config.image)? else {
            return Err(Error::ImageNotFound {
                image: config.image.clone(),
            });
        };
        let record = self.resolve(&sandbox, config, &image)?;
        let made = self.make_container(&sandbox, &record, &image);
        match made {
            Ok(()) => Ok(ContainerId(record.id)),
            Err(error) => {
                let cleaned = self.clear_unmade_container(&record.id);
                cleaned
                    .inspect_err(|error| tracing::warn!(%error, "container not cleaned up"))
                    .ok();
                Err(error)
            }
        }
    }

    pub(super) fn start_container(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(record) = self.container_record(&id.0)? else {
            return Err(Error::NoContainer(id.0.clone()));
        };
        let boot_id =
            kedge_host::boot_id().map_err(|error| Error::failed("start container", &id.0, error))?;
        if let Some(sandbox) = self.sandbox_record(&record.sandbox)? {
            self.require_supervisor(&sandbox, &boot_id)?;
        }
        if self
            .state_of(id)?
            .is_none_or(|state| state.phase != records::Phase::Created)
        {
            return Err(Error::failed("start container", &id.0, "it was started before"));
        }
        let directory = self.layout.sandbox(&record.sandbox);
        let order = Order::Start { id: id.0.clone() };
        done(
            "start container",
            &id.0,
            ask(&directory, order, None, START_WAIT_MAX),
        )?;
        self.run_hooks_after_start(&record)
    }

    /// Has the log written to a new file. One that has ended writes none.
    pub(super) fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(record) = self.container_record(&id.0)? else {
            return Err(Error::NoContainer(id.0.clone()));
        };
        let ended = |state: records::StateRecord| matches!(state.phase, records::Phase::Exited { .. });
        if self.state_of(id)?.is_none_or(ended) {
            return Ok(());
        }
        let order = Order::ReopenLog { id: id.0.clone() };
        let directory = self.layout.sandbox(&record.sandbox);
        done(
            "reopen log of container",
            &id.0,
            ask(&directory, order, None, START_WAIT_MAX),
        )
    }

    /// Removes what is left of a container that has ended.
    pub(super) fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(record) = self.container_record(&id.0)? else {
            return Ok(());
        };
        let directory = self.layout.container(&id.0);
        makers::end(&directory, MAKERS_WAIT_MAX)?;
        self.remove_groups(&record.cgroup)?;
        self.run_hooks_after_end(&record)?;
        launch::remove_container_files(&directory, &self.layout.state(&id.0))
    }

    pub(super) fn container_records(&self) -> Result<Vec<ContainerRecord>, Error> {
        records::containers(&self.layout)
    }

    pub(super) fn container_record(&self, id: &str) -> Result<Option<ContainerRecord>, Error> {
        records::container(&self.layout, id)
    }

    /// Removes what interrupted creations left, with the processes they had started.
    pub(super) fn clear_unmade_containers(&self) -> Result<(), Error> {
        for id in durable::names(&self.layout.containers())? {
            // One whose record is not understood can be neither told of nor ended otherwise.
            if !matches!(self.container_record(&id), Ok(Some(_))) {
                self.clear_unmade_container(&id)?;
            }
        }
        Ok(())
    }

    fn clear_unmade_container(&self, id: &str) -> Result<(), Error> {
        let path = self.layout.container(id).join(LAUNCH_RECORD);
        // A record that nobody understands must not keep the rest from being cleared away.
        let launch: Option<LaunchRecord> = durable::read_record(&path).unwrap_or_else(|error| {
            tracing::warn!(container = id, %error, "what an interrupted creation left is not understood");
            None
        });
        if let Some(launch) = &launch
            && let Err(error) = self.discard_supervised(&launch.sandbox, id)
        {
            tracing::warn!(container = id, %error, "its supervisor does not discard it");
        }
        // Before what they make is ended: they would make more of it.
        makers::end(&self.layout.container(id), Duration::ZERO)?;
        if let Some(state) = self.state_record(id) {
            super::processes::kill_now(&state)?;
        }
        if let Some(launch) = launch {
            self.remove_groups(&launch.cgroup)?;
            self.run_hooks_after_end_of(&launch, &BTreeMap::new());
        }
        launch::remove_container_files(&self.layout.container(id), &self.layout.state(id))
    }

    /// Those of a container, and of whoever serves its root file system.
    fn remove_groups(&self, container: &str) -> Result<(), Error> {
        cgroup::remove_tree(&self.cgroups, container)?;
        cgroup::remove_tree(&self.cgroups, &cgroup::serving(container))
    }

    fn resolve(
        &self,
        sandbox: &SandboxRecord,
        config: ContainerConfig,
        image: &StoredImage,
    ) -> Result<ContainerRecord, Error> {
        let refuse = |reason: &str| Err(Error::failed("create container", &config.name, reason));
        if config.name.is_empty() || config.name.contains('/') || config.name.starts_with('.') {
            return refuse("its name cannot be a directory name");
        }
        self.refuse_unsupported(&config)?;
        if spec::arguments(&config, image).is_empty() {
            return refuse("neither the pod nor the image says which command to run");
        }
        let stop_signal = spec::stop_signal(&config, image);
        kedge_host::process::signal_named(&stop_signal)
            .map_err(|error| Error::failed("create container", &config.name, error))?;
        let id = new_id()?;
        Ok(ContainerRecord {
            sandbox: sandbox.id.clone(),
            created_ms: now_ms(),
            image_id: image.id.clone(),
            image_ref: image.image_ref(),
            layers: image.layers.clone(),
            stop_signal,
            log_path: sandbox.config.log_dir.join(&config.log_path),
            cgroup: cgroup::path(&[&self.cgroup_root, &sandbox.config.cgroup_parent, &id])?,
            config,
            id,
        })
    }

    fn make_container(
        &self,
        sandbox: &SandboxRecord,
        record: &ContainerRecord,
        image: &StoredImage,
    ) -> Result<(), Error> {
        let directory = self.layout.container(&record.id);
        let maker = self.handlers.maker(&sandbox.config)?;
        let named = self.named_devices(&record.config)?;
        let ingredients = spec::Ingredients {
            sandbox,
            sandbox_directory: &self.layout.sandbox(&sandbox.id),
            directory: &directory,
            config: &record.config,
            image,
            user: self.user(record, image, &named)?,
            maker: &maker,
            cgroups: &self.cgroups,
            cgroup: &record.cgroup,
            held: kedge_host::process::capabilities()
                .map_err(|error| Error::failed("create container", &record.config.name, error))?,
            target: self.target(&record.config)?,
            named: &named,
            launcher: &self.launcher,
        };
        let ids = &sandbox.config.user_namespace;
        let uid = users::on_node(&ingredients.user, ids.as_ref())
            .map_err(|why| Error::failed("create container", &record.config.name, why))?;
        let bundle = spec::write(&ingredients)?;
        durable::make_directory(&directory)?;
        write_plain(directory.join("config.json"), &bundle.document)?;
        let launch = LaunchRecord {
            id: record.id.clone(),
            sandbox: sandbox.id.clone(),
            rootfs: self.rootfs.clone(),
            layers_directory: self.images.layers_directory(),
            layers: record.layers.clone(),
            cgroup: record.cgroup.clone(),
            uid,
            privileges: spec::privileges(&ingredients)?,
            seccomp: spec::seccomp(&record.config.security).clone(),
            users: own_users(&ingredients, bundle.devices),
            hooks: bundle.hooks,
            supervised: self.supervised(record, matches!(maker, Maker::AnotherRuntime(_))),
            interpreter: match maker {
                Maker::Interpreter => Some(self.interpreter.program(self.layout.root())?),
                Maker::Libcontainer | Maker::AnotherRuntime(_) => None,
            },
            handler: match maker {
                Maker::AnotherRuntime(program) => Some(program),
                Maker::Libcontainer | Maker::Interpreter => None,
            },
        };
        write_plain(directory.join(LAUNCH_RECORD), &launch)?;
        if spec::limits_are_ours(&self.cgroups) {
            cgroup::make_container(&self.cgroups, &record.cgroup, &record.config.resources)?;
        }
        let order = Order::Create {
            container: Box::new(launch.supervised),
            arguments: self.launcher.calling(Verb::Create, &directory),
        };
        let sandbox = self.layout.sandbox(&sandbox.id);
        let reply = ask(&sandbox, order, Some(self.maker()), CREATE_WAIT_MAX);
        done("create container", &record.config.name, reply)?;
        if spec::limits_are_ours(&self.cgroups) {
            cgroup::limit_existing(&self.cgroups, &record.cgroup, &record.config.resources)?;
        }
        durable::write_record_for_boot(&directory.join("container.json"), record)
    }

    /// What the supervisor has to know of a container.
    fn supervised(&self, record: &ContainerRecord, foreign: bool) -> kedge_supervision::Container {
        let directory = self.layout.container(&record.id);
        let below = |tree: &Path| tree.join(record.cgroup.trim_start_matches('/'));
        kedge_supervision::Container {
            id: record.id.clone(),
            state_path: self.layout.state(&record.id),
            log_path: record.log_path.clone(),
            log_bytes_max: self.log_bytes_max,
            groups: self.cgroups.trees().into_iter().map(below).collect(),
            memory_events: cgroup::memory_events(&self.cgroups, &record.cgroup),
            start_socket: if foreign {
                foreign::start_socket(&directory)
            } else {
                start_socket(&directory, &record.id)
            },
            stdin: record.config.stdin,
            stdin_once: record.config.stdin_once,
            tty: record.config.tty,
            directory,
        }
    }

    /// The first process of the container whose processes this one shall see.
    fn target(&self, config: &ContainerConfig) -> Result<Option<u32>, Error> {
        let PidNamespace::Target(id) = &config.security.pid else {
            return Ok(None);
        };
        let process = self.process_of(id)?;
        let refusal = || {
            let reason = format!("the container {} whose processes it shall see does not run", id.0);
            Error::failed("create container", &config.name, reason)
        };
        process.map(Some).ok_or_else(refusal)
    }

    fn refuse_unsupported(&self, config: &ContainerConfig) -> Result<(), Error> {
        let refuse = |reason: &'static str| {
            Err(Error::Unsupported {
                act: "create container",
                object: config.name.clone(),
                reason,
            })
        };
        let wants_label = config
            .security
            .selinux
            .as_ref()
            .is_some_and(|label| *label != Selinux::default());
        if wants_label && Path::new("/sys/fs/selinux/enforce").exists() {
            return refuse("the built-in runtime does not set SELinux labels; use containerd");
        }
        Ok(())
    }

    /// What the devices add that the container has by name.
    fn named_devices(&self, config: &ContainerConfig) -> Result<Vec<cdi::Part>, Error> {
        let names = cdi::wanted(&config.cdi_devices, &config.annotations)
            .map_err(|why| Error::failed("create container", &config.name, why))?;
        self.devices.resolve(&names)
    }

    fn user(
        &self,
        record: &ContainerRecord,
        image: &StoredImage,
        named: &[cdi::Part],
    ) -> Result<User, Error> {
        let security = &record.config.security;
        let layers: Vec<PathBuf> = image
            .layers
            .iter()
            .map(|layer| self.images.layers_directory().join(layer))
            .collect();
        let passwd = users::read_in_layers(&layers, "etc/passwd");
        let group = users::read_in_layers(&layers, "etc/group");
        let wanted = match security.user {
            Some(uid) => uid.to_string(),
            None => image.execution.user.clone().unwrap_or_default(),
        };
        let mut user = users::resolve(&wanted, &passwd, &group).map_err(|unknown| {
            Error::failed(
                "create container",
                &record.config.name,
                format!("the image does not know {unknown}"),
            )
        })?;
        if let Some(group) = security.group {
            user.gid = group;
        }
        user.groups.extend(&security.supplemental_groups);
        // 0 is what nobody has set.
        let of_devices = named.iter().flat_map(|part| &part.edits.additional_gids);
        user.groups.extend(of_devices.filter(|group| **group != 0));
        if security.run_as_non_root && user.uid == 0 {
            let reason =
                "it must not run as root (runAsNonRoot), but neither pod nor image names another user";
            return Err(Error::failed("create container", &record.config.name, reason));
        }
        Ok(user)
    }
}

/// What a container needs whose pod has users of its own.
fn own_users(from: &spec::Ingredients<'_>, devices: Vec<DevicePath>) -> Option<OwnUsers> {
    Some(OwnUsers {
        ids: from.sandbox.config.user_namespace?,
        pin: user_pin(from.sandbox_directory),
        shared_memory: spec::shared_memory(from),
        devices,
    })
}

/// Needed only as long as the container runs: a power cut may take it.
fn write_plain<T: serde::Serialize>(path: PathBuf, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|error| Error::io("write", &path, error.into()))?;
    std::fs::write(&path, bytes).map_err(|source| Error::io("write", &path, source))
}
