//! Sizes of a terminal, as JSON objects one after the other.

use super::ToProcess;
use serde::Deserialize;

/// What waits for the end of its object: one has thirty bytes.
const WAITING_BYTES_MAX: usize = 1024;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Takes the bytes in whatever parts they come.
#[derive(Debug, Default)]
pub(super) struct Sizes(Vec<u8>);

impl Sizes {
    /// What is complete now. Only the last size counts, because it is the one that the user sees.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Option<ToProcess>, &'static str> {
        self.0.extend_from_slice(bytes);
        let mut stream = serde_json::Deserializer::from_slice(&self.0).into_iter::<Size>();
        let mut newest = None;
        let trouble = loop {
            match stream.next() {
                Some(Ok(size)) => newest = Some(size),
                Some(Err(error)) if error.is_eof() => break false,
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        let done = stream.byte_offset();
        if trouble {
            return Err("a terminal size that is none");
        }
        self.0.drain(..done);
        if self.0.len() > WAITING_BYTES_MAX {
            return Err("a terminal size of more than 1 KiB");
        }
        Ok(newest.map(|Size { width, height }| ToProcess::Resize { width, height }))
    }
}

/// A size as a client writes it.
pub(crate) fn print(width: u16, height: u16) -> String {
    format!("{{\"Width\":{width},\"Height\":{height}}}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_parts() {
        let mut sizes = Sizes::default();
        let told = |sizes: &mut Sizes, text: &str| sizes.push(text.as_bytes()).unwrap();
        let size = |width, height| Some(ToProcess::Resize { width, height });
        assert_eq!(told(&mut sizes, &print(80, 24)), size(80, 24));
        assert_eq!(told(&mut sizes, "{\"Width\":1"), None);
        assert_eq!(told(&mut sizes, "00,\"Height\":30}{\"Wid"), size(100, 30));
        assert_eq!(
            told(&mut sizes, "th\":1,\"Height\":2} {\"Width\":3,\"Height\":4}"),
            size(3, 4)
        );
        assert!(sizes.push(b"{\"Width\":-1").is_err());
        assert!(Sizes::default().push(b"x").is_err());
        assert!(Sizes::default().push(&[b' '; 5000]).is_ok());
        let endless = format!("{{\"Width\":{}", " ".repeat(5000));
        assert!(Sizes::default().push(endless.as_bytes()).is_err());
    }
}
