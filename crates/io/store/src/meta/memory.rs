//! The store without a disk: for tests and for thousands of hollow edges in one process.

use super::{Error, Limits, OutboxUse, Report, Row, StoredReport, Write, Written, error, has_uid};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

#[derive(Debug, Clone)]
pub(super) struct Memory {
    tables: Arc<Mutex<Tables>>,
    limits: Limits,
}

#[derive(Debug, Default)]
struct Tables {
    rows: BTreeMap<String, Row>,
    /// Ordered as they are sent.
    reports: BTreeMap<(Reverse<u8>, u64), Report>,
    last_report: u64,
    used: OutboxUse,
    complete: bool,
}

impl Memory {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            tables: Arc::default(),
            limits,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn submit(&self, write: Write) -> oneshot::Receiver<Result<Written, Error>> {
        let (tx, rx) = oneshot::channel();
        let result = self.lock().apply(write, &self.limits);
        tx.send(result).expect("the receiver is in our hand");
        rx
    }

    pub(super) fn get(&self, key: &str) -> Option<Row> {
        self.lock().rows.get(key).cloned()
    }

    pub(super) fn list(&self, kind: Option<&str>) -> Vec<Row> {
        self.lock()
            .rows
            .values()
            .filter(|row| kind.is_none_or(|kind| row.kind == kind))
            .cloned()
            .collect()
    }

    pub(super) fn reports(&self, max: usize) -> Vec<StoredReport> {
        let tables = self.lock();
        let stored = |(key, report): (&(Reverse<u8>, u64), &Report)| StoredReport {
            id: key.1,
            report: report.clone(),
        };
        tables.reports.iter().take(max).map(stored).collect()
    }

    pub(super) fn complete(&self) -> bool {
        self.lock().complete
    }

    pub(super) fn outbox_use(&self) -> OutboxUse {
        self.lock().used
    }
}

impl Tables {
    fn apply(&mut self, write: Write, limits: &Limits) -> Result<Written, Error> {
        match write {
            Write::Put(row) => {
                let changed = self.rows.get(&row.key) != Some(&row);
                self.rows.insert(row.key.clone(), row);
                Ok(Written {
                    changed,
                    ..Written::default()
                })
            }
            Write::Delete { key, uid } => {
                let fits = |row: &Row| uid.as_deref().is_none_or(|uid| has_uid(&row.value, uid));
                let changed = self.rows.get(&key).is_some_and(fits);
                if changed {
                    self.rows.remove(&key);
                }
                Ok(Written {
                    changed,
                    ..Written::default()
                })
            }
            Write::Push(report) => self.push(report, limits),
            Write::Complete => Ok(Written {
                changed: !std::mem::replace(&mut self.complete, true),
                ..Written::default()
            }),
            Write::Forget { report } => {
                let key = self.reports.keys().find(|key| key.1 == report).copied();
                let changed = key.is_some_and(|key| self.remove(key));
                Ok(Written {
                    changed,
                    ..Written::default()
                })
            }
        }
    }

    fn push(&mut self, report: Report, limits: &Limits) -> Result<Written, Error> {
        let bytes = report.bytes();
        if bytes > limits.report_bytes_max {
            let what = error::name_of(&Write::Push(report));
            return Err(Error::TooLarge {
                what,
                bytes,
                max: limits.report_bytes_max,
            });
        }
        let same = |other: &Report| other.coalesce.is_some() && other.coalesce == report.coalesce;
        let replaced = self
            .reports
            .iter()
            .find(|(_, other)| same(other))
            .map(|(key, _)| *key);
        if let Some(key) = replaced {
            self.remove(key);
        }
        self.last_report += 1;
        let id = self.last_report;
        self.used.reports += 1;
        self.used.bytes += bytes;
        self.reports.insert((Reverse(report.priority), id), report);
        let dropped = self.shrink(limits);
        Ok(Written {
            changed: true,
            report: Some(id),
            replaced: replaced.map(|key| key.1),
            dropped,
        })
    }

    fn shrink(&mut self, limits: &Limits) -> Vec<u64> {
        let mut dropped = Vec::new();
        while self.used.reports > limits.reports_max || self.used.bytes > limits.report_bytes_max {
            let Some((&(lowest, _), _)) = self.reports.last_key_value() else {
                break;
            };
            let oldest = self.reports.range((lowest, 0)..).next().map(|(key, _)| *key);
            let key = oldest.expect("the range holds the last key");
            self.remove(key);
            self.used.dropped += 1;
            dropped.push(key.1);
        }
        dropped
    }

    fn remove(&mut self, key: (Reverse<u8>, u64)) -> bool {
        let Some(report) = self.reports.remove(&key) else {
            return false;
        };
        self.used.reports -= 1;
        self.used.bytes -= report.bytes();
        true
    }
}
