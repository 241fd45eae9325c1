//! Talking with processes in containers: commands, the container's own process, its ports.

use crate::node::{
    Node, UNTIL_TERM, container, exit_of, find, log, processes_with, run_in, sentence, wait_for_line,
    waits_to_write,
};
use crate::{GRACE, shell};
use bytes::Bytes;
use kedge_containers::{
    ContainerConfig, ContainerId, ContainerState, ExitReason, SandboxConfig, SandboxId, Talk, TerminalSize,
};
use kedge_runtime::{Error, Input, Output, Runtime, Served, Session, SocketInPod};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SIZE: TerminalSize = TerminalSize {
    width: 100,
    height: 40,
};

/// A runtime that carries the bytes itself.
pub(crate) async fn here(runtime: &dyn Runtime, node: &Node) {
    let pod = node.sandbox("talk");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let main = run_in(runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    wait_for_line(runtime, &main, "up").await;
    commands_are_talked_with(runtime, &main).await;
    commands_have_terminals(runtime, &main).await;
    commands_go_when_nobody_listens(runtime, &main).await;
    many_commands_run_beside_each_other(runtime, &main).await;
    a_slow_reader_slows_the_writer(runtime, &main).await;
    commands_that_cannot_run_say_why(runtime, &main).await;
    a_containers_own_process_is_talked_with(runtime, &sandbox, &pod).await;
    a_containers_own_process_has_a_terminal(runtime, &sandbox, &pod).await;
    ports_are_connected_to(runtime, &sandbox, &pod).await;
    runtime.remove_sandbox(&sandbox).await.unwrap();
    ports_of_the_node_are_those_of_its_pods(runtime, node).await;
}

/// A runtime with a server of its own, which says where it is.
pub(crate) async fn elsewhere(runtime: &dyn Runtime, node: &Node) {
    let pod = node.sandbox("talk");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let main = run_in(runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    wait_for_line(runtime, &main, "up").await;
    let command = talk(&["/bin/busybox", "true"]);
    let urls = [
        url(runtime.exec(&main, &command).await),
        url(runtime.attach(&main, &talk(&[])).await),
        url(runtime.connect(&sandbox, 80).await),
    ];
    for url in urls {
        assert!(url.starts_with("http://") || url.starts_with("https://"), "{url}");
    }
    let nowhere = runtime.exec(&ContainerId("nothing".into()), &command).await;
    assert!(matches!(nowhere, Err(Error::NoContainer(_))), "{nowhere:?}");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

/// A runtime without processes.
pub(crate) async fn nowhere(runtime: &dyn Runtime, node: &Node) {
    let pod = node.sandbox("talk");
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let main = run_in(runtime, &sandbox, &pod, &container("main", UNTIL_TERM)).await;
    let command = talk(&["/bin/busybox", "true"]);
    for refused in [
        runtime.exec(&main, &command).await.err(),
        runtime.attach(&main, &talk(&[])).await.err(),
        runtime.connect(&sandbox, 80).await.err(),
    ] {
        assert!(matches!(refused, Some(Error::Unsupported { .. })), "{refused:?}");
    }
    runtime.remove_sandbox(&sandbox).await.unwrap();
}

fn url<T: std::fmt::Debug>(served: Result<Served<T>, Error>) -> String {
    match served {
        Ok(Served::At(url)) => url,
        other => panic!("it is served elsewhere: {other:?}"),
    }
}

fn talk(command: &[&str]) -> Talk {
    Talk {
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        tty: false,
        stdin: true,
        stdout: true,
        stderr: true,
    }
}

fn script(text: &str) -> Talk {
    Talk {
        command: shell(text),
        ..talk(&[])
    }
}

fn with_terminal(talk: Talk) -> Talk {
    Talk {
        tty: true,
        stderr: false,
        ..talk
    }
}

async fn exec(runtime: &dyn Runtime, id: &ContainerId, talk: &Talk) -> Session {
    ours(runtime.exec(id, talk).await)
}

fn ours<T: std::fmt::Debug>(served: Result<Served<T>, Error>) -> T {
    match served {
        Ok(Served::Here(conversation)) => conversation,
        Ok(Served::At(url)) => panic!("it is served here, not at {url}"),
        Err(error) => panic!("{}", sentence(&error)),
    }
}

async fn say(session: &Session, text: &str) {
    let said = session
        .input
        .send(Input::Bytes(Bytes::copy_from_slice(text.as_bytes())))
        .await;
    said.expect("somebody listens");
}

/// Everything that is said until the end.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

async fn hear(mut session: Session) -> Heard {
    let mut heard = Heard::default();
    while let Some(output) = in_time(session.output.recv()).await {
        assert_eq!(heard.code, None, "nothing comes after the end: {output:?}");
        match output {
            Output::Stdout(bytes) => heard.stdout.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Stderr(bytes) => heard.stderr.push_str(&String::from_utf8_lossy(&bytes)),
            Output::Ended(code) => heard.code = Some(code),
        }
    }
    heard
}

/// Listens until a text was said.
async fn hear_until(session: &mut Session, text: &str) -> String {
    let mut heard = String::new();
    while !heard.contains(text) {
        match in_time(session.output.recv()).await {
            Some(Output::Stdout(bytes)) => heard.push_str(&String::from_utf8_lossy(&bytes)),
            other => panic!("{other:?} before {text:?}; heard {heard:?}"),
        }
    }
    heard
}

async fn in_time<T>(act: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(GRACE, act).await;
    done.unwrap_or_else(|_| panic!("nothing comes for {} s", GRACE.as_secs()))
}

async fn commands_are_talked_with(runtime: &dyn Runtime, id: &ContainerId) {
    let session = exec(runtime, id, &script("cat; echo err >&2; exit 3")).await;
    say(&session, "one ").await;
    say(&session, "two").await;
    session.input.send(Input::End).await.unwrap();
    let wanted = Heard {
        stdout: "one two".to_owned(),
        stderr: "err\n".to_owned(),
        code: Some(3),
    };
    assert_eq!(hear(session).await, wanted);

    // A command that was given no input finds its end.
    let deaf = Talk {
        stdin: false,
        ..script("cat; echo end; kill -9 $$")
    };
    let heard = hear(exec(runtime, id, &deaf).await).await;
    assert_eq!((heard.stdout.as_str(), heard.code), ("end\n", Some(137)));
    // What nobody wants to hear holds nobody up.
    let mute = Talk {
        stderr: false,
        ..script("head -c 200000 /dev/zero >&2; echo said")
    };
    let heard = hear(exec(runtime, id, &mute).await).await;
    assert_eq!(
        (heard.stdout.as_str(), heard.stderr.as_str(), heard.code),
        ("said\n", "", Some(0))
    );
}

async fn commands_have_terminals(runtime: &dyn Runtime, id: &ContainerId) {
    let text = "read word; test -t 0 && test -t 1 && echo \"terminal $word $(stty size)\"; exit 4";
    let session = exec(runtime, id, &with_terminal(script(text))).await;
    session.input.send(Input::Resize(SIZE)).await.unwrap();
    say(&session, "hello\n").await;
    let heard = hear(session).await;
    assert!(heard.stdout.contains("terminal hello 40 100\r\n"), "{heard:?}");
    assert_eq!(heard.code, Some(4));

    // The terminal's own characters do what they do.
    let text = "trap 'echo interrupted; exit 6' INT; echo up; while :; do sleep 0.1; done";
    let mut session = exec(runtime, id, &with_terminal(script(text))).await;
    hear_until(&mut session, "up\r\n").await;
    say(&session, "\u{3}").await;
    let heard = hear(session).await;
    assert!(heard.stdout.contains("interrupted"), "{heard:?}");
    assert_eq!(heard.code, Some(6));
}

async fn commands_go_when_nobody_listens(runtime: &dyn Runtime, id: &ContainerId) {
    for (number, terminal) in [(1, false), (2, true)] {
        let name = format!("sleep 7{number}{}", std::process::id());
        let command = script(&format!("echo up; exec {name}"));
        let command = if terminal { with_terminal(command) } else { command };
        let mut session = exec(runtime, id, &command).await;
        hear_until(&mut session, "up").await;
        drop(session);
        gone(&name).await;
    }
    let found = find(runtime, id).await.unwrap();
    assert!(
        matches!(found.state, ContainerState::Running { .. }),
        "the container goes on"
    );
}

async fn gone(command: &str) {
    let fact = async {
        while !processes_with(command).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    in_time(fact).await;
}

async fn many_commands_run_beside_each_other(runtime: &dyn Runtime, id: &ContainerId) {
    let all = (0..12).map(|number| async move {
        let command = script(&format!("cat; echo {number}; exit {number}"));
        let session = exec(runtime, id, &command).await;
        say(&session, "said ").await;
        session.input.send(Input::End).await.unwrap();
        (number, hear(session).await)
    });
    for (number, heard) in futures_util::future::join_all(all).await {
        let wanted = format!("said {number}\n");
        assert_eq!((heard.stdout, heard.code), (wanted, Some(number)));
    }
}

async fn a_slow_reader_slows_the_writer(runtime: &dyn Runtime, id: &ContainerId) {
    const BYTES: usize = 20_000_000;
    let writer = format!("/bin/busybox head -c {BYTES} /dev/zero");
    let mut session = exec(runtime, id, &script(&format!("{writer}; echo end"))).await;
    let waits = async {
        while !waits_to_write(&writer) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    in_time(waits).await;
    let mut bytes = 0;
    let code = loop {
        match in_time(session.output.recv())
            .await
            .expect("it says how it ended")
        {
            Output::Stdout(piece) => {
                assert!(piece.len() <= Session::PIECE_BYTES_MAX, "{} bytes", piece.len());
                bytes += piece.len();
            }
            Output::Stderr(text) => panic!("{text:?}"),
            Output::Ended(code) => break code,
        }
    };
    assert_eq!((bytes, code), (BYTES + "end\n".len(), 0));
}

async fn commands_that_cannot_run_say_why(runtime: &dyn Runtime, id: &ContainerId) {
    let missing = runtime.exec(id, &talk(&["/no/such"])).await;
    let words = match missing {
        Ok(Served::Here(session)) => {
            let heard = hear(session).await;
            assert_ne!(heard.code, Some(0));
            format!("{}{}", heard.stdout, heard.stderr)
        }
        Ok(Served::At(url)) => panic!("it is served here, not at {url}"),
        Err(error) => sentence(&error),
    };
    assert!(words.contains("/no/such"), "{words}");
    let nothing = ContainerId("nothing".into());
    let refused = runtime.exec(&nothing, &talk(&["true"])).await;
    assert!(matches!(refused, Err(Error::NoContainer(_))), "{refused:?}");
    let refused = runtime.attach(&nothing, &talk(&[])).await;
    assert!(matches!(refused, Err(Error::NoContainer(_))), "{refused:?}");
    let refused = runtime.connect(&SandboxId("nowhere".into()), 80).await;
    assert!(matches!(refused, Err(Error::NoSandbox(_))), "{refused:?}");
}

async fn a_containers_own_process_is_talked_with(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    pod: &SandboxConfig,
) {
    let text = "echo up; while read word; do echo \"heard $word\"; done; echo end; exit 9";
    let config = ContainerConfig {
        stdin: true,
        ..container("listener", text)
    };
    let id = run_in(runtime, sandbox, pod, &config).await;
    wait_for_line(runtime, &id, "up").await;
    let mut one = ours(runtime.attach(&id, &talk(&[])).await);
    let mut two = ours(runtime.attach(&id, &talk(&[])).await);
    say(&one, "first\n").await;
    hear_until(&mut one, "heard first\n").await;
    hear_until(&mut two, "heard first\n").await;
    // Who hangs up leaves the container and the other alone.
    drop(one);
    say(&two, "second\n").await;
    hear_until(&mut two, "heard second\n").await;
    assert_eq!(log(runtime, &id).await, ["up", "heard first", "heard second"]);
    drop(two);
    let only_listens = Talk {
        stdin: false,
        ..talk(&[])
    };
    let listener = ours(runtime.attach(&id, &only_listens).await);
    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    let heard = hear(listener).await;
    assert!(matches!(heard.code, None | Some(137)), "{heard:?}");
    assert_eq!(exit_of(runtime, &id).await, (137, ExitReason::Error));
    let ended = runtime.attach(&id, &talk(&[])).await;
    assert!(ended.is_err(), "{ended:?}");
}

async fn a_containers_own_process_has_a_terminal(
    runtime: &dyn Runtime,
    sandbox: &SandboxId,
    pod: &SandboxConfig,
) {
    let config = ContainerConfig {
        stdin: true,
        tty: true,
        ..container(
            "terminal",
            "read word; echo \"$word $(stty size) $(tty)\"; read end; exit 8",
        )
    };
    let id = run_in(runtime, sandbox, pod, &config).await;
    let mut session = ours(runtime.attach(&id, &with_terminal(talk(&[]))).await);
    session.input.send(Input::Resize(SIZE)).await.unwrap();
    say(&session, "word\n").await;
    let heard = hear_until(&mut session, "40 100").await;
    assert!(heard.contains("word 40 100"), "{heard:?}");
    say(&session, "end\n").await;
    assert_eq!(hear(session).await.code, Some(8));
    assert_eq!(exit_of(runtime, &id).await, (8, ExitReason::Error));
    let lines = log(runtime, &id).await;
    assert!(lines.iter().any(|line| line.contains("40 100")), "{lines:?}");
}

async fn connect(runtime: &dyn Runtime, sandbox: &SandboxId, port: u16) -> SocketInPod {
    // Who listens may still be starting.
    let connected = async {
        loop {
            match runtime.connect(sandbox, port).await {
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                served => return ours(served),
            }
        }
    };
    in_time(connected).await
}

async fn ports_are_connected_to(runtime: &dyn Runtime, sandbox: &SandboxId, pod: &SandboxConfig) {
    let refused = runtime.connect(sandbox, 81).await;
    assert!(refused.is_err(), "nobody listens there: {refused:?}");
    let text = "while :; do nc -l -p 80 -e /bin/busybox cat; done";
    let server = run_in(runtime, sandbox, pod, &container("server", text)).await;
    for words in ["one", "two"] {
        let mut socket = connect(runtime, sandbox, 80).await;
        in_time(socket.write_all(words.as_bytes())).await.unwrap();
        let mut heard = vec![0; words.len()];
        in_time(socket.read_exact(&mut heard)).await.unwrap();
        assert_eq!(heard, words.as_bytes());
        // Who has said everything still hears the rest.
        in_time(socket.shutdown()).await.unwrap();
        let mut rest = Vec::new();
        in_time(socket.read_to_end(&mut rest)).await.unwrap();
        assert_eq!(rest, b"");
    }
    runtime.remove_container(&server).await.unwrap();
}

async fn ports_of_the_node_are_those_of_its_pods(runtime: &dyn Runtime, node: &Node) {
    let pod = SandboxConfig {
        host_network: true,
        ..node.sandbox("talk-host")
    };
    let sandbox = runtime.run_sandbox(&pod).await.unwrap();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut socket = connect(runtime, &sandbox, port).await;
    let (mut server, _) = in_time(listener.accept()).await.unwrap();
    in_time(socket.write_all(b"ping")).await.unwrap();
    let mut heard = [0; 4];
    in_time(server.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"ping");
    runtime.remove_sandbox(&sandbox).await.unwrap();
}
