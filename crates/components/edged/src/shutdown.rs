//! The machine shuts down: pods end in their order, each group within its time, before the processes of the system do.
//!
//! From then on the node is not ready and takes no pod. What has not ended in time is left to the system.

use crate::beside::{Beside, Order, PodView};
use kedge_api::PodPhase;
use kedge_pods::shutdown;
use kedge_telemetry::channel::ask::{self, Question};
use kedge_telemetry::channel::latest;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// What is said is on the disk by then; a cloud that is just going away, too, has not answered.
const TOLD_MAX: Duration = Duration::from_secs(2);

/// Said to edged when the machine shuts down; answered when the pods have ended or their time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineStops;

/// Waits for the word; whether it was said comes out.
pub(crate) fn start(beside: &Beside, asked: ask::Receiver<MachineStops, ()>) -> latest::Receiver<bool> {
    let (told, shutting_down) = latest::channel(false);
    let task = run(beside.clone(), asked, told);
    beside.scope.spawn_until_cancelled("edged-shutdown", task);
    shutting_down
}

async fn run(beside: Beside, mut asked: ask::Receiver<MachineStops, ()>, told: latest::Sender<bool>) {
    while let Some(Question { reply, .. }) = asked.recv().await {
        tracing::warn!(limit = ?beside.config.shutdown.whole(), "the machine shuts down: pods are ended in their order");
        beside.events.tell_node(
            "NodeShutdown",
            false,
            "Shutdown manager detected shutdown event".to_owned(),
        );
        told.send_replace(true);
        if beside.orders.send(Order::ShuttingDown).await.is_ok() {
            end_all(&beside).await;
            tell_all(&beside).await;
        }
        reply.send(());
    }
}

async fn end_all(beside: &Beside) {
    let pods = Arc::clone(&beside.pods.borrow());
    let running = pods.iter().filter(|view| !is_over(view));
    let ranked = running.map(|view| (view.pod.uid().to_owned(), view.pod.spec.priority.unwrap_or(0)));
    for (grace, uids) in beside.config.shutdown.groups(ranked) {
        for uid in &uids {
            let eviction = shutdown::eviction(grace);
            let order = Order::Evict {
                uid: uid.clone(),
                eviction,
            };
            if beside.orders.send(order).await.is_err() {
                return;
            }
        }
        let uids: BTreeSet<String> = uids.into_iter().collect();
        if tokio::time::timeout(grace, ended(beside, &uids)).await.is_err() {
            tracing::warn!(?grace, "not all pods of this priority have ended in time");
        }
    }
}

/// A later life of this process must not find pods that nobody told to have ended.
async fn tell_all(beside: &Beside) {
    let told = Arc::new(Notify::new());
    let order = Order::WhenTold(Arc::clone(&told));
    if beside.orders.send(order).await.is_ok()
        && tokio::time::timeout(TOLD_MAX, told.notified()).await.is_err()
    {
        tracing::warn!("not all ends of pods were told or kept");
    }
}

/// Completes when none of these pods runs any more.
async fn ended(beside: &Beside, uids: &BTreeSet<String>) {
    let mut pods = beside.pods.clone();
    let all_over = |views: &Arc<Vec<PodView>>| {
        let mut of_group = views.iter().filter(|view| uids.contains(view.pod.uid()));
        of_group.all(is_over)
    };
    if pods.wait_for(all_over).await.is_err() {
        // The owner has ended, and tells nothing more.
        tokio::time::sleep(Duration::MAX).await;
    }
}

fn is_over(view: &PodView) -> bool {
    view.status.phase.is_some_and(PodPhase::is_terminal)
}
