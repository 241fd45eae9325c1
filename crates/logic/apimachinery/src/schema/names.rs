//! The grammars of names: what Kubernetes accepts as object names, labels and ports. An error is the sentence why not.

pub type Verdict = Result<(), String>;

const LABEL_MAX: usize = 63;
const SUBDOMAIN_MAX: usize = 253;

fn lower_or_digit(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_dns_label(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.iter().all(|b| lower_or_digit(*b) || *b == b'-')
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

fn at_most(name: &str, limit: usize) -> Verdict {
    if name.len() > limit {
        Err(format!("must be no more than {limit} characters"))
    } else {
        Ok(())
    }
}

/// RFC 1123 label: namespaces, containers, volumes.
pub fn dns_label(name: &str) -> Verdict {
    at_most(name, LABEL_MAX)?;
    if is_dns_label(name) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 label must consist of lower case letters, digits or '-', and must start and end with a letter or digit".to_owned())
}

/// RFC 1123 subdomain: most object names.
pub fn dns_subdomain(name: &str) -> Verdict {
    at_most(name, SUBDOMAIN_MAX)?;
    if name.split('.').all(is_dns_label) {
        return Ok(());
    }
    Err("a lowercase RFC 1123 subdomain must consist of lower case letters, digits, '-' or '.', and must start and end with a letter or digit".to_owned())
}

/// RFC 1035 label: service names.
pub fn dns_1035_label(name: &str) -> Verdict {
    at_most(name, LABEL_MAX)?;
    if is_dns_label(name) && name.as_bytes()[0].is_ascii_lowercase() {
        return Ok(());
    }
    Err("a DNS-1035 label must consist of lower case letters, digits or '-', start with a letter, and end with a letter or digit".to_owned())
}

/// A name that only has to be one element of a path.
pub fn path_segment(name: &str) -> Verdict {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '%']) {
        return Err("must not be empty, '.' or '..', and must not contain '/' or '%'".to_owned());
    }
    at_most(name, SUBDOMAIN_MAX)
}

fn qualified_tail(name: &str) -> Verdict {
    at_most(name, LABEL_MAX)?;
    let bytes = name.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    if bytes.iter().all(inner) && outer(bytes.first()) && outer(bytes.last()) {
        return Ok(());
    }
    Err("a name must consist of letters, digits, '-', '_' or '.', and must start and end with a letter or digit".to_owned())
}

/// `[prefix/]name`: keys of labels and annotations, taints, resources.
pub fn label_key(key: &str) -> Verdict {
    match key.split_once('/') {
        None => qualified_tail(key),
        Some((prefix, name)) => {
            dns_subdomain(prefix).map_err(|why| format!("prefix part {why}"))?;
            qualified_tail(name)
        }
    }
}

pub fn label_value(value: &str) -> Verdict {
    if value.is_empty() {
        Ok(())
    } else {
        qualified_tail(value)
    }
}

/// IANA service name: named ports.
pub fn port_name(name: &str) -> Verdict {
    const LIMIT: usize = 15;
    at_most(name, LIMIT)?;
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        return Err("must contain at least one letter (a-z)".to_owned());
    }
    if !is_dns_label(name) || name.contains("--") {
        return Err("must consist of lower case letters, digits and single '-', and must start and end with a letter or digit".to_owned());
    }
    Ok(())
}

/// A key of a config map or a secret: a file name.
pub fn data_key(key: &str) -> Verdict {
    at_most(key, SUBDOMAIN_MAX)?;
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.is_empty() || key == "." || key.starts_with("..") || !key.bytes().all(good) {
        return Err("a valid config key must consist of letters, digits, '-', '_' or '.', and must not be '.' or start with '..'".to_owned());
    }
    Ok(())
}

/// The name of an environment variable.
pub fn environment_variable(name: &str) -> Verdict {
    let printable = |b: u8| (0x20..0x7f).contains(&b) && b != b'=';
    if name.is_empty() || !name.bytes().all(printable) {
        return Err(
            "a valid environment variable name must consist of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammars() {
        for (grammar, good, bad) in [
            (
                dns_label as fn(&str) -> Verdict,
                vec!["web", "a-1", "0a"],
                vec!["", "-a", "a-", "A", "a.b", &"a".repeat(64)],
            ),
            (
                dns_subdomain,
                vec!["web.example", "a"],
                vec!["", ".a", "a..b", "a_b"],
            ),
            (dns_1035_label, vec!["web"], vec!["1web", ""]),
            (
                label_key,
                vec!["app", "example.com/app", "A_b.c"],
                vec!["", "/app", "a/b/c", "Ex/app", "-a"],
            ),
            (label_value, vec!["", "A-b_c.d"], vec!["-a", "a b"]),
            (
                port_name,
                vec!["http", "p-1"],
                vec!["", "80", "HTTP", "a--b", "more-than-fifteen"],
            ),
            (data_key, vec![".bashrc", "a.conf"], vec!["", ".", "..a", "a/b"]),
            (path_segment, vec!["system:node:x", "a:b"], vec!["", "..", "a/b"]),
            (environment_variable, vec!["PATH", "a.b"], vec!["", "a=b"]),
        ] {
            for name in good {
                assert_eq!(grammar(name), Ok(()), "{name}");
            }
            for name in bad {
                assert!(grammar(name).is_err(), "{name}");
            }
        }
    }
}
