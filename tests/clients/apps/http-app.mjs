// App server (b): RPC over HTTP, built on @anycable/serverless-js as its documentation shows.
// Prints one JSON line with its addresses, then serves until it is killed.
//
//   node apps/http-app.mjs [--port N] [--secret BEARER]

import { AsyncLocalStorage } from 'node:async_hooks';
import http from 'node:http';
import { Readable } from 'node:stream';
import { parseArgs } from 'node:util';
import { loadServerless } from './serverless.mjs';
import { Journal, authenticate, channels, farewell } from './channels.mjs';
import { control } from './control.mjs';

const { Application, Channel, handler } = await loadServerless();

const { values } = parseArgs({
  options: { port: { type: 'string', default: '0' }, secret: { type: 'string', default: '' } },
});
const journal = new Journal();

/** What one call's answer has beside what the library knows of, which has neither presence nor keys for the server. */
const extras = new AsyncLocalStorage();

/** The library's handle, seen through the interface of channels.mjs. */
class Call {
  constructor(handle, params, { name, subscribing = false }) {
    this.handle = handle;
    this.params = { channel: name, ...params };
    this.subscribing = subscribing;
  }
  get identity() {
    return this.handle.identifiers;
  }
  get env() {
    return this.handle.env;
  }
  get sid() {
    return this.handle.delegate.id;
  }
  // The library keeps a channel's whole state as one JSON text under the identifier. In a Disconnect call the
  // server has wrapped that once more, because there every channel's map travels as text.
  get state() {
    const state = this.handle.state ?? {};
    const nested = state[this.handle.identifier];
    return nested ? JSON.parse(nested) : state;
  }
  set state(state) {
    this.handle.state = state;
  }
  get connectionState() {
    return this.env.cstate ?? {};
  }
  set connectionState(state) {
    this.env.cstate = state;
  }
  transmit(message) {
    // The library puts what `subscribed` transmits behind the confirmation; Rails puts it in front. Going to the
    // connection directly gives Rails' order, which is the one that the conformance list asks for.
    if (this.subscribing) this.handle.delegate.transmit({ identifier: this.handle.identifier, message });
    else this.handle.transmit(message);
  }
  streamFrom(name) {
    this.handle.streamFrom(name);
  }
  stopStreamFrom(name) {
    this.handle.stopStreamFrom(name);
  }
  stopAllStreams() {
    this.handle.stopAllStreams();
  }
  reject() {
    this.handle.reject();
  }
  closeConnection() {
    this.handle.delegate.close();
  }
  presence(event) {
    extras.getStore().presence = event;
  }
  gatherOn(stream) {
    extras.getStore().istate = { $p: stream, $w: stream };
  }
}

class SampleChannel extends Channel {
  constructor(name, behaviour) {
    super();
    this.name = name;
    this.behaviour = behaviour;
  }
  async subscribed(handle, params) {
    await this.behaviour.subscribed(new Call(handle, params, { name: this.name, subscribing: true }));
  }
  async unsubscribed(handle, params) {
    await this.behaviour.unsubscribed(new Call(handle, params, { name: this.name }));
  }
  async handleAction(handle, params, action, payload) {
    const act = this.behaviour.actions[action];
    if (!act) throw new Error(`no action ${action}`);
    await act(new Call(handle, params, { name: this.name }), payload);
  }
}

class SampleApplication extends Application {
  async connect(handle) {
    const { url, headers = {} } = handle.env;
    const { accepted, identity } = await authenticate(journal, { url, headers, sid: handle.id });
    if (!accepted) {
      handle.reject();
      return;
    }
    handle.identifiedBy(identity);
    handle.env.cstate = { ...handle.env.cstate, seen: 'connect' };
  }
  async handleCommand(handle, verb, identifier, data) {
    journal.record({ event: 'command', verb, identifier, data, sid: handle.id });
    return super.handleCommand(handle, verb, identifier, data);
  }
  async handleClose(handle, subscriptions) {
    await farewell(journal, handle.env);
    await super.handleClose(handle, subscriptions);
    journal.record({
      event: 'disconnect',
      user: handle.identifiers.user,
      subscriptions: subscriptions ?? [],
      sid: handle.id,
      url: handle.env.url,
      connection_state: handle.env.cstate ?? {},
    });
  }
}

const app = new SampleApplication();
for (const [name, behaviour] of Object.entries(channels(journal))) {
  app.registerChannel(name, new SampleChannel(name, behaviour));
}

async function serve(request, response) {
  const method = request.url.split('/').pop();
  journal.record({
    event: 'metadata',
    method,
    sid: request.headers['x-anycable-meta-sid'] ?? '',
    protov: request.headers['x-anycable-meta-protov'] ?? '',
  });
  if (values.secret && request.headers.authorization !== `Bearer ${values.secret}`) {
    response.writeHead(401).end();
    return;
  }
  if (request.method !== 'POST' || !['connect', 'command', 'disconnect'].includes(method)) {
    response.writeHead(404).end();
    return;
  }
  try {
    // The library was written for a fetch-style request; it reads the body as a stream.
    const seen = { url: `http://app${request.url}`, headers: new Headers(request.headers), body: Readable.from(request) };
    const extra = {};
    const answer = await extras.run(extra, () => handler(seen, app));
    if (extra.istate) answer.env = { ...answer.env, istate: { ...answer.env?.istate, ...extra.istate } };
    if (extra.presence) answer.presence = extra.presence;
    response.writeHead(200, { 'content-type': 'application/json' });
    response.end(JSON.stringify(answer));
  } catch (error) {
    journal.record({ event: 'crash', message: error.message });
    response.writeHead(500).end(error.message);
  }
}

const server = http.createServer((request, response) => {
  if (!control(journal, request, response)) serve(request, response);
});
server.listen(Number(values.port), '127.0.0.1', () => {
  const { port } = server.address();
  const base = `http://127.0.0.1:${port}`;
  console.log(JSON.stringify({ rpc: `${base}/_anycable`, port, control: base }));
});
