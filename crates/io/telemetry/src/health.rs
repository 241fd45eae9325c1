//! Whether a process lives and whether it is ready, as its parts say.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The parts of a process and what each says about itself. Cloning shares it.
///
/// Alive means: starting the process again would not help. Ready means: peers may be sent here.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

/// One part's voice. A part that has not said that it is ready is not.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    health: Health,
}

impl Health {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part, which is not ready yet.
    pub fn part(&self, name: &'static str) -> Part {
        self.lock().insert(name, Some("starting".into()));
        Part {
            name,
            health: self.clone(),
        }
    }

    /// Whether every part is ready.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One line a part, in the words of the Kubernetes components.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.lock();
        for (name, trouble) in &*parts {
            match trouble {
                None => writeln!(f, "[+]{name} ok")?,
                Some(why) => writeln!(f, "[-]{name} failed: {why}")?,
            }
        }
        let ready = parts.values().all(Option::is_none);
        writeln!(f, "readyz check {}", if ready { "passed" } else { "failed" })
    }
}

impl Part {
    pub fn ready(&self) {
        self.health.lock().insert(self.name, None);
    }

    /// Peers should go elsewhere, and a person can read why.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.health.lock().insert(self.name, Some(why.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn ready_when_every_part_says_so() {
        let health = Health::new();
        let (hub, watches) = (health.part("hub"), health.part("watches"));
        hub.ready();
        assert!(!health.is_ready());
        expect![[r#"
            [+]hub ok
            [-]watches failed: starting
            readyz check failed
        "#]]
        .assert_eq(&health.to_string());
        watches.ready();
        assert!(health.is_ready());
        hub.not_ready("draining");
        assert!(!health.is_ready());
    }
}
