//! Container logs: `/containerLogs/{namespace}/{pod}/{container}`.

mod choose;
mod files;
pub(crate) mod query;
mod rotation;
mod stream;

pub(crate) use files::Places;
pub use rotation::Rotation;

use crate::LogAnswer;
use crate::beside::{Beside, PodView};
use kedge_containers::{ContainerId, ContainerState, ObservedContainer, ObservedSandbox};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask::Question;
use kedge_telemetry::channel::{latest, queue};
use kedge_wire::Time;
use kedge_wire::tunnel::NodeGet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pieces of a log that wait for a slow reader; the file is read no further meanwhile.
const PIECES_MAX: usize = 8;
/// Logs that are read at one time.
const STREAMS_MAX: usize = 64;

/// What the runtime showed last.
pub(crate) type Seen = latest::Receiver<Arc<Vec<ObservedSandbox>>>;

/// Starts to turn logs over, for a runtime that does not do it itself.
pub(crate) fn start_rotation(beside: &Beside) {
    match beside.runtime.log_rotation() {
        kedge_runtime::LogRotation::ByRuntime => {}
        kedge_runtime::LogRotation::ByAgent => {
            let name = "edged-log-rotation";
            beside
                .scope
                .spawn_until_cancelled(name, rotation::run(beside.clone()));
        }
    }
}

/// Serves log requests, each in its own task.
#[derive(Debug)]
pub(crate) struct Logs {
    seen: Seen,
    pods: latest::Receiver<Arc<Vec<PodView>>>,
    open: Arc<AtomicUsize>,
}

/// Counts an open stream until it ends.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Logs {
    pub(crate) fn new(seen: Seen, pods: latest::Receiver<Arc<Vec<PodView>>>) -> Self {
        Self {
            seen,
            pods,
            open: Arc::default(),
        }
    }

    /// Answers a request. `uid` finds the desired pod of a name, because an older one may still have containers.
    pub(crate) fn serve(
        &self,
        question: Question<NodeGet, LogAnswer>,
        uid: impl FnOnce(&str, &str) -> Option<String>,
        now: Time,
        scope: &Scope,
    ) {
        let (request, instance) = match self.find(&question.question, uid, now) {
            Ok(found) => found,
            Err(why) => return question.reply.send(Err(why)),
        };
        if self.open.fetch_add(1, Ordering::Relaxed) >= STREAMS_MAX {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return question.reply.send(Err(format!(
                "{STREAMS_MAX} logs of this node are being read already"
            )));
        }
        let place = Place(Arc::clone(&self.open));
        let (tx, rx) = queue::channel("edged-log", PIECES_MAX);
        question.reply.send(Ok(rx));
        let seen = self.seen.clone();
        scope.spawn_until_cancelled("edged-log", async move {
            let _place = place;
            stream::run(&request, &instance, seen, tx).await;
        });
    }

    fn find(
        &self,
        get: &NodeGet,
        uid: impl FnOnce(&str, &str) -> Option<String>,
        now: Time,
    ) -> Result<(query::Query, ObservedContainer), String> {
        let parts: Vec<String> = get.path.trim_matches('/').split('/').map(query::decode).collect();
        let [kind, namespace, pod, container] = parts.as_slice() else {
            return Err(format!("{} is not served by this version of the node", get.path));
        };
        if kind != "containerLogs" {
            return Err(format!("{} is not served by this version of the node", get.path));
        }
        let request = query::parse(&get.query, now)?;
        let uid = uid(namespace, pod);
        let pods = self.pods.borrow().clone();
        let view = pods.iter().find(|view| Some(view.pod.uid()) == uid.as_deref());
        let view = view.ok_or_else(|| format!("pod {pod:?} does not exist"))?;
        let id = choose::choose(view, container, request.previous)?;
        let seen = self.seen.borrow().clone();
        let mut containers = seen.iter().flat_map(|sandbox| &sandbox.containers);
        let found = containers.find(|container| container.id == id);
        let found = found.ok_or_else(|| format!("unable to retrieve container logs for {}", id.0))?;
        Ok((request, found.clone()))
    }
}

/// Whether an instance may still write.
pub(crate) fn is_alive(seen: &Seen, id: &ContainerId) -> bool {
    let seen = seen.borrow();
    let found = seen
        .iter()
        .flat_map(|sandbox| &sandbox.containers)
        .find(|container| container.id == *id);
    found.is_some_and(|container| match container.state {
        ContainerState::Created | ContainerState::Running { .. } => true,
        ContainerState::Exited { .. } | ContainerState::Unknown => false,
    })
}
