//! Stream names that the app signed: `<B>--<S>`, where `B` is the base64 of the name's JSON and `S` the hex
//! HMAC-SHA256 of `B` (`contracts/jwt-and-signed-streams.md` section 2).

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use hmac::Mac;
use sha2::Sha256;

use super::Secret;
use crate::proto::json;

/// The AnyCable gem writes the URL-safe alphabet, Rails the standard one; padded or not, the signature covers
/// what was written, so reading all forms gives nobody anything.
const ANY_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const READ_STANDARD: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, ANY_PADDING);
const READ_URL_SAFE: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, ANY_PADDING);

/// The token for a stream name, as apps make it. For the demo, the load test's example and tests.
pub fn sign_stream(secret: &Secret, stream: &str) -> String {
    let encoded = STANDARD.encode(json::string(stream));
    let signature = secret.hex_mac(&encoded);
    format!("{encoded}--{signature}")
}

/// The stream name in a token; `None` if the token is not signed with `secret` or its name is not a non-empty
/// JSON string.
pub(super) fn verify_stream(secret: &Secret, token: &str) -> Option<String> {
    // From the right: the URL-safe alphabet has `-`, so the encoded part may hold `--` itself.
    let (encoded, signature) = token.rsplit_once("--")?;
    let signature = signature_from_hex(signature)?;
    secret.mac::<Sha256>(encoded.as_bytes()).verify_slice(&signature).ok()?;
    let url_safe = encoded.bytes().any(|byte| matches!(byte, b'-' | b'_'));
    let json = if url_safe { READ_URL_SAFE.decode(encoded) } else { READ_STANDARD.decode(encoded) }.ok()?;
    serde_json::from_slice::<String>(&json).ok().filter(|name| !name.is_empty())
}

/// Reads lower-case hex of exactly 32 bytes, the form of a signature.
fn signature_from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 64 {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};

    use super::*;

    const TOKEN: &str = "InJvb206NyI=--d6c2f92b9915c1e511e0fc1001d7ad71a510372dbe1112481eb67e5d20e1b455";

    fn secret() -> Secret {
        Secret::new("s3cr3t").unwrap()
    }

    fn signed(encoded: &str) -> String {
        let signature = secret().hex_mac(encoded);
        format!("{encoded}--{signature}")
    }

    #[test]
    fn the_worked_example_of_the_contract_holds() {
        assert_eq!(sign_stream(&secret(), "room:7"), TOKEN);
        assert_eq!(verify_stream(&secret(), TOKEN).as_deref(), Some("room:7"));
    }

    #[test]
    fn both_alphabets_are_read_padded_or_not() {
        for name in ["a>?>?b", "~~~?", "ÿÿÿ>>>", "a", "ab", "abc"] {
            let json = json::string(name);
            for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
                let token = signed(&engine.encode(&json));
                assert_eq!(verify_stream(&secret(), &token).as_deref(), Some(name), "{token}");
            }
        }
    }

    #[test]
    fn an_encoded_name_may_hold_the_separator() {
        let encoded = URL_SAFE.encode(json::string("abc\u{ff01}"));
        assert!(encoded.contains("--"), "{encoded}");
        assert_eq!(verify_stream(&secret(), &signed(&encoded)).as_deref(), Some("abc\u{ff01}"));
    }

    #[test]
    fn a_token_that_is_not_exactly_what_was_signed_is_refused() {
        let (encoded, signature) = TOKEN.split_once("--").unwrap();
        for token in [
            String::new(),
            "--".into(),
            encoded.into(),
            format!("{encoded}--"),
            format!("--{signature}"),
            format!("{encoded}-{signature}"),
            format!("InJvb206OCI=--{signature}"),
            format!("InJvb206NyI--{signature}"),
            format!("{encoded}--{}", signature.to_uppercase()),
            format!("{encoded}--{}", &signature[2..]),
            format!("{encoded}--{signature}00"),
            format!("{encoded}--{}é", &signature[2..]),
            format!("{encoded}--{}", signature.replace('d', "e")),
            format!(" {TOKEN}"),
        ] {
            assert_eq!(verify_stream(&secret(), &token), None, "{token}");
        }
        assert_eq!(verify_stream(&Secret::new("other").unwrap(), TOKEN), None);
    }

    #[test]
    fn a_signed_value_that_is_no_stream_name_is_refused() {
        for json in ["\"\"", "7", "null", "[\"room:7\"]", "room:7", "\"a\" b", ""] {
            assert_eq!(verify_stream(&secret(), &signed(&STANDARD.encode(json))), None, "{json}");
        }
        assert_eq!(verify_stream(&secret(), &signed("not base64!")), None);
        assert_eq!(verify_stream(&secret(), &signed("Ij4-Pz8/Ig==")), None, "both alphabets at once");
        assert_eq!(verify_stream(&secret(), &signed(&STANDARD.encode(b"\"\xff\""))), None, "not UTF-8");
    }
}
