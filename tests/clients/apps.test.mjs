// The sample apps by themselves, asked directly: when a conformance test fails, this file says whether the app is to blame.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import { App } from './harness/app.mjs';
import { within } from './harness/deadline.mjs';

const schema = loader.loadSync(fileURLToPath(new URL('../../proto/anycable.proto', import.meta.url)), { keepCase: true, enums: String, defaults: true });

/** A way to call each app: (method, message) => response, in proto field names and statuses as words. */
const callers = {
  async grpc(app) {
    const { anycable } = grpc.loadPackageDefinition(schema);
    const client = new anycable.RPC(app.rpc, grpc.credentials.createInsecure());
    const metadata = new grpc.Metadata();
    metadata.set('sid', 'sid-1');
    metadata.set('protov', 'v1');
    return (method, message) =>
      within(
        method,
        new Promise((answer, fail) => client[method](message, metadata, (error, response) => (error ? fail(error) : answer(response)))),
      );
  },
  async http(app) {
    return async (method, message) => {
      const headers = { 'content-type': 'application/json', 'x-anycable-meta-sid': 'sid-1', 'x-anycable-meta-protov': 'v1' };
      const response = await fetch(`${app.rpc}/${method.toLowerCase()}`, { method: 'POST', headers, body: JSON.stringify(message) });
      if (response.status !== 200) throw new Error(`status ${response.status}`);
      const answer = await response.json();
      return { ...answer, status: ['ERROR', 'SUCCESS', 'FAILURE'][answer.status] };
    };
  },
};

for (const [kind, caller] of Object.entries(callers)) {
  describe(`the ${kind} app`, () => {
    let app;
    let call;
    before(async () => {
      app = await App.start(kind);
      call = await caller(app);
    });
    after(() => app?.stop());

    const env = { url: 'http://ws.test/cable?user=7', headers: { cookie: 'theme=dark' }, cstate: {}, istate: {} };
    const command = (verb, params, more = {}) =>
      call('Command', { command: verb, identifier: JSON.stringify(params), connection_identifiers: '{"user":"7"}', data: '', env, ...more });
    const texts = ({ transmissions }) => transmissions.map((text) => JSON.parse(text)).map(({ type, message }) => type ?? message);

    test('welcomes a client by its name', async () => {
      const answer = await call('Connect', { env });
      assert.equal(answer.status, 'SUCCESS');
      assert.equal(answer.identifiers, '{"user":"7"}');
      assert.deepEqual(JSON.parse(answer.transmissions[0]), { type: 'welcome', sid: 'sid-1' });
      assert.equal(answer.env.cstate.seen, 'connect');
    });

    test('refuses by cookie, and fails when asked to', async () => {
      const refused = await call('Connect', { env: { ...env, headers: { cookie: 'auth=no' } } });
      assert.equal(refused.status, 'FAILURE');
      assert.equal(JSON.parse(refused.transmissions[0]).reason, 'unauthorized');
      await assert.rejects(call('Connect', { env: { ...env, url: 'http://ws.test/cable?auth=error' } }));
    });

    test('confirms behind what it transmits', async () => {
      const answer = await command('subscribe', { channel: 'GreetingChannel' });
      assert.deepEqual(texts(answer), ['first', 'second', 'confirm_subscription']);
    });

    test('lists streams, and stops them', async () => {
      const subscribed = await command('subscribe', { channel: 'ManyChannel', streams: ['a', 'b'] });
      assert.deepEqual(subscribed.streams, ['a', 'b']);
      const left = await command('message', { channel: 'ManyChannel', streams: [] }, { data: '{"action":"leave","stream":"a"}' });
      assert.deepEqual(left.stopped_streams, ['a']);
    });

    test('rejects late with its streams still in the answer, as Rails does', async () => {
      const answer = await command('subscribe', { channel: 'RejectLateChannel', stream: 'forbidden' });
      assert.equal(answer.status, 'FAILURE');
      assert.deepEqual(answer.streams, ['forbidden']);
      assert.equal(answer.stop_streams, true);
      assert.deepEqual(texts(answer), ['reject_subscription']);
    });

    test('asks to disconnect', async () => {
      assert.equal((await command('message', { channel: 'EchoChannel' }, { data: '{"action":"bye"}' })).disconnect, true);
    });

    test('keeps state through the caller, and gets it back at the end', async () => {
      const identifier = JSON.stringify({ channel: 'CounterChannel' });
      let istate = {};
      for (const step of [{ command: 'subscribe' }, { command: 'message', data: '{"action":"increment"}' }]) {
        const answer = await command(step.command, { channel: 'CounterChannel' }, { data: step.data ?? '', env: { ...env, istate } });
        istate = { ...istate, ...answer.env.istate };
      }
      await call('Disconnect', { identifiers: '{"user":"7"}', subscriptions: [identifier], env: { ...env, istate: { [identifier]: JSON.stringify(istate) } } });
      const left = await app.event('unsubscribed', ({ event }) => event === 'unsubscribed');
      assert.equal(left.state.count, '1');
      await app.event('disconnect', ({ event, user }) => event === 'disconnect' && user === '7');
    });

    test('a crash is an error of the call, and the app goes on', async () => {
      await assert.rejects(command('subscribe', { channel: 'BrokenChannel' }));
      assert.equal((await command('subscribe', { channel: 'EchoChannel' })).status, 'SUCCESS');
    });
  });
}
