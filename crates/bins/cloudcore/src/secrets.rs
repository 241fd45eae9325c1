//! Secrets in the namespace `kubeedge`, changed only as they were read: two replicas that write at once never overwrite
//! each other unseen.

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use kedge_cluster::{ApiError, Cluster};
use kedge_wire::Body;
use serde_json::{Map, Value, json};

pub(crate) const NAMESPACE: &str = "kubeedge";
/// How often a change is tried anew because somebody else changed the same secret in between. Each time somebody else
/// has succeeded, so more tries mean that something fights over it.
pub(crate) const TRIES_MAX: usize = 8;
/// Secrets in one page of a list, and pages in one listing.
const PAGE: usize = 500;
const PAGES_MAX: usize = 20;

/// The hand on these secrets.
#[derive(Debug, Clone)]
pub(crate) struct Secrets {
    cluster: Cluster,
}

/// A secret as it was read.
#[derive(Debug, Clone)]
pub(crate) struct Secret {
    object: Value,
}

/// Names and values to write.
pub(crate) type Data<'a> = &'a [(&'a str, &'a [u8])];

impl Secret {
    pub(crate) fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// The bytes under a key; `None` when the key is not there.
    pub(crate) fn bytes(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let Some(text) = self.object["data"][key].as_str() else {
            return Ok(None);
        };
        let bytes = BASE64
            .decode(text)
            .with_context(|| format!("{key} of secret {NAMESPACE}/{} is not base64", self.name()))?;
        Ok(Some(bytes))
    }

    /// The bytes under a key that must be there.
    pub(crate) fn needed(&self, key: &str) -> Result<Vec<u8>> {
        self.bytes(key)?
            .with_context(|| format!("secret {NAMESPACE}/{} has no {key}", self.name()))
    }

    /// The text under a key, if it is one.
    pub(crate) fn text(&self, key: &str) -> Option<String> {
        String::from_utf8(self.bytes(key).ok()??).ok()
    }

    /// Whether it holds exactly these values.
    fn holds(&self, data: Data<'_>) -> bool {
        let held = |(key, value): &(&str, &[u8])| self.bytes(key).ok().flatten().as_deref() == Some(*value);
        data.iter().all(held)
    }
}

impl Secrets {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster }
    }

    /// Makes the namespace unless it is there.
    pub(crate) async fn ensure_namespace(&self) -> Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}");
        match self.cluster.get(&path).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error).context(format!("read namespace {NAMESPACE}")),
        }
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        let made = self
            .cluster
            .create("/api/v1/namespaces", &Body::from_value(&namespace)?)
            .await;
        unless_taken(made)
            .map(|_| ())
            .context(format!("create namespace {NAMESPACE}"))
    }

    pub(crate) async fn read(&self, name: &str) -> Result<Option<Secret>> {
        match self.cluster.get(&path(name)).await {
            Ok(object) => Ok(Some(Secret {
                object: object.parse::<Value>()?,
            })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).context(format!("read secret {NAMESPACE}/{name}")),
        }
    }

    /// Makes a secret; `false` when one of this name is there already.
    pub(crate) async fn create(
        &self,
        name: &str,
        label: Option<(&str, &str)>,
        data: Data<'_>,
    ) -> Result<bool> {
        let mut metadata = json!({"name": name, "namespace": NAMESPACE});
        if let Some((key, value)) = label {
            metadata["labels"] = json!({ key: value });
        }
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": metadata, "data": encode(data)});
        let made = self
            .cluster
            .create(&collection(), &Body::from_value(&secret)?)
            .await;
        unless_taken(made).context(format!("create secret {NAMESPACE}/{name}"))
    }

    /// Changes values of a secret; `false` when it is not any more as it was read.
    pub(crate) async fn replace(&self, secret: &Secret, data: Data<'_>) -> Result<bool> {
        let mut object = secret.object.clone();
        if object["metadata"]["resourceVersion"]
            .as_str()
            .is_none_or(str::is_empty)
        {
            bail!(
                "secret {NAMESPACE}/{} has no resource version to hold on to",
                secret.name()
            );
        }
        if !object["data"].is_object() {
            object["data"] = json!({});
        }
        for (key, value) in encode(data) {
            object["data"][key] = value;
        }
        let path = path(secret.name());
        match self.cluster.update(&path, &Body::from_value(&object)?).await {
            Err(error) if error.is_not_found() => Ok(false),
            replaced => {
                unless_taken(replaced).context(format!("replace secret {NAMESPACE}/{}", secret.name()))
            }
        }
    }

    /// Makes the secret hold these values, whatever it held.
    pub(crate) async fn put(&self, name: &str, data: Data<'_>) -> Result<()> {
        for _ in 0..TRIES_MAX {
            let done = match self.read(name).await? {
                Some(secret) if secret.holds(data) => true,
                Some(secret) => self.replace(&secret, data).await?,
                None => self.create(name, None, data).await?,
            };
            if done {
                return Ok(());
            }
        }
        Err(contended(name))
    }

    /// Every secret with a label, up to a generous limit.
    pub(crate) async fn labelled(&self, (key, value): (&str, &str)) -> Result<Vec<Secret>> {
        let mut found = Vec::new();
        let mut more = String::new();
        for _ in 0..PAGES_MAX {
            let path = format!(
                "{}?labelSelector={key}%3D{value}&limit={PAGE}{more}",
                collection()
            );
            let page = self.cluster.get(&path).await;
            let mut page: Value = page
                .with_context(|| format!("list secrets {key}={value} in {NAMESPACE}"))?
                .parse()?;
            let next = page["metadata"]["continue"].as_str().unwrap_or_default();
            more = format!("&continue={next}");
            let last = next.is_empty();
            if let Value::Array(items) = page["items"].take() {
                found.extend(items.into_iter().map(|object| Secret { object }));
            }
            if last {
                break;
            }
        }
        Ok(found)
    }

    /// Deletes a secret unless it changed since it was read.
    pub(crate) async fn delete(&self, secret: &Secret) -> Result<()> {
        let metadata = &secret.object["metadata"];
        let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "preconditions":
            {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}});
        match self
            .cluster
            .delete(&path(secret.name()), &Body::from_value(&options)?)
            .await
        {
            Err(error) if error.is_not_found() => Ok(()),
            deleted => unless_taken(deleted)
                .map(|_| ())
                .context(format!("delete secret {NAMESPACE}/{}", secret.name())),
        }
    }
}

/// Somebody else writes this secret all the time.
pub(crate) fn contended(name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "secret {NAMESPACE}/{name} was changed by others {TRIES_MAX} times in a row; who else writes it?"
    )
}

/// `false` for 409: the name is taken, or the object is not the one that was read.
fn unless_taken(outcome: Result<Body, ApiError>) -> Result<bool, ApiError> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}

fn collection() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets")
}

fn path(name: &str) -> String {
    format!("{}/{name}", collection())
}

fn encode(data: Data<'_>) -> Map<String, Value> {
    data.iter()
        .map(|(key, bytes)| ((*key).to_owned(), Value::String(BASE64.encode(bytes))))
        .collect()
}
