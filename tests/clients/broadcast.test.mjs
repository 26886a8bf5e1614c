// POST /_broadcast: what an app may send, what it hears back, and what reaches the clients.

import assert from 'node:assert/strict';
import { Agent, request } from 'node:http';
import { after, before, describe, test } from 'node:test';
import { BROADCAST_KEY, Cableway, withPort } from './harness/cableway.mjs';
import { Raw, Socket } from './harness/socket.mjs';
import { derivedKey } from './harness/token.mjs';
import { loadServerless } from './apps/serverless.mjs';

const follow = (stream) => JSON.stringify({ channel: '$pubsub', stream_name: stream });

describe('POST /_broadcast', () => {
  let server;
  let socket;
  let serial = 0;
  before(async () => {
    server = await Cableway.start(['--noauth', '--norpc', '--public-streams']);
    socket = await Socket.welcomed(server.url());
    await socket.subscribe(follow('marker'));
  });
  after(() => server?.stop('SIGKILL'));

  const subscribed = async () => {
    const stream = `stream-${(serial += 1)}`;
    await socket.subscribe(follow(stream));
    return stream;
  };
  /** Messages up to the marker, which is published last. */
  const untilMarker = async () => {
    await server.broadcast('marker', 'end');
    const messages = [];
    for (;;) {
      const { message } = await socket.json('the marker');
      if (message === 'end') return messages;
      messages.push(message);
    }
  };

  test('answers 201 with an empty body', async () => {
    const response = await server.post({ stream: 'nobody', data: '1' });
    assert.equal(response.status, 201);
    assert.equal(response.headers.get('content-length'), '0');
    assert.equal(await response.text(), '');
  });

  for (const [data, message] of [
    ['{"b":1,"a":{"c":[1,2]}}', { b: 1, a: { c: [1, 2] } }],
    ['"<b>html</b> & \u2028"', '<b>html</b> & \u2028'],
    ['"{\\"json\\":1}"', '{"json":1}'],
    ['plain text', 'plain text'],
    ['{"broken":', '{"broken":'],
    ['', ''],
    ['0', 0],
    ['false', false],
    [undefined, ''],
    [null, ''],
  ]) {
    test(`data ${JSON.stringify(data)} arrives as ${JSON.stringify(message)}`, async () => {
      const stream = await subscribed();
      assert.equal((await server.post({ stream, data })).status, 201);
      assert.deepEqual(await untilMarker(), [message]);
    });
  }

  test('numbers and the order of keys survive as they were written', async () => {
    const stream = await subscribed();
    const data = '{"z":12345678901234567890,"a":1.0,"html":"<b>&</b>"}';
    await server.post({ stream, data });
    assert.equal(await socket.next(), `{"identifier":${JSON.stringify(follow(stream))},"message":${data}}`);
  });

  test('a batch is delivered in order', async () => {
    const [one, two] = [await subscribed(), await subscribed()];
    const batch = [
      { stream: one, data: '1' },
      { stream: two, data: '2' },
      { stream: one, data: '3' },
    ];
    assert.equal((await server.post(batch)).status, 201);
    assert.deepEqual(await untilMarker(), [1, 2, 3]);
  });

  for (const [what, payload] of [
    ['text that is no JSON', 'hello'],
    ['an empty body', ''],
    ['an object with nothing known in it', { hello: 1 }],
    ['an empty stream', { stream: '', data: '1' }],
    ['an empty batch', []],
    ['a command that is not known', { command: 'dance', payload: {} }],
    ['text behind the object', '{"stream":"x","data":"1"} more'],
    ['null', 'null'],
  ]) {
    test(`${what} is still answered with 201`, async () => {
      assert.equal((await server.post(payload)).status, 201);
      assert.deepEqual(await untilMarker(), []);
    });
  }

  for (const [what, element] of [
    ['data that is no string', (stream) => ({ stream, data: { a: 1 } })],
    ['a stream that is no string', () => ({ stream: 7, data: '1' })],
  ]) {
    test(`${what} makes a publication invalid, and not its neighbours in a batch`, async () => {
      const stream = await subscribed();
      assert.equal((await server.post(element(stream))).status, 201);
      const batch = [{ stream, data: '1' }, element(stream), { stream, data: '2' }];
      assert.equal((await server.post(batch)).status, 201);
      assert.deepEqual(await untilMarker(), [1, 2]);
    });
  }

  test('half an emoji is delivered as the replacement character', async () => {
    const stream = await subscribed();
    const half = '\u{1F600}'.slice(0, 1);
    await server.post({ stream, data: `hi ${half}` });
    await server.post([{ stream, data: JSON.stringify({ text: half }) }, { stream, data: '1' }]);
    assert.deepEqual(await untilMarker(), ['hi \uFFFD', { text: '\uFFFD' }, 1]);
  });

  test('unknown keys are ignored, and so is a position that an app makes up', async () => {
    const stream = await subscribed();
    await server.post({ stream, data: '1', extra: true, offset: 7, epoch: 'mine', meta: { unknown: 1, transient: true } });
    assert.equal(await socket.next(), `{"identifier":${JSON.stringify(follow(stream))},"message":1}`);
  });

  test('meta.broadcast_type becomes the type of the message', async () => {
    const stream = await subscribed();
    await server.post({ stream, data: '{"a":1}', meta: { broadcast_type: 'presence' } });
    assert.deepEqual(await socket.json(), { type: 'presence', identifier: follow(stream), message: { a: 1 } });
  });

  test('a missing, wrong or differently written key is 401', async () => {
    const status = async (authorization) =>
      (await fetch(server.http('/_broadcast'), { method: 'POST', body: '{}', headers: authorization ? { authorization } : {} })).status;
    for (const wrong of [null, 'Bearer wrong', `bearer ${BROADCAST_KEY}`, BROADCAST_KEY, `Bearer ${BROADCAST_KEY}x`, 'Bearer ']) {
      assert.equal(await status(wrong), 401, String(wrong));
    }
    assert.equal(await status(`Bearer ${BROADCAST_KEY}`), 201);
  });

  test('answers before the end of a body do not break a pool of kept connections', async () => {
    const agent = new Agent({ keepAlive: true, maxSockets: 1 });
    const post = (headers, body) =>
      new Promise((answered, failed) => {
        const sent = request(server.http('/_broadcast'), { method: 'POST', agent, headers }, (response) => {
          response.resume().once('end', () => answered(response.statusCode));
        });
        sent.once('error', failed);
        sent.end(body);
      });
    const key = { authorization: `Bearer ${BROADCAST_KEY}` };
    const large = Buffer.alloc(9 << 20, 'x');
    for (let round = 0; round < 20; round += 1) {
      const [headers, body, status] = round % 2 ? [key, large, 413] : [{}, '{"stream":"x"}', 401];
      assert.equal(await post(headers, body), status);
      assert.equal(await post(key, '{"stream":"x"}'), 201, `round ${round}`);
    }
    agent.destroy();
  });

  test('any other method is 422, before the key is looked at; a trailing slash is 404', async () => {
    for (const method of ['GET', 'PUT', 'DELETE', 'OPTIONS']) {
      const response = await fetch(server.http('/_broadcast'), { method });
      assert.equal(response.status, 422, method);
    }
    assert.equal((await server.post({}, { path: '/_broadcast/' })).status, 404);
  });

  test('a target in absolute form is accepted, as the Ruby client sends it', async () => {
    const stream = await subscribed();
    const body = JSON.stringify({ stream, data: '"absolute"' });
    const raw = await Raw.connect(
      server.port,
      `POST ${server.http('/_broadcast')} HTTP/1.1\r\nHost: ${server.origin}\r\nAuthorization: Bearer ${BROADCAST_KEY}\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    assert.equal((await raw.head()).status, 201);
    raw.end();
    assert.deepEqual(await untilMarker(), ['absolute']);
  });

  test('several requests go over one kept connection', async () => {
    const stream = await subscribed();
    const raw = await Raw.connect(server.port);
    for (const n of [1, 2, 3]) {
      const body = JSON.stringify({ stream, data: String(n) });
      raw.write(`POST /_broadcast HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${BROADCAST_KEY}\r\nContent-Length: ${body.length}\r\n\r\n${body}`);
      assert.equal((await raw.head()).status, 201);
    }
    raw.end();
    assert.deepEqual(await untilMarker(), [1, 2, 3]);
  });

  test('a body that ends early delivers nothing', async () => {
    const stream = await subscribed();
    const body = JSON.stringify({ stream, data: '1' });
    const raw = await Raw.connect(
      server.port,
      `POST /_broadcast HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${BROADCAST_KEY}\r\nContent-Length: ${body.length + 10}\r\n\r\n${body}`,
    );
    raw.socket.end();
    await raw.ended();
    assert.deepEqual(await untilMarker(), []);
  });

  test('@anycable/serverless-js broadcasts through it', async () => {
    const { broadcaster } = await loadServerless();
    const stream = await subscribed();
    await broadcaster(server.http('/_broadcast'), BROADCAST_KEY)(stream, { from: 'the library' });
    assert.deepEqual(await untilMarker(), [{ from: 'the library' }]);
    await assert.rejects(broadcaster(server.http('/_broadcast'), 'wrong')(stream, 1));
  });
});

describe('POST /_broadcast, settings', () => {
  test('a body over --broadcast-max-size is 413, announced or chunked, and the next request is served', async () => {
    const server = await Cableway.start(['--noauth', '--norpc', '--broadcast-max-size', '1000']);
    const publication = (size) => {
      const bare = JSON.stringify({ stream: 's', data: '' });
      return JSON.stringify({ stream: 's', data: 'x'.repeat(size - bare.length) });
    };
    assert.equal((await server.post(publication(1000))).status, 201);
    assert.equal((await server.post(publication(1001))).status, 413);
    const chunked = await Raw.connect(
      server.port,
      `POST /_broadcast HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${BROADCAST_KEY}\r\nTransfer-Encoding: chunked\r\n\r\n`,
    );
    chunked.write(`3e9\r\n${publication(1001)}\r\n0\r\n\r\n`);
    assert.equal((await chunked.head()).status, 413);
    chunked.end();
    assert.equal((await server.post(publication(100))).status, 201);
    await server.stop('SIGKILL');
  });

  test('without a key of its own the key is made from the app secret', async () => {
    const secret = 'an app secret';
    const server = await Cableway.start(['--secret', secret, '--noauth', '--norpc'], { key: null });
    assert.equal((await server.post({}, { key: derivedKey(secret, 'broadcast-cable') })).status, 201);
    assert.equal((await server.post({}, { key: secret })).status, 401);
    assert.equal((await server.post({}, { key: null })).status, 401);
    await server.stop('SIGKILL');
  });

  test('a port of its own serves broadcasts, and the main one does not', async () => {
    const options = ['--noauth', '--norpc', '--public-streams', '--http-broadcast-port'];
    const [server, port] = await withPort((port) => Cableway.start([...options, String(port)]));
    const socket = await Socket.welcomed(server.url());
    await socket.subscribe(follow('own'));
    assert.equal((await server.post({ stream: 'own', data: '1' }, { port })).status, 201);
    assert.equal((await socket.json()).message, 1);
    assert.equal((await server.post({ stream: 'own', data: '1' })).status, 404);
    await server.stop('SIGKILL');
  });

  test('--public takes broadcasts without a key, and lets everybody in to every stream', async () => {
    const options = ['--public', '--http-broadcast-port'];
    const [server] = await withPort((port) => Cableway.start([...options, String(port)], { key: null, port }));
    const socket = await Socket.welcomed(server.url());
    assert.equal((await socket.subscribe(follow('open'))).type, 'confirm_subscription');
    assert.equal((await server.post({ stream: 'open', data: '"hi"' }, { key: null })).status, 201);
    assert.equal((await socket.json()).message, 'hi');
    await server.stop('SIGKILL');
  });

  test('another path serves broadcasts', async () => {
    const server = await Cableway.start(['--noauth', '--norpc', '--http-broadcast-path', '/in']);
    assert.equal((await server.post({ stream: 'x', data: '1' }, { path: '/in' })).status, 201);
    assert.equal((await server.post({ stream: 'x', data: '1' })).status, 404);
    await server.stop('SIGKILL');
  });
});
