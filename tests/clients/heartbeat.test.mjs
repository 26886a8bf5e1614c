// A busy connection is pinged on time all the same. Up to 7.1 Rails' library counts pings and nothing else as a sign of
// life, and opens a new socket after six seconds without one, however many messages it gets; from 8.0 on it counts both.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { after, before, describe, test } from 'node:test';
import { setInterval as ticks } from 'node:timers/promises';
import { Cableway } from './harness/cableway.mjs';
import { within } from './harness/deadline.mjs';
import * as rails from './clients/rails.mjs';

const require = createRequire(import.meta.url);

/** The npm package as it is called here, and the release that it must be. */
const RELEASES = [
  ['actioncable-7.1', '7.1.3'],
  ['actioncable-8.0', '8.0.200'],
];

const SECONDS = 60;
const MESSAGES_PER_SECOND = 10;
/** The server's default, which the test leaves as it is. */
const PING_INTERVAL_S = 3;
/** Messages that may come between two pings: those of an interval and a half. The library would wait for two. */
const BETWEEN_PINGS_MAX = PING_INTERVAL_S * 1.5 * MESSAGES_PER_SECOND;

/** The most messages in a row without a ping among them, from the welcome on. */
function longestWithoutPing(received) {
  let [longest, now] = [0, 0];
  for (const { type, identifier } of received) {
    if (type === 'ping') now = 0;
    else if (!type && identifier) longest = Math.max(longest, ++now);
  }
  return longest;
}

// All of them at once, so that it takes one minute and not two.
describe('ten messages a second for a minute', { concurrency: true }, () => {
  let server;
  let published;
  const everybody = [];

  before(async () => {
    server = await Cableway.start(['--norpc', '--noauth', '--public-streams']);
    for (const [library] of RELEASES) {
      const client = await new rails.Client(server.url(), { library }).connect();
      const room = client.subscribe('$pubsub', { stream_name: 'busy' });
      assert.equal(await room.settled(), 'connected');
      everybody.push({ client, room });
    }
    published = publish(server, SECONDS * MESSAGES_PER_SECOND);
    // Each test waits for it and says what is wrong.
    published.catch(() => {});
  });
  after(async () => {
    await Promise.all(everybody.map(({ client }) => client.close()));
    await server?.stop('SIGKILL');
  });

  for (const [index, [library, version]] of RELEASES.entries()) {
    test(`@rails/actioncable ${version} is pinged between them and stays`, async () => {
      assert.equal(require(`${library}/package.json`).version, version);
      const { client, room } = everybody[index];
      const count = await published;
      const messages = [];
      while (messages.at(-1) !== count - 1) messages.push(await room.next('a message'));
      const pings = client.wire.received.filter(({ type }) => type === 'ping').length;
      const welcomes = client.wire.received.filter(({ type }) => type === 'welcome').length;
      assert.deepEqual({ welcomes, closes: client.wire.closes }, { welcomes: 1, closes: [] }, `it came back; ${pings} pings in all`);
      assert.deepEqual(messages, Array.from({ length: count }, (_, n) => n));
      const longest = longestWithoutPing(client.wire.received);
      assert.ok(longest <= BETWEEN_PINGS_MAX, `${longest} messages without a ping between them; ${pings} pings in all`);
      assert.ok(pings >= SECONDS / PING_INTERVAL_S - 1, `${pings} pings`);
    });
  }
});

/** Publishes numbers, ten a second; gives how many. */
async function publish(server, count) {
  let n = 0;
  for await (const _ of ticks(1000 / MESSAGES_PER_SECOND)) {
    await within(`publication ${n}`, server.broadcast('busy', n));
    n += 1;
    if (n === count) break;
  }
  return n;
}
