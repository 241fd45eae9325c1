//! `kedge up --demo`: a thermometer on the edge, the plug pulled, and what came of it.

use crate::manifest;
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use kedge_cluster::{Cluster, Patch};
use kedge_runtime::Runtime;
use kedge_runtime::image::{Blueprint, FileInImage, build_archive};
use kedge_transport::Plug;
use kedge_wire::Body;
use serde_json::{Value, json};
use std::ops::ControlFlow::{self, Break, Continue};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Built by `build.rs` from `examples/thermometer`.
const THERMOMETER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/thermometer"));
const MANIFEST: &str = include_str!("../../../../examples/thermometer.yaml");
const IMAGE: &str = "kedge/thermometer:demo";
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dthermometer";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/thermometer";

/// Long enough to see that nothing happens to the pod, short enough to wait for.
const UNPLUGGED: Duration = Duration::from_secs(4);
/// Any step that takes longer has failed.
const STEP_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks at the API.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// How many log lines are shown.
const LINES_SHOWN: usize = 3;

/// What the demo works with.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) plug: Plug,
    pub(crate) data_dir: PathBuf,
    /// Hollow containers write one line at their start and no more.
    pub(crate) hollow: bool,
}

/// Plays the demo from beginning to end.
pub(crate) async fn play(stage: &Stage, progress: &mut Progress) -> Result<()> {
    import_image(stage.runtime.as_ref(), &stage.data_dir).await?;
    progress.step(
        "image imported",
        &format!(
            "{IMAGE}, {} KiB, built by this workspace",
            THERMOMETER.len() / 1024
        ),
    );

    for (place, object) in manifest::objects(MANIFEST)? {
        apply(&stage.cluster, &place, &object)
            .await
            .with_context(|| format!("apply {}", place.shown))?;
    }
    progress.step(
        "applied",
        "examples/thermometer.yaml: config map, secret, deployment",
    );

    let before = running(&stage.cluster, 1).await?.remove(0);
    progress.step("pod running", &before.name);
    let first = until("the pod's first log lines", || async {
        let lines = log(&stage.cluster, &before.name).await?;
        let enough = lines.len() >= LINES_SHOWN || (stage.hollow && !lines.is_empty());
        Ok(if enough {
            Break(lines)
        } else {
            Continue(format!("{} lines so far", lines.len()))
        })
    })
    .await?;
    for line in first.iter().rev().take(LINES_SHOWN).rev() {
        progress.note(&format!("log: {}", line.text));
    }

    let pulled = kedge_telemetry::clock::wall_ms();
    stage.plug.pull();
    // What the cloud wants meanwhile, the edge must make up for.
    stage
        .cluster
        .patch(DEPLOYMENT, Patch::Merge, r#"{"spec":{"replicas":2}}"#)
        .await
        .context("scale to 2")?;
    tokio::time::sleep(UNPLUGGED).await;
    let inserted = kedge_telemetry::clock::wall_ms();
    stage.plug.insert();
    progress.step("plug pulled", "cloud and edge apart; scaled to 2 meanwhile");

    let began = Instant::now();
    let after = running(&stage.cluster, 2).await?;
    let caught_up = began.elapsed();
    progress.step(
        "caught up",
        &format!(
            "second pod running {:.1} s after the plug was back",
            caught_up.as_secs_f64()
        ),
    );

    let restarts: u64 = after.iter().map(|pod| pod.restarts).sum();
    let same = after
        .iter()
        .any(|pod| pod.uid == before.uid && pod.container == before.container);
    if !same {
        bail!("the first pod did not survive the cut: {} is gone", before.name);
    }
    let readings = until("the log of the time without cloud", || async {
        let lines = log(&stage.cluster, &before.name).await?;
        let complete = lines.last().is_some_and(|line| line.time_ms > inserted) || stage.hollow;
        if !complete {
            return Ok(Continue("no line since the plug was back".to_owned()));
        }
        let unplugged = |line: &&Line| (pulled..inserted).contains(&line.time_ms);
        Ok(Break(lines.iter().filter(unplugged).count()))
    })
    .await?;
    progress.step(
        "summary",
        &format!("{readings} readings while unplugged, {restarts} restarts, nothing lost"),
    );
    progress.facts(json!({"demo": "done", "readings_while_unplugged": readings, "restarts": restarts,
        "caught_up_ms": u64::try_from(caught_up.as_millis()).unwrap_or(u64::MAX), "total_s": progress.total_s()}));
    Ok(())
}

async fn import_image(runtime: &dyn Runtime, data_dir: &Path) -> Result<()> {
    let blueprint = Blueprint {
        reference: IMAGE.to_owned(),
        entrypoint: vec!["/thermometer".to_owned()],
        files: vec![FileInImage {
            path: "/thermometer".into(),
            mode: 0o755,
            bytes: THERMOMETER.to_vec(),
        }],
        ..Blueprint::default()
    };
    let archive = data_dir.join("thermometer.tar");
    std::fs::write(&archive, build_archive(&blueprint)?)
        .with_context(|| format!("write {}", archive.display()))?;
    runtime
        .import_image(archive)
        .await
        .context("import the image of the demo")?;
    Ok(())
}

async fn apply(cluster: &Cluster, place: &manifest::Place, object: &Value) -> Result<()> {
    let body = Body::from_value(object)?;
    cluster
        .create_or_merge(&place.collection, &place.name, &body, body.json())
        .await?;
    Ok(())
}

#[derive(Debug, Clone)]
struct Seen {
    name: String,
    uid: String,
    container: String,
    restarts: u64,
}

/// Waits until exactly `count` pods of the demo exist and all of them run.
async fn running(cluster: &Cluster, count: usize) -> Result<Vec<Seen>> {
    until("the pods of the demo", || async {
        let list: Value = cluster.get(PODS).await?.parse()?;
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let seen: Vec<Seen> = pods.iter().filter(|pod| is_running(pod)).map(seen).collect();
        if pods.len() == count && seen.len() == count {
            return Ok(Break(seen));
        }
        let mut why = format!("{} of {count} run", seen.len());
        for pod in pods.iter().filter(|pod| !is_running(pod)) {
            why += &format!("; {}", waits_for(pod));
        }
        Ok(Continue(why))
    })
    .await
}

/// What keeps a pod from running, in the words of who keeps it.
fn waits_for(pod: &Value) -> String {
    let mut said = Vec::new();
    for condition in pod["status"]["conditions"].as_array().into_iter().flatten() {
        if condition["status"] == "False" {
            said.push(&condition["message"]);
        }
    }
    for container in pod["status"]["containerStatuses"]
        .as_array()
        .into_iter()
        .flatten()
    {
        said.push(&container["state"]["waiting"]["reason"]);
        said.push(&container["state"]["waiting"]["message"]);
    }
    let said: Vec<&str> = said.into_iter().filter_map(Value::as_str).collect();
    format!(
        "{} is {}: {}",
        pod["metadata"]["name"].as_str().unwrap_or_default(),
        pod["status"]["phase"].as_str().unwrap_or("Pending"),
        said.join(", ")
    )
}

fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
}

fn seen(pod: &Value) -> Seen {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let container = &pod["status"]["containerStatuses"][0];
    Seen {
        name: text(&pod["metadata"]["name"]),
        uid: text(&pod["metadata"]["uid"]),
        container: text(&container["containerID"]),
        restarts: container["restartCount"].as_u64().unwrap_or_default(),
    }
}

struct Line {
    time_ms: u64,
    text: String,
}

/// The log of a pod, through the API, CloudStream, the tunnel and EdgeStream, as `kubectl logs --timestamps` reads it.
async fn log(cluster: &Cluster, pod: &str) -> Result<Vec<Line>> {
    let text = cluster
        .get_text(&format!(
            "/api/v1/namespaces/default/pods/{pod}/log?timestamps=true"
        ))
        .await?;
    let line = |line: &str| {
        let (time, text) = line.split_once(' ')?;
        let time: jiff::Timestamp = time.parse().ok()?;
        Some(Line {
            time_ms: u64::try_from(time.as_millisecond()).ok()?,
            text: text.to_owned(),
        })
    };
    Ok(text.lines().filter_map(line).collect())
}

/// Looks until there is something; what the last look missed is what is told after [`STEP_MAX`].
async fn until<T, F, Fut>(what: &str, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<ControlFlow<T, String>>>,
{
    let began = Instant::now();
    loop {
        let last = match look().await {
            Ok(Break(seen)) => return Ok(seen),
            Ok(Continue(missed)) => anyhow::anyhow!(missed),
            Err(error) => error,
        };
        if began.elapsed() > STEP_MAX {
            let waited = format!("waited {STEP_MAX:?} for {what}; DATA_DIR/kedge.log may tell why");
            return Err(last.context(waited));
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}
