//! Who a client is, by a JSON Web Token that the app signed (RFC 7519, with HMAC only: RFC 7518 section 3.2).
//!
//! The signature is checked before anything else of the token is believed; of the header only the algorithm is
//! read before, and it must be one of ours.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::Mac;
use serde::de::MapAccess;
use serde_json::value::RawValue;
use sha2::{Sha256, Sha384, Sha512};

use super::Secret;
use crate::model::TokenOutcome;
use crate::proto::json::{Fields, Object, skip, text, text_of};

/// Reads tokens.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// What the app signs with.
    pub secret: Secret,
    /// Whether a client without a token is refused (`--enforce_jwt`).
    pub enforce: bool,
}

impl Jwt {
    /// Says what a client's token is worth. `now` is Unix time in seconds. There is no leeway: a token is over in the second
    /// that `exp` names. An empty token is none.
    pub fn verify(&self, token: Option<&str>, now: u64) -> TokenOutcome {
        match token.filter(|token| !token.is_empty()) {
            Some(token) => self.claims(token).map_or(TokenOutcome::Unauthorized, |claims| claims.outcome(now)),
            None if self.enforce => TokenOutcome::Unauthorized,
            None => TokenOutcome::NoToken,
        }
    }

    /// The claims of a token whose signature is good.
    fn claims(&self, token: &str) -> Option<Claims> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let header = URL_SAFE_NO_PAD.decode(header).ok()?;
        let header = serde_json::from_slice::<Object<Header<'_>>>(&header).ok()?.0;
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let (signed, secret) = (signed.as_bytes(), &self.secret);
        // RFC 7515 section 4.1.11: what must be understood and is not makes the token invalid.
        if header.critical {
            return None;
        }
        match header.alg.as_deref()? {
            "HS256" => secret.mac::<Sha256>(signed).verify_slice(&signature).ok()?,
            "HS384" => secret.mac::<Sha384>(signed).verify_slice(&signature).ok()?,
            "HS512" => secret.mac::<Sha512>(signed).verify_slice(&signature).ok()?,
            _ => return None,
        }
        let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
        Some(serde_json::from_slice::<Object<Claims>>(&claims).ok()?.0)
    }
}

#[derive(Default)]
struct Header<'a> {
    alg: Option<Cow<'a, str>>,
    critical: bool,
}

impl<'de> Fields<'de> for Header<'de> {
    const WHAT: &'static str = "a token header";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "alg" => self.alg = text(map)?,
            "crit" => {
                skip(map)?;
                self.critical = true;
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// Times may have a fraction (RFC 7519 section 2, NumericDate); a time of another type makes the token
/// unreadable, so that it does not count as "no limit".
#[derive(Default)]
struct Claims {
    exp: Option<f64>,
    nbf: Option<f64>,
    ext: Option<String>,
}

impl<'de> Fields<'de> for Claims {
    const WHAT: &'static str = "token claims";

    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "exp" => self.exp = Some(map.next_value()?),
            "nbf" => self.nbf = Some(map.next_value()?),
            "ext" => self.ext = text_of(map.next_value::<&RawValue>()?).map(Cow::into_owned),
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Claims {
    fn outcome(self, now: u64) -> TokenOutcome {
        let now = now as f64;
        if self.exp.is_some_and(|exp| now >= exp) {
            return TokenOutcome::Expired;
        }
        if self.nbf.is_some_and(|nbf| now < nbf) {
            return TokenOutcome::Unauthorized;
        }
        // Rounded up, as `now` is compared above; what no number of seconds can be is never.
        let expires = self.exp.map(|exp| exp.ceil() as u64);
        self.ext.map_or(TokenOutcome::Error, |identifiers| TokenOutcome::Identified { identifiers, expires })
    }
}

#[cfg(test)]
mod tests;
