//! Credentials of registries, in the two formats that Docker left behind, and which of them fit an image.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kedge_api::Secret;
use kedge_containers::Credentials;
use serde::Deserialize;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// The key of Docker Hub, which images name in several ways and this key in one.
const HUB: &str = "index.docker.io";
/// A secret holds at most 1 MiB; a file that is larger holds something else.
pub(super) const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is known about registries, by the key that names one: a host, perhaps with a port, wildcards and a path.
#[derive(Debug, Default)]
pub(crate) struct Registries {
    entries: BTreeMap<Reverse<String>, Vec<Credentials>>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

#[derive(Deserialize)]
struct File {
    auths: BTreeMap<String, Auth>,
}

impl Registries {
    /// Adds the credentials of a pull secret. One that is of another type has none.
    pub(crate) fn add_secret(&mut self, secret: &Secret) -> Result<(), String> {
        let name = &secret.metadata.name;
        let (value, is_file) = match secret.type_.as_deref() {
            Some("kubernetes.io/dockerconfigjson") => (secret.data.get(".dockerconfigjson"), true),
            Some("kubernetes.io/dockercfg") => (secret.data.get(".dockercfg"), false),
            Some(_) | None => (None, false),
        };
        let Some(value) = value else { return Ok(()) };
        let bytes = STANDARD
            .decode(value)
            .map_err(|_| format!("secret {name} is not base64"))?;
        let auths = if is_file {
            serde_json::from_slice::<File>(&bytes).map(|file| file.auths)
        } else {
            serde_json::from_slice(&bytes)
        };
        // The parser's words could show a part of the secret.
        self.add(auths.map_err(|_| format!("secret {name} is not a Docker configuration"))?);
        Ok(())
    }

    /// Adds the credentials of a `config.json`.
    pub(crate) fn add_file(&mut self, text: &str) -> Result<(), String> {
        let file: File = serde_json::from_str(text).map_err(|_| "not a Docker configuration".to_owned())?;
        self.add(file.auths);
        Ok(())
    }

    fn add(&mut self, auths: BTreeMap<String, Auth>) {
        for (server, auth) in auths {
            let Some(credentials) = credentials(&server, auth) else {
                continue;
            };
            self.entries
                .entry(Reverse(key(&server)))
                .or_default()
                .push(credentials);
        }
    }

    /// What fits a repository that is named in full, the most specific key first.
    pub(crate) fn lookup(&self, repository: &str) -> Vec<Credentials> {
        let mut found: Vec<Credentials> = Vec::new();
        let of_hub = repository.starts_with("docker.io/");
        for (Reverse(key), credentials) in &self.entries {
            if fits(key, repository) || of_hub && key == HUB {
                let new = credentials.iter().filter(|new| !found.contains(new)).cloned();
                let new: Vec<Credentials> = new.collect();
                found.extend(new);
            }
        }
        found
    }
}

fn credentials(server: &str, auth: Auth) -> Option<Credentials> {
    let (mut username, mut password) = (auth.username, auth.password);
    if let Some(pair) = STANDARD
        .decode(auth.auth.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        && let Some((user, word)) = pair.split_once(':')
    {
        (username, password) = (user.to_owned(), word.trim_end_matches('\0').to_owned());
    }
    if username.is_empty() && auth.identity_token.is_empty() && auth.registry_token.is_empty() {
        return None;
    }
    Some(Credentials {
        username,
        password,
        server: server.to_owned(),
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    })
}

/// The scheme says nothing, and neither does the version of the API that Docker wrote behind its host names.
fn key(server: &str) -> String {
    let bare = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = path.trim_end_matches('/');
    if path.is_empty() || path == "v1" || path == "v2" {
        host.to_owned()
    } else {
        format!("{host}/{path}")
    }
}

/// Whether a key names the registry of a repository: the host label by label, where `*` and `?` stand for characters
/// within a label, the port as it is, and the path by its beginning.
fn fits(key: &str, repository: &str) -> bool {
    let split = |text: &str| -> (String, String) {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        (host.to_owned(), path.to_owned())
    };
    let port = |host: &str| -> (String, String) {
        let (host, port) = host.split_once(':').unwrap_or((host, ""));
        (host.to_owned(), port.to_owned())
    };
    let ((key_host, key_path), (host, path)) = (split(key), split(repository));
    let ((key_host, key_port), (host, host_port)) = (port(&key_host), port(&host));
    let (key_labels, labels): (Vec<&str>, Vec<&str>) =
        (key_host.split('.').collect(), host.split('.').collect());
    key_port == host_port
        && key_labels.len() == labels.len()
        && key_labels
            .iter()
            .zip(&labels)
            .all(|(pattern, label)| matches(pattern.as_bytes(), label.as_bytes()))
        && path.starts_with(&key_path)
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=text.len()).any(|from| matches(rest, &text[from..])),
        (Some((b'?', rest)), Some((_, left))) => matches(rest, left),
        (Some((wanted, rest)), Some((found, left))) => wanted == found && matches(rest, left),
        (Some(_), None) | (None, Some(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn users(registries: &Registries, repository: &str) -> Vec<String> {
        let found = registries.lookup(repository);
        found.into_iter().map(|c| c.username).collect()
    }

    #[test]
    fn the_keys_that_fit() {
        let mut registries = Registries::default();
        let entry = |user: &str| json!({ "username": user, "password": "p" });
        let file = json!({ "auths": {
            "https://index.docker.io/v1/": { "auth": STANDARD.encode("hub:p:q") },
            "reg.example.com": entry("host"),
            "reg.example.com/team": entry("team"),
            "https://*.example.org": entry("wild"),
            "reg.example.com:5000/v2/": entry("port"),
            "nobody.example": {},
            "token.example": { "identitytoken": "t" },
        }});
        registries.add_file(&file.to_string()).unwrap();
        let table = [
            ("docker.io/library/nginx", vec!["hub"]),
            ("reg.example.com/other/app", vec!["host"]),
            ("reg.example.com/team/app", vec!["team", "host"]),
            ("reg.example.com:5000/team/app", vec!["port"]),
            ("a.example.org/app", vec!["wild"]),
            ("a.b.example.org/app", vec![]),
            ("nobody.example/app", vec![]),
            ("token.example/app", vec![""]),
        ];
        for (repository, wanted) in table {
            assert_eq!(users(&registries, repository), wanted, "{repository}");
        }
        assert_eq!(registries.lookup("docker.io/library/nginx")[0].password, "p:q");
    }

    #[test]
    fn both_kinds_of_secret() {
        let secret = |type_: &str, name: &str, value: &str| Secret {
            type_: Some(type_.to_owned()),
            data: BTreeMap::from([(name.to_owned(), STANDARD.encode(value))]),
            ..Secret::default()
        };
        let mut registries = Registries::default();
        let new = secret(
            "kubernetes.io/dockerconfigjson",
            ".dockerconfigjson",
            r#"{"auths":{"r.io":{"username":"a","password":"b"}}}"#,
        );
        let old = secret(
            "kubernetes.io/dockercfg",
            ".dockercfg",
            r#"{"r.io":{"username":"c","password":"d"}}"#,
        );
        let broken = secret("kubernetes.io/dockercfg", ".dockercfg", "{");
        registries.add_secret(&new).unwrap();
        registries.add_secret(&old).unwrap();
        registries
            .add_secret(&secret("Opaque", ".dockercfg", "{"))
            .unwrap();
        assert!(
            registries
                .add_secret(&broken)
                .unwrap_err()
                .contains("Docker configuration")
        );
        assert_eq!(users(&registries, "r.io/x"), ["a", "c"]);
    }
}
