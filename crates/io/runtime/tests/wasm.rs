//! WebAssembly modules as containers: everything around them is as around every container. Needs root, and the feature
//! `wasm`.

#![cfg(feature = "wasm")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use futures_util::FutureExt;
use kedge_containers::{
    ContainerConfig, ExitReason, Mount, Resources, SandboxConfig, SandboxId, Seccomp, Security,
};
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use kedge_runtime::{Embedded, Runtime, Served};
use node::{Node, exit_of, log, outcome_in, run_in, wait_for_line};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::{Duration, Instant};

const GRACE: Duration = Duration::from_secs(30);
const MIB: i64 = 1024 * 1024;
const IMAGE: &str = "kedge.test/module:1";
/// Where the image has its module.
const MODULE: &str = "/module.wasm";

/// What a module calls, and its memory; texts are written by each module itself.
const PRELUDE: &str = r#"
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sock_accept" (func $sock_accept (param i32 i32 i32) (result i32)))
    (func $say (param $at i32) (param $length i32)
        (i32.store (i32.const 0) (local.get $at))
        (i32.store (i32.const 4) (local.get $length))
        (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
    (func $must (param $answer i32)
        (if (local.get $answer) (then (call $proc_exit (local.get $answer)))))
"#;

const UP: &str = r#"(data (i32.const 64) "up\n")"#;
const SAY_UP: &str = "(call $say (i32.const 64) (i32.const 3))";

/// A module of one page of memory that does this.
fn module(more: &str, start: &str) -> Vec<u8> {
    module_with("1", more, start)
}

fn module_with(memory: &str, more: &str, start: &str) -> Vec<u8> {
    let text = format!(
        "(module {PRELUDE} (memory (export \"memory\") {memory}) {more} (func (export \"_start\") {start}))"
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// An image that has nothing but a module.
fn image(module: Vec<u8>) -> Vec<u8> {
    let blueprint = Blueprint {
        reference: IMAGE.to_owned(),
        entrypoint: vec![MODULE.to_owned(), "from-image".to_owned()],
        env: vec![("FROM_IMAGE".into(), "yes".into())],
        files: vec![FileInImage {
            path: MODULE.into(),
            mode: 0o644,
            bytes: module,
        }],
        ..Blueprint::default()
    };
    build_archive(&blueprint).unwrap()
}

fn container(name: &str) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        log_path: Path::new(name).join("0.log"),
        spec_hash: "hash".to_owned(),
        ..ContainerConfig::default()
    }
}

/// A pod of modules on a node of its own.
struct Stage {
    node: Node,
    runtime: Embedded,
    pod: SandboxConfig,
    sandbox: SandboxId,
}

impl Stage {
    /// Has the image hold this module from now on.
    async fn put(&self, module: Vec<u8>) {
        let archive = self.node.write("module.tar", &image(module));
        self.runtime.import_image(archive).await.unwrap();
    }

    async fn outcome(&self, config: &ContainerConfig) -> (i32, Vec<String>) {
        outcome_in(&self.runtime, &self.sandbox, &self.pod, config).await
    }

    async fn refusal(&self, config: &ContainerConfig) -> String {
        let created = self
            .runtime
            .create_container(&self.sandbox, &self.pod, config)
            .await;
        node::sentence(&created.unwrap_err())
    }
}

/// Plays a story and proves that it leaves nothing behind.
async fn on_stage(story: impl AsyncFnOnce(&Stage)) {
    if !Node::can_run_containers() {
        return;
    }
    let mut node = Node::new();
    node.handler = "wasm".to_owned();
    let runtime = node.runtime().await;
    let pod = node.sandbox("modules");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let stage = Stage {
        node,
        runtime,
        pod,
        sandbox,
    };
    let told = AssertUnwindSafe(story(&stage)).catch_unwind().await;
    match told {
        Ok(()) => stage.node.end(stage.runtime).await,
        Err(failure) => {
            stage.runtime.purge().await.unwrap();
            std::panic::resume_unwind(failure)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_has_arguments_environment_and_an_exit_code() {
    on_stage(async |stage| {
        let status = stage.runtime.status().await.unwrap();
        assert!(
            status.handlers.contains(&"wasm".to_owned()) && !status.missing_handlers.contains_key("wasm")
        );
        let texts = |get: &str, sizes: &str| {
            format!(
                "(call $must (call ${sizes} (i32.const 16) (i32.const 20)))
                 (call $must (call ${get} (i32.const 1024) (i32.const 4096)))
                 (call $say (i32.const 4096) (i32.load (i32.const 20)))
                 (call $say (i32.const 64) (i32.const 1))"
            )
        };
        let start = format!(
            "{}{}(call $proc_exit (i32.const 7))",
            texts("args_get", "args_sizes_get"),
            texts("environ_get", "environ_sizes_get")
        );
        stage.put(module(r#"(data (i32.const 64) "\n")"#, &start)).await;
        let config = ContainerConfig {
            env: vec![("FROM_POD".into(), "yes".into())],
            working_dir: Some("/".into()),
            ..container("main")
        };
        let (code, lines) = stage.outcome(&config).await;
        assert_eq!((code, lines[0].as_str()), (7, "/module.wasm\0from-image\0"));
        for variable in [
            "FROM_IMAGE=yes\0",
            "FROM_POD=yes\0",
            "HOSTNAME=modules\0",
            "PWD=/\0",
        ] {
            assert!(lines[1].contains(variable), "{variable:?} in {lines:?}");
        }
        let given = ContainerConfig {
            args: vec!["one".into(), "two".into()],
            ..container("args")
        };
        assert_eq!(
            stage.outcome(&given).await.1[0],
            "/module.wasm\0from-image\0one\0two\0"
        );
        let missing = ContainerConfig {
            command: vec!["/no/such.wasm".into()],
            ..container("missing")
        };
        let why = stage.refusal(&missing).await;
        assert!(
            why.contains("module /no/such.wasm is not in the container"),
            "{why}"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_has_the_files_of_its_container() {
    on_stage(async |stage| {
        let volume = stage.node.directory.join("volume");
        std::fs::create_dir_all(&volume).unwrap();
        // It makes a file in a volume, one in its root, and looks for what no module shall find.
        let open = |path: &str, at: u32, how: u32| {
            let length = path.len();
            let text = format!("(data (i32.const {at}) \"{path}\")");
            let call = format!(
                "(call $path_open (i32.const 3) (i32.const 1) (i32.const {at}) (i32.const {length}) (i32.const {how})
                    (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 32))"
            );
            (text, call)
        };
        let (made, make) = open("data/made", 128, 1);
        let (own, make_own) = open("own", 256, 1);
        let (memory, reach) = open("proc/self/mem", 384, 0);
        let start = format!(
            "(call $must {make})
             (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 3))
             (call $must (call $fd_write (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 8)))
             (if (i32.ne {reach} (i32.const 2)) (then (call $proc_exit (i32.const 99))))
             (call $must {make_own})"
        );
        stage.put(module(&format!("{UP}{made}{own}{memory}"), &start)).await;
        let config = |name: &str, security: Security| ContainerConfig {
            mounts: vec![Mount::bind(volume.clone(), "/data", false)],
            security,
            ..container(name)
        };
        assert_eq!(stage.outcome(&config("root", Security::default())).await, (0, vec![]));
        assert_eq!(std::fs::read_to_string(volume.join("made")).unwrap(), "up\n");
        let confined = Security {
            read_only_root: true,
            seccomp: Seccomp::RuntimeDefault,
            ..Security::default()
        };
        // A root that cannot be written to: the interface's number for that.
        assert_eq!(stage.outcome(&config("read-only", confined.clone())).await, (69, vec![]));
        let user = Security {
            user: Some(4711),
            ..confined
        };
        // A user to whom the volume does not belong.
        std::fs::remove_file(volume.join("made")).unwrap();
        assert_eq!(stage.outcome(&config("user", user)).await, (2, vec![]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_loop_ends_with_its_container() {
    on_stage(async |stage| {
        let start = format!("{SAY_UP} (loop $for_ever (br $for_ever))");
        stage.put(module(UP, &start)).await;
        let id = run_in(&stage.runtime, &stage.sandbox, &stage.pod, &container("main")).await;
        wait_for_line(&stage.runtime, &id, "up").await;
        // A command has nothing to be run with.
        let command = ["/bin/true".to_owned()];
        let refused = stage.runtime.exec_sync(&id, &command, GRACE).await.unwrap_err();
        assert!(
            refused.to_string().contains("beside which no commands are run"),
            "{refused}"
        );
        let began = Instant::now();
        stage.runtime.stop_container(&id, GRACE).await.unwrap();
        assert!(
            began.elapsed() < GRACE,
            "it ends by the first signal, though it is the first process"
        );
        assert_eq!(exit_of(&stage.runtime, &id).await, (143, ExitReason::Error));
        let id = run_in(&stage.runtime, &stage.sandbox, &stage.pod, &container("killed")).await;
        wait_for_line(&stage.runtime, &id, "up").await;
        stage.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
        let (code, _) = exit_of(&stage.runtime, &id).await;
        assert!([137, 143].contains(&code), "{code}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_module_is_in_its_log() {
    on_stage(async |stage| {
        let deep = "(func $deep (param i32) (result i32) (i32.add (i32.const 1) (call $deep (local.get 0))))";
        let cases = [
            (
                module("", "unreachable"),
                134,
                "trap: wasm `unreachable` instruction executed",
            ),
            (
                module(deep, "(drop (call $deep (i32.const 0)))"),
                134,
                "trap: call stack exhausted",
            ),
            (b"no module".to_vec(), 126, "it is no WebAssembly module"),
            (b"\0asm\x01\0\0\0\xff\xff\xff".to_vec(), 126, "it is not valid"),
            (
                b"\0asm\x0d\0\x01\0".to_vec(),
                126,
                "only modules with the interface of WASI preview 1",
            ),
        ];
        for (number, (bytes, want, words)) in cases.into_iter().enumerate() {
            stage.put(bytes).await;
            let (code, lines) = stage.outcome(&container(&format!("c{number}"))).await;
            assert_eq!(code, want, "{lines:?}");
            let said = lines.join("; ");
            assert!(
                said.starts_with("/module.wasm: ") && said.contains(words),
                "{words:?} in {said}"
            );
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_ends_at_the_containers_limit() {
    on_stage(async |stage| {
        let limited = |name: &str| ContainerConfig {
            resources: Resources {
                memory_bytes_max: Some(32 * MIB),
                ..Resources::default()
            },
            ..container(name)
        };
        // It is told that there is no more, and goes on.
        let grow = format!("(if (i32.eq (memory.grow (i32.const 1024)) (i32.const -1)) (then {SAY_UP}))");
        stage.put(module(UP, &grow)).await;
        assert_eq!(stage.outcome(&limited("grows")).await, (0, vec!["up".to_owned()]));
        stage.put(module_with("65536", "", "")).await;
        let (code, lines) = stage.outcome(&limited("begins")).await;
        assert_eq!(code, 126);
        assert_eq!(
            lines,
            ["/module.wasm: it begins with 4096 MiB of memory, and its container may have 32 MiB"]
        );
        // Step by step, until the interpreter and it have no room beside each other.
        let fill = "(local $at i32)
            (loop $more
                (if (i32.ge_u (i32.add (local.get $at) (i32.const 4)) (i32.shl (memory.size) (i32.const 16)))
                    (then (if (i32.eq (memory.grow (i32.const 1)) (i32.const -1)) (then unreachable))))
                (i32.store (local.get $at) (i32.const -1))
                (local.set $at (i32.add (local.get $at) (i32.const 4096)))
                (br $more))";
        stage.put(module("", fill)).await;
        let id = run_in(&stage.runtime, &stage.sandbox, &stage.pod, &limited("fills")).await;
        let ended = exit_of(&stage.runtime, &id).await;
        assert!(
            ended == (137, ExitReason::OomKilled) || ended == (134, ExitReason::Error),
            "{ended:?} {:?}",
            log(&stage.runtime, &id).await
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_serves_a_port_of_its_pod() {
    on_stage(async |stage| {
        let start = format!(
            "{SAY_UP}
             (loop $next
                (call $must (call $sock_accept (i32.const 4) (i32.const 0) (i32.const 32)))
                (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 3))
                (call $must (call $fd_write (i32.load (i32.const 32)) (i32.const 0) (i32.const 1) (i32.const 8)))
                (br $next))"
        );
        stage.put(module(UP, &start)).await;
        let config = ContainerConfig {
            env: vec![("KEDGE_WASM_LISTEN".into(), "0.0.0.0:8080".into())],
            security: Security {
                user: Some(4711),
                seccomp: Seccomp::RuntimeDefault,
                ..Security::default()
            },
            ..container("main")
        };
        let id = run_in(&stage.runtime, &stage.sandbox, &stage.pod, &config).await;
        wait_for_line(&stage.runtime, &id, "up").await;
        // As a port is forwarded.
        let Served::Here(socket) = stage.runtime.connect(&stage.sandbox, 8080).await.unwrap() else {
            panic!("the built-in runtime serves itself");
        };
        drop(socket);
        // As a probe looks.
        let seen = stage.runtime.list().await.unwrap();
        let address: std::net::IpAddr = seen[0].ips[0].parse().unwrap();
        let answer = tokio::task::spawn_blocking(move || {
            let mut stream = std::net::TcpStream::connect((address, 8080)).unwrap();
            let mut answer = [0; 3];
            std::io::Read::read_exact(&mut stream, &mut answer).unwrap();
            answer
        });
        assert_eq!(&answer.await.unwrap(), b"up\n");
        stage.runtime.stop_container(&id, GRACE).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_may_have_a_terminal() {
    on_stage(async |stage| {
        stage.put(module(UP, SAY_UP)).await;
        let config = ContainerConfig {
            tty: true,
            ..container("main")
        };
        let (code, lines) = stage.outcome(&config).await;
        assert_eq!((code, lines.join("").trim_end()), (0, "up"));
    })
    .await;
}
