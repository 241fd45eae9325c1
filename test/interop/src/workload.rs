//! What the stories run: a deployment with everything that a pod usually takes from its cluster.

use kedge_e2e::images::BUSYBOX;
use serde_json::Value;
use std::path::Path;

/// The audience of the projected token.
pub const AUDIENCE: &str = "interop";

/// A config map, a secret and a deployment whose pod says what it was given, and leaves a mark when it is asked to end.
pub fn web(replicas: u32, page: &str, marks: &Path) -> String {
    format!(
        r#"
apiVersion: v1
kind: ConfigMap
metadata: {{name: web}}
data: {{GREETING: hello, page: {page}}}
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
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 10
      initContainers:
        - name: prepare
          image: {image}
          imagePullPolicy: IfNotPresent
          command: [/bin/sh, -c, 'echo prepared > /work/mark']
          volumeMounts: [{{name: work, mountPath: /work}}]
      containers:
        - name: web
          image: {image}
          imagePullPolicy: IfNotPresent
          command: [/bin/sh, -c]
          args:
            - 'trap "echo bye > /marks/$POD; exit 0" TERM; echo "$GREETING $(cat /work/mark) $(cat /secret/password)"; while :; do sleep 0.2 & wait $!; done'
          env:
            - {{name: GREETING, valueFrom: {{configMapKeyRef: {{name: web, key: GREETING}}}}}}
            - {{name: POD, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}
          volumeMounts:
            - {{name: work, mountPath: /work}}
            - {{name: config, mountPath: /config}}
            - {{name: secret, mountPath: /secret}}
            - {{name: token, mountPath: /token}}
            - {{name: marks, mountPath: /marks}}
      volumes:
        - {{name: work, emptyDir: {{}}}}
        - {{name: config, configMap: {{name: web}}}}
        - {{name: secret, secret: {{secretName: web}}}}
        - {{name: marks, hostPath: {{path: {marks}, type: Directory}}}}
        - name: token
          projected: {{sources: [{{serviceAccountToken: {{path: token, audience: {AUDIENCE}, expirationSeconds: 3600}}}}]}}
"#,
        image = BUSYBOX,
        marks = marks.display(),
    )
}

/// A pod by itself on a node, with a config map of its own.
pub fn loner(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}}}
data: {{KEY: value}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
    - name: {name}
      image: {BUSYBOX}
      imagePullPolicy: IfNotPresent
      command: [/bin/sleep, '1000000']
      envFrom: [{{configMapRef: {{name: {name}}}}}]
"
    )
}

/// Whether a pod runs and is ready.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    pod["status"]["phase"] == "Running"
        && pod["metadata"]["deletionTimestamp"].is_null()
        && conditions.is_some_and(|all| {
            all.iter()
                .any(|one| one["type"] == "Ready" && one["status"] == "True")
        })
}

/// What stays the same as long as nobody touched a pod: its containers and how often they were started.
pub fn identity(pod: &Value) -> String {
    let containers = pod["status"]["containerStatuses"].as_array();
    let containers: Vec<String> = containers
        .into_iter()
        .flatten()
        .map(|one| format!("{} restarts {}", one["containerID"], one["restartCount"]))
        .collect();
    format!("{} {}", pod["metadata"]["uid"], containers.join(", "))
}

/// The claims of a token, unverified.
///
/// # Panics
/// When it is none.
pub fn claims(token: &str) -> Value {
    use base64::Engine as _;
    let payload = token.split('.').nth(1).expect("a token has three parts");
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD
        .decode(payload)
        .expect("the middle part is base64");
    serde_json::from_slice(&payload).expect("claims are JSON")
}
