//! Deployments and replica sets.

use super::{Errors, not_negative, one_of, pod};
use crate::meta::{at, text};
use crate::selector::LabelSelector;
use crate::status::FieldError;
use serde_json::Value;

pub(super) fn deployment(object: &Value, errors: &mut Errors) {
    let spec = at(object, &["spec"]);
    for field in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        not_negative(format!("spec.{field}"), at(spec, &[field]), errors);
    }
    selector_and_template(spec, errors);
    let strategy = at(spec, &["strategy"]);
    one_of(
        "spec.strategy.type",
        text(strategy, &["type"]),
        &["Recreate", "RollingUpdate"],
        errors,
    );
    let rolling = at(strategy, &["rollingUpdate"]);
    if text(strategy, &["type"]) == "Recreate" && !rolling.is_null() {
        let detail = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
    } else if !rolling.is_null() {
        rolling_update(rolling, errors);
    }
    let number = |field: &str| at(spec, &[field]).as_i64();
    if let (Some(deadline), Some(ready)) = (number("progressDeadlineSeconds"), number("minReadySeconds"))
        && deadline <= ready
    {
        errors.push(FieldError::invalid(
            "spec.progressDeadlineSeconds",
            deadline,
            "must be greater than minReadySeconds",
        ));
    }
}

fn rolling_update(rolling: &Value, errors: &mut Errors) {
    let path = |field: &str| format!("spec.strategy.rollingUpdate.{field}");
    for field in ["maxUnavailable", "maxSurge"] {
        match at(rolling, &[field]) {
            Value::String(text) if percent(text).is_none() => {
                let detail = "a valid percent string must be a numeric string followed by an ending '%'";
                errors.push(FieldError::invalid(path(field), text.as_str(), detail));
            }
            Value::String(text) if field == "maxUnavailable" && percent(text) > Some(100) => {
                errors.push(FieldError::invalid(
                    path(field),
                    text.as_str(),
                    "must not be greater than 100%",
                ));
            }
            number => not_negative(path(field), number, errors),
        }
    }
    let is_zero = |field: &str| match at(rolling, &[field]) {
        Value::String(text) => percent(text) == Some(0),
        number => number.as_i64() == Some(0),
    };
    if is_zero("maxUnavailable") && is_zero("maxSurge") {
        let value = at(rolling, &["maxUnavailable"]).clone();
        errors.push(FieldError::invalid(
            path("maxUnavailable"),
            value,
            "may not be 0 when `maxSurge` is 0",
        ));
    }
}

fn percent(text: &str) -> Option<u32> {
    text.strip_suffix('%')?.parse().ok()
}

pub(super) fn replica_set(object: &Value, errors: &mut Errors) {
    let spec = at(object, &["spec"]);
    for field in ["replicas", "minReadySeconds"] {
        not_negative(format!("spec.{field}"), at(spec, &[field]), errors);
    }
    selector_and_template(spec, errors);
}

fn selector_and_template(spec: &Value, errors: &mut Errors) {
    let template = at(spec, &["template"]);
    let labels = at(template, &["metadata", "labels"]);
    match LabelSelector::from_object(at(spec, &["selector"])) {
        Ok(None) => errors.push(FieldError::required("spec.selector", "")),
        Ok(Some(selector)) if selector.is_empty() => {
            errors.push(FieldError::invalid(
                "spec.selector",
                at(spec, &["selector"]).clone(),
                "empty selector is invalid for deployment",
            ));
        }
        Ok(Some(selector)) if !selector.matches_labels(labels) => {
            let detail = "`selector` does not match template `labels`";
            errors.push(FieldError::invalid(
                "spec.template.metadata.labels",
                labels.clone(),
                detail,
            ));
        }
        Ok(Some(_)) => {}
        Err(error) => errors.push(FieldError::invalid(
            "spec.selector",
            at(spec, &["selector"]).clone(),
            error.to_string(),
        )),
    }
    if template.is_null() {
        // The catalog has said so.
        return;
    }
    super::metadata::labels("spec.template.metadata.labels", labels, errors);
    super::metadata::annotations(
        "spec.template.metadata.annotations",
        at(template, &["metadata", "annotations"]),
        errors,
    );
    pod::spec("spec.template.spec", at(template, &["spec"]), errors);
    let policy = text(template, &["spec", "restartPolicy"]);
    if matches!(policy, "OnFailure" | "Never") {
        errors.push(FieldError::unsupported(
            "spec.template.spec.restartPolicy",
            policy,
            &["Always"],
        ));
    }
}
