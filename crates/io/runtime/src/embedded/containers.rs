use super::records::{self, ContainerRecord, LaunchRecord, SandboxRecord};
use super::users::{self, User};
use super::{Inner, cgroup, launch, new_id, now_ms, spec};
use crate::image::store::StoredImage;
use crate::{Error, durable};
use kedge_containers::{AppArmor, ContainerConfig, ContainerId, PidNamespace, SandboxId, Selinux};
use std::path::{Path, PathBuf};

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
        if self.container_record(&id.0)?.is_none() {
            return Err(Error::NoContainer(id.0.clone()));
        }
        if self
            .state_of(id)?
            .is_none_or(|state| state.phase != records::Phase::Created)
        {
            return Err(Error::failed("start container", &id.0, "it was started before"));
        }
        launch::order_start(&id.0, &self.layout.container(&id.0))
    }

    /// Removes what is left of a container that has ended.
    pub(super) fn remove_container(&self, id: &ContainerId) -> Result<(), Error> {
        let Some(record) = self.container_record(&id.0)? else {
            return Ok(());
        };
        cgroup::remove_tree(&self.cgroups, &record.cgroup)?;
        launch::remove_container_files(&self.layout.container(&id.0), &self.layout.state(&id.0))
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
            if self.container_record(&id)?.is_none() {
                self.clear_unmade_container(&id)?;
            }
        }
        Ok(())
    }

    fn clear_unmade_container(&self, id: &str) -> Result<(), Error> {
        if let Some(state) = self.state_record(id)? {
            super::processes::kill_now(&state)?;
        }
        let launch: Option<LaunchRecord> =
            durable::read_record(&self.layout.container(id).join("launch.json"))?;
        if let Some(launch) = launch {
            cgroup::remove_tree(&self.cgroups, &launch.cgroup)?;
        }
        launch::remove_container_files(&self.layout.container(id), &self.layout.state(id))
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
        if config.tty {
            return refuse("a terminal (tty: true) is not supported by the embedded runtime");
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
        let ingredients = spec::Ingredients {
            sandbox,
            sandbox_directory: &self.layout.sandbox(&sandbox.id),
            config: &record.config,
            image,
            user: self.user(record, image)?,
            cgroups: &self.cgroups,
            cgroup: &record.cgroup,
            held: kedge_host::process::capabilities()
                .map_err(|error| Error::failed("create container", &record.config.name, error))?,
            target: self.target(&record.config)?,
        };
        let bundle = spec::write(&ingredients)?;
        durable::make_directory(&directory)?;
        write_plain(directory.join("config.json"), &bundle)?;
        let launch = LaunchRecord {
            id: record.id.clone(),
            state_path: self.layout.state(&record.id),
            log_path: record.log_path.clone(),
            log_bytes_max: self.log_bytes_max,
            rootfs: self.rootfs,
            layers_directory: self.images.layers_directory(),
            layers: record.layers.clone(),
            cgroup: record.cgroup.clone(),
            stdin: record.config.stdin,
            privileges: spec::privileges(&ingredients),
            seccomp: spec::seccomp(&record.config.security).clone(),
        };
        write_plain(directory.join("launch.json"), &launch)?;
        self.launcher.create(&directory)?;
        durable::write_record(&directory.join("container.json"), record)
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
        if !config.cdi_devices.is_empty() {
            return refuse("the built-in runtime does not know devices by their CDI names; use containerd");
        }
        let wants_profile = matches!(config.security.apparmor, Some(AppArmor::Localhost(_)));
        if wants_profile && !has_apparmor() {
            return refuse("this node has no AppArmor, so no profile can confine a container");
        }
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

    fn user(&self, record: &ContainerRecord, image: &StoredImage) -> Result<User, Error> {
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
        if security.run_as_non_root && user.uid == 0 {
            let reason =
                "it must not run as root (runAsNonRoot), but neither pod nor image names another user";
            return Err(Error::failed("create container", &record.config.name, reason));
        }
        Ok(user)
    }
}

fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.trim() == "Y")
}

/// Needed only as long as the container runs: a power cut may take it.
fn write_plain<T: serde::Serialize>(path: PathBuf, value: &T) -> Result<(), Error> {
    let bytes = serde_json::to_vec(value).map_err(|error| Error::io("write", &path, error.into()))?;
    std::fs::write(&path, bytes).map_err(|source| Error::io("write", &path, source))
}
