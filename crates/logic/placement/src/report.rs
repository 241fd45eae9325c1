//! What an edge's request means to the Kubernetes API.
//!
//! One table: the kind and the operation of a request decide the call. Who asks is told by the certificate; a name in
//! a message or in an object that differs from it is refused. Names are checked before they become part of a path.

use kedge_wire::{Body, NodeName, ObjectKey, ObjectKind, Operation, Request};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The namespace of node leases.
pub const LEASE_NAMESPACE: &str = "kube-node-lease";
/// The only signer an edge may ask: for the certificate with which it serves logs and exec.
pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Labels with this prefix are for administrators; a node that could set them could choose its own isolation.
const RESERVED_LABEL_PREFIX: &str = "node-restriction.kubernetes.io/";
/// The longest name Kubernetes allows.
const NAME_BYTES_MAX: usize = 253;

/// One API call. Paths are complete, for example `/api/v1/namespaces/default/pods/web/status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiCall {
    Get {
        path: String,
    },
    Create {
        path: String,
        body: Body,
    },
    Update {
        path: String,
        body: Body,
    },
    /// `application/strategic-merge-patch+json`.
    StrategicPatch {
        path: String,
        body: String,
    },
    /// `application/merge-patch+json`.
    MergePatch {
        path: String,
        body: String,
    },
    Delete {
        path: String,
        options: Body,
    },
}

/// How the result goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyShape {
    /// `{"Object":…, "Err":…}`.
    ObjectResponse,
    /// The object itself; an API error becomes operation `error` with its text.
    Raw,
    /// `"OK"`; an API error becomes operation `error`, except NotFound and Conflict on delete: the pod of that uid is
    /// gone, which is what was asked for.
    Ok,
    /// Nothing is sent back.
    None,
}

/// The decision about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Call {
        call: ApiCall,
        shape: ReplyShape,
    },
    /// What is asked for is so already; `"OK"` is sent back without a call.
    Settled,
    /// The node may not do this; the text says why.
    Forbidden(String),
    /// Not a request this version serves; the text says what is missing.
    Unsupported(String),
}

/// Judges a request of `node`: identity is the certificate's, never the message's. `may_read` is what
/// [`crate::index::Placement::may_read`] says about the request's key.
pub fn judge(node: &NodeName, request: &Request, may_read: bool) -> Verdict {
    let asked = Asked {
        node,
        request,
        key: &request.key,
        may_read,
    };
    asked.judge().unwrap_or_else(|refused| refused)
}

/// A refusal on the way to becoming the verdict.
type Judged = Result<Verdict, Verdict>;

struct Asked<'a> {
    node: &'a NodeName,
    request: &'a Request,
    key: &'a ObjectKey,
    may_read: bool,
}

impl Asked<'_> {
    fn judge(&self) -> Judged {
        self.check_name(&self.key.name)?;
        if let Some(namespace) = &self.key.namespace {
            self.check_name(namespace)?;
        }
        match self.key.kind {
            ObjectKind::Node => self.node_object(),
            ObjectKind::NodePatch => self.node_patch(),
            ObjectKind::Lease => self.lease(),
            ObjectKind::Pod => self.pod(),
            ObjectKind::PodPatch => self.pod_patch(),
            ObjectKind::ConfigMap => self.query("/api/v1", "configmaps", Scope::Namespaced),
            ObjectKind::Secret => self.query("/api/v1", "secrets", Scope::Namespaced),
            ObjectKind::PersistentVolumeClaim => {
                self.query("/api/v1", "persistentvolumeclaims", Scope::Namespaced)
            }
            ObjectKind::PersistentVolume => self.query("/api/v1", "persistentvolumes", Scope::Cluster),
            ObjectKind::VolumeAttachment => {
                self.query("/apis/storage.k8s.io/v1", "volumeattachments", Scope::Cluster)
            }
            ObjectKind::ServiceAccountToken => self.token(),
            ObjectKind::Event => self.event(),
            ObjectKind::CertificateSigningRequest => self.signing_request(),
            ObjectKind::NodeStatus => Err(self.unsupported("use nodepatch, as edges since v1.12 do")),
            ObjectKind::PodStatus => Err(self.unsupported("use podpatch, as edges since v1.12 do")),
            ObjectKind::ServiceAccountAccess
            | ObjectKind::Device
            | ObjectKind::DeviceModel
            | ObjectKind::Volume
            | ObjectKind::Other(_) => Err(self.unsupported("the cloud serves no such kind to edges")),
        }
    }

    fn node_object(&self) -> Judged {
        self.own("node")?;
        let path = format!("/api/v1/nodes/{}", self.key.name);
        match &self.request.route.operation {
            Operation::Insert => {
                let body = self.typed_body("v1", "Node")?;
                self.check_labels(&body)?;
                call(
                    ApiCall::Create {
                        path: "/api/v1/nodes".into(),
                        body,
                    },
                    ReplyShape::ObjectResponse,
                )
            }
            Operation::Update => {
                let body = self.typed_body("v1", "Node")?;
                self.check_labels(&body)?;
                let body = labels_and_annotations(&body).ok_or_else(|| self.malformed("it is not a Node"))?;
                call(ApiCall::MergePatch { path, body }, ReplyShape::Ok)
            }
            Operation::Query => call(ApiCall::Get { path }, ReplyShape::Raw),
            _other_operation => Err(self.no_such_operation()),
        }
    }

    fn node_patch(&self) -> Judged {
        self.own("node")?;
        self.expect(&Operation::Patch)?;
        let body = self.status_patch()?;
        let path = format!("/api/v1/nodes/{}/status", self.key.name);
        call(ApiCall::StrategicPatch { path, body }, ReplyShape::ObjectResponse)
    }

    fn lease(&self) -> Judged {
        if self.key.namespace.as_deref() != Some(LEASE_NAMESPACE) {
            return Err(self.forbidden(&format!("node leases are in namespace {LEASE_NAMESPACE}")));
        }
        self.own("lease")?;
        let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{LEASE_NAMESPACE}/leases");
        let path = format!("{leases}/{}", self.key.name);
        let call = match &self.request.route.operation {
            Operation::Insert => ApiCall::Create {
                path: leases,
                body: self.typed_body("coordination.k8s.io/v1", "Lease")?,
            },
            Operation::Update => ApiCall::Update {
                path,
                body: self.typed_body("coordination.k8s.io/v1", "Lease")?,
            },
            Operation::Query => ApiCall::Get { path },
            _other_operation => return Err(self.no_such_operation()),
        };
        Ok(Verdict::Call {
            call,
            shape: ReplyShape::ObjectResponse,
        })
    }

    fn pod(&self) -> Judged {
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace()?, self.key.name);
        match &self.request.route.operation {
            Operation::Delete => {
                let options = self.delete_options()?;
                if !self.may_read {
                    // The pod is gone, or was created anew elsewhere; an official edge repeats this until it hears OK.
                    return Ok(Verdict::Settled);
                }
                call(ApiCall::Delete { path, options }, ReplyShape::Ok)
            }
            Operation::Query => {
                self.placed()?;
                call(ApiCall::Get { path }, ReplyShape::Raw)
            }
            Operation::Insert => Err(self.unsupported("mirror pods of static pods are not registered yet")),
            _other_operation => Err(self.no_such_operation()),
        }
    }

    fn pod_patch(&self) -> Judged {
        self.expect(&Operation::Patch)?;
        self.placed()?;
        let body = self.status_patch()?;
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/status",
            self.namespace()?,
            self.key.name
        );
        call(ApiCall::StrategicPatch { path, body }, ReplyShape::ObjectResponse)
    }

    fn query(&self, api: &str, plural: &str, scope: Scope) -> Judged {
        self.expect(&Operation::Query)?;
        self.used()?;
        let path = match scope {
            Scope::Namespaced => format!(
                "{api}/namespaces/{}/{plural}/{}",
                self.namespace()?,
                self.key.name
            ),
            // The official edge writes the namespace `default` for some of these.
            Scope::Cluster => format!("{api}/{plural}/{}", self.key.name),
        };
        call(ApiCall::Get { path }, ReplyShape::Raw)
    }

    fn token(&self) -> Judged {
        self.expect(&Operation::Query)?;
        self.used()?;
        let body = self.typed_body("authentication.k8s.io/v1", "TokenRequest")?;
        let bound: TokenRequest = body
            .parse()
            .map_err(|problem| self.malformed(&problem.to_string()))?;
        if bound
            .spec
            .bound_object_ref
            .is_none_or(|bound| bound.kind != "Pod" || bound.uid.is_empty())
        {
            return Err(self.forbidden("a node gets only tokens that are bound to a pod and its uid"));
        }
        let (namespace, name) = (self.namespace()?, &self.key.name);
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        call(ApiCall::Create { path, body }, ReplyShape::Raw)
    }

    fn event(&self) -> Judged {
        let events = format!("/api/v1/namespaces/{}/events", self.namespace()?);
        let path = format!("{events}/{}", self.key.name);
        let call = match &self.request.route.operation {
            Operation::Insert => ApiCall::Create {
                path: events,
                body: self.own_event()?,
            },
            Operation::Update => ApiCall::Update {
                path,
                body: self.own_event()?,
            },
            Operation::Patch => {
                let patch: EventPatch = self
                    .request
                    .body
                    .parse()
                    .map_err(|problem| self.malformed(&problem.to_string()))?;
                self.check_event(patch.event.get())?;
                json_object(&patch.patch_data)
                    .ok_or_else(|| self.malformed("patchData is not a JSON object"))?;
                ApiCall::StrategicPatch {
                    path,
                    body: patch.patch_data,
                }
            }
            _other_operation => return Err(self.no_such_operation()),
        };
        Ok(Verdict::Call {
            call,
            shape: ReplyShape::None,
        })
    }

    fn signing_request(&self) -> Judged {
        let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
        match &self.request.route.operation {
            Operation::Insert => {
                let body = self.typed_body("certificates.k8s.io/v1", "CertificateSigningRequest")?;
                let wanted: SigningRequest = body
                    .parse()
                    .map_err(|problem| self.malformed(&problem.to_string()))?;
                if wanted.spec.signer_name != SERVING_SIGNER {
                    return Err(self.forbidden(&format!("a node may ask only the signer {SERVING_SIGNER}")));
                }
                call(
                    ApiCall::Create {
                        path: requests.into(),
                        body,
                    },
                    ReplyShape::ObjectResponse,
                )
            }
            Operation::Query => call(
                ApiCall::Get {
                    path: format!("{requests}/{}", self.key.name),
                },
                ReplyShape::Raw,
            ),
            _other_operation => Err(self.no_such_operation()),
        }
    }

    /// The body as an object that says what it is and carries the name of the key; edges leave `kind` out.
    fn typed_body(&self, api_version: &str, kind: &str) -> Result<Body, Verdict> {
        let text = self.request.body.content_data();
        let mut object = json_object(&text).ok_or_else(|| self.malformed("its body is not a JSON object"))?;
        let name = object
            .get("metadata")
            .and_then(|metadata| metadata.get("name"))
            .and_then(Value::as_str);
        let named = name.is_some_and(|name| name == self.key.name);
        // A token request has no name, it is a question about the service account.
        if !named && self.key.kind != ObjectKind::ServiceAccountToken {
            return Err(self.forbidden("its body names another object than its resource"));
        }
        let namespace = object
            .get("metadata")
            .and_then(|metadata| metadata.get("namespace"))
            .and_then(Value::as_str);
        if namespace.is_some_and(|namespace| {
            !namespace.is_empty() && Some(namespace) != self.key.namespace.as_deref()
        }) {
            return Err(self.forbidden("its body names another namespace than its resource"));
        }
        object.insert("apiVersion".into(), api_version.into());
        object.insert("kind".into(), kind.into());
        Body::from_value(&object).map_err(|problem| self.malformed(&problem.to_string()))
    }

    /// The patch inside the body, which is a string or an object; it may touch status and metadata only.
    fn status_patch(&self) -> Result<String, Verdict> {
        let text = self.request.body.content_data();
        let patch = json_object(&text).ok_or_else(|| self.malformed("its patch is not a JSON object"))?;
        let allowed = ["apiVersion", "kind", "metadata", "status"];
        if let Some(field) = patch.keys().find(|field| !allowed.contains(&field.as_str())) {
            return Err(self.forbidden(&format!("a status patch may not touch {field:?}")));
        }
        self.check_label_names(patch.get("metadata"))?;
        Ok(text)
    }

    fn check_labels(&self, body: &Body) -> Result<(), Verdict> {
        let object = json_object(body.json());
        self.check_label_names(object.as_ref().and_then(|object| object.get("metadata")))
    }

    fn check_label_names(&self, metadata: Option<&Value>) -> Result<(), Verdict> {
        let labels = metadata
            .and_then(|metadata| metadata.get("labels"))
            .and_then(Value::as_object);
        let reserved =
            labels.and_then(|labels| labels.keys().find(|name| name.starts_with(RESERVED_LABEL_PREFIX)));
        match reserved {
            Some(label) => Err(self.forbidden(&format!("label {label:?} is set by administrators only"))),
            None => Ok(()),
        }
    }

    /// Delete options that name the uid, so that a slow edge never deletes the next pod of the same name.
    fn delete_options(&self) -> Result<Body, Verdict> {
        // Old edges send the uid as plain text.
        if let Some(uid) = self
            .request
            .body
            .as_text()
            .filter(|text| json_object(text).is_none())
        {
            if uid.is_empty() {
                return Err(self.malformed("a pod is deleted by uid, and there is none"));
            }
            let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
            return Body::from_value(&options).map_err(|problem| self.malformed(&problem.to_string()));
        }
        let text = self.request.body.content_data();
        let mut options =
            json_object(&text).ok_or_else(|| self.malformed("its delete options are no JSON object"))?;
        let uid = options
            .get("preconditions")
            .and_then(|wanted| wanted.get("uid"))
            .and_then(Value::as_str);
        if uid.is_none_or(str::is_empty) {
            return Err(self.malformed("its delete options have no preconditions.uid"));
        }
        options.insert("apiVersion".into(), "v1".into());
        options.insert("kind".into(), "DeleteOptions".into());
        Body::from_value(&options).map_err(|problem| self.malformed(&problem.to_string()))
    }

    fn own_event(&self) -> Result<Body, Verdict> {
        let body = self.typed_body("v1", "Event")?;
        self.check_event(body.json())?;
        Ok(body)
    }

    fn check_event(&self, event: &str) -> Result<(), Verdict> {
        let event: EventView =
            serde_json::from_str(event).map_err(|problem| self.malformed(&problem.to_string()))?;
        let host = event
            .source
            .and_then(|source| source.host)
            .filter(|host| !host.is_empty());
        match host {
            Some(host) if host != self.node.as_str() => Err(self.forbidden("it is an event of another host")),
            Some(_) | None => Ok(()),
        }
    }

    fn check_name(&self, name: &str) -> Result<(), Verdict> {
        let fine = !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
            && !name.contains("..")
            && name != ".";
        if fine {
            Ok(())
        } else {
            Err(self.malformed("its resource has a name that no object can have"))
        }
    }

    fn namespace(&self) -> Result<&str, Verdict> {
        self.key
            .namespace
            .as_deref()
            .ok_or_else(|| self.malformed("its resource has no namespace"))
    }

    fn own(&self, what: &str) -> Result<(), Verdict> {
        if self.key.name == self.node.as_str() {
            return Ok(());
        }
        Err(self.forbidden(&format!("it is the {what} of another node")))
    }

    fn placed(&self) -> Result<(), Verdict> {
        if self.may_read {
            Ok(())
        } else {
            Err(self.forbidden("no such pod is placed on this node"))
        }
    }

    fn used(&self) -> Result<(), Verdict> {
        if self.may_read {
            Ok(())
        } else {
            Err(self.forbidden("no pod of this node uses it"))
        }
    }

    fn expect(&self, operation: &Operation) -> Result<(), Verdict> {
        if self.request.route.operation == *operation {
            Ok(())
        } else {
            Err(self.no_such_operation())
        }
    }

    fn forbidden(&self, why: &str) -> Verdict {
        Verdict::Forbidden(format!("{} may not {}: {why}", self.node, self.act()))
    }

    fn malformed(&self, why: &str) -> Verdict {
        Verdict::Unsupported(format!("{} asked to {}, but {why}", self.node, self.act()))
    }

    fn unsupported(&self, why: &str) -> Verdict {
        Verdict::Unsupported(format!(
            "{} asked to {}, which is not served: {why}",
            self.node,
            self.act()
        ))
    }

    fn no_such_operation(&self) -> Verdict {
        self.unsupported("this kind has no such operation")
    }

    /// The request in words, shortened: the names come from the peer.
    fn act(&self) -> String {
        format!("{} {}", self.request.route.operation, self.key)
            .chars()
            .take(300)
            .collect()
    }
}

#[derive(Clone, Copy)]
enum Scope {
    Namespaced,
    Cluster,
}

#[derive(Deserialize)]
struct EventPatch {
    event: Box<RawValue>,
    #[serde(rename = "patchData")]
    patch_data: String,
}

#[derive(Deserialize)]
struct EventView {
    #[serde(default)]
    source: Option<EventSource>,
}

#[derive(Deserialize)]
struct EventSource {
    #[serde(default)]
    host: Option<String>,
}

#[derive(Deserialize)]
struct TokenRequest {
    spec: TokenSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenSpec {
    #[serde(default)]
    bound_object_ref: Option<BoundObject>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct BoundObject {
    kind: String,
    uid: String,
}

#[derive(Deserialize)]
struct SigningRequest {
    spec: SigningSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SigningSpec {
    #[serde(default)]
    signer_name: String,
}

fn call(call: ApiCall, shape: ReplyShape) -> Judged {
    Ok(Verdict::Call { call, shape })
}

fn json_object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).ok()
}

/// A merge patch of what an edge may say about its node outside of status.
fn labels_and_annotations(node: &Body) -> Option<String> {
    let node = json_object(node.json())?;
    let metadata = node.get("metadata")?.as_object()?;
    let told = |name: &str| metadata.get(name).filter(|value| value.is_object()).cloned();
    let mut patch = Map::new();
    for name in ["labels", "annotations"] {
        if let Some(value) = told(name) {
            patch.insert(name.to_owned(), value);
        }
    }
    Some(json!({ "metadata": patch }).to_string())
}
