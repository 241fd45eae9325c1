use super::*;
use crate::embedded::cdi::Registry;
use expect_test::expect;
use kedge_containers::IdMapping;
use std::os::unix::fs::PermissionsExt;

const ROOT: Taker<'_> = Taker {
    uid: 0,
    gid: 0,
    own_users: None,
};

/// What a device with these edits adds.
fn given(edits: Value, taker: &Taker<'_>) -> Result<Named, String> {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let top = std::env::temp_dir().join(format!("kedge-named-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&top).unwrap();
    let document = json!({
        "cdiVersion": "1.1.0", "kind": "v.com/d", "devices": [{ "name": "0", "containerEdits": edits }],
    });
    let file = top.join("d.json");
    std::fs::write(&file, document.to_string()).unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    let parts = Registry::new(vec![top.clone()]).resolve(&["v.com/d=0".to_owned()]);
    std::fs::remove_dir_all(&top).unwrap();
    let given = gather(&parts.unwrap(), taker);
    given.map_err(|error| error.to_string().replace(top.to_str().unwrap(), ""))
}

fn nodes(nodes: Value, taker: &Taker<'_>) -> String {
    match given(json!({ "deviceNodes": nodes }), taker) {
        Ok(named) => named
            .nodes
            .iter()
            .map(|node| {
                format!(
                    "{} {}\n",
                    node.document,
                    node.rule.as_ref().unwrap_or(&Value::Null)
                )
            })
            .collect(),
        Err(why) => format!("{why}\n"),
    }
}

#[test]
fn a_device_is_as_it_is_said_and_else_as_the_node_has_it() {
    let root = ROOT;
    let told = [
        nodes(json!([{ "path": "/dev/null" }]), &root),
        nodes(
            json!([{ "path": "/dev/given", "hostPath": "/dev/full", "permissions": "r", "fileMode": 0o600 }]),
            &root,
        ),
        nodes(
            json!([{ "path": "/dev/given", "hostPath": "/dev/full", "uid": 7, "gid": 8, "permissions": "none" }]),
            &root,
        ),
        nodes(
            json!([{ "path": "/dev/later", "type": "u", "major": 195, "minor": 254 }]),
            &root,
        ),
        nodes(json!([{ "path": "/dev/null", "minor": 9, "major": 1 }]), &root),
        nodes(json!([{ "path": "/dev/x", "type": "p" }]), &root),
        nodes(
            json!([{ "path": "/dev/x", "hostPath": "/dev/null" }, { "path": "/dev/x", "hostPath": "/dev/zero" }]),
            &root,
        ),
        nodes(
            json!([{ "path": "/dev/null" }]),
            &Taker {
                uid: 1000,
                gid: 100,
                ..ROOT
            },
        ),
        nodes(json!([{ "path": "/dev/later" }]), &root),
        nodes(json!([{ "path": "/dev/null", "type": "b" }]), &root),
        nodes(json!([{ "path": "/dev/x", "hostPath": "/etc/passwd" }]), &root),
        nodes(json!([{ "path": "/run/x", "hostPath": "/dev/null" }]), &root),
    ];
    expect![[r#"
        {"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":438} {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}
        {"path":"/dev/given","type":"c","major":1,"minor":7,"fileMode":384} {"allow":true,"type":"c","major":1,"minor":7,"access":"r"}
        {"path":"/dev/given","type":"c","major":1,"minor":7,"fileMode":438,"uid":7,"gid":8} null
        {"path":"/dev/later","type":"c","major":195,"minor":254} {"allow":true,"type":"c","major":195,"minor":254,"access":"rwm"}
        {"path":"/dev/null","type":"c","major":1,"minor":9,"fileMode":438} {"allow":true,"type":"c","major":1,"minor":9,"access":"rwm"}
        {"path":"/dev/x","type":"p","major":0,"minor":0} null
        {"path":"/dev/x","type":"c","major":1,"minor":5,"fileMode":438} {"allow":true,"type":"c","major":1,"minor":5,"access":"rwm"}
        {"path":"/dev/null","type":"c","major":1,"minor":3,"fileMode":438,"uid":1000,"gid":100} {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}
        give a container device v.com/d=0: device node /dev/later: /dev/later: No such file or directory (os error 2) (/d.json)
        give a container device v.com/d=0: device node /dev/null: it is to be of type b, and on the node it is of type c (/d.json)
        give a container device v.com/d=0: device node /dev/x: /etc/passwd is not a device (/d.json)
        give a container device v.com/d=0: device node /run/x: a container has its devices below /dev (/d.json)
    "#]].assert_eq(&told.join(""));
}

#[test]
fn a_pod_with_users_of_its_own_is_lent_devices_as_they_are() {
    let ids = IdMapping {
        host_id: 65536,
        container_id: 0,
        length: 65536,
    };
    let ids = UserNamespace { uids: ids, gids: ids };
    let own = Taker {
        own_users: Some(&ids),
        ..ROOT
    };
    let told = [
        nodes(json!([{ "path": "/dev/x", "hostPath": "/dev/null" }]), &own),
        nodes(
            json!([{ "path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3 }]),
            &own,
        ),
        nodes(
            json!([{ "path": "/dev/x", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 5 }]),
            &own,
        ),
        nodes(json!([{ "path": "/dev/later", "type": "c", "major": 195 }]), &own),
        nodes(json!([{ "path": "/dev/null", "fileMode": 0o600 }]), &own),
        nodes(json!([{ "path": "/dev/null", "uid": 0 }]), &own),
    ];
    expect![[r#"
        {"path":"/dev/x","type":"c","major":1,"minor":3,"fileMode":438} {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}
        {"path":"/dev/x","type":"c","major":1,"minor":3,"fileMode":438} {"allow":true,"type":"c","major":1,"minor":3,"access":"rwm"}
        give a container device v.com/d=0: device node /dev/x: it is to have another type and numbers than /dev/null has, and a pod with users of its own (hostUsers: false) is lent the devices of the node as they are (/d.json)
        give a container device v.com/d=0: device node /dev/later: /dev/later: No such file or directory (os error 2), and a pod with users of its own (hostUsers: false) is lent the devices of the node as they are (/d.json)
        give a container device v.com/d=0: device node /dev/null: it is to have another mode than /dev/null has, and a pod with users of its own (hostUsers: false) is lent the devices of the node as they are (/d.json)
        give a container device v.com/d=0: device node /dev/null: it is to have another owner than /dev/null has, and a pod with users of its own (hostUsers: false) is lent the devices of the node as they are (/d.json)
    "#]].assert_eq(&told.join(""));
    let refused = |edits| given(edits, &own).unwrap_err();
    let told = [
        refused(
            json!({ "mounts": [{ "hostPath": "/etc", "containerPath": "/x", "options": ["rbind", "rshared"] }] }),
        ),
        refused(json!({ "hooks": [{ "hookName": "createContainer", "path": "/bin/true" }] })),
    ];
    expect![[r#"
        give a container device v.com/d=0: mount /x: what a pod with users of its own (hostUsers: false) mounts cannot pass to the node (/d.json)
        give a container device v.com/d=0: hook /bin/true (createContainer): a pod with users of its own (hostUsers: false) is made where no programs of the node are (/d.json)"#]].assert_eq(&told.join("\n"));
    assert!(
        given(
            json!({ "hooks": [{ "hookName": "startContainer", "path": "/bin/true" }] }),
            &own
        )
        .is_ok()
    );
}

#[test]
fn what_is_mounted() {
    let told = |mount: Value| match given(json!({ "mounts": [mount] }), &ROOT) {
        Ok(named) => named.mounts[0].1.to_string(),
        Err(why) => why,
    };
    let told = [
        told(
            json!({ "hostPath": "/etc/passwd", "containerPath": "/a/../b", "options": ["ro", "nosuid", "bind"] }),
        ),
        told(
            json!({ "hostPath": "/etc", "containerPath": "/a", "options": ["ro", "rbind", "rslave"], "type": "none" }),
        ),
        told(json!({ "hostPath": "/etc", "containerPath": "/a" })),
        told(json!({ "hostPath": "tmpfs", "containerPath": "/a", "options": ["size=1m"], "type": "tmpfs" })),
        told(json!({ "hostPath": "/no/such", "containerPath": "/a" })),
        told(json!({ "hostPath": "etc", "containerPath": "/a" })),
        told(json!({ "hostPath": "/etc", "containerPath": "/.." })),
    ];
    expect![[r#"
        {"destination":"/b","type":"bind","source":"/etc/passwd","options":["ro","nosuid","bind","rprivate"]}
        {"destination":"/a","type":"bind","source":"/etc","options":["ro","rbind","rslave"]}
        {"destination":"/a","type":"bind","source":"/etc","options":["rbind","rprivate"]}
        {"destination":"/a","type":"tmpfs","source":"tmpfs","options":["size=1m"]}
        give a container device v.com/d=0: mount /a: /no/such: No such file or directory (os error 2) (/d.json)
        give a container device v.com/d=0: mount /a: etc is not a path of the node (/d.json)
        give a container device v.com/d=0: mount /..: nothing can take the place of the container's root (/d.json)"#]].assert_eq(&told.join("\n"));
}

#[test]
fn hooks_are_run_if_nobody_else_can_change_them() {
    let hook = |stage: &str, more: Value| {
        let mut hook = json!({ "hookName": stage, "path": "/bin/true" });
        hook.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        hook
    };
    let all = json!([
        hook("prestart", json!({})),
        hook("createRuntime", json!({ "timeout": 600 })),
        hook(
            "createContainer",
            json!({ "timeout": 5, "args": ["true", "-x"], "env": ["A=b"] })
        ),
        hook("startContainer", json!({})),
        hook("poststart", json!({})),
        hook("poststop", json!({})),
    ]);
    let named = given(json!({ "hooks": all }), &ROOT).unwrap();
    assert_eq!(named.hooks.poststop.len(), 1);
    let text = serde_json::to_string_pretty(&document(&named.hooks).unwrap()).unwrap();
    expect![[r#"
        {
          "prestart": [
            {
              "path": "/bin/true",
              "args": [],
              "timeout": 60,
              "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
              ]
            }
          ],
          "createRuntime": [
            {
              "path": "/bin/true",
              "args": [],
              "timeout": 60,
              "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
              ]
            }
          ],
          "createContainer": [
            {
              "path": "/bin/true",
              "args": [
                "true",
                "-x"
              ],
              "timeout": 5,
              "env": [
                "A=b"
              ]
            }
          ],
          "startContainer": [
            {
              "path": "/bin/true",
              "args": [],
              "timeout": 60
            }
          ],
          "poststart": [
            {
              "path": "/bin/true",
              "args": [],
              "timeout": 60,
              "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
              ]
            }
          ]
        }"#]]
    .assert_eq(&text);
    assert_eq!(document(&Hooks::default()), None);
    let directory = std::env::temp_dir().join(format!("kedge-hook-{}", std::process::id()));
    std::fs::write(&directory, "").unwrap();
    let mode = |mode| std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
    let refused = |hook: Value| given(json!({ "hooks": [hook] }), &ROOT).unwrap_err();
    let by_others = |bits| {
        mode(bits);
        refused(hook("prestart", json!({ "path": directory }))).replace(directory.to_str().unwrap(), "TOOL")
    };
    let told = [
        refused(hook("createRuntime", json!({ "path": "/no/such" }))),
        by_others(0o600),
        by_others(0o777),
    ];
    std::fs::remove_file(&directory).unwrap();
    expect![[r#"
        give a container device v.com/d=0: hook /no/such (createRuntime): No such file or directory (os error 2) (/d.json)
        give a container device v.com/d=0: hook TOOL (prestart): it is not a program (/d.json)
        give a container device v.com/d=0: hook TOOL (prestart): others than root may write to it (/d.json)"#]].assert_eq(&told.join("\n"));
}

#[test]
fn what_cannot_be_given_is_refused() {
    let refused = |edits| given(edits, &ROOT).unwrap_err();
    let told = [
        refused(json!({ "intelRdt": { "closID": "x" } })),
        refused(json!({ "netDevices": [{ "hostInterfaceName": "eth1", "name": "eth1" }] })),
    ];
    expect![[r#"
        give a container device v.com/d=0: the built-in runtime does not divide caches and memory bandwidth (intelRdt) (/d.json)
        give a container device v.com/d=0: the built-in runtime moves no network interfaces (netDevices): a pod's network is all its containers' (/d.json)"#]].assert_eq(&told.join("\n"));
}
