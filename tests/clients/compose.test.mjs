// The sample app of deploy/compose, as its compose file starts it, but for names and ports: there is one machine here, not three.

import assert from 'node:assert/strict';
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { Cableway, withPort } from './harness/cableway.mjs';
import { Child } from './harness/child.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const compose = fileURLToPath(new URL('../../deploy/compose/', import.meta.url));
const read = (file) => readFileSync(file, 'utf8');

/** The variables that the compose file gives to the server and the app. */
const settings = Object.fromEntries(
  read(join(compose, 'cableway.env'))
    .split('\n')
    .filter((line) => line && !line.startsWith('#'))
    .map((line) => line.split(/=(.*)/).slice(0, 2)),
);

const started = [];
let folder;

/** A file of the sample app, run where the packages of these tests are found. */
function run(name, file, env) {
  const child = new Child(name, process.execPath, [join(folder, file)], { env: { ...process.env, ...env } });
  started.push(child);
  return child;
}

before(() => {
  folder = mkdtempSync(join(here, '.compose-'));
  cpSync(join(compose, 'app'), folder, { recursive: true });
});
after(async () => {
  await Promise.all(started.map((child) => child.stop()));
  rmSync(folder, { recursive: true });
});

test('the client hears through Cableway what the app publishes', async () => {
  // Each of the two wants to know where the other is.
  const [cableway] = await withPort(async (port) => {
    const app = run('app', 'app.mjs', { ...settings, PORT: '0', BROADCAST_URL: `http://127.0.0.1:${port}/_broadcast` });
    const rpc = await app.line('the port of the app', (line) => /listening on (\d+)/.exec(line)?.[1]);
    const env = { ...settings, CABLEWAY_RPC_HOST: settings.CABLEWAY_RPC_HOST.replace('app:3000', `127.0.0.1:${rpc}`) };
    return Cableway.start([], { env, key: null, port });
  });
  started.push(cableway);
  const client = run('client', 'client.mjs', { CABLE_URL: cableway.url() });
  await client.line('the subscription', (line) => /subscribed/.exec(line)?.[0]);
  const time = await client.line('a message of the app', (line) => /it is (.*)$/.exec(line)?.[1]);
  assert.ok(!Number.isNaN(Date.parse(time)), time);
});

test('the sample app uses the versions that are tested here', () => {
  const { dependencies } = JSON.parse(read(join(compose, 'app/package.json')));
  const { devDependencies } = JSON.parse(read(join(here, 'package.json')));
  for (const [name, version] of Object.entries(dependencies)) assert.equal(version, devDependencies[name], name);
});
