use super::*;
use crate::yaml;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use serde_json::Value;

fn facts() -> CloudFacts {
    CloudFacts {
        primary_ip: "192.0.2.1".into(),
        hostname: "cloud".into(),
    }
}

fn read(text: &str) -> CloudCore {
    CloudCore::from_yaml(text, &facts()).unwrap().0
}

/// Warnings or mistakes, a line each.
fn check(text: &str, expect: Expect) {
    let shown = match CloudCore::from_yaml(text, &facts()) {
        Ok((_, warnings)) => warnings.iter().map(|warning| format!("{warning}\n")).collect(),
        Err(mistakes) => format!("{mistakes}\n"),
    };
    expect.assert_eq(&shown);
}

#[test]
fn an_empty_file_gives_the_official_defaults() {
    let (config, warnings) = CloudCore::from_yaml("", &facts()).unwrap();
    assert_eq!(warnings, []);
    expect![[r#"
        CloudCore {
            replica: "cloud",
            log: Log {
                filter: "info",
                format: Text,
            },
            kube_api: KubeApi {
                master: "",
                kube_config: "",
                qps: 2500,
                burst: 5000,
            },
            monitor: Monitor {
                address: 127.0.0.1:9091,
            },
            hub: Hub {
                websocket: Some(
                    0.0.0.0:10000,
                ),
                quic: None,
                https: 0.0.0.0:10002,
                keepalive_timeout: 30s,
                node_limit: 500,
                advertise_addresses: [
                    192.0.2.1,
                ],
                dns_names: [],
                files: CertificateFiles {
                    authority: "/etc/kubeedge/ca/rootCA.crt",
                    authority_key: "/etc/kubeedge/ca/rootCA.key",
                    certificate: "/etc/kubeedge/certs/server.crt",
                    key: "/etc/kubeedge/certs/server.key",
                },
                edge_certificate_lifetime: 31536000s,
                token_refresh_interval: 43200s,
            },
            edge_controller: EdgeController {
                events: true,
                serving_certificates: true,
            },
            sync_controller: SyncController {
                enable: true,
            },
            stream: Stream {
                enable: true,
                tunnel_port: 10004,
            },
        }
    "#]]
    .assert_debug_eq(&config);
}

#[test]
fn the_printed_files_are_read_back() {
    assert_eq!(read(&CloudCore::default_yaml(&facts())), read(""));
    let mut minimal = read(&CloudCore::minimal_yaml(&facts()));
    assert_eq!(
        (
            minimal.hub.node_limit,
            minimal.kube_api.qps,
            minimal.kube_api.burst
        ),
        (1000, 5000, 10_000)
    );
    minimal.hub.node_limit = 500;
    minimal.kube_api = read("").kube_api;
    assert_eq!(minimal, read(""));
    let six = CloudFacts {
        primary_ip: "2001:db8::".into(),
        hostname: "cloud".into(),
    };
    let (config, _) = CloudCore::from_yaml(&CloudCore::minimal_yaml(&six), &six).unwrap();
    assert_eq!(
        config.hub.advertise_addresses,
        ["2001:db8::".parse::<IpAddr>().unwrap()]
    );
}

/// A file that the official CloudCore has written back holds every key. What has no effect is said once a group.
#[test]
fn every_official_key_is_known() {
    check(
        &CloudCore::default_yaml(&facts()),
        expect![[r#"
            commonConfig.tunnelPort, modules.iptablesManager have no effect in kedge: no port of the control plane is redirected
            commonConfig.monitorServer.enableProfiling has no effect in kedge: there is no Go runtime to profile; perf works on the process as it is
            kubeAPIConfig.contentType has no effect in kedge: objects keep the JSON that the API sent
            modules.cloudHub.https.enable has no effect in kedge: edges could not join without this server; it always runs
            modules.cloudHub.quic.maxIncomingStreams has no effect in kedge: an edge opens one stream
            modules.cloudHub.unixsocket has no effect in kedge: it is the door of the CSI driver, which this version does not have
            modules.cloudHub.writeTimeout has no effect in kedge: an edge that does not read is closed after a fixed time
            modules.cloudStream.streamPort, modules.cloudStream.tlsStreamCAFile, modules.cloudStream.tlsStreamCertFile, modules.cloudStream.tlsStreamPrivateKeyFile have no effect in kedge: the endpoint for the API server is not part of this version
            modules.cloudStream.tlsTunnelCAFile, modules.cloudStream.tlsTunnelCertFile, modules.cloudStream.tlsTunnelPrivateKeyFile have no effect in kedge: the tunnel shows the certificate of the hub
            modules.edgeController.buffer, modules.edgeController.load, modules.edgeController.nodeUpdateFrequency have no effect in kedge: each node has its own bounded queues and worker; there are no pools to size
            modules.deviceController has no effect in kedge: these modules are not part of this version
        "#]],
    );
}

/// Whatever value a known key has, the file is taken or refused with its path; nothing is unknown.
#[test]
fn every_official_key_is_checked() {
    let mut leaves = Vec::new();
    collect(&print::shape(), String::new(), &mut leaves);
    assert!(leaves.len() > 100);
    let wrong: Vec<&String> = leaves
        .iter()
        .filter(|path| {
            let depth = path.split('.').count();
            let mut text = String::new();
            for (level, key) in path.split('.').enumerate() {
                text.push_str(&format!(
                    "{}{key}:{}",
                    "  ".repeat(level),
                    if level + 1 == depth { " [{}]\n" } else { "\n" }
                ));
            }
            let Err(Mistakes(mistakes)) = CloudCore::from_yaml(&text, &facts()) else {
                return true;
            };
            mistakes.iter().all(|mistake| mistake.path != **path)
        })
        .collect();
    // A list is what these want, whose items mean nothing here.
    assert_eq!(wrong, ["modules.cloudHub.authorization.modes"]);
}

fn collect(value: &Value, path: String, leaves: &mut Vec<String>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect(value, path, leaves);
            }
        }
        Value::Null
        | Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Array(_)
        | Value::Object(_) => {
            leaves.push(path);
        }
    }
}

#[test]
fn an_operators_file() {
    let config = read(
        "
apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig: {monitorServer: {bindAddress: '0.0.0.0:9091'}}
kubeAPIConfig: {kubeConfig: /root/.kube/config, qps: 100, burst: 5000}
modules:
  cloudHub:
    advertiseAddress: [10.0.0.1, '2001:db8::1', 10.0.0.1]
    dnsNames: ['', hub.example.org]
    nodeLimit: 2000
    websocket: {enable: false}
    quic: {enable: true, port: 4433, maxIncomingStreams: 10}
    keepaliveInterval: 60
    tlsCAFile: ''
    tlsCAKeyFile: ''
  edgeController: {enable: true}
  syncController: {enable: false}
  cloudStream: null
kedge: {logFormat: json, logFilter: debug, events: false, servingCertificates: false}
",
    );
    expect![[r#"
        CloudCore {
            replica: "cloud",
            log: Log {
                filter: "debug",
                format: Json,
            },
            kube_api: KubeApi {
                master: "",
                kube_config: "/root/.kube/config",
                qps: 100,
                burst: 20000,
            },
            monitor: Monitor {
                address: 0.0.0.0:9091,
            },
            hub: Hub {
                websocket: None,
                quic: Some(
                    0.0.0.0:4433,
                ),
                https: 0.0.0.0:10002,
                keepalive_timeout: 60s,
                node_limit: 2000,
                advertise_addresses: [
                    10.0.0.1,
                    2001:db8::1,
                ],
                dns_names: [
                    "hub.example.org",
                ],
                files: CertificateFiles {
                    authority: "",
                    authority_key: "",
                    certificate: "/etc/kubeedge/certs/server.crt",
                    key: "/etc/kubeedge/certs/server.key",
                },
                edge_certificate_lifetime: 31536000s,
                token_refresh_interval: 43200s,
            },
            edge_controller: EdgeController {
                events: false,
                serving_certificates: false,
            },
            sync_controller: SyncController {
                enable: false,
            },
            stream: Stream {
                enable: true,
                tunnel_port: 10004,
            },
        }
    "#]]
    .assert_debug_eq(&config);
}

#[test]
fn all_mistakes_are_told_at_once_with_their_path() {
    check(
        "
kind: EdgeCore
apiVersion: v1
commonConfig: {monitorServer: {bindAddress: 'localhost:9091'}, tunnelPort: much}
featureGates: {requireAuthorisation: true}
kubeAPIConfig: {kubeConfig: config, qps: 0}
modules:
  cloudHub:
    enable: false
    advertiseAddress: [hub.example.org]
    dnsNames: [two words]
    nodeLimit: -1
    websocket: {port: 99999, address: here, enable: false}
    quic: {port: 0, enable: 'yes'}
    tokenRefreshDuration: 0
    tlsCAFile: ''
    unixsocket: {enable: 1}
  edgeController: {enable: false, buffer: {podEvent: 1.5, secretEvent: 99999999999}}
kedge: {logFormat: xml, events: sometimes}
",
        expect![[r#"
            the configuration has 24 mistakes:
              kind: CloudCore is expected, not "EdgeCore"
              apiVersion: cloudcore.config.kubeedge.io/v1alpha1 or cloudcore.config.kubeedge.io/v1alpha2 is expected, not "v1"
              modules.cloudHub.enable: a CloudCore without its hub serves no edge; remove the key, or do not start this CloudCore
              modules.cloudHub.websocket.address: an IP address is expected, not "here"
              modules.cloudHub.websocket.port: a whole number from 1 to 65535 is expected, not 99999
              modules.cloudHub.quic.port: a whole number from 1 to 65535 is expected, not 0
              modules.cloudHub.quic.enable: true or false is expected, not "yes"
              modules.cloudHub.websocket.enable: edges need a way in: enable websocket or quic
              modules.cloudHub.nodeLimit: a whole number from 1 to 1000000 is expected, not -1
              modules.cloudHub.tokenRefreshDuration: a whole number from 1 to 8760 is expected, not 0
              modules.cloudHub.advertiseAddress: an IP address is expected, not "hub.example.org"; names belong to dnsNames
              modules.cloudHub.dnsNames: a DNS name is expected, not "two words"
              modules.cloudHub.tlsCAFile: is empty but modules.cloudHub.tlsCAKeyFile is not; name both or neither
              kedge.logFormat: text or json is expected, not "xml"
              kubeAPIConfig.kubeConfig: an absolute path is expected, not "config"
              kubeAPIConfig.qps: a whole number from 1 to 2147483647 is expected, not 0
              commonConfig.monitorServer.bindAddress: IP:port is expected, with a port from 1 to 65535, not "localhost:9091"
              modules.edgeController.enable: a CloudCore without its edge controller carries nothing; remove the key, or do not start this CloudCore
              kedge.events: true or false is expected, not "sometimes"
              featureGates.requireAuthorisation: is no feature gate; there are disableNodeTaskV1alpha2, moduleRestart, requireAuthorization
              commonConfig.tunnelPort: a whole number is expected, not "much"
              modules.cloudHub.unixsocket.enable: true or false is expected, not 1
              modules.edgeController.buffer.podEvent: a whole number of 32 bits is expected, not 1.5
              modules.edgeController.buffer.secretEvent: a whole number of 32 bits is expected, not 99999999999
        "#]],
    );
}

#[test]
fn a_file_that_is_no_configuration_is_told_as_such() {
    check(
        "a: [",
        expect![[r#"
        the configuration has 1 mistake:
          not valid YAML: error: line 1 column 4: unclosed bracket '['
         --> <input>:1:4
          |
        1 | a: [
          |    ^ unclosed bracket '['
    "#]],
    );
    check(
        "just words",
        expect![[r#"
        the configuration has 1 mistake:
          a mapping of keys is expected
    "#]],
    );
    check(
        "kind: CloudCore\n---\nkind: CloudCore\n",
        expect![[r#"
        the configuration has 1 mistake:
          2 YAML documents where one is expected
    "#]],
    );
}

#[test]
fn keys_without_effect_and_unknown_keys_are_told_apart() {
    check(
        "
featureGates: {requireAuthorization: true, moduleRestart: false}
modules:
  cloudHub: {nodeLimits: 5, writeTimeout: 30}
  cloudStream: {streamPort: 10003, tlsStreamCAFile: /a}
  router: {enable: true}
  dynamicController: {enable: false}
  deviceController: {buffer: {deviceEvent: 2}}
  edgeController: {buffer: {podEvent: 2}, load: {CreatePodWorks: 2}}
kedge: {loglevel: 3}
",
        expect![[r#"
            modules.cloudHub.nodeLimits is not a known key; is it spelled right?
            kedge.loglevel is not a known key; is it spelled right?
            modules.cloudHub.writeTimeout has no effect in kedge: an edge that does not read is closed after a fixed time
            modules.cloudStream.streamPort, modules.cloudStream.tlsStreamCAFile have no effect in kedge: the endpoint for the API server is not part of this version
            modules.edgeController.buffer, modules.edgeController.load have no effect in kedge: each node has its own bounded queues and worker; there are no pools to size
            modules.router, modules.deviceController have no effect in kedge: these modules are not part of this version
            featureGates.requireAuthorization has no effect in kedge: node authorization and the approver of serving certificates are always on; ServiceAccountAccess objects are not made by this version
        "#]],
    );
}

#[test]
fn keys_are_taken_in_any_case_but_once() {
    let config = read("MODULES: {cloudhub: {NodeLimit: 7}}\n");
    assert_eq!(config.hub.node_limit, 7);
    check(
        "modules: {cloudHub: {nodeLimit: 7, nodelimit: 8}}\n",
        expect![[r#"
            the configuration has 1 mistake:
              modules.cloudHub.nodeLimit: is set twice, in two spellings
        "#]],
    );
}

proptest! {
    /// Hostile files are refused, never a panic.
    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\n]{0,200}") {
        let _ = CloudCore::from_yaml(&text, &facts());
        let _ = yaml::parse(&text);
    }

    /// Any value anywhere is read or refused.
    #[test]
    fn any_value_is_read_or_refused(which in 0usize..200, value in "(-?[0-9]{1,20}|null|true|\\[\\]|\\{\\}|\\[1\\]|a|\"\"|1e999|~)") {
        let mut leaves = Vec::new();
        collect(&print::shape(), String::new(), &mut leaves);
        let path = &leaves[which % leaves.len()];
        let text = format!("{}{value}{}", path.split('.').map(|key| format!("{{{key}: ")).collect::<String>(), "}".repeat(path.split('.').count()));
        let _ = CloudCore::from_yaml(&text, &facts());
    }
}
