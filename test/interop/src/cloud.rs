//! A CloudCore, of either make, on one configuration: the operator changes the program, and the account whose rights it
//! has, and nothing else.

use crate::api::Api;
use crate::lab::Lab;
use crate::official::Official;
use crate::process::Process;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Who made a CloudCore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Maker {
    Official,
    Ours,
}

impl Maker {
    const fn config(self) -> &'static str {
        match self {
            Self::Official => "official.yaml",
            Self::Ours => "ours.yaml",
        }
    }
}

/// Where a CloudCore listens.
#[derive(Debug, Clone, Copy)]
pub struct HubPorts {
    pub link: u16,
    pub https: u16,
}

/// One place for a CloudCore.
#[derive(Debug)]
pub struct Cloud {
    dir: PathBuf,
    official: PathBuf,
    ports: HubPorts,
    process: Option<Process>,
}

impl Cloud {
    /// Writes the configuration.
    pub fn new(lab: &Lab, api: &Api, official: &Official) -> Self {
        let dir = lab.folder("cloud");
        let [link, https, monitor, tunnel] = kedge_e2e::ports::free();
        let ports = HubPorts { link, https };
        for (maker, kubeconfig) in [
            (Maker::Official, api.admin_kubeconfig()),
            (Maker::Ours, api.cloudcore_kubeconfig()),
        ] {
            let yaml = cloudcore_yaml(&dir, &kubeconfig, ports, monitor, tunnel);
            fs::write(dir.join(maker.config()), yaml).expect("our own room is writable");
        }
        Self {
            dir,
            official: official.path("cloudcore"),
            ports,
            process: None,
        }
    }

    pub fn ports(&self) -> HubPorts {
        self.ports
    }

    /// Starts one and waits until it listens.
    ///
    /// # Panics
    /// When one runs already, or it does not come.
    #[track_caller]
    pub fn start(&mut self, maker: Maker) {
        assert!(self.process.is_none(), "a CloudCore runs already");
        let (program, log) = match maker {
            Maker::Official => (self.official.clone(), "official.log"),
            Maker::Ours => (kedge_e2e::binary("cloudcore"), "ours.log"),
        };
        let mut command = Command::new(program);
        command.arg("--config").arg(self.dir.join(maker.config()));
        let mut process = Process::start(&mut command, &self.dir.join(log)).telling();
        for port in [self.ports.link, self.ports.https] {
            process.wait_for(&format!("{maker:?} CloudCore to listen"), || {
                let tried = TcpStream::connect(("127.0.0.1", port));
                tried.map(drop).map_err(|error| error.to_string())
            });
        }
        self.process = Some(process);
    }

    /// Lets it end in order.
    pub fn stop(&mut self) {
        self.process.take().expect("a CloudCore runs").stop();
    }

    /// SIGKILL: the link is cut for every node.
    pub fn kill(&mut self) {
        self.process.take().expect("a CloudCore runs").kill();
    }

    /// The running process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("a CloudCore runs")
    }
}

fn cloudcore_yaml(dir: &Path, kubeconfig: &Path, ports: HubPorts, monitor: u16, tunnel: u16) -> String {
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig:
  monitorServer: {{bindAddress: '127.0.0.1:{monitor}'}}
  tunnelPort: {tunnel}
kubeAPIConfig:
  kubeConfig: {kubeconfig}
  qps: 100
  burst: 200
modules:
  cloudHub:
    advertiseAddress: [127.0.0.1]
    nodeLimit: 1000
    websocket: {{enable: true, address: 127.0.0.1, port: {link}}}
    quic: {{enable: false}}
    https: {{enable: true, address: 127.0.0.1, port: {https}}}
    unixsocket: {{enable: true, address: 'unix://{dir}/kubeedge.sock'}}
  cloudStream: {{enable: false}}
  dynamicController: {{enable: false}}
  iptablesManager: {{enable: false}}
  router: {{enable: false}}
  syncController: {{enable: true}}
",
        kubeconfig = kubeconfig.display(),
        link = ports.link,
        https = ports.https,
        dir = dir.display(),
    )
}
