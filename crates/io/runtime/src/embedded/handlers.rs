//! Other runtimes that this node has installed, as alternatives for single pods (`runtimeClassName`).

use crate::Error;
use kedge_containers::{HandlerFeatures, SandboxConfig};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Runtimes whose command line is known. The name is the handler's.
const KNOWN: [&str; 2] = ["runc", "crun"];
/// Where distributions and administrators install programs; nowhere else is looked, whatever the environment says.
const DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
const WEB_ASSEMBLY: &str = "wasm";

/// The handlers of this node, by name, with their programs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Handlers(BTreeMap<String, PathBuf>);

impl Handlers {
    /// Looks for them once: a pod's class is not to work by chance.
    pub(super) fn find() -> Self {
        Self::find_in(&DIRECTORIES.map(Path::new))
    }

    fn find_in(directories: &[&Path]) -> Self {
        let found = KNOWN.iter().filter_map(|name| {
            let mut paths = directories.iter().map(|directory| directory.join(name));
            Some(((*name).to_owned(), paths.find(|path| is_trusted(path))?))
        });
        Self(found.collect())
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    /// What each handler can do; the empty name is the built-in runtime itself.
    pub(super) fn features(&self) -> BTreeMap<String, HandlerFeatures> {
        let features = HandlerFeatures {
            // A kernel that cannot do it does not get as far as here.
            recursive_read_only_mounts: true,
            user_namespaces: false,
        };
        let names = self.names().into_iter().chain([String::new()]);
        names.map(|name| (name, features)).collect()
    }

    /// The program that runs the containers of a sandbox; `None` is the built-in runtime.
    pub(super) fn program(&self, sandbox: &SandboxConfig) -> Result<Option<PathBuf>, Error> {
        let wanted = &sandbox.handler;
        if wanted.is_empty() {
            return Ok(None);
        }
        self.0.get(wanted).cloned().map(Some).ok_or_else(|| {
            let reason = match wanted.as_str() {
                WEB_ASSEMBLY => "this kedge runs no WebAssembly modules (runtime handler wasm)".to_owned(),
                _ if KNOWN.contains(&wanted.as_str()) => format!(
                    "runtime handler {wanted} is not installed: it is looked for in {} when the node agent starts",
                    DIRECTORIES.join(", ")
                ),
                _ => format!(
                    "the built-in runtime has no handler {wanted}; it has {}",
                    self.told()
                ),
            };
            let pod = format!("{}/{}", sandbox.pod.namespace, sandbox.pod.name);
            Error::failed("run sandbox of pod", pod, reason)
        })
    }

    fn told(&self) -> String {
        if self.0.is_empty() {
            "none besides itself".to_owned()
        } else {
            self.names().join(", ")
        }
    }
}

/// A program that only root can have put there, because root runs it.
fn is_trusted(path: &Path) -> bool {
    const EXECUTABLE: u32 = 0o111;
    const WRITTEN_BY_OTHERS: u32 = 0o022;
    std::fs::metadata(path).is_ok_and(|meta| {
        meta.is_file()
            && meta.uid() == 0
            && meta.mode() & EXECUTABLE != 0
            && meta.mode() & WRITTEN_BY_OTHERS == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::os::unix::fs::PermissionsExt;

    fn sandbox(handler: &str) -> SandboxConfig {
        SandboxConfig {
            pod: kedge_containers::PodIdentity {
                namespace: "default".into(),
                name: "web".into(),
                uid: "u1".into(),
            },
            handler: handler.to_owned(),
            ..SandboxConfig::default()
        }
    }

    #[test]
    fn only_programs_of_root_are_found() {
        let top = std::env::temp_dir().join(format!("kedge-handlers-{}", std::process::id()));
        let (first, second) = (top.join("a"), top.join("b"));
        for (directory, name, mode) in [
            (&first, "runc", 0o777),
            (&second, "runc", 0o755),
            (&second, "crun", 0o644),
            (&second, "other", 0o755),
        ] {
            std::fs::create_dir_all(directory).unwrap();
            std::fs::write(directory.join(name), "").unwrap();
            std::fs::set_permissions(directory.join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        let found = Handlers::find_in(&[&first, &second, Path::new("/no/such")]);
        std::fs::remove_dir_all(&top).unwrap();
        if kedge_host::is_root() {
            assert_eq!(found.0, [("runc".to_owned(), second.join("runc"))].into());
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let handlers = Handlers([("runc".to_owned(), PathBuf::from("/usr/sbin/runc"))].into());
        assert_eq!(handlers.program(&sandbox("")).unwrap(), None);
        assert!(handlers.program(&sandbox("runc")).unwrap().is_some());
        let told =
            ["crun", "wasm", "kata"].map(|name| handlers.program(&sandbox(name)).unwrap_err().to_string());
        expect![[r#"
            run sandbox of pod default/web: runtime handler crun is not installed: it is looked for in /usr/local/sbin, /usr/local/bin, /usr/sbin, /usr/bin when the node agent starts
            run sandbox of pod default/web: this kedge runs no WebAssembly modules (runtime handler wasm)
            run sandbox of pod default/web: the built-in runtime has no handler kata; it has runc"#]]
        .assert_eq(&told.join("\n"));
        assert_eq!(handlers.features().keys().collect::<Vec<_>>(), ["", "runc"]);
    }
}
