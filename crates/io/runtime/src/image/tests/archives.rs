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
