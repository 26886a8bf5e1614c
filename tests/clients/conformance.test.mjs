// The conformance list of the Action Cable contract (section 8), a test for every line, run by every client library
// against every kind of app server. What a library hides is looked at on the wire below it.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import * as anycable from './clients/anycable.mjs';
import * as rails from './clients/rails.mjs';
import * as raw from './clients/raw.mjs';

const CLIENTS = [rails, anycable, raw];

for (const kind of APPS) {
  describe(`app over ${kind}`, () => {
    let app;
    let server;
    before(async () => {
      app = await App.start(kind);
      server = await Cableway.start(['--rpc-host', app.rpc, '--headers', 'cookie,x-auth,x-trace']);
    });
    after(async () => {
      await server?.stop('SIGKILL');
      await app?.stop();
    });

    for (const { Client, name } of CLIENTS) {
      describe(name, () => {
        const open = [];
        let serial = 0;
        // A name that no other test uses: streams and users are shared by everything on the server.
        const unique = (word) => `${word}-${kind}-${CLIENTS.findIndex((client) => client.name === name)}-${(serial += 1)}`;
        const connect = async (path = '/cable', options = {}) => {
          const client = new Client(server.url(path), options);
          open.push(client);
          return client.connect();
        };
        after(async () => {
          for (const client of open) await client.close();
        });
        const subscribed = async (client, channel, params) => {
          const subscription = client.subscribe(channel, params);
          assert.equal(await subscription.settled(), 'connected');
          return subscription;
        };

        test('a client is welcomed, with its session id', async () => {
          const client = await connect();
          const [welcome] = client.wire.received.filter(({ type }) => type !== 'ping');
          assert.equal(welcome.type, 'welcome');
          assert.equal(typeof welcome.sid, 'string');
          assert.ok(welcome.sid.length > 0);
        });

        test('pings carry integers that grow', async () => {
          const client = await connect('/cable?pi=1&ptp=ms');
          const pings = () => client.wire.received.filter(({ type }) => type === 'ping').map(({ message }) => message);
          await client.wire.until('three pings', () => pings().length >= 3);
          for (const [at, ping] of pings().entries()) {
            assert.ok(Number.isInteger(ping), `${ping} is not an integer`);
            if (at > 0) assert.ok(ping > pings()[at - 1], `${pings()} does not grow`);
          }
        });

        test('the URL, query, cookies and chosen headers reach the app, others do not', async () => {
          const headers = { cookie: 'user=ann; theme=dark', 'x-trace': 'abc', 'x-secret': 'no' };
          const client = await connect('/cable?room=7&flag', { headers });
          const channel = await subscribed(client, 'EnvChannel');
          await channel.perform('env');
          const seen = await channel.next('the environment');
          assert.equal(seen.url, `http://${server.origin}/cable?room=7&flag`);
          assert.equal(seen.headers.cookie, 'user=ann; theme=dark');
          assert.equal(seen.headers['x-trace'], 'abc');
          assert.equal(seen.headers.REMOTE_ADDR, '127.0.0.1');
          assert.equal('x-secret' in seen.headers, false);
          assert.equal(seen.identity.user, 'ann');
          assert.equal(seen.sid, client.wire.received.find(({ type }) => type === 'welcome').sid);
          assert.equal(seen.connection_state.seen, 'connect');
        });

        for (const [what, path, headers] of [
          ['by a cookie', '/cable', { cookie: 'auth=no' }],
          ['by a header', '/cable', { 'x-auth': 'no' }],
          ['by the query', '/cable?auth=no', {}],
        ]) {
          test(`a client refused ${what} is told "unauthorized" and closed`, async () => {
            const client = new Client(server.url(path), { headers });
            open.push(client);
            const { received, close, reconnects } = await client.refused();
            const [message] = received.filter(({ type }) => type !== 'ping');
            assert.equal(message.type, 'disconnect');
            assert.equal(message.reason, 'unauthorized');
            assert.deepEqual(close, { code: 1000, reason: 'Auth Failed' });
            // The HTTP library leaves `reconnect` out; only what the app says can stop a client.
            if (message.reconnect === false) assert.equal(reconnects, false);
            else assert.equal(kind, 'http');
          });
        }

        test('a subscription is confirmed', async () => {
          const client = await connect();
          const channel = await subscribed(client, 'EchoChannel');
          const confirmations = client.wire.received.filter(({ type }) => type === 'confirm_subscription');
          assert.deepEqual(confirmations, [{ type: 'confirm_subscription', identifier: channel.identifier }].map((m) => ({ ...confirmations[0], ...m })));
        });

        test('a subscription is rejected', async () => {
          const client = await connect();
          const channel = client.subscribe('RejectChannel');
          assert.equal(await channel.settled(), 'rejected');
          const rejected = client.wire.received.filter(({ type }) => type === 'reject_subscription');
          assert.deepEqual(rejected.map(({ identifier }) => identifier), [channel.identifier]);
        });

        test('a rejection that lists streams attaches none of them', async () => {
          const client = await connect();
          const [forbidden, marker] = [unique('forbidden'), unique('marker')];
          const channel = client.subscribe('RejectLateChannel', { stream: forbidden });
          assert.equal(await channel.settled(), 'rejected');
          const witness = await subscribed(client, 'SharedChannel', { stream: marker });
          await server.broadcast(forbidden, 'secret');
          await server.broadcast(marker, 'marker');
          assert.equal(await witness.next('the marker'), 'marker');
          await client.wire.barrier();
          assert.deepEqual(client.wire.messages(channel.identifier), []);
        });

        test('a channel gets the parameters of its identifier', async () => {
          const client = await connect();
          const params = { id: 7, name: 'a "quoted" <b>name</b> ü', list: [1, 2], nested: { deep: true } };
          const channel = await subscribed(client, 'ParamsChannel', params);
          assert.deepEqual((await channel.next('the parameters')).params, { channel: 'ParamsChannel', ...params });
        });

        test('perform with arguments reaches the action and its answer comes back', async () => {
          const client = await connect();
          const channel = await subscribed(client, 'EchoChannel');
          await channel.perform('echo', { text: 'hi <b>&</b> ü \u2028', n: 1.5, none: null });
          assert.deepEqual(await channel.next('the echo'), { action: 'echo', data: { text: 'hi <b>&</b> ü \u2028', n: 1.5, none: null } });
        });

        test('perform without arguments reaches the action', async () => {
          const client = await connect();
          const channel = await subscribed(client, 'EchoChannel');
          await channel.perform('bare');
          assert.deepEqual(await channel.next('the answer'), { action: 'bare', arguments: 0 });
        });

        test('what `subscribed` transmits comes before the confirmation, in order', async () => {
          const client = await connect();
          const channel = await subscribed(client, 'GreetingChannel');
          assert.equal(await channel.next('the first'), 'first');
          assert.equal(await channel.next('the second'), 'second');
          const seen = client.wire.received.filter(({ identifier }) => identifier === channel.identifier);
          assert.deepEqual(seen.map(({ type, message }) => type ?? message), ['first', 'second', 'confirm_subscription']);
        });

        test('a stream is delivered until the channel is left', async () => {
          const client = await connect();
          const [id, marker] = [unique('room'), unique('marker')];
          const room = await subscribed(client, 'RoomChannel', { id });
          const witness = await subscribed(client, 'SharedChannel', { stream: marker });
          for (const text of ['one', 'two', 'three']) await server.broadcast(`room:${id}`, { text });
          for (const text of ['one', 'two', 'three']) assert.deepEqual(await room.next(text), { text });
          await room.unsubscribe();
          await client.wire.barrier();
          await server.broadcast(`room:${id}`, { text: 'four' });
          await server.broadcast(marker, 'marker');
          assert.equal(await witness.next('the marker'), 'marker');
          await client.wire.barrier();
          assert.deepEqual(client.wire.messages(room.identifier).map(({ text }) => text), ['one', 'two', 'three']);
        });

        test('two parameter sets of a channel on one stream get a copy each', async () => {
          const client = await connect();
          const stream = unique('shared');
          const first = await subscribed(client, 'SharedChannel', { stream, set: 1 });
          const second = await subscribed(client, 'SharedChannel', { stream, set: 2 });
          await server.broadcast(stream, 'once each');
          assert.equal(await first.next('the first copy'), 'once each');
          assert.equal(await second.next('the second copy'), 'once each');
          await first.unsubscribe();
          await client.wire.barrier();
          await server.broadcast(stream, 'second only');
          assert.equal(await second.next('the second copy'), 'second only');
          await client.wire.barrier();
          assert.deepEqual(client.wire.messages(first.identifier), ['once each']);
        });

        test('stopping one stream keeps another', async () => {
          const client = await connect();
          const streams = [unique('kept'), unique('stopped')];
          const channel = await subscribed(client, 'ManyChannel', { streams });
          await server.broadcast(streams[1], 'before');
          assert.equal(await channel.next('the broadcast'), 'before');
          await channel.perform('leave', { stream: streams[1] });
          assert.deepEqual(await channel.next('the answer'), { left: streams[1] });
          await server.broadcast(streams[1], 'stopped');
          await server.broadcast(streams[0], 'kept');
          assert.equal(await channel.next('the kept stream'), 'kept');
          await client.wire.barrier();
          assert.deepEqual(client.wire.messages(channel.identifier), ['before', { left: streams[1] }, 'kept']);
        });

        test('stopping all streams of a channel leaves the subscription usable', async () => {
          const client = await connect();
          const streams = [unique('a'), unique('b')];
          const channel = await subscribed(client, 'ManyChannel', { streams });
          await channel.perform('leave_all');
          assert.deepEqual(await channel.next('the answer'), { left: 'all' });
          for (const stream of streams) await server.broadcast(stream, 'stopped');
          const later = unique('later');
          await channel.perform('follow', { stream: later });
          assert.deepEqual(await channel.next('the answer'), { followed: later });
          await server.broadcast(later, 'followed');
          assert.equal(await channel.next('the new stream'), 'followed');
        });

        test('broadcasts of an object, of HTML and of a JSON text arrive as they are', async () => {
          const client = await connect();
          const id = unique('kinds');
          const room = await subscribed(client, 'RoomChannel', { id });
          const kinds = [{ text: 'hi', list: [1, { a: null }] }, '<div class="a">&amp; \u2028</div>', '{"json":"as a string"}', [1, 2], 17];
          for (const data of kinds) await server.broadcast(`room:${id}`, data);
          for (const data of kinds) assert.deepEqual(await room.next(JSON.stringify(data)), data);
        });

        test('every client of a stream gets the broadcast', async () => {
          const id = unique('several');
          const rooms = [];
          for (let n = 0; n < 3; n += 1) rooms.push(await subscribed(await connect(), 'RoomChannel', { id }));
          await server.broadcast(`room:${id}`, 'to all');
          for (const room of rooms) assert.equal(await room.next('the broadcast'), 'to all');
        });

        test('channel state is kept between commands and seen by unsubscribe', async () => {
          const user = unique('user');
          const client = await connect(`/cable?user=${user}`);
          const counter = await subscribed(client, 'CounterChannel');
          for (const count of [1, 2, 3]) {
            await counter.perform('increment');
            assert.deepEqual(await counter.next('the count'), { count });
          }
          await counter.unsubscribe();
          const left = await app.event('unsubscribed', (event) => event.event === 'unsubscribed' && event.user === user);
          assert.equal(left.state.count, '3');
        });

        test('connection state is kept between commands and channels', async () => {
          const client = await connect();
          const first = await subscribed(client, 'EnvChannel', { n: 1 });
          const second = await subscribed(client, 'EnvChannel', { n: 2 });
          await first.perform('remember', { name: 'colour', value: 'blue' });
          await first.next('the answer');
          await second.perform('env');
          assert.deepEqual((await second.next('the environment')).connection_state, { seen: 'connect', colour: 'blue' });
        });

        test('a client that leaves has its callbacks called for each channel', async () => {
          const user = unique('user');
          const client = await connect(`/cable?user=${user}`);
          const counter = await subscribed(client, 'CounterChannel');
          const room = await subscribed(client, 'RoomChannel', { id: user });
          await counter.perform('increment');
          await counter.next('the count');
          await client.close();
          const gone = await app.event('disconnect', (event) => event.event === 'disconnect' && event.user === user);
          assert.deepEqual(gone.subscriptions.toSorted(), [counter.identifier, room.identifier].toSorted());
          assert.equal(gone.connection_state.seen, 'connect');
          const left = (await app.events()).filter((event) => event.event === 'unsubscribed' && event.user === user);
          assert.deepEqual(left.map(({ channel }) => channel).toSorted(), ['CounterChannel', 'RoomChannel']);
          assert.equal(left.find(({ channel }) => channel === 'CounterChannel').state.count, '1');
        });

        test('a remote disconnect ends the session and says whether to come back', async () => {
          const user = unique('user');
          const client = await connect(`/cable?user=${user}`);
          const command = { command: 'disconnect', payload: { identifier: JSON.stringify({ user }), reconnect: false } };
          assert.equal((await server.post(command)).status, 201);
          await client.wire.until('the close', () => client.wire.closes.length > 0);
          const said = client.wire.received.filter(({ type }) => type === 'disconnect');
          assert.deepEqual(said, [{ type: 'disconnect', reason: 'remote', reconnect: false }]);
          assert.deepEqual(client.wire.closes, [{ code: 1000, reason: 'Closed remotely' }]);
        });
      });
    }
  });
}
