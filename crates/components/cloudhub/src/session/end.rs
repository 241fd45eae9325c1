//! Why a session ended: what the node is told, what the log says, what is counted.

use kedge_transport::{Close, CloseCode, RecvError, SendError};

/// Classes of ends, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A newer connection of the node.
    Replaced,
    /// The cloud stops.
    Stopping,
    /// The controllers let the node go: it was deleted.
    Released,
    /// The controllers did not say what the node must hold.
    Unattached,
    /// Nothing was heard for the keepalive timeout.
    Silent,
    /// The node did not take a message in time.
    Slow,
    /// The node sent far more than it may, for long.
    Flood,
    /// Something that is not a message.
    Malformed,
    /// A message larger than any may be.
    TooLarge,
    /// A message that the protocol does not allow here.
    Protocol,
    /// The node closed the connection.
    Closed,
    /// The network did.
    Lost,
}

impl Reason {
    pub(crate) const ALL: [Self; 12] = [
        Self::Replaced,
        Self::Stopping,
        Self::Released,
        Self::Unattached,
        Self::Silent,
        Self::Slow,
        Self::Flood,
        Self::Malformed,
        Self::TooLarge,
        Self::Protocol,
        Self::Closed,
        Self::Lost,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Stopping => "stopping",
            Self::Released => "released",
            Self::Unattached => "unattached",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Flood => "flood",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Protocol => "protocol",
            Self::Closed => "closed",
            Self::Lost => "lost",
        }
    }

    /// Whether the node broke a rule, rather than that something broke.
    pub(crate) fn is_violation(self) -> bool {
        match self {
            Self::Flood | Self::Malformed | Self::TooLarge | Self::Protocol => true,
            Self::Replaced
            | Self::Stopping
            | Self::Released
            | Self::Unattached
            | Self::Silent
            | Self::Slow
            | Self::Closed
            | Self::Lost => false,
        }
    }
}

/// The end of one session.
#[derive(Debug)]
pub(super) struct End {
    pub(super) reason: Reason,
    /// What to tell the node; `None` when there is nobody to tell.
    pub(super) code: Option<CloseCode>,
    pub(super) why: String,
}

impl End {
    pub(super) fn tell(reason: Reason, code: CloseCode, why: impl Into<String>) -> Self {
        Self {
            reason,
            code: Some(code),
            why: why.into(),
        }
    }

    pub(super) fn replaced() -> Self {
        let why = "replaced by a newer connection of this node";
        Self::tell(Reason::Replaced, CloseCode::Policy, why)
    }

    pub(super) fn unwritable(error: &SendError) -> Self {
        let reason = match error {
            SendError::Timeout { .. } => Reason::Slow,
            SendError::Closed
            | SendError::Unplugged
            | SendError::Lost(_)
            | SendError::NoHeartbeat
            | SendError::NoPing => Reason::Lost,
        };
        Self {
            reason,
            code: None,
            why: error.to_string(),
        }
    }

    pub(super) fn unreadable(error: &RecvError) -> Self {
        let reason = match error {
            RecvError::Closed(_) => Reason::Closed,
            RecvError::Lost(_) | RecvError::Unplugged => Reason::Lost,
            RecvError::TooLarge { .. } => Reason::TooLarge,
            RecvError::Malformed(_) => Reason::Malformed,
            RecvError::Protocol(_) => Reason::Protocol,
        };
        match error.verdict() {
            Some(Close { code, reason: why }) => Self::tell(reason, code, why),
            None => Self {
                reason,
                code: None,
                why: error.to_string(),
            },
        }
    }
}
