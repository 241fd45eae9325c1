//! Reads a settled value out of a YAML document and remembers every mistake on the way.

use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
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
    /// Keys of the official file that mean nothing here, and why not.
    NoEffect { paths: Vec<String>, why: &'static str },
    /// A key that neither we nor the official file know: probably a typing mistake.
    Unknown { path: String },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEffect { paths, why } => {
                let verb = if paths.len() == 1 { "has" } else { "have" };
                write!(f, "{} {verb} no effect in kedge: {why}", paths.join(", "))
            }
            Self::Unknown { path } => write!(f, "{path} is not a known key; is it spelled right?"),
        }
    }
}

/// Keys that have no effect for one reason; the operator hears of them in one sentence.
pub(crate) struct Group {
    /// Each covers itself and everything below it.
    pub(crate) keys: &'static [&'static str],
    pub(crate) why: &'static str,
}

/// What a file is checked against.
pub(crate) struct Form {
    pub(crate) kind: &'static str,
    pub(crate) api_group: &'static str,
    /// Every key with a value of its type.
    pub(crate) shape: Value,
    /// The keys that have a default.
    pub(crate) defaults: Value,
    pub(crate) without_effect: &'static [Group],
    /// Whether a key without effect is passed over when it has the value of `shape`.
    pub(crate) defaults_are_silent: bool,
}

pub(crate) struct Reader {
    root: Value,
    mistakes: Vec<Mistake>,
    read: BTreeSet<String>,
    /// Values that were read and change nothing, by reason.
    silent: Vec<(&'static str, Vec<String>)>,
    form: Form,
}

impl Reader {
    /// Begins to read `text`. A syntax error, a second document, or another `kind` is a mistake like any other.
    pub(crate) fn new(text: &str, form: Form) -> Self {
        let mut reader = Self {
            root: Value::Null,
            mistakes: Vec::new(),
            read: BTreeSet::new(),
            silent: Vec::new(),
            form,
        };
        reader.root = reader.document(text);
        reader.head();
        reader
    }

    fn document(&mut self, text: &str) -> Value {
        let mut documents = match super::yaml::parse(text) {
            Ok(documents) => documents,
            Err(error) => {
                self.mistake("", error.to_string());
                return Value::Null;
            }
        };
        if documents.len() > 1 {
            let found = documents.len();
            self.mistake("", format!("{found} YAML documents where one is expected"));
            return Value::Null;
        }
        let root = documents.pop().unwrap_or(Value::Null);
        if !root.is_null() && !root.is_object() {
            self.mistake("", "a mapping of keys is expected");
            return Value::Null;
        }
        let mut twice = Vec::new();
        let root = respell(root, &self.form.shape, "", &mut twice);
        for path in twice {
            self.mistake(&path, "is set twice, in two spellings");
        }
        root
    }

    fn head(&mut self) {
        let Form { kind, api_group, .. } = self.form;
        let found = self.text("kind", kind);
        if found != kind {
            self.mistake("kind", format!("{kind} is expected, not {found:?}"));
        }
        let versions = [format!("{api_group}/v1alpha1"), format!("{api_group}/v1alpha2")];
        let version = self.text("apiVersion", &versions[1]);
        if !versions.contains(&version) {
            self.mistake(
                "apiVersion",
                format!("{} or {} is expected, not {version:?}", versions[0], versions[1]),
            );
        }
    }

    /// Ends: the warnings, or all mistakes.
    pub(crate) fn finish(mut self) -> Result<Vec<Warning>, Mistakes> {
        let mut unread = Unread::default();
        self.walk(&self.root, "", &mut unread);
        for (path, problem) in unread.mistyped {
            self.mistake(&path, problem);
        }
        if !self.mistakes.is_empty() {
            return Err(Mistakes(self.mistakes));
        }
        let unknown = unread.unknown.into_iter().map(|path| Warning::Unknown { path });
        let groups = self.form.without_effect.iter().zip(unread.groups);
        let silent = groups
            .filter(|(_, paths)| !paths.is_empty())
            .map(|(group, paths)| Warning::NoEffect {
                paths,
                why: group.why,
            });
        let read = self.silent.into_iter();
        let read = read.map(|(why, paths)| Warning::NoEffect { paths, why });
        Ok(unknown.chain(silent).chain(read).collect())
    }

    /// Whether the file has a value at the path.
    pub(crate) fn has(&self, path: &str) -> bool {
        at(&self.root, path).is_some_and(|value| !value.is_null())
    }

    /// Says that the value at `path`, which was read, changes nothing. One sentence tells all paths of a reason.
    pub(crate) fn without_effect(&mut self, path: &str, why: &'static str) {
        match self.silent.iter_mut().find(|(known, _)| *known == why) {
            Some((_, paths)) => paths.push(path.to_owned()),
            None => self.silent.push((why, vec![path.to_owned()])),
        }
    }

    /// Finds what nobody has read.
    fn walk(&self, value: &Value, path: &str, unread: &mut Unread) {
        unread.groups.resize(self.form.without_effect.len(), Vec::new());
        let Value::Object(map) = value else { return };
        for (key, value) in map {
            let path = join(path, key);
            if self.read.contains(&path) {
                continue;
            }
            let group = self
                .form
                .without_effect
                .iter()
                .position(|group| group.keys.contains(&path.as_str()));
            if let Some(group) = group {
                mistyped(value, at(&self.form.shape, &path), &path, &mut unread.mistyped);
                // What is switched off means the same here and there.
                let off = value.get("enable") == Some(&Value::Bool(false));
                let default = at(&self.form.shape, &path) == Some(value) || is_empty(value);
                let unchosen = self.form.defaults_are_silent && default;
                if !off && !unchosen {
                    unread.groups[group].push(path);
                }
            } else if value.is_object() && self.is_parent(&path) {
                self.walk(value, &path, unread);
            } else {
                unread.unknown.push(path);
            }
        }
    }

    fn is_parent(&self, path: &str) -> bool {
        let prefix = format!("{path}.");
        let grouped = self.form.without_effect.iter().flat_map(|group| group.keys);
        self.read.iter().any(|key| key.starts_with(&prefix))
            || grouped.copied().any(|key| key.starts_with(&prefix))
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
        at(&self.root, path).filter(|value| !value.is_null()).cloned()
    }

    fn wrong<T>(&mut self, path: &str, expected: &str, found: &Value, default: T) -> T {
        let shown: String = found.to_string().chars().take(60).collect();
        self.mistake(path, format!("{expected} is expected, not {shown}"));
        default
    }

    pub(crate) fn text(&mut self, path: &str, default: &str) -> String {
        match self.value(path) {
            None => default.to_owned(),
            Some(found) => match scalar_text(&found) {
                Some(text) => text,
                None => self.wrong(path, "a string", &found, default.to_owned()),
            },
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

    /// A whole number that may be negative.
    pub(crate) fn integer(&mut self, path: &str, default: i64, min: i64, max: i64) -> i64 {
        match self.value(path) {
            None => default,
            Some(found) => match found.as_i64().filter(|number| (min..=max).contains(number)) {
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

    /// A number of which the negative ones all mean that there is no limit.
    pub(crate) fn limit(&mut self, path: &str, default: i64) -> Option<u64> {
        u64::try_from(self.integer(path, default, i64::from(i32::MIN), i64::MAX)).ok()
    }

    /// Above 0, 1 at most.
    pub(crate) fn fraction(&mut self, path: &str, default: f64) -> f64 {
        match self.value(path) {
            None => default,
            Some(found) => match found.as_f64().filter(|number| *number > 0.0 && *number <= 1.0) {
                Some(number) => number,
                None => self.wrong(path, "a number above 0 and 1 at most", &found, default),
            },
        }
    }

    /// As [`Reader::number`], for counts that fit 32 bits.
    pub(crate) fn count(&mut self, path: &str, default: u32, max: u32) -> u32 {
        let number = self.number(path, u64::from(default), 1, u64::from(max));
        u32::try_from(number).unwrap_or(default)
    }

    pub(crate) fn port(&mut self, path: &str, default: u16) -> u16 {
        let number = self.number(path, u64::from(default), 1, u64::from(u16::MAX));
        u16::try_from(number).unwrap_or(default)
    }

    /// `address` and `port` below `path`.
    pub(crate) fn listener(&mut self, path: &str, default_port: u16) -> SocketAddr {
        let address = self.ip(&format!("{path}.address"), IpAddr::from([0, 0, 0, 0]));
        SocketAddr::new(address, self.port(&format!("{path}.port"), default_port))
    }

    /// `IP:port` in one text.
    pub(crate) fn socket(&mut self, path: &str, default: SocketAddr) -> SocketAddr {
        let text = self.text(path, &default.to_string());
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 => address,
            Ok(_) | Err(_) => {
                self.mistake(
                    path,
                    format!("IP:port is expected, with a port from 1 to 65535, not {text:?}"),
                );
                default
            }
        }
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, path: &str, words: &[(&str, T)]) -> T {
        let text = self.text(path, words[0].0);
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let known = words
            .iter()
            .map(|(word, _)| if word.is_empty() { "\"\"" } else { word });
        let known: Vec<&str> = known.collect();
        self.mistake(path, format!("{} is expected, not {text:?}", known.join(" or ")));
        words[0].1
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

    /// A Go duration within these bounds.
    pub(crate) fn go_duration_in(
        &mut self,
        path: &str,
        default: Duration,
        bounds: std::ops::RangeInclusive<Duration>,
    ) -> Duration {
        let duration = self.go_duration(path, default);
        if bounds.contains(&duration) {
            return duration;
        }
        self.mistake(
            path,
            format!(
                "a duration from {:?} to {:?} is expected, not {duration:?}",
                bounds.start(),
                bounds.end()
            ),
        );
        default
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
            Some(Value::Object(map)) if map.values().all(|value| scalar_text(value).is_some()) => map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), scalar_text(value)?)))
                .collect(),
            Some(other) => self.wrong(path, "a mapping of strings", &other, Vec::new()),
        }
    }

    /// A mapping of any JSON.
    pub(crate) fn entries(&mut self, path: &str) -> Vec<(String, Value)> {
        match self.value(path) {
            None => Vec::new(),
            Some(Value::Object(map)) => map.into_iter().collect(),
            Some(other) => self.wrong(path, "a mapping of keys", &other, Vec::new()),
        }
    }

    /// A section of the file laid over the form's, with every key that has a default or is in the file.
    pub(crate) fn with_defaults(&self, path: &str) -> Value {
        let section = |root: &Value| at(root, path).cloned().unwrap_or(Value::Null);
        let found = match section(&self.root) {
            Value::Null => Value::Object(Map::new()),
            found => found,
        };
        overlay(section(&self.form.defaults), found)
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

    pub(crate) fn ip(&mut self, path: &str, default: IpAddr) -> IpAddr {
        let text = self.text(path, &default.to_string());
        text.parse().unwrap_or_else(|_| {
            self.mistake(path, format!("an IP address is expected, not {text:?}"));
            default
        })
    }

    /// A mapping of names to true or false.
    pub(crate) fn flags(&mut self, path: &str) -> Vec<(String, bool)> {
        match self.value(path) {
            None => Vec::new(),
            Some(Value::Object(map)) if map.values().all(Value::is_boolean) => map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.as_bool()?)))
                .collect(),
            Some(other) => self.wrong(path, "a mapping of names to true or false", &other, Vec::new()),
        }
    }
}

/// What the file holds and nobody read.
#[derive(Default)]
struct Unread {
    unknown: Vec<String>,
    /// For each group of keys without effect, those that the file has.
    groups: Vec<Vec<String>>,
    mistyped: Vec<(String, String)>,
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The official reader takes a number or a truth value where a text is meant.
fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Lays `over` upon `under`, mapping by mapping.
pub(crate) fn overlay(under: Value, over: Value) -> Value {
    match (under, over) {
        (Value::Object(mut under), Value::Object(over)) => {
            for (key, value) in over {
                // In place, so that keys stay in their order.
                match under.get_mut(&key) {
                    Some(slot) => *slot = overlay(slot.take(), value),
                    None => {
                        under.insert(key, value);
                    }
                }
            }
            Value::Object(under)
        }
        (_, over) => over,
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        return key.to_owned();
    }
    format!("{path}.{key}")
}

fn at<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(root, |value, key| value.as_object()?.get(key))
}

/// Official readers take keys in any case. A key that differs from a known one only in case becomes that one.
fn respell(value: Value, shape: &Value, path: &str, twice: &mut Vec<String>) -> Value {
    let (Value::Object(map), Value::Object(known)) = (&value, shape) else {
        return value;
    };
    let mut respelled = Map::new();
    for (key, value) in map {
        let meant = match known.contains_key(key) {
            true => Some(key),
            false => known.keys().find(|known| known.eq_ignore_ascii_case(key)),
        };
        let key = meant.unwrap_or(key);
        let path = join(path, key);
        let value = respell(
            value.clone(),
            known.get(key).unwrap_or(&Value::Null),
            &path,
            twice,
        );
        if respelled.insert(key.clone(), value).is_some() {
            twice.push(path);
        }
    }
    Value::Object(respelled)
}

/// The official reader refuses a value of a wrong type also where the value means nothing.
fn mistyped(value: &Value, shape: Option<&Value>, path: &str, found: &mut Vec<(String, String)>) {
    let expected = match (shape, value) {
        (None | Some(Value::Null), _) | (_, Value::Null) => return,
        (Some(Value::Bool(_)), Value::Bool(_)) => return,
        (Some(Value::String(_)), value) if scalar_text(value).is_some() => return,
        (Some(Value::Number(_)), Value::Number(number)) => {
            if number
                .as_i64()
                .is_some_and(|number| i32::try_from(number).is_ok())
            {
                return;
            }
            "a whole number of 32 bits"
        }
        (Some(Value::Object(shape)), Value::Object(map)) => {
            for (key, value) in map {
                mistyped(value, shape.get(key), &join(path, key), found);
            }
            return;
        }
        (Some(Value::Array(_)), Value::Array(_)) => return,
        (Some(Value::Bool(_)), _) => "true or false",
        (Some(Value::String(_)), _) => "a string",
        (Some(Value::Number(_)), _) => "a whole number",
        (Some(Value::Object(_)), _) => "a mapping of keys",
        (Some(Value::Array(_)), _) => "a list",
    };
    let shown: String = value.to_string().chars().take(60).collect();
    found.push((path.to_owned(), format!("{expected} is expected, not {shown}")));
}

/// `1m30s`: a duration as Go writes it.
pub fn parse_go_duration(text: &str) -> Option<Duration> {
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
