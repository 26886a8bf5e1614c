// The protocol written by hand on `ws`, behind the interface of the client libraries: what they hide or repair shows here.

import { Inbox, within } from '../harness/deadline.mjs';
import { BASE } from '../harness/socket.mjs';
import { tapped } from '../harness/tap.mjs';

export const name = 'plain WebSocket';

export class Client {
  constructor(url, { headers } = {}) {
    const { TappedWebSocket, record } = tapped({ headers });
    this.wire = record;
    this.open = () => {
      new TappedWebSocket(url, [BASE]).on('message', (data) => this.#dispatch(JSON.parse(data.toString())));
    };
    this.subscriptions = new Map();
  }

  #dispatch({ type, identifier, message }) {
    const subscription = this.subscriptions.get(identifier);
    if (!subscription) return;
    if (type === 'confirm_subscription') subscription.states.push('connected');
    else if (type === 'reject_subscription') subscription.states.push('rejected');
    else if (!type) subscription.inbox.push(message);
  }

  async connect() {
    this.open();
    await this.wire.until('a welcome', () => this.wire.received.some(({ type }) => type === 'welcome'));
    return this;
  }

  async refused() {
    this.open();
    await this.wire.until('a close', () => this.wire.closes.length > 0);
    return { received: this.wire.received, close: this.wire.closes[0], reconnects: false };
  }

  subscribe(channel, params = {}) {
    const identifier = JSON.stringify({ channel, ...params });
    const subscription = { inbox: new Inbox(`${name} ${channel}`), states: new Inbox(`${name} ${channel} state`) };
    this.subscriptions.set(identifier, subscription);
    const send = (command) => this.wire.socket.send(JSON.stringify({ identifier, ...command }));
    send({ command: 'subscribe' });
    return {
      identifier,
      settled: () => subscription.states.next('an answer to subscribe'),
      state: (what) => subscription.states.next(what),
      next: (what) => subscription.inbox.next(what),
      unread: () => subscription.inbox.drain(),
      perform: async (action, data = {}) => send({ command: 'message', data: JSON.stringify({ ...data, action }) }),
      unsubscribe: async () => send({ command: 'unsubscribe' }),
    };
  }

  async close() {
    const { socket } = this.wire;
    if (!socket || socket.readyState === socket.CLOSED) return;
    socket.close();
    await within('the client to close', new Promise((closed) => socket.once('close', closed)));
  }
}
