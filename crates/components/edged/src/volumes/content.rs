//! What is in a config map, secret, downward API or projected volume.

use super::atomic::{File, Files};
use super::token;
use crate::cloud::Cloud;
use crate::objects::{CONFIG_ERROR, Found, explain};
use base64::Engine as _;
use kedge_api::{DownwardApiItem, KeyToPath, Volume, VolumeProjection};
use kedge_pods::Refusal;
use kedge_pods::translate::{Inputs, field, resource_field};
use kedge_wire::Time;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Kubernetes' default mode.
const MODE_DEFAULT: u32 = 0o644;

/// The objects that the pod's volumes name.
pub(crate) type Sources = Found;

/// One source, whichever kind of volume it stands in.
struct Keys<'a> {
    kind: &'static str,
    name: &'a str,
    items: &'a [KeyToPath],
    optional: bool,
    mode: u32,
}

/// The files of a volume, and when they must be made again.
pub(super) async fn files(
    inputs: &Inputs<'_>,
    volume: &Volume,
    sources: &Sources,
    cloud: &Cloud,
    dir: &Path,
    now: Time,
) -> Result<(Files, Option<Time>), Refusal> {
    let mut files = Files::new();
    let mut refresh_at = None;
    let mode = |mode: Option<u32>| mode.unwrap_or(MODE_DEFAULT);
    if let Some(source) = &volume.config_map {
        let optional = source.optional.unwrap_or(false);
        let mode = mode(source.default_mode);
        let keys = Keys {
            kind: "configmap",
            name: &source.name,
            items: &source.items,
            optional,
            mode,
        };
        add_config_map(&mut files, sources, &keys)?;
    } else if let Some(source) = &volume.secret {
        let optional = source.optional.unwrap_or(false);
        let mode = mode(source.default_mode);
        let keys = Keys {
            kind: "secret",
            name: &source.secret_name,
            items: &source.items,
            optional,
            mode,
        };
        add_secret(&mut files, sources, &keys)?;
    } else if let Some(source) = &volume.downward_api {
        add_fields(&mut files, inputs, &source.items, mode(source.default_mode))?;
    } else if let Some(source) = &volume.projected {
        let mode = mode(source.default_mode);
        for part in &source.sources {
            add_projection(&mut files, inputs, sources, part, mode)?;
            if let Some(token) = &part.service_account_token {
                let made = token::make(inputs, token, cloud, dir, now).await?;
                put(
                    &mut files,
                    &token.path,
                    made.token.into_bytes(),
                    token::mode(inputs.pod, mode),
                )?;
                refresh_at = [refresh_at, Some(made.refresh_at)].into_iter().flatten().min();
            }
        }
    }
    Ok((files, refresh_at))
}

fn add_projection(
    files: &mut Files,
    inputs: &Inputs<'_>,
    sources: &Sources,
    part: &VolumeProjection,
    mode: u32,
) -> Result<(), Refusal> {
    if let Some(source) = &part.config_map {
        let optional = source.optional.unwrap_or(false);
        let keys = Keys {
            kind: "configmap",
            name: &source.name,
            items: &source.items,
            optional,
            mode,
        };
        add_config_map(files, sources, &keys)?;
    }
    if let Some(source) = &part.secret {
        let optional = source.optional.unwrap_or(false);
        let keys = Keys {
            kind: "secret",
            name: &source.name,
            items: &source.items,
            optional,
            mode,
        };
        add_secret(files, sources, &keys)?;
    }
    if let Some(source) = &part.downward_api {
        add_fields(files, inputs, &source.items, mode)?;
    }
    Ok(())
}

fn add_config_map(files: &mut Files, sources: &Sources, keys: &Keys<'_>) -> Result<(), Refusal> {
    let Some(map) = sources.objects.config_maps.get(keys.name) else {
        return absent(sources, keys);
    };
    let mut data: BTreeMap<String, Vec<u8>> = map
        .data
        .iter()
        .map(|(key, text)| (key.clone(), text.clone().into_bytes()))
        .collect();
    for (key, text) in &map.binary_data {
        data.insert(key.clone(), decode(keys, key, text)?);
    }
    add_keys(files, data, keys)
}

fn add_secret(files: &mut Files, sources: &Sources, keys: &Keys<'_>) -> Result<(), Refusal> {
    let Some(secret) = sources.objects.secrets.get(keys.name) else {
        return absent(sources, keys);
    };
    let mut data = BTreeMap::new();
    for (key, text) in &secret.data {
        data.insert(key.clone(), decode(keys, key, text)?);
    }
    add_keys(files, data, keys)
}

fn absent(sources: &Sources, keys: &Keys<'_>) -> Result<(), Refusal> {
    if keys.optional {
        return Ok(());
    }
    let refusal = Refusal::new(CONFIG_ERROR, format!("{} \"{}\" not found", keys.kind, keys.name));
    Err(explain(refusal, &sources.unknown))
}

fn decode(keys: &Keys<'_>, key: &str, text: &str) -> Result<Vec<u8>, Refusal> {
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|_| {
            Refusal::new(
                CONFIG_ERROR,
                format!("key {key} of {} \"{}\" is not base64", keys.kind, keys.name),
            )
        })
}

/// All keys under their own names, or the chosen ones under the chosen paths.
fn add_keys(files: &mut Files, mut data: BTreeMap<String, Vec<u8>>, keys: &Keys<'_>) -> Result<(), Refusal> {
    if keys.items.is_empty() {
        for (key, bytes) in data {
            put(files, &key, bytes, keys.mode)?;
        }
        return Ok(());
    }
    for item in keys.items {
        match data.remove(&item.key) {
            Some(bytes) => put(files, &item.path, bytes, item.mode.unwrap_or(keys.mode))?,
            None if keys.optional => {}
            None => {
                let message = format!(
                    "{} \"{}\" references non-existent key: {}",
                    keys.kind, keys.name, item.key
                );
                return Err(Refusal::new(CONFIG_ERROR, message));
            }
        }
    }
    Ok(())
}

fn add_fields(
    files: &mut Files,
    inputs: &Inputs<'_>,
    items: &[DownwardApiItem],
    mode: u32,
) -> Result<(), Refusal> {
    for item in items {
        let text = if let Some(selector) = &item.field_ref {
            field(inputs, &selector.field_path)?
        } else if let Some(selector) = &item.resource_field_ref {
            let name = selector.container_name.as_deref().unwrap_or_default();
            let container = inputs.pod.container(name).ok_or_else(|| {
                Refusal::new(
                    CONFIG_ERROR,
                    format!(
                        "downward API file {}: the pod has no container {name:?}",
                        item.path
                    ),
                )
            })?;
            resource_field(inputs, container, selector)?
        } else {
            String::new()
        };
        put(files, &item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
    }
    Ok(())
}

/// A path that leaves the volume, or hides among the links, is refused.
fn put(files: &mut Files, path: &str, bytes: Vec<u8>, mode: u32) -> Result<(), Refusal> {
    let path_buf = PathBuf::from(path);
    let plain = path_buf
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || path.starts_with("..") || !plain {
        return Err(Refusal::new(
            CONFIG_ERROR,
            format!("path {path:?} leaves its volume"),
        ));
    }
    files.insert(path_buf, File { bytes, mode });
    Ok(())
}
