//! How often one address may do something.

use kedge_transport::network_of;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Addresses that are remembered before those that are not in debt any more are forgotten.
const ADDRESSES_KEPT: usize = 1024;

/// A rate for each address: so much at once, and then one each interval.
pub(super) struct Rate {
    interval: Duration,
    at_once: u32,
    /// Until when the address has used up its part.
    used_until: HashMap<IpAddr, Instant>,
}

impl Rate {
    pub(super) fn new(interval: Duration, at_once: u32) -> Self {
        Self {
            interval,
            at_once,
            used_until: HashMap::new(),
        }
    }

    /// Takes one for `address`; `false` when it has none left.
    pub(super) fn take(&mut self, address: IpAddr, now: Instant) -> bool {
        if self.used_until.len() >= ADDRESSES_KEPT {
            self.used_until.retain(|_, until| *until > now);
        }
        if self.used_until.len() >= ADDRESSES_KEPT {
            // Bounded memory counts for more than the memory of a flood from everywhere.
            self.used_until.clear();
        }
        let until = self.used_until.entry(network_of(address)).or_insert(now);
        let next = (*until).max(now) + self.interval;
        if next > now + self.interval * self.at_once {
            return false;
        }
        *until = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    #[test]
    fn a_rate_allows_a_burst_and_then_one_each_interval() {
        let mut rate = Rate::new(Duration::from_millis(250), 4);
        let start = Instant::now();
        let mut taken =
            |after_ms: u64, who: u32| rate.take(address(who), start + Duration::from_millis(after_ms));
        assert_eq!(
            [0, 0, 0, 0, 0].map(|after| taken(after, 1)),
            [true, true, true, true, false]
        );
        assert!(taken(0, 2));
        assert_eq!(
            [249, 250, 250, 1000].map(|after| taken(after, 1)),
            [false, true, false, true]
        );
        for who in 0..5000 {
            assert!(taken(2000, who + 10));
        }
        assert!(rate.used_until.len() <= ADDRESSES_KEPT);
    }
}
