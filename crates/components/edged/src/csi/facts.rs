//! What the cluster says of a driver: its `CSIDriver` object.
//!
//! Our own cloud gives it to every node, and metamanager keeps it for the time without a cloud. An official cloud leaves
//! the question without an answer. Then, and where there is no such object, a volume is used as far as it goes: an
//! attachment is honoured where there is one, and a volume that a pod names itself is told about the pod.

use super::Error;
use crate::cloud::Cloud;
use kedge_wire::{Body, ObjectKey, ObjectKind, Operation};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// What the wire calls the object.
const KIND: &str = "csidriver";
/// A cloud that serves the object answers at once.
const CLOUD_MAX: Duration = Duration::from_secs(5);
/// An answer counts this long: twenty pods that start together ask once, and a change shows in a minute.
const ANSWER_COUNTS: Duration = Duration::from_secs(60);
/// A cloud that does not answer such questions does not learn it soon.
const SILENCE_COUNTS: Duration = Duration::from_secs(600);
/// Drivers whose facts are remembered; a node has a handful.
const REMEMBERED_MAX: usize = 64;

/// Whether the cloud must have attached a volume before it can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attach {
    Needed,
    Never,
    /// Nobody says; what is attached tells the driver how.
    IfThere,
}

/// Which volumes are told about their pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PodInfo {
    All,
    Ephemeral,
    None,
}

/// Who gives a volume to the group of its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(super) enum GroupPolicy {
    /// The node, whatever the volume is.
    File,
    None,
    /// The node, where the volume has a file system of its own and one writer.
    #[default]
    #[serde(other)]
    ReadWriteOnceWithFSType,
}

/// A token that the driver wants of each pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct TokenAsked {
    pub(super) audience: String,
    pub(super) expiration_seconds: Option<i64>,
}

/// How volumes of a driver are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) attach: Attach,
    pod_info: PodInfo,
    pub(super) group: GroupPolicy,
    /// The driver wants to be called again and again, as its tokens change.
    pub(super) republishes: bool,
    pub(super) tokens: Vec<TokenAsked>,
    /// `None`: nobody says.
    modes: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct CsiDriver {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    attach_required: Option<bool>,
    pod_info_on_mount: Option<bool>,
    fs_group_policy: Option<GroupPolicy>,
    requires_republish: Option<bool>,
    token_requests: Option<Vec<TokenAsked>>,
    volume_lifecycle_modes: Option<Vec<String>>,
}

impl Facts {
    fn unknown() -> Self {
        Self {
            attach: Attach::IfThere,
            pod_info: PodInfo::Ephemeral,
            group: GroupPolicy::default(),
            republishes: false,
            tokens: Vec::new(),
            modes: None,
        }
    }

    pub(super) fn tells_pod(&self, ephemeral: bool) -> bool {
        match self.pod_info {
            PodInfo::All => true,
            PodInfo::Ephemeral => ephemeral,
            PodInfo::None => false,
        }
    }

    /// Refuses a use for which the driver is not made.
    pub(super) fn check_mode(&self, driver: &str, ephemeral: bool) -> Result<(), Error> {
        let mode = if ephemeral { "Ephemeral" } else { "Persistent" };
        match &self.modes {
            Some(modes) if !modes.iter().any(|known| known == mode) => Err(Error::Mode {
                mode,
                driver: driver.to_owned(),
                modes: format!("{modes:?}"),
            }),
            Some(_) | None => Ok(()),
        }
    }
}

impl From<CsiDriver> for Facts {
    fn from(CsiDriver { spec }: CsiDriver) -> Self {
        Self {
            attach: match spec.attach_required {
                Some(false) => Attach::Never,
                Some(true) | None => Attach::Needed,
            },
            pod_info: match spec.pod_info_on_mount {
                Some(true) => PodInfo::All,
                Some(false) | None => PodInfo::None,
            },
            group: spec.fs_group_policy.unwrap_or_default(),
            republishes: spec.requires_republish.unwrap_or_default(),
            tokens: spec.token_requests.unwrap_or_default(),
            modes: Some(
                spec.volume_lifecycle_modes
                    .unwrap_or_else(|| vec!["Persistent".to_owned()]),
            ),
        }
    }
}

/// Asks, and remembers for a while.
#[derive(Debug, Default)]
pub(super) struct FactsBook {
    // Held while the cloud is asked: who comes meanwhile wants the same answer.
    pages: tokio::sync::Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    known: BTreeMap<String, (Facts, Instant)>,
    /// This cloud has answered such a question: when it does not, it fails.
    answers: bool,
    silent_until: Option<Instant>,
}

/// What came of a question.
enum Asked {
    Facts(Facts),
    /// There is no such object.
    Absent,
    /// There is no cloud, and nothing was kept.
    Alone,
    Silent(String),
}

impl FactsBook {
    pub(super) async fn of(&self, driver: &str, cloud: &Cloud) -> Result<Facts, Error> {
        let mut pages = self.pages.lock().await;
        let now = Instant::now();
        if let Some((facts, until)) = pages.known.get(driver)
            && now < *until
        {
            return Ok(facts.clone());
        }
        if pages.silent_until.is_some_and(|until| now < until) {
            return Ok(Facts::unknown());
        }
        let facts = match ask(driver, cloud).await {
            Asked::Facts(facts) => facts,
            Asked::Absent => Facts::unknown(),
            Asked::Alone => return Ok(Facts::unknown()),
            Asked::Silent(why) if pages.answers => {
                return Err(Error::Facts {
                    driver: driver.to_owned(),
                    why,
                });
            }
            Asked::Silent(why) => {
                tracing::debug!(driver, why, "this cloud does not tell what CSI drivers want");
                pages.silent_until = Some(Instant::now() + SILENCE_COUNTS);
                return Ok(Facts::unknown());
            }
        };
        pages.answers = true;
        let until = Instant::now() + ANSWER_COUNTS;
        pages.known.retain(|_, (_, until)| now < *until);
        if pages.known.len() < REMEMBERED_MAX {
            pages.known.insert(driver.to_owned(), (facts.clone(), until));
        }
        Ok(facts)
    }
}

async fn ask(driver: &str, cloud: &Cloud) -> Asked {
    let key = ObjectKey::cluster(ObjectKind::Other(KIND.to_owned()), driver);
    let asked = cloud.object::<CsiDriver>(Operation::Query, key, Body::null());
    match tokio::time::timeout(CLOUD_MAX, asked).await {
        Ok(Ok(object)) => Asked::Facts(object.into()),
        Ok(Err(error)) if error.is_not_found() => Asked::Absent,
        Ok(Err(error)) if error.is_absence() => Asked::Alone,
        Ok(Err(error)) => Asked::Silent(error.to_string()),
        Err(_) => Asked::Silent(format!("no answer within {} s", CLOUD_MAX.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_link::edge::RequestError;
    use kedge_telemetry::channel::ask;
    use kedge_wire::{Reply, Request, Resource};
    use serde_json::{Value, json};

    fn facts(spec: Value) -> Facts {
        serde_json::from_value::<CsiDriver>(json!({ "spec": spec }))
            .unwrap()
            .into()
    }

    #[test]
    fn an_object_that_says_nothing_has_kubernetes_defaults() {
        let plain = facts(json!({}));
        assert_eq!(plain.attach, Attach::Needed);
        assert_eq!(plain.group, GroupPolicy::ReadWriteOnceWithFSType);
        assert!(!plain.tells_pod(true) && !plain.republishes && plain.tokens.is_empty());
        assert!(plain.check_mode("drv", false).is_ok());
        let why = plain.check_mode("drv", true).unwrap_err().to_string();
        assert_eq!(
            why,
            r#"volume mode "Ephemeral" not supported by driver drv (only supports ["Persistent"])"#
        );
    }

    #[test]
    fn what_an_object_says() {
        let said = facts(json!({
            "attachRequired": false, "podInfoOnMount": true, "fsGroupPolicy": "None", "requiresRepublish": true,
            "volumeLifecycleModes": ["Ephemeral"], "tokenRequests": [{ "audience": "a", "expirationSeconds": 600 }, {}],
        }));
        assert_eq!((said.attach, said.group), (Attach::Never, GroupPolicy::None));
        assert!(said.tells_pod(false) && said.republishes && said.check_mode("drv", true).is_ok());
        assert_eq!(said.tokens.len(), 2);
        assert_eq!(
            facts(json!({ "fsGroupPolicy": "Later" })).group,
            GroupPolicy::default()
        );
    }

    type Question = ask::Question<Request, Result<Reply, RequestError>>;

    #[tokio::test(start_paused = true)]
    async fn a_cloud_that_never_answers_is_left_alone_and_one_that_did_must_answer() {
        let (sender, mut questions) = ask::channel("test-cloud", 1);
        let cloud = Cloud::new(sender);
        let book = std::sync::Arc::new(FactsBook::default());
        let look = |book: &std::sync::Arc<FactsBook>| {
            let (book, cloud) = (std::sync::Arc::clone(book), cloud.clone());
            tokio::spawn(async move { book.of("drv", &cloud).await })
        };
        // An official cloud: the question is dropped only when nobody waits for it any more.
        let first = look(&book);
        let _unanswered: Question = questions.recv().await.unwrap();
        assert_eq!(first.await.unwrap().unwrap(), Facts::unknown());
        assert_eq!(look(&book).await.unwrap().unwrap(), Facts::unknown());
        tokio::time::advance(SILENCE_COUNTS).await;
        let found = look(&book);
        let question = questions.recv().await.unwrap();
        let resource = Resource::Object(question.question.key.clone());
        let object =
            Body::from_value(&json!({ "metadata": {}, "spec": { "attachRequired": false } })).unwrap();
        question.reply.send(Ok(Reply::response(resource, None, object)));
        assert_eq!(found.await.unwrap().unwrap().attach, Attach::Never);
        assert_eq!(
            look(&book).await.unwrap().unwrap().attach,
            Attach::Never,
            "remembered"
        );
        tokio::time::advance(ANSWER_COUNTS).await;
        let failed = look(&book);
        questions
            .recv()
            .await
            .unwrap()
            .reply
            .send(Err(RequestError::Timeout));
        let why = failed.await.unwrap().unwrap_err().to_string();
        assert!(why.starts_with("ask for the CSIDriver drv: "), "{why}");
        let alone = look(&book);
        questions
            .recv()
            .await
            .unwrap()
            .reply
            .send(Err(RequestError::Offline));
        assert_eq!(alone.await.unwrap().unwrap(), Facts::unknown());
    }
}
