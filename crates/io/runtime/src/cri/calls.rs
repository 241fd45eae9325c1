//! Calls with limits, and what their failures mean.

use crate::Error;
use kedge_grpc::cri::image_service_client::ImageServiceClient;
use kedge_grpc::cri::runtime_service_client::RuntimeServiceClient;
use kedge_grpc::tonic::{Code, Response, Status};
use kedge_sockets::{Address, Channel, origin};
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A question about what is: the runtime answers it from its memory. A runtime that needs longer hangs, and the node
/// must say so soon, whatever the operator allows for orders.
const QUESTION_MAX: Duration = Duration::from_secs(30);
/// Runtimes watch over the progress of a pull themselves; this only ends one that was forgotten.
const PULL_MAX: Duration = Duration::from_secs(6 * 60 * 60);
/// What a runtime needs beyond the time that an order takes by its nature: to kill a command, to end a container.
const SLACK: Duration = Duration::from_secs(15);
/// One answer: the list of a full node is about one megabyte.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The two services of a runtime, which may live behind one socket or two.
#[derive(Debug)]
pub(super) struct Calls {
    runtime: Channel,
    images: Channel,
    request_timeout: Duration,
    learnt: Mutex<Learnt>,
}

/// What a runtime told about itself: holds for one connection, because a runtime that comes back may be another one.
#[derive(Debug, Default)]
struct Learnt {
    connection: u64,
    cgroup_driver: Option<Option<kedge_containers::CgroupDriver>>,
    pod_stats: Option<bool>,
}

/// What is asked of the runtime: for the limits, and for the sentence when it fails.
#[derive(Debug, Clone, Copy)]
pub(super) struct Act<'a> {
    pub(super) act: &'static str,
    pub(super) object: &'a str,
    pub(super) limit: Limit,
}

/// How long an answer may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Limit {
    /// It is only asked.
    Question,
    /// Something is done.
    Order,
    /// Something is done that takes this long by its nature.
    OrderOf(Duration),
    Pull,
}

impl<'a> Act<'a> {
    pub(super) fn question(act: &'static str, object: &'a str) -> Self {
        let limit = Limit::Question;
        Self { act, object, limit }
    }

    pub(super) fn order(act: &'static str, object: &'a str) -> Self {
        let limit = Limit::Order;
        Self { act, object, limit }
    }
}

/// How a call failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The runtime answered.
    Refused(Status),
    /// It did not.
    Error(Error),
}

impl Failure {
    /// CRI-O says it of some calls in words alone.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::NotFound)
            || self.says("could not find container")
            || self.says("could not find pod")
    }

    /// The runtime's own words have these in them.
    pub(super) fn says(&self, words: &str) -> bool {
        matches!(self, Self::Refused(status) if status.message().contains(words))
    }

    /// The runtime has no such call.
    pub(super) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::Unimplemented)
    }

    /// The error of an act whose refusal has no meaning of its own.
    pub(super) fn of(self, act: Act<'_>) -> Error {
        match self {
            Self::Error(error) => error,
            Self::Refused(status) => Error::failed(act.act, act.object, reason(&status)),
        }
    }
}

/// The runtime's own words; without any, what the code says.
pub(super) fn reason(status: &Status) -> String {
    match (status.code(), status.message().trim()) {
        (Code::Unimplemented, message) => {
            let words =
                "the runtime does not speak version 1 of the container runtime interface as this needs it";
            format!("{words}; containerd 1.6 and CRI-O 1.23 are the oldest that do ({message})")
        }
        (code, "") => code.description().to_owned(),
        (_, message) => message.to_owned(),
    }
}

impl Calls {
    pub(super) fn new(runtime: Address, images: Address, request_timeout: Duration) -> Self {
        let runtime_channel = Channel::new(runtime.clone());
        let images = if images == runtime {
            runtime_channel.clone()
        } else {
            Channel::new(images)
        };
        Self {
            runtime: runtime_channel,
            images,
            request_timeout,
            learnt: Mutex::default(),
        }
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.runtime
    }

    pub(super) fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::with_origin(self.runtime.clone(), origin())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(super) fn images(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::with_origin(self.images.clone(), origin())
            .max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Waits for an answer, no longer than the act may take.
    pub(super) async fn wait<T>(
        &self,
        act: Act<'_>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        let limit = self.limit(act.limit);
        let timed_out = || {
            Failure::Error(Error::TimedOut {
                act: act.act,
                object: act.object.to_owned(),
                limit,
            })
        };
        let Ok(answer) = tokio::time::timeout(limit, call).await else {
            return Err(timed_out());
        };
        answer
            .map(Response::into_inner)
            .map_err(|status| match status.code() {
                Code::Unavailable => Failure::Error(Error::Unavailable {
                    endpoint: self.endpoint(act.limit).to_string(),
                    reason: status.message().to_owned(),
                }),
                Code::DeadlineExceeded => timed_out(),
                _ => Failure::Refused(status),
            })
    }

    fn limit(&self, limit: Limit) -> Duration {
        match limit {
            Limit::Question => QUESTION_MAX.min(self.request_timeout),
            Limit::Order => self.request_timeout,
            Limit::OrderOf(time) => time + SLACK.min(self.request_timeout),
            Limit::Pull => PULL_MAX,
        }
    }

    fn endpoint(&self, limit: Limit) -> &Address {
        match limit {
            Limit::Question | Limit::Order | Limit::OrderOf(_) => self.runtime.address(),
            Limit::Pull => self.images.address(),
        }
    }

    /// What is known of the runtime that is connected now.
    fn learnt<T>(&self, look: impl FnOnce(&mut Learnt) -> T) -> T {
        let mut learnt = self.learnt.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = self.runtime.connections();
        if learnt.connection != connection {
            *learnt = Learnt {
                connection,
                ..Learnt::default()
            };
        }
        look(&mut learnt)
    }

    /// Who makes control groups, as the runtime says; `None` when it does not say.
    pub(super) async fn cgroup_driver(&self) -> Result<Option<kedge_containers::CgroupDriver>, Error> {
        use kedge_grpc::cri::{CgroupDriver, RuntimeConfigRequest};
        if let Some(known) = self.learnt(|learnt| learnt.cgroup_driver) {
            return Ok(known);
        }
        let act = Act::question("ask for the cgroup driver of", "the container runtime");
        let mut client = self.runtime();
        let driver = match self
            .wait(act, client.runtime_config(RuntimeConfigRequest {}))
            .await
        {
            Ok(answer) => answer.linux.map(|linux| match linux.cgroup_driver() {
                CgroupDriver::Systemd => kedge_containers::CgroupDriver::Systemd,
                CgroupDriver::Cgroupfs => kedge_containers::CgroupDriver::Cgroupfs,
            }),
            Err(failure) if failure.is_unimplemented() => None,
            Err(failure) => return Err(failure.of(act)),
        };
        self.learnt(|learnt| learnt.cgroup_driver = Some(driver));
        Ok(driver)
    }

    /// Whether the runtime has figures of whole pods; `None` when nobody asked yet.
    pub(super) fn has_pod_stats(&self) -> Option<bool> {
        self.learnt(|learnt| learnt.pod_stats)
    }

    pub(super) fn note_pod_stats(&self, has: bool) {
        self.learnt(|learnt| learnt.pod_stats = Some(has));
    }
}
