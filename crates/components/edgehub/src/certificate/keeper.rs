//! The life of the node's certificate.
//!
//! ```text
//!                  files                      a third of life left            ended
//!   [begin] ───────────────────> [keep: rest] ───────────> [keep: renew] ──────────> [keep: join again by token]
//!      └─ none: join by token ──────^   ^                        │ new                        │ new
//!                                       └────────────────────────┴────────────────────────────┘
//!   the cloud and the certificate do not know each other ──> [replace: join again by token]
//! ```
//!
//! Each of the three is a future that ends with an identity to use from then on. None gives up: what is missing may
//! come with the network, with the right time, or with an operator who lays down a token.

use super::{CertificateConfig, Enrolment, Error, usable};
use crate::Dialer;
use crate::backoff::Backoff;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kedge_pki::{Identity, UnixTime, renewal_time, show_time};
use std::sync::Arc;
use std::time::Duration;

/// First wait after a failure: a cloud that restarts is back soon.
const DELAY_MIN: Duration = Duration::from_secs(1);
/// Longest wait. An operator who has just laid down a token does not want to wait longer, and a cloud of ten thousand
/// nodes that all ended has to sign a hundred a second at most.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// A machine that slept, or whose clock was set, must not renew late, so long waits are cut and the clock is looked at
/// again.
const LOOK: Duration = Duration::from_secs(3600);
/// After a renewal the next one is at least this far, however short the cloud makes the lives of certificates.
const PAUSE: Duration = Duration::from_secs(60);

/// Makes the futures.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    pub(crate) config: CertificateConfig,
    pub(crate) dialer: Arc<dyn Dialer>,
    /// `edgeHub.rotateCertificates`.
    pub(crate) rotate: bool,
    pub(crate) seed: u64,
}

impl Keeper {
    /// The first identity: from the files, else by a token. One that has ended is given, too, when no token helps: the
    /// clock may be wrong, and then the cloud takes it.
    pub(crate) fn begin(&self) -> BoxFuture<'static, Identity> {
        let keeper = self.clone();
        async move {
            let mut trouble = Trouble::new("node has no certificate", keeper.seed);
            loop {
                match keeper.first().await {
                    Ok(identity) => return identity,
                    Err(error) => trouble.rest(&error).await,
                }
            }
        }
        .boxed()
    }

    /// The identity after `current`, which is in use.
    pub(crate) fn keep(&self, current: Identity) -> BoxFuture<'static, Identity> {
        let keeper = self.clone();
        async move {
            let mut trouble = Trouble::new("certificate not renewed", keeper.seed);
            loop {
                let now = keeper.dialer.now();
                let next = match keeper.stage(&current, now) {
                    Stage::Good { left } => {
                        trouble.over();
                        tokio::time::sleep(left.min(LOOK)).await;
                        continue;
                    }
                    Stage::Due => {
                        keeper
                            .enrol(Enrolment::Renew(Box::new(current.clone())), now)
                            .await
                    }
                    Stage::Ended => keeper.again(&current, now).await,
                };
                match next {
                    Ok(identity) => return identity,
                    Err(error) => trouble.rest(&error).await,
                }
            }
        }
        .boxed()
    }

    /// As [`Keeper::keep`], at least [`PAUSE`] after `current` came.
    pub(crate) fn keep_new(&self, current: Identity) -> BoxFuture<'static, Identity> {
        let keep = self.keep(current);
        async move {
            tokio::time::sleep(PAUSE).await;
            keep.await
        }
        .boxed()
    }

    /// An identity of another authority than that of `current`, which the cloud does not know: by a token of that
    /// authority, or one of the same authority when the cloud refuses `current` alone.
    pub(crate) fn replace(&self, current: Identity) -> BoxFuture<'static, Identity> {
        let keeper = self.clone();
        async move {
            let mut trouble = Trouble::new(
                "the cloud does not know the certificate of this node",
                keeper.seed,
            );
            loop {
                match keeper.again(&current, keeper.dialer.now()).await {
                    Ok(identity) => return identity,
                    Err(error) => trouble.rest(&error).await,
                }
            }
        }
        .boxed()
    }

    async fn first(&self) -> Result<Identity, Error> {
        let now = self.dialer.now();
        let unusable = match self.config.files.load() {
            Ok(Some(identity)) => match usable(&self.config, &identity, now) {
                Ok(()) => return Ok(identity),
                Err(ended @ Error::Expired { .. }) => {
                    return Ok(match self.join(now).await {
                        Ok(Some(fresh)) => fresh,
                        Ok(None) => self.ended(identity, &ended),
                        Err(why) => {
                            tracing::warn!(%why, "a join token is there and did not help");
                            self.ended(identity, &ended)
                        }
                    });
                }
                Err(why) => Some(why),
            },
            Ok(None) => None,
            Err(error) => Some(Error::Files(error)),
        };
        match (self.join(now).await?, unusable) {
            (Some(identity), None) => Ok(identity),
            (Some(identity), Some(why)) => {
                tracing::warn!(%why, "the certificate could not be used; there is a new one");
                Ok(identity)
            }
            (None, Some(why)) => Err(why),
            (None, None) => Err(Error::NoToken {
                node: self.config.node.clone(),
            }),
        }
    }

    fn ended(&self, identity: Identity, why: &Error) -> Identity {
        tracing::error!(%why, "the certificate of this node has ended; pods go on");
        identity
    }

    /// Files that somebody has replaced, else a token.
    async fn again(&self, current: &Identity, now: UnixTime) -> Result<Identity, Error> {
        if let Ok(Some(identity)) = self.config.files.load()
            && identity != *current
            && usable(&self.config, &identity, now).is_ok()
        {
            return Ok(identity);
        }
        let joined = match self.join(now).await {
            // A token of the cloud that is left behind says nothing new.
            Err(error) if error.names_another_cloud() => None,
            joined => joined?,
        };
        match joined {
            Some(identity) => Ok(identity),
            None => Err(match usable(&self.config, current, now) {
                Err(why) => why,
                Ok(()) => Error::Unknown {
                    path: self.config.files.certificate.clone(),
                },
            }),
        }
    }

    /// By the first token that helps; `None` without a token.
    async fn join(&self, now: UnixTime) -> Result<Option<Identity>, Error> {
        let mut first_error = None;
        for token in self.config.tokens()? {
            match self.enrol(Enrolment::Join(token), now).await {
                Ok(identity) => {
                    tracing::info!(
                        node = %self.config.node,
                        until = show_time(identity.certificate().info().not_after),
                        "joined the cloud by token"
                    );
                    return Ok(Some(identity));
                }
                Err(error) if error.is_of_this_token() => first_error = first_error.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        first_error.map_or(Ok(None), Err)
    }

    async fn enrol(&self, how: Enrolment, now: UnixTime) -> Result<Identity, Error> {
        self.dialer.enrol(self.config.clone(), how, now).await
    }

    fn stage(&self, current: &Identity, now: UnixTime) -> Stage {
        let info = current.certificate().info();
        if info.not_after.as_secs() <= now.as_secs() {
            return Stage::Ended;
        }
        let due = match self.rotate {
            true => renewal_time(info, self.seed),
            false => info.not_after,
        };
        match due.as_secs().saturating_sub(now.as_secs()) {
            0 => Stage::Due,
            left => Stage::Good {
                left: Duration::from_secs(left),
            },
        }
    }
}

enum Stage {
    Good { left: Duration },
    Due,
    Ended,
}

/// Failures in a row: each kind is said once aloud, and the waits grow.
struct Trouble {
    what: &'static str,
    backoff: Backoff,
    said: String,
}

impl Trouble {
    fn new(what: &'static str, seed: u64) -> Self {
        Self {
            what,
            backoff: Backoff::between(DELAY_MIN, DELAY_MAX, seed),
            said: String::new(),
        }
    }

    fn over(&mut self) {
        self.backoff.reset();
        self.said.clear();
    }

    async fn rest(&mut self, error: &Error) {
        let (why, delay) = (error.to_string(), self.backoff.next());
        if why == self.said {
            tracing::debug!(why, ?delay, "{}; trying again", self.what);
        } else if error.needs_a_person() {
            tracing::error!(why, ?delay, "{}; trying again until it helps", self.what);
        } else {
            tracing::warn!(why, ?delay, "{}; trying again", self.what);
        }
        self.said = why;
        tokio::time::sleep(delay).await;
    }
}
