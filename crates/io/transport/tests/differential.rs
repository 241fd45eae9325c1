//! Our frames against tokio-tungstenite, each in both roles.
#![allow(clippy::unwrap_used)] // clippy exempts test functions but not what they call.

mod world;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kedge_transport::{
    Close, CloseCode, Connection, Limits, Listener, Plug, RecvError, Target, accept, dial, dial_tls,
};
use kedge_wire::{Body, Envelope, Header, MessageId, Packet};
use proptest::prelude::*;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode as TheirCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};
use world::{World, keepalive, node, welcome};

/// Who listens and who dials.
struct Wire {
    world: World,
    listener: Listener,
}

impl Wire {
    async fn new() -> Self {
        let world = World::new();
        let (listener, _) = world.listen().await;
        Self { world, listener }
    }

    fn address(&self) -> String {
        self.listener.local_address().to_string()
    }

    /// Our server, their client.
    async fn they_dial(
        &self,
    ) -> (
        Connection,
        WebSocketStream<tokio_rustls::client::TlsStream<TcpStream>>,
    ) {
        let dialled = async {
            let tls = dial_tls(&self.address(), self.world.edge_tls()).await.unwrap();
            client_async(format!("wss://{}/", self.address()), tls)
                .await
                .unwrap()
                .0
        };
        let accepted = async {
            let (tcp, _) = self.listener.accept().await;
            accept(tcp, self.world.server_tls(), Limits::HUB, welcome)
                .await
                .unwrap()
                .0
        };
        tokio::join!(accepted, dialled)
    }

    /// Our client, their server.
    async fn they_accept(
        &self,
    ) -> (
        Connection,
        WebSocketStream<tokio_rustls::server::TlsStream<TcpStream>>,
    ) {
        let target = Target::hub(&self.address(), "project", &node());
        let plug = Plug::new();
        let accepted = async {
            let (tcp, _) = self.listener.accept().await;
            let tls = TlsAcceptor::from(self.world.server_tls())
                .accept(tcp)
                .await
                .unwrap();
            accept_async(tls).await.unwrap()
        };
        let (ours, theirs) = tokio::join!(dial(&target, self.world.edge_tls(), &plug), accepted);
        (ours.unwrap(), theirs)
    }
}

fn envelope(text: &str) -> Envelope {
    Envelope {
        header: Header::new(MessageId::new("m1"), 1_767_225_600_000),
        route: keepalive(),
        content: Body::text(text),
    }
}

/// What each side says and the other must hear, whoever dialled.
async fn conversation<S>(ours: Connection, mut theirs: WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let (mut out, mut incoming) = ours.split();
    for length in [0, 1, 124, 125, 126, 127, 65_535, 65_536, 1_000_000] {
        let bytes = Bytes::from(vec![b'x'; length]);
        let (sent, heard) = tokio::join!(out.send_binary(bytes.clone()), theirs.next());
        sent.unwrap();
        assert_eq!(heard.unwrap().unwrap(), Message::Binary(bytes.clone()));
        let (sent, heard) = tokio::join!(
            theirs.send(Message::Binary(bytes.clone())),
            incoming.recv_binary()
        );
        sent.unwrap();
        assert_eq!(heard.unwrap(), bytes);
    }

    let said = envelope("grüße");
    let (sent, heard) = tokio::join!(
        async { out.send(&Packet::from(said.clone())).await },
        theirs.next()
    );
    sent.unwrap();
    assert_eq!(heard.unwrap().unwrap(), Message::text(said.encode()));
    let (sent, heard) = tokio::join!(theirs.send(Message::text(said.encode())), incoming.recv());
    sent.unwrap();
    assert_eq!(heard.unwrap(), Packet::from(said));

    // Pings are answered on both sides while they receive; a ping stands inside a message that comes in pieces.
    let piece = |opcode, last, bytes: &'static [u8]| {
        Message::Frame(Frame::message(
            Bytes::from_static(bytes),
            OpCode::Data(opcode),
            last,
        ))
    };
    theirs
        .feed(piece(Data::Text, false, b"{\"header\":"))
        .await
        .unwrap();
    theirs
        .feed(Message::Ping(Bytes::from_static(b"alive?")))
        .await
        .unwrap();
    theirs.feed(piece(Data::Continue, false, b"")).await.unwrap();
    theirs.feed(piece(Data::Continue, true, b"{}}")).await.unwrap();
    theirs.flush().await.unwrap();
    let heard = incoming.recv().await.unwrap();
    assert!(matches!(heard, Packet::Envelope(_)));
    let pong = tokio::select! {
        pong = theirs.next() => pong,
        heard = incoming.recv() => panic!("nothing more was said: {heard:?}"),
    };
    assert_eq!(
        pong.unwrap().unwrap(),
        Message::Pong(Bytes::from_static(b"alive?"))
    );
    let (sent, heard) = tokio::join!(out.ping(), theirs.next());
    sent.unwrap();
    assert_eq!(
        heard.unwrap().unwrap(),
        Message::Ping(Bytes::from_static(b"ping you"))
    );
    theirs.flush().await.unwrap();

    // They close: we hear why, and they hear the echo.
    let frame = CloseFrame {
        code: TheirCode::Again,
        reason: "later".into(),
    };
    theirs.send(Message::Close(Some(frame))).await.unwrap();
    match incoming.recv().await.unwrap_err() {
        RecvError::Closed(close) => assert_eq!(close.to_string(), "1013 later"),
        other => panic!("{other}"),
    }
    drop((out, incoming));
    match theirs.next().await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, TheirCode::Again),
        None => {}
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn their_client_and_our_server_understand_each_other() {
    let wire = Wire::new().await;
    let (ours, theirs) = wire.they_dial().await;
    conversation(ours, theirs).await;
}

#[tokio::test]
async fn our_client_and_their_server_understand_each_other() {
    let wire = Wire::new().await;
    let (ours, theirs) = wire.they_accept().await;
    conversation(ours, theirs).await;
}

#[tokio::test]
async fn our_close_is_a_close_to_them() {
    let wire = Wire::new().await;
    let (ours, mut theirs) = wire.they_dial().await;
    let close = Close {
        code: CloseCode::TryAgain,
        reason: "the node limit is reached".into(),
    };
    let ((), heard) = tokio::join!(ours.close(&close), theirs.next());
    match heard.unwrap().unwrap() {
        Message::Close(Some(frame)) => {
            assert_eq!(frame.code, TheirCode::Again);
            assert_eq!(frame.reason.as_str(), "the node limit is reached");
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        theirs.next().await,
        None | Some(Err(Error::ConnectionClosed | Error::Io(_)))
    ));
}

#[test]
fn any_row_of_messages_in_any_pieces_arrives() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (_wire, ours, theirs) = runtime.block_on(async {
        let wire = Wire::new().await;
        let (ours, theirs) = wire.they_dial().await;
        (wire, ours, theirs)
    });
    let (_out, incoming) = ours.split();
    let both = std::cell::RefCell::new((incoming, theirs));
    let messages = prop::collection::vec(
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 1..5),
        1..5,
    );
    proptest!(ProptestConfig::with_cases(64), |(messages in messages)| {
        let mut both = both.borrow_mut();
        let (incoming, theirs) = &mut *both;
        runtime.block_on(async {
            // One control frame a case: more than a hundred in a second would be a flood.
            let mut pong = Some(Message::Pong(Bytes::new()));
            for pieces in &messages {
                for (index, piece) in pieces.iter().enumerate() {
                    let data = if index == 0 { Data::Binary } else { Data::Continue };
                    let last = index + 1 == pieces.len();
                    let frame = Frame::message(Bytes::from(piece.clone()), OpCode::Data(data), last);
                    theirs.feed(Message::Frame(frame)).await.unwrap();
                    if let Some(pong) = pong.take() {
                        theirs.feed(pong).await.unwrap();
                    }
                }
            }
            theirs.flush().await.unwrap();
            for pieces in &messages {
                assert_eq!(incoming.recv_binary().await.unwrap(), pieces.concat());
            }
        });
    });
}
