//! Chance that a test can repeat: everything random in a link grows from the seed given to its constructor.

use kedge_wire::MessageId;
use std::time::Duration;

/// SplitMix64. Good enough to make message ids distinct and to spread retries; never used for secrets.
#[derive(Debug, Clone)]
pub(crate) struct Seed(u64);

impl Seed {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A message id in the shape of a version 4 UUID, as official peers expect.
    pub(crate) fn message_id(&mut self) -> MessageId {
        let high = (self.next_u64() & 0xffff_ffff_ffff_0fff) | 0x4000;
        let low = (self.next_u64() & 0x3fff_ffff_ffff_ffff) | 0x8000_0000_0000_0000;
        MessageId::new(format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff,
        ))
    }

    /// `delay`, lengthened by up to a quarter, so that nodes which failed together do not retry together.
    pub(crate) fn jittered(&mut self, delay: Duration) -> Duration {
        let quarter_ms = u64::try_from(delay.as_millis() / 4).unwrap_or(u64::MAX - 1);
        delay + Duration::from_millis(self.next_u64() % (quarter_ms + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_ids_look_like_version_4_uuids_and_differ() {
        let mut seed = Seed::new(7);
        let ids: Vec<String> = (0..1000).map(|_| seed.message_id().as_str().to_owned()).collect();
        for id in &ids {
            assert_eq!(id.len(), 36, "{id}");
            assert_eq!(id.as_bytes()[14], b'4', "{id}");
            assert!(matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'), "{id}");
        }
        let distinct: std::collections::HashSet<&String> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }

    #[test]
    fn jitter_adds_at_most_a_quarter() {
        let mut seed = Seed::new(1);
        let delay = Duration::from_millis(1000);
        for _ in 0..1000 {
            let jittered = seed.jittered(delay);
            assert!(jittered >= delay && jittered <= Duration::from_millis(1250));
        }
    }
}
