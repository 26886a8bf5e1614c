//! The checks of the fuzz targets on seeded random input: close to right most of the time, so that it gets far.

#[path = "../../fuzz/src/frame.rs"]
mod frame;
#[path = "../../fuzz/src/handshake.rs"]
mod handshake;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::streams;

/// Overwrites a few bytes.
fn damage(random: &mut StdRng, bytes: &mut [u8]) {
    for _ in 0..random.random_range(0..3) {
        if !bytes.is_empty() {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
    }
}

#[test]
fn the_frame_checks_hold_on_random_streams() {
    for seed in 0..1000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut data: Vec<u8> = (0..5).map(|_| random.random()).collect();
        if random.random_bool(0.5) {
            data[..2].fill(0);
        }
        let faulty = random.random_bool(0.3);
        data.extend(streams::stream(&mut random, faulty));
        data.truncate(random.random_range(1..=data.len()));
        damage(&mut random, &mut data);
        frame::check(&data);
    }
}

#[test]
fn the_handshake_checks_hold_on_random_heads() {
    const LINES: [&[u8]; 14] = [
        b"Host: a.test\r\n",
        b"Host: b.test:80\n",
        b"Connection: keep-alive, Upgrade\r\n",
        b"Upgrade: websocket\r\n",
        b"Sec-WebSocket-Version: 13\r\n",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Sec-WebSocket-Key: short\r\n",
        b"Sec-WebSocket-Protocol: anycable-token.x,actioncable-v1-ext-json\r\n",
        b"Sec-WebSocket-Protocol: actioncable-v1-json , \xFF\r\n",
        b"Origin: http://a.test\r\n",
        b"Origin: https://x.b.test:80\r\n",
        b"Origin: null\r\n",
        b"Cookie: a=\xE4; b=%20\r\n",
        b"X-Empty:\r\n",
    ];
    const TARGETS: [&[u8]; 8] = [
        b"/cable",
        b"/cable?pi=%31&ptp=%",
        b"/echo?jid=a+b",
        b"http://a.test/cable?x",
        b"http://a.test?x",
        b"*",
        b"/a/b",
        b"//?&=&%zz=%E2%28",
    ];
    let mut upgraded = 0;
    for seed in 0..10_000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut data = vec![random.random(), random.random()];
        data.extend_from_slice(if random.random_bool(0.9) { b"GET " } else { b"POST " });
        data.extend_from_slice(TARGETS.choose(&mut random).unwrap());
        data.extend_from_slice(if random.random_bool(0.9) { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\n" });
        // Half of the heads are sound before they are damaged.
        let sound = random.random_bool(0.5);
        let needed = if sound { &LINES[2..6] } else { &[] };
        let extra = random.random_range(0..12);
        for line in LINES[..1].iter().chain(needed) {
            data.extend_from_slice(line);
        }
        for _ in 0..extra {
            data.extend_from_slice(LINES[if sound { 7.. } else { 0.. }].choose(&mut random).unwrap());
        }
        data.extend_from_slice(b"\r\n");
        data.extend_from_slice([&b""[..], b"\x81\x80\x00\x00\x00\x00"].choose(&mut random).unwrap());
        damage(&mut random, &mut data);
        upgraded += usize::from(handshake::check(&data));
    }
    assert!(upgraded > 500, "only {upgraded} got as far as a 101");
}
