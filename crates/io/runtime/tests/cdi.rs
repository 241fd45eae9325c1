//! Devices by name (Container Device Interface): what a container is given with them. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{ContainerConfig, Device, IdMapping, SandboxConfig, Security, UserNamespace};
use kedge_runtime::Runtime;
use node::{Node, UNTIL_TERM, container, on_a_node, outcome, outcome_in, refusal, run, said, wait_for_line};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// No fact that a test waits for takes this long on a working machine.
const FACT_WAIT_MAX: Duration = Duration::from_secs(60);

/// Describes devices in a directory of the node's own.
fn describe(node: &Node, file: &str, common: Value, devices: &[(&str, Value)]) {
    let devices = devices
        .iter()
        .map(|(name, edits)| json!({ "name": name, "containerEdits": edits }));
    let document = json!({
        "cdiVersion": "0.7.0", "kind": "vendor.com/gpu", "containerEdits": common,
        "devices": devices.collect::<Vec<_>>(),
    });
    let path = node.directory.join("cdi").join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, document.to_string()).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
}

fn given(name: &str, device: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        cdi_devices: vec![format!("vendor.com/gpu={device}")],
        ..container(name, script)
    }
}

/// A line of shell as a hook of the node.
fn hook(stage: &str, script: &str) -> Value {
    json!({ "hookName": stage, "path": "/bin/sh", "args": ["sh", "-c", script] })
}

/// Leaves what a hook is told in `$state`, and where the container's configuration is in `$bundle`.
const TOLD: &str = "state=$(cat | tr -d '\\n'); bundle=$(echo \"$state\" | sed 's/.*\"bundle\" *: *\"\\([^\"]*\\)\".*/\\1/');";

fn lines(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_sees_all_of_its_device() {
    a_container_of(String::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_runc_sees_all_of_its_device() {
    a_container_of("runc".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_crun_sees_all_of_its_device() {
    a_container_of("crun".to_owned()).await;
}

async fn a_container_of(handler: String) {
    on_a_node(
        |pod| pod.handler = handler,
        async |node, runtime, sandbox| {
            let library = node.write("libvendor.so.1", b"library");
            let common = json!({
                "env": ["VENDOR=all", "FROM_IMAGE=replaced"],
                "mounts": [{
                    "hostPath": library, "containerPath": "/usr/lib/libvendor.so.1",
                    "options": ["ro", "nosuid", "nodev", "bind"],
                }],
                "hooks": [hook("createContainer", &format!("{TOLD} cat $bundle/rootfs/usr/lib/libvendor.so.1 > $bundle/rootfs/cache"))],
            });
            let device = json!({
                "deviceNodes": [{ "path": "/dev/vendor/0", "hostPath": "/dev/null", "fileMode": 0o640 }],
                "additionalGids": [77],
            });
            describe(node, "static/vendor.json", common, &[("0", device)]);
            let script = "echo $VENDOR $FROM_IMAGE $(cat /usr/lib/libvendor.so.1 /cache); echo $(id -G); \
                          stat -c '%t:%T %a %F' /dev/vendor/0; echo x > /dev/vendor/0 && echo taken; \
                          echo x 2>&1 > /usr/lib/libvendor.so.1 || echo refused";
            let (code, told) = outcome(runtime, sandbox, &given("main", "0", script)).await;
            assert_eq!(code, 0, "{told:?}");
            let told: Vec<_> = told.iter().filter(|line| !line.contains("Read-only")).map(String::as_str).collect();
            let wanted = ["all replaced librarylibrary", "0 77", "1:3 640 character special file", "taken", "refused"];
            assert_eq!(told, wanted);
            let plain = said(runtime, sandbox, &container("plain", "echo $VENDOR; ls /dev | grep -c vendor || true")).await;
            assert_eq!(plain, "\n0", "nobody else has anything of it");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_may_be_used_as_far_as_it_is_said() {
    on_a_node(
        |_| {},
        async |node, runtime, sandbox| {
            // The kernel's log is not among the devices of every container.
            let log = |rights: &str| {
                json!({ "deviceNodes": [{ "path": "/dev/log0", "hostPath": "/dev/kmsg", "permissions": rights, "fileMode": 0o666 }] })
            };
            describe(node, "generated/log.json", json!({}), &[("w", log("w")), ("all", log("")), ("none", log("none")), ("r", log("r"))]);
            let open = "(: > /dev/log0) 2>/dev/null && echo opened || echo refused";
            for (device, wanted) in [("w", "opened"), ("all", "opened"), ("none", "refused"), ("r", "refused")] {
                assert_eq!(said(runtime, sandbox, &given(device, device, open)).await, wanted, "{device}");
            }
            // One that it has anyhow is replaced.
            let twice = ContainerConfig {
                devices: vec![Device { host_path: "/dev/full".into(), container_path: "/dev/log0".into(), permissions: "r".to_owned() }],
                ..given("twice", "w", &format!("stat -c %t:%T /dev/log0; {open}"))
            };
            assert_eq!(said(runtime, sandbox, &twice).await, "1:b\nopened");
            let privileged = ContainerConfig {
                security: Security { privileged: true, ..Security::default() },
                ..given("privileged", "none", &format!("test -c /dev/full && {open}"))
            };
            assert_eq!(said(runtime, sandbox, &privileged).await, "opened");
            let user = ContainerConfig {
                security: Security { user: Some(1000), group: Some(100), ..Security::default() },
                ..given("user", "w", "stat -c %u:%g /dev/log0")
            };
            assert_eq!(said(runtime, sandbox, &user).await, "1000:100", "it is its user's");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn annotations_name_devices_and_unknown_ones_are_refused() {
    on_a_node(
        |_| {},
        async |node, runtime, sandbox| {
            let variable = |value: &str| json!({ "env": [format!("WHICH={value}")] });
            describe(node, "static/vendor.json", json!({}), &[("0", variable("static")), ("1", variable("one"))]);
            describe(node, "generated/vendor.json", json!({}), &[("0", variable("generated"))]);
            let annotated = |name: &str, value: &str| ContainerConfig {
                annotations: [("cdi.k8s.io/vendor.com_gpu_0".to_owned(), value.to_owned())].into(),
                ..container(name, "echo $WHICH")
            };
            let told = said(runtime, sandbox, &annotated("both", "vendor.com/gpu=1,vendor.com/gpu=0")).await;
            assert_eq!(told, "generated", "the later directory, and the later device");
            let broken = node.directory.join("cdi/static/broken.yaml");
            std::fs::write(&broken, "kind: [").unwrap();
            assert_eq!(said(runtime, sandbox, &given("first", "1", "echo $WHICH")).await, "one");
            let why = refusal(runtime, sandbox, &given("unknown", "7", "")).await;
            assert!(
                why.starts_with("give a container device vendor.com/gpu=7: no file in ")
                    && why.contains("of vendor.com/gpu there are 0, 1; ")
                    && why.contains(&format!("{} is not used: not valid YAML", broken.display())),
                "{why}"
            );
            let why = refusal(runtime, sandbox, &annotated("misspelt", "vendor.com/gpu")).await;
            assert_eq!(
                why,
                "create container misspelt: \"vendor.com/gpu\" is not the name of a device; vendor.com/class=device is expected"
            );
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_when_and_where_they_shall() {
    on_a_node(
        |_| {},
        async |node, runtime, sandbox| {
            let marks = node.directory.join("marks");
            let mark = |stage: &str| {
                let status = "status=$(echo \"$state\" | sed 's/.*\"status\" *: *\"\\([a-z]*\\)\".*/\\1/')";
                let pid = "pid=$(echo \"$state\" | sed 's/.*\"pid\" *: *\\([0-9]*\\).*/\\1/')";
                let network = "network=$(readlink /proc/self/ns/net)";
                let root = "test -e $bundle/rootfs/bin/busybox && root=seen";
                hook(stage, &format!(
                    "{TOLD} {status}; {pid}; {network}; {root}; echo {stage} $status $root $network $pid ${{PATH%%:*}} ${{HOME-none}} >> {}",
                    marks.display()
                ))
            };
            let within = json!({
                "hookName": "startContainer", "path": "/bin/busybox",
                "args": ["busybox", "sh", "-c", "echo complaint >&2; read state; echo $state > /within; echo $WHOSE $(id -u) >> /within"],
            });
            let edits = json!({
                "env": ["WHOSE=containers"],
                "hooks": [within, mark("createContainer"), mark("createRuntime"), mark("prestart")],
            });
            describe(node, "static/vendor.json", json!({}), &[("0", edits)]);
            let script = format!("cat /within; readlink /proc/self/ns/net; {UNTIL_TERM}");
            let id = run(runtime, sandbox, &given("main", "0", &script)).await;
            wait_for_line(runtime, &id, "up").await;
            let said = node::log(runtime, &id).await;
            let pid = runtime.process_of(&id).await.unwrap().unwrap();
            let its = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap().to_string_lossy().into_owned();
            let ours = std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy().into_owned();
            let told = lines(&marks);
            assert_eq!(told, [
                format!("prestart creating seen {ours} {pid} /usr/local/sbin none"),
                format!("createRuntime creating seen {ours} {pid} /usr/local/sbin none"),
                format!("createContainer creating seen {its} 1 /usr/local/sbin none"),
            ]);
            assert_eq!(said[0], "complaint");
            let state: Value = serde_json::from_str(&said[1]).unwrap();
            assert_eq!((&state["id"], &state["status"]), (&json!(id.0), &json!("created")));
            assert_eq!(said[2..4], ["containers 0".to_owned(), its]);
            runtime.remove_container(&id).await.unwrap();
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_after_the_start_and_after_the_end() {
    hooks_run_afterwards(String::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_after_the_start_and_after_the_end_of_runc() {
    hooks_run_afterwards("runc".to_owned()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hooks_run_after_the_start_and_after_the_end_of_crun() {
    hooks_run_afterwards("crun".to_owned()).await;
}

async fn hooks_run_afterwards(handler: String) {
    on_a_node(
        |pod| pod.handler = handler,
        async |node, runtime, sandbox| {
            let mark = |stage: &str, then: &str| {
                let path = node.directory.join(stage);
                hook(
                    stage,
                    &format!("cat > {0}.new; mv {0}.new {0}; {then}", path.display()),
                )
            };
            let told = |stage: &str| -> Option<Value> {
                let text = std::fs::read(node.directory.join(stage)).ok()?;
                Some(serde_json::from_slice(&text).unwrap())
            };
            let edits = json!({ "hooks": [hook("poststop", "exit 1"), mark("poststop", "exit 1"), mark("poststart", "true")] });
            let broken = json!({ "hooks": [mark("poststop", "true"), hook("createRuntime", "exit 1")] });
            describe(
                node,
                "static/vendor.json",
                json!({}),
                &[("0", edits), ("broken", broken)],
            );
            let id = run(runtime, sandbox, &given("main", "0", UNTIL_TERM)).await;
            wait_for_line(runtime, &id, "up").await;
            let started = async {
                loop {
                    match told("poststart") {
                        Some(state) => return state,
                        None => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                }
            };
            let started = tokio::time::timeout(FACT_WAIT_MAX, started).await.unwrap();
            assert_eq!(started["id"], json!(id.0));
            assert_eq!(told("poststop"), None);
            // What fails afterwards keeps nobody from going.
            runtime.remove_container(&id).await.unwrap();
            let stopped = told("poststop").unwrap();
            assert_eq!(
                (&stopped["id"], &stopped["status"]),
                (&json!(id.0), &json!("stopped"))
            );
            std::fs::remove_file(node.directory.join("poststop")).unwrap();
            refusal(runtime, sandbox, &given("broken", "broken", "true")).await;
            assert!(told("poststop").is_some(), "of one that was never made, too");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_fails_is_told_and_ended() {
    on_a_node(
        |_| {},
        async |node, runtime, sandbox| {
            let long = format!("9871{}", std::process::id());
            let hooks = |list: Vec<Value>| json!({ "hooks": list });
            let late = |stage: &str| {
                let mut hook = hook(stage, &format!("sleep {long} & sleep {long}"));
                hook["timeout"] = json!(1);
                hook
            };
            let within = |words: &[&str]| json!({ "hookName": "startContainer", "path": words[0], "args": words });
            describe(node, "static/vendor.json", json!({}), &[
                ("runtime", hooks(vec![hook("createRuntime", "echo no such card >&2; exit 3")])),
                ("container", hooks(vec![hook("createContainer", "echo first >&2; echo no library >&2; exit 1")])),
                ("late", hooks(vec![late("createContainer")])),
                ("late-runtime", hooks(vec![late("prestart")])),
                ("within", hooks(vec![within(&["/bin/busybox", "sh", "-c", "exit 5"])])),
                ("missing", hooks(vec![within(&["/no/such"])])),
            ]);
            let table = [
                ("runtime", "create container runtime: hook /bin/sh (createRuntime): no such card"),
                ("container", "create container container: hook /bin/sh (createContainer): no library"),
                ("late", "create container late: hook /bin/sh (createContainer): /bin/sh did not end within 1 s and was killed"),
                ("late-runtime", "create container late-runtime: hook /bin/sh (prestart): /bin/sh did not end within 1 s and was killed"),
            ];
            for (device, wanted) in table {
                assert_eq!(refusal(runtime, sandbox, &given(device, device, "true")).await, wanted);
            }
            // With what they left behind; the kernel ends it a moment after it was told to.
            let gone = async {
                while !node::processes_with(&long).is_empty() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(FACT_WAIT_MAX, gone).await.unwrap();
            for (device, wanted) in [
                ("within", "hook /bin/busybox (startContainer): exit status: 5"),
                ("missing", "hook /no/such (startContainer): No such file or directory (os error 2)"),
            ] {
                let (code, told) = outcome(runtime, sandbox, &given(device, device, "echo began")).await;
                assert_eq!((code, told), (126, vec![wanted.to_owned()]));
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_with_users_of_its_own_has_devices_by_name() {
    let ids = IdMapping {
        host_id: 131_072,
        container_id: 0,
        length: 65536,
    };
    on_a_node(
        |pod| pod.user_namespace = Some(UserNamespace { uids: ids, gids: ids }),
        async |node, runtime, sandbox| {
            let library: PathBuf = node.write("library", b"library");
            let edits = json!({
                "env": ["VENDOR=yes"],
                "deviceNodes": [{ "path": "/dev/vendor0", "hostPath": "/dev/null" }],
                "mounts": [{ "hostPath": library, "containerPath": "/library", "options": ["ro", "bind"] }],
                "additionalGids": [77],
            });
            let hooked = json!({ "hooks": [hook("createContainer", "true")] });
            let foreign = json!({ "env": ["A=b"], "additionalGids": [100_000] });
            describe(node, "static/vendor.json", json!({}), &[("0", edits), ("hooked", hooked), ("foreign", foreign)]);
            let script = "echo $VENDOR $(cat /library) $(id -G); stat -c %t:%T /dev/vendor0; echo x > /dev/vendor0 && echo taken";
            let (code, told) = outcome_in(runtime, sandbox, &SandboxConfig::default(), &given("main", "0", script)).await;
            assert_eq!((code, told), (0, ["yes library 0 77", "1:3", "taken"].map(str::to_owned).into()));
            for (device, why) in [("hooked", "(hostUsers: false)"), ("foreign", "group 100000 is not among those of a pod")] {
                let told = refusal(runtime, sandbox, &given(device, device, "true")).await;
                assert!(told.contains(why), "{told}");
            }
        },
    )
    .await;
}
