//! Other runtimes that this node has installed, as alternatives for single pods (`runtimeClassName`).

use super::interpreter;
use crate::Error;
use kedge_containers::{HandlerFeatures, SandboxConfig};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Runtimes whose command line is known. The name is the handler's.
const KNOWN: [&str; 2] = ["runc", "crun"];
/// Where distributions and administrators install programs; nowhere else is looked, whatever the environment says.
pub(super) const DIRECTORIES: [&str; 4] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];

/// What makes the containers of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Maker {
    /// The runtime itself.
    Libcontainer,
    /// A program that is installed.
    AnotherRuntime(PathBuf),
    /// The runtime itself; what it runs are WebAssembly modules.
    Interpreter,
}

/// The handlers of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Handlers {
    /// Other runtimes by name, with their programs.
    installed: BTreeMap<String, PathBuf>,
    /// Whether modules can be run.
    interprets: bool,
}

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
        Self {
            installed: found.collect(),
            interprets: interpreter::is_carried(),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        let modules = self.interprets.then(|| interpreter::HANDLER.to_owned());
        self.installed.keys().cloned().chain(modules).collect()
    }

    /// Those that could be here, with why they are not.
    pub(super) fn missing(&self) -> BTreeMap<String, String> {
        let names = KNOWN.into_iter().chain([interpreter::HANDLER]);
        let have = self.names();
        names
            .filter(|name| !have.iter().any(|own| own == name))
            .map(|name| (name.to_owned(), self.refusal(name)))
            .collect()
    }

    /// What each handler can do; the empty name is the built-in runtime itself.
    pub(super) fn features(&self, user_namespaces: bool) -> BTreeMap<String, HandlerFeatures> {
        let names = self.names().into_iter().chain([String::new()]);
        let features = names.map(|name| {
            let features = HandlerFeatures {
                // A kernel that cannot do it does not get as far as here.
                recursive_read_only_mounts: true,
                user_namespaces: user_namespaces && name.is_empty(),
            };
            (name, features)
        });
        features.collect()
    }

    /// What makes the containers of a sandbox.
    pub(super) fn maker(&self, sandbox: &SandboxConfig) -> Result<Maker, Error> {
        let wanted = sandbox.handler.as_str();
        if wanted.is_empty() {
            return Ok(Maker::Libcontainer);
        }
        if wanted == interpreter::HANDLER && self.interprets {
            return Ok(Maker::Interpreter);
        }
        let installed = self.installed.get(wanted).cloned();
        installed.map(Maker::AnotherRuntime).ok_or_else(|| {
            let pod = format!("{}/{}", sandbox.pod.namespace, sandbox.pod.name);
            Error::failed("run sandbox of pod", pod, self.refusal(wanted))
        })
    }

    fn refusal(&self, wanted: &str) -> String {
        if wanted == interpreter::HANDLER {
            return interpreter::MISSING.to_owned();
        }
        if KNOWN.contains(&wanted) {
            return format!(
                "runtime handler {wanted} is not installed: it is looked for in {} when the node agent starts",
                DIRECTORIES.join(", ")
            );
        }
        let names = self.names();
        let told = if names.is_empty() {
            "none besides itself".to_owned()
        } else {
            names.join(", ")
        };
        format!("the built-in runtime has no handler {wanted}; it has {told}")
    }
}

/// Where a program of this name is installed.
pub(super) fn installed(name: &str) -> Option<PathBuf> {
    let mut paths = DIRECTORIES
        .iter()
        .map(|directory| Path::new(directory).join(name));
    paths.find(|path| is_trusted(path))
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
            assert_eq!(found.installed, [("runc".to_owned(), second.join("runc"))].into());
        }
    }

    #[test]
    fn what_is_not_there_is_said() {
        let without = Handlers {
            installed: [("runc".to_owned(), PathBuf::from("/usr/sbin/runc"))].into(),
            interprets: false,
        };
        assert_eq!(without.maker(&sandbox("")).unwrap(), Maker::Libcontainer);
        assert!(matches!(
            without.maker(&sandbox("runc")).unwrap(),
            Maker::AnotherRuntime(_)
        ));
        let told =
            ["crun", "wasm", "kata"].map(|name| without.maker(&sandbox(name)).unwrap_err().to_string());
        expect![[r#"
            run sandbox of pod default/web: runtime handler crun is not installed: it is looked for in /usr/local/sbin, /usr/local/bin, /usr/sbin, /usr/bin when the node agent starts
            run sandbox of pod default/web: this kedge was built without the feature wasm, so it runs no WebAssembly modules; build it with cargo build --features wasm
            run sandbox of pod default/web: the built-in runtime has no handler kata; it has runc"#]]
        .assert_eq(&told.join("\n"));
        assert_eq!(without.missing().keys().collect::<Vec<_>>(), ["crun", "wasm"]);
        assert_eq!(without.features(true).keys().collect::<Vec<_>>(), ["", "runc"]);
        let with = Handlers {
            interprets: true,
            ..without
        };
        assert_eq!(with.maker(&sandbox("wasm")).unwrap(), Maker::Interpreter);
        assert_eq!(with.names(), ["runc", "wasm"]);
    }
}
