//! How we say who we are: the CONNECT line, with a user and password, a token, or an nkey (an Ed25519 key as NATS writes
//! it, <https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth>).

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::json;
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::ring::sign::any_eddsa_type;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

/// The first bytes of a seed and of a user's public key, five bits of which are the letters S and U in base 32.
const SEED: u8 = 18 << 3;
const USER: u8 = 20 << 3;

/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410 section 7).
const PKCS8_BEFORE_KEY: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

/// An nkey that cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum LoginError {
    /// The text is none, or mistyped.
    #[error("the nkey in the URL is none of a user: it must be a seed of 58 characters that begins with SU")]
    BadSeed,
    /// The server asks for nothing to be signed.
    #[error("the server does not know nkeys (its INFO has no nonce); give it one, or use a user and a password")]
    NoNonce,
}

/// Who we are to a server.
#[derive(Clone, Debug, Default)]
pub struct Login<'a> {
    /// A user, a token if there is no password, or the seed of an nkey.
    pub user: Option<&'a str>,
    /// The user's password.
    pub password: Option<&'a str>,
}

impl Login<'_> {
    /// The CONNECT line. `nonce` is from the server's INFO.
    ///
    /// # Errors
    /// There is an nkey and it cannot be used.
    pub fn connect_line(&self, nonce: Option<&str>, tls: bool) -> Result<String, LoginError> {
        let mut fields = json!({
            "verbose": false,
            "pedantic": false,
            "tls_required": tls,
            "name": "cableway",
            "lang": "rust",
            "version": env!("CARGO_PKG_VERSION"),
            // 1: INFO may come again when the cluster changes.
            "protocol": 1,
            // What this connection publishes does not come back to it.
            "echo": false,
            "headers": true,
            "no_responders": true,
        });
        match (self.user, self.password) {
            (Some(seed), None) if is_seed(seed) => {
                let (key, signature) = sign(seed, nonce.ok_or(LoginError::NoNonce)?)?;
                fields["nkey"] = key.into();
                fields["sig"] = signature.into();
            }
            (Some(token), None) => fields["auth_token"] = token.into(),
            (user, password) => {
                fields["user"] = user.into();
                fields["pass"] = password.into();
            }
        }
        if let Some(fields) = fields.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        Ok(format!("CONNECT {fields}\r\n"))
    }
}

fn is_seed(text: &str) -> bool {
    text.len() == 58 && text.starts_with("SU")
}

/// The public key of a user's seed, and the signature of `nonce`, as NATS writes them.
fn sign(seed: &str, nonce: &str) -> Result<(String, String), LoginError> {
    let bytes = base32_decode(seed).filter(|bytes| bytes.len() == 36).ok_or(LoginError::BadSeed)?;
    let (body, sum) = bytes.split_at(34);
    let kind = (body[0] & 7) << 5 | (body[1] & 0xf8) >> 3;
    if body[0] & 0xf8 != SEED || kind != USER || sum != crc16(body).to_le_bytes() {
        return Err(LoginError::BadSeed);
    }
    let pkcs8 = PrivatePkcs8KeyDer::from([&PKCS8_BEFORE_KEY[..], &body[2..]].concat());
    let key = any_eddsa_type(&pkcs8).map_err(|_| LoginError::BadSeed)?;
    let public = key.public_key().ok_or(LoginError::BadSeed)?;
    let public = public.last_chunk::<32>().ok_or(LoginError::BadSeed)?;
    let signer = key.choose_scheme(&[SignatureScheme::ED25519]).ok_or(LoginError::BadSeed)?;
    let signature = signer.sign(nonce.as_bytes()).map_err(|_| LoginError::BadSeed)?;
    let mut name = vec![USER];
    name.extend_from_slice(public);
    name.extend_from_slice(&crc16(&name).to_le_bytes());
    Ok((base32_encode(&name), BASE64_URL_SAFE_NO_PAD.encode(signature)))
}

/// CRC-16 of XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    let bit = |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
    bytes.iter().fold(0, |crc, byte| (0..8).fold(crc ^ u16::from(*byte) << 8, bit))
}

const BASE32: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// RFC 4648 without padding.
fn base32_encode(bytes: &[u8]) -> String {
    let (mut text, mut bits, mut kept) = (String::new(), 0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        kept += 8;
        while kept >= 5 {
            kept -= 5;
            text.push(char::from(BASE32[(bits >> kept) as usize & 31]));
        }
    }
    if kept > 0 {
        text.push(char::from(BASE32[(bits << (5 - kept)) as usize & 31]));
    }
    text
}

fn base32_decode(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut kept) = (Vec::new(), 0u32, 0);
    for letter in text.bytes() {
        bits = bits << 5 | BASE32.iter().position(|known| *known == letter)? as u32;
        kept += 5;
        if kept >= 8 {
            kept -= 8;
            bytes.push((bits >> kept) as u8);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A seed and its public key, from the documentation of NATS.
    const SEED_TEXT: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

    fn fields(login: &Login<'_>) -> serde_json::Value {
        let line = login.connect_line(Some("abc"), true).unwrap();
        serde_json::from_str(line.strip_prefix("CONNECT ").unwrap().trim_end()).unwrap()
    }

    #[test]
    fn a_url_says_user_and_password_or_a_token_or_nothing() {
        let both = fields(&Login { user: Some("me"), password: Some("p\"w") });
        assert_eq!((&both["user"], &both["pass"], both.get("auth_token")), (&"me".into(), &"p\"w".into(), None));
        let token = fields(&Login { user: Some("t0k"), password: None });
        assert_eq!((&token["auth_token"], token.get("user")), (&"t0k".into(), None));
        let nobody = fields(&Login::default());
        assert!(nobody.get("user").is_none() && nobody.get("auth_token").is_none());
        assert_eq!((&nobody["echo"], &nobody["tls_required"]), (&false.into(), &true.into()));
    }

    #[test]
    fn an_nkey_signs_what_the_server_asks_for() {
        let login = Login { user: Some(SEED_TEXT), password: None };
        let said = fields(&login);
        assert_eq!(said["nkey"], PUBLIC);
        assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(said["sig"].as_str().unwrap()).unwrap().len(), 64);
        assert_eq!(login.connect_line(None, false), Err(LoginError::NoNonce));
    }

    #[test]
    fn a_mistyped_nkey_is_refused() {
        let mistyped = SEED_TEXT.replace("CSSL", "CSTL");
        let login = Login { user: Some(&mistyped), password: None };
        assert_eq!(login.connect_line(Some("abc"), false), Err(LoginError::BadSeed));
    }

    #[test]
    fn base_32_goes_there_and_back() {
        for bytes in [&b""[..], b"f", b"fo", b"foo", b"foob", b"fooba"] {
            assert_eq!(base32_decode(&base32_encode(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(base32_encode(b"fooba"), "MZXW6YTB");
        assert_eq!(base32_decode("a1"), None);
    }
}
