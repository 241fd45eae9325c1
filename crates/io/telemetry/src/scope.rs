//! One scope per process: every task is spawned through it, with a name, and ends through it.

use futures_util::FutureExt;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The name of a task. Tasks of which there are thousands share a static one: the number of them is what a person needs,
/// and a text for each would be memory for each.
pub type Name = Cow<'static, str>;

/// Owns the tasks of a process or of a part of it. Cloning shares the scope; [`Scope::child`] makes a part that can
/// be drained alone and ends with its parent.
#[derive(Debug, Clone)]
pub struct Scope {
    token: CancellationToken,
    tracker: TaskTracker,
    running: Arc<Mutex<BTreeMap<Name, usize>>>,
    failure: Arc<OnceLock<String>>,
}

/// What was still running when the drain's deadline passed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainReport {
    /// Names of tasks that did not end in time, with their number. Empty after a clean drain.
    pub left: BTreeMap<Name, usize>,
}

impl Default for Scope {
    fn default() -> Self {
        Self::new()
    }
}

impl Scope {
    /// A scope with no tasks.
    pub fn new() -> Self {
        Self {
            token: CancellationToken::new(),
            tracker: TaskTracker::new(),
            running: Arc::default(),
            failure: Arc::default(),
        }
    }

    /// A scope that is cancelled with this one and can be cancelled before it.
    pub fn child(&self) -> Self {
        Self {
            token: self.token.child_token(),
            tracker: TaskTracker::new(),
            running: Arc::default(),
            failure: Arc::default(),
        }
    }

    /// Runs a task under `name` until it returns. The task watches [`Scope::cancelled`] itself, so that it can
    /// finish what it has begun. Should it panic, that is logged and the others go on.
    pub fn spawn<F>(&self, name: impl Into<Name>, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let guard = Running::enter(Arc::clone(&self.running), name.into());
        // Combinators, not an async block: a block that takes a future and awaits it has room for it twice.
        self.tracker
            .spawn(AssertUnwindSafe(task).catch_unwind().map(move |outcome| {
                if outcome.is_err() {
                    tracing::error!(task = %guard.name, "panicked");
                }
            }));
    }

    /// Runs a task without which the process is of no use, such as a component. When it ends before the scope was
    /// asked to, by a panic or by returning, the scope is cancelled and [`Scope::failure`] says why: a process that
    /// ends is started again, one that lost a part is not noticed.
    pub fn spawn_vital<F>(&self, name: impl Into<Name>, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (name, scope, task) = (name.into(), self.clone(), Box::pin(task));
        self.spawn(name.clone(), async move {
            let outcome = AssertUnwindSafe(task).catch_unwind().await;
            if scope.is_cancelled() && outcome.is_ok() {
                return;
            }
            let how = if outcome.is_ok() {
                "ended by itself"
            } else {
                "panicked"
            };
            tracing::error!(task = %name, how, "a vital task is gone");
            // The first failure is the cause; later ones follow from it.
            let _ = scope.failure.set(format!("{name} {how}"));
            scope.cancel();
        });
    }

    /// Why the scope was cancelled, when it was a vital task that failed.
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Completes when a vital task has failed, with the sentence that says which. Never completes otherwise.
    pub async fn failed(&self) -> String {
        self.cancelled().await;
        match self.failure() {
            Some(failure) => failure.to_owned(),
            None => std::future::pending().await,
        }
    }

    /// Runs a task that is dropped at cancellation, for tasks with nothing to finish.
    pub fn spawn_until_cancelled<F>(&self, name: impl Into<Name>, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (token, task) = (self.token.clone(), Box::pin(task));
        self.spawn(name, async move {
            token.run_until_cancelled(task).await;
        });
    }

    /// Completes when the scope is asked to end.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Whether the scope was asked to end.
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Asks every task to end, without waiting.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Asks every task to end and waits for them until `deadline` has passed.
    pub async fn drain(&self, deadline: Duration) -> DrainReport {
        self.token.cancel();
        self.tracker.close();
        let _ = tokio::time::timeout(deadline, self.tracker.wait()).await;
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        DrainReport {
            left: running.clone(),
        }
    }
}

struct Running {
    names: Arc<Mutex<BTreeMap<Name, usize>>>,
    name: Name,
}

impl Running {
    fn enter(names: Arc<Mutex<BTreeMap<Name, usize>>>, name: Name) -> Self {
        *names
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(name.clone())
            .or_default() += 1;
        Self { names, name }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = names.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                names.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_tasks_and_names_those_that_stay() {
        let scope = Scope::new();
        let inner = scope.clone();
        scope.spawn("polite", async move { inner.cancelled().await });
        assert!(scope.drain(Duration::from_secs(5)).await.left.is_empty());

        let stubborn = Scope::new();
        stubborn.spawn("stubborn", std::future::pending());
        let report = stubborn.drain(Duration::from_millis(1)).await;
        assert_eq!(
            report.left.into_iter().collect::<Vec<_>>(),
            [("stubborn".into(), 1)]
        );
    }

    #[tokio::test]
    async fn a_vital_task_that_is_gone_ends_the_scope() {
        for (task, told) in [(false, "hub ended by itself"), (true, "hub panicked")] {
            let scope = Scope::new();
            scope.spawn_vital(
                "hub",
                async move { assert!(!task, "this panic is part of the test") },
            );
            scope.cancelled().await;
            assert_eq!(scope.failure(), Some(told));
        }
        let scope = Scope::new();
        let inner = scope.clone();
        scope.spawn_vital("polite", async move { inner.cancelled().await });
        scope.drain(Duration::from_secs(5)).await;
        assert_eq!(scope.failure(), None);
    }

    #[tokio::test]
    async fn a_child_ends_with_its_parent() {
        let parent = Scope::new();
        let child = parent.child();
        parent.cancel();
        child.cancelled().await;
        assert!(child.is_cancelled());
    }
}
