//! Keys of edgecore.yaml that are read and that nobody acts on: a word where the operator has chosen something.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use expect_test::{Expect, expect};
use kedge_config::{EdgeCore, EdgeFacts};

fn check(text: &str, expect: Expect) {
    let facts = EdgeFacts {
        hostname: "gate-7".to_owned(),
        primary_ip: "192.0.2.7".to_owned(),
    };
    let (_, warnings) = EdgeCore::from_yaml(text, &facts).unwrap();
    let shown: String = warnings.iter().map(|warning| format!("{warning}\n")).collect();
    expect.assert_eq(&shown);
}

#[test]
fn what_nobody_acts_on_is_said_once_a_reason() {
    check(
        "
modules:
  edged:
    runtimeCgroups: /runtime
    tailoredKubeletConfig:
      kubeletCgroups: /kubelet
      cgroupRoot: /pods
      systemCgroups: /system
      streamingConnectionIdleTimeout: 1h
      crashLoopBackOff: {maxContainerRestartPeriod: 1m}
",
        expect![[r#"
            modules.edged.tailoredKubeletConfig.kubeletCgroups, modules.edged.tailoredKubeletConfig.systemCgroups, modules.edged.runtimeCgroups have no effect in kedge: processes of the system are not moved between control groups, nor looked for in them
            modules.edged.tailoredKubeletConfig.streamingConnectionIdleTimeout has no effect in kedge: exec, attach and port forwarding are not part of this version
            modules.edged.tailoredKubeletConfig.crashLoopBackOff.maxContainerRestartPeriod has no effect in kedge: it takes the gate KubeletCrashLoopBackOffMax: true
        "#]],
    );
}

#[test]
fn their_defaults_need_no_word() {
    check(
        "
modules:
  edged:
    minimumGCAge: 0s
    maxPerPodContainerCount: 1
    maxContainerCount: -1
    runtimeCgroups: ''
    tailoredKubeletConfig:
      shutdownGracePeriod: 0s
      shutdownGracePeriodCriticalPods: 0s
      shutdownGracePeriodByPodPriority: []
      kubeletCgroups: ''
      systemCgroups: ''
      memorySwap: {swapBehavior: NoSwap}
      protectKernelDefaults: false
      streamingConnectionIdleTimeout: 4h0m0s
  edgeStream: {handshakeTimeout: 10}
",
        expect![[""]],
    );
}
