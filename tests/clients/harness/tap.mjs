// A WebSocket class for the client libraries that keeps every text it received, as it was, so that a test can look
// at the wire below a library that hides it.

import WebSocket from 'ws';
import { within } from './deadline.mjs';

/** A class to hand to a library, and the record of all sockets that it made. */
export function tapped({ headers = {} } = {}) {
  const record = {
    /** Parsed messages of the server, over all sockets. */
    received: [],
    /** Parsed commands of the client, over all sockets. */
    sent: [],
    /** The latest socket. */
    socket: null,
    /** Ends of sockets: {code, reason}. */
    closes: [],
    waiting: [],

    /** Resolves once everything sent so far was handled: the `ping` command is answered in its turn. */
    async barrier() {
      const seen = record.received.filter(({ type }) => type === 'pong').length;
      record.socket.send('{"command":"ping"}');
      await record.until('a pong', () => record.received.filter(({ type }) => type === 'pong').length > seen);
    },

    /** Resolves when `done()` holds; looked at again after each message and close. */
    async until(what, done) {
      const look = async () => {
        while (!done()) await new Promise((wake) => record.waiting.push(wake));
      };
      await within(what, look());
    },

    /** Data messages (no type) received for one identifier. */
    messages(identifier) {
      return record.received.filter((message) => message.identifier === identifier && !message.type).map(({ message }) => message);
    },
  };
  const wake = () => {
    for (const go of record.waiting.splice(0)) go();
  };

  class TappedWebSocket extends WebSocket {
    constructor(url, protocols, options = {}) {
      super(url, protocols, { ...options, headers: { ...headers, ...options.headers } });
      record.socket = this;
      this.on('close', (code, reason) => {
        record.closes.push({ code, reason: reason.toString() });
        wake();
      });
      this.on('error', () => {});
    }
    emit(event, ...rest) {
      if (event !== 'message') return super.emit(event, ...rest);
      const message = JSON.parse(rest[0].toString());
      record.received.push(message);
      // Only `barrier` asks for pongs; Rails' library would stumble over one.
      if (message.type !== 'pong') super.emit(event, ...rest);
      wake();
      return true;
    }
    send(data, ...rest) {
      record.sent.push(JSON.parse(data));
      super.send(data, ...rest);
      wake();
    }
  }
  return { TappedWebSocket, record };
}
