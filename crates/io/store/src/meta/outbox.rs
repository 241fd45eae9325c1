//! The vocabulary of the outbox: what the edge has to say and the cloud has not confirmed.

/// A report to keep until the cloud has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Higher goes first and is dropped last.
    pub priority: u8,
    /// State: a later report with the same key replaces this one. `None`: an event, kept for itself.
    pub coalesce: Option<String>,
    pub value: String,
}

impl Report {
    /// What the report counts towards the cap in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.value.len() + self.coalesce.as_ref().map_or(0, String::len)
    }
}

/// A kept report. Numbers rise; a replaced report gets a new number, so that a late confirmation of the old one does
/// not remove the new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredReport {
    pub id: u64,
    pub report: Report,
}

/// How full the outbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OutboxUse {
    pub reports: usize,
    pub bytes: usize,
    /// Reports dropped since the store was opened because a cap was reached.
    pub dropped: u64,
}
