// The demo as a person meets it: one command, one URL, two browser tabs that talk to each other. Headless Chromium, on a
// desktop and on a phone; the screenshots are kept for a look.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { DESKTOP, PHONE, artifacts, launch, newPage, widths } from './harness/browser.mjs';
import { Child } from './harness/child.mjs';
import { within } from './harness/deadline.mjs';
import { temporaryFolder } from './harness/folder.mjs';

const ARTIFACTS = artifacts('demo');
const CONTROL = join(temporaryFolder('demo'), 'control.sock');

describe('the demo page', () => {
  let demo;
  let url;
  let successor;
  let browser;
  const pages = [];

  before(async () => {
    assert.ok(process.env.CABLEWAY_BIN, 'CABLEWAY_BIN must name the cableway binary under test');
    demo = new Child('cableway demo', process.env.CABLEWAY_BIN, ['demo', '--port', '0', '--control-socket', CONTROL]);
    url = await demo.line('its URL', (line) => /^https?:\/\/\S+$/.exec(line)?.[0]);
    browser = await launch();
  });
  after(async () => {
    await browser?.close();
    // It has the output of the one before it, whose end is the end of both.
    if (successor) process.kill(successor, 'SIGKILL');
    if (demo) await demo.stop('SIGKILL');
  });

  const open = async (options) => {
    const page = await newPage(browser, options);
    // Each WebSocket that the page opens, and whether it is closed.
    page.sockets = [];
    page.on('websocket', (socket) => page.sockets.push(socket));
    await page.goto(url);
    await page.getByTestId('status').filter({ hasText: /^\s*connected\s*$/i }).waitFor();
    pages.push(page);
    return page;
  };
  const say = async (page, name, text) => {
    const field = page.getByTestId('name-input');
    // A page may ask for the name once, and hide the field from then on.
    if (await field.isVisible()) await field.fill(name);
    await page.getByTestId('message-input').fill(text);
    await page.getByTestId('send-button').click();
  };
  const sees = (page, text) => page.getByTestId('messages').getByText(text, { exact: false }).first().waitFor();
  const text = (page, id) => page.getByTestId(id).textContent();
  const toNumber = (text) => Number(text.replace(/[^0-9.]/g, ''));
  const number = async (page, id) => toNumber(await text(page, id));
  /** Waits until a live fact is as it should be; the page refreshes it by itself. */
  const fact = async (page, id, what, holds) => {
    const seen = [];
    const holding = async () => {
      for (;;) {
        seen.push(await text(page, id));
        if (holds(toNumber(seen.at(-1)))) return;
        const changed = ([id, seen]) => document.querySelector(`[data-testid="${id}"]`).textContent !== seen;
        // Looked at by time and not by frame: a tab that nobody sees draws none.
        await page.waitForFunction(changed, [id, seen.at(-1)], { polling: 100 });
      }
    };
    await within(`${id} ${what}`, holding()).catch((error) => {
      throw new Error(`${error.message}; it said ${seen.join(', ')}`);
    });
  };

  let desktop;
  let phone;

  test('two tabs, on a desktop and on a phone, chat with each other', async () => {
    desktop = await open(DESKTOP);
    phone = await open(PHONE);
    await say(desktop, 'Ann', 'hello from the desk');
    await sees(phone, 'hello from the desk');
    await sees(desktop, 'hello from the desk');
    await say(phone, 'Ben', 'and from the road');
    await sees(desktop, 'and from the road');
    await sees(desktop, 'Ben');
    await sees(phone, 'Ann');
  });

  test('who is there and who is writing is shown', async () => {
    for (const page of [desktop, phone]) await page.getByText('2 people here', { exact: true }).waitFor();
    await phone.getByTestId('message-input').pressSequentially('I am wri');
    await desktop.getByText('Ben is writing…', { exact: true }).waitFor();
    await phone.getByTestId('message-input').fill('');
    await sees(desktop, /is Ben now$/);
  });

  test('a page that cuts its network gets all that it missed, in order and marked, and others do not see it leave', async () => {
    const missed = desktop.locator('.line.missed .said');
    await desktop.getByTestId('cut-button').click();
    await desktop.getByTestId('status').filter({ hasText: 'network cut' }).waitFor();
    await say(phone, 'Ben', 'said while you were away');
    await say(phone, 'Ben', 'and this too');
    await sees(phone, 'and this too');
    const [status, came] = await desktop.evaluate(() => [document.getElementById('status').textContent, document.querySelectorAll('.line.missed').length]);
    assert.ok(status !== 'network cut' || came === 0, 'something came although there was no network');
    await sees(desktop, 'Back in the same session. ');
    await sees(phone, 'tick 5 of 5');
    await sees(desktop, 'tick 5 of 5');
    const texts = async (page, selector) => (await page.locator(selector).allTextContents()).filter((text) => /tick|away|too/.test(text));
    // Once each, in the order in which everybody else heard it.
    assert.deepEqual(await texts(desktop, '.line .said'), await texts(phone, '.line .said'));
    const late = await missed.allTextContents();
    assert.ok(late.includes('said while you were away') && late.includes('and this too'), late.join(', '));
    await sees(desktop, `Back in the same session. ${late.length} missed messages came late.`);
    assert.equal(await phone.getByText('Ann left').count(), 0);
    await phone.getByText('2 people here', { exact: true }).waitFor();
  });

  test('what people write is shown as text and never run', async () => {
    await say(desktop, 'Ann', '<img src=x onerror="window.broken = true"><b>bold</b>');
    await sees(phone, '<b>bold</b>');
    for (const page of [desktop, phone]) assert.equal(await page.evaluate(() => window.broken), undefined);
  });

  test('live facts are shown and move with the connections', async () => {
    await fact(desktop, 'fact-connections', 'counts both tabs', (connections) => connections === 2);
    assert.ok((await number(desktop, 'fact-files')) >= 1);
    assert.ok((await number(desktop, 'fact-shards')) >= 1);
    const third = await open(DESKTOP);
    await fact(desktop, 'fact-connections', 'counts the third tab', (connections) => connections === 3);
    await third.close();
    await fact(desktop, 'fact-connections', 'counts the tab that left', (connections) => connections === 2);
  });

  test('another process takes over under the open pages, which do not notice', async () => {
    const before = [desktop, phone].map((page) => page.sockets.length);
    const upgrade = new Child('cableway upgrade', process.env.CABLEWAY_BIN, ['upgrade', '--control-socket', CONTROL]);
    const { code } = await within('the upgrade', upgrade.exited);
    assert.equal(code, 0, upgrade.tail());
    successor = Number(/^process (\d+) /m.exec(upgrade.lines.join('\n'))[1]);
    assert.notEqual(successor, demo.pid);
    if (demo.process.exitCode === null) await within('the old process to end', once(demo.process, 'exit'));
    assert.equal(demo.process.exitCode, 0);
    await say(desktop, 'Ann', 'who serves us now?');
    await sees(phone, 'who serves us now?');
    await say(phone, 'Ben', 'somebody else, I hear');
    await sees(desktop, 'somebody else, I hear');
    for (const page of [desktop, phone]) await page.getByText('2 people here', { exact: true }).waitFor();
    assert.deepEqual([desktop, phone].map((page) => page.sockets.length), before, 'a page has opened another WebSocket');
    for (const page of [desktop, phone]) {
      assert.ok(!page.sockets.at(-1).isClosed(), 'a WebSocket was closed');
      assert.equal(await text(page, 'status'), 'connected');
    }
    await fact(desktop, 'fact-connections', 'counts both tabs', (connections) => connections === 2);
    await desktop.screenshot({ path: join(ARTIFACTS, 'demo-upgraded.png') });
  });

  test('memory per connection is measured on idle clients that the page starts and lets go', async () => {
    assert.doesNotMatch(await desktop.getByTestId('fact-bytes').textContent(), /\d/, 'a figure from a handful of connections');
    await desktop.getByRole('button', { name: /1,000/ }).click();
    await fact(desktop, 'fact-connections', 'counts the idle clients', (connections) => connections === 1002);
    await fact(desktop, 'fact-bytes', 'is measured', (bytes) => bytes > 0);
    await desktop.getByRole('button', { name: /release/i }).click();
    await fact(desktop, 'fact-connections', 'counts the idle clients that left', (connections) => connections === 2);
  });

  test('nothing is cut off sideways, and the message field is in reach', async () => {
    for (const page of [desktop, phone]) {
      const [content, width] = await widths(page);
      assert.ok(content <= width, `content is ${content} px wide in a window of ${width}`);
      await page.getByTestId('message-input').scrollIntoViewIfNeeded();
      const box = await page.getByTestId('send-button').boundingBox();
      assert.ok(box.height >= 32, `the send button is ${box.height} px high`);
    }
  });

  test('the URL is all that it prints, and nothing that it says beside it is a URL', () => {
    assert.deepEqual(demo.lines, [url]);
    assert.doesNotMatch(demo.errors.join('\n'), /\w+:\/\//);
  });

  test('screenshots are taken, and no page reported an error', async () => {
    for (const colorScheme of ['light', 'dark']) {
      for (const [name, page] of [['desktop', desktop], ['phone', phone]]) {
        await page.emulateMedia({ colorScheme });
        await page.evaluate(() => { scrollTo(0, 0); document.querySelector('.side').scrollTop = 0; });
        await page.screenshot({ path: join(ARTIFACTS, `demo-${name}-${colorScheme}.png`) });
      }
    }
    console.log(`screenshots in ${ARTIFACTS}`);
    for (const page of pages) assert.deepEqual(page.faults, []);
  });
});
