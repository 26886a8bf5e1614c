//! The control socket: where the user of the server, and root, ask it to hand over to a new process, and what it does.
//!
//! Everything here runs beside ordinary HTTP. What changes the node is an [`Order`] for the thread that waits for signals, one
//! at a time; whoever asks meanwhile is told so.

pub mod place;
pub mod talk;

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::metrics;
use crate::os::control_socket::{self, ControlSocket};
use crate::os::renew::Given;

use super::{StartError, Understood, Upgraded};
use talk::{Done, Line, REQUEST_BYTES_MAX, Request, Status};

/// Connections that are served at a time; others are told to come back.
const CONNECTIONS_MAX: usize = 8;

/// Time for a request to come, and for each line to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Wait after the socket could not be accepted from: descriptors may be short.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

metrics! {
    /// What happened at the control socket.
    pub struct ControlMetrics {
        /// Requests at the control socket that were understood.
        control_requests_total: Counter,
        /// Connections to the control socket that were refused: another user, or no request.
        control_refused_total: Counter,
    }
}

/// A control socket on which nobody answers yet.
pub(super) struct Control {
    socket: ControlSocket,
}

/// The same on its way to another program.
#[derive(Serialize, Deserialize)]
pub(super) struct GivenControl {
    option: Option<String>,
    port: u16,
    path: PathBuf,
    pub listener: Given,
}

impl Control {
    /// Opens the socket that the configuration asks for, for a server on this port. One that was asked for by name and cannot
    /// be opened ends the start; without a name it is only worth a warning.
    pub fn open(option: Option<&str>, port: u16, predecessor: Option<u32>) -> Result<Option<Control>, StartError> {
        match place::open(option, port, predecessor) {
            Ok(socket) => Ok(socket.map(|socket| Control { socket })),
            Err(error) if place::is_named(option) => Err(StartError::Setting(format!("--control-socket: {error}"))),
            Err(error) => {
                tracing::warn!(%error, "there is no control socket; SIGUSR2 upgrades this server all the same");
                Ok(None)
            }
        }
    }

    /// The one that this process has opened before it ran this program. For a configuration with another place it is opened
    /// there, and this one goes; if that cannot be, it stays.
    pub fn renewed(given: GivenControl, option: Option<&str>, port: u16) -> io::Result<Option<Control>> {
        let socket = ControlSocket::renewed(given.listener.take()?, &given.path)?;
        let control = Control { socket };
        if (given.option.as_deref(), given.port) == (option, port) {
            return Ok(Some(control));
        }
        Ok(Control::open(option, port, Some(std::process::id())).unwrap_or_else(|error| {
            tracing::warn!(%error, "the control socket stays at {}", control.path().display());
            Some(control)
        }))
    }

    /// Gives it up to the program that this process is about to run. `option` and `port` are what it was opened for.
    pub fn give(self, option: Option<&str>, port: u16) -> io::Result<GivenControl> {
        let given = GivenControl {
            option: option.map(str::to_owned),
            port,
            path: self.path().to_owned(),
            listener: Given::give(self.socket.descriptor()?),
        };
        self.socket.leave();
        Ok(given)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Answers until the value is dropped. Needs a runtime.
    pub fn serve(
        self,
        runtime: &Handle,
        metrics: Arc<ControlMetrics>,
        status: impl Fn() -> Status + Send + Sync + 'static,
    ) -> io::Result<RunningControl> {
        let ControlSocket { listener, .. } = &self.socket;
        let listener = {
            let _runtime = runtime.enter();
            UnixListener::from_std(listener.try_clone()?)?
        };
        let (orders, next_order) = mpsc::channel(1);
        let busy = Arc::new(AtomicBool::new(false));
        let desk = Desk { metrics, status: Box::new(status), orders, busy: Arc::clone(&busy) };
        let task = runtime.spawn(accept(listener, Arc::new(desk)));
        Ok(RunningControl { orders: next_order, busy, task: Some(task), socket: Some(self.socket) })
    }
}

/// A control socket that answers. Dropping it ends that and removes the file; answers that are being written are finished.
pub(super) struct RunningControl {
    orders: mpsc::Receiver<Order>,
    busy: Arc<AtomicBool>,
    task: Option<tokio::task::JoinHandle<()>>,
    /// Until it is stopped.
    socket: Option<ControlSocket>,
}

impl RunningControl {
    /// Claims the node for an order that came another way; `None`: it has one.
    pub fn claim(&self) -> Option<Claim> {
        Claim::of(&self.busy)
    }

    /// Nobody is accepted any more.
    pub async fn stop(mut self) -> Option<Control> {
        if let Some(task) = self.task.take() {
            task.abort();
            // That is how it ends.
            let _ = task.await;
        }
        self.socket.take().map(|socket| Control { socket })
    }

    /// Waits for the next order.
    pub async fn next(&mut self) -> Order {
        match self.orders.recv().await {
            Some(order) => order,
            None => pending().await,
        }
    }
}

impl Drop for RunningControl {
    fn drop(&mut self) {
        self.task.take().inspect(|task| task.abort());
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Hand everything over to a new process.
    Upgrade,
    /// See whether that would go.
    Check,
}

/// Something for the thread that runs the node.
pub(super) struct Order {
    pub what: What,
    pub reader: Reader,
}

/// The right to give the node an order, until it is dropped.
pub(super) struct Claim(Arc<AtomicBool>);

impl Claim {
    fn of(busy: &Arc<AtomicBool>) -> Option<Claim> {
        (!busy.swap(true, SeqCst)).then(|| Claim(Arc::clone(busy)))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

/// Whoever reads what becomes of an order. Nobody, if a signal gave it.
#[derive(Default)]
pub(super) struct Reader {
    lines: Option<mpsc::UnboundedSender<ToReader>>,
    written: Option<oneshot::Receiver<()>>,
    claim: Option<Claim>,
    /// One more handle of the connection.
    socket: Option<OwnedFd>,
}

/// What the task is told that has the connection.
enum ToReader {
    Write(Line),
    /// Somebody else writes the rest.
    HandOn,
}

impl Reader {
    /// Nobody, with a claim.
    pub fn nobody(claim: Option<Claim>) -> Reader {
        Reader { claim, ..Reader::default() }
    }

    /// Tells what happens.
    pub fn tell(&self, text: impl Into<String>) {
        if let Some(lines) = &self.lines {
            // Whoever has gone does not want to know.
            let _ = lines.send(ToReader::Write(Line::Progress(text.into())));
        }
    }

    /// Gives the connection up, with everything written that was told; `None`: there is none.
    pub async fn hand_on(mut self) -> Option<OwnedFd> {
        if let Some(lines) = self.lines.take() {
            let _ = lines.send(ToReader::HandOn);
        }
        if let Some(written) = self.written.take() {
            let _ = timeout(PATIENCE, written).await;
        }
        self.socket.take()
    }

    /// Whoever waits at such a connection. Needs a runtime.
    pub fn at(socket: OwnedFd, claim: Option<Claim>) -> io::Result<Reader> {
        let stream = std::os::unix::net::UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        let mut stream = BufReader::new(UnixStream::from_std(stream)?);
        let (lines, to_write) = mpsc::unbounded_channel();
        let (written, is_written) = oneshot::channel::<()>();
        tokio::spawn(async move {
            pass_on(&mut stream, to_write, true).await;
            drop(written);
        });
        Ok(Reader { lines: Some(lines), written: Some(is_written), claim, socket: None })
    }

    /// Tells how it ended, and waits until that has been taken, for a while.
    pub async fn end(mut self, result: Result<Done, String>) {
        // Whoever reads it may ask again at once.
        drop(self.claim.take());
        if let Some(lines) = self.lines.take() {
            let _ = lines.send(ToReader::Write(result.map_or_else(Line::Error, Line::Done)));
        }
        if let Some(written) = self.written.take() {
            let _ = timeout(PATIENCE, written).await;
        }
    }
}

impl From<Upgraded> for Done {
    fn from(upgraded: Upgraded) -> Done {
        let Upgraded { pid, version, connections, pause, took, .. } = upgraded;
        Done {
            text: format!(
                "cableway {version} (pid {pid}) has {connections} connections now; it took {took:.1?}, of which clients waited \
                 {pause:.1?} at most"
            ),
            pid: Some(pid),
        }
    }
}

impl From<Understood> for Done {
    fn from(understood: Understood) -> Done {
        let Understood { old_version, new_version, program } = understood;
        Done {
            text: format!(
                "cableway {new_version} at {} starts, takes the configuration and understands what cableway {old_version} \
                 would hand over",
                program.display()
            ),
            pid: None,
        }
    }
}

/// What all connections need.
struct Desk {
    metrics: Arc<ControlMetrics>,
    status: Box<dyn Fn() -> Status + Send + Sync>,
    orders: mpsc::Sender<Order>,
    /// Whether an order is being carried out.
    busy: Arc<AtomicBool>,
}

async fn accept(listener: UnixListener, desk: Arc<Desk>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (desk, seat) = (Arc::clone(&desk), Arc::clone(&seats).try_acquire_owned());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    match seat {
                        Ok(_seat) => serve(&desk, &mut stream).await,
                        Err(_) => refuse(&desk, &mut stream, "too many connections here; try again").await,
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot be accepted from");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

async fn serve(desk: &Desk, stream: &mut BufReader<UnixStream>) {
    let own = control_socket::own_uid();
    match control_socket::peer(stream.get_ref()) {
        Ok(peer) if peer.uid == own || peer.uid == 0 => {}
        Ok(peer) => {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "another user was refused at the control socket");
            let why =
                format!("this socket is for user {own}, who runs the server, and for root; you are user {}", peer.uid);
            return refuse(desk, stream, &why).await;
        }
        Err(error) => return refuse(desk, stream, &format!("who you are cannot be told: {error}")).await,
    }
    let request = match timeout(PATIENCE, read(stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(why)) => return refuse(desk, stream, &why).await,
        Err(_) => return refuse(desk, stream, "no request came").await,
    };
    desk.metrics.control_requests_total.add(1);
    match request {
        Request::Status {} => {
            let status = Status { upgrading: desk.busy.load(SeqCst), ..(desk.status)() };
            write(stream, &Line::Status(status)).await;
        }
        Request::Upgrade { check } => order(desk, stream, if check { What::Check } else { What::Upgrade }).await,
    }
}

/// Reads the request, or says what is wrong with it.
async fn read(stream: &mut BufReader<UnixStream>) -> Result<Request, String> {
    let mut line = Vec::new();
    let read = stream.take(REQUEST_BYTES_MAX).read_until(b'\n', &mut line).await;
    read.map_err(|error| error.to_string())?;
    if line.pop() != Some(b'\n') {
        return Err(format!("a request is one line of at most {REQUEST_BYTES_MAX} bytes"));
    }
    serde_json::from_slice(&line).map_err(|error| format!("this server does not understand the request: {error}"))
}

/// Passes an order on, and what becomes of it back.
async fn order(desk: &Desk, stream: &mut BufReader<UnixStream>, what: What) {
    let Some(claim) = Claim::of(&desk.busy) else {
        write(stream, &Line::Error("an upgrade runs already".to_owned())).await;
        return;
    };
    let (lines, to_write) = mpsc::unbounded_channel();
    let (written, is_written) = oneshot::channel::<()>();
    let socket = stream.get_ref().as_fd().try_clone_to_owned().ok();
    let reader = Reader { lines: Some(lines), written: Some(is_written), claim: Some(claim), socket };
    let is_read = desk.orders.try_send(Order { what, reader }).is_ok();
    pass_on(stream, to_write, is_read).await;
    drop(written);
}

/// Writes what becomes of an order.
async fn pass_on(
    stream: &mut BufReader<UnixStream>,
    mut to_write: mpsc::UnboundedReceiver<ToReader>,
    mut is_read: bool,
) {
    let mut is_answered = false;
    // To the end, also without a reader: whoever carries it out waits for that.
    while let Some(told) = to_write.recv().await {
        let ToReader::Write(line) = told else { return };
        is_answered |= !matches!(line, Line::Progress(_));
        is_read = is_read && write(stream, &line).await;
    }
    if !is_answered {
        write(stream, &Line::Error("the server is ending".to_owned())).await;
    }
}

async fn refuse(desk: &Desk, stream: &mut BufReader<UnixStream>, why: &str) {
    desk.metrics.control_refused_total.add(1);
    write(stream, &Line::Error(why.to_owned())).await;
}

/// Whether the other end has taken it.
async fn write(stream: &mut BufReader<UnixStream>, line: &Line) -> bool {
    // Texts and numbers always make JSON.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    matches!(timeout(PATIENCE, stream.get_mut().write_all(&text)).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read, Write};
    use std::os::unix::net::UnixStream as Stream;

    use super::*;

    /// A control socket that answers, in a folder of its own.
    fn served(runtime: &tokio::runtime::Runtime) -> (tempfile::TempDir, RunningControl, Arc<ControlMetrics>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let control = Control::open(path.to_str(), 0, None).unwrap().expect("on");
        let metrics = Arc::new(ControlMetrics::default());
        let status = || Status { clients: 7, ..Status::default() };
        let running = control.serve(runtime.handle(), Arc::clone(&metrics), status).unwrap();
        (folder, running, metrics)
    }

    fn connect(folder: &tempfile::TempDir) -> std::io::BufReader<Stream> {
        std::io::BufReader::new(Stream::connect(folder.path().join("control.sock")).unwrap())
    }

    fn asked(folder: &tempfile::TempDir, request: &str) -> std::io::BufReader<Stream> {
        let mut stream = connect(folder);
        stream.get_mut().write_all(request.as_bytes()).unwrap();
        stream
    }

    fn line(stream: &mut impl BufRead) -> Line {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn error(stream: &mut impl BufRead) -> String {
        match line(stream) {
            Line::Error(why) => why,
            other => panic!("{other:?}"),
        }
    }

    const UPGRADE: &str = "{\"command\":\"upgrade\"}\n";

    #[test]
    fn one_order_at_a_time_is_passed_on_and_its_end_is_told() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (folder, mut running, metrics) = served(&runtime);
        let mut first = asked(&folder, UPGRADE);
        let order = runtime.block_on(running.next());
        assert_eq!(order.what, What::Upgrade);
        assert!(running.claim().is_none(), "a signal is told, too");
        assert!(error(&mut asked(&folder, UPGRADE)).contains("runs already"));
        let Line::Status(status) = line(&mut asked(&folder, "{\"command\":\"status\"}\n")) else { panic!("no status") };
        assert_eq!((status.clients, status.upgrading), (7, true));
        order.reader.tell("half");
        let done = Done { text: "whole".into(), pid: Some(1) };
        runtime.block_on(order.reader.end(Ok(done.clone())));
        assert_eq!((line(&mut first), line(&mut first)), (Line::Progress("half".into()), Line::Done(done)));
        assert_eq!(first.read(&mut [0]).unwrap(), 0, "and that is all");

        // The next one, whose reader has gone: it is carried out all the same.
        drop(asked(&folder, "{\"command\":\"upgrade\",\"check\":true}\n"));
        let order = runtime.block_on(running.next());
        assert_eq!(order.what, What::Check);
        runtime.block_on(order.reader.end(Err("no".into())));
        drop(running.claim().expect("free again"));
        assert_eq!(metrics.control_requests_total.get(), 4);
        let path = folder.path().join("control.sock");
        drop(running);
        assert!(!path.exists());
    }

    #[test]
    fn an_order_that_nobody_carries_out_is_answered() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (folder, mut running, _) = served(&runtime);
        let mut stream = asked(&folder, UPGRADE);
        drop(runtime.block_on(running.next()));
        assert!(error(&mut stream).contains("ending"));
    }

    #[test]
    fn what_is_no_request_is_refused_and_counted() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (folder, _running, metrics) = served(&runtime);
        for (request, part) in [
            ("{}\n".to_owned(), "does not understand"),
            ("{\"command\":\"stop\"}\n".to_owned(), "does not understand"),
            ("x".repeat(REQUEST_BYTES_MAX as usize), "one line of at most"),
        ] {
            let why = error(&mut asked(&folder, &request));
            assert!(why.contains(part), "{why}");
        }
        let mut half = asked(&folder, "{");
        half.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
        assert!(error(&mut half).contains("one line"));
        let silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect(&folder)).collect();
        assert!(error(&mut connect(&folder)).contains("too many"));
        assert_eq!(metrics.control_refused_total.get(), 5);
        drop(silent);
    }
}
