//! The HTTP upgrade: a request head in, a 101 or a refusal out.
