//! Bodies in a shorter form, between two own ends: raw DEFLATE.

use crate::connection::RecvError;
use crate::outgoing::Bulk;
use flate2::Compression;
use flate2::bufread::DeflateDecoder;
use flate2::write::DeflateEncoder;
use kedge_wire::Body;
use std::io::{Read, Write};
use tokio::sync::Semaphore;

/// A shorter body fits into one packet of the network either way.
pub(crate) const PACK_BYTES_MIN: usize = 1024;
/// Level 3 of 9: within a few percent of the best for Kubernetes objects, at a third of its time.
const LEVEL: u32 = 3;
/// Memory that is given to an announced body before any of it has come out.
const GROWTH_BYTES_MIN: usize = 16 * 1024;

/// A larger body is packed aside, because it would keep a thread of the runtime for milliseconds.
const ASIDE_BYTES_MIN: usize = 64 * 1024;
/// One at a time: a thousand sessions send one new body at once, and all but the first shall find it packed. It belongs
/// to the process as its cores do, and is never held longer than one body takes.
static ASIDE: Semaphore = Semaphore::const_new(1);

/// Packs a large body aside, unless that was done before.
pub(crate) async fn prepare(body: &Body) {
    if body.json().len() < ASIDE_BYTES_MIN || body.is_packed() {
        return;
    }
    let _turn = ASIDE.acquire().await;
    if !body.is_packed() {
        let body = body.clone();
        // It fails only while the runtime ends; then there is nobody left to hurry for.
        let _ = tokio::task::spawn_blocking(move || packed(&body).is_some()).await;
    }
}

/// From so many holders on, the packed form of a body is kept beside it. A pod or a node has the index, a session and the
/// message on its way: to keep it for those would cost each node a kilobyte for as long as the object lives.
const KEPT_HOLDERS_MIN: usize = 8;

/// What travels instead of a body's text; `None` when packing would not pay.
pub(crate) fn shortened(body: &Body) -> Option<Bulk> {
    if body.is_packed() || body.holders() >= KEPT_HOLDERS_MIN {
        return packed(body).map(|_| Bulk::Packed(body.clone()));
    }
    deflated(body.json()).map(|packed| Bulk::Bytes(packed.into()))
}

/// The packed form of a body, made once for all its clones; `None` when it would not pay.
pub(crate) fn packed(body: &Body) -> Option<&[u8]> {
    body.packed(deflated)
}

fn deflated(json: &str) -> Option<Box<[u8]>> {
    if json.len() < PACK_BYTES_MIN {
        return None;
    }
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(json.len() / 4), Compression::new(LEVEL));
    let packed = encoder
        .write_all(json.as_bytes())
        .and_then(|()| encoder.finish())
        .expect("writing to memory cannot fail");
    // JSON is text, and text always gets shorter; but nobody must rely on that.
    (packed.len() < json.len()).then(|| packed.into_boxed_slice())
}

/// The text of a packed body that is announced with `length` bytes, which the caller has checked against its limit.
pub(crate) fn unpack(packed: &[u8], length: usize) -> Result<Vec<u8>, RecvError> {
    let broken = |why: &str| RecvError::Protocol(format!("a packed body that {why}"));
    let mut text = Vec::with_capacity(length.min(GROWTH_BYTES_MIN));
    let mut decoder = DeflateDecoder::new(packed);
    (&mut decoder)
        .take(length as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|_| broken("cannot be unpacked"))?;
    if text.len() != length {
        return Err(broken("has not the announced length"));
    }
    if decoder.total_in() != packed.len() as u64 {
        return Err(broken("is followed by something else"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(body: &Body) -> Vec<u8> {
        unpack(packed(body).unwrap(), body.json().len()).unwrap()
    }

    #[test]
    fn a_body_is_packed_once_for_all_clones() {
        let body = Body::text(&"config ".repeat(1000));
        let clone = body.clone();
        let first = packed(&body).unwrap();
        assert!(first.len() < 200, "{}", first.len());
        assert_eq!(first.as_ptr(), packed(&clone).unwrap().as_ptr());
        assert_eq!(text(&body), body.json().as_bytes());
    }

    #[test]
    fn the_packed_form_is_kept_where_many_hold_the_body() {
        let body = Body::text(&"config ".repeat(1000));
        let fresh = shortened(&body).unwrap();
        assert!(matches!(fresh, Bulk::Bytes(_)) && !body.is_packed());
        let holders = vec![body.clone(); KEPT_HOLDERS_MIN];
        let kept = shortened(&holders[0]).unwrap();
        assert!(matches!(kept, Bulk::Packed(_)) && body.is_packed());
        assert_eq!(fresh.bytes(), kept.bytes());
    }

    #[tokio::test]
    async fn a_large_body_is_packed_aside() {
        let large = Body::text(&"config ".repeat(100_000));
        prepare(&large).await;
        assert!(large.is_packed());
        let middle = Body::text(&"config ".repeat(1000));
        prepare(&middle).await;
        assert!(!middle.is_packed());
    }

    #[test]
    fn a_short_body_stays() {
        assert_eq!(packed(&Body::text(&"x".repeat(PACK_BYTES_MIN - 3))), None);
        assert!(packed(&Body::text(&"x".repeat(PACK_BYTES_MIN - 2))).is_some());
    }

    #[test]
    fn a_bomb_bursts_at_the_announced_length() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        for _ in 0..64 {
            encoder.write_all(&[b' '; 1024 * 1024]).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 100_000);
        let error = unpack(&bomb, 5000).unwrap_err().to_string();
        assert_eq!(
            error,
            "the peer breaks the protocol: a packed body that has not the announced length"
        );
    }

    proptest! {
        #[test]
        fn packed_text_comes_back(words in prop::collection::vec("[a-z]{1,12}", 200..600)) {
            let body = Body::text(&words.join(" "));
            if let Some(packed) = packed(&body) {
                let length = body.json().len();
                prop_assert_eq!(unpack(packed, length).unwrap(), body.json().as_bytes());
                prop_assert!(unpack(packed, length - 1).is_err());
                prop_assert!(unpack(packed, length + 1).is_err());
                prop_assert!(unpack(&packed[..packed.len() - 1], length).is_err());
                let longer = [packed, &[0]].concat();
                prop_assert!(unpack(&longer, length).is_err());
            }
        }

        #[test]
        fn noise_is_an_error(bytes: Vec<u8>, length in 0_usize..100_000) {
            let _ = unpack(&bytes, length);
        }
    }
}
