//! The parent of several processes that are one server to everybody outside.
//!
//! It holds no client. It keeps the ports, starts the children and starts those again that end, passes signals on, tells the
//! supervisor, and relays between the children ([`Relay`]). One loop owns the children's states: it waits for a signal, the end
//! of a child, word from one, or the time to start one again.
//!
//! ```text
//! Running ──ends──► Waiting ──back-off is over──► Running
//!    └──────────────── the server ends ─────────────► over
//! ```
//!
//! Children are nodes like any other, with their share of every limit. They end in order when the link to the parent does.

mod all;
mod children;
mod ports;
mod relay;
mod renew;
mod size;
mod watch;

use std::collections::VecDeque;
use std::fmt::Display;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Carried, Config, Reloaded};
use crate::link::local::messages::ToChild;
use crate::link::local::{Ended, LinkLost, Stopped};
use crate::os::family::{Process, Spawned};
use crate::os::hand_over::Channel;
use crate::os::{limits, passed, process, signals};

use super::StartError;
use super::boot_log;
use super::capacity;
use super::control::{Control, RunningControl};
use super::processes::{self, Order, Question, Terms, Turning};
use super::reload::ReloadError;
use super::signals::{Asked, Signals};
use super::supervisor::{Supervisor, Watched};
use super::upgrade;
use all::{All, Wishes};
use children::Upgrading;
use ports::Ports;
use size::Size;

use relay::{ChildLink, Relay};
use renew::{LeftOrder, Renewal};

pub use renew::{Renewed, TRY_RENEWAL_COMMAND, try_renewal};

/// The file that this process runs, also when another one lies in its place by now.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// The wait before a child is started again; it doubles each time.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// No wait is longer.
const BACK_OFF_MAX: Duration = Duration::from_secs(15);

/// A child that has lived so long is well: when it ends, the waits begin anew.
const IS_WELL_AFTER: Duration = Duration::from_secs(60);

/// What children may take beyond `--shutdown-timeout` until they are killed. They end by themselves before, so this is for one
/// that hangs.
const END_GRACE: Duration = Duration::from_secs(5);

/// The same after a second signal.
const SECOND_GRACE: Duration = Duration::from_secs(1);

/// The parent, with all its children started.
pub struct Parent {
    config: Arc<Config>,
    cores: usize,
    size: Size,
    ports: Ports,
    node_id: String,
    relay: Arc<Relay>,
    all: Arc<All>,
    children: Vec<Child>,
    /// Processes that are no child any more, or were never one, and have not ended.
    leaving: Vec<Process>,
    upgrading: Option<Upgrading>,
    /// All have served at some time.
    is_up: bool,
    events: mpsc::UnboundedSender<Event>,
    happened: mpsc::UnboundedReceiver<Event>,
    /// What happened and was not what was waited for.
    put_off: VecDeque<Event>,
    /// Until it is answered at.
    control: Option<Control>,
    /// Where the program was when this process began to run it.
    program: io::Result<PathBuf>,
    /// What is to be ended when everything stops.
    tasks: Vec<JoinHandle<()>>,
    /// An order that the program before has begun in this process.
    left_order: Option<LeftOrder>,
    runtime: Runtime,
}

/// Where a child is.
struct Child {
    state: State,
    /// Ends in a row that came soon.
    failures: u32,
}

impl Child {
    /// The process, if there is one.
    fn process(self) -> Option<Process> {
        match self.state {
            State::Running(started) => Some(started.process),
            State::Waiting { .. } => None,
        }
    }
}

enum State {
    Running(Started),
    Waiting { until: Instant },
}

/// A process that was started to be a child.
struct Started {
    process: Process,
    /// Nothing, if it was lost while another program ran here.
    link: Option<ChildLink>,
    /// For descriptors that belong to an order.
    orders: Channel,
    since: Instant,
}

/// Word of a child, by whichever process it was then.
pub(super) enum Event {
    /// It serves.
    Serves { child: u16, pid: u32 },
    /// It has not turned for a long time.
    Hangs { child: u16, pid: u32 },
    /// Nothing can be said to it any more.
    LinkLost { child: u16, pid: u32, why: LinkLost },
    /// The link with this number in the relay stands still.
    LinkStopped { child: u16, pid: u32, number: u16, link: Stopped<ToChild> },
}

/// Why a server of several processes does not run.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// Nothing was started yet.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The machine refused something.
    #[error("cannot start")]
    Machine(#[from] io::Error),
    /// What the program before has left in this process cannot be used.
    #[error("cannot go on with what the program before has left: {0}")]
    State(String),
    /// A process has ended before all served.
    #[error("process {child} ended before it served ({status}); its own lines of the log say why")]
    Child {
        /// Which.
        child: u16,
        /// How.
        status: ExitStatus,
    },
}

/// What the loop has to do next.
enum Next {
    Asked(Asked),
    ChildEnded,
    Happened(Event),
    StartAgain,
    UpgradeChild,
}

impl Parent {
    /// Keeps the ports and starts all children. `file` is where the configuration came from, for the log. If one process is
    /// enough for `--processes auto`, the configuration is given back.
    ///
    /// # Errors
    /// See [`ParentError`]; what was started is ended by the end of its link.
    pub fn start(config: Config, file: Option<&Path>, node_id: String) -> Result<Result<Parent, Config>, ParentError> {
        let open_files = limits::raise_open_files()?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let facts = capacity::facts(open_files);
        let size = Size::find(&config, &facts, cores);
        if size.of == 1 {
            return Ok(Err(config));
        }
        upgrade::refuse_predecessor(
            "a server of one process cannot become one of several (--processes) while it serves; start it anew",
        )?;
        size.check()?;
        if !passed::listeners().map_err(StartError::Passed)?.is_empty() {
            let message = "--processes cannot be more than 1 with sockets that a supervisor passes (LISTEN_FDS): each process \
                           listens for itself; disable the socket unit";
            return Err(StartError::Setting(message.to_owned()).into());
        }
        boot_log::first_lines(open_files, size.shards, file);
        let ports = Ports::hold(&config)?;
        let program = process::program();
        let runtime = runtime()?;
        let relay = Relay::new(&config);
        let all =
            Arc::new(All::new(size.of, Arc::clone(&relay), config.metrics.tags.0.clone(), config.server.max_conn));
        let (events, happened) = mpsc::unbounded_channel();
        let children = Vec::with_capacity(size.of.into());
        let config = Arc::new(config);
        let control = Control::open(config.app.control_socket.as_deref(), ports.main(), None)?;
        let mut parent = Parent {
            config,
            cores,
            size,
            ports,
            node_id,
            relay,
            all,
            children,
            leaving: Vec::new(),
            upgrading: None,
            is_up: false,
            events,
            happened,
            put_off: VecDeque::new(),
            control,
            program,
            tasks: Vec::new(),
            left_order: None,
            runtime,
        };
        parent.tell_of_all();
        for child in 0..parent.size.of {
            let state = parent.start_child(child)?;
            parent.children.push(Child { state, failures: 0 });
        }
        Ok(Ok(parent))
    }

    /// The lines of the boot log that are about all processes. The others are told by the first of them when all serve.
    fn tell_of_all(&self) {
        let Size { of, shards_each, capacity, outlook, .. } = &self.size;
        tracing::info!(
            "processes: {of}, each with {shards_each} shard(s), room for its share of the clients, and the open file limit of \
             this one, which is their parent"
        );
        boot_log::machine(&self.config, capacity, outlook);
        let more = processes::too_many_for(&self.config, *of);
        if !more.is_empty() {
            tracing::warn!(
                "{} is less than one for each process: each of the {of} processes has one all the same",
                more.join(", ")
            );
        }
    }

    /// What a child has of the configuration.
    fn share(&self, child: u16) -> Config {
        let mut config = processes::share(&self.config, child, self.size.of, self.cores);
        self.ports.write_into(&mut config);
        config
    }

    fn start_child(&self, child: u16) -> io::Result<State> {
        let (started, link) = self.start_process(child, Path::new(THIS_PROGRAM), None)?;
        self.all.begins(child, started.process.pid(), link);
        Ok(State::Running(started))
    }

    /// Starts a process that is to be a child, or is to take over from the process at the other end of `old`.
    fn start_process(&self, child: u16, program: &Path, old: Option<Channel>) -> io::Result<(Started, ChildLink)> {
        let config = Carried::of(&self.share(child));
        let terms = Terms { config, node_id: self.node_id.clone(), room: self.all.room(child) };
        let Spawned { process, link, orders } =
            Process::spawn(program, child, self.size.of, &processes::write(&terms), old)?;
        let pid = process.pid();
        let wishes = Wishes::new(child, pid, Arc::clone(&self.all), self.events.clone());
        let _runtime = self.runtime.enter();
        let added = self.relay.add(link, Arc::new(wishes));
        let (link, life) = added.ok_or_else(|| io::Error::other("the relay has no room for one more"))?;
        keep_alive(&self.runtime, (child, pid, link.number()), life, &self.events);
        tracing::debug!(process = child, pid, "started");
        let started = Started { process, link: Some(link.clone()), orders, since: Instant::now() };
        Ok((started, link))
    }

    /// Serves until SIGINT or SIGTERM, then has all children shut down in good order; a second signal ends them at once. For
    /// SIGHUP `reload` is called, which may give a new configuration by [`Parent::reload`]. `ready` is called when all children
    /// serve for the first time. For an upgrade this process runs another program, and before that calls `flush`.
    ///
    /// # Errors
    /// See [`ParentError`].
    pub fn run_until_signalled(
        mut self,
        ready: impl FnOnce(),
        mut reload: impl FnMut(&mut Parent),
        flush: impl Fn(),
    ) -> Result<(), ParentError> {
        let mut ready = Some(ready);
        loop {
            let Some(renewal) = self.serve(&mut ready, &mut reload)? else {
                self.runtime.shutdown_background();
                return Ok(());
            };
            self = self.renew(renewal, &flush)?;
        }
    }

    /// Serves to the end, or until another program is to be run.
    fn serve(
        &mut self,
        ready: &mut Option<impl FnOnce()>,
        reload: &mut impl FnMut(&mut Parent),
    ) -> Result<Option<Renewal>, ParentError> {
        let handle = self.runtime.handle().clone();
        let control = self.serve_control();
        let claim = control.as_ref().and_then(RunningControl::claim).filter(|_| self.left_order.is_some());
        let (mut signals, mut child_ends) = {
            let _runtime = handle.enter();
            self.tasks.extend(self.relay.keep_sweeping());
            (Signals::listen()?, signal(SignalKind::child())?)
        };
        signals.listen_at(control);
        // Those that came while this process ran no program that listens come now.
        signals::unblock();
        let supervisor = Arc::new(Supervisor::from_env(false));
        if self.is_up {
            self.all_serve(&supervisor, ready);
        }
        // Some may have ended before their ends were listened for.
        self.children_ended()?;
        if let Some(left) = self.left_order.take() {
            self.go_on_with(left, claim)?;
        }
        loop {
            match handle.block_on(self.next(&mut signals, &mut child_ends)) {
                Next::Asked(Asked::End) => break,
                Next::Asked(Asked::Reload) => {
                    supervisor.reloading();
                    reload(self);
                    supervisor.reloaded();
                }
                Next::Asked(Asked::Order(order)) => match self.ordered(order, &mut signals) {
                    Some(renewal) => return Ok(Some(renewal)),
                    None if signals.has_ended() => break,
                    None => signals.forget_upgrades(),
                },
                Next::UpgradeChild => {
                    if self.upgrade_next() {
                        signals.forget_upgrades();
                    }
                }
                // There is no parent above this one.
                Next::Asked(Asked::ByParent(_)) => {}
                Next::ChildEnded => self.children_ended()?,
                Next::StartAgain => self.start_again(),
                Next::Happened(Event::LinkLost { child, pid, why }) => self.link_lost(child, pid, &why),
                // Nobody has asked for it.
                Next::Happened(Event::LinkStopped { .. }) => {}
                Next::Happened(Event::Hangs { child, pid }) => self.kill(child, pid, &"it does not turn any more"),
                Next::Happened(Event::Serves { child, pid }) => {
                    if self.serves(child, pid) {
                        handle.block_on(self.all.order(0, &Order::Tell));
                        self.all_serve(&supervisor, ready);
                    }
                }
            }
        }
        handle.block_on(self.shut_down(&supervisor, &mut signals, &mut child_ends));
        Ok(None)
    }

    /// All children have served: the supervisor is told, and they are watched.
    fn all_serve(&mut self, supervisor: &Arc<Supervisor>, ready: &mut Option<impl FnOnce()>) {
        if let Some(ready) = ready.take() {
            ready();
        }
        let told = Arc::clone(supervisor).keep_told(Whole(Arc::clone(&self.all)));
        self.tasks.push(self.runtime.spawn(told));
        self.tasks.push(self.runtime.spawn(watch::keep_watching(Arc::clone(&self.all), self.events.clone())));
    }

    /// Begins to answer at the control socket. A failure is no reason to end.
    fn serve_control(&mut self) -> Option<RunningControl> {
        let control = self.control.take()?;
        let path = control.path().display().to_string();
        let all = Arc::clone(&self.all);
        match control.serve(self.runtime.handle(), Arc::clone(&self.all.control), move || all.status()) {
            Ok(running) => {
                tracing::info!("control socket: {path}");
                Some(running)
            }
            Err(error) => {
                tracing::warn!(%error, "nobody can be answered at the control socket {path}");
                None
            }
        }
    }

    async fn next(&mut self, signals: &mut Signals, child_ends: &mut Signal) -> Next {
        let waits = self.children.iter().filter_map(|child| match child.state {
            State::Waiting { until } => Some(until),
            State::Running(_) => None,
        });
        let start_again = waits.min();
        if let Some(event) = self.put_off.pop_front() {
            return Next::Happened(event);
        }
        tokio::select! {
            asked = signals.next() => Next::Asked(asked),
            _ = child_ends.recv() => Next::ChildEnded,
            Some(event) = self.happened.recv() => Next::Happened(event),
            () = tokio::time::sleep_until(start_again.unwrap_or_else(Instant::now)), if start_again.is_some() => Next::StartAgain,
            () = std::future::ready(()), if self.upgrading.is_some() => Next::UpgradeChild,
        }
    }

    /// A child serves. Tells whether all do, for the first time.
    fn serves(&mut self, child: u16, pid: u32) -> bool {
        if !self.is_running(child, pid) {
            return false;
        }
        let all = self.all.serves(child);
        if self.is_up {
            tracing::info!("process {child} (pid {pid}) serves");
            let all = Arc::clone(&self.all);
            self.runtime.spawn(async move { all.give_room(child).await });
        }
        let was_up = self.is_up;
        self.is_up |= all;
        all && !was_up
    }

    fn is_running(&self, child: u16, pid: u32) -> bool {
        let child = self.children.get(usize::from(child)).map(|child| &child.state);
        matches!(child, Some(State::Running(started)) if started.process.pid() == pid)
    }

    /// One that ends by itself closes its link, too, and is not hurried. One that is of no use any more is ended.
    fn link_lost(&mut self, child: u16, pid: u32, why: &LinkLost) {
        if !matches!(why, LinkLost::Closed | LinkLost::Io(_)) {
            self.kill(child, pid, why);
        }
    }

    /// Ends a child at once, if it is that process still.
    fn kill(&self, child: u16, pid: u32, why: &dyn Display) {
        if let Some(Child { state: State::Running(Started { process, .. }), .. }) =
            self.children.get(usize::from(child))
            && process.pid() == pid
        {
            tracing::error!("process {child} (pid {pid}) is killed: {why}");
            process.kill();
        }
    }

    /// Some child has ended: finds out which, and when it is started again.
    fn children_ended(&mut self) -> Result<(), ParentError> {
        self.leaving.retain(|process| process.ended().is_none());
        for (child, Child { state, failures }) in (0u16..).zip(&mut self.children) {
            let State::Running(Started { process, since, .. }) = state else { continue };
            let Some(status) = process.ended() else { continue };
            let pid = process.pid();
            self.all.ended(child);
            if !self.is_up {
                return Err(ParentError::Child { child, status });
            }
            if since.elapsed() >= IS_WELL_AFTER {
                *failures = 0;
            }
            let wait = back_off(*failures);
            *failures = failures.saturating_add(1);
            *state = State::Waiting { until: Instant::now() + wait };
            tracing::error!(
                "process {child} (pid {pid}) has ended ({status}), and its clients have lost their connections; it is started \
                 again in {wait:?}"
            );
        }
        Ok(())
    }

    /// Starts those whose wait is over.
    fn start_again(&mut self) {
        let now = Instant::now();
        for child in 0..self.children.len() {
            match self.children[child].state {
                State::Waiting { until } if until <= now => {}
                _ => continue,
            }
            match self.start_child(child as u16) {
                Ok(state) => self.children[child].state = state,
                Err(error) => {
                    let failures = &mut self.children[child].failures;
                    let wait = back_off(*failures);
                    *failures = failures.saturating_add(1);
                    self.children[child].state = State::Waiting { until: now + wait };
                    tracing::error!(%error, "process {child} cannot be started; tried again in {wait:?}");
                }
            }
        }
    }

    /// Takes over what can be of a new configuration, in all children, and says what was and what needs a restart. A child that
    /// is started later has the same.
    ///
    /// # Errors
    /// See [`ReloadError`]; nothing has changed then.
    pub fn reload(&mut self, new: &Config) -> Result<Reloaded, ReloadError> {
        let reloaded = Reloaded::from(&self.config, new)?;
        self.config = Arc::new(reloaded.config.clone());
        self.all.set_max_conn(self.config.server.max_conn);
        let shares: Vec<Carried> = (0..self.size.of).map(|child| Carried::of(&self.share(child))).collect();
        let order = |child: u16| Order::Reload(shares[usize::from(child)].clone());
        for (child, answer) in self.runtime.block_on(self.all.order_each(order)) {
            match answer.map(|answer| rmp_serde::from_slice::<Result<(), String>>(&answer)) {
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(why))) => tracing::error!("process {child} has refused the configuration: {why}"),
                Some(Err(_)) | None => {
                    tracing::error!("process {child} has not said whether it took the configuration over");
                }
            }
        }
        Ok(reloaded)
    }

    /// Asks all children to end, and waits until they have.
    async fn shut_down(&mut self, supervisor: &Supervisor, signals: &mut Signals, child_ends: &mut Signal) {
        let websockets = self.all.load().websockets;
        supervisor.stopping(websockets);
        let timeout = self.config.app.shutdown_timeout;
        let running = std::mem::take(&mut self.children);
        tracing::info!(websockets, ?timeout, "shutting down all processes");
        let mut running: Vec<Process> = running.into_iter().filter_map(Child::process).collect();
        let each = |running: &[Process], act: fn(&Process)| running.iter().for_each(act);
        each(&running, Process::terminate);
        // These end by themselves, or are killed with the others.
        running.append(&mut self.leaving);
        let mut deadline = Instant::now() + timeout + END_GRACE;
        let mut hurried = false;
        loop {
            running.retain(|process| process.ended().is_none());
            if running.is_empty() {
                break;
            }
            tokio::select! {
                _ = child_ends.recv() => {}
                () = signals.end_again(), if !hurried => {
                    tracing::warn!("second signal: ending all processes at once");
                    hurried = true;
                    each(&running, Process::terminate);
                    deadline = Instant::now() + SECOND_GRACE;
                }
                () = tokio::time::sleep_until(deadline) => {
                    tracing::error!("{} process(es) have not ended in time and are killed", running.len());
                    each(&running, Process::kill);
                    deadline = Instant::now() + END_GRACE;
                }
            }
        }
        tracing::info!("all processes have ended");
    }
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("relay").enable_all().build()
}

/// Has a link live, for a child, a process and a number in the relay, and its end told.
fn keep_alive(
    runtime: &Runtime,
    (child, pid, number): (u16, u32, u16),
    life: impl Future<Output = Ended<ToChild>> + Send + 'static,
    events: &mpsc::UnboundedSender<Event>,
) {
    let events = events.clone();
    runtime.spawn(async move {
        // It fails when the parent ends.
        let _ = match life.await {
            Ended::Lost(why) => events.send(Event::LinkLost { child, pid, why }),
            Ended::Stopped(link) => events.send(Event::LinkStopped { child, pid, number, link }),
        };
    });
}

/// How long to wait after so many ends in a row.
fn back_off(failures: u32) -> Duration {
    BACK_OFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACK_OFF_MAX)
}

/// All processes, in the eyes of a supervisor.
struct Whole(Arc<All>);

impl Watched for Whole {
    async fn look(&mut self, patience: Duration) -> (Option<String>, String) {
        // The children have all of it for their own shards; the rest is for the way there and back.
        let said = self.0.ask(&Question::Turns { patience: patience.mul_f64(0.8) }, patience).await;
        let (mut stuck, mut sum) = (None, Turning::default());
        for one in &said {
            match one.read::<Turning>() {
                Some(turning) => {
                    let of_child = |what: String| format!("{what} of process {}", one.process);
                    stuck = stuck.or(turning.stuck.map(of_child));
                    sum.websockets += turning.websockets;
                    sum.websockets_max += turning.websockets_max;
                    sum.app_is_away |= turning.app_is_away;
                }
                // One that has ended is looked after here: nobody needs to end the others for it.
                None if one.how == processes::How::Away => {}
                None => stuck = stuck.or_else(|| Some(format!("process {}", one.process))),
            }
        }
        let mut status = format!("connections: {} of at most {}", sum.websockets, sum.websockets_max);
        let (serving, of) = (self.0.serving(), said.len());
        if serving == of {
            status.push_str(&format!("; processes: {of}"));
        } else {
            status.push_str(&format!("; processes: {serving} of {of} serve"));
        }
        if sum.app_is_away {
            status.push_str("; the app cannot be called");
        }
        if let Some(stuck) = &stuck {
            status.push_str(&format!("; {stuck} does not turn"));
        }
        (stuck, status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_quarter_of_a_minute() {
        let waits: Vec<u128> = (0..10).map(|failures| back_off(failures).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 15_000, 15_000]);
        assert_eq!(back_off(u32::MAX), BACK_OFF_MAX);
    }
}
