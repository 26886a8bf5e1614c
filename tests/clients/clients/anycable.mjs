// @anycable/core behind the interface that the conformance tests use.

import { createCable } from '@anycable/core';
import { Inbox, within } from '../harness/deadline.mjs';
import { tapped } from '../harness/tap.mjs';

export const name = '@anycable/core';

export class Client {
  constructor(url, { headers, options = {} } = {}) {
    const { TappedWebSocket, record } = tapped({ headers });
    this.wire = record;
    this.cable = createCable(url, {
      websocketImplementation: TappedWebSocket,
      logLevel: 'error',
      // Reconnect at once: the library's own wait is about politeness, not about what is tested here.
      reconnectStrategy: () => 50,
      ...options,
    });
  }

  /** Connects and waits for the welcome. */
  async connect() {
    await within('a welcome', this.cable.connect());
    return this;
  }

  /** Connects where a refusal is expected; gives what the server said and how it closed. */
  async refused() {
    this.cable.connect().catch(() => {});
    await this.wire.until('a close', () => this.wire.closes.length > 0);
    const reconnects = this.cable.state !== 'closed';
    this.cable.disconnect();
    return { received: this.wire.received, close: this.wire.closes[0], reconnects };
  }

  subscribe(channel, params = {}) {
    const inbox = new Inbox(`${name} ${channel}`);
    const states = new Inbox(`${name} ${channel} state`);
    const subscription = this.cable.subscribeTo(channel, params);
    subscription.on('connect', () => states.push('connected'));
    subscription.on('disconnect', () => states.push('disconnected'));
    subscription.on('close', (error) => states.push(error?.name === 'SubscriptionRejectedError' ? 'rejected' : 'closed'));
    subscription.on('message', (message) => inbox.push(message));
    return {
      identifier: subscription.identifier,
      settled: () => states.next('an answer to subscribe'),
      state: (what) => states.next(what),
      next: (what) => inbox.next(what),
      unread: () => inbox.drain(),
      perform: (action, data) => subscription.perform(action, data),
      unsubscribe: async () => {
        subscription.disconnect();
        // The library sends the command some turns later.
        await this.wire.until('unsubscribe to be sent', () =>
          this.wire.sent.some(({ command, identifier }) => command === 'unsubscribe' && identifier === subscription.identifier),
        );
      },
    };
  }

  async close() {
    const { socket } = this.wire;
    this.cable.disconnect();
    if (!socket || socket.readyState === socket.CLOSED) return;
    await within('the client to close', new Promise((closed) => socket.once('close', closed)));
  }
}
