//! The JSON documents of a registry, as far as a pull needs them.

use crate::{Config, Error};
use kedge_containers::Platform;
use kedge_containers::oci::{
    ANNOTATION_FULL_NAME, Descriptor, LAYERS_MAX, MEDIA_DOCKER_LIST, MEDIA_DOCKER_MANIFEST, MEDIA_INDEX,
    MEDIA_MANIFEST,
};
use serde::Deserialize;

/// What is asked for, best first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json";
/// Platforms of an image that an error lists.
const PLATFORMS_SHOWN_MAX: usize = 16;

/// What a pull needs of an image configuration.
#[derive(Debug, Default, Deserialize)]
struct Configuration {
    #[serde(flatten)]
    platform: Option<Platform>,
    rootfs: Option<RootFileSystem>,
}

#[derive(Debug, Deserialize)]
struct RootFileSystem {
    diff_ids: Vec<String>,
}

/// Either document that a reference may name.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Either {
    schema_version: Option<u32>,
    #[serde(default)]
    media_type: String,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// What a reference named.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

fn is_index(media_type: &str) -> bool {
    [MEDIA_INDEX, MEDIA_DOCKER_LIST].contains(&media_type)
}

/// How well a platform runs on the node that is pulled for.
fn distance(platform: &Platform, config: &Config) -> Option<u32> {
    platform.distance(&config.architecture, config.variant.as_deref())
}

/// Reads a document. `media_type` is what the server called it.
pub(crate) fn parse(bytes: &[u8], media_type: &str, host: &str) -> Result<Document, Error> {
    let bad = |reason: String| Error::BadAnswer {
        host: host.to_owned(),
        reason,
    };
    let either: Either = serde_json::from_slice(bytes)
        .map_err(|error| bad(format!("its manifest is not understood: {error}")))?;
    if either.schema_version == Some(1) {
        let reason =
            "the image has a manifest of schema 1, which was given up; push it again with a tool of today";
        return Err(bad(reason.to_owned()));
    }
    let media_type = if either.media_type.is_empty() {
        media_type.split(';').next().unwrap_or_default().trim()
    } else {
        &either.media_type
    };
    let document = match (either.manifests, either.config, either.layers) {
        (Some(manifests), None, None) if is_index(media_type) || media_type.is_empty() => {
            Document::Index(manifests)
        }
        (None, Some(config), Some(layers))
            if [MEDIA_MANIFEST, MEDIA_DOCKER_MANIFEST, ""].contains(&media_type) =>
        {
            Document::Manifest(Manifest { config, layers })
        }
        _other => {
            return Err(bad(format!(
                "a manifest of the type {media_type:?} is none of an image that can be run"
            )));
        }
    };
    let named: Vec<&Descriptor> = match &document {
        Document::Index(all) => all.iter().collect(),
        Document::Manifest(manifest) => manifest.layers.iter().chain([&manifest.config]).collect(),
    };
    if let Some(wrong) = named.iter().find(|one| !kedge_containers::is_digest(&one.digest)) {
        return Err(bad(format!(
            "its manifest names {:?}, which is no sha256 digest",
            wrong.digest
        )));
    }
    if let Document::Manifest(manifest) = &document
        && manifest.layers.len() > LAYERS_MAX
    {
        let count = manifest.layers.len();
        return Err(bad(format!(
            "the image has {count} layers; at most {LAYERS_MAX} can be stacked"
        )));
    }
    Ok(document)
}

/// The manifest of an index that this node can run: of those for its processor or an older one of its kind the closest.
pub(crate) fn choose(index: &[Descriptor], config: &Config, image: &str) -> Result<Descriptor, Error> {
    // An index in an index is nothing that a registry has for one image.
    let manifests = index.iter().filter(|one| !one.is_index());
    let ranked = manifests.clone().filter_map(|one| {
        let platform = one.platform.as_ref()?;
        Some((distance(platform, config)?, one))
    });
    if let Some((_, best)) = ranked.min_by_key(|(distance, _)| *distance) {
        return Ok(best.clone());
    }
    let platforms = manifests.filter_map(|one| one.platform.as_ref());
    // Build tools file their attestations under an unknown platform.
    let known = platforms.filter(|platform| platform.os != "unknown");
    Err(wrong_platform(known, config, image))
}

/// Refuses an image whose only manifest is for another processor, before its layers are fetched. Returns which layers
/// are here. A configuration that cannot be read is refused where it is imported; here it only means that every layer
/// is fetched.
pub(crate) fn known_layers(
    configuration: &[u8],
    config: &Config,
    image: &str,
    has_layer: &(dyn Fn(&[String]) -> bool + Sync),
) -> Result<Vec<bool>, Error> {
    let read: Configuration = serde_json::from_slice(configuration).unwrap_or_default();
    if let Some(platform) = &read.platform
        && distance(platform, config).is_none()
    {
        return Err(wrong_platform([platform].into_iter(), config, image));
    }
    let layers = read.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
    let count = layers.len().min(LAYERS_MAX);
    Ok((1..=count).map(|upto| has_layer(&layers[..upto])).collect())
}

fn wrong_platform<'a>(offered: impl Iterator<Item = &'a Platform>, config: &Config, image: &str) -> Error {
    let mut offered: Vec<String> = offered
        .take(PLATFORMS_SHOWN_MAX)
        .map(ToString::to_string)
        .collect();
    offered.dedup();
    Error::WrongPlatform {
        image: image.to_owned(),
        offered: if offered.is_empty() {
            "no processor".to_owned()
        } else {
            offered.join(", ")
        },
        wanted: match &config.variant {
            Some(variant) => format!("{}/{variant}", config.architecture),
            None => config.architecture.clone(),
        },
    }
}

/// The `index.json` of a folder that holds one image.
pub(crate) fn layout_index(manifest: &Descriptor, name: &str) -> Vec<u8> {
    let mut manifest = manifest.clone();
    manifest.platform = None;
    manifest
        .annotations
        .insert(ANNOTATION_FULL_NAME.to_owned(), name.to_owned());
    let index = serde_json::json!({ "schemaVersion": 2, "mediaType": MEDIA_INDEX, "manifests": [manifest] });
    index.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use std::collections::BTreeMap;

    fn offer(platforms: &[(&str, Option<&str>)]) -> Vec<Descriptor> {
        let one = |(number, (architecture, variant)): (usize, &(&str, Option<&str>))| Descriptor {
            media_type: MEDIA_MANIFEST.to_owned(),
            digest: format!("{number}"),
            size: 1,
            platform: Some(Platform {
                architecture: (*architecture).to_owned(),
                os: "linux".to_owned(),
                variant: variant.map(str::to_owned),
            }),
            annotations: BTreeMap::new(),
        };
        platforms.iter().enumerate().map(one).collect()
    }

    fn check(offered: &[(&str, Option<&str>)], variant: Option<&str>, want: Expect) {
        let config = Config {
            variant: variant.map(str::to_owned),
            ..Config::new("arm")
        };
        want.assert_eq(&match choose(&offer(offered), &config, "x") {
            Ok(chosen) => chosen.digest,
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn the_best_manifest_for_a_processor() {
        let all = [
            ("amd64", None),
            ("arm", Some("v6")),
            ("arm", Some("v7")),
            ("arm64", Some("v8")),
        ];
        check(&all, Some("v7"), expect!["2"]);
        check(&all, Some("v8"), expect!["2"]);
        check(&all, Some("v6"), expect!["1"]);
        check(&all, None, expect!["2"]);
        check(
            &all,
            Some("v5"),
            expect![
                "x is for linux/amd64, linux/arm/v6, linux/arm/v7, linux/arm64/v8, and this node is linux/arm/v5"
            ],
        );
        check(&[("arm", Some("v5")), ("arm", None)], Some("v7"), expect!["1"]);
        check(
            &[("amd64", None), ("s390x", None)],
            None,
            expect!["x is for linux/amd64, linux/s390x, and this node is linux/arm"],
        );
        check(
            &[],
            None,
            expect!["x is for no processor, and this node is linux/arm"],
        );
    }

    fn read(text: &str, media_type: &str, want: Expect) {
        want.assert_eq(&match parse(text.as_bytes(), media_type, "r.example") {
            Ok(Document::Index(all)) => format!("index of {}", all.len()),
            Ok(Document::Manifest(manifest)) => format!("manifest with {} layers", manifest.layers.len()),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn documents() {
        read(
            r#"{"schemaVersion": 2, "manifests": []}"#,
            MEDIA_DOCKER_LIST,
            expect!["index of 0"],
        );
        let config = format!(r#"{{"digest": "sha256:{}", "size": 2}}"#, "ab".repeat(32));
        read(
            &format!(r#"{{"config": {config}, "layers": [{config}]}}"#),
            "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
            expect!["manifest with 1 layers"],
        );
        read(
            r#"{"config": {"digest": "sha256:12", "size": 2}, "layers": []}"#,
            MEDIA_DOCKER_MANIFEST,
            expect![[
                r#"the registry r.example sent something that cannot be used: its manifest names "sha256:12", which is no sha256 digest"#
            ]],
        );
        read(
            r#"{"schemaVersion": 1, "fsLayers": []}"#,
            "application/vnd.docker.distribution.manifest.v1+json",
            expect![[
                r#"the registry r.example sent something that cannot be used: the image has a manifest of schema 1, which was given up; push it again with a tool of today"#
            ]],
        );
        read(
            "<html>",
            "text/html",
            expect![
                "the registry r.example sent something that cannot be used: its manifest is not understood: expected value at line 1 column 1"
            ],
        );
    }
}
