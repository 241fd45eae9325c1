//! A served socket.

use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use std::convert::Infallible;
use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::server::NamedService;
use tower_service::Service;

/// Connections at one time to one socket. A plug-in needs one; the kernel lets the others wait.
const CONNECTIONS_MAX: usize = 32;
/// Calls at one time on one connection.
const CALLS_MAX: u32 = 64;
/// Only the owner of the process may connect: who speaks here gives orders to the node.
const SOCKET_MODE: u32 = 0o600;

#[derive(Debug, thiserror::Error)]
#[error("{act} {}: {source}", path.display())]
pub struct BindError {
    act: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Listens on `path`; a socket that a killed process left there is replaced, another kind of file is not.
pub fn bind(path: &Path) -> Result<UnixListener, BindError> {
    let failed = |act| {
        move |source| BindError {
            act,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        Ok(_) => {
            let kind = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "a file that is no socket lies there",
            );
            return Err(failed("listen on")(kind));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    let mode = fs::Permissions::from_mode(SOCKET_MODE);
    fs::set_permissions(path, mode).map_err(failed("restrict"))?;
    Ok(listener)
}

/// Serves until `stop`; then no new call is taken, and those that run are cut.
pub async fn serve<S>(listener: UnixListener, service: S, stop: impl Future<Output = ()>)
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let mut stop = pin!(stop);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            // First: a flood of connections must not delay the end.
            () = &mut stop => return,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, service.clone()));
                }
                Err(error) => tracing::warn!(%error, "accept a connection on a local socket"),
            },
        }
    }
}

async fn connection<S>(stream: UnixStream, service: S)
where
    S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let handler = hyper::service::service_fn(move |request| {
        // A generated frame is always ready.
        let mut service = service.clone();
        async move { service.call(request).await }
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(CALLS_MAX)
        .serve_connection(TokioIo::new(stream), handler);
    if let Err(error) = served.await {
        tracing::debug!(%error, "a connection to a local socket ended");
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;
type Handler = Arc<dyn Fn(http::Request<Incoming>) -> Answer + Send + Sync>;

/// Several services behind one socket, found by the name in the path of a call.
#[derive(Clone, Default)]
pub struct Routes {
    services: Vec<(&'static str, Handler)>,
}

impl Routes {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "nobody adds numbers here")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Incoming>, Response = http::Response<Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(service.clone().call(request)));
        self.services.push((S::NAME, handler));
        self
    }

    fn find(&self, path: &str) -> Option<&Handler> {
        let service = path.strip_prefix('/')?.split('/').next()?;
        let found = self.services.iter().find(|(name, _)| *name == service);
        found.map(|(_, handler)| handler)
    }
}

impl Service<http::Request<Incoming>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Incoming>) -> Answer {
        match self.find(request.uri().path()) {
            Some(handler) => handler(request),
            None => {
                let refusal = tonic::Status::unimplemented("no such service on this socket");
                Box::pin(async move { Ok(refusal.into_http()) })
            }
        }
    }
}
