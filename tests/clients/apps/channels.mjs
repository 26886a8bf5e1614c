// What the two sample apps do, said once. An app file turns its own library's handle into the small
// `call` used here, so that the same behaviour is reached over gRPC and over HTTP:
//
//   call.params, call.identity, call.env, call.sid   who and where
//   call.state                                       this channel's state, strings by name
//   call.connectionState                             the connection's state, strings by name
//   call.transmit(message)                           to this subscription, before the confirmation
//   call.streamFrom(name), stopStreamFrom(name), stopAllStreams(), reject(), closeConnection()
//   call.presence({ type, id, info })                the client is there from now on, or not any more
//   call.gatherOn(stream)                            subscribers see each other there (`$p`), and whisper (`$w`)
//
// It knows nothing of Cableway: no channel may ever be changed to make a server look better.

/** Things that happened, in order, for a test to read; and gates that hold a call until a test opens them. */
export class Journal {
  #events = [];
  #waiting = [];
  #gates = new Map();
  #opened = new Set();

  record(event) {
    this.#events.push(event);
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const wake of waiting) wake();
  }

  /** Everything after the first `after` events; waits until there is at least one. */
  async after(after) {
    while (this.#events.length <= after) await new Promise((wake) => this.#waiting.push(wake));
    return this.#events.slice(Math.max(after, 0));
  }

  get events() {
    return this.#events;
  }

  /** Holds the caller until `open(name)`; a gate that was opened once stays open. */
  async gate(name) {
    if (this.#opened.has(name)) return;
    await new Promise((pass) => {
      const held = this.#gates.get(name) ?? [];
      held.push(pass);
      this.#gates.set(name, held);
    });
  }

  open(name) {
    this.#opened.add(name);
    for (const pass of this.#gates.get(name) ?? []) pass();
    this.#gates.delete(name);
  }
}

export function cookies(header = '') {
  return Object.fromEntries(
    header
      .split(';')
      .map((piece) => piece.trim())
      .filter(Boolean)
      .map((piece) => {
        const at = piece.indexOf('=');
        return at < 0 ? [piece, ''] : [piece.slice(0, at), piece.slice(at + 1)];
      }),
  );
}

/**
 * Decides on a connection. `no` as cookie `auth`, header `x-auth` or query `auth` is a refusal, `error` is a crash of
 * the app; query `hold` keeps the call waiting at the gate of that name.
 */
export async function authenticate(journal, { url, headers, sid }) {
  const query = new URL(url).searchParams;
  const jar = cookies(headers.cookie);
  journal.record({ event: 'connect', url, headers, sid });
  if (query.has('hold')) await journal.gate(query.get('hold'));
  const verdict = query.get('auth') ?? headers['x-auth'] ?? jar.auth ?? 'yes';
  if (verdict === 'error') throw new Error('the app was asked to fail while connecting');
  if (verdict === 'no') return { accepted: false };
  return { accepted: true, identity: { user: query.get('user') ?? jar.user ?? 'guest' } };
}

/** Holds a Disconnect call at the gate that the connection's query `hold_disconnect` names. */
export async function farewell(journal, { url }) {
  const gate = new URL(url).searchParams.get('hold_disconnect');
  if (!gate) return;
  journal.record({ event: 'holding', gate });
  await journal.gate(gate);
}

/** The channels by the name in an identifier. */
export function channels(journal) {
  const note = (call, event, more = {}) =>
    journal.record({ event, channel: call.params.channel, params: call.params, user: call.identity.user, sid: call.sid, ...more });

  const base = {
    subscribed() {},
    unsubscribed(call) {
      note(call, 'unsubscribed', { state: { ...call.state } });
    },
    actions: {},
  };
  const channel = (more) => ({ ...base, ...more });

  return {
    EchoChannel: channel({
      actions: {
        echo: (call, data) => call.transmit({ action: 'echo', data }),
        bare: (call, data) => call.transmit({ action: 'bare', arguments: Object.keys(data).length }),
        wait: async (call, { gate }) => {
          note(call, 'waiting', { gate });
          await journal.gate(gate);
          call.transmit({ action: 'wait', gate });
        },
        fail: () => {
          throw new Error('the app was asked to fail');
        },
        bye: (call) => {
          call.transmit({ action: 'bye' });
          call.closeConnection();
        },
      },
    }),

    ParamsChannel: channel({ subscribed: (call) => call.transmit({ params: call.params }) }),

    GreetingChannel: channel({
      subscribed(call) {
        call.transmit('first');
        call.transmit('second');
      },
    }),

    RoomChannel: channel({ subscribed: (call) => call.streamFrom(`room:${call.params.id}`) }),

    // Two parameter sets of it follow the same stream, so one connection gets a copy for each.
    SharedChannel: channel({ subscribed: (call) => call.streamFrom(call.params.stream) }),

    ManyChannel: channel({
      subscribed(call) {
        for (const stream of call.params.streams) call.streamFrom(stream);
      },
      actions: {
        follow: (call, { stream }) => {
          call.streamFrom(stream);
          call.transmit({ followed: stream });
        },
        leave: (call, { stream }) => {
          call.stopStreamFrom(stream);
          call.transmit({ left: stream });
        },
        leave_all: (call) => {
          call.stopAllStreams();
          call.transmit({ left: 'all' });
        },
      },
    }),

    // Its subscribers see each other come and go, and whisper.
    LobbyChannel: channel({
      subscribed(call) {
        const stream = `lobby:${call.params.id}`;
        call.streamFrom(stream);
        call.gatherOn(stream);
        if (call.params.as) call.presence({ type: 'join', id: call.params.as, info: JSON.stringify({ by: 'app' }) });
      },
      actions: {
        enter: (call, { id, info }) => call.presence({ type: 'join', id, info }),
        exit: (call) => call.presence({ type: 'leave', id: '' }),
      },
    }),

    RejectChannel: channel({ subscribed: (call) => call.reject() }),

    // What Rails does when `reject` follows `stream_from`: a refusal that still lists streams and state.
    RejectLateChannel: channel({
      subscribed(call) {
        call.streamFrom(call.params.stream);
        call.state = { ...call.state, leaked: 'yes' };
        call.stopAllStreams();
        call.reject();
      },
    }),

    CounterChannel: channel({
      subscribed(call) {
        call.state = { count: '0' };
      },
      actions: {
        increment(call) {
          call.state = { ...call.state, count: String(Number(call.state.count ?? 0) + 1) };
          call.transmit({ count: Number(call.state.count) });
        },
      },
    }),

    EnvChannel: channel({
      actions: {
        env: (call) =>
          call.transmit({
            url: call.env.url,
            headers: call.env.headers ?? {},
            identity: call.identity,
            connection_state: call.connectionState,
            sid: call.sid,
          }),
        remember: (call, { name, value }) => {
          call.connectionState = { ...call.connectionState, [name]: value };
          call.transmit({ remembered: name });
        },
      },
    }),

    BrokenChannel: channel({
      subscribed() {
        throw new Error('the app was asked to fail while subscribing');
      },
    }),

    // Cannot be left: the app's answer to `unsubscribe` is an error.
    StickyChannel: channel({
      subscribed: (call) => call.streamFrom(call.params.stream),
      unsubscribed() {
        throw new Error('the app was asked to fail while unsubscribing');
      },
    }),
  };
}
