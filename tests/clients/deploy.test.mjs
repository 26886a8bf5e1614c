// What deploy/anycable.md promises to people who come from AnyCable, against the real binary.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { promisify } from 'node:util';
import { App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { Child } from './harness/child.mjs';
import { temporaryFolder } from './harness/folder.mjs';
import { Socket } from './harness/socket.mjs';

const guide = readFileSync(new URL('../../deploy/anycable.md', import.meta.url), 'utf8');

test('each metric of AnyCable is there or not, as the guide says', async () => {
  const rows = [...guide.matchAll(/^\| `(\w+)` \| (same|absent) \|$/gm)].map(([, name, what]) => [name, what]);
  assert.ok(rows.length > 30, `${rows.length} rows`);
  // Nobody answers there; the metrics of calls are there all the same.
  const server = await Cableway.start(['--metrics-prefix', 'anycable_go_', '--rpc-host', '127.0.0.1:1']);
  const there = await server.metrics();
  for (const [name, what] of rows) assert.equal(`anycable_go_${name}` in there, what === 'same', name);
  await server.stop();
});

/** What `rails g anycable:setup` writes into anycable.toml, without its comments, for each kind of calls. */
const generated = (rpc) => `secret = "anycable-local-secret"
presets = ["broker"]
broadcast_adapters = ["http"]

[logging]
debug = true

[rpc]
${rpc}

[streams]
whisper = true
turbo = true
`;

describe('an app that was set up for AnyCable', () => {
  for (const rpc of ['host = "http://localhost:3000/_anycable"', 'host = "localhost:50051"', 'implementation = "none"']) {
    test(`starts with its files unchanged: ${rpc}`, async () => {
      const app = temporaryFolder('rails-app');
      writeFileSync(join(app, 'anycable.toml'), generated(rpc));
      mkdirSync(join(app, 'bin/dist'), { recursive: true });
      symlinkSync(process.env.CABLEWAY_BIN, join(app, 'bin/dist/anycable-go'));
      const binary = join(app, 'bin/dist/anycable-go');
      // Its script asks for the version, then starts the server with the arguments of Procfile.dev.
      const { stdout } = await promisify(execFile)(binary, ['-v']);
      assert.match(stdout, /^\d+\.\d+\.\d+/);
      const env = { PATH: process.env.PATH };
      const server = new Child('anycable-go', binary, ['--port', '0'], { cwd: app, env });
      await server.line('the WebSocket endpoint', (line) => /ws:\/\/localhost:\d+|ws:\/\/127\.0\.0\.1:\d+/.exec(line)?.[0]);
      const warnings = server.lines.filter((line) => line.includes('WARN') && /preset|anycable\.toml|not used/.test(line));
      assert.deepEqual(warnings, []);
      assert.deepEqual((await server.stop()).code, 0);
    });
  }

  test('answers calls with @anycable/serverless-js and the variables of AnyCable', async () => {
    const app = await App.start('http');
    const env = { ANYCABLE_RPC_HOST: app.rpc, ANYCABLE_BROADCAST_KEY: 'a-key', ANYCABLE_PATH: '/cable' };
    const server = await Cableway.start([], { env, key: null });
    await Socket.welcomed(server.url('/cable?user=7'));
    const answer = await server.post({ stream: 'a', data: '1' }, { key: 'a-key' });
    assert.equal(answer.status, 201);
    await server.stop();
    await app.stop();
  });
});
