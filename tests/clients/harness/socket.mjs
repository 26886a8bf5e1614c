// A plain WebSocket client for transcripts: exact texts in, exact texts out, pings set aside.

import net from 'node:net';
import WebSocket from 'ws';
import { DEADLINE_MS, Inbox, within } from './deadline.mjs';

export const BASE = 'actioncable-v1-json';
export const EXTENDED = 'actioncable-v1-ext-json';

export class Socket {
  /** Opens a socket; resolves at the 101. */
  static async open(url, { headers = {}, protocols = [BASE], keepPings = false, autoPong = true } = {}) {
    const socket = new Socket(new WebSocket(url, protocols, { headers, autoPong }), { url, keepPings });
    await within(`the upgrade of ${url}`, socket.opened);
    return socket;
  }

  /** Opens a socket and reads the welcome. */
  static async welcomed(url, options) {
    const socket = await Socket.open(url, options);
    const welcome = JSON.parse(await socket.next('the welcome'));
    if (welcome.type !== 'welcome') throw new Error(`expected a welcome, got ${JSON.stringify(welcome)}`);
    socket.sid = welcome.sid;
    return socket;
  }

  constructor(ws, { url, keepPings }) {
    this.ws = ws;
    this.inbox = new Inbox(`socket ${url}`);
    this.pings = new Inbox(`pings on ${url}`);
    this.opened = new Promise((opened, failed) => {
      ws.once('upgrade', (response) => (this.response = response));
      ws.once('open', opened);
      ws.once('error', failed);
    });
    this.opened.catch(() => {});
    ws.on('error', () => {});
    ws.on('message', (data, binary) => {
      const text = binary ? data : data.toString();
      if (!keepPings && !binary && text.startsWith('{"type":"ping"')) this.pings.push(JSON.parse(text));
      else this.inbox.push(text);
    });
    this.ended = new Promise((ended) => {
      ws.once('close', (code, reason) => {
        this.inbox.end(`closed with ${code} "${reason}"`);
        this.pings.end(`closed with ${code} "${reason}"`);
        ended({ code, reason: reason.toString() });
      });
    });
  }

  /** The next text of the server, as it came. */
  next(what = 'a message', ms = DEADLINE_MS) {
    return this.inbox.next(what, ms);
  }

  async json(what) {
    return JSON.parse(await this.next(what));
  }

  send(command) {
    this.ws.send(typeof command === 'string' ? command : JSON.stringify(command));
  }

  /** Sends `subscribe` and gives the answer's type, together with what was transmitted before it. */
  async subscribe(identifier) {
    this.send({ command: 'subscribe', identifier });
    const before = [];
    for (;;) {
      const message = await this.json(`the answer to subscribe ${identifier}`);
      if (message.identifier === identifier && message.type) return { type: message.type, before };
      before.push(message);
    }
  }

  /** What comes up to the first message that `ends` it, that one included; parsed. */
  async until(what, ends) {
    const messages = [];
    for (;;) {
      messages.push(await this.json(what));
      if (ends(messages.at(-1))) return messages;
    }
  }

  /** Sends `history` and gives what was missed, and what came last: `confirm_history` or `reject_history`. */
  async history(identifier, history) {
    this.send({ command: 'history', identifier, history });
    return this.historyAnswer(identifier);
  }

  /** The answer to a `history` that was sent, perhaps together with `subscribe`. */
  async historyAnswer(identifier) {
    const ends = (message) => message.identifier === identifier && /^(confirm|reject)_history$/.test(message.type);
    const messages = await this.until(`the answer to history of ${identifier}`, ends);
    return { type: messages.pop().type, messages };
  }

  perform(identifier, action, data = {}) {
    this.send({ command: 'message', identifier, data: JSON.stringify({ ...data, action }) });
  }

  /**
   * Everything that came before the answer to a `ping` command sent now. Commands are handled in order, so nothing that
   * was caused by an earlier command of this socket can come later.
   */
  async settle() {
    this.send({ command: 'ping' });
    const before = [];
    for (;;) {
      const text = await this.next('the pong');
      if (text === '{"type":"pong"}') return before;
      before.push(text);
    }
  }

  /** How the connection ended: {code, reason}; code 1006 means that no close frame came. */
  closed() {
    return within('the connection to end', this.ended);
  }

  async close() {
    this.ws.close();
    return this.closed();
  }

  /** Vanishes without a close frame. */
  drop() {
    this.ws.terminate();
  }
}

/** The status, headers and body with which an upgrade is refused. */
export async function refusal(url, { headers = {}, protocols = [BASE] } = {}) {
  const ws = new WebSocket(url, protocols, { headers });
  ws.on('error', () => {});
  const response = await within(
    `a refusal of ${url}`,
    new Promise((refused, failed) => {
      ws.once('unexpected-response', (_, response) => refused(response));
      ws.once('open', () => failed(new Error(`${url} was accepted`)));
    }),
  );
  let body = '';
  response.setEncoding('utf8');
  for await (const piece of response) body += piece;
  return { status: response.statusCode, headers: response.headers, body };
}

export const KEY = 'dGhlIHNhbXBsZSBub25jZQ==';
export const ACCEPT = 's3pPLMBiTxaQ9kYGzzhZRbK+xOo=';

/** The text of an upgrade request, from a target and header lines; a null value leaves a usual header out. */
export function upgrade(target, host, headers = {}, { method = 'GET', version = '1.1' } = {}) {
  const all = {
    Host: host,
    Connection: 'Upgrade',
    Upgrade: 'websocket',
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': KEY,
    'Sec-WebSocket-Protocol': BASE,
    ...headers,
  };
  const lines = Object.entries(all)
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name}: ${value}\r\n`);
  return `${method} ${target} HTTP/${version}\r\n${lines.join('')}\r\n`;
}

/** A masked client frame; `head` is the first byte (0x81: a whole text). */
export function frame(payload, { head = 0x81, mask = Buffer.from([0x11, 0x22, 0x33, 0x44]) } = {}) {
  const body = Buffer.from(payload);
  let length;
  if (body.length < 126) length = Buffer.from([0x80 | body.length]);
  else if (body.length < 65536) length = Buffer.from([0x80 | 126, body.length >> 8, body.length & 0xff]);
  else {
    length = Buffer.alloc(9);
    length[0] = 0x80 | 127;
    length.writeBigUInt64BE(BigInt(body.length), 1);
  }
  const masked = Buffer.from(body.map((byte, at) => byte ^ mask[at % 4]));
  return Buffer.concat([Buffer.from([head]), length, mask, masked]);
}

/** A TCP connection that shows every byte. */
export class Raw {
  static async connect(port, bytes) {
    const raw = new Raw(net.connect(port, '127.0.0.1'));
    await within('the TCP connection', new Promise((open, fail) => raw.socket.once('connect', open).once('error', fail)));
    if (bytes) raw.socket.write(bytes);
    return raw;
  }

  constructor(socket) {
    this.socket = socket;
    this.bytes = Buffer.alloc(0);
    this.waiting = [];
    this.over = false;
    const wake = () => {
      for (const go of this.waiting.splice(0)) go();
    };
    socket.on('data', (data) => {
      this.bytes = Buffer.concat([this.bytes, data]);
      wake();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      this.over = true;
      wake();
    });
  }

  write(bytes) {
    this.socket.write(bytes);
  }

  /** All bytes so far, once `found(bytes)` is truthy; fails when the connection ends first. */
  async until(what, found) {
    const look = async () => {
      while (!found(this.bytes)) {
        if (this.over) throw new Error(`connection ended before ${what}; got ${JSON.stringify(this.bytes.toString('latin1'))}`);
        await new Promise((wake) => this.waiting.push(wake));
      }
      return this.bytes;
    };
    return within(what, look());
  }

  /** The answer's head: status and headers; what follows stays in `bytes`. */
  async head() {
    await this.until('the end of the response head', (bytes) => bytes.includes('\r\n\r\n'));
    const end = this.bytes.indexOf('\r\n\r\n');
    const [first, ...lines] = this.bytes.subarray(0, end).toString('latin1').split('\r\n');
    this.bytes = this.bytes.subarray(end + 4);
    const headers = Object.fromEntries(
      lines.map((line) => [line.slice(0, line.indexOf(':')).toLowerCase(), line.slice(line.indexOf(':') + 1).trim()]),
    );
    return { status: Number(first.split(' ')[1]), headers };
  }

  /** The next frame of the server: {head, payload}. Server frames are never masked. */
  async frame(what = 'a frame') {
    const size = (bytes) => {
      if (bytes.length < 2) return null;
      if (bytes[1] < 126) return { at: 2, length: bytes[1] };
      if (bytes[1] === 126) return bytes.length < 4 ? null : { at: 4, length: bytes.readUInt16BE(2) };
      return bytes.length < 10 ? null : { at: 10, length: Number(bytes.readBigUInt64BE(2)) };
    };
    await this.until(what, (bytes) => size(bytes) && bytes.length >= size(bytes).at + size(bytes).length);
    const { at, length } = size(this.bytes);
    const found = { head: this.bytes[0], payload: this.bytes.subarray(at, at + length) };
    this.bytes = this.bytes.subarray(at + length);
    return found;
  }

  /** The next frame that is not an Action Cable ping. */
  async message(what) {
    for (;;) {
      const found = await this.frame(what);
      if (!found.payload.toString().startsWith('{"type":"ping"')) return found;
    }
  }

  async ended() {
    const look = async () => {
      while (!this.over) await new Promise((wake) => this.waiting.push(wake));
    };
    await within('the TCP connection to end', look());
  }

  end() {
    this.socket.destroy();
  }
}
