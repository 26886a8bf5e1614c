// Three nodes, clients on each, and senders that nobody here wrote: @anycable/serverless-js over HTTP, redis-cli and Ruby's gem
// redis for both forms of Redis, the npm package `nats`. Each client gets each message once and in order. Beside them stands what a node of AnyCable
// says and hears on the same channels (contracts/pubsub-cluster.md sections 3 and 4).

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { after, before, describe, test } from 'node:test';
import { promisify } from 'node:util';
import { connect, StringCodec } from 'nats';
import { loadServerless } from './apps/serverless.mjs';
import { BROADCAST_KEY, Cableway } from './harness/cableway.mjs';
import { Nats, Redis } from './harness/engines.mjs';
import { Socket } from './harness/socket.mjs';

const NODES = 3;
const CLIENTS = 9;
const MESSAGES = 50;
const OPTIONS = ['--noauth', '--norpc', '--public-streams', '--streams-whisper', '--ping-interval', '0'];
/** Names that other servers lose: blanks, dots, slashes, wildcards, Unicode. */
const NAMES = ['room', 'a b', 'a.b', 'a/b', '*', '>', 'a.*', 'a.>', '.a', '$a', 'Grüße 🎉', 'a..b', '{a}'];

const follow = (stream) => JSON.stringify({ channel: '$pubsub', stream_name: stream });
const publication = (stream, data, more = {}) => JSON.stringify({ stream, data: JSON.stringify(data), ...more });
const numbers = (count) => Array.from({ length: count }, (_, at) => at);

let serial = 0;
const name = () => `stream-${(serial += 1)}`;

const startNodes = (args) => Promise.all(numbers(NODES).map(() => Cableway.start([...OPTIONS, ...args])));

/** Publishes numbers to one stream by `PUBLISH` and to another by `XADD`, by Ruby's gem `redis` (Debian package ruby-redis). */
const RUBY = `
  require 'json'
  require 'redis'
  url, published, added, count = ARGV
  redis = Redis.new(url: url)
  publication = ->(stream, n) { { stream: stream, data: n.to_json }.to_json }
  heard = count.to_i.times.map { |n| redis.publish('__anycable__', publication.(published, n)) }.uniq
  count.to_i.times { |n| redis.xadd('__anycable__', { payload: publication.(added, n) }) }
  puts "each of #{heard.join(' or ')} nodes hears the channel"
`;

async function ruby(url, published, added) {
  const args = ['-e', RUBY, url, published, added, String(MESSAGES)];
  return (await promisify(execFile)('ruby', args)).stdout.trimEnd();
}

/** Clients that follow these streams, spread over the nodes. */
async function followers(nodes, streams, count = CLIENTS) {
  return Promise.all(
    numbers(count).map(async (at) => {
      const socket = await Socket.welcomed(nodes[at % nodes.length].url());
      for (const stream of streams) assert.equal((await socket.subscribe(follow(stream))).type, 'confirm_subscription');
      return socket;
    }),
  );
}

/** Every client gets these messages in this order, and nothing between them; then it leaves. */
async function eachGets(sockets, expected) {
  for (const socket of sockets) {
    for (const message of expected) assert.deepEqual((await socket.json('a publication')).message, message);
    assert.deepEqual(socket.inbox.drain(), []);
    socket.ws.close();
  }
}

describe('Redis between three nodes', () => {
  let redis;
  let nodes;
  before(async () => {
    redis = await Redis.start();
    nodes = await startNodes(['--redis-url', redis.url, '--broadcast-adapter', 'http,redis,redisx']);
  });
  after(async () => {
    for (const node of nodes ?? []) await node.stop('SIGKILL');
    await redis?.stop();
  });

  test('@anycable/serverless-js over HTTP to one of them', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream]);
    const { broadcaster } = await loadServerless();
    const broadcast = broadcaster(nodes[1].http('/_broadcast'), BROADCAST_KEY);
    for (const n of numbers(MESSAGES)) await broadcast(stream, { n });
    await eachGets(sockets, numbers(MESSAGES).map((n) => ({ n })));
  });

  test('redis-cli publishes on the channel of broadcasts', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream]);
    for (const n of numbers(MESSAGES)) redis.cli('PUBLISH', '__anycable__', publication(stream, n));
    await eachGets(sockets, numbers(MESSAGES));
  });

  test('redis-cli adds to the stream of broadcasts', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream]);
    for (const n of numbers(MESSAGES)) redis.cli('XADD', '__anycable__', '*', 'payload', publication(stream, n));
    // Entries are read by three nodes at once, so that only those of one node are in order among themselves.
    for (const socket of sockets) {
      const got = [];
      for (const _ of numbers(MESSAGES)) got.push((await socket.json('a publication')).message);
      assert.deepEqual(got.toSorted((a, b) => a - b), numbers(MESSAGES));
      socket.ws.close();
    }
  });

  test("Ruby's gem redis publishes on the channel and adds to the stream, as a Rails app does", async () => {
    const [published, added] = [name(), name()];
    const sockets = await followers(nodes, [published, added]);
    const said = await ruby(redis.url, published, added);
    assert.equal(said, `each of ${NODES} nodes hears the channel`);
    for (const socket of sockets) {
      const got = { [published]: [], [added]: [] };
      for (const _ of numbers(2 * MESSAGES)) {
        const { identifier, message } = await socket.json('a publication');
        got[JSON.parse(identifier).stream_name].push(message);
      }
      assert.deepEqual(got[published], numbers(MESSAGES));
      // Entries are read by three nodes at once, so that only those of one node are in order among themselves.
      assert.deepEqual(got[added].toSorted((a, b) => a - b), numbers(MESSAGES));
    }
    await eachGets(sockets, []);
    assert.equal(redis.cli('XLEN', '__anycable__'), '0', 'every entry is acknowledged and deleted');
  });

  test('names of any kind, by each way', async () => {
    const sockets = await followers(nodes, NAMES);
    for (const [at, stream] of NAMES.entries()) {
      await nodes[at % NODES].broadcast(stream, [stream, 'http']);
      for (const socket of sockets) assert.deepEqual((await socket.json('over HTTP')).message, [stream, 'http']);
      await redis.later('PUBLISH', '__anycable__', publication(stream, [stream, 'redis']));
      for (const socket of sockets) assert.deepEqual((await socket.json('over Redis')).message, [stream, 'redis']);
      await redis.later('XADD', '__anycable__', '*', 'payload', publication(stream, [stream, 'redisx']));
      for (const socket of sockets) assert.deepEqual((await socket.json('by a stream')).message, [stream, 'redisx']);
    }
    await eachGets(sockets, []);
  });

  test('a node of AnyCable is heard, and hears', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream], NODES);
    redis.cli('PUBLISH', stream, publication(stream, 'from AnyCable'));
    for (const socket of sockets) assert.equal((await socket.json('from AnyCable')).message, 'from AnyCable');
    const anycable = await redis.subscribe(stream);
    await nodes[0].post({ stream, data: '{"a":1}', meta: { exclude_socket: sockets[0].sid } });
    const heard = JSON.parse(await anycable.message());
    assert.equal(heard.stream, stream);
    assert.deepEqual(JSON.parse(heard.data), { a: 1 });
    assert.equal(heard.meta.exclude_socket, sockets[0].sid);
    await anycable.stop();
    for (const socket of sockets.slice(1)) assert.deepEqual((await socket.json('to the others')).message, { a: 1 });
    await eachGets(sockets, []);
  });

  test('a remote disconnect is told to AnyCable', async () => {
    const anycable = await redis.subscribe('__anycable_internal__');
    const command = { command: 'disconnect', payload: { identifier: 'nobody', reconnect: false } };
    assert.equal((await nodes[2].post(command)).status, 201);
    const heard = JSON.parse(await anycable.message());
    assert.equal(heard.command, 'disconnect');
    assert.equal(heard.payload.identifier, 'nobody');
    await anycable.stop();
  });

  test('a whisper crosses, and does not come back to who sent it', async () => {
    const stream = name();
    const sockets = await Promise.all(nodes.map((node) => Socket.welcomed(node.url())));
    const identifier = follow(stream);
    for (const socket of sockets) await socket.subscribe(identifier);
    sockets[0].send({ command: 'whisper', identifier, data: { typing: true } });
    for (const socket of sockets.slice(1)) assert.deepEqual((await socket.json('a whisper')).message, { typing: true });
    await eachGets(sockets, []);
  });
});

describe('NATS between three nodes', () => {
  let nats;
  let nodes;
  let sender;
  const text = StringCodec();
  before(async () => {
    nats = await Nats.start();
    nodes = await startNodes(['--nats-servers', nats.url, '--pubsub', 'nats', '--broadcast-adapter', 'http,nats']);
    sender = await connect({ servers: nats.url });
  });
  after(async () => {
    await sender?.close();
    for (const node of nodes ?? []) await node.stop('SIGKILL');
    await nats?.stop();
  });

  test('@anycable/serverless-js over HTTP to one of them', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream]);
    const { broadcaster } = await loadServerless();
    const broadcast = broadcaster(nodes[1].http('/_broadcast'), BROADCAST_KEY);
    for (const n of numbers(MESSAGES)) await broadcast(stream, { n });
    await eachGets(sockets, numbers(MESSAGES).map((n) => ({ n })));
  });

  test('the npm package nats publishes on the subject of broadcasts', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream]);
    for (const n of numbers(MESSAGES)) sender.publish('__anycable__', text.encode(publication(stream, n)));
    await eachGets(sockets, numbers(MESSAGES));
  });

  test('names of any kind, by each way', async () => {
    const sockets = await followers(nodes, NAMES);
    for (const [at, stream] of NAMES.entries()) {
      await nodes[at % NODES].broadcast(stream, [stream, 'http']);
      for (const socket of sockets) assert.deepEqual((await socket.json('over HTTP')).message, [stream, 'http']);
      sender.publish('__anycable__', text.encode(publication(stream, [stream, 'nats'])));
      for (const socket of sockets) assert.deepEqual((await socket.json('over NATS')).message, [stream, 'nats']);
    }
    await eachGets(sockets, []);
  });

  test('a node of AnyCable is heard, and hears', async () => {
    const stream = name();
    const sockets = await followers(nodes, [stream], NODES);
    sender.publish(stream, text.encode(publication(stream, 'from AnyCable')));
    for (const socket of sockets) assert.equal((await socket.json('from AnyCable')).message, 'from AnyCable');
    const anycable = sender.subscribe(stream, { max: 1 });
    await sender.flush();
    await nodes[0].broadcast(stream, { a: 1 });
    for await (const message of anycable) {
      const heard = message.json();
      assert.deepEqual([heard.stream, JSON.parse(heard.data)], [stream, { a: 1 }]);
    }
    await eachGets(sockets, [{ a: 1 }]);
  });
});
