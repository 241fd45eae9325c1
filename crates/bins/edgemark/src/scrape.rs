//! Counters of others: Prometheus text, over HTTP or through the API's own client.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A metrics page of thousands of series stays below; more is not one.
const PAGE_BYTES_MAX: u64 = 16 * 1024 * 1024;
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Counters of API calls, best first: of our CloudCore, of client-go in the official one, of an API server.
const CALL_COUNTERS: &[&str] = &[
    "kedge_cluster_requests_total",
    "kedge_cluster_calls_total",
    "rest_client_requests_total",
    "kedge_apiserver_requests_total",
    "apiserver_request_total",
];
/// Labels that tell calls apart in a way that matters here.
const LABELS: &[&str] = &["verb", "method", "resource", "class"];

/// Calls so far, by what the counter tells apart.
#[derive(Debug, Clone, PartialEq)]
pub struct CallCounts {
    pub counter: &'static str,
    pub by: BTreeMap<String, f64>,
}

impl CallCounts {
    /// Finds the best counter of a page.
    pub fn find(page: &str) -> Option<Self> {
        CALL_COUNTERS.iter().find_map(|counter| Self::read(page, counter))
    }

    fn read(page: &str, counter: &'static str) -> Option<Self> {
        let mut by = BTreeMap::new();
        for line in page.lines() {
            let Some(rest) = line.strip_prefix(counter) else {
                continue;
            };
            let (labels, value) = match rest.strip_prefix('{') {
                Some(rest) => rest.rsplit_once("} ")?,
                None => ("", rest.strip_prefix(' ')?),
            };
            let value: f64 = value.split_whitespace().next()?.parse().ok()?;
            *by.entry(name_of(labels)).or_insert(0.0) += value;
        }
        (!by.is_empty()).then_some(Self { counter, by })
    }

    /// What was added since `before`.
    pub fn since(&self, before: &Self) -> BTreeMap<String, f64> {
        let mut grown = BTreeMap::new();
        for (name, count) in &self.by {
            let more = count - before.by.get(name).unwrap_or(&0.0);
            if more > 0.0 {
                grown.insert(name.clone(), more);
            }
        }
        grown
    }
}

/// The values of the labels that matter, in their own order.
fn name_of(labels: &str) -> String {
    let mut values = Vec::new();
    for label in LABELS {
        let value = labels.split(',').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == *label).then(|| value.trim().trim_matches('"'))
        });
        values.extend(value);
    }
    if values.is_empty() {
        "all".to_owned()
    } else {
        values.join(" ")
    }
}

/// Reads a page over plain HTTP.
pub async fn page(url: &str) -> Result<String> {
    let rest = url
        .strip_prefix("http://")
        .with_context(|| format!("--metrics {url}: only http:// is read"))?;
    let (address, path) = match rest.split_once('/') {
        Some((address, path)) => (address, format!("/{path}")),
        None => (rest, "/metrics".to_owned()),
    };
    let asked = async {
        let mut stream = TcpStream::connect(address).await?;
        // HTTP/1.0: the answer ends with the connection and comes in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(PAGE_BYTES_MAX).read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(ANSWER_MAX, asked)
        .await
        .with_context(|| format!("read {url}: no answer within {ANSWER_MAX:?}"))?
        .with_context(|| format!("read {url}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("read {url}: this is not HTTP");
    };
    if head.split_whitespace().nth(1) != Some("200") {
        bail!("read {url}: {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_found_and_summed_by_what_matters() {
        let page = "# HELP apiserver_request_total Calls.\n\
                    apiserver_request_total{verb=\"PATCH\",resource=\"nodes\",code=\"200\"} 5\n\
                    apiserver_request_total{verb=\"PATCH\",resource=\"nodes\",code=\"409\"} 2\n\
                    apiserver_request_total{verb=\"PUT\",resource=\"leases\",code=\"200\"} 1e1 1700000\n";
        let counts = CallCounts::find(page).expect("there is a counter");
        assert_eq!(counts.counter, "apiserver_request_total");
        let by: Vec<(&str, f64)> = counts.by.iter().map(|(name, n)| (name.as_str(), *n)).collect();
        assert_eq!(by, [("PATCH nodes", 7.0), ("PUT leases", 10.0)]);

        let later = page.replace("} 5", "} 9");
        let later = CallCounts::find(&later).expect("there is a counter");
        assert_eq!(later.since(&counts), [("PATCH nodes".to_owned(), 4.0)].into());

        let bare = CallCounts::find("kedge_cluster_calls_total 3\n").expect("a counter without labels");
        assert_eq!(bare.by, [("all".to_owned(), 3.0)].into());
        assert_eq!(CallCounts::find("up 1\n"), None);
    }
}
