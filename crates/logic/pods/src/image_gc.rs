//! Which images must go, so that the disk does not fill.
//!
//! What is known about an image is kept in memory only: after a restart of the agent every image that is there counts
//! as old and unused, as for a kubelet.

use kedge_containers::Image;
use kedge_wire::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// When to start and when to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// A file system that is this full is cleaned, in parts of a hundred.
    pub high_percent: u8,
    /// Until it is this full.
    pub low_percent: u8,
    /// A younger image is not touched: its pod may be about to start.
    pub age_min: Duration,
    /// An image that nobody used for this long goes also without need; zero switches it off.
    pub age_max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            high_percent: 85,
            low_percent: 80,
            age_min: Duration::from_secs(120),
            age_max: Duration::ZERO,
        }
    }
}

/// How full the file system of the images is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    pub total_bytes: u64,
    pub available_bytes: u64,
}

impl Fill {
    fn used_percent(self) -> u64 {
        let free = self.available_bytes.saturating_mul(100);
        100_u64.saturating_sub(free.checked_div(self.total_bytes).unwrap_or(100))
    }
}

/// Images to remove, the first first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    pub remove: Vec<Removal>,
    /// How many bytes shall be free more than now; zero when only old images go.
    pub wanted_bytes: u64,
}

/// An image that may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    pub id: String,
    pub size_bytes: u64,
}

impl Plan {
    /// How many bytes it frees.
    pub fn bytes(&self) -> u64 {
        self.remove.iter().map(|image| image.size_bytes).sum()
    }
}

/// What is known about the images of this node.
#[derive(Debug, Clone)]
pub struct ImageGc {
    policy: Policy,
    known: BTreeMap<String, Known>,
    since: Option<Time>,
}

#[derive(Debug, Clone)]
struct Known {
    size_bytes: u64,
    /// `None`: it was there before the agent.
    first_seen: Option<Time>,
    last_used: Option<Time>,
    in_use: bool,
    pinned: bool,
}

impl ImageGc {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            known: BTreeMap::new(),
            since: None,
        }
    }

    /// The images of the node and the names by which its containers know theirs. `kept` are references that stay in any
    /// case, such as that of the sandboxes.
    pub fn handle_images(&mut self, images: &[Image], used: &BTreeSet<String>, kept: &[String], now: Time) {
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        let mut known = std::mem::take(&mut self.known);
        for image in images {
            let old = known.remove(&image.id);
            let names = || {
                std::iter::once(&image.id)
                    .chain(&image.tags)
                    .chain(&image.digests)
            };
            let in_use = names().any(|name| used.contains(name));
            let first_seen = match &old {
                Some(old) => old.first_seen,
                None if is_first => None,
                None => Some(now),
            };
            let last_used = if in_use {
                Some(now)
            } else {
                old.and_then(|old| old.last_used)
            };
            let entry = Known {
                size_bytes: image.size_bytes,
                first_seen,
                last_used,
                in_use,
                pinned: image.pinned || names().any(|name| kept.iter().any(|kept| same_image(kept, name))),
            };
            self.known.insert(image.id.clone(), entry);
        }
    }

    /// What goes in the ordinary round.
    pub fn plan(&self, fill: Fill, now: Time) -> Plan {
        let mut plan = Plan::default();
        let old = self.too_old(now);
        let mut freed: u64 = old.iter().map(|removal| removal.size_bytes).sum();
        plan.remove = old;
        if fill.total_bytes == 0 || fill.used_percent() < u64::from(self.policy.high_percent) {
            return plan;
        }
        let keep_free = fill.total_bytes / 100 * (100_u64.saturating_sub(u64::from(self.policy.low_percent)));
        plan.wanted_bytes = keep_free.saturating_sub(fill.available_bytes);
        for removal in self.removable(now) {
            if freed >= plan.wanted_bytes {
                break;
            }
            if plan.remove.contains(&removal) {
                continue;
            }
            freed = freed.saturating_add(removal.size_bytes);
            plan.remove.push(removal);
        }
        plan
    }

    /// Every image that may go, for a node whose disk is nearly full.
    pub fn plan_all(&self, now: Time) -> Plan {
        Plan {
            remove: self.removable(now).collect(),
            wanted_bytes: 0,
        }
    }

    /// The image is gone.
    pub fn handle_removed(&mut self, id: &str) {
        self.known.remove(id);
    }

    /// The least recently used first, then the oldest.
    fn removable(&self, now: Time) -> impl Iterator<Item = Removal> {
        let young = |known: &Known| {
            known
                .first_seen
                .is_some_and(|at| now.since(at) < self.policy.age_min)
        };
        let mut free: Vec<(&String, &Known)> = self
            .known
            .iter()
            .filter(|(_, known)| !known.in_use && !known.pinned && !young(known))
            .collect();
        free.sort_by_key(|(id, known)| (known.last_used, known.first_seen, *id));
        let removal = |(id, known): (&String, &Known)| Removal {
            id: id.clone(),
            size_bytes: known.size_bytes,
        };
        free.into_iter().map(removal).collect::<Vec<_>>().into_iter()
    }

    fn too_old(&self, now: Time) -> Vec<Removal> {
        if self.policy.age_max.is_zero() {
            return Vec::new();
        }
        let unused = |id: &str| {
            let known = self.known.get(id)?;
            // How long it was unused before the agent started nobody knows.
            let seen = known.last_used.or(known.first_seen).max(self.since)?;
            Some(now.since(seen))
        };
        self.removable(now)
            .filter(|removal| unused(&removal.id).is_some_and(|age| age >= self.policy.age_max))
            .collect()
    }
}

/// Whether two references name one image; a reference without a tag means `latest`, one without a registry Docker's.
fn same_image(one: &str, other: &str) -> bool {
    full_name(one) == full_name(other)
}

fn full_name(reference: &str) -> String {
    let first = reference.split('/').next().unwrap_or_default();
    let has_registry =
        reference.contains('/') && (first.contains('.') || first.contains(':') || first == "localhost");
    let with_registry = match (has_registry, reference.contains('/')) {
        (true, _) => reference.to_owned(),
        (false, true) => format!("docker.io/{reference}"),
        (false, false) => format!("docker.io/library/{reference}"),
    };
    let last = with_registry.rsplit('/').next().unwrap_or_default();
    if last.contains(':') || last.contains('@') {
        with_registry
    } else {
        format!("{with_registry}:latest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const SECOND: u64 = 1000;

    fn image(id: &str, size_bytes: u64) -> Image {
        Image {
            id: id.to_owned(),
            tags: vec![format!("docker.io/library/{id}:latest")],
            digests: Vec::new(),
            size_bytes,
            user: None,
            username: None,
            pinned: id == "pinned",
        }
    }

    struct Story {
        gc: ImageGc,
        text: String,
    }

    impl Story {
        fn new(policy: Policy) -> Self {
            Self {
                gc: ImageGc::new(policy),
                text: String::new(),
            }
        }

        fn see(&mut self, at: u64, images: &[(&str, u64)], used: &[&str]) -> &mut Self {
            let images: Vec<Image> = images.iter().map(|(id, size)| image(id, *size)).collect();
            let used = used.iter().map(|name| (*name).to_owned()).collect();
            let kept = ["library/pause".to_owned()];
            self.gc
                .handle_images(&images, &used, &kept, Time::from_ms(at * SECOND));
            self
        }

        fn fill(&mut self, at: u64, available: u64) -> &mut Self {
            let fill = Fill {
                total_bytes: 1000,
                available_bytes: available,
            };
            let plan = self.gc.plan(fill, Time::from_ms(at * SECOND));
            let names: Vec<&str> = plan.remove.iter().map(|image| image.id.as_str()).collect();
            let line = format!(
                "{at} s, {available} free: wants {}, removes {}\n",
                plan.wanted_bytes,
                names.join(" ")
            );
            self.text.push_str(&line);
            self
        }

        fn check(&self, want: Expect) {
            want.assert_eq(&self.text);
        }
    }

    #[test]
    fn the_least_recently_used_goes_until_the_low_mark() {
        let all = [
            ("a", 100),
            ("b", 100),
            ("c", 100),
            ("pinned", 100),
            ("pause", 100),
        ];
        Story::new(Policy::default())
            .see(0, &all, &["a", "docker.io/library/c:latest"])
            .see(300, &all, &["b"])
            .see(600, &all, &[])
            .fill(600, 160)
            .fill(600, 150)
            .fill(600, 90)
            .fill(600, 0)
            .check(expect![[r#"
                600 s, 160 free: wants 0, removes 
                600 s, 150 free: wants 50, removes a
                600 s, 90 free: wants 110, removes a c
                600 s, 0 free: wants 200, removes a c
            "#]]);
    }

    #[test]
    fn a_young_image_and_one_in_use_stay() {
        Story::new(Policy::default())
            .see(0, &[("old", 10), ("used", 10)], &["used"])
            .see(10, &[("old", 10), ("used", 10), ("new", 10)], &["used"])
            .fill(100, 0)
            .fill(131, 0)
            .check(expect![[r#"
                100 s, 0 free: wants 200, removes old
                131 s, 0 free: wants 200, removes old new
            "#]]);
    }

    #[test]
    fn an_unused_image_grows_too_old_only_while_watched() {
        let policy = Policy {
            age_max: Duration::from_secs(3600),
            ..Policy::default()
        };
        let all = [("a", 10), ("b", 10)];
        Story::new(policy)
            .see(100, &all, &[])
            .fill(100, 900)
            .see(3000, &all, &["b"])
            .see(3100, &all, &[])
            .fill(3699, 900)
            .fill(3700, 900)
            .fill(6600, 900)
            .check(expect![[r#"
                100 s, 900 free: wants 0, removes 
                3699 s, 900 free: wants 0, removes 
                3700 s, 900 free: wants 0, removes a
                6600 s, 900 free: wants 0, removes a b
            "#]]);
    }

    #[test]
    fn a_clock_that_jumps_back_removes_nothing_young() {
        Story::new(Policy::default())
            .see(1000, &[], &[])
            .see(5000, &[("new", 10)], &[])
            .fill(10, 0)
            .check(expect![[r#"
                10 s, 0 free: wants 200, removes 
            "#]]);
    }

    #[test]
    fn names_of_one_image() {
        for (one, other, same) in [
            ("pause", "docker.io/library/pause:latest", true),
            ("kubeedge/pause:3.6", "docker.io/kubeedge/pause:3.6", true),
            ("registry:5000/pause", "registry:5000/pause:latest", true),
            ("localhost/pause:1", "docker.io/localhost/pause:1", false),
            ("a@sha256:1", "docker.io/library/a@sha256:1", true),
        ] {
            assert_eq!(same_image(one, other), same, "{one} {other}");
        }
    }
}
