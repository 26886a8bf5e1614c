// Servers that end, politely or not, and what real clients make of it: they come back, subscribe again and miss nothing that
// is published afterwards.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { Socket } from './harness/socket.mjs';
import * as anycable from './clients/anycable.mjs';
import * as rails from './clients/rails.mjs';

const CLIENTS = [
  // Rails' library looks for silence instead of trusting a close; with a ping every second it may look sooner.
  { ...rails, options: { staleThreshold: 1.5 } },
  { ...anycable, options: {} },
];

for (const kind of APPS) {
  describe(`app over ${kind}`, () => {
    let app;
    let server;
    before(async () => {
      app = await App.start(kind);
      server = await Cableway.start(['--rpc-host', app.rpc, '--ping-interval', '1']);
    });
    after(async () => {
      await server?.stop('SIGKILL');
      await app?.stop();
    });

    for (const { Client, name, options } of CLIENTS) {
      for (const [signal, how] of [
        ['SIGTERM', 'is stopped'],
        ['SIGKILL', 'is killed'],
      ]) {
        test(`${name} comes back and is subscribed again after the server ${how}`, async () => {
          const client = await new Client(server.url(), options).connect();
          const room = client.subscribe('RoomChannel', { id: 'reconnect' });
          assert.equal(await room.settled(), 'connected');
          const end = await server.stop(signal);
          assert.equal(await room.state('the disconnect'), 'disconnected');
          if (signal === 'SIGTERM') {
            assert.deepEqual(end, { code: 0, signal: null });
            const said = client.wire.received.filter(({ type }) => type === 'disconnect');
            assert.deepEqual(said, [{ type: 'disconnect', reason: 'server_restart', reconnect: true }]);
            if (name !== anycable.name) assert.deepEqual(client.wire.closes, [{ code: 1001, reason: 'Server restart' }]);
          }
          server = await server.again();
          assert.equal(await room.state('the second subscription'), 'connected');
          await server.broadcast('room:reconnect', 'welcome back');
          assert.equal(await room.next('the broadcast'), 'welcome back');
          await client.close();
        });
      }
    }

    test('SIGTERM says server_restart, closes with 1001, calls Disconnect for every session and exits 0', async () => {
      const own = await Cableway.start(['--rpc-host', app.rpc]);
      const sockets = [];
      for (const user of ['s1', 's2', 's3']) sockets.push(await Socket.welcomed(own.url(`/cable?user=${user}-${kind}`)));
      await app.mark();
      const ended = own.stop('SIGTERM');
      for (const socket of sockets) {
        assert.equal(await socket.next(), '{"type":"disconnect","reason":"server_restart","reconnect":true}');
        assert.deepEqual(await socket.closed(), { code: 1001, reason: 'Server restart' });
      }
      assert.deepEqual(await ended, { code: 0, signal: null });
      const users = (await app.events()).filter(({ event }) => event === 'disconnect').map(({ user }) => user);
      for (const user of ['s1', 's2', 's3']) assert.ok(users.includes(`${user}-${kind}`), `${user} missing in ${users}`);
    });

    test('a second signal ends a drain that waits', async () => {
      const own = await Cableway.start(['--rpc-host', app.rpc, '--shutdown-timeout', '600']);
      const gate = `disconnect-${kind}`;
      const socket = await Socket.welcomed(own.url(`/cable?hold_disconnect=${gate}`));
      own.child.process.kill('SIGTERM');
      await socket.closed();
      await app.event('the Disconnect call', (event) => event.event === 'holding' && event.gate === gate);
      own.child.process.kill('SIGTERM');
      assert.equal((await own.child.exited).code, 0);
    });
  });
}
