//! A watch that never ends.

mod lines;
mod objects;

use crate::{ApiError, Backoff, Cluster};
use kedge_telemetry::clock;
use kedge_wire::{Body, ResourceVersion, Status, Uid};
use lines::Lines;
use objects::{Event, Page};
use std::collections::{HashMap, VecDeque};
use std::time::Duration;
use tokio::time::Instant;

/// Objects of one page of a list: a compromise between round trips and the memory that one page takes.
const PAGE_OBJECTS: usize = 250;
/// How long the server keeps one stream open. Short enough that a connection which died in silence is noticed soon.
const STREAM_SECONDS: u64 = 120;
/// Silence after which a stream is given up although the server should have ended it.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(STREAM_SECONDS + 15);
/// A stream that ends sooner than this without a word counts as a failure, so that we never spin.
const STREAM_LIFE_MIN: Duration = Duration::from_secs(1);
/// First wait after a failure; doubles each time.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest wait: a server that comes back is noticed within this.
const BACKOFF_MAX: Duration = Duration::from_secs(15);

/// What to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The collection, for example `/api/v1/pods`.
    pub path: String,
    /// Set on every object that comes without: lists leave it out.
    pub api_version: &'static str,
    /// As `api_version`.
    pub kind: &'static str,
}

/// What a watch tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchItem {
    /// The object exists, in this form. Told again after every new list.
    Applied(Body),
    /// The object is gone: its last form, or its name, namespace and UID when it vanished unseen.
    Deleted(Body),
    /// Everything that existed at this version has been told. Told after every list.
    Synced { version: ResourceVersion },
}

/// Follows one collection across pages, stream ends, broken connections and forgotten versions.
#[derive(Debug)]
pub struct Watch {
    cluster: Cluster,
    watched: Watched,
    /// What has been told, by `<namespace>/<name>`.
    known: HashMap<String, Uid>,
    phase: Phase,
    told: VecDeque<WatchItem>,
    /// Whether the last thing that happened was trouble.
    troubled: bool,
    backoff: Backoff,
}

#[derive(Debug)]
enum Phase {
    List {
        next_page: Option<String>,
        fresh: HashMap<String, Uid>,
    },
    Follow {
        version: String,
        stream: Option<Stream>,
    },
}

#[derive(Debug)]
struct Stream {
    lines: Lines,
    opened: Instant,
    /// Whether the server has said anything.
    alive: bool,
}

impl Watch {
    pub fn new(cluster: Cluster, watched: Watched) -> Self {
        let phase = Phase::List {
            next_page: None,
            fresh: HashMap::new(),
        };
        // Two watches of one process must not come back in the same instant either.
        let spread = watched
            .path
            .bytes()
            .fold(0_u64, |sum, byte| sum.rotate_left(7) ^ u64::from(byte));
        Self {
            cluster,
            watched,
            known: HashMap::new(),
            phase,
            told: VecDeque::new(),
            troubled: false,
            backoff: Backoff::new(BACKOFF_FIRST, BACKOFF_MAX, clock::process_seed() ^ spread),
        }
    }

    /// The next thing to know. Waits as long as it takes; a failure is logged and tried again. Cancel safe.
    pub async fn next(&mut self) -> WatchItem {
        loop {
            if let Some(item) = self.told.pop_front() {
                return item;
            }
            if let Err(trouble) = self.step().await {
                self.recover(trouble).await;
            }
        }
    }

    async fn step(&mut self) -> Result<(), Trouble> {
        match &mut self.phase {
            Phase::List { next_page, .. } => {
                let body = self
                    .cluster
                    .get(&list_path(&self.watched.path, next_page.as_deref()))
                    .await?;
                self.take_page(Page::read(&body)?)
            }
            Phase::Follow {
                version,
                stream: stream @ None,
            } => {
                let body = self
                    .cluster
                    .open(&follow_path(&self.watched.path, version))
                    .await?;
                *stream = Some(Stream {
                    lines: Lines::new(body),
                    opened: Instant::now(),
                    alive: false,
                });
                Ok(())
            }
            Phase::Follow {
                stream: Some(stream), ..
            } => {
                let line = tokio::time::timeout(STREAM_SILENCE_MAX, stream.lines.next());
                match line.await.map_err(|_| Trouble::Silent)?? {
                    Some(line) => {
                        stream.alive = true;
                        self.troubled = false;
                        self.backoff.reset();
                        self.take_event(Event::read(&line)?)
                    }
                    None if stream.alive || stream.opened.elapsed() >= STREAM_LIFE_MIN => {
                        self.reopen();
                        Ok(())
                    }
                    None => Err(Trouble::EndedAtOnce),
                }
            }
        }
    }

    fn take_page(&mut self, page: Page) -> Result<(), Trouble> {
        for object in page.objects {
            let object = objects::with_type(object, self.watched.api_version, self.watched.kind)?;
            let (key, uid) = objects::identity(&object)?;
            if let Phase::List { fresh, .. } = &mut self.phase {
                fresh.insert(key.clone(), uid.clone());
            }
            self.apply(key, uid, object);
        }
        let Phase::List { next_page, fresh } = &mut self.phase else {
            return Ok(());
        };
        if page.next_page.is_some() {
            *next_page = page.next_page;
            return Ok(());
        }
        let fresh = std::mem::take(fresh);
        let known = std::mem::replace(&mut self.known, fresh);
        for (key, uid) in known {
            if !self.known.contains_key(&key) {
                self.told
                    .push_back(WatchItem::Deleted(self.tombstone(&key, &uid)));
            }
        }
        self.told.push_back(WatchItem::Synced {
            version: ResourceVersion::new(page.version.clone()),
        });
        self.phase = Phase::Follow {
            version: page.version,
            stream: None,
        };
        Ok(())
    }

    fn take_event(&mut self, event: Event) -> Result<(), Trouble> {
        let object = match event {
            Event::Bookmark { version } => {
                self.advance(version);
                return Ok(());
            }
            Event::Error(status) => return Err(Trouble::Told(status)),
            Event::Applied(object) => {
                let object = objects::with_type(object, self.watched.api_version, self.watched.kind)?;
                let (key, uid) = objects::identity(&object)?;
                self.apply(key, uid, object.clone());
                object
            }
            Event::Deleted(object) => {
                let object = objects::with_type(object, self.watched.api_version, self.watched.kind)?;
                let (key, _) = objects::identity(&object)?;
                self.known.remove(&key);
                self.told.push_back(WatchItem::Deleted(object.clone()));
                object
            }
        };
        self.advance(objects::version(&object)?);
        Ok(())
    }

    /// Tells that an object exists; first that another one of its name is gone.
    fn apply(&mut self, key: String, uid: Uid, object: Body) {
        if let Some(before) = self.known.get(&key).filter(|before| **before != uid) {
            self.told
                .push_back(WatchItem::Deleted(self.tombstone(&key, before)));
        }
        self.known.insert(key, uid);
        self.told.push_back(WatchItem::Applied(object));
    }

    fn tombstone(&self, key: &str, uid: &Uid) -> Body {
        objects::tombstone(self.watched.api_version, self.watched.kind, key, uid)
    }

    fn advance(&mut self, newest: String) {
        if let Phase::Follow { version, .. } = &mut self.phase
            && !newest.is_empty()
        {
            *version = newest;
        }
    }

    fn reopen(&mut self) {
        if let Phase::Follow { stream, .. } = &mut self.phase {
            *stream = None;
        }
    }

    /// Goes back to where work can go on, and waits if this is not the first trouble in a row.
    async fn recover(&mut self, trouble: Trouble) {
        let path = &self.watched.path;
        // A version that was forgotten is the server's right: the first new list comes at once.
        let wait = match trouble.is_gone() && !self.troubled {
            true => Duration::ZERO,
            false => self.backoff.next(trouble.retry_after()),
        };
        if trouble.is_gone() {
            tracing::info!(path, "the watch fell behind and lists again");
        } else {
            tracing::warn!(path, error = %trouble, retry_in_ms = wait.as_millis(), "the watch was interrupted");
        }
        self.troubled = true;
        if trouble.keeps_place() {
            self.reopen();
        } else {
            // What a broken list has told already stays known, so that the next one can tell what vanished.
            self.phase = Phase::List {
                next_page: None,
                fresh: HashMap::new(),
            };
        }
        tokio::time::sleep(wait).await;
    }
}

fn list_path(path: &str, next_page: Option<&str>) -> String {
    match next_page {
        None => format!("{path}?limit={PAGE_OBJECTS}"),
        Some(token) => format!(
            "{path}?limit={PAGE_OBJECTS}&continue={}",
            objects::percent_encode(token)
        ),
    }
}

fn follow_path(path: &str, version: &str) -> String {
    let version = objects::percent_encode(version);
    format!(
        "{path}?watch=true&allowWatchBookmarks=true&timeoutSeconds={STREAM_SECONDS}&resourceVersion={version}"
    )
}

/// Why a step did not end well.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Line(#[from] lines::LineError),
    #[error("the server sent something that is not an object of this watch: {0}")]
    Unreadable(#[from] serde_json::Error),
    #[error("the server ended the watch: {0}")]
    Told(Box<Status>),
    #[error("the server was silent for too long")]
    Silent,
    #[error("the server ended the stream at once")]
    EndedAtOnce,
}

impl Trouble {
    fn is_gone(&self) -> bool {
        match self {
            Self::Api(error) => error.is_gone(),
            Self::Told(status) => status.code == 410,
            Self::Line(_) | Self::Unreadable(_) | Self::Silent | Self::EndedAtOnce => false,
        }
    }

    /// Whether the watch may go on from the version (or the page) it had reached.
    fn keeps_place(&self) -> bool {
        match self {
            Self::Line(_) | Self::Silent | Self::EndedAtOnce => true,
            Self::Api(error) => error.is_passing(),
            Self::Told(_) | Self::Unreadable(_) => false,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Api(error) => error.retry_after(),
            Self::Line(_) | Self::Unreadable(_) | Self::Told(_) | Self::Silent | Self::EndedAtOnce => None,
        }
    }
}
