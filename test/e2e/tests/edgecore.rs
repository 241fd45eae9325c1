//! EdgeCore on containerd, and on CRI-O where the machine has one: the pods of a real cluster's user, seen with the real kubectl, and the deaths of everything
//! around them.

// A test fails where it stands.
#![allow(clippy::unwrap_used)]

use kedge_containerd::{ContainerdMake, CrioMake, Daemon, Make};
use kedge_e2e::containerd::{Behind, Containerd};
use kedge_e2e::site::{EdgePlan, Site};
use kedge_e2e::{daemons, images, pods, wait_for};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// One pod with most of what a pod may have. What it sees is written below `{seen}` on the node.
const GATE: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: gate}
data: {lanes: '4', greeting: hello}
---
apiVersion: v1
kind: Secret
metadata: {name: gate}
stringData: {key: open-sesame}
---
apiVersion: v1
kind: Pod
metadata: {name: gate, labels: {app: gate}, annotations: {site: north}}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  terminationGracePeriodSeconds: 5
  automountServiceAccountToken: false
  hostAliases: [{ip: 10.9.8.7, hostnames: [barrier]}]
  securityContext: {fsGroup: 2000, seccompProfile: {type: RuntimeDefault}}
  initContainers:
    - name: first
      image: {image}
      command: [/bin/sh, -c, 'echo first > /work/init']
      volumeMounts: [{name: work, mountPath: /work}]
    - name: beside
      image: {image}
      restartPolicy: Always
      command: [/bin/sh, -c, 'while :; do sleep 1000; done']
  containers:
    - name: gate
      image: {image}
      command: [/bin/sh, -c]
      args:
        - |
          trap 'echo asked >> /seen/end; exit 0' TERM
          cat /work/init > /seen/init
          cat /etc/config/lanes > /seen/lanes
          cat /etc/secret/key > /seen/key
          cat /etc/pod/labels > /seen/labels
          cat /etc/hosts > /seen/hosts
          echo \"$LANES $KEY $POD_NAME $NODE_IP $CPU\" > /seen/env
          while :; do cat /etc/config/greeting > /seen/greeting; sleep 1; done
      env:
        - {name: LANES, valueFrom: {configMapKeyRef: {name: gate, key: lanes}}}
        - {name: KEY, valueFrom: {secretKeyRef: {name: gate, key: key}}}
        - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NODE_IP, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
        - {name: CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu, divisor: 1m}}}
      resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
      startupProbe: {exec: {command: [/bin/cat, /seen/env]}, periodSeconds: 1}
      livenessProbe: {exec: {command: [/bin/cat, /etc/config/lanes]}, periodSeconds: 1}
      readinessProbe: {exec: {command: [/bin/cat, /seen/init]}, periodSeconds: 1}
      lifecycle:
        postStart: {exec: {command: [/bin/sh, -c, 'echo started > /seen/post']}}
        preStop: {exec: {command: [/bin/sh, -c, 'echo asked-first >> /seen/end']}}
      volumeMounts:
        - {name: seen, mountPath: /seen}
        - {name: work, mountPath: /work}
        - {name: config, mountPath: /etc/config}
        - {name: secret, mountPath: /etc/secret}
        - {name: pod, mountPath: /etc/pod}
  volumes:
    - {name: seen, hostPath: {path: {seen}, type: Directory}}
    - {name: work, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
    - {name: config, configMap: {name: gate}}
    - {name: secret, secret: {secretName: gate}}
    - {name: pod, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
";

fn site<M: Make>(runtime: &Behind<M>, node: &str) -> Site {
    Site::start(EdgePlan {
        node,
        runtime: &runtime.endpoint(),
        network: None,
        kubelet: &[&format!("cgroupRoot: {}", runtime.cgroup_root())],
    })
}

fn pod(site: &Site, name: &str) -> Value {
    let shown = site.cluster.kubectl(&["get", "pod", name, "-o", "json"]);
    serde_json::from_str(&shown.stdout).unwrap_or_default()
}

/// Containers of a pod with their restarts: what must not change while others die.
fn instances(pod: &Value) -> Vec<String> {
    let lists = ["initContainerStatuses", "containerStatuses"];
    let all = lists.iter().flat_map(|list| pod["status"][*list].as_array());
    all.flatten()
        .map(|status| {
            format!(
                "{} {} {}",
                status["name"], status["containerID"], status["restartCount"]
            )
        })
        .collect()
}

fn wait_ready(site: &Site, name: &str) -> Value {
    wait_for(&format!("pod {name} ready"), || {
        let pod = pod(site, name);
        let conditions = pod["status"]["conditions"].as_array();
        let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
        if conditions.is_some_and(|all| all.iter().any(ready)) {
            Ok(pod)
        } else {
            Err(pod["status"].to_string())
        }
    })
}

fn wait_file(path: &Path, fits: impl Fn(&str) -> bool) {
    wait_for(&format!("{}", path.display()), || {
        let text = fs::read_to_string(path).unwrap_or_default();
        if fits(&text) { Ok(()) } else { Err(text) }
    });
}

fn wait_gone(site: &Site, name: &str) {
    wait_for(&format!("pod {name} gone"), || {
        let shown = site
            .cluster
            .kubectl(&["get", "pod", name, "--ignore-not-found", "-o", "name"])
            .ok();
        if shown.is_empty() { Ok(()) } else { Err(shown) }
    });
}

#[test]
fn a_pod_with_everything() {
    a_pod_with_everything_on::<ContainerdMake>();
}

#[test]
fn everything_around_a_pod_dies() {
    everything_around_a_pod_dies_on::<ContainerdMake>();
}

#[test]
fn crio_does_as_containerd_does() {
    if let Some(missing) = Daemon::<CrioMake>::missing() {
        eprintln!("skipped: {missing}");
        return;
    }
    a_pod_with_everything_on::<CrioMake>();
    everything_around_a_pod_dies_on::<CrioMake>();
}

fn a_pod_with_everything_on<M: Make>() {
    let runtime = Behind::<M>::start("pod");
    let site = site(&runtime, "north");
    let seen = site.dir.join("seen");
    fs::create_dir(&seen).unwrap();
    let manifest = GATE
        .replace("{node}", "north")
        .replace("{image}", images::BUSYBOX)
        .replace("{seen}", &seen.to_string_lossy());
    site.cluster.apply(&manifest).ok();
    wait_ready(&site, "gate");
    let read = |name: &str| fs::read_to_string(seen.join(name)).unwrap_or_default();
    assert_eq!(
        ["init", "lanes", "key", "post"].map(read),
        ["first\n", "4", "open-sesame", "started\n"]
    );
    let env = read("env");
    assert!(
        env.starts_with("4 open-sesame gate ") && env.ends_with(" 500\n"),
        "{env}"
    );
    assert!(read("labels").contains("app=\"gate\""));
    assert!(read("hosts").contains("10.9.8.7\tbarrier"));

    // A changed config map reaches the running container.
    let patch = r#"{"data": {"greeting": "good evening"}}"#;
    site.cluster
        .kubectl(&["patch", "configmap", "gate", "--type=merge", "-p", patch])
        .ok();
    wait_file(&seen.join("greeting"), |text| text == "good evening");

    let described = site.cluster.kubectl(&["describe", "pod", "gate"]).ok();
    // kubectl lays out its columns by their contents.
    let words: Vec<&str> = described.split_whitespace().collect();
    let described = words.join(" ");
    for said in [
        "QoS Class: Burstable",
        "Ready True",
        "Liveness: exec [/bin/cat /etc/config/lanes]",
        "Started container gate",
    ] {
        assert!(described.contains(said), "{said:?} in {described}");
    }
    // A graceful end: first the hook, then the signal.
    site.cluster
        .kubectl(&["delete", "pod", "gate", "--wait=false"])
        .ok();
    wait_gone(&site, "gate");
    assert_eq!(read("end"), "asked-first\nasked\n");
    assert_eq!(runtime.containers_of("gate"), Vec::<String>::new());
    wait_for("the pod's folder gone", || {
        let left = fs::read_dir(site.dir.join("kubelet/pods")).unwrap().count();
        if left == 0 { Ok(()) } else { Err(left.to_string()) }
    });
}

fn everything_around_a_pod_dies_on<M: Make>() {
    let mut runtime = Behind::<M>::start("die");
    let mut site = site(&runtime, "south");
    site.cluster.apply(&pods::lone("stays", "south")).ok();
    let before = instances(&wait_ready(&site, "stays"));

    // EdgeCore.
    site.kill_edge();
    site.start_edge();
    site.wait_ready();
    assert_eq!(instances(&wait_ready(&site, "stays")), before);

    // The runtime: the node says so, and all is well when it is back.
    runtime.kill();
    daemons::node_is(&site.cluster, "south", " NotReady ");
    runtime.start_again();
    site.wait_ready();
    assert_eq!(instances(&wait_ready(&site, "stays")), before);

    // The cloud, then EdgeCore without a cloud. Meanwhile a static pod comes, and another pod is deleted above.
    site.cluster.apply(&pods::lone("goes", "south")).ok();
    wait_ready(&site, "goes");
    site.kill_cloud();
    site.kill_edge();
    site.start_edge();
    let fixed = pods::lone("fixed", "south");
    fs::write(site.manifests().join("fixed.yaml"), &fixed).unwrap();
    wait_for("the static pod without a cloud", || {
        let running = runtime.containers_of("fixed-south");
        if running.len() == 2 {
            Ok(())
        } else {
            Err(format!("{running:?}"))
        }
    });
    site.cluster
        .kubectl(&["delete", "pod", "goes", "--wait=false"])
        .ok();
    site.start_cloud();
    wait_gone(&site, "goes");
    let mirror = wait_ready(&site, "fixed-south");
    assert_eq!(
        mirror["metadata"]["annotations"]["kubernetes.io/config.source"],
        "file"
    );
    assert_eq!(instances(&wait_ready(&site, "stays")), before);

    // The file goes, and with it the static pod and its mirror.
    fs::remove_file(site.manifests().join("fixed.yaml")).unwrap();
    wait_gone(&site, "fixed-south");
}

const TROUBLE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  automountServiceAccountToken: false
  containers:
    - {name: main, image: {image}, command: [/bin/sh, -c, 'echo last words > /dev/termination-log; exit 3']}
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  restartPolicy: Never
  automountServiceAccountToken: false
  containers:
    - name: main
      image: {image}
      command: [/bin/sh, -c, 'x=a; while :; do x=$x$x; done']
      resources: {limits: {memory: 24Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: nowhere}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  automountServiceAccountToken: false
  containers:
    - {name: main, image: 'kedge.invalid/none:1'}
---
apiVersion: v1
kind: Pod
metadata: {name: unwell}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - name: main
      image: {image}
      command: [/bin/sh, -c, 'while :; do sleep 1000; done']
      livenessProbe: {exec: {command: [/bin/sh, -c, 'sleep 1000']}, timeoutSeconds: 1, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  nodeName: {node}
  automountServiceAccountToken: false
  containers:
    - {name: main, image: {image}, resources: {requests: {memory: 900Ti}}}
---
apiVersion: v1
kind: Pod
metadata: {name: lacks}
spec:
  nodeSelector: {kubernetes.io/hostname: {node}}
  automountServiceAccountToken: false
  containers:
    - {name: main, image: {image}, env: [{name: A, valueFrom: {configMapKeyRef: {name: nobody, key: a}}}]}
";

/// Whether a pod's status tells its story.
type Fits = fn(&Value) -> bool;

#[test]
fn troubles_read_as_a_kubelet_tells_them() {
    let containerd = Containerd::start("trouble");
    let site = site(&containerd, "east");
    let manifest = TROUBLE
        .replace("{node}", "east")
        .replace("{image}", images::BUSYBOX);
    site.cluster.apply(&manifest).ok();
    let stories: [(&str, Fits); 6] = [
        ("crashes", |status| {
            let main = &status["containerStatuses"][0];
            let last = &main["lastState"]["terminated"];
            main["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                && last["exitCode"] == 3
                && last["message"] == "last words\n"
        }),
        ("hungry", |status| {
            let main = &status["containerStatuses"][0]["state"]["terminated"];
            status["phase"] == "Failed" && main["reason"] == "OOMKilled" && main["exitCode"] == 137
        }),
        ("nowhere", |status| {
            let waiting = &status["containerStatuses"][0]["state"]["waiting"]["reason"];
            waiting == "ImagePullBackOff"
        }),
        ("unwell", |status| {
            status["containerStatuses"][0]["restartCount"].as_u64() >= Some(1)
        }),
        ("huge", |status| {
            status["phase"] == "Failed" && status["reason"] == "OutOfmemory"
        }),
        ("lacks", |status| {
            let waiting = &status["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"].as_str() == Some("configmap \"nobody\" not found")
        }),
    ];
    for (name, fits) in stories {
        wait_for(&format!("the story of {name}"), || {
            let status = pod(&site, name)["status"].clone();
            if fits(&status) {
                Ok(())
            } else {
                Err(status.to_string())
            }
        });
    }
    let events = site
        .cluster
        .kubectl(&[
            "get",
            "events",
            "-o",
            "custom-columns=N:.involvedObject.name,R:.reason",
        ])
        .ok();
    for line in [
        "crashes BackOff",
        "unwell Unhealthy",
        "nowhere Failed",
        "lacks Failed",
    ] {
        let (name, reason) = line.split_once(' ').unwrap();
        let told = |l: &str| l.starts_with(name) && l.ends_with(reason);
        assert!(events.lines().any(told), "{line} in\n{events}");
    }
}

#[test]
fn the_pages_of_the_node() {
    let containerd = Containerd::start("pages");
    let site = site(&containerd, "west");
    site.cluster.apply(&pods::lone("seen", "west")).ok();
    wait_ready(&site, "seen");
    let page = |path: &str| daemons::get(site.local_port, path).unwrap();
    assert_eq!(page("/healthz"), (200, "ok".to_owned()));
    let (_, listed) = page("/pods");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["items"][0]["metadata"]["name"], "seen");
    let summary = wait_for("a summary with the pod", || {
        let (_, text) = page("/stats/summary");
        let summary: Value = serde_json::from_str(&text).unwrap_or_default();
        let used = &summary["pods"][0]["containers"][0]["memory"]["workingSetBytes"];
        if used.as_u64().is_some() {
            Ok(summary)
        } else {
            Err(text)
        }
    });
    assert_eq!(summary["node"]["nodeName"], "west");
    for (path, line) in [
        ("/metrics/cadvisor", "container_memory_working_set_bytes{"),
        ("/metrics/resource", "node_cpu_usage_seconds_total"),
    ] {
        let (status, text) = page(path);
        assert!(status == 200 && text.contains(line), "{path}: {status} {text}");
    }
    let (status, text) = page("/run/default/seen/main");
    assert!((403..=405).contains(&status), "{status} {text}");
}
