//! What is in a config map, secret, downward API or projected volume.

use super::atomic::{File, Files};
use super::error::Error;
use super::token;
use crate::cloud::Cloud;
use crate::objects::Found;
use base64::Engine as _;
use kedge_api::{DownwardApiItem, KeyToPath, Volume, VolumeProjection};
use kedge_pods::translate::{Inputs, field, resource_field};
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Kubernetes' default mode.
const MODE_DEFAULT: u32 = 0o644;
/// What a file may be called at most, and a key.
const NAME_BYTES_MAX: usize = 253;

/// The objects that the pod's volumes name.
pub(crate) type Sources = Found;

/// Everything that the files of a volume are made from.
#[derive(Clone, Copy)]
pub(super) struct Making<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    pub(super) sources: &'a Sources,
    pub(super) cloud: &'a Cloud,
    /// Where the volume stands, maybe with older content.
    pub(super) dir: &'a Path,
    /// The volume was complete once.
    pub(super) stood: bool,
    pub(super) now: Time,
}

/// The two kinds of object with keys, and what Kubernetes calls them in its sentences.
#[derive(Clone, Copy)]
enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    fn object(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::ConfigMap => "config",
            Self::Secret => "secret",
        }
    }
}

/// One source, whichever kind of volume it stands in.
struct Keys<'a> {
    kind: Kind,
    name: &'a str,
    items: &'a [KeyToPath],
    optional: bool,
    mode: u32,
}

/// The files of a volume, and when they must be made again.
pub(super) async fn files(making: Making<'_>, volume: &Volume) -> Result<(Files, Option<Time>), Error> {
    let mut files = Files::new();
    let mut refresh_at = None;
    if let Some(keys) = keys(volume) {
        add_object(&mut files, making.sources, &keys)?;
    } else if let Some(source) = &volume.downward_api {
        add_fields(
            &mut files,
            making.inputs,
            &source.items,
            mode(source.default_mode),
        )?;
    } else if let Some(source) = &volume.projected {
        for part in &source.sources {
            let refresh = add_projection(&mut files, making, part, mode(source.default_mode)).await?;
            refresh_at = [refresh_at, refresh].into_iter().flatten().min();
        }
    }
    Ok((files, refresh_at))
}

/// What a volume takes of a config map or a secret, if it is made of one.
fn keys(volume: &Volume) -> Option<Keys<'_>> {
    if let Some(source) = &volume.config_map {
        return Some(Keys {
            kind: Kind::ConfigMap,
            name: &source.name,
            items: &source.items,
            optional: source.optional.unwrap_or(false),
            mode: mode(source.default_mode),
        });
    }
    let source = volume.secret.as_ref()?;
    Some(Keys {
        kind: Kind::Secret,
        name: &source.secret_name,
        items: &source.items,
        optional: source.optional.unwrap_or(false),
        mode: mode(source.default_mode),
    })
}

fn mode(default: Option<u32>) -> u32 {
    default.unwrap_or(MODE_DEFAULT) & 0o7777
}

async fn add_projection(
    files: &mut Files,
    making: Making<'_>,
    part: &VolumeProjection,
    mode: u32,
) -> Result<Option<Time>, Error> {
    if let Some(source) = &part.config_map {
        let keys = Keys {
            kind: Kind::ConfigMap,
            name: &source.name,
            items: &source.items,
            optional: source.optional.unwrap_or(false),
            mode,
        };
        add_object(files, making.sources, &keys)?;
    }
    if let Some(source) = &part.secret {
        let keys = Keys {
            kind: Kind::Secret,
            name: &source.name,
            items: &source.items,
            optional: source.optional.unwrap_or(false),
            mode,
        };
        add_object(files, making.sources, &keys)?;
    }
    if let Some(source) = &part.downward_api {
        add_fields(files, making.inputs, &source.items, mode)?;
    }
    if let Some(kind) = part.other.keys().next() {
        return Err(Error::Unfit(format!(
            "projected volumes with {kind} are not served on this node"
        )));
    }
    let Some(source) = &part.service_account_token else {
        return Ok(None);
    };
    let made = token::make(making, source).await?;
    if let Some(bytes) = made.token {
        let pod = making.inputs.pod;
        let file = File {
            bytes: bytes.into_bytes(),
            mode: token::mode(pod, mode),
            owner: token::owner(pod),
        };
        put(files, &source.path, file)?;
    }
    Ok(Some(made.refresh_at))
}

fn add_object(files: &mut Files, sources: &Sources, keys: &Keys<'_>) -> Result<(), Error> {
    let mut data: BTreeMap<&str, Vec<u8>> = BTreeMap::new();
    match keys.kind {
        Kind::ConfigMap => {
            let Some(map) = sources.objects.config_maps.get(keys.name) else {
                return absent(sources, keys);
            };
            for (key, text) in map.data.iter().filter(|(key, _)| keys.wants(key)) {
                data.insert(key, text.clone().into_bytes());
            }
            for (key, text) in map.binary_data.iter().filter(|(key, _)| keys.wants(key)) {
                data.insert(key, decode(keys, key, text)?);
            }
        }
        Kind::Secret => {
            let Some(secret) = sources.objects.secrets.get(keys.name) else {
                return absent(sources, keys);
            };
            for (key, text) in secret.data.iter().filter(|(key, _)| keys.wants(key)) {
                data.insert(key, decode(keys, key, text)?);
            }
        }
    }
    add_keys(files, data, keys)
}

impl Keys<'_> {
    /// Chosen keys only, so that a large object of which one key is used is not copied.
    fn wants(&self, key: &str) -> bool {
        self.items.is_empty() || self.items.iter().any(|item| item.key == key)
    }
}

fn absent(sources: &Sources, keys: &Keys<'_>) -> Result<(), Error> {
    if keys.optional {
        return Ok(());
    }
    let name = format!("{} \"{}\"", keys.kind.object(), keys.name);
    let known = sources.unknown.iter().find(|why| why.starts_with(&name));
    Err(Error::Unfit(
        known.cloned().unwrap_or_else(|| format!("{name} not found")),
    ))
}

fn decode(keys: &Keys<'_>, key: &str, text: &str) -> Result<Vec<u8>, Error> {
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| {
            let kind = keys.kind.object();
            Error::Unfit(format!("key {key} of {kind} \"{}\" is not base64", keys.name))
        })
}

/// All keys under their own names, or the chosen ones under the chosen paths.
fn add_keys(files: &mut Files, data: BTreeMap<&str, Vec<u8>>, keys: &Keys<'_>) -> Result<(), Error> {
    let file = |bytes, mode: Option<u32>| File {
        bytes,
        mode: mode.map_or(keys.mode, |mode| mode & 0o7777),
        owner: None,
    };
    if keys.items.is_empty() {
        for (key, bytes) in data {
            check_key(key, keys)?;
            put(files, key, file(bytes, None))?;
        }
        return Ok(());
    }
    for item in keys.items {
        match data.get(item.key.as_str()) {
            // A key may be wanted under several paths.
            Some(bytes) => put(files, &item.path, file(bytes.clone(), item.mode))?,
            None if keys.optional => {}
            None => {
                let kind = keys.kind.key();
                return Err(Error::Unfit(format!(
                    "references non-existent {kind} key: {}",
                    item.key
                )));
            }
        }
    }
    Ok(())
}

/// What the API lets through: letters, digits, `-`, `_` and `.`, but nothing that looks like a way up.
fn check_key(key: &str, keys: &Keys<'_>) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !key.is_empty()
        && key.len() <= NAME_BYTES_MAX
        && key.chars().all(plain)
        && key != "."
        && !key.starts_with("..")
    {
        return Ok(());
    }
    let kind = keys.kind.object();
    Err(Error::Unfit(format!(
        "{kind} \"{}\" has a key that is no file name: {key:?}",
        keys.name
    )))
}

fn add_fields(
    files: &mut Files,
    inputs: &Inputs<'_>,
    items: &[DownwardApiItem],
    mode: u32,
) -> Result<(), Error> {
    let unfit = |refusal: kedge_pods::Refusal| Error::Unfit(refusal.message);
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            field(inputs, &selector.field_path).map_err(unfit)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container = inputs.pod.container(name).ok_or_else(|| {
                let path = &item.path;
                Error::Unfit(format!(
                    "downward API file {path}: the pod has no container {name:?}"
                ))
            })?;
            resource_field(inputs, container, selector).map_err(unfit)?
        } else {
            String::new()
        };
        let file = File {
            bytes: text.into_bytes(),
            mode: item.mode.unwrap_or(mode) & 0o7777,
            owner: None,
        };
        put(files, &item.path, file)?;
    }
    Ok(())
}

/// A path that leaves the volume, hides among its links, or needs a file as a directory is refused.
fn put(files: &mut Files, path: &str, file: File) -> Result<(), Error> {
    let wanted = PathBuf::from(path);
    let plain = |part: Component<'_>| match part {
        Component::Normal(name) => name.len() <= NAME_BYTES_MAX && !name.to_string_lossy().starts_with(".."),
        Component::CurDir | Component::ParentDir | Component::RootDir | Component::Prefix(_) => false,
    };
    if path.is_empty() || path.contains('\0') || !wanted.components().all(plain) {
        return Err(Error::Unfit(format!("path {path:?} leaves its volume")));
    }
    let wanted: PathBuf = wanted.components().collect();
    let below = files.range(wanted.clone()..).find(|(other, _)| **other != wanted);
    let clash = wanted.ancestors().skip(1).any(|above| files.contains_key(above))
        || below.is_some_and(|(other, _)| other.starts_with(&wanted));
    if clash {
        return Err(Error::Unfit(format!(
            "path {path:?} is both a file and a directory"
        )));
    }
    // As with a kubelet the later source wins.
    files.insert(wanted, file);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use kedge_api::{ConfigMap, Secret};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn check(volume: Value, want: Expect) {
        let mut sources = Sources::default();
        let map: ConfigMap = serde_json::from_value(json!({
            "data": { "a": "1", "b": "2" }, "binaryData": { "c": "AAE=" },
        }))
        .unwrap();
        let bad: ConfigMap = serde_json::from_value(json!({ "data": { "../x": "1" } })).unwrap();
        let secret: Secret = serde_json::from_value(json!({ "data": { "key": "c2VjcmV0" } })).unwrap();
        sources.objects.config_maps.insert("map".to_owned(), map);
        sources.objects.config_maps.insert("bad".to_owned(), bad);
        sources.objects.secrets.insert("safe".to_owned(), secret);
        sources
            .unknown
            .push("secret \"far\" is not on this node and the cloud does not give it: offline".to_owned());
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let mut shown = String::new();
        let mut files = Files::new();
        match add_object(&mut files, &sources, &keys(&volume).unwrap()) {
            Ok(()) => {
                for (path, file) in files {
                    let text = String::from_utf8_lossy(&file.bytes).escape_debug().to_string();
                    shown += &format!("{:04o} {} {text}\n", file.mode, path.display());
                }
            }
            Err(error) => shown = error.sentence(),
        }
        want.assert_eq(&shown);
    }

    #[test]
    fn objects_become_files() {
        check(
            json!({ "configMap": { "name": "map" } }),
            expect![[r#"
                0644 a 1
                0644 b 2
                0644 c \0\u{1}
            "#]],
        );
        check(
            json!({ "configMap": { "name": "map", "defaultMode": 0o400, "items": [
                { "key": "a", "path": "x/y", "mode": 0o600 }, { "key": "a", "path": "z" },
            ] } }),
            expect![[r#"
                0600 x/y 1
                0400 z 1
            "#]],
        );
        check(
            json!({ "secret": { "secretName": "safe", "items": [{ "key": "none", "path": "n" }] } }),
            expect!["references non-existent secret key: none"],
        );
        check(
            json!({ "configMap": { "name": "map", "items": [{ "key": "none", "path": "n" }] } }),
            expect!["references non-existent config key: none"],
        );
        check(
            json!({ "configMap": { "name": "map", "optional": true, "items": [{ "key": "none", "path": "n" }] } }),
            expect![""],
        );
        check(
            json!({ "secret": { "secretName": "no" } }),
            expect![[r#"secret "no" not found"#]],
        );
        check(
            json!({ "secret": { "secretName": "far" } }),
            expect![[r#"secret "far" is not on this node and the cloud does not give it: offline"#]],
        );
        check(
            json!({ "secret": { "secretName": "no", "optional": true } }),
            expect![""],
        );
        check(
            json!({ "configMap": { "name": "bad" } }),
            expect![[r#"configmap "bad" has a key that is no file name: "../x""#]],
        );
        check(
            json!({ "configMap": { "name": "map", "items": [
                { "key": "a", "path": "d" }, { "key": "b", "path": "d/e" },
            ] } }),
            expect![[r#"path "d/e" is both a file and a directory"#]],
        );
        check(
            json!({ "configMap": { "name": "map", "items": [{ "key": "a", "path": "..data/e" }] } }),
            expect![[r#"path "..data/e" leaves its volume"#]],
        );
    }

    proptest! {
        /// Whatever path is asked for: a file that is put lies below the volume and not among its links.
        #[test]
        fn no_path_leaves_the_volume(path in "[./a\\\\\\x00é]{0,12}") {
            let mut files = Files::new();
            let file = File { bytes: Vec::new(), mode: 0, owner: None };
            if put(&mut files, &path, file).is_ok() {
                let path = files.keys().next().unwrap();
                prop_assert!(path.is_relative() && path.components().count() > 0);
                for part in path.components() {
                    let Component::Normal(name) = part else { panic!("{path:?}") };
                    prop_assert!(!name.to_string_lossy().starts_with(".."));
                }
            }
        }
    }
}
