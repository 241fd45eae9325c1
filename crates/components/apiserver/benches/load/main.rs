//! How much the embedded API takes: creates, status patches and lease renewals a second, watch fan-out, paged lists.
//!
//! `cargo bench -p kedge-apiserver --bench load -- [--clients 64] [--nodes 11000] [--seconds 5]`
//!
//! The server runs in a process of its own, on a real file, over loopback TLS; the clients share the machine with it.
//! Each line says how many calls were answered, the rate, percentiles of the answer times, and what the server used:
//! processor time in this step and memory after it.

mod client;
mod server;

use anyhow::{Context, Result};
use client::{Caller, Pki};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const MERGE: &str = "application/merge-patch+json";
const EVENTS: &str = "/api/v1/namespaces/default/events";
const PODS: &str = "/api/v1/namespaces/default/pods";

struct Arguments {
    clients: usize,
    nodes: usize,
    seconds: u64,
}

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let mut arguments = Arguments {
        clients: 64,
        nodes: 11_000,
        seconds: 5,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    while let Some(word) = words.next() {
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--serve" => return runtime.block_on(server::serve(PathBuf::from(value))),
            "--clients" => arguments.clients = value.parse()?,
            "--nodes" => arguments.nodes = value.parse()?,
            "--seconds" => arguments.seconds = value.parse()?,
            other => anyhow::bail!("{other} is not known; see the head of this file"),
        }
    }
    runtime.block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> Result<()> {
    let directory = server::Directory::new()?;
    let pki = Pki::write(&directory.0)?;
    let server = server::Process::start(&directory.0).await?;
    let mut callers = Vec::new();
    for _ in 0..arguments.clients {
        callers.push(Arc::new(Caller::connect(server.address, &pki).await?));
    }
    let bench = Bench { callers, server };
    let (nodes, time) = (arguments.nodes, Duration::from_secs(arguments.seconds));
    println!(
        "{:<34} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "step", "calls", "a second", "p50 ms", "p99 ms", "max ms", "cpu s", "RSS MB"
    );
    bench.report("start", 0, Duration::ZERO, Vec::new(), 0.0);
    bench
        .count("create nodes", nodes, |n| {
            ("POST", "/api/v1/nodes".into(), "", node(n))
        })
        .await?;
    bench
        .count("create leases", nodes, |n| ("POST", LEASES.into(), "", lease(n)))
        .await?;
    bench
        .count("create pods", nodes, |n| ("POST", PODS.into(), "", pod(n)))
        .await?;
    bench
        .during("patch node status", time, move |n| {
            (
                "PATCH",
                format!("/api/v1/nodes/edge-{:05}/status", n % nodes),
                STRATEGIC,
                node_status(n),
            )
        })
        .await?;
    bench
        .during("patch pod status", time, move |n| {
            (
                "PATCH",
                format!("{PODS}/web-{:05}/status", n % nodes),
                STRATEGIC,
                pod_status(n),
            )
        })
        .await?;
    bench
        .during("patch leases", time, move |n| {
            (
                "PATCH",
                format!("{LEASES}/edge-{:05}", n % nodes),
                MERGE,
                json!({"spec": {"renewTime": moment()}}),
            )
        })
        .await?;
    bench
        .during("put leases", time, move |n| {
            (
                "PUT",
                format!("{LEASES}/edge-{:05}", n % nodes),
                "",
                lease(n % nodes),
            )
        })
        .await?;
    bench
        .during("create events", time, move |n| {
            ("POST", EVENTS.into(), "", event(n))
        })
        .await?;
    bench
        .during("get nodes", time, move |n| {
            (
                "GET",
                format!("/api/v1/nodes/edge-{:05}", n % nodes),
                "",
                Value::Null,
            )
        })
        .await?;
    bench.pages().await?;
    bench.fan_out().await?;
    Ok(())
}

type Call = (&'static str, String, &'static str, Value);

struct Bench {
    callers: Vec<Arc<Caller>>,
    server: server::Process,
}

impl Bench {
    /// A fixed number of calls.
    async fn count(
        &self,
        step: &str,
        calls: usize,
        call: impl Fn(usize) -> Call + Send + Sync + Copy + 'static,
    ) -> Result<()> {
        self.run(step, move |n, _| (n < calls).then(|| call(n))).await
    }

    /// As many calls as fit into the time.
    async fn during(
        &self,
        step: &str,
        time: Duration,
        call: impl Fn(usize) -> Call + Send + Sync + Copy + 'static,
    ) -> Result<()> {
        self.run(step, move |n, spent| (spent < time).then(|| call(n)))
            .await
    }

    async fn run(
        &self,
        step: &str,
        next: impl Fn(usize, Duration) -> Option<Call> + Send + Sync + Copy + 'static,
    ) -> Result<()> {
        let (cpu, began) = (self.server.cpu_seconds(), Instant::now());
        let counter = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for caller in &self.callers {
            let (caller, counter) = (Arc::clone(caller), Arc::clone(&counter));
            tasks.spawn(async move {
                let mut times = Vec::new();
                while let Some((method, path, kind, body)) =
                    next(counter.fetch_add(1, Ordering::Relaxed), began.elapsed())
                {
                    let sent = Instant::now();
                    caller.call(method, &path, kind, &body).await?;
                    times.push(sent.elapsed());
                }
                anyhow::Ok(times)
            });
        }
        let mut times = Vec::new();
        while let Some(done) = tasks.join_next().await {
            times.extend(done??);
        }
        self.report(step, times.len(), began.elapsed(), times, cpu);
        Ok(())
    }

    /// All nodes in pages of 500.
    async fn pages(&self) -> Result<()> {
        let (cpu, began) = (self.server.cpu_seconds(), Instant::now());
        let (mut times, mut token, mut seen) = (Vec::new(), String::new(), 0);
        loop {
            let sent = Instant::now();
            let path = format!("/api/v1/nodes?limit=500&continue={token}");
            let body = self.callers[0].call("GET", &path, "", &Value::Null).await?;
            times.push(sent.elapsed());
            let page: Value = serde_json::from_slice(&body)?;
            seen += page["items"].as_array().map_or(0, Vec::len);
            match page["metadata"]["continue"].as_str() {
                Some(next) => token = next.to_owned(),
                None => break,
            }
        }
        self.report(
            &format!("list {seen} nodes by 500"),
            times.len(),
            began.elapsed(),
            times,
            cpu,
        );
        Ok(())
    }

    /// Config maps written while each connection watches them twice.
    async fn fan_out(&self) -> Result<()> {
        const MAPS: usize = 500;
        let path = "/api/v1/namespaces/default/configmaps";
        let mut watches = Vec::new();
        for caller in self.callers.iter().chain(&self.callers) {
            watches.push(caller.watch(&format!("{path}?watch=1&resourceVersion=0")).await?);
        }
        let (cpu, began) = (self.server.cpu_seconds(), Instant::now());
        let mut tasks = tokio::task::JoinSet::new();
        for mut watch in watches {
            tasks.spawn(async move { watch.lines_with(b"\"fan-", MAPS).await });
        }
        self.count("create config maps under watch", MAPS, |n| {
            let data = json!({"k": "v".repeat(2_000)});
            (
                "POST",
                "/api/v1/namespaces/default/configmaps".into(),
                "",
                json!({"metadata": {"name": format!("fan-{n}")}, "data": data}),
            )
        })
        .await?;
        let mut events = 0;
        while let Some(done) = tasks.join_next().await {
            events += done??;
        }
        self.report("events to 128 watchers", events, began.elapsed(), Vec::new(), cpu);
        Ok(())
    }

    fn report(&self, step: &str, calls: usize, time: Duration, mut times: Vec<Duration>, cpu_before: f64) {
        times.sort_unstable();
        let at = |part: f64| {
            let place = (times.len() as f64 * part) as usize;
            times
                .get(place.min(times.len().saturating_sub(1)))
                .map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let rate = if time.is_zero() {
            0.0
        } else {
            calls as f64 / time.as_secs_f64()
        };
        println!(
            "{step:<34} {calls:>8} {rate:>9.0} {:>8.2} {:>8.2} {:>8.2} {:>8.2} {:>8.1}",
            at(0.5),
            at(0.99),
            at(1.0),
            self.server.cpu_seconds() - cpu_before,
            self.server.rss_mb()
        );
    }
}

fn moment() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

fn node(n: usize) -> Value {
    let name = format!("edge-{n:05}");
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
        "node-role.kubernetes.io/edge": "", "node-role.kubernetes.io/agent": ""});
    json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}, "spec": {}, "status": node_status(n)["status"]})
}

fn node_status(n: usize) -> Value {
    let now = moment();
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": "EdgeReports", "message": "edge reports its condition",
            "lastHeartbeatTime": now, "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let images: Vec<Value> = (0..8)
        .map(|i| json!({"names": [format!("registry.example.com/some/team/application-{i}:1.{n}.{i}")], "sizeBytes": 10_000_000 + i}))
        .collect();
    json!({"status": {
        "capacity": {"cpu": "4", "memory": "8145004Ki", "pods": "110", "ephemeral-storage": "103079844Ki"},
        "allocatable": {"cpu": "4", "memory": "8042604Ki", "pods": "110", "ephemeral-storage": "94998384122"},
        "conditions": [condition("Ready", "True"), condition("MemoryPressure", "False"), condition("DiskPressure", "False"), condition("PIDPressure", "False")],
        "addresses": [{"type": "InternalIP", "address": "192.168.7.11"}, {"type": "Hostname", "address": format!("edge-{n:05}")}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}},
        "nodeInfo": {"machineID": "", "systemUUID": "", "bootID": "", "kernelVersion": "6.8.0", "osImage": "Ubuntu 24.04", "containerRuntimeVersion": "containerd://2.0",
            "kubeletVersion": "v1.33.1-kubeedge-v1.23.0", "kubeProxyVersion": "v0.0.0", "operatingSystem": "linux", "architecture": "amd64"},
        "images": images,
    }})
}

fn lease(n: usize) -> Value {
    let name = format!("edge-{n:05}");
    json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": moment()}})
}

fn pod(n: usize) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": format!("web-{n:05}"), "labels": {"app": "web"}},
        "spec": {"nodeName": format!("edge-{n:05}"), "containers": [{"name": "main", "image": "example/web:1", "resources": {"requests": {"cpu": "10m"}}}]}})
}

fn pod_status(n: usize) -> Value {
    let now = moment();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    json!({"status": {"phase": "Running", "podIP": "10.42.0.7", "hostIP": "192.168.7.11", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [condition("Initialized"), condition("Ready"), condition("ContainersReady")],
        "containerStatuses": [{"name": "main", "image": "example/web:1", "imageID": "sha256:1", "containerID": "containerd://1", "ready": true, "restartCount": n % 7,
            "started": true, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}]}})
}

fn event(n: usize) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": format!("web.{n}"), "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "web", "namespace": "default"}, "reason": "Started", "message": "Started container main",
        "type": "Normal", "count": 1, "firstTimestamp": now, "lastTimestamp": now, "source": {"component": "edged"}})
}
