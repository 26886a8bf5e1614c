// Clients whose network is cut for seconds again and again, while messages pour in: each gets every message once and in
// order. `cargo xtask cuts --clients 200 --minutes 10` runs the same for longer; its figures are printed.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createCable } from '@anycable/core';
import WebSocket from 'ws';
import { Cableway } from './harness/cableway.mjs';
import { within } from './harness/deadline.mjs';
import { Flow, Tally, quantile, random } from './harness/flow.mjs';
import { BadNetwork, WAYS } from './harness/network.mjs';

const CLIENTS = Number(process.env.CUTS_CLIENTS ?? 40);
const SECONDS = Number(process.env.CUTS_SECONDS ?? 30);
const SEED = Number(process.env.CUTS_SEED ?? Date.now() % 1_000_000);
/** Publications a second, over all streams; every client follows all. */
const RATE = 50;
const STREAMS = ['north', 'south'];
/** Seconds. A short run has shorter cuts, or nobody would come back in it. */
const CUT = [1, Math.min(20, SECONDS / 4)];
const BETWEEN = [2, Math.min(15, SECONDS / 4)];
const ALL_EVERY = Math.min(45, SECONDS / 3);

const sleep = (seconds) => new Promise((wake) => setTimeout(wake, seconds * 1000));

/** One client of @anycable/core, and what it got. */
class Client {
  connects = { restored: 0, authenticated: 0 };
  rejected = 0;
  /** Channels that the library gave up, and that were subscribed to again. */
  closed = 0;
  /** Milliseconds from an open socket to the last answer to `history`, of each time that it came back. */
  tails = [];
  tallies = STREAMS.map(() => new Tally());

  constructor(url, wait) {
    const client = this;
    class Timed extends WebSocket {
      constructor(...args) {
        super(...args);
        this.on('open', () => (client.openedAt = performance.now()));
      }
    }
    this.cable = createCable(url, {
      websocketImplementation: Timed,
      protocol: 'actioncable-v1-ext-json',
      pingInterval: 1000,
      reconnectStrategy: wait,
      logLevel: 'error',
    });
    this.cable.on('connect', ({ reconnect, restored }) => {
      if (reconnect) this.connects[restored ? 'restored' : 'authenticated'] += 1;
      this.behind = reconnect ? new Set(STREAMS) : new Set();
    });
    this.channels = STREAMS.map((stream, at) => this.#follow(stream, at));
  }

  #follow(stream, at) {
    const channel = this.cable.streamFrom(stream);
    channel.on('message', (number) => this.tallies[at].take(number));
    channel.on('info', ({ type }) => this.#told(stream, type));
    // @anycable/core 1.1.7 closes a channel for good when the connection is lost between its subscribe and the answer: the
    // extended protocol's `reset` loses the error that says so. An app has to subscribe again; positions are kept.
    channel.on('close', () => {
      this.closed += 1;
      // The library forgets the old subscription after it has said so.
      setTimeout(() => this.cable.state !== 'closed' && this.#follow(stream, at), 0);
    });
    return channel;
  }

  #told(stream, type) {
    if (type === 'history_not_found') this.rejected += 1;
    if (this.behind.delete(stream) && this.behind.size === 0) this.tails.push(performance.now() - this.openedAt);
  }

  async ready() {
    await Promise.all(this.channels.map((channel) => channel.ensureSubscribed()));
  }

  /** Resolves when it has all that was published; how long that takes is up to the network. */
  async has(last) {
    while (this.tallies.some((tally, at) => tally.newest < last[at])) await sleep(0.05);
  }
}

describe(`${CLIENTS} clients on a bad network for ${SECONDS} s`, () => {
  let server;
  let network;
  before(async () => {
    const options = ['--noauth', '--norpc', '--public-streams', '--broker', 'memory', '--ping-interval', '1'];
    // 25 messages a second in each stream: enough for the longest cuts, one behind the other.
    server = await Cableway.start([...options, '--history-limit', '5000']);
    network = await BadNetwork.start(server.port);
  });
  after(async () => {
    network?.close();
    await server?.stop('SIGKILL');
  });

  test('lose nothing, get nothing twice, and all in order', { timeout: (SECONDS + 240) * 1000 }, async () => {
    const chance = random(SEED);
    const between = ([from, to]) => from + chance() * (to - from);
    const someWay = () => WAYS[Math.floor(chance() * WAYS.length)];
    const names = Array.from({ length: CLIENTS }, (_, at) => `c${at}`);
    const clients = names.map((who) => new Client(network.url(who), () => 200 + 300 * Math.random()));
    await within('all subscriptions', Promise.all(clients.map((client) => client.ready())), 120_000);

    const flow = new Flow(server, STREAMS, RATE);
    const end = performance.now() + SECONDS * 1000;
    const cuts = async (who, pause) => {
      while (performance.now() < end) {
        await sleep(pause());
        if (performance.now() > end) return;
        network.cut(who, someWay());
        await sleep(between(CUT));
        network.mend(who);
      }
    };
    await Promise.all([cuts(null, () => ALL_EVERY), ...names.map((who) => cuts(who, () => between(BETWEEN)))]);
    await flow.stop();
    const caughtUp = Promise.all(clients.map((client) => client.has(flow.last)));
    // Who is not here by then has lost something, which is counted below.
    await within('everybody to have everything', caughtUp, 120_000).catch((late) => console.log(late.message));
    const metrics = await server.metrics();
    const closed = clients.reduce((total, client) => total + client.closed, 0);
    for (const client of clients) client.cable.disconnect();

    const sum = (of) => clients.reduce((total, client) => total + of(client), 0);
    const tallied = (of) => sum(({ tallies }) => tallies.reduce((total, tally, at) => total + of(tally, at), 0));
    const result = {
      lost: tallied((tally, at) => tally.lost(flow.last[at])),
      doubled: tallied(({ doubled }) => doubled),
      unordered: tallied(({ unordered }) => unordered),
      rejected: sum(({ rejected }) => rejected),
    };
    const tails = clients.flatMap(({ tails }) => tails);
    const ms = (part) => `${Math.round(quantile(tails, part))} ms`;
    const taken = metrics['cableway_connections_closed_total{cause="resumed"}'];
    console.log(`${flow.published} publications, ${tallied(({ received }) => received)} messages received; seed ${SEED}`);
    console.log(`cuts: ${WAYS.map((way) => `${network.counts[way] ?? 0} ${way}`).join(', ')}`);
    console.log(
      `came back: ${sum(({ connects }) => connects.restored)} restored, of them ${taken} from a connection that still stood; ` +
        `${sum(({ connects }) => connects.authenticated)} authenticated anew, with ${closed} channels that the library had given up`,
    );
    console.log(`replay tail, from the open socket to the last answer: p50 ${ms(0.5)}, p95 ${ms(0.95)}, longest ${ms(1)}`);
    console.log(`lost ${result.lost}, doubled ${result.doubled}, out of order ${result.unordered}, history rejected ${result.rejected}`);

    assert.deepEqual(result, { lost: 0, doubled: 0, unordered: 0, rejected: 0 });
    // A network that was never bad shows nothing.
    for (const way of WAYS) assert.ok(network.counts[way] > 0, `nothing was cut by ${way}`);
    assert.ok(sum(({ connects }) => connects.restored) > 0, 'no session was restored');
    assert.ok(taken > 0, 'no session was taken over');
  });
});
