//! The process beside each pod: how many there are, what they cost, and what outlives them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[macro_use]
mod node;

use kedge_containers::{ContainerId, ContainerState, ExitReason, Talk};
use kedge_runtime::{Embedded, Output, Runtime, Served};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use node::people::{self, Person};
use node::{Node, UNTIL_TERM, container, exit_of, find, log, run, wait_for_line};
use std::path::PathBuf;
use std::time::Duration;

const GRACE: Duration = Duration::from_secs(10);
/// Private memory of a supervisor, in KiB.
const PRIVATE_KIB_MAX: u64 = 1024;

stories! {
    a_pod_has_one_and_it_is_small
    they_rest_while_nothing_happens
    they_outlive_the_agent_and_its_upgrade
    a_lost_one_is_replaced
    how_what_it_took_over_ends_is_known
}

fn is_supervisor(person: Person) -> bool {
    person == Person::Supervisor
}

fn private_kib(pid: i32) -> u64 {
    people::number(pid, "smaps_rollup", "Private_Dirty:")
}

async fn is_running(runtime: &Embedded, id: &ContainerId) -> bool {
    matches!(
        find(runtime, id).await.unwrap().state,
        ContainerState::Running { .. }
    )
}

mod story {
    use super::*;

    pub(super) async fn a_pod_has_one_and_it_is_small(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("one")).await.unwrap();
        let other = runtime.run_sandbox(&node.sandbox("other")).await.unwrap();
        assert_eq!(people::count(is_supervisor), 2);
        let talker = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo said; exec sleep 1000";
        let mut ids = Vec::new();
        for number in 0..5 {
            ids.push(run(runtime, &sandbox, &container(&format!("c{number}"), talker)).await);
        }
        run(runtime, &other, &container("main", UNTIL_TERM)).await;
        for id in &ids {
            wait_for_line(runtime, id, "said").await;
        }
        let talk = Talk {
            stdout: true,
            ..Talk::default()
        };
        let listened = runtime.attach(&ids[0], &talk).await.unwrap();
        assert_eq!(
            people::count(is_supervisor),
            2,
            "one for each pod, however many containers it has"
        );
        for pid in people::pids(is_supervisor) {
            let private = private_kib(pid);
            println!(
                "supervisor {pid}: {private} KiB private, {} resident",
                people::number(pid, "status", "VmRSS:")
            );
            assert!(private <= PRIVATE_KIB_MAX, "{private} KiB");
            assert_eq!(people::number(pid, "status", "Threads:"), 1);
        }
        drop(listened);
        runtime.remove_sandbox(&sandbox).await.unwrap();
        assert_eq!(people::count(is_supervisor), 1, "it goes with its pod");
    }

    pub(super) async fn they_rest_while_nothing_happens(node: &Node, runtime: &Embedded) {
        for number in 0..5 {
            let sandbox = runtime
                .run_sandbox(&node.sandbox(&format!("p{number}")))
                .await
                .unwrap();
            let id = run(runtime, &sandbox, &container("main", "echo up; exec sleep 1000")).await;
            wait_for_line(runtime, &id, "up").await;
        }
        people::wait_until_at_rest(is_supervisor);
        assert_eq!(people::count(is_supervisor), 5);
    }

    pub(super) async fn they_outlive_the_agent_and_its_upgrade(node: &Node, _: &Embedded) {
        // An agent of its own, so that it can go.
        let config = || kedge_runtime::embedded::Config {
            root: node.directory.join("another"),
            ..node.config()
        };
        let old = Embedded::open(config()).await.unwrap();
        old.import_image(node.archive()).await.unwrap();
        let sandbox = old.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let id = run(&old, &sandbox, &container("main", UNTIL_TERM)).await;
        wait_for_line(&old, &id, "up").await;
        drop(old);
        // The program of the version before has another name.
        let program = program(node);
        let former = program.with_file_name("supervisor-of-before");
        std::fs::rename(&program, &former).unwrap();
        let new = Embedded::open(config()).await.unwrap();
        assert!(program.exists() && !former.exists(), "it is replaced");
        assert!(is_running(&new, &id).await);
        assert_eq!(
            people::count(is_supervisor),
            1,
            "who runs the former program goes on"
        );
        run(&new, &sandbox, &container("second", "echo second; exit 3")).await;
        new.stop_container(&id, GRACE).await.unwrap();
        assert_eq!(exit_of(&new, &id).await, (0, ExitReason::Completed));
        new.purge().await.unwrap();
        drop(new);
        std::fs::remove_dir_all(node.directory.join("another")).unwrap();
    }

    pub(super) async fn a_lost_one_is_replaced(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let id = run(runtime, &sandbox, &container("main", UNTIL_TERM)).await;
        wait_for_line(runtime, &id, "up").await;
        people::kill(std::process::id(), is_supervisor);
        // It writes nothing, so it does not notice.
        assert!(is_running(runtime, &id).await);
        let told = runtime
            .exec_sync(&id, &["/bin/busybox".to_owned(), "true".to_owned()], GRACE)
            .await
            .unwrap();
        assert_eq!(told.exit_code, 0);
        let second = run(runtime, &sandbox, &container("second", "echo second; exit 3")).await;
        assert_eq!(exit_of(runtime, &second).await, (3, ExitReason::Error));
        assert_eq!(log(runtime, &second).await, ["second"]);
        assert_eq!(people::count(is_supervisor), 1, "another has taken over");
        runtime.stop_container(&id, GRACE).await.unwrap();
        assert!(!is_running(runtime, &id).await);
        let talk = Talk {
            stdout: true,
            ..Talk::default()
        };
        let ended = runtime.attach(&id, &talk).await;
        assert!(
            !matches!(ended, Ok(Served::Here(_))),
            "nobody is there any more: {ended:?}"
        );
        let heard = runtime.exec(&second, &talk).await.map(|_| Output::Ended(0));
        assert!(heard.is_err(), "{heard:?}");
    }

    pub(super) async fn how_what_it_took_over_ends_is_known(node: &Node, runtime: &Embedded) {
        let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
        let script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done";
        let mut processes = Vec::new();
        for (name, signal, code) in [("code", Signal::SIGTERM, 7), ("signal", Signal::SIGKILL, 128 + 9)] {
            let id = run(runtime, &sandbox, &container(name, script)).await;
            wait_for_line(runtime, &id, "up").await;
            let process = runtime.process_of(&id).await.unwrap().unwrap();
            processes.push((id, Pid::from_raw(process.cast_signed()), signal, code));
        }
        people::kill(std::process::id(), is_supervisor);
        people::wait_until_gone(is_supervisor);
        for (id, process, signal, _) in &processes {
            assert!(is_running(runtime, id).await, "another has taken over");
            kill(*process, *signal).unwrap();
        }
        for (id, process, _, code) in processes {
            // Whose supervisor was killed is the child of the first process, which is this one.
            let collected = tokio::task::spawn_blocking(move || waitpid(process, None));
            collected.await.unwrap().unwrap();
            let known = if kernel_tells() { code } else { 255 };
            assert_eq!(exit_of(runtime, &id).await, (known, ExitReason::Error));
        }
    }
}

/// Whether the kernel tells everybody who holds a process how it has ended, since 6.15.
fn kernel_tells() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release
        .split(['.', '-', '\n'])
        .map_while(|number| number.parse().ok());
    (numbers.next(), numbers.next()) >= (Some(6u32), Some(15u32))
}

/// The file of the supervisors' program.
fn program(node: &Node) -> PathBuf {
    let files = std::fs::read_dir(node.directory.join("another"))
        .unwrap()
        .flatten();
    let mut programs = files.filter(|file| file.file_name().to_string_lossy().starts_with("supervisor-"));
    programs.next().expect("the runtime has written it").path()
}
