//! The recorded traffic of the official peers, line by line.

use kedge_wire::{Envelope, MessageId};
use serde_json::Value;

const HUB: &str = include_str!("../../../fixtures/vectors/hub.jsonl");

/// The node of the recording.
pub(crate) const NODE: &str = "goedge";

pub(crate) enum Line {
    /// The edge dials.
    Connects,
    ToCloud(Envelope),
    ToEdge(Envelope),
}

pub(crate) struct Recording {
    pub(crate) lines: Vec<Line>,
}

impl Recording {
    pub(crate) fn read() -> Self {
        let line = |text: &str| {
            let line: Value = serde_json::from_str(text).unwrap();
            let envelope = || Envelope::decode(line["text"].as_str().unwrap().as_bytes()).unwrap();
            match line["dir"].as_str().unwrap() {
                "edge-headers" => Line::Connects,
                "edge->cloud" => Line::ToCloud(envelope()),
                "cloud->edge" => Line::ToEdge(envelope()),
                other => panic!("unknown direction {other}"),
            }
        };
        Self {
            lines: HUB.lines().map(line).collect(),
        }
    }

    pub(crate) fn to_cloud(&self) -> impl Iterator<Item = &Envelope> {
        self.lines.iter().filter_map(|line| match line {
            Line::ToCloud(envelope) => Some(envelope),
            Line::ToEdge(_) | Line::Connects => None,
        })
    }

    pub(crate) fn to_edge(&self) -> impl Iterator<Item = &Envelope> {
        self.lines.iter().filter_map(|line| match line {
            Line::ToEdge(envelope) => Some(envelope),
            Line::ToCloud(_) | Line::Connects => None,
        })
    }

    /// What the cloud answered to a request.
    pub(crate) fn answer_to(&self, request: &MessageId) -> Option<&Envelope> {
        self.to_edge()
            .find(|envelope| envelope.header.parent.as_ref() == Some(request))
    }

    /// What the cloud pushed about one resource, in order.
    pub(crate) fn pushes_of<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a Envelope> {
        self.to_edge()
            .filter(move |envelope| envelope.header.parent.is_none() && envelope.route.resource == resource)
    }
}

/// The content as JSON.
pub(crate) fn content(envelope: &Envelope) -> Value {
    envelope.content.parse().unwrap()
}

/// `default/pod/web` -> (`default`, `pod`, `web`).
pub(crate) fn object_of(envelope: &Envelope) -> Option<(&str, &str, &str)> {
    let mut words = envelope.route.resource.split('/');
    let object = (words.next()?, words.next()?, words.next()?);
    words.next().is_none().then_some(object)
}
