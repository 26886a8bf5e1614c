// App server (a): the RPC service on @grpc/grpc-js, answering as a Rails app does.
// Prints one JSON line with its addresses, then serves until it is killed.
//
//   node apps/grpc-app.mjs [--port N]

import http from 'node:http';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import { Journal, authenticate, channels, farewell } from './channels.mjs';
import { control } from './control.mjs';

const SUCCESS = 'SUCCESS';
const FAILURE = 'FAILURE';

const { values } = parseArgs({ options: { port: { type: 'string', default: '0' } } });
const journal = new Journal();
const registry = channels(journal);

const sidOf = (call) => String(call.metadata.get('sid')[0] ?? '');

/** Keys to send back so that `before` becomes `after`: the changed ones, and removed ones as empty text. */
function changes(before, after) {
  const changed = {};
  for (const [name, value] of Object.entries(after)) if (before[name] !== value) changed[name] = value;
  for (const name of Object.keys(before)) if (!(name in after)) changed[name] = '';
  return changed;
}

class Call {
  transmissions = [];
  streams = [];
  stoppedStreams = [];
  stopStreams = false;
  rejected = false;
  disconnect = false;

  constructor({ identifier, identity, env, istate, sid }) {
    this.identifier = identifier;
    this.params = JSON.parse(identifier);
    this.identity = identity;
    this.env = env;
    this.sid = sid;
    this.state = { ...istate };
    this.connectionState = { ...env.cstate };
  }

  transmit(message) {
    this.transmissions.push(JSON.stringify({ identifier: this.identifier, message }));
  }
  streamFrom(name) {
    this.streams.push(name);
  }
  stopStreamFrom(name) {
    this.stoppedStreams.push(name);
  }
  stopAllStreams() {
    this.stopStreams = true;
  }
  reject() {
    this.rejected = true;
  }
  closeConnection() {
    this.disconnect = true;
  }
  presence(event) {
    this.presenceEvent = event;
  }
  gatherOn(stream) {
    this.state = { ...this.state, $p: stream, $w: stream };
  }
}

async function connect({ request, metadata }) {
  const env = request.env ?? { url: '', headers: {} };
  const sid = sidOf({ metadata });
  journal.record({ event: 'metadata', method: 'connect', sid, protov: String(metadata.get('protov')[0] ?? '') });
  const { accepted, identity } = await authenticate(journal, { url: env.url, headers: env.headers, sid });
  if (!accepted) {
    const refusal = { type: 'disconnect', reason: 'unauthorized', reconnect: false };
    return { status: FAILURE, transmissions: [JSON.stringify(refusal)], error_msg: 'Auth failed' };
  }
  return {
    status: SUCCESS,
    identifiers: JSON.stringify(identity),
    transmissions: [JSON.stringify({ type: 'welcome', sid })],
    env: { cstate: { seen: 'connect' }, istate: {} },
  };
}

async function command({ request, metadata }) {
  const { command: verb, identifier, connection_identifiers, data, env } = request;
  const sid = sidOf({ metadata });
  journal.record({ event: 'command', verb, identifier, data, sid });
  const call = new Call({ identifier, identity: JSON.parse(connection_identifiers), env, istate: env.istate, sid });
  const channel = registry[call.params.channel];
  if (!channel) throw new Error(`no channel ${call.params.channel}`);
  if (verb === 'subscribe') {
    await channel.subscribed(call);
    const type = call.rejected ? 'reject_subscription' : 'confirm_subscription';
    call.transmissions.push(JSON.stringify({ identifier, type }));
  } else if (verb === 'unsubscribe') {
    await channel.unsubscribed(call);
  } else {
    const { action, ...payload } = JSON.parse(data);
    if (!channel.actions[action]) throw new Error(`no action ${action}`);
    await channel.actions[action](call, payload);
  }
  return {
    status: call.rejected ? FAILURE : SUCCESS,
    disconnect: call.disconnect,
    stop_streams: call.stopStreams,
    streams: call.streams,
    stopped_streams: call.stoppedStreams,
    transmissions: call.transmissions,
    presence: call.presenceEvent,
    env: { cstate: changes(env.cstate, call.connectionState), istate: changes(env.istate, call.state) },
  };
}

async function disconnect({ request, metadata }) {
  const { identifiers, subscriptions, env } = request;
  const sid = sidOf({ metadata });
  const identity = JSON.parse(identifiers);
  await farewell(journal, env);
  for (const identifier of subscriptions) {
    const istate = env.istate[identifier] ? JSON.parse(env.istate[identifier]) : {};
    const call = new Call({ identifier, identity, env, istate, sid });
    await registry[call.params.channel].unsubscribed(call);
  }
  journal.record({ event: 'disconnect', user: identity.user, subscriptions, sid, url: env.url, connection_state: env.cstate });
  return { status: SUCCESS };
}

/** Serves a method: what it throws is the app's crash, reported as UNKNOWN as the Ruby server does. */
const method = (handle) => (call, answer) => {
  handle(call).then(
    (response) => answer(null, response),
    (error) => {
      journal.record({ event: 'crash', message: error.message });
      answer({ code: grpc.status.UNKNOWN, details: error.message });
    },
  );
};

const schema = loader.loadSync(fileURLToPath(new URL('../../../proto/anycable.proto', import.meta.url)), {
  keepCase: true,
  enums: String,
  defaults: true,
});
const { anycable } = grpc.loadPackageDefinition(schema);

const server = new grpc.Server();
server.addService(anycable.RPC.service, {
  Connect: method(connect),
  Command: method(command),
  Disconnect: method(disconnect),
});

const side = http.createServer((request, response) => {
  if (!control(journal, request, response)) response.writeHead(404).end();
});

server.bindAsync(`127.0.0.1:${values.port}`, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  side.listen(0, '127.0.0.1', () => {
    console.log(JSON.stringify({ rpc: `127.0.0.1:${port}`, port, control: `http://127.0.0.1:${side.address().port}` }));
  });
});
