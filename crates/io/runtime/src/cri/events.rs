//! Hints that something changed: the runtime's events where it has some, else the clock.

use kedge_grpc::containerd_events::SubscribeRequest;
use kedge_grpc::containerd_events::events_client::EventsClient;
use kedge_grpc::cri::runtime_service_client::RuntimeServiceClient;
use kedge_grpc::cri::{GetEventsRequest, VersionRequest, VersionResponse};
use kedge_grpc::tonic::{Code, Status, Streaming};
use kedge_sockets::{Channel, origin};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Between looks at a runtime without events, as a kubelet has it.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between tries to find a runtime that is away. What fails in between fails by itself; this is only for hints.
const AWAY_INTERVAL: Duration = Duration::from_secs(1);
/// An answer to the simplest question. A runtime that needs longer has no events to tell either.
const VERSION_MAX: Duration = Duration::from_secs(10);
/// From an event to its hint: events come in bursts, and runtimes tell them a moment before their lists show it.
const HINT_DELAY: Duration = Duration::from_millis(50);
/// From the last event to one more hint, for a runtime under load whose lists were late.
const LATE_HINT_DELAY: Duration = Duration::from_secs(1);
/// What of containerd's own events concerns us: containers of the namespace that the CRI uses, as they come and go. Not
/// `tasks/exit`: commands that probes run have it too, while a container that ended is always followed by
/// `tasks/delete`.
const CONTAINERD_FILTER: &str =
    r#"namespace==k8s.io,topic~="^/(tasks/(start|delete|oom)|containers/(create|delete))""#;

/// Listens until it is dropped. Must be made within a tokio runtime.
#[derive(Debug)]
pub(super) struct Hints {
    changed: Arc<Notify>,
    listener: JoinHandle<()>,
}

impl Hints {
    pub(super) fn listen(channel: Channel) -> Self {
        let changed = Arc::new(Notify::new());
        let listener = Listener {
            channel,
            changed: changed.clone(),
        };
        Self {
            changed,
            listener: tokio::spawn(listener.run()),
        }
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Where hints come from, for as long as one connection holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Interface,
    Containerd,
    Clock,
}

/// How a stream of events ended.
#[derive(Debug)]
enum End {
    /// The runtime has none: it says so, or ends the stream before it told anything, as CRI-O does with events turned off.
    NoEvents(String),
    /// It told some, and will again.
    Broke,
}

struct Listener {
    channel: Channel,
    changed: Arc<Notify>,
}

impl Listener {
    async fn run(self) {
        loop {
            if let Some(version) = self.version().await {
                self.changed.notify_one();
                self.while_connected(&version).await;
                self.changed.notify_one();
            }
            sleep(AWAY_INTERVAL).await;
        }
    }

    /// `None`: the runtime is away, or hangs.
    async fn version(&self) -> Option<VersionResponse> {
        let mut client = RuntimeServiceClient::with_origin(self.channel.clone(), origin());
        let request = VersionRequest::default();
        let answer = timeout(VERSION_MAX, client.version(request)).await.ok()?;
        answer.ok().map(tonic_body)
    }

    /// Takes the best source that this runtime has, until the connection breaks.
    async fn while_connected(&self, version: &VersionResponse) {
        let mut source = Source::Interface;
        loop {
            let end = match source {
                Source::Interface => {
                    let mut client = RuntimeServiceClient::with_origin(self.channel.clone(), origin());
                    let events = async move { client.get_container_events(GetEventsRequest {}).await };
                    self.follow(async move { events.await.map(tonic_body) }).await
                }
                Source::Containerd => {
                    let mut client = EventsClient::with_origin(self.channel.clone(), origin());
                    let request = SubscribeRequest {
                        filters: vec![CONTAINERD_FILTER.to_owned()],
                    };
                    self.follow(async move { client.subscribe(request).await.map(tonic_body) })
                        .await
                }
                Source::Clock => {
                    self.tick().await;
                    return;
                }
            };
            let End::NoEvents(why) = end else { return };
            source = match source {
                Source::Interface if version.runtime_name == "containerd" => Source::Containerd,
                Source::Interface | Source::Containerd | Source::Clock => Source::Clock,
            };
            tracing::info!(
                runtime = version.runtime_name,
                version = version.runtime_version,
                ?source,
                why,
                "the runtime has no such events; changes are found by another way"
            );
        }
    }

    /// Hints after events, until they end.
    async fn follow<T>(&self, open: impl Future<Output = Result<Streaming<T>, Status>>) -> End {
        let mut open = pin!(open);
        // A runtime says that the stream stands by sending the first event. What happened before it stood is not told, so
        // there is one more hint when it surely does.
        let opened = match timeout(LOOK_INTERVAL, &mut open).await {
            Ok(opened) => opened,
            Err(_) => {
                self.changed.notify_one();
                open.await
            }
        };
        let mut events = match opened {
            Ok(events) => events,
            Err(status) => return refused(&status),
        };
        let mut told = false;
        let (mut soon, mut late) = (Some(Instant::now()), None);
        loop {
            let event = match [soon, late].into_iter().flatten().min() {
                None => events.message().await,
                Some(due) => match timeout_at(due, events.message()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.changed.notify_one();
                        late = soon.map(|_| Instant::now() + LATE_HINT_DELAY);
                        soon = None;
                        continue;
                    }
                },
            };
            match event {
                // Later events do not put a hint off.
                Ok(Some(_)) => {
                    told = true;
                    soon = soon.or_else(|| Some(Instant::now() + HINT_DELAY));
                }
                Ok(None) if told => return End::Broke,
                Ok(None) => return End::NoEvents("the runtime ends them before the first".to_owned()),
                Err(status) => return refused(&status),
            }
        }
    }

    /// Hints by the clock, until the connection was made anew.
    async fn tick(&self) {
        let connection = self.channel.connections();
        while self.channel.connections() == connection {
            sleep(LOOK_INTERVAL).await;
            self.changed.notify_one();
        }
    }
}

fn refused(status: &Status) -> End {
    tracing::debug!(%status, "the runtime's events ended");
    match status.code() {
        Code::Unimplemented => End::NoEvents(status.message().to_owned()),
        _ => End::Broke,
    }
}

fn tonic_body<T>(response: kedge_grpc::tonic::Response<T>) -> T {
    response.into_inner()
}
