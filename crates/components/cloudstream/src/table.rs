//! Which node has a tunnel: one task owns the table. The newest tunnel of a node wins.

use crate::tunnel::{self, Order};
use crate::{ConnectAnswer, NodeAnswer};
use kedge_telemetry::Scope;
use kedge_telemetry::channel::{ask, queue};
use kedge_transport::Connection;
use kedge_wire::NodeName;
use kedge_wire::tunnel::{NodeConnect, NodeGet};
use std::collections::HashMap;

/// Orders that wait for one tunnel, which is busy only while it writes.
const ORDERS_MAX: usize = 16;
/// Tunnels that have ended and are not yet taken out.
const ENDED_MAX: usize = 64;

/// A tunnel that has shaken hands.
pub(crate) struct Arrival {
    pub(crate) node: NodeName,
    pub(crate) connection: Connection,
}

pub(crate) struct Table {
    gets: ask::Receiver<(NodeName, NodeGet), NodeAnswer>,
    connects: ask::Receiver<(NodeName, NodeConnect), ConnectAnswer>,
    arriving: queue::Receiver<Arrival>,
    scope: Scope,
    tunnels: HashMap<NodeName, Tunnel>,
    /// Distinguishes an old tunnel from a new one of the same node.
    numbers: u64,
}

struct Tunnel {
    number: u64,
    orders: queue::Sender<Order>,
    scope: Scope,
}

impl Table {
    pub(crate) fn new(
        gets: ask::Receiver<(NodeName, NodeGet), NodeAnswer>,
        connects: ask::Receiver<(NodeName, NodeConnect), ConnectAnswer>,
        arriving: queue::Receiver<Arrival>,
        scope: Scope,
    ) -> Self {
        Self {
            gets,
            connects,
            arriving,
            scope,
            tunnels: HashMap::new(),
            numbers: 0,
        }
    }

    pub(crate) async fn run(mut self) {
        let (ended, mut endings) = queue::channel::<(NodeName, u64)>("tunnels ended", ENDED_MAX);
        loop {
            tokio::select! {
                biased;
                // An ended tunnel must not be given work.
                Some((node, number)) = endings.recv() => {
                    if self.tunnels.get(&node).is_some_and(|tunnel| tunnel.number == number) {
                        self.tunnels.remove(&node);
                    }
                }
                arrival = self.arriving.recv() => match arrival {
                    Some(arrival) => self.arrive(arrival, &ended),
                    None => return,
                },
                // Nobody need ask: the tunnels stand all the same.
                Some(ask::Question { question: (node, get), reply }) = self.gets.recv() => {
                    self.order(&node, Order::Get { get, reply });
                }
                Some(ask::Question { question: (node, connect), reply }) = self.connects.recv() => {
                    self.order(&node, Order::Connect { connect, reply });
                }
            }
        }
    }

    fn arrive(&mut self, arrival: Arrival, ended: &queue::Sender<(NodeName, u64)>) {
        let Arrival { node, connection } = arrival;
        self.numbers += 1;
        let number = self.numbers;
        let (orders, ordered) = queue::channel("tunnel orders", ORDERS_MAX);
        let scope = self.scope.child();
        let (running, ended) = (scope.clone(), ended.clone());
        let replaced = self.tunnels.insert(
            node.clone(),
            Tunnel {
                number,
                orders,
                scope,
            },
        );
        tracing::info!(%node, replaces = replaced.is_some(), "tunnel stands");
        if let Some(old) = replaced {
            old.scope.cancel();
        }
        self.scope.spawn("tunnel", async move {
            let why = tunnel::run(connection, ordered, running).await;
            tracing::info!(%node, why, "tunnel ended");
            let _ = ended.send((node, number)).await;
        });
    }

    fn order(&self, node: &NodeName, order: Order) {
        let Some(tunnel) = self.tunnels.get(node) else {
            return order.refuse(format!(
                "node {node} has no tunnel to the cloud: it is offline, or its edgeStream is switched off"
            ));
        };
        if let Err(order) = tunnel.orders.try_send(order) {
            order.refuse(format!("the tunnel of node {node} is busy; try again"));
        }
    }
}
