//! The ways a client can break the framing, and what it is told.

use crate::model::{CloseCause, Ending};

/// The peer's fault: why a connection has to be failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// RSV1, RSV2 or RSV3 is set, though no extension was negotiated (RFC 6455 section 5.2).
    #[error("reserved bit set")]
    ReservedBits,
    /// Opcode 3 to 7 or 11 to 15 (section 5.2).
    #[error("reserved opcode")]
    ReservedOpcode,
    /// A client has to mask every frame (section 5.1).
    #[error("frame is not masked")]
    Unmasked,
    /// A control frame without FIN (section 5.5).
    #[error("fragmented control frame")]
    ControlFragmented,
    /// A control frame of more than 125 bytes (section 5.5).
    #[error("control frame too long")]
    ControlTooLong,
    /// A continuation while no message is open (section 5.4).
    #[error("continuation without a message")]
    ContinuationStray,
    /// A text or binary frame while a message is open (section 5.4).
    #[error("message inside a message")]
    MessageInsideMessage,
    /// A length written with more bytes than it needs (section 5.2).
    #[error("length is not minimal")]
    LengthNotMinimal,
    /// The most significant bit of a 64-bit length is set (section 5.2).
    #[error("length over 63 bits")]
    LengthTopBit,
    /// A close payload of one byte (section 5.5.1).
    #[error("close code cut short")]
    CloseCodeCut,
    /// A close code that may not be sent (section 7.4).
    #[error("illegal close code")]
    CloseCodeIllegal,
    /// The reason in a close frame is not UTF-8 (section 5.5.1).
    #[error("close reason is not UTF-8")]
    CloseReasonNotUtf8,
    /// A text message is not UTF-8 (section 8.1).
    #[error("text is not UTF-8")]
    TextNotUtf8,
    /// Over [`Limits::message_bytes_max`](super::Limits::message_bytes_max), as far as announced.
    #[error("message too big")]
    MessageTooBig,
    /// Over [`Limits::fragments_max`](super::Limits::fragments_max).
    #[error("too many fragments")]
    TooManyFragments,
}

impl Violation {
    /// The code of the close frame that answers it: 1002, 1007 or 1009 (RFC 6455 section 7.4.1).
    pub fn close_code(self) -> u16 {
        match self.cause().ending() {
            Ending::Close { code, .. } => code,
            Ending::Silent | Ending::Response => unreachable!("a broken rule is answered with a close frame"),
        }
    }

    /// The reason of that close frame. Over-long messages are told none: clients of AnyCable expect a bare 1009.
    /// The log has the words of `Display`.
    pub fn reason(self) -> &'static str {
        match self {
            Violation::ReservedBits => "reserved bit set",
            Violation::ReservedOpcode => "reserved opcode",
            Violation::Unmasked => "frame is not masked",
            Violation::ControlFragmented => "fragmented control frame",
            Violation::ControlTooLong => "control frame too long",
            Violation::ContinuationStray => "continuation without a message",
            Violation::MessageInsideMessage => "message inside a message",
            Violation::LengthNotMinimal => "length is not minimal",
            Violation::LengthTopBit => "length over 63 bits",
            Violation::CloseCodeCut => "close code cut short",
            Violation::CloseCodeIllegal => "illegal close code",
            Violation::CloseReasonNotUtf8 => "close reason is not UTF-8",
            Violation::TextNotUtf8 => "text is not UTF-8",
            Violation::MessageTooBig | Violation::TooManyFragments => "",
        }
    }

    /// What the close is counted under.
    pub fn cause(self) -> CloseCause {
        match self {
            Violation::TextNotUtf8 | Violation::CloseReasonNotUtf8 => CloseCause::InvalidUtf8,
            Violation::MessageTooBig | Violation::TooManyFragments => CloseCause::MessageTooBig,
            _ => CloseCause::ProtocolError,
        }
    }
}
