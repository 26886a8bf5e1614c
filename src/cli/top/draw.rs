//! One frame. Pure: figures in, characters out. Everything is text, so that it is the same over ssh, without colours and
//! without anything beyond ASCII.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::border;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph};

use super::figures::{Counted, Figures};
use super::words::{Glyphs, bytes, count, percent, rate, seconds, short};

/// How the terminal can show things.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub colours: bool,
    pub glyphs: Glyphs,
}

/// What is known when a frame is drawn.
#[derive(Debug, Default)]
pub(super) struct Screen {
    /// Where the figures come from.
    pub source: String,
    pub every: Duration,
    /// The latest figures, if there have been any.
    pub figures: Option<Figures>,
    /// Opened and closed each second, the latest last.
    pub opened: Vec<f64>,
    pub closed: Vec<f64>,
    /// What went wrong with the latest scrape, and how old the figures are.
    pub trouble: Option<(String, Duration)>,
}

/// The least width at which two columns stand side by side.
const TWO_COLUMNS: u16 = 72;

/// A block of lines.
struct Section {
    title: &'static str,
    lines: Vec<Line<'static>>,
}

/// Draws one frame.
pub(super) fn draw(frame: &mut Frame, screen: &Screen, look: Look) {
    let area = frame.area();
    let rows = |y: u16, height: u16| Rect { y, height, ..area }.intersection(area);
    frame.render_widget(title(screen, area.width, look), rows(0, 1));
    let trouble = u16::from(screen.trouble.is_some()) * 2;
    if let Some((why, age)) = &screen.trouble {
        frame.render_widget(Paragraph::new(trouble_lines(screen, why, *age, look)), rows(1, trouble));
    }
    let Some(figures) = &screen.figures else { return };
    let body = rows(1 + trouble, area.height.saturating_sub(1 + trouble));
    for (column, sections) in columns(body, screen, figures, look) {
        let heights = share_out(&sections.iter().map(Section::height).collect::<Vec<_>>(), column.height);
        let mut y = column.y;
        for (section, height) in sections.into_iter().zip(heights) {
            section.draw(frame, Rect { y, height, ..column }, look);
            y += height;
        }
    }
}

/// How high a frame of this width has to be for everything.
pub(super) fn natural_height(screen: &Screen, width: u16, look: Look) -> u16 {
    let Some(figures) = &screen.figures else { return 3 };
    let body = Rect { x: 0, y: 0, width, height: 1 };
    let heights = columns(body, screen, figures, look).into_iter();
    let tallest = heights.map(|(_, sections)| sections.iter().map(Section::height).sum::<u16>()).max();
    1 + tallest.unwrap_or(0) + u16::from(screen.trouble.is_some()) * 2
}

fn columns(body: Rect, screen: &Screen, figures: &Figures, look: Look) -> Vec<(Rect, Vec<Section>)> {
    if body.width < TWO_COLUMNS {
        let width = usize::from(body.width.saturating_sub(2));
        let sections = [
            flow(screen, figures, width, look),
            room(figures, look),
            shards(figures, width, look),
            app(figures, look),
            dead_peers(figures, width, look),
        ];
        return vec![(body, sections.into_iter().collect())];
    }
    let left = Rect { width: body.width / 2, ..body };
    let right = Rect { x: body.x + left.width, width: body.width - left.width, ..body };
    let inner = |column: Rect| usize::from(column.width.saturating_sub(2));
    vec![
        (left, vec![room(figures, look), app(figures, look), shards(figures, inner(left), look)]),
        (right, vec![flow(screen, figures, inner(right), look), dead_peers(figures, inner(right), look)]),
    ]
}

/// Heights of sections that want so much and have so much together: each gets its first line, then those in front get all
/// their lines. A section without room for a line is left out.
fn share_out(wanted: &[u16], height: u16) -> Vec<u16> {
    const LEAST: u16 = 3;
    let mut left = height;
    let mut heights: Vec<u16> = wanted
        .iter()
        .map(|_| {
            let gets = if left >= LEAST { LEAST } else { 0 };
            left -= gets;
            gets
        })
        .collect();
    for (gets, wanted) in heights.iter_mut().zip(wanted).filter(|(gets, _)| **gets > 0) {
        let more = wanted.saturating_sub(*gets).min(left);
        *gets += more;
        left -= more;
    }
    heights
}

impl Section {
    fn height(&self) -> u16 {
        u16::try_from(self.lines.len()).unwrap_or(u16::MAX).saturating_add(2)
    }

    fn draw(self, frame: &mut Frame, area: Rect, look: Look) {
        let area = area.intersection(frame.area());
        if area.height == 0 {
            return;
        }
        let set = if look.glyphs.unicode { border::PLAIN } else { ASCII };
        let block = Block::bordered().border_set(set).border_style(dim(look)).title(Span::styled(self.title, bold()));
        frame.render_widget(Paragraph::new(self.lines).block(block), area);
    }
}

const ASCII: border::Set<'static> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

fn dim(look: Look) -> Style {
    if look.colours { Style::new().fg(Color::DarkGray) } else { Style::new() }
}

/// How well something is: without colours, what is not well is bold.
fn mood(good: bool, look: Look) -> Style {
    match (good, look.colours) {
        (true, true) => Style::new().fg(Color::Green),
        (true, false) => Style::new(),
        (false, true) => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        (false, false) => bold(),
    }
}

fn title(screen: &Screen, width: u16, look: Look) -> Paragraph<'static> {
    let name = format!("Cableway at {}", screen.source);
    let keys = format!("every {}, q quits", seconds(screen.every.as_secs_f64()));
    let gap = usize::from(width).saturating_sub(name.len() + keys.len());
    let mut line = vec![Span::styled(name, bold())];
    if gap >= 2 {
        line.push(Span::raw(" ".repeat(gap)));
        line.push(Span::styled(keys, dim(look)));
    }
    Paragraph::new(Line::from(line))
}

fn trouble_lines(screen: &Screen, why: &str, age: Duration, look: Look) -> Vec<Line<'static>> {
    let state = match &screen.figures {
        Some(_) => format!("trying again; these are figures of {} ago", seconds(age.as_secs_f64().round())),
        None => "trying again".to_owned(),
    };
    vec![Line::styled(why.to_owned(), mood(false, look)), Line::styled(state, mood(false, look))]
}

/// A name, and values of which some are remarkable.
fn line(name: &str, values: Vec<Span<'static>>) -> Line<'static> {
    let mut spans = vec![Span::raw(format!("{name:<11} "))];
    spans.extend(values);
    Line::from(spans)
}

fn plain(name: &str, value: String) -> Line<'static> {
    line(name, vec![Span::raw(value)])
}

fn room(figures: &Figures, look: Look) -> Section {
    let mut lines = Vec::new();
    let filled = |name, (used, max): (f64, f64)| {
        let left = if max > 0.0 { 1.0 - used / max } else { 0.0 };
        let left = Span::styled(format!("{} left", percent(left)), mood(left >= 0.1, look));
        line(name, vec![Span::raw(format!("{}/{}, ", short(used), short(max))), left])
    };
    if let Some(both) = figures.websockets.zip(figures.websockets_max) {
        lines.push(filled("WebSockets", both));
    }
    if let Some((clients, handshakes)) = figures.clients.zip(figures.handshakes) {
        lines.push(plain("clients", format!("{} in, {} on the way", count(clients), count(handshakes))));
    }
    if let Some(both) = figures.descriptors {
        lines.push(filled("descriptors", both));
    }
    if let Some((length, max)) = figures.accept_queue {
        let dropped = figures.overflows.and_then(|counted| counted.rate).unwrap_or(0.0);
        let calm = dropped == 0.0 && length < 0.8 * max;
        let text = format!("{}/{}, {} dropped/s", count(length), count(max), rate(Some(dropped)));
        lines.push(line("accept queue", vec![Span::styled(text, mood(calm, look))]));
    }
    if let Some(memory) = figures.memory {
        lines.push(plain("memory", bytes(memory)));
    }
    for (whose, size) in [("  user", figures.user_bytes), ("  kernel", figures.kernel_bytes)] {
        lines.extend(size.map(|size| plain(whose, format!("{} a connection", bytes(size)))));
    }
    if let Some(dropped) = figures.log_lines_dropped.filter(|dropped| *dropped > 0.0) {
        lines.push(line("log", vec![Span::styled(format!("{} lines dropped", count(dropped)), mood(false, look))]));
    }
    Section { title: "Room", lines }
}

fn app(figures: &Figures, look: Look) -> Section {
    let mut lines = Vec::new();
    if let (Some(calls), Some(failed)) = (figures.calls, figures.failed_calls) {
        let fine = failed.rate.unwrap_or(0.0) <= 0.05 * calls.rate.unwrap_or(0.0);
        let failed = Span::styled(format!("{}/s failed", rate(failed.rate)), mood(fine, look));
        lines.push(line("calls", vec![Span::raw(format!("{}/s, ", rate(calls.rate))), failed]));
    }
    if let Some((half, most)) = figures.call_seconds {
        lines.push(plain("took", format!("p50 {}, p99 {}", seconds(half), seconds(most))));
    }
    if let Some((calls, disconnects)) = figures.calls_waiting.zip(figures.disconnects_waiting) {
        lines.push(plain("waiting", format!("{} calls", count(calls))));
        lines.push(plain("Disconnect", format!("{} waiting", count(disconnects))));
    }
    Section { title: "App", lines }
}

fn shards(figures: &Figures, width: usize, look: Look) -> Section {
    let most = figures.shards.iter().map(|(_, held)| *held).fold(0.0, f64::max);
    let all: f64 = figures.shards.iter().map(|(_, held)| held).sum();
    let mean = all / figures.shards.len().max(1) as f64;
    let names = figures.shards.iter().map(|(name, _)| name.len()).max().unwrap_or(1);
    let bar = width.saturating_sub(names + 13);
    let lines = figures.shards.iter().map(|(name, held)| {
        // As the alert has it: chance makes small differences.
        let even = *held <= 1.5 * mean || all <= 1000.0;
        let bar = look.glyphs.bar(if most > 0.0 { held / most } else { 0.0 }, bar);
        let bar = Span::styled(bar, mood(even, look));
        Line::from(vec![Span::raw(format!("{name:>names$} ")), bar, Span::raw(format!(" {:>11}", count(*held)))])
    });
    Section { title: "Connections by shard", lines: lines.collect() }
}

fn flow(screen: &Screen, figures: &Figures, width: usize, look: Look) -> Section {
    let picture = width.saturating_sub(16);
    let flow = |name: &str, now, before: &[f64]| {
        let columns = Span::styled(look.glyphs.columns(before, picture), mood(true, look));
        Line::from(vec![Span::raw(format!("{name:<6} {:>8} ", rate(now))), columns])
    };
    let mut lines =
        vec![flow("opened", figures.opened, &screen.opened), flow("closed", figures.closed, &screen.closed)];
    let names = width.saturating_sub(18).max(8);
    lines.extend(figures.causes.iter().map(|cause| {
        let Counted { rate: each_second, total } = cause.counted;
        let text = format!("{:<names$.names$} {:>7} {:>9}", cause.name, rate(each_second), short(total));
        Line::styled(text, if each_second.unwrap_or(0.0) > 0.0 { Style::new() } else { dim(look) })
    }));
    Section { title: "Opened and closed (per second, in all)", lines }
}

fn dead_peers(figures: &Figures, width: usize, look: Look) -> Section {
    let mut lines = Vec::new();
    // The longest cause has 17 characters.
    let names = width.saturating_sub(21).max(8);
    let row = |name: &str, columns: [String; 3]| {
        let [half, most, bound] = columns;
        format!("{name:<names$.names$} {half:>6} {most:>6} {bound:>6}")
    };
    if figures.delays.is_empty() {
        lines.push(Line::styled("none found", dim(look)));
    } else {
        lines.push(Line::styled(row("", ["p50", "p99", "bound"].map(str::to_owned)), dim(look)));
    }
    for delay in &figures.delays {
        let late = delay.half.zip(delay.bound).is_some_and(|(half, bound)| half > bound);
        let columns = [delay.half, delay.most, delay.bound];
        let columns = columns.map(|value| value.map_or("-".to_owned(), seconds));
        lines.push(Line::styled(row(&delay.cause, columns), mood(!late, look)));
    }
    if !figures.silence.is_empty() {
        lines.push(Line::styled("connections by time of silence", dim(look)));
    }
    let most = figures.silence.iter().map(|(_, held)| *held).fold(0.0, f64::max);
    let bar = width.saturating_sub(22);
    for (silent, held) in &figures.silence {
        let bar = look.glyphs.bar(if most > 0.0 { held / most } else { 0.0 }, bar);
        lines.push(Line::raw(format!("{silent:>9} {bar} {:>11}", count(*held))));
    }
    Section { title: "Dead peers: how long they stayed", lines }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::top::figures::{Cause, Delay};

    const ASCII_ONLY: Look = Look { colours: false, glyphs: Glyphs { unicode: false } };
    const RICH: Look = Look { colours: true, glyphs: Glyphs { unicode: true } };

    fn frame(screen: &Screen, width: u16, height: u16, look: Look) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen, look)).unwrap();
        let buffer = terminal.backend().buffer();
        let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
        (0..height).map(row).collect()
    }

    fn counted(rate: f64, total: f64) -> Option<Counted> {
        Some(Counted { rate: Some(rate), total })
    }

    fn busy() -> Screen {
        let cause = |name: &str, rate, total| Cause { name: name.into(), counted: counted(rate, total).unwrap() };
        let figures = Figures {
            websockets: Some(14_998.0),
            websockets_max: Some(18_750.0),
            clients: Some(14_990.0),
            handshakes: Some(3.0),
            shards: vec![("0".into(), 7_512.0), ("1".into(), 7_486.0)],
            opened: Some(123.4),
            closed: Some(12.0),
            causes: vec![cause("client_gone", 11.0, 1_234.0), cause("peer_timeout", 1.0, 56.0)],
            accept_queue: Some((3.0, 4096.0)),
            overflows: counted(0.0, 7.0),
            memory: Some(230.0 * 1024.0 * 1024.0),
            user_bytes: Some(504.0),
            kernel_bytes: Some(3_379.0),
            descriptors: Some((18_500.0, 20_000.0)),
            log_lines_dropped: Some(0.0),
            calls: counted(120.0, 9_999.0),
            failed_calls: counted(0.5, 3.0),
            call_seconds: Some((0.0012, 0.010)),
            calls_waiting: Some(28.0),
            disconnects_waiting: Some(1_200.0),
            delays: vec![Delay {
                cause: "peer_timeout".into(),
                found: 56.0,
                half: Some(31.0),
                most: Some(34.0),
                bound: Some(35.5),
            }],
            silence: vec![("0-10s".into(), 14_000.0), ("10-60s".into(), 998.0)],
        };
        Screen {
            source: "127.0.0.1:8080".into(),
            every: Duration::from_secs(1),
            figures: Some(figures),
            opened: vec![0.0, 61.0, 123.4],
            closed: vec![12.0; 3],
            trouble: None,
        }
    }

    #[test]
    fn everything_stands_on_a_terminal_of_80_by_24_without_colours_and_in_ascii() {
        let frame = frame(&busy(), 80, 24, ASCII_ONLY).join("\n");
        assert!(frame.is_ascii(), "{frame}");
        for part in [
            "Cableway at 127.0.0.1:8080",
            "every 1 s, q quits",
            "14,998/18,750, 20 % left",
            "14,990 in, 3 on the way",
            "18,500/20,000, 7.5 % left",
            "3/4,096, 0 dropped/s",
            "230 MiB",
            "user      504 B a connection",
            "kernel    3.3 KiB a connection",
            "120/s, 0.5/s failed",
            "p50 1.2 ms, p99 10 ms",
            "28 calls",
            "1,200 waiting",
            "0 ########################       7,512",
            "opened      123 ",
            "_-#|",
            "client_gone             11.0     1,234",
            "peer_timeout        31 s   34 s 35.5 s",
            "0-10s ################      14,000",
        ] {
            assert!(frame.contains(part), "{part:?} is not in\n{frame}");
        }
    }

    #[test]
    fn a_frame_fits_every_size_of_terminal_and_shows_first_what_matters_most() {
        let mut screen = busy();
        for trouble in [None, Some(("no answer".to_owned(), Duration::from_secs(7)))] {
            screen.trouble = trouble;
            for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 12), (60, 24), (71, 10), (72, 3), (80, 8), (300, 100)]
            {
                for look in [ASCII_ONLY, RICH] {
                    frame(&screen, width, height, look);
                }
            }
        }
        screen.trouble = None;
        let narrow = frame(&screen, 40, 12, ASCII_ONLY).join("\n");
        for part in ["Cableway at", "opened", "closed", "Room", "14,998/18,750"] {
            assert!(narrow.contains(part), "{part:?} is not in\n{narrow}");
        }
    }

    #[test]
    fn a_server_that_does_not_answer_is_told_with_the_age_of_what_is_shown() {
        let mut screen = Screen { source: "127.0.0.1:1".into(), ..Screen::default() };
        screen.trouble = Some(("cannot reach 127.0.0.1:1: Connection refused".into(), Duration::ZERO));
        let never = frame(&screen, 80, 24, ASCII_ONLY);
        assert_eq!(never[1..3], ["cannot reach 127.0.0.1:1: Connection refused", "trying again"]);
        let gone = Screen { trouble: Some(("no answer".into(), Duration::from_secs(12))), ..busy() };
        let gone = frame(&gone, 80, 24, ASCII_ONLY);
        assert_eq!(gone[1..3], ["no answer", "trying again; these are figures of 12 s ago"]);
        assert!(gone.join("\n").contains("14,998/18,750"));
    }

    #[test]
    fn what_is_not_well_stands_out_with_and_without_colours() {
        for (look, style) in [(RICH, Color::Red), (ASCII_ONLY, Color::Reset)] {
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &busy(), look)).unwrap();
            let cells = terminal.backend().buffer().content();
            let loud: String = cells
                .iter()
                .skip(80)
                .filter(|cell| cell.fg == style && cell.modifier == Modifier::BOLD)
                .map(|cell| cell.symbol())
                .collect();
            assert!(loud.contains("7.5 % left"), "{loud}");
            assert!(!loud.contains("20 % left"), "{loud}");
            if !look.colours {
                assert!(cells.iter().all(|cell| cell.fg == Color::Reset && cell.bg == Color::Reset));
            }
        }
    }

    #[test]
    fn many_shards_and_causes_are_cut_off_in_a_terminal_and_whole_in_text() {
        let mut screen = busy();
        let figures = screen.figures.as_mut().unwrap();
        figures.shards = (0..64).map(|shard| (shard.to_string(), f64::from(shard))).collect();
        let height = natural_height(&screen, 80, ASCII_ONLY);
        let whole = frame(&screen, 80, height, ASCII_ONLY).join("\n");
        for part in ["|63 ####", "client_gone", "10-60s"] {
            assert!(whole.contains(part), "{part:?} is not in\n{whole}");
        }
        let cut = frame(&screen, 80, 24, ASCII_ONLY).join("\n");
        assert!(cut.contains("| 0 ....") && cut.contains("28 calls") && !cut.contains("|63 "), "{cut}");
    }

    #[test]
    fn heights_are_shared_out_from_the_front_and_never_exceed_what_there_is() {
        assert_eq!(share_out(&[8, 5, 4], 30), [8, 5, 4]);
        assert_eq!(share_out(&[8, 5, 4], 12), [6, 3, 3]);
        assert_eq!(share_out(&[8, 5, 4], 7), [4, 3, 0]);
        assert_eq!(share_out(&[8, 5, 4], 2), [0, 0, 0]);
    }
}
