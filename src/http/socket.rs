//! A socket on its way through the HTTP server: it gives the bytes that were read before it came here, it does
//! not wait for ever to write, and it closes so that the last answer arrives.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::rooms::{Doing, Place};
use super::upgrade::Wish;
use super::{LINGER_BYTES_MAX, Limits};

/// What is read at a time while lingering.
const LINGER_READ_BYTES: usize = 16 << 10;

pub(super) struct ReplayedStream<S> {
    socket: S,
    /// Given first; emptied and freed once given.
    already_read: Vec<u8>,
    given: usize,
    write_timeout: Duration,
    /// Runs while a write waits.
    stalled: Option<Pin<Box<Sleep>>>,
    linger: Duration,
    /// Set once our side is closed: until when and how much is still read.
    lingering: Option<(Pin<Box<Sleep>>, usize)>,
    /// Told when the end begins.
    place: Option<Arc<Place>>,
    /// Told what was written and flushed.
    wish: Arc<Wish>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ReplayedStream<S> {
    pub(super) fn new(
        socket: S,
        already_read: Vec<u8>,
        limits: &Limits,
        place: Option<Arc<Place>>,
        wish: Arc<Wish>,
    ) -> ReplayedStream<S> {
        ReplayedStream {
            place,
            wish,
            socket,
            already_read,
            given: 0,
            write_timeout: limits.write_timeout,
            stalled: None,
            linger: limits.linger,
            lingering: None,
        }
    }

    /// The socket as it came, and what was read ahead of it and not given yet.
    pub(super) fn into_inner(self) -> (S, Vec<u8>) {
        (self.socket, self.already_read.get(self.given..).unwrap_or_default().to_vec())
    }

    /// Turns a write that waits for too long into an error.
    fn unless_stalled<T>(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.stalled = None;
            return wrote;
        }
        let write_timeout = self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(write_timeout)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ReplayedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.already_read[self.given..];
        if rest.is_empty() {
            return Pin::new(&mut self.socket).poll_read(cx, buf);
        }
        let now = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..now]);
        self.given += now;
        if self.given == self.already_read.len() {
            (self.already_read, self.given) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ReplayedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.wish.set_flushed(false);
        let wrote = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.unless_stalled(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.wish.set_flushed(false);
        let wrote = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.unless_stalled(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.wish.set_flushed(matches!(flushed, Poll::Ready(Ok(()))));
        self.unless_stalled(cx, flushed)
    }

    /// Closes our side, then reads on until the peer has closed its own, for a while: closing a socket that has
    /// unread bytes sends a reset, and a reset can overtake the answer.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.lingering.is_none() {
            if let Some(place) = &this.place {
                place.begins(Doing::Lingering);
            }
            let closed = Pin::new(&mut this.socket).poll_shutdown(cx);
            ready!(this.unless_stalled(cx, closed))?;
        }
        let linger = this.linger;
        let (until, bytes_left) =
            this.lingering.get_or_insert_with(|| (Box::pin(tokio::time::sleep(linger)), LINGER_BYTES_MAX));
        while *bytes_left > 0 && until.as_mut().poll(cx).is_pending() {
            let mut scratch = [0; LINGER_READ_BYTES];
            let mut read = ReadBuf::new(&mut scratch);
            let ended = ready!(Pin::new(&mut this.socket).poll_read(cx, &mut read)).is_err();
            if ended || read.filled().is_empty() {
                break;
            }
            *bytes_left = bytes_left.saturating_sub(read.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}
