// @anycable/web in headless Chromium whose network is cut: by the browser itself, and by a proxy. A page that comes back has
// every message once and in order, and who was there never left for others.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import http from 'node:http';
import { after, before, describe, test } from 'node:test';
import { launch, newPage } from './harness/browser.mjs';
import { Cableway } from './harness/cableway.mjs';
import { within } from './harness/deadline.mjs';
import { Flow, Tally } from './harness/flow.mjs';
import { BadNetwork, WAYS } from './harness/network.mjs';

const STREAMS = ['north', 'south'];
const RATE = 50;
/** Longer than the browser, which is pinged each second, needs to notice a silent network. */
const CUT_SECONDS = 5;

const sleep = (seconds) => new Promise((wake) => setTimeout(wake, seconds * 1000));

const MODULES = ['@anycable/web', '@anycable/core', 'nanoevents'];
const IMPORTS = Object.fromEntries(MODULES.map((name) => [name, `/node_modules/${name}/index.js`]));

/** What an app's page has: a cable, channels, and here a record of all that came. */
const page = (url) => `<!doctype html>
<meta charset="utf-8"><link rel="icon" href="data:,"><title>cuts</title>
<script type="importmap">${JSON.stringify({ imports: IMPORTS })}</script>
<script type="module">
import { createCable } from '@anycable/web';
const cable = createCable('${url}', {
  protocol: 'actioncable-v1-ext-json', pingInterval: 1000, reconnectStrategy: () => 200, logLevel: 'error',
});
window.got = { north: [], south: [] };
window.connects = [];
window.drops = 0;
cable.on('connect', ({ reconnect, restored }) => window.connects.push({ reconnect, restored }));
cable.on('disconnect', () => (window.drops += 1));
const channels = Object.keys(window.got).map((stream) => {
  const channel = cable.streamFrom(stream);
  channel.on('message', (number) => window.got[stream].push(number));
  return channel;
});
await Promise.all(channels.map((channel) => channel.ensureSubscribed()));
await channels[0].presence.join('page', { on: 'the road' });
window.ready = true;
</script>`;

/** Serves the page and the libraries as npm has put them, which are modules that a browser takes as they are. */
async function serve(url) {
  const site = http.createServer(async (request, response) => {
    const { pathname } = new URL(request.url, 'http://site');
    if (pathname === '/') return response.writeHead(200, { 'content-type': 'text/html' }).end(page(url()));
    const isModule = MODULES.some((name) => pathname.startsWith(`/node_modules/${name}/`)) && pathname.endsWith('.js');
    const text = isModule && (await readFile(new URL(`.${pathname}`, import.meta.url)).catch(() => null));
    if (!text) return response.writeHead(404).end();
    response.writeHead(200, { 'content-type': 'text/javascript' }).end(text);
  });
  await new Promise((ready) => site.listen(0, '127.0.0.1', ready));
  return site;
}

describe('a page on a bad network', () => {
  let server;
  let network;
  let site;
  let browser;
  before(async () => {
    const options = ['--noauth', '--norpc', '--public-streams', '--broker', 'memory', '--ping-interval', '1'];
    server = await Cableway.start([...options, '--history-limit', '5000', '--api-secret', 'k']);
    network = await BadNetwork.start(server.port);
    site = await serve(() => network.url('page'));
    browser = await launch();
  });
  after(async () => {
    await browser?.close();
    site?.close();
    network?.close();
    await server?.stop('SIGKILL');
  });
  const present = async () => {
    const headers = { authorization: 'Bearer k' };
    return (await (await fetch(server.http('/api/presence/north/users'), { headers })).json()).total;
  };

  test(`gets every message once and in order, and stays present, whoever cuts it off for ${CUT_SECONDS} s`, async () => {
    const window = await newPage(browser);
    const devtools = await window.context().newCDPSession(window);
    const offline = (is) =>
      devtools.send('Network.emulateNetworkConditions', { offline: is, latency: 0, downloadThroughput: -1, uploadThroughput: -1 });
    await devtools.send('Network.enable');
    await window.goto(`http://127.0.0.1:${site.address().port}/`);
    await window.waitForFunction(() => window.ready, undefined, { polling: 50 });
    const flow = new Flow(server, STREAMS, RATE);
    const newest = () => window.evaluate(() => Object.values(window.got).map((numbers) => numbers.at(-1) ?? 0));
    const current = async () => {
      const goal = flow.last;
      while ((await newest()).some((number, at) => number < goal[at])) await sleep(0.05);
    };

    const cuts = [
      ['offline in the browser', () => offline(true), () => offline(false)],
      ...WAYS.map((way) => [way, () => network.cut('page', way), () => network.mend('page')]),
    ];
    for (const [what, cut, mend] of cuts) {
      await within(`the page to be up to date before ${what}`, current());
      const drops = await window.evaluate(() => window.drops);
      await cut();
      await sleep(CUT_SECONDS);
      await mend();
      await within(`the page to be up to date after ${what}`, current());
      const dropped = (await window.evaluate(() => window.drops)) - drops;
      assert.ok(dropped > 0, `${what} has not cut the page off`);
      assert.equal(await present(), 1);
    }
    await flow.stop();
    await within('the page to have everything', current());

    const { got, connects } = await window.evaluate(() => ({ got: window.got, connects: window.connects }));
    STREAMS.forEach((stream, at) => {
      const tally = new Tally();
      got[stream].forEach((number) => tally.take(number));
      assert.deepEqual([tally.lost(flow.last[at]), tally.doubled, tally.unordered], [0, 0, 0], stream);
    });
    const back = connects.filter(({ reconnect }) => reconnect);
    console.log(`${flow.published} publications; came back ${back.length} times, ${back.filter(({ restored }) => restored).length} restored`);
    assert.ok(back.length >= cuts.length, 'it came back after every cut');
    assert.ok(back.every(({ restored }) => restored), 'every time it went on with its session');
  });
});
