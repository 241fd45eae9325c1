//! Images of a runtime.

use super::Cri;
use super::calls::{Act, Failure, Limit, reason};
use crate::Error;
use kedge_containers::{Credentials, Image, ImageUsage};
use kedge_grpc::cri;
use kedge_grpc::tonic::{Code, Status};

impl Cri {
    pub(super) async fn image_status(&self, reference: &str) -> Result<Option<Image>, Error> {
        let act = Act::question("look at image", reference);
        let request = cri::ImageStatusRequest {
            image: Some(spec(reference)),
            verbose: false,
        };
        let mut client = self.calls.images();
        match self.calls.wait(act, client.image_status(request)).await {
            Ok(answer) => Ok(answer.image.map(image)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure.of(act)),
        }
    }

    pub(super) async fn list_images(&self) -> Result<Vec<Image>, Error> {
        let act = Act::question("list", "images");
        let mut client = self.calls.images();
        let call = client.list_images(cri::ListImagesRequest { filter: None });
        let listed = self
            .calls
            .wait(act, call)
            .await
            .map_err(|failure| failure.of(act))?;
        Ok(listed.images.into_iter().map(image).collect())
    }

    pub(super) async fn image_file_system(&self) -> Result<ImageUsage, Error> {
        let act = Act::question("ask for the size of", "images");
        let mut client = self.calls.images();
        let call = client.image_fs_info(cri::ImageFsInfoRequest {});
        let told = self
            .calls
            .wait(act, call)
            .await
            .map_err(|failure| failure.of(act))?;
        let usage = told.image_filesystems.into_iter().next().ok_or_else(|| {
            Error::failed(act.act, act.object, "the runtime names no file system of images")
        })?;
        let value = |value: Option<cri::UInt64Value>| value.map_or(0, |value| value.value);
        Ok(ImageUsage {
            mount_point: usage.fs_id.map(|id| id.mountpoint.into()).unwrap_or_default(),
            bytes: value(usage.used_bytes),
            inodes: value(usage.inodes_used),
        })
    }

    /// The credentials in turn; a registry that knows none of them has said why to each.
    pub(super) async fn pull(&self, reference: &str, credentials: &[Credentials]) -> Result<Image, Error> {
        let anonymous = [Credentials::default()];
        let tries = if credentials.is_empty() {
            &anonymous[..]
        } else {
            credentials
        };
        let mut refused = None;
        for credentials in tries {
            match self.pull_as(reference, credentials).await {
                Ok(pulled) => return self.pulled(reference, &pulled).await,
                Err(Failure::Error(error)) => return Err(error),
                Err(Failure::Refused(status)) => {
                    let trouble = Trouble::of(&status);
                    let error = explain(reference, trouble, &status);
                    if trouble != Trouble::Unauthorized {
                        return Err(error);
                    }
                    refused = Some(error);
                }
            }
        }
        Err(refused.expect("one try at least was made, and each that fails returns or is noted"))
    }

    async fn pull_as(&self, reference: &str, credentials: &Credentials) -> Result<String, Failure> {
        let act = Act {
            act: "pull image",
            object: reference,
            limit: Limit::Pull,
        };
        let known = *credentials != Credentials::default();
        let request = cri::PullImageRequest {
            image: Some(spec(reference)),
            auth: known.then(|| authentication(credentials)),
            sandbox_config: None,
        };
        let mut client = self.calls.images();
        // On the heap: the configuration of a sandbox could be in it.
        let call = Box::pin(client.pull_image(request));
        let answer = self.calls.wait(act, call).await?;
        Ok(answer.image_ref)
    }

    /// What was pulled: by its name, or by what the runtime calls it where the name is not kept.
    async fn pulled(&self, reference: &str, runtimes_name: &str) -> Result<Image, Error> {
        if let Some(image) = self.image_status(reference).await? {
            return Ok(image);
        }
        let found = self.image_status(runtimes_name).await?;
        found.ok_or_else(|| {
            Error::failed(
                "pull image",
                reference,
                "the runtime pulled it, but does not show it",
            )
        })
    }

    /// The interface calls the removal of what is not there a success; we say so.
    pub(super) async fn remove_one_image(&self, reference: &str) -> Result<(), Error> {
        if self.image_status(reference).await?.is_none() {
            return Err(Error::ImageNotFound {
                image: reference.to_owned(),
            });
        }
        let act = Act::order("remove image", reference);
        let request = cri::RemoveImageRequest {
            image: Some(spec(reference)),
        };
        let mut client = self.calls.images();
        let removed = self.calls.wait(act, client.remove_image(request)).await;
        removed.map(drop).map_err(|failure| failure.of(act))
    }
}

fn spec(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: reference.to_owned(),
        ..cri::ImageSpec::default()
    }
}

/// Without the server: runtimes compare it with the registry's host as they call it, and the caller has chosen the
/// credentials for this very image.
fn authentication(credentials: &Credentials) -> cri::AuthConfig {
    cri::AuthConfig {
        username: credentials.username.clone(),
        password: credentials.password.clone(),
        auth: String::new(),
        server_address: String::new(),
        identity_token: credentials.identity_token.clone(),
        registry_token: credentials.registry_token.clone(),
    }
}

fn image(image: cri::Image) -> Image {
    Image {
        id: image.id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        size_bytes: image.size,
        user: image.uid.and_then(|uid| u32::try_from(uid.value).ok()),
        username: Some(image.username).filter(|name| !name.is_empty()),
        pinned: image.pinned,
    }
}

/// Why a registry's image did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    NotFound,
    Platform,
    Unauthorized,
    RegistryAway,
    DiskFull,
    BadName,
    Other,
}

impl Trouble {
    /// Runtimes tell it in words; these are those of containerd, CRI-O and the registries behind them.
    const WORDS: [(Self, &'static [&'static str]); 6] = [
        (
            Self::BadName,
            &[
                "invalid reference format",
                "parse image name",
                "could not parse reference",
                "repository name must be lowercase",
            ],
        ),
        (
            Self::Platform,
            &[
                "no match for platform",
                "no image found in manifest list for architecture",
                "no image found in image index for architecture",
            ],
        ),
        (
            Self::Unauthorized,
            &[
                "unauthorized",
                "authorization failed",
                "authentication required",
                "insufficient_scope",
                "access denied",
                "requested access to the resource is denied",
                "403 forbidden",
                "denied:",
            ],
        ),
        (Self::DiskFull, &["no space left on device"]),
        (
            Self::RegistryAway,
            &[
                "no such host",
                "connection refused",
                "connection reset",
                "i/o timeout",
                "network is unreachable",
                "no route to host",
                "tls handshake timeout",
                "deadline exceeded",
                "temporary failure in name resolution",
                "server misbehaving",
                "unexpected eof",
                "503 service unavailable",
                "502 bad gateway",
                "504 gateway",
                "registryunavailable",
            ],
        ),
        (
            Self::NotFound,
            &[
                "not found",
                "manifest unknown",
                "name unknown",
                "status code 404",
                "status: 404",
                "statuscode: 404",
            ],
        ),
    ];

    fn of(status: &Status) -> Self {
        let words = status.message().to_lowercase();
        let by_words = Self::WORDS
            .iter()
            .find(|(_, known)| known.iter().any(|known| words.contains(known)));
        match (by_words, status.code()) {
            (Some((trouble, _)), _) => *trouble,
            (None, Code::NotFound) => Self::NotFound,
            (None, Code::Unauthenticated | Code::PermissionDenied) => Self::Unauthorized,
            (None, _) => Self::Other,
        }
    }

    fn sentence(self) -> &'static str {
        match self {
            Self::NotFound => "the registry has no such image",
            Self::Platform => "the image is not made for this machine's platform",
            Self::Unauthorized => "the registry does not let this node have the image",
            Self::RegistryAway => "the registry cannot be reached",
            Self::DiskFull => "the disk of the images is full",
            Self::BadName => "the image's name is not valid",
            Self::Other => "the runtime could not pull it",
        }
    }
}

fn explain(reference: &str, trouble: Trouble, status: &Status) -> Error {
    let reason = format!("{}: {}", trouble.sentence(), reason(status));
    match trouble {
        Trouble::Platform | Trouble::BadName => Error::BadImage {
            image: reference.to_owned(),
            reason,
        },
        Trouble::NotFound
        | Trouble::Unauthorized
        | Trouble::RegistryAway
        | Trouble::DiskFull
        | Trouble::Other => Error::failed("pull image", reference, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn troubles_are_told_by_the_runtimes_words() {
        let table = [
            (
                Code::NotFound,
                "failed to pull and unpack image \"r.example/a:1\": failed to resolve reference \"r.example/a:1\": r.example/a:1: not found",
                Trouble::NotFound,
            ),
            (
                Code::Unknown,
                "failed to pull and unpack image \"r.example/a:1\": no match for platform in manifest: not found",
                Trouble::Platform,
            ),
            (
                Code::Unknown,
                "failed to authorize: failed to fetch anonymous token: unexpected status: 401 Unauthorized",
                Trouble::Unauthorized,
            ),
            (
                Code::Unknown,
                "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope: authorization failed",
                Trouble::Unauthorized,
            ),
            (
                Code::Unknown,
                "failed to do request: Head \"http://127.0.0.1:5/v2/a/manifests/1\": dial tcp 127.0.0.1:5: connect: connection refused",
                Trouble::RegistryAway,
            ),
            (
                Code::Unknown,
                "dial tcp: lookup r.example: no such host",
                Trouble::RegistryAway,
            ),
            (
                Code::Unknown,
                "write /var/lib/containerd/x: no space left on device",
                Trouble::DiskFull,
            ),
            (
                Code::InvalidArgument,
                "failed to parse image name \"A B\"",
                Trouble::BadName,
            ),
            (
                Code::Unknown,
                "unable to pull image or OCI artifact: pull image err: initializing source docker://r.example/a:1: reading manifest 1 in r.example/a: StatusCode: 404, \"\"",
                Trouble::NotFound,
            ),
            (
                Code::Unknown,
                "choosing an image from manifest list docker://r.example/a:1: no image found in image index for architecture \"amd64\", variant \"\", OS \"linux\"",
                Trouble::Platform,
            ),
            (
                Code::Unknown,
                "cannot parse input: \"A/B\": repository name must be lowercase",
                Trouble::BadName,
            ),
            (Code::PermissionDenied, "no", Trouble::Unauthorized),
            (Code::Internal, "the moon is full", Trouble::Other),
        ];
        for (code, message, wanted) in table {
            assert_eq!(Trouble::of(&Status::new(code, message)), wanted, "{message}");
        }
    }
}
