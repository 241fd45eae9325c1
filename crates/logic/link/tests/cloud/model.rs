//! Whatever happens, an honest node ends with exactly what is desired, and nothing is left open.

use crate::story::{object, pod};
use kedge_link::Peer;
use kedge_link::cloud::{CloudLink, Config, Event};
use kedge_wire::{
    Ack, Body, Envelope, Header, Letter, MessageId, NodeName, ObjectKey, Operation, Packet, Refusal,
    ResourceVersion, Route, Time, ToCloud, ToEdge, Uid,
};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What happens next; numbers choose among what is there.
#[derive(Debug, Clone)]
enum Step {
    /// The object changes, or is made anew when there is none.
    Change(usize),
    Recreate(usize),
    Drop(usize),
    /// Another cloud is said to have left an object of this age there.
    Assume(usize, u64),
    /// The node takes a message: commits and acknowledges it.
    Take(usize),
    /// The node takes it and its acknowledgement comes later.
    TakeSilently(usize),
    Refuse(usize),
    Wait(u64),
    Complete,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = 0..NAMES.len();
    let step = prop_oneof![
        4 => name.clone().prop_map(Step::Change),
        2 => name.clone().prop_map(Step::Recreate),
        2 => name.clone().prop_map(Step::Drop),
        1 => (name, 1..50_u64).prop_map(|(name, age)| Step::Assume(name, age)),
        5 => any::<usize>().prop_map(Step::Take),
        1 => any::<usize>().prop_map(Step::TakeSilently),
        1 => any::<usize>().prop_map(Step::Refuse),
        2 => (1..20_u64).prop_map(Step::Wait),
        1 => Just(Step::Complete),
    ];
    prop::collection::vec(step, 0..60)
}

struct World {
    link: CloudLink,
    now: Time,
    version: u64,
    desired: BTreeMap<ObjectKey, (String, u64)>,
    node: BTreeMap<ObjectKey, (String, Option<ResourceVersion>)>,
    on_the_way: Vec<Envelope>,
    owed: Vec<Envelope>,
    completed: bool,
}

impl World {
    fn new() -> Self {
        let config = Config {
            keepalive_timeout: Duration::from_secs(30),
            in_flight_max: 2,
            retry_delay: Duration::from_secs(2),
            retry_delay_max: Duration::from_secs(8),
            requests_max: 3,
        };
        let now = Time::from_ms(1_000_000);
        Self {
            link: CloudLink::new(NodeName::new("edge-1").unwrap(), Peer::Official, config, 7, now),
            now,
            version: 100,
            desired: BTreeMap::new(),
            node: BTreeMap::new(),
            on_the_way: Vec::new(),
            owed: Vec::new(),
            completed: false,
        }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Change(name) => {
                let key = pod(NAMES[name]);
                let uid = self.desired.get(&key).map(|(uid, _)| uid.clone());
                self.want(name, uid);
            }
            Step::Recreate(name) => self.want(name, None),
            Step::Drop(name) => {
                self.desired.remove(&pod(NAMES[name]));
                self.link.set_desired(pod(NAMES[name]), None, self.now);
            }
            Step::Assume(name, age) => {
                let held = (
                    pod(NAMES[name]),
                    Uid::new(format!("past-{age}")),
                    ResourceVersion::new(age.to_string()),
                );
                self.link.assume_held(vec![held]);
            }
            Step::Take(which) => {
                if let Some(envelope) = self.receive(which) {
                    self.acknowledge(&envelope);
                }
            }
            Step::TakeSilently(which) => {
                if let Some(envelope) = self.receive(which) {
                    self.owed.push(envelope);
                }
            }
            Step::Refuse(which) => self.refuse(which),
            Step::Wait(seconds) => self.wait(seconds),
            Step::Complete => self.complete(),
        }
        self.drain();
    }

    fn want(&mut self, name: usize, uid: Option<String>) {
        self.version += 1;
        let uid = uid.unwrap_or_else(|| format!("uid-{}", self.version));
        let object = object(NAMES[name], &uid, &self.version.to_string());
        self.desired.insert(pod(NAMES[name]), (uid, self.version));
        self.link.set_desired(pod(NAMES[name]), Some(object), self.now);
    }

    fn complete(&mut self) {
        self.completed = true;
        self.link.desired_complete(self.now);
    }

    /// The node commits one of the messages on their way, the oldest of its key, because a connection keeps order.
    fn receive(&mut self, which: usize) -> Option<Envelope> {
        let key = |envelope: &Envelope| envelope.route.resource.clone();
        let chosen = key(self.on_the_way.get(which.checked_rem(self.on_the_way.len())?)?);
        let first = self
            .on_the_way
            .iter()
            .position(|envelope| key(envelope) == chosen)?;
        let envelope = self.on_the_way.remove(first);
        let ToEdge::Object(change) = ToEdge::open(envelope.clone()).message else {
            panic!("{envelope:?}")
        };
        let uid = change
            .body
            .object_meta()
            .unwrap()
            .uid
            .unwrap()
            .as_str()
            .to_owned();
        if Route::parse(&envelope.route).operation != Operation::Delete {
            if let Some((before, _)) = self.node.get(&change.key) {
                assert_eq!(*before, uid, "{} is put over another pod", change.key);
            }
            self.node.insert(change.key, (uid, change.version));
        } else if self.node.get(&change.key).is_some_and(|(held, _)| *held == uid) {
            self.node.remove(&change.key);
        }
        Some(envelope)
    }

    fn acknowledge(&mut self, envelope: &Envelope) {
        let parent = envelope.header.id.clone();
        let route = Route::parse(&envelope.route).acknowledged();
        let body = Body::text("OK");
        self.hear(ToCloud::Ack(Ack { parent, route, body }));
    }

    fn refuse(&mut self, which: usize) {
        let Some(which) = which.checked_rem(self.on_the_way.len()) else {
            return;
        };
        let envelope = self.on_the_way.remove(which);
        let parent = Some(envelope.header.id.clone());
        let route = Route {
            operation: Operation::Error,
            ..Route::parse(&envelope.route)
        };
        let body = Body::text("disk full");
        self.hear(ToCloud::Refusal(Refusal { parent, route, body }));
    }

    fn hear(&mut self, message: ToCloud) {
        let header = Header::new(MessageId::new("heard"), 0);
        self.link
            .handle_packet(Letter { header, message }.seal().into(), self.now);
    }

    fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now = self.now + Duration::from_secs(1);
            self.link.handle_timeout(self.now);
            self.hear(ToCloud::KeepAlive);
            self.drain();
        }
    }

    fn drain(&mut self) {
        while let Some(packet) = self.link.poll_transmit(self.now) {
            let Packet::Envelope(envelope) = packet else {
                panic!("{packet:?}")
            };
            self.on_the_way.push(*envelope);
        }
        while let Some(event) = self.link.poll_event() {
            assert!(matches!(event, Event::Acked { .. }), "{event:?}");
        }
        let depth = self.link.depth();
        assert!(depth.in_flight <= 2, "{depth:?}");
    }

    /// Peace: the node takes everything until nothing more comes.
    fn settle(&mut self) {
        if !self.completed {
            self.complete();
        }
        for envelope in std::mem::take(&mut self.owed) {
            self.acknowledge(&envelope);
        }
        for _ in 0..100 {
            self.drain();
            while let Some(envelope) = self.receive(0) {
                self.acknowledge(&envelope);
                self.drain();
            }
            self.wait(1);
        }
    }
}

proptest! {
    #[test]
    fn an_honest_node_ends_with_what_is_desired(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.settle();
        let version = |version: &u64| Some(ResourceVersion::new(version.to_string()));
        let wanted: BTreeMap<_, _> = world
            .desired
            .iter()
            .map(|(key, (uid, number))| (key.clone(), (uid.clone(), version(number))))
            .collect();
        prop_assert_eq!(&world.node, &wanted);
        let held: BTreeMap<_, _> = world
            .link
            .held()
            .into_iter()
            .map(|(key, uid, version)| (key, (uid.as_str().to_owned(), Some(version))))
            .collect();
        prop_assert_eq!(&held, &wanted);
        let depth = world.link.depth();
        prop_assert_eq!((depth.in_flight, depth.in_flight_bytes, depth.waiting), (0, 0, 0));
    }
}
