//! Reading and writing JSON the way the cable and publication languages need it: texts borrowed from the
//! input where they hold no escapes, objects that are really objects, strings escaped in one place.
//!
//! serde's derived readers also take an array where a struct is expected, which the contracts call malformed;
//! so objects are read through [`Fields`]. A key that comes twice counts with its last value, as in
//! JavaScript, Ruby and Go. Recursion is bounded by serde_json; values that are only passed on are skipped
//! without recursion.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// How much of an unknown command's name is kept for the log, in characters. A name is a peer's text and may be as long
/// as a message; the longest known one, of clients and apps, has 11.
pub(crate) const UNKNOWN_NAME_CHARS: usize = 32;

/// A JSON string; borrowed from the input if it holds no escapes.
pub(crate) struct Text<'a>(pub Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// Something that is read out of an object, one field after the other.
pub(crate) trait Fields<'de>: Default {
    /// What it is, for messages: "expected …".
    const WHAT: &'static str;

    /// Takes the value of `key` from `map`; [`skip`]s it if the key means nothing here.
    fn field<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Passes over the value of a key that means nothing to us.
pub(crate) fn skip<'de, A: MapAccess<'de>>(map: &mut A) -> Result<(), A::Error> {
    map.next_value::<IgnoredAny>().map(|_| ())
}

/// Reads the value of a key as a text; `null` counts as absent.
pub(crate) fn text<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(map.next_value::<Option<Text<'de>>>()?.map(|text| text.0))
}

/// Reads the value of a key as a text; `None` for a value of any other kind.
pub(crate) fn text_only<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<Cow<'de, str>>, A::Error> {
    Ok(map.next_value::<MaybeText<'de>>()?.0)
}

struct MaybeText<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for MaybeText<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyVisitor;
        impl<'de> Visitor<'de> for AnyVisitor {
            type Value = MaybeText<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }

            fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(Some(Cow::Borrowed(text))))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(Some(Cow::Owned(text.to_owned()))))
            }

            fn visit_bool<E: Error>(self, _: bool) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(None))
            }

            fn visit_i64<E: Error>(self, _: i64) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(None))
            }

            fn visit_u64<E: Error>(self, _: u64) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(None))
            }

            fn visit_f64<E: Error>(self, _: f64) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(None))
            }

            fn visit_unit<E: Error>(self) -> Result<MaybeText<'de>, E> {
                Ok(MaybeText(None))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<MaybeText<'de>, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(MaybeText(None))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<MaybeText<'de>, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(MaybeText(None))
            }
        }
        deserializer.deserialize_any(AnyVisitor)
    }
}

/// The text of a raw JSON value; `None` if it is no string, or one whose escapes make no text.
pub(crate) fn text_of(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<Text<'_>>(raw.get()).ok().map(|text| text.0)
}

/// JSON with every escape of half a surrogate pair (`\ud83d` alone, as slicing a JavaScript string makes it) replaced by that
/// of the replacement character. It stands for no character, so most parsers refuse the whole text for it.
pub(crate) fn without_lone_surrogates(json: &str) -> Cow<'_, str> {
    if !json.contains("\\u") {
        return Cow::Borrowed(json);
    }
    let bytes = json.as_bytes();
    let mut clean = String::new();
    // Up to where it is copied, and where to look next.
    let (mut copied, mut at) = (0, 0);
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\\') {
        at += found;
        match (unit(bytes, at), unit(bytes, at + ESCAPE_BYTES)) {
            (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => at += 2 * ESCAPE_BYTES,
            (Some(0xD800..=0xDFFF), _) => {
                clean.push_str(&json[copied..at]);
                clean.push_str("\\ufffd");
                at += ESCAPE_BYTES;
                copied = at;
            }
            (Some(_), _) => at += ESCAPE_BYTES,
            // Another escape, of which the second byte may be a backslash.
            (None, _) => at = (at + 2).min(bytes.len()),
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    clean.push_str(&json[copied..]);
    Cow::Owned(clean)
}

/// Deepest nesting of arrays and objects in JSON that is passed on from one client to others. Parsers bound it, or overflow
/// their stack: serde_json at 128, Ruby at 100 unless told, .NET at 64, PHP and Python at some hundreds.
pub(crate) const DEPTH_MAX: usize = 128;

/// Why JSON that was checked here must not reach somebody else's parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Nested too deep.
    #[error("it is nested more than {DEPTH_MAX} deep")]
    TooDeep,
    /// Not valid Unicode.
    #[error("it holds half a surrogate pair, such as \\ud83d alone, which is no character")]
    LoneSurrogate,
}

/// Whether valid JSON may be passed on to parsers that are not ours. One pass, without recursion.
pub(crate) fn passable(json: &str) -> Result<&str, Unfit> {
    let bytes = json.as_bytes();
    let (mut at, mut depth, mut in_string) = (0, 0_usize, false);
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' => match (unit(bytes, at - 1), unit(bytes, at - 1 + ESCAPE_BYTES)) {
                (Some(0xD800..=0xDBFF), Some(0xDC00..=0xDFFF)) => at += 2 * ESCAPE_BYTES - 1,
                (Some(0xD800..=0xDFFF), _) => return Err(Unfit::LoneSurrogate),
                (Some(_) | None, _) => at += 1,
            },
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(Unfit::TooDeep);
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(json)
}

/// Length of `\uXXXX`.
const ESCAPE_BYTES: usize = 6;

/// The UTF-16 unit of an escape `\uXXXX` that begins here.
fn unit(bytes: &[u8], at: usize) -> Option<u16> {
    let digits = bytes.get(at..at + ESCAPE_BYTES)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| Some(unit << 4 | char::from(digit).to_digit(16)? as u16))
}

/// A JSON object; anything else is an error.
pub(crate) struct Object<T>(pub T);

impl<'de, T: Fields<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Fields<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", T::WHAT)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object<T>, A::Error> {
                let mut fields = T::default();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    fields.field(&key.0, &mut map)?;
                }
                Ok(Object(fields))
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// `text` as a JSON string, quotes included.
pub(crate) fn string(text: &str) -> String {
    serde_json::to_string(text).expect("a string has a JSON form")
}

/// Appends `text` as a JSON string, quotes included.
pub(crate) fn push_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string has a JSON form and memory takes every write");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_surrogate_pair_becomes_the_replacement_character() {
        for (json, clean) in [
            (r#""hi \ud83d""#, r#""hi \ufffd""#),
            (r#""\ude00""#, r#""\ufffd""#),
            (r#""\uD83D\uD83D\uDE00\u0041""#, r#""\ufffd\uD83D\uDE00\u0041""#),
            (r#""\ude00\ud83d""#, r#""\ufffd\ufffd""#),
            (r#"["\ud83d","ä\ud83d\n"]"#, r#"["\ufffd","ä\ufffd\n"]"#),
        ] {
            assert_eq!(without_lone_surrogates(json), clean);
            assert!(serde_json::from_str::<serde_json::Value>(clean).is_ok(), "{clean}");
        }
    }

    #[test]
    fn everything_else_stays_as_it_was_written() {
        for json in [
            "",
            r#""\ud83d\ude00""#,
            r#""\\ud83d""#,
            r#""\\\\ud83d""#,
            r#""\ud83""#,
            r#""\ud8zz""#,
            r#""\u""#,
            r"\",
            r#""\u0041 \" \\""#,
        ] {
            assert!(matches!(without_lone_surrogates(json), Cow::Borrowed(same) if same == json), "{json}");
        }
    }

    #[test]
    fn what_others_cannot_read_is_not_passable() {
        for json in
            [r#""hi \ud83d""#, r#""\uDC00x""#, r#""\ud83d\ud83d\ude00""#, r#"{"\ud83d":1}"#, r#"[1,"\\\ud800\n"]"#]
        {
            assert_eq!(passable(json), Err(Unfit::LoneSurrogate), "{json}");
        }
        for json in [r#""\\ud83d""#, r#""\ud83d\ude00 \u00e9 😀""#, "[]", r#""\"[""#, "1"] {
            assert_eq!(passable(json), Ok(json));
        }
    }

    #[test]
    fn nesting_is_counted_outside_of_strings_and_bounded() {
        let nested = |depth: usize| format!("{}{}", "[{\"[[\\\"\":".repeat(depth / 2), "1") + &"}]".repeat(depth / 2);
        serde_json::from_str::<&RawValue>(&nested(DEPTH_MAX)).unwrap();
        assert!(passable(&nested(DEPTH_MAX)).is_ok());
        assert_eq!(passable(&nested(DEPTH_MAX + 2)), Err(Unfit::TooDeep));
        let wide = format!("[{}1]", "[],".repeat(1000));
        assert!(passable(&wide).is_ok());
    }
}
