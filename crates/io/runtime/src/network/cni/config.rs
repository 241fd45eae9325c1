//! The operator's configuration of a network: a chain of plug-ins, each with settings of its own.

use crate::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Files that count, in a directory where notes and backups lie beside them.
const ENDINGS: [&str; 3] = ["conflist", "conf", "json"];
/// Real ones have a few kilobytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Real chains have two to five.
const PLUGINS_MAX: usize = 32;

/// What is spoken here, the oldest first. Older results than these have another form.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A chain of plug-ins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(in crate::network) struct NetworkList {
    pub(in crate::network) name: String,
    pub(super) version: String,
    /// Other versions that the configuration can be read as, the newest first.
    pub(super) versions: Vec<String>,
    pub(super) plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// What a plug-in reads: its own settings with what the runtime adds.
    pub(super) fn input(
        &self,
        plugin: &Map<String, Value>,
        wishes: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Vec<u8> {
        let mut input = plugin.clone();
        input.insert("name".to_owned(), self.name.clone().into());
        input.insert("cniVersion".to_owned(), self.version.clone().into());
        let capable = input.remove("capabilities");
        let wished: Map<String, Value> = wishes
            .iter()
            .filter(|(wish, _)| is_capable(capable.as_ref(), wish))
            .map(|(wish, value)| (wish.clone(), value.clone()))
            .collect();
        if !wished.is_empty() {
            input.insert("runtimeConfig".to_owned(), wished.into());
        }
        if let Some(previous) = previous {
            input.insert("prevResult".to_owned(), previous.clone());
        }
        Value::from(input).to_string().into_bytes()
    }

    /// Whether one of the plug-ins declares to be capable of something.
    pub(super) fn hears(&self, wish: &str) -> bool {
        let mut plugins = self.plugins.iter();
        plugins.any(|plugin| is_capable(plugin.get("capabilities"), wish))
    }
}

fn is_capable(capable: Option<&Value>, wish: &str) -> bool {
    capable.and_then(|capable| capable.get(wish)) == Some(&Value::Bool(true))
}

/// The plug-in's name, which is that of its program.
pub(super) fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Reads the first configuration in a directory, by the names of the files. `None` when there is none.
pub(super) fn first(directory: &Path) -> Result<Option<NetworkList>, Error> {
    let failed = |source| Error::io("list", directory, source);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let counts = path
            .extension()
            .is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
        if counts {
            files.push(path);
        }
    }
    let Some(first) = files.into_iter().min() else {
        return Ok(None);
    };
    let is_list = first.extension().is_some_and(|ending| ending == "conflist");
    let bytes = read(&first).map_err(|source| Error::io("read", &first, source))?;
    let parsed = parse(&bytes, is_list);
    let place = first.display().to_string();
    parsed
        .map(Some)
        .map_err(|reason| Error::failed("read the network configuration", place, reason))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(std::io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

fn parse(bytes: &[u8], is_list: bool) -> Result<NetworkList, String> {
    let file: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let name = file.get("name").and_then(Value::as_str).unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(is_plain) {
        return Err(format!(
            "a name of letters, digits, '_', '.' and '-' is expected, not {name:?}"
        ));
    }
    let versions = versions(&file)?;
    let name = name.to_owned();
    let plugins = match is_list {
        true => listed(&file)?,
        false => vec![file],
    };
    for plugin in &plugins {
        let kind = kind(plugin);
        if kind.is_empty() || kind.contains('/') || kind == ".." || kind == "." {
            return Err(format!(
                "a plug-in needs the name of a program as its type, not {kind:?}"
            ));
        }
    }
    Ok(NetworkList {
        name,
        // There is at least one, else an error came first.
        version: versions.first().cloned().unwrap_or_default(),
        versions,
        plugins,
    })
}

fn listed(file: &Map<String, Value>) -> Result<Vec<Map<String, Value>>, String> {
    let list = file.get("plugins").and_then(Value::as_array);
    let plugins: Option<Vec<_>> = list
        .map(|list| list.iter().map(|plugin| plugin.as_object().cloned()).collect())
        .unwrap_or_default();
    match plugins {
        Some(plugins) if (1..=PLUGINS_MAX).contains(&plugins.len()) => Ok(plugins),
        Some(_) | None => Err(format!(
            "plugins: a list of one to {PLUGINS_MAX} plug-ins is expected"
        )),
    }
}

/// The versions of the file that are spoken here, the newest first.
fn versions(file: &Map<String, Value>) -> Result<Vec<String>, String> {
    let one = file.get("cniVersion").and_then(Value::as_str);
    let more = file.get("cniVersions").and_then(Value::as_array);
    let told: Vec<&str> = one
        .into_iter()
        .chain(more.into_iter().flatten().filter_map(Value::as_str))
        .collect();
    let spoken: Vec<String> = VERSIONS
        .iter()
        .rev()
        .filter(|version| told.contains(version))
        .map(|version| (*version).to_owned())
        .collect();
    if spoken.is_empty() {
        let known = VERSIONS.join(", ");
        return Err(format!(
            "cniVersion: one of {known} is expected, not {:?}",
            told.join(", ")
        ));
    }
    Ok(spoken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn told(text: &str, is_list: bool) -> String {
        match parse(text.as_bytes(), is_list) {
            Ok(list) => format!("{} {:?} {}", list.name, list.versions, list.plugins.len()),
            Err(reason) => reason,
        }
    }

    #[test]
    fn configurations_are_read_or_refused_with_a_reason() {
        let rows = [
            told(r#"{"name": "a", "cniVersion": "0.4.0", "type": "bridge"}"#, false),
            told(
                r#"{"name": "a", "cniVersion": "1.0.0", "cniVersions": ["1.1.0", "9.0.0"], "plugins": [{"type": "x"}, {"type": "y"}]}"#,
                true,
            ),
            told(r#"{"name": "a", "cniVersion": "0.2.0", "type": "bridge"}"#, false),
            told(r#"{"name": "a", "cniVersion": "1.0.0", "plugins": []}"#, true),
            told(
                r#"{"name": "a", "cniVersion": "1.0.0", "plugins": [{"type": "../sh"}]}"#,
                true,
            ),
            told(
                r#"{"name": "", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]}"#,
                true,
            ),
            told("{", true),
        ];
        expect![[r#"
            a ["0.4.0"] 1
            a ["1.1.0", "1.0.0"] 2
            cniVersion: one of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0 is expected, not "0.2.0"
            plugins: a list of one to 32 plug-ins is expected
            a plug-in needs the name of a program as its type, not "../sh"
            a name of letters, digits, '_', '.' and '-' is expected, not ""
            EOF while parsing an object at line 1 column 1
        "#]]
        .assert_eq(&(rows.join("\n") + "\n"));
    }

    #[test]
    fn a_plugin_reads_what_it_declares_to_be_capable_of() {
        let text = r#"{"name": "net", "cniVersion": "1.0.0", "plugins": [
            {"type": "portmap", "snat": true, "capabilities": {"portMappings": true, "dns": false}}]}"#;
        let list = parse(text.as_bytes(), true).unwrap();
        let wishes = serde_json::json!({"portMappings": [{"hostPort": 1}], "dns": {}, "bandwidth": {}});
        let previous = serde_json::json!({"ips": []});
        let input = list.input(&list.plugins[0], wishes.as_object().unwrap(), Some(&previous));
        expect![[r#"{"type":"portmap","snat":true,"cniVersion":"1.0.0","name":"net","runtimeConfig":{"portMappings":[{"hostPort":1}]},"prevResult":{"ips":[]}}"#]]
            .assert_eq(&String::from_utf8(input).unwrap());
        assert!(list.hears("portMappings") && !list.hears("dns"));
    }
}
