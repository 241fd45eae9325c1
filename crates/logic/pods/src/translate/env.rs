//! A container's environment.

use super::{Inputs, expand, fields};
use crate::Refusal;
use base64::Engine as _;
use kedge_api::{ConfigMapEnvSource, Container, EnvFromSource, EnvVarSource, KeySelector};

const REASON: &str = "CreateContainerConfigError";

/// The variables in their order; a later one of the same name replaces an earlier one.
pub(super) fn environment(
    inputs: &Inputs<'_>,
    container: &Container,
) -> Result<Vec<(String, String)>, Refusal> {
    let mut env: Vec<(String, String)> = Vec::new();
    for source in &container.env_from {
        for (name, value) in from_source(inputs, source)? {
            set(&mut env, name, value);
        }
    }
    for var in &container.env {
        let value = match (&var.value, &var.value_from) {
            (Some(text), _) if !text.is_empty() => Some(expand(text, |name| {
                lookup(&env, name).or_else(|| lookup(&inputs.config.env, name))
            })),
            (_, Some(source)) => from_field(inputs, container, source)?,
            (_, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&mut env, var.name.clone(), value);
        }
    }
    for (name, value) in &inputs.allocated.env {
        set(&mut env, name.clone(), value.clone());
    }
    for (name, value) in &inputs.config.env {
        if lookup(&env, name).is_none() {
            env.push((name.clone(), value.clone()));
        }
    }
    Ok(env)
}

pub(super) fn lookup(env: &[(String, String)], name: &str) -> Option<String> {
    env.iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.clone())
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    match env.iter_mut().find(|(known, _)| *known == name) {
        Some(entry) => entry.1 = value,
        None => env.push((name, value)),
    }
}

fn from_source(inputs: &Inputs<'_>, source: &EnvFromSource) -> Result<Vec<(String, String)>, Refusal> {
    let prefix = source.prefix.as_deref().unwrap_or_default();
    let mut vars = Vec::new();
    let optional = |reference: &ConfigMapEnvSource| reference.optional.unwrap_or(false);
    if let Some(reference) = &source.config_map_ref {
        match inputs.objects.config_maps.get(&reference.name) {
            Some(map) => vars.extend(
                map.data
                    .iter()
                    .map(|(key, value)| (format!("{prefix}{key}"), value.clone())),
            ),
            None if optional(reference) => {}
            None => return Err(missing("configmap", &reference.name)),
        }
    }
    if let Some(reference) = &source.secret_ref {
        match inputs.objects.secrets.get(&reference.name) {
            Some(secret) => {
                for (key, value) in &secret.data {
                    vars.push((
                        format!("{prefix}{key}"),
                        secret_text(&reference.name, key, value)?,
                    ));
                }
            }
            None if optional(reference) => {}
            None => return Err(missing("secret", &reference.name)),
        }
    }
    // Keys that cannot be names of variables are left out, as Kubernetes does.
    vars.retain(|(name, _)| !name.is_empty() && !name.contains(['=', '\0']));
    Ok(vars)
}

fn from_field(
    inputs: &Inputs<'_>,
    container: &Container,
    source: &EnvVarSource,
) -> Result<Option<String>, Refusal> {
    if let Some(selector) = &source.field_ref {
        return fields::field(inputs, &selector.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields::resource_field(inputs, container, selector).map(Some);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let map = inputs.objects.config_maps.get(&selector.name);
        return key(
            "configmap",
            selector,
            map.map(|map| map.data.get(&selector.key).cloned()),
        );
    }
    if let Some(selector) = &source.secret_key_ref {
        let secret = inputs.objects.secrets.get(&selector.name);
        let value = match secret.and_then(|secret| secret.data.get(&selector.key)) {
            Some(value) => Some(secret_text(&selector.name, &selector.key, value)?),
            None => None,
        };
        return key("secret", selector, secret.map(|_| value));
    }
    Ok(Some(String::new()))
}

/// `None` leaves the variable out.
fn key(kind: &str, selector: &KeySelector, found: Option<Option<String>>) -> Result<Option<String>, Refusal> {
    match found {
        Some(Some(value)) => Ok(Some(value)),
        Some(None) | None if selector.optional.unwrap_or(false) => Ok(None),
        Some(None) => {
            let message = format!(
                "couldn't find key {} in {kind} \"{}\"",
                selector.key, selector.name
            );
            Err(Refusal::new(REASON, message))
        }
        None => Err(missing(kind, &selector.name)),
    }
}

fn missing(kind: &str, name: &str) -> Refusal {
    Refusal::new(REASON, format!("{kind} \"{name}\" not found"))
}

fn secret_text(name: &str, key: &str, base64: &str) -> Result<String, Refusal> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(base64)
        .map_err(|_| Refusal::new(REASON, format!("key {key} of secret \"{name}\" is not base64")))?;
    String::from_utf8(bytes).map_err(|_| {
        Refusal::new(
            REASON,
            format!("key {key} of secret \"{name}\" is not text, so it cannot be a variable"),
        )
    })
}
