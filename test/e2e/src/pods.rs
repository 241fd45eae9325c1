//! Manifests for tests and benchmarks.

use crate::images::BUSYBOX;
use std::fmt::Write;
use std::path::Path;

/// A deployment of pods that do nothing.
pub fn sleepers(replicas: u32) -> String {
    sleepers_with(replicas, "{}")
}

/// The same on one node.
pub fn sleepers_on(node: &str, replicas: u32) -> String {
    sleepers_with(replicas, &format!("{{kubernetes.io/hostname: {node}}}"))
}

fn sleepers_with(replicas: u32, node_selector: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: sleeper}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: sleeper}}}}
  template:
    metadata: {{labels: {{app: sleeper}}}}
    spec:
      nodeSelector: {node_selector}
      terminationGracePeriodSeconds: 0
      automountServiceAccountToken: false
      containers:
        - name: sleeper
          image: {BUSYBOX}
          command: [/bin/sleep, '1000000']
"
    )
}

/// A pod on one node that does nothing.
pub fn lone(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: {node}}}
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - {{name: main, image: {BUSYBOX}, command: [/bin/sleep, '1000000']}}
"
    )
}

/// `count` pods, each of which appends a line to a file of its own in `marks` as its first act.
pub fn markers(count: usize, marks: &Path) -> String {
    let mut yaml = String::new();
    for number in 0..count {
        let written = write!(
            yaml,
            "---
apiVersion: v1
kind: Pod
metadata: {{name: marker-{number}, labels: {{app: marker}}}}
spec:
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
    - name: marker
      image: {BUSYBOX}
      command: [/bin/sh, -c, 'echo up >> /marks/{number}; while :; do sleep 1000; done', kedge-bench-marker]
      volumeMounts: [{{name: marks, mountPath: /marks}}]
  volumes: [{{name: marks, hostPath: {{path: {marks}, type: Directory}}}}]
",
            marks = marks.display()
        );
        written.expect("a string can be written to");
    }
    yaml
}
