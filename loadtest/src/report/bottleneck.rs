//! Which side set the pace: on one machine the clients often do, and a figure taken then is theirs.

use crate::run::Sample;

/// Share of the machine's cores above which a side counts as busy.
const BUSY: f64 = 0.6;

/// Share of the machine's cores above which both together leave no room.
const FULL: f64 = 0.85;

/// Cores from which on a server with one working thread has nothing left.
const ONE_THREAD: f64 = 0.85;

/// A turn of an event loop of ours that takes longer, in milliseconds, shows up in the latencies.
const LATE_MS: f64 = 50.0;

/// Samples closer than this say nothing about a rate, in seconds.
const APART_S: f64 = 0.2;

/// The most cores that were used between two samples.
fn peak(samples: &[Sample], cpu_us: impl Fn(&Sample) -> f64) -> f64 {
    let Some((first, rest)) = samples.split_first() else { return 0.0 };
    let (mut then, mut peak) = (first, 0.0_f64);
    for now in rest.iter().filter(|sample| sample.at_s - first.at_s >= APART_S) {
        if now.at_s - then.at_s >= APART_S {
            peak = peak.max((cpu_us(now) - cpu_us(then)) / 1e6 / (now.at_s - then.at_s));
            then = now;
        }
    }
    peak
}

/// CPU of both sides and what follows from it. `lag_ms` is the longest turn of an event loop of this tool.
pub(super) fn verdict(samples: &[Sample], cores: usize, lag_ms: f64) -> String {
    let ends = samples.first().zip(samples.last());
    let Some((first, last)) = ends.filter(|(first, last)| last.at_s - first.at_s >= APART_S) else {
        return "the run was too short to tell".to_owned();
    };
    let seconds = last.at_s - first.at_s;
    let client_s = (last.client_cpu_us - first.client_cpu_us) / 1e6;
    let server_s = (last.server_cpu_us - first.server_cpu_us) / 1e6;
    let client = peak(samples, |sample| sample.client_cpu_us);
    let server = peak(samples, |sample| sample.server_cpu_us);
    let cores = cores as f64;
    let mut words = format!("this tool {client_s:.2} s, at most {client:.2} of {cores} cores");
    if server_s > 0.0 {
        words.push_str(&format!("; server {server_s:.2} s, at most {server:.2}"));
    }
    words.push_str(&format!("; in {seconds:.1} s. "));
    words.push_str(&if client > BUSY * cores && client >= server {
        "This tool was the bottleneck at its peak: latencies then are its own".to_owned()
    } else if lag_ms > LATE_MS {
        format!("This tool was late: latencies up to {lag_ms:.0} ms may be its own")
    } else if server > BUSY * cores {
        "The server was the bottleneck at its peak".to_owned()
    } else if client + server > FULL * cores {
        "The machine was full at its peak: each side took from the other".to_owned()
    } else if server > ONE_THREAD && server > client {
        "The server used a whole core at its peak: all there is for one thread".to_owned()
    } else if server_s > 0.0 {
        "Neither side was short of CPU".to_owned()
    } else {
        "This tool was not the bottleneck; the server's CPU is not known (--pid)".to_owned()
    });
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of two seconds, one sample a second and one right behind each, with these cores in use in the last one.
    fn run(client: f64, server: f64) -> Vec<Sample> {
        let at = |at_s: f64, busy_s: f64| Sample {
            at_s,
            ready: 1,
            failed: 0,
            messages: 0,
            server_rss_bytes: 0,
            server_cpu_us: server * busy_s * 1e6,
            client_rss_bytes: 0,
            client_cpu_us: client * busy_s * 1e6,
        };
        vec![at(0.0, 0.0), at(1.0, 0.0), at(1.001, 0.0), at(2.0, 1.0), at(2.001, 1.01)]
    }

    #[test]
    fn the_busier_side_is_named() {
        for (client, server, lag_ms, words) in [
            (1.5, 0.4, 1.0, "This tool was the bottleneck"),
            (0.3, 1.5, 1.0, "The server was the bottleneck"),
            (0.9, 0.9, 1.0, "The machine was full"),
            (0.2, 0.95, 1.0, "a whole core"),
            (0.3, 0.3, 1.0, "Neither"),
            (0.3, 0.3, 400.0, "up to 400 ms may be its own"),
            (0.3, 0.0, 1.0, "not known"),
        ] {
            let verdict = verdict(&run(client, server), 2, lag_ms);
            assert!(verdict.contains(words), "{client} {server} {lag_ms}: {verdict}");
        }
        assert!(verdict(&[], 2, 0.0).contains("too short"));
    }

    #[test]
    fn samples_close_together_make_no_peak() {
        let peak = peak(&run(1.0, 0.0), |sample| sample.client_cpu_us);
        assert!((peak - 1.0).abs() < 0.02, "{peak}");
    }
}
