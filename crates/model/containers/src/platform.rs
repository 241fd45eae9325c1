//! Which of the processors that an image is made for comes closest to a node's own.

/// The variant that is meant where an image names none.
const ARM_DEFAULT: u32 = 7;
const ARM64_DEFAULT: u32 = 8;

/// How well an image's variant of an architecture runs on a node: 0 is best, `None` is not at all.
///
/// Processors run what was made for older variants of theirs, never for newer ones. A node that does not know its own
/// variant takes any, those without a name first.
pub fn variant_distance(architecture: &str, node: Option<&str>, image: Option<&str>) -> Option<u32> {
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
}
