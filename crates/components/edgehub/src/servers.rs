//! Which of several clouds is dialled next.

/// The addresses that the operator gave, gone through one after the other. Edges begin with different ones, so that
/// they spread over the clouds.
#[derive(Debug)]
pub(crate) struct Servers {
    /// Not empty.
    addresses: Vec<String>,
    turn: usize,
    /// Attempts since the last success.
    failures: usize,
}

impl Servers {
    /// `None` when there is no address.
    pub(crate) fn new(addresses: Vec<String>, seed: u64) -> Option<Self> {
        let turn = usize::try_from(seed.checked_rem(addresses.len() as u64)?).ok()?;
        Some(Self {
            addresses,
            turn,
            failures: 0,
        })
    }

    pub(crate) fn current(&self) -> &str {
        &self.addresses[self.turn]
    }

    /// There is a session.
    pub(crate) fn reached(&mut self) {
        self.failures = 0;
    }

    /// The session with the present one broke: whatever ended it, another one may be better.
    pub(crate) fn lost(&mut self) {
        self.turn = (self.turn + 1) % self.addresses.len();
    }

    /// The present one was not reached. True when every address was tried, so that a pause is due.
    pub(crate) fn failed(&mut self) -> bool {
        self.lost();
        self.failures += 1;
        self.failures.is_multiple_of(self.addresses.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_tried_before_there_is_a_pause() {
        let addresses = ["a", "b", "c"].map(str::to_owned).to_vec();
        let mut servers = Servers::new(addresses, 4).unwrap();
        let mut seen = String::new();
        for _ in 0..6 {
            seen += servers.current();
            seen += if servers.failed() { " pause " } else { "" };
        }
        assert_eq!(seen, "bca pause bca pause ");
        servers.failed();
        servers.reached();
        servers.lost();
        assert_eq!(servers.current(), "a");
        assert!(!servers.failed() && !servers.failed() && servers.failed());
        assert!(Servers::new(Vec::new(), 7).is_none());
    }
}
