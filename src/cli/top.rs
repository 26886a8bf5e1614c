//! `cableway top`: what a running server does, in a terminal.
//!
//! It reads the server's own metrics again and again and keeps no books beside. One thread asks; this one draws and listens
//! for keys, so that it can be ended while a server does not answer. What is read and drawn is pure and lies in modules of
//! its own; nothing but this file and `fetch` touches the machine.

mod arguments;
mod draw;
mod fetch;
mod figures;
mod scrape;
mod watch;
mod words;

use std::env;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyModifiers};
use ratatui::{DefaultTerminal, Terminal};
use tokio::signal::unix::{SignalKind, signal};

use crate::os::clock::Clock;

use super::USAGE_ERROR;
use super::ask::Place;
use arguments::{USAGE, Wanted};
use draw::Look;
use scrape::Scrape;
use watch::Watch;
use words::Glyphs;

/// The command.
pub(super) const COMMAND: &str = "top";

/// How long a key or a look may wait to be noticed.
const NOTICED_WITHIN: Duration = Duration::from_millis(100);

/// Runs it with the words behind the command.
pub(super) fn run(words: impl IntoIterator<Item = String>) -> ExitCode {
    let (place, every, once) = match arguments::read(words) {
        Ok(Wanted::Help) => {
            // Somebody who closed the pipe has read enough.
            let _ = write!(io::stdout(), "{USAGE}");
            return ExitCode::SUCCESS;
        }
        Ok(Wanted::Figures { place, every, once }) => (place, every, once),
        Err(why) => return fail(USAGE_ERROR, &format!("{why}\n\n{USAGE}")),
    };
    let result = match once {
        true => print(&place, every),
        false if !io::stdout().is_terminal() => {
            return fail(USAGE_ERROR, "standard output is no terminal; --once prints one frame as text");
        }
        false => show(&place, every).map_err(|error| format!("cannot use this terminal: {error}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(1, &why),
    }
}

fn fail(code: u8, why: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "{}", why.trim_end());
    ExitCode::from(code)
}

/// One frame as text, after two looks.
fn print(place: &Place, every: Duration) -> Result<(), String> {
    /// What most terminals have; scripts want the same everywhere.
    const WIDTH: u16 = 80;
    let clock = Clock::start();
    let mut watch = Watch::new(place.authority(), every);
    for look in 0..2 {
        if look > 0 {
            thread::sleep(every);
        }
        let scrape = fetch::scrape(place).map_err(|trouble| format!("{} {trouble}", place.authority()))?;
        watch.looked(clock.now().mono, Ok(scrape));
    }
    let look = Look { colours: false, glyphs: glyphs() };
    let height = draw::natural_height(&watch.screen, WIDTH, look);
    let Ok(mut terminal) = Terminal::new(TestBackend::new(WIDTH, height));
    let Ok(_) = terminal.draw(|frame| draw::draw(frame, &watch.screen, look));
    let buffer = terminal.backend().buffer();
    let mut text = String::new();
    for y in 0..height {
        let row: String = (0..WIDTH).map(|x| buffer[(x, y)].symbol()).collect();
        text.push_str(row.trim_end());
        text.push('\n');
    }
    // Somebody who closed the pipe has read enough.
    let _ = write!(io::stdout(), "{text}");
    Ok(())
}

/// Something that the drawing thread has to know.
enum News {
    Looked(Duration, Result<Scrape, String>),
    End,
}

/// Draws until somebody has seen enough.
fn show(place: &Place, every: Duration) -> io::Result<()> {
    let news = listen(place.clone(), every)?;
    let colours = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let look = Look { colours: colours && env::var("TERM").as_deref() != Ok("dumb"), glyphs: glyphs() };
    let mut terminal = ratatui::try_init()?;
    let ended = follow(&mut terminal, &news, Watch::new(place.authority(), every), look);
    ratatui::try_restore()?;
    ended
}

fn follow(terminal: &mut DefaultTerminal, news: &Receiver<News>, mut watch: Watch, look: Look) -> io::Result<()> {
    loop {
        terminal.draw(|frame| draw::draw(frame, &watch.screen, look))?;
        loop {
            // Keys and a new size first; waiting is done below.
            let mut redraw = false;
            while event::poll(Duration::ZERO)? {
                match event::read()? {
                    Event::Key(key) if ends(key) => return Ok(()),
                    Event::Resize(..) => redraw = true,
                    _ => {}
                }
            }
            match news.recv_timeout(NOTICED_WITHIN) {
                Ok(News::Looked(at, result)) => {
                    watch.looked(at, result);
                    redraw = true;
                }
                Ok(News::End) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if redraw {
                break;
            }
        }
    }
}

fn ends(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q' | 'Q') | KeyCode::Esc => true,
        KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// Looks again and again, and listens for signals that end a program: the terminal has to be put back first.
fn listen(place: Place, every: Duration) -> io::Result<Receiver<News>> {
    let (sender, news) = mpsc::sync_channel(1);
    let end = sender.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let told = runtime.block_on(async {
            let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
            let [Ok(terminate), Ok(interrupt), Ok(hang_up)] = &mut signals else { return false };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                _ = hang_up.recv() => {}
            }
            true
        });
        if told {
            let _ = end.send(News::End);
        }
    })?;
    let clock = Clock::start();
    let look = move || loop {
        let result = fetch::scrape(&place).map_err(|trouble| trouble.to_string());
        if sender.send(News::Looked(clock.now().mono, result)).is_err() {
            return;
        }
        thread::sleep(every);
    };
    thread::Builder::new().name("look".into()).spawn(look)?;
    Ok(news)
}

/// By the locale, as the C library has it: the first of these that is set counts.
fn glyphs() -> Glyphs {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| env::var(name).ok().filter(|text| !text.is_empty()));
    let locale = locale.unwrap_or_default().to_ascii_lowercase();
    Glyphs { unicode: locale.contains("utf-8") || locale.contains("utf8") }
}
