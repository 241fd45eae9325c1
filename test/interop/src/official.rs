//! Where the official programs are, or why a story is left out.

use std::path::{Path, PathBuf};

/// Names the directory.
const VARIABLE: &str = "KEDGE_OFFICIAL";

/// What a story needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The official CloudCore and the definitions of its custom resources.
    CloudCore,
    /// The official EdgeCore and a container runtime for it.
    EdgeCore,
    /// A Kubernetes API that is not ours.
    Kubernetes,
}

impl Need {
    /// Files below the directory, and programs of the system.
    const fn parts(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::CloudCore => (&["cloudcore", "crds"], &["/usr/bin/kubectl"]),
            Self::EdgeCore => (
                &["edgecore"],
                &[
                    "/usr/bin/kubectl",
                    "/usr/bin/containerd",
                    "/usr/bin/ctr",
                    "/usr/sbin/runc",
                    "/usr/lib/cni/bridge",
                    "/usr/bin/busybox",
                ],
            ),
            Self::Kubernetes => (
                &[
                    "kube-apiserver",
                    "kube-controller-manager",
                    "kube-scheduler",
                    "crds",
                ],
                &["/usr/bin/kubectl", "/usr/bin/etcd"],
            ),
        }
    }
}

/// The directory with the official programs.
#[derive(Debug, Clone)]
pub struct Official {
    directory: PathBuf,
}

impl Official {
    /// What is there; `None` after one printed sentence when this story must be left out.
    pub fn find(needs: &[Need]) -> Option<Self> {
        match Self::look(std::env::var_os(VARIABLE).map(PathBuf::from), needs) {
            Ok(official) => Some(official),
            Err(reason) => {
                eprintln!("left out: {reason}");
                None
            }
        }
    }

    fn look(directory: Option<PathBuf>, needs: &[Need]) -> Result<Self, String> {
        let directory = directory.ok_or_else(|| {
            format!("{VARIABLE} does not name a directory with the official binaries of KubeEdge v1.23")
        })?;
        for need in needs {
            let (files, programs) = need.parts();
            let missing = files
                .iter()
                .map(|file| directory.join(file))
                .chain(programs.iter().map(PathBuf::from))
                .find(|path| !path.exists());
            if let Some(missing) = missing {
                return Err(format!("{} is missing", missing.display()));
            }
        }
        Ok(Self { directory })
    }

    /// The path of a program or folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The definitions of the official custom resources.
    pub fn definitions(&self) -> PathBuf {
        self.path("crds")
    }

    /// Where everything is.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_story_is_left_out_with_a_sentence() {
        let unset = Official::look(None, &[Need::EdgeCore]).map(drop);
        assert_eq!(
            unset,
            Err(
                "KEDGE_OFFICIAL does not name a directory with the official binaries of KubeEdge v1.23"
                    .to_owned()
            )
        );
        let empty = Official::look(Some(PathBuf::from("/nonexistent")), &[Need::CloudCore]).map(drop);
        assert_eq!(empty, Err("/nonexistent/cloudcore is missing".to_owned()));
    }
}
