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
    minimumGCAge: 1m
    maxPerPodContainerCount: 2
    maxContainerCount: 100
    runtimeCgroups: /runtime
    tailoredKubeletConfig:
      shutdownGracePeriod: 30s
      shutdownGracePeriodCriticalPods: 10s
      kubeletCgroups: /kubelet
      cgroupRoot: /pods
      systemCgroups: /system
      memorySwap: {swapBehavior: LimitedSwap}
      protectKernelDefaults: true
      streamingConnectionIdleTimeout: 1h
",
        expect![[r#"
            modules.edged.minimumGCAge, modules.edged.maxPerPodContainerCount, modules.edged.maxContainerCount have no effect in kedge: of a container that is started again the one before is kept for its log, and no older one, as the defaults say
            modules.edged.tailoredKubeletConfig.kubeletCgroups, modules.edged.tailoredKubeletConfig.systemCgroups, modules.edged.runtimeCgroups have no effect in kedge: processes of the system are not moved between control groups, nor looked for in them
            modules.edged.tailoredKubeletConfig.memorySwap.swapBehavior has no effect in kedge: swap is not divided among containers by this version
            modules.edged.tailoredKubeletConfig.protectKernelDefaults has no effect in kedge: parameters of the kernel are neither checked nor changed at the start
            modules.edged.tailoredKubeletConfig.streamingConnectionIdleTimeout has no effect in kedge: exec, attach and port forwarding are not part of this version
            modules.edged.tailoredKubeletConfig.shutdownGracePeriod, modules.edged.tailoredKubeletConfig.shutdownGracePeriodCriticalPods have no effect in kedge: the shutdown of the node is not held up; containers end as the system ends processes
        "#]],
    );
    check(
        "modules: {edged: {tailoredKubeletConfig: {shutdownGracePeriodByPodPriority: [{priority: 1, shutdownGracePeriodSeconds: 5}]}}}",
        expect![[r#"
            modules.edged.tailoredKubeletConfig.shutdownGracePeriodByPodPriority has no effect in kedge: the shutdown of the node is not held up; containers end as the system ends processes
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
