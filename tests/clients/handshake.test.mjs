// The HTTP upgrade as the Action Cable contract has it: what is accepted, with which headers, and what each refusal says.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { ACCEPT, BASE, EXTENDED, Raw, Socket, refusal, upgrade } from './harness/socket.mjs';

describe('handshake', () => {
  let server;
  before(async () => {
    server = await Cableway.start(['--noauth', '--norpc', '--path', '/cable,/ws/{room}/live,/any/*']);
  });
  after(() => server?.stop('SIGKILL'));

  const answer = async (request) => {
    const raw = await Raw.connect(server.port, request);
    try {
      return { ...(await raw.head()), raw };
    } finally {
      raw.end();
    }
  };
  const ask = (headers, options = {}) => answer(upgrade(options.target ?? '/cable', server.origin, headers, options));

  test('a good request gets 101, the accept key, the subprotocol and the version header', async () => {
    const { status, headers } = await ask({});
    assert.equal(status, 101);
    assert.equal(headers['sec-websocket-accept'], ACCEPT);
    assert.equal(headers['sec-websocket-protocol'], BASE);
    assert.equal(headers.upgrade.toLowerCase(), 'websocket');
    assert.equal(headers.connection.toLowerCase(), 'upgrade');
    assert.ok(headers['x-anycable-version']?.length > 0);
    assert.equal('server' in headers, false);
  });

  for (const [offered, chosen] of [
    [BASE, BASE],
    [EXTENDED, EXTENDED],
    [`${EXTENDED}, ${BASE}`, BASE],
    [`${BASE}, actioncable-unsupported`, BASE],
    [`anycable-token.abc, ${EXTENDED}`, EXTENDED],
    ['actioncable-unsupported', undefined],
    ['graphql-ws', undefined],
    [null, undefined],
  ]) {
    test(`offering ${offered ?? 'no subprotocol'} gets ${chosen ?? 'a 101 without one'}`, async () => {
      const { status, headers } = await ask({ 'Sec-WebSocket-Protocol': offered });
      assert.equal(status, 101);
      assert.equal(headers['sec-websocket-protocol'], chosen);
    });
  }

  test('a client without a subprotocol speaks the base protocol', async () => {
    const socket = await Socket.welcomed(server.url(), { protocols: [] });
    socket.send({ command: 'ping' });
    assert.equal(await socket.next(), '{"type":"pong"}');
    await socket.close();
  });

  for (const [what, status, headers, options] of [
    ['no Connection: upgrade', 400, { Connection: 'keep-alive' }],
    ['no Upgrade', 400, { Upgrade: null }],
    ['another Upgrade', 400, { Upgrade: 'h2c' }],
    ['a POST without upgrade headers', 400, { Connection: null, Upgrade: null, 'Content-Length': '0' }, { method: 'POST' }],
    ['a POST with upgrade headers', 405, { 'Content-Length': '0' }, { method: 'POST' }],
    ['version 8', 400, { 'Sec-WebSocket-Version': '8' }],
    ['no version', 400, { 'Sec-WebSocket-Version': null }],
    ['no key', 400, { 'Sec-WebSocket-Key': null }],
    ['a short key', 400, { 'Sec-WebSocket-Key': 'c2hvcnQ=' }],
    ['a path that is not there', 404, {}, { target: '/nothing' }],
    ['a trailing slash', 404, {}, { target: '/cable/' }],
    ['a doubled slash', 404, {}, { target: '//cable' }],
    ['a pattern with a missing segment', 404, {}, { target: '/ws/live' }],
    ['a star that would have to take nothing, not even the slash', 404, {}, { target: '/any' }],
  ]) {
    test(`${what} is refused with ${status}`, async () => {
      const found = await ask(headers, options);
      assert.equal(found.status, status);
      assert.match(found.headers['content-type'], /^text\/plain; charset=utf-8$/i);
      if (status !== 404) {
        assert.equal(found.headers['sec-websocket-version'], '13');
        assert.equal(found.headers['x-content-type-options'], 'nosniff');
      }
    });
  }

  test('the body of a refusal is the status text, of an unknown path "404 page not found"', async () => {
    const body = async (path, init) => (await fetch(server.http(path), init)).text();
    assert.equal(await body('/cable'), 'Bad Request\n');
    assert.match(await body('/nothing'), /^404 page not found\n?$/);
  });

  for (const target of ['/cable', '/cable?a=1&b', '/ws/7/live', '/any/', '/any/thing/at/all']) {
    test(`${target} is a path of ours`, async () => {
      assert.equal((await ask({}, { target })).status, 101);
    });
  }

  test('a request target in absolute form is accepted', async () => {
    assert.equal((await ask({}, { target: `http://${server.origin}/cable?x=1` })).status, 101);
  });

  test('an upgrade over HTTP/1.0 passes', async () => {
    assert.equal((await ask({}, { version: '1.0' })).status, 101);
  });

  test('names and tokens of headers are read without regard to case', async () => {
    const headers = { Connection: null, Upgrade: null, 'cOnNeCtIoN': 'keep-alive, UPGRADE', 'uPgRaDe': 'WebSocket' };
    assert.equal((await ask(headers)).status, 101);
  });

  test('X-Request-ID does not make two sockets one session', async () => {
    const headers = { 'X-Request-ID': 'same' };
    const [one, two] = [await Socket.welcomed(server.url(), { headers }), await Socket.welcomed(server.url(), { headers })];
    const command = { command: 'disconnect', payload: { identifier: JSON.stringify({ sid: one.sid }) } };
    assert.notEqual(one.sid, two.sid);
    await server.post(command);
    assert.equal((await one.closed()).code, 1000);
    assert.deepEqual(await two.settle(), []);
    await two.close();
  });
});

describe('origins', () => {
  const cases = [
    ['app.test,*.example.com,*example.io', [
      ['http://app.test', 101],
      ['https://APP.test', 101],
      ['http://app.test:80', 101],
      ['http://app.test:443', 403],
      ['http://app.test:3000', 403],
      ['https://ws.example.com', 101],
      ['https://example.com', 403],
      ['https://notexample.io', 101],
      ['https://example.io', 101],
      ['https://evil.test', 403],
      ['https://app.test.evil.test', 403],
      ['null', 403],
      ['not a url', 403],
      [null, 403],
    ]],
    ['localhost:3000', [
      ['http://localhost:3000', 101],
      ['http://localhost', 403],
      ['http://localhost:30001', 403],
    ]],
  ];
  for (const [allowed, origins] of cases) {
    describe(`--allowed_origins=${allowed}`, () => {
      let server;
      before(async () => {
        server = await Cableway.start(['--noauth', '--norpc', `--allowed_origins=${allowed}`]);
      });
      after(() => server?.stop('SIGKILL'));
      for (const [origin, status] of origins) {
        test(`${origin ?? 'no origin'} gets ${status}`, async () => {
          const raw = await Raw.connect(server.port, upgrade('/cable', server.origin, { Origin: origin }));
          assert.equal((await raw.head()).status, status);
          raw.end();
        });
      }
    });
  }

  test('the origin is checked before the key and after the version', async () => {
    const server = await Cableway.start(['--noauth', '--norpc', '--allowed-origins', 'app.test']);
    const status = async (headers) => {
      const raw = await Raw.connect(server.port, upgrade('/cable', server.origin, headers));
      const head = await raw.head();
      raw.end();
      return head.status;
    };
    assert.equal(await status({ Origin: 'http://evil.test', 'Sec-WebSocket-Key': 'bad' }), 403);
    assert.equal(await status({ Origin: 'http://evil.test', 'Sec-WebSocket-Version': '12' }), 400);
    assert.equal(await status({ Origin: 'http://app.test', 'Sec-WebSocket-Key': 'bad' }), 400);
    await server.stop('SIGKILL');
  });

  test('a refused upgrade reaches no app', async () => {
    const app = await App.start('grpc');
    const server = await Cableway.start(['--rpc-host', app.rpc, '--allowed-origins', 'app.test']);
    assert.equal((await refusal(server.url(), { headers: { origin: 'http://evil.test' } })).status, 403);
    const socket = await Socket.welcomed(server.url(), { headers: { origin: 'http://app.test' } });
    const connects = (await app.events()).filter(({ event }) => event === 'connect');
    assert.equal(connects.length, 1);
    await socket.close();
    await server.stop('SIGKILL');
    await app.stop();
  });
});

describe('limits of a node', () => {
  test('--max-conn refuses the next client with 503 and Retry-After, keeps room for health, and heals', async () => {
    const server = await Cableway.start(['--noauth', '--norpc', '--max-conn', '2', '--acceptors', '1']);
    const [one, two] = [await Socket.welcomed(server.url()), await Socket.welcomed(server.url())];
    const { status, headers } = await refusal(server.url());
    assert.equal(status, 503);
    assert.ok(Number(headers['retry-after']) >= 1);
    assert.equal((await fetch(server.http('/health'))).status, 200);
    await one.close();
    // The slot is free once the server has seen the end of the first connection: ask until it has.
    const deadline = Date.now() + 10_000;
    for (;;) {
      const raw = await Raw.connect(server.port, upgrade('/cable', server.origin));
      const head = await raw.head();
      raw.end();
      if (head.status === 101) break;
      assert.equal(head.status, 503);
      assert.ok(Date.now() < deadline, 'no room after a client left');
    }
    await two.close();
    await server.stop('SIGKILL');
  });

  test('a client that never finishes its request is let go at the handshake deadline', async () => {
    const server = await Cableway.start(['--noauth', '--norpc', '--handshake-timeout', '1']);
    const raw = await Raw.connect(server.port, 'GET /cable HTTP/1.1\r\nHost: x\r\n');
    const started = Date.now();
    await raw.ended();
    assert.ok(Date.now() - started < 8_000);
    await server.stop('SIGKILL');
  });
});
