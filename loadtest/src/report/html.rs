//! The page: one file, no script, no network, readable in the dark, curves as SVG.

use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use super::Report;
use crate::run::{Sample, Snapshot};

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2330;--soft:#5d6878;--paper:#fff;--line:#dfe4ea;--a:#0b6bcb;--b:#c2410c;--bad:#b91c1c}\
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#9aa5b4;--paper:#12161d;--line:#2a313c;--a:#5aa9f5;--b:#fb923c;--bad:#f87171}}\
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1080px;margin:0 auto;padding:32px 20px}\
h1{font-size:24px;margin:0 0 4px}h2{font-size:16px;margin:0 0 8px}p,code{color:var(--soft)}code{font-size:13px;overflow-wrap:anywhere}\
.bad{color:var(--bad);font-weight:600}.good{color:var(--ink);font-weight:600}\
table{border-collapse:collapse;width:100%;margin:16px 0 28px;font-variant-numeric:tabular-nums}\
td,th{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}th{color:var(--soft);font-weight:500}\
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:28px}@media(max-width:520px){.plots{grid-template-columns:1fr}}\
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}\
.grid{stroke:var(--line)}.a{stroke:var(--a);fill:none;stroke-width:2}.b{stroke:var(--b);fill:none;stroke-width:2}";

struct Curve<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

pub(super) fn page(report: &Report) -> String {
    let mut out = String::new();
    head(&mut out, report);
    out.push_str("<table>");
    for (name, value) in report.rows() {
        row(&mut out, &name, &value);
    }
    out.push_str("</table><div class=plots>");
    connections(&mut out, report);
    opening(&mut out, report);
    memory(&mut out, report);
    cpu(&mut out, report);
    backend_calls(&mut out, report);
    latencies(&mut out, report);
    out.push_str("</div></html>\n");
    out
}

fn head(out: &mut String, report: &Report) {
    let verdict = if report.problems.is_empty() {
        "<p class=good>The run is clean.</p>".to_owned()
    } else {
        format!("<p class=bad>Failed: {}</p>", escape(&report.problems.join("; ")))
    };
    write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <title>cableway-loadtest {0}</title><style>{STYLE}</style><h1>{0}: {1} connections</h1>{verdict}\
         <p>{2}, {3} client process(es), {4}<br><code>{5}</code></p>",
        report.scenario,
        most_ready(report),
        escape(&report.provenance.machine()),
        report.processes,
        date(report.provenance.ended_at),
        escape(&report.provenance.command),
    )
    .expect("a String takes all");
}

fn most_ready(report: &Report) -> u64 {
    report.samples.iter().map(|sample| sample.ready).max().unwrap_or(0)
}

fn over_time(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    samples.iter().map(|sample| (sample.at_s, value(sample))).collect()
}

fn connections(out: &mut String, report: &Report) {
    let ready = over_time(&report.samples, |sample| sample.ready as f64);
    let failed = over_time(&report.samples, |sample| sample.failed as f64);
    let curves = [Curve { name: "ready", points: ready }, Curve { name: "failed", points: failed }];
    plot(out, "Connections and failures", &[], &curves);
}

fn opening(out: &mut String, report: &Report) {
    let Some(yardstick) = &report.yardstick else { return };
    let ready = |report: &Report| over_time(&report.samples, |sample| sample.ready as f64);
    let curves =
        [Curve { name: "server", points: ready(report) }, Curve { name: "yardstick", points: ready(yardstick) }];
    plot(out, "Connections, beside the yardstick", &[], &curves);
}

fn memory(out: &mut String, report: &Report) {
    let base = report.snapshots.first().and_then(Snapshot::server_rss_bytes).unwrap_or(0);
    if base == 0 {
        return;
    }
    // With few connections there the quotient says nothing about one.
    let many = most_ready(report).max(2) / 2;
    let points = report.samples.iter().filter(|sample| sample.ready >= many);
    let each = |sample: &Sample| (sample.server_rss_bytes as f64 - base as f64) / sample.ready as f64;
    let points = points.map(|sample| (sample.at_s, each(sample))).collect();
    let curve = Curve { name: "bytes, while half of all or more were there", points };
    plot(out, "User memory per connection", &[], &[curve]);
}

fn cpu(out: &mut String, report: &Report) {
    let samples = &report.samples;
    let cores = |cpu_us: fn(&Sample) -> f64| rates(&over_time(samples, |sample| cpu_us(sample) / 1e6));
    let mut curves = vec![Curve { name: "this tool", points: cores(|sample| sample.client_cpu_us) }];
    if samples.iter().any(|sample| sample.server_cpu_us > 0.0) {
        curves.push(Curve { name: "server", points: cores(|sample| sample.server_cpu_us) });
    }
    plot(out, "CPU in cores", &[], &curves);
}

fn backend_calls(out: &mut String, report: &Report) {
    let calls = &report.backend_calls;
    if calls.is_empty() {
        return;
    }
    let made: Vec<_> = calls.iter().map(|(at_s, calls)| (*at_s, calls.made as f64)).collect();
    let waiting = calls.iter().filter_map(|(at_s, calls)| Some((*at_s, calls.waiting? as f64))).collect();
    let curves = [Curve { name: "a second", points: rates(&made) }, Curve { name: "waiting", points: waiting }];
    plot(out, "Calls to the backend during the storm", &[], &curves);
}

fn latencies(out: &mut String, report: &Report) {
    for latency in report.latencies.iter().filter(|latency| latency.count > 0) {
        let points = latency.curve.iter().enumerate().map(|(step, (_, ms))| (step as f64, *ms)).collect();
        let shares: Vec<String> = latency.curve.iter().map(|(share, _)| format!("{}", share * 100.0)).collect();
        plot(out, &capitalized(&latency.name), &shares, &[Curve { name: "milliseconds, by percentile", points }]);
    }
}

/// How fast a growing number grew, a second; points closer than a fifth of a second are taken together.
fn rates(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut rates = Vec::new();
    let Some(mut then) = points.first() else { return rates };
    for now in points {
        if now.0 - then.0 >= 0.2 {
            rates.push((now.0, (now.1 - then.1) / (now.0 - then.0)));
            then = now;
        }
    }
    rates
}

fn row(out: &mut String, name: &str, value: &str) {
    let class = if name == "FAILED" { " class=bad" } else { "" };
    write!(out, "<tr{class}><th>{}</th><td>{}</td></tr>", escape(name), escape(value)).expect("a String takes all");
}

/// Axes from 0 to a round number, four lines, one polyline per curve. `labels` name the points of the x axis; without
/// them it is seconds, named at round ones.
fn plot(out: &mut String, title: &str, labels: &[String], curves: &[Curve<'_>]) {
    const WIDTH: f64 = 520.0;
    const HEIGHT: f64 = 220.0;
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 20.0;
    const TOP: f64 = 24.0;
    const BOTTOM: f64 = 24.0;
    let all = || curves.iter().flat_map(|curve| &curve.points);
    let x_max = all().map(|point| point.0).fold(0.1, f64::max);
    let y_max = round_up(all().map(|point| point.1).fold(0.0, f64::max));
    let x = |value: f64| LEFT + value / x_max * (WIDTH - LEFT - RIGHT);
    let y = |value: f64| HEIGHT - BOTTOM - value.max(0.0) / y_max * (HEIGHT - TOP - BOTTOM);
    write!(out, "<figure style=margin:0><h2>{}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img>", escape(title))
        .expect("a String takes all");
    for step in 0..=4 {
        let value = y_max * f64::from(step) / 4.0;
        write!(
            out,
            "<line class=grid x1={LEFT} x2={WIDTH} y1={0:.1} y2={0:.1} /><text x={1} y={2:.1} text-anchor=end>{3}</text>",
            y(value),
            LEFT - 8.0,
            y(value) + 4.0,
            short(value)
        )
        .expect("a String takes all");
    }
    let step = round_up(x_max / 6.0);
    let seconds = (0..=6).map(|count| f64::from(count) * step).take_while(|at| *at <= x_max * 1.001);
    let marks: Vec<(f64, String)> = match labels {
        [] => seconds.map(|at| (at, format!("{} s", short(at)))).collect(),
        labels => labels.iter().enumerate().map(|(step, label)| (step as f64, label.clone())).collect(),
    };
    for (at, label) in marks {
        write!(out, "<text x={:.1} y={} text-anchor=middle>{label}</text>", x(at), HEIGHT - 6.0)
            .expect("a String takes all");
    }
    for (curve, class) in curves.iter().zip(["a", "b"]) {
        let points: Vec<String> =
            curve.points.iter().map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value))).collect();
        write!(out, "<polyline class={class} points=\"{}\" />", points.join(" ")).expect("a String takes all");
    }
    for (index, (curve, class)) in curves.iter().zip(["a", "b"]).enumerate() {
        let at = LEFT + index as f64 * 150.0;
        write!(
            out,
            "<line class={class} x1={at} x2={} y1=10 y2=10 /><text x={} y=14>{}</text>",
            at + 18.0,
            at + 24.0,
            escape(curve.name)
        )
        .expect("a String takes all");
    }
    out.push_str("</svg></figure>");
}

/// The next of 1, 2, 4, 5, 8 times a power of ten.
fn round_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 8.0, 10.0].map(|step| step * power).into_iter().find(|top| *top >= value).unwrap_or(value)
}

fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1} M", v / 1e6),
        v if v >= 1e4 => format!("{:.0} k", v / 1e3),
        v if v >= 10.0 || v.fract() == 0.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    }
}

fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map_or_else(String::new, |first| first.to_uppercase().chain(rest).collect())
}

fn date(unix_s: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_s))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        for (value, top) in [(0.0, 1.0), (0.3, 0.4), (7.0, 8.0), (15_000.0, 20_000.0), (1e6, 1e6)] {
            assert!((round_up(value) - top).abs() < 1e-9, "{value}");
        }
    }

    #[test]
    fn a_rate_is_taken_over_a_fifth_of_a_second_or_more() {
        assert_eq!(rates(&[(0.0, 0.0), (1.0, 5.0), (1.001, 50.0), (2.0, 7.0)]), [(1.0, 5.0), (2.0, 2.0)]);
        assert!(rates(&[]).is_empty());
    }

    #[test]
    fn numbers_are_short_and_text_is_escaped() {
        assert_eq!([short(1_500_000.0), short(15_000.0), short(3.0), short(0.25)], ["1.5 M", "15 k", "3", "0.25"]);
        assert_eq!(escape("<a&b>"), "&lt;a&amp;b&gt;");
    }
}
