//! What CRI-O reads at its start, and how images come to it.

use crate::{CNI_PLUGINS, Crio, Make, PAUSE_IMAGE, program};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where an archive has the whole name of its image.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// A registry of this machine needs no certificate.
const REGISTRIES: &str = "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n";

/// CRI-O with conmon and runc.
#[derive(Debug)]
pub struct CrioMake;

impl Make for CrioMake {
    const NAME: &'static str = "crio";
    const VARIABLE: &'static str = "KEDGE_CRIO";
    const PROGRAMS: &'static [&'static str] = &["crio", "pinns", "conmon", "runc", "skopeo"];
    const SUPERVISOR: &'static str = "conmon";

    fn write_files(daemon: &Crio) -> Result<()> {
        for folder in ["root", "run", "hooks", "devices"] {
            fs::create_dir_all(daemon.directory.join(folder))?;
        }
        let anything = json!({"default": [{"type": "insecureAcceptAnything"}]});
        fs::write(policy(daemon), serde_json::to_vec(&anything)?)?;
        let home = daemon.directory.join(".config/containers");
        fs::create_dir_all(&home)?;
        fs::write(home.join("registries.conf"), REGISTRIES)?;
        fs::write(daemon.directory.join("crio.conf"), toml(daemon))?;
        Ok(())
    }

    fn arguments(daemon: &Crio, command: &mut Command) {
        command
            .arg("--config")
            .arg(daemon.directory.join("crio.conf"))
            .args(["--config-dir", ""])
            .env("HOME", &daemon.directory);
    }

    /// CRI-O has no tool of its own for that; its store is one that others write to as well.
    fn import(daemon: &Crio, archive: &Path) -> Result<()> {
        let from = format!("oci-archive:{}", archive.display());
        let name = name_in(archive)?;
        let (root, run) = (daemon.directory.join("root"), daemon.directory.join("run"));
        let to = format!(
            "containers-storage:[overlay@{}+{}]{name}",
            root.display(),
            run.display()
        );
        let policy = policy(daemon);
        let policy = policy.to_str().context("a path of a test is text")?;
        daemon
            .run("skopeo", &["--policy", policy, "copy", &from, &to])
            .map(drop)
    }

    /// Those that run are ended with their control groups.
    fn end_containers(daemon: &Crio) -> Vec<String> {
        let known = fs::read_dir(daemon.directory.join("root/overlay-containers"));
        let known = known.into_iter().flatten().flatten();
        known
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

/// The name of the image in an archive.
fn name_in(archive: &Path) -> Result<String> {
    let mut tar = tar::Archive::new(File::open(archive)?);
    for member in tar.entries()? {
        let member = member?;
        if member.path()?.as_ref() == Path::new("index.json") {
            let index: Value = serde_json::from_reader(member)?;
            let name = index["manifests"][0]["annotations"][IMAGE_NAME].as_str();
            return Ok(name.context("the archive names its image")?.to_owned());
        }
    }
    bail!("{} is no archive of an image", archive.display())
}

fn policy(daemon: &Crio) -> PathBuf {
    daemon.directory.join("policy.json")
}

fn toml(daemon: &Crio) -> String {
    let directory = daemon.directory.display();
    let path = |name| program::<CrioMake>(name).unwrap_or_default();
    let (pinns, conmon, runc) = (path("pinns"), path("conmon"), path("runc"));
    let (pinns, conmon, runc) = (pinns.display(), conmon.display(), runc.display());
    format!(
        r#"[crio]
root = "{directory}/root"
runroot = "{directory}/run"
storage_driver = "overlay"
log_dir = "{directory}/logs"
version_file = "{directory}/version"
version_file_persist = "{directory}/version-kept"
clean_shutdown_file = "{directory}/clean"
[crio.api]
listen = "{directory}/c.sock"
stream_address = "127.0.0.1"
stream_port = "0"
[crio.runtime]
cgroup_manager = "cgroupfs"
conmon_cgroup = "pod"
default_runtime = "runc"
pinns_path = "{pinns}"
namespaces_dir = "{directory}/ns"
container_exits_dir = "{directory}/exits"
container_attach_socket_dir = "{directory}/attach"
hooks_dir = ["{directory}/hooks"]
cdi_spec_dirs = ["{directory}/devices"]
disable_hostport_mapping = true
irqbalance_config_restore_file = "disable"
enable_pod_events = true
[crio.runtime.runtimes.runc]
runtime_path = "{runc}"
runtime_type = "oci"
runtime_root = "{directory}/runc"
monitor_path = "{conmon}"
[crio.image]
pause_image = "{PAUSE_IMAGE}"
pause_command = ""
signature_policy = "{directory}/policy.json"
[crio.network]
network_dir = "{directory}/cni"
plugin_dirs = ["{CNI_PLUGINS}"]
[crio.nri]
enable_nri = false
nri_listen = "{directory}/nri.sock"
"#
    )
}
