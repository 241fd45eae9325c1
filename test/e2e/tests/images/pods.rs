//! Pods whose image lies behind a password, as a person meets them with kubectl.

use super::registry::{PASSWORD, Registry, USER, umoci_image};
use kedge_e2e::site::{EdgePlan, Leavings, Site};
use kedge_e2e::{Folder, wait_for};

const BRIDGE: &str = "kedgepull";

fn pod(name: &str, image: &str, secret: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeSelector: {{kubernetes.io/hostname: pull}}
  automountServiceAccountToken: false
  restartPolicy: Never
  imagePullSecrets: [{secret}]
  containers:
    - {{name: main, image: '{image}', args: [sh, -c, 'echo $WHO > /dev/termination-log']}}
"
    )
}

/// What kubectl shows of a pod: its phase, and why its container waits.
fn shown(site: &Site, name: &str) -> String {
    let path = "jsonpath={.status.phase} {.status.containerStatuses[0].state.waiting.reason}: \
        {.status.containerStatuses[0].state.waiting.message}";
    site.cluster.kubectl(&["get", "pod", name, "-o", path]).stdout
}

#[test]
fn a_pod_with_a_pull_secret() {
    let _leavings = Leavings(BRIDGE);
    let folder = Folder::new("images-secret");
    let registry = Registry::start(&folder.path);
    let layout = umoci_image(&folder.path, 1000);
    registry.push(&format!("oci:{}:1", layout.display()), "team/tool:1");
    let mut site = Site::start(EdgePlan {
        node: "pull",
        runtime: "kedge://embedded",
        network: Some((BRIDGE, "10.216.216.0/24")),
        kubelet: &[],
    });
    // The registry has no TLS, and that is said in the file of the node.
    let yaml = std::fs::read_to_string(site.edge_yaml()).unwrap();
    let plain = format!("kedge: {{registries: {{plainHTTP: ['{}']}}, ", registry.host());
    site.kill_edge();
    std::fs::write(site.edge_yaml(), yaml.replace("kedge: {", &plain)).unwrap();
    site.start_edge();
    site.wait_ready();

    let image = format!("{}/team/tool:1", registry.host());
    let server = format!("--docker-server={}", registry.host());
    for (name, password) in [("right", PASSWORD), ("wrong", "guessed")] {
        let user = format!("--docker-username={USER}");
        let password = format!("--docker-password={password}");
        let words = [
            "create",
            "secret",
            "docker-registry",
            name,
            &server,
            &user,
            &password,
        ];
        site.cluster.kubectl(&words).ok();
    }
    let pods = [
        pod("locked-out", &image, ""),
        pod("mistaken", &image, "{name: wrong}"),
        pod("let-in", &image, "{name: right}"),
    ];
    site.cluster.apply(&pods.join("---")).ok();

    for (name, reason) in [
        ("locked-out", "wants a name and a password"),
        ("mistaken", "UNAUTHORIZED"),
    ] {
        // While it waits to try again the kubelet's words are ImagePullBackOff.
        wait_for(&format!("why {name} does not start"), || {
            let shown = shown(&site, name);
            let is_refused = shown.starts_with("Pending ErrImagePull: ") && shown.contains(reason);
            if is_refused { Ok(()) } else { Err(shown) }
        });
    }
    wait_for("the pod with the right secret ends", || {
        let shown = shown(&site, "let-in");
        if shown.starts_with("Succeeded") {
            Ok(())
        } else {
            Err(shown)
        }
    });
    // This CloudCore is a process of its own, and the way of logs leads through the one of the API.
    let path = "jsonpath={.status.containerStatuses[0].state.terminated.message}";
    let said = site.cluster.kubectl(&["get", "pod", "let-in", "-o", path]).stdout;
    assert_eq!(said, "umoci\n");
    wait_for("the events of both", || {
        let events = site.cluster.kubectl(&["get", "events"]).stdout;
        let has = |word: &str| events.lines().any(|line| line.contains(word));
        if has("Failed to pull image") && has("Successfully pulled image") {
            Ok(())
        } else {
            Err(events)
        }
    });
    site.cluster
        .kubectl(&["delete", "pod", "--all", "--wait=true", "--timeout=60s"])
        .ok();
}
