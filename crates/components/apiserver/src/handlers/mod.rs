//! From a request to its answer.
//!
//! [`answer`] finds out what is asked and by whom and hands it to one module an act.

mod bootstrap;
mod connect;
mod discovery;
mod log;
mod read;
mod reviews;
mod shape;
mod subresource;
mod token;
mod watch;
mod write;

pub(crate) use bootstrap::bootstrap;

use crate::authentication::Tokens;
use crate::config::{Config, Ports};
use crate::reply::{self, Reply};
use crate::request::{self, Form, Query, Route, Target};
use crate::signing::CertificateSigner;
use crate::storage::{Collection, Place, Storage};
use crate::token::Signer;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use kedge_apimachinery::kinds::{Kind, Registry, Subresource, Verb};
use kedge_apimachinery::rbac::{self, Access, Act, ResourceAct, User};
use kedge_apimachinery::status::{Reason, Status};
use kedge_telemetry::Scope;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Largest body, as in Kubernetes.
const BODY_BYTES_MAX: usize = 3 << 20;
/// A body that has not arrived by then keeps a place for nothing.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request waits for its turn before it is told to come again: clients give up after about ten seconds, so
/// an answer after that would be made for nobody.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the server signs with.
pub(crate) struct Keys {
    pub(crate) signer: Signer,
    pub(crate) certificates: Option<CertificateSigner>,
}

/// What all requests share.
pub(crate) struct Server {
    pub(crate) storage: Storage,
    pub(crate) config: Config,
    pub(crate) ports: Ports,
    pub(crate) address: SocketAddr,
    pub(crate) tokens: Tokens,
    pub(crate) certificates: Option<CertificateSigner>,
    registry: RwLock<Arc<Registry>>,
    access: RwLock<Arc<Access>>,
    in_flight: Semaphore,
    waiting: AtomicUsize,
}

impl Server {
    pub(crate) fn new(
        storage: Storage,
        keys: Keys,
        ports: Ports,
        address: SocketAddr,
        config: Config,
    ) -> Self {
        let server = Self {
            storage,
            ports,
            address,
            tokens: Tokens::new(keys.signer),
            certificates: keys.certificates,
            registry: RwLock::new(Arc::new(Registry::builtin())),
            access: RwLock::new(Arc::new(Access::new(config.trusted_groups.clone()))),
            in_flight: Semaphore::new(config.limits.in_flight),
            waiting: AtomicUsize::new(0),
            config,
        };
        server.refresh_registry();
        server.refresh_access();
        server
    }

    /// The kinds that are served now.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.registry.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the definitions of custom resources again.
    pub(crate) fn refresh_registry(&self) {
        // The lock is held while reading, so that an older reading never replaces a newer one.
        let mut place = self.registry.write().unwrap_or_else(PoisonError::into_inner);
        let mut registry = Registry::builtin();
        for found in self.storage.all(&Collection::named(
            "customresourcedefinitions.apiextensions.k8s.io",
        )) {
            if let Err(error) = registry.register_crd(&found.value()) {
                tracing::warn!(%error, "custom resource definition is not served");
            }
        }
        *place = Arc::new(registry);
    }

    /// Who may do what now.
    pub(crate) fn access(&self) -> Arc<Access> {
        Arc::clone(&self.access.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads roles and bindings again.
    pub(crate) fn refresh_access(&self) {
        // Locked while reading, as above.
        let mut place = self.access.write().unwrap_or_else(PoisonError::into_inner);
        let kinds = ["roles", "clusterroles", "rolebindings", "clusterrolebindings"];
        let all: Vec<_> = kinds
            .iter()
            .flat_map(|plural| self.storage.all(&Collection::new(rbac::GROUP, plural)))
            .map(|found| found.value())
            .collect();
        *place = Arc::new(place.with(&all));
    }

    /// Refuses what the user may not do.
    pub(crate) fn authorize(&self, user: &User, act: &Act<'_>) -> Result<(), Status> {
        self.access().allow(user, act).map_err(|why| {
            // Whoever writes roles finds here what a program was refused, also when the program says nothing.
            tracing::debug!(user = user.name, why, "refused");
            act.refusal(&why)
        })
    }
}

/// A request for a resource, with everything known about it but its body.
pub(crate) struct Call {
    pub(crate) server: Arc<Server>,
    pub(crate) who: Arc<User>,
    pub(crate) kind: Arc<Kind>,
    pub(crate) target: Target,
    pub(crate) query: Query,
    pub(crate) form: Form,
    pub(crate) headers: HeaderMap,
    pub(crate) scope: Scope,
}

impl Call {
    pub(crate) fn collection(&self) -> Collection {
        Collection::of(&self.kind)
    }

    pub(crate) fn place(&self) -> Place {
        self.target.place()
    }
}

/// What is done with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Operation {
    fn verb(self) -> Verb {
        match self {
            Self::Get => Verb::Get,
            Self::List => Verb::List,
            Self::Watch => Verb::Watch,
            Self::Create => Verb::Create,
            Self::Update => Verb::Update,
            Self::Patch => Verb::Patch,
            Self::Delete => Verb::Delete,
            Self::DeleteCollection => Verb::DeleteCollection,
        }
    }

    fn of(method: &Method, target: &Target, query: &Query) -> Option<Self> {
        let watch = target.legacy_watch || (query.flag("watch") && target.subresource.is_empty());
        let one = !target.name.is_empty();
        match (method, one) {
            (&Method::GET, _) if watch => Some(Self::Watch),
            (&Method::GET, true) => Some(Self::Get),
            (&Method::GET, false) => Some(Self::List),
            (&Method::POST, _) => Some(Self::Create),
            (&Method::PUT, true) => Some(Self::Update),
            (&Method::PATCH, true) => Some(Self::Patch),
            (&Method::DELETE, true) => Some(Self::Delete),
            (&Method::DELETE, false) => Some(Self::DeleteCollection),
            _ => None,
        }
    }
}

/// Answers one request. Every refusal is a Status that says what was wrong.
pub(crate) async fn answer(
    server: Arc<Server>,
    who: Option<Arc<User>>,
    scope: Scope,
    request: Request<Incoming>,
) -> Reply {
    match respond(server, who, scope, request).await {
        Ok(reply) => reply,
        Err(status) => reply::refuse(&status),
    }
}

async fn respond(
    server: Arc<Server>,
    who: Option<Arc<User>>,
    scope: Scope,
    request: Request<Incoming>,
) -> Result<Reply, Status> {
    let (mut head, body) = request.into_parts();
    let route = Route::parse(head.uri.path());
    match route {
        Route::Health => return Ok(reply::text(StatusCode::OK, "ok")),
        Route::Version => return Ok(discovery::version()),
        _ => {}
    }
    let who = server.identify(who, &head.headers)?;
    let Route::Resource(target) = route else {
        let verb = head.method.as_str().to_ascii_lowercase();
        let path = head.uri.path();
        server.authorize(&who, &Act::Path { verb: &verb, path })?;
        if head.method != Method::GET {
            return Err(Status::new(Reason::MethodNotAllowed, "only GET is possible here"));
        }
        return discovery::answer(&server, &route, &head.headers);
    };
    let query = Query::parse(head.uri.query().unwrap_or_default())?;
    let operation = Operation::of(&head.method, &target, &query);
    authorize(&server, &who, &target, &query, operation)?;
    let Some(kind) = server
        .registry()
        .lookup(&target.group, &target.version, &target.plural)
    else {
        return Err(Status::no_such_resource());
    };
    let Some(operation) = operation else {
        return Err(Status::method_not_allowed(&kind, head.method.as_str()));
    };
    if kind.namespaced
        && target.namespace.is_empty()
        && operation != Operation::List
        && operation != Operation::Watch
    {
        return Err(Status::bad_request(format!(
            "{} live in a namespace: the path must name one",
            kind.plural
        )));
    }
    if !kind.namespaced && !target.namespace.is_empty() {
        return Err(Status::no_such_resource());
    }
    let form = match operation {
        // Logs and the like are no objects: what is accepted does not change them.
        _ if !target.subresource.is_empty() => Form::Plain,
        _ => request::accepted_form(&head.headers)?,
    };
    let call = Call {
        server,
        who,
        kind,
        target,
        query,
        form,
        headers: head.headers,
        scope,
    };
    if let Some(kind) = connect::Kind::of(&call.target) {
        return connect::connect(&call, kind, &head.method, head.extensions.remove()).await;
    }
    dispatch(call, operation, body).await
}

async fn dispatch(call: Call, operation: Operation, body: Incoming) -> Result<Reply, Status> {
    if !call.target.subresource.is_empty() {
        return subresource(call, operation, body).await;
    }
    if !call.kind.serves(operation.verb()) {
        return Err(Status::method_not_allowed(&call.kind, operation.verb().as_str()));
    }
    if operation == Operation::Watch {
        return watch::watch(call);
    }
    let server = Arc::clone(&call.server);
    let _place = admit(&server).await?;
    match operation {
        Operation::Get => read::get(&call),
        Operation::List => read::list(&call),
        Operation::Watch => watch::watch(call),
        Operation::Create => write::create(&call, receive(body).await?).await,
        Operation::Update => write::update(&call, receive(body).await?).await,
        Operation::Patch => write::patch(&call, receive(body).await?).await,
        Operation::Delete => write::delete(&call, receive(body).await?).await,
        Operation::DeleteCollection => write::delete_collection(&call, receive(body).await?).await,
    }
}

async fn subresource(call: Call, operation: Operation, body: Incoming) -> Result<Reply, Status> {
    let name = call.target.subresource.as_str();
    if call.kind.is("pods") && matches!(name, "proxy" | "ephemeralcontainers") {
        return Ok(not_available(name));
    }
    let Some(subresource) = Subresource::parse(name).filter(|s| call.kind.has(*s)) else {
        return Err(Status::no_such_resource());
    };
    if !subresource.verbs().contains(&operation.verb()) {
        return Err(Status::method_not_allowed(&call.kind, operation.verb().as_str()));
    }
    if subresource == Subresource::Log {
        return log::log(&call).await;
    }
    let server = Arc::clone(&call.server);
    let _place = admit(&server).await?;
    match (subresource, operation) {
        (Subresource::Binding, _) => subresource::bind(&call, receive(body).await?).await,
        (Subresource::Eviction, _) => subresource::evict(&call, receive(body).await?).await,
        (Subresource::Token, _) => token::request(&call, receive(body).await?).await,
        (Subresource::Scale, Operation::Get) => subresource::get_scale(&call),
        (Subresource::Scale, Operation::Patch) => subresource::patch_scale(&call, receive(body).await?).await,
        (Subresource::Scale, _) => subresource::update_scale(&call, receive(body).await?).await,
        (_, Operation::Get) => read::get(&call),
        (_, Operation::Patch) => write::patch(&call, receive(body).await?).await,
        (_, _) => write::update(&call, receive(body).await?).await,
    }
}

/// A place among the requests that are worked on.
async fn admit(server: &Server) -> Result<SemaphorePermit<'_>, Status> {
    if let Ok(place) = server.in_flight.try_acquire() {
        return Ok(place);
    }
    let full = || Status::too_many_requests("too many requests, please try again later.", RETRY_AFTER_S);
    let turn = Turn::take(server).ok_or_else(full)?;
    let place = tokio::time::timeout(TURN_TIMEOUT, server.in_flight.acquire()).await;
    drop(turn);
    match place {
        Ok(Ok(place)) => Ok(place),
        // The semaphore is never closed.
        Ok(Err(_)) | Err(_) => Err(full()),
    }
}

/// What a refused client is told to wait.
const RETRY_AFTER_S: u32 = 1;

/// One of the waiting requests, until it is dropped.
struct Turn<'a>(&'a AtomicUsize);

impl<'a> Turn<'a> {
    /// `None` when as many wait as may.
    fn take(server: &'a Server) -> Option<Self> {
        let turn = Self(&server.waiting);
        let before = server.waiting.fetch_add(1, Ordering::Relaxed);
        (before < server.config.limits.waiting).then_some(turn)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn receive(body: Incoming) -> Result<Bytes, Status> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await;
    match collected {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Status::too_large(BODY_BYTES_MAX))
        }
        Ok(Err(error)) => Err(Status::bad_request(format!("the body did not arrive: {error}"))),
        Err(_) => Err(Status::timeout("the body did not arrive in time")),
    }
}

/// The act as roles name it, allowed or refused. A method that is no act is judged as its own name.
fn authorize(
    server: &Server,
    who: &User,
    target: &Target,
    query: &Query,
    operation: Option<Operation>,
) -> Result<(), Status> {
    // One object that is looked for by its name in a list or a watch is an object of that name.
    let one = request::name_in_fields(query.text("fieldSelector"));
    let name = match operation {
        Some(Operation::List | Operation::Watch | Operation::DeleteCollection) if target.name.is_empty() => {
            one
        }
        _ => None,
    };
    // Who may only look shall not run commands, though WebSocket begins with GET.
    let connects = connect::Kind::of(target).is_some();
    let verb = match operation {
        Some(_) if connects => Verb::Create.as_str(),
        Some(operation) => operation.verb().as_str(),
        None => "unknown",
    };
    // A namespace lies in itself, so that a role in it can speak of it.
    let is_namespace = target.group.is_empty() && target.plural == "namespaces";
    let act = Act::Resource(ResourceAct {
        verb,
        group: &target.group,
        resource: &target.plural,
        subresource: &target.subresource,
        namespace: if is_namespace {
            &target.name
        } else {
            &target.namespace
        },
        name: name.unwrap_or(&target.name),
    });
    server.authorize(who, &act)
}

/// What is known but not served says so; 404 would send people looking for a typo.
fn not_available(name: &str) -> Reply {
    let message = format!("pods/{name} is not available in this version of the embedded Kubernetes API");
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": "NotImplemented", "code": 501,
    });
    reply::json(StatusCode::NOT_IMPLEMENTED, &status)
}
