//! The welcome of an app that does not know the session's id.
//!
//! Over gRPC the app reads the id from the call's metadata and puts it into its welcome. App servers that answer HTTP RPC
//! often say `{"type":"welcome"}` and no more; then a client could not name itself as the one that a publication is not
//! for (`exclude_socket`).

use std::borrow::Cow;

use serde::de::MapAccess;

use crate::model::Sid;
use crate::proto::json::{Fields, Object, skip, text};

use super::super::attempt::Outcome;

/// Puts the session's id into the welcome that the app left it out of.
pub(super) fn with_sid(mut outcome: Outcome, sid: Sid) -> Outcome {
    if let Outcome::Connect(reply) = &mut outcome
        && let Some(welcome) = reply.transmissions.iter_mut().find(|transmission| is_welcome_without_sid(transmission))
        && let Some(end) = welcome.rfind('}')
    {
        // It has a `type`, so there is something before the comma.
        welcome.replace_range(end.., &format!(",\"sid\":\"{sid}\"}}"));
    }
    outcome
}

fn is_welcome_without_sid(transmission: &str) -> bool {
    let read = serde_json::from_str::<Object<Welcome<'_>>>(transmission);
    read.is_ok_and(|Object(welcome)| welcome.kind.as_deref() == Some("welcome") && !welcome.has_sid)
}

#[derive(Default)]
struct Welcome<'a> {
    kind: Option<Cow<'a, str>>,
    has_sid: bool,
}

impl<'de> Fields<'de> for Welcome<'de> {
    const WHAT: &'static str = "a message";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "type" => self.kind = text(map)?,
            "sid" => {
                self.has_sid = true;
                skip(map)?;
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ConnectReply;

    fn welcomed(transmissions: &[&str]) -> Vec<String> {
        let transmissions = transmissions.iter().map(|text| (*text).to_owned()).collect();
        let reply = ConnectReply { transmissions, ..ConnectReply::default() };
        match with_sid(Outcome::Connect(reply), Sid::from_bits(7)) {
            Outcome::Connect(reply) => reply.transmissions,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_welcome_without_a_sid_gets_one_and_everything_else_stays() {
        let sid = Sid::from_bits(7);
        for (said, wanted) in [
            (r#"{"type":"welcome"}"#, format!(r#"{{"type":"welcome","sid":"{sid}"}}"#)),
            (
                " {\"more\":{},\"type\":\"welcome\" } \n",
                format!(" {{\"more\":{{}},\"type\":\"welcome\" ,\"sid\":\"{sid}\"}}"),
            ),
        ] {
            assert_eq!(welcomed(&["{}", said]), ["{}", &wanted]);
            assert_eq!(serde_json::from_str::<serde_json::Value>(&wanted).unwrap()["sid"], sid.to_string());
        }
        for said in [r#"{"type":"welcome","sid":"q1"}"#, r#"{"type":"ping"}"#, "welcome", "", "[]", r#"["welcome"]"#] {
            assert_eq!(welcomed(&[said]), [said]);
        }
    }
}
