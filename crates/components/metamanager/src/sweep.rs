//! What no pod of this node needs any more: a decision without I/O.
//!
//! Official clouds send what pods use and never take it back while it exists, and what edged asked for itself nobody
//! takes back. So config maps, secrets, volumes and the like would stay until the disk is full. They go when no pod
//! mentions them. The rule errs on the side of keeping: any text in a pod counts as a mention.

use crate::tokens;
use kedge_store::meta::Row;
use kedge_wire::{ObjectKey, ObjectKind};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// How long after a pod went, or the process began, the node is looked over. What came since is spared: its pod may be
/// on its way.
pub(crate) const SWEEP_DELAY: Duration = Duration::from_secs(600);
/// Objects removed at one time, so that a look never keeps the store from its work for long.
pub(crate) const SWEEP_MAX: usize = 64;

/// Kinds that are asked by name and are kept for their pods only.
const OWN_KINDS: [&str; 4] = ["runtimeclass", "serviceaccount", "csidriver", "storageclass"];

/// Whether answers of this kind are kept although no module of the wire's list names it.
pub(crate) fn is_own_kind(kind: &str) -> bool {
    OWN_KINDS.contains(&kind)
}

/// Whether objects of this kind go with the pods that use them.
fn goes_with_pods(kind: &ObjectKind) -> bool {
    match kind {
        ObjectKind::ConfigMap
        | ObjectKind::Secret
        | ObjectKind::PersistentVolume
        | ObjectKind::PersistentVolumeClaim
        | ObjectKind::VolumeAttachment => true,
        ObjectKind::Other(kind) => is_own_kind(kind),
        ObjectKind::Pod
        | ObjectKind::PodPatch
        | ObjectKind::PodStatus
        | ObjectKind::ServiceAccountToken
        | ObjectKind::Node
        | ObjectKind::NodePatch
        | ObjectKind::NodeStatus
        | ObjectKind::Lease
        | ObjectKind::Event
        | ObjectKind::CertificateSigningRequest
        | ObjectKind::ServiceAccountAccess
        | ObjectKind::Device
        | ObjectKind::DeviceModel
        | ObjectKind::Volume => false,
    }
}

/// When to look, and what to spare.
#[derive(Debug)]
pub(crate) struct Sweeper {
    due: Option<Instant>,
    /// Came since the last look. No more than are held.
    fresh: HashSet<ObjectKey>,
    looking: bool,
    /// A pod came while a look was under way: what it found may be wrong.
    disturbed: bool,
}

impl Sweeper {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            due: Some(now + SWEEP_DELAY),
            fresh: HashSet::new(),
            looking: false,
            disturbed: false,
        }
    }

    /// An object is about to be held.
    pub(crate) fn came(&mut self, key: &ObjectKey) {
        if key.kind == ObjectKind::Pod {
            self.disturbed = true;
        } else if goes_with_pods(&key.kind) {
            self.fresh.insert(key.clone());
        }
    }

    /// Something may be unused from here on.
    pub(crate) fn something_went(&mut self, now: Instant) {
        if self.due.is_none() {
            self.due = Some(now + SWEEP_DELAY);
        }
    }

    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.due.filter(|_| !self.looking)
    }

    /// What a look that is due now should judge. Nothing while another is under way.
    pub(crate) fn begin(
        &mut self,
        held: impl Iterator<Item = ObjectKey>,
        now: Instant,
    ) -> Option<Vec<ObjectKey>> {
        if self.looking || self.due.is_none_or(|due| due > now) {
            return None;
        }
        self.looking = true;
        self.disturbed = false;
        self.due = None;
        let fresh = std::mem::take(&mut self.fresh);
        if !fresh.is_empty() {
            // Spared this time, not for ever.
            self.due = Some(now + SWEEP_DELAY);
        }
        let old = |key: &ObjectKey| goes_with_pods(&key.kind) && !fresh.contains(key);
        Some(held.filter(old).collect())
    }

    /// A look ended. Whether what it found may be removed.
    pub(crate) fn end(&mut self, found: usize, now: Instant) -> bool {
        self.looking = false;
        if self.disturbed || found > SWEEP_MAX {
            self.something_went(now);
        }
        !self.disturbed
    }
}

/// Which of `candidates` no pod mentions, directly or by a claim and its volume.
pub(crate) fn unused(rows: &Rows, candidates: Vec<ObjectKey>) -> Vec<ObjectKey> {
    let mentions = Mentions::of(rows);
    let used = |key: &ObjectKey| match &key.kind {
        ObjectKind::VolumeAttachment => mentions.attachments.contains(&key.name),
        _by_name => mentions.holds(key),
    };
    candidates.into_iter().filter(|key| !used(key)).collect()
}

/// Rows of the tokens that are worth nothing any more: of a pod that is not here, or of none and expired.
pub(crate) fn spent_tokens(rows: &Rows, now_ms: u64) -> Vec<String> {
    let uids: HashSet<String> = rows.pods.iter().filter_map(|row| uid_of(&row.value)).collect();
    // While its pod is here a token stays even if the clock says that it has expired: clocks jump, also back.
    let spent = |row: &&Row| match tokens::bound_uid(&row.value) {
        Some(uid) => !uids.contains(&uid),
        None => tokens::is_expired(&row.value, now_ms),
    };
    rows.tokens
        .iter()
        .filter(spent)
        .map(|row| row.key.clone())
        .collect()
}

/// What is read for a look.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) pods: Vec<Row>,
    pub(crate) claims: Vec<Row>,
    pub(crate) volumes: Vec<Row>,
    pub(crate) attachments: Vec<Row>,
    pub(crate) tokens: Vec<Row>,
}

#[derive(Debug, Default)]
struct Mentions {
    /// Texts in the pods of each namespace.
    namespaces: HashMap<String, HashSet<String>>,
    /// Texts in volumes that are used, which may name objects of any namespace.
    anywhere: HashSet<String>,
    /// Names of the attachments of such volumes.
    attachments: HashSet<String>,
}

impl Mentions {
    fn of(rows: &Rows) -> Self {
        let mut mentions = Self::default();
        for pod in &rows.pods {
            let (namespace, value) = (namespace_of(&pod.key), parse(&pod.value));
            let texts = mentions.namespaces.entry(namespace.to_owned()).or_default();
            collect(&value["spec"], texts);
            texts.extend(claims_made_for(&value));
        }
        for claim in &rows.claims {
            let (namespace, name) = (namespace_of(&claim.key), name_of(&claim.key));
            let texts = mentions.namespaces.get(namespace);
            if texts.is_some_and(|texts| texts.contains(name)) {
                collect(&parse(&claim.value)["spec"], &mut mentions.anywhere);
            }
        }
        let used: Vec<&Row> = rows
            .volumes
            .iter()
            .filter(|volume| mentions.anywhere.contains(name_of(&volume.key)))
            .collect();
        for volume in &used {
            collect(&parse(&volume.value)["spec"], &mut mentions.anywhere);
        }
        for attachment in &rows.attachments {
            let mut texts = HashSet::new();
            collect(&parse(&attachment.value)["spec"], &mut texts);
            if used.iter().any(|volume| texts.contains(name_of(&volume.key))) {
                mentions.attachments.insert(name_of(&attachment.key).to_owned());
            }
        }
        mentions
    }

    fn holds(&self, key: &ObjectKey) -> bool {
        if self.anywhere.contains(&key.name) {
            return true;
        }
        match key.namespace.as_deref() {
            Some(namespace) => {
                let texts = self.namespaces.get(namespace);
                texts.is_some_and(|texts| texts.contains(&key.name))
            }
            None => self.namespaces.values().any(|texts| texts.contains(&key.name)),
        }
    }
}

fn parse(value: &str) -> Value {
    serde_json::from_str(value).unwrap_or_default()
}

fn uid_of(value: &str) -> Option<String> {
    Some(parse(value)["metadata"]["uid"].as_str()?.to_owned())
}

fn namespace_of(key: &str) -> &str {
    key.split('/').next().unwrap_or_default()
}

fn name_of(key: &str) -> &str {
    key.splitn(3, '/').nth(2).unwrap_or_default()
}

/// All texts in a value. Its depth is limited: it came as an envelope.
fn collect(value: &Value, texts: &mut HashSet<String>) {
    match value {
        Value::String(text) => {
            if !texts.contains(text) {
                texts.insert(text.clone());
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, texts)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, texts)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A claim that is made from a template in the pod is named after both and not mentioned.
fn claims_made_for(pod: &Value) -> Vec<String> {
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let made = volumes.filter(|volume| volume.get("ephemeral").is_some());
    made.filter_map(|volume| Some(format!("{name}-{}", volume["name"].as_str()?)))
        .collect()
}
