// @rails/actioncable behind the interface that the conformance tests use. The library is a browser's: it gets a WebSocket
// class and the two global functions it calls, nothing else is changed.

import { createRequire } from 'node:module';
import { Inbox, within } from '../harness/deadline.mjs';
import { tapped } from '../harness/tap.mjs';

const require = createRequire(import.meta.url);
globalThis.addEventListener ??= () => {};
globalThis.removeEventListener ??= () => {};

/** A copy of the library of its own for each client, because its WebSocket class and thresholds are module-wide. */
function freshLibrary(library) {
  const path = require.resolve(library);
  delete require.cache[path];
  return require(path);
}

export const name = '@rails/actioncable';

export class Client {
  /** `library` names the npm package: this one, or an older release of it under another name. */
  constructor(url, { headers, staleThreshold, library: packageName = name } = {}) {
    const library = freshLibrary(packageName);
    const { TappedWebSocket, record } = tapped({ headers });
    library.adapters.WebSocket = TappedWebSocket;
    // Seconds of silence after which the library opens a new socket; it looks after one to two times as long.
    if (staleThreshold) library.ConnectionMonitor.staleThreshold = staleThreshold;
    this.wire = record;
    this.consumer = library.createConsumer(url);
  }

  /** Connects and waits for the welcome. */
  async connect() {
    this.consumer.connect();
    await this.wire.until('a welcome', () => this.wire.received.some(({ type }) => type === 'welcome'));
    return this;
  }

  /** Connects where a refusal is expected; gives what the server said and how it closed. */
  async refused() {
    this.consumer.connect();
    await this.wire.until('a close', () => this.wire.closes.length > 0);
    return { received: this.wire.received, close: this.wire.closes[0], reconnects: Boolean(this.consumer.connection.monitor.isRunning()) };
  }

  subscribe(channel, params = {}) {
    const inbox = new Inbox(`${name} ${channel}`);
    const states = new Inbox(`${name} ${channel} state`);
    const subscription = this.consumer.subscriptions.create(
      { channel, ...params },
      {
        connected: () => states.push('connected'),
        rejected: () => states.push('rejected'),
        disconnected: () => states.push('disconnected'),
        received: (message) => inbox.push(message),
      },
    );
    return {
      identifier: subscription.identifier,
      settled: () => states.next('an answer to subscribe'),
      state: (what) => states.next(what),
      next: (what) => inbox.next(what),
      unread: () => inbox.drain(),
      perform: async (action, data) => {
        subscription.perform(action, data);
      },
      unsubscribe: async () => {
        subscription.unsubscribe();
      },
    };
  }

  async close() {
    this.consumer.disconnect();
    const { socket } = this.wire;
    if (!socket || socket.readyState === socket.CLOSED) return;
    if (socket.readyState === socket.CONNECTING) socket.terminate();
    await within('the client to close', new Promise((closed) => socket.once('close', closed)));
  }
}
