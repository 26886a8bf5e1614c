//! An upgrade of all children, one after the other: for each of them a new process is started, which takes over from the old one
//! as it would without a parent. The parent waits for one of them at a time; between two it does whatever else there is to do.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use crate::node::control::{self, What, talk};
use crate::node::processes::{Order, Succeeded};
use crate::os::hand_over::Channel;

use super::relay::ChildLink;
use super::{Event, Parent, Started, State, THIS_PROGRAM};

/// What two processes may take for everything beside their waits for each other, which are bounded by `--upgrade-timeout` each.
const BESIDE_WAITS: Duration = Duration::from_secs(60);

/// Waits for each other in one hand-over.
const WAITS: u32 = 3;

/// How long a process that was given up is waited for, and one that has lost its old process to say that it serves.
const AFTER_END: Duration = Duration::from_secs(10);

/// What is under way.
pub(super) struct Upgrading {
    order: control::Order,
    /// The child whose turn it is.
    next: u16,
    done: Vec<Succeeded>,
    began: Instant,
}

impl Parent {
    /// Begins to upgrade all children, or to see whether one could be.
    pub(super) fn upgrade_children(&mut self, order: control::Order) {
        if let What::Upgrade = order.what {
            tracing::info!("upgrade: {} processes, one after the other", self.size.of);
        }
        self.upgrading = Some(Upgrading { order, next: 0, done: Vec::new(), began: Instant::now() });
    }

    /// Upgrades the next child, and tells how it ended when that was the last. Tells whether it is over.
    pub(super) fn upgrade_next(&mut self) -> bool {
        let Some(mut upgrading) = self.upgrading.take() else { return true };
        let (child, only_checks) = (upgrading.next, upgrading.order.what == What::Check);
        match self.upgrade_child(child, only_checks) {
            Ok(succeeded) => {
                if let Some(Succeeded { version, connections, pause, .. }) = succeeded.as_ref().filter(|_| !only_checks)
                {
                    upgrading.order.reader.tell(format!(
                        "process {child}: cableway {version} has {connections} connections now; clients waited {pause:.1?} at \
                         most"
                    ));
                }
                upgrading.done.extend(succeeded);
                upgrading.next += 1;
                if upgrading.next < self.size.of && !only_checks {
                    self.upgrading = Some(upgrading);
                    return false;
                }
                self.end_upgrade(upgrading, Ok(()));
            }
            Err(why) => self.end_upgrade(upgrading, Err(format!("process {child}: {why}"))),
        }
        true
    }

    fn end_upgrade(&mut self, upgrading: Upgrading, result: Result<(), String>) {
        let Upgrading { order, next, done, began } = upgrading;
        let only_checks = order.what == What::Check;
        let result = match result {
            Ok(()) => Ok(told(&done, began.elapsed(), only_checks)),
            Err(why) if next == 0 || only_checks => Err(why),
            Err(why) => Err(format!(
                "{why}; {next} of {} processes are upgraded, and the others go on as they were",
                self.size.of
            )),
        };
        match &result {
            Ok(talk::Done { text, .. }) => tracing::info!("upgrade: {text}"),
            Err(why) => tracing::error!("upgrade: {why}"),
        }
        self.runtime.block_on(async {
            // Whoever asks next is told how many clients there are now.
            self.all.look().await;
            order.reader.end(result).await;
        });
    }

    /// Starts a process that takes over from a child, and waits until it has. Nothing if there is none to take over from, since
    /// that is being started again, which starts the new program.
    fn upgrade_child(&mut self, child: u16, only_checks: bool) -> Result<Option<Succeeded>, String> {
        let Some(State::Running(old)) = self.children.get(usize::from(child)).map(|child| &child.state) else {
            return Ok(None);
        };
        let Some(link) = old.link.clone().filter(|_| self.all.pid(child).is_some()) else {
            return Err("it does not serve; try again".to_owned());
        };
        // What is tried lies where this program did; what serves is the child of this program.
        let program = match (&self.program, only_checks) {
            (Ok(program), true) => program,
            (Err(error), true) => return Err(format!("where the program is cannot be told: {error}")),
            (_, false) => Path::new(THIS_PROGRAM),
        };
        let (to_new, to_old) = Channel::pair().map_err(cannot_start)?;
        let (new, new_link) = self.start_process(child, program, Some(to_old)).map_err(cannot_start)?;
        self.relay.will_succeed(&link, &new_link);
        let sent =
            new.process.descriptor().and_then(|process| old.orders.send(b"", &[to_new.as_fd(), process.as_fd()]));
        drop(to_new);
        let answer = match sent {
            Ok(()) => self.wait_for_upgrade(child, link, &new, only_checks),
            Err(error) => Err(cannot_start(error)),
        };
        match answer {
            Ok(succeeded) if !only_checks => {
                self.succeeded(child, new, new_link);
                Ok(Some(succeeded))
            }
            answer => {
                // It has ended by itself, or hangs.
                new.process.kill();
                self.leaving.push(new.process);
                answer.map(Some)
            }
        }
    }

    /// The old process says what becomes of it; or the new one, when the old one is lost.
    fn wait_for_upgrade(
        &mut self,
        child: u16,
        old: ChildLink,
        new: &Started,
        only_checks: bool,
    ) -> Result<Succeeded, String> {
        let patience = self.config.app.upgrade_timeout * WAITS + BESIDE_WAITS;
        let order = Order::Upgrade { only_checks };
        let answer = old.request_order(&order);
        let answer = self.runtime.block_on(async {
            tokio::pin!(answer);
            match timeout(patience, &mut answer).await {
                Ok(answer) => Some(answer),
                Err(_) => {
                    // The old one is told by its end.
                    new.process.kill();
                    timeout(AFTER_END, &mut answer).await.ok()
                }
            }
        });
        match answer {
            Some(Ok(answer)) => rmp_serde::from_slice::<Result<Succeeded, String>>(&answer)
                .unwrap_or_else(|error| Err(format!("what it says cannot be read: {error}"))),
            Some(Err(_)) if !only_checks && self.serves_alone(new) => {
                tracing::error!(
                    "process {child}: the old process has ended during its upgrade, and the new one serves"
                );
                Ok(Succeeded { version: env!("CARGO_PKG_VERSION").to_owned(), ..Succeeded::default() })
            }
            Some(Err(_)) => Err("it has ended".to_owned()),
            None => Err("it does not say what has become of it".to_owned()),
        }
    }

    /// Waits until a new process whose old one is lost serves; what else happens is for later.
    fn serves_alone(&mut self, new: &Started) -> bool {
        let deadline = Instant::now() + AFTER_END;
        loop {
            let next = self.runtime.block_on(async { timeout_at(deadline, self.happened.recv()).await });
            match next {
                Ok(Some(Event::Serves { pid, .. })) if pid == new.process.pid() => return true,
                Ok(Some(Event::LinkLost { pid, .. })) if pid == new.process.pid() => return false,
                Ok(Some(event)) => self.put_off.push_back(event),
                Ok(None) | Err(_) => return false,
            }
        }
    }

    /// A new process is the child from now on.
    fn succeeded(&mut self, child: u16, new: Started, link: ChildLink) {
        let pid = new.process.pid();
        self.all.succeeded(child, pid, link);
        let state = std::mem::replace(&mut self.children[usize::from(child)].state, State::Running(new));
        if let State::Running(old) = state {
            // It finishes what it has begun.
            self.leaving.push(old.process);
        }
        self.runtime.block_on(self.all.give_room(child));
        tracing::info!("process {child} (pid {pid}) has taken over");
    }
}

fn cannot_start(error: io::Error) -> String {
    format!("a process to take over cannot be started: {error}")
}

/// What is told of all.
fn told(done: &[Succeeded], took: Duration, only_checks: bool) -> talk::Done {
    let version = done.last().map_or("", |last| &*last.version);
    let text = if only_checks {
        format!(
            "cableway {version} starts, takes the configuration and understands what cableway {} would hand over",
            env!("CARGO_PKG_VERSION")
        )
    } else {
        let connections: usize = done.iter().map(|one| one.connections).sum();
        let pause = done.iter().map(|one| one.pause).max().unwrap_or_default();
        format!(
            "cableway {version} in {} processes has {connections} connections now; it took {took:.1?}, of which clients waited \
             {pause:.1?} at most",
            done.len()
        )
    };
    talk::Done { text, pid: (!only_checks).then(std::process::id) }
}
