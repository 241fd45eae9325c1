//! Dialling that can be held back and is measured.

use super::Tally;
use super::tally::dial_trouble;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_edgehub::{Dialer, Network, Transport};
use kedge_telemetry::channel::latest;
use kedge_transport::{Connection, DialError, Target};
use std::sync::Arc;
use tokio::time::Instant;

/// Whether the edge may dial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Open { since: Instant },
    Closed,
}

impl Gate {
    pub(super) fn open_now() -> Self {
        Self::Open {
            since: Instant::now(),
        }
    }
}

/// The network behind a gate.
#[derive(Debug)]
pub(super) struct GatedDialer {
    pub(super) network: Network,
    pub(super) gate: latest::Receiver<Gate>,
    pub(super) tally: Arc<Tally>,
}

impl Dialer for GatedDialer {
    fn dial(
        &self,
        transport: Transport,
        target: Target,
        tls: Arc<rustls::ClientConfig>,
    ) -> BoxFuture<'static, Result<Connection, DialError>> {
        let (network, tally, mut gate) = (self.network.clone(), Arc::clone(&self.tally), self.gate.clone());
        async move {
            // The gate ends with its edge, and so does this attempt.
            let _ = gate.wait_for(|gate| matches!(gate, Gate::Open { .. })).await;
            let began = Instant::now();
            let dialled = network.dial(transport, target, tls).await;
            match &dialled {
                Ok(_) => tally.times(|times| times.connect.observe(began.elapsed())),
                Err(error) => tally.error(dial_trouble(error)),
            }
            dialled
        }
        .boxed()
    }
}
