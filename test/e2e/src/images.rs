//! Images for tests: no registry is asked.

use crate::Kedge;
use base64::Engine as _;
use kedge_runtime::embedded::Images;
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use std::path::Path;

/// Name of the image that [`import_busybox`] imports.
pub const BUSYBOX: &str = "kedge.test/busybox:1";
/// Debian's package `busybox-static`.
const BUSYBOX_PROGRAM: &str = "/usr/bin/busybox";
/// The commands that tests use.
const APPLETS: &[&str] = &["sh", "cat", "sleep", "echo", "true", "false", "date", "tar"];

/// Imports the image into a running kedge with `kedge image import`.
pub fn import_busybox(kedge: &Kedge) {
    let archive = kedge.data_dir.join("busybox.tar");
    write_busybox(&archive);
    kedge.kedge(&["image", "import", &archive.to_string_lossy()]).ok();
}

/// Writes an archive with busybox for this CPU.
pub fn write_busybox(archive: &Path) {
    write(archive, "");
}

/// Writes an archive for a CPU that no test machine has.
pub fn write_foreign(archive: &Path) {
    write(archive, "s390x");
}

fn write(archive: &Path, architecture: &str) {
    let program = std::fs::read(BUSYBOX_PROGRAM).expect("Debian's busybox-static is installed");
    let file = |name: &&str| FileInImage {
        path: Path::new("/bin").join(name),
        mode: 0o755,
        bytes: program.clone(),
    };
    let blueprint = Blueprint {
        reference: BUSYBOX.to_owned(),
        architecture: architecture.to_owned(),
        entrypoint: vec!["/bin/sh".to_owned()],
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        files: APPLETS.iter().map(file).collect(),
        ..Blueprint::default()
    };
    let bytes = build_archive(&blueprint).expect("the blueprint is sound");
    std::fs::write(archive, bytes).expect("the archive can be written");
}

/// Imports an archive into the runtime of an `edgecore`, as `kedge image import` does, while it runs.
pub fn import_into(runtime: &Path, archive: &Path) {
    let images = Images::open(runtime).expect("the runtime's directory can be opened");
    block_on(images.import(archive.to_owned())).expect("the archive can be imported");
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    tokio.expect("a runtime can be built").block_on(work)
}

/// The text in a base64 field of a secret.
pub fn base64_decode(text: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text.trim())
        .expect("a secret's data is base64");
    String::from_utf8(bytes).expect("a token is text")
}
