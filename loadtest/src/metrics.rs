//! What the server says of itself: its Prometheus page, read over HTTP, so that a server on another machine is watched
//! too.
//!
//! Names differ from server to server. What a page does not offer stays unknown and is never taken for 0.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::http1::{self, Client};

/// Names of the number of connections on servers that are neither Cableway nor AnyCable: Centrifugo, Soketi, Sockudo.
const CONNECTIONS_ELSEWHERE: [&str; 3] = ["centrifugo_node_num_clients", "soketi_connected", "sockudo_connected"];

/// The pages of all processes of a server.
pub struct Pages(Vec<Page>);

struct Page {
    client: Client,
    url: String,
    path: String,
}

impl Pages {
    /// Connects to pages such as `http://127.0.0.1:8080/metrics`.
    pub fn connect(urls: &[String]) -> anyhow::Result<Self> {
        let page = |url: &String| {
            let (authority, path) = http1::parse_url(url)?;
            Ok(Page { client: Client::connect(&authority)?, url: url.clone(), path })
        };
        Ok(Self(urls.iter().map(page).collect::<anyhow::Result<_>>()?))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads all of them and adds up what they say.
    pub fn read(&mut self) -> anyhow::Result<ServerMetrics> {
        let mut series = Series::default();
        for Page { client, url, path } in &mut self.0 {
            let answer = client.request("GET", path, "", b"").with_context(|| format!("{url} was not answered"))?;
            ensure!(answer.status == 200, "{url} was answered with status {}", answer.status);
            series.add_page(&String::from_utf8_lossy(&answer.body));
        }
        Ok(ServerMetrics::from_series(&series))
    }
}

/// A page as it is.
pub(crate) fn page(url: &str) -> anyhow::Result<String> {
    let (authority, path) = http1::parse_url(url)?;
    let answer = Client::connect(&authority)?.request("GET", &path, "", b"")?;
    ensure!(answer.status == 200, "{url} was answered with status {}", answer.status);
    Ok(String::from_utf8_lossy(&answer.body).into_owned())
}

/// One figure of a page, whatever stands in front of its name.
pub(crate) fn read_one(url: &str, name: &str) -> anyhow::Result<f64> {
    let mut series = Series::default();
    series.add_page(&page(url)?);
    let prefix = series.own_prefix().unwrap_or_default();
    series.total(&format!("{prefix}{name}")).with_context(|| format!("{url} has no {name}"))
}

/// What a server says of itself at one moment; only what it offers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ServerMetrics {
    /// Resident memory, bytes.
    pub rss_bytes: Option<u64>,
    /// CPU time so far, seconds.
    pub cpu_s: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Connections, as the server counts them.
    pub connections: Option<u64>,
    /// Connections by state, in words.
    pub states: Vec<(&'static str, u64)>,
    /// Calls to the application behind the server.
    pub calls: Option<Calls>,
    /// Connections ended so far, by the server's word for the cause.
    pub closed: BTreeMap<String, u64>,
}

/// A server's calls to the application behind it. All but the last three only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Calls {
    /// Calls that ended, whatever came of them.
    pub made: u64,
    /// Calls that failed.
    pub failed: Option<u64>,
    /// Calls that took too long.
    pub timed_out: Option<u64>,
    /// Calls refused because too many were waiting.
    pub overloaded: Option<u64>,
    /// Calls given up because their connection ended first.
    pub canceled: Option<u64>,
    /// Attempts after the first one of a call.
    pub retried: Option<u64>,
    /// Calls that wait for their turn now.
    pub waiting: Option<u64>,
    /// Calls about clients that have left, which come later and slowly, now.
    pub queued: Option<u64>,
    /// Calls that may be under way at once.
    pub at_once_max: Option<u64>,
}

impl Calls {
    /// What happened since `before`, in words.
    pub fn words_since(&self, before: &Self) -> String {
        let mut words = vec![format!("{} made", self.made.saturating_sub(before.made))];
        for (name, now, then) in [
            ("failed", self.failed, before.failed),
            ("timed out", self.timed_out, before.timed_out),
            ("refused (too many waiting)", self.overloaded, before.overloaded),
            ("given up (client gone)", self.canceled, before.canceled),
            ("tried again", self.retried, before.retried),
        ] {
            if let (Some(now), Some(then)) = (now, then) {
                words.push(format!("{} {name}", now.saturating_sub(then)));
            }
        }
        words.join(", ")
    }
}

impl ServerMetrics {
    fn from_series(series: &Series) -> Self {
        let own = series.own_prefix();
        let own = |name: &str| own.and_then(|prefix| series.total(&format!("{prefix}{name}")));
        // Go's runtime reports what it has reserved under the name that Cableway uses for what is resident.
        let mem_sys = own("goroutines_num").map_or_else(|| own("mem_sys_bytes"), |_| None);
        let whole = |value: Option<f64>| value.map(|value| value.max(0.0) as u64);
        let elsewhere = || CONNECTIONS_ELSEWHERE.into_iter().find_map(|name| series.total(name));
        let states = [
            ("being let in", own("handshakes_num")),
            ("let in", own("clients_num")),
            ("of ordinary HTTP", own("http_connections_num")),
        ];
        Self {
            rss_bytes: whole(series.process("process_resident_memory_bytes").or(mem_sys)),
            cpu_s: series.process("process_cpu_seconds_total"),
            threads: whole(series.process("process_threads").or_else(|| series.total("go_threads"))),
            descriptors: whole(series.process("process_open_fds").or_else(|| own("open_descriptors_num"))),
            connections: whole(own("websockets_num").or_else(|| own("clients_num")).or_else(elsewhere)),
            states: states.into_iter().filter_map(|(name, value)| Some((name, whole(value)?))).collect(),
            calls: own("rpc_call_total").map(|made| Calls {
                made: made as u64,
                failed: whole(own("rpc_error_total")),
                timed_out: whole(own("rpc_timeout_total")),
                overloaded: whole(own("rpc_overloaded_total")),
                canceled: whole(own("rpc_canceled_total")),
                retried: whole(own("rpc_retries_total")),
                waiting: whole(own("rpc_pending_num")),
                queued: whole(own("disconnect_queue_size")),
                at_once_max: whole(own("rpc_capacity_num")),
            }),
            closed: series.by_label("connections_closed_total", "cause"),
        }
    }

    /// The line of a table.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        let mut add = |name: &str, value: Option<String>| words.extend(value.map(|value| format!("{value} {name}")));
        add("connections", self.connections.map(|n| n.to_string()));
        for (state, count) in &self.states {
            add(state, Some(count.to_string()));
        }
        add("MiB resident", self.rss_bytes.map(|bytes| format!("{:.1}", bytes as f64 / 1048576.0)));
        add("s of CPU", self.cpu_s.map(|s| format!("{s:.2}")));
        add("threads", self.threads.map(|n| n.to_string()));
        add("descriptors", self.descriptors.map(|n| n.to_string()));
        add("calls to the backend", self.calls.map(|calls| calls.made.to_string()));
        if words.is_empty() { "nothing that this tool knows".to_owned() } else { words.join(", ") }
    }

    /// Connections that ended since `before`, by cause, in words; empty when none did.
    pub fn closed_since(&self, before: &Self) -> String {
        let since = |(cause, now): (&String, &u64)| {
            let count = now.saturating_sub(before.closed.get(cause).copied().unwrap_or(0));
            (count > 0).then(|| format!("{cause} {count}"))
        };
        self.closed.iter().filter_map(since).collect::<Vec<_>>().join(", ")
    }
}

/// The samples of one or several pages: equal names and labels added.
#[derive(Debug, Default)]
struct Series(BTreeMap<(String, String), f64>);

impl Series {
    fn add_page(&mut self, page: &str) {
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            // NAME{LABELS} VALUE [TIMESTAMP]; a label's value may hold spaces, and braces too.
            let (name, labels, rest) = match (line.find('{'), line.rfind('}')) {
                (Some(open), Some(close)) if open < close => {
                    (&line[..open], &line[open + 1..close], &line[close + 1..])
                }
                _ => line.split_once(' ').map_or((line, "", ""), |(name, rest)| (name, "", rest)),
            };
            let value = rest.split_ascii_whitespace().next().and_then(|value| value.parse::<f64>().ok());
            if let Some(value) = value.filter(|value| value.is_finite()) {
                *self.0.entry((name.to_owned(), labels.to_owned())).or_default() += value;
            }
        }
    }

    fn named<'a>(&'a self, matches: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = (&'a str, &'a str, f64)> {
        let all = self.0.iter().map(|((name, labels), value)| (name.as_str(), labels.as_str(), *value));
        all.filter(move |(name, ..)| matches(name))
    }

    /// All series of that name added; none when there is none.
    fn total(&self, name: &str) -> Option<f64> {
        self.named(|other| other == name).map(|(.., value)| value).reduce(|sum, value| sum + value)
    }

    /// A standard name of processes, which Node's client library may give a prefix.
    fn process(&self, name: &str) -> Option<f64> {
        let found = self.named(|other| other.ends_with(name)).next()?.0;
        self.total(found)
    }

    /// What is in front of the names that Cableway and AnyCable share; operators choose it.
    fn own_prefix(&self) -> Option<&str> {
        self.named(|name| name.ends_with("clients_num")).find_map(|(name, ..)| name.strip_suffix("clients_num"))
    }

    /// The values of one label, with the series of that name behind any prefix.
    fn by_label(&self, name: &str, label: &str) -> BTreeMap<String, u64> {
        let mut values = BTreeMap::new();
        let start = format!("{label}=\"");
        for (_, labels, value) in self.named(|other| other.ends_with(name)) {
            let text = labels.split(&start).nth(1).and_then(|rest| rest.split('"').next());
            if let Some(text) = text {
                *values.entry(text.to_owned()).or_default() += value.max(0.0) as u64;
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pages: &[&str]) -> ServerMetrics {
        let mut series = Series::default();
        pages.iter().for_each(|page| series.add_page(page));
        ServerMetrics::from_series(&series)
    }

    const CABLEWAY: &str = "# HELP cableway_clients_num Sessions.\n# TYPE cableway_clients_num gauge\n\
        cableway_clients_num 7\ncableway_websockets_num 9\ncableway_handshakes_num 2\n\
        cableway_shard_connections_num{shard=\"0\"} 5\ncableway_mem_sys_bytes 1048576\n\
        cableway_open_descriptors_num 40\ncableway_rpc_call_total 30\ncableway_rpc_error_total 1\n\
        cableway_rpc_pending_num 4\ncableway_rpc_call_seconds_bucket{le=\"+Inf\"} 30\n\
        cableway_connections_closed_total{cause=\"peer_reset\"} 3\n\
        cableway_connections_closed_total{cause=\"too_slow\"} 0\n";

    #[test]
    fn a_page_of_cableway_is_read_and_what_it_lacks_is_left_out() {
        let metrics = read(&[CABLEWAY]);
        assert_eq!((metrics.connections, metrics.rss_bytes, metrics.descriptors), (Some(9), Some(1 << 20), Some(40)));
        assert_eq!((metrics.cpu_s, metrics.threads), (None, None));
        assert_eq!(metrics.states, [("being let in", 2), ("let in", 7)]);
        let calls = metrics.calls.unwrap();
        assert_eq!((calls.made, calls.failed, calls.waiting, calls.timed_out), (30, Some(1), Some(4), None));
        assert_eq!(calls.words_since(&Calls { made: 10, failed: Some(0), ..calls }), "20 made, 1 failed");
        assert_eq!(metrics.closed_since(&ServerMetrics::default()), "peer_reset 3");
        assert!(
            !metrics.words().contains("CPU") && metrics.words().starts_with("9 connections"),
            "{}",
            metrics.words()
        );
    }

    #[test]
    fn pages_of_several_processes_are_added_up_under_any_prefix_and_tag() {
        let other = CABLEWAY.replace("cableway_", "live_").replace("_num ", "_num{zone=\"a b\"} ");
        let metrics = read(&[&other, &other]);
        assert_eq!((metrics.connections, metrics.rss_bytes), (Some(18), Some(2 << 20)));
        assert_eq!(metrics.closed["peer_reset"], 6);
    }

    #[test]
    fn standard_names_are_known_and_what_go_has_reserved_is_not_what_is_resident() {
        let metrics = read(&["process_resident_memory_bytes 2e+06\nprocess_cpu_seconds_total 1.5 1790000000000\n\
                              process_open_fds 12\ngo_threads 8\ncentrifugo_node_num_clients 3\n"]);
        assert_eq!((metrics.rss_bytes, metrics.cpu_s, metrics.descriptors), (Some(2_000_000), Some(1.5), Some(12)));
        assert_eq!((metrics.threads, metrics.connections, metrics.calls), (Some(8), Some(3), None));
        let node = read(&["soketi_process_resident_memory_bytes 5\nsoketi_connected{port=\"1\"} 4\n"]);
        assert_eq!((node.rss_bytes, node.connections), (Some(5), Some(4)));
        let go = read(&["anycable_go_clients_num 1\nanycable_go_goroutines_num 9\nanycable_go_mem_sys_bytes 5\n"]);
        assert_eq!((go.connections, go.rss_bytes), (Some(1), None));
        assert_eq!(read(&["nothing\nx NaN\ny{z=\"}\n"]), ServerMetrics::default());
        assert_eq!(ServerMetrics::default().words(), "nothing that this tool knows");
    }
}
