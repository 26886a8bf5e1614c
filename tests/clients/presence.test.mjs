// Who is there and who is typing: presence and whispers, which are never stored.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createCable } from '@anycable/core';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { within } from './harness/deadline.mjs';
import { BASE, EXTENDED, Socket } from './harness/socket.mjs';
import { tapped } from './harness/tap.mjs';
import { seconds, signedStream } from './harness/token.mjs';

const OPEN = ['--noauth', '--norpc', '--public-streams'];
const SECRET = 'only-the-tests-know-this-too';
const follow = (stream) => JSON.stringify({ channel: '$pubsub', stream_name: stream });

let serial = 0;
const fresh = (name = 'presence') => `${name}-${(serial += 1)}`;

/** A client that is subscribed. */
async function member(server, identifier, { protocols = [EXTENDED], path, more } = {}) {
  const socket = await Socket.welcomed(server.url(path), { protocols });
  socket.send({ command: 'subscribe', identifier, ...more });
  assert.equal((await socket.json()).type, 'confirm_subscription');
  return socket;
}

const join = (socket, identifier, id, info) => socket.send({ command: 'join', identifier, presence: { id, info } });
const leave = (socket, identifier, id) => socket.send({ command: 'leave', identifier, presence: { id } });
/** The exact texts that tell of somebody. */
const event = (identifier, message) => `{"type":"presence","identifier":${JSON.stringify(identifier)},"message":${message}}`;
const came = (identifier, id, info) => event(identifier, `{"id":"${id}","info":${info},"type":"join"}`);
const went = (identifier, id) => event(identifier, `{"id":"${id}","type":"leave"}`);

/** Asks who is there; gives the answer's `message`. */
async function who(socket, identifier, data = { return_records: true }) {
  socket.send({ command: 'presence', identifier, data });
  const { type, identifier: of, message } = await socket.json('the answer to presence');
  assert.deepEqual([type, of], ['presence', identifier]);
  return message;
}
const ids = ({ records = [] }) => records.map(({ id }) => id).sort();

describe('presence on public streams', () => {
  let server;
  before(async () => (server = await Cableway.start([...OPEN, '--broker', 'memory', '--ping-interval', '1'])));
  after(() => server?.stop('SIGKILL'));

  test('everybody is told who came, the one who came too, and who left; with no position', async () => {
    const identifier = follow(fresh());
    const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
    join(ada, identifier, '42', { name: 'Ada' });
    for (const socket of [ada, ben]) assert.equal(await socket.next(), came(identifier, '42', '{"name":"Ada"}'));
    leave(ada, identifier, '42');
    for (const socket of [ada, ben]) assert.equal(await socket.next(), went(identifier, '42'));
    const { type, messages } = await ben.history(identifier, { since: seconds(-60) });
    assert.deepEqual([type, messages], ['confirm_history', []]);
  });

  test('who is there is answered with all records, or with their number alone', async () => {
    const identifier = follow(fresh());
    const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
    const ask = async (data) => {
      ben.send({ command: 'presence', identifier, data });
      return ben.next();
    };
    assert.equal(await ask({ return_records: true }), event(identifier, '{"type":"info","total":0}'));
    join(ada, identifier, '42', { name: 'Ada' });
    await ben.next('the join');
    const all = event(identifier, '{"type":"info","total":1,"records":[{"info":{"name":"Ada"},"id":"42"}]}');
    assert.equal(await ask({ return_records: true }), all);
    assert.equal(await ask({}), all);
    assert.equal(await ask(undefined), all);
    // AnyCable sends the records all the same.
    assert.equal(await ask({ return_records: false }), event(identifier, '{"type":"info","total":1}'));
  });

  test('rides on subscribe', async () => {
    const identifier = follow(fresh());
    const more = { presence: { id: '1', info: 'here' } };
    const socket = await member(server, identifier, { more });
    assert.equal(await socket.next(), came(identifier, '1', '"here"'));
    assert.equal((await who(socket, identifier)).total, 1);
  });

  for (const [what, info] of [
    ['missing', undefined],
    ['null', null],
    ['a number', 7],
    ['an array', [1, { a: 'b' }]],
  ]) {
    test(`info may be ${what}`, async () => {
      const identifier = follow(fresh());
      const socket = await member(server, identifier);
      join(socket, identifier, '1', info);
      assert.deepEqual((await socket.json()).message.info ?? null, info ?? null);
      const { records } = await who(socket, identifier);
      assert.deepEqual(records.map(({ id, info }) => [id, info ?? null]), [['1', info ?? null]]);
    });
  }

  test('somebody with two sessions is there once, and until the last has left', async () => {
    const identifier = follow(fresh());
    const [first, second] = [await member(server, identifier), await member(server, identifier)];
    join(first, identifier, '42', { on: 'phone' });
    assert.equal(await second.next(), came(identifier, '42', '{"on":"phone"}'));
    join(second, identifier, '42', { on: 'desk' });
    assert.deepEqual(await second.settle(), []);
    assert.deepEqual(await who(second, identifier), {
      type: 'info',
      total: 1,
      records: [{ info: { on: 'desk' }, id: '42' }],
    });
    leave(first, identifier, '42');
    assert.equal(await first.next(), came(identifier, '42', '{"on":"phone"}'));
    assert.deepEqual(await first.settle(), []);
    leave(second, identifier, '42');
    for (const socket of [first, second]) assert.equal(await socket.next(), went(identifier, '42'));
  });

  test('a second join under the same id changes the info in silence', async () => {
    const identifier = follow(fresh());
    const socket = await member(server, identifier);
    join(socket, identifier, '1', 'old');
    await socket.next();
    join(socket, identifier, '1', 'new');
    assert.deepEqual(await socket.settle(), []);
    assert.deepEqual((await who(socket, identifier)).records, [{ info: 'new', id: '1' }]);
  });

  test('a second id of one session, a join without one, or of nobody, is ignored', async () => {
    const identifier = follow(fresh());
    const socket = await member(server, identifier);
    join(socket, identifier, '1');
    await socket.next();
    join(socket, identifier, '2');
    join(socket, identifier, '');
    socket.send({ command: 'join', identifier, presence: { info: 1 } });
    socket.send({ command: 'join', identifier, presence: null });
    socket.send({ command: 'join', identifier });
    socket.send({ command: 'join', identifier: follow('not-mine'), presence: { id: '1' } });
    socket.send({ command: 'presence', identifier: follow('not-mine') });
    socket.send({ command: 'leave', identifier: follow('not-mine') });
    assert.deepEqual(await socket.settle(), []);
    assert.deepEqual(ids(await who(socket, identifier)), ['1']);
  });

  test('leave takes the own record away, whatever id it names; a second one does nothing', async () => {
    const identifier = follow(fresh());
    const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
    join(ada, identifier, 'ada', 1);
    join(ben, identifier, 'ben', 2);
    const both = [came(identifier, 'ada', 1), came(identifier, 'ben', 2)];
    assert.deepEqual([await ben.next(), await ben.next()].sort(), both);
    leave(ben, identifier, 'ada');
    assert.equal(await ben.next(), went(identifier, 'ben'));
    leave(ben, identifier, 'ada');
    assert.deepEqual(await ben.settle(), []);
    assert.deepEqual(ids(await who(ben, identifier)), ['ada']);
  });

  test('unsubscribe is a leave that the leaver does not see', async () => {
    const identifier = follow(fresh());
    const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
    join(ada, identifier, '1');
    for (const socket of [ada, ben]) await socket.next();
    ada.send({ command: 'unsubscribe', identifier });
    assert.equal(await ben.next(), went(identifier, '1'));
    assert.deepEqual(await ada.settle(), []);
  });

  test('@anycable/core joins, sees who is there, and leaves', async () => {
    const { TappedWebSocket } = tapped();
    const cable = () =>
      createCable(server.url(), { protocol: 'actioncable-v1-ext-json', websocketImplementation: TappedWebSocket, logLevel: 'error' });
    const stream = fresh();
    const [ada, ben] = [cable(), cable()];
    const [hers, his] = [ada.streamFrom(stream), ben.streamFrom(stream)];
    await Promise.all([hers.ensureSubscribed(), his.ensureSubscribed()]);
    const seen = (type) => new Promise((told) => his.on('presence', (event) => event.type === type && told(event)));
    const [joined, left] = [seen('join'), seen('leave')];
    await hers.presence.join('42', { name: 'Ada' });
    assert.deepEqual(await within('the join', joined), { id: '42', info: { name: 'Ada' }, type: 'join' });
    const state = await within('who is there', his.presence.info());
    assert.deepEqual(state.users ?? state, { 42: { name: 'Ada' } });
    await hers.presence.leave();
    assert.equal((await within('the leave', left)).id, '42');
    for (const one of [ada, ben]) one.disconnect();
  });
});

describe('presence lives with the connection', () => {
  let server;
  before(async () => {
    server = await Cableway.start([...OPEN, '--broker', 'memory', '--presence-ttl', '1s', '--ping-interval', '1']);
  });
  after(() => server?.stop('SIGKILL'));

  for (const protocol of [BASE, EXTENDED]) {
    // AnyCable forgets members that speak the base protocol after --presence-ttl although they are connected.
    test(`${protocol}: who is connected stays, who is gone is told of after the time to live`, async () => {
      const identifier = follow(fresh());
      const [ada, ben] = [await member(server, identifier, { protocols: [protocol] }), await member(server, identifier)];
      join(ada, identifier, 'ada');
      await ben.next('the join');
      join(ben, identifier, 'ben');
      await ben.next('the join');
      // Three pings: three times the time to live.
      ada.pings.drain();
      for (let n = 0; n < 3; n += 1) await ada.pings.next();
      assert.deepEqual(await ben.settle(), []);
      assert.deepEqual(ids(await who(ben, identifier)), ['ada', 'ben']);
      ada.drop();
      assert.equal(await ben.next('the leave'), went(identifier, 'ada'));
      assert.deepEqual(ids(await who(ben, identifier)), ['ben']);
    });
  }

  test('nothing is left when all are gone', async () => {
    for (let n = 0; n < 10; n += 1) {
      const identifier = follow(fresh());
      const socket = await member(server, identifier);
      join(socket, identifier, 'x', 'y');
      await socket.settle();
      socket.drop();
    }
    await server.metric('cableway_clients_num', 'says that they are gone', (clients) => clients <= 3);
    await server.metric('cableway_presence_records_num', 'is what those have who are connected', (records) => records <= 2);
  });
});

describe('who comes back within the time to live', () => {
  let server;
  before(async () => (server = await Cableway.start([...OPEN, '--broker', 'memory', '--presence-ttl', '4s'])));
  after(() => server?.stop('SIGKILL'));

  for (const [what, path] of [
    ['with a new session', () => '/cable'],
    ['to the old session', (sid) => `/cable?sid=${sid}`],
  ]) {
    test(`${what}, and joins again, was never away for others`, async () => {
      const identifier = follow(fresh());
      const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
      join(ada, identifier, 'ada');
      await ben.next('the join');
      // A witness who leaves later: when that is told, the other would have been told of long ago.
      const last = await member(server, identifier);
      join(last, identifier, 'last');
      await ben.next('the join');
      ada.drop();
      const next = await Socket.open(server.url(path(ada.sid)), { protocols: [EXTENDED] });
      const { restored } = await next.json();
      if (!restored) {
        next.send({ command: 'subscribe', identifier });
        assert.equal((await next.json()).type, 'confirm_subscription');
      }
      join(next, identifier, 'ada');
      assert.deepEqual(await next.settle(), []);
      last.drop();
      assert.equal(await ben.next('the leave of the last'), went(identifier, 'last'));
      assert.deepEqual(ids(await who(ben, identifier)), ['ada']);
    });
  }
});

describe('where there is no presence', () => {
  test('without a broker the answer is an error, and a join does nothing', async () => {
    const server = await Cableway.start(OPEN);
    const identifier = follow(fresh());
    const socket = await member(server, identifier);
    join(socket, identifier, '1');
    socket.send({ command: 'presence', identifier });
    assert.equal(await socket.next(), event(identifier, '{"type":"error","total":0}'));
    await server.stop('SIGKILL');
  });

  test('signed streams have it unless --streams-presence is off', async () => {
    for (const [more, total] of [[[], 1], [['--streams-presence=false'], null]]) {
      const server = await Cableway.start(['--noauth', '--norpc', '--secret', SECRET, '--broker', 'memory', ...more], { key: null });
      const identifier = JSON.stringify({ channel: '$pubsub', signed_stream_name: signedStream('room', SECRET) });
      const socket = await member(server, identifier);
      join(socket, identifier, '1');
      socket.send({ command: 'presence', identifier });
      const answers = (await socket.settle()).map((text) => JSON.parse(text).message);
      if (total === null) assert.deepEqual(answers, []);
      else assert.equal(answers.find(({ type }) => type === 'info').total, total);
      await server.stop('SIGKILL');
    }
  });
});

for (const kind of APPS) {
  describe(`presence and whispers that the app over ${kind} allows`, () => {
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
    const lobby = (more) => JSON.stringify({ channel: 'LobbyChannel', id: fresh('lobby'), ...more });

    test('the stream is what the app put under $p', async () => {
      const identifier = lobby();
      const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
      join(ada, identifier, '1', { a: 1 });
      for (const socket of [ada, ben]) assert.equal(await socket.next(), came(identifier, '1', '{"a":1}'));
      assert.equal((await who(ben, identifier)).total, 1);
    });

    test('the app lets its client join and leave, on subscribe and by actions', async () => {
      const identifier = lobby({ as: '7' });
      const socket = await member(server, identifier);
      assert.equal(await socket.next(), came(identifier, '7', '{"by":"app"}'));
      socket.perform(identifier, 'exit');
      assert.equal(await socket.next(), went(identifier, '7'));
      socket.perform(identifier, 'enter', { id: '8', info: 'not JSON' });
      assert.equal(await socket.next(), came(identifier, '8', '"not JSON"'));
      socket.perform(identifier, 'enter', { id: '9', info: '1' });
      await socket.settle();
      assert.deepEqual(ids(await who(socket, identifier)), ['8']);
    });

    test('is there again after a restore, when the client has joined again', async () => {
      const identifier = lobby();
      const socket = await member(server, identifier);
      join(socket, identifier, '1', 'here');
      await socket.settle();
      socket.drop();
      const next = await Socket.open(server.url(`/cable?sid=${socket.sid}`), { protocols: [EXTENDED] });
      assert.equal((await next.json()).restored, true);
      join(next, identifier, '1', 'again');
      assert.deepEqual((await who(next, identifier)).records, [{ info: 'again', id: '1' }]);
      next.send({ command: 'leave', identifier });
      // The session that is gone counts until the time to live is over.
      assert.deepEqual(ids(await who(next, identifier)), ['1']);
    });

    test('a channel without $p and $w has neither', async () => {
      const identifier = JSON.stringify({ channel: 'RoomChannel', id: fresh('room') });
      const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
      join(ada, identifier, '1');
      ada.send({ command: 'presence', identifier });
      ada.send({ command: 'whisper', identifier, data: 1 });
      assert.deepEqual(await ada.settle(), []);
      await server.broadcast(`room:${JSON.parse(identifier).id}`, 'end');
      assert.equal((await ben.json()).message, 'end');
    });

    test('whispers go to the others on the stream under $w, as they are, and are not stored', async () => {
      const identifier = lobby();
      const [ada, ben] = [await member(server, identifier), await member(server, identifier, { protocols: [BASE] })];
      for (const [data, text] of [
        [{ event: 'typing', user: 'Ada' }, '{"event":"typing","user":"Ada"}'],
        [7, '7'],
        [null, '"null"'],
        [undefined, '"null"'],
      ]) {
        ada.send({ command: 'whisper', identifier, data });
        assert.equal(await ben.next(), `{"identifier":${JSON.stringify(identifier)},"message":${text}}`);
      }
      assert.deepEqual(await ada.settle(), []);
      const { type, messages } = await ben.history(identifier, { since: seconds(-60) });
      assert.deepEqual([type, messages], ['confirm_history', []]);
    });

    test('a whisper is allowed after a restore as before', async () => {
      const identifier = lobby();
      const [ada, ben] = [await member(server, identifier), await member(server, identifier)];
      ada.drop();
      const next = await Socket.open(server.url(`/cable?sid=${ada.sid}`), { protocols: [EXTENDED] });
      assert.equal((await next.json()).restored, true);
      next.send({ command: 'whisper', identifier, data: 'psst' });
      assert.equal((await ben.json()).message, 'psst');
    });
  });
}

describe('GET /api/presence/STREAM/users', () => {
  const KEY = 'api-key';
  let server;
  before(async () => {
    server = await Cableway.start([...OPEN, '--broker', 'memory', '--api-secret', KEY]);
  });
  after(() => server?.stop('SIGKILL'));
  const ask = async (path, { method = 'GET', key = KEY, at = server } = {}) => {
    const response = await fetch(at.http(`/api/presence${path}`), { method, headers: key ? { authorization: `Bearer ${key}` } : {} });
    return [response.status, await response.text()];
  };

  test('says who is there, also on a stream with a slash', async () => {
    const stream = 'room/7 ü%';
    const socket = await member(server, follow(stream));
    join(socket, follow(stream), '42', { name: 'Ada' });
    await socket.settle();
    const text = '{"type":"info","total":1,"records":[{"info":{"name":"Ada"},"id":"42"}]}';
    const response = await fetch(server.http(`/api/presence/${encodeURIComponent(stream)}/users`), {
      headers: { authorization: `Bearer ${KEY}` },
    });
    assert.equal(response.headers.get('content-type'), 'application/json');
    assert.equal(await response.text(), text);
    assert.deepEqual(await ask('/nobody/users'), [200, '{"type":"info","total":0}']);
  });

  test('has the statuses of the contract', async () => {
    assert.deepEqual(await ask('/x/users', { key: null }), [401, '']);
    assert.deepEqual(await ask('/x/users', { key: 'wrong' }), [401, '']);
    assert.deepEqual(await ask('/x'), [404, '']);
    assert.deepEqual(await ask('/a/b/users'), [404, '']);
    assert.deepEqual(await ask('//users'), [404, '']);
    assert.deepEqual(await ask('/x/users', { method: 'POST' }), [422, '']);
    assert.deepEqual(await ask('/x/users', { method: 'POST', key: null }), [422, '']);
    const none = await Cableway.start([...OPEN, '--api-secret', KEY]);
    assert.deepEqual(await ask('/x/users', { at: none }), [501, '']);
    await none.stop('SIGKILL');
  });
});
