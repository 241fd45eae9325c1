//! Writes as the API means them, without HTTP: requests and controllers both come through here.

use crate::definition::{DEFINITIONS, settle};
use crate::handlers::Server;
use crate::storage::{Collection, Found, Place};
use jiff::Timestamp;
use kedge_apimachinery::kinds::Kind;
use kedge_apimachinery::meta;
use kedge_apimachinery::rbac;
use kedge_apimachinery::schema::FieldValidation;
use kedge_apimachinery::status::{Reason, Status};
use kedge_apimachinery::strategy::{self, Admitted, Creation, DeleteOptions, Deletion};
use kedge_store::revisions::{Keep, WriteError};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::Value;

/// How often a change is tried again when others change the same object in between. Each loss means that somebody
/// else made progress.
const ATTEMPTS_MAX: usize = 16;
/// How often another generated name is tried.
const NAMES_MAX: usize = 8;

/// What comes along with a write.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    pub(crate) validation: FieldValidation,
    /// Everything but the write itself.
    pub(crate) dry_run: bool,
}

/// What became of an object.
#[derive(Debug)]
pub(crate) struct Written {
    /// With its new resource version.
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
}

/// What a delete came to.
#[derive(Debug)]
pub(crate) enum Gone {
    /// It is gone; this was its last state.
    Removed(Value),
    /// It is going.
    Terminating(Value),
}

impl Server {
    /// POST of a new object.
    pub(crate) async fn create(
        &self,
        kind: &Kind,
        namespace: &str,
        body: Value,
        options: Options,
    ) -> Result<Written, Status> {
        self.check_namespace(kind, namespace)?;
        let generated = meta::name(&body).is_empty();
        let collection = Collection::of(kind);
        for attempt in 1.. {
            let uid = new_uid()?;
            let suffix = meta::name_suffix(random()?, "generateName");
            let now = Timestamp::now();
            let creation = Creation {
                namespace,
                uid: &uid,
                suffix: &suffix,
                now,
                validation: options.validation,
            };
            let Admitted { mut object, warnings } = strategy::create(kind, body.clone(), &creation)?;
            to_stored_version(kind, &mut object);
            self.complete(kind, &mut object);
            let place = Place::new(meta::namespace(&object), meta::name(&object));
            let exists = || Status::already_exists(kind, &place.name);
            if options.dry_run {
                let taken = self.storage.get(&collection, &place).is_some();
                return if taken {
                    Err(exists())
                } else {
                    Ok(Written { object, warnings })
                };
            }
            let keep = keep(kind, None, Some(&object));
            match self.storage.create(&collection, &place, &object, keep).await {
                Ok(revision) => {
                    self.wrote(kind);
                    set_revision(&mut object, revision);
                    return Ok(Written { object, warnings });
                }
                Err(WriteError::Conflict { .. }) if generated && attempt < NAMES_MAX => {}
                Err(WriteError::Conflict { .. }) => return Err(exists()),
                Err(error) => return Err(write_status(error)),
            }
        }
        Err(Status::internal("no free name was found"))
    }

    /// Reads, changes with `change`, and writes if nobody else wrote in between; otherwise once more. An unchanged
    /// object is not written. A change that finishes a deletion removes the object.
    pub(crate) async fn change(
        &self,
        kind: &Kind,
        place: &Place,
        options: Options,
        change: impl Fn(&Value) -> Result<Admitted, Status>,
    ) -> Result<Written, Status> {
        let collection = Collection::of(kind);
        for _ in 0..ATTEMPTS_MAX {
            let found = self.find(kind, place)?;
            let old = in_version(kind, found.value());
            let Admitted { mut object, warnings } = change(&old)?;
            meta::set(
                &mut object,
                &["metadata", "resourceVersion"],
                found.revision.to_string().into(),
            );
            self.complete(kind, &mut object);
            let finished = strategy::is_finished(kind, &object);
            if options.dry_run || (object == old && !finished) {
                return Ok(Written { object, warnings });
            }
            to_stored_version(kind, &mut object);
            let at = found.revision;
            let written = if finished {
                let keep = keep(kind, Some(&old), None);
                self.storage.delete(&collection, place, at, &object, keep).await
            } else {
                let keep = keep(kind, Some(&old), Some(&object));
                self.storage.update(&collection, place, at, &object, keep).await
            };
            match written {
                Ok(revision) => {
                    self.wrote(kind);
                    set_revision(&mut object, revision);
                    return Ok(Written {
                        object: in_version(kind, object),
                        warnings,
                    });
                }
                Err(WriteError::Conflict { .. }) => {}
                Err(error) => return Err(write_status(error)),
            }
        }
        Err(Status::stale(kind, &place.name))
    }

    /// DELETE of one object.
    pub(crate) async fn delete(
        &self,
        kind: &Kind,
        place: &Place,
        options: &DeleteOptions,
    ) -> Result<Gone, Status> {
        let collection = Collection::of(kind);
        for _ in 0..ATTEMPTS_MAX {
            let found = self.find(kind, place)?;
            let old = found.value();
            let deletion = strategy::begin_delete(kind, &old, options, Timestamp::now())?;
            let (mut object, gone) = match deletion {
                Deletion::Unchanged => return Ok(Gone::Terminating(old)),
                Deletion::Deleted => (old, true),
                Deletion::MarkedTerminating { object } => (object, false),
            };
            let keep = keep(kind, Some(&object), None);
            let at = found.revision;
            let written = match (options.dry_run, gone) {
                (true, _) => Ok(at),
                (false, true) => self.storage.delete(&collection, place, at, &object, keep).await,
                (false, false) => self.storage.update(&collection, place, at, &object, keep).await,
            };
            match written {
                Ok(revision) => {
                    self.wrote(kind);
                    set_revision(&mut object, revision);
                    if gone && !options.dry_run {
                        self.purge(kind, &object).await?;
                    }
                    return Ok(if gone {
                        Gone::Removed(object)
                    } else {
                        Gone::Terminating(object)
                    });
                }
                Err(WriteError::Conflict { .. }) => {}
                Err(error) => return Err(write_status(error)),
            }
        }
        Err(Status::stale(kind, &place.name))
    }

    fn find(&self, kind: &Kind, place: &Place) -> Result<Found, Status> {
        let found = self.storage.get(&Collection::of(kind), place);
        found.ok_or_else(|| Status::not_found(kind, &place.name))
    }

    /// New objects need a namespace that is there to stay.
    fn check_namespace(&self, kind: &Kind, namespace: &str) -> Result<(), Status> {
        if !kind.namespaced {
            return Ok(());
        }
        let registry = self.registry();
        let namespaces = registry
            .by_group_resource("namespaces")
            .ok_or_else(Status::no_such_resource)?;
        let found = self.find(&namespaces, &Place::new("", namespace))?;
        if meta::is_terminating(&found.value()) {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(Status::new(
                Reason::Forbidden,
                format!("{} is forbidden: {why}", kind.group_resource()),
            ));
        }
        Ok(())
    }

    /// What only the server knows about an object.
    fn complete(&self, kind: &Kind, object: &mut Value) {
        if kind.is(DEFINITIONS) {
            settle(object, &self.registry(), Timestamp::now());
        }
    }

    /// The objects of a custom kind go with its definition; otherwise they would come back with a later one.
    async fn purge(&self, kind: &Kind, gone: &Value) -> Result<(), Status> {
        if !kind.is(DEFINITIONS) {
            return Ok(());
        }
        let group = meta::text(gone, &["spec", "group"]);
        let collection = Collection::new(group, meta::text(gone, &["spec", "names", "plural"]));
        for found in self.storage.all(&collection) {
            match self
                .storage
                .delete(
                    &collection,
                    &found.place,
                    found.revision,
                    &found.value(),
                    Keep::Durably,
                )
                .await
            {
                // A request that was under way when the definition went may have changed it once more.
                Ok(_) | Err(WriteError::Conflict { .. }) => {}
                Err(error) => return Err(write_status(error)),
            }
        }
        Ok(())
    }

    /// What else changes with a write.
    fn wrote(&self, kind: &Kind) {
        if kind.is(DEFINITIONS) {
            self.refresh_registry();
        }
        if kind.group == rbac::GROUP {
            self.refresh_access();
        }
    }
}

fn keep(kind: &Kind, before: Option<&Value>, after: Option<&Value>) -> Keep {
    if strategy::may_be_lost(kind, before, after) {
        Keep::Lazily
    } else {
        Keep::Durably
    }
}

/// The object as clients of this version of its kind see it.
pub(crate) fn in_version(kind: &Kind, mut object: Value) -> Value {
    if kind.version != kind.storage_version {
        meta::set(&mut object, &["apiVersion"], kind.api_version().into());
    }
    object
}

fn to_stored_version(kind: &Kind, object: &mut Value) {
    if kind.version != kind.storage_version {
        let stored = if kind.group.is_empty() {
            kind.storage_version.clone()
        } else {
            format!("{}/{}", kind.group, kind.storage_version)
        };
        meta::set(object, &["apiVersion"], stored.into());
    }
}

fn set_revision(object: &mut Value, revision: u64) {
    meta::set(
        object,
        &["metadata", "resourceVersion"],
        revision.to_string().into(),
    );
}

/// Why the store did not take a write, for the client.
fn write_status(error: WriteError) -> Status {
    match &error {
        WriteError::TooLarge { max, .. } => Status::too_large(*max),
        WriteError::DiskFull { .. } => {
            tracing::error!(%error, "write refused");
            Status::new(Reason::InternalError, format!("{error}; nothing was changed"))
        }
        WriteError::Conflict { .. } | WriteError::Storage { .. } => {
            tracing::error!(%error, "write failed");
            Status::internal(error.to_string())
        }
        WriteError::Closed => Status::unavailable("the server is ending; nothing was changed"),
    }
}

/// Fresh random bits.
pub(crate) fn random() -> Result<u64, Status> {
    let mut bytes = [0; 8];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Status::internal("the system gave no random bytes"))?;
    Ok(u64::from_le_bytes(bytes))
}

pub(crate) fn new_uid() -> Result<String, Status> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Status::internal("the system gave no random bytes"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}
