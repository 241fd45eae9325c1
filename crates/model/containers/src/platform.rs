//! Which of the processors that an image is made for comes closest to a node's own.

use serde::{Deserialize, Serialize};

/// The variant that is meant where an image names none.
const ARM_DEFAULT: u32 = 7;
const ARM64_DEFAULT: u32 = 8;

/// An image with modules is taken where there is none for the node's own processor.
const MODULES_DISTANCE: u32 = u32::MAX;

/// What an image was made for, as image documents say it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// How well it runs on a node of this architecture: 0 is best, `None` is not at all.
    pub fn distance(&self, architecture: &str, variant: Option<&str>) -> Option<u32> {
        if self.is_modules() {
            return Some(MODULES_DISTANCE);
        }
        if self.os != "linux" || self.architecture != architecture {
            return None;
        }
        variant_distance(architecture, variant, self.variant.as_deref())
    }
}

impl Platform {
    /// WebAssembly modules, which are made for no processor.
    fn is_modules(&self) -> bool {
        self.architecture == "wasm" && ["wasi", "wasip1"].contains(&self.os.as_str())
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// How well an image's variant of an architecture runs on a node: 0 is best, `None` is not at all.
///
/// Processors run what was made for older variants of theirs, never for newer ones. A node that does not know its own
/// variant takes any, those without a name first.
fn variant_distance(architecture: &str, node: Option<&str>, image: Option<&str>) -> Option<u32> {
    let default = match architecture {
        "arm" => Some(ARM_DEFAULT),
        "arm64" => Some(ARM64_DEFAULT),
        // Level 1 is what every processor of the kind is.
        "amd64" => Some(1),
        _others => None,
    };
    let Some(default) = default else {
        return Some(u32::from(node != image));
    };
    let number = |variant: &str| {
        variant
            .strip_prefix('v')
            .and_then(|number| number.parse::<u32>().ok())
    };
    let image = match image.filter(|name| !name.is_empty()) {
        Some(name) => number(name)?,
        None => default,
    };
    match (node.and_then(number), architecture) {
        (Some(node), _) => node.checked_sub(image),
        // An unknown processor of this architecture may be the plainest.
        (None, "amd64") => (image == default).then_some(0),
        (None, _) => Some(image.abs_diff(default)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_runs_on_newer() {
        let table = [
            ("arm", Some("v7"), Some("v7"), Some(0)),
            ("arm", Some("v7"), Some("v6"), Some(1)),
            ("arm", Some("v7"), None, Some(0)),
            ("arm", Some("v6"), Some("v7"), None),
            ("arm", Some("v6"), None, None),
            ("arm", Some("v6"), Some("v5"), Some(1)),
            ("arm", Some("v8"), Some("v7"), Some(1)),
            ("arm", None, Some("v7"), Some(0)),
            ("arm", None, Some("v6"), Some(1)),
            ("arm64", Some("v8"), None, Some(0)),
            ("arm64", Some("v8"), Some("v9"), None),
            ("amd64", None, Some("v3"), None),
            ("amd64", None, None, Some(0)),
            ("amd64", Some("v3"), Some("v2"), Some(1)),
            ("arm", Some("v7"), Some("odd"), None),
            ("riscv64", None, None, Some(0)),
            ("mips", None, Some("r2"), Some(1)),
        ];
        for (architecture, node, image, distance) in table {
            let found = variant_distance(architecture, node, image);
            assert_eq!(found, distance, "{architecture} {image:?} on {node:?}");
        }
    }

    #[test]
    fn modules_run_everywhere_if_there_is_nothing_better() {
        let platform = |os: &str, architecture: &str| Platform {
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            variant: None,
        };
        for (os, architecture, distance) in [
            ("wasip1", "wasm", Some(MODULES_DISTANCE)),
            ("wasi", "wasm", Some(MODULES_DISTANCE)),
            ("linux", "arm64", Some(0)),
            ("wasip2", "wasm", None),
            ("linux", "wasm", None),
            ("wasi", "arm64", None),
        ] {
            let found = platform(os, architecture).distance("arm64", None);
            assert_eq!(found, distance, "{os}/{architecture}");
        }
    }
}
