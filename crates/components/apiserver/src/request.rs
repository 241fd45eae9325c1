//! A request as we understand it: path, query, accepted forms. Parsed once, here.

use crate::protobuf::ProtobufError;
use crate::storage::Place;
use http::HeaderMap;
use http::header::ACCEPT;
use kedge_apimachinery::status::{Reason, Status};

/// Largest path that is looked at: group, version, namespace, plural, name and subresource at their limits.
const PATH_BYTES_MAX: usize = 4096;
/// Most query parameters: Kubernetes has about twenty, and one for each word of a command that is run in a container.
const PARAMETERS_MAX: usize = 1024;

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/healthz`, `/livez`, `/readyz` and what is below them.
    Health,
    Version,
    /// `/`
    Paths,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    Group(String),
    Resources {
        group: String,
        version: String,
    },
    OpenApiV2,
    OpenApiV3Index,
    OpenApiV3(String),
    Resource(Target),
    Unknown,
}

/// A path below a group version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Target {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) plural: String,
    /// Empty: the cluster, or all namespaces.
    pub(crate) namespace: String,
    /// Empty: the collection.
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// The old form `/api/v1/watch/...`.
    pub(crate) legacy_watch: bool,
}

impl Target {
    pub(crate) fn place(&self) -> Place {
        Place::new(&self.namespace, &self.name)
    }
}

impl Route {
    pub(crate) fn parse(path: &str) -> Self {
        if path.len() > PATH_BYTES_MAX {
            return Self::Unknown;
        }
        let Some(parts) = path
            .split('/')
            .skip(1)
            .map(percent_decode)
            .collect::<Option<Vec<String>>>()
        else {
            return Self::Unknown;
        };
        let mut parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        // A trailing slash means nothing, except that the root is nothing else.
        if parts.last() == Some(&"") {
            parts.pop();
        }
        match parts.as_slice() {
            [] => Self::Paths,
            ["healthz" | "livez" | "readyz", ..] => Self::Health,
            ["version"] => Self::Version,
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group((*group).to_owned()),
            ["api", version] => Self::Resources {
                group: String::new(),
                version: (*version).to_owned(),
            },
            ["apis", group, version] => Self::Resources {
                group: (*group).to_owned(),
                version: (*version).to_owned(),
            },
            ["openapi", "v2"] => Self::OpenApiV2,
            ["openapi", "v3"] => Self::OpenApiV3Index,
            ["openapi", "v3", rest @ ..] => Self::OpenApiV3(rest.join("/")),
            ["api", version, rest @ ..] => target("", version, rest),
            ["apis", group, version, rest @ ..] => target(group, version, rest),
            _ => Self::Unknown,
        }
    }
}

fn target(group: &str, version: &str, rest: &[&str]) -> Route {
    let mut target = Target {
        group: group.to_owned(),
        version: version.to_owned(),
        ..Target::default()
    };
    let rest = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => {
            target.legacy_watch = true;
            rest
        }
        rest => rest,
    };
    let (namespace, rest) = match rest {
        // Subresources of a namespace look like kinds within it.
        ["namespaces", _, "status" | "finalize"] if group.is_empty() => ("", rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
        rest => ("", rest),
    };
    target.namespace = namespace.to_owned();
    let (plural, name, subresource) = match rest {
        [plural] => (*plural, "", ""),
        [plural, name] => (*plural, *name, ""),
        [plural, name, subresource] => (*plural, *name, *subresource),
        _ => return Route::Unknown,
    };
    if plural.is_empty() || (rest.len() > 1 && name.is_empty()) {
        return Route::Unknown;
    }
    target.plural = plural.to_owned();
    target.name = name.to_owned();
    target.subresource = subresource.to_owned();
    Route::Resource(target)
}

/// The parameters of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Result<Self, Status> {
        let mut all = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |part: &str| percent_decode(&part.replace('+', " "));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                return Err(Status::bad_request(format!(
                    "query parameter {pair:?} is not valid"
                )));
            };
            if all.len() == PARAMETERS_MAX {
                return Err(Status::bad_request(format!(
                    "more than {PARAMETERS_MAX} query parameters"
                )));
            }
            all.push((name, value));
        }
        Ok(Self(all))
    }

    /// The first value of a parameter; empty when it is missing.
    pub(crate) fn text(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// All values of a parameter, in their order.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.iter().filter(move |(key, _)| key == name);
        pairs.map(|(_, value)| value.as_str())
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1") || (self.has(name) && self.text(name).is_empty())
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => match text.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(Status::bad_request(format!(
                    "query parameter {name}: {text:?} is not a whole number of 0 or more"
                ))),
            },
        }
    }

    /// `dryRun`: everything but the write.
    pub(crate) fn dry_run(&self) -> Result<bool, Status> {
        match self.text("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Status::bad_request(format!(
                "dryRun: {other:?} is not known; use All"
            ))),
        }
    }
}

/// The name that a field selector asks for.
pub(crate) fn name_in_fields(selector: &str) -> Option<&str> {
    selector.split(',').find_map(|term| {
        let name = term.trim().strip_prefix("metadata.name=")?;
        Some(name.strip_prefix('=').unwrap_or(name))
    })
}

pub(crate) fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// The same text for a URL path segment or query value.
pub(crate) fn percent_encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// In which form objects are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Plain,
    /// `as=Table`, what `kubectl get` prints.
    Table,
    /// `as=PartialObjectMetadata` and `as=PartialObjectMetadataList`.
    Metadata,
}

/// The first form in the Accept header that we can answer.
pub(crate) fn accepted_form(headers: &HeaderMap) -> Result<Form, Status> {
    let accept = accept(headers);
    if accept.trim().is_empty() {
        return Ok(Form::Plain);
    }
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        if !matches!(parts.next(), Some("application/json" | "application/*" | "*/*")) {
            continue;
        }
        let parameters: Vec<&str> = parts.collect();
        let parameter = |name: &str| {
            parameters
                .iter()
                .find_map(|p| p.strip_prefix(name)?.strip_prefix('='))
                .unwrap_or_default()
        };
        let meta_v1 = parameter("g") == "meta.k8s.io" && parameter("v") == "v1";
        match parameter("as") {
            "" => return Ok(Form::Plain),
            "Table" if meta_v1 => return Ok(Form::Table),
            "PartialObjectMetadata" | "PartialObjectMetadataList" if meta_v1 => return Ok(Form::Metadata),
            _ => {}
        }
    }
    let accepted = ["application/json", "application/json;as=Table;v=v1;g=meta.k8s.io"];
    Err(Status::not_acceptable(&accepted))
}

/// All Accept headers as one list.
pub(crate) fn accept(headers: &HeaderMap) -> String {
    let all: Vec<&str> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    all.join(",")
}

/// The notation of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notation {
    Json,
    Yaml,
    Protobuf,
}

/// The media type without parameters, lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> String {
    let value = headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// How a body of this media type is written; none is taken as JSON.
pub(crate) fn notation(media_type: &str) -> Result<Notation, Status> {
    match media_type {
        "" | "application/json" | "text/json" => Ok(Notation::Json),
        "application/yaml" | "application/x-yaml" | "text/yaml" => Ok(Notation::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(Notation::Protobuf),
        other => {
            let accepted = [
                "application/json",
                "application/yaml",
                "application/vnd.kubernetes.protobuf",
            ];
            Err(Status::unsupported_media_type(other, &accepted))
        }
    }
}

/// Reads a body as a value.
pub(crate) fn parse_body(notation: Notation, body: &[u8]) -> Result<serde_json::Value, Status> {
    let broken =
        |detail: String| Status::new(Reason::BadRequest, format!("the body is not readable: {detail}"));
    if body.is_empty() {
        return Err(broken("it is empty".to_owned()));
    }
    match notation {
        Notation::Json => serde_json::from_slice(body).map_err(|error| broken(error.to_string())),
        Notation::Protobuf => crate::protobuf::decode(body).map_err(|error| match error {
            ProtobufError::UnknownKind(_) => Status::new(Reason::UnsupportedMediaType, error.to_string()),
            ProtobufError::NoMagic | ProtobufError::Broken | ProtobufError::TooDeep => {
                broken(error.to_string())
            }
        }),
        Notation::Yaml => {
            let text = std::str::from_utf8(body).map_err(|error| broken(error.to_string()))?;
            // As Go reads YAML: 0644 is octal, yes is true, a repeated key is a mistake.
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            serde_saphyr::from_str_with_options(text, options).map_err(|error| broken(error.to_string()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(path: &str, expected: Expect) {
        let text = match Route::parse(path) {
            Route::Resource(t) => format!(
                "{:?} {:?} ns={:?} {:?} {:?} {:?}{}",
                t.group,
                t.version,
                t.namespace,
                t.plural,
                t.name,
                t.subresource,
                if t.legacy_watch { " watch" } else { "" }
            ),
            other => format!("{other:?}"),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn paths() {
        check("/", expect!["Paths"]);
        check("/healthz/ping", expect!["Health"]);
        check("/api", expect!["CoreVersions"]);
        check("/apis/apps/", expect![[r#"Group("apps")"#]]);
        check("/api/v1", expect![[r#"Resources { group: "", version: "v1" }"#]]);
        check(
            "/openapi/v3/apis/apps/v1",
            expect![[r#"OpenApiV3("apis/apps/v1")"#]],
        );
        check("/api/v1/pods", expect![[r#""" "v1" ns="" "pods" "" """#]]);
        check(
            "/api/v1/namespaces/a/pods/web/log",
            expect![[r#""" "v1" ns="a" "pods" "web" "log""#]],
        );
        check(
            "/api/v1/namespaces/a",
            expect![[r#""" "v1" ns="" "namespaces" "a" """#]],
        );
        check(
            "/api/v1/namespaces/a/finalize",
            expect![[r#""" "v1" ns="" "namespaces" "a" "finalize""#]],
        );
        check(
            "/api/v1/watch/namespaces/a/pods",
            expect![[r#""" "v1" ns="a" "pods" "" "" watch"#]],
        );
        check(
            "/apis/apps/v1/namespaces/a/deployments/w%2Dx",
            expect![[r#""apps" "v1" ns="a" "deployments" "w-x" """#]],
        );
        check("/api/v1/nodes/e/proxy/logs", expect!["Unknown"]);
        check("/api/v1//x", expect!["Unknown"]);
        check("/api/v1/pods/%zz", expect!["Unknown"]);
        check(
            &format!("/api/v1/{}", "x".repeat(PATH_BYTES_MAX)),
            expect!["Unknown"],
        );
    }

    #[test]
    fn queries() {
        let query = Query::parse("labelSelector=app%3Dweb%2Ctier+in+(a)&watch=1&limit=x").unwrap();
        assert_eq!(query.text("labelSelector"), "app=web,tier in (a)");
        assert!(query.flag("watch") && !query.flag("follow") && query.has("limit"));
        assert!(query.number("limit").is_err());
        assert!(Query::parse("a=%").is_err());
        assert!(Query::parse(&"a=b&".repeat(PARAMETERS_MAX + 1)).is_err());
        assert_eq!(percent_encode("a b/é"), "a%20b%2F%C3%A9");
        assert_eq!(name_in_fields("a=b,metadata.name==web"), Some("web"));
        assert_eq!(name_in_fields("metadata.name!=web"), None);
    }

    #[test]
    fn forms() {
        let form = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().unwrap());
            accepted_form(&headers).ok()
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Some(Form::Table));
        assert_eq!(form("application/json"), Some(Form::Plain));
        assert_eq!(
            form("application/vnd.kubernetes.protobuf,application/json"),
            Some(Form::Plain)
        );
        assert_eq!(form("application/vnd.kubernetes.protobuf"), None);
        assert_eq!(
            form("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
            Some(Form::Metadata)
        );
        assert_eq!(form("*/*"), Some(Form::Plain));
    }

    #[test]
    fn bodies() {
        assert!(notation("application/cbor").is_err());
        let yaml = parse_body(Notation::Yaml, b"kind: Pod\nmode: 0644\n").unwrap();
        assert_eq!(yaml, serde_json::json!({"kind": "Pod", "mode": 420}));
        assert!(parse_body(Notation::Json, b"").is_err());
        assert!(parse_body(Notation::Json, "[".repeat(100_000).as_bytes()).is_err());
    }
}
