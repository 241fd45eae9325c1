//! What a person sees while things start: a line a step, with times.

use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Prints steps, as text or as one JSON object a line.
#[derive(Debug)]
pub(crate) struct Progress {
    json: bool,
    began: Instant,
    last: Instant,
    mark: &'static str,
}

impl Progress {
    pub(crate) fn new(json: bool) -> Self {
        let now = Instant::now();
        let mark = if std::io::stdout().is_terminal() {
            "\u{1b}[32m✓\u{1b}[0m"
        } else {
            "✓"
        };
        Self {
            json,
            began: now,
            last: now,
            mark,
        }
    }

    /// A step is done: how long it took, and since the start.
    pub(crate) fn step(&mut self, step: &str, detail: &str) {
        let now = Instant::now();
        let (took, total) = (now - self.last, now - self.began);
        self.last = now;
        if self.json {
            let line = json!({"step": step, "detail": detail, "took_ms": took.as_millis() as u64,
                "total_ms": total.as_millis() as u64});
            self.line(&line.to_string());
        } else {
            let line = format!(
                "{} {step:<22} {detail:<52} {:>6.2} s",
                self.mark,
                took.as_secs_f64()
            );
            self.line(&line);
        }
    }

    /// A step begins now: the time since the last one was spent waiting for somebody.
    pub(crate) fn begin_step(&mut self) {
        self.last = Instant::now();
    }

    /// Something to know that is not a step.
    pub(crate) fn note(&mut self, text: &str) {
        if self.json {
            self.line(&json!({"note": text}).to_string());
        } else {
            self.line(&format!("  {text}"));
        }
    }

    /// Facts for a program that reads along; nothing for people.
    pub(crate) fn facts(&mut self, facts: Value) {
        if self.json {
            self.line(&facts.to_string());
        }
    }

    /// Lines for people only.
    pub(crate) fn people(&mut self, text: &str) {
        if !self.json {
            self.line(text);
        }
    }

    /// Seconds since the start.
    pub(crate) fn total_s(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// A reader that went away is no reason to stop what was started.
    fn line(&self, line: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
