//! An image of 200 MB in five packed layers, imported from an archive and unpacked: by the built-in runtime, and by
//! containerd, by turns on one machine. Run as root: `cargo xtask bench image_unpack [RUNS]`. Promises and figures stand
//! in SPECIFICATION.md.

use kedge_containerd::Containerd;
use kedge_e2e::Folder;
use kedge_e2e::stats::{median, print};
use kedge_runtime::embedded::Images;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const RUNS: usize = 3;
const NAME: &str = "kedge.test/big:1";
const LAYERS: u64 = 5;
const LAYER_BYTES: usize = 40_000_000;
/// As they stand in images: many small files, some large ones.
const FILE_BYTES: [usize; 5] = [2_000, 8_000, 30_000, 120_000, 1_000_000];
const DIRECTORIES: usize = 40;
const WORDS: usize = 4_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    if let Some(missing) = kedge_containerd::missing() {
        println!("image_unpack: skipped, {missing}");
        return;
    }
    let runs = std::env::args()
        .find_map(|word| word.parse().ok())
        .unwrap_or(RUNS);
    let directory = Folder::new("image-unpack");
    let archive = archive(&directory.path);
    let containerd = Containerd::start(&directory.path)
        .await
        .expect("containerd starts");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 0..runs {
        flush();
        let root = directory.path.join(format!("node{run}"));
        let images = Images::open(&root).expect("the images open");
        let began = Instant::now();
        images
            .import(archive.clone())
            .await
            .expect("the built-in runtime takes the image");
        ours.push(ms(began.elapsed()));
        std::fs::remove_dir_all(&root).expect("it goes");

        flush();
        let began = Instant::now();
        containerd.import(&archive).expect("containerd takes the image");
        theirs.push(ms(began.elapsed()));
        containerd
            .ctr(&["images", "rm", "--sync", NAME])
            .expect("it goes");
    }
    containerd.end().await;
    println!(
        "image_unpack: {runs} runs, {LAYERS} gzip layers of {} MB, from an archive",
        LAYER_BYTES / 1_000_000
    );
    print("built-in, flushed to the disk", "ms", &ours);
    print("ctr images import", "ms", &theirs);
    println!(
        "image_unpack: {:.0} ms, {:.2} of containerd's",
        median(&ours),
        median(&ours) / median(&theirs)
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// What an earlier run wrote shall not be in the way of the next.
fn flush() {
    let status = Command::new("sync").status().expect("sync runs");
    assert!(status.success());
}

/// The same numbers each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).expect("it is below a usize")
    }
}

/// Text that shrinks as text does.
fn text(numbers: &mut Numbers, bytes: usize) -> Vec<u8> {
    let words: Vec<Vec<u8>> = (0..WORDS)
        .map(|_| {
            (0..3 + numbers.below(7))
                .map(|_| b'a' + (numbers.next() % 26) as u8)
                .collect()
        })
        .collect();
    let mut text = Vec::with_capacity(bytes + 16);
    while text.len() < bytes {
        text.extend_from_slice(&words[numbers.below(WORDS)]);
        text.push(b' ');
    }
    text
}

/// A layer: its tar, and the gzip of it.
fn layer(numbers: &mut Numbers, number: u64, text: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut tar = tar::Builder::new(Vec::new());
    let (mut left, mut count) = (LAYER_BYTES, 0);
    while left > 0 {
        let size = FILE_BYTES[numbers.below(FILE_BYTES.len())].min(left);
        left -= size;
        let content: Vec<u8> = if count % 3 == 0 {
            std::iter::repeat_with(|| numbers.next().to_le_bytes())
                .flatten()
                .take(size)
                .collect()
        } else {
            let start = numbers.below(text.len() - size);
            text[start..start + size].to_vec()
        };
        let mut header = tar::Header::new_gnu();
        header.set_size(size as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let path = format!("usr/lib{number}/d{}/f{count}", count % DIRECTORIES);
        tar.append_data(&mut header, path, content.as_slice())
            .expect("memory takes it");
        count += 1;
    }
    let plain = tar.into_inner().expect("memory takes it");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(&plain).expect("memory takes it");
    (plain, packed.finish().expect("memory takes it"))
}

/// An OCI archive of the image.
fn archive(directory: &Path) -> PathBuf {
    let mut numbers = Numbers(7);
    let text = text(&mut numbers, 4_000_000);
    let layers: Vec<(String, Vec<u8>)> = (0..LAYERS)
        .map(|number| {
            let (plain, packed) = layer(&mut numbers, number, &text);
            (digest(&plain), packed)
        })
        .collect();
    let diff_ids: Vec<&String> = layers.iter().map(|(diff_id, _)| diff_id).collect();
    let configuration = serde_json::json!({
        "architecture": kedge_host::architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let configuration = configuration.to_string().into_bytes();
    let described = |kind: &str, bytes: &[u8]| {
        let media_type = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
    };
    let listed: Vec<_> = layers
        .iter()
        .map(|(_, packed)| described("layer.v1.tar+gzip", packed))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described("config.v1+json", &configuration), "layers": listed,
    });
    let manifest = manifest.to_string().into_bytes();
    let mut named = described("manifest.v1+json", &manifest);
    named["annotations"] = serde_json::json!({ "io.containerd.image.name": NAME });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [named] }).to_string();

    let path = directory.join("big.tar");
    let file = std::fs::File::create(&path).expect("a file");
    let mut tar = tar::Builder::new(file);
    let mut put = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes)
            .expect("the disk takes it");
    };
    put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    put("index.json", index.as_bytes());
    let blobs = layers.iter().map(|(_, packed)| packed.as_slice());
    for blob in blobs.chain([manifest.as_slice(), configuration.as_slice()]) {
        put(&format!("blobs/{}", digest(blob).replace(':', "/")), blob);
    }
    tar.finish().expect("the disk takes it");
    path
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    kedge_containers::print_digest(&sha2::Sha256::digest(bytes))
}
