//! Seeing to the image of a container.

use super::{Hands, Start, chain, unless_over};
use crate::images::{self, Failure, Registries};
use crate::objects;
use kedge_api::{Container, Pod};
use kedge_containers::{Credentials, Image, Reference};
use kedge_pods::translate::References;
use kedge_pods::{EventReason, Refusal};
use std::time::Duration;
use tokio::time::Instant;

/// The runtime looks into its own list.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// When an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

impl Hands {
    /// Sees to the image as its pull policy says. Where the registry cannot be reached, the image that the node has
    /// will do: a device without a network must start its pods.
    pub(super) async fn image(&self, start: &Start<'_>, spec: &Container) -> Result<Image, Refusal> {
        let (pod, name) = (start.pod, spec.image.as_str());
        let reference: Reference = name.parse().map_err(|error| {
            let message =
                format!("Failed to apply default image tag \"{name}\": couldn't parse image name: {error}");
            self.tell(pod, Some(&spec.name), EventReason::InspectFailed, message.clone());
            Refusal::new("InvalidImageName", message)
        })?;
        let policy = policy(spec);
        let local = self.local_image(start, spec).await?;
        if policy != Policy::Always
            && let Some(image) = local
        {
            return Ok(self.present(pod, spec, image));
        }
        if policy == Policy::Never {
            let message = format!("Container image \"{name}\" is not present with pull policy of Never");
            self.tell(
                pod,
                Some(&spec.name),
                EventReason::ErrImageNeverPull,
                message.clone(),
            );
            return Err(Refusal::new("ErrImageNeverPull", message));
        }
        match self.pull(start, spec, &reference).await? {
            Ok(image) => Ok(image),
            Err(failure) => match local.filter(|_| !failure.refused) {
                Some(image) => {
                    tracing::warn!(
                        image = name,
                        why = failure.message,
                        "not pulled, the local image is used"
                    );
                    Ok(self.present(pod, spec, image))
                }
                None => {
                    let message = format!("Failed to pull image \"{name}\": {}", failure.message);
                    self.tell(pod, Some(&spec.name), EventReason::Failed, message);
                    Err(Refusal::new("ErrImagePull", failure.message))
                }
            },
        }
    }

    async fn local_image(&self, start: &Start<'_>, spec: &Container) -> Result<Option<Image>, Refusal> {
        let look = tokio::time::timeout(LOOK_MAX, self.runtime.image(&spec.image));
        let why = match unless_over(start.wait, look).await? {
            Ok(Ok(image)) => return Ok(image),
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("the runtime took longer than {}s", LOOK_MAX.as_secs()),
        };
        let message = format!("Failed to inspect image \"{}\": {why}", spec.image);
        self.tell(
            start.pod,
            Some(&spec.name),
            EventReason::InspectFailed,
            message.clone(),
        );
        Err(Refusal::new("ImageInspectError", message))
    }

    fn present(&self, pod: &Pod, spec: &Container, image: Image) -> Image {
        let message = format!("Container image \"{}\" already present on machine", spec.image);
        self.tell(pod, Some(&spec.name), EventReason::Pulled, message);
        image
    }

    async fn pull(
        &self,
        start: &Start<'_>,
        spec: &Container,
        reference: &Reference,
    ) -> Result<Result<Image, Failure>, Refusal> {
        let (pod, name) = (start.pod, spec.image.as_str());
        let credentials = unless_over(start.wait, self.credentials(start, reference)).await?;
        let pulling = format!("Pulling image \"{name}\"");
        self.tell(pod, Some(&spec.name), EventReason::Pulling, pulling);
        let began = Instant::now();
        let pulled = match unless_over(start.wait, self.images.pull(name, credentials)).await? {
            Ok(pulled) => pulled,
            Err(failure) => return Ok(Err(failure)),
        };
        let message = format!(
            "Successfully pulled image \"{name}\" in {} ({} including waiting). Image size: {} bytes.",
            images::duration_text(pulled.took),
            images::duration_text(began.elapsed()),
            pulled.image.size_bytes
        );
        self.tell(pod, Some(&spec.name), EventReason::Pulled, message);
        Ok(Ok(pulled.image))
    }

    /// The pod's own credentials come first, then the node's. (Those of the service account are among the pod's: the
    /// API copies them when it takes the pod.)
    async fn credentials(&self, start: &Start<'_>, reference: &Reference) -> Vec<Credentials> {
        let pod = start.pod;
        let mut own = Registries::default();
        let references = pull_references(pod);
        if !references.secrets.is_empty() {
            let found = objects::gather(start.snapshot, &self.cloud, pod.namespace(), &references).await;
            for secret in found.objects.secrets.values() {
                if let Err(why) = own.add_secret(secret) {
                    tracing::warn!(pod = %kedge_pods::PodKey::of(pod), why, "pull secret is not used");
                }
            }
            let missing = references.secrets.iter();
            let missing: Vec<&str> = missing
                .filter(|name| !found.objects.secrets.contains_key(*name))
                .map(String::as_str)
                .collect();
            if !missing.is_empty() {
                let message = format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                    missing.join(", ")
                );
                self.tell(pod, None, EventReason::FailedToRetrieveImagePullSecret, message);
            }
        }
        let mut credentials = own.lookup(&reference.repository);
        credentials.extend(images::node_registries(&self.root_dir).lookup(&reference.repository));
        credentials
    }
}

/// The secrets that hold the pod's credentials.
pub(crate) fn pull_references(pod: &Pod) -> References {
    let names = pod
        .spec
        .image_pull_secrets
        .iter()
        .map(|secret| secret.name.clone());
    References {
        secrets: names.filter(|name| !name.is_empty()).collect(),
        ..References::default()
    }
}

/// What the pod says; else `latest`, written or meant, is looked for each time.
fn policy(spec: &Container) -> Policy {
    match spec.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        Some(_) | None => {
            let name = spec.image.rsplit('/').next().unwrap_or(&spec.image);
            let tagged = name.contains(':') && !name.ends_with(":latest");
            if tagged || name.contains('@') {
                Policy::IfNotPresent
            } else {
                Policy::Always
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies() {
        let policy = |image: &str, policy_: Option<&str>| {
            policy(&Container {
                image: image.to_owned(),
                image_pull_policy: policy_.map(str::to_owned),
                ..Container::default()
            })
        };
        let table = [
            ("web", None, Policy::Always),
            ("web:latest", None, Policy::Always),
            ("reg:5000/web", None, Policy::Always),
            ("reg:5000/web:1", None, Policy::IfNotPresent),
            ("web@sha256:00", None, Policy::IfNotPresent),
            ("web:latest", Some("Never"), Policy::Never),
            ("web:1", Some("Always"), Policy::Always),
        ];
        for (image, given, wanted) in table {
            assert_eq!(policy(image, given), wanted, "{image}");
        }
    }
}
