//! The rows as Markdown: what was measured, then the same divided by the yardstick of the same dialect.

use std::fmt::Write as _;

use super::trial::Figures;
use super::{Record, Row};
use crate::protocol::Protocol;

/// A column: its heading, its number, how it is written.
struct Column {
    heading: &'static str,
    value: fn(&Figures) -> Option<f64>,
    digits: usize,
    /// Whether a ratio of it says something.
    compared: bool,
    /// Below this a divisor is noise.
    least: f64,
}

const fn column(
    heading: &'static str,
    digits: usize,
    compared: bool,
    least: f64,
    value: fn(&Figures) -> Option<f64>,
) -> Column {
    Column { heading, value, digits, compared, least }
}

const COLUMNS: [Column; 15] = [
    column("idle B", 0, true, 16.0, |f| f.idle_bytes),
    column("after traffic B", 0, true, 16.0, |f| f.after_traffic_bytes),
    column("kept MiB", 1, false, 0.001, |f| f.kept_bytes.map(|bytes| bytes / 1_048_576.0)),
    column("handshake us", 1, true, 0.001, |f| f.handshake_cpu_us),
    column("idle ns/s", 0, true, 50.0, |f| f.idle_cpu_ns),
    column("beats/min", 1, false, 0.001, |f| f.heartbeats_per_minute),
    column("delivery us", 2, true, 0.001, |f| f.delivery_cpu_us),
    column("p50 ms", 0, true, 0.001, |f| f.delivery.as_ref().map(|l| l.p50_ms)),
    column("p90 ms", 0, false, 0.001, |f| f.delivery.as_ref().map(|l| l.p90_ms)),
    column("p99 ms", 0, true, 0.001, |f| f.delivery.as_ref().map(|l| l.p99_ms)),
    column("max ms", 0, false, 0.001, |f| f.delivery.as_ref().map(|l| l.max_ms)),
    column("lost", 0, false, 0.001, |f| f.lost.map(|lost| lost as f64)),
    column("doubled + reordered", 0, false, 0.001, |f| Some((f.doubled? + f.reordered?) as f64)),
    column("storm s", 2, true, 0.001, |f| f.storm_s),
    column("SYN again", 0, false, 0.001, |f| f.storm_syn_again.map(|count| count as f64)),
];

/// Which rows a ratio is taken to: those of one name for plain WebSocket, and of another for the other dialects.
struct Reference {
    raw: &'static str,
    others: &'static str,
}

const CABLEWAY: Reference = Reference { raw: "cableway-raw", others: "cableway" };
const YARDSTICK: Reference = Reference { raw: "bare-raw", others: "bare" };

/// Three tables, and a line for every row with something to say.
pub(super) fn markdown(rows: &[Row]) -> String {
    let mut out = String::new();
    let all: Vec<&Row> = rows.iter().collect();
    table(&mut out, &all, COLUMNS.iter().collect(), |row, column| {
        let value = (column.value)(row.figures.as_ref()?)?;
        Some(format!("{value:.*}", column.digits))
    });
    out.push_str("\nDivided by Cableway (`cableway-raw` for plain WebSocket, `cableway` for the others):\n\n");
    ratios(&mut out, rows, &all, &CABLEWAY);
    out.push_str("\nDivided by the yardstick (`bare-raw` and `bare`), which is what the kernel itself costs:\n\n");
    let ours: Vec<&Row> = rows.iter().filter(|row| row.name.starts_with("cableway")).collect();
    ratios(&mut out, rows, &ours, &YARDSTICK);
    out.push('\n');
    for row in rows {
        writeln!(out, "* {}", words(row)).expect("a String takes all");
    }
    out
}

/// The compared columns of `shown`, divided by the row of `rows` that the reference names.
fn ratios(out: &mut String, rows: &[Row], shown: &[&Row], reference: &Reference) {
    table(out, shown, COLUMNS.iter().filter(|column| column.compared).collect(), |row, column| {
        let raw = row.description.as_ref()?.protocol == Protocol::Raw;
        let of = |name: &str| {
            let figures = rows.iter().find(|row| row.name == name)?.figures.as_ref()?;
            (column.value)(figures)
        };
        // Our own path for plain WebSocket only echoes: publications are compared across the dialects.
        let one = of(if raw { reference.raw } else { reference.others }).or_else(|| of(reference.others))?;
        let value = (column.value)(row.figures.as_ref()?)?;
        (one >= column.least).then(|| format!("{:.2}", value / one))
    });
}

/// The tables with what a reader must know of the run.
pub(super) fn page(record: &Record) -> String {
    let mut out = format!(
        "# {} connections to each\n\n{}. {}\n\n    {}\n\n",
        record.connections,
        record.provenance.machine(),
        record.note.unwrap_or_default(),
        record.provenance.command
    );
    out.push_str(&markdown(record.rows));
    out.push_str(LEGEND);
    out
}

const LEGEND: &str = "
idle B: user memory (RSS) of all processes, a connection, before any traffic; after traffic B: after the publications and
one large message of each client; kept MiB: what is left when everybody has gone. handshake us: server CPU from SYN to
ready; idle ns/s: server CPU a second of an idle connection, with the heartbeats of the next column. delivery us: server
CPU of a delivered message, without what idling costs in that time; p50 to max: from when a publication should have gone
out to each receipt, the last receiver included. lost, doubled, reordered: of all that should have come. storm s: until
all were back after all were reset at once; SYN again: connections whose accept queue was full meanwhile. A dash was not
measured, or cannot be.
";

fn table(out: &mut String, rows: &[&Row], columns: Vec<&Column>, cell: impl Fn(&Row, &Column) -> Option<String>) {
    let headings: Vec<&str> = columns.iter().map(|column| column.heading).collect();
    writeln!(out, "| | {} |", headings.join(" | ")).expect("a String takes all");
    writeln!(out, "| --- |{}", " ---: |".repeat(columns.len())).expect("a String takes all");
    for row in rows {
        let cells: Vec<String> =
            columns.iter().map(|column| cell(row, column).unwrap_or_else(|| "-".to_owned())).collect();
        writeln!(out, "| {} | {} |", row.name, cells.join(" | ")).expect("a String takes all");
    }
}

fn words(row: &Row) -> String {
    let mut parts = vec![format!("**{}**", row.name)];
    if let Some(description) = &row.description {
        parts.push(description.version.clone());
        parts.extend([&description.settings, &description.note].into_iter().filter(|s| !s.is_empty()).cloned());
    }
    if let Some(figures) = &row.figures {
        parts.push(format!("{} threads", figures.threads));
        if figures.failures != "none" {
            parts.push(format!("failures: {}", figures.failures));
        }
    }
    if let Some(trouble) = &row.trouble {
        parts.push(format!("**{}**", trouble.replace('\n', " ")));
    }
    parts.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::versus::peer::Description;

    fn row(name: &str, idle_bytes: Option<f64>, trouble: Option<&str>) -> Row {
        let description: Option<Description> = idle_bytes
            .map(|_| serde_json::from_str(r#"{"version":"1","protocol":"raw","target":"ws://127.0.0.1:1/"}"#).unwrap());
        let figures = idle_bytes.map(|bytes| Figures { idle_bytes: Some(bytes), ..Figures::default() });
        Row { name: name.to_owned(), description, figures, trouble: trouble.map(str::to_owned) }
    }

    #[test]
    fn every_row_stays_and_is_divided_by_ours() {
        let rows =
            [row("cableway-raw", Some(50.0), None), row("x", Some(125.0), None), row("y", None, Some("no compiler"))];
        let text = markdown(&rows);
        assert!(text.contains("| x | 125 | - |") && text.contains("| x | 2.50 | - |"), "{text}");
        assert!(text.contains("| y | - | - |") && text.contains("**y**; **no compiler**"), "{text}");
    }
}
