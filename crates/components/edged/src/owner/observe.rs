//! What the runtime shows: listed when it hints, when something was done, and now and then.

use super::{Event, Owner};
use crate::beside::PodView;
use crate::hands::Hands;
use crate::termination::{self, Messages};
use kedge_containers::ObservedSandbox;
use kedge_pods::ObservationId;
use kedge_wire::Time;
use std::sync::Arc;
use std::time::Duration;

/// While something is under way the runtime is listed this often at least.
const RELIST_BUSY: Duration = Duration::from_secs(1);
/// Otherwise this often; a change is told by the runtime's hint long before.
pub(super) const RELIST_IDLE: Duration = Duration::from_secs(10);
/// A list that takes longer has failed.
const LIST_MAX: Duration = Duration::from_secs(30);
/// A runtime that has not answered for this long makes the node not ready.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What a look at the runtime found.
pub(super) struct Found {
    list: Vec<ObservedSandbox>,
    messages: Messages,
}

/// When to look.
#[derive(Debug)]
pub(super) struct Observer {
    looking: bool,
    /// A hint came: look as soon as possible.
    pub(super) look_again: bool,
    messages: Messages,
    last_look: Time,
    last_answer: Option<Time>,
    started: Time,
}

impl Observer {
    pub(super) fn new(now: Time) -> Self {
        Self {
            looking: false,
            look_again: true,
            messages: Messages::new(),
            last_look: now,
            last_answer: None,
            started: now,
        }
    }

    /// When the next look is due without a hint.
    pub(super) fn due(&self, now: Time, busy: bool) -> Option<Time> {
        let silent = now.since(self.last_answer.unwrap_or(self.started)) > RELIST_IDLE;
        let interval = if busy || silent { RELIST_BUSY } else { RELIST_IDLE };
        (!self.looking).then(|| self.last_look + interval)
    }

    /// The runtime has answered at least once.
    pub(super) fn has_seen(&self) -> bool {
        self.last_answer.is_some()
    }

    /// One look at a time.
    pub(super) fn may_look(&self) -> bool {
        !self.looking
    }

    pub(super) fn shall_look(&self, now: Time, busy: bool) -> bool {
        self.may_look() && (self.look_again || self.due(now, busy).is_some_and(|due| due <= now))
    }
}

impl Owner {
    /// Lists the runtime's containers.
    pub(super) fn observe(&mut self) {
        let now = self.now();
        let observer = &mut self.observer;
        observer.looking = true;
        observer.look_again = false;
        observer.last_look = now;
        let id = self.pods.begin_observation();
        let (hands, results) = (self.hands.clone(), self.results.clone());
        let (known, pods) = (observer.messages.clone(), self.board.pods.borrow().clone());
        self.scope.spawn_until_cancelled("edged-list", async move {
            let result = match tokio::time::timeout(LIST_MAX, hands.runtime.list()).await {
                Ok(Ok(list)) => complete(list, known, hands, pods).await,
                Ok(Err(error)) => Err(crate::hands::chain(&error)),
                Err(_) => Err(format!(
                    "the runtime did not answer within {}s",
                    LIST_MAX.as_secs()
                )),
            };
            let _ = results.send(Event::Observed { id, result }).await;
        });
    }

    pub(super) fn observed(&mut self, id: ObservationId, result: Result<Found, String>, now: Time) {
        self.observer.looking = false;
        match result {
            Ok(found) => {
                self.observer.last_answer = Some(now);
                self.observer.messages = found.messages;
                self.set_trouble(None);
                self.board.seen.send_if_modified(|seen| {
                    let differs = **seen != found.list;
                    if differs {
                        *seen = Arc::new(found.list.clone());
                    }
                    differs
                });
                self.pods.handle_observed(id, found.list, now);
            }
            Err(why) => {
                tracing::warn!(why, "containers cannot be listed");
                let silent = self
                    .observer
                    .last_answer
                    .is_none_or(|last| now.since(last) >= SILENCE_MAX);
                if silent {
                    self.set_trouble(Some(why));
                }
            }
        }
    }

    fn set_trouble(&mut self, trouble: Option<String>) {
        self.board.trouble.send_if_modified(|known| {
            let differs = *known != trouble;
            *known = trouble;
            differs
        });
    }
}

/// Adds the last words of ended containers.
async fn complete(
    mut list: Vec<ObservedSandbox>,
    known: Messages,
    hands: Hands,
    pods: Arc<Vec<PodView>>,
) -> Result<Found, String> {
    if !termination::has_unread(&list, &known) {
        let messages = termination::complete(&mut list, &known, &hands.config, &pods);
        return Ok(Found { list, messages });
    }
    let read = move || {
        let messages = termination::complete(&mut list, &known, &hands.config, &pods);
        Found { list, messages }
    };
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| "reading termination messages was stopped".to_owned())
}
