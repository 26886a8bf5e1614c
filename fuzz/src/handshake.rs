//! Whatever a head says, it is read once, bounded, and the answer holds nothing of it but the accept key and a
//! subprotocol of ours.

use cableway::proto::handshake::{
    Decision, HEADERS_MAX, Head, Origins, Parsed, PathPattern, Refusal, Rules, answer, may_end, parse_head, slots,
};

/// The first two bytes choose the rules and where the head is cut, the others are what arrived. Says whether it was
/// upgraded.
pub fn check(data: &[u8]) -> bool {
    let Some((&[choice, cut], bytes)) = data.split_first_chunk() else { return false };
    let mut room = slots();
    match parse_head(bytes, &mut room) {
        Parsed::Incomplete => {}
        Parsed::Bad(refusal) => look_at_refusal(&refusal),
        Parsed::Complete { head, len } => {
            assert!(len <= bytes.len());
            assert!(may_end(&bytes[..len], len - 1), "a complete head that nobody would look at");
            let shorter = len * usize::from(cut) / 256;
            assert!(matches!(parse_head(&bytes[..shorter], &mut slots()), Parsed::Incomplete));
            look_at_head(&head);

            let rules = rules(choice);
            let answered = answer(&head, &rules);
            match &answered {
                Decision::Upgrade { response, .. } => {
                    let mut switching = Vec::new();
                    response.write(&rules.version_header, &mut switching);
                    look_at_upgrade(&switching);
                    assert!(!head.host().contains(['/', '?', '#', '@', ' ']), "the app's URL would mean another host");
                }
                Decision::Refuse(refusal) => look_at_refusal(refusal),
                Decision::NotOurs => {}
            }
            // What follows the head makes no difference.
            let mut room = slots();
            let Parsed::Complete { head, .. } = parse_head(&bytes[..len], &mut room) else { panic!("no longer whole") };
            assert_eq!(answer(&head, &rules), answered);
            return matches!(answered, Decision::Upgrade { .. });
        }
    }
    false
}

fn rules(choice: u8) -> Rules {
    let pattern = |text| PathPattern::parse(text).expect("these are sound");
    Rules {
        cable_paths: if choice & 1 == 0 { vec![pattern("/cable")] } else { vec![pattern("/{a}/*"), pattern("/*")] },
        echo_path: (choice & 2 != 0).then(|| pattern("/echo")),
        allowed_origins: Origins::parse(if choice & 4 == 0 { "" } else { "a.test,*.b.test:80" }),
        version_header: "1".to_owned(),
        ..Rules::default()
    }
}

fn look_at_head(head: &Head<'_, '_>) {
    assert!(head.headers().count() <= HEADERS_MAX);
    assert!(!head.path().contains('?'));
    assert!(head.request_uri().starts_with(head.path()));
    for name in ["", "pi", "ptp", "jid"] {
        assert!(head.query(name).is_none() || head.request_uri().contains('?'));
    }
    for (name, value) in head.headers() {
        assert!(!value.contains(&b'\n') && head.header(name).is_some());
    }
    assert!(head.offered_protocols().all(|offered| offered.trim() == offered && !offered.contains(',')));
    assert_eq!(head.token_protocol().is_some(), head.offered_protocols().any(|one| one.starts_with("anycable-token.")));
}

fn look_at_upgrade(response: &[u8]) {
    let response = std::str::from_utf8(response).expect("only ASCII is written");
    let lines: Vec<_> = response.strip_suffix("\r\n\r\n").expect("ends with an empty line").split("\r\n").collect();
    assert_eq!(lines[0], "HTTP/1.1 101 Switching Protocols");
    assert!(lines[3].starts_with("Sec-WebSocket-Accept: ") && lines[3].len() == 22 + 28);
    assert!(match &lines[4..] {
        [version] => *version == "X-AnyCable-Version: 1",
        [protocol, version] =>
            protocol.starts_with("Sec-WebSocket-Protocol: actioncable-v1-") && *version == "X-AnyCable-Version: 1",
        _ => false,
    });
}

fn look_at_refusal(refusal: &Refusal) {
    assert!([400, 403, 405, 431, 505].contains(&refusal.status));
    assert!(refusal.response.starts_with(format!("HTTP/1.1 {} ", refusal.status).as_bytes()));
}
