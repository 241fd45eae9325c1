//! YAML with the semantics of Go and Kubernetes (`yes` is true, `0644` is octal, duplicate keys are refused).

use serde_json::Value;

/// A file of manifests. Kubernetes accepts 3 MiB per object; a bundle of some hundred objects stays below this.
pub const YAML_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why text is not YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    #[error("YAML of {bytes} bytes is larger than the limit of {max}")]
    TooLarge { bytes: usize, max: usize },
    /// The parser's words, with line and column.
    #[error("not valid YAML: {0}")]
    Syntax(String),
}

/// Parses every document of a YAML stream. Empty documents are left out.
pub fn parse(text: &str) -> Result<Vec<Value>, YamlError> {
    if text.len() > YAML_BYTES_MAX {
        return Err(YamlError::TooLarge {
            bytes: text.len(),
            max: YAML_BYTES_MAX,
        });
    }
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| YamlError::Syntax(error.to_string()))?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn go_semantics() {
        let parsed = parse("a: yes\nmode: 0644\nquoted: \"0644\"\n---\n---\nb: [1, x]\n").unwrap();
        assert_eq!(
            parsed,
            [
                json!({"a": true, "mode": 420, "quoted": "0644"}),
                json!({"b": [1, "x"]})
            ]
        );
    }

    #[test]
    fn mistakes_are_errors() {
        assert!(
            parse("a: 1\na: 2\n")
                .unwrap_err()
                .to_string()
                .contains("not valid YAML")
        );
        assert!(parse("a: [1\n").is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }
}
