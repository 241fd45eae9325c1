//! Pods and pod templates.

use super::{Errors, grammar, not_negative, one_of, port, port_number};
use crate::meta::{self, at, items, text};
use crate::quantity::Quantity;
use crate::schema::names;
use crate::status::FieldError;
use serde_json::Value;

pub(super) fn check(object: &Value, errors: &mut Errors) {
    spec("spec", at(object, &["spec"]), errors);
}

/// A pod spec, at `spec` or below a template.
pub(super) fn spec(path: &str, spec: &Value, errors: &mut Errors) {
    if !spec.is_object() {
        errors.push(FieldError::required(path, ""));
        return;
    }
    let containers = items(spec, &["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(format!("{path}.containers"), ""));
    }
    one_of(
        format!("{path}.restartPolicy"),
        text(spec, &["restartPolicy"]),
        &["Always", "OnFailure", "Never"],
        errors,
    );
    one_of(
        format!("{path}.dnsPolicy"),
        text(spec, &["dnsPolicy"]),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    for field in ["terminationGracePeriodSeconds", "activeDeadlineSeconds"] {
        not_negative(format!("{path}.{field}"), at(spec, &[field]), errors);
    }
    for (field, verdict) in [
        ("nodeName", names::dns_subdomain as fn(&str) -> _),
        ("serviceAccountName", names::dns_subdomain),
        ("hostname", names::dns_label),
    ] {
        let name = text(spec, &[field]);
        if !name.is_empty() {
            grammar(format!("{path}.{field}"), name, verdict(name), errors);
        }
    }
    super::metadata::labels(
        &format!("{path}.nodeSelector"),
        at(spec, &["nodeSelector"]),
        errors,
    );
    let volumes = volumes(path, spec, errors);
    let mut taken = Vec::new();
    for list in ["initContainers", "containers"] {
        for (place, found) in items(spec, &[list]).iter().enumerate() {
            let path = format!("{path}.{list}[{place}]");
            container(&path, found, list == "initContainers", &volumes, errors);
            unique(format!("{path}.name"), text(found, &["name"]), &mut taken, errors);
        }
    }
    host_ports(path, containers, errors);
    own_users(path, spec, errors);
    tolerations(path, spec, errors);
}

/// A pod with users of its own shares nothing with the node.
fn own_users(path: &str, spec: &Value, errors: &mut Errors) {
    const WHEN: &str = "when `hostUsers` is false";
    if at(spec, &["hostUsers"]) != &Value::Bool(false) {
        return;
    }
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        if at(spec, &[field]) == &Value::Bool(true) {
            errors.push(FieldError::forbidden(format!("{path}.{field}"), WHEN));
        }
    }
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for (place, container) in items(spec, &[list]).iter().enumerate() {
            if !items(container, &["volumeDevices"]).is_empty() {
                let path = format!("{path}.{list}[{place}].volumeDevices");
                errors.push(FieldError::forbidden(path, WHEN));
            }
        }
    }
}

fn unique<'a>(path: String, name: &'a str, taken: &mut Vec<&'a str>, errors: &mut Errors) {
    if !name.is_empty() && taken.contains(&name) {
        errors.push(FieldError::duplicate(path, name));
    }
    taken.push(name);
}

fn volumes<'a>(path: &str, spec: &'a Value, errors: &mut Errors) -> Vec<&'a str> {
    let mut taken = Vec::new();
    for (place, volume) in items(spec, &["volumes"]).iter().enumerate() {
        let path = format!("{path}.volumes[{place}]");
        let name = text(volume, &["name"]);
        named(&path, name, errors);
        unique(format!("{path}.name"), name, &mut taken, errors);
        let sources: Vec<&str> = volume
            .as_object()
            .into_iter()
            .flatten()
            .map(|(k, _)| k.as_str())
            .filter(|k| *k != "name")
            .collect();
        if sources.len() > 1 {
            let detail = format!(
                "may not specify more than 1 volume type, found {}",
                sources.join(", ")
            );
            errors.push(FieldError::forbidden(&path, detail));
        }
        for (source, field) in [
            ("configMap", "name"),
            ("secret", "secretName"),
            ("hostPath", "path"),
            ("persistentVolumeClaim", "claimName"),
        ] {
            let found = at(volume, &[source]);
            if found.is_object() && text(found, &[field]).is_empty() {
                errors.push(FieldError::required(format!("{path}.{source}.{field}"), ""));
            }
        }
    }
    taken
}

/// A name that must be there and be a label.
fn named(path: &str, name: &str, errors: &mut Errors) {
    if name.is_empty() {
        errors.push(FieldError::required(format!("{path}.name"), ""));
    } else {
        grammar(format!("{path}.name"), name, names::dns_label(name), errors);
    }
}

fn container(path: &str, container: &Value, init: bool, volumes: &[&str], errors: &mut Errors) {
    named(path, text(container, &["name"]), errors);
    let image = text(container, &["image"]);
    if image.is_empty() {
        errors.push(FieldError::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        errors.push(FieldError::invalid(
            format!("{path}.image"),
            image,
            "must not have leading or trailing whitespace",
        ));
    }
    let policy = text(container, &["imagePullPolicy"]);
    one_of(
        format!("{path}.imagePullPolicy"),
        policy,
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    let policy = text(container, &["terminationMessagePolicy"]);
    one_of(
        format!("{path}.terminationMessagePolicy"),
        policy,
        &["File", "FallbackToLogsOnError"],
        errors,
    );
    ports(path, container, errors);
    environment(path, container, errors);
    mounts(path, container, volumes, errors);
    resources(path, at(container, &["resources"]), errors);
    let restartable = text(container, &["restartPolicy"]) == "Always";
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let found = at(container, &[probe]);
        if found.is_object() && init && !restartable {
            errors.push(FieldError::forbidden(
                format!("{path}.{probe}"),
                "may not be set for init containers without restartPolicy=Always",
            ));
        } else if found.is_object() {
            self::probe(&format!("{path}.{probe}"), found, errors);
        }
    }
}

fn ports(path: &str, container: &Value, errors: &mut Errors) {
    let mut taken = Vec::new();
    for (place, port) in items(container, &["ports"]).iter().enumerate() {
        let path = format!("{path}.ports[{place}]");
        port_number(
            format!("{path}.containerPort"),
            at(port, &["containerPort"]),
            errors,
        );
        let host = at(port, &["hostPort"]);
        if !host.is_null() && host != 0 {
            port_number(format!("{path}.hostPort"), host, errors);
        }
        one_of(
            format!("{path}.protocol"),
            text(port, &["protocol"]),
            &["TCP", "UDP", "SCTP"],
            errors,
        );
        let name = text(port, &["name"]);
        if !name.is_empty() {
            grammar(format!("{path}.name"), name, names::port_name(name), errors);
            unique(format!("{path}.name"), name, &mut taken, errors);
        }
    }
}

fn environment(path: &str, container: &Value, errors: &mut Errors) {
    for (place, variable) in items(container, &["env"]).iter().enumerate() {
        let path = format!("{path}.env[{place}]");
        let name = text(variable, &["name"]);
        grammar(
            format!("{path}.name"),
            name,
            names::environment_variable(name),
            errors,
        );
        let source = at(variable, &["valueFrom"]);
        if source.is_object() && !text(variable, &["value"]).is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.valueFrom"),
                "",
                "may not be specified when `value` is not empty",
            ));
        }
        if source.as_object().is_some_and(|s| s.len() != 1) {
            errors.push(FieldError::invalid(
                format!("{path}.valueFrom"),
                "",
                "must specify exactly one source",
            ));
        }
    }
    for (place, source) in items(container, &["envFrom"]).iter().enumerate() {
        let count = ["configMapRef", "secretRef"]
            .iter()
            .filter(|k| at(source, &[k]).is_object())
            .count();
        if count != 1 {
            let detail = "must specify exactly one of: `configMapRef`, `secretRef`";
            errors.push(FieldError::invalid(
                format!("{path}.envFrom[{place}]"),
                "",
                detail,
            ));
        }
    }
}

fn mounts(path: &str, container: &Value, volumes: &[&str], errors: &mut Errors) {
    let mut taken = Vec::new();
    for (place, mount) in items(container, &["volumeMounts"]).iter().enumerate() {
        let path = format!("{path}.volumeMounts[{place}]");
        let name = text(mount, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError {
                path: format!("{path}.name"),
                fault: crate::status::Fault::Invalid,
                value: Some(name.into()),
                detail: "no volume of the pod has this name".to_owned(),
            });
        }
        let place = text(mount, &["mountPath"]);
        if place.is_empty() {
            errors.push(FieldError::required(format!("{path}.mountPath"), ""));
        } else if taken.contains(&place) {
            errors.push(FieldError::invalid(
                format!("{path}.mountPath"),
                place,
                "must be unique",
            ));
        }
        taken.push(place);
        let sub = text(mount, &["subPath"]);
        if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
            errors.push(FieldError::invalid(
                format!("{path}.subPath"),
                sub,
                "must be a relative path without '..'",
            ));
        }
    }
}

fn resources(path: &str, resources: &Value, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, amount) in at(resources, &[list]).as_object().into_iter().flatten() {
            let path = format!("{path}.resources.{list}[{name}]");
            grammar(&path, name, names::label_key(name), errors);
            let amount_of = Quantity::of(amount);
            if amount_of.is_some_and(Quantity::is_negative) {
                errors.push(FieldError::invalid(
                    &path,
                    amount.clone(),
                    "must be greater than or equal to 0",
                ));
            }
            let limit = at(resources, &["limits", name]);
            if list == "requests" && Quantity::of(limit).is_some_and(|l| amount_of > Some(l)) {
                let limit = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                errors.push(FieldError::invalid(&path, amount.clone(), detail));
            }
        }
    }
}

fn probe(path: &str, probe: &Value, errors: &mut Errors) {
    const HANDLERS: [&str; 4] = ["exec", "httpGet", "tcpSocket", "grpc"];
    let handlers: Vec<&str> = HANDLERS
        .into_iter()
        .filter(|h| at(probe, &[h]).is_object())
        .collect();
    match handlers.as_slice() {
        [] => errors.push(FieldError::required(path, "must specify a handler type")),
        [_] => {}
        [_, second, ..] => {
            errors.push(FieldError::forbidden(
                format!("{path}.{second}"),
                "may not specify more than 1 handler type",
            ));
        }
    }
    for handler in ["httpGet", "tcpSocket"] {
        let found = at(probe, &[handler]);
        if found.is_object() {
            port(format!("{path}.{handler}.port"), at(found, &["port"]), errors);
        }
    }
    if at(probe, &["exec"]).is_object() && items(probe, &["exec", "command"]).is_empty() {
        errors.push(FieldError::required(format!("{path}.exec.command"), ""));
    }
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(format!("{path}.{field}"), at(probe, &[field]), errors);
    }
    let strict = path.ends_with("livenessProbe") || path.ends_with("startupProbe");
    if strict && meta::number(probe, &["successThreshold"]).is_some_and(|n| n != 1) {
        errors.push(FieldError::invalid(
            format!("{path}.successThreshold"),
            at(probe, &["successThreshold"]).clone(),
            "must be 1",
        ));
    }
}

fn host_ports(path: &str, containers: &[Value], errors: &mut Errors) {
    let mut taken = Vec::new();
    for (place, container) in containers.iter().enumerate() {
        for (number, port) in items(container, &["ports"]).iter().enumerate() {
            let Some(host) = meta::number(port, &["hostPort"]).filter(|n| *n != 0) else {
                continue;
            };
            let key = (host, text(port, &["protocol"]), text(port, &["hostIP"]));
            if taken.contains(&key) {
                errors.push(FieldError::duplicate(
                    format!("{path}.containers[{place}].ports[{number}].hostPort"),
                    host,
                ));
            }
            taken.push(key);
        }
    }
}

fn tolerations(path: &str, spec: &Value, errors: &mut Errors) {
    for (place, toleration) in items(spec, &["tolerations"]).iter().enumerate() {
        let path = format!("{path}.tolerations[{place}]");
        let (key, operator) = (text(toleration, &["key"]), text(toleration, &["operator"]));
        if !key.is_empty() {
            grammar(format!("{path}.key"), key, names::label_key(key), errors);
        } else if operator != "Exists" {
            errors.push(FieldError::invalid(
                format!("{path}.operator"),
                operator,
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            ));
        }
        one_of(
            format!("{path}.operator"),
            operator,
            &["", "Equal", "Exists"],
            errors,
        );
        one_of(
            format!("{path}.effect"),
            text(toleration, &["effect"]),
            &["", "NoSchedule", "PreferNoSchedule", "NoExecute"],
            errors,
        );
        if operator == "Exists" && !text(toleration, &["value"]).is_empty() {
            errors.push(FieldError::invalid(
                format!("{path}.value"),
                text(toleration, &["value"]),
                "value must be empty when `operator` is 'Exists'",
            ));
        }
    }
}

/// A running pod's spec changes in few places only: images, tolerations (more of them), activeDeadlineSeconds,
/// and the grace period when it is being ended.
pub(super) fn update(new: &Value, old: &Value, errors: &mut Errors) {
    let mut masked = at(new, &["spec"]).clone();
    let before = at(old, &["spec"]);
    for list in ["containers", "initContainers"] {
        if items(&masked, &[list]).len() == items(before, &[list]).len() {
            let images: Vec<Value> = items(before, &[list])
                .iter()
                .map(|c| at(c, &["image"]).clone())
                .collect();
            let containers = masked
                .get_mut(list)
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten();
            containers
                .zip(images)
                .for_each(|(c, image)| meta::set(c, &["image"], image));
        }
    }
    let kept = items(before, &["tolerations"])
        .iter()
        .all(|t| items(&masked, &["tolerations"]).contains(t));
    for (field, allowed) in [("tolerations", kept), ("activeDeadlineSeconds", true)] {
        if allowed {
            restore(&mut masked, before, field);
        }
    }
    if masked != *before {
        let changed: Vec<&str> = masked
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, v)| before.get(k.as_str()) != Some(v))
            .map(|(k, _)| k.as_str())
            .chain(
                before
                    .as_object()
                    .into_iter()
                    .flatten()
                    .filter(|(k, _)| masked.get(k.as_str()).is_none())
                    .map(|(k, _)| k.as_str()),
            )
            .collect();
        let detail = format!(
            "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, `spec.activeDeadlineSeconds` and `spec.tolerations` (only additions); changed: {}",
            changed.join(", ")
        );
        errors.push(FieldError::forbidden("spec", detail));
    }
}

fn restore(masked: &mut Value, before: &Value, field: &str) {
    match at(before, &[field]) {
        Value::Null => {
            meta::take(masked, &[field]);
        }
        value => meta::set(masked, &[field], value.clone()),
    }
}
