// A client that lost its connection goes on with its session: who may, how often, until when, and what the app hears of it.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { BASE, EXTENDED, Socket } from './harness/socket.mjs';
import { jwt, seconds } from './harness/token.mjs';
import * as anycable from './clients/anycable.mjs';

const MEMORY = ['--noauth', '--norpc', '--public-streams', '--broker', 'memory'];
const TAKEN_OVER = '{"type":"disconnect","reason":"session_resumed","reconnect":false}';
const follow = (stream) => JSON.stringify({ channel: '$pubsub', stream_name: stream });

let serial = 0;
const fresh = (name = 'restore') => `${name}-${(serial += 1)}`;

/** Opens a socket on the extended protocol and reads the welcome, which stays in `welcome`. */
async function open(server, path = '/cable', options) {
  const socket = await Socket.open(server.url(path), { protocols: [EXTENDED], ...options });
  socket.welcome = await socket.json('the welcome');
  if (socket.welcome.type === 'welcome') socket.sid = socket.welcome.sid;
  return socket;
}

const back = (server, sid, more = '', options) => open(server, `/cable?sid=${encodeURIComponent(sid)}${more}`, options);

/** Loses its connection without a word. The server may hear of it later than the client is back. */
function lost(socket) {
  socket.drop();
  return socket.sid;
}

/** Waits until the server has noticed that connections are over and keeps so many sessions. */
const kept = (server, sessions) => server.metric('cableway_saved_sessions_num', `is ${sessions}`, (num) => num === sessions);

describe('a session that its client comes back to', () => {
  let server;
  before(async () => (server = await Cableway.start(MEMORY)));
  after(() => server?.stop('SIGKILL'));

  for (const [what, show] of [
    ['its id in the query', ({ sid }) => [`/cable?sid=${sid}`]],
    ['its id in a header', ({ sid }) => ['/cable', { headers: { 'X-ANYCABLE-RESTORE-SID': sid } }]],
    ['its id in a header that wins over the query', ({ sid }) => ['/cable?sid=x', { headers: { 'x-anycable-restore-sid': sid } }]],
    ['its token in the query', ({ resume_token }) => [`/cable?sid=${resume_token}`]],
    ['its token in a header', ({ resume_token }) => ['/cable', { headers: { 'x-anycable-restore-sid': resume_token } }]],
  ]) {
    test(`is shown by ${what}: a new id, the same subscriptions, in their order`, async () => {
      const socket = await open(server);
      const identifiers = [fresh(), fresh('a "quote"')].map(follow);
      for (const identifier of identifiers) await socket.subscribe(identifier);
      lost(socket);
      const next = await open(server, ...show(socket.welcome));
      const { resume_token, sid, ...rest } = next.welcome;
      assert.deepEqual(rest, { type: 'welcome', restored: true, restored_ids: identifiers });
      assert.deepEqual(Object.keys(next.welcome), ['type', 'sid', 'resume_token', 'restored', 'restored_ids']);
      assert.notEqual(sid, socket.sid);
      assert.ok(resume_token.startsWith(sid) && resume_token.length === 43, 'the token is the id and 128 bits');
      for (const identifier of identifiers) {
        assert.equal((await next.history(identifier, { since: seconds(-1) })).type, 'confirm_history');
        await server.broadcast(JSON.parse(identifier).stream_name, 'on');
        assert.equal((await next.json()).message, 'on');
      }
      await next.close();
    });
  }

  // AnyCable leaves the empty list out, and its client then takes whatever it ever subscribed to for restored.
  test('that had no subscriptions says so', async () => {
    const next = await back(server, lost(await open(server)));
    assert.deepEqual(next.welcome.restored_ids, []);
    assert.equal(next.welcome.restored, true);
    await next.close();
  });

  test('without a subscription that its client had before: @anycable/core subscribes again and gets what it missed', async () => {
    const client = new anycable.Client(server.url(), { options: { protocol: 'actioncable-v1-ext-json' } });
    await client.connect();
    const stream = fresh();
    const channel = client.subscribe('$pubsub', { stream_name: stream });
    await channel.settled();
    await server.broadcast(stream, 1);
    assert.equal(await channel.next(), 1);
    // As when a connection is lost between a new session's welcome and its subscriptions.
    client.wire.socket.send(JSON.stringify({ command: 'unsubscribe', identifier: channel.identifier }));
    await client.wire.barrier();
    client.wire.socket.terminate();
    await server.broadcast(stream, 2);
    assert.equal(await channel.next(), 2);
    assert.ok(client.wire.received.some(({ restored, restored_ids }) => restored && restored_ids.length === 0));
    await client.close();
  });

  test('is told of an unsubscribe', async () => {
    const socket = await open(server);
    const [left, kept] = [fresh(), fresh()].map(follow);
    await socket.subscribe(left);
    await socket.subscribe(kept);
    socket.send({ command: 'unsubscribe', identifier: left });
    await socket.settle();
    const next = await back(server, lost(socket));
    assert.deepEqual(next.welcome.restored_ids, [kept]);
    await next.close();
  });

  test('restores once, and then by its new id', async () => {
    const socket = await open(server);
    const identifier = follow(fresh());
    await socket.subscribe(identifier);
    const second = await back(server, lost(socket));
    assert.equal(second.welcome.restored, true);
    for (const shown of [socket.sid, socket.welcome.resume_token]) {
      const other = await back(server, shown);
      assert.equal(other.welcome.restored, undefined);
      await other.close();
    }
    const third = await back(server, lost(second));
    assert.deepEqual(third.welcome.restored_ids, [identifier]);
    await third.close();
  });

  test('of two that come at once one gets it', async () => {
    for (let n = 0; n < 20; n += 1) {
      const socket = await open(server);
      await socket.subscribe(follow('both'));
      // Half of the time the old connection still stands.
      const sid = n % 2 ? lost(socket) : socket.sid;
      const both = await Promise.all([back(server, sid), back(server, sid)]);
      assert.equal(both.filter(({ welcome }) => welcome.restored).length, 1);
      for (const next of both) await next.close();
    }
  });

  test('is taken over from a connection that still stands, which is told and closed', async () => {
    const socket = await open(server);
    const stream = fresh();
    await socket.subscribe(follow(stream));
    const next = await back(server, socket.sid);
    assert.equal(next.welcome.restored, true);
    assert.equal(await socket.next(), TAKEN_OVER);
    assert.deepEqual(await socket.closed(), { code: 1000, reason: 'Session resumed elsewhere' });
    await next.history(follow(stream), { since: seconds(-1) });
    await server.broadcast(stream, 'once');
    assert.equal((await next.json()).message, 'once');
    assert.deepEqual(await next.settle(), []);
    await next.close();
  });

  test('is not restored for the base protocol, nor from it', async () => {
    const base = await open(server, '/cable', { protocols: [BASE] });
    assert.equal(base.welcome.resume_token, undefined);
    const from = await back(server, lost(base));
    assert.equal(from.welcome.restored, undefined);
    const to = await back(server, lost(from), '', { protocols: [BASE] });
    assert.equal(to.welcome.restored, undefined);
    // Which did not use it up.
    const next = await back(server, from.sid);
    assert.equal(next.welcome.restored, true);
    await next.close();
  });

  for (const [what, sid] of [
    ['that never was', 'A'.repeat(21)],
    ['that is no id', 'nonsense'],
    ['that is empty', ''],
    ['that is long', 'x'.repeat(5000)],
    ['whose token is forged', `${'A'.repeat(21)}${'B'.repeat(22)}`],
  ]) {
    test(`${what} is a new one, with an ordinary welcome`, async () => {
      const socket = await back(server, sid);
      assert.deepEqual(Object.keys(socket.welcome), ['type', 'sid', 'resume_token']);
      await socket.close();
    });
  }

  test('what is published before its client asks waits for that; without a request it comes by itself', async () => {
    const own = await Cableway.start([...MEMORY, '--ping-interval', '1']);
    const socket = await open(own);
    const stream = fresh();
    const identifier = follow(stream);
    await socket.subscribe(identifier);
    const patient = await back(own, lost(socket));
    await own.broadcast(stream, 1);
    assert.deepEqual(await patient.settle(), []);
    const { messages } = await patient.history(identifier, { since: seconds(-60) });
    assert.deepEqual(messages.map(({ offset }) => offset), [1]);
    const silent = await back(own, lost(patient));
    await own.broadcast(stream, 2);
    assert.equal((await silent.json()).offset, 2);
    await own.stop('SIGKILL');
  });

  test('what is published waits as long as the client is silent, whose request may be in a network that stalls', async () => {
    const own = await Cableway.start([...MEMORY, '--ping-interval', '1']);
    const socket = await open(own);
    const stream = fresh();
    const identifier = follow(stream);
    await socket.subscribe(identifier);
    await own.broadcast(stream, 1);
    const { epoch } = await socket.json();
    lost(socket);
    await own.broadcast(stream, 2);
    // Does not answer the pings of the carrier either.
    const silent = await back(own, socket.sid, '', { autoPong: false });
    await own.broadcast(stream, 3);
    for (let n = 0; n < 4; n += 1) await silent.pings.next();
    assert.deepEqual(silent.inbox.drain(), []);
    const { messages } = await silent.history(identifier, { streams: { [stream]: { epoch, offset: 1 } } });
    assert.deepEqual(messages.map(({ offset }) => offset), [2, 3]);
    await own.broadcast(stream, 4);
    assert.equal((await silent.json()).offset, 4);
    await own.stop('SIGKILL');
  });

  test('is kept after a close that the client said, and not after one that broke a rule', async () => {
    const polite = await open(server);
    await polite.close();
    const next = await back(server, polite.sid);
    assert.equal(next.welcome.restored, true);
    next.send('x'.repeat(100_000));
    assert.equal((await next.closed()).code, 1009);
    const last = await back(server, next.sid);
    assert.equal(last.welcome.restored, undefined);
    await last.close();
  });
});

describe('what the options say', () => {
  const one = async (options) => {
    const server = await Cableway.start([...MEMORY, ...options]);
    const socket = await open(server);
    await socket.subscribe(follow('x'));
    return { server, socket };
  };

  test('--sessions-ttl: after it there is nothing to go on with, and nothing is left', async () => {
    const { server, socket } = await one(['--sessions-ttl', '1s']);
    lost(socket);
    await kept(server, 1);
    const alive = await open(server);
    await kept(server, 0);
    assert.equal((await server.metrics()).cableway_saved_sessions_bytes, 0);
    assert.equal((await back(server, socket.sid)).welcome.restored, undefined);
    // A session that is connected does not grow old.
    assert.equal((await back(server, lost(alive))).welcome.restored, true);
    await server.stop('SIGKILL');
  });

  test('--sessions-ttl 0: no session is kept and none taken over', async () => {
    const { server, socket } = await one(['--sessions-ttl', '0']);
    assert.equal(socket.welcome.resume_token, undefined);
    assert.equal((await back(server, socket.sid)).welcome.restored, undefined);
    assert.deepEqual(await socket.settle(), []);
    await server.stop('SIGKILL');
  });

  test('--restore-by-sid=false: the token does it, the id does not', async () => {
    const { server, socket } = await one(['--restore-by-sid=false']);
    lost(socket);
    assert.equal((await back(server, socket.sid)).welcome.restored, undefined);
    assert.equal((await back(server, socket.welcome.resume_token)).welcome.restored, true);
    await server.stop('SIGKILL');
  });

  test('--sessions-max-size: the oldest go, and are counted', async () => {
    const { server, socket } = await one(['--sessions-max-size', '16KiB']);
    lost(socket);
    for (let n = 0; n < 40; n += 1) {
      const more = await open(server);
      await more.subscribe(follow('x'.repeat(1000)));
      lost(more);
    }
    await server.metric('cableway_sessions_evicted_total', 'counts them', (evicted) => evicted > 0);
    await server.metric('cableway_clients_num', 'is none', (clients) => clients === 0);
    const metrics = await server.metrics();
    assert.ok(metrics.cableway_saved_sessions_bytes <= 2 * 16 * 1024, `${metrics.cableway_saved_sessions_bytes} bytes`);
    await server.stop('SIGKILL');
  });
});

describe('who is sent away does not come back to a session', () => {
  const KEY = 's3cr3t';
  const token = (user) => jwt({ ext: JSON.stringify({ user }), exp: seconds(600) }, KEY);
  let server;
  before(async () => {
    const options = ['--jwt-secret', KEY, '--enforce-jwt', '--norpc', '--public-streams', '--broker', 'memory'];
    server = await Cableway.start(options);
  });
  after(() => server?.stop('SIGKILL'));
  const disconnect = (user, more) =>
    server.post({ command: 'disconnect', payload: { identifier: JSON.stringify({ user }), ...more } });

  for (const reconnect of [true, false]) {
    test(`when its connection stood (reconnect: ${reconnect})`, async () => {
      const jid = `&jid=${token('live')}`;
      const socket = await open(server, `/cable?${jid}`);
      await disconnect('live', { reconnect });
      assert.deepEqual(await socket.json(), { type: 'disconnect', reason: 'remote', reconnect });
      await socket.closed();
      const next = await back(server, socket.sid, jid);
      assert.deepEqual([next.welcome.type, next.welcome.restored], ['welcome', undefined]);
      await next.close();
    });
  }

  test('when its session waited for it; others go on with theirs', async () => {
    const [gone, other] = [await open(server, `/cable?jid=${token('gone')}`), await open(server, `/cable?jid=${token('other')}`)];
    const before = (await server.metrics()).cableway_saved_sessions_num;
    lost(gone);
    lost(other);
    await kept(server, before + 2);
    await disconnect('gone');
    assert.equal((await back(server, gone.sid, `&jid=${token('gone')}`)).welcome.restored, undefined);
    assert.equal((await back(server, other.sid, `&jid=${token('other')}`)).welcome.restored, true);
  });
});

describe('who was let in by a token must show one that holds', () => {
  const KEY = 's3cr3t';
  const MINE = '{"user":"7"}';
  const token = (ext, exp = seconds(600), key = KEY) => jwt({ ext, exp }, key);
  let app;
  let server;
  let strict;
  before(async () => {
    app = await App.start('grpc');
    const options = ['--jwt-secret', KEY, '--broker', 'memory', '--public-streams'];
    server = await Cableway.start([...options, '--rpc-host', app.rpc]);
    strict = await Cableway.start([...options, '--norpc', '--enforce-jwt']);
  });
  after(async () => {
    await server?.stop('SIGKILL');
    await strict?.stop('SIGKILL');
    await app?.stop();
  });
  const mine = async (where) => {
    const socket = await open(where, `/cable?jid=${token(MINE)}`);
    await socket.subscribe(follow('mine'));
    return socket;
  };
  const connects = async () => (await app.events()).slice(app.seen).filter(({ event }) => event === 'connect').length;

  test('the same identity under a fresh token restores', async () => {
    const next = await back(strict, lost(await mine(strict)), `&jid=${token(MINE, seconds(900))}`);
    assert.equal(next.welcome.restored, true);
    await next.close();
  });

  for (const [what, jid, said] of [
    ['none', '', { type: 'disconnect', reason: 'unauthorized', reconnect: false }],
    ['an expired one', token(MINE, seconds(-60)), { type: 'disconnect', reason: 'token_expired', reconnect: false }],
    ['a forged one', token(MINE, seconds(600), 'other'), { type: 'disconnect', reason: 'unauthorized', reconnect: false }],
  ]) {
    for (const state of ['waits', 'stands']) {
      test(`with ${what} a client is refused as anybody is; the session that ${state} is still there for its owner`, async () => {
        const socket = await mine(strict);
        if (state === 'waits') lost(socket);
        const next = await back(strict, socket.sid, jid && `&jid=${jid}`);
        assert.deepEqual(next.welcome, said);
        if (state === 'stands') assert.deepEqual(await socket.settle(), []);
        const owner = await back(strict, socket.sid, `&jid=${token(MINE)}`);
        assert.equal(owner.welcome.restored, true);
        await owner.close();
      });
    }
  }

  for (const state of ['waits', 'stands']) {
    test(`with one of somebody else a client is that somebody; the session that ${state} is still there for its owner`, async () => {
      const socket = await mine(strict);
      if (state === 'waits') lost(socket);
      const other = await back(strict, socket.sid, `&jid=${token('{"user":"8"}')}`);
      assert.deepEqual([other.welcome.type, other.welcome.restored], ['welcome', undefined]);
      if (state === 'stands') assert.deepEqual(await socket.settle(), []);
      const owner = await back(strict, socket.sid, `&jid=${token(MINE)}`);
      assert.equal(owner.welcome.restored, true);
      for (const one of [other, owner]) await one.close();
    });
  }

  test('where an app decides, a client without its token is authenticated by the app, once', async () => {
    await app.mark();
    const socket = await mine(server);
    assert.equal(await connects(), 0);
    const next = await back(server, lost(socket), '&user=anew');
    assert.deepEqual([next.welcome.type, next.welcome.restored], ['welcome', undefined]);
    assert.equal(await connects(), 1);
    const owner = await back(server, socket.sid, `&jid=${token(MINE)}`);
    assert.equal(owner.welcome.restored, true);
    assert.equal(await connects(), 1);
    for (const one of [next, owner]) await one.close();
  });

  test('who was let in by the app does not become somebody by a token', async () => {
    const socket = await open(server, '/cable?user=by-app');
    const other = await back(server, lost(socket), `&jid=${token(MINE)}`);
    assert.deepEqual([other.welcome.type, other.welcome.restored], ['welcome', undefined]);
    const owner = await back(server, socket.sid);
    assert.equal(owner.welcome.restored, true);
    for (const one of [other, owner]) await one.close();
  });
});

for (const kind of APPS) {
  describe(`what the app over ${kind} hears of it`, () => {
    let app;
    let server;
    before(async () => {
      app = await App.start(kind);
      server = await Cableway.start(['--rpc-host', app.rpc, '--broker', 'memory']);
    });
    after(async () => {
      await server?.stop('SIGKILL');
      await app?.stop();
    });
    const disconnected = (sid) => app.event('the Disconnect call', ({ event, sid: of }) => event === 'disconnect' && of === sid);

    test('no Connect; the old session ends with a Disconnect, and so does the new one', async () => {
      await app.mark();
      const socket = await open(server, '/cable?user=told');
      await socket.subscribe('{"channel":"EchoChannel"}');
      lost(socket);
      const ended = await disconnected(socket.sid);
      assert.deepEqual([ended.user, ended.subscriptions], ['told', ['{"channel":"EchoChannel"}']]);
      const next = await back(server, socket.sid);
      assert.equal(next.welcome.restored, true);
      await next.close();
      const again = await disconnected(next.sid);
      assert.deepEqual([again.user, again.subscriptions], ['told', ['{"channel":"EchoChannel"}']]);
      const connects = (await app.events()).filter(({ event, sid }) => event === 'connect' && [socket.sid, next.sid].includes(sid));
      assert.deepEqual(connects.map(({ sid }) => sid), [socket.sid]);
    });

    test('the identity and all states are as they were; the request is the new one', async () => {
      const socket = await open(server, '/cable?user=stateful');
      const [counter, env] = ['{"channel":"CounterChannel"}', '{"channel":"EnvChannel"}'];
      await socket.subscribe(counter);
      await socket.subscribe(env);
      for (let n = 0; n < 3; n += 1) socket.perform(counter, 'increment');
      socket.perform(env, 'remember', { name: 'colour', value: 'blue' });
      await socket.settle();
      const next = await back(server, lost(socket), '&again=1');
      next.perform(counter, 'increment');
      assert.deepEqual((await next.json()).message, { count: 4 });
      next.perform(env, 'env');
      const { message } = await next.json();
      assert.deepEqual([message.identity, message.connection_state.colour], [{ user: 'stateful' }, 'blue']);
      assert.equal(message.sid, next.sid);
      assert.match(message.url, new RegExp(`\\?sid=${socket.sid}&again=1$`));
      await next.close();
    });

    test('streams that came and went by actions are as they were', async () => {
      const socket = await open(server);
      const [first, second, third] = [fresh(), fresh(), fresh()];
      const identifier = JSON.stringify({ channel: 'ManyChannel', streams: [first, second] });
      await socket.subscribe(identifier);
      socket.perform(identifier, 'leave', { stream: first });
      socket.perform(identifier, 'follow', { stream: third });
      await socket.settle();
      const next = await back(server, lost(socket));
      await next.history(identifier, { since: seconds(600) });
      for (const stream of [first, second, third]) await server.broadcast(stream, stream);
      assert.deepEqual([(await next.json()).message, (await next.json()).message], [second, third]);
      assert.deepEqual(await next.settle(), []);
      await next.close();
    });

    test('a connection that is taken over while the app works on its command: what comes of it is in the session', async () => {
      const socket = await open(server);
      const echo = '{"channel":"EchoChannel"}';
      await socket.subscribe(echo);
      const gate = fresh('gate');
      await app.mark();
      socket.perform(echo, 'wait', { gate });
      await app.event('the command', (event) => event.event === 'waiting' && event.gate === gate);
      const next = back(server, socket.sid);
      // The newcomer waits until the app has answered.
      await app.open(gate);
      assert.equal((await next).welcome.restored, true);
      await (await next).close();
    });

    test('@anycable/core goes on without a call, and its channels hear only of what they missed', async () => {
      const client = await new anycable.Client(server.url('/cable?user=core'), {
        options: { protocol: 'actioncable-v1-ext-json' },
      }).connect();
      const id = fresh('core');
      const room = client.subscribe('RoomChannel', { id });
      await room.settled();
      await server.broadcast(`room:${id}`, 1);
      assert.equal(await room.next(), 1);
      await app.mark();
      client.wire.socket.terminate();
      await server.broadcast(`room:${id}`, 2);
      await server.broadcast(`room:${id}`, 3);
      assert.deepEqual([await room.next(), await room.next()], [2, 3]);
      await client.wire.until('history', () => client.wire.received.some(({ type }) => type === 'confirm_history'));
      assert.ok(client.wire.received.some(({ restored }) => restored));
      assert.deepEqual(room.unread(), []);
      const calls = (await app.events()).slice(app.seen).filter(({ event }) => ['connect', 'command'].includes(event));
      assert.deepEqual(calls, []);
      await client.close();
    });
  });
}
