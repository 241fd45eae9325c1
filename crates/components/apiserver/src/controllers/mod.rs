//! The built-in controllers: one task that looks at all objects, asks `kedge_apimachinery::controllers` what is to be
//! done, and writes it.
//!
//! It is woken by every change and by the moment that the last decision named, and at least every
//! [`LOOK_AGAIN`]. A hint carries no data: what is true is read from storage each time.

mod world;

use crate::acts::{self, Options};
use crate::handlers::Server;
use crate::signing::REQUESTS;
use crate::storage::{Collection, Place};
use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use kedge_apimachinery::controllers::{self as decisions, Decision, Settings, Write};
use kedge_apimachinery::kinds::Kind;
use kedge_apimachinery::meta;
use kedge_apimachinery::schema::FieldValidation;
use kedge_apimachinery::status::{Reason, Status};
use kedge_apimachinery::strategy::{self, Admitted};
use kedge_telemetry::Scope;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use world::Mirror;

/// The period of the node monitor, and how long a lost hint may delay anything.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Changes that come together are decided on together; a scheduled pod waits no longer than this.
const GATHER: Duration = Duration::from_millis(2);
/// How much longer than a look took the next one is put off while changes keep coming, so that the controllers of a
/// large cluster use a tenth of one core only.
const REST_FACTOR: u32 = 9;
/// And at most this long: nothing waits longer because others are busy.
const REST_MAX: Duration = Duration::from_secs(1);
/// Writes under way at one time: one flush of the disk serves them all. They are about different objects; where two are
/// about the same, the later one finds a conflict and is decided anew.
const WRITES_AT_ONCE: usize = 32;
/// Pause after writes failed for another reason than somebody else's change, for example on a full disk.
const FAILURE_PAUSE: Duration = Duration::from_secs(1);

pub(crate) fn start(server: &Arc<Server>, scope: &Scope) {
    let (server, ending) = (Arc::clone(server), scope.clone());
    scope.spawn("apiserver controllers", async move { run(server, ending).await });
}

async fn run(server: Arc<Server>, scope: Scope) {
    let settings = Settings {
        cluster_cidr: server.config.cluster_cidr.clone(),
        root_ca: Some(server.config.root_ca_pem.clone()).filter(|pem| !pem.is_empty()),
    };
    let mut newest = server.storage.newest();
    let mut mirror = Mirror::default();
    loop {
        newest.mark_unchanged();
        let began = std::time::Instant::now();
        let looked = look(&server, mirror, &settings).await;
        let Some((seen, decision, now)) = looked else {
            return;
        };
        mirror = seen;
        let rest = (began.elapsed() * REST_FACTOR).clamp(GATHER, REST_MAX);
        let mut failed = perform(&server, &mirror, decision.writes, &scope).await;
        failed |= sign_requests(&server, &mirror, now, &scope).await;
        let wait = if failed {
            FAILURE_PAUSE
        } else {
            until(decision.wake_at, now)
        };
        tokio::select! {
            biased; // The end comes first.
            () = scope.cancelled() => return,
            changed = newest.changed(), if !failed => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(rest).await;
            }
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// One look at everything. In a large cluster it takes a good part of a second, so it is not done where requests are
/// answered. `None` when the process is ending.
async fn look(
    server: &Arc<Server>,
    mut mirror: Mirror,
    settings: &Settings,
) -> Option<(Mirror, Decision, Timestamp)> {
    let (server, settings) = (Arc::clone(server), settings.clone());
    let looking = tokio::task::spawn_blocking(move || {
        mirror.follow(&server.storage, &server.registry());
        let now = Timestamp::now();
        mirror.world().observe(now);
        let decision = match acts::random() {
            Ok(seed) => decisions::decide(mirror.world(), &settings, now, seed),
            Err(status) => {
                tracing::error!(%status, "controllers rest");
                Decision::default()
            }
        };
        (mirror, decision, now)
    });
    match looking.await {
        Ok(looked) => Some(looked),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => None,
    }
}

fn until(wake_at: Option<Timestamp>, now: Timestamp) -> Duration {
    let Some(wake_at) = wake_at else { return LOOK_AGAIN };
    let wait_ms = wake_at.as_millisecond().saturating_sub(now.as_millisecond());
    Duration::from_millis(u64::try_from(wait_ms).unwrap_or(0)).clamp(GATHER, LOOK_AGAIN)
}

/// Makes the writes. One that somebody else's change made obsolete is dropped: the next look decides anew. Says
/// whether any failed for another reason.
async fn perform(server: &Server, mirror: &Mirror, writes: Vec<Write>, scope: &Scope) -> bool {
    let outcomes = stream::iter(writes).map(|write| async move {
        if scope.is_cancelled() {
            return false;
        }
        let told = name(&write);
        match apply(server, mirror, write).await {
            Ok(()) => {
                tracing::debug!(write = told, "controller wrote");
                false
            }
            Err(status) => match status.reason {
                Reason::Conflict | Reason::NotFound | Reason::AlreadyExists | Reason::Gone => {
                    tracing::debug!(write = told, %status, "controller came too late");
                    false
                }
                _ => {
                    tracing::warn!(write = told, %status, "controller could not write");
                    true
                }
            },
        }
    });
    let failed = outcomes.buffer_unordered(WRITES_AT_ONCE);
    failed
        .fold(false, |any, failed| async move { any || failed })
        .await
}

async fn apply(server: &Server, mirror: &Mirror, write: Write) -> Result<(), Status> {
    // Our own objects are not warned about.
    let options = Options {
        validation: FieldValidation::Ignore,
        dry_run: false,
    };
    match write {
        Write::Create { resource, object } => {
            let kind = kind(server, &resource)?;
            let namespace = meta::namespace(&object).to_owned();
            server.create(&kind, &namespace, object, options).await?;
        }
        Write::Update { resource, object } => {
            let kind = kind(server, &resource)?;
            let view = mirror.view(&resource, &place(&object));
            let change = |old: &Value| {
                strategy::update(
                    &kind,
                    whole(view.as_deref(), &object, old)?,
                    old,
                    options.validation,
                )
            };
            server.change(&kind, &place(&object), options, change).await?;
        }
        Write::UpdateStatus { resource, object } => {
            let kind = kind(server, &resource)?;
            let view = mirror.view(&resource, &place(&object));
            let change = |old: &Value| {
                let object = whole(view.as_deref(), &object, old)?;
                strategy::update_status(&kind, object, old, options.validation)
            };
            server.change(&kind, &place(&object), options, change).await?;
        }
        Write::Delete {
            resource,
            namespace,
            name,
            options,
        } => {
            let kind = kind(server, &resource)?;
            server
                .delete(&kind, &Place::new(&namespace, &name), &options)
                .await?;
        }
        Write::Bind {
            namespace,
            name,
            uid,
            node,
        } => {
            let kind = kind(server, "pods")?;
            let binding = json!({
                "kind": "Binding", "apiVersion": "v1",
                "metadata": {"name": name, "namespace": namespace, "uid": uid},
                "target": {"kind": "Node", "apiVersion": "v1", "name": node},
            });
            let change = |pod: &Value| admitted(strategy::bind(&kind, pod, &binding, Timestamp::now())?);
            server
                .change(&kind, &Place::new(&namespace, &name), options, change)
                .await?;
        }
        Write::FinalizeNamespace { object } => {
            let kind = kind(server, "namespaces")?;
            let change = |old: &Value| admitted(strategy::finalize_namespace(&kind, &object, old)?);
            server.change(&kind, &place(&object), options, change).await?;
        }
        Write::Event { object } => event(server, object, options).await?,
    }
    Ok(())
}

/// The object that a controller wants, made of its view of it: what it changed in the view is changed in what is stored.
fn whole(view: Option<&Value>, wanted: &Value, stored: &Value) -> Result<Value, Status> {
    let Some(view) = view else {
        return Ok(wanted.clone());
    };
    let mut object = stored.clone();
    if meta::resource_version(view) == meta::resource_version(stored) {
        json_patch::merge(&mut object, &decisions::difference(view, wanted));
    } else {
        // The version that was looked at makes the write a conflict, as it is.
        meta::set(
            &mut object,
            &["metadata", "resourceVersion"],
            meta::resource_version(view).into(),
        );
    }
    Ok(object)
}

/// Gives approved requests their certificates. Says whether any could not be written.
async fn sign_requests(server: &Server, mirror: &Mirror, now: Timestamp, scope: &Scope) -> bool {
    let Some(signer) = &server.certificates else {
        return false;
    };
    let settled = mirror
        .all(REQUESTS)
        .filter_map(|request| signer.settle(request, now))
        .map(|object| Write::UpdateStatus {
            resource: REQUESTS.to_owned(),
            object,
        });
    perform(server, mirror, settled.collect(), scope).await
}

/// Stores an event, or counts it up when it happened before.
async fn event(server: &Server, object: Value, options: Options) -> Result<(), Status> {
    let kind = kind(server, "events")?;
    let place = place(&object);
    if server.storage.get(&Collection::of(&kind), &place).is_none() {
        server.create(&kind, &place.namespace, object, options).await?;
        return Ok(());
    }
    let change = |old: &Value| {
        let counted = decisions::count_event(old, &object);
        strategy::update(&kind, counted, old, options.validation)
    };
    server.change(&kind, &place, options, change).await?;
    Ok(())
}

fn admitted(object: Value) -> Result<Admitted, Status> {
    Ok(Admitted {
        object,
        warnings: Vec::new(),
    })
}

fn kind(server: &Server, resource: &str) -> Result<Arc<Kind>, Status> {
    server
        .registry()
        .by_group_resource(resource)
        .ok_or_else(Status::no_such_resource)
}

fn place(object: &Value) -> Place {
    Place::new(meta::namespace(object), meta::name(object))
}

/// What a write is, for the log.
fn name(write: &Write) -> String {
    let of = |verb: &str, resource: &str, object: &Value| {
        format!(
            "{verb} {resource} {}/{}",
            meta::namespace(object),
            meta::name(object)
        )
    };
    match write {
        Write::Create { resource, object } => of("create", resource, object),
        Write::Update { resource, object } => of("update", resource, object),
        Write::UpdateStatus { resource, object } => of("update status of", resource, object),
        Write::Delete {
            resource,
            namespace,
            name,
            ..
        } => format!("delete {resource} {namespace}/{name}"),
        Write::Bind {
            namespace,
            name,
            node,
            ..
        } => format!("bind pod {namespace}/{name} to {node}"),
        Write::FinalizeNamespace { object } => of("finalize", "namespace", object),
        Write::Event { object } => of("event", meta::text(object, &["reason"]), object),
    }
}
