//! From a request to its answer.
//!
//! [`answer`] finds out what is asked and by whom and hands it to one module an act.

mod bootstrap;
mod discovery;
mod log;
mod read;
mod shape;
mod subresource;
mod token;
mod watch;
mod write;

pub(crate) use bootstrap::bootstrap;

use crate::config::{Config, Ports};
use crate::identity::{Act, Identity, Policy};
use crate::reply::{self, Reply};
use crate::request::{self, Form, Query, Route, Target};
use crate::storage::{Collection, Place, Storage};
use crate::token::Signer;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use kedge_apimachinery::kinds::{Kind, Registry, Subresource, Verb};
use kedge_apimachinery::status::{Reason, Status};
use kedge_telemetry::Scope;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Largest body, as in Kubernetes.
const BODY_BYTES_MAX: usize = 3 << 20;
/// A body that has not arrived by then keeps a place for nothing.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that are worked on at once, besides watches and logs: each may hold a body and an object in memory.
const IN_FLIGHT_MAX: usize = 256;

/// What all requests share.
pub(crate) struct Server {
    pub(crate) storage: Storage,
    pub(crate) config: Config,
    pub(crate) ports: Ports,
    pub(crate) address: SocketAddr,
    registry: RwLock<Arc<Registry>>,
    policy: Policy,
    signer: Signer,
    in_flight: Semaphore,
}

impl Server {
    pub(crate) fn new(
        storage: Storage,
        policy: Policy,
        signer: Signer,
        ports: Ports,
        address: SocketAddr,
        config: Config,
    ) -> Self {
        let server = Self {
            storage,
            config,
            ports,
            address,
            registry: RwLock::new(Arc::new(Registry::builtin())),
            policy,
            signer,
            in_flight: Semaphore::new(IN_FLIGHT_MAX),
        };
        server.refresh_registry();
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
}

/// A request for a resource, with everything known about it but its body.
pub(crate) struct Call {
    pub(crate) server: Arc<Server>,
    pub(crate) who: Arc<Identity>,
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
    who: Option<Arc<Identity>>,
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
    who: Option<Arc<Identity>>,
    scope: Scope,
    request: Request<Incoming>,
) -> Result<Reply, Status> {
    let (head, body) = request.into_parts();
    let route = Route::parse(head.uri.path());
    match route {
        Route::Health => return Ok(reply::text(StatusCode::OK, "ok")),
        Route::Version => return Ok(discovery::version()),
        _ => {}
    }
    let who = who
        .or_else(|| bearer(&server, &head.headers))
        .ok_or_else(Status::unauthorized)?;
    let Route::Resource(target) = route else {
        if head.method != Method::GET {
            return Err(Status::new(Reason::MethodNotAllowed, "only GET is possible here"));
        }
        return discovery::answer(&server, &route, &head.headers);
    };
    let query = Query::parse(head.uri.query().unwrap_or_default())?;
    let Some(kind) = server
        .registry()
        .lookup(&target.group, &target.version, &target.plural)
    else {
        return Err(Status::no_such_resource());
    };
    let Some(operation) = Operation::of(&head.method, &target, &query) else {
        return Err(Status::method_not_allowed(&kind, head.method.as_str()));
    };
    authorize(&server, &who, &target, operation)?;
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
    let _place = admit(&server)?;
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
    if call.kind.is("pods")
        && matches!(
            name,
            "exec" | "attach" | "portforward" | "proxy" | "ephemeralcontainers"
        )
    {
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
    let _place = admit(&server)?;
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
fn admit(server: &Server) -> Result<tokio::sync::SemaphorePermit<'_>, Status> {
    let full = || Status::too_many_requests("the server works on as many requests as it can; try again", 1);
    server.in_flight.try_acquire().map_err(|_| full())
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

fn bearer(server: &Server, headers: &HeaderMap) -> Option<Arc<Identity>> {
    let header = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let token = header.strip_prefix("Bearer ")?;
    server
        .signer
        .verify(token.trim(), jiff::Timestamp::now().as_second())
        .map(Arc::new)
}

fn authorize(server: &Server, who: &Identity, target: &Target, operation: Operation) -> Result<(), Status> {
    let act = Act {
        verb: operation.verb().as_str(),
        group: &target.group,
        plural: &target.plural,
        subresource: &target.subresource,
        namespace: &target.namespace,
        name: &target.name,
    };
    // Everybody may ask what they may do; the answer depends on who asks.
    if target.plural == "selfsubjectaccessreviews" {
        return Ok(());
    }
    server.policy.allow(who, &act).map_err(|why| {
        let of_group = if target.group.is_empty() {
            String::new()
        } else {
            format!(".{}", target.group)
        };
        let name = if target.name.is_empty() {
            String::new()
        } else {
            format!(" {:?}", target.name)
        };
        Status::new(
            Reason::Forbidden,
            format!("{}{of_group}{name} is forbidden: {why}", target.plural),
        )
    })
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
