// What was published while a client was away: positions on messages, and what a client gets that asks for what it missed.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { EXTENDED, Socket } from './harness/socket.mjs';
import { seconds } from './harness/token.mjs';

const OPEN = ['--noauth', '--norpc', '--public-streams'];
const MEMORY = [...OPEN, '--broker', 'memory'];
const follow = (stream) => JSON.stringify({ channel: '$pubsub', stream_name: stream });
const extended = (server, path) => Socket.welcomed(server.url(path), { protocols: [EXTENDED] });

let serial = 0;
const fresh = (name = 'history') => `${name}-${(serial += 1)}`;

/** Publishes the numbers `from` to `to`, one after the other. */
async function publish(server, stream, to, from = 1) {
  for (let n = from; n <= to; n += 1) await server.broadcast(stream, n);
}

/** Numbers that `publish` made, as they came, and the offsets with which they came. */
const numbers = (messages) => messages.map(({ message }) => message);
const offsets = (messages) => messages.map(({ offset }) => offset);
const range = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, at) => from + at);

describe('positions on messages', () => {
  let server;
  before(async () => (server = await Cableway.start(MEMORY)));
  after(() => server?.stop('SIGKILL'));

  for (const protocol of ['actioncable-v1-json', EXTENDED]) {
    test(`${protocol}: stream, epoch and offset come behind the message, from 1 on in each stream`, async () => {
      const [stream, other] = [fresh('with/slash "and" quote'), fresh()];
      const socket = await Socket.welcomed(server.url(), { protocols: [protocol] });
      await socket.subscribe(follow(stream));
      await socket.subscribe(follow(other));
      await publish(server, stream, 1);
      const first = await socket.next();
      const { epoch } = JSON.parse(first);
      assert.match(epoch, /^\w{4,}$/);
      const [identifier, name] = [JSON.stringify(follow(stream)), JSON.stringify(stream)];
      assert.equal(first, `{"identifier":${identifier},"message":1,"stream_id":${name},"epoch":"${epoch}","offset":1}`);
      await publish(server, other, 2);
      await publish(server, stream, 2, 2);
      for (const [stream_id, offset] of [[other, 1], [other, 2], [stream, 2]]) {
        const message = await socket.json();
        assert.deepEqual([message.stream_id, message.epoch, message.offset], [stream_id, epoch, offset]);
      }
      await socket.close();
    });
  }

  test('a transient publication has no position, takes none, and is not in the history', async () => {
    const stream = fresh();
    const socket = await extended(server);
    await socket.subscribe(follow(stream));
    await publish(server, stream, 1);
    await server.broadcast(stream, 'gone', { transient: true });
    await publish(server, stream, 2, 2);
    assert.equal((await socket.json()).offset, 1);
    assert.equal(await socket.next(), `{"identifier":${JSON.stringify(follow(stream))},"message":"gone"}`);
    assert.equal((await socket.json()).offset, 2);
    const { type, messages } = await socket.history(follow(stream), { since: seconds(-60) });
    assert.deepEqual([type, numbers(messages)], ['confirm_history', [1, 2]]);
    await socket.close();
  });

  test('a position that a publisher gives is ignored', async () => {
    const stream = fresh();
    const socket = await extended(server);
    await socket.subscribe(follow(stream));
    await server.post({ stream, data: '1', offset: 77, epoch: 'mine' });
    const { offset, epoch } = await socket.json();
    assert.equal(offset, 1);
    assert.notEqual(epoch, 'mine');
    await socket.close();
  });

  test('a kind of message is kept with it, and comes again with its position', async () => {
    const stream = fresh();
    const socket = await extended(server);
    await socket.subscribe(follow(stream));
    await server.broadcast(stream, 'note', { broadcast_type: 'notice' });
    const live = await socket.next();
    assert.equal(JSON.parse(live).type, 'notice');
    socket.send({ command: 'history', identifier: follow(stream), history: { since: seconds(-60) } });
    assert.equal(await socket.next(), live);
    await socket.close();
  });

  test('a publication that leaves out its sender is in the history for everybody', async () => {
    const stream = fresh();
    const socket = await extended(server);
    await socket.subscribe(follow(stream));
    await server.broadcast(stream, 'said', { exclude_socket: socket.sid });
    await publish(server, stream, 1);
    assert.equal((await socket.json()).offset, 2);
    const { messages } = await socket.history(follow(stream), { since: seconds(-60) });
    assert.deepEqual(numbers(messages), ['said', 1]);
    await socket.close();
  });

  test('another process has another epoch, in which no position of the first means anything', async () => {
    const own = await Cableway.start(MEMORY);
    const stream = fresh();
    const epoch = async (from) => {
      const socket = await extended(from);
      await socket.subscribe(follow(stream));
      await publish(from, stream, 1);
      const { epoch } = await socket.json();
      return { socket, epoch };
    };
    const first = await epoch(server);
    const second = await epoch(own);
    assert.notEqual(first.epoch, second.epoch);
    const streams = { [stream]: { epoch: first.epoch, offset: 1 } };
    assert.equal((await first.socket.history(follow(stream), { streams })).type, 'confirm_history');
    assert.equal((await second.socket.history(follow(stream), { streams })).type, 'reject_history');
    await own.stop('SIGKILL');
  });
});

describe('without a broker', () => {
  let app;
  let server;
  before(async () => {
    app = await App.start('grpc');
    server = await Cableway.start(['--rpc-host', app.rpc, '--public-streams']);
  });
  after(async () => {
    await server?.stop('SIGKILL');
    await app?.stop();
  });

  test('messages have no positions, and history is rejected', async () => {
    const stream = fresh();
    const socket = await extended(server);
    await socket.subscribe(follow(stream));
    await publish(server, stream, 1);
    assert.equal(await socket.next(), `{"identifier":${JSON.stringify(follow(stream))},"message":1}`);
    assert.deepEqual(await socket.history(follow(stream), { since: seconds(-60) }), { type: 'reject_history', messages: [] });
    await socket.close();
  });

  test('history of a subscription without streams is confirmed', async () => {
    const socket = await extended(server);
    await socket.subscribe('{"channel":"EchoChannel"}');
    const answer = await socket.history('{"channel":"EchoChannel"}', { since: seconds(-60) });
    assert.deepEqual(answer, { type: 'confirm_history', messages: [] });
    await socket.close();
  });

  test('a session is not restored', async () => {
    const socket = await extended(server);
    await socket.close();
    const next = await Socket.open(server.url(`/cable?sid=${socket.sid}`), { protocols: [EXTENDED] });
    const { sid, restored } = await next.json();
    assert.ok(sid !== socket.sid && restored === undefined);
    await next.close();
  });
});

describe('history of five messages', () => {
  let server;
  let stream;
  let identifier;
  let socket;
  let epoch;
  before(async () => {
    server = await Cableway.start(MEMORY);
    stream = fresh();
    identifier = follow(stream);
    socket = await extended(server);
    await socket.subscribe(identifier);
    await publish(server, stream, 5);
    for (let n = 1; n <= 5; n += 1) ({ epoch } = await socket.json());
  });
  after(() => server?.stop('SIGKILL'));

  const ALL = range(1, 5);
  const at = (offset, more = {}) => () => ({ streams: { [stream]: { epoch, offset, ...more } } });
  for (const [what, history, served] of [
    ['behind an offset is what has a greater one', at(2), [3, 4, 5]],
    ['behind offset 1 is all but the first', at(1), [2, 3, 4, 5]],
    ['behind the newest is nothing, and nothing is missing', at(5), []],
    ['behind one that is still to come is rejected', at(6), null],
    ['behind offset 0 is rejected', at(0), null],
    ['of another epoch is rejected', at(2, { epoch: 'nope' }), null],
    ['without an epoch is rejected', at(2, { epoch: undefined }), null],
    ['without an offset is rejected', at(undefined), null],
    ['since a minute ago is all', () => ({ since: seconds(-60) }), ALL],
    ['since a time to come is nothing', () => ({ since: seconds(600) }), []],
    ['by an offset wins over a time', () => ({ since: seconds(-60), ...at(4)() }), [5]],
    ['by an offset wins over a time even when it fails', () => ({ since: seconds(-60), ...at(9)() }), null],
    [
      'of streams that are not followed is ignored',
      () => ({ since: seconds(-60), streams: { other: { epoch: 'nope', offset: 9 } } }),
      ALL,
    ],
    ['of no followed stream and no time is nothing', () => ({ streams: { other: { epoch, offset: 1 } } }), []],
  ]) {
    const type = served ? 'confirm_history' : 'reject_history';
    test(`${what}: ${type}`, async () => {
      const answer = await socket.history(identifier, history());
      assert.deepEqual([answer.type, numbers(answer.messages)], [type, served ?? []]);
      for (const message of answer.messages) {
        assert.deepEqual([message.stream_id, message.epoch, message.offset], [stream, epoch, message.message]);
      }
    });

    test(`${what}, when it rides on subscribe`, async () => {
      const late = await extended(server);
      late.send({ command: 'subscribe', identifier, history: history() });
      assert.equal(await late.next(), `{"type":"confirm_subscription","identifier":${JSON.stringify(identifier)}}`);
      const answer = await late.historyAnswer(identifier);
      assert.deepEqual([answer.type, numbers(answer.messages)], [type, served ?? []]);
      await late.close();
    });
  }

  test('time has steps of one second, and the second itself is served', async () => {
    const own = fresh();
    await socket.subscribe(follow(own));
    const before = Math.floor(Date.now() / 1000);
    await publish(server, own, 1);
    await socket.next();
    const after = Math.floor(Date.now() / 1000);
    assert.deepEqual(numbers((await socket.history(follow(own), { since: before })).messages), [1]);
    assert.deepEqual(numbers((await socket.history(follow(own), { since: after + 1 })).messages), []);
  });

  test('of a stream that nobody has published to: by time there is nothing to miss, an offset is unknown', async () => {
    const own = fresh();
    await socket.subscribe(follow(own));
    assert.deepEqual(await socket.history(follow(own), { since: 1 }), { type: 'confirm_history', messages: [] });
    const streams = { [own]: { epoch, offset: 1 } };
    assert.deepEqual(await socket.history(follow(own), { streams }), { type: 'reject_history', messages: [] });
  });

  for (const [what, history] of [
    ['nothing', undefined],
    ['null', null],
    ['an empty object', {}],
    ['time 0', { since: 0 }],
    ['no streams', { since: 0, streams: {} }],
  ]) {
    test(`a request with ${what} has no answer`, async () => {
      socket.send({ command: 'history', identifier, history });
      assert.deepEqual(await socket.settle(), []);
    });
  }

  test('a request for something that is not subscribed has no answer', async () => {
    socket.send({ command: 'history', identifier: follow('not-mine'), history: { since: 1 } });
    assert.deepEqual(await socket.settle(), []);
  });

  test('a base session may ask too', async () => {
    const base = await Socket.welcomed(server.url());
    await base.subscribe(identifier);
    assert.deepEqual(numbers((await base.history(identifier, { since: seconds(-60) })).messages), ALL);
    await base.close();
  });
});

describe('what is kept', () => {
  test('the newest of a stream up to the limit; who has all but those is served, who lacks more is rejected', async () => {
    const server = await Cableway.start([...MEMORY, '--history-limit', '3']);
    const socket = await extended(server);
    const [stream, identifier] = ['limited', follow('limited')];
    await socket.subscribe(identifier);
    await publish(server, stream, 5);
    const [{ epoch }] = await socket.until('the last', ({ offset }) => offset === 5);
    const behind = async (offset) => {
      const { type, messages } = await socket.history(identifier, { streams: { [stream]: { epoch, offset } } });
      return [type, numbers(messages)];
    };
    assert.deepEqual(await behind(1), ['reject_history', []]);
    // AnyCable rejects this one, although everything that comes after it is there.
    assert.deepEqual(await behind(2), ['confirm_history', [3, 4, 5]]);
    assert.deepEqual(await behind(3), ['confirm_history', [4, 5]]);
    const { type, messages } = await socket.history(identifier, { since: seconds(-60) });
    assert.deepEqual([type, numbers(messages)], ['confirm_history', [3, 4, 5]]);
    await server.stop('SIGKILL');
  });

  test('as long as the time to live; the count goes on, and who has all is confirmed', async () => {
    const server = await Cableway.start([...MEMORY, '--history-ttl', '1s']);
    const socket = await extended(server);
    const [stream, identifier] = ['quiet', follow('quiet')];
    await socket.subscribe(identifier);
    await publish(server, stream, 3);
    const [{ epoch }] = await socket.until('the last', ({ offset }) => offset === 3);
    await server.metric('cableway_history_messages_num', 'says that all messages are over', (kept) => kept === 0);
    const behind = async (offset) => {
      const { type, messages } = await socket.history(identifier, { streams: { [stream]: { epoch, offset } } });
      return [type, numbers(messages)];
    };
    // AnyCable rejects this one, although nothing was missed.
    assert.deepEqual(await behind(3), ['confirm_history', []]);
    assert.deepEqual(await behind(2), ['reject_history', []]);
    assert.deepEqual(await behind(4), ['reject_history', []]);
    assert.deepEqual(await socket.history(identifier, { since: seconds(-60) }), { type: 'confirm_history', messages: [] });
    await publish(server, stream, 4, 4);
    assert.deepEqual(offsets([await socket.json()]), [4]);
    assert.deepEqual(await behind(3), ['confirm_history', [4]]);
    assert.deepEqual(await behind(2), ['reject_history', []]);
    // The count itself lives ten times as long.
    await server.metric('cableway_history_streams_num', 'says that the stream is forgotten', (kept) => kept === 0, 40_000);
    assert.deepEqual(await behind(4), ['reject_history', []]);
    await server.stop('SIGKILL');
  });

  test('no more bytes than there may be: the messages of streams that were used least recently go, and are counted', async () => {
    const server = await Cableway.start([...MEMORY, '--history-max-size', '64KiB']);
    const text = 'x'.repeat(1000);
    for (let n = 0; n < 500; n += 1) await server.broadcast(`full-${n % 50}`, text);
    const metrics = await server.metrics();
    // What is over the bound goes from the streams that share a lock with the newest.
    assert.ok(metrics.cableway_history_bytes < 2 * 64 * 1024, `${metrics.cableway_history_bytes} bytes are kept`);
    assert.ok(metrics.cableway_history_evicted_total > 300, `${metrics.cableway_history_evicted_total} were dropped`);
    assert.equal(metrics.cableway_history_messages_num + metrics.cableway_history_evicted_total, 500);
    await server.stop('SIGKILL');
  });
});

for (const kind of APPS) {
  describe(`history of what the app over ${kind} lets a client follow`, () => {
    let app;
    let server;
    let socket;
    before(async () => {
      app = await App.start(kind);
      server = await Cableway.start(['--rpc-host', app.rpc, '--broker', 'memory']);
      socket = await extended(server);
    });
    after(async () => {
      await server?.stop('SIGKILL');
      await app?.stop();
    });

    test('rides on subscribe: the app confirms first, then what was missed comes', async () => {
      const identifier = JSON.stringify({ channel: 'RoomChannel', id: fresh('room') });
      await publish(server, `room:${JSON.parse(identifier).id}`, 3);
      socket.send({ command: 'subscribe', identifier, history: { since: seconds(-60) } });
      const messages = await socket.until('the answer', ({ type }) => /_history$/.test(type));
      assert.deepEqual(
        messages.map(({ type, message }) => type ?? message),
        ['confirm_subscription', 1, 2, 3, 'confirm_history'],
      );
    });

    test('is ignored when the app rejects', async () => {
      const identifier = '{"channel":"RejectChannel"}';
      socket.send({ command: 'subscribe', identifier, history: { since: 1 } });
      assert.equal((await socket.json()).type, 'reject_subscription');
      assert.deepEqual(await socket.settle(), []);
    });

    test('has all streams of a subscription, each in order; if one fails there is nothing', async () => {
      const streams = [fresh(), fresh(), fresh()];
      const identifier = JSON.stringify({ channel: 'ManyChannel', streams });
      await socket.subscribe(identifier);
      for (const stream of streams) await publish(server, stream, 4);
      const live = await socket.until('the last', ({ stream_id, offset }) => stream_id === streams[2] && offset === 4);
      const [{ epoch }] = live;
      const behind = (offsets) => Object.fromEntries(streams.map((stream, at) => [stream, { epoch, offset: offsets[at] }]));
      const answer = await socket.history(identifier, { streams: behind([1, 4, 3]) });
      assert.equal(answer.type, 'confirm_history');
      const of = (stream) => offsets(answer.messages.filter(({ stream_id }) => stream_id === stream));
      assert.deepEqual(streams.map(of), [[2, 3, 4], [], [4]]);
      const failed = await socket.history(identifier, { streams: behind([1, 9, 3]) });
      assert.deepEqual(failed, { type: 'reject_history', messages: [] });
    });
  });
}

describe('exactly once and in order, while publications pour in', () => {
  let server;
  before(async () => (server = await Cableway.start([...MEMORY, '--history-limit', '5000'])));
  after(() => server?.stop('SIGKILL'));

  /** Publishes in batches and without a pause until told to stop; gives the last number. */
  const pour = (stream) => {
    let last = 0;
    let stopped = false;
    const run = async () => {
      while (!stopped) {
        const batch = range(last + 1, last + 5).map((n) => ({ stream, data: String(n) }));
        last += 5;
        assert.equal((await server.post(batch)).status, 201);
      }
      return last;
    };
    const done = run();
    return {
      published: () => last,
      stop: () => {
        stopped = true;
        return done;
      },
    };
  };
  const opened = async (stream) => {
    const first = await extended(server);
    await first.subscribe(follow(stream));
    await publish(server, stream, 1);
    const { epoch } = await first.json();
    await first.close();
    return epoch;
  };

  for (const [what, commands] of [
    ['subscribe together with history', (identifier, history) => [{ command: 'subscribe', identifier, history }]],
    [
      'subscribe and history one behind the other',
      (identifier, history) => [
        { command: 'subscribe', identifier },
        { command: 'history', identifier, history },
      ],
    ],
  ]) {
    test(`clients that ${what} have every message once, from where they asked`, async () => {
      const stream = fresh();
      const identifier = follow(stream);
      const epoch = await opened(stream);
      const flow = pour(stream);
      const sockets = [];
      for (let n = 0; n < 20; n += 1) {
        const socket = await extended(server);
        const offset = 1 + Math.floor(flow.published() / 2);
        const history = { since: 1, streams: { [stream]: { epoch, offset } } };
        for (const command of commands(identifier, history)) socket.send(command);
        sockets.push([socket, offset]);
      }
      const last = 1 + (await flow.stop());
      let replayed = 0;
      for (const [socket, from] of sockets) {
        const all = await socket.until('the last', ({ offset }) => offset === last);
        const messages = all.filter(({ offset }) => offset);
        const answer = all.findIndex(({ type }) => type === 'confirm_history');
        const missed = all.slice(0, answer).filter(({ offset }) => offset);
        replayed += missed.length;
        if (commands.length === 2 && commands(identifier, {}).length === 1) {
          assert.deepEqual(offsets(messages), range(from + 1, last));
        } else {
          // Between its two commands a client follows the stream already.
          const begin = messages.findIndex(({ offset }) => offset === from + 1);
          assert.ok(begin >= 0, 'what was asked for has come');
          assert.deepEqual(offsets(messages.slice(begin)), range(from + 1, last));
        }
        await socket.close();
      }
      assert.ok(replayed > 0, 'nothing was replayed: this run has shown nothing');
    });
  }

  test('clients that lose their connection and restore it have every message once', async () => {
    const stream = fresh();
    const identifier = follow(stream);
    const epoch = await opened(stream);
    const flow = pour(stream);
    for (let n = 0; n < 10; n += 1) {
      let socket = await extended(server);
      const got = [];
      socket.send({ command: 'subscribe', identifier, history: { streams: { [stream]: { epoch, offset: 1 } } } });
      for (let drops = 0; drops < 3; drops += 1) {
        const goal = flow.published();
        got.push(...(await socket.until('some more', ({ offset }) => offset >= goal)).filter(({ offset }) => offset));
        const { sid } = socket;
        socket.drop();
        socket = await Socket.open(server.url(`/cable?sid=${sid}`), { protocols: [EXTENDED] });
        const welcome = await socket.json();
        assert.equal(welcome.restored, true);
        socket.sid = welcome.sid;
        // Messages that the first socket had received, and nobody has read, do not count: they are asked for.
        const streams = { [stream]: { epoch, offset: got.at(-1).offset } };
        socket.send({ command: 'history', identifier, history: { since: 1, streams } });
      }
      const goal = flow.published();
      got.push(...(await socket.until('some more', ({ offset }) => offset >= goal)).filter(({ offset }) => offset));
      assert.deepEqual(offsets(got), range(2, got.at(-1).offset));
      await socket.close();
    }
    await flow.stop();
  });
});
