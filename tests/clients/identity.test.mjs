// Who a client is without asking the app: JWT, --noauth, and streams that carry their own permission.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createCable } from '@anycable/core';
import { App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { within } from './harness/deadline.mjs';
import { BASE, Socket } from './harness/socket.mjs';
import { tapped } from './harness/tap.mjs';
import { derivedKey, jwt, seconds, signedStream } from './harness/token.mjs';
import { loadServerless } from './apps/serverless.mjs';

const SECRET = 's3cr3t';
const EXT = '{"user":"7"}';
const UNAUTHORIZED = '{"type":"disconnect","reason":"unauthorized","reconnect":false}';
const EXPIRED = '{"type":"disconnect","reason":"token_expired","reconnect":false}';
const pubsub = (fields) => JSON.stringify({ channel: '$pubsub', ...fields });

describe('JWT, in front of an app', () => {
  let app;
  let server;
  before(async () => {
    app = await App.start('grpc');
    server = await Cableway.start(['--jwt-secret', SECRET, '--rpc-host', app.rpc]);
  });
  after(async () => {
    await server?.stop('SIGKILL');
    await app?.stop();
  });
  const valid = jwt({ ext: EXT, exp: seconds(60) }, SECRET);

  const carriers = {
    'the query': (token) => [`/cable?jid=${token}`, {}],
    'a header': (token) => ['/cable', { headers: { 'x-jid': token } }],
    'a subprotocol': (token) => ['/cable', { protocols: [BASE, `anycable-token.${token}`] }],
  };
  for (const [where, carry] of Object.entries(carriers)) {
    test(`a valid token in ${where} is welcomed by the server itself, with no Connect call`, async () => {
      await app.mark();
      const [path, options] = carry(valid);
      const socket = await Socket.open(server.url(path), options);
      assert.match(await socket.next(), /^\{"type":"welcome","sid":"[^"]+"\}$/);
      assert.equal(socket.ws.protocol, BASE);
      await socket.close();
      const fresh = (await app.events()).slice(app.seen);
      assert.deepEqual(fresh.filter(({ event }) => event === 'connect'), []);
    });
  }

  for (const [what, token, said, close] of [
    ['an expired token', jwt({ ext: EXT, exp: seconds(-60) }, SECRET), EXPIRED, { code: 1000, reason: 'Auth Failed' }],
    ['a wrong signature', jwt({ ext: EXT }, 'other'), UNAUTHORIZED, { code: 1000, reason: 'Auth Failed' }],
    ['a wrong signature on an expired token', jwt({ ext: EXT, exp: seconds(-60) }, 'other'), UNAUTHORIZED, { code: 1000, reason: 'Auth Failed' }],
    ['a token from the future', jwt({ ext: EXT, nbf: seconds(600) }, SECRET), UNAUTHORIZED, { code: 1000, reason: 'Auth Failed' }],
    ['an unsigned token', jwt({ ext: EXT }, SECRET, 'none'), UNAUTHORIZED, { code: 1000, reason: 'Auth Failed' }],
    ['something that is no token', 'a.b.c', UNAUTHORIZED, { code: 1000, reason: 'Auth Failed' }],
    ['a token without identifiers', jwt({ user: 7 }, SECRET), null, { code: 1011, reason: 'Auth Error' }],
    ['identifiers that are no string', jwt({ ext: { user: 7 } }, SECRET), null, { code: 1011, reason: 'Auth Error' }],
  ]) {
    test(`${what} ${said ? `is told ${JSON.parse(said).reason}` : 'is an error'} and closed with ${close.code}`, async () => {
      const socket = await Socket.open(server.url(`/cable?jid=${token}`));
      if (said) assert.equal(await socket.next(), said);
      assert.deepEqual(await socket.closed(), close);
      assert.deepEqual(socket.inbox.drain(), []);
    });
  }

  for (const [what, token] of [
    ['HS384', jwt({ ext: EXT }, SECRET, 'HS384')],
    ['HS512', jwt({ ext: EXT }, SECRET, 'HS512')],
    ['no expiry', jwt({ ext: EXT }, SECRET)],
    ['empty identifiers', jwt({ ext: '' }, SECRET)],
    ['an issue date in the future', jwt({ ext: EXT, iat: seconds(600) }, SECRET)],
  ]) {
    test(`a token with ${what} is welcomed`, async () => {
      await (await Socket.welcomed(server.url(`/cable?jid=${token}`))).close();
    });
  }

  test('the header wins over the query, and the raw token reaches the app in the environment', async () => {
    const socket = await Socket.welcomed(server.url('/cable?jid=rubbish'), { headers: { 'x-jid': valid } });
    const identifier = '{"channel":"EnvChannel"}';
    await socket.subscribe(identifier);
    socket.perform(identifier, 'env');
    const { headers, identity } = (await socket.json()).message;
    assert.equal(headers['x-jid'], valid);
    assert.deepEqual(identity, JSON.parse(EXT));
    await socket.close();
  });

  test('without a token, or with an empty one, the app decides', async () => {
    for (const path of ['/cable?auth=no', '/cable?auth=no&jid=']) {
      const socket = await Socket.open(server.url(path));
      assert.equal((await socket.json()).reason, 'unauthorized');
    }
    await (await Socket.welcomed(server.url())).close();
  });

  test('identifiers of a token are matched byte for byte by a remote disconnect', async () => {
    const odd = '{ "user" : "7" }';
    const socket = await Socket.welcomed(server.url(`/cable?jid=${jwt({ ext: odd }, SECRET)}`));
    await server.post({ command: 'disconnect', payload: { identifier: EXT } });
    assert.deepEqual(await socket.settle(), []);
    await server.post({ command: 'disconnect', payload: { identifier: odd } });
    assert.equal((await socket.json()).reason, 'remote');
  });

  test('a token made by @anycable/serverless-js lets @anycable/core in, however it carries it', async () => {
    const own = await Cableway.start(['--jwt-secret', SECRET, '--enforce-jwt', '--norpc']);
    const { identificator } = await loadServerless();
    const token = await identificator(SECRET, '1h').generateToken({ user: 'seven' });
    for (const websocketAuthStrategy of ['param', 'header', 'sub-protocol']) {
      const { TappedWebSocket } = tapped();
      const cable = createCable(own.url(), { websocketImplementation: TappedWebSocket, websocketAuthStrategy, auth: { token } });
      await within(`a welcome by ${websocketAuthStrategy}`, cable.connect());
      cable.disconnect();
    }
    await own.stop('SIGKILL');
  });

  test('@anycable/core refreshes a token that has expired', async () => {
    const { TappedWebSocket } = tapped();
    const cable = createCable(server.url(), {
      websocketImplementation: TappedWebSocket,
      auth: { token: jwt({ ext: EXT, exp: seconds(-1) }, SECRET) },
      tokenRefresher: async (transport) => transport.setToken(valid),
    });
    const connected = new Promise((ready) => cable.on('connect', ready));
    cable.connect().catch(() => {});
    await within('a welcome with the fresh token', connected);
    cable.disconnect();
  });
});

describe('JWT, switches', () => {
  test('--enforce_jwt refuses a client without a token', async () => {
    const server = await Cableway.start(['--jwt_secret', SECRET, '--enforce_jwt', '--norpc']);
    const socket = await Socket.open(server.url());
    assert.equal(await socket.next(), UNAUTHORIZED);
    assert.deepEqual(await socket.closed(), { code: 1000, reason: 'Auth Failed' });
    await server.stop('SIGKILL');
  });

  test('--jwt-close-expired closes a client when its token runs out, and it comes back with a fresh one', async () => {
    const server = await Cableway.start(['--jwt_secret', SECRET, '--jwt-close-expired', '--norpc']);
    const short = () => jwt({ ext: EXT, exp: seconds(2) }, SECRET);
    const [stays, goes] = await Promise.all([
      Socket.welcomed(server.url(`/cable?jid=${jwt({ ext: EXT, exp: seconds(600) }, SECRET)}`)),
      Socket.welcomed(server.url(`/cable?jid=${short()}`)),
    ]);
    assert.equal(await goes.next(), '{"type":"disconnect","reason":"token_expired","reconnect":true}');
    assert.deepEqual(await goes.closed(), { code: 1000, reason: 'Token expired' });
    assert.deepEqual(stays.inbox.drain().filter((text) => !text.includes('"ping"')), []);
    await stays.close();

    const { TappedWebSocket } = tapped();
    let refreshed = 0;
    const cable = createCable(server.url(), {
      websocketImplementation: TappedWebSocket,
      auth: { token: short() },
      tokenRefresher: async (transport) => {
        refreshed += 1;
        transport.setToken(jwt({ ext: EXT, exp: seconds(600) }, SECRET));
      },
    });
    let connects = 0;
    const again = new Promise((ready) => cable.on('connect', () => (connects += 1) === 2 && ready()));
    cable.connect().catch(() => {});
    await within('a second welcome, with the fresh token', again);
    assert.equal(refreshed, 1);
    cable.disconnect();
    await server.stop('SIGKILL');
  });

  test('--jwt_param renames the query and the header', async () => {
    const server = await Cableway.start(['--jwt_secret', SECRET, '--jwt_param', 'token', '--norpc']);
    const token = jwt({ ext: EXT }, SECRET);
    await (await Socket.welcomed(server.url(`/cable?token=${token}`))).close();
    await (await Socket.welcomed(server.url(), { headers: { 'x-token': token } })).close();
    const old = await Socket.open(server.url(`/cable?jid=${token}`));
    assert.equal(await old.next(), UNAUTHORIZED);
    await server.stop('SIGKILL');
  });

  test('a bad token is refused even with --noauth, and without one everybody is let in', async () => {
    const server = await Cableway.start(['--secret', SECRET, '--noauth', '--norpc']);
    const bad = await Socket.open(server.url(`/cable?jid=${jwt({ ext: EXT }, 'other')}`));
    assert.equal(await bad.next(), UNAUTHORIZED);
    await (await Socket.welcomed(server.url())).close();
    await server.stop('SIGKILL');
  });

  test('without RPC and without a token a client is unauthorized', async () => {
    const server = await Cableway.start(['--norpc']);
    const socket = await Socket.open(server.url());
    assert.equal(await socket.next(), UNAUTHORIZED);
    assert.deepEqual(await socket.closed(), { code: 1000, reason: 'Auth Failed' });
    await server.stop('SIGKILL');
  });

  test('with --noauth a client is identified by its session id', async () => {
    const server = await Cableway.start(['--noauth', '--norpc']);
    const socket = await Socket.welcomed(server.url());
    await server.post({ command: 'disconnect', payload: { identifier: JSON.stringify({ sid: socket.sid }) } });
    assert.equal((await socket.json()).reason, 'remote');
    await server.stop('SIGKILL');
  });
});

describe('streams that carry their own permission', () => {
  let server;
  before(async () => {
    server = await Cableway.start(['--secret', SECRET, '--noauth', '--norpc', '--turbo-streams', '--cable-ready'], { key: null });
    server.settings.key = derivedKey(SECRET, 'broadcast-cable');
  });
  after(() => server?.stop('SIGKILL'));

  test('the worked examples of the contract hold', () => {
    assert.equal(signedStream('room:7', SECRET), 'InJvb206NyI=--d6c2f92b9915c1e511e0fc1001d7ad71a510372dbe1112481eb67e5d20e1b455');
    assert.equal(derivedKey(SECRET, 'broadcast-cable'), '83149057b2f956b5f862c0ef5ad6a24d3677dc076d77e8999c24f77ca17d7a20');
  });

  for (const [what, identifier, stream] of [
    ['a signed $pubsub stream', pubsub({ signed_stream_name: signedStream('room:7', SECRET) }), 'room:7'],
    ['a name in the URL-safe alphabet', pubsub({ signed_stream_name: signedStream('r>>>???', SECRET, 'base64url') }), 'r>>>???'],
    ['a name in the standard alphabet', pubsub({ signed_stream_name: signedStream('r>>>???', SECRET) }), 'r>>>???'],
    ['a Turbo stream', JSON.stringify({ channel: 'Turbo::StreamsChannel', signed_stream_name: signedStream('turbo', SECRET) }), 'turbo'],
    ['a CableReady stream', JSON.stringify({ channel: 'CableReady::Stream', identifier: signedStream('ready', SECRET) }), 'ready'],
  ]) {
    test(`${what} is confirmed by the server and delivered`, async () => {
      const socket = await Socket.welcomed(server.url());
      socket.send({ command: 'subscribe', identifier });
      assert.equal(await socket.next(), `{"type":"confirm_subscription","identifier":${JSON.stringify(identifier)}}`);
      await server.broadcast(stream, 'hello');
      assert.equal(await socket.next(), `{"identifier":${JSON.stringify(identifier)},"message":"hello"}`);
      socket.send({ command: 'unsubscribe', identifier });
      assert.deepEqual(await socket.settle(), []);
      await socket.close();
    });
  }

  const good = signedStream('room:7', SECRET);
  for (const [what, identifier] of [
    ['a signature of another key', pubsub({ signed_stream_name: signedStream('room:7', 'other') })],
    ['an empty signature', pubsub({ signed_stream_name: `${good.split('--')[0]}--` })],
    ['no signature', pubsub({ signed_stream_name: good.split('--')[0] })],
    ['a name that is no JSON string', pubsub({ signed_stream_name: signedStream({ a: 1 }, SECRET) })],
    ['an empty name', pubsub({ signed_stream_name: signedStream('', SECRET) })],
    ['a public name while public streams are off', pubsub({ stream_name: 'room:7' })],
    ['neither name', pubsub({})],
    ['a bad signed name beside a public one', pubsub({ signed_stream_name: 'x--y', stream_name: 'room:7' })],
    ['a channel that no one serves', '{"channel":"EchoChannel"}'],
  ]) {
    test(`${what} is rejected`, async () => {
      const socket = await Socket.welcomed(server.url());
      socket.send({ command: 'subscribe', identifier });
      assert.equal(await socket.next(), `{"type":"reject_subscription","identifier":${JSON.stringify(identifier)}}`);
      await socket.close();
    });
  }

  test('perform on a signed stream without an app is ignored', async () => {
    const socket = await Socket.welcomed(server.url());
    const identifier = pubsub({ signed_stream_name: good });
    await socket.subscribe(identifier);
    socket.perform(identifier, 'anything');
    assert.deepEqual(await socket.settle(), []);
    await socket.close();
  });

  test('@anycable/core follows a signed stream', async () => {
    const { TappedWebSocket } = tapped();
    const cable = createCable(server.url(), { websocketImplementation: TappedWebSocket });
    const channel = cable.streamFromSigned(signedStream('cabled', SECRET));
    const message = new Promise((got) => channel.on('message', got));
    await within('the confirmation', channel.ensureSubscribed());
    await server.broadcast('cabled', { n: 1 });
    assert.deepEqual(await within('the broadcast', message), { n: 1 });
    cable.disconnect();
  });

  test('without a secret every signed name is refused', async () => {
    const own = await Cableway.start(['--noauth', '--norpc']);
    const socket = await Socket.welcomed(own.url());
    for (const key of ['', SECRET]) {
      const { type } = await socket.subscribe(pubsub({ signed_stream_name: signedStream('room:7', key) }));
      assert.equal(type, 'reject_subscription');
    }
    await own.stop('SIGKILL');
  });

  test('--public-streams takes names as they are', async () => {
    const own = await Cableway.start(['--noauth', '--norpc', '--public-streams']);
    const socket = await Socket.welcomed(own.url());
    assert.equal((await socket.subscribe(pubsub({ stream_name: 'open' }))).type, 'confirm_subscription');
    await own.broadcast('open', 1);
    assert.equal((await socket.json()).message, 1);
    await own.stop('SIGKILL');
  });

  test('streams that need no app make no Disconnect call due', async () => {
    const app = await App.start('grpc');
    const own = await Cableway.start(['--secret', SECRET, '--rpc-host', app.rpc]);
    const token = jwt({ ext: '{"user":"silent"}' }, SECRET);
    const socket = await Socket.welcomed(own.url(`/cable?jid=${token}`));
    await socket.subscribe(pubsub({ signed_stream_name: good }));
    await socket.close();
    const other = await Socket.welcomed(own.url('/cable?user=loud'));
    await other.close();
    await app.event("the other client's Disconnect", ({ event, user }) => event === 'disconnect' && user === 'loud');
    assert.deepEqual((await app.events()).filter(({ event, user }) => event === 'disconnect' && user === 'silent'), []);
    await own.stop('SIGKILL');
    await app.stop();
  });
});
