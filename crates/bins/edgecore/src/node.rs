//! What is looked at before anything starts: whether this machine can be the node that the file describes.
//!
//! Neither network nor cloud nor container runtime is needed here: a node that starts in the dark runs its pods.

use anyhow::{Context, Result, bail};
use kedge_config::EdgeCore;
use kedge_host::Root;
use kedge_host::cgroups::Layout;

/// A node that was told to run next to a kubelet gets two masters of its containers.
const KUBELET: &str = "kubelet";

/// What a kubelet wants of the kernel: memory is promised freely and its end is met by ending processes, and a kernel
/// that is broken starts anew.
const KERNEL: [(&str, &str); 6] = [
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.keys.root_maxbytes", "25000000"),
];

/// Refuses a machine that cannot be this node. `check_kubelet` is off for tests of both on one machine.
pub fn check(config: &EdgeCore, root: &Root, check_kubelet: bool) -> Result<()> {
    // The official EdgeCore takes the local API for a sign that somebody knows what they do.
    if check_kubelet && !config.meta_server.enable {
        refuse_kubelet(root)?;
    }
    if config.edged.fail_swap_on && kedge_host::own::swap_bytes() > 0 {
        bail!(
            "this machine has swap and modules.edged.tailoredKubeletConfig.failSwapOn is true: switch the swap off with \
             `swapoff -a`, or set the key to false"
        );
    }
    if config.edged.fail_cgroup_v1 {
        let layout = kedge_host::cgroups::layout_of(root).context("look for control groups")?;
        match layout {
            Layout::V2 { .. } => {}
            Layout::V1 { .. } | Layout::Hybrid { .. } => bail!(
                "this machine has control groups of version 1 and modules.edged.tailoredKubeletConfig.failCgroupV1 is \
                 true: start the kernel with systemd.unified_cgroup_hierarchy=1, or set the key to false"
            ),
        }
    }
    if config.edged.security.protect_kernel_defaults {
        refuse_other_kernel(root)?;
    }
    Ok(())
}

fn refuse_other_kernel(root: &Root) -> Result<()> {
    let found = kedge_host::start::kernel_deviations(root, &KERNEL);
    if found.is_empty() {
        return Ok(());
    }
    let told: Vec<String> = found
        .iter()
        .map(|at| format!("{} is {:?} and not {}", at.name, at.found, at.expected))
        .collect();
    let mend: Vec<String> = found
        .iter()
        .map(|at| format!("{}={}", at.name, at.expected))
        .collect();
    bail!(
        "modules.edged.tailoredKubeletConfig.protectKernelDefaults is true, and the kernel of this machine is set \
         otherwise than a kubelet expects: {}. Set it with `sysctl -w {}`, or set the key to false",
        told.join(", "),
        mend.join(" ")
    )
}

fn refuse_kubelet(root: &Root) -> Result<()> {
    let found = kedge_host::start::processes_named(root, KUBELET)?;
    let Some(pid) = found.first() else {
        return Ok(());
    };
    bail!(
        "a kubelet runs on this machine (process {pid}), and two of them would fight over its containers: stop it with \
         `systemctl disable --now kubelet`, or set CHECK_EDGECORE_ENVIRONMENT=false in the environment to start all the \
         same"
    )
}

/// The address that `customInterfaceName` has now stands for `nodeIP` where one is needed at once. An interface without
/// an address may get one later, which edged looks for.
pub fn settle_address(config: &mut EdgeCore) {
    let name = &config.edged.interface;
    if name.is_empty() {
        return;
    }
    match kedge_host::node::interface_address(name) {
        Ok(Some(address)) => config.edged.node_ip = address.to_string(),
        Ok(None) => tracing::warn!(
            interface = name,
            "modules.edged.customInterfaceName has no address yet; `ip address` shows the interfaces of this machine"
        ),
        Err(error) => tracing::warn!(interface = name, %error, "the address of the interface cannot be read"),
    }
}

/// As `oomScoreAdj` says. A process without the privilege keeps the score it has.
pub fn settle_oom_score(score: i32) {
    if let Err(error) = kedge_host::start::set_own_oom_score(score) {
        let why = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(
            score,
            %error,
            why,
            "the kernel may end EdgeCore like any other process when memory is short"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kedge_config::EdgeFacts;

    fn config(yaml: &str) -> EdgeCore {
        let facts = EdgeFacts {
            hostname: "edge-1".to_owned(),
            primary_ip: "192.0.2.9".to_owned(),
        };
        EdgeCore::from_yaml(yaml, &facts).unwrap().0
    }

    #[test]
    fn a_kernel_that_is_set_otherwise_is_refused_where_it_must_not_be_changed() {
        let dir = std::env::temp_dir().join(format!("kedge-edgecore-kernel-{}", std::process::id()));
        for (name, value) in KERNEL {
            let path = dir.join("proc/sys").join(name.replace('.', "/"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{value}\n")).unwrap();
        }
        let root = Root::at(&dir);
        let strict = "modules: {edged: {tailoredKubeletConfig: {protectKernelDefaults: true}}}";
        let fine = check(&config(strict), &root, false);
        std::fs::write(dir.join("proc/sys/kernel/panic"), "0\n").unwrap();
        let refused = check(&config(strict), &root, false);
        let lenient = check(&config(""), &root, false);
        std::fs::remove_dir_all(&dir).unwrap();
        assert!(fine.is_ok() && lenient.is_ok());
        let refused = refused.unwrap_err().to_string();
        assert!(
            refused.contains("kernel.panic is \"0\" and not 10")
                && refused.contains("`sysctl -w kernel.panic=10`")
        );
    }

    #[test]
    fn a_machine_with_a_kubelet_is_refused_unless_somebody_says_that_they_know() {
        let dir = std::env::temp_dir().join(format!("kedge-edgecore-node-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("proc/17")).unwrap();
        std::fs::write(dir.join("proc/17/comm"), "kubelet\n").unwrap();
        let root = Root::at(&dir);
        let with_local_api = "modules: {metaManager: {metaServer: {enable: true}}}";
        let found = [
            check(&config(""), &root, true),
            check(&config(""), &root, false),
            check(&config(with_local_api), &root, true),
        ];
        std::fs::remove_dir_all(&dir).unwrap();
        let [refused, unchecked, known] = found;
        let refused = refused.unwrap_err().to_string();
        assert!(refused.contains("process 17") && refused.contains("systemctl disable --now kubelet"));
        assert!(unchecked.is_ok() && known.is_ok());
    }
}
