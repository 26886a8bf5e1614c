//! What is said on the control socket: one request a connection, a line of JSON; lines of JSON back, the last of which is no
//! progress. The server and `cableway upgrade` read each other's also when one of them is newer: what is not known is an error
//! that says so.

use serde::{Deserialize, Serialize};

/// Longest request in bytes, its end included.
pub const REQUEST_BYTES_MAX: u64 = 4096;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// Hand everything over to a new process.
    Upgrade {
        /// Only see whether the new program starts and the two understand each other.
        #[serde(default)]
        check: bool,
    },
    /// What the server does.
    Status {},
}

/// A line back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Line {
    /// What happens; more follows.
    Progress(String),
    /// It is done.
    Done(Done),
    /// It is not, and why.
    Error(String),
    /// The answer to [`Request::Status`].
    Status(Status),
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// For people.
    pub text: String,
    /// The process that serves now, if it is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

/// What a server does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Sessions that were let in.
    pub clients: u64,
    /// Open WebSockets.
    pub websockets: u64,
    /// How many there may be.
    pub websockets_max: u64,
    /// Descriptors in use.
    pub descriptors: u64,
    /// Resident bytes.
    pub resident_bytes: u64,
    /// Whether an upgrade runs.
    pub upgrading: bool,
    /// Whether it is ending.
    pub draining: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_lines_have_these_forms() {
        let request = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(request(r#"{"command":"upgrade"}"#).unwrap(), Request::Upgrade { check: false });
        assert_eq!(request(r#"{"command":"upgrade","check":true}"#).unwrap(), Request::Upgrade { check: true });
        assert_eq!(request(r#"{"command":"status"}"#).unwrap(), Request::Status {});
        for wrong in ["", "{}", "[]", r#"{"command":"stop"}"#, r#"{"command":"upgrade","force":true}"#] {
            assert!(request(wrong).is_err(), "{wrong}");
        }
        for (line, text) in [
            (Line::Progress("x".into()), r#"{"progress":"x"}"#),
            (Line::Error("x".into()), r#"{"error":"x"}"#),
            (Line::Done(Done { text: "x".into(), pid: Some(7) }), r#"{"done":{"text":"x","pid":7}}"#),
        ] {
            assert_eq!(serde_json::to_string(&line).unwrap(), text);
            assert_eq!(serde_json::from_str::<Line>(text).unwrap(), line);
        }
        let newer = r#"{"status":{"version":"9.0.0","pid":7,"weather":"fine"}}"#;
        let expected = Status { version: "9.0.0".into(), pid: 7, ..Status::default() };
        assert_eq!(serde_json::from_str::<Line>(newer).unwrap(), Line::Status(expected));
    }
}
