//! From our words to those of the interface.

use kedge_containers::{
    AppArmor, ContainerConfig, IdMapping, Mount, PidNamespace, PortMapping, Propagation, Protocol, Resources,
    SandboxConfig, Seccomp, Security, Selinux, UserNamespace,
};
use kedge_grpc::cri;
use std::collections::BTreeMap;

pub(super) const LABEL_POD_NAME: &str = "io.kubernetes.pod.name";
pub(super) const LABEL_POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(super) const LABEL_POD_UID: &str = "io.kubernetes.pod.uid";
pub(super) const LABEL_CONTAINER: &str = "io.kubernetes.container.name";
pub(super) const ANNOTATION_HASH: &str = "io.kubernetes.container.hash";
pub(super) const ANNOTATION_RESTARTS: &str = "io.kubernetes.container.restartCount";

/// What of `/proc` and `/sys` a container does not see.
const MASKED_PATHS: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What of `/proc` a container must not write.
const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A sandbox, below the control group `cgroup_parent`.
pub(super) fn sandbox(config: &SandboxConfig, cgroup_parent: String) -> cri::PodSandboxConfig {
    let mut labels = config.labels.clone();
    pod_labels(&mut labels, config);
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: config.pod.name.clone(),
            uid: config.pod.uid.clone(),
            namespace: config.pod.namespace.clone(),
            attempt: config.attempt,
        }),
        // The node's own name is not the pod's to set, and runc refuses to try.
        hostname: if config.host_network {
            String::new()
        } else {
            config.hostname.clone()
        },
        log_directory: config.log_dir.to_string_lossy().into_owned(),
        dns_config: dns(config),
        port_mappings: config.ports.iter().map(port).collect(),
        labels,
        annotations: config.annotations.clone(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent,
            security_context: Some(sandbox_security(config)),
            sysctls: config.sysctls.clone(),
            overhead: Some(resources(&config.overhead)),
            resources: Some(resources(&config.resources)),
        }),
    }
}

fn pod_labels(labels: &mut BTreeMap<String, String>, config: &SandboxConfig) {
    let pod = &config.pod;
    for (label, value) in [
        (LABEL_POD_NAME, &pod.name),
        (LABEL_POD_NAMESPACE, &pod.namespace),
        (LABEL_POD_UID, &pod.uid),
    ] {
        labels.insert(label.to_owned(), value.clone());
    }
}

fn dns(config: &SandboxConfig) -> Option<cri::DnsConfig> {
    let dns = &config.dns;
    let said = !(dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty());
    said.then(|| cri::DnsConfig {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    })
}

fn port(port: &PortMapping) -> cri::PortMapping {
    let protocol = match port.protocol {
        Protocol::Tcp => cri::Protocol::Tcp,
        Protocol::Udp => cri::Protocol::Udp,
        Protocol::Sctp => cri::Protocol::Sctp,
    };
    cri::PortMapping {
        protocol: protocol.into(),
        container_port: port.container_port.into(),
        host_port: port.host_port.into(),
        host_ip: port.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    }
}

fn sandbox_security(config: &SandboxConfig) -> cri::LinuxSandboxSecurityContext {
    let security = &config.security;
    let pid = match (config.host_pid, config.share_pid) {
        (true, _) => cri::NamespaceMode::Node,
        (false, true) => cri::NamespaceMode::Pod,
        (false, false) => cri::NamespaceMode::Container,
    };
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(config, pid, String::new())),
        selinux_options: security.selinux.as_ref().map(selinux),
        run_as_user: security.user.map(number),
        run_as_group: security.user.and(security.group).map(number),
        supplemental_groups: groups(&security.supplemental_groups),
        privileged: security.privileged,
        seccomp: Some(seccomp(&security.seccomp)),
        apparmor: security.apparmor.as_ref().map(apparmor),
        ..cri::LinuxSandboxSecurityContext::default()
    }
}

fn namespaces(config: &SandboxConfig, pid: cri::NamespaceMode, target_id: String) -> cri::NamespaceOption {
    let of_node = |node: bool| {
        if node {
            cri::NamespaceMode::Node.into()
        } else {
            cri::NamespaceMode::Pod.into()
        }
    };
    cri::NamespaceOption {
        network: of_node(config.host_network),
        pid: pid.into(),
        ipc: of_node(config.host_ipc),
        target_id,
        userns_options: config.user_namespace.as_ref().map(user_namespace),
    }
}

fn user_namespace(own: &UserNamespace) -> cri::UserNamespace {
    cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: vec![mapping(&own.uids)],
        gids: vec![mapping(&own.gids)],
    }
}

fn mapping(ids: &IdMapping) -> cri::IdMapping {
    cri::IdMapping {
        host_id: ids.host_id,
        container_id: ids.container_id,
        length: ids.length,
    }
}

/// A container of a sandbox.
pub(super) fn container(pod: &SandboxConfig, config: &ContainerConfig, user: User) -> cri::ContainerConfig {
    let mut labels = config.labels.clone();
    pod_labels(&mut labels, pod);
    labels.insert(LABEL_CONTAINER.to_owned(), config.name.clone());
    let mut annotations = config.annotations.clone();
    let mut annotate = |name: &str, value: String| {
        annotations.entry(name.to_owned()).or_insert(value);
    };
    annotate(ANNOTATION_HASH, config.spec_hash.clone());
    annotate(ANNOTATION_RESTARTS, config.attempt.to_string());
    let env = config.env.iter().map(|(key, value)| cri::KeyValue {
        key: key.clone(),
        value: value.clone().into_bytes(),
    });
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata {
            name: config.name.clone(),
            attempt: config.attempt,
        }),
        image: Some(cri::ImageSpec {
            image: config.image.clone(),
            user_specified_image: config.image.clone(),
            runtime_handler: pod.handler.clone(),
            ..cri::ImageSpec::default()
        }),
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone().unwrap_or_default(),
        envs: env.collect(),
        mounts: config.mounts.iter().map(|given| mount(given, pod)).collect(),
        devices: config.devices.iter().map(device).collect(),
        labels,
        annotations,
        log_path: config.log_path.to_string_lossy().into_owned(),
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(&config.resources)),
            security_context: Some(security(pod, &config.security, user)),
        }),
        cdi_devices: cdi_devices(config),
    }
}

fn device(device: &kedge_containers::Device) -> cri::Device {
    cri::Device {
        container_path: device.container_path.to_string_lossy().into_owned(),
        host_path: device.host_path.to_string_lossy().into_owned(),
        permissions: device.permissions.clone(),
    }
}

fn cdi_devices(config: &ContainerConfig) -> Vec<cri::CdiDevice> {
    let names = config.cdi_devices.iter().cloned();
    names.map(|name| cri::CdiDevice { name }).collect()
}

/// Files on what a pod with users of its own mounts are those of its users.
fn mount(mount: &Mount, pod: &SandboxConfig) -> cri::Mount {
    let own = pod.user_namespace.as_ref();
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: mount.container_path.to_string_lossy().into_owned(),
        host_path: mount.host_path.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        selinux_relabel: false,
        propagation: propagation.into(),
        uid_mappings: own.map(|own| mapping(&own.uids)).into_iter().collect(),
        gid_mappings: own.map(|own| mapping(&own.gids)).into_iter().collect(),
        recursive_read_only: mount.recursive_read_only,
    }
}

/// Who a container runs as, in the interface's terms: a group needs a user beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct User {
    pub(super) number: Option<u32>,
    pub(super) name: String,
}

fn security(pod: &SandboxConfig, security: &Security, user: User) -> cri::LinuxContainerSecurityContext {
    let (pid, target) = match &security.pid {
        PidNamespace::Container => (cri::NamespaceMode::Container, String::new()),
        PidNamespace::Pod => (cri::NamespaceMode::Pod, String::new()),
        PidNamespace::Node => (cri::NamespaceMode::Node, String::new()),
        PidNamespace::Target(id) => (cri::NamespaceMode::Target, id.0.clone()),
    };
    let paths = |paths: &[&str]| {
        if security.proc_unmasked {
            Vec::new()
        } else {
            paths.iter().map(|path| (*path).to_owned()).collect()
        }
    };
    cri::LinuxContainerSecurityContext {
        capabilities: Some(cri::Capability {
            add_capabilities: security.add_capabilities.clone(),
            drop_capabilities: security.drop_capabilities.clone(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: security.privileged,
        namespace_options: Some(namespaces(pod, pid, target)),
        selinux_options: security.selinux.as_ref().map(selinux),
        run_as_group: security.group.map(number),
        run_as_user: user.number.map(number),
        run_as_username: user.name,
        readonly_rootfs: security.read_only_root,
        supplemental_groups: groups(&security.supplemental_groups),
        apparmor_profile: security.apparmor.as_ref().map(apparmor_name).unwrap_or_default(),
        no_new_privs: !security.allow_privilege_escalation,
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READ_ONLY_PATHS),
        seccomp: Some(seccomp(&security.seccomp)),
        apparmor: security.apparmor.as_ref().map(apparmor),
        supplemental_groups_policy: cri::SupplementalGroupsPolicy::Merge.into(),
    }
}

fn number(value: u32) -> cri::Int64Value {
    cri::Int64Value { value: value.into() }
}

fn groups(groups: &[u32]) -> Vec<i64> {
    groups.iter().map(|group| i64::from(*group)).collect()
}

fn selinux(label: &Selinux) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: label.user.clone(),
        role: label.role.clone(),
        r#type: label.type_.clone(),
        level: label.level.clone(),
    }
}

fn profile(kind: cri::security_profile::ProfileType, localhost_ref: String) -> cri::SecurityProfile {
    cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref,
    }
}

fn seccomp(seccomp: &Seccomp) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    match seccomp {
        Seccomp::Unconfined => profile(ProfileType::Unconfined, String::new()),
        Seccomp::RuntimeDefault => profile(ProfileType::RuntimeDefault, String::new()),
        Seccomp::Localhost(path) => profile(ProfileType::Localhost, path.to_string_lossy().into_owned()),
    }
}

fn apparmor(apparmor: &AppArmor) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    match apparmor {
        AppArmor::Unconfined => profile(ProfileType::Unconfined, String::new()),
        AppArmor::RuntimeDefault => profile(ProfileType::RuntimeDefault, String::new()),
        AppArmor::Localhost(name) => profile(ProfileType::Localhost, name.clone()),
    }
}

fn apparmor_name(apparmor: &AppArmor) -> String {
    match apparmor {
        AppArmor::Unconfined => "unconfined".to_owned(),
        AppArmor::RuntimeDefault => "runtime/default".to_owned(),
        AppArmor::Localhost(name) => format!("localhost/{name}"),
    }
}

/// Zero is the interface's word for "not said". It has none for the number of processes, which the pod's own control
/// group limits.
pub(super) fn resources(resources: &Resources) -> cri::LinuxContainerResources {
    let positive = |value: Option<u64>| value.map_or(0, |value| i64::try_from(value).unwrap_or(i64::MAX));
    let hugepages = resources
        .hugepages
        .iter()
        .map(|(page_size, limit)| cri::HugepageLimit {
            page_size: page_size.clone(),
            limit: *limit,
        });
    cri::LinuxContainerResources {
        cpu_period: positive(resources.cpu_period_us),
        cpu_quota: resources.cpu_quota_us.unwrap_or(0),
        cpu_shares: positive(resources.cpu_shares),
        memory_limit_in_bytes: resources.memory_bytes_max.filter(|bytes| *bytes > 0).unwrap_or(0),
        oom_score_adj: resources.oom_score_adj.unwrap_or(0).into(),
        cpuset_cpus: resources.cpuset_cpus.clone().unwrap_or_default(),
        cpuset_mems: resources.cpuset_mems.clone().unwrap_or_default(),
        hugepage_limits: hugepages.collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use kedge_containers::{ContainerId, PodIdentity, SandboxSecurity};

    fn pod() -> SandboxConfig {
        SandboxConfig {
            pod: PodIdentity {
                namespace: "shop".into(),
                name: "web".into(),
                uid: "1f2e".into(),
            },
            hostname: "web".into(),
            host_ipc: true,
            share_pid: true,
            ports: vec![PortMapping {
                protocol: Protocol::Udp,
                container_port: 53,
                host_port: 5353,
                host_ip: Some([127, 0, 0, 1].into()),
            }],
            sysctls: [("net.core.somaxconn".into(), "5".into())].into(),
            labels: [("app".into(), "web".into())].into(),
            security: SandboxSecurity {
                group: Some(7),
                seccomp: Seccomp::RuntimeDefault,
                ..SandboxSecurity::default()
            },
            ..SandboxConfig::default()
        }
    }

    #[test]
    fn a_sandbox() {
        let made = sandbox(&pod(), "/kubepods/pod1f2e".to_owned());
        let linux = made.linux.unwrap();
        let security = linux.security_context.unwrap();
        let namespaces = security.namespace_options.unwrap();
        expect![[r#"
            labels {"app": "web", "io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": "1f2e"}
            dns None
            ports [PortMapping { protocol: Udp, container_port: 53, host_port: 5353, host_ip: "127.0.0.1" }]
            below /kubepods/pod1f2e with {"net.core.somaxconn": "5"}
            network Pod pid Pod ipc Node
            user None group None seccomp Some(SecurityProfile { profile_type: RuntimeDefault, localhost_ref: "" })"#]]
        .assert_eq(&format!(
            "labels {:?}\ndns {:?}\nports {:?}\nbelow {} with {:?}\nnetwork {:?} pid {:?} ipc {:?}\nuser {:?} group {:?} seccomp {:?}",
            made.labels,
            made.dns_config,
            made.port_mappings,
            linux.cgroup_parent,
            linux.sysctls,
            namespaces.network(),
            namespaces.pid(),
            namespaces.ipc(),
            security.run_as_user,
            security.run_as_group,
            security.seccomp,
        ));
    }

    #[test]
    fn users_of_its_own() {
        let ids = IdMapping {
            host_id: 131_072,
            container_id: 0,
            length: 65536,
        };
        let mut pod = pod();
        let config = ContainerConfig {
            mounts: vec![Mount::bind("/data", "/data", false)],
            ..ContainerConfig::default()
        };
        let of_node = container(&pod, &config, User::default());
        pod.user_namespace = Some(UserNamespace { uids: ids, gids: ids });
        let own = container(&pod, &config, User::default());
        let told = |made: &cri::ContainerConfig| {
            let mount = &made.mounts[0];
            let security = made.linux.clone().unwrap().security_context.unwrap();
            let users = security.namespace_options.unwrap().userns_options;
            let users = users.map(|users| (users.mode(), users.uids == users.gids, users.uids));
            format!("{users:?}\n{:?} {:?}", mount.uid_mappings, mount.gid_mappings)
        };
        expect![[r#"
            None
            [] []
            Some((Pod, true, [IdMapping { host_id: 131072, container_id: 0, length: 65536 }]))
            [IdMapping { host_id: 131072, container_id: 0, length: 65536 }] [IdMapping { host_id: 131072, container_id: 0, length: 65536 }]"#]]
        .assert_eq(&format!("{}\n{}", told(&of_node), told(&own)));
        let sandbox = sandbox(&pod, String::new())
            .linux
            .unwrap()
            .security_context
            .unwrap();
        assert_eq!(
            sandbox.namespace_options.unwrap().userns_options,
            own.linux
                .unwrap()
                .security_context
                .unwrap()
                .namespace_options
                .unwrap()
                .userns_options
        );
    }

    #[test]
    fn the_rights_of_a_container() {
        let own = Security {
            group: Some(7),
            apparmor: Some(AppArmor::Localhost("mine".into())),
            seccomp: Seccomp::Localhost("/var/lib/kubelet/seccomp/x.json".into()),
            selinux: Some(Selinux {
                level: "s0:c1".into(),
                ..Selinux::default()
            }),
            proc_unmasked: true,
            pid: PidNamespace::Target(ContainerId("c1".into())),
            ..Security::default()
        };
        let user = User {
            number: None,
            name: "app".into(),
        };
        let made = security(&pod(), &own, user);
        let namespaces = made.namespace_options.clone().unwrap();
        assert_eq!(
            (namespaces.pid(), namespaces.target_id.as_str()),
            (cri::NamespaceMode::Target, "c1")
        );
        assert_eq!(
            (made.run_as_username.as_str(), made.run_as_group),
            ("app", Some(number(7)))
        );
        assert_eq!(
            (
                made.masked_paths.len(),
                made.readonly_paths.len(),
                made.no_new_privs
            ),
            (0, 0, true)
        );
        assert_eq!(made.apparmor_profile, "localhost/mine");
        assert_eq!(made.apparmor.unwrap().localhost_ref, "mine");
        assert_eq!(
            made.seccomp.unwrap().localhost_ref,
            "/var/lib/kubelet/seccomp/x.json"
        );
        assert_eq!(made.selinux_options.unwrap().level, "s0:c1");
    }

    #[test]
    fn devices_are_passed_on_by_their_names() {
        let annotation = ("cdi.k8s.io/plugin".to_owned(), "vendor.com/gpu=1".to_owned());
        let config = ContainerConfig {
            cdi_devices: vec!["vendor.com/gpu=0".into()],
            annotations: [annotation].into(),
            ..ContainerConfig::default()
        };
        let made = container(&pod(), &config, User::default());
        assert_eq!(made.cdi_devices[0].name, "vendor.com/gpu=0");
        assert_eq!(made.annotations["cdi.k8s.io/plugin"], "vendor.com/gpu=1");
    }

    #[test]
    fn limits() {
        let said = Resources {
            cpu_quota_us: Some(-1),
            memory_bytes_max: Some(-1),
            hugepages: [("2MB".into(), 0)].into(),
            ..Resources::default()
        };
        let made = resources(&said);
        assert_eq!(
            (
                made.cpu_quota,
                made.memory_limit_in_bytes,
                made.hugepage_limits.len()
            ),
            (-1, 0, 1)
        );
        assert_eq!(
            resources(&Resources::default()),
            cri::LinuxContainerResources::default()
        );
    }
}
