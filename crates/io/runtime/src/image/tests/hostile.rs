use super::tar::{Written, directory, entry, file, hard_link, symlink, tar};
use super::{Place, is_root, made_again, tree, unpack};
use expect_test::expect;
use proptest::prelude::*;
use std::io::Write as _;

/// A layer's neighbours, which have to stay as they are.
fn with_neighbours() -> Place {
    let place = Place::new();
    std::fs::create_dir(place.path("outside")).unwrap();
    std::fs::write(place.path("outside/secret"), "untouched").unwrap();
    place
}

fn neighbours(place: &Place) -> String {
    let _ = std::fs::remove_file(place.path("recipe"));
    let _ = std::fs::remove_dir_all(place.path("layer"));
    tree(&place.0)
}

#[test]
fn attacks_are_refused() {
    if !is_root() {
        return;
    }
    let place = with_neighbours();
    let outside = place.path("outside").display().to_string();
    let many = |count: usize| "d/".repeat(count) + "x";
    let attacks: Vec<(&str, Vec<Written>)> = vec![
        ("up", vec![file("../outside/secret", b"x")]),
        ("up in the middle", vec![file("a/../../outside/secret", b"x")]),
        (
            "up by name",
            vec![file("x", b"x").with("path", b"../outside/secret")],
        ),
        (
            "through a link",
            vec![symlink("way", &outside), file("way/secret", b"x")],
        ),
        (
            "through a link upwards",
            vec![symlink("way", "../outside"), file("way/secret", b"x")],
        ),
        (
            "directory through a link",
            vec![symlink("way", &outside), directory("way/made")],
        ),
        ("hard link out", vec![hard_link("in", "../outside/secret")]),
        (
            "hard link by a link",
            vec![symlink("way", &outside), hard_link("in", "way/secret")],
        ),
        ("hard link to /etc", vec![hard_link("in", "/etc/passwd")]),
        (
            "hard link to a directory",
            vec![directory("d"), hard_link("in", "d")],
        ),
        ("hard link to nothing", vec![hard_link("in", "")]),
        ("below a file", vec![file("f", b""), file("f/x", b"")]),
        ("full directory replaced", vec![file("d/x", b""), file("d", b"")]),
        ("deep", vec![file("x", b"").with("path", many(200).as_bytes())]),
        (
            "long name",
            vec![file("x", b"").with("path", "n".repeat(300).as_bytes())],
        ),
        (
            "longer path",
            vec![file("x", b"").with("path", many(3000).as_bytes())],
        ),
        ("name with an end", vec![file("x", b"").with("path", b"a\0b")]),
        ("deletes nothing", vec![file(".wh.", b"")]),
        ("deletes itself", vec![file("d/.wh..", b"")]),
        ("deletes its parent", vec![file("d/.wh...", b"")]),
        (
            "owner",
            vec![Written {
                uid: u64::from(u32::MAX),
                ..file("x", b"")
            }],
        ),
        ("kind", vec![entry(b'V', "volume")]),
        (
            "capability",
            vec![file("x", b"").with("SCHILY.xattr.security.capability", b"none")],
        ),
        (
            "huge header",
            vec![file("x", b"").with("comment", &vec![b'c'; 2 * 1024 * 1024])],
        ),
        ("number", vec![file("x", b"").with("size", b"-1")]),
        (
            "huge file",
            vec![file("x", b"").with("size", b"18446744073709551615")],
        ),
        (
            "holes",
            vec![
                file("x", b"abcd")
                    .with("GNU.sparse.size", b"10")
                    .with("GNU.sparse.map", b"8,4"),
            ],
        ),
        (
            "holes back",
            vec![
                file("x", b"abcd")
                    .with("GNU.sparse.size", b"99")
                    .with("GNU.sparse.map", b"8,2,4,2"),
            ],
        ),
        (
            "huge hole",
            vec![
                file("x", b"")
                    .with("GNU.sparse.size", b"9223372036854775807")
                    .with("GNU.sparse.map", b"0,0"),
            ],
        ),
    ];
    let mut said = String::new();
    for (name, entries) in attacks {
        let before = neighbours(&place);
        let refusal = match unpack(&place, &tar(&entries)) {
            Ok(_) => "taken".to_owned(),
            Err(error) => error.to_string(),
        };
        let refusal: String = refusal.chars().take(120).collect();
        said += &format!("{name}: {}\n", refusal.replace(&outside, "OUT"));
        assert_eq!(neighbours(&place), before, "{name}");
    }
    expect![[r#"
        up: ../outside/secret: it leads out of the image
        up in the middle: a/../../outside/secret: it leads out of the image
        up by name: ../outside/secret: it leads out of the image
        through a link: way/secret: it lies below a link to nothing
        through a link upwards: way/secret: it lies below a link to nothing
        directory through a link: way/made: it lies below a link to nothing
        hard link out: ../outside/secret: it leads out of the image
        hard link by a link: in: it is a hard link to a file that neither its layer nor one below it has
        hard link to /etc: in: it is a hard link to a file that neither its layer nor one below it has
        hard link to a directory: in: it is a hard link to a directory
        hard link to nothing: in: it is a link to nothing
        below a file: f/x: it lies below something that is no directory
        full directory replaced: d: it replaces a directory that is not empty
        deep: d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/d/
        long name: nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn
        longer path: it is no tar archive, or a broken one: a name in it is none
        name with an end: it is no tar archive, or a broken one: a name in it is none
        deletes nothing: .wh.: it deletes nothing that has a name
        deletes itself: d/.wh..: it deletes nothing that has a name
        deletes its parent: d/.wh...: it deletes nothing that has a name
        owner: x: the number of its owner is too large
        kind: volume: it is of a kind that layers do not have
        capability: x: it has an attribute that is none
        huge header: it is no tar archive, or a broken one: an extended header is too long
        number: it is no tar archive, or a broken one: a number in an extended header is none
        huge file: x: the layer is too large
        holes: it is no tar archive, or a broken one: the holes of a sparse file overlap
        holes back: it is no tar archive, or a broken one: the holes of a sparse file overlap
        huge hole: x: the layer is too large
    "#]]
    .assert_eq(&said);
}

/// Names that meet each other, and ways out.
fn path() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec![
        "a",
        "b",
        "c",
        "..",
        ".",
        "",
        "outside",
        ".wh.a",
        ".wh..wh..opq",
        "secret",
    ]);
    (prop::bool::ANY, prop::collection::vec(name, 1..4)).prop_map(|(absolute, names)| {
        let path = names.join("/");
        if absolute { format!("/{path}") } else { path }
    })
}

fn any_entry() -> impl Strategy<Value = Written> {
    let flag = prop::sample::select(b"00005551122346S7\0".to_vec());
    let bytes = prop::collection::vec(prop::sample::select(vec![0_u8, 0, b'x']), 0..2000);
    (flag, path(), path(), bytes, 0..0o10000_u32).prop_map(|(flag, path, target, bytes, mode)| Written {
        target: target.into_bytes(),
        bytes: if matches!(flag, b'0' | b'7' | 0) {
            bytes
        } else {
            Vec::new()
        },
        mode,
        ..entry(flag, &path)
    })
}

/// Without those that are refused for their path anyway: more of the layer is reached.
fn harmless_entries() -> impl Strategy<Value = Vec<Written>> {
    let inside = any_entry().prop_filter("leads out", |entry| {
        !entry.path.windows(2).any(|two| two == b"..")
    });
    prop::collection::vec(inside, 1..12)
}

fn check_unpacking(bytes: &[u8]) {
    let place = with_neighbours();
    let before = neighbours(&place);
    if let Ok(unpacked) = unpack(&place, bytes)
        && unpacked.is_whole
    {
        let mut plain = Vec::new();
        std::io::copy(&mut super::packing::unpacked(bytes).unwrap(), &mut plain).unwrap();
        assert!(made_again(&place) == plain, "the recipe leads to another tar");
        assert_eq!(unpacked.plain_bytes, plain.len() as u64);
    }
    assert_eq!(neighbours(&place), before);
}

pub(super) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_layer_leaves_its_directory(entries in prop::collection::vec(any_entry(), 1..8)) {
        if is_root() {
            check_unpacking(&tar(&entries));
        }
    }

    #[test]
    fn recipes_lead_back(entries in harmless_entries()) {
        if is_root() {
            check_unpacking(&tar(&entries));
        }
    }

    #[test]
    fn broken_bytes_do_no_harm(
        entries in harmless_entries(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        is_cut: bool,
        pack in 0..3,
    ) {
        if is_root() {
            let plain = tar(&entries);
            let mut bytes = match pack {
                0 => plain,
                1 => gzip(&plain),
                _zstd => zstd(&plain),
            };
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
            if is_cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            check_unpacking(&bytes);
        }
    }

    #[test]
    fn headers_with_right_sums_do_no_harm(mut blocks in prop::collection::vec(any::<[u8; 32]>(), 1..4), at in 0..480_usize) {
        if is_root() {
            // Random bytes in a header that is right otherwise.
            let mut bytes = Vec::new();
            for block in &mut blocks {
                let mut header = ::tar::Header::new_gnu();
                header.set_path("a").unwrap();
                header.set_size(0);
                header.as_mut_bytes()[at..at + 32].copy_from_slice(block);
                header.set_cksum();
                bytes.extend_from_slice(header.as_bytes());
            }
            check_unpacking(&bytes);
        }
    }
}
