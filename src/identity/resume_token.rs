//! What a client shows to go on with its session: the session's id, or a token that nobody can make but this server.
//!
//! A session's id is told to the app, stands in logs, and is shown to other clients by apps that exclude a sender by it.
//! The token is the id and behind it 128 bits of its HMAC-SHA256 under a key that is drawn at start and never leaves the
//! process; so it is as hard to guess as 128 random bits, and nothing has to be kept for it.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use sha2::Sha256;

use super::Secret;
use crate::model::Sid;
use crate::model::sid::SID_LEN;

/// Bytes of the HMAC that a token has.
const MAC_BYTES: usize = 16;

/// Makes and reads tokens.
#[derive(Clone, Debug)]
pub struct ResumeTokens {
    /// The key.
    pub secret: Secret,
    /// Whether the id alone will do, which is all that the clients of AnyCable send (`--restore-by-sid`).
    pub by_sid: bool,
}

impl ResumeTokens {
    /// The token of a session.
    pub fn token(&self, sid: Sid) -> String {
        let sid = sid.ascii();
        let mac = self.secret.mac::<Sha256>(&sid).finalize().into_bytes();
        let mut token = String::with_capacity(SID_LEN + MAC_BYTES * 4 / 3 + 2);
        token.extend(sid.map(char::from));
        URL_SAFE_NO_PAD.encode_string(&mac[..MAC_BYTES], &mut token);
        token
    }

    /// The session that a client may ask for with this text.
    pub fn read(&self, text: &str) -> Option<Sid> {
        let (sid, mac) = text.split_at_checked(SID_LEN)?;
        if mac.is_empty() {
            return Sid::parse(sid).filter(|_| self.by_sid);
        }
        let mac = URL_SAFE_NO_PAD.decode(mac).ok().filter(|mac| mac.len() == MAC_BYTES)?;
        self.secret.mac::<Sha256>(sid.as_bytes()).verify_truncated_left(&mac).ok()?;
        Sid::parse(sid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_server_has_made_names_a_session() {
        let tokens = |key: &str, by_sid| ResumeTokens { secret: Secret::new(key).unwrap(), by_sid };
        let (ours, strict, theirs) = (tokens("k", true), tokens("k", false), tokens("another", true));
        let sid = Sid::from_bits(0x1234_5678_9abc);
        let token = ours.token(sid);
        assert_eq!(token.len(), 43);
        assert_eq!((ours.read(&token), strict.read(&token), theirs.read(&token)), (Some(sid), Some(sid), None));
        assert_eq!((ours.read(&sid.to_string()), strict.read(&sid.to_string())), (Some(sid), None));
        let cut = &token[..token.len() - 1];
        let other_sid = format!("{}{}", Sid::from_bits(1), &token[SID_LEN..]);
        for bad in ["", "x", cut, &format!("{token}A"), &other_sid, &"é".repeat(30), &format!("{sid}=")] {
            assert_eq!(ours.read(bad), None, "{bad}");
        }
    }
}
