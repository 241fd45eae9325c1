//! A registry of a few lines: what a pull meets.

use kedge_runtime::image::build_archive;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// `Basic` of `user:right`.
const RIGHT: &str = "Basic dXNlcjpyaWdodA==";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Has the images `open/busybox:1` for everybody, `closed/busybox:1` for `user` with `right`, and `far/busybox:1`,
/// which is for another kind of machine.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    task: JoinHandle<()>,
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let content = Arc::new(Content::new());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(answer_all(stream, content.clone()));
            }
        });
        Self { address, task }
    }

    pub(crate) fn image(&self, name: &str) -> String {
        format!("{}/{name}:1", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Content {
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    foreign: Vec<u8>,
}

impl Content {
    fn new() -> Self {
        let mut blobs = BTreeMap::new();
        let mut index = Value::Null;
        let archive = build_archive(&crate::node::busybox()).unwrap();
        for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if let Some(digest) = path.strip_prefix("blobs/sha256/") {
                blobs.insert(format!("sha256:{digest}"), bytes);
            } else if path == "index.json" {
                index = serde_json::from_slice(&bytes).unwrap();
            }
        }
        let manifest = index["manifests"][0].clone();
        let mut far = manifest.clone();
        far["platform"] = json!({ "os": "linux", "architecture": "s390x" });
        let foreign = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [far] });
        Self {
            blobs,
            manifest: manifest["digest"].as_str().unwrap().to_owned(),
            foreign: serde_json::to_vec(&foreign).unwrap(),
        }
    }

    /// Status, type and body.
    fn find(&self, path: &str, authorization: Option<&str>) -> (u16, &'static str, &[u8]) {
        // Where some clients learn how to say who they are.
        if path == "/v2/" {
            return (if authorization.is_some() { 200 } else { 401 }, "text/plain", b"");
        }
        let parts: Vec<&str> = path.trim_start_matches("/v2/").split('/').collect();
        let (group, kind, name) = match parts[..] {
            [group, "busybox", kind, name] => (group, kind, name),
            _ => return (404, "text/plain", b""),
        };
        if group == "closed" && authorization != Some(RIGHT) {
            return (401, "text/plain", b"");
        }
        match (group, kind, name) {
            ("far", "manifests", "1") => (200, INDEX, &self.foreign),
            ("open" | "closed", "manifests", "1") => (200, MANIFEST, &self.blobs[&self.manifest]),
            ("open" | "closed" | "far", "manifests" | "blobs", digest) if self.blobs.contains_key(digest) => {
                let kind = if digest == self.manifest {
                    MANIFEST
                } else {
                    "application/octet-stream"
                };
                (200, kind, &self.blobs[digest])
            }
            _ if name == digest_of(&self.foreign) => (200, INDEX, &self.foreign),
            _ => (404, "text/plain", b""),
        }
    }
}

/// How a connection begins that is to be encrypted.
const TLS_HANDSHAKE: u8 = 0x16;

fn digest_of(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

async fn answer_all(stream: TcpStream, content: Arc<Content>) {
    let mut stream = BufReader::new(stream);
    // Clients that begin with TLS go on without when they are told so, as servers tell it.
    if stream
        .fill_buf()
        .await
        .is_ok_and(|begin| begin.first() == Some(&TLS_HANDSHAKE))
    {
        drop(stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await);
        return;
    }
    loop {
        let mut request = String::new();
        if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
        let mut authorization = None;
        loop {
            let mut header = String::new();
            if stream.read_line(&mut header).await.unwrap_or(0) == 0 {
                return;
            }
            match header.trim().split_once(": ") {
                None => break,
                Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                    authorization = Some(value.to_owned());
                }
                Some(_) => {}
            }
        }
        let mut words = request.split(' ');
        let head_only = words.next() == Some("HEAD");
        let path = words
            .next()
            .unwrap_or_default()
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned();
        let (status, kind, body) = content.find(&path, authorization.as_deref());
        let challenge = if status == 401 {
            "WWW-Authenticate: Basic realm=\"test\"\r\n"
        } else {
            ""
        };
        let phrase = match status {
            200 => "OK",
            401 => "Unauthorized",
            _ => "Not Found",
        };
        let head = format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n{challenge}\r\n",
            body.len(),
            digest_of(body)
        );
        if stream.write_all(head.as_bytes()).await.is_err() {
            return;
        }
        if !head_only && stream.write_all(body).await.is_err() {
            return;
        }
    }
}
