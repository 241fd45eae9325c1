//! What the server can do: versions, groups, resources, schemas.

use super::Server;
use crate::reply::{self, Reply};
use crate::request::{Route, accept};
use http::{HeaderMap, StatusCode};
use kedge_apimachinery::kinds::AggregatedVersion;
use kedge_apimachinery::openapi;
use kedge_apimachinery::status::Status;
use serde_json::{Value, json};

/// What old clients ask for; an `@` is not allowed in a media type, so it is answered under the other name.
const V2_PROTOBUF_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

pub(super) fn version() -> Reply {
    let version = json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0-kedge", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none", "compiler": "rustc", "platform": "linux/amd64",
    });
    reply::json(StatusCode::OK, &version)
}

pub(super) fn answer(server: &Server, route: &Route, headers: &HeaderMap) -> Result<Reply, Status> {
    let registry = server.registry();
    let accept = accept(headers);
    let ok = |value: &Value| Ok(reply::json(StatusCode::OK, value));
    let or_404 = |value: Option<Value>| match value {
        Some(value) => Ok(reply::json(StatusCode::OK, &value)),
        None => Err(Status::no_such_resource()),
    };
    let aggregated = |core: bool| {
        let form = AggregatedVersion::from_accept(&accept)?;
        let body = registry.aggregated(core, form).to_string();
        Some(reply::bytes(StatusCode::OK, &form.content_type(), body))
    };
    match route {
        Route::Paths => ok(
            &json!({"paths": ["/api", "/apis", "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}),
        ),
        Route::CoreVersions => match aggregated(true) {
            Some(reply) => Ok(reply),
            None => ok(&registry.api_versions(&server.address.to_string())),
        },
        Route::Groups => match aggregated(false) {
            Some(reply) => Ok(reply),
            None => ok(&registry.api_group_list()),
        },
        Route::Group(group) => or_404(registry.api_group(group)),
        Route::Resources { group, version } => or_404(registry.api_resource_list(group, version)),
        Route::OpenApiV2 if accept.contains(V2_PROTOBUF_ASKED) || accept.contains(V2_PROTOBUF) => {
            Ok(reply::bytes(StatusCode::OK, V2_PROTOBUF, openapi::v2_protobuf()))
        }
        Route::OpenApiV2 => ok(&openapi::v2(&registry)),
        Route::OpenApiV3Index => ok(&openapi::v3_index(&registry)),
        Route::OpenApiV3(path) => {
            let parts: Vec<&str> = path.split('/').collect();
            or_404(match parts.as_slice() {
                ["api", version] => openapi::v3(&registry, "", version),
                ["apis", group, version] => openapi::v3(&registry, group, version),
                _ => None,
            })
        }
        Route::Health | Route::Version | Route::Resource(_) | Route::Unknown => {
            Err(Status::no_such_resource())
        }
    }
}
