//! The Kubernetes API of a story: ours, or the real one with etcd.

use crate::credentials::{self, ADMIN_KUBECONFIG, CLOUDCORE_KUBECONFIG, Credentials};
use crate::lab::Lab;
use crate::official::Official;
use crate::process::Process;
use crate::wait_for;
use kedge_e2e::{Output, images, kubectl};
use kedge_pki::{Key, write_private};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What CloudCore may do.
const RIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/cloudcore-rbac.yaml");

/// A running API. Its processes end with it, in this order.
#[derive(Debug)]
pub struct Api {
    dir: PathBuf,
    processes: Vec<Process>,
}

impl Api {
    /// Our embedded API.
    pub fn embedded(lab: &Lab, program: &Path, official: &Official) -> Self {
        let dir = lab.folder("api");
        let [port] = kedge_e2e::ports::free();
        let process = Process::start(
            Command::new(program).arg(&dir).arg(port.to_string()),
            &dir.join("log"),
        );
        let api = Self {
            dir,
            processes: vec![process],
        };
        api.prepare(official);
        api
    }

    /// etcd, kube-apiserver with RBAC, kube-controller-manager and kube-scheduler.
    pub fn kubernetes(lab: &Lab, official: &Official) -> Self {
        let dir = lab.folder("kubernetes");
        let credentials = Credentials::create("kubernetes").expect("an authority can be made");
        let [etcd_port, etcd_peers, port, managers, scheduler] = kedge_e2e::ports::free();
        let url = format!("https://127.0.0.1:{port}");
        let write = |name: &str, text: String| {
            let path = dir.join(name);
            write_private(&path, text.as_bytes()).expect("our own room is writable");
            path
        };
        let user = |file: &str, name: &str| {
            let identity = credentials.client(name, &[]).expect("a client can be signed");
            write(file, credentials::kubeconfig(&url, &identity))
        };
        credentials
            .write_kubeconfigs(&dir, &url)
            .expect("clients can be signed");
        let manager = user("manager.kubeconfig", "system:kube-controller-manager");
        let schedule = user("scheduler.kubeconfig", "system:kube-scheduler");
        let server = credentials
            .server(&["kubernetes.default.svc"])
            .expect("a server can be signed");
        let authority = write("ca.crt", credentials.authority_pem());
        let certificate = write("server.crt", server.chain_pem());
        let key = write("server.key", server.key().pem());
        let accounts = write("accounts.key", Key::generate().expect("a key").pem());

        let etcd = Process::start(
            Command::new("etcd")
                .arg("--data-dir")
                .arg(dir.join("etcd"))
                .arg(format!("--listen-client-urls=http://127.0.0.1:{etcd_port}"))
                .arg(format!("--advertise-client-urls=http://127.0.0.1:{etcd_port}"))
                .arg(format!("--listen-peer-urls=http://127.0.0.1:{etcd_peers}"))
                .arg("--unsafe-no-fsync"),
            &dir.join("etcd.log"),
        );
        let mut command = Command::new(official.path("kube-apiserver"));
        command
            .arg(format!("--etcd-servers=http://127.0.0.1:{etcd_port}"))
            .args(["--bind-address=127.0.0.1", "--authorization-mode=Node,RBAC"])
            .arg(format!("--secure-port={port}"))
            .arg(flag("--tls-cert-file", &certificate))
            .arg(flag("--tls-private-key-file", &key))
            .arg(flag("--client-ca-file", &authority))
            .arg(flag("--service-account-key-file", &accounts))
            .arg(flag("--service-account-signing-key-file", &accounts))
            .arg(flag("--cert-dir", &dir))
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-cluster-ip-range=10.96.0.0/24",
                "--enable-admission-plugins=NodeRestriction",
                "--endpoint-reconciler-type=none",
            ]);
        let server = Process::start(&mut command, &dir.join("kube-apiserver.log"));
        let mut api = Self {
            dir: dir.clone(),
            processes: vec![server, etcd],
        };
        api.prepare(official);
        let mut command = Command::new(official.path("kube-controller-manager"));
        command
            .arg(flag("--kubeconfig", &manager))
            .arg(flag("--service-account-private-key-file", &accounts))
            .arg(flag("--root-ca-file", &authority))
            .arg(flag("--cert-dir", &dir))
            .arg(format!("--secure-port={managers}"))
            .args([
                "--use-service-account-credentials",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
            ]);
        let managers = Process::start(&mut command, &dir.join("kube-controller-manager.log"));
        let mut command = Command::new(official.path("kube-scheduler"));
        command
            .arg(flag("--kubeconfig", &schedule))
            .arg(format!("--secure-port={scheduler}"))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"]);
        let scheduler = Process::start(&mut command, &dir.join("kube-scheduler.log"));
        api.processes.splice(0..0, [scheduler, managers]);
        wait_for("the account of pods", || {
            api.look(&["get", "serviceaccount", "default"])
        });
        api
    }

    /// What an operator applies: the definitions of the custom resources, and the rights of CloudCore.
    fn prepare(&self, official: &Official) {
        wait_for("the API to answer", || self.look(&["get", "--raw", "/readyz"]));
        let definitions = official.definitions();
        let definitions = definitions.to_string_lossy();
        self.look(&["apply", "--recursive", "--filename", &definitions])
            .expect("the definitions are sound");
        self.look(&["apply", "--filename", RIGHTS])
            .expect("the rights are sound");
        self.kubectl(&[
            "wait",
            "--for=condition=Established",
            "--all",
            "customresourcedefinitions",
        ])
        .ok();
    }

    /// For the official CloudCore, whose chart gives it about this much.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.dir.join(ADMIN_KUBECONFIG)
    }

    /// For our CloudCore: the rights of its manifest and no others.
    pub fn cloudcore_kubeconfig(&self) -> PathBuf {
        self.dir.join(CLOUDCORE_KUBECONFIG)
    }

    /// kubectl as somebody who may do everything.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        kubectl(&self.admin_kubeconfig(), args, "")
    }

    /// `kubectl apply -f -`.
    #[track_caller]
    pub fn apply(&self, yaml: &str) {
        kubectl(&self.admin_kubeconfig(), &["apply", "--filename", "-"], yaml).ok();
    }

    /// The standard output of a kubectl that succeeded.
    pub fn look(&self, args: &[&str]) -> Result<String, String> {
        let output = self.kubectl(args);
        if output.code == Some(0) {
            Ok(output.stdout)
        } else {
            Err(output.stderr)
        }
    }

    /// An object or a list, as JSON.
    pub fn get(&self, args: &[&str]) -> Result<Value, String> {
        let mut all = vec!["get", "--output", "json"];
        all.extend(args);
        serde_json::from_str(&self.look(&all)?).map_err(|error| error.to_string())
    }

    /// Waits until what `kubectl get` says fits, and gives it back.
    #[track_caller]
    pub fn wait_for(&self, fact: &str, args: &[&str], fits: impl Fn(&Value) -> bool) -> Value {
        wait_for(fact, || {
            let seen = self.get(args)?;
            if fits(&seen) {
                Ok(seen)
            } else {
                Err(seen.to_string())
            }
        })
    }

    /// Waits until `kubectl get` finds no such object.
    #[track_caller]
    pub fn wait_gone(&self, kind: &str, name: &str) {
        wait_for(&format!("{kind} {name} gone"), || {
            let found = self.look(&["get", kind, name, "--ignore-not-found", "--output=name"])?;
            if found.is_empty() { Ok(()) } else { Err(found) }
        });
    }

    /// The token that whoever is the CloudCore wrote, in the official place.
    #[track_caller]
    pub fn join_token(&self) -> String {
        let args = [
            "get",
            "secret",
            "--namespace=kubeedge",
            "tokensecret",
            "--output=jsonpath={.data.tokendata}",
        ];
        wait_for("a join token", || {
            let found = self.look(&args)?;
            if found.is_empty() {
                Err("it is empty".to_owned())
            } else {
                Ok(images::base64_decode(&found))
            }
        })
    }

    /// Waits until a node is Ready.
    #[track_caller]
    pub fn wait_ready(&self, node: &str) {
        self.wait_for(&format!("node {node} Ready"), &["node", node], |node| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|one| one["type"] == "Ready" && one["status"] == "True")
            })
        });
    }
}

fn flag(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}
