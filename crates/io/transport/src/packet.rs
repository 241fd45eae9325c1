//! From packets to messages and back, in the framing that the two ends agreed on.
//!
//! ```text
//!   Official   a text message: the envelope's JSON
//!   Kedge      a binary message: kind, then
//!                1 ping, 2 pong       nothing
//!                3 envelope           its JSON
//!                4 packed envelope    length of the head, length of the body (4 bytes each, big endian),
//!                                     the head: its JSON with null as content; then the body, packed
//!                0 close              code and reason, on a QUIC stream; WebSocket has a frame for it
//! ```

use crate::close::Close;
use crate::connection::{Limits, Message, RecvError, SendError};
use crate::frame::Opcode;
use crate::outgoing::{Bulk, Payload};
use crate::pack;
use kedge_wire::{Body, Envelope, Packet};

/// What the messages of a hub connection look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// As official peers write them. There is no heartbeat: [`Packet::Ping`] and [`Packet::Pong`] cannot be sent.
    Official,
    /// As two own ends write them: heartbeats of a few bytes, long bodies packed.
    Kedge,
}

impl Framing {
    /// What a message may have beside the JSON that the limits are about.
    pub(crate) fn overhead(self) -> usize {
        match self {
            Self::Official => 0,
            Self::Kedge => PACKED_HEAD_BYTES,
        }
    }
}

const CLOSE: u8 = 0;
const PING: u8 = 1;
const PONG: u8 = 2;
const ENVELOPE: u8 = 3;
const PACKED: u8 = 4;
/// Kind and two lengths.
const PACKED_HEAD_BYTES: usize = 9;
/// Content of the head of a packed envelope.
const NO_CONTENT: &str = "null";

/// What a message says.
#[derive(Debug)]
pub(crate) enum Heard {
    Packet(Packet),
    Close(Close),
}

pub(crate) fn encode(framing: Framing, packet: &Packet) -> Result<Payload, SendError> {
    let beat = |kind| Payload {
        opcode: Opcode::Binary,
        head: vec![kind],
        bulk: Bulk::None,
        tail: "",
    };
    match (framing, packet) {
        (Framing::Official, Packet::Envelope(envelope)) => Ok(plain(
            Opcode::Text,
            envelope.encode_head(0).into_bytes(),
            envelope,
        )),
        (Framing::Official, Packet::Ping | Packet::Pong) => Err(SendError::NoHeartbeat),
        (Framing::Kedge, Packet::Ping) => Ok(beat(PING)),
        (Framing::Kedge, Packet::Pong) => Ok(beat(PONG)),
        (Framing::Kedge, Packet::Envelope(envelope)) => Ok(own_envelope(envelope)),
    }
}

fn plain(opcode: Opcode, head: Vec<u8>, envelope: &Envelope) -> Payload {
    Payload {
        opcode,
        head,
        bulk: Bulk::Json(envelope.content.clone()),
        tail: Envelope::TAIL,
    }
}

fn own_envelope(envelope: &Envelope) -> Payload {
    let body = &envelope.content;
    let json = envelope.encode_head(NO_CONTENT.len() + Envelope::TAIL.len());
    let Some(bulk) = pack::shortened(body) else {
        return plain(Opcode::Binary, [&[ENVELOPE], json.as_bytes()].concat(), envelope);
    };
    let json = json + NO_CONTENT + Envelope::TAIL;
    let length = |bytes: usize| {
        u32::try_from(bytes)
            .expect("an envelope has at most 16 MiB")
            .to_be_bytes()
    };
    let mut head = Vec::with_capacity(PACKED_HEAD_BYTES + json.len());
    head.push(PACKED);
    head.extend_from_slice(&length(json.len()));
    head.extend_from_slice(&length(body.json().len()));
    head.extend_from_slice(json.as_bytes());
    Payload {
        opcode: Opcode::Binary,
        head,
        bulk,
        tail: "",
    }
}

/// The close of a stream, from the payload of a close frame.
pub(crate) fn stream_close(payload: &[u8]) -> Payload {
    Payload {
        opcode: Opcode::Binary,
        head: [&[CLOSE], payload].concat(),
        bulk: Bulk::None,
        tail: "",
    }
}

/// Reads a message. Text is checked to be text where text is needed: in the JSON.
pub(crate) fn decode(framing: Framing, limits: Limits, message: &Message) -> Result<Heard, RecvError> {
    let wrong = |what: &str| RecvError::Protocol(what.to_owned());
    let bytes = match (framing, message) {
        (Framing::Official, Message::Text(bytes) | Message::Binary(bytes)) => {
            return Ok(Heard::Packet(Envelope::decode(bytes)?.into()));
        }
        (Framing::Kedge, Message::Binary(bytes)) => bytes,
        (Framing::Kedge, Message::Text(_)) => {
            return Err(wrong("a text message where both agreed on the own framing"));
        }
    };
    let (&kind, rest) = bytes.split_first().ok_or_else(|| wrong("an empty message"))?;
    let packet = match kind {
        CLOSE => return Close::read(rest).map(Heard::Close).map_err(wrong),
        PING | PONG if !rest.is_empty() => return Err(wrong("a heartbeat with something in it")),
        PING => Packet::Ping,
        PONG => Packet::Pong,
        ENVELOPE => Envelope::decode(rest)?.into(),
        PACKED => unpack(rest, limits)?.into(),
        _ => return Err(wrong("a message of a kind that does not exist")),
    };
    Ok(Heard::Packet(packet))
}

fn unpack(bytes: &[u8], limits: Limits) -> Result<Envelope, RecvError> {
    let short = || RecvError::Protocol("a packed envelope without its beginning".to_owned());
    let mut rest = bytes;
    let mut length = || {
        let (number, after) = rest.split_first_chunk()?;
        rest = after;
        usize::try_from(u32::from_be_bytes(*number)).ok()
    };
    let (head_bytes, body_bytes) = length().zip(length()).ok_or_else(short)?;
    let max = limits.message_bytes_max;
    if head_bytes.saturating_add(body_bytes) > max {
        return Err(RecvError::TooLarge { max });
    }
    let (head, packed) = rest.split_at_checked(head_bytes).ok_or_else(short)?;
    let mut envelope = Envelope::decode(head)?;
    envelope.content = Body::decode(pack::unpack(packed, body_bytes)?)?;
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use kedge_wire::{Header, MessageId, RawRoute};
    use proptest::prelude::*;

    fn envelope(resource: &str, content: Body) -> Envelope {
        Envelope {
            header: Header::new(MessageId::new("m1"), 1_767_225_600_000),
            route: RawRoute {
                source: "edgecontroller".into(),
                group: "resource".into(),
                operation: "update".into(),
                resource: resource.into(),
                ..RawRoute::default()
            },
            content,
        }
    }

    fn bytes(payload: &Payload) -> Vec<u8> {
        [&payload.head, payload.bulk.bytes(), payload.tail.as_bytes()].concat()
    }

    fn read(framing: Framing, bytes: Vec<u8>) -> Result<Heard, RecvError> {
        decode(framing, Limits::HUB, &Message::Binary(Bytes::from(bytes)))
    }

    fn complaint(bytes: Vec<u8>) -> String {
        read(Framing::Kedge, bytes)
            .unwrap_err()
            .verdict()
            .unwrap()
            .to_string()
    }

    #[test]
    fn an_official_message_is_the_envelope() {
        let envelope = envelope("default/configmap/web", Body::text("x"));
        let payload = encode(Framing::Official, &envelope.clone().into()).unwrap();
        assert_eq!(payload.opcode, Opcode::Text);
        assert_eq!(bytes(&payload), envelope.encode().into_bytes());
        assert!(matches!(
            encode(Framing::Official, &Packet::Ping),
            Err(SendError::NoHeartbeat)
        ));
    }

    #[test]
    fn a_heartbeat_is_one_byte_and_a_long_body_is_packed() {
        for (packet, expected) in [(Packet::Ping, 1), (Packet::Pong, 2)] {
            assert_eq!(bytes(&encode(Framing::Kedge, &packet).unwrap()), [expected]);
        }
        let short = envelope("default/configmap/web", Body::text("short"));
        let payload = bytes(&encode(Framing::Kedge, &short.clone().into()).unwrap());
        assert_eq!(payload, [&[3], short.encode().as_bytes()].concat());
        let long = envelope("default/configmap/web", Body::text(&"long ".repeat(10_000)));
        let payload = bytes(&encode(Framing::Kedge, &long.into()).unwrap());
        assert_eq!(payload[0], 4);
        assert!(payload.len() < 600, "{}", payload.len());
    }

    #[test]
    fn what_breaks_the_framing_is_told() {
        assert_eq!(
            complaint(vec![]),
            "1002 the peer breaks the protocol: an empty message"
        );
        assert_eq!(
            complaint(vec![1, 0]),
            "1002 the peer breaks the protocol: a heartbeat with something in it"
        );
        assert_eq!(
            complaint(vec![5]),
            "1002 the peer breaks the protocol: a message of a kind that does not exist"
        );
        let packed = |head: u32, body: u32| [&[4][..], &head.to_be_bytes(), &body.to_be_bytes()].concat();
        assert_eq!(
            complaint(vec![4, 0, 0]),
            "1002 the peer breaks the protocol: a packed envelope without its beginning"
        );
        assert_eq!(
            complaint(packed(100, 100)),
            "1002 the peer breaks the protocol: a packed envelope without its beginning"
        );
        assert_eq!(
            complaint(packed(u32::MAX, u32::MAX)),
            "1009 the peer sent a message larger than 16777216 bytes"
        );
        let text = Message::Text(Bytes::from_static(&[1]));
        let error = decode(Framing::Kedge, Limits::HUB, &text).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the peer breaks the protocol: a text message where both agreed on the own framing"
        );
        let noise = read(Framing::Official, vec![b'{', 0xff]).unwrap_err();
        assert_eq!(noise.verdict().unwrap().code.number(), 1007);
    }

    #[test]
    fn an_unpacked_body_has_the_limits_of_a_plain_one() {
        let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
        let long = envelope("default/configmap/web", Body::from_json(deep).unwrap());
        let payload = bytes(&encode(Framing::Kedge, &long.into()).unwrap());
        assert_eq!(payload[0], 4);
        let error = read(Framing::Kedge, payload)
            .unwrap_err()
            .verdict()
            .unwrap()
            .to_string();
        assert_eq!(
            error,
            "1008 the peer sent a malformed message: message is nested deeper than the limit of 128"
        );
    }

    proptest! {
        #[test]
        fn an_envelope_comes_back(resource in "[a-z/]{0,40}", text in "[a-zü\"\\\\]{0,3000}", official: bool) {
            let framing = if official { Framing::Official } else { Framing::Kedge };
            let packet = Packet::from(envelope(&resource, Body::text(&text)));
            let payload = bytes(&encode(framing, &packet).unwrap());
            let Heard::Packet(heard) = read(framing, payload).unwrap() else { panic!() };
            prop_assert_eq!(heard, packet);
        }

        #[test]
        fn noise_is_an_error_or_a_packet(kind in 0_u8..6, bytes: Vec<u8>) {
            let _ = read(Framing::Kedge, [&[kind][..], &bytes].concat());
        }
    }
}
