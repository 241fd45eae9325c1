//! Keys of the official file that have no meaning here, and why.

use crate::reader::Group;

pub(super) const GROUPS: &[Group] = &[
    Group {
        keys: &["database.aliasName", "database.driverName"],
        why: "the database is SQLite",
    },
    Group {
        keys: &["modules.dbTest"],
        why: "it is a test of the official EdgeCore",
    },
    Group {
        keys: &[
            "modules.edgeHub.quic.writeDeadline",
            "modules.edgeHub.websocket.writeDeadline",
            "modules.edgeStream.readDeadline",
            "modules.edgeStream.writeDeadline",
        ],
        why: "a connection that takes nothing is given up after a fixed time",
    },
    Group {
        keys: &[
            "modules.edgeStream.tlsTunnelCAFile",
            "modules.edgeStream.tlsTunnelCertFile",
            "modules.edgeStream.tlsTunnelPrivateKeyFile",
        ],
        why: "the tunnel shows the certificate of the hub",
    },
    Group {
        keys: &[
            "modules.edged.registerNodeNamespace",
            "modules.metaManager.contextSendGroup",
            "modules.metaManager.contextSendModule",
        ],
        why: "they address parts of the official EdgeCore to each other",
    },
    Group {
        keys: &[
            "modules.edged.experimentalMounterPath",
            "modules.edged.windowsPriorityClass",
            "modules.edged.windowsService",
        ],
        why: "Linux needs none of it",
    },
    Group {
        keys: &[
            "modules.edged.tailoredKubeletConfig.contentType",
            "modules.edged.tailoredKubeletConfig.logging",
            "modules.edged.tailoredKubeletConfig.showHiddenMetricsForVersion",
            "modules.edged.tailoredKubeletConfig.enableContentionProfiling",
            "modules.edged.tailoredKubeletConfig.enableProfilingHandler",
            "modules.edged.tailoredKubeletConfig.enableDebugFlagsHandler",
        ],
        why: "they tune the inside of a program in Go; kedge.logFilter sets what is logged",
    },
    Group {
        keys: &[
            "modules.edged.tailoredKubeletConfig.enableSystemLogHandler",
            "modules.edged.tailoredKubeletConfig.enableSystemLogQuery",
        ],
        why: "the local server does not show the logs of the system, because anybody on the node could ask it",
    },
    Group {
        keys: &["modules.edged.tailoredKubeletConfig.makeIPTablesUtilChains"],
        why: "the network of pods is the affair of the container runtime",
    },
    Group {
        keys: &[
            "modules.edged.tailoredKubeletConfig.qosReserved",
            "modules.edged.tailoredKubeletConfig.reservedMemory",
        ],
        why: super::kubelet::NOT_PINNED,
    },
    Group {
        keys: &["modules.edged.tailoredKubeletConfig.volumePluginDir"],
        why: "volumes of flexVolume plug-ins are not part of this version; CSI plug-ins are",
    },
    Group {
        keys: &["modules.edged.tailoredKubeletConfig.kernelMemcgNotification"],
        why: "memory is looked at every ten seconds",
    },
    Group {
        keys: &[
            "modules.edged.annotations",
            "modules.edged.cgroupDriver",
            "modules.edged.cgroupRoot",
            "modules.edged.cgroupsPerQOS",
            "modules.edged.clusterDNS",
            "modules.edged.clusterDomain",
            "modules.edged.cniBinDir",
            "modules.edged.cniCacheDirs",
            "modules.edged.cniConfDir",
            "modules.edged.concurrentConsumers",
            "modules.edged.devicePluginEnabled",
            "modules.edged.dockerAddress",
            "modules.edged.edgeCoreCgroups",
            "modules.edged.edgedMemoryCapacity",
            "modules.edged.enableMetrics",
            "modules.edged.gpuPluginEnabled",
            "modules.edged.imageGCHighThreshold",
            "modules.edged.imageGCLowThreshold",
            "modules.edged.imagePullProgressDeadline",
            "modules.edged.labels",
            "modules.edged.maximumDeadContainersPerPod",
            "modules.edged.networkPluginMTU",
            "modules.edged.networkPluginName",
            "modules.edged.nodeStatusUpdateFrequency",
            "modules.edged.registerNode",
            "modules.edged.remoteImageEndpoint",
            "modules.edged.remoteRuntimeEndpoint",
            "modules.edged.runtimeRequestTimeout",
            "modules.edged.runtimeType",
            "modules.edged.systemCgroups",
            "modules.edged.taints",
            "modules.edged.volumeStatsAggPeriod",
        ],
        why: "they are keys of v1alpha1, which EdgeCore v1.23 does not read; those that still exist stand below \
              modules.edged.tailoredKubeletConfig",
    },
];
