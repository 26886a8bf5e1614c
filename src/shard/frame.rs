//! Bytes on their way to clients: written once, shared by everybody who is sent them.

use triomphe::ThinArc;

use super::slots::Form;
use crate::proto::frame::Kind;

/// A frame, or an HTTP response. One word.
#[derive(Clone)]
pub(super) struct Frame(ThinArc<Option<Body>, u8>);

/// The end of a frame, shared with other frames. One word.
#[derive(Clone)]
pub(super) struct Body(ThinArc<(), u8>);

const _: () = assert!(size_of::<Frame>() == 8 && size_of::<Option<Body>>() == 8);

impl Frame {
    /// What a frame costs beside its bytes: its allocation, and its place in an outbox with the room to grow.
    pub const COST: usize = 64;

    /// A frame with these bytes.
    pub fn new(bytes: &[u8]) -> Frame {
        Frame(ThinArc::from_header_and_slice(None, bytes))
    }

    /// A frame that ends with a shared body.
    pub fn with_body(head: &[u8], body: Body) -> Frame {
        Frame(ThinArc::from_header_and_slice(Some(body), head))
    }

    /// A message as this form carries it. `room` is only used to write it in.
    pub fn message(form: Form, kind: Kind, payload: &[u8], room: &mut Vec<u8>) -> Frame {
        Frame::written(room, |out| form.carrier.write_message(out, kind, payload))
    }

    /// What `write` appends. `room` is only used to write it in.
    pub fn written(room: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Frame {
        room.clear();
        write(room);
        Frame::new(room)
    }

    pub fn len(&self) -> usize {
        self.0.slice.len() + self.body().len()
    }

    /// All bytes, in two parts.
    pub fn parts(&self) -> [&[u8]; 2] {
        [&self.0.slice, self.body()]
    }

    /// All bytes in one piece, if they are.
    pub fn whole(&self) -> Option<&[u8]> {
        self.0.header.header.is_none().then_some(&self.0.slice)
    }

    /// How much memory is this holder's part, if everybody pays the same.
    pub fn cost_shared(&self) -> usize {
        let own = self.0.slice.len() / ThinArc::strong_count(&self.0);
        // Its holders share the body, and so do those of its brothers.
        let body = self.0.header.header.as_ref();
        let body = body
            .map_or(0, |Body(body)| body.slice.len() / ThinArc::strong_count(body).max(ThinArc::strong_count(&self.0)));
        Frame::COST + own + body
    }

    fn body(&self) -> &[u8] {
        self.0.header.header.as_ref().map_or(&[], |Body(body)| &body.slice)
    }
}

impl Body {
    pub fn new(bytes: &[u8]) -> Body {
        Body(ThinArc::from_header_and_slice((), bytes))
    }

    pub fn len(&self) -> usize {
        self.0.slice.len()
    }
}
