//! Heartbeats: everybody who is pinged in the same moment of their clock and in the same form gets the same bytes.

use crate::model::PingPrecision;
use crate::proto::frame::Kind;

use super::frame::Frame;
use super::slots::Form;
use super::{Machine, Services, Shard};

/// Pings as they were sent last, one for each form and precision that is in use; at most as many as there are of both.
#[derive(Default)]
pub(super) struct PingFrames(Vec<PingFrame>);

struct PingFrame {
    form: Form,
    precision: PingPrecision,
    timestamp: u64,
    frame: Frame,
}

impl PingFrames {
    fn get(&mut self, form: Form, precision: PingPrecision, timestamp: u64) -> Frame {
        let encode = || {
            let mut text = Vec::new();
            form.dialect.language().write_ping(&mut text, timestamp);
            Frame::message(form, Kind::Text, &text, &mut Vec::new())
        };
        match self.0.iter_mut().find(|known| known.form == form && known.precision == precision) {
            Some(known) => {
                if known.timestamp != timestamp {
                    (known.timestamp, known.frame) = (timestamp, encode());
                }
                known.frame.clone()
            }
            None => {
                let frame = encode();
                self.0.push(PingFrame { form, precision, timestamp, frame: frame.clone() });
                frame
            }
        }
    }
}

/// Slots in a row whose clients are pinged at the same moment, if their intervals are the same. What we and the kernel
/// hold for neighbours lies together, which makes a ping cheaper by a quarter; and so few pings at once are no burst.
const NEIGHBOURS: u32 = 128;

impl<M: Machine, N: Services<M::Socket>> Shard<M, N> {
    /// Where in its interval the client in this slot is pinged. Multiples of the golden ratio spread evenly, however
    /// many there are.
    #[inline]
    pub(super) fn heartbeat_phase(&self, index: u32) -> u32 {
        const GOLDEN: u32 = 0x9E37_79B9;
        (index / NEIGHBOURS).wrapping_mul(GOLDEN).wrapping_add(self.heartbeat_offset)
    }

    /// Sends a heartbeat.
    pub(super) fn ping(&mut self, index: u32, precision: PingPrecision) {
        self.metrics.counters.pings_total.inc();
        let frame = self.ping_frames.get(self.slots[index].form, precision, precision.timestamp(self.now.unix));
        self.push(index, frame);
    }
}
