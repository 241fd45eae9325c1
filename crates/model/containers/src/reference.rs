//! Names of images.

use std::fmt;
use std::str::FromStr;

/// The name of an image, completed as every container tool completes it: `nginx` is `docker.io/library/nginx:latest`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    /// Registry and path.
    pub repository: String,
    pub tag: Option<String>,
    /// `sha256:…`; it decides when a tag is present as well.
    pub digest: Option<String>,
}

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
/// As in the distribution specification.
const REPOSITORY_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

impl Reference {
    /// The host, with its port if it has one, for example `docker.io`.
    pub fn registry(&self) -> &str {
        self.parts().0
    }

    /// Where the image is in its registry, for example `library/nginx`.
    pub fn path(&self) -> &str {
        self.parts().1
    }

    /// A completed repository always has both.
    fn parts(&self) -> (&str, &str) {
        self.repository.split_once('/').unwrap_or((&self.repository, ""))
    }

    /// Registry, path and tag, which is how the store knows an image; `None` if it is named by digest alone.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.repository))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Why a name is not one of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReference {
    #[error("it is empty or longer than {REPOSITORY_BYTES_MAX} characters")]
    Length,
    #[error("a repository is written with lower case letters, digits, and . _ - / between them")]
    Repository,
    #[error("a tag is written with letters, digits, and . _ -, and has at most {TAG_BYTES_MAX} of them")]
    Tag,
    #[error("a digest is sha256: and 64 hexadecimal digits")]
    Digest,
}

impl FromStr for Reference {
    type Err = BadReference;

    fn from_str(text: &str) -> Result<Self, BadReference> {
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(BadReference::Digest);
        }
        // A colon before a slash belongs to the registry's port.
        let (repository, tag) = match name.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            Some(_) | None => (name, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(BadReference::Tag);
        }
        let tag = tag.or(if digest.is_none() { Some(DEFAULT_TAG) } else { None });
        Ok(Self {
            repository: complete(repository)?,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

/// Adds the registry and the namespace that were left out.
fn complete(repository: &str) -> Result<String, BadReference> {
    if repository.is_empty() || repository.len() > REPOSITORY_BYTES_MAX {
        return Err(BadReference::Length);
    }
    let (registry, path) = match repository.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        Some(_) | None => (DEFAULT_REGISTRY, repository),
    };
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if !path.split('/').all(is_component)
        || !registry
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b))
    {
        return Err(BadReference::Repository);
    }
    let namespace = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        DEFAULT_NAMESPACE
    } else {
        ""
    };
    let slash = if namespace.is_empty() { "" } else { "/" };
    Ok(format!("{registry}/{namespace}{slash}{path}"))
}

fn is_component(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.bytes().all(inner) && edge(text.as_bytes().first()) && edge(text.as_bytes().last())
}

fn is_tag(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !text.is_empty()
        && text.len() <= TAG_BYTES_MAX
        && text.bytes().all(inner)
        && !text.starts_with(['.', '-'])
}

/// A digest as references and manifests write it, of the 32 bytes of a SHA-256.
pub fn print_digest(hash: &[u8]) -> String {
    use std::fmt::Write as _;
    hash.iter().fold("sha256:".to_owned(), |mut text, byte| {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// `sha256:` and 64 lower case hexadecimal digits: the only algorithm in use.
pub fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, want: Expect) {
        want.assert_eq(&match text.parse::<Reference>() {
            Ok(reference) => reference.to_string(),
            Err(error) => format!("error: {error}"),
        });
    }

    #[test]
    fn names_are_completed() {
        check("nginx", expect!["docker.io/library/nginx:latest"]);
        check("kubeedge/pause:3.6", expect!["docker.io/kubeedge/pause:3.6"]);
        check("localhost/a/b", expect!["localhost/a/b:latest"]);
        check(
            "registry.example:5000/x",
            expect!["registry.example:5000/x:latest"],
        );
        check("index.docker.io/library/x:1", expect!["docker.io/library/x:1"]);
        let digest = format!("sha256:{}", "a1".repeat(32));
        assert_eq!(
            format!("x@{digest}").parse::<Reference>().unwrap().to_string(),
            format!("docker.io/library/x@{digest}")
        );
        let both = format!("x:1@{digest}").parse::<Reference>().unwrap();
        assert_eq!((both.registry(), both.path()), ("docker.io", "library/x"));
        assert_eq!(both.tagged().as_deref(), Some("docker.io/library/x:1"));
    }

    #[test]
    fn a_printed_digest_is_one() {
        let digest = print_digest(&[0xa1; 32]);
        assert!(
            is_digest(&digest) && digest.starts_with("sha256:a1a1"),
            "{digest}"
        );
    }

    #[test]
    fn what_is_no_name_is_refused() {
        check("", expect!["error: it is empty or longer than 255 characters"]);
        check(
            "Nginx",
            expect![
                "error: a repository is written with lower case letters, digits, and . _ - / between them"
            ],
        );
        check(
            "a/../b",
            expect![
                "error: a repository is written with lower case letters, digits, and . _ - / between them"
            ],
        );
        check(
            "a:-x",
            expect!["error: a tag is written with letters, digits, and . _ -, and has at most 128 of them"],
        );
        check(
            "a@sha256:12",
            expect!["error: a digest is sha256: and 64 hexadecimal digits"],
        );
    }

    #[test]
    fn a_printed_reference_reads_as_itself() {
        for text in ["nginx", "a.b/c:1", "localhost/x:y"] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
        }
    }
}
