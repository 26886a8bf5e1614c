// Headless Chromium, and the two kinds of window that pages are looked at in.

import { mkdtempSync, mkdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { DEADLINE_MS } from './deadline.mjs';

export const DESKTOP = { viewport: { width: 1280, height: 800 } };
export const PHONE = { viewport: { width: 390, height: 844 }, isMobile: true, hasTouch: true, deviceScaleFactor: 2 };

// Everything that would make the browser look for hosts of its own is off: a test machine may have no network.
const QUIET = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
];

/** Where screenshots are kept for a look. */
export function artifacts(name) {
  const folder = process.env.CLIENT_TEST_ARTIFACTS ?? mkdtempSync(join(tmpdir(), `cableway-${name}-`));
  mkdirSync(folder, { recursive: true });
  return folder;
}

export async function launch() {
  return chromium.launch({ executablePath: process.env.CHROMIUM_BIN ?? '/usr/bin/chromium', headless: true, args: QUIET });
}

/** A page in a window of its own, whose errors are kept in `faults`. */
export async function newPage(browser, options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE_MS);
  page.faults = [];
  page.on('pageerror', (error) => page.faults.push(String(error)));
  page.on('console', (message) => message.type() === 'error' && page.faults.push(message.text()));
  return page;
}

/** How wide a page's content is, and its window: more content is cut off sideways. */
export async function widths(page) {
  return page.evaluate(() => [document.documentElement.scrollWidth, window.innerWidth]);
}
