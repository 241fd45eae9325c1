use super::*;
use expect_test::expect;
use proptest::prelude::*;

/// What vendors write.
const WHOLE: &str = r#"
cdiVersion: "0.7.0"
kind: vendor.com/gpu
annotations: {made-by: tool}
containerEdits:
  env: [VENDOR=yes, EMPTY=]
  hooks:
  - hookName: createContainer
    path: /usr/bin/vendor-tool
    args: [vendor-tool, update-ldcache]
    env: [DEBUG=false]
    timeout: 10
  mounts:
  - hostPath: /usr/lib/libvendor.so.1
    containerPath: /usr/lib/libvendor.so.1
    type: bind
    options: [ro, nosuid, nodev, rbind, rprivate]
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - path: /dev/vendor0
      hostPath: /dev/vendor/by-path/0
      type: c
      major: 195
      fileMode: 0666
      permissions: rw
      uid: 0
    additionalGIDs: [44]
- name: all
  annotations: null
  containerEdits:
    env: null
    deviceNodes: [{path: /dev/vendor0}]
"#;

fn parse(text: &str) -> Result<Document, String> {
    Document::parse(text, Syntax::Yaml)
}

/// The document with something else at one place.
fn changed(from: &str, to: &str) -> String {
    assert!(WHOLE.contains(from), "{from}");
    WHOLE.replacen(from, to, 1)
}

#[test]
fn a_whole_document_is_read() {
    let document = parse(WHOLE).unwrap();
    expect![[r#"
        ContainerEdits {
            env: [],
            device_nodes: [
                DeviceNode {
                    path: "/dev/vendor0",
                    host_path: "/dev/vendor/by-path/0",
                    kind: "c",
                    major: 195,
                    minor: 0,
                    file_mode: Some(
                        438,
                    ),
                    permissions: "rw",
                    uid: Some(
                        0,
                    ),
                    gid: None,
                },
            ],
            mounts: [],
            hooks: [],
            additional_gids: [
                44,
            ],
            intel_rdt: None,
            net_devices: [],
        }
    "#]]
    .assert_debug_eq(&document.devices[0].container_edits);
    expect![[r#"
        [
            Hook {
                stage: CreateContainer,
                path: "/usr/bin/vendor-tool",
                args: [
                    "vendor-tool",
                    "update-ldcache",
                ],
                env: [
                    "DEBUG=false",
                ],
                timeout: Some(
                    10,
                ),
            },
        ]
    "#]]
    .assert_debug_eq(&document.container_edits.hooks);
    assert_eq!(
        document.devices[1].container_edits.device_nodes[0].host_path(),
        Path::new("/dev/vendor0")
    );
    let as_json = kedge_config::yaml::parse(WHOLE).unwrap()[0].to_string();
    assert_eq!(Document::parse(&as_json, Syntax::Json), Ok(document));
}

#[test]
fn what_is_not_in_the_format_is_refused() {
    let refused = [
        changed("kind: vendor.com/gpu", "kind: gpu"),
        changed("kind: vendor.com/gpu", "kind: vendor.com/gpu\nname: x"),
        changed("name: all", "name: '0'"),
        changed("name: all", "name: -all"),
        changed("uid: 0", "owner: root"),
        changed("VENDOR=yes", "VENDOR"),
        changed("VENDOR=yes", "=yes"),
        changed("path: /dev/vendor0\n", "path: dev/vendor0\n"),
        changed("type: c", "type: char"),
        changed("major: 195", "major: -1"),
        changed("major: 195", "major: 4294967296"),
        changed("permissions: rw", "permissions: rwx"),
        changed("hookName: createContainer", "hookName: createcontainer"),
        changed("path: /usr/bin/vendor-tool", "path: vendor-tool"),
        changed("timeout: 10", "timeout: 0"),
        changed("hostPath: /usr/lib/libvendor.so.1", "hostPath: ''"),
        changed("containerPath: /usr", "containerPath: usr"),
        changed("    deviceNodes: [{path: /dev/vendor0}]", "    mounts: []"),
        "cdiVersion: 0.6.0\nkind: v.com/c\ndevices: []\n".to_owned(),
        "cdiVersion: 0.6.0\nkind: v.com/c\n---\na: 1\n".to_owned(),
        "[]".to_owned(),
        String::new(),
        "{".to_owned(),
    ];
    let told: Vec<_> = refused.iter().map(|text| parse(text).expect_err(text)).collect();
    expect![[r#"
        "gpu" is not a kind of devices; vendor.com/class is expected
        unknown field `name`, expected one of `cdiVersion`, `kind`, `annotations`, `devices`, `containerEdits`
        it describes the device 0 twice
        "-all" is not the name of a device
        unknown field `owner`, expected one of `path`, `hostPath`, `type`, `major`, `minor`, `fileMode`, `permissions`, `uid`, `gid`
        "VENDOR" is not a variable; NAME=value is expected
        "=yes" is not a variable; NAME=value is expected
        device 0: the path of a device node begins with /, and "dev/vendor0" does not
        device 0: device node /dev/vendor0: there is no type "char"
        device 0: device node /dev/vendor0: no device has the numbers -1:0
        device 0: device node /dev/vendor0: no device has the numbers 4294967296:0
        device 0: device node /dev/vendor0: "rwx" are not rights to a device
        unknown variant `createcontainer`, expected one of `prestart`, `createRuntime`, `createContainer`, `startContainer`, `poststart`, `poststop`
        the path of a hook begins with /, and "vendor-tool" does not
        hook /usr/bin/vendor-tool: its timeout has to be more than 0
        mount /usr/lib/libvendor.so.1: it has no hostPath
        the path of a mount begins with /, and "usr/lib/libvendor.so.1" does not
        the device all gives a container nothing
        it describes no device
        one document is expected, and it has 2
        invalid length 0, expected struct Document with 5 elements
        one document is expected, and it has 0
        not valid YAML: error: line 1 column 1: unclosed bracket '{'"#]].assert_eq(&told.join("\n"));
}

#[test]
fn a_word_that_is_younger_than_the_document_is_refused() {
    let with = |version: &str, device: &str, kind: &str, edits: &str| {
        let text = format!(
            "cdiVersion: {version}\nkind: {kind}\ndevices: [{{name: {device}, containerEdits: {{env: [A=b], {edits}}}}}]\n"
        );
        parse(&text).map_or_else(|why| why, |_| "read".to_owned())
    };
    let plain = |version: &str| with(version, "d", "v.com/c", "");
    let told = [
        plain("0.2.0"),
        plain("0.3.0"),
        plain("v1.0.0"),
        plain("1.1.0"),
        plain("1.2.0"),
        with(
            "0.3.0",
            "d",
            "v.com/c",
            "mounts: [{hostPath: /a, containerPath: /a, type: bind}]",
        ),
        with("0.4.0", "'0'", "v.com/c", ""),
        with(
            "0.4.0",
            "d",
            "v.com/c",
            "deviceNodes: [{path: /dev/a, hostPath: /dev/b}]",
        ),
        with("0.5.0", "d", "v.com/c.d", ""),
        with("0.6.0", "d", "v.com/c", "additionalGids: [1]"),
        with("0.6.0", "d", "v.com/c", "intelRdt: {closID: x}"),
        with("0.7.0", "d", "v.com/c", "intelRdt: {closID: x}"),
        with("1.0.0", "d", "v.com/c", "intelRdt: {enableMonitoring: true}"),
        with(
            "1.0.0",
            "d",
            "v.com/c",
            "netDevices: [{hostInterfaceName: eth1, name: eth1}]",
        ),
        with(
            "1.1.0",
            "'0'",
            "v.com/c.d",
            "netDevices: [{hostInterfaceName: eth1, name: eth1}]",
        ),
    ];
    expect![[r#"
        cdiVersion "0.2.0" is not known; those from 0.3.0 to 1.1.0 are
        read
        read
        read
        cdiVersion "1.2.0" is not known; those from 0.3.0 to 1.1.0 are
        type of a mount came with cdiVersion 0.4.0, and it says 0.3.0
        a device's name that begins with a digit came with cdiVersion 0.5.0, and it says 0.4.0
        hostPath of a device node came with cdiVersion 0.5.0, and it says 0.4.0
        a dot in the class came with cdiVersion 0.6.0, and it says 0.5.0
        additionalGids came with cdiVersion 0.7.0, and it says 0.6.0
        intelRdt came with cdiVersion 0.7.0, and it says 0.6.0
        read
        a part of intelRdt came with cdiVersion 1.1.0, and it says 1.0.0
        netDevices came with cdiVersion 1.1.0, and it says 1.0.0
        read"#]]
    .assert_eq(&told.join("\n"));
}

#[test]
fn a_document_that_grows_when_it_is_read_is_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let below = format!("*a{}, ", level - 1).repeat(8);
        bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
    }
    for hostile in [bomb, format!("{}{}", "[".repeat(50_000), "]".repeat(50_000))] {
        for syntax in [Syntax::Yaml, Syntax::Json] {
            assert!(Document::parse(&hostile, syntax).is_err());
        }
    }
}

proptest! {
    #[test]
    fn anything_is_read_or_refused(text in "[ -~\n]{0,200}") {
        for syntax in [Syntax::Yaml, Syntax::Json] {
            drop(Document::parse(&text, syntax));
        }
    }

    /// A document in which something was lost or written over is read or refused; what is read can be used.
    #[test]
    fn a_damaged_document_is_read_or_refused(at in 0..WHOLE.len(), lost in 0_usize..40, put in "[ -~\n]{0,6}") {
        let end = (at + lost).min(WHOLE.len());
        let text = format!("{}{put}{}", &WHOLE[..at], &WHOLE[end..]);
        if let Ok(document) = parse(&text) {
            prop_assert!(!document.devices.is_empty());
            for device in &document.devices {
                let name = format!("{}={}", document.kind, device.name);
                prop_assert!(super::super::names::Name::parse(&name).is_ok(), "{}", name);
                for node in &device.container_edits.device_nodes {
                    prop_assert!(node.path.is_absolute() && node.host_path().is_absolute());
                }
            }
        }
    }
}
