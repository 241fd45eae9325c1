//! The downward API: fields and resources of the pod as text.

use super::Inputs;
use crate::{Refusal, qos};
use kedge_api::{Container, Quantity, ResourceFieldSelector};
use std::collections::BTreeMap;

/// The value of a field path such as `metadata.labels['app']` or `status.podIP`.
pub fn field(inputs: &Inputs<'_>, path: &str) -> Result<String, Refusal> {
    let pod = inputs.pod;
    let meta = &pod.metadata;
    if let Some((list, key)) = subscript(path) {
        let map = match list {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            other => return Err(unknown(other)),
        };
        return Ok(map.get(key).cloned().unwrap_or_default());
    }
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    let host_network = pod.spec.host_network;
    let pod_ips: &[String] = if host_network {
        &inputs.config.host_ips
    } else {
        inputs.pod_ips
    };
    Ok(match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => inputs.config.node_name.clone(),
        "spec.serviceAccountName" => pod
            .spec
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        "status.hostIP" => first(&inputs.config.host_ips),
        "status.hostIPs" => inputs.config.host_ips.join(","),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => pod_ips.join(","),
        other => return Err(unknown(other)),
    })
}

fn unknown(path: &str) -> Refusal {
    Refusal::new(
        "CreateContainerConfigError",
        format!("field path {path:?} is not one that a pod can be asked for"),
    )
}

/// `metadata.labels['app']` as list and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (list, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let key = key
        .strip_prefix('\'')
        .and_then(|k| k.strip_suffix('\''))
        .or_else(|| key.strip_prefix('"').and_then(|k| k.strip_suffix('"')))?;
    Some((list, key))
}

/// `key="value"` a line, escaped as in Go.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter()
        .map(|(key, value)| format!("{key}={}", quoted(value)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Text in quotation marks as Go prints it.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0b' => out.push_str("\\v"),
            '\x0c' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of `limits.cpu` and the like, in units of the divisor, rounded up.
pub fn resource_field(
    inputs: &Inputs<'_>,
    container: &Container,
    selector: &ResourceFieldSelector,
) -> Result<String, Refusal> {
    let of = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => inputs.pod.container(name).ok_or_else(|| {
            Refusal::new(
                "CreateContainerConfigError",
                format!("the pod has no container {name}"),
            )
        })?,
        None => container,
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .unwrap_or((&selector.resource, ""));
    // Huge pages that nobody asked for are none.
    let node = inputs
        .config
        .allocatable
        .get(name)
        .filter(|_| !name.starts_with(qos::HUGE_PAGES));
    let node = node.cloned().unwrap_or_else(|| Quantity::from_units(0));
    let quantity = match kind {
        // Without a limit the node is the limit.
        "limits" => of.resources.limits.get(name).cloned().unwrap_or(node),
        "requests" => qos::request(&of.resources, name)
            .cloned()
            .unwrap_or_else(|| Quantity::from_units(0)),
        other => {
            let message = format!("resource {other:?} is neither limits nor requests");
            return Err(Refusal::new("CreateContainerConfigError", message));
        }
    };
    let one = Quantity::from_units(1);
    let divisor = selector
        .divisor
        .as_ref()
        .filter(|d| d.milli() > 0)
        .unwrap_or(&one);
    Ok(quantity.divided_by(divisor).to_string())
}
