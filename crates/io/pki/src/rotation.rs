//! When a certificate is due.

use crate::CertificateInfo;
use rustls_pki_types::UnixTime;
use std::time::Duration;

/// The moment to renew: when about a third of the certificate's life is left, spread by `seed` so that nodes which
/// joined together do not come back together.
pub fn renewal_time(info: &CertificateInfo, seed: u64) -> UnixTime {
    let (from, until) = (info.not_before.as_secs(), info.not_after.as_secs());
    let life = until.saturating_sub(from);
    let per_mille = 633 + seed % 68;
    // Multiply in 128 bits: a life of centuries times a thousand still fits.
    let passed = u128::from(life) * u128::from(per_mille) / 1000;
    UnixTime::since_unix_epoch(Duration::from_secs(from + u64::try_from(passed).unwrap_or(life)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Authority;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_falls_around_two_thirds(seed: u64) {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_767_225_600));
            let certificate = Authority::create(now).unwrap().certificate().clone();
            let mut info = certificate.info().clone();
            info.not_before = now;
            info.not_after = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() + 1000));
            let passed = renewal_time(&info, seed).as_secs() - now.as_secs();
            prop_assert!((633..=700).contains(&passed));
        }
    }
}
