use super::*;
use expect_test::expect;
use std::os::unix::fs::PermissionsExt;

/// Directories of files that go with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str, files: &[(&str, String)]) -> Self {
        let top = std::env::temp_dir().join(format!("kedge-cdi-{}-{name}", std::process::id()));
        for (path, text) in files {
            let path = top.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        }
        Self(top)
    }

    fn registry(&self) -> Registry {
        Registry::new(
            ["static", "generated", "missing"]
                .map(|name| self.0.join(name))
                .into(),
        )
    }

    /// What each device brings, or why it does not.
    fn told(&self, names: &[&str]) -> String {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let told = match self.registry().resolve(&names) {
            Ok(parts) => parts
                .iter()
                .map(|part| {
                    format!(
                        "{} {}: {}\n",
                        part.device,
                        part.file.display(),
                        part.edits.env.join(" ")
                    )
                })
                .collect(),
            Err(error) => format!("{error}\n"),
        };
        told.replace(self.0.to_str().unwrap(), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn described(kind: &str, common: &str, devices: &[(&str, &str)]) -> String {
    let devices = devices
        .iter()
        .map(|(name, env)| serde_json::json!({ "name": name, "containerEdits": { "env": [env] } }));
    let devices: Vec<_> = devices.collect();
    let common = if common.is_empty() { vec![] } else { vec![common] };
    serde_json::json!({
        "cdiVersion": "0.6.0", "kind": kind, "containerEdits": { "env": common }, "devices": devices,
    })
    .to_string()
}

#[test]
fn devices_are_found_and_the_later_directory_counts_more() {
    let folder = Folder::new(
        "found",
        &[
            (
                "static/gpu.json",
                described(
                    "v.com/gpu",
                    "ALL=1",
                    &[("a", "FROM=static"), ("b", "B=1"), ("c", "C=1")],
                ),
            ),
            (
                "static/more.yaml",
                described("v.com/gpu", "", &[("c", "C=2"), ("d", "D=1")]),
            ),
            (
                "static/npu.yaml",
                described("v.com/npu", "NPU=1", &[("a", "A=1")]),
            ),
            ("static/readme.txt", "not of the interface".to_owned()),
            (
                "generated/gpu.yaml",
                described("v.com/gpu", "", &[("a", "FROM=generated"), ("d", "D=2")]),
            ),
            ("static/inner.json/deep.json", "a directory is no file".to_owned()),
        ],
    );
    let told = [
        folder.told(&[]),
        folder.told(&["v.com/gpu=a"]),
        folder.told(&["v.com/gpu=b", "v.com/npu=a", "v.com/gpu=a"]),
        folder.told(&["v.com/gpu=d"]),
        folder.told(&["v.com/gpu=c"]),
        folder.told(&["v.com/gpu=e"]),
        folder.told(&["other.com/gpu=a"]),
        folder.told(&["gpu"]),
        format!(
            "{}\n",
            Registry::default()
                .resolve(&["v.com/gpu=a".to_owned()])
                .unwrap_err()
        ),
    ];
    expect![[r#"
        --
        v.com/gpu=a /generated/gpu.yaml: 
        v.com/gpu=a /generated/gpu.yaml: FROM=generated
        --
        v.com/gpu=b /static/gpu.json: ALL=1
        v.com/gpu=b /static/gpu.json: B=1
        v.com/npu=a /static/npu.yaml: NPU=1
        v.com/npu=a /static/npu.yaml: A=1
        v.com/gpu=a /generated/gpu.yaml: 
        v.com/gpu=a /generated/gpu.yaml: FROM=generated
        --
        v.com/gpu=d /generated/gpu.yaml: 
        v.com/gpu=d /generated/gpu.yaml: D=2
        --
        give a container device v.com/gpu=c: /static/gpu.json and /static/more.yaml both describe it; remove one of them
        --
        give a container device v.com/gpu=e: no file in /static, /generated, /missing describes it; of v.com/gpu there are a, b, c, d
        --
        give a container device other.com/gpu=a: no file in /static, /generated, /missing describes it
        --
        give a container device gpu: "gpu" is not the name of a device; vendor.com/class=device is expected
        --
        give a container device v.com/gpu=a: there is no directory with files of the Container Device Interface (kedge.cdiSpecDirs)
    "#]].assert_eq(&told.join("--\n"));
}

#[test]
fn what_is_broken_disturbs_only_those_who_miss_something() {
    let good = || described("v.com/gpu", "", &[("a", "A=1")]);
    let folder = Folder::new(
        "broken",
        &[
            ("static/a.yaml", "{".to_owned()),
            ("static/good.json", good()),
            ("static/open.json", good()),
            (
                "static/large.json",
                format!("{}{}", good(), " ".repeat(FILE_BYTES_MAX as usize)),
            ),
            ("static/z.json", "\u{0}".to_owned()),
        ],
    );
    std::fs::set_permissions(
        folder.0.join("static/open.json"),
        PermissionsExt::from_mode(0o664),
    )
    .unwrap();
    std::fs::write(folder.0.join("static/bytes.yaml"), [0xff, 0xfe]).unwrap();
    std::os::unix::fs::symlink("/no/such", folder.0.join("static/dangling.yaml")).unwrap();
    nix::unistd::mkfifo(&folder.0.join("static/pipe.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let told = [folder.told(&["v.com/gpu=a"]), folder.told(&["v.com/gpu=b"])];
    expect![[r#"
        v.com/gpu=a /static/good.json: 
        v.com/gpu=a /static/good.json: A=1
        --
        give a container device v.com/gpu=b: no file in /static, /generated, /missing describes it; of v.com/gpu there are a; /static/a.yaml is not used: not valid YAML: error: line 1 column 1: unclosed bracket '{'; /static/bytes.yaml is not used: invalid utf-8 sequence of 1 bytes from index 0; /static/dangling.yaml is not used: No such file or directory (os error 2); /static/large.json is not used: it is larger than 4194304 bytes, or all files are larger than 33554432; /static/open.json is not used: others than root may write to it; make it root's, with mode 0644; /static/pipe.yaml is not used: it is not a file; /static/z.json is not used: expected value at line 1 column 1
    "#]].assert_eq(&told.join("--\n"));
}

#[test]
fn there_is_an_end_to_what_is_read() {
    let files: Vec<_> = (0..=FILES_MAX)
        .map(|number| (format!("static/{number}.json"), String::new()))
        .collect();
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (name.as_str(), text.clone()))
        .collect();
    let many = Folder::new("many", &files);
    expect![[r#"
        give a container device v.com/gpu=a: no file in /static, /generated, /missing describes it; /static is not used: it has more than 512 files
    "#]].assert_eq(&many.told(&["v.com/gpu=a"]));
    let names: Vec<String> = (0..=EDITS_MAX).map(|number| format!("d{number}")).collect();
    let devices: Vec<_> = names.iter().map(|name| (name.as_str(), "A=1")).collect();
    let rich = Folder::new("rich", &[("static/a.json", described("v.com/gpu", "", &devices))]);
    let wanted: Vec<_> = names.iter().map(|name| format!("v.com/gpu={name}")).collect();
    let wanted: Vec<_> = wanted.iter().map(String::as_str).collect();
    expect![[r#"
        give a container device v.com/gpu=d2048: its devices give one container more than 2048 things
    "#]]
    .assert_eq(&rich.told(&wanted));
}
