//! What a kubelet serves on connections that are upgraded: commands in containers, attaching to them, ports of pods.
//! Only the tunnel leads here.

use crate::beside::{Beside, PodView};
use crate::hands::chain;
use crate::logs::query::decode;
use kedge_api::Container;
use kedge_containers::{ContainerId, ContainerState, ObservedSandbox, SandboxId, Talk, TerminalSize};
use kedge_runtime::{Input, Output, Runtime, Served, Session};
use kedge_streaming::{
    CommandDoor, Connection, Error, ForwardDoor, FromProcess, Io, Process, Refusal, Status, ToProcess,
    Wanted, refuse, remote, unless_idle,
};
use kedge_telemetry::channel::queue;
use kedge_wire::tunnel::NodeConnect;
use std::sync::Arc;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

/// How much of a path is shown again.
const PATH_CHARS_MAX: usize = 80;

/// Serves connections as they come. The tunnel bounds their number.
pub(super) async fn serve_all(beside: Arc<Beside>, mut connections: queue::Receiver<Connection>) {
    while let Some(connection) = connections.recv().await {
        let beside = Arc::clone(&beside);
        let scope = beside.scope.clone();
        scope.spawn_until_cancelled("edged-connection", async move {
            serve(&beside, connection).await;
        });
    }
}

async fn serve(beside: &Beside, connection: Connection) {
    let path: String = connection.request.path.chars().take(PATH_CHARS_MAX).collect();
    let idle = beside.config.face.streaming_idle;
    let serving = connection
        .serve(|request, stream| unless_idle(stream, idle, |stream| answer(beside, request, stream)));
    match serving.await {
        Some(Ok(())) => tracing::debug!(path, "conversation ended"),
        Some(Err(error)) => tracing::debug!(path, %error, "conversation broke off"),
        None => tracing::debug!(path, "the other side of a conversation hung up"),
    }
}

async fn answer(beside: &Beside, request: NodeConnect, mut io: impl Io + 'static) -> Result<(), Error> {
    let found = match Asked::parse(&request) {
        Ok(asked) if beside.config.face.debugging_handlers => {
            find(&asked, &beside.pods.borrow(), &beside.seen.borrow())
        }
        Ok(_) => Err(Refusal::new(405, "Debug endpoints are disabled.")),
        Err(refusal) => Err(refusal),
    };
    let opened = found.and_then(|found| match found {
        Found::Command(id, talk, act) => Ok(Opened::Command(CommandDoor::of(&request)?, id, talk, act)),
        Found::Pod(sandbox) => Ok(Opened::Ports(ForwardDoor::of(&request)?, sandbox)),
    });
    match opened {
        Ok(Opened::Command(door, id, talk, act)) => {
            command(&*beside.runtime, door, io, request, (id, talk, act)).await
        }
        Ok(Opened::Ports(door, sandbox)) => ports(&beside.runtime, door, io, sandbox).await,
        Err(refusal) => Ok(refuse(&mut io, &refusal).await?),
    }
}

/// What shall be done with a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Exec,
    Attach,
}

/// A request that makes sense, whether or not there is such a pod.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Command {
        act: Act,
        pod: PodAsked,
        container: String,
        talk: Talk,
    },
    Ports(PodAsked),
}

#[derive(Debug, PartialEq, Eq)]
struct PodAsked {
    namespace: String,
    name: String,
    uid: Option<String>,
}

enum Found {
    Command(ContainerId, Talk, Act),
    Pod(SandboxId),
}

enum Opened {
    Command(CommandDoor, ContainerId, Talk, Act),
    Ports(ForwardDoor, SandboxId),
}

impl Asked {
    fn parse(request: &NodeConnect) -> Result<Self, Refusal> {
        let parts: Vec<String> = request.path.trim_matches('/').split('/').map(decode).collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let pod = |namespace: &str, name: &str, uid: Option<&str>| PodAsked {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.map(str::to_owned),
        };
        let (act, pod, container) = match parts[..] {
            ["portForward", namespace, name] => return Ok(Self::Ports(pod(namespace, name, None))),
            ["portForward", namespace, name, uid] => {
                return Ok(Self::Ports(pod(namespace, name, Some(uid))));
            }
            ["exec", namespace, name, container] => (Act::Exec, pod(namespace, name, None), container),
            ["exec", namespace, name, uid, container] => {
                (Act::Exec, pod(namespace, name, Some(uid)), container)
            }
            ["attach", namespace, name, container] => (Act::Attach, pod(namespace, name, None), container),
            ["attach", namespace, name, uid, container] => {
                (Act::Attach, pod(namespace, name, Some(uid)), container)
            }
            ["run", ..] => {
                let why =
                    "commands are run by /exec, with somebody who reads what they say; /run is not served";
                return Err(Refusal::new(403, why));
            }
            _ => {
                let shown: String = request.path.chars().take(PATH_CHARS_MAX).collect();
                return Err(Refusal::new(404, format!("there is no {shown} here")));
            }
        };
        let talk = talk(act, &request.query)?;
        let container = container.to_owned();
        Ok(Self::Command {
            act,
            pod,
            container,
            talk,
        })
    }
}

/// The query as a kubelet reads it: `1` says yes.
fn talk(act: Act, query: &str) -> Result<Talk, Refusal> {
    let mut talk = Talk::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = decode(value);
        let yes = matches!(value.as_str(), "1" | "true");
        match name {
            "command" if act == Act::Exec => talk.command.push(value),
            // The names of a kubelet, and those of the API server, which some clients use here.
            "input" | "stdin" => talk.stdin = yes,
            "output" | "stdout" => talk.stdout = yes,
            "error" | "stderr" => talk.stderr = yes,
            "tty" => talk.tty = yes,
            _ => {}
        }
    }
    // A terminal has one output.
    talk.stderr &= !talk.tty;
    if !(talk.stdin || talk.stdout || talk.stderr) {
        let why = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal::new(400, why));
    }
    if act == Act::Exec && talk.command.is_empty() {
        return Err(Refusal::new(400, "you must specify a command"));
    }
    Ok(talk)
}

/// The container or sandbox that is meant. The words of a refusal are a kubelet's.
fn find(asked: &Asked, pods: &[PodView], seen: &[ObservedSandbox]) -> Result<Found, Refusal> {
    let (Asked::Command { pod, .. } | Asked::Ports(pod)) = asked;
    let view = pods.iter().find(|view| {
        let metadata = &view.pod.metadata;
        view.pod.namespace() == pod.namespace
            && metadata.name == pod.name
            && (pod.uid.is_none() || pod.uid == metadata.uid)
    });
    let view = view.ok_or_else(|| Refusal::new(404, "pod does not exist"))?;
    let uid = view.pod.metadata.uid.as_deref().unwrap_or_default();
    let sandboxes = seen.iter().filter(|sandbox| sandbox.pod.uid == uid);
    match asked {
        Asked::Ports(_) => {
            let newest = sandboxes
                .filter(|sandbox| sandbox.ready)
                .max_by_key(|sandbox| (sandbox.attempt, sandbox.created_ms));
            let full_name = format!("{}_{}", pod.name, pod.namespace);
            let none = || Refusal::new(500, format!("pod not found ({full_name:?})"));
            newest
                .map(|sandbox| Found::Pod(sandbox.id.clone()))
                .ok_or_else(none)
        }
        Asked::Command {
            act, container, talk, ..
        } => {
            let running = sandboxes
                .flat_map(|sandbox| &sandbox.containers)
                .filter(|observed| observed.name == *container)
                .filter(|observed| matches!(observed.state, ContainerState::Running { .. }))
                .max_by_key(|observed| (observed.attempt, observed.created_ms));
            let none = || Refusal::new(500, format!("container not found ({container:?})"));
            let id = running.ok_or_else(none)?.id.clone();
            let talk = match act {
                Act::Exec => talk.clone(),
                Act::Attach => as_started(talk, view.pod.container(container)),
            };
            Ok(Found::Command(id, talk, *act))
        }
    }
}

/// Whether a process has a terminal was decided when it was started.
fn as_started(talk: &Talk, container: Option<&Container>) -> Talk {
    let tty = container.is_some_and(|container| container.tty);
    Talk {
        tty,
        stderr: talk.stderr && !tty,
        ..talk.clone()
    }
}

async fn command(
    runtime: &dyn Runtime,
    door: CommandDoor,
    io: impl Io + 'static,
    request: NodeConnect,
    (id, talk, act): (ContainerId, Talk, Act),
) -> Result<(), Error> {
    let wanted = Wanted {
        stdin: talk.stdin,
        stdout: talk.stdout,
        stderr: talk.stderr,
        tty: talk.tty,
    };
    let served = match act {
        Act::Exec => runtime.exec(&id, &talk).await,
        Act::Attach => runtime.attach(&id, &talk).await,
    };
    match served {
        Ok(Served::At(url)) => door.serve_at(io, wanted, &url, &request).await,
        Ok(Served::Here(session)) => {
            let (process, inputs, outputs) = Process::pair();
            let status = |code| match act {
                Act::Exec => Status::exited(&talk.command, code),
                // Who was attached to it learns how it ended from its pod.
                Act::Attach => Status::success(),
            };
            let relay = relay(session, inputs, outputs, status);
            let (served, ()) = tokio::join!(door.serve(io, wanted, Ok(process)), relay);
            served
        }
        Err(error) => {
            let act = match act {
                Act::Exec => "error executing command in container",
                Act::Attach => "error attaching to container",
            };
            door.serve(io, wanted, Err(format!("{act}: {}", chain(&error))))
                .await
        }
    }
}

/// Between a session of the runtime and the ends that are served, until the process has ended or nobody listens.
async fn relay(
    session: Session,
    mut inputs: mpsc::Receiver<ToProcess>,
    outputs: mpsc::Sender<FromProcess>,
    status: impl Fn(i32) -> Status,
) {
    let Session { input, mut output } = session;
    let inward = async {
        while let Some(said) = inputs.recv().await {
            let said = match said {
                ToProcess::Bytes(bytes) => Input::Bytes(bytes),
                ToProcess::End => Input::End,
                ToProcess::Resize { width, height } => Input::Resize(TerminalSize { width, height }),
            };
            // A process that reads no more may still speak.
            let _ = input.send(said).await;
        }
        std::future::pending::<()>().await;
    };
    let outward = async {
        while let Some(said) = output.recv().await {
            let said = match said {
                Output::Stdout(bytes) => FromProcess::Stdout(bytes),
                Output::Stderr(bytes) => FromProcess::Stderr(bytes),
                Output::Ended(code) => FromProcess::Ended(status(code)),
            };
            if outputs.send(said).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = inward => {}
        () = outward => {}
        () = outputs.closed() => {}
    }
}

async fn ports(
    runtime: &Arc<dyn Runtime>,
    door: ForwardDoor,
    io: impl Io + 'static,
    sandbox: SandboxId,
) -> Result<(), Error> {
    let carry = |port: u16, io: DuplexStream| {
        let (runtime, sandbox) = (Arc::clone(runtime), sandbox.clone());
        async move { carry(&*runtime, &sandbox, port, io).await }
    };
    door.serve(io, carry).await
}

async fn carry(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    port: u16,
    mut io: DuplexStream,
) -> Result<(), String> {
    match runtime.connect(sandbox, port).await {
        Ok(Served::Here(mut socket)) => {
            // A connection that is reset has ended, and who reads from it sees that.
            let _ = tokio::io::copy_bidirectional(&mut io, &mut socket).await;
            Ok(())
        }
        Ok(Served::At(url)) => remote::forward(&url, port, io).await,
        Err(error) => Err(format!(
            "error forwarding port {port} to pod {}, uid : {}",
            sandbox.0,
            chain(&error)
        )),
    }
}

#[cfg(test)]
mod tests;
