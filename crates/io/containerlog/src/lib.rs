//! The log files of containers.
//!
//! **Duty.** Cut what a container writes into the lines of the Container Runtime Interface
//! (`<time> <stream> <F|P> <text>`), and keep them in files that are turned over at a size.
//!
//! **Inputs.** Bytes as they come, and the time. **Outputs.** Files, and how many lines a disk did not take.
//!
//! **Never.** It waits for nothing but the disk, and it never leaves half a line behind: whoever follows a file reads
//! whole ones.

mod file;
mod moment;

pub use file::{LogFile, Lost};
pub use moment::Moment;

/// Longer lines are written in parts tagged `P`, as every CRI runtime does.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Which of the two outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts what a stream writes into lines.
#[derive(Debug)]
pub struct Lines {
    stream: Stream,
    unfinished: Vec<u8>,
}

impl Lines {
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            unfinished: Vec::new(),
        }
    }

    /// Takes bytes as they came and appends finished records to `out`.
    pub fn push(&mut self, mut bytes: &[u8], now: Moment, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = LINE_BYTES_MAX - self.unfinished.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                self.emit('F', &window[..end], now, out);
                bytes = &bytes[end + 1..];
            } else if window.len() == room {
                self.emit('P', window, now, out);
                bytes = &bytes[window.len()..];
            } else {
                self.unfinished.extend_from_slice(window);
                return;
            }
        }
    }

    /// The stream ended: what is left is a line, though nothing ended it.
    pub fn finish(&mut self, now: Moment, out: &mut Vec<u8>) {
        if !self.unfinished.is_empty() {
            self.emit('F', b"", now, out);
        }
    }

    fn emit(&mut self, tag: char, rest: &[u8], now: Moment, out: &mut Vec<u8>) {
        out.extend_from_slice(&now.text());
        out.push(b' ');
        out.extend_from_slice(self.stream.name().as_bytes());
        out.extend_from_slice(&[b' ', tag as u8, b' ']);
        out.append(&mut self.unfinished);
        out.extend_from_slice(rest);
        out.push(b'\n');
        // A quiet container holds no memory for the long line that it wrote once.
        self.unfinished = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    const NOW: Moment = Moment {
        seconds: 1_475_713_029,
        nanoseconds: 669_794_202,
    };

    fn check(pieces: &[&str], want: Expect) {
        let mut out = Vec::new();
        let mut lines = Lines::new(Stream::Stdout);
        for piece in pieces {
            lines.push(piece.as_bytes(), NOW, &mut out);
        }
        lines.finish(NOW, &mut out);
        want.assert_eq(&String::from_utf8(out).unwrap());
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        check(
            &["one\ntw", "o\n", "\nlast"],
            expect![[r#"
                2016-10-06T00:17:09.669794202Z stdout F one
                2016-10-06T00:17:09.669794202Z stdout F two
                2016-10-06T00:17:09.669794202Z stdout F 
                2016-10-06T00:17:09.669794202Z stdout F last
            "#]],
        );
    }

    #[test]
    fn a_long_line_is_written_in_parts() {
        let mut out = Vec::new();
        let mut lines = Lines::new(Stream::Stderr);
        lines.push(&vec![b'x'; LINE_BYTES_MAX + 1], NOW, &mut out);
        lines.push(b"\n", NOW, &mut out);
        let text = String::from_utf8(out).unwrap();
        let tags: Vec<_> = text.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(tags, ["P", "F"]);
        assert!(text.ends_with(" stderr F x\n"));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_it_is_cut(text in proptest::collection::vec(any::<u8>(), 0..200), cuts in proptest::collection::vec(1_usize..50, 1..20)) {
            let mut lines = Lines::new(Stream::Stdout);
            let mut out = Vec::new();
            let mut left = text.as_slice();
            for cut in cuts.iter().cycle() {
                if left.is_empty() {
                    break;
                }
                let (piece, rest) = left.split_at((*cut).min(left.len()));
                lines.push(piece, NOW, &mut out);
                left = rest;
            }
            lines.finish(NOW, &mut out);
            let head = b"2016-10-06T00:17:09.669794202Z stdout F ".len();
            let mut back = Vec::new();
            for record in out.split_inclusive(|byte| *byte == b'\n') {
                back.extend_from_slice(&record[head..]);
            }
            let mut want = text.clone();
            if !want.is_empty() && want.last() != Some(&b'\n') {
                want.push(b'\n');
            }
            prop_assert_eq!(back, want);
        }
    }
}
