//! What a client keeps for its return, where its protocol lets it go on with its session: the session's id and its place
//! in its stream. Beside the slots and not in them, so that clients of other protocols do not pay for it.

use std::collections::HashMap;

use crate::protocol::Position;

/// Longest id that is kept. Cableway's and AnyCable's have 21 characters; a client with a longer one is let in anew.
const SID_BYTES_MAX: usize = 23;

/// What one client keeps.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Returning {
    sid: [u8; SID_BYTES_MAX],
    sid_length: u8,
    /// Where it is known: one more than the index of its stream in [`Streams`]; 0 for no place yet.
    stream: u32,
    offset: u64,
    /// When something last came on the connection that it had, in seconds of the lane's clock; 0 when it had none.
    pub left_s: u32,
}

// id 24, stream 4, offset 8, time 4: 40 bytes.
const _: () = assert!(size_of::<Returning>() <= 40);

impl Returning {
    /// Whether it comes back.
    pub fn was_here(&self) -> bool {
        self.left_s > 0
    }

    /// The id of its session, if it had one that can be kept.
    pub fn sid(&self) -> Option<&str> {
        let sid = std::str::from_utf8(&self.sid[..usize::from(self.sid_length)]).ok()?;
        (!sid.is_empty()).then_some(sid)
    }

    /// Takes note of the session's id; of one that needs escapes in a URL, or is too long, that there is none.
    pub fn remember_sid(&mut self, sid: &str) {
        let plain = sid.len() <= SID_BYTES_MAX && sid.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_".contains(&c));
        let kept = if plain { sid } else { "" };
        self.sid[..kept.len()].copy_from_slice(kept.as_bytes());
        self.sid_length = kept.len() as u8;
    }

    /// Takes note of the place of the message that came last.
    pub fn remember_position(&mut self, position: Position<'_>, streams: &mut Streams) {
        self.stream = streams.number(self.stream, position);
        self.offset = position.offset;
    }

    /// Its place, if anything came that had one.
    pub fn position<'a>(&self, streams: &'a Streams) -> Option<Position<'a>> {
        let (stream, epoch) = streams.names.get(self.stream.checked_sub(1)? as usize)?;
        Some(Position { stream, epoch, offset: self.offset })
    }
}

/// The names of streams and their epochs, once for all clients of a lane.
#[derive(Debug, Default)]
pub(super) struct Streams {
    names: Vec<(Box<str>, Box<str>)>,
    numbers: HashMap<(Box<str>, Box<str>), u32>,
}

impl Streams {
    /// The number of a position's stream; `last` is the one that its client had before, which it mostly is again.
    fn number(&mut self, last: u32, Position { stream, epoch, .. }: Position<'_>) -> u32 {
        let had = last.checked_sub(1).and_then(|last| self.names.get(last as usize));
        if had.is_some_and(|had| (&*had.0, &*had.1) == (stream, epoch)) {
            return last;
        }
        *self.numbers.entry((stream.into(), epoch.into())).or_insert_with_key(|names| {
            self.names.push(names.clone());
            self.names.len() as u32
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_knows_its_last_place_and_streams_are_kept_once() {
        let mut streams = Streams::default();
        let mut clients = [Returning::default(); 3];
        assert_eq!(clients[0].position(&streams), None);
        for (client, offset) in [(0, 1), (1, 1), (0, 2)] {
            clients[client].remember_position(Position { stream: "s", epoch: "e", offset }, &mut streams);
        }
        clients[2].remember_position(Position { stream: "s", epoch: "later", offset: 1 }, &mut streams);
        assert_eq!(clients[0].position(&streams), Some(Position { stream: "s", epoch: "e", offset: 2 }));
        assert_eq!(clients[1].position(&streams), Some(Position { stream: "s", epoch: "e", offset: 1 }));
        assert_eq!(clients[2].position(&streams), Some(Position { stream: "s", epoch: "later", offset: 1 }));
        assert_eq!(streams.names.len(), 2);
    }

    #[test]
    fn an_id_that_cannot_be_shown_is_not_kept() {
        let mut client = Returning::default();
        assert_eq!(client.sid(), None);
        client.remember_sid("a1B2c3D4e5F6g7H8i9J-_");
        assert_eq!(client.sid(), Some("a1B2c3D4e5F6g7H8i9J-_"));
        for odd in ["a b", "é", &"x".repeat(24), ""] {
            client.remember_sid(odd);
            assert_eq!(client.sid(), None, "{odd}");
        }
    }
}
