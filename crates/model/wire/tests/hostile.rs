//! What a peer may send to harm us: an error each time, never a panic and never a large allocation.

#![allow(clippy::unwrap_used)]

use kedge_wire::limits::{JSON_DEPTH_MAX, MESSAGE_BYTES_MAX, TUNNEL_DATA_BYTES_MAX};
use kedge_wire::tunnel::{Connect, Frame, FrameBody, FrameError};
use kedge_wire::{Body, DecodeError, Envelope, ObjectResponse, ToCloud, ToEdge};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Remembers the largest allocation of each thread.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn note(size: usize) {
    // During thread exit the cell may be gone; nothing is measured then.
    let _ = LARGEST.try_with(|largest| largest.set(largest.get().max(size)));
}

#[allow(unsafe_code)]
// SAFETY: every call is handed to the system allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// The largest single allocation that `act` makes.
fn largest_allocation<T>(act: impl FnOnce() -> T) -> (T, usize) {
    LARGEST.with(|largest| largest.set(0));
    let result = act();
    (result, LARGEST.with(Cell::get))
}

const SAMPLE: &str = concat!(
    r#"{"header":{"msg_id":"a","parent_msg_id":"b","timestamp":17,"resourceversion":"9","sync":true,"type":"x"},"#,
    r#""route":{"source":"edgecontroller","destination":"d","group":"resource","operation":"update","#,
    r#""resource":"default/pod/wéb"},"content":{"metadata":{"name":"\u003cw\u0026\"","n":[1,2.5,null,true]}}}"#,
);

#[test]
fn a_message_cut_at_any_byte_is_an_error() {
    assert!(Envelope::decode(SAMPLE.as_bytes()).is_ok());
    for end in 0..SAMPLE.len() {
        assert!(
            Envelope::decode(&SAMPLE.as_bytes()[..end]).is_err(),
            "cut at byte {end}"
        );
    }
}

#[test]
fn deep_nesting_is_an_error_wherever_it_stands() {
    for depth in [JSON_DEPTH_MAX + 1, 100_000, 5_000_000] {
        for text in [
            "[".repeat(depth),
            r#"{"header":"#.to_owned() + &"{\"a\":".repeat(depth),
            r#"{"content":"#.to_owned() + &"[".repeat(depth) + &"]".repeat(depth) + "}",
            r#"{"unknown":"#.to_owned() + &"[".repeat(depth) + &"]".repeat(depth) + "}",
        ] {
            let (result, largest) = largest_allocation(|| Envelope::decode(text.as_bytes()));
            assert!(
                matches!(
                    result,
                    Err(DecodeError::TooDeep { .. }) | Err(DecodeError::TooLarge { .. })
                ),
                "{result:?}"
            );
            assert!(largest < 1024, "allocated {largest} bytes");
        }
    }
}

#[test]
fn the_deepest_message_that_is_taken_can_be_parsed_and_dropped() {
    let depth = JSON_DEPTH_MAX - 1;
    let text = format!(r#"{{"content":{}{}}}"#, "[".repeat(depth), "]".repeat(depth));
    let envelope = Envelope::decode(text.as_bytes()).unwrap();
    envelope.content.parse::<serde_json::Value>().unwrap();
}

#[test]
fn a_body_that_comes_from_elsewhere_may_be_deep_without_harm() {
    let deep = "[".repeat(1_000_000) + &"]".repeat(1_000_000);
    let body = Body::from_json(deep).unwrap();
    assert!(body.parse::<serde_json::Value>().is_err());
    assert!(body.object_meta().is_err());
    // Read or refused, but never by recursion.
    let _ = ObjectResponse::read(&body);
}

#[test]
fn a_message_that_is_too_large_is_refused_before_it_is_read() {
    let bytes = vec![b' '; MESSAGE_BYTES_MAX + 1];
    let (result, largest) = largest_allocation(|| Envelope::decode(&bytes));
    assert!(matches!(result, Err(DecodeError::TooLarge { .. })));
    assert!(largest < 1024, "allocated {largest} bytes");
}

#[test]
fn text_that_is_not_utf8_is_refused() {
    for at in 0..SAMPLE.len() {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        bytes[at] = 0xff;
        assert!(matches!(
            Envelope::decode(&bytes),
            Err(DecodeError::NotUtf8 { .. })
        ));
    }
}

#[test]
fn overlong_fields_are_refused_by_name() {
    let long = "x".repeat(5000);
    for (field, text) in [
        ("header.msg_id", format!(r#"{{"header":{{"msg_id":"{long}"}}}}"#)),
        (
            "header.parent_msg_id",
            format!(r#"{{"header":{{"parent_msg_id":"{long}"}}}}"#),
        ),
        (
            "header.resourceversion",
            format!(r#"{{"header":{{"resourceversion":"{long}"}}}}"#),
        ),
        ("header.type", format!(r#"{{"header":{{"type":"{long}"}}}}"#)),
        ("route.source", format!(r#"{{"route":{{"source":"{long}"}}}}"#)),
        (
            "route.destination",
            format!(r#"{{"route":{{"destination":"{long}"}}}}"#),
        ),
        ("route.group", format!(r#"{{"route":{{"group":"{long}"}}}}"#)),
        (
            "route.operation",
            format!(r#"{{"route":{{"operation":"{long}"}}}}"#),
        ),
        (
            "route.resource",
            format!(r#"{{"route":{{"resource":"{long}"}}}}"#),
        ),
    ] {
        match Envelope::decode(text.as_bytes()) {
            Err(DecodeError::FieldTooLong { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn wrong_shapes_are_errors_and_lenient_ones_are_read_as_the_official_reader_does() {
    for bad in [
        "",
        "7",
        "\"text\"",
        "[]",
        r#"{"header":7}"#,
        r#"{"header":{"msg_id":7}}"#,
        r#"{"header":{"timestamp":1.5}}"#,
        r#"{"header":{"timestamp":9223372036854775808}}"#,
        r#"{"header":{"sync":"yes"}}"#,
        r#"{"route":[]}"#,
        r#"{"header":{"msg_id":"a","MSG_ID":"b"}}"#,
        r#"{"content":1,"content":2}"#,
    ] {
        assert!(Envelope::decode(bad.as_bytes()).is_err(), "{bad}");
    }
    let empty = Envelope::decode(b"{}").unwrap();
    for same in [
        r#"{"header":null,"route":null,"content":null}"#,
        r#"{"HEADER":{"Msg_ID":null,"x":[{}]},"y":{}}"#,
        "{} }{ rest",
    ] {
        assert_eq!(Envelope::decode(same.as_bytes()).unwrap(), empty, "{same}");
    }
    assert_eq!(
        empty.encode(),
        "{\"header\":{\"msg_id\":\"\",\"timestamp\":0},\"route\":{},\"content\":null}\n"
    );
}

#[test]
fn a_frame_that_claims_much_allocates_nothing() {
    // A varint that claims 1 GiB, one that claims 2^64-1, and one that never ends.
    let claims: [&[u8]; 3] = [&[0x80, 0x80, 0x80, 0x80, 0x04], &[0xff; 9], &[0xff; 64]];
    for claim in claims {
        for bytes in [
            claim.to_vec(),
            [&[1], claim].concat(),
            [claim, &[1]].concat(),
            [claim, claim].concat(),
        ] {
            let (result, largest) = largest_allocation(|| Frame::decode(&bytes));
            assert!(result.is_err() || result.unwrap().body.data().len() < 64);
            assert!(largest < 1024, "allocated {largest} bytes");
        }
    }
    assert_eq!(Frame::decode(&[]), Err(FrameError::Truncated("connection id")));
    assert_eq!(Frame::decode(&[1]), Err(FrameError::Truncated("type")));
    assert_eq!(Frame::decode(&[1, 8]), Err(FrameError::UnknownType(8)));
    assert_eq!(Frame::decode(&[1, 7]), Err(FrameError::Truncated("window")));
    for window in [
        &[1, 7, 0][..],
        &[1, 7, 1, 1],
        &[1, 7, 0xff, 0xff, 0xff, 0xff, 0x7f],
    ] {
        assert_eq!(Frame::decode(window), Err(FrameError::BadWindow));
    }
    let body = FrameBody::Window(131_072);
    let window = Frame {
        connection: 300,
        body,
    };
    assert_eq!(Frame::decode(&window.encode()), Ok(window));
    assert_eq!(Frame::decode(&[0xff; 11]), Err(FrameError::VarintTooLong));

    let mut large = vec![1, 3];
    large.resize(2 + TUNNEL_DATA_BYTES_MAX, b'x');
    assert!(Frame::decode(&large).is_ok());
    large.push(b'x');
    let (result, largest) = largest_allocation(|| Frame::decode(&large));
    assert!(matches!(result, Err(FrameError::TooLarge { .. })));
    assert!(largest < 1024, "allocated {largest} bytes");
}

#[test]
fn a_connect_payload_is_bounded_too() {
    assert!(Connect::decode(&[b'['; 100_000]).is_err());
    let deep = format!(r#"{{"MessID":1,"url":{{"User":{}"#, "[".repeat(100_000));
    assert!(Connect::decode(deep.as_bytes()).is_err());
    assert!(Connect::decode(br#"{"MessID":1,"url":{},"header":null,"more":[]}"#).is_ok());
}

fn frame_body() -> impl Strategy<Value = FrameBody> {
    let data = || prop::collection::vec(any::<u8>(), 0..40);
    prop_oneof![
        data().prop_map(FrameBody::LogsConnect),
        data().prop_map(FrameBody::ExecConnect),
        data().prop_map(FrameBody::MetricsConnect),
        data().prop_map(FrameBody::AttachConnect),
        data().prop_map(FrameBody::Data),
        Just(FrameBody::Remove),
        data().prop_map(FrameBody::Close),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_a_frame_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = Frame::decode(&bytes);
        let _ = Envelope::decode(&bytes);
    }

    #[test]
    fn a_frame_is_written_and_read_back(connection in any::<u64>(), body in frame_body()) {
        let frame = Frame { connection, body };
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn a_damaged_message_is_a_message_or_an_error(at in 0..SAMPLE.len(), byte in any::<u8>()) {
        let mut bytes = SAMPLE.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(envelope) = Envelope::decode(&bytes) {
            prop_assert_eq!(&ToEdge::open(envelope.clone()).seal(), &envelope);
            prop_assert_eq!(&ToCloud::open(envelope.clone()).seal(), &envelope);
            prop_assert_eq!(&Envelope::decode(envelope.encode().as_bytes()).unwrap(), &envelope);
        }
    }
}
