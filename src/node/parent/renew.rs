//! The parent goes on as another program, of the same or another version, in the same process: its children, its supervisor and
//! whoever knows its process id notice nothing but a pause of the relay.
//!
//! ```text
//! this program                        the other program, in this process
//! trial ------------------------->    (in a process of its own: reads the configuration and a copy of the state, and ends)
//! what is large, while all goes on
//! links, relay and control stop
//! what has changed, and the rest
//! execve ------------------------>    reads the configuration and the state
//!                                     relay, links and control go on
//! ```
//!
//! Everything that can fail is tried before the links stop. If the other program cannot be run after that, this one goes on from
//! the same state in the same way.

mod given;
mod trial;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use crate::config::{Config, Processes};
use crate::link::local::messages::ToParent;
use crate::node::capacity;
use crate::node::control::{self, Control, What};
use crate::node::signals::Signals;
use crate::node::upgrade::UpgradeError;
use crate::os::family::Process;
use crate::os::renew::{self, Given};
use crate::os::{limits, process, signals};

use super::all::{All, Wishes};
use super::ports::Ports;
use super::relay::Relay;
use super::size::Size;
use super::{Child, Event, Parent, ParentError};
use given::{GivenChild, GivenLink, GivenOrder, GivenParent, Piece, Writing};

pub use given::Renewed;
pub use trial::{COMMAND as TRY_RENEWAL_COMMAND, try_renewal};

/// More bytes than that on their way to the children are not carried: they are read in a moment, or their reader is lost.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// Links stop between two messages.
const STOP_MAX: Duration = Duration::from_secs(5);

/// What a program that can go on here is to be run with.
pub(super) struct Renewal {
    pub order: control::Order,
    pub control: Option<Control>,
    pub prepared: Prepared,
}

/// What is large is written down, and it is noted what changes.
pub(super) struct Prepared {
    writing: Writing,
    program: PathBuf,
}

/// An order that the program before has left, or that came to nothing.
pub(super) struct LeftOrder {
    /// The connection of whoever waits for its end.
    pub reader: Option<OwnedFd>,
    pub failed: Option<String>,
}

impl Parent {
    /// Somebody wants this server to be upgraded, or to know whether it could be.
    pub(super) fn ordered(&mut self, order: control::Order, signals: &mut Signals) -> Option<Renewal> {
        tracing::info!("upgrade: trying the program anew");
        let tried = self.try_renewal();
        let prepared = match (tried, order.what) {
            (Ok(_), What::Check) => {
                self.upgrade_children(order);
                return None;
            }
            (Ok(_), What::Upgrade) => self.prepare_renewal(),
            (Err(why), _) => Err(why),
        };
        let what = order.what;
        let why = match prepared {
            Ok(prepared) if self.is_quiet(signals) => {
                let control = signals.take_control().and_then(|control| self.runtime.block_on(control.stop()));
                return Some(Renewal { order, control, prepared });
            }
            Ok(_) => {
                self.relay.forget_changes();
                UpgradeError::Refused("the server is shutting down".to_owned())
            }
            Err(why) => why,
        };
        if what == What::Upgrade {
            self.all.upgrades.note(&why);
        }
        tracing::error!("upgrade: nothing has changed, this process goes on: {why}");
        self.runtime.block_on(order.reader.end(Err(why.to_string())));
        None
    }

    /// Keeps signals waiting until another program listens for them. Tells whether none to end has come before.
    fn is_quiet(&self, signals: &mut Signals) -> bool {
        signals::block();
        let is_quiet = self.runtime.block_on(async {
            // The only other thread that takes any. It cannot panic.
            let _ = tokio::spawn(async { signals::block() }).await;
            signals.none_has_ended().await
        });
        if !is_quiet {
            // The end is listened for as before.
            let _ = self.runtime.block_on(async { tokio::spawn(async { signals::unblock() }).await });
            signals::unblock();
        }
        is_quiet
    }

    /// Ends what the program before has begun, or goes on with it.
    pub(super) fn go_on_with(&mut self, left: LeftOrder, claim: Option<control::Claim>) -> Result<(), ParentError> {
        let LeftOrder { reader, failed } = left;
        let reader = {
            let _runtime = self.runtime.enter();
            match reader {
                Some(socket) => control::Reader::at(socket, claim)?,
                None => control::Reader::nobody(claim),
            }
        };
        match failed {
            Some(why) => self.runtime.block_on(reader.end(Err(why))),
            None => self.upgrade_children(control::Order { what: What::Upgrade, reader }),
        }
        Ok(())
    }

    /// Tries whether the program that lies where this one did can go on in this process; gives its version.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn try_renewal(&self) -> Result<String, UpgradeError> {
        let refused = |why: &str| Err(UpgradeError::Refused(format!("{why}; try again")));
        if !self.is_up {
            return refused("not all processes have served yet");
        }
        let program = self.new_program()?;
        let state = self.trial_state();
        // It was noted what changes.
        self.relay.forget_changes();
        let version = trial::run(program, state.map_err(UpgradeError::old)?, self.config.app.upgrade_timeout)?;
        if self.relay.is_changing() {
            return refused("one process is just taking over from another one");
        }
        let (bytes, _) = self.relay.waiting();
        if bytes > WAITING_BYTES_MAX {
            return refused(&format!("{bytes} bytes wait to be read by the processes, which is too much"));
        }
        tracing::info!("upgrade: cableway {version} at {} can go on in this process", program.display());
        Ok(version)
    }

    /// Writes down what is large, while everything goes on.
    ///
    /// # Errors
    /// There is no room for it.
    pub(super) fn prepare_renewal(&self) -> Result<Prepared, UpgradeError> {
        let program = self.new_program()?.clone();
        let mut writing = Writing::begin(&self.node_id).map_err(UpgradeError::old)?;
        writing.since = self.relay.now();
        let written = self.relay.snapshot().try_for_each(|part| writing.put(&Piece::Broker(part)));
        written.inspect_err(|_| self.relay.forget_changes()).map_err(UpgradeError::old)?;
        Ok(Prepared { writing, program })
    }

    fn new_program(&self) -> Result<&PathBuf, UpgradeError> {
        let unknown = |error| UpgradeError::Refused(format!("where the program is cannot be told: {error}"));
        self.program.as_ref().map_err(unknown)
    }

    /// As it is now, with nothing that belongs to this process.
    fn trial_state(&self) -> io::Result<File> {
        let mut writing = Writing::begin(&self.node_id)?;
        for part in self.relay.snapshot() {
            writing.put(&Piece::Broker(part))?;
            if writing.bytes() > trial::BROKER_BYTES {
                break;
            }
        }
        let rest = GivenParent {
            of: self.size.of,
            children: self.children.iter().map(GivenChild::of).collect(),
            leaving: Vec::new(),
            all: self.all.export(),
            relay: self.relay.export(),
            links: Vec::new(),
            ports: self.ports.places(),
            control: None,
            order: None,
        };
        Ok(writing.end(rest)?.0)
    }

    /// Runs the other program. Comes back with a parent only if that is not possible, and then that goes on with everything.
    ///
    /// # Errors
    /// Neither can go on.
    pub(super) fn renew(self, renewal: Renewal, flush: &impl Fn()) -> Result<Parent, ParentError> {
        let Renewal { order, control, prepared: Prepared { mut writing, program } } = renewal;
        let (config, began) = (Arc::clone(&self.config), Instant::now());
        let rest = self.stop(order, control, &mut writing)?;
        let numbers = rest.descriptors();
        let (mut state, _) = writing.end(rest)?;
        let (took, bytes) = (began.elapsed(), state.metadata()?.len());
        tracing::info!(?took, bytes, "upgrade: everything stands still; running {}", program.display());
        flush();
        let error = renew::renew(&program, &state, &numbers);
        tracing::error!(%error, "upgrade: {} cannot be run; this program goes on", program.display());
        state.rewind()?;
        let renewed = Renewed::of(state).map_err(ParentError::State)?;
        let mut parent = Parent::go_on(Config::clone(&config), renewed)?;
        let why = UpgradeError::New(format!("{}: {error}", program.display()));
        parent.all.upgrades.note(&why);
        if let Some(order) = &mut parent.left_order {
            order.failed = Some(why.to_string());
        }
        Ok(parent)
    }

    /// Stops everything and gives it up.
    fn stop(
        mut self,
        order: control::Order,
        control: Option<Control>,
        writing: &mut Writing,
    ) -> Result<GivenParent, ParentError> {
        let handle = self.runtime.handle().clone();
        // First: whoever reads slowly is waited for.
        let reader = handle.block_on(order.reader.hand_on());
        let links = handle.block_on(async {
            for task in std::mem::take(&mut self.tasks) {
                task.abort();
                // That is how it ends.
                let _ = task.await;
            }
            self.stop_links().await
        })?;
        writing.put(&Piece::Broker(self.relay.changes(writing.since)))?;
        let option = self.config.app.control_socket.clone();
        let control = control.map(|control| control.give(option.as_deref(), self.ports.main())).transpose()?;
        let rest = GivenParent {
            of: self.size.of,
            children: self.children.into_iter().map(GivenChild::give).collect(),
            leaving: self.leaving.iter().map(Process::pid).collect(),
            all: self.all.export(),
            relay: self.relay.export(),
            links,
            ports: self.ports.give(),
            control,
            order: Some(GivenOrder { reader: reader.map(Given::give) }),
        };
        self.runtime.shutdown_timeout(STOP_MAX);
        Ok(rest)
    }

    /// Stops all links. Those that are lost meanwhile are left out; what else happened is carried out.
    async fn stop_links(&mut self) -> Result<Vec<GivenLink>, ParentError> {
        self.relay.stop();
        let mut stopped = Vec::new();
        while stopped.len() < self.relay.waiting().1 {
            let event = timeout(STOP_MAX, self.happened.recv()).await.ok().flatten();
            match event.ok_or_else(|| io::Error::other("a link to a process does not stop"))? {
                Event::LinkStopped { child, pid, number, link } => stopped.push((child, pid, number, link)),
                other => self.happened_before(other),
            }
        }
        while let Some(event) = self.put_off.pop_front().or_else(|| self.happened.try_recv().ok()) {
            self.happened_before(event);
        }
        // Not before all have stopped: what one child says may be for another one.
        let links = stopped.into_iter().map(|(child, pid, number, link)| {
            let (socket, unfinished) = link.finish::<ToParent>();
            GivenLink { child, pid, number, socket: Given::give(socket), unfinished }
        });
        Ok(links.collect())
    }

    fn happened_before(&mut self, event: Event) {
        match event {
            Event::Serves { child, pid } => _ = self.serves(child, pid),
            Event::LinkLost { child, pid, why } => self.link_lost(child, pid, &why),
            Event::Hangs { .. } | Event::LinkStopped { .. } => {}
        }
    }

    /// Goes on with what the program before has left, under this configuration.
    ///
    /// # Errors
    /// Something of it cannot be used.
    pub fn go_on(config: Config, renewed: Renewed) -> Result<Parent, ParentError> {
        let began = Instant::now();
        let (node_id, version) = (renewed.node_id.clone(), renewed.version.clone());
        let (broker, given) = renewed.read(&config).map_err(ParentError::State)?;
        let GivenParent { of, children, leaving, all, relay, links, ports, control, order } = given;
        let program = process::program();
        let ports = Ports::renewed(&config, ports)?;
        let runtime = super::runtime()?;
        let (mut sockets, mut whose) = (HashMap::new(), HashMap::new());
        for GivenLink { child, pid, number, socket, unfinished } in links {
            sockets.insert(number, (UnixStream::from(socket.take()?), unfinished));
            whose.insert(number, (child, pid));
        }
        let (relay, stopped) = Relay::import(&config, broker, relay, sockets).map_err(ParentError::State)?;
        let tags = config.metrics.tags.0.clone();
        let all = Arc::new(All::import(all, Arc::clone(&relay), tags, config.server.max_conn));
        let (events, happened) = mpsc::unbounded_channel();
        let mut by_pid = HashMap::new();
        for link in stopped {
            let Some(&(child, pid)) = whose.get(&link.number()) else { continue };
            let wishes = Wishes::new(child, pid, Arc::clone(&all), events.clone());
            let _runtime = runtime.enter();
            let (link, life) = relay.go_on(link, Arc::new(wishes));
            super::keep_alive(&runtime, (child, pid, link.number()), life, &events);
            all.has_link(child, pid, link.clone());
            by_pid.insert(pid, link);
        }
        let took = began.elapsed();
        // The relay goes on; looking at the machine takes its time.
        let (cores, size) = sized(&config, of)?;
        let children = children.into_iter().map(|child| child.into_child(&mut by_pid));
        let children = children.collect::<io::Result<Vec<Child>>>()?;
        let leaving = leaving.into_iter().map(Process::renewed).collect::<io::Result<Vec<Process>>>()?;
        let option = config.app.control_socket.as_deref();
        let control = match control {
            Some(given) => Control::renewed(given, option, ports.main())?,
            None => None,
        };
        let reader = order.and_then(|order| order.reader).map(Given::take).transpose()?;
        tracing::info!(
            ?took,
            "upgrade: cableway {} goes on as the parent of {of} processes, after cableway {version}",
            env!("CARGO_PKG_VERSION")
        );
        Ok(Parent {
            config: Arc::new(config),
            cores,
            size,
            ports,
            node_id,
            relay,
            all,
            children,
            leaving,
            upgrading: None,
            is_up: true,
            events,
            happened,
            put_off: VecDeque::new(),
            control,
            program,
            tasks: Vec::new(),
            left_order: Some(LeftOrder { reader, failed: None }),
            runtime,
        })
    }
}

/// What a configuration comes to for as many processes as there are.
fn sized(config: &Config, of: u16) -> Result<(usize, Size), ParentError> {
    let open_files = limits::raise_open_files()?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if let Processes::Count(wanted) = config.server.processes
        && wanted != of
    {
        tracing::warn!("--processes {wanted} needs a restart: there are {of}");
    }
    let mut of_all = config.clone();
    of_all.server.processes = Processes::Count(of);
    let size = Size::find(&of_all, &capacity::facts(open_files), cores);
    size.check()?;
    Ok((cores, size))
}
