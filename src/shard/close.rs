//! How a connection ends. Every way out leads through [`Shard::close`] (we say something last) or
//! [`Shard::gone`] (there is nobody to say it to), and each counts one cause.

use std::io::{self, ErrorKind};

use crate::model::{CloseCause, Ending, Reply};
use crate::proto::frame::Violation;

use super::frame::Frame;
use super::slots::{Stage, flag};
use super::{LINGER, Machine, Services, Shard};

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Ends a connection in good order, with the close frame of the cause.
    pub(super) fn close(&mut self, index: u32, cause: CloseCause) {
        let Ending::Close { code, reason, .. } = cause.ending() else { return self.gone(index, cause) };
        let last = self.close_frame(index, Some(code), reason);
        self.close_with(index, last, cause, Some(code));
    }

    /// Ends a connection whose client broke a rule of its carrier.
    pub(super) fn violated(&mut self, index: u32, violation: Violation) {
        self.log(index, || format!("client broke a rule: {violation}"));
        let last = self.close_frame(index, Some(violation.close_code()), violation.reason());
        self.close_with(index, last, violation.cause(), Some(violation.close_code()));
    }

    /// The client sent a close frame: its code goes back, and nothing more is expected of it.
    pub(super) fn client_closes(&mut self, index: u32, code: Option<u16>) {
        self.slots[index].flags |= flag::PEER_SHUT;
        let last = self.close_frame(index, code, "");
        self.close_with(index, last, CloseCause::ClientClosed, code);
    }

    fn close_frame(&mut self, index: u32, code: Option<u16>, reason: &str) -> Frame {
        let carrier = self.slots[index].form.carrier;
        Frame::written(&mut self.room, |out| carrier.write_close(out, code, reason))
    }

    /// Answers a request with something else than an upgrade, and closes.
    pub(super) fn refuse(&mut self, index: u32, response: &[u8], cause: CloseCause) {
        self.close_with(index, Frame::new(response), cause, None);
    }

    /// Ends a connection in good order: `last` is written after what waits already, then our half is shut, and
    /// the socket goes when the peer has shut its half too, or after a while.
    fn close_with(&mut self, index: u32, last: Frame, cause: CloseCause, code: Option<u16>) {
        if !self.is_live(index) {
            return;
        }
        self.leave(index, cause, code);
        self.slots[index].stage = Stage::Closing { drained: 0 };
        let outbox = self.outbox(index);
        outbox.push(last);
        outbox.last = true;
        self.mark_dirty(index);
        self.linger(index, self.settings.write_timeout + LINGER);
    }

    /// Ends a connection whose socket is of no use any more.
    pub(super) fn gone(&mut self, index: u32, cause: CloseCause) {
        if !self.is_live(index) {
            if matches!(self.slots[index].stage, Stage::Closing { .. }) {
                self.free(index);
            }
            return;
        }
        let slot = &mut self.slots[index];
        if matches!(&slot.stage, Stage::Session(session, _) if session.is_app_asked()) {
            // The app will believe that this command was carried out, so the session lives until it has
            // answered and is ended with what came of it.
            self.uncount(index, cause, None);
            let slot = &mut self.slots[index];
            let Stage::Session(session, _) = std::mem::replace(&mut slot.stage, Stage::Free) else { return };
            slot.stage = Stage::Orphan(session);
            slot.socket = None;
            self.forget_read(index);
            self.forget_missed(index);
            drop(self.take_outbox(index));
            self.wheel.clear(&mut self.slots, index);
            return;
        }
        self.drop_now(index, cause);
    }

    /// Ends a connection at once; a question that is open for it is dropped.
    pub(super) fn drop_now(&mut self, index: u32, cause: CloseCause) {
        self.leave(index, cause, None);
        self.free(index);
    }

    /// The last answer for a client that is gone. When the session asks again because of it, one more is awaited.
    pub(super) fn answer_orphan(&mut self, index: u32, reply: Reply) {
        let generation = self.slots[index].generation;
        // Who was gone before it was let in does not know its session and cannot come back to it.
        let was_in = matches!(&self.slots[index].stage, Stage::Orphan(session) if session.is_in());
        let cause = if was_in { CloseCause::ClientGone } else { CloseCause::HandshakeGone };
        self.session_input(index, |session, ctx| session.answer(reply, ctx));
        // An answer that came at once has ended it.
        if self.slots[index].generation != generation {
            return;
        }
        if matches!(&self.slots[index].stage, Stage::Orphan(session) if !session.awaits_answer()) {
            self.session_input(index, |session, ctx| session.end(cause, ctx));
            self.free(index);
        }
    }

    /// Reading or writing failed.
    pub(super) fn failed(&mut self, index: u32, error: &io::Error) {
        let cause = match error.kind() {
            _ if matches!(self.slots[index].stage, Stage::Handshake(_)) => CloseCause::HandshakeGone,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => CloseCause::PeerReset,
            // ETIMEDOUT: keepalive probes or data stayed without acknowledgement. The two unreachables are what
            // the same looks like behind a router that answers for the peer.
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => CloseCause::PeerTimeout,
            _ => CloseCause::IoError,
        };
        self.gone(index, cause);
    }

    /// The peer ended the stream.
    pub(super) fn peer_gone(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if matches!(slot.stage, Stage::Closing { .. }) && slot.outbox.is_some() {
            // It may have shut only its half and still wait for our last word; the socket goes when that is out.
            slot.flags = slot.flags & !flag::READABLE | flag::PEER_SHUT;
            return;
        }
        // It may have ended only its half, and wait for the answer to what it said in the same breath.
        let generation = self.slots[index].generation;
        self.flush(index);
        if self.slots[index].generation != generation {
            return;
        }
        let in_handshake = matches!(self.slots[index].stage, Stage::Handshake(_));
        self.gone(index, if in_handshake { CloseCause::HandshakeGone } else { CloseCause::ClientGone });
    }

    /// Everything is written of a connection that is to be closed.
    pub(super) fn all_out(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        let Some(socket) = &slot.socket else { return };
        if slot.flags & flag::PEER_SHUT != 0 {
            return self.free(index);
        }
        self.machine.shut(socket);
        self.linger(index, LINGER);
    }

    /// True for a connection whose end has not been counted yet.
    pub(super) fn is_live(&self, index: u32) -> bool {
        matches!(self.slots[index].stage, Stage::Handshake(_) | Stage::Echo(_) | Stage::Session(..))
    }

    /// Undoes everything that stands elsewhere for this connection, and counts why it ended; `code` is that of the close
    /// frame that it is sent.
    fn leave(&mut self, index: u32, cause: CloseCause, code: Option<u16>) {
        self.uncount(index, cause, code);
        if matches!(self.slots[index].stage, Stage::Session(..)) {
            self.session_input(index, |session, ctx| session.end(cause, ctx));
        }
        self.forget_read(index);
        self.forget_missed(index);
    }

    fn uncount(&mut self, index: u32, cause: CloseCause, code: Option<u16>) {
        self.log(index, || format!("connection ends: {}", cause.label()));
        self.note_end(index, cause, code);
        self.metrics.closed(cause);
        match &self.slots[index].stage {
            Stage::Handshake(_) => self.leave_handshake(index),
            Stage::Session(..) => {
                self.unindex(index);
                self.rare_deadlines.tokens.remove(&index);
                self.rare_deadlines.idle.remove(&index);
            }
            _ => {}
        }
        if self.slots[index].flags & flag::COUNTED != 0 {
            self.slots[index].flags &= !flag::COUNTED;
            self.services.closed();
        }
    }

    pub(super) fn free(&mut self, index: u32) {
        self.wheel.clear(&mut self.slots, index);
        drop(self.take_outbox(index));
        drop(self.slots.remove(index));
    }

    /// A line for the log at debug, with whom it is about. Nothing is looked up or formatted when nobody wants it.
    pub(super) fn log(&self, index: u32, line: impl FnOnce() -> String) {
        if !tracing::enabled!(target: "cableway::connection", tracing::Level::DEBUG) {
            return;
        }
        let peer = self.peer(index).map(tracing::field::display);
        let sid = self.sid(index).map(tracing::field::display);
        tracing::debug!(target: "cableway::connection", sid, peer, "{}", line());
    }
}
