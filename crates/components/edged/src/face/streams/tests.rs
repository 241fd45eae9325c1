use super::*;
use bytes::Bytes;
use expect_test::{Expect, expect};
use kedge_api::{Pod, PodStatus};
use kedge_containers::{ExitReason, ObservedContainer, PodIdentity};
use kedge_pods::PodSource;
use serde_json::json;

fn parse(target: &str) -> Result<Asked, Refusal> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    Asked::parse(&NodeConnect {
        method: "POST".to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
    })
}

fn check(target: &str, expected: Expect) {
    let told = match parse(target) {
        Ok(Asked::Command {
            act,
            pod,
            container,
            talk,
        }) => {
            let flags = [
                (talk.stdin, "in"),
                (talk.stdout, "out"),
                (talk.stderr, "err"),
                (talk.tty, "tty"),
            ];
            let flags: Vec<&str> = flags
                .iter()
                .filter(|(is, _)| *is)
                .map(|(_, name)| *name)
                .collect();
            format!(
                "{act:?} {}/{}{} {container} {:?} {}",
                pod.namespace,
                pod.name,
                pod.uid.map(|uid| format!(" {uid}")).unwrap_or_default(),
                talk.command,
                flags.join("+")
            )
        }
        Ok(Asked::Ports(pod)) => format!("ports {}/{} {:?}", pod.namespace, pod.name, pod.uid),
        Err(refusal) => format!("{} {refusal}", refusal.status),
    };
    expected.assert_eq(&told);
}

#[test]
fn requests_are_read_as_a_kubelet_does() {
    check(
        "/exec/default/web-5fc8d484f-knxvb/c?command=%2Fbin%2Fecho&command=exec-ok&error=1&output=1",
        expect![[r#"Exec default/web-5fc8d484f-knxvb c ["/bin/echo", "exec-ok"] out+err"#]],
    );
    check(
        "/exec/default/web/u-1/c?command=sh&command=-c&command=exit+3&input=1&output=1&tty=1&error=1",
        expect![[r#"Exec default/web u-1 c ["sh", "-c", "exit 3"] in+out+tty"#]],
    );
    check(
        "/attach/default/web/c?input=1&output=1&error=1&command=x",
        expect!["Attach default/web c [] in+out+err"],
    );
    check("/portForward/default/web", expect!["ports default/web None"]);
    check(
        "/portForward/default/web/u-1",
        expect![[r#"ports default/web Some("u-1")"#]],
    );
    check(
        "/exec/default/web/c?command=ls",
        expect!["400 you must specify at least 1 of stdin, stdout, stderr"],
    );
    check(
        "/exec/default/web/c?output=1",
        expect!["400 you must specify a command"],
    );
    check(
        "/run/default/web/c?cmd=ls",
        expect!["403 commands are run by /exec, with somebody who reads what they say; /run is not served"],
    );
    check(
        "/exec/default/web",
        expect!["404 there is no /exec/default/web here"],
    );
    check("/logs/messages", expect!["404 there is no /logs/messages here"]);
}

fn pods() -> Vec<PodView> {
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": "web", "namespace": "default", "uid": "u-1" },
        "spec": { "containers": [{ "name": "c", "tty": true }, { "name": "dead" }] },
    }))
    .unwrap();
    vec![PodView {
        pod: Arc::new(pod),
        status: Arc::new(PodStatus::default()),
        source: PodSource::Api,
        admitted: true,
    }]
}

fn container(id: &str, name: &str, attempt: u32, state: ContainerState) -> ObservedContainer {
    ObservedContainer {
        id: ContainerId(id.to_owned()),
        name: name.to_owned(),
        attempt,
        image: String::new(),
        image_ref: String::new(),
        spec_hash: String::new(),
        created_ms: 0,
        state,
        log_path: Default::default(),
    }
}

fn seen() -> Vec<ObservedSandbox> {
    let ended = || ContainerState::Exited {
        started_ms: 1,
        finished_ms: 2,
        exit_code: 1,
        reason: ExitReason::Error,
        message: String::new(),
    };
    let running = || ContainerState::Running { started_ms: 1 };
    let sandbox = |id: &str, attempt, ready, containers| ObservedSandbox {
        id: SandboxId(id.to_owned()),
        pod: PodIdentity {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u-1".to_owned(),
        },
        attempt,
        ready,
        created_ms: 0,
        ips: Vec::new(),
        containers,
    };
    vec![
        sandbox("old", 0, false, vec![container("c-old", "c", 0, ended())]),
        sandbox(
            "new",
            1,
            true,
            vec![
                container("c-1", "c", 1, ended()),
                container("c-2", "c", 2, running()),
                container("d-1", "dead", 0, ended()),
            ],
        ),
    ]
}

fn found(target: &str, seen: &[ObservedSandbox]) -> Result<String, String> {
    let asked = parse(target).unwrap();
    match find(&asked, &pods(), seen) {
        Ok(Found::Command(id, talk, _)) => Ok(format!("{} tty={} stderr={}", id.0, talk.tty, talk.stderr)),
        Ok(Found::Pod(sandbox)) => Ok(sandbox.0),
        Err(refusal) => Err(format!("{} {refusal}", refusal.status)),
    }
}

#[test]
fn only_what_runs_is_talked_with() {
    let seen = seen();
    let told = |target: &str| found(target, &seen);
    let exec =
        |pod: &str, container: &str| told(&format!("/exec/{pod}/{container}?command=ls&output=1&error=1"));
    assert_eq!(exec("default/web", "c"), Ok("c-2 tty=false stderr=true".into()));
    assert_eq!(
        exec("default/web/u-1", "c"),
        Ok("c-2 tty=false stderr=true".into())
    );
    assert_eq!(exec("default/web/u-0", "c"), Err("404 pod does not exist".into()));
    assert_eq!(exec("other/web", "c"), Err("404 pod does not exist".into()));
    for gone in ["dead", "none"] {
        let refused = format!("500 container not found ({gone:?})");
        assert_eq!(exec("default/web", gone), Err(refused));
    }
    // Whether there is a terminal was decided at its start.
    assert_eq!(
        told("/attach/default/web/c?output=1&error=1"),
        Ok("c-2 tty=true stderr=false".into())
    );
    assert_eq!(told("/portForward/default/web"), Ok("new".into()));
    assert_eq!(
        found("/portForward/default/web", &seen[..1]),
        Err("500 pod not found (\"web_default\")".into())
    );
}

#[tokio::test]
async fn a_session_is_passed_on_up_to_its_ending() {
    let (input, mut inputs) = mpsc::channel(Session::WAITING_MAX);
    let (outputs, output) = mpsc::channel(Session::WAITING_MAX);
    let (
        Process {
            input: say,
            output: mut hear,
        },
        to,
        from,
    ) = Process::pair();
    let command = ["ls".to_owned()];
    let relaying = relay(Session { input, output }, to, from, |code| {
        Status::exited(&command, code)
    });
    let talking = async {
        say.send(ToProcess::Resize {
            width: 80,
            height: 24,
        })
        .await
        .unwrap();
        say.send(ToProcess::End).await.unwrap();
        let size = TerminalSize {
            width: 80,
            height: 24,
        };
        assert_eq!(inputs.recv().await, Some(Input::Resize(size)));
        assert_eq!(inputs.recv().await, Some(Input::End));
        let bytes = Bytes::from_static(b"x");
        outputs.send(Output::Stderr(bytes.clone())).await.unwrap();
        outputs.send(Output::Ended(2)).await.unwrap();
        drop(outputs);
        assert_eq!(hear.recv().await, Some(FromProcess::Stderr(bytes)));
        let ended = FromProcess::Ended(Status::exited(&command, 2));
        assert_eq!(hear.recv().await, Some(ended));
        assert_eq!(hear.recv().await, None);
    };
    tokio::join!(relaying, talking);
    assert_eq!(inputs.recv().await, None, "hung up");
}
