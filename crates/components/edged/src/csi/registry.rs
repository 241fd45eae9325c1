//! Which drivers there are: a plug-in puts a socket into the registry's directory, is asked who it is, and is told
//! whether it was taken. When the socket goes, so does the driver.

use super::Error;
use super::driver::{Driver, DriverInfo};
use crate::volumes::make_private_dir;
use kedge_grpc::plugin_registration::registration_client::RegistrationClient;
use kedge_grpc::plugin_registration::{InfoRequest, PluginInfo, RegistrationStatus};
use kedge_host::{Changes, Watch};
use kedge_sockets::{Address, Channel, origin};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::latest;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A plug-in that listens answers who it is at once.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// The pauses between attempts: a socket appears a moment before somebody listens on it.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(120);
/// Sockets that are looked at; a node has a handful of drivers.
const SOCKETS_MAX: usize = 64;
/// Where the directory cannot be watched it is read this often.
const UNWATCHED_INTERVAL: Duration = Duration::from_secs(30);

/// The kind of plug-in that serves volumes.
const TYPE_CSI: &str = "CSIPlugin";

/// The drivers by name. Cheap to clone: all clones are the same.
#[derive(Debug, Clone)]
pub(crate) struct Drivers {
    known: Arc<latest::Sender<BTreeMap<String, Entry>>>,
    /// What others are told.
    infos: Arc<latest::Sender<Arc<BTreeMap<String, DriverInfo>>>>,
}

#[derive(Debug, Clone)]
struct Entry {
    driver: Driver,
    /// The socket by which it registered.
    socket: PathBuf,
}

/// A socket as it lies there: one that was made again is another.
type Socket = (PathBuf, (u64, i64, i64));

impl Drivers {
    pub(crate) fn new() -> Self {
        Self {
            known: Arc::new(latest::channel(BTreeMap::new()).0),
            infos: Arc::new(latest::channel(Arc::new(BTreeMap::new())).0),
        }
    }

    /// The driver of this name, when it is here or comes within `patience`: after a start of the node, pods and drivers
    /// come up together.
    pub(crate) async fn wait(&self, name: &str, patience: Duration) -> Result<Driver, Error> {
        let mut known = self.known.subscribe();
        let found = known.wait_for(|known| known.contains_key(name));
        match tokio::time::timeout(patience, found).await {
            Ok(Ok(known)) => known
                .get(name)
                .map(|entry| entry.driver.clone())
                .ok_or_else(|| Error::NotRegistered(name.to_owned())),
            Ok(Err(_)) | Err(_) => Err(Error::NotRegistered(name.to_owned())),
        }
    }

    pub(crate) fn infos(&self) -> latest::Receiver<Arc<BTreeMap<String, DriverInfo>>> {
        self.infos.subscribe()
    }

    fn add(&self, driver: Driver, socket: &Path) {
        let (name, socket) = (driver.name.clone(), socket.to_owned());
        self.known
            .send_modify(|known| drop(known.insert(name, Entry { driver, socket })));
        self.tell();
    }

    fn remove(&self, socket: &Path) {
        self.known
            .send_modify(|known| known.retain(|_, entry| entry.socket != socket));
        self.tell();
    }

    fn tell(&self) {
        let infos: BTreeMap<_, _> = self
            .known
            .borrow()
            .iter()
            .map(|(name, entry)| (name.clone(), entry.driver.info.clone()))
            .collect();
        self.infos.send_if_modified(|told| {
            let differs = **told != infos;
            if differs {
                *told = Arc::new(infos);
            }
            differs
        });
    }
}

/// Keeps the drivers as the directory says, until the scope is cancelled.
pub(crate) async fn run(dir: PathBuf, drivers: Drivers, scope: Scope) {
    let mut registered: BTreeMap<Socket, Scope> = BTreeMap::new();
    let mut watch = open(&dir);
    loop {
        let present = sockets(&dir);
        registered.retain(|socket, attempt| {
            let stays = present.contains(socket);
            if !stays {
                attempt.cancel();
                drivers.remove(&socket.0);
            }
            stays
        });
        for socket in present {
            registered.entry(socket).or_insert_with_key(|(path, _)| {
                let attempt = scope.child();
                let task = register(path.clone(), drivers.clone());
                attempt.spawn_until_cancelled("edged-plugin-registration", task);
                attempt
            });
        }
        match &watch {
            Some(opened) => {
                if let Err(error) = opened.changed().await {
                    tracing::warn!(%error, "the registry of plug-ins cannot be watched any more");
                    watch = None;
                }
            }
            None => {
                tokio::time::sleep(UNWATCHED_INTERVAL).await;
                watch = open(&dir);
            }
        }
    }
}

fn open(dir: &Path) -> Option<Watch> {
    if let Err(error) = make_private_dir(dir) {
        tracing::warn!(dir = %dir.display(), %error, "the registry of plug-ins cannot be made");
        return None;
    }
    match Watch::open(dir, Changes::Any) {
        Ok(watch) => Some(watch),
        Err(error) => {
            tracing::warn!(%error, "the registry of plug-ins is read every {UNWATCHED_INTERVAL:?} instead");
            None
        }
    }
}

fn sockets(dir: &Path) -> Vec<Socket> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let socket = |entry: std::fs::DirEntry| {
        let found = entry.metadata().ok()?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        let fits = found.file_type().is_socket() && !hidden;
        fits.then(|| (entry.path(), (found.ino(), found.ctime(), found.ctime_nsec())))
    };
    entries.flatten().filter_map(socket).take(SOCKETS_MAX).collect()
}

/// Tries until the plug-in is registered or has been told why not; ends when its socket goes.
async fn register(socket: PathBuf, drivers: Drivers) {
    let mut delay = RETRY_MIN;
    loop {
        match attempt(&socket, &drivers).await {
            Ok(name) => {
                tracing::info!(driver = name, "CSI driver registered");
                return;
            }
            Err(error) => {
                tracing::debug!(socket = %socket.display(), %error, "plug-in not registered");
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(RETRY_MAX);
    }
}

async fn attempt(socket: &Path, drivers: &Drivers) -> Result<String, Error> {
    let channel = Channel::new(Address::Unix(socket.to_owned()));
    let mut client = RegistrationClient::with_origin(channel, origin());
    let failed = |message: String| Error::Registration {
        socket: socket.to_owned(),
        message,
    };
    let info = match tokio::time::timeout(ANSWER_MAX, client.get_info(InfoRequest {})).await {
        Ok(Ok(answer)) => answer.into_inner(),
        Ok(Err(status)) => return Err(failed(status.message().to_owned())),
        Err(_) => return Err(failed(format!("no answer within {} s", ANSWER_MAX.as_secs()))),
    };
    let accepted = accept(&info, socket).await;
    let status = RegistrationStatus {
        plugin_registered: accepted.is_ok(),
        error: accepted
            .as_ref()
            .err()
            .map(ToString::to_string)
            .unwrap_or_default(),
    };
    // Known before the plug-in hears of it: it may be used at once.
    let accepted = accepted.map(|driver| {
        let name = driver.name.clone();
        drivers.add(driver, socket);
        name
    });
    let told = tokio::time::timeout(ANSWER_MAX, client.notify_registration_status(status)).await;
    match (accepted, told) {
        (Ok(name), Ok(Ok(_))) => Ok(name),
        (Ok(_), Ok(Err(status))) => {
            drivers.remove(socket);
            Err(failed(status.message().to_owned()))
        }
        (Ok(_), Err(_)) => {
            drivers.remove(socket);
            Err(failed("it does not take the answer".to_owned()))
        }
        (Err(error), _) => Err(error),
    }
}

async fn accept(info: &PluginInfo, socket: &Path) -> Result<Driver, Error> {
    let failed = |message: String| Error::Registration {
        socket: socket.to_owned(),
        message,
    };
    if info.r#type != TYPE_CSI {
        return Err(failed(format!(
            "no handler registered for plugin type: {}",
            info.r#type
        )));
    }
    if !crate::volumes::is_plain_name(&info.name) {
        return Err(failed(format!("{:?} is no name of a driver", info.name)));
    }
    let first = |version: &String| version.trim_start_matches('v').split('.').next() == Some("1");
    if !info.supported_versions.iter().any(first) {
        let versions = info.supported_versions.join(", ");
        return Err(failed(format!("versions {versions:?} do not hold 1.x.y")));
    }
    let endpoint = if info.endpoint.is_empty() {
        socket
    } else {
        Path::new(&info.endpoint)
    };
    let endpoint = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    Driver::connect(&info.name, endpoint).await
}
