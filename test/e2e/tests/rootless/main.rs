//! `kedge up` by an ordinary user, with the built-in runtime.
//!
//! Debian packages: `uidmap`, `passt`, `busybox-static`. The tests are root, who hands a control group over to the user
//! and, in mounts of the test's own, ids and a tunnel: the machine stays as it is.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

mod machine;

use kedge_e2e::{Kedge, Options, images, kubectl, proc, wait_for};
use machine::{Machine, Without};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const MEMORY_BYTES_MAX: &str = "67108864";

/// A deployment of one pod that says who it is, as a user of its own.
fn pod(name: &str, more: &str, container: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 1
{more}
      containers:
        - name: c
          image: {image}
          command: [/bin/sh, -c]
          args: ['trap "exit 0" TERM; echo "I am $(while read k v w; do case $k in Uid:) echo $v;; esac; done < /proc/self/status)"; echo "$(cat /secret/word)"; while :; do sleep 0.5 & wait $!; done']
          volumeMounts: [{{name: s, mountPath: /secret, readOnly: true}}]
          resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}
{container}
      volumes: [{{name: s, secret: {{secretName: word}}}}]
---
apiVersion: v1
kind: Secret
metadata: {{name: word}}
stringData: {{word: tr0ub4dor}}
"#,
        image = images::BUSYBOX,
    )
}

fn up(machine: &Machine, name: &str) -> Kedge {
    let options = Options {
        data_dir: Some(machine.home().join("data")),
        user: Some(machine.user()),
        ..Options::default()
    };
    let kedge = Kedge::up(name, options);
    wait_reachable(&kedge);
    images::import_busybox(&kedge);
    kedge
}

/// Ports of a node with a network of its own are opened on the machine a little later.
fn wait_reachable(kedge: &Kedge) {
    wait_for("the API on the machine", || {
        let told = kedge.kubectl(&["get", "nodes"]);
        if told.code == Some(0) {
            Ok(())
        } else {
            Err(told.stderr)
        }
    });
}

/// Which container it is, and how often it was started again.
fn identity(kedge: &Kedge, app: &str) -> String {
    let path = "jsonpath={.items[*].status.containerStatuses[0]['containerID','restartCount']}";
    kedge
        .kubectl(&["get", "pods", "-l", &format!("app={app}"), "-o", path])
        .ok()
}

fn wait_log(kedge: &Kedge, pod: &str, said: &str) {
    wait_for("the log", || {
        let shown = kedge.kubectl(&["logs", pod]);
        if shown.stdout == said {
            Ok(())
        } else {
            Err(shown.stdout + &shown.stderr)
        }
    });
}

/// After this nothing of the node is left, but its data.
fn take_down(machine: &Machine, kedge: &Kedge) {
    kedge.kedge(&["down"]).ok();
    // Twice is once.
    kedge.kedge(&["down"]).ok();
    wait_for("no process of the user", || match machine.processes() {
        left if left.is_empty() => Ok(()),
        left => Err(format!("{left:?}")),
    });
    assert_eq!(machine.groups(), Vec::<String>::new(), "control groups are left");
    assert!(!kedge.data_dir.join("runtime/node").exists());
}

/// A killed agent finds its node and its containers again.
fn kill_and_adopt(kedge: &mut Kedge, app: &str) {
    let before = identity(kedge, app);
    let supervisors = kedge.supervisors();
    kedge.kill();
    assert!(!supervisors.is_empty() && supervisors.iter().all(|pid| proc::is_alive(*pid)));
    kedge.start();
    kedge.wait_ready();
    wait_reachable(kedge);
    // The node has said anew what it sees.
    kedge
        .kubectl(&["rollout", "status", &format!("deployment/{app}"), "--timeout=60s"])
        .ok();
    assert_eq!(identity(kedge, app), before);
    assert_eq!(kedge.supervisors(), supervisors);
    let name = kedge.wait_running(&format!("app={app}"), 1).remove(0);
    let told = kedge.kubectl(&["exec", &name, "--", "cat", "/secret/word"]).ok();
    assert_eq!(told, "tr0ub4dor");
}

#[test]
fn an_ordinary_user_runs_pods_on_the_machines_network() {
    let machine = Machine::new(&[Without::Pasta]);
    let mut kedge = up(&machine, "user");
    let note = kedge.wait_line("the note", |line| line.to_string().contains("hostNetwork"));
    assert!(note.to_string().contains("passt"), "{note}");

    kedge
        .apply(&pod(
            "host",
            "      hostNetwork: true",
            "          securityContext: {runAsUser: 1234}",
        ))
        .ok();
    let name = kedge.wait_running("app=host", 1).remove(0);
    wait_log(&kedge, &name, "I am 1234\ntr0ub4dor\n");
    let told = kedge.kubectl(&["exec", &name, "--", "sh", "-c", "id -u; echo gone > /etc/new"]);
    assert!(
        told.stdout.starts_with("1234") && told.stderr.contains("ermission denied"),
        "{told:?}"
    );
    assert_eq!(
        machine.memory_limits(),
        [MEMORY_BYTES_MAX; 2],
        "of the pod and of its container"
    );

    kedge.apply(&pod("own", "", "")).ok();
    wait_for("the refusal", || {
        let told = kedge
            .kubectl(&["get", "events", "--field-selector=reason=FailedCreatePodSandBox"])
            .stdout;
        if told.contains("hostNetwork: true") && told.contains("the package passt") {
            Ok(())
        } else {
            Err(told)
        }
    });
    kedge.kubectl(&["delete", "deployment", "own"]).ok();

    // Each wants something that belongs to the machine.
    kedge
        .apply(&pod(
            "near",
            "      hostNetwork: true\n      hostPID: true\n      hostIPC: true",
            "",
        ))
        .ok();
    let near = kedge.wait_running("app=near", 1).remove(0);
    kedge.kubectl(&[
        "exec",
        &near,
        "--",
        "cat",
        "/proc/1/comm",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ]);
    kedge
        .apply(&pod(
            "all",
            "      hostNetwork: true\n      shareProcessNamespace: true",
            "          securityContext: {privileged: true}",
        ))
        .ok();
    kedge.wait_running("app=all", 1);

    kill_and_adopt(&mut kedge, "host");
    assert_eq!(kedge.interrupt(), Some(0));
    take_down(&machine, &kedge);
}

#[test]
fn with_pasta_pods_have_a_network_of_their_own() {
    let machine = Machine::new(&[]);
    let mut kedge = up(&machine, "pasta");
    let port = kedge_e2e::ports::block(1);
    let ports = format!("          ports: [{{containerPort: 8080, hostPort: {port}}}]");
    kedge.apply(&pod("web", "", &ports)).ok();
    let name = kedge.wait_running("app=web", 1).remove(0);
    wait_log(&kedge, &name, "I am 0\ntr0ub4dor\n");
    answer(&kedge, &name, port);

    kill_and_adopt(&mut kedge, "web");
    answer(&kedge, &name, port);

    // What carried the packets is gone, and comes back with the next agent.
    kedge.kill();
    machine.end_pasta();
    kedge.start();
    kedge.wait_ready();
    wait_reachable(&kedge);
    kill_and_adopt(&mut kedge, "web");
    answer(&kedge, &name, port);
    assert_eq!(kedge.interrupt(), Some(0));
    take_down(&machine, &kedge);
}

/// The pod answers on a port of the machine.
fn answer(kedge: &Kedge, pod: &str, port: u16) {
    let config = kedge.kubeconfig();
    let pod = pod.to_owned();
    let server = std::thread::spawn(move || {
        kubectl(
            &config,
            &["exec", &pod, "--", "sh", "-c", "nc -l -p 8080 -e echo here"],
            "",
        )
        .ok()
    });
    let heard = wait_for("the pod's answer", || {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))
            .map_err(|error| error.to_string())?;
        let mut heard = String::new();
        stream
            .read_to_string(&mut heard)
            .map_err(|error| error.to_string())?;
        // Before somebody listens in the pod, the connection just ends.
        if heard.is_empty() {
            Err("nothing".to_owned())
        } else {
            Ok(heard)
        }
    });
    assert_eq!(heard, "here\n");
    server.join().unwrap();
}

#[test]
fn what_an_ordinary_user_lacks_is_said() {
    for (without, words) in [
        (Without::Ids, "usermod --add-subuids"),
        (Without::Mappers, "the package uidmap"),
        (Without::Groups, "Delegate=yes"),
        (Without::Tunnel, "/dev/net/tun"),
    ] {
        // A thread of its own has mounts of its own.
        let told = std::thread::spawn(move || refusal(without)).join().unwrap();
        assert!(
            told.contains(words) && told.contains("--hollow"),
            "{without:?}: {told}"
        );
    }
}

fn refusal(without: Without) -> String {
    let machine = Machine::new(&[without]);
    let told = machine.try_up();
    assert_eq!(machine.processes(), Vec::<u32>::new());
    assert_eq!(machine.groups(), Vec::<String>::new());
    told
}
