//! A small API server on loopback for tests: list in pages, watch, create, replace, merge patch, delete.
//!
//! It knows no kinds and checks nothing; it keeps objects by path and counts resource versions. What a test wants to
//! see go wrong it can order: streams that end, versions that are forgotten, calls that fail.

use crate::{Cluster, ConnectError, Parts};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// The server. Dropping it ends it.
pub struct Peer {
    address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
}

struct State {
    store: Mutex<Store>,
    /// Moves when something happened that a watch may have to tell.
    moved: watch::Sender<u64>,
}

#[derive(Default)]
struct Store {
    version: u64,
    /// By path, for example `/api/v1/namespaces/default/pods/web`.
    objects: BTreeMap<String, Value>,
    log: Vec<Logged>,
    /// Versions below this are forgotten.
    oldest: u64,
    /// Streams of an older generation end.
    generation: u64,
    /// Answers to give instead of the real ones, by method and path without query; each is given once.
    refusals: HashMap<String, Vec<Value>>,
    /// Answers to give always, by method and path without query.
    fixed: HashMap<String, Value>,
    /// Paths whose calls wait until they are let go.
    held: Vec<String>,
    calls: Vec<String>,
    /// Further plurals that are collections.
    kinds: Vec<String>,
    /// Connections are closed and none is taken.
    away: bool,
}

struct Logged {
    version: u64,
    path: String,
    event: Value,
}

impl Peer {
    /// Listens on a free port of loopback.
    pub async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            store: Mutex::default(),
            moved: watch::channel(0).0,
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { address, state, task })
    }

    /// A client of this server.
    pub async fn cluster(&self) -> Result<Cluster, ConnectError> {
        let url = format!("http://{}", self.address);
        Cluster::from_parts(Parts {
            url: &url,
            ca_pem: "",
            client_certificate_pem: "",
            client_key_pem: "",
        })
        .await
    }

    /// Stores an object as if another client had written it.
    pub fn put(&self, path: &str, object: Value) {
        self.state.lock().put(path, object);
        self.state.tell();
    }

    /// Deletes an object as if another client had.
    pub fn remove(&self, path: &str) {
        self.state.lock().remove(path);
        self.state.tell();
    }

    /// The object at a path.
    pub fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// Every call so far, as `METHOD path?query`.
    pub fn calls(&self) -> Vec<String> {
        self.state.lock().calls.clone()
    }

    /// Ends every open watch.
    pub fn end_streams(&self) {
        self.state.lock().generation += 1;
        self.state.tell();
    }

    /// Changes what no watch sees: every stream ends, the objects change (`None` deletes), and every version so far is
    /// forgotten, so that to watch from one of them is answered with 410.
    pub fn change_unseen(&self, changes: Vec<(String, Option<Value>)>) {
        let mut store = self.state.lock();
        store.generation += 1;
        for (path, object) in changes {
            match object {
                Some(object) => drop(store.put(&path, object)),
                None => drop(store.remove(&path)),
            }
        }
        store.version += 1;
        store.oldest = store.version;
        drop(store);
        self.state.tell();
    }

    /// Answers the next call of `method` on `path` with this `Status`.
    pub fn refuse_once(&self, method: &str, path: &str, status: Value) {
        self.state
            .lock()
            .refusals
            .entry(format!("{method} {path}"))
            .or_default()
            .push(status);
    }

    /// Answers every call of `method` on `path` with this object.
    pub fn answer_always(&self, method: &str, path: &str, object: Value) {
        let fixed = format!("{method} {path}");
        self.state.lock().fixed.insert(fixed, object);
    }

    /// Knows one more kind, by its plural: its collection can be listed and watched even when it is empty.
    pub fn serve(&self, plural: &str) {
        self.state.lock().kinds.push(plural.to_owned());
    }

    /// Closes every connection and takes no more, as a server that is gone.
    pub fn go_away(&self) {
        let mut store = self.state.lock();
        store.away = true;
        store.generation += 1;
        drop(store);
        self.state.tell();
    }

    /// Takes connections again.
    pub fn come_back(&self) {
        self.state.lock().away = false;
        self.state.tell();
    }

    /// Lets every call on this path wait until [`Peer::let_go`].
    pub fn hold(&self, path: &str) {
        self.state.lock().held.push(path.to_owned());
    }

    /// Lets every held call go on.
    pub fn let_go(&self) {
        self.state.lock().held.clear();
        self.state.tell();
    }

    /// Completes when `holds` does for the object at a path.
    pub async fn until_object(&self, path: &str, holds: impl Fn(Option<&Value>) -> bool) {
        let mut moved = self.state.moved.subscribe();
        while !holds(self.state.lock().objects.get(path)) {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    /// Completes when `holds` does for the list of calls.
    pub async fn until_calls(&self, holds: impl Fn(&[String]) -> bool) {
        let mut moved = self.state.moved.subscribe();
        while !holds(&self.state.lock().calls) {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
        self.end_streams();
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until_free(&self, path: &str) {
        let mut moved = self.moved.subscribe();
        while self.lock().held.iter().any(|held| held == path) {
            if moved.changed().await.is_err() {
                return;
            }
        }
    }

    fn tell(&self) {
        self.moved.send_modify(|moved| *moved += 1);
    }
}

impl Store {
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let known = self.objects.contains_key(path);
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version).into();
        }
        self.objects.insert(path.to_owned(), object.clone());
        self.record(if known { "MODIFIED" } else { "ADDED" }, path, object.clone());
        object
    }

    /// Paths of collections end in a plural; good enough for a peer that knows no kinds.
    fn is_collection(&self, path: &str) -> bool {
        let last = path.rsplit('/').next().unwrap_or_default();
        ["pods", "nodes", "configmaps", "secrets", "leases"].contains(&last)
            || self.kinds.iter().any(|kind| kind == last)
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.record("DELETED", path, object.clone());
        Some(object)
    }

    fn record(&mut self, kind: &str, path: &str, object: Value) {
        let event = json!({ "type": kind, "object": object });
        self.log.push(Logged {
            version: self.version,
            path: path.to_owned(),
            event,
        });
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    // Dropped with this task, and with it every connection.
    let mut connections = tokio::task::JoinSet::new();
    let mut moved = state.moved.subscribe();
    loop {
        let socket = tokio::select! {
            biased;
            Ok(()) = moved.changed() => {
                if state.lock().away {
                    connections.abort_all();
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(_) => return,
            },
        };
        if state.lock().away {
            continue;
        }
        // Else each event of a watch would wait for the acknowledgement of the one before.
        let _ = socket.set_nodelay(true);
        let state = Arc::clone(&state);
        connections.spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let state = Arc::clone(&state);
                async move { Ok::<_, Infallible>(answer(&state, request).await) }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that went away is how most connections end.
            let _ = server.serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

async fn answer(state: &Arc<State>, request: Request<Incoming>) -> Answer {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query: HashMap<String, String> = parts.uri.query().map(parse_query).unwrap_or_default();
    let body = body
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let call = format!(
        "{} {}",
        parts.method,
        parts.uri.path_and_query().map_or("/", |path| path.as_str())
    );
    state.lock().calls.push(call);
    state.tell();
    state.until_free(&path).await;
    let refusal = state
        .lock()
        .refusals
        .get_mut(&format!("{} {path}", parts.method))
        .and_then(Vec::pop);
    if let Some(status) = refusal {
        return refused(status);
    }
    let fixed = state
        .lock()
        .fixed
        .get(&format!("{} {path}", parts.method))
        .cloned();
    if let Some(object) = fixed {
        return sent_back(&object);
    }
    if query.contains_key("watch") {
        return follow(state, path, &query);
    }
    write_or_read(&mut state.lock(), &parts.method, &path, &query, &body)
        .inspect(|_| state.tell())
        .unwrap_or_else(refused)
}

fn write_or_read(
    store: &mut Store,
    method: &Method,
    path: &str,
    query: &HashMap<String, String>,
    body: &[u8],
) -> Result<Answer, Value> {
    let sent: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(body).unwrap_or_default()
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let missing = || status(404, "NotFound", &format!("{name:?} not found"));
    match method.as_str() {
        "GET" => match store.objects.get(path) {
            Some(object) => Ok(sent_back(object)),
            None if store.is_collection(path) => list(store, path, query),
            None => Err(missing()),
        },
        "POST" => {
            let name = sent["metadata"]["name"].as_str().unwrap_or("unnamed").to_owned();
            let path = format!("{path}/{name}");
            if store.objects.contains_key(&path) {
                return Err(status(409, "AlreadyExists", &format!("{name:?} already exists")));
            }
            Ok(sent_back(&store.put(&path, sent)))
        }
        "PUT" => {
            let path = path.trim_end_matches("/status").trim_end_matches("/approval");
            store.objects.get(path).ok_or_else(missing)?;
            Ok(sent_back(&store.put(path, sent)))
        }
        "PATCH" => {
            let path = path.trim_end_matches("/status");
            let mut object = store.objects.get(path).cloned().ok_or_else(missing)?;
            json_patch::merge(&mut object, &sent);
            Ok(sent_back(&store.put(path, object)))
        }
        "DELETE" => {
            let uid = store.objects.get(path).ok_or_else(missing)?["metadata"]["uid"].clone();
            let wanted = &sent["preconditions"]["uid"];
            if !wanted.is_null() && *wanted != uid {
                return Err(status(
                    409,
                    "Conflict",
                    "the UID in the precondition does not match",
                ));
            }
            Ok(sent_back(&store.remove(path).ok_or_else(missing)?))
        }
        other => Err(status(405, "MethodNotAllowed", other)),
    }
}

/// Whether the object at `path` belongs to the collection, also across namespaces.
fn belongs(path: &str, collection: &str) -> bool {
    let Some((parent, _name)) = path.rsplit_once('/') else {
        return false;
    };
    if parent == collection {
        return true;
    }
    let Some((group, plural)) = collection.rsplit_once('/') else {
        return false;
    };
    parent.strip_prefix(group).is_some_and(|rest| {
        rest.strip_prefix("/namespaces/")
            .is_some_and(|rest| rest.split_once('/').is_some_and(|(_, kind)| kind == plural))
    })
}

fn list(store: &Store, path: &str, query: &HashMap<String, String>) -> Result<Answer, Value> {
    let limit = query
        .get("limit")
        .and_then(|limit| limit.parse().ok())
        .unwrap_or(usize::MAX);
    let after = query.get("continue");
    let mut matching = store
        .objects
        .iter()
        .filter(|(at, _)| belongs(at, path) && after.is_none_or(|after| *at > after))
        .collect::<Vec<_>>();
    let more = matching.len() > limit;
    matching.truncate(limit);
    let next = if more {
        matching.last().map(|(at, _)| (*at).clone()).unwrap_or_default()
    } else {
        String::new()
    };
    // As a real server: items of a list carry no type.
    let items: Vec<Value> = matching
        .into_iter()
        .map(|(_, object)| without_type(object))
        .collect();
    let metadata = json!({ "resourceVersion": store.version.to_string(), "continue": next });
    Ok(sent_back(
        &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }),
    ))
}

fn without_type(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.shift_remove("apiVersion");
        fields.shift_remove("kind");
    }
    object
}

fn follow(state: &Arc<State>, path: String, query: &HashMap<String, String>) -> Answer {
    let from: u64 = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok())
        .unwrap_or(0);
    let store = state.lock();
    if from < store.oldest {
        return refused(status(410, "Expired", "too old resource version"));
    }
    let generation = store.generation;
    drop(store);
    let (lines, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, Infallible>>(16);
    let state = Arc::clone(state);
    tokio::spawn(async move {
        let mut moved = state.moved.subscribe();
        let mut told = from;
        loop {
            let events: Vec<String> = {
                let store = state.lock();
                if store.generation != generation {
                    return;
                }
                let new = store
                    .log
                    .iter()
                    .filter(|logged| logged.version > told && belongs(&logged.path, &path));
                let events = new.map(|logged| format!("{}\n", logged.event)).collect();
                told = store.version;
                events
            };
            for event in events {
                if lines.send(Ok(Frame::data(Bytes::from(event)))).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                moved = moved.changed() => if moved.is_err() { return },
                () = lines.closed() => return,
            }
        }
    });
    let stream = ReceiverStream(body);
    Response::new(BodyExt::boxed(StreamBody::new(stream)))
}

struct ReceiverStream(tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, Infallible>>);

impl futures_util::Stream for ReceiverStream {
    type Item = Result<Frame<Bytes>, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

/// A `Status` as the API writes it.
pub fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code })
}

fn refused(status: Value) -> Answer {
    let code = status["code"]
        .as_u64()
        .and_then(|code| u16::try_from(code).ok())
        .unwrap_or(500);
    let mut answer = sent_back(&status);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    answer
}

fn sent_back(value: &Value) -> Answer {
    Response::new(BodyExt::boxed(Full::new(Bytes::from(value.to_string()))))
}

fn parse_query(query: &str) -> HashMap<String, String> {
    query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match escaped
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .filter(|_| first == b'%')
        {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
