//! A cluster, a CloudCore and one EdgeCore, each a process of its own.

use crate::daemons::{
    CloudPorts, Daemon, EdgeOptions, cloud_ready, cloudcore_yaml, edgecore_yaml, node_is, shared_token,
};
use crate::{Kedge, Options, ports};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the edge of a [`Site`] is made of.
#[derive(Debug, Clone, Copy)]
pub struct EdgePlan<'a> {
    /// Name of the node, and of everything that is made for it.
    pub node: &'a str,
    /// As `containerRuntimeEndpoint` has it.
    pub runtime: &'a str,
    /// Bridge and subnet, for the built-in runtime.
    pub network: Option<(&'a str, &'a str)>,
    /// Lines for `tailoredKubeletConfig`, without indentation.
    pub kubelet: &'a [&'a str],
}

/// They end with it; containers of a CRI runtime end with that.
#[derive(Debug)]
pub struct Site {
    pub node: String,
    /// Everything of the edge lies below it.
    pub dir: PathBuf,
    pub ports: CloudPorts,
    pub local_port: u16,
    edge: Option<Daemon>,
    cloud: Option<Daemon>,
    /// Its embedded API stands for "your cluster"; its own node takes no part.
    pub cluster: Kedge,
}

impl Site {
    /// Starts all three and waits until the node is ready.
    ///
    /// # Panics
    /// When one of them does not come up.
    pub fn start(plan: EdgePlan<'_>) -> Self {
        let options = Options {
            hollow: true,
            ..Options::default()
        };
        let cluster = Kedge::up(plan.node, options);
        let dir = cluster.data_dir.join(plan.node);
        for folder in [dir.clone(), dir.join("manifests")] {
            fs::create_dir(&folder).expect("a folder below the data directory");
        }
        let ports = CloudPorts::free();
        let cloud_yaml = cloudcore_yaml(&cluster.kubeconfig(), ports, &["127.0.0.1"], "");
        fs::write(dir.join("cloudcore.yaml"), cloud_yaml).expect("write the configuration of CloudCore");
        let mut site = Self {
            node: plan.node.to_owned(),
            local_port: ports::block(1),
            dir,
            ports,
            edge: None,
            cloud: None,
            cluster,
        };
        site.start_cloud();
        let token = shared_token(&site.cluster);
        let edge = EdgeOptions {
            network: plan.network,
            local_port: site.local_port,
            kubelet: plan.kubelet,
            ..EdgeOptions::new(plan.node, &token, ports, plan.runtime)
        };
        fs::write(site.edge_yaml(), edgecore_yaml(&site.dir, ports, &edge))
            .expect("write the configuration of EdgeCore");
        site.start_edge();
        site.wait_ready();
        site
    }

    pub fn edge_yaml(&self) -> PathBuf {
        self.dir.join("edgecore.yaml")
    }

    /// Static pods are files in this folder.
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// # Panics
    /// When EdgeCore does not run.
    pub fn edge(&self) -> &Daemon {
        self.edge.as_ref().expect("EdgeCore runs")
    }

    pub fn start_edge(&mut self) {
        let log = self.dir.join("edgecore.log");
        self.edge = Some(Daemon::start("edgecore", &self.edge_yaml(), &log));
    }

    /// SIGKILL; its containers do not notice.
    pub fn kill_edge(&mut self) {
        if let Some(edge) = self.edge.take() {
            edge.kill();
        }
    }

    pub fn start_cloud(&mut self) {
        let (yaml, log) = (self.dir.join("cloudcore.yaml"), self.dir.join("cloudcore.log"));
        self.cloud = Some(Daemon::start("cloudcore", &yaml, &log));
        cloud_ready(self.ports);
    }

    /// SIGKILL: the edge is alone from now on.
    pub fn kill_cloud(&mut self) {
        if let Some(cloud) = self.cloud.take() {
            cloud.kill();
        }
    }

    /// Waits until `kubectl` shows the node ready.
    pub fn wait_ready(&self) {
        node_is(&self.cluster, &self.node, " Ready ");
    }

    /// What the edge has logged.
    pub fn edge_log(&self) -> String {
        read(&self.dir.join("edgecore.log"))
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of EdgeCore\n{}", tail(&self.edge_log()));
        }
    }
}

/// The last lines, which tell why.
fn tail(text: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// What an `edgecore` with a bridge and a control group of this name leaves to its next start; after a test there is none.
#[derive(Debug)]
pub struct Leavings(pub &'static str);

impl Drop for Leavings {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", self.0]).status();
        let trees = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for tree in trees {
            remove_groups(&tree.path().join(self.0));
        }
        remove_groups(&Path::new("/sys/fs/cgroup").join(self.0));
    }
}

/// A control group goes when those below it are gone; its files go by themselves.
fn remove_groups(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(group);
}
