//! How objects are deleted: at once, after a grace period, or when their finalizers are done.
//!
//! ```text
//!              no finalizers, no grace
//!   stored ───────────────────────────────> removed
//!      │ finalizers / grace                    ^
//!      v                                       │ last finalizer removed by an update,
//!   terminating (deletionTimestamp) ───────────┘ or deleted again with grace 0
//! ```

use crate::kinds::Kind;
use crate::meta::{self, at, text};
use crate::status::{Reason, Status};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// Removed by the garbage collector once all dependents that block the owner are gone.
pub const FOREGROUND_FINALIZER: &str = "foregroundDeletion";
/// Removed by the garbage collector once no dependent mentions the owner any more.
pub const ORPHAN_FINALIZER: &str = "orphan";

/// Namespaces that always exist.
const PERMANENT_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];

/// Longest grace period taken, a year: longer ones overflow nobody's clock but help nobody either.
const GRACE_SECONDS_MAX: i64 = 365 * 24 * 3600;

/// Grace of a pod that does not say how long it needs.
const POD_GRACE_SECONDS_DEFAULT: i64 = 30;

/// What a delete comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Deletion {
    /// Remove it from the store now.
    Deleted,
    /// Store this instead; finalizers or the kubelet finish it.
    MarkedTerminating { object: Value },
    /// Deletion began earlier and this request changes nothing; answer with the stored object.
    Unchanged,
}

/// How the dependents of a deleted object fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

impl Propagation {
    fn parse(text: &str) -> Result<Self, Status> {
        match text {
            "Background" => Ok(Self::Background),
            "Foreground" => Ok(Self::Foreground),
            "Orphan" => Ok(Self::Orphan),
            other => Err(Status::bad_request(format!(
                "invalid value {other:?} for propagationPolicy: supported values are Background, Foreground, Orphan"
            ))),
        }
    }
}

/// DeleteOptions, from the body or from query parameters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
    pub precondition_uid: Option<String>,
    pub precondition_resource_version: Option<String>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From the body of the request (null when there is none) and the query parameters, which give way to the body.
    pub fn parse(body: &Value, query: impl Fn(&str) -> Option<String>) -> Result<Self, Status> {
        if !body.is_null() && !body.is_object() {
            return Err(Status::bad_request(
                "the body of a delete must be a DeleteOptions object",
            ));
        }
        let asked = |name: &str| {
            let in_body = body.get(name).and_then(Value::as_str).map(str::to_owned);
            in_body.or_else(|| query(name)).filter(|t| !t.is_empty())
        };
        let grace_period_seconds = match meta::number(body, &["gracePeriodSeconds"]) {
            Some(seconds) => Some(seconds),
            None => query("gracePeriodSeconds")
                .map(|t| {
                    t.parse()
                        .map_err(|_| Status::bad_request(format!("gracePeriodSeconds: {t:?} is no number")))
                })
                .transpose()?,
        };
        let orphan = body.get("orphanDependents").and_then(Value::as_bool);
        let propagation = match (asked("propagationPolicy"), orphan) {
            (Some(policy), _) => Some(Propagation::parse(&policy)?),
            (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
        };
        let precondition = |name: &str| at(body, &["preconditions", name]).as_str().map(str::to_owned);
        Ok(Self {
            grace_period_seconds,
            propagation,
            precondition_uid: precondition("uid"),
            precondition_resource_version: precondition("resourceVersion"),
            dry_run: !meta::items(body, &["dryRun"]).is_empty()
                || query("dryRun").is_some_and(|d| !d.is_empty()),
        })
    }

    /// The body of a request with these options.
    pub fn to_value(&self) -> Value {
        let mut body = json!({"kind": "DeleteOptions", "apiVersion": "v1"});
        if let Some(seconds) = self.grace_period_seconds {
            meta::set(&mut body, &["gracePeriodSeconds"], seconds.into());
        }
        if let Some(propagation) = self.propagation {
            let name = match propagation {
                Propagation::Background => "Background",
                Propagation::Foreground => "Foreground",
                Propagation::Orphan => "Orphan",
            };
            meta::set(&mut body, &["propagationPolicy"], name.into());
        }
        for (name, value) in [
            ("uid", &self.precondition_uid),
            ("resourceVersion", &self.precondition_resource_version),
        ] {
            if let Some(value) = value {
                meta::set(&mut body, &["preconditions", name], value.clone().into());
            }
        }
        body
    }
}

/// DELETE of one object.
pub fn begin_delete(
    kind: &Kind,
    object: &Value,
    options: &DeleteOptions,
    now: Timestamp,
) -> Result<Deletion, Status> {
    check_preconditions(kind, object, options)?;
    if kind.is("namespaces") && PERMANENT_NAMESPACES.contains(&meta::name(object)) {
        return Err(Status::forbidden(
            kind,
            meta::name(object),
            "this namespace may not be deleted",
        ));
    }
    let mut marked = object.clone();
    set_finalizers(&mut marked, options.propagation);
    let grace = grace_seconds(kind, object, options);
    let running = meta::number(object, &["metadata", "deletionGracePeriodSeconds"]);
    if !meta::is_terminating(object) {
        mark(&mut marked, grace, now);
    } else if running.is_some_and(|left| grace < left) {
        // A second delete may only shorten the time that is left.
        let began = deletion_began(object, running.unwrap_or(0)).unwrap_or(now);
        meta::set(
            &mut marked,
            &["metadata", "deletionGracePeriodSeconds"],
            grace.into(),
        );
        meta::set(
            &mut marked,
            &["metadata", "deletionTimestamp"],
            meta::time(later(began, grace)).into(),
        );
    }
    if kind.is("namespaces") {
        meta::set(&mut marked, &["status", "phase"], "Terminating".into());
    }
    if is_finished(kind, &marked) {
        return Ok(Deletion::Deleted);
    }
    Ok(if marked == *object {
        Deletion::Unchanged
    } else {
        Deletion::MarkedTerminating { object: marked }
    })
}

/// Whether a write has finished a deletion: the caller removes the object instead of storing it.
pub fn is_finished(kind: &Kind, object: &Value) -> bool {
    let waits = meta::number(object, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0) > 0;
    let full = kind.is("namespaces") && !meta::items(object, &["spec", "finalizers"]).is_empty();
    meta::is_terminating(object) && meta::finalizers(object).next().is_none() && !waits && !full
}

fn check_preconditions(kind: &Kind, object: &Value, options: &DeleteOptions) -> Result<(), Status> {
    let fail = |what: &str, given: &str, stored: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {given}, {what} in object meta: {stored}");
        Err(Status::conflict(kind, meta::name(object), &why))
    };
    if let Some(uid) = options
        .precondition_uid
        .as_deref()
        .filter(|u| *u != meta::uid(object))
    {
        return fail("UID", uid, meta::uid(object));
    }
    let stored = meta::resource_version(object);
    if let Some(version) = options
        .precondition_resource_version
        .as_deref()
        .filter(|v| *v != stored)
    {
        return fail("ResourceVersion", version, stored);
    }
    if options
        .grace_period_seconds
        .is_some_and(|s| s > GRACE_SECONDS_MAX)
    {
        return Err(Status::new(
            Reason::BadRequest,
            format!("gracePeriodSeconds: at most {GRACE_SECONDS_MAX}"),
        ));
    }
    Ok(())
}

/// Only pods that may be running somewhere get time.
fn grace_seconds(kind: &Kind, object: &Value, options: &DeleteOptions) -> i64 {
    let is_over = matches!(text(object, &["status", "phase"]), "Succeeded" | "Failed");
    if !kind.is("pods") || text(object, &["spec", "nodeName"]).is_empty() || is_over {
        return 0;
    }
    let own = || {
        meta::number(object, &["spec", "terminationGracePeriodSeconds"]).unwrap_or(POD_GRACE_SECONDS_DEFAULT)
    };
    match options.grace_period_seconds.unwrap_or_else(own) {
        negative if negative < 0 => 1,
        seconds => seconds.min(GRACE_SECONDS_MAX),
    }
}

fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let wanted = match propagation {
        None => return,
        Some(Propagation::Background) => None,
        Some(Propagation::Foreground) => Some(FOREGROUND_FINALIZER),
        Some(Propagation::Orphan) => Some(ORPHAN_FINALIZER),
    };
    let mut finalizers: Vec<Value> = meta::finalizers(object)
        .filter(|f| ![FOREGROUND_FINALIZER, ORPHAN_FINALIZER].contains(f))
        .map(Value::from)
        .collect();
    finalizers.extend(wanted.map(Value::from));
    if finalizers.is_empty() {
        meta::take(object, &["metadata", "finalizers"]);
    } else {
        meta::set(object, &["metadata", "finalizers"], finalizers.into());
    }
}

fn mark(object: &mut Value, grace: i64, now: Timestamp) {
    meta::set(
        object,
        &["metadata", "deletionTimestamp"],
        meta::time(later(now, grace)).into(),
    );
    meta::set(object, &["metadata", "deletionGracePeriodSeconds"], grace.into());
    if let Some(generation) = meta::number(object, &["metadata", "generation"]) {
        meta::set(object, &["metadata", "generation"], (generation + 1).into());
    }
}

fn deletion_began(object: &Value, grace: i64) -> Option<Timestamp> {
    let ends = meta::parse_time(text(object, &["metadata", "deletionTimestamp"]))?;
    Some(later(ends, -grace))
}

fn later(moment: Timestamp, seconds: i64) -> Timestamp {
    moment
        .checked_add(SignedDuration::from_secs(seconds))
        .unwrap_or(moment)
}
