//! What happened to the edges of one process, until the next tick takes it away.

use crate::orders::{Gauges, Mark, Tick, Times};
use kedge_edgehub::Error as CertificateError;
use kedge_transport::DialError;
use kedge_wire::{Body, ObjectKey};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Kinds of error that are told apart; what comes after them is `other`. There are about forty.
const ERROR_KINDS_MAX: usize = 64;

/// Shared by all edges of a process. Each call holds the lock for some instructions.
#[derive(Debug, Default)]
pub struct Tally {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    now: Gauges,
    times: Times,
    errors: BTreeMap<String, u64>,
    commits_us: Vec<u64>,
    mark: Option<Mark>,
    /// Which mark it is: a commit that was begun under an earlier one does not count.
    marks: u64,
}

/// The number of a mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MarkId(u64);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn started(&self) {
        self.lock().now.started += 1;
    }

    pub(super) fn joined(&self, after: Duration) {
        let mut state = self.lock();
        state.now.joined += 1;
        state.times.join.observe(after);
    }

    pub(super) fn online(&self, online: bool) {
        let mut state = self.lock();
        state.now.online = if online {
            state.now.online + 1
        } else {
            state.now.online.saturating_sub(1)
        };
    }

    pub(super) fn times(&self, observe: impl FnOnce(&mut Times)) {
        observe(&mut self.lock().times);
    }

    /// Counts an error by its kind.
    pub fn error(&self, kind: &str) {
        let mut state = self.lock();
        if let Some(count) = state.errors.get_mut(kind) {
            *count += 1;
            return;
        }
        let kind = if state.errors.len() < ERROR_KINDS_MAX {
            kind
        } else {
            "other"
        };
        *state.errors.entry(kind.to_owned()).or_default() += 1;
    }

    /// From now on commits of this object are noted, and those of an earlier mark are not.
    pub fn mark(&self, mark: Mark) {
        let mut state = self.lock();
        state.mark = Some(mark);
        state.marks += 1;
        state.commits_us.clear();
    }

    /// Which mark, if any, this object answers.
    pub(super) fn is_marked(&self, key: &ObjectKey, body: &Body) -> Option<MarkId> {
        let state = self.lock();
        let mark = state.mark.as_ref()?;
        let fits = mark.key == key.to_string() && body.json().contains(&mark.text);
        fits.then_some(MarkId(state.marks))
    }

    pub(super) fn committed(&self, mark: MarkId) {
        let mut state = self.lock();
        if state.marks == mark.0 {
            state.commits_us.push(wall_us());
        }
    }

    /// How things stand, and what happened since this was last called.
    pub fn take(&self) -> Tick {
        let mut state = self.lock();
        Tick {
            now: state.now,
            times: std::mem::take(&mut state.times),
            errors: std::mem::take(&mut state.errors),
            commits_us: std::mem::take(&mut state.commits_us),
        }
    }
}

/// Microseconds of the wall clock.
pub fn wall_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn dial_trouble(error: &DialError) -> &'static str {
    match error {
        DialError::Unplugged { .. } => "dial: the plug is pulled",
        DialError::Address { .. } => "dial: bad address",
        DialError::Refused { .. } => "dial: nobody listens",
        DialError::Timeout { step, .. } => match *step {
            "TCP connect" => "dial: no answer (TCP)",
            "TLS handshake" => "dial: no answer (TLS)",
            _other_step => "dial: no answer (upgrade)",
        },
        DialError::Network { source, .. } if closes(source) => "dial: closed by the other side",
        DialError::Network { .. } => "dial: network",
        DialError::Tls { .. } => "dial: TLS",
        DialError::Rejected { .. } => "dial: rejected by the server",
        DialError::Handshake { .. } => "dial: not an upgrade",
    }
}

/// How a server that has no room for one more connection refuses it.
fn closes(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | UnexpectedEof | BrokenPipe)
}

pub(super) fn certificate_trouble(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::Address { .. } => "certificate: bad address",
        CertificateError::NoToken { .. } => "certificate: no token",
        CertificateError::Token(_) | CertificateError::TokenFile { .. } => "certificate: token",
        CertificateError::Unreachable { source, .. } => match dial_trouble(source) {
            "dial: nobody listens" => "certificate: nobody listens",
            "dial: closed by the other side" => "certificate: closed by the other side",
            "dial: no answer (TCP)" => "certificate: no answer (TCP)",
            "dial: no answer (TLS)" => "certificate: no answer (TLS)",
            _other_trouble => "certificate: unreachable",
        },
        CertificateError::Silent { .. } => "certificate: no answer in time",
        CertificateError::ServerName { .. } => "certificate: the server has another name",
        CertificateError::Tls { .. } => "certificate: TLS",
        CertificateError::Broken { .. } => "certificate: the answer broke off",
        CertificateError::Protocol { .. } => "certificate: connection closed",
        CertificateError::TooLong { .. } => "certificate: answer too long",
        CertificateError::Clock { .. } => "certificate: clock",
        CertificateError::Refused { .. } => "certificate: refused",
        CertificateError::Unknown { .. } => "certificate: unknown authority",
        CertificateError::Untrusted(_) => "certificate: untrusted authority",
        CertificateError::OtherNode { .. } | CertificateError::WrongCertificate { .. } => {
            "certificate: of another node"
        }
        CertificateError::Expired { .. } => "certificate: expired",
        CertificateError::Files(_) => "certificate: files",
        CertificateError::Pki(_) => "certificate: keys",
    }
}
