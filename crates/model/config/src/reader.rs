//! Reads a settled value out of a YAML document and remembers every mistake on the way.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

/// One thing wrong in the operator's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// `modules.edgeHub.websocket.server`.
    pub path: String,
    pub problem: String,
}

/// Everything wrong in the operator's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let noun = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "the configuration has {} {noun}:", self.0.len())?;
        for mistake in &self.0 {
            if mistake.path.is_empty() {
                write!(f, "\n  {}", mistake.problem)?;
            } else {
                write!(f, "\n  {}: {}", mistake.path, mistake.problem)?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

/// Something in the operator's file that has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// A key of the official file that means nothing here.
    NoEffect { path: String },
    /// A key that neither we nor the official file know: probably a typing mistake.
    Unknown { path: String },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEffect { path } => write!(f, "{path} has no effect in kedge"),
            Self::Unknown { path } => write!(f, "{path} is not a known key; is it spelled right?"),
        }
    }
}

pub(crate) struct Reader {
    root: Value,
    mistakes: Vec<Mistake>,
    read: BTreeSet<String>,
    without_effect: &'static [&'static str],
}

impl Reader {
    /// Begins to read `text`. A syntax error, a second document, or another `kind` is a mistake like any other.
    pub(crate) fn new(
        text: &str,
        kind: &str,
        api_group: &str,
        without_effect: &'static [&'static str],
    ) -> Self {
        let mut reader = Self {
            root: Value::Null,
            mistakes: Vec::new(),
            read: BTreeSet::new(),
            without_effect,
        };
        match super::yaml::parse(text) {
            Err(error) => reader.mistake("", error.to_string()),
            Ok(documents) if documents.len() > 1 => {
                reader.mistake(
                    "",
                    format!("{} YAML documents where one is expected", documents.len()),
                );
            }
            Ok(documents) => reader.root = documents.into_iter().next().unwrap_or(Value::Null),
        }
        if !reader.root.is_null() && !reader.root.is_object() {
            reader.mistake("", "a mapping of keys is expected");
            reader.root = Value::Null;
        }
        let found = reader.text("kind", kind);
        if found != kind {
            reader.mistake("kind", format!("{kind} is expected, not {found:?}"));
        }
        let versions = [format!("{api_group}/v1alpha1"), format!("{api_group}/v1alpha2")];
        let version = reader.text("apiVersion", &versions[1]);
        if !versions.contains(&version) {
            reader.mistake(
                "apiVersion",
                format!("{} or {} is expected, not {version:?}", versions[0], versions[1]),
            );
        }
        reader
    }

    /// Ends: the warnings, or all mistakes.
    pub(crate) fn finish(self) -> Result<Vec<Warning>, Mistakes> {
        if !self.mistakes.is_empty() {
            return Err(Mistakes(self.mistakes));
        }
        let mut warnings = Vec::new();
        self.warn(&self.root, "", &mut warnings);
        Ok(warnings)
    }

    fn warn(&self, value: &Value, path: &str, warnings: &mut Vec<Warning>) {
        let Value::Object(map) = value else { return };
        for (key, value) in map {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            if self.read.contains(&path) {
                continue;
            }
            if self.without_effect.iter().any(|known| covers(known, &path)) {
                warnings.push(Warning::NoEffect { path });
            } else if value.is_object() && self.is_parent(&path) {
                self.warn(value, &path, warnings);
            } else {
                warnings.push(Warning::Unknown { path });
            }
        }
    }

    fn is_parent(&self, path: &str) -> bool {
        let prefix = format!("{path}.");
        let parent_of = |key: &str| key.starts_with(&prefix);
        self.read.iter().any(|key| parent_of(key)) || self.without_effect.iter().any(|key| parent_of(key))
    }

    pub(crate) fn mistake(&mut self, path: &str, problem: impl Into<String>) {
        self.mistakes.push(Mistake {
            path: path.to_owned(),
            problem: problem.into(),
        });
    }

    /// The value at a dotted path; a missing key and an explicit null both take the default, as in Go.
    fn value(&mut self, path: &str) -> Option<Value> {
        self.read.insert(path.to_owned());
        let mut value = &self.root;
        for key in path.split('.') {
            value = value.as_object()?.get(key)?;
        }
        (!value.is_null()).then(|| value.clone())
    }

    fn wrong<T>(&mut self, path: &str, expected: &str, found: &Value, default: T) -> T {
        let shown: String = found.to_string().chars().take(60).collect();
        self.mistake(path, format!("{expected} is expected, not {shown}"));
        default
    }

    pub(crate) fn text(&mut self, path: &str, default: &str) -> String {
        match self.value(path) {
            None => default.to_owned(),
            Some(Value::String(text)) => text,
            Some(other) => self.wrong(path, "a string", &other, default.to_owned()),
        }
    }

    pub(crate) fn flag(&mut self, path: &str, default: bool) -> bool {
        match self.value(path) {
            None => default,
            Some(Value::Bool(flag)) => flag,
            Some(other) => self.wrong(path, "true or false", &other, default),
        }
    }

    pub(crate) fn number(&mut self, path: &str, default: u64, min: u64, max: u64) -> u64 {
        match self.value(path) {
            None => default,
            Some(found) => match found.as_u64().filter(|number| (min..=max).contains(number)) {
                Some(number) => number,
                None => self.wrong(
                    path,
                    &format!("a whole number from {min} to {max}"),
                    &found,
                    default,
                ),
            },
        }
    }

    pub(crate) fn port(&mut self, path: &str, default: u16) -> u16 {
        let number = self.number(path, u64::from(default), 0, u64::from(u16::MAX));
        u16::try_from(number).unwrap_or(default)
    }

    /// A whole number of seconds.
    pub(crate) fn seconds(&mut self, path: &str, default: u64, max: u64) -> Duration {
        Duration::from_secs(self.number(path, default, 1, max))
    }

    /// A Go duration such as `1m30s`.
    pub(crate) fn go_duration(&mut self, path: &str, default: Duration) -> Duration {
        match self.value(path) {
            None => default,
            Some(found) => match found.as_str().and_then(parse_go_duration) {
                Some(duration) => duration,
                None => self.wrong(path, "a duration such as 10s or 1m30s", &found, default),
            },
        }
    }

    pub(crate) fn texts(&mut self, path: &str, default: &[String]) -> Vec<String> {
        match self.value(path) {
            None => default.to_vec(),
            Some(Value::Array(items)) if items.iter().all(Value::is_string) => items
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            Some(other) => self.wrong(path, "a list of strings", &other, default.to_vec()),
        }
    }

    pub(crate) fn text_map(&mut self, path: &str) -> Vec<(String, String)> {
        match self.value(path) {
            None => Vec::new(),
            Some(Value::Object(map)) if map.values().all(Value::is_string) => map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect(),
            Some(other) => self.wrong(path, "a mapping of strings", &other, Vec::new()),
        }
    }

    /// Any JSON, for values that another crate types.
    pub(crate) fn list(&mut self, path: &str) -> Vec<Value> {
        match self.value(path) {
            None => Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => self.wrong(path, "a list", &other, Vec::new()),
        }
    }

    /// `host:port`; the port must be a number.
    pub(crate) fn address(&mut self, path: &str, default: &str) -> String {
        let text = self.text(path, default);
        let fine = text
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !fine {
            self.mistake(path, format!("host:port is expected, not {text:?}"));
        }
        text
    }

    pub(crate) fn ip(&mut self, path: &str, default: &str) -> String {
        let text = self.text(path, default);
        if text.parse::<std::net::IpAddr>().is_err() {
            self.mistake(path, format!("an IP address is expected, not {text:?}"));
        }
        text
    }
}

/// `modules.edgeController.buffer` covers itself and everything below it.
fn covers(known: &str, path: &str) -> bool {
    path == known || path.strip_prefix(known).is_some_and(|rest| rest.starts_with('.'))
}

fn parse_go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations() {
        let parsed = ["10s", "1m30s", "1h", "1.5s", "100ms", "0"]
            .map(|text| parse_go_duration(text).unwrap().as_millis());
        assert_eq!(parsed, [10_000, 90_000, 3_600_000, 1500, 100, 0]);
        for bad in ["", "10", "s", "1x", "-1s", "1s2"] {
            assert_eq!(parse_go_duration(bad), None, "{bad}");
        }
    }
}
