//! Containers that are bound to CPUs, as they see it themselves. Needs root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod node;

use kedge_containers::{ContainerConfig, ContainerId, Resources};
use kedge_runtime::{Embedded, Runtime};
use node::{Node, UNTIL_TERM, container, run};
use std::time::Duration;

const EXEC_MAX: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_secs(30);

fn bound(cpus: &str) -> Resources {
    Resources {
        cpuset_cpus: Some(cpus.to_owned()),
        ..Resources::default()
    }
}

/// Where the first process of a container may run, in the words of the kernel within the container.
async fn allowed(runtime: &Embedded, id: &ContainerId) -> String {
    let command = ["/bin/busybox", "grep", "Cpus_allowed_list", "/proc/1/status"].map(str::to_owned);
    let output = runtime.exec_sync(id, &command, EXEC_MAX).await.unwrap();
    assert_eq!(output.exit_code, 0, "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().last().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_container_has_a_cpu_alone_and_the_other_moves_away() {
    let online = kedge_host::processors::processors(&kedge_host::Root::machine()).unwrap();
    if !Node::can_run_containers() || online.cpus.len() < 2 {
        return eprintln!("skipped: it takes root and two CPUs");
    }
    let (first, second) = (online.cpus[0].id, online.cpus[1].id);
    let node = Node::new();
    let runtime = Embedded::open(node.config()).await.unwrap();
    runtime.import_image(node.archive()).await.unwrap();
    let sandbox = runtime.run_sandbox(&node.sandbox("pod")).await.unwrap();
    node.live(runtime, &sandbox, async |_, runtime, sandbox| {
        let of = |name: &str, cpus: &str| ContainerConfig {
            resources: bound(cpus),
            ..container(name, UNTIL_TERM)
        };
        let shared = run(runtime, sandbox, &of("shared", &format!("{first},{second}"))).await;
        let expected = if second == first + 1 {
            format!("{first}-{second}")
        } else {
            format!("{first},{second}")
        };
        assert_eq!(allowed(runtime, &shared).await, expected);

        // Another one gets the second CPU alone: the shared ones shrink, as edged orders it.
        let alone = run(runtime, sandbox, &of("alone", &second.to_string())).await;
        runtime
            .update_container(&shared, &bound(&first.to_string()))
            .await
            .unwrap();
        assert_eq!(allowed(runtime, &alone).await, second.to_string());
        assert_eq!(allowed(runtime, &shared).await, first.to_string());

        runtime.stop_container(&alone, GRACE).await.unwrap();
        runtime
            .update_container(&shared, &bound(&expected))
            .await
            .unwrap();
        assert_eq!(allowed(runtime, &shared).await, expected);
        runtime.stop_container(&shared, GRACE).await.unwrap();
    })
    .await;
}
