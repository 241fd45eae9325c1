use super::tar::{Written, directory, entry, file, hard_link, symlink, tar};
use super::{Place, is_root, made_again, tree, unpack};
use expect_test::expect;
use std::os::unix::fs::MetadataExt as _;

#[test]
fn everything_that_a_layer_may_hold() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    // A version 2 capability: CAP_NET_RAW, permitted and effective. Its bytes hold a line's end on purpose.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0, 0, 0];
    let entries = [
        directory("./"),
        Written {
            mode: 0o1777,
            mtime: 7,
            ..directory("tmp/")
        },
        Written {
            mode: 0o4755,
            uid: 1000,
            mtime: 86_400,
            ..file("bin/su", b"#!")
        }
        .with("SCHILY.xattr.security.capability", &capability)
        .with("SCHILY.xattr.user.colour", b"green")
        .with("SCHILY.xattr.trusted.overlay.redirect", b"/etc")
        .with("SCHILY.xattr.user.overlay.opaque", b"y")
        .with("mtime", b"86400.25"),
        hard_link("bin/sudo", "./bin/su"),
        symlink("lib", "usr/lib"),
        directory("usr/lib"),
        file("lib/so", b"through the link"),
        symlink("etc", "/nowhere"),
        Written {
            mode: 0o600,
            ..entry(b'6', "run/pipe")
        },
        Written {
            mode: 0o666,
            device: (1, 3),
            ..entry(b'3', "dev/null")
        },
        Written {
            device: (7, 0),
            ..entry(b'4', "dev/loop0")
        },
        Written {
            device: (0, 0),
            ..entry(b'3', "dev/deleted")
        },
        file("var/.wh.gone", b""),
        file("var/.wh..wh..opq", b""),
        file("var/.wh..wh.plnk", b"notes"),
        file(&"l".repeat(99), b"short").with("path", format!("deep/{}", "n".repeat(200)).as_bytes()),
        file("/abs", b"below the top"),
        file("tmp/late", b"x"),
    ];
    let bytes = tar(&entries);
    let unpacked = unpack(&place, &bytes).unwrap();
    assert!(unpacked.is_whole);
    assert_eq!(unpacked.plain_bytes, bytes.len() as u64);
    expect![[r##"
        abs 644 0:0 13 bytes "below the top"
        bin 755 0:0 dir
        bin/su 4755 1000:1000 2 bytes "#!" x2
        bin/sudo 4755 1000:1000 2 bytes "#!" x2
        deep 755 0:0 dir
        deep/nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn 644 0:0 5 bytes "short"
        dev 755 0:0 dir
        dev/deleted 0 0:0 device 0:0
        dev/loop0 644 0:0 device 7:0
        dev/null 666 0:0 device 1:3
        etc 777 0:0 -> /nowhere
        lib 777 0:0 -> usr/lib
        run 755 0:0 dir
        run/pipe 600 0:0 fifo
        tmp 1777 0:0 dir
        tmp/late 644 0:0 1 bytes "x"
        usr 755 0:0 dir
        usr/lib 755 0:0 dir
        usr/lib/so 644 0:0 16 bytes "through the link"
        var 755 0:0 dir
        var/gone 0 0:0 device 0:0
    "##]]
    .assert_eq(&tree(&place.path("layer")));
    let layer = place.path("layer");
    let meta = std::fs::metadata(layer.join("bin/su")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (86_400, 250_000_000));
    assert_eq!(
        std::fs::metadata(layer.join("tmp")).unwrap().mtime(),
        7,
        "though it was filled later"
    );
    let attribute = |path: &str, name: &str| {
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(layer.join(path), name, &mut value).ok()?;
        Some(value[..length].to_vec())
    };
    assert_eq!(
        attribute("bin/su", "security.capability").as_deref(),
        Some(&capability[..])
    );
    assert_eq!(attribute("bin/su", "user.colour").as_deref(), Some(&b"green"[..]));
    assert_eq!(attribute("bin/su", "trusted.overlay.redirect"), None);
    assert_eq!(attribute("bin/su", "user.overlay.opaque"), None);
    assert_eq!(
        attribute("var", "trusted.overlay.opaque").as_deref(),
        Some(&b"y"[..])
    );
    assert!(made_again(&place) == bytes, "the recipe leads to the same tar");
}

#[test]
fn holes_stay_holes() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let zeros = [&b"begin"[..], &vec![0; 1_000_000], b"end"].concat();
    // 1.0: the map stands before the content.
    let mut map = b"2\n0\n4\n900000\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"headtip");
    let pax = file("GNUSparseFile.1/pax", &map)
        .with("GNU.sparse.major", b"1")
        .with("GNU.sparse.minor", b"0")
        .with("GNU.sparse.name", b"pax")
        .with("GNU.sparse.realsize", b"1000000");
    let older = file("older", b"tail")
        .with("GNU.sparse.size", b"500000")
        .with("GNU.sparse.map", b"499996,4");
    let bytes = tar(&[file("zeros", &zeros), pax, older, file("empty", b"")]);
    let unpacked = unpack(&place, &bytes).unwrap();
    assert!(unpacked.is_whole);
    let layer = place.path("layer");
    assert_eq!(std::fs::read(layer.join("zeros")).unwrap(), zeros);
    let read = std::fs::read(layer.join("pax")).unwrap();
    assert_eq!(
        (read.len(), &read[..4], &read[900_000..900_003]),
        (1_000_000, &b"head"[..], &b"tip"[..])
    );
    let read = std::fs::read(layer.join("older")).unwrap();
    assert_eq!((read.len(), &read[499_996..]), (500_000, &b"tail"[..]));
    for name in ["zeros", "pax", "older"] {
        let blocks = std::fs::metadata(layer.join(name)).unwrap().blocks();
        assert!(blocks * 512 <= 64 * 1024, "{name} takes {blocks} blocks");
    }
    assert!(made_again(&place) == bytes);
}

#[test]
fn the_gnu_way_of_long_names_and_holes() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let long = "d/".repeat(60) + "name";
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(3);
    header.set_mode(0o644);
    builder.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    let mut header = ::tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o777);
    header.set_entry_type(::tar::EntryType::Symlink);
    builder.append_link(&mut header, "link", &long).unwrap();
    let mut header = ::tar::Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_mode(0o644);
    header.set_entry_type(::tar::EntryType::GNUSparse);
    header.set_size(4);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(100_000);
    gnu.sparse[0].offset.copy_from_slice(b"00000200000\0");
    gnu.sparse[0].numbytes.copy_from_slice(b"00000000004\0");
    header.set_cksum();
    builder.append(&header, &b"data"[..]).unwrap();
    let bytes = builder.into_inner().unwrap();
    unpack(&place, &bytes).unwrap();
    let layer = place.path("layer");
    assert_eq!(std::fs::read(layer.join(&long)).unwrap(), b"abc");
    assert_eq!(
        std::fs::read_link(layer.join("link")).unwrap().to_str(),
        Some(long.as_str())
    );
    let read = std::fs::read(layer.join("sparse")).unwrap();
    assert_eq!((read.len(), &read[65_536..65_540]), (100_000, &b"data"[..]));
    assert!(made_again(&place) == bytes);
}

#[test]
fn the_last_of_several_entries_counts() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let bytes = tar(&[
        file("a", b"first"),
        file("a", b"second"),
        directory("b"),
        symlink("b", "a"),
        symlink("c", "a"),
        directory("c"),
        file("c/in", b""),
        directory("c"),
        file("d/.wh.x", b""),
        file("d/x", b"put in its place"),
    ]);
    let unpacked = unpack(&place, &bytes).unwrap();
    assert!(!unpacked.is_whole, "the first content of a is gone");
    expect![[r#"
        a 644 0:0 6 bytes "second"
        b 777 0:0 -> a
        c 755 0:0 dir
        c/in 644 0:0 0 bytes ""
        d 755 0:0 dir
        d/x 644 0:0 16 bytes "put in its place"
    "#]]
    .assert_eq(&tree(&place.path("layer")));
}

#[test]
fn an_archive_may_end_with_its_last_content() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let whole = tar(&[file("a", b"some"), file("b", b"bytes")]);
    // Two headers, a block, and five bytes.
    let bytes = &whole[..3 * 512 + 5];
    unpack(&place, bytes).unwrap();
    assert_eq!(std::fs::read(place.path("layer/b")).unwrap(), b"bytes");
    assert!(made_again(&place) == bytes);
    assert!(
        unpack(&place, &bytes[..bytes.len() - 1]).is_err(),
        "but not before"
    );
}
