//! What a person does on the first day, with the real kubectl and real containers.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_e2e::{Kedge, Options, images, proc, wait_for};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// A deployment that writes a line and then one every half second, with a setting from a config map and a file from
/// a secret.
fn web(replicas: u32, greeting: &str) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: web}}
data: {{GREETING: {greeting}}}
---
apiVersion: v1
kind: Secret
metadata: {{name: web}}
stringData: {{password: tr0ub4dor}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata:
      labels: {{app: web}}
      annotations: {{greeting: {greeting}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: {image}
          command: [/bin/sh, -c]
          args:
            - 'trap "exit 0" TERM; echo "$GREETING from $POD of $NODE, secret $(cat /secret/password)"; while :; do sleep 0.5 & wait $!; done'
          env:
            - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
            - {{name: NODE, valueFrom: {{fieldRef: {{fieldPath: spec.nodeName}}}}}}
          envFrom: [{{configMapRef: {{name: web}}}}]
          volumeMounts: [{{name: secret, mountPath: /secret, readOnly: true}}]
          resources: {{requests: {{cpu: 10m, memory: 4Mi}}, limits: {{memory: 64Mi}}}}
      volumes: [{{name: secret, secret: {{secretName: web}}}}]
"#,
        image = images::BUSYBOX,
    )
}

fn up(name: &str) -> Kedge {
    let kedge = Kedge::up(name, Options::default());
    images::import_busybox(&kedge);
    kedge
}

#[test]
fn a_first_day_with_kubectl() {
    let kedge = up("kubectl");

    let nodes = kedge.kubectl(&["get", "nodes", "-o", "wide"]).ok();
    for word in [
        "NAME",
        "INTERNAL-IP",
        "CONTAINER-RUNTIME",
        &kedge.node_name,
        " Ready ",
        "kedge://",
    ] {
        assert!(nodes.contains(word), "{word} is missing in:\n{nodes}");
    }

    let mut watch = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kedge.kubeconfig())
        .args(["get", "pods", "-o", "wide", "-w"])
        .env("HOME", &kedge.data_dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();

    let applied = kedge.apply(&web(2, "hello")).ok();
    assert!(applied.contains("deployment.apps/web created"), "{applied}");
    let rollout = kedge
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    assert!(rollout.contains("successfully rolled out"), "{rollout}");

    let pods = kedge.kubectl(&["get", "pods", "-o", "wide"]).ok();
    assert_eq!(
        pods.lines()
            .filter(|line| line.contains("1/1") && line.contains("Running"))
            .count(),
        2,
        "{pods}"
    );
    let name = kedge.wait_running("app=web", 2).remove(0);

    let described = [
        "Controlled By:  ReplicaSet/web-",
        "State:          Running",
        "Ready:          True",
        "web  ConfigMap",
        "SecretName:  web",
        "Scheduled",
        "Started",
        "Container ID:",
    ];
    // Events come a little after what they tell of, and words after the container that says them.
    wait_for("all that is to be described", || {
        let shown = kedge.kubectl(&["describe", "pod", &name]).ok();
        match described.iter().find(|word| !shown.contains(**word)) {
            None => Ok(()),
            Some(word) => Err(format!("{word:?} is missing in:\n{shown}")),
        }
    });
    let said = format!("hello from {name} of {}, secret tr0ub4dor\n", kedge.node_name);
    wait_for("the log", || {
        let shown = kedge.kubectl(&["logs", &name]);
        if shown.stdout == said {
            Ok(())
        } else {
            Err(shown.stdout + &shown.stderr)
        }
    });

    kedge.kubectl(&["scale", "deployment/web", "--replicas=4"]).ok();
    kedge
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    kedge.wait_running("app=web", 4);

    // A new template rolls over: new pods with the new greeting, the old ones gone.
    let applied = kedge.apply(&web(4, "goodbye")).ok();
    assert!(applied.contains("deployment.apps/web configured"), "{applied}");
    kedge
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"])
        .ok();
    let name = wait_for("only new pods", || {
        let names = kedge.wait_running("app=web", 4);
        let logs: Vec<String> = names
            .iter()
            .map(|name| kedge.kubectl(&["logs", name]).stdout)
            .collect();
        if logs.iter().all(|log| log.starts_with("goodbye from")) {
            Ok(names[0].clone())
        } else {
            Err(format!("{logs:?}"))
        }
    });
    let history = kedge.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert!(history.contains('2'), "{history}");

    // Deleting one pod brings another; deleting the deployment ends all.
    kedge.kubectl(&["delete", "pod", &name]).ok();
    let names = kedge.wait_running("app=web", 4);
    assert!(!names.contains(&name));
    kedge.kubectl(&["delete", "deployment", "web"]).ok();
    wait_for("no pods", || {
        let pods = kedge.kubectl(&["get", "pods", "-o", "name"]).ok();
        if pods.is_empty() { Ok(()) } else { Err(pods) }
    });
    wait_for("no supervisors", || {
        let left = kedge.supervisors();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });

    watch.kill().unwrap();
    let seen = String::from_utf8(watch.wait_with_output().unwrap().stdout).unwrap();
    for word in ["Pending", "ContainerCreating", "Running", "Terminating"] {
        assert!(seen.contains(word), "{word} was never seen by the watch:\n{seen}");
    }
}

#[test]
fn a_killed_kedge_adopts_its_containers() {
    let mut kedge = up("kill9");
    kedge.apply(&web(10, "hello")).ok();
    kedge.wait_running("app=web", 10);
    let restarts = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[0].containerID} \
                    {.status.containerStatuses[0].restartCount}{\"\\n\"}{end}";
    let before = kedge
        .kubectl(&["get", "pods", "-l", "app=web", "-o", restarts])
        .ok();
    let supervisors: BTreeMap<u32, Option<u64>> = kedge
        .supervisors()
        .into_iter()
        .map(|pid| (pid, proc::start_time(pid)))
        .collect();
    assert_eq!(supervisors.len(), 10, "one supervisor a container");

    kedge.kill();
    for (pid, started) in &supervisors {
        assert!(
            proc::is_alive(*pid) && proc::start_time(*pid) == *started,
            "container {pid} died with kedge"
        );
    }

    kedge.start();
    kedge.wait_ready();
    kedge.wait_running("app=web", 10);
    // The node has said anew what it sees: only then is "nothing was restarted" a fact and not a memory.
    kedge
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])
        .ok();
    let after = kedge
        .kubectl(&["get", "pods", "-l", "app=web", "-o", restarts])
        .ok();
    assert_eq!(before, after, "the same containers, restarted not once");
    let now: BTreeMap<u32, Option<u64>> = kedge
        .supervisors()
        .into_iter()
        .map(|pid| (pid, proc::start_time(pid)))
        .collect();
    assert_eq!(supervisors, now);

    // And they are really ours: a delete reaches them.
    kedge.kubectl(&["delete", "deployment", "web"]).ok();
    wait_for("no supervisors", || {
        let left = kedge.supervisors();
        if left.is_empty() {
            Ok(())
        } else {
            Err(format!("{left:?}"))
        }
    });
}

#[test]
fn the_demo_runs_to_its_summary_and_ctrl_c_drains() {
    let mut kedge = Kedge::up(
        "demo",
        Options {
            demo: true,
            ..Options::default()
        },
    );
    let summary = kedge.wait_line("the summary", |line| line["demo"] == "done");
    assert!(
        summary["readings_while_unplugged"].as_u64() > Some(0),
        "{summary}"
    );
    assert_eq!(summary["restarts"], 0, "{summary}");
    let pods = kedge.wait_running("app=thermometer", 2);

    let status = kedge.kedge(&["status"]).ok();
    assert!(
        status.contains(&kedge.node_name) && status.contains(&pods[0]),
        "{status}"
    );
    let images = kedge.kedge(&["image", "ls"]).ok();
    assert!(images.contains("kedge/thermometer:demo"), "{images}");

    assert_eq!(kedge.interrupt(), Some(0), "Ctrl-C drains and ends well");
    assert_eq!(kedge.supervisors().len(), 2, "the pods keep running");

    kedge.options.demo = false;
    kedge.start();
    kedge.wait_ready();
    assert_eq!(
        kedge.wait_running("app=thermometer", 2),
        pods,
        "a second up resumes with the same pods"
    );
}

#[test]
fn hollow_needs_no_root() {
    use std::os::unix::process::CommandExt;
    let dir = std::env::temp_dir().join(format!("kedge-e2e-noroot-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).unwrap();
    let program = dir.join("kedge");
    std::fs::copy(kedge_e2e::binary("kedge"), &program).unwrap();
    let output = Command::new(&program)
        .args(["--data-dir"])
        .arg(dir.join("data"))
        .arg("up")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_ne!(output.status.code(), Some(0));
    assert!(told.contains("root") && told.contains("--hollow"), "{told}");
    std::fs::remove_dir_all(dir).unwrap();

    let kedge = Kedge::up(
        "hollow",
        Options {
            hollow: true,
            ..Options::default()
        },
    );
    kedge.apply(&web(3, "hello")).ok();
    kedge.wait_running("app=web", 3);
    assert_eq!(kedge.supervisors(), Vec::<u32>::new());
}
