//! What a parent leaves to the program that goes on in its process: a row of pieces, each MessagePack with names.
//!
//! The first says which format this is; it changes when an older program could not make sense of what is written. What a newer
//! one adds is optional.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::RawFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::broker::{BrokerPart, LocalBroker};
use crate::config::Config;
use crate::link::local::Unfinished;
use crate::model::Now;
use crate::node::control::GivenControl;
use crate::os::clock;
use crate::os::family::Process;
use crate::os::hand_over::Channel;
use crate::os::renew::{self, Given};

use super::super::all::GivenAll;
use super::super::ports::GivenPorts;
use super::super::relay::{ChildLink, GivenRelay, Relay};
use super::super::{Child, Started, State};

/// Version of the form.
const FORMAT: u16 = 1;

#[derive(Serialize, Deserialize)]
pub enum Piece {
    /// Comes first.
    Begins {
        format: u16,
        /// For people.
        version: String,
        /// In every line of the log.
        node_id: String,
    },
    /// A part of what the broker keeps. A later one holds where two speak of the same.
    Broker(BrokerPart),
    /// Comes last.
    Rest(Box<GivenParent>),
}

/// Everything but what the broker keeps.
#[derive(Serialize, Deserialize)]
pub struct GivenParent {
    pub of: u16,
    pub children: Vec<GivenChild>,
    /// Processes that are no child any more, and have not ended.
    #[serde(default)]
    pub leaving: Vec<u32>,
    pub all: GivenAll,
    pub relay: GivenRelay,
    /// In a trial there are none.
    pub links: Vec<GivenLink>,
    pub ports: GivenPorts,
    pub control: Option<GivenControl>,
    /// What is to go on with the children.
    pub order: Option<GivenOrder>,
}

#[derive(Serialize, Deserialize)]
pub struct GivenChild {
    process: Option<GivenProcess>,
    /// How long it is to be waited until it is started again.
    wait: Option<Duration>,
    failures: u32,
}

#[derive(Serialize, Deserialize)]
struct GivenProcess {
    pid: u32,
    /// When it was started, on the machine's clock.
    since_usec: u64,
    /// In a trial there is none.
    orders: Option<Given>,
}

#[derive(Serialize, Deserialize)]
pub struct GivenLink {
    pub child: u16,
    pub pid: u32,
    /// In the relay.
    pub number: u16,
    pub socket: Given,
    pub unfinished: Unfinished,
}

#[derive(Serialize, Deserialize)]
pub struct GivenOrder {
    /// The connection of whoever waits for its end.
    pub reader: Option<Given>,
}

impl GivenParent {
    /// All descriptors that are in it.
    pub fn descriptors(&self) -> Vec<RawFd> {
        let links = self.links.iter().map(|link| &link.socket);
        let control = self.control.iter().map(|control| &control.listener);
        let reader = self.order.iter().filter_map(|order| order.reader.as_ref());
        let processes = self.children.iter().filter_map(|child| child.process.as_ref());
        let orders = processes.filter_map(|process| process.orders.as_ref());
        let all = links.chain(orders).chain(self.ports.descriptors()).chain(control).chain(reader);
        all.map(Given::number).collect()
    }
}

impl GivenChild {
    /// What is known of it, for a trial.
    pub fn of(child: &Child) -> GivenChild {
        let (process, wait) = match &child.state {
            State::Running(Started { process, since, .. }) => {
                let lived = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
                let since_usec = clock::machine_usec().saturating_sub(lived);
                (Some(GivenProcess { pid: process.pid(), since_usec, orders: None }), None)
            }
            State::Waiting { until } => (None, Some(until.saturating_duration_since(Instant::now()))),
        };
        GivenChild { process, wait, failures: child.failures }
    }

    /// Gives it up.
    pub fn give(child: Child) -> GivenChild {
        let mut given = GivenChild::of(&child);
        if let (Some(process), State::Running(Started { orders, .. })) = (&mut given.process, child.state) {
            process.orders = Some(Given::give(orders));
        }
        given
    }

    /// The same again; `links` are those to processes, by their ids.
    pub fn into_child(self, links: &mut HashMap<u32, ChildLink>) -> io::Result<Child> {
        let GivenChild { process, wait, failures } = self;
        let now = Instant::now();
        let state = match process {
            Some(GivenProcess { pid, since_usec, orders }) => {
                let lived = Duration::from_micros(clock::machine_usec().saturating_sub(since_usec));
                let since = now.checked_sub(lived).unwrap_or(now);
                let orders = orders.ok_or(io::ErrorKind::InvalidData)?.take()?;
                let (process, orders) = (Process::renewed(pid)?, Channel::try_from(orders)?);
                State::Running(Started { process, link: links.remove(&pid), orders, since })
            }
            None => State::Waiting { until: now + wait.unwrap_or_default() },
        };
        Ok(Child { state, failures })
    }
}

/// The pieces on their way out.
pub struct Writing {
    file: BufWriter<File>,
    /// When the first part of the broker was taken.
    pub since: Now,
}

impl Writing {
    pub fn begin(node_id: &str) -> io::Result<Writing> {
        let mut writing = Writing { file: BufWriter::new(renew::state()?), since: Now::default() };
        let (version, node_id) = (env!("CARGO_PKG_VERSION").to_owned(), node_id.to_owned());
        writing.put(&Piece::Begins { format: FORMAT, version, node_id })?;
        Ok(writing)
    }

    pub fn put(&mut self, piece: &Piece) -> io::Result<()> {
        let mut writer = rmp_serde::Serializer::new(&mut self.file).with_struct_map();
        piece.serialize(&mut writer).map_err(io::Error::other)
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.file.get_ref().metadata().map_or(0, |file| file.len())
    }

    /// The whole of it, to be read from its beginning.
    pub fn end(mut self, rest: GivenParent) -> io::Result<(File, GivenParent)> {
        let rest = Piece::Rest(Box::new(rest));
        self.put(&rest)?;
        self.file.flush()?;
        let mut file = self.file.into_inner().map_err(|error| error.into_error())?;
        renew::seal(&mut file)?;
        let Piece::Rest(rest) = rest else { unreachable!("it is made above") };
        Ok((file, *rest))
    }
}

/// The pieces on their way in, behind the first one.
pub struct Renewed {
    reader: rmp_serde::Deserializer<rmp_serde::decode::ReadReader<BufReader<File>>>,
    /// In every line of the log.
    pub node_id: String,
    /// Of the program before.
    pub version: String,
}

impl Renewed {
    /// What the program before has left in this process, if there was one.
    ///
    /// # Errors
    /// It cannot be used.
    pub fn find() -> Result<Option<Renewed>, String> {
        renew::renewed().map_err(|error| error.to_string())?.map(Renewed::of).transpose()
    }

    /// What was written into a file.
    pub(super) fn of(file: File) -> Result<Renewed, String> {
        let mut reader = rmp_serde::Deserializer::new(BufReader::new(file));
        match Piece::deserialize(&mut reader).map_err(unreadable)? {
            Piece::Begins { format: FORMAT, version, node_id } => Ok(Renewed { reader, node_id, version }),
            Piece::Begins { format, version, .. } => Err(format!(
                "the state of the processes has format {format} (cableway {version}), and {FORMAT} is understood here"
            )),
            Piece::Broker(_) | Piece::Rest(_) => Err("the state of the processes has no beginning".to_owned()),
        }
    }

    /// All of it.
    pub(super) fn read(mut self, config: &Config) -> Result<(LocalBroker, GivenParent), String> {
        let broker = Relay::broker(config);
        loop {
            match Piece::deserialize(&mut self.reader).map_err(unreadable)? {
                Piece::Broker(part) => broker.take_over(part),
                Piece::Rest(rest) => return Ok((broker, *rest)),
                Piece::Begins { .. } => return Err("the state of the processes begins twice".to_owned()),
            }
        }
    }
}

fn unreadable(error: rmp_serde::decode::Error) -> String {
    format!("the state of the processes cannot be read: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with these, each as it is written down.
    fn file(pieces: &[Vec<u8>]) -> File {
        let mut file = renew::state().unwrap();
        pieces.iter().for_each(|piece| file.write_all(piece).unwrap());
        renew::seal(&mut file).unwrap();
        file
    }

    fn begins(format: u16) -> Vec<u8> {
        let (version, node_id) = ("9.0.0".to_owned(), "n".to_owned());
        rmp_serde::to_vec_named(&Piece::Begins { format, version, node_id }).unwrap()
    }

    #[test]
    fn what_another_version_has_written_or_what_is_not_whole_is_refused() {
        let why = |pieces: &[Vec<u8>]| {
            let read = Renewed::of(file(pieces)).and_then(|renewed| renewed.read(&Config::default()).map(drop));
            read.expect_err("refused")
        };
        let broker = rmp_serde::to_vec_named(&Piece::Broker(BrokerPart::default())).unwrap();
        let other = why(&[begins(FORMAT + 1)]);
        assert!(other.contains("format 2 (cableway 9.0.0), and 1 is understood here"), "{other}");
        assert!(why(&[]).contains("cannot be read"));
        assert!(why(std::slice::from_ref(&broker)).contains("no beginning"));
        assert!(why(&[begins(FORMAT), broker.clone()]).contains("cannot be read"), "the rest is missing");
        assert!(why(&[begins(FORMAT), begins(FORMAT)]).contains("begins twice"));
        let half = broker[..broker.len() / 2].to_vec();
        assert!(why(&[begins(FORMAT), half]).contains("cannot be read"));
    }

    #[test]
    fn what_a_later_version_adds_is_passed_over() {
        #[derive(Serialize)]
        enum Later<'a> {
            Begins { mood: &'a str, format: u16, version: &'a str, node_id: &'a str },
        }
        let later = Later::Begins { mood: "good", format: FORMAT, version: "9.0.0", node_id: "n" };
        let renewed = Renewed::of(file(&[rmp_serde::to_vec_named(&later).unwrap()])).unwrap();
        assert_eq!((&*renewed.node_id, &*renewed.version), ("n", "9.0.0"));
    }
}
