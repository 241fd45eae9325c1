//! Which AppArmor profile confines a container, where the kernel has AppArmor.

use kedge_containers::{AppArmor, Security};

/// The profiles that container runtimes load for containers that name none, by the packages that bring them.
const DEFAULTS: [&str; 2] = ["cri-containerd.apparmor.d", "docker-default"];

/// What the kernel says.
#[derive(Debug, Default)]
struct Kernel {
    enabled: bool,
    /// Each line is a name and its mode; `None` where they cannot be read.
    loaded: Option<String>,
}

/// The profile for a container; the error says why the one that is demanded cannot be had. A profile that is not loaded
/// would be found out by the container's first process, which can only end.
pub(super) fn profile(security: &Security) -> Result<Option<String>, String> {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    let kernel = Kernel {
        enabled: enabled.is_ok_and(|text| text.trim() == "Y"),
        loaded: std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").ok(),
    };
    kernel.profile(security)
}

impl Kernel {
    fn profile(&self, security: &Security) -> Result<Option<String>, String> {
        const NONE_HERE: &str = "this node has no AppArmor, so no profile can confine a container";
        let default = DEFAULTS
            .iter()
            .find(|name| self.enabled && self.has(name) == Some(true));
        let default = default.map(|name| (*name).to_owned());
        match &security.apparmor {
            Some(AppArmor::Unconfined) => Ok(None),
            Some(AppArmor::Localhost(_)) if !self.enabled => Err(NONE_HERE.to_owned()),
            Some(AppArmor::Localhost(name)) if self.has(name) == Some(false) => Err(format!(
                "AppArmor profile {name} is not loaded on this node; load it with apparmor_parser"
            )),
            Some(AppArmor::Localhost(name)) => Ok(Some(name.clone())),
            // A privileged container is not confined, unless by a profile that is named.
            Some(AppArmor::RuntimeDefault) | None if security.privileged => Ok(None),
            Some(AppArmor::RuntimeDefault) if !self.enabled => Err(NONE_HERE.to_owned()),
            Some(AppArmor::RuntimeDefault) if default.is_none() => Err(format!(
                "no default AppArmor profile is loaded on this node; load {} with apparmor_parser",
                DEFAULTS.join(" or ")
            )),
            Some(AppArmor::RuntimeDefault) | None => Ok(default),
        }
    }

    /// Whether a profile is loaded, where that can be known.
    fn has(&self, profile: &str) -> Option<bool> {
        let mut names = self
            .loaded
            .as_ref()?
            .lines()
            .filter_map(|line| Some(line.rsplit_once(" (")?.0));
        Some(names.any(|name| name == profile))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn profiles_are_given_where_they_are_loaded() {
        let kernels = [
            ("without", Kernel::default()),
            (
                "unreadable",
                Kernel {
                    enabled: true,
                    loaded: None,
                },
            ),
            (
                "loaded",
                Kernel {
                    enabled: true,
                    loaded: Some("docker-default (enforce)\nmy (odd) one (complain)\n".to_owned()),
                },
            ),
        ];
        let wanted = [
            None,
            Some(AppArmor::Unconfined),
            Some(AppArmor::RuntimeDefault),
            Some(AppArmor::Localhost("my (odd) one".into())),
            Some(AppArmor::Localhost("other".into())),
        ];
        let mut told = String::new();
        for (name, kernel) in &kernels {
            for apparmor in &wanted {
                let security = Security {
                    apparmor: apparmor.clone(),
                    ..Security::default()
                };
                let answer = kernel
                    .profile(&security)
                    .map_or_else(|why| why, |profile| format!("{profile:?}"));
                told.push_str(&format!("{name} {apparmor:?}: {answer}\n"));
            }
        }
        expect![[r#"
            without None: None
            without Some(Unconfined): None
            without Some(RuntimeDefault): this node has no AppArmor, so no profile can confine a container
            without Some(Localhost("my (odd) one")): this node has no AppArmor, so no profile can confine a container
            without Some(Localhost("other")): this node has no AppArmor, so no profile can confine a container
            unreadable None: None
            unreadable Some(Unconfined): None
            unreadable Some(RuntimeDefault): no default AppArmor profile is loaded on this node; load cri-containerd.apparmor.d or docker-default with apparmor_parser
            unreadable Some(Localhost("my (odd) one")): Some("my (odd) one")
            unreadable Some(Localhost("other")): Some("other")
            loaded None: Some("docker-default")
            loaded Some(Unconfined): None
            loaded Some(RuntimeDefault): Some("docker-default")
            loaded Some(Localhost("my (odd) one")): Some("my (odd) one")
            loaded Some(Localhost("other")): AppArmor profile other is not loaded on this node; load it with apparmor_parser
        "#]]
        .assert_eq(&told);
        let privileged = Security {
            privileged: true,
            ..Security::default()
        };
        assert_eq!(kernels[2].1.profile(&privileged), Ok(None));
    }
}
