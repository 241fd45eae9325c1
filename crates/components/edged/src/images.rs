//! Pulling images: one task that decides which pull goes next.
//!
//! Pods that want the same image with the same credentials at one time share one pull. How many go on at one time and
//! how many begin in a second is the operator's decision. A pull that nobody waits for any more is given up.

mod registries;

pub(crate) use registries::Registries;

use crate::clock::Clock;
use kedge_containers::{Credentials, Image};
use kedge_link::{Bucket, Rate};
use kedge_runtime::Runtime;
use kedge_telemetry::Scope;
use kedge_telemetry::channel::ask;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// Questions that wait for the task; it answers none of them by itself, so this evens out a burst of starts.
const WAITING_MAX: usize = 32;
/// A large image over a slow link.
const PULL_MAX: Duration = Duration::from_secs(30 * 60);
/// A pull and those before it in the queue. Who waits longer asks again, and finds the queue where it stands.
const WAIT_MAX: Duration = Duration::from_secs(2 * 60 * 60);
/// How soon a pull is given up after the last pod that wanted it.
const ABANDON_INTERVAL: Duration = Duration::from_secs(1);

/// How fast images are pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pulls at one time; `None` is no limit.
    pub parallel_max: Option<u32>,
    /// Pulls that begin in a second, in the long run; zero is no limit.
    pub per_second: u32,
    pub burst: u32,
}

impl Default for Limits {
    /// As KubeEdge has it: one after the other.
    fn default() -> Self {
        Self {
            parallel_max: Some(1),
            per_second: 5,
            burst: 10,
        }
    }
}

impl Limits {
    fn rate(self) -> Option<Rate> {
        (self.per_second > 0).then_some(Rate {
            per_second: self.per_second,
            burst: self.burst,
        })
    }
}

/// An image that was just pulled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pulled {
    pub(crate) image: Image,
    /// The pull itself, without the wait for its turn.
    pub(crate) took: Duration,
}

/// Why there is no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// The registry has answered, and its answer was no. Whatever else went wrong, it was not reached, and an image that
    /// the node has is as good as it can be.
    pub(crate) refused: bool,
}

impl Failure {
    /// Runtimes tell what went wrong in words only.
    fn of_runtime(image: &str, message: String) -> Self {
        const REFUSALS: [&str; 11] = [
            "unauthorized",
            "authorization failed",
            "authentication required",
            "insufficient_scope",
            "denied",
            "forbidden",
            "not found",
            "manifest unknown",
            "name unknown",
            "no match for platform",
            "no image found in",
        ];
        // A registry whose name is not found was not asked, and the image's own name says nothing.
        let said = message
            .replace(image, "")
            .to_lowercase()
            .replace("host not found", "");
        let refused = REFUSALS.iter().any(|word| said.contains(word));
        Self { message, refused }
    }
}

type Answer = Result<Pulled, Failure>;

struct Wanted {
    image: String,
    credentials: Vec<Credentials>,
}

/// The end that asks for images.
#[derive(Clone)]
pub(crate) struct Images {
    port: ask::Sender<Wanted, Answer>,
}

impl Images {
    /// Starts the task.
    pub(crate) fn start(limits: Limits, runtime: Arc<dyn Runtime>, clock: Clock, scope: &Scope) -> Self {
        let (port, questions) = ask::channel("edged-pulls", WAITING_MAX);
        let puller = Puller {
            rate: limits.rate(),
            bucket: Bucket::default(),
            clock,
            parallel_max: limits.parallel_max.map_or(usize::MAX, |max| max.max(1) as usize),
            runtime,
            pulls: VecDeque::new(),
            running: JoinSet::new(),
            serial: 0,
        };
        scope.spawn_until_cancelled("edged-pulls", puller.run(questions));
        Self { port }
    }

    /// Pulls an image, alone or together with others who want it.
    pub(crate) async fn pull(&self, image: &str, credentials: Vec<Credentials>) -> Answer {
        let wanted = Wanted {
            image: image.to_owned(),
            credentials,
        };
        match self.port.ask(wanted, WAIT_MAX).await {
            Ok(answer) => answer,
            Err(no_answer) => Err(Failure {
                message: format!("pull image {image}: {no_answer}"),
                refused: false,
            }),
        }
    }
}

/// One pull and those who wait for it.
struct Pull {
    serial: u64,
    wanted: Wanted,
    askers: Vec<ask::Reply<Answer>>,
    /// It has begun.
    task: Option<AbortHandle>,
}

struct Puller {
    runtime: Arc<dyn Runtime>,
    /// `None` sets no limit.
    rate: Option<Rate>,
    bucket: Bucket,
    clock: Clock,
    parallel_max: usize,
    /// In the order in which they were asked for.
    pulls: VecDeque<Pull>,
    running: JoinSet<(u64, Answer)>,
    serial: u64,
}

impl Puller {
    async fn run(mut self, mut questions: ask::Receiver<Wanted, Answer>) {
        loop {
            let wait = self.begin().unwrap_or(ABANDON_INTERVAL);
            let idle = self.pulls.is_empty();
            tokio::select! {
                biased;
                // What has ended makes room.
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => {
                    // One that was given up is forgotten already.
                    if let Ok((serial, answer)) = ended {
                        self.end(serial, &answer);
                    }
                },
                question = questions.recv() => match question {
                    Some(question) => self.ask(question),
                    None => return,
                },
                () = tokio::time::sleep(wait.min(ABANDON_INTERVAL)), if !idle => self.abandon(),
            }
        }
    }

    fn ask(&mut self, question: ask::Question<Wanted, Answer>) {
        let wanted = question.question;
        let same = |pull: &&mut Pull| {
            pull.wanted.image == wanted.image && pull.wanted.credentials == wanted.credentials
        };
        if let Some(pull) = self.pulls.iter_mut().find(same) {
            pull.askers.push(question.reply);
            return;
        }
        self.serial += 1;
        self.pulls.push_back(Pull {
            serial: self.serial,
            wanted,
            askers: vec![question.reply],
            task: None,
        });
    }

    /// Begins what may begin now. When only the rate stands against the next one, the answer is how long.
    fn begin(&mut self) -> Option<Duration> {
        while self.running.len() < self.parallel_max {
            let next = self.pulls.iter_mut().find(|pull| pull.task.is_none())?;
            if let Some(rate) = self.rate
                && let Err(wait) = self.bucket.take(rate, self.clock.now())
            {
                return Some(wait);
            }
            let (runtime, serial) = (Arc::clone(&self.runtime), next.serial);
            let (image, credentials) = (next.wanted.image.clone(), next.wanted.credentials.clone());
            next.task = Some(self.running.spawn(async move {
                let answer = pull(runtime.as_ref(), &image, &credentials).await;
                (serial, answer)
            }));
        }
        None
    }

    fn end(&mut self, serial: u64, answer: &Answer) {
        let Some(at) = self.pulls.iter().position(|pull| pull.serial == serial) else {
            return;
        };
        if let Some(pull) = self.pulls.remove(at) {
            pull.askers
                .into_iter()
                .for_each(|asker| asker.send(answer.clone()));
        }
    }

    fn abandon(&mut self) {
        self.pulls.retain_mut(|pull| {
            pull.askers.retain(|asker| !asker.is_closed());
            if pull.askers.is_empty()
                && let Some(task) = &pull.task
            {
                tracing::info!(
                    image = pull.wanted.image,
                    "nobody wants the image any more, its pull is given up"
                );
                task.abort();
            }
            !pull.askers.is_empty()
        });
    }
}

async fn pull(runtime: &dyn Runtime, image: &str, credentials: &[Credentials]) -> Answer {
    let start = Instant::now();
    match tokio::time::timeout(PULL_MAX, runtime.pull_image(image, credentials)).await {
        Ok(Ok(pulled)) => Ok(Pulled {
            image: pulled,
            took: start.elapsed(),
        }),
        Ok(Err(error)) => Err(Failure::of_runtime(image, crate::hands::chain(&error))),
        Err(_) => Err(Failure {
            message: format!(
                "the pull took longer than {} minutes; is the registry slow or the link down?",
                PULL_MAX.as_secs() / 60
            ),
            refused: false,
        }),
    }
}

/// The credentials that hold for the whole node: `config.json` below the root directory. No file, no credentials.
pub(crate) fn node_registries(root_dir: &Path) -> Registries {
    let mut registries = Registries::default();
    let path = root_dir.join("config.json");
    let small = std::fs::metadata(&path).is_ok_and(|file| file.len() <= registries::FILE_BYTES_MAX);
    if small
        && let Ok(text) = std::fs::read_to_string(&path)
        && let Err(why) = registries.add_file(&text)
    {
        tracing::warn!(file = %path.display(), why, "registry credentials of the node are not used");
    }
    registries
}

/// A time as Kubernetes prints it: `1m2.5s`, `340ms`.
pub(crate) fn duration_text(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        return if ms == 0 {
            "0s".to_owned()
        } else {
            format!("{ms}ms")
        };
    }
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let seconds = format!("{}.{:03}", ms / 1000 % 60, ms % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let table = [
            (0, "0s"),
            (340, "340ms"),
            (1000, "1s"),
            (1234, "1.234s"),
            (62_500, "1m2.5s"),
            (3_600_000, "1h0m0s"),
        ];
        for (ms, text) in table {
            assert_eq!(duration_text(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn refusals() {
        let refused = |message: &str| Failure::of_runtime("team/denied:403", message.to_owned()).refused;
        assert!(refused(
            "failed to authorize: unexpected status: 401 Unauthorized"
        ));
        assert!(refused("docker.io/team/denied:403: not found"));
        assert!(refused("no match for platform in manifest"));
        assert!(!refused(
            "dial tcp: lookup registry.example on 10.0.0.1:53: i/o timeout"
        ));
        assert!(!refused("lookup registry.example: host not found"));
        assert!(!refused("pull team/denied:403: connect: connection refused"));
        assert!(!refused("image x is not on this node; import it"));
    }
}
