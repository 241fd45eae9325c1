//! One JSON text a line, out of a stream of arbitrary pieces.

use bytes::{Buf as _, Bytes, BytesMut};
use http_body_util::BodyExt as _;

/// One event: the largest object that etcd takes, with room for escapes and for etcds with a raised limit.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why there is no next line.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("the stream broke off: {0}")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("an event is larger than the limit of {max} bytes")]
    TooLong { max: usize },
}

/// Cuts a response body into lines.
pub(super) struct Lines {
    body: kube::client::Body,
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no line end.
    searched: usize,
}

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lines")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl Lines {
    pub(super) fn new(body: kube::client::Body) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            searched: 0,
        }
    }

    /// The next line that is not empty; `None` at the end. What stands after the last line end is dropped: it is an
    /// event that was cut off. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            while let Some(line) = self.buffered_line() {
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(LineError::TooLong { max: LINE_BYTES_MAX });
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(LineError::Broken(Box::new(error))),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
            }
        }
    }

    fn buffered_line(&mut self) -> Option<Bytes> {
        let end = self.buffer[self.searched..]
            .iter()
            .position(|byte| *byte == b'\n');
        let Some(end) = end else {
            self.searched = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.searched + end).freeze();
        self.buffer.advance(1);
        self.searched = 0;
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_out_whole_and_a_cut_one_does_not() {
        let text = b"{\"a\":1}\n\n{\"b\":2}\n{\"cut".to_vec();
        let mut lines = Lines::new(kube::client::Body::from(text));
        assert_eq!(lines.next().await.unwrap().unwrap(), "{\"a\":1}");
        assert_eq!(lines.next().await.unwrap().unwrap(), "{\"b\":2}");
        assert_eq!(lines.next().await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_line_that_never_ends_is_refused() {
        let mut lines = Lines::new(kube::client::Body::from(vec![b'x'; LINE_BYTES_MAX + 1]));
        assert!(matches!(lines.next().await, Err(LineError::TooLong { .. })));
    }
}
