//! Moments as people read them.

use rustls_pki_types::UnixTime;

/// RFC 3339 in UTC, to the second.
pub fn show(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(seconds) {
        Ok(timestamp) => timestamp.to_string(),
        Err(_) => format!("{seconds} seconds after 1970"),
    }
}

/// `seconds` after the epoch; moments before it become the epoch.
pub(crate) fn from_seconds(seconds: i64) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(seconds).unwrap_or(0),
    ))
}
