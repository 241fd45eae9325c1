use super::super::store::{ImageStore, ImageUser};
use super::super::{Blueprint, FileInImage, Reference, build_archive, digest_of};
use super::tar::{directory, file, hard_link, symlink, tar};
use super::{Place, is_root, tree};
use crate::Error;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn open(place: &Place) -> ImageStore {
    ImageStore::open(place.path("images"), || Ok(Vec::new())).unwrap()
}

/// What stands in the store, without what is always there.
fn held(place: &Place) -> Vec<String> {
    let tree = tree(&place.path("images"));
    let depth =
        |line: &&str| !line.starts_with("layers/") || line.split(' ').next().unwrap().split('/').count() == 2;
    let names = tree
        .lines()
        .filter(depth)
        .map(|line| line.split(' ').next().unwrap().to_owned());
    let furniture = [
        "blobs",
        "blobs/sha256",
        "layers",
        "recipes",
        "images.lock",
        "use.lock",
        "index.json",
    ];
    names.filter(|name| !furniture.contains(&name.as_str())).collect()
}

fn member(path: &str, bytes: &[u8]) -> super::tar::Written {
    file("long", bytes).with("path", path.as_bytes())
}

/// An OCI archive of layers as they come.
fn oci(name: &str, layers: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|(plain, _)| digest_of(plain)).collect();
    let configuration = serde_json::json!({
        "architecture": kedge_host::architecture(), "os": "linux", "author": "kept as it came",
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let configuration = configuration.to_string().into_bytes();
    let descriptor = |bytes: &[u8]| serde_json::json!({ "digest": digest_of(bytes), "size": bytes.len() });
    let listed: Vec<_> = layers.iter().map(|(_, packed)| descriptor(packed)).collect();
    let manifest =
        serde_json::json!({ "schemaVersion": 2, "config": descriptor(&configuration), "layers": listed });
    let manifest = manifest.to_string().into_bytes();
    let mut listed = descriptor(&manifest);
    listed["annotations"] = serde_json::json!({ "io.containerd.image.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [listed] });
    let mut members = vec![member("index.json", index.to_string().as_bytes())];
    let blobs = layers.iter().map(|(_, packed)| packed.as_slice());
    for blob in blobs.chain([manifest.as_slice(), configuration.as_slice()]) {
        members.push(member(
            &format!("blobs/{}", digest_of(blob).replace(':', "/")),
            blob,
        ));
    }
    tar(&members)
}

fn write(place: &Place, name: &str, bytes: &[u8]) -> PathBuf {
    let path = place.path(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn plain(entries: &[super::tar::Written]) -> (Vec<u8>, Vec<u8>) {
    let tar = tar(entries);
    (tar.clone(), tar)
}

#[test]
fn what_is_exported_is_the_same_image() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = open(&place);
    let whole = plain(&[
        directory("etc"),
        file("etc/name", b"edge"),
        hard_link("etc/other", "etc/name"),
        symlink("e", "etc"),
    ]);
    // One content is replaced, so this one is kept packed.
    let replaced = tar(&[file("a", b"first"), file("a", b"second")]);
    let packed = super::hostile::gzip(&replaced);
    let archive = write(
        &place,
        "in.tar",
        &oci("kedge.test/x:1", &[whole, (replaced, packed)]),
    );
    let imported = store.import(&archive).unwrap();
    let out = place.path("out.tar");
    store.export("kedge.test/x:1", &out).unwrap();
    assert!(!place.path("out.tar.partial").exists());

    let elsewhere = Place::new();
    let other = open(&elsewhere);
    let again = other.import(&out).unwrap();
    assert_eq!(
        (&again[0].id, &again[0].tags),
        (&imported[0].id, &imported[0].tags)
    );
    let layers = |place: &Place| tree(&place.path("images/layers"));
    assert_eq!(layers(&place), layers(&elsewhere));
    let second = place.path("second.tar");
    other.export("kedge.test/x:1", &second).unwrap();
    assert!(
        std::fs::read(&out).unwrap() == std::fs::read(&second).unwrap(),
        "the same bytes, too"
    );

    // A layer that was changed is not passed on.
    let layer = std::fs::read_dir(place.path("images/layers")).unwrap();
    let changed = layer
        .map(|entry| entry.unwrap().path())
        .find(|path| path.join("etc/name").exists())
        .unwrap();
    std::fs::write(changed.join("etc/name"), "EDGE").unwrap();
    let error = store
        .export("kedge.test/x:1", &place.path("third.tar"))
        .unwrap_err();
    assert!(error.to_string().contains("was changed on the disk"), "{error}");
    assert!(!place.path("third.tar").exists() && !place.path("third.tar.partial").exists());
    let error = store.export("kedge.test/absent:1", &out).unwrap_err();
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error}");
}

#[test]
fn layers_that_lean_on_others_belong_to_their_stack() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = open(&place);
    // The upper of the three is the same in both images, and means another file in each.
    let leaning = || plain(&[hard_link("b", "a"), hard_link("c", "b")]);
    let base = |text: &str| plain(&[file("a", text.as_bytes())]);
    let free = || plain(&[file("free", b"of all")]);
    for (name, text) in [("t/one:1", "one"), ("t/two:1", "another")] {
        let bytes = oci(name, &[base(text), free(), leaning()]);
        store.import(&write(&place, "in.tar", &bytes)).unwrap();
    }
    let layers = |name: &str| store.find(name).unwrap().unwrap().layers;
    let (one, two) = (layers("t/one:1"), layers("t/two:1"));
    assert_eq!(one[1], two[1], "what leans on nothing is shared");
    assert_ne!(one[2], two[2]);
    let read =
        |layer: &str| std::fs::read_to_string(place.path("images/layers").join(layer).join("c")).unwrap();
    assert_eq!(
        (read(&one[2]).as_str(), read(&two[2]).as_str()),
        ("one", "another")
    );

    // It comes again as it was, elsewhere as here, and nothing is unpacked twice.
    let known = held(&place);
    for name in ["t/one:1", "t/two:1"] {
        let out = place.path("out.tar");
        store.export(name, &out).unwrap();
        let elsewhere = Place::new();
        let other = open(&elsewhere);
        assert_eq!(
            other.import(&out).unwrap()[0].id,
            store.image(name).unwrap().unwrap().id
        );
        assert_eq!(
            tree(&elsewhere.path("images/layers").join(&layers(name)[2])),
            tree(&place.path("images/layers").join(&layers(name)[2]))
        );
        store.import(&out).unwrap();
    }
    assert_eq!(held(&place), known);
    store.remove("t/one:1", || Ok(Vec::new())).unwrap();
    assert_eq!(std::fs::read_dir(place.path("images/layers")).unwrap().count(), 3);
    store.remove("t/two:1", || Ok(Vec::new())).unwrap();
    assert_eq!(held(&place), Vec::<String>::new());
}

#[test]
fn many_layers_that_wait_for_each_other_come_to_an_end() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = open(&place);
    let mut layers = vec![plain(&[file("0", b"first")])];
    for number in 1..40 {
        let (name, target) = (number.to_string(), (number - 1).to_string());
        layers.push(plain(&[hard_link(&name, &target)]));
    }
    // The same one again: it finds another file each time.
    layers.push(plain(&[hard_link("again", "39")]));
    layers.push(plain(&[file(".wh.39", b""), file("38", b"changed")]));
    store
        .import(&write(&place, "in.tar", &oci("t/chain:1", &layers)))
        .unwrap();
    let last = store.find("t/chain:1").unwrap().unwrap().layers[40].clone();
    assert_eq!(
        std::fs::read_to_string(place.path("images/layers").join(last).join("again")).unwrap(),
        "first"
    );
    // One that fails wakes those that wait for it.
    layers[20] = plain(&[hard_link("20", "nothing")]);
    let error = store
        .import(&write(&place, "in.tar", &oci("t/broken:1", &layers)))
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("neither its layer nor one below it has"),
        "the cause is told, not what followed: {error}"
    );
    assert_eq!(held(&place).iter().filter(|name| name.contains("/.")).count(), 0);
    // An empty one may stand in an image several times, and one that leans, too.
    let twice = || plain(&[hard_link("same", "39")]);
    let empty = || plain(&[]);
    let all = [
        layers[..10].to_vec(),
        vec![plain(&[file("39", b"x")]), empty(), twice(), empty(), twice()],
    ]
    .concat();
    store
        .import(&write(&place, "in.tar", &oci("t/twice:1", &all)))
        .unwrap();
}

#[test]
fn an_index_that_names_itself_over_and_over_ends() {
    let descriptor = |bytes: &[u8], kind: &str| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}.v1+json"), "digest": digest_of(bytes), "size": bytes.len() });
    let index = |of: &serde_json::Value| {
        serde_json::json!({ "schemaVersion": 2, "manifests": vec![of; 1000] })
            .to_string()
            .into_bytes()
    };
    let mut foreign = descriptor(b"{}", "manifest");
    foreign["platform"] = serde_json::json!({ "os": "linux", "architecture": "s390x" });
    let lowest = index(&foreign);
    let middle = index(&descriptor(&lowest, "index"));
    let top = index(&descriptor(&middle, "index"));
    let blob = |bytes: &[u8]| member(&format!("blobs/{}", digest_of(bytes).replace(':', "/")), bytes);
    let place = Place::new();
    let archive = tar(&[member("index.json", &top), blob(&middle), blob(&lowest)]);
    let error = open(&place)
        .import(&write(&place, "bomb.tar", &archive))
        .unwrap_err()
        .to_string();
    assert!(error.contains("nested too deeply or too long"), "{error}");
}

#[test]
fn a_module_without_a_file_system_is_told_from_an_image() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let module = b"\0asm\x01\0\0\0".as_slice();
    let configuration = br#"{"architecture":"wasm","os":"wasip1","layerDigests":[]}"#.as_slice();
    let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({ "mediaType": kind, "digest": digest_of(bytes), "size": bytes.len() });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.wasm.config.v0+json", configuration),
        "layers": [descriptor("application/wasm", module)],
    });
    let manifest = manifest.to_string().into_bytes();
    let listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [listed] });
    let mut members = vec![member("index.json", index.to_string().as_bytes())];
    for blob in [module, configuration, &manifest] {
        members.push(member(
            &format!("blobs/{}", digest_of(blob).replace(':', "/")),
            blob,
        ));
    }
    let archive = write(&place, "module.tar", &tar(&members));
    let refused = open(&place).import(&archive).unwrap_err().to_string();
    assert!(
        refused.contains("a WebAssembly module without a file system"),
        "{refused}"
    );
}

#[test]
fn an_archive_is_read_within_limits_and_its_links_are_followed() {
    if !is_root() {
        return;
    }
    // A name of megabytes, which would have to be kept in memory.
    let place = Place::new();
    let long = super::tar::Written {
        bytes: vec![b'n'; 2 * 1024 * 1024],
        ..super::tar::entry(b'L', "long")
    };
    let error = open(&place)
        .import(&write(&place, "long.tar", &tar(&[long])))
        .unwrap_err()
        .to_string();
    assert!(error.contains("it is no tar archive, or a broken one"), "{error}");

    // Older tools write a layer once and link to it.
    let (layer, _) = plain(&[file("a", b"content")]);
    let configuration = serde_json::json!({
        "architecture": kedge_host::architecture(), "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [digest_of(&layer), digest_of(&layer)] },
    });
    let listed = serde_json::json!([{ "Config": "c.json", "RepoTags": ["t/linked:1"], "Layers": ["one/layer.tar", "two/layer.tar"] }]);
    let archive = tar(&[
        symlink("two/layer.tar", "../one/layer.tar"),
        member("one/layer.tar", &layer),
        member("c.json", configuration.to_string().as_bytes()),
        member("manifest.json", listed.to_string().as_bytes()),
        symlink("round", "about"),
        symlink("about", "round"),
    ]);
    let store = open(&place);
    let [image] = &store.import(&write(&place, "linked.tar", &archive)).unwrap()[..] else {
        panic!()
    };
    assert_eq!(image.tags, ["docker.io/t/linked:1"]);
}

fn image(place: &Place, name: &str, contents: &[&str]) -> PathBuf {
    let layers: Vec<_> = contents
        .iter()
        .map(|text| plain(&[file(text, text.as_bytes())]))
        .collect();
    write(
        place,
        &format!("{}.tar", name.replace(['/', ':'], "-")),
        &oci(name, &layers),
    )
}

#[test]
fn layers_are_shared_and_counted() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = open(&place);
    let empty = held(&place);
    let [one] = &store.import(&image(&place, "t/one:1", &["base", "one"])).unwrap()[..] else {
        panic!()
    };
    let [two] = &store.import(&image(&place, "t/two:1", &["base", "two"])).unwrap()[..] else {
        panic!()
    };
    let layers = || std::fs::read_dir(place.path("images/layers")).unwrap().count();
    assert_eq!(layers(), 3);
    // A container holds on to what it was made of, also when the image goes.
    let two_layers = store.find("t/two:1").unwrap().unwrap().layers;
    let user = || ImageUser {
        container: "c".into(),
        image: two.id.clone(),
        layers: two_layers.clone(),
    };
    let refused = store.remove("t/two:1", || Ok(vec![user()])).unwrap_err();
    assert!(matches!(refused, Error::ImageInUse { .. }));
    store.remove("t/one:1", || Ok(vec![user()])).unwrap();
    assert_eq!((layers(), store.images().unwrap().len()), (2, 1));

    // What has no name goes by itself; what has one only when asked for; what is used never.
    store
        .import(&image(&place, "t/two:1", &["base", "newer"]))
        .unwrap();
    let (gone, freed) = store.prune(false, || Ok(vec![user()])).unwrap();
    assert_eq!((gone.len(), freed), (0, 0));
    let (gone, freed) = store.prune(true, || Ok(vec![user()])).unwrap();
    assert_eq!(
        (gone[0].tags.as_slice(), freed > 5),
        (&["docker.io/t/two:1".to_owned()][..], true)
    );
    let (gone, _) = store.prune(false, || Ok(Vec::new())).unwrap();
    assert_eq!(gone[0].id, two.id, "it lost its name to a newer one");
    assert_eq!(held(&place), empty);
    assert_ne!(one.id, two.id);
}

#[test]
fn leftovers_go_when_the_store_is_opened() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let store = open(&place);
    store.import(&image(&place, "t/one:1", &["base"])).unwrap();
    let known = held(&place);
    let hex = "ab".repeat(16);
    for made in ["layers/.x", &format!("layers/{hex}")] {
        std::fs::create_dir_all(place.path("images").join(made).join("sub")).unwrap();
    }
    for made in [
        "recipes/.x",
        "recipes/.x.json",
        &format!("recipes/{hex}"),
        "blobs/sha256/.x",
        "blobs/sha256/ff",
    ] {
        std::fs::write(place.path("images").join(made), "left").unwrap();
    }
    let used = || {
        Ok(vec![ImageUser {
            container: "c".into(),
            image: "gone".into(),
            layers: vec![hex.clone()],
        }])
    };
    ImageStore::open(place.path("images"), used).unwrap();
    assert!(
        place.path("images/layers").join(&hex).exists(),
        "a container needs it"
    );
    ImageStore::open(place.path("images"), || {
        Err(Error::NoContainer("broken record".into()))
    })
    .unwrap();
    assert!(place.path("images/layers").join(&hex).exists(), "who knows");
    open(&place);
    assert_eq!(held(&place), known);
    assert_eq!(store.images().unwrap().len(), 1);
}

/// A disk of its own, as small as wanted.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let options = std::ffi::CString::new(format!("size={size}")).unwrap();
        rustix::mount::mount(
            "kedge-test",
            at,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_leaves_nothing_half_done() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let _disk = Disk::mount(&place.path("images"), "3m");
    let store = open(&place);
    store.import(&image(&place, "t/small:1", &["small"])).unwrap();
    let (known, listed) = (held(&place), store.images().unwrap());
    let large: Vec<u8> = (0..8_000_000_u32).map(|number| (number % 251) as u8).collect();
    let archive = oci(
        "t/large:1",
        &[plain(&[file("ok", b"fits")]), plain(&[file("large", &large)])],
    );
    let error = store.import(&write(&place, "large.tar", &archive)).unwrap_err();
    let Error::Io { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert_eq!((held(&place), store.images().unwrap()), (known, listed));
    store.import(&image(&place, "t/other:1", &["other"])).unwrap();
}

#[test]
fn a_small_image_of_a_list_may_be_for_others() {
    let blueprint = |architecture: &str| Blueprint {
        reference: "t/list:1".into(),
        architecture: architecture.into(),
        files: vec![FileInImage {
            path: "/x".into(),
            mode: 0o644,
            bytes: b"x".to_vec(),
        }],
        ..Blueprint::default()
    };
    let place = Place::new();
    let archive = write(
        &place,
        "foreign.tar",
        &build_archive(&blueprint("s390x")).unwrap(),
    );
    let error = open(&place).import(&archive).unwrap_err().to_string();
    assert!(
        error.contains("it is for linux/s390x, and this node is linux/"),
        "{error}"
    );
    assert!("t/list:1".parse::<Reference>().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn broken_archives_leave_nothing(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255_u8), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
        packed: bool,
    ) {
        if is_root() {
            let layers = [plain(&[file("a", b"content"), symlink("b", "a")]), plain(&[file("c", &[7; 3000])])];
            let mut bytes = oci("t/x:1", &layers);
            if packed {
                bytes = super::hostile::gzip(&bytes);
            }
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            let place = Place::new();
            let store = open(&place);
            match store.import(&write(&place, "in.tar", &bytes)) {
                // What was changed was padding, a name, or a time.
                Ok(images) => assert!(!images.is_empty()),
                Err(_) => assert_eq!((held(&place), store.images().unwrap()), (Vec::new(), Vec::new())),
            }
        }
    }
}
