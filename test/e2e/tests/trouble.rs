//! Every refusal is one clear sentence with the way out: an exit code that is not 0, or a line in the log of what runs on.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::daemons::Daemon;
use kedge_e2e::{Kedge, Options, binary, free_ports, images, wait_for};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kedge-trouble-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a program that must refuse; gives what it says.
#[track_caller]
fn refusal(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert_ne!(
        output.status.code(),
        Some(0),
        "it must refuse; stdout: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn kedge(data_dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binary("kedge"));
    command.arg("--data-dir").arg(data_dir).args(args);
    command
}

#[test]
fn a_port_in_use_is_named() {
    let folder = Folder::new("port");
    let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let hub_port = free_ports().1.to_string();
    let up = ["up", "--hollow", "--api-port", &port, "--hub-port", &hub_port];
    let told = refusal(&mut kedge(&folder.0, &up));
    assert!(
        told.contains(&port) && told.contains("in use") && told.contains("--api-port"),
        "{told}"
    );
}

#[test]
fn a_second_up_and_a_down_without_up() {
    let kedge_up = Kedge::up(
        "second",
        Options {
            hollow: true,
            ..Options::default()
        },
    );
    let told = refusal(&mut kedge(&kedge_up.data_dir, &["up", "--hollow"]));
    assert!(
        told.contains("already runs") && told.contains("kedge down"),
        "{told}"
    );

    let folder = Folder::new("nobody");
    let told = refusal(&mut kedge(&folder.0, &["status"]));
    assert!(told.contains("kedge up"), "{told}");
}

#[test]
fn images_that_cannot_be_used() {
    let folder = Folder::new("image");
    let broken = folder.0.join("broken.tar");
    std::fs::write(&broken, b"this is not a tar archive").unwrap();
    let told = refusal(&mut kedge(
        &folder.0,
        &["image", "import", &broken.to_string_lossy()],
    ));
    assert!(told.contains("broken.tar"), "{told}");

    let told = refusal(&mut kedge(&folder.0, &["image", "import", "/nowhere/app.tar"]));
    assert!(told.contains("/nowhere/app.tar"), "{told}");

    let foreign = folder.0.join("foreign.tar");
    images::write_foreign(&foreign);
    let told = refusal(&mut kedge(
        &folder.0,
        &["image", "import", &foreign.to_string_lossy()],
    ));
    assert!(told.contains("s390x") && told.contains("this node"), "{told}");
}

#[test]
fn every_mistake_of_a_manifest_is_told_at_once() {
    let kedge = Kedge::up(
        "yaml",
        Options {
            hollow: true,
            ..Options::default()
        },
    );
    let output = kedge.apply(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong}
spec:
  replica: 2
  selector: {matchLabels: {app: wrong}}
  template:
    metadata: {labels: {app: wrong}}
    spec:
      containers:
        - name: web
          image: x
          comand: [sh]
"#,
    );
    assert_ne!(output.code, Some(0));
    for path in ["spec.replica", "spec.template.spec.containers[0].comand"] {
        assert!(
            output.stderr.contains(path),
            "{path} is not told:\n{}",
            output.stderr
        );
    }

    let output = kedge.apply(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: wrong}
spec:
  restartPolicy: Sometimes
  containers:
    - {name: Web_1, image: x, ports: [{containerPort: 99999}]}
"#,
    );
    assert_ne!(output.code, Some(0));
    for path in [
        "spec.restartPolicy",
        "spec.containers[0].name",
        "spec.containers[0].ports[0].containerPort",
    ] {
        assert!(
            output.stderr.contains(path),
            "{path} is not told:\n{}",
            output.stderr
        );
    }
}

#[test]
fn join_tokens_that_are_wrong() {
    let kedge = Kedge::up(
        "token",
        Options {
            hollow: true,
            ..Options::default()
        },
    );
    let token = kedge.kubectl(&[
        "get",
        "secret",
        "-n",
        "kubeedge",
        "tokensecret",
        "-o",
        "jsonpath={.data.tokendata}",
    ]);
    let token = images::base64_decode(&token.ok());
    let folder = Folder::new("join");
    let config = |name: &str, token: &str| {
        let yaml = format!(
            "apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\n\
             database: {{dataSource: {dir}/edgecore.db}}\n\
             modules:\n  edgeHub:\n    token: {token}\n    httpServer: https://127.0.0.1:{https}\n\
             \x20   websocket: {{server: '127.0.0.1:{hub}'}}\n\
             \x20   tlsCaFile: {dir}/ca.crt\n    tlsCertFile: {dir}/{name}.crt\n    tlsPrivateKeyFile: {dir}/{name}.key\n\
             \x20 edged:\n    hostnameOverride: {name}\n    rootDirectory: {dir}/kubelet\n\
             \x20   tailoredKubeletConfig: {{containerRuntimeEndpoint: 'kedge://hollow', podLogsDir: {dir}/logs, \
             readOnlyPort: 0, staticPodPath: {dir}/manifests}}\n",
            dir = folder.0.display(),
            https = kedge.hub_port + 2,
            hub = kedge.hub_port,
        );
        let file = folder.0.join(format!("{name}.yaml"));
        std::fs::write(&file, yaml).unwrap();
        file
    };
    let start = |name: &str, token: &str| {
        Daemon::start(
            "edgecore",
            &config(name, token),
            &folder.0.join(format!("{name}.log")),
        )
    };
    // An edge without a certificate runs its pods, says what is wrong, and tries again.
    let complains = |name: &str, token: &str, words: &[&str]| {
        let edge = start(name, token);
        wait_for(&format!("{words:?} in the log of {name}"), || {
            let log = edge.log();
            let told = |line: &str| words.iter().all(|word| line.contains(word));
            if log.lines().any(told) { Ok(()) } else { Err(log) }
        });
        edge.kill();
    };

    complains("nonsense", "nonsense", &["no certificate", "token"]);
    let mut parts: Vec<&str> = token.split('.').collect();
    let zeros = "0".repeat(64);
    parts[0] = &zeros;
    complains(
        "other-ca",
        &parts.join("."),
        &["no certificate", "token", "authority"],
    );
    let forged = format!("{}x", &token[..token.len() - 1]);
    complains("forged", &forged, &["no certificate", "token"]);

    // And the right one joins: a second edge, a process of its own, beside the one inside kedge.
    let edge = start("second-edge", &token);
    wait_for("the second node", || {
        let nodes = kedge.kubectl(&["get", "nodes"]).ok();
        let ready = nodes
            .lines()
            .any(|line| line.starts_with("second-edge") && line.contains(" Ready "));
        if ready { Ok(()) } else { Err(nodes) }
    });
    edge.kill();
}

/// A file system of its own, small enough to be filled.
struct SmallDisk(Folder);

impl SmallDisk {
    fn new(name: &str, size: &str) -> Self {
        let folder = Folder::new(name);
        let size = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(&folder.0)
            .status();
        assert!(mounted.unwrap().success(), "a small tmpfs can be mounted");
        Self(folder)
    }

    fn path(&self) -> &Path {
        &self.0.0
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Takes the last byte.
    fn fill(&self) {
        std::fs::write(self.ballast(), vec![0_u8; 256 << 20]).unwrap_err();
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[test]
fn a_full_disk_at_the_start_is_told() {
    let disk = SmallDisk::new("disk-start", "1m");
    disk.fill();
    let (api_port, hub_port) = free_ports();
    let ports = [api_port, hub_port].map(|port| port.to_string());
    let up = ["up", "--hollow", "--api-port", &ports[0], "--hub-port", &ports[1]];
    let told = refusal(&mut kedge(&disk.path().join("data"), &up));
    assert!(told.to_lowercase().contains("no space"), "{told}");
}

#[test]
fn a_disk_that_fills_refuses_writes_and_loses_nothing() {
    let disk = SmallDisk::new("disk-later", "64m");
    let data_dir = Some(disk.path().join("data"));
    let mut kedge = Kedge::up(
        "disk",
        Options {
            hollow: true,
            data_dir,
            ..Options::default()
        },
    );
    let create = |kedge: &Kedge, name: &str| {
        kedge.kubectl(&[
            "create",
            "configmap",
            name,
            &format!("--from-literal=text={}", "x".repeat(100_000)),
        ])
    };
    create(&kedge, "before").ok();
    disk.fill();
    let mut acknowledged = vec!["before".to_owned()];
    // SQLite may still have a little room inside its files; at some point there is none.
    let refused = (0..100).find_map(|number| {
        let name = format!("during-{number}");
        let output = create(&kedge, &name);
        if output.code == Some(0) {
            acknowledged.push(name);
            return None;
        }
        Some(output.stderr)
    });
    let refused = refused.unwrap();
    assert!(refused.contains("full") || refused.contains("space"), "{refused}");

    disk.free();
    create(&kedge, "after").ok();
    acknowledged.push("after".to_owned());
    kedge.kill();
    kedge.start();
    kedge.wait_ready();
    let held = kedge.kubectl(&["get", "configmaps", "-o", "name"]).ok();
    for name in acknowledged {
        assert!(
            held.contains(&format!("configmap/{name}\n")),
            "{name} was acknowledged and is lost:\n{held}"
        );
    }
}
