//! What apps send us to deliver, as JSON.
