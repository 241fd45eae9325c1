//! What an edge's request means to the Kubernetes API.
//!
//! One table: the kind and the operation of a request decide the call. Who asks is told by the certificate; a name in
//! a message or in an object that differs from it is refused. Names are checked before they become part of a path.

mod bodies;
mod covers;
mod owners;

use crate::conditions::Conditions;
use crate::index::{Question, Standing};
use bodies::{
    BoundObject, EventPatch, EventView, MirrorPod, PlacedPod, StatusPatch, TokenRequest, json_object,
    labels_and_annotations,
};
pub use covers::covers;
use kedge_wire::{Body, NodeName, ObjectKey, ObjectKind, Operation, Request, Status, Uid};
pub use owners::{Owner, Ownership};
use serde_json::{Map, Value, json};

/// Labels with this prefix are for administrators; a node that could set them could choose its own isolation.
const RESERVED_LABEL_PREFIX: &str = "node-restriction.kubernetes.io/";
/// Metadata that a status patch of a pod may name, to say which pod it means.
const POD_IDENTITY: [&str; 5] = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];
const NOT_SERVED: &str = "the cloud serves no such kind to edges";
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
    /// As `Call`, but what is read says itself whose it is: it goes to the node only when [`Owner::judge`] agrees.
    CallThenCheck {
        call: ApiCall,
        shape: ReplyShape,
        owner: Owner,
    },
    /// What is asked for is so already; `"OK"` is sent back without a call.
    Settled,
    /// The answer is known without a call.
    Refused(Status),
    /// The node may not do this; the text says why.
    Forbidden(String),
    /// Not a request this version serves; the text says what is missing.
    Unsupported(String),
}

/// What the index must say before the request can be judged.
pub fn question(request: &Request) -> Question {
    let key = || Question::Key(request.key.clone());
    if matches!(request.key.kind, ObjectKind::PodPatch | ObjectKind::NodePatch) {
        let patch = request.body.content_data();
        let patch: Option<StatusPatch<'_>> = serde_json::from_str(&patch).ok();
        return Question::Report {
            key: request.key.clone(),
            conditions: Conditions::of(patch.and_then(|patch| patch.status)),
        };
    }
    if request.key.kind != ObjectKind::ServiceAccountToken {
        return key();
    }
    let bound = request.body.parse::<TokenRequest>().ok();
    let bound = bound
        .and_then(|asked| asked.spec.bound_object_ref)
        .filter(BoundObject::is_pod);
    let Some((bound, namespace)) = bound.zip(request.key.namespace.as_deref()) else {
        // Judged as malformed or forbidden, whatever the index says.
        return key();
    };
    Question::Token {
        account: request.key.name.clone(),
        pod: ObjectKey::namespaced(ObjectKind::Pod, namespace, &bound.name),
        uid: bound.uid,
    }
}

/// Judges a request of `node`: identity is the certificate's, never the message's. `standing` is what
/// [`crate::index::Placement::standing`] says to [`question`]. Leases have a part of their own, [`crate::leases`], and so
/// have certificate requests, [`crate::certificates`]: a body that must be decoded is not judged here.
pub fn judge(node: &NodeName, request: &Request, standing: &Standing) -> Verdict {
    let asked = Asked {
        node,
        request,
        key: &request.key,
        standing,
    };
    asked.judge().unwrap_or_else(|refused| refused)
}

/// A pod of which a node reports although it is not placed there, with the uid that the node says.
pub fn unplaced_pod(request: &Request, standing: &Standing) -> Option<(ObjectKey, Uid)> {
    if request.key.kind != ObjectKind::PodPatch || standing.uid.is_some() {
        return None;
    }
    let patch = json_object(&request.body.content_data())?;
    let uid = patch.get("metadata")?.get("uid")?.as_str()?;
    Some((request.key.with_kind(ObjectKind::Pod), Uid::new(uid)))
}

/// Whether the pod that the API has is of this uid and on this node.
pub fn is_placed(pod: &Body, node: &NodeName, uid: &Uid) -> bool {
    let placed: Option<PlacedPod> = pod.parse().ok();
    placed.is_some_and(|pod| pod.is(node, uid))
}

/// Whether a key is fit to become part of a path.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && !name.contains("..")
        && name != "."
}

/// A refusal on the way to becoming the verdict.
type Judged = Result<Verdict, Verdict>;

struct Asked<'a> {
    node: &'a NodeName,
    request: &'a Request,
    key: &'a ObjectKey,
    standing: &'a Standing,
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
            ObjectKind::Pod => self.pod(),
            ObjectKind::PodPatch => self.pod_patch(),
            ObjectKind::ConfigMap => self.query("configmaps"),
            ObjectKind::Secret => self.query("secrets"),
            ObjectKind::PersistentVolumeClaim => self.query("persistentvolumeclaims"),
            ObjectKind::PersistentVolume => self.query_owned("/api/v1/persistentvolumes", Owner::Claim),
            ObjectKind::VolumeAttachment => {
                self.query_owned("/apis/storage.k8s.io/v1/volumeattachments", Owner::Node)
            }
            ObjectKind::ServiceAccountToken => self.token(),
            ObjectKind::Event => self.event(),
            ObjectKind::NodeStatus => Err(self.unsupported("use nodepatch, as edges since v1.12 do")),
            ObjectKind::PodStatus => Err(self.unsupported("use podpatch, as edges since v1.12 do")),
            ObjectKind::Lease | ObjectKind::CertificateSigningRequest => {
                Err(self.unsupported("it is judged in another place"))
            }
            ObjectKind::Other(ref kind) => self.other(kind),
            ObjectKind::ServiceAccountAccess
            | ObjectKind::Device
            | ObjectKind::DeviceModel
            | ObjectKind::Volume => Err(self.unsupported(NOT_SERVED)),
        }
    }

    /// Kinds that the wire's list does not name, because only our own edges ask for them.
    fn other(&self, kind: &str) -> Judged {
        match kind {
            "runtimeclass" => self.query_open("/apis/node.k8s.io/v1/runtimeclasses"),
            "csidriver" => self.query_open("/apis/storage.k8s.io/v1/csidrivers"),
            "csinode" => self.csi_node(),
            _any_other => Err(self.unsupported(NOT_SERVED)),
        }
    }

    /// A fact of the cluster that every node may know.
    fn query_open(&self, collection: &str) -> Judged {
        self.expect(&Operation::Query)?;
        let path = format!("{collection}/{}", self.key.name);
        call(ApiCall::Get { path }, ReplyShape::Raw)
    }

    /// What the CSI drivers on the node say of it.
    fn csi_node(&self) -> Judged {
        self.own("CSINode")?;
        let collection = "/apis/storage.k8s.io/v1/csinodes";
        let path = format!("{collection}/{}", self.key.name);
        match &self.request.route.operation {
            Operation::Query => call(ApiCall::Get { path }, ReplyShape::Raw),
            Operation::Insert => {
                let (path, body) = (
                    collection.to_owned(),
                    self.typed_body("storage.k8s.io/v1", "CSINode")?,
                );
                call(ApiCall::Create { path, body }, ReplyShape::ObjectResponse)
            }
            Operation::Patch => {
                let body = self.request.body.content_data();
                let patch =
                    json_object(&body).ok_or_else(|| self.malformed("its patch is not a JSON object"))?;
                if let Some(field) = patch.keys().find(|field| *field != "spec") {
                    return Err(self.forbidden(&format!("its patch may not touch {field:?}")));
                }
                call(ApiCall::MergePatch { path, body }, ReplyShape::ObjectResponse)
            }
            _other_operation => Err(self.no_such_operation()),
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
        self.status_patch()?;
        let body = self.request.body.content_data();
        let path = format!("/api/v1/nodes/{}/status", self.key.name);
        call(ApiCall::StrategicPatch { path, body }, ReplyShape::ObjectResponse)
    }

    fn pod(&self) -> Judged {
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace()?, self.key.name);
        match &self.request.route.operation {
            Operation::Delete => {
                let options = self.delete_options()?;
                if !self.standing.allowed {
                    // The pod is gone, or was created anew elsewhere; an official edge repeats this until it hears OK.
                    return Ok(Verdict::Settled);
                }
                call(ApiCall::Delete { path, options }, ReplyShape::Ok)
            }
            Operation::Query if self.standing.allowed => call(ApiCall::Get { path }, ReplyShape::Raw),
            Operation::Query => Err(self.forbidden("no such pod is placed on this node")),
            Operation::Insert => self.mirror_pod(),
            _other_operation => Err(self.no_such_operation()),
        }
    }

    /// The API's picture of a pod that the node runs from a file. As for a kubelet, it may refer to nothing: else a node
    /// could make itself the user of any secret.
    fn mirror_pod(&self) -> Judged {
        let body = self.typed_body("v1", "Pod")?;
        let pod: MirrorPod = body
            .parse()
            .map_err(|problem| self.malformed(&problem.to_string()))?;
        pod.check(self.node).map_err(|why| self.forbidden(why))?;
        let path = format!("/api/v1/namespaces/{}/pods", self.namespace()?);
        call(ApiCall::Create { path, body }, ReplyShape::ObjectResponse)
    }

    fn pod_patch(&self) -> Judged {
        self.expect(&Operation::Patch)?;
        let mut patch = self.status_patch()?;
        self.check_pod_metadata(&patch)?;
        let Some(placed) = &self.standing.uid else {
            // To the node it is gone, whether it is elsewhere now or nowhere.
            return Err(Verdict::Refused(Status::not_found("pods", &self.key.name)));
        };
        let told = patch
            .get("metadata")
            .and_then(|metadata| metadata.get("uid"))
            .and_then(Value::as_str);
        if told.is_some_and(|uid| uid != placed.as_str()) {
            let why = format!("the pod of this name has uid {placed} now");
            return Err(Verdict::Refused(Status::conflict("pods", &self.key.name, &why)));
        }
        let body = if told.is_some() {
            self.request.body.content_data()
        } else {
            // So that the API refuses it should the pod be replaced this moment.
            let metadata = patch.entry("metadata").or_insert_with(|| json!({}));
            let metadata = metadata
                .as_object_mut()
                .ok_or_else(|| self.malformed("the metadata of its patch is not an object"))?;
            metadata.insert("uid".to_owned(), placed.as_str().into());
            Value::Object(patch).to_string()
        };
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/status",
            self.namespace()?,
            self.key.name
        );
        call(ApiCall::StrategicPatch { path, body }, ReplyShape::ObjectResponse)
    }

    /// As for a kubelet: labels decide which services a pod is behind, so they are not the node's to change.
    fn check_pod_metadata(&self, patch: &Map<String, Value>) -> Result<(), Verdict> {
        let metadata = patch.get("metadata").and_then(Value::as_object);
        let mut fields = metadata.into_iter().flat_map(Map::keys);
        match fields.find(|field| !POD_IDENTITY.contains(&field.as_str())) {
            Some(field) => {
                Err(self.forbidden(&format!("a pod's status patch may not touch metadata.{field}")))
            }
            None => Ok(()),
        }
    }

    fn query(&self, plural: &str) -> Judged {
        self.expect(&Operation::Query)?;
        if !self.standing.allowed {
            return Err(self.forbidden("no pod of this node uses it"));
        }
        let (namespace, name) = (self.namespace()?, &self.key.name);
        let path = format!("/api/v1/namespaces/{namespace}/{plural}/{name}");
        call(ApiCall::Get { path }, ReplyShape::Raw)
    }

    /// An object without a namespace, whatever namespace the edge writes: the official one writes `default` for some.
    fn query_owned(&self, collection: &str, owner: Owner) -> Judged {
        self.expect(&Operation::Query)?;
        let path = format!("{collection}/{}", self.key.name);
        Ok(Verdict::CallThenCheck {
            call: ApiCall::Get { path },
            shape: ReplyShape::Raw,
            owner,
        })
    }

    fn token(&self) -> Judged {
        self.expect(&Operation::Query)?;
        let body = self.typed_body("authentication.k8s.io/v1", "TokenRequest")?;
        let asked: TokenRequest = body
            .parse()
            .map_err(|problem| self.malformed(&problem.to_string()))?;
        if !asked
            .spec
            .bound_object_ref
            .as_ref()
            .is_some_and(BoundObject::is_pod)
        {
            return Err(self.forbidden("a node gets only tokens that are bound to a pod and its uid"));
        }
        if !self.standing.allowed {
            return Err(self.forbidden("no pod of this name, uid and service account is placed on this node"));
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
    fn status_patch(&self) -> Result<Map<String, Value>, Verdict> {
        let text = self.request.body.content_data();
        let patch = json_object(&text).ok_or_else(|| self.malformed("its patch is not a JSON object"))?;
        let allowed = ["apiVersion", "kind", "metadata", "status"];
        if let Some(field) = patch.keys().find(|field| !allowed.contains(&field.as_str())) {
            return Err(self.forbidden(&format!("a status patch may not touch {field:?}")));
        }
        self.check_label_names(patch.get("metadata"))?;
        Ok(patch)
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
        let host = event.host();
        match host {
            Some(host) if host != self.node.as_str() => Err(self.forbidden("it is an event of another host")),
            Some(_) | None => Ok(()),
        }
    }

    fn check_name(&self, name: &str) -> Result<(), Verdict> {
        if is_plain_name(name) {
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

fn call(call: ApiCall, shape: ReplyShape) -> Judged {
    Ok(Verdict::Call { call, shape })
}
