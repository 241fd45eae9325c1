//! In which order pods end when the machine shuts down.

use crate::Eviction;
use std::time::Duration;

/// The reason of a pod that ended with its machine; after the next start it is another pod's turn, or a static pod's own.
pub const REASON: &str = "Terminated";
const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";
/// Pods of the system, which end last.
const PRIORITY_CRITICAL: i32 = 2_000_000_000;

/// From each priority on, how long pods may take; the lowest first. Empty: pods are not ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules(Vec<(i32, Duration)>);

impl Rules {
    /// So long in all, of which the last part is for pods of the system.
    pub fn of(whole: Duration, critical: Duration) -> Self {
        if whole.is_zero() {
            return Self::default();
        }
        Self(vec![
            (0, whole.saturating_sub(critical)),
            (PRIORITY_CRITICAL, critical),
        ])
    }

    /// As an operator lists them, in any order.
    pub fn by_priority(mut list: Vec<(i32, Duration)>) -> Self {
        list.sort_by_key(|(priority, _)| *priority);
        Self(list)
    }

    /// Pods just go on until the machine is gone.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How long it takes at most.
    pub fn whole(&self) -> Duration {
        self.0.iter().map(|(_, grace)| *grace).sum()
    }

    /// Who ends when: one group after the other, each with its time. Groups without pods take none.
    pub fn groups<T>(&self, pods: impl IntoIterator<Item = (T, i32)>) -> Vec<(Duration, Vec<T>)> {
        let mut groups: Vec<(Duration, Vec<T>)> = Vec::new();
        groups.extend(self.0.iter().map(|(_, grace)| (*grace, Vec::new())));
        for (pod, priority) in pods {
            let above = self.0.iter().take_while(|(from, _)| *from <= priority).count();
            // Below the lowest is with the lowest.
            if let Some((_, group)) = groups.get_mut(above.saturating_sub(1)) {
                group.push(pod);
            }
        }
        groups.retain(|(_, pods)| !pods.is_empty());
        groups
    }
}

/// How such a pod is ended, within the time of its group.
pub fn eviction(grace: Duration) -> Eviction {
    Eviction {
        reason: REASON.to_owned(),
        message: MESSAGE.to_owned(),
        grace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn groups_end_from_the_lowest_priority_up() {
        let seconds = Duration::from_secs;
        let pods = [("web", 0), ("dns", 2_000_000_000), ("batch", -5), ("db", 1000)];
        let lists = [
            Rules::of(seconds(30), seconds(10)),
            Rules::by_priority(vec![(1000, seconds(5)), (10, seconds(2))]),
            Rules::of(Duration::ZERO, Duration::ZERO),
        ];
        let told = lists.map(|rules| format!("{:?} in {:?}", rules.groups(pods), rules.whole()));
        expect![[r#"
            [
                "[(20s, [\"web\", \"batch\", \"db\"]), (10s, [\"dns\"])] in 30s",
                "[(2s, [\"web\", \"batch\"]), (5s, [\"dns\", \"db\"])] in 7s",
                "[] in 0ns",
            ]
        "#]]
        .assert_debug_eq(&told);
    }
}
