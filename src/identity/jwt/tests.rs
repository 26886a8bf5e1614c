use super::*;

const NOW: u64 = 1_790_000_000;

fn jwt(enforce: bool) -> Jwt {
    Jwt { secret: Secret::new("s3cr3t").unwrap(), enforce }
}

/// Signs as an app would.
fn token(header: &str, claims: &str, secret: &str) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let secret = Secret::new(secret).unwrap();
    let signature = match header {
        header if header.contains("HS384") => secret.mac::<Sha384>(signed.as_bytes()).finalize().into_bytes().to_vec(),
        header if header.contains("HS512") => secret.mac::<Sha512>(signed.as_bytes()).finalize().into_bytes().to_vec(),
        _ => secret.mac::<Sha256>(signed.as_bytes()).finalize().into_bytes().to_vec(),
    };
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

/// What a token is worth; when it runs out is looked at on its own.
fn verify(claims: &str) -> TokenOutcome {
    match jwt(false).verify(Some(&token(HS256, claims, "s3cr3t")), NOW) {
        TokenOutcome::Identified { identifiers, .. } => identified(&identifiers),
        outcome => outcome,
    }
}

fn identified(identifiers: &str) -> TokenOutcome {
    TokenOutcome::Identified { identifiers: identifiers.into(), expires: None }
}

#[test]
fn a_token_made_by_another_implementation_is_read() {
    // RFC 7515 appendix A.1 is signed with a binary key; this is the same kind of token with a text key, made with
    // OpenSSL: `printf %s "$header.$claims" | openssl dgst -sha256 -hmac s3cr3t -binary`.
    let token = "eyJhbGciOiJIUzI1NiJ9.eyJleHQiOiJ7XCJ1c2VyXCI6XCI3XCJ9IiwiZXhwIjoxNzkwMDAzNjAwfQ.YWqhSUkuoAHZBISOZjx9jSu1VxtXsiDKsxRltetqNX4";
    let wanted = TokenOutcome::Identified { identifiers: r#"{"user":"7"}"#.into(), expires: Some(1_790_003_600) };
    assert_eq!(jwt(false).verify(Some(token), NOW), wanted);
}

#[test]
fn identifiers_come_from_ext_byte_for_byte() {
    assert_eq!(verify(r#"{"ext":"{\"user\":\"7\"}","exp":1790003600}"#), identified(r#"{"user":"7"}"#));
    assert_eq!(verify(r#"{"ext":" {\"b\":1, \"a\":\"\u00e9\"}"}"#), identified(r#" {"b":1, "a":"é"}"#));
    assert_eq!(verify(r#"{"ext":""}"#), identified(""));
    assert_eq!(verify(r#"{"aud":["x",{"y":[]}],"ext":"x","iat":99999999999,"sub":7}"#), identified("x"));
}

#[test]
fn every_hmac_algorithm_is_taken_and_no_other() {
    for alg in ["HS256", "HS384", "HS512"] {
        let token = token(&format!(r#"{{"typ":"JWT","alg":"{alg}"}}"#), r#"{"ext":"x"}"#, "s3cr3t");
        assert_eq!(jwt(true).verify(Some(&token), NOW), identified("x"), "{alg}");
    }
    for header in [
        r#"{"alg":"none"}"#,
        r#"{"alg":"hs256"}"#,
        r#"{"alg":"RS256"}"#,
        r#"{"alg":"ES256"}"#,
        r#"{"alg":""}"#,
        r#"{"alg":null}"#,
        r#"{"alg":["HS256"]}"#,
        r#"{"alg":"HS256","crit":["exp"]}"#,
        "{}",
        "[]",
        "x",
    ] {
        let token = token(header, r#"{"ext":"x"}"#, "s3cr3t");
        assert_eq!(jwt(false).verify(Some(&token), NOW), TokenOutcome::Unauthorized, "{header}");
    }
}

#[test]
fn the_algorithm_named_is_the_one_checked() {
    let good = token(HS256, r#"{"ext":"x"}"#, "s3cr3t");
    let (_, rest) = good.split_once('.').unwrap();
    for other in ["HS384", "HS512", "none"] {
        let header = URL_SAFE_NO_PAD.encode(format!(r#"{{"alg":"{other}"}}"#));
        assert_eq!(jwt(false).verify(Some(&format!("{header}.{rest}")), NOW), TokenOutcome::Unauthorized);
    }
}

#[test]
fn time_claims_are_checked_without_leeway() {
    for (claims, wanted) in [
        (r#"{"ext":"x","exp":1790000001}"#, identified("x")),
        (r#"{"ext":"x","exp":1790000000.5}"#, identified("x")),
        (r#"{"ext":"x","exp":1790000000}"#, TokenOutcome::Expired),
        (r#"{"ext":"x","exp":0}"#, TokenOutcome::Expired),
        (r#"{"ext":"x","exp":-1e300}"#, TokenOutcome::Expired),
        (r#"{"exp":1789999999}"#, TokenOutcome::Expired),
        (r#"{"ext":"x","nbf":1790000000}"#, identified("x")),
        (r#"{"ext":"x","nbf":1790000001}"#, TokenOutcome::Unauthorized),
        (r#"{"ext":"x","nbf":1790000001,"exp":1}"#, TokenOutcome::Expired),
        (r#"{"ext":"x","exp":"1790000001"}"#, TokenOutcome::Unauthorized),
        (r#"{"ext":"x","exp":null}"#, TokenOutcome::Unauthorized),
        (r#"{"ext":"x","exp":1e999}"#, TokenOutcome::Unauthorized),
        (r#"{"ext":"x","nbf":{}}"#, TokenOutcome::Unauthorized),
    ] {
        assert_eq!(verify(claims), wanted, "{claims}");
    }
}

#[test]
fn a_good_token_without_identifiers_is_an_error() {
    for claims in ["{}", r#"{"ext":null}"#, r#"{"ext":7}"#, r#"{"ext":{"user":"7"}}"#, r#"{"EXT":"x"}"#] {
        assert_eq!(verify(claims), TokenOutcome::Error, "{claims}");
    }
}

#[test]
fn a_bad_signature_is_unauthorized_even_when_expired() {
    for claims in [r#"{"ext":"x"}"#, r#"{"ext":"x","exp":1}"#] {
        let forged = token(HS256, claims, "other");
        assert_eq!(jwt(false).verify(Some(&forged), NOW), TokenOutcome::Unauthorized);
    }
}

#[test]
fn what_is_no_token_is_unauthorized() {
    let good = token(HS256, r#"{"ext":"x"}"#, "s3cr3t");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for bad in [
        ".".into(),
        "..".into(),
        "...".into(),
        "x".into(),
        "a.b.c".into(),
        signed.to_owned(),
        format!("{signed}."),
        format!("{signed}.{}", &signature[..40]),
        format!("{good}A"),
        format!("{good}="),
        format!("{good}.{signature}"),
        format!(" {good}"),
        good.replace('.', ".."),
        token(HS256, "[]", "s3cr3t"),
        token(HS256, "null", "s3cr3t"),
        token(HS256, r#"{"ext":"x"} y"#, "s3cr3t"),
    ] {
        assert_eq!(jwt(false).verify(Some(&bad), NOW), TokenOutcome::Unauthorized, "{bad}");
    }
}

#[test]
fn no_token_is_refused_only_when_one_is_required() {
    for none in [None, Some("")] {
        assert_eq!(jwt(false).verify(none, NOW), TokenOutcome::NoToken);
        assert_eq!(jwt(true).verify(none, NOW), TokenOutcome::Unauthorized);
    }
}

#[test]
fn the_second_in_which_a_token_runs_out_is_told() {
    for (claims, expires) in [
        (r#"{"ext":"x"}"#, None),
        (r#"{"ext":"x","exp":1790000001}"#, Some(1_790_000_001)),
        (r#"{"ext":"x","exp":1790000001.2}"#, Some(1_790_000_002)),
        (r#"{"ext":"x","exp":1e300}"#, Some(u64::MAX)),
    ] {
        let outcome = jwt(false).verify(Some(&token(HS256, claims, "s3cr3t")), NOW);
        assert_eq!(outcome, TokenOutcome::Identified { identifiers: "x".into(), expires }, "{claims}");
    }
}
