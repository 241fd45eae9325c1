//! Prometheus' text form, family by family.

use kedge_wire::Time;
use std::fmt::{Display, Write as _};

/// What a family's numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One label.
pub(super) type Label<'a> = (&'static str, &'a str);

/// The text as it grows.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// Begins a family. A family without samples leaves nothing behind.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &'static str) -> Family<'_> {
        Family {
            text: &mut self.0,
            name,
            kind,
            help,
            begun: false,
        }
    }

    /// One gauge without labels.
    pub(super) fn gauge(&mut self, name: &'static str, help: &'static str, value: impl Display) {
        self.family(name, Kind::Gauge, help).sample(&[], value, None);
    }

    /// Adds what was printed elsewhere.
    pub(super) fn push(&mut self, text: &str) {
        self.0.push_str(text);
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// The samples of one name.
#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    begun: bool,
}

impl Family<'_> {
    /// One number, and when it was read if that was not now.
    pub(super) fn sample(&mut self, labels: &[Label<'_>], value: impl Display, at: Option<Time>) {
        self.part("", labels, value, at);
    }

    /// As [`Self::sample`], under the family's name with a suffix.
    pub(super) fn part(&mut self, suffix: &str, labels: &[Label<'_>], value: impl Display, at: Option<Time>) {
        const WRITTEN: &str = "writing to a string does not fail";
        let name = self.name;
        if !self.begun {
            self.begun = true;
            let (kind, help) = (self.kind.as_str(), self.help);
            writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect(WRITTEN);
        }
        self.text.push_str(name);
        self.text.push_str(suffix);
        for (number, (label, value)) in labels.iter().enumerate() {
            let before = if number == 0 { '{' } else { ',' };
            write!(self.text, "{before}{label}=\"{}\"", escape(value)).expect(WRITTEN);
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        match at {
            Some(at) => writeln!(self.text, " {value} {}", at.as_ms()),
            None => writeln!(self.text, " {value}"),
        }
        .expect(WRITTEN);
    }
}

fn escape(value: &str) -> std::borrow::Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return value.into();
    }
    let escaped = value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    escaped.into()
}

/// Billionths of a second as seconds.
pub(super) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn a_family_begins_with_its_first_sample() {
        let mut text = Text::default();
        text.family("empty", Kind::Gauge, "Nothing");
        let mut family = text.family("x_total", Kind::Counter, "Some");
        family.sample(&[("a", "q\"\\\n"), ("b", "")], 1.5, Some(Time::from_ms(7)));
        family.sample(&[], 3, None);
        text.gauge("y", "One", seconds(1_500_000_000));
        expect![[r#"
            # HELP x_total Some
            # TYPE x_total counter
            x_total{a="q\"\\\n",b=""} 1.5 7
            x_total 3
            # HELP y One
            # TYPE y gauge
            y 1.5
        "#]]
        .assert_eq(&text.finish());
    }
}
