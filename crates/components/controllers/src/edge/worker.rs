//! The worker of one attached node: does what the node asks, and nothing that another node asks.

use super::lanes::Lanes;
use super::owner::{Ended, MayRead};
use super::{Answer, Config, answer};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kedge_cluster::Cluster;
use kedge_placement::report::{Verdict, judge};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::queue;
use kedge_wire::{NodeName, ObjectKind, Request, Status};
use std::time::Duration;

/// The index answers between two watch events; longer means that CloudCore is ending or badly overloaded.
const MAY_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// What every worker shares.
#[derive(Debug, Clone)]
pub(super) struct Hands {
    pub(super) cluster: Cluster,
    pub(super) config: Config,
    pub(super) may_read: ask::Sender<MayRead, bool>,
    pub(super) ended: queue::Sender<Ended>,
}

impl Hands {
    pub(super) fn start(
        self,
        node: NodeName,
        session: u64,
        requests: ask::Receiver<Request, Answer>,
        scope: &Scope,
    ) {
        let name = format!("controllers.node/{node}");
        let ended = self.ended.clone();
        scope.spawn_until_cancelled(name, async move {
            self.work(&node, requests).await;
            // The owner may have ended before.
            let _ = ended.send((node, session)).await;
        });
    }

    /// Until the session ends. What is then half done is dropped: the edge reports again in its next session.
    async fn work(&self, node: &NodeName, mut requests: ask::Receiver<Request, Answer>) {
        let mut lanes = Lanes::new(self.config.node_calls_max);
        let mut running = FuturesUnordered::new();
        loop {
            while let Some((lane, Question { question, reply })) = lanes.start() {
                running.push(async move {
                    reply.send(self.answer(node, &question).await);
                    lane
                });
            }
            tokio::select! {
                biased;
                // What is done makes room for what comes.
                Some(lane) = running.next() => lanes.finished(&lane),
                asked = requests.recv() => {
                    let Some(asked) = asked else { return };
                    let key = asked.question.key.clone();
                    if let Err(Question { question, reply }) = lanes.add(&key, asked) {
                        let status = Status::failure(429, "TooManyRequests", "too many requests of this node wait");
                        reply.send(answer::refused(&question, status));
                    }
                }
            }
        }
    }

    async fn answer(&self, node: &NodeName, request: &Request) -> Answer {
        let may_read = match self.may_read(node, request).await {
            Ok(may_read) => may_read,
            Err(error) => return answer::refused(request, Status::unavailable(&error.to_string())),
        };
        match judge(node, request, may_read) {
            Verdict::Call { call, shape } => {
                let call = answer::prepared(call, request, self.config.advertise_address.as_deref());
                let result = answer::perform(&self.cluster, &call).await;
                tracing::debug!(%node, route = %request.route, failed = result.is_err(), "request done");
                answer::shaped(request, &call, shape, result)
            }
            Verdict::Settled => answer::settled(),
            Verdict::Forbidden(why) => {
                tracing::debug!(%node, route = %request.route, why, "request forbidden");
                answer::refused(request, Status::forbidden(&why))
            }
            Verdict::Unsupported(why) => {
                tracing::debug!(%node, route = %request.route, why, "request not supported");
                answer::refused(request, Status::bad_request(&why))
            }
        }
    }

    async fn may_read(&self, node: &NodeName, request: &Request) -> Result<bool, ask::NoAnswer> {
        if request.key.kind == ObjectKind::Lease {
            // Decided by name alone; and a lease waits for nobody, not even for the index.
            return Ok(false);
        }
        self.may_read
            .ask((node.clone(), request.key.clone()), MAY_READ_TIMEOUT)
            .await
    }
}
