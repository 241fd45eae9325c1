//! Pods that nobody looks after any more.

use super::Pass;
use crate::meta::{self, text};
use crate::strategy::DeleteOptions;

/// A vanished node gets this long to register again before its pods go.
const QUARANTINE_SECONDS: i64 = 40;

pub(super) fn run(pass: &mut Pass<'_>) {
    let world = pass.world;
    for pod in world.list("pods") {
        let at_once = DeleteOptions {
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        if text(pod, &["spec", "nodeName"]).is_empty() {
            // Begun before it was bound, with nobody to finish it.
            if meta::is_terminating(pod) && meta::finalizers(pod).next().is_none() {
                pass.delete("pods", pod, at_once);
            }
            continue;
        }
        let Some(since) = world.homeless_since(pod) else {
            continue;
        };
        if pass.now.as_second() - since.as_second() >= QUARANTINE_SECONDS {
            pass.delete("pods", pod, at_once);
        } else {
            pass.wake_after(since, QUARANTINE_SECONDS);
        }
    }
}
