//! Options of identity by token and of streams that need no app.

use crate::config::definition::options;
use crate::config::setting::Secret;

options! {
    /// Identity by token (JWT).
    Jwt in jwt, "Tokens (JWT)";

    /// Key of tokens. Unset: the secret; `none`: tokens are off.
    secret: Secret = "", "jwt-secret", "jwt.secret" [.live()];

    /// Name of the token's query parameter; with `x-` before it, of its header.
    param: String = "jid", "jwt-param", "jwt.param";

    /// Refuse clients that bring no token.
    enforce: bool = "false", "enforce-jwt", "jwt.force" [.live()];

    /// Close a client when its token runs out (claim `exp`), and tell it to come back with a fresh one.
    close_expired: bool = "false", "jwt-close-expired", "jwt.close_expired";
}

options! {
    /// Streams that clients may follow without asking the app.
    Streams in streams, "Streams";

    /// Key of signed stream names. Unset: the secret; `none`: no signed streams.
    secret: Secret = "", "streams-secret", "streams.secret" [.live()];

    /// Let clients follow any stream by its plain name.
    public: bool = "false", "public-streams", "streams.public";

    /// Let clients whisper on signed streams. On public ones they always may.
    whisper: bool = "false", "streams-whisper", "streams.whisper";

    /// Let clients on signed streams see who is present; needs a broker. On public streams they always may.
    presence: bool = "true", "streams-presence", "streams.presence";

    /// Answer Turbo::StreamsChannel here.
    turbo: bool = "false", "turbo-streams", "streams.turbo";

    /// Key of Turbo's stream names. Unset: the streams secret.
    turbo_secret: Secret = "", "turbo-streams-secret", "streams.turbo_secret" [.live()];

    /// Answer CableReady::Stream here.
    cable_ready: bool = "false", "cable-ready", "streams.cable_ready";

    /// Key of CableReady's stream names. Unset: the streams secret.
    cable_ready_secret: Secret = "", "cable-ready-secret", "streams.cable_ready_secret" [.live()];
}
