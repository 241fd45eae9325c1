//! What the cloud and the tasks beside the owner are told.

use super::{Event, Owner};
use crate::beside::PodView;
use crate::cloud::Error;
use crate::reports::{Letter, deletion};
use kedge_api::Pod;
use kedge_containers::PodIdentity;
use kedge_link::edge::RequestError;
use kedge_pods::{Known, PodKey};
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation, Time};
use serde::de::IgnoredAny;
use std::sync::Arc;

impl Owner {
    pub(super) fn send(&self, letter: Letter) {
        let (cloud, results) = (self.hands.cloud.clone(), self.results.clone());
        self.scope.spawn_until_cancelled("edged-report", async move {
            let answer: Result<IgnoredAny, Error> =
                cloud.object(letter.operation, letter.key, letter.body).await;
            let _ = results
                .send(Event::Reported {
                    uid: letter.uid,
                    result: answer.map(drop),
                })
                .await;
        });
    }

    pub(super) fn reported(&mut self, uid: &str, result: Result<(), Error>, now: Time) {
        self.reports.done(uid);
        match result {
            Ok(()) => {}
            // metamanager keeps it until the cloud is back.
            Err(error) if error.is_absence() => tracing::debug!(uid, "report waits for the cloud"),
            Err(Error::NotAsked(RequestError::Full | RequestError::Timeout)) => {
                self.pods.handle_report_failed(uid, now)
            }
            // The pod is gone in the cloud, or the report is not to its liking: saying it again would not help.
            Err(error) => tracing::debug!(uid, %error, "report refused"),
        }
    }

    /// Shows a static pod in the cloud.
    pub(super) fn create_mirror(&self, pod: Arc<Pod>) {
        let key = PodKey::of(&pod);
        match Body::from_value(&*pod) {
            Ok(body) => self.mirror(key, Operation::Insert, body),
            Err(error) => tracing::error!(pod = %key, %error, "mirror cannot be written"),
        }
    }

    pub(super) fn delete_mirror(&self, key: PodKey, uid: &str) {
        self.mirror(key, Operation::Delete, deletion(uid));
    }

    fn mirror(&self, key: PodKey, operation: Operation, body: Body) {
        let cloud = self.hands.cloud.clone();
        self.scope.spawn_until_cancelled("edged-mirror", async move {
            let object = ObjectKey::namespaced(ObjectKind::Pod, &key.namespace, &key.name);
            let answer: Result<IgnoredAny, Error> = cloud.object(operation, object, body).await;
            // Whether it worked is seen by what the cloud holds; it is ordered again until it does.
            if let Err(error) = answer {
                tracing::debug!(pod = %key, %error, "mirror of a static pod not changed");
            }
        });
    }

    /// Publishes the pods as they are now, where that differs from what was published. The logs of a pod stay until
    /// nobody knows it any more.
    pub(super) fn publish_pods(&mut self) {
        if !std::mem::take(&mut self.board_stale) {
            return;
        }
        let view = |known: Known<'_>| PodView {
            pod: Arc::clone(known.pod),
            status: Arc::clone(known.status),
            source: known.source,
            admitted: known.admitted,
        };
        let views: Vec<PodView> = self.pods.known().map(view).collect();
        let before = Arc::clone(&self.board.pods.borrow());
        for gone in before.iter().map(|view| &view.pod) {
            if !views.iter().any(|view| view.pod.uid() == gone.uid()) {
                self.remove_logs(gone);
            }
        }
        if *before != views {
            self.board.pods.send_replace(Arc::new(views));
        }
    }

    fn remove_logs(&self, pod: &Pod) {
        let identity = PodIdentity {
            namespace: pod.namespace().to_owned(),
            name: pod.metadata.name.clone(),
            uid: pod.uid().to_owned(),
        };
        let hands = self.hands.clone();
        self.scope.spawn_until_cancelled("edged-pod-logs", async move {
            hands
                .clean_up("remove the logs of a pod", move |logs| logs.remove_pod(&identity))
                .await;
        });
    }
}
