//! The smaller kinds.

use super::{Errors, grammar, not_negative, one_of, port, port_number};
use crate::meta::{self, at, items, text};
use crate::schema::names;
use crate::status::{Fault, FieldError};
use serde_json::Value;

/// All values of a config map or a secret together.
const DATA_SIZE_MAX: usize = 1024 * 1024;

pub(super) fn service(object: &Value, errors: &mut Errors) {
    let spec = at(object, &["spec"]);
    let kind = text(spec, &["type"]);
    one_of(
        "spec.type",
        kind,
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        errors,
    );
    one_of(
        "spec.sessionAffinity",
        text(spec, &["sessionAffinity"]),
        &["ClientIP", "None"],
        errors,
    );
    let ports = items(spec, &["ports"]);
    let headless = text(spec, &["clusterIP"]) == "None";
    if ports.is_empty() && kind != "ExternalName" && !headless {
        errors.push(FieldError::required("spec.ports", ""));
    }
    if kind == "ExternalName" && text(spec, &["externalName"]).is_empty() {
        errors.push(FieldError::required("spec.externalName", ""));
    }
    let (mut taken_names, mut taken_ports) = (Vec::new(), Vec::new());
    for (place, entry) in ports.iter().enumerate() {
        let path = format!("spec.ports[{place}]");
        port_number(format!("{path}.port"), at(entry, &["port"]), errors);
        port(format!("{path}.targetPort"), at(entry, &["targetPort"]), errors);
        one_of(
            format!("{path}.protocol"),
            text(entry, &["protocol"]),
            &["SCTP", "TCP", "UDP"],
            errors,
        );
        let name = text(entry, &["name"]);
        if name.is_empty() && ports.len() > 1 {
            errors.push(FieldError::required(format!("{path}.name"), ""));
        } else if !name.is_empty() {
            grammar(format!("{path}.name"), name, names::dns_label(name), errors);
            if taken_names.contains(&name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        taken_names.push(name);
        let key = (at(entry, &["port"]), text(entry, &["protocol"]));
        if taken_ports.contains(&key) {
            errors.push(FieldError::duplicate(&path, entry.clone()));
        }
        taken_ports.push(key);
    }
    super::metadata::labels("spec.selector", at(spec, &["selector"]), errors);
}

pub(super) fn config_map(object: &Value, errors: &mut Errors) {
    data(object, &["data", "binaryData"], errors);
    for key in at(object, &["binaryData"])
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k)
    {
        if !at(object, &["data", key]).is_null() {
            let detail = "duplicate of key present in data";
            errors.push(FieldError::invalid(
                format!("binaryData[{key}]"),
                key.as_str(),
                detail,
            ));
        }
    }
}

pub(super) fn secret(object: &Value, errors: &mut Errors) {
    data(object, &["data"], errors);
    let needed: &[&str] = match text(object, &["type"]) {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        _ => &[],
    };
    for key in needed {
        if at(object, &["data", key]).is_null() {
            errors.push(FieldError::required(format!("data[{key}]"), ""));
        }
    }
}

fn data(object: &Value, fields: &[&str], errors: &mut Errors) {
    let mut size = 0;
    for field in fields {
        for (key, value) in at(object, &[field]).as_object().into_iter().flatten() {
            grammar(format!("{field}[{key}]"), key, names::data_key(key), errors);
            size += value.as_str().map_or(0, str::len);
        }
    }
    if size > DATA_SIZE_MAX {
        let detail = format!("may not be more than {DATA_SIZE_MAX} bytes");
        errors.push(FieldError {
            path: fields[0].to_owned(),
            fault: Fault::TooLong,
            value: None,
            detail,
        });
    }
}

/// `immutable: true` cannot be taken back, and the data stays.
pub(super) fn immutable_data(new: &Value, old: &Value, errors: &mut Errors) {
    if at(old, &["immutable"]) != &Value::Bool(true) {
        return;
    }
    for field in ["immutable", "data", "binaryData"] {
        if at(new, &[field]) != at(old, &[field]) {
            errors.push(FieldError::forbidden(
                field,
                "field is immutable when `immutable` is set",
            ));
        }
    }
}

pub(super) fn node(object: &Value, errors: &mut Errors) {
    let mut taken = Vec::new();
    for (place, taint) in items(object, &["spec", "taints"]).iter().enumerate() {
        let path = format!("spec.taints[{place}]");
        let (key, effect) = (text(taint, &["key"]), text(taint, &["effect"]));
        grammar(format!("{path}.key"), key, names::label_key(key), errors);
        one_of(
            format!("{path}.effect"),
            effect,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            errors,
        );
        if taken.contains(&(key, effect)) {
            errors.push(FieldError::duplicate(path, taint.clone()));
        }
        taken.push((key, effect));
    }
}

pub(super) fn lease(object: &Value, errors: &mut Errors) {
    let spec = at(object, &["spec"]);
    if meta::number(spec, &["leaseDurationSeconds"]).is_some_and(|n| n <= 0) {
        let value = at(spec, &["leaseDurationSeconds"]).clone();
        errors.push(FieldError::invalid(
            "spec.leaseDurationSeconds",
            value,
            "must be greater than 0",
        ));
    }
    not_negative("spec.leaseTransitions", at(spec, &["leaseTransitions"]), errors);
}

pub(super) fn event(object: &Value, errors: &mut Errors) {
    let involved = text(object, &["involvedObject", "namespace"]);
    let namespace = meta::namespace(object);
    // Events about cluster-wide objects live in the namespace default.
    if involved != namespace && !(involved.is_empty() && namespace == "default") {
        errors.push(FieldError::invalid(
            "involvedObject.namespace",
            involved,
            "does not match event.namespace",
        ));
    }
}

pub(super) fn definition(object: &Value, errors: &mut Errors) {
    let spec = at(object, &["spec"]);
    let (group, plural) = (text(spec, &["group"]), text(spec, &["names", "plural"]));
    let expected = format!("{plural}.{group}");
    if meta::name(object) != expected {
        let detail = format!("must be spec.names.plural+\".\"+spec.group, {expected:?}");
        errors.push(FieldError::invalid("metadata.name", meta::name(object), detail));
    }
    grammar("spec.group", group, names::dns_subdomain(group), errors);
    grammar("spec.names.plural", plural, names::dns_1035_label(plural), errors);
    if !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            group,
            "should be a domain with at least one dot",
        ));
    }
    one_of(
        "spec.scope",
        text(spec, &["scope"]),
        &["Cluster", "Namespaced"],
        errors,
    );
    let versions = items(spec, &["versions"]);
    let stored = versions
        .iter()
        .filter(|v| at(v, &["storage"]) == &Value::Bool(true))
        .count();
    if stored != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(
            "spec.versions",
            Value::Array(Vec::new()),
            detail,
        ));
    }
    for (place, version) in versions.iter().enumerate() {
        let path = format!("spec.versions[{place}]");
        let name = text(version, &["name"]);
        grammar(format!("{path}.name"), name, names::dns_1035_label(name), errors);
        if !at(version, &["schema", "openAPIV3Schema"]).is_object() {
            errors.push(FieldError::required(
                format!("{path}.schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
        if versions[..place].iter().any(|v| text(v, &["name"]) == name) {
            errors.push(FieldError::duplicate(format!("{path}.name"), name));
        }
    }
    if text(spec, &["conversion", "strategy"]) == "Webhook" {
        let detail = "conversion webhooks are not supported by this server, use None";
        errors.push(FieldError::forbidden("spec.conversion.strategy", detail));
    }
}

pub(super) fn signing_request(object: &Value, errors: &mut Errors) {
    if items(object, &["spec", "usages"]).is_empty() {
        errors.push(FieldError::required("spec.usages", ""));
    }
    let signer = text(object, &["spec", "signerName"]);
    if !signer.is_empty() && !signer.contains('/') {
        errors.push(FieldError::invalid(
            "spec.signerName",
            signer,
            "must be a fully qualified domain and path of the form 'example.com/signer-name'",
        ));
    }
}

pub(super) fn storage_class(object: &Value, errors: &mut Errors) {
    if text(object, &["provisioner"]).is_empty() {
        errors.push(FieldError::required("provisioner", ""));
    }
    let policy = text(object, &["reclaimPolicy"]);
    one_of("reclaimPolicy", policy, &["Delete", "Retain"], errors);
    let mode = text(object, &["volumeBindingMode"]);
    one_of(
        "volumeBindingMode",
        mode,
        &["Immediate", "WaitForFirstConsumer"],
        errors,
    );
}

pub(super) fn csi_driver(object: &Value, errors: &mut Errors) {
    let policy = text(object, &["spec", "fsGroupPolicy"]);
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    one_of("spec.fsGroupPolicy", policy, &policies, errors);
    for (place, mode) in items(object, &["spec", "volumeLifecycleModes"])
        .iter()
        .enumerate()
    {
        let mode = mode.as_str().unwrap_or_default();
        let path = format!("spec.volumeLifecycleModes[{place}]");
        one_of(path, mode, &["Ephemeral", "Persistent"], errors);
    }
}

/// A driver that says something else goes first and comes again.
pub(super) fn csi_node_update(new: &Value, old: &Value, errors: &mut Errors) {
    let drivers = |object| items(object, &["spec", "drivers"]);
    for driver in drivers(new) {
        let same = |other: &&Value| text(other, &["name"]) == text(driver, &["name"]);
        if drivers(old)
            .iter()
            .find(same)
            .is_some_and(|other| other != driver)
        {
            let given = driver.clone();
            errors.push(FieldError::invalid("CSINodeDriver", given, "field is immutable"));
        }
    }
}

pub(super) fn runtime_class(object: &Value, errors: &mut Errors) {
    let handler = text(object, &["handler"]);
    grammar("handler", handler, names::dns_label(handler), errors);
}
