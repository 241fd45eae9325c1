//! How devices are named.

use std::collections::BTreeMap;
use std::fmt;

/// Keys of annotations whose values are names of devices.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// `vendor.com/class=device`, valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pub(super) kind: Kind<'a>,
    pub(super) device: &'a str,
}

/// `vendor.com/class`, valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kind<'a> {
    pub(super) vendor: &'a str,
    pub(super) class: &'a str,
}

impl<'a> Name<'a> {
    /// The error is a sentence about the text.
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(kind, device)| {
            Some(Self {
                kind: Kind::parse(kind).ok()?,
                device: is_device(device).then_some(device)?,
            })
        });
        parsed.ok_or_else(|| {
            format!("{text:?} is not the name of a device; vendor.com/class=device is expected")
        })
    }
}

impl<'a> Kind<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((vendor, class)) if is_word(vendor) && is_word(class) => Ok(Self { vendor, class }),
            Some(_) | None => Err(format!(
                "{text:?} is not a kind of devices; vendor.com/class is expected"
            )),
        }
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.kind, self.device)
    }
}

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vendor, self.class)
    }
}

/// A vendor or a class.
fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic()) && is_made_of(text, "_-.")
}

pub(super) fn is_device(text: &str) -> bool {
    is_made_of(text, "_-.:")
}

/// Letters and digits, and between them also these.
fn is_made_of(text: &str, between: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || between.contains(c))
}

/// The devices that a container names: in its configuration, then in its annotations; each once. One word that is not a
/// name refuses them all, because nobody knows what it was to be.
pub(in crate::embedded) fn wanted(
    configured: &[String],
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>, String> {
    let of_annotations = annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX))
        .flat_map(|(_, value)| value.split(','));
    let mut wanted: Vec<String> = Vec::new();
    for name in configured.iter().map(String::as_str).chain(of_annotations) {
        Name::parse(name)?;
        if !wanted.iter().any(|known| known == name) {
            wanted.push(name.to_owned());
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    #[test]
    fn the_grammar() {
        let texts = [
            "nvidia.com/gpu=0",
            "vendor.com/class=name:1.2-x_y",
            "v/c=d",
            "k8s.device-plugin.nvidia.com/gpu=GPU-8f0e4",
            "",
            "gpu",
            "/dev/null",
            "vendor.com/gpu",
            "vendor.com/gpu=",
            "vendor.com=0",
            "1vendor.com/gpu=0",
            "vendor.com/0gpu=0",
            "vendor.com/gpu-=0",
            "vendor.com/gpu=-0",
            "vendor.com/gpu=a=b",
            "vendor.com/gpu/x=0",
            "vendor.com/gpu=ä",
        ];
        let table: String = texts
            .iter()
            .map(|text| match Name::parse(text) {
                Ok(name) => format!(
                    "{text}: {} | {} | {}\n",
                    name.kind.vendor, name.kind.class, name.device
                ),
                Err(_) => format!("{text}: -\n"),
            })
            .collect();
        expect![[r#"
            nvidia.com/gpu=0: nvidia.com | gpu | 0
            vendor.com/class=name:1.2-x_y: vendor.com | class | name:1.2-x_y
            v/c=d: v | c | d
            k8s.device-plugin.nvidia.com/gpu=GPU-8f0e4: k8s.device-plugin.nvidia.com | gpu | GPU-8f0e4
            : -
            gpu: -
            /dev/null: -
            vendor.com/gpu: -
            vendor.com/gpu=: -
            vendor.com=0: -
            1vendor.com/gpu=0: -
            vendor.com/0gpu=0: -
            vendor.com/gpu-=0: -
            vendor.com/gpu=-0: -
            vendor.com/gpu=a=b: -
            vendor.com/gpu/x=0: -
            vendor.com/gpu=ä: -
        "#]]
        .assert_eq(&table);
    }

    #[test]
    fn annotations_name_devices_as_well() {
        let annotations = |list: &[(&str, &str)]| -> BTreeMap<String, String> {
            let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
            list.iter().map(owned).collect()
        };
        let told = annotations(&[
            ("cdi.k8s.io/plugin_b", "v.com/b=1,v.com/a=0"),
            ("cdi.k8s.io/plugin_a", "v.com/a=2"),
            ("example.org/cdi.k8s.io/x", "not a name"),
        ]);
        let names = wanted(&["v.com/a=0".into(), "v.com/a=0".into()], &told).unwrap();
        assert_eq!(names, ["v.com/a=0", "v.com/a=2", "v.com/b=1"]);
        let broken = wanted(&[], &annotations(&[("cdi.k8s.io/x", "v.com/a=0, v.com/a=1")]));
        expect![[r#"" v.com/a=1" is not the name of a device; vendor.com/class=device is expected"#]]
            .assert_eq(&broken.unwrap_err());
        assert!(wanted(&["gpu".into()], &BTreeMap::new()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_a_name_prints_as_it_was(text in "[a-z0-9./=:_-]{0,24}") {
            if let Ok(name) = Name::parse(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
