//! `pods/<name>/log`: asks the pod's node and passes its bytes on.

use super::{Call, read};
use crate::reply::{self, Reply};
use crate::request::percent_encode;
use kedge_apimachinery::meta;
use kedge_apimachinery::status::{Reason, Status};
use kedge_wire::NodeName;
use kedge_wire::tunnel::NodeGet;
use serde_json::Value;
use std::time::Duration;

/// A node that has not begun to answer by then is taken as unreachable.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Parameters that the node understands.
const PASSED_ON: [&str; 8] = [
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "timestamps",
    "tailLines",
    "limitBytes",
    "insecureSkipTLSVerifyBackend",
];
/// Which container is meant when none is named.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

pub(super) async fn log(call: &Call) -> Result<Reply, Status> {
    let pod = read::find(call)?.value();
    let (namespace, name) = (&call.target.namespace, &call.target.name);
    let container = container(&pod, call.query.text("container"), name)?;
    let node = node(&pod, name)?;
    let Some(port) = &call.server.ports.node_get else {
        return Err(Status::unavailable(
            "logs are not available: this server has no way to its nodes",
        ));
    };
    let [a, b, c] = [namespace, name, &container].map(|part| percent_encode(part));
    let get = NodeGet {
        path: format!("/containerLogs/{a}/{b}/{c}"),
        query: query(call),
    };
    let answer = port.ask((node.clone(), get), ANSWER_TIMEOUT).await;
    let pieces = match answer {
        Ok(Ok(pieces)) => pieces,
        Ok(Err(why)) => return Err(Status::new(Reason::InternalError, why)),
        Err(error) => {
            let why = format!("node {node} did not answer for the logs of pod {name}: {error}");
            return Err(Status::new(Reason::ServiceUnavailable, why));
        }
    };
    let scope = call.scope.clone();
    let pieces = futures_util::stream::unfold((pieces, scope), |(mut pieces, scope)| async move {
        tokio::select! {
            biased; // A followed log never ends by itself; the server's end does not wait for it.
            () = scope.cancelled() => None,
            piece = pieces.recv() => piece.map(|piece| (piece, (pieces, scope))),
        }
    });
    Ok(reply::stream("text/plain", pieces))
}

fn query(call: &Call) -> String {
    let passed = PASSED_ON.iter().filter(|name| call.query.has(name));
    let pairs: Vec<String> = passed
        .map(|name| format!("{name}={}", percent_encode(call.query.text(name))))
        .collect();
    pairs.join("&")
}

/// The node of a pod.
pub(super) fn node(pod: &Value, name: &str) -> Result<NodeName, Status> {
    match meta::text(pod, &["spec", "nodeName"]) {
        "" => Err(Status::bad_request(format!(
            "pod {name} does not have a host assigned"
        ))),
        node => NodeName::new(node).map_err(|error| Status::bad_request(error.to_string())),
    }
}

/// The container that is meant: named, the only one, or the pod's own default.
pub(super) fn container(pod: &Value, asked: &str, name: &str) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let all = meta::items(pod, &["spec", list]).iter();
        all.map(|container| meta::text(container, &["name"]).to_owned())
            .collect()
    };
    let (mut containers, init) = (names("containers"), names("initContainers"));
    if !asked.is_empty() {
        let ephemeral = names("ephemeralContainers");
        let mut all = containers.iter().chain(&init).chain(&ephemeral);
        let known = all.any(|container| container == asked);
        let refused = || Status::bad_request(format!("container {asked} is not valid for pod {name}"));
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(refused())
        };
    }
    if let Some(default) = meta::annotation(pod, DEFAULT_CONTAINER)
        && containers.iter().any(|container| container == default)
    {
        return Ok(default.to_owned());
    }
    if containers.len() == 1 {
        return Ok(containers.remove(0));
    }
    let choices = containers.join(" ");
    let init = if init.is_empty() {
        String::new()
    } else {
        format!(" or one of the init containers: [{}]", init.join(" "))
    };
    Err(Status::bad_request(format!(
        "a container name must be specified for pod {name}, choose one of: [{choices}]{init}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use serde_json::json;

    fn check(containers: &[&str], annotation: Option<&str>, asked: &str, expected: Expect) {
        let all: Vec<Value> = containers.iter().map(|name| json!({ "name": name })).collect();
        let mut pod =
            json!({"metadata": {}, "spec": {"containers": all, "initContainers": [{"name": "prepare"}]}});
        if let Some(default) = annotation {
            pod["metadata"]["annotations"] = json!({ DEFAULT_CONTAINER: default });
        }
        let text = match container(&pod, asked, "web") {
            Ok(name) => name,
            Err(status) => format!("{} {}", status.code(), status.message),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn which_container() {
        check(&["a"], None, "", expect!["a"]);
        check(&["a", "b"], None, "b", expect!["b"]);
        check(&["a", "b"], None, "prepare", expect!["prepare"]);
        check(&["a", "b"], Some("b"), "", expect!["b"]);
        check(
            &["a"],
            None,
            "x",
            expect!["400 container x is not valid for pod web"],
        );
        check(
            &["a", "b"],
            Some("gone"),
            "",
            expect![
                "400 a container name must be specified for pod web, choose one of: [a b] or one of the init containers: [prepare]"
            ],
        );
    }
}
