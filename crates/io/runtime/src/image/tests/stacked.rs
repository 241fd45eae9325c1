//! Layers that take something from those below them.

use super::tar::{Written, directory, entry, file, hard_link, symlink, tar};
use super::{Place, is_root, made_again, tree, unpack, unpack_over};
use expect_test::{Expect, expect};
use std::os::unix::fs::MetadataExt as _;

/// Unpacks layers one after another, the lowest first, and leaves the last in `layer`. The others are in `0`, `1` ...
fn stacked(
    place: &Place,
    layers: &[Vec<Written>],
) -> Result<super::layer::Unpacked, super::layer::LayerError> {
    let names: Vec<String> = (0..layers.len()).map(|number| number.to_string()).collect();
    let (last, lower) = layers.split_last().unwrap();
    for (number, entries) in lower.iter().enumerate() {
        let _ = std::fs::remove_dir_all(place.path(&names[number]));
        let below: Vec<&str> = names[..number].iter().rev().map(String::as_str).collect();
        unpack_over(place, &tar(entries), &below).unwrap();
        std::fs::rename(place.path("layer"), place.path(&names[number])).unwrap();
    }
    let below: Vec<&str> = names[..lower.len()].iter().rev().map(String::as_str).collect();
    let unpacked = unpack_over(place, &tar(last), &below)?;
    if unpacked.is_whole {
        assert!(made_again(place) == tar(last), "the recipe leads to the same tar");
    }
    Ok(unpacked)
}

fn check(layers: &[Vec<Written>], want: Expect) {
    let place = Place::new();
    want.assert_eq(&match stacked(&place, layers) {
        Ok(_) => tree(&place.path("layer")),
        Err(error) => format!("{error}\n"),
    });
}

/// A program with a capability and an owner, as it stands in a lower layer.
fn program() -> Written {
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    Written {
        mode: 0o4750,
        uid: 1000,
        mtime: 86_400,
        ..file("bin/su", b"#!su")
    }
    .with("SCHILY.xattr.security.capability", &capability)
    .with("SCHILY.xattr.user.colour", b"green")
}

#[test]
fn a_hard_link_may_lead_to_a_lower_layer() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let bin = Written {
        mode: 0o751,
        uid: 7,
        mtime: 5,
        ..directory("bin")
    };
    let layers = [
        vec![
            bin,
            program(),
            Written {
                mode: 0o600,
                ..entry(b'6', "bin/pipe")
            },
        ],
        vec![file("other", b"")],
        vec![
            hard_link("sbin/sudo", "bin/su"),
            hard_link("sbin/again", "sbin/sudo"),
            hard_link("sbin/pipe", "/bin/pipe"),
        ],
    ];
    let unpacked = stacked(&place, &layers).unwrap();
    assert!(unpacked.is_of_its_stack && unpacked.is_whole);
    expect![[r##"
        bin 751 7:7 dir
        bin/pipe 600 0:0 fifo
        bin/su 4750 1000:1000 4 bytes "#!su" x3
        sbin 755 0:0 dir
        sbin/again 4750 1000:1000 4 bytes "#!su" x3
        sbin/pipe 600 0:0 fifo
        sbin/sudo 4750 1000:1000 4 bytes "#!su" x3
    "##]]
    .assert_eq(&tree(&place.path("layer")));
    let layer = place.path("layer");
    let time = |name: &str| std::fs::metadata(layer.join(name)).unwrap().mtime();
    assert_eq!((time("sbin/sudo"), time("bin")), (86_400, 5));
    let mut value = [0; 64];
    assert_eq!(
        rustix::fs::lgetxattr(layer.join("sbin/sudo"), "security.capability", &mut value),
        Ok(20)
    );
    assert_eq!(
        rustix::fs::lgetxattr(layer.join("sbin/sudo"), "user.colour", &mut value),
        Ok(5)
    );
    // Writing by one name in a container must not reach the lower layer.
    let inode = |path: std::path::PathBuf| std::fs::metadata(path).unwrap().ino();
    assert_ne!(inode(place.path("0/bin/su")), inode(layer.join("bin/su")));
}

#[test]
fn what_a_hard_link_finds_is_what_the_stack_shows() {
    if !is_root() {
        return;
    }
    let lowest = || {
        vec![
            file("d/x", b"lowest"),
            file("e/y", b"lowest"),
            symlink("way", "/d/../e"),
        ]
    };
    // The upper of two counts, and a link on the way is followed within the image.
    check(
        &[
            lowest(),
            vec![file("d/x", b"upper")],
            vec![hard_link("a", "d/x"), hard_link("b", "way/y")],
        ],
        expect![[r#"
            a 644 0:0 5 bytes "upper" x2
            b 644 0:0 6 bytes "lowest" x2
            d 755 0:0 dir
            d/x 644 0:0 5 bytes "upper" x2
            e 755 0:0 dir
            e/y 644 0:0 6 bytes "lowest" x2
        "#]],
    );
    let gone = || expect!["a: it is a hard link to a file that neither its layer nor one below it has\n"];
    let link = || hard_link("a", "d/x");
    check(&[lowest(), vec![file("d/.wh.x", b"")], vec![link()]], gone());
    check(&[lowest(), vec![file(".wh.d", b"")], vec![link()]], gone());
    check(
        &[lowest(), vec![file("d/.wh..wh..opq", b"")], vec![link()]],
        gone(),
    );
    check(
        &[lowest(), vec![file(".wh.d", b""), directory("d")], vec![link()]],
        gone(),
    );
    check(&[lowest(), vec![file("d", b"")], vec![link()]], gone());
    // Also by the layer itself.
    check(&[lowest(), vec![file("d/.wh.x", b""), link()]], gone());
    check(&[lowest(), vec![file("d/.wh..wh..opq", b""), link()]], gone());
    check(&[lowest(), vec![hard_link("a", "d/y")]], gone());
    check(&[vec![symlink("d", "d")], vec![link()]], gone());
    check(
        &[lowest(), vec![hard_link("a", "d")]],
        expect!["a: it is a hard link to a directory\n"],
    );
    check(
        &[lowest(), vec![hard_link("a", "../outside")]],
        expect!["../outside: it leads out of the image\n"],
    );
    // One that was moved: linked, and deleted under its old name.
    check(
        &[lowest(), vec![link(), file("d/.wh.x", b"")]],
        expect![[r#"
            a 644 0:0 6 bytes "lowest"
            d 755 0:0 dir
            d/x 0 0:0 device 0:0
        "#]],
    );
    // And one that was written anew under its old name.
    check(
        &[lowest(), vec![link(), file("d/x", b"new")]],
        expect![[r#"
            a 644 0:0 6 bytes "lowest"
            d 755 0:0 dir
            d/x 644 0:0 3 bytes "new"
        "#]],
    );
}

#[test]
fn a_directory_that_is_not_named_stays_as_it_was() {
    if !is_root() {
        return;
    }
    let lowest = || {
        vec![
            Written {
                mode: 0o1777,
                uid: 3,
                mtime: 9,
                ..directory("tmp")
            },
            Written {
                mode: 0o700,
                ..directory("tmp/sub")
            },
            Written {
                mode: 0o711,
                ..directory("var")
            },
            symlink("run", "var"),
        ]
    };
    let place = Place::new();
    let upper = vec![
        file("tmp/sub/x", b""),
        file("var/.wh.y", b""),
        file("new/x", b""),
        // It comes in place of the link.
        file("run/x", b""),
    ];
    let unpacked = stacked(&place, &[lowest(), upper]).unwrap();
    assert!(unpacked.is_of_its_stack);
    expect![[r#"
        new 755 0:0 dir
        new/x 644 0:0 0 bytes ""
        run 755 0:0 dir
        run/x 644 0:0 0 bytes ""
        tmp 1777 3:3 dir
        tmp/sub 700 0:0 dir
        tmp/sub/x 644 0:0 0 bytes ""
        var 711 0:0 dir
        var/y 0 0:0 device 0:0
    "#]]
    .assert_eq(&tree(&place.path("layer")));
    assert_eq!(std::fs::metadata(place.path("layer/tmp")).unwrap().mtime(), 9);
    // What the layer says itself counts, wherever in it, and makes it the same on top of anything.
    let upper = vec![
        file("tmp/x", b""),
        Written {
            mode: 0o750,
            ..directory("tmp")
        },
    ];
    let unpacked = stacked(&place, &[lowest(), upper]).unwrap();
    assert!(!unpacked.is_of_its_stack);
    expect![[r#"
        tmp 750 0:0 dir
        tmp/x 644 0:0 0 bytes ""
    "#]]
    .assert_eq(&tree(&place.path("layer")));
}

#[test]
fn a_directory_in_place_of_a_deleted_one_is_another() {
    if !is_root() {
        return;
    }
    for entries in [
        vec![file(".wh.d", b""), directory("d"), file("d/new", b"")],
        vec![directory("d"), file("d/new", b""), file(".wh.d", b"")],
        vec![file(".wh.d", b""), file("d/new", b"")],
        vec![file("d/new", b""), file(".wh.d", b"")],
    ] {
        let place = Place::new();
        unpack(&place, &tar(&entries)).unwrap();
        expect![[r#"
            d 755 0:0 dir
            d/new 644 0:0 0 bytes ""
        "#]]
        .assert_eq(&tree(&place.path("layer")));
        let mut value = [0; 1];
        let opaque = rustix::fs::lgetxattr(place.path("layer/d"), "trusted.overlay.opaque", &mut value);
        assert_eq!((opaque, value), (Ok(1), *b"y"));
    }
}

#[test]
fn directories_that_are_not_named_are_counted() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let deep = format!("{}/", "n".repeat(250)).repeat(15);
    let names = (0..600).map(|number| format!("{number}/{deep}x"));
    let entries: Vec<Written> = names
        .map(|name| file("x", b"").with("path", name.as_bytes()))
        .collect();
    let error = unpack(&place, &tar(&entries)).unwrap_err().to_string();
    assert!(error.contains("leaves out too many directories"), "{error}");
}
