// The admin page as an operator meets it: live figures and charts in headless Chromium, on a desktop and on a phone, light and
// dark; the screenshots are kept for a look.

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { DESKTOP, PHONE, artifacts, launch, newPage, widths } from './harness/browser.mjs';
import { Cableway, withPort } from './harness/cableway.mjs';
import { Socket } from './harness/socket.mjs';

const ARTIFACTS = artifacts('admin');
const KEY = 'only-operators-know';

/** Where the admin page is, as the boot log says. */
const adminOf = (server) => server.child.line('the admin port', (line) => /admin: (http:\/\/[^\s"]+\/admin)/.exec(line)?.[1]);

describe('the admin page', () => {
  let server;
  let adminPort;
  let browser;
  let desktop;
  let phone;
  const clients = [];
  const options = (port) => ['--norpc', '--public', '--acceptors', '2', '--admin-port', String(port)];

  before(async () => {
    [server, adminPort] = await withPort((port) => Cableway.start(options(port)));
    browser = await launch();
  });
  after(async () => {
    await browser?.close();
    await server?.stop('SIGKILL');
  });

  const open = async (window, more = {}) => {
    const page = await newPage(browser, { ...window, ...more });
    await page.goto(`http://127.0.0.1:${adminPort}/admin`);
    await page.getByTestId('status').getByText('live', { exact: true }).waitFor();
    return page;
  };
  const shows = (page, id, text) => page.getByTestId(id).filter({ hasText: text }).waitFor();

  test('figures and charts follow clients that come and go', async () => {
    desktop = await open(DESKTOP, { colorScheme: 'light' });
    phone = await open(PHONE, { colorScheme: 'dark' });
    for (let n = 0; n < 12; n += 1) clients.push(await Socket.welcomed(server.url()));
    for (const page of [desktop, phone]) {
      await shows(page, 'tile-websockets', /^WebSockets12/);
      await shows(page, 'tile-clients', /^Clients12/);
      await shows(page, 'chart-connections', /open 12/);
      await shows(page, 'tile-descriptors', /left$/);
      await shows(page, 'tile-queue', /^Accept queue0of /);
    }
    const held = await desktop.getByTestId('shards').locator('tr td:last-child').allTextContents();
    assert.equal(held.length, 2);
    await Promise.all(clients.splice(0, 5).map((client) => client.close()));
    await shows(desktop, 'tile-websockets', /^WebSockets7/);
    await shows(desktop, 'causes', /client_closed.*5/);
  });

  test('the charts draw lines that move, and tell the values under the pointer', async () => {
    const line = () => desktop.getByTestId('chart-flow').locator('path.one').getAttribute('d');
    const before = await line();
    await desktop.waitForFunction(
      (before) => document.querySelector('[data-testid="chart-flow"] path.one').getAttribute('d') !== before,
      before,
      { polling: 100 },
    );
    assert.match(await line(), /^M[\d.]+ [\d.]+(?:L[\d.]+ [\d.]+)+/);
    await desktop.getByTestId('chart-flow').locator('.chart').hover({ position: { x: 5, y: 40 } });
    await shows(desktop, 'chart-flow', / ago/);
    await desktop.getByTestId('chart-flow').locator('path.at').waitFor({ state: 'attached' });
    await desktop.mouse.move(0, 0);
  });

  test('nothing is cut off sideways', async () => {
    for (const page of [desktop, phone]) {
      const [content, width] = await widths(page);
      assert.ok(content <= width, `content is ${content} px wide in a window of ${width}`);
    }
  });

  test('the page asks this port only, and may not do more', async () => {
    const response = await fetch(`http://127.0.0.1:${adminPort}/admin`);
    assert.match(response.headers.get('content-security-policy'), /default-src 'none'.*connect-src 'self'.*frame-ancestors 'none'/);
    const page = await response.text();
    assert.deepEqual([...page.matchAll(/(?:src|href)="(?!data:)([^"]*)"/g)], []);
    assert.doesNotMatch(page.replaceAll('http://www.w3.org/2000/svg', ''), /https?:\/\//);
  });

  test('screenshots are taken, light and dark, and no page reported an error', async () => {
    for (const [name, page] of [['desktop', desktop], ['phone', phone]]) {
      for (const colorScheme of ['light', 'dark']) {
        await page.emulateMedia({ colorScheme });
        await page.screenshot({ path: join(ARTIFACTS, `admin-${name}-${colorScheme}.png`), fullPage: true });
      }
      assert.deepEqual(page.faults, []);
    }
    console.log(`screenshots in ${ARTIFACTS}`);
  });

  test('a server that goes away is told with the age of the figures, and is followed when it is back', async () => {
    await server.stop('SIGKILL');
    await shows(desktop, 'trouble', /The server does not answer; trying again; these are figures of .* ago/);
    await shows(desktop, 'status', 'no figures');
    server = await server.again();
    await shows(desktop, 'status', 'live');
    await shows(desktop, 'tile-websockets', /^WebSockets0/);
    assert.ok(await desktop.getByTestId('trouble').isHidden());
  });

  test('with a key the browser asks for it once and sends it with every look', async () => {
    const keyed = await Cableway.start(['--norpc', '--public', '--admin-port', '0', '--admin-key', KEY]);
    const url = await adminOf(keyed);
    const [stranger, operator] = [await newPage(browser, DESKTOP), await newPage(browser, { ...DESKTOP, httpCredentials: { username: 'me', password: KEY } })];
    assert.equal((await stranger.goto(url).catch(() => null))?.status() ?? 401, 401);
    assert.equal(await stranger.getByTestId('status').count(), 0);
    await operator.goto(url);
    await shows(operator, 'status', 'live');
    await shows(operator, 'tile-websockets', /^WebSockets0/);
    await keyed.stop('SIGKILL');
  });
});
