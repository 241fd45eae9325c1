//! A registry that speaks HTTP/1.1 by hand, so that it can break off in the middle of a body.

use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// With the query.
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The same for another path.
    pub(crate) fn at(&self, path: &str) -> Self {
        Self {
            path: path.to_owned(),
            ..self.clone()
        }
    }

    pub(crate) fn forget(&mut self, name: &str) {
        self.headers.remove(name);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    Never,
    CutAfter(usize),
    HangAfter(usize),
    Drip,
}

/// Well below what a client takes for a stall.
const DRIP_INTERVAL: Duration = Duration::from_millis(20);

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: Break,
}

impl Answer {
    pub(crate) fn bytes(body: &[u8]) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: body.to_vec(),
            end: Break::Never,
        }
    }

    pub(crate) fn json(text: &str) -> Self {
        Self::bytes(text.as_bytes()).with("content-type", "application/json")
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::bytes(b"")
        }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Closes the connection in the middle of the body.
    pub(crate) fn cut_after(mut self, bytes: usize) -> Self {
        self.end = Break::CutAfter(bytes);
        self
    }

    /// Sends a byte at a time.
    pub(crate) fn drip(mut self) -> Self {
        self.end = Break::Drip;
        self
    }

    /// Sends nothing more, and stays.
    pub(crate) fn hang_after(mut self, bytes: usize) -> Self {
        self.end = Break::HangAfter(bytes);
        self
    }
}

type Handler = dyn Fn(&Server, Request) -> Answer + Send + Sync;

/// A registry on a port of its own; it ends with the test.
#[derive(Clone)]
pub(crate) struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    _task: Arc<AbortOnDrop>,
}

struct AbortOnDrop(Mutex<Option<JoinHandle<()>>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        if let Some(task) = self.0.lock().unwrap().take() {
            task.abort();
        }
    }
}

impl Server {
    pub(crate) async fn start(handler: impl Fn(&Server, Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let task = Arc::new(AbortOnDrop(Mutex::new(None)));
        let server = Self {
            address: listener.local_addr().unwrap(),
            requests: Arc::default(),
            _task: Arc::clone(&task),
        };
        let handler: Arc<Handler> = Arc::new(handler);
        let (address, requests) = (server.address, Arc::clone(&server.requests));
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let seen = Self {
                    address,
                    requests: Arc::clone(&requests),
                    _task: Arc::new(AbortOnDrop(Mutex::new(None))),
                };
                tokio::spawn(serve(stream, seen, Arc::clone(&handler)));
            }
        });
        *task.0.lock().unwrap() = Some(accept);
        server
    }

    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Every value of a header that was sent, in order.
    pub(crate) fn asked(&self, header: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let values = requests.iter().map(|request| request.header(header).to_owned());
        values.filter(|value| !value.is_empty()).collect()
    }

    /// Every body that was sent, in order.
    pub(crate) fn bodies(&self) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        let bodies = requests.iter().map(|request| request.body.clone());
        bodies.filter(|body| !body.is_empty()).collect()
    }
}

async fn serve(mut stream: TcpStream, server: Server, handler: Arc<Handler>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = stream.read_u8().await else {
            return;
        };
        head.push(byte);
    }
    let text = String::from_utf8(head).unwrap();
    let mut lines = text.lines();
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let mut request = Request {
        path,
        headers: headers
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect(),
        body: String::new(),
    };
    let mut body = vec![0; request.header("content-length").parse().unwrap_or(0)];
    if stream.read_exact(&mut body).await.is_err() {
        return;
    }
    request.body = String::from_utf8(body).unwrap();
    server.requests.lock().unwrap().push(request.clone());
    let answer = handler(&server, request);
    let mut head = format!(
        "HTTP/1.1 {} x\r\ncontent-length: {}\r\n",
        answer.status,
        answer.body.len()
    );
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let sent = match answer.end {
        Break::Never => answer.body.len(),
        Break::CutAfter(bytes) | Break::HangAfter(bytes) => bytes,
        Break::Drip => 0,
    };
    let whole = [head.as_bytes(), b"\r\n", &answer.body[..sent]].concat();
    // The other side may have hung up, which is its right.
    let _ = stream.write_all(&whole).await;
    if answer.end == Break::Drip {
        for byte in &answer.body {
            if stream.write_u8(*byte).await.is_err() {
                return;
            }
            tokio::time::sleep(DRIP_INTERVAL).await;
        }
    }
    if matches!(answer.end, Break::HangAfter(_)) {
        let _ = stream.read_u8().await;
    }
}

/// One layer of an image.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) digest: String,
    pub(crate) diff_id: String,
    bytes: Vec<u8>,
}

/// An image for amd64 and, in name only, for arm64.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config_digest: String,
    pub(crate) manifest_digest: String,
    pub(crate) index_digest: String,
    blobs: BTreeMap<String, Vec<u8>>,
    manifest: String,
    index: String,
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Image {
    pub(crate) fn new(layers: &[&[u8]]) -> Self {
        let layers: Vec<Layer> = layers
            .iter()
            .map(|bytes| Layer {
                digest: digest(bytes),
                // The registry does not look into layers.
                diff_id: digest(&[bytes, &b"plain"[..]].concat()),
                bytes: bytes.to_vec(),
            })
            .collect();
        let ids: Vec<String> = layers
            .iter()
            .map(|layer| format!("{:?}", layer.diff_id))
            .collect();
        let config = format!(
            r#"{{"architecture": "amd64", "os": "linux", "rootfs": {{"type": "layers", "diff_ids": [{}]}}}}"#,
            ids.join(",")
        );
        let descriptor =
            |bytes: &[u8]| format!(r#"{{"digest": "{}", "size": {}}}"#, digest(bytes), bytes.len());
        let listed: Vec<String> = layers.iter().map(|layer| descriptor(&layer.bytes)).collect();
        let manifest = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{MANIFEST}", "config": {}, "layers": [{}]}}"#,
            descriptor(config.as_bytes()),
            listed.join(",")
        );
        let manifest_digest = digest(manifest.as_bytes());
        let other = digest(b"other");
        let index = format!(
            r#"{{"schemaVersion": 2, "mediaType": "{INDEX}", "manifests": [
                {{"digest": "{other}", "size": 1, "platform": {{"os": "linux", "architecture": "arm64"}}}},
                {{"digest": "{manifest_digest}", "size": {}, "platform": {{"os": "linux", "architecture": "amd64"}}}}]}}"#,
            manifest.len()
        );
        let mut blobs: BTreeMap<String, Vec<u8>> = layers
            .iter()
            .map(|layer| (layer.digest.clone(), layer.bytes.clone()))
            .collect();
        let config_digest = digest(config.as_bytes());
        blobs.insert(config_digest.clone(), config.into_bytes());
        Self {
            layers,
            index_digest: digest(index.as_bytes()),
            config_digest,
            manifest_digest,
            blobs,
            manifest,
            index,
        }
    }

    pub(crate) fn config_bytes(&self) -> usize {
        self.blobs[&self.config_digest].len()
    }

    /// As a well-behaved registry answers.
    pub(crate) fn answer(&self, path: &str, request: &Request) -> Answer {
        let asked = request.path.split('?').next().unwrap();
        if let Some(name) = asked.strip_prefix(&format!("/v2/{path}/manifests/")) {
            return match name {
                name if name == self.manifest_digest => {
                    Answer::bytes(self.manifest.as_bytes()).with("content-type", MANIFEST)
                }
                name if name.starts_with("sha256:") => Answer::status(404),
                _tag => Answer::bytes(self.index.as_bytes()).with("content-type", INDEX),
            };
        }
        let blob = asked
            .strip_prefix(&format!("/v2/{path}/blobs/"))
            .and_then(|digest| self.blobs.get(digest));
        let Some(blob) = blob else {
            return Answer::status(404);
        };
        let range = request
            .header("range")
            .trim_start_matches("bytes=")
            .trim_end_matches('-');
        match range.parse::<usize>() {
            Ok(from) => {
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                let mut answer = Answer::bytes(&blob[from..]).with("content-range", &range);
                answer.status = 206;
                answer
            }
            Err(_) => Answer::bytes(blob),
        }
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}
