//! What the cloud is told about one pod.

use super::{DELETED_REPEAT, Hold, REPORT_RETRY, Wish, Worker};
use crate::clock::Clock;
use crate::status::{self, Facts, Terminal};
use crate::{Config, Effect, PodKey, PodSource, patch};
use kedge_api::PodStatus;
use kedge_wire::Time;
use std::collections::VecDeque;
use std::sync::Arc;

impl Worker {
    /// Computes the status anew and reports it when it differs from the last report.
    pub(crate) fn refresh_status(&mut self, config: &Config, clock: &Clock, out: &mut VecDeque<Effect>) {
        if self.seen.is_none() || self.deleted_said.is_some() || self.finished {
            return;
        }
        self.conclude();
        let stopping = self.wish != Wish::Run;
        // After the records are gone there is nothing to compute the last status from: it stays as it was.
        let frozen = (stopping || self.is_evicted())
            && self.instances.sandboxes().is_empty()
            && self.status.phase.is_some();
        if self.admitted || self.terminal.is_some() {
            self.started_at.get_or_insert_with(|| clock.wall());
        }
        if !frozen || self.status.phase.is_none_or(|phase| !phase.is_terminal()) {
            let status = status::compute(&Facts {
                config,
                prefix: &config.container_id_prefix,
                pod: &self.pod,
                instances: &self.instances,
                probes: &self.probes,
                start_time: self.started_at,
                trouble: &self.trouble,
                crash_waits: &self.crash_waits,
                terminal: self.terminal.as_ref(),
                starting: self.starting,
                initialized: self.initialized() || self.was_initialized(),
                stopping,
                held: match self.hold {
                    Hold::No => None,
                    Hold::Held => Some(true),
                    Hold::Released => Some(false),
                },
                before: &self.status,
                now: clock.now,
                wall: clock.wall(),
            });
            if *self.status != status {
                self.status = Arc::new(status);
            }
        }
        self.report(clock.now, out);
    }

    /// A pod that is told to have ended stays so, whatever comes before its next step.
    fn conclude(&mut self) {
        if self.wish == Wish::Run
            && let Some(phase) = self.finished_phase()
        {
            self.end(Terminal::of_phase(phase));
        }
    }

    /// Whom a report is about, and what the cloud may hold of it: a static pod is known there by its mirror.
    fn addressee(&self) -> Option<(PodKey, String, &PodStatus)> {
        match self.source {
            PodSource::Api => Some((self.key.clone(), self.uid().to_owned(), &self.pod.status)),
            PodSource::File => {
                let mirror = self.mirror.as_ref()?;
                Some((self.key.clone(), mirror.uid().to_owned(), &mirror.status))
            }
        }
    }

    /// A finished or stopping pod does not lose its initialisation when its sandbox ends.
    fn was_initialized(&self) -> bool {
        let over = self.terminal.is_some() || self.wish != Wish::Run;
        over && self
            .status
            .conditions
            .iter()
            .any(|c| c.type_ == "Initialized" && c.status == "True")
    }

    /// Sends the status as it is.
    pub(super) fn report(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        if matches!(self.wish, Wish::Forget { .. }) || self.report_retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.report_retry_at = None;
        if self.reported.as_ref() == Some(&self.status) {
            return;
        }
        let Some((key, uid, held)) = self.addressee() else {
            return;
        };
        let before = self.reported.as_deref().unwrap_or(held);
        match patch::status_patch(&uid, before, &self.status) {
            Ok(patch) => {
                out.push_back(Effect::Report { key, uid, patch });
                self.reported = Some(Arc::clone(&self.status));
            }
            // A status has only text, numbers and lists, which always become JSON.
            Err(_) => self.report_retry_at = Some(now + REPORT_RETRY),
        }
    }

    pub(super) fn say_deleted(&mut self, now: Time, out: &mut VecDeque<Effect>) {
        if self.deleted_said.is_some_and(|at| now < at + DELETED_REPEAT) {
            return;
        }
        if self.report_retry_at.is_some_and(|at| at > now) {
            return;
        }
        self.deleted_said = Some(now);
        out.push_back(Effect::ReportDeleted {
            key: self.key.clone(),
            uid: self.uid().to_owned(),
        });
    }

    /// The cloud did not take the last report.
    pub(crate) fn report_failed(&mut self, now: Time) {
        self.reported = None;
        self.deleted_said = None;
        self.report_retry_at = Some(now + REPORT_RETRY);
    }

    /// The cloud may have missed anything: everything is said again.
    pub(crate) fn say_again(&mut self) {
        self.reported = None;
        self.deleted_said = None;
        self.report_retry_at = None;
    }

    /// Everything is gone from this node, whatever the cloud knows.
    pub(crate) fn is_clean(&self) -> bool {
        self.finished || self.deleted_said.is_some()
    }
}
