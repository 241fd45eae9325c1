//! Watches: a list of what is there where asked for, then every change, until the client, the time or we end it.

use super::shape::Shape;
use super::{Call, read};
use crate::reply::{self, Reply};
use crate::storage::{Change, ChangeKind, Follow, Page, WatchGap};
use bytes::Bytes;
use kedge_apimachinery::kinds::Kind;
use kedge_apimachinery::selector::Selector;
use kedge_apimachinery::status::Status;
use kedge_apimachinery::{meta, watch as wording};
use kedge_telemetry::Scope;
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// Watches end by themselves after this time, as in Kubernetes, so that clients spread over servers and time.
const DURATION_DEFAULT: Duration = Duration::from_secs(30 * 60);
/// A day: long enough for anybody.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a quiet watch is told where it stands.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(60);

pub(super) fn watch(call: Call) -> Result<Reply, Status> {
    let selector = read::selector(&call)?;
    let collection = call.collection();
    let asked = call.query.text("resourceVersion");
    let initial_end = call.query.flag("sendInitialEvents");
    let from_now = matches!(asked, "" | "0") || initial_end;
    let mut lines = VecDeque::new();
    let mut shape = Shape::of(&call)?;
    let seen = if from_now && call.query.text("sendInitialEvents") != "false" {
        let page = current(&call, &selector);
        lines.extend(
            page.found
                .iter()
                .map(|found| shape.event(ChangeKind::Added, &found.text)),
        );
        if initial_end {
            lines.push_back(bookmark(&call.kind, page.revision, true));
        }
        page.revision
    } else if from_now {
        call.server.storage.revision()
    } else {
        let why = || {
            Status::bad_request(format!(
                "resourceVersion: {asked:?} is not a version of this server"
            ))
        };
        asked.parse().map_err(|_| why())?
    };
    let follow = call
        .server
        .storage
        .follow(&collection, seen)
        .map_err(gap_status)?;
    let duration = match call.query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(DURATION_MAX),
        _ => DURATION_DEFAULT,
    };
    let mut ticks = tokio::time::interval_at(Instant::now() + BOOKMARK_PERIOD, BOOKMARK_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watcher = Watcher {
        lines,
        follow,
        filter: Filter {
            namespace: call.target.namespace.clone(),
            selector,
        },
        shape,
        bookmarks: call.query.flag("allowWatchBookmarks"),
        ticks,
        end: Instant::now() + duration,
        scope: call.scope,
        kind: call.kind,
        over: false,
    };
    let lines = futures_util::stream::unfold(watcher, |mut watcher| async move {
        let line = watcher.next().await?;
        Some((line, watcher))
    });
    Ok(reply::stream("application/json", lines))
}

fn current(call: &Call, selector: &Selector) -> Page {
    let all = selector.is_everything();
    let admit = |found: &crate::storage::Found| all || selector.matches(&found.value());
    call.server
        .storage
        .page(&call.collection(), &call.target.namespace, None, 0, admit)
}

fn gap_status(gap: WatchGap) -> Status {
    Status::too_old_resource_version(gap.asked, gap.oldest)
}

fn bookmark(kind: &Kind, revision: u64, initial_end: bool) -> Bytes {
    let object = wording::bookmark(kind, revision, initial_end).to_string();
    crate::storage::event_line("BOOKMARK", object.as_bytes())
}

/// Which changes concern a watcher.
struct Filter {
    namespace: String,
    selector: Selector,
}

impl Filter {
    /// What a change is for this watcher: an object may enter or leave what it selects.
    fn see(&self, change: &Change) -> Seen {
        if !self.namespace.is_empty() && change.place.namespace != self.namespace {
            return Seen::Nothing;
        }
        if self.selector.is_everything() {
            return Seen::AsIs;
        }
        let now = self.selector.matches(&change.value());
        let before = change.previous_value();
        let was = before.as_ref().map(|before| self.selector.matches(before));
        match (change.kind, was, now) {
            (ChangeKind::Added, _, true) => Seen::AsIs,
            (ChangeKind::Added, _, false) => Seen::Nothing,
            (ChangeKind::Modified, Some(false), true) => Seen::Entered,
            // What it was is not known after a restart: clients take an update of a new object as its creation.
            (ChangeKind::Modified, Some(true) | None, true) => Seen::AsIs,
            (ChangeKind::Modified, Some(false), false) => Seen::Nothing,
            (ChangeKind::Modified, Some(true) | None, false) => Seen::Left(before),
            (ChangeKind::Deleted, Some(true), _) | (ChangeKind::Deleted, None, true) => Seen::AsIs,
            (ChangeKind::Deleted, Some(false), _) | (ChangeKind::Deleted, None, false) => Seen::Nothing,
        }
    }
}

enum Seen {
    Nothing,
    AsIs,
    Entered,
    /// With the object as the watcher last saw it.
    Left(Option<Value>),
}

struct Watcher {
    /// Ready to be sent.
    lines: VecDeque<Bytes>,
    follow: Follow,
    filter: Filter,
    shape: Shape,
    bookmarks: bool,
    ticks: Interval,
    end: Instant,
    scope: Scope,
    kind: Arc<Kind>,
    over: bool,
}

impl Watcher {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.over {
                return None;
            }
            tokio::select! {
                biased; // An end is never put off by a flood of changes.
                () = self.scope.cancelled() => return None,
                () = tokio::time::sleep_until(self.end) => return None,
                changes = self.follow.next() => match changes {
                    Ok(changes) => self.take(&changes),
                    Err(gap) => {
                        let status = gap_status(gap).to_value().to_string();
                        self.lines.push_back(crate::storage::event_line("ERROR", status.as_bytes()));
                        self.over = true;
                    }
                },
                _ = self.ticks.tick(), if self.bookmarks => {
                    // Where the whole server stands, once what lies before it was given out.
                    match self.follow.ready() {
                        Ok(changes) => self.take(&changes),
                        Err(_) => continue,
                    }
                    self.lines.push_back(bookmark(&self.kind, self.follow.seen(), false));
                }
            }
        }
    }

    fn take(&mut self, changes: &[Arc<Change>]) {
        for change in changes {
            let line = match self.filter.see(change) {
                Seen::Nothing => continue,
                Seen::AsIs => self.shape.change(change),
                Seen::Entered => self.shape.event(ChangeKind::Added, &change.text),
                Seen::Left(before) => {
                    let mut object = before.unwrap_or_else(|| change.value());
                    meta::set(
                        &mut object,
                        &["metadata", "resourceVersion"],
                        change.revision.to_string().into(),
                    );
                    let text = Bytes::from(object.to_string());
                    self.shape.event(ChangeKind::Deleted, &text)
                }
            };
            self.lines.push_back(line);
        }
    }
}
