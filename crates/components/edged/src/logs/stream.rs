//! Reading a log file in the CRI format: `<time> <stream> <P|F> <text>`.

use super::query::Query;
use super::{Seen, is_alive};
use bytes::Bytes;
use kedge_api::Timestamp;
use kedge_containers::ObservedContainer;
use kedge_telemetry::channel::queue;
use kedge_wire::Time;
use std::collections::VecDeque;
use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// One read, and one piece on its way to the reader.
const PIECE_BYTES: usize = 32 * 1024;
/// A runtime cuts lines at 16 KiB; anything longer is not a CRI log.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// A follower looks for news this often, and only while there is a follower.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// Memory for `tailLines`: beyond it the oldest lines of the tail are left out.
const TAIL_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Sends the wanted part of the log, then, if wanted, what is added until the container ends.
pub(super) async fn run(query: &Query, container: &ObservedContainer, seen: Seen, tx: queue::Sender<Bytes>) {
    let mut reader = Reader::new(query);
    let Some(mut file) = open(query, container, &seen, &tx).await else {
        return;
    };
    let mut tail = query.tail_lines.map(Tail::new);
    let mut next = None;
    loop {
        // Asked before reading: what was written before the end is then read below.
        let alive = is_alive(&seen, &container.id);
        loop {
            let mut out = Vec::new();
            let more = match reader.read(&mut file, &mut out).await {
                Ok(more) => more,
                Err(error) => {
                    tracing::warn!(log = %container.log_path.display(), %error, "log not readable");
                    return;
                }
            };
            match &mut tail {
                Some(tail) => tail.push(&out),
                None if !send(&mut reader, &tx, out).await => return,
                None => {}
            }
            if !more {
                break;
            }
        }
        if let Some(tail) = tail.take()
            && !send(&mut reader, &tx, tail.into_bytes()).await
        {
            return;
        }
        // A new file stands under the name only when nothing is written to the old one any more; what came to that one
        // since it was read above is read first.
        if let Some(new) = next.take() {
            file = new;
            continue;
        }
        next = rotated(&file, &container.log_path).await;
        if next.is_some() {
            continue;
        }
        if !query.follow || !alive {
            return;
        }
        tokio::select! {
            biased;
            () = tx.closed() => return,
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
    }
}

/// A container that has not written yet has no file; a follower waits for it.
async fn open(
    query: &Query,
    container: &ObservedContainer,
    seen: &Seen,
    tx: &queue::Sender<Bytes>,
) -> Option<File> {
    loop {
        if let Ok(file) = File::open(&container.log_path).await {
            return Some(file);
        }
        if !query.follow || !is_alive(seen, &container.id) {
            return None;
        }
        tokio::select! {
            biased;
            () = tx.closed() => return None,
            () = tokio::time::sleep(FOLLOW_INTERVAL) => {}
        }
    }
}

/// The new file under the name, when the one being read was moved away or cut.
async fn rotated(file: &File, path: &Path) -> Option<File> {
    let (mine, named) = (file.metadata().await.ok()?, tokio::fs::metadata(path).await.ok()?);
    if mine.ino() == named.ino() && mine.dev() == named.dev() {
        return None;
    }
    File::open(path).await.ok()
}

/// Sends within the limit of bytes; false when nobody reads or the limit is reached.
async fn send(reader: &mut Reader, tx: &queue::Sender<Bytes>, mut out: Vec<u8>) -> bool {
    if let Some(left) = &mut reader.bytes_left {
        out.truncate(*left);
        *left -= out.len();
    }
    for piece in out.chunks(PIECE_BYTES) {
        if tx.send(Bytes::copy_from_slice(piece)).await.is_err() {
            return false;
        }
    }
    reader.bytes_left != Some(0)
}

/// Turns records into text.
struct Reader {
    unfinished: Vec<u8>,
    timestamps: bool,
    since: Option<Time>,
    bytes_left: Option<usize>,
    /// The last record was a part of a line: the next one goes on without a prefix.
    in_line: bool,
}

impl Reader {
    fn new(query: &Query) -> Self {
        Self {
            unfinished: Vec::new(),
            timestamps: query.timestamps,
            since: query.since,
            bytes_left: query.limit_bytes,
            in_line: false,
        }
    }

    /// Reads one piece; false at the present end of the file.
    async fn read(&mut self, file: &mut File, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let mut buffer = vec![0_u8; PIECE_BYTES];
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            // A file that was cut in place begins again.
            let at = file.stream_position().await?;
            if file.metadata().await?.len() < at {
                file.seek(SeekFrom::Start(0)).await?;
                return Ok(true);
            }
            return Ok(false);
        }
        self.unfinished.extend_from_slice(&buffer[..count]);
        let mut begin = 0;
        while let Some(length) = self.unfinished[begin..].iter().position(|byte| *byte == b'\n') {
            let record = self.unfinished[begin..begin + length].to_vec();
            self.record(&record, out);
            begin += length + 1;
        }
        self.unfinished.drain(..begin);
        if self.unfinished.len() > LINE_BYTES_MAX {
            self.unfinished.clear();
        }
        Ok(true)
    }

    /// One record: the prefix goes, parts are joined. A line that is not a record is passed on as it is.
    fn record(&mut self, record: &[u8], out: &mut Vec<u8>) {
        let mut fields = record.splitn(4, |byte| *byte == b' ');
        let parts = (fields.next(), fields.next(), fields.next(), fields.next());
        let (Some(time), Some(_stream), Some(tag), Some(text)) = parts else {
            out.extend_from_slice(record);
            out.push(b'\n');
            return;
        };
        if !self.is_wanted(time) {
            return;
        }
        if self.timestamps && !self.in_line {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(text);
        self.in_line = tag == b"P";
        if !self.in_line {
            out.push(b'\n');
        }
    }

    fn is_wanted(&self, time: &[u8]) -> bool {
        let Some(since) = self.since else { return true };
        let time = std::str::from_utf8(time).ok().and_then(Timestamp::parse);
        time.is_none_or(|time| Time::from_ms(time.as_ms()) >= Time::from_ms(since.as_ms() / 1000 * 1000))
    }
}

/// The last lines.
struct Tail {
    max: usize,
    bytes: usize,
    lines: VecDeque<Vec<u8>>,
    open: bool,
}

impl Tail {
    fn new(max: usize) -> Self {
        Self {
            max,
            bytes: 0,
            lines: VecDeque::new(),
            open: false,
        }
    }

    fn push(&mut self, text: &[u8]) {
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match self.lines.back_mut().filter(|_| self.open) {
                Some(last) => last.extend_from_slice(line),
                None => self.lines.push_back(line.to_vec()),
            }
            self.bytes += line.len();
            self.open = !line.ends_with(b"\n");
            while self.lines.len() > self.max || self.bytes > TAIL_BYTES_MAX {
                let Some(dropped) = self.lines.pop_front() else {
                    break;
                };
                self.bytes -= dropped.len();
            }
        }
    }

    fn into_bytes(self) -> Vec<u8> {
        self.lines.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let query = Query {
            timestamps: true,
            ..Query::default()
        };
        let mut reader = Reader::new(&query);
        let mut out = Vec::new();
        for record in [
            "2026-01-01T00:00:00.1Z stdout P ab",
            "2026-01-01T00:00:00.2Z stdout F c d",
            "junk",
        ] {
            reader.record(record.as_bytes(), &mut out);
        }
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "2026-01-01T00:00:00.1Z abc d\njunk\n"
        );
    }

    #[test]
    fn tail() {
        let mut tail = Tail::new(2);
        for text in ["1\n2\n3", "3\n", "4\n"] {
            tail.push(text.as_bytes());
        }
        assert_eq!(tail.into_bytes(), b"33\n4\n");
    }
}
