//! Pods with users of their own (`hostUsers: false`): whoever is root in one is nobody on the node. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use expect_test::expect;
use kedge_containers::{
    ContainerConfig, ContainerId, Device, IdMapping, Mount, PidNamespace, Propagation, SandboxConfig,
    SandboxId, Security, UserNamespace,
};
use kedge_runtime::embedded::{Config, RootfsChoice};
use kedge_runtime::{Embedded, Runtime};
use node::{Node, UNTIL_TERM, container, outcome, refusal, run, said, wait_for_line};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(30);
const EXEC_MAX: Duration = Duration::from_secs(30);
/// Where the ids of the first and of the second pod begin on the node.
const FIRST: u32 = 131_072;
const SECOND: u32 = 196_608;
const LENGTH: u32 = 65536;

fn ids(host_id: u32) -> UserNamespace {
    let ids = IdMapping {
        host_id,
        container_id: 0,
        length: LENGTH,
    };
    UserNamespace { uids: ids, gids: ids }
}

fn pod(node: &Node, name: &str, host_id: u32) -> SandboxConfig {
    SandboxConfig {
        user_namespace: Some(ids(host_id)),
        ..node.sandbox(name)
    }
}

/// Runs a story on a node of its own and proves that it leaves nothing behind.
async fn on_a_node(choice: RootfsChoice, story: impl AsyncFnOnce(&Node, &Embedded, &SandboxId)) {
    if !Node::can_run_containers() {
        return;
    }
    let node = Node::new();
    let config = Config {
        rootfs: choice,
        ..node.config()
    };
    let runtime = Embedded::open(config).await.unwrap();
    runtime.import_image(node.archive()).await.unwrap();
    if !runtime.status().await.unwrap().features[""].user_namespaces {
        eprintln!("skipped: this kernel or file system maps no users");
        return;
    }
    let sandbox = runtime.run_sandbox(&pod(&node, "pod", FIRST)).await.unwrap();
    node.live(runtime, &sandbox, story).await;
}

async fn told(runtime: &Embedded, id: &ContainerId, script: &str) -> String {
    let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned);
    let output = runtime.exec_sync(id, &command, EXEC_MAX).await.unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.exit_code, 0, "{script}: {text}");
    text.trim().to_owned()
}

fn secured(name: &str, script: &str, security: Security) -> ContainerConfig {
    ContainerConfig {
        security: Security {
            allow_privilege_escalation: true,
            ..security
        },
        ..container(name, script)
    }
}

/// A directory of the node that everybody may write to.
fn directory(node: &Node, name: &str) -> PathBuf {
    let path = node.directory.join(name);
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    path
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

/// The first three words of each line.
fn map_of(pid: u32, file: &str) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    text.split_whitespace()
        .map(|word| word.parse().unwrap())
        .collect()
}

fn user_of(pid: u32) -> u32 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_of_a_pod_is_nobody_on_the_node() {
    on_a_node(RootfsChoice::Automatic, async |node, runtime, sandbox| {
        let data = directory(node, "data");
        let main = ContainerConfig {
            mounts: vec![Mount::bind(&data, "/data", false)],
            ..container("main", &format!("touch /data/made /made; {UNTIL_TERM}"))
        };
        let id = run(runtime, sandbox, &main).await;
        wait_for_line(runtime, &id, "up").await;
        let pid = runtime.process_of(&id).await.unwrap().unwrap();
        assert_eq!(map_of(pid, "uid_map"), [0, FIRST, LENGTH]);
        assert_eq!(map_of(pid, "gid_map"), [0, FIRST, LENGTH]);
        assert_eq!(user_of(pid), FIRST);
        assert_eq!(
            told(runtime, &id, "id -u; stat -c %u:%g /data/made /made").await,
            "0\n0:0\n0:0"
        );
        assert_eq!(
            owner(&data.join("made")),
            (0, 0),
            "it is root's where it came from"
        );
        let made = PathBuf::from(format!("/proc/{pid}/root/made"));
        assert_eq!(owner(&made), (FIRST, FIRST), "and the pod's own where it stays");

        let other = runtime.run_sandbox(&pod(node, "other", SECOND)).await.unwrap();
        let second = run(runtime, &other, &main).await;
        wait_for_line(runtime, &second, "up").await;
        let theirs = runtime.process_of(&second).await.unwrap().unwrap();
        assert_eq!(user_of(theirs), SECOND, "two pods have no user in common");
        runtime.stop_container(&id, GRACE).await.unwrap();
        assert_eq!(
            node::exit_of(runtime, &id).await.0,
            0,
            "it is asked to stop like any other"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_finds_what_every_container_finds() {
    on_a_node(RootfsChoice::Automatic, async |_, runtime, sandbox| {
        let script = "stat -c '%u:%g %a %n' / /bin /bin/busybox /etc/passwd /etc/hosts /dev /dev/shm /dev/pts /dev/null /proc /tmp; \
                      echo x > /dev/null; echo x > /dev/shm/x; stat -c %u /dev/shm/x; hostname; \
                      cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/net/ipv4/ping_group_range; \
                      grep -c eth0 /proc/net/dev; ls /sys/class/net | tr '\\n' ' '; chown 1000:1000 /etc/passwd; \
                      stat -c %u:%g /etc/passwd; test -d /sys/fs/cgroup && echo groups; pwd";
        let plain = ContainerConfig {
            working_dir: Some("/work/here".to_owned()),
            ..container("plain", script)
        };
        expect![[r#"
            0:0 755 /
            0:0 755 /bin
            0:0 755 /bin/busybox
            0:0 644 /etc/passwd
            0:0 644 /etc/hosts
            0:0 755 /dev
            0:0 1777 /dev/shm
            0:0 755 /dev/pts
            65534:65534 666 /dev/null
            65534:65534 555 /proc
            0:0 755 /tmp
            0
            pod
            0
            0	65535
            1
            eth0 lo 1000:1000
            groups
            /work/here"#]]
        .assert_eq(&said(runtime, sandbox, &plain).await);
        let user = Security {
            user: Some(1000),
            group: Some(1000),
            supplemental_groups: vec![2000],
            ..Security::default()
        };
        let script = "id; echo hello > /dev/stdout; touch /tmp/x 2>&1 || true";
        let of_user = said(runtime, sandbox, &secured("user", script, user)).await;
        expect![[r#"
            uid=1000(app) gid=1000 groups=20(dialout),1000,2000
            hello
            touch: /tmp/x: Permission denied"#]]
        .assert_eq(&of_user);
        let read_only = Security {
            read_only_root: true,
            ..Security::default()
        };
        let script = "touch /x 2>&1; touch /dev/shm/y && echo there";
        let told = said(runtime, sandbox, &secured("read-only", script, read_only)).await;
        assert_eq!(told, "touch: /x: Read-only file system\nthere");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_end_where_the_pod_ends() {
    on_a_node(RootfsChoice::Automatic, async |node, runtime, sandbox| {
        let secret = node.write("secret", b"of the node");
        std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        let all = Security {
            add_capabilities: vec!["ALL".to_owned()],
            proc_unmasked: true,
            ..Security::default()
        };
        let script = "mkdir /m; mount -t tmpfs x /m && echo mounted; hostname other && hostname; \
                      echo 1 > /proc/sys/net/ipv4/ip_forward && echo own network; \
                      cat /proc/sys/kernel/core_pattern > /was; cat /was > /proc/sys/kernel/core_pattern || echo not of the node; \
                      date -s @0; test $(date +%s) -gt 1000000000 && echo time goes on; mknod /node b 7 0 || echo no device; \
                      mount -o remount,rw /proc/sys 2>/dev/null; swapoff /x || echo no swap; dmesg -n 1 || echo no log";
        let told = said(runtime, sandbox, &secured("all", &format!("({script}) 2>/dev/null"), all.clone())).await;
        expect![[r#"
            mounted
            other
            own network
            not of the node
            Thu Jan  1 00:00:00 UTC 1970
            time goes on
            no device
            no swap
            no log"#]]
        .assert_eq(&told);
        let privileged = Security {
            privileged: true,
            ..Security::default()
        };
        let script = "test -c /dev/null && echo devices; mount -o remount,rw /read 2>/dev/null; \
                      touch /read/x 2>/dev/null || echo read-only; date -s @0 >/dev/null 2>&1; test $(date +%s) -gt 1000000000 && echo time goes on";
        let privileged = ContainerConfig {
            mounts: vec![Mount::bind(&node.directory, "/read", true)],
            ..secured("privileged", script, privileged)
        };
        let told = said(runtime, sandbox, &privileged).await;
        assert_eq!(told, "devices\nread-only\ntime goes on");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_volumes_are_those_of_the_pods_users() {
    on_a_node(RootfsChoice::Automatic, async |node, runtime, sandbox| {
        let memory = directory(node, "memory");
        kedge_host::mounts::mount_tmpfs(&memory, Some(1 << 20)).unwrap();
        std::fs::set_permissions(&memory, PermissionsExt::from_mode(0o755)).unwrap();
        let on_disk = directory(node, "disk");
        for (path, mode, user) in [(&memory, 0o400, 0), (&on_disk, 0o640, 1000)] {
            let file = path.join("file");
            std::fs::write(&file, "told").unwrap();
            std::fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            std::os::unix::fs::chown(&file, Some(user), Some(2000)).unwrap();
        }
        let mounts = vec![
            Mount::bind(&memory, "/secret", true),
            Mount::bind(&on_disk, "/data", false),
            Mount::bind(on_disk.join("file"), "/data/below/file", false),
            Mount {
                propagation: Propagation::HostToContainer,
                ..Mount::bind(&memory, "/passing", true)
            },
        ];
        let script = "stat -c '%u:%g %a %n' /secret /secret/file /data/file /data/below/file /passing/file; cat /secret/file; \
                      echo; touch /secret/x 2>&1; chown 5:5 /data/file && stat -c %u:%g /data/file /data/below/file";
        let config = ContainerConfig {
            mounts,
            ..container("volumes", script)
        };
        let told = said(runtime, sandbox, &config).await;
        kedge_host::mounts::detach(&memory).unwrap();
        expect![[r#"
            0:0 755 /secret
            0:2000 400 /secret/file
            1000:2000 640 /data/file
            1000:2000 640 /data/below/file
            0:2000 400 /passing/file
            told
            touch: /secret/x: Read-only file system
            5:5
            5:5"#]]
        .assert_eq(&told);
        assert_eq!(owner(&on_disk.join("file")), (5, 5));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_said() {
    on_a_node(RootfsChoice::Automatic, async |node, runtime, sandbox| {
        let mut refusals = Vec::new();
        let with = |mount: Mount| ContainerConfig {
            mounts: vec![mount],
            ..container("refused", "true")
        };
        refusals.push(refusal(runtime, sandbox, &with(Mount::bind("/sys/kernel", "/k", true))).await);
        let both_ways = Mount {
            propagation: Propagation::Bidirectional,
            ..Mount::bind(&node.directory, "/both", false)
        };
        refusals.push(refusal(runtime, sandbox, &with(both_ways)).await);
        let strange = |user, group| {
            let security = Security {
                user: Some(user),
                group: Some(group),
                ..Security::default()
            };
            secured("strange", "true", security)
        };
        refusals.push(refusal(runtime, sandbox, &strange(LENGTH, 0)).await);
        refusals.push(refusal(runtime, sandbox, &strange(0, LENGTH)).await);
        for refused in [
            SandboxConfig {
                host_network: true,
                ..pod(node, "net", SECOND)
            },
            SandboxConfig {
                host_pid: true,
                ..pod(node, "pid", SECOND)
            },
        ] {
            refusals.push(runtime.run_sandbox(&refused).await.unwrap_err().to_string());
        }
        expect![[r#"
            create container refused: mount /sys/kernel: its file system does not let the owners of files be mapped, which a pod with users of its own (hostUsers: false) needs
            mount /both: what a pod with users of its own (hostUsers: false) mounts cannot pass to the node (mountPropagation: Bidirectional)
            create container strange: user 65536 is not among those of a pod with users of its own (hostUsers: false)
            create container strange: group 65536 is not among those of a pod with users of its own (hostUsers: false)
            run sandbox of pod default/net: a pod with users of its own (hostUsers: false) shares neither network nor processes nor IPC with the node
            run sandbox of pod default/pid: a pod with users of its own (hostUsers: false) shares neither network nor processes nor IPC with the node"#]]
        .assert_eq(&refusals.join("\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_are_those_that_were_given() {
    on_a_node(RootfsChoice::Automatic, async |_, runtime, sandbox| {
        let config = ContainerConfig {
            devices: vec![Device {
                host_path: "/dev/full".into(),
                container_path: "/dev/given/one".into(),
                permissions: "rw".to_owned(),
            }],
            ..container(
                "devices",
                "ls /dev | tr '\\n' ' '; (echo x > /dev/given/one) 2>&1; head -c 4 /dev/urandom | wc -c",
            )
        };
        let told = said(runtime, sandbox, &config).await;
        expect![[r#"
            fd full given mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero sh: write error: No space left on device
            4"#]]
        .assert_eq(&told);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_are_shared_within_the_pod() {
    on_a_node(RootfsChoice::Automatic, async |node, runtime, _| {
        let config = SandboxConfig {
            share_pid: true,
            ..pod(node, "sharing", SECOND)
        };
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let shared = |name: &str, script: &str| {
            let security = Security {
                pid: PidNamespace::Pod,
                ..Security::default()
            };
            secured(name, script, security)
        };
        let id = run(runtime, &sandbox, &shared("main", UNTIL_TERM)).await;
        wait_for_line(runtime, &id, "up").await;
        let script = "ps -o user,comm | grep -E 'kedge-pod|busybox|sh' | sort -u | head -3; ls /proc/1/root 2>&1 | head -1";
        let told = said(runtime, &sandbox, &shared("other", script)).await;
        expect![[r#"
            0        busybox
            65534    kedge-pod
            ls: /proc/1/root: Permission denied"#]]
        .assert_eq(&told);
        let all = Security {
            add_capabilities: vec!["ALL".to_owned()],
            pid: PidNamespace::Pod,
            ..Security::default()
        };
        let script = "ls -d /proc/1/root/etc 2>/dev/null; kill -9 1; kill -0 1 && echo lives";
        let told = said(runtime, &sandbox, &secured("mighty", script, all.clone())).await;
        assert_eq!(told, "lives", "nothing of the node is seen through the first process");
        let config = SandboxConfig {
            share_pid: true,
            ..node.sandbox("of-node")
        };
        let sandbox = runtime.run_sandbox(&config).await.unwrap();
        let told = said(runtime, &sandbox, &secured("mighty", script, all)).await;
        assert_eq!(told, "lives", "nor where the pod has the node's users");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_agent_finds_the_pods_users() {
    on_a_node(RootfsChoice::Automatic, async |_, _, _| {
        // The story's own runtime keeps its directory to itself, so this one has another.
        let other = Node::new();
        let runtime = other.runtime_with_image().await;
        let sandbox = runtime.run_sandbox(&pod(&other, "pod", SECOND)).await.unwrap();
        let id = run(&runtime, &sandbox, &container("main", UNTIL_TERM)).await;
        wait_for_line(&runtime, &id, "up").await;
        let pid = runtime.process_of(&id).await.unwrap().unwrap();
        drop(runtime);
        let runtime = other.runtime().await;
        assert_eq!(runtime.process_of(&id).await.unwrap(), Some(pid), "it runs on");
        assert_eq!(map_of(pid, "uid_map"), [0, SECOND, LENGTH]);
        assert_eq!(
            told(&runtime, &id, "cat /proc/self/uid_map | tr -s ' '").await,
            format!("0 {SECOND} {LENGTH}")
        );
        let next = container("next", "cat /proc/self/uid_map | tr -s ' '");
        assert_eq!(
            said(&runtime, &sandbox, &next).await.trim(),
            format!("0 {SECOND} {LENGTH}")
        );
        let stats = runtime.stats().await.unwrap();
        let of_pod = stats.iter().find(|stats| stats.id == sandbox).unwrap();
        assert_eq!(of_pod.containers.len(), 1, "{of_pod:?}");
        other.end(runtime).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_roots_are_mapped() {
    for choice in [RootfsChoice::Automatic, RootfsChoice::Fuse, RootfsChoice::Copy] {
        on_a_node(choice, async |_, runtime, sandbox| {
            let script = "stat -c '%u:%g %n' / /bin/busybox; touch /x && stat -c %u /x; cat /proc/self/uid_map | tr -s ' '; \
                rm /etc/group; chown app:100 /etc/passwd; stat -c %u:%g /etc/passwd; ls /etc/group";
            let (code, told) = outcome(runtime, sandbox, &container("root", script)).await;
            assert_eq!(code, 1, "what was deleted is not there");
            expect![[r#"
                0:0 /
                0:0 /bin/busybox
                0
                 0 131072 65536
                1000:100
                ls: /etc/group: No such file or directory"#]]
            .assert_eq(&told.join("\n"));
        })
        .await;
    }
}
