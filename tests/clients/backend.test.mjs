// The calls to app servers: what they carry, what failure looks like to a client, and life after an app server dies.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { within } from './harness/deadline.mjs';
import { Socket } from './harness/socket.mjs';
import { derivedKey } from './harness/token.mjs';

const ECHO = '{"channel":"EchoChannel"}';
const ENV = '{"channel":"EnvChannel"}';

for (const kind of APPS) {
  describe(`app over ${kind}`, () => {
    test('killed under load: clients stay, calls fail in silence, and all recovers by itself', async () => {
      const app = await App.start(kind);
      const server = await Cableway.start(['--rpc-host', app.rpc]);
      const sockets = [];
      for (let n = 0; n < 20; n += 1) {
        const socket = await Socket.welcomed(server.url(`/cable?user=load-${n}`));
        await socket.subscribe(ECHO);
        await socket.subscribe('{"channel":"SharedChannel","stream":"load"}');
        sockets.push(socket);
      }
      // Load: half of the clients wait in a call when the app dies, all have more commands behind it.
      for (const [n, socket] of sockets.entries()) {
        if (n % 2 === 0) socket.perform(ECHO, 'wait', { gate: 'never' });
        for (let m = 0; m < 5; m += 1) socket.perform(ECHO, 'echo', { m });
      }
      await app.event('a held call', ({ event }) => event === 'waiting');
      await app.stop('SIGKILL');

      // Nobody is closed, and broadcasts go on while the app is away.
      await server.broadcast('load', 'the app is away');
      for (const socket of sockets) {
        for (;;) {
          const { message } = await socket.json('the broadcast while the app is away');
          if (message === 'the app is away') break;
          assert.equal(message.action, 'echo');
        }
      }
      // A newcomer is turned away with an error it will retry on, not left hanging.
      const newcomer = await Socket.open(server.url());
      assert.deepEqual(await newcomer.closed(), { code: 1011, reason: 'Auth Error' });

      const revived = await app.again();
      // The first calls may still meet the back-off of the broken channel: try until one comes through.
      const recovered = (async () => {
        for (;;) {
          const socket = await Socket.open(server.url());
          const first = await socket.next().catch(() => null);
          if (first !== null && JSON.parse(first).type === 'welcome') return socket;
        }
      })();
      const welcomed = await within('a welcome after the app has come back', recovered, 30_000);
      assert.equal((await welcomed.subscribe(ECHO)).type, 'confirm_subscription');
      // The clients of before were never disconnected, and their commands work again.
      for (const [n, socket] of sockets.entries()) {
        assert.equal(socket.ws.readyState, socket.ws.OPEN);
        const answered = (async () => {
          for (;;) {
            socket.perform(ECHO, 'echo', { after: n });
            for (const text of await socket.settle()) if (JSON.parse(text).message?.data?.after === n) return;
          }
        })();
        await within(`client ${n} to be served again`, answered, 30_000);
      }
      for (const socket of [...sockets, welcomed]) socket.drop();
      await server.stop('SIGKILL');
      await revived.stop();
    });

    test('an app that is not there at all closes clients with 1011', async () => {
      // Port 1: the kernel gives it to nobody who asks for any free one. The port of an app that has just ended may
      // belong to another test by now.
      const nowhere = { grpc: '127.0.0.1:1', http: 'http://127.0.0.1:1/_anycable' }[kind];
      const server = await Cableway.start(['--rpc-host', nowhere]);
      const socket = await Socket.open(server.url());
      assert.deepEqual(await socket.closed(), { code: 1011, reason: 'Auth Error' });
      await server.stop('SIGKILL');
    });

    test('--proxy-cookies keeps only the named ones, with their values as they are', async () => {
      const app = await App.start(kind);
      const server = await Cableway.start(['--rpc-host', app.rpc, '--proxy-cookies', 'a,b']);
      const cookie = 'x=1; a=one=1; b=two; ab=3';
      const socket = await Socket.welcomed(server.url(), { headers: { cookie } });
      await socket.subscribe(ENV);
      socket.perform(ENV, 'env');
      assert.equal((await socket.json()).message.headers.cookie, 'a=one=1; b=two');
      const without = await Socket.welcomed(server.url(), { headers: { cookie: 'x=1' } });
      await without.subscribe(ENV);
      without.perform(ENV, 'env');
      assert.equal('cookie' in (await without.json()).message.headers, false);
      await server.stop('SIGKILL');
      await app.stop();
    });

    test('the peer address is that of the socket, never of X-Forwarded-For', async () => {
      const app = await App.start(kind);
      const server = await Cableway.start(['--rpc-host', app.rpc]);
      const headers = { 'X-Forwarded-For': '10.9.8.7', 'X-Forwarded-Proto': 'https' };
      const socket = await Socket.welcomed(server.url(), { headers });
      await socket.subscribe(ENV);
      socket.perform(ENV, 'env');
      const seen = (await socket.json()).message;
      assert.equal(seen.headers.REMOTE_ADDR, '127.0.0.1');
      assert.ok(seen.url.startsWith('http://'));
      await server.stop('SIGKILL');
      await app.stop();
    });

    test('no more calls run at once than --rpc-concurrency allows, and none is lost', async () => {
      const app = await App.start(kind);
      const server = await Cableway.start(['--rpc-host', app.rpc, '--rpc-concurrency', '3']);
      const sockets = [];
      for (let n = 0; n < 8; n += 1) {
        const socket = await Socket.welcomed(server.url());
        await socket.subscribe(ECHO);
        sockets.push(socket);
      }
      await app.mark();
      for (const socket of sockets) socket.perform(ECHO, 'wait', { gate: 'full' });
      for (let n = 0; n < 3; n += 1) await app.event('a held call', ({ event }) => event === 'waiting');
      // With all slots taken, whatever else were let through would be in the journal once these commands are.
      await server.broadcast('nobody', 'a turn of the loop');
      assert.equal((await app.events()).filter(({ event }) => event === 'waiting').length, 3);
      await app.open('full');
      for (const socket of sockets) assert.equal((await socket.json('the answer of a call that had waited')).message.gate, 'full');
      await server.stop('SIGKILL');
      await app.stop();
    });

    test('--disconnect-mode never makes no Disconnect call', async () => {
      const app = await App.start(kind);
      const server = await Cableway.start(['--rpc-host', app.rpc, '--disconnect-mode', 'never']);
      const socket = await Socket.welcomed(server.url());
      await socket.subscribe(ECHO);
      await socket.close();
      assert.equal((await server.stop('SIGTERM')).code, 0);
      assert.deepEqual((await app.events()).filter(({ event }) => event === 'disconnect'), []);
      await app.stop();
    });

    test('a client that vanishes without a close frame has its Disconnect called', async () => {
      const app = await App.start(kind);
      const server = await Cableway.start(['--rpc-host', app.rpc]);
      const socket = await Socket.welcomed(server.url('/cable?user=gone'));
      await socket.subscribe(ECHO);
      socket.drop();
      const event = await app.event('Disconnect', ({ event }) => event === 'disconnect');
      assert.deepEqual([event.user, event.subscriptions], ['gone', [ECHO]]);
      await server.stop('SIGKILL');
      await app.stop();
    });
  });
}

describe('the secret of an HTTP app', () => {
  let app;
  const secret = 'an app secret';
  before(async () => {
    app = await App.start('http', { secret: derivedKey(secret, 'rpc-cable') });
  });
  after(() => app?.stop());

  test('is made from the app secret', async () => {
    const server = await Cableway.start(['--rpc-host', app.rpc, '--secret', secret]);
    await Socket.welcomed(server.url());
    await server.stop('SIGKILL');
  });

  test('can be given', async () => {
    const server = await Cableway.start(['--rpc-host', app.rpc, '--http-rpc-secret', derivedKey(secret, 'rpc-cable')]);
    await Socket.welcomed(server.url());
    await server.stop('SIGKILL');
  });

  test('when wrong, is an error of ours and not a refusal: 1011', async () => {
    const server = await Cableway.start(['--rpc-host', app.rpc, '--http-rpc-secret', 'wrong']);
    const socket = await Socket.open(server.url());
    assert.deepEqual(await socket.closed(), { code: 1011, reason: 'Auth Error' });
    await server.stop('SIGKILL');
  });
});
