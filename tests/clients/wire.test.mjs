// Transcripts: the exact texts, frames and close codes of the Action Cable contract, without a client library between.

import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { APPS, App } from './harness/app.mjs';
import { Cableway } from './harness/cableway.mjs';
import { BASE, Raw, Socket, frame, upgrade } from './harness/socket.mjs';

const ECHO = '{"channel":"EchoChannel"}';
const room = (stream, more = {}) => JSON.stringify({ channel: 'SharedChannel', stream, ...more });

for (const kind of APPS) {
  describe(`transcripts, app over ${kind}`, () => {
    let app;
    let server;
    const open = [];
    before(async () => {
      app = await App.start(kind);
      server = await Cableway.start(['--rpc-host', app.rpc, '--metrics-http', '/metrics']);
    });
    after(async () => {
      for (const socket of open) socket.drop();
      await server?.stop('SIGKILL');
      await app?.stop();
    });
    const welcomed = async (path, options) => {
      const socket = await Socket.welcomed(server.url(path), options);
      open.push(socket);
      return socket;
    };
    const connected = async (path, options) => {
      const socket = await Socket.open(server.url(path), options);
      open.push(socket);
      return socket;
    };

    test('the welcome and the confirmation are the texts of the app', async () => {
      const socket = await connected();
      const welcome = await socket.next();
      assert.match(welcome, /^\{"type":"welcome","sid":"[^"]+"\}$/);
      socket.send({ command: 'subscribe', identifier: ECHO });
      assert.equal(await socket.next(), `{"identifier":${JSON.stringify(ECHO)},"type":"confirm_subscription"}`);
    });

    test('a broadcast is identifier, then message', async () => {
      const socket = await welcomed();
      const identifier = room(`text-${kind}`);
      await socket.subscribe(identifier);
      await server.broadcast(`text-${kind}`, { text: 'hi' });
      assert.equal(await socket.next(), `{"identifier":${JSON.stringify(identifier)},"message":{"text":"hi"}}`);
    });

    test('an identifier is echoed byte for byte', async () => {
      const socket = await welcomed();
      const odd = '{"stream" : "odd-bytes",  "channel":"SharedChannel","u":"\\u00fc/\\/ü"}';
      const { type } = await socket.subscribe(odd);
      assert.equal(type, 'confirm_subscription');
      await server.broadcast('odd-bytes', 1);
      assert.equal((await socket.json()).identifier, odd);
    });

    test('the ping command is answered with a pong, the pong command with nothing', async () => {
      const socket = await welcomed();
      socket.send({ command: 'pong' });
      assert.deepEqual(await socket.settle(), []);
      socket.send({ command: 'ping' });
      assert.equal(await socket.next(), '{"type":"pong"}');
    });

    test('pings are type, then an integer of seconds', async () => {
      const socket = await welcomed('/cable?pi=1', { keepPings: true });
      const before = Math.floor(Date.now() / 1000);
      const ping = await socket.next('a ping');
      assert.match(ping, /^\{"type":"ping","message":\d+\}$/);
      const { message } = JSON.parse(ping);
      assert.ok(message >= before && message <= before + 5, `${message} is not now in seconds`);
    });

    for (const [precision, digits] of [['s', 10], ['ms', 13], ['ns', 19], ['weeks', 10]]) {
      test(`ptp=${precision} gives pings of ${digits} digits`, async () => {
        const socket = await connected(`/cable?pi=1&ptp=${precision}`, { keepPings: true });
        for (;;) {
          const text = await socket.next('a ping');
          if (!text.startsWith('{"type":"ping"')) continue;
          assert.match(text, new RegExp(`^\\{"type":"ping","message":\\d{${digits}}\\}$`));
          break;
        }
      });
    }

    test('pi=0 turns pings off, for this session only', async () => {
      const silent = await welcomed('/cable?pi=0');
      const other = await welcomed('/cable?pi=1');
      for (let n = 0; n < 4; n += 1) await other.pings.next('a ping');
      assert.deepEqual(silent.pings.drain(), []);
    });

    test('an interval that is no integer is ignored', async () => {
      const socket = await welcomed('/cable?pi=often');
      await socket.pings.next('a ping at the default interval');
    });

    test('an unknown command, a missing command and null are counted and ignored', async () => {
      const socket = await welcomed();
      for (const text of ['{"command":"dance","identifier":"x"}', '{"identifier":"x"}', '{}', 'null']) socket.send(text);
      assert.deepEqual(await socket.settle(), []);
      assert.equal((await socket.subscribe(ECHO)).type, 'confirm_subscription');
    });

    for (const [what, text] of [
      ['malformed JSON', '{"command":"subscribe"'],
      ['an array', '["subscribe"]'],
      ['an empty message', ''],
      ['text behind the object', '{"command":"ping"} trailing'],
      ['a number as identifier', '{"command":"subscribe","identifier":7}'],
    ]) {
      test(`${what} never leaves a zombie: the session answers on, or is closed`, async () => {
        const socket = await welcomed();
        socket.send(text);
        socket.send({ command: 'subscribe', identifier: ECHO });
        const answer = await Promise.race([socket.json().catch(() => null), socket.ended]);
        if (answer?.code !== undefined) assert.equal(answer.code, 1003);
        else if (answer !== null) assert.equal(answer.type, 'confirm_subscription');
        else assert.equal((await socket.closed()).code, 1003);
      });
    }

    test('a second subscribe for a confirmed identifier is not answered and reaches no app', async () => {
      const socket = await welcomed();
      const identifier = room(`twice-${kind}`);
      await socket.subscribe(identifier);
      socket.send({ command: 'subscribe', identifier });
      assert.deepEqual(await socket.settle(), []);
      const calls = (await app.events()).filter((event) => event.event === 'command' && event.identifier === identifier);
      assert.deepEqual(calls.map(({ verb }) => verb), ['subscribe']);
      await server.broadcast(`twice-${kind}`, 'one copy');
      assert.equal((await socket.json()).message, 'one copy');
      assert.deepEqual(await socket.settle(), []);
    });

    test('unsubscribe and message for an unknown identifier are not answered and reach no app', async () => {
      const socket = await welcomed();
      const identifier = room(`never-${kind}`);
      socket.send({ command: 'unsubscribe', identifier });
      socket.send({ command: 'message', identifier, data: '{}' });
      assert.deepEqual(await socket.settle(), []);
      const calls = (await app.events()).filter((event) => event.event === 'command' && event.identifier === identifier);
      assert.deepEqual(calls, []);
    });

    test('data that is not a string is refused before it reaches the app', async () => {
      const socket = await welcomed();
      await socket.subscribe(ECHO);
      socket.send({ command: 'message', identifier: ECHO, data: { action: 'echo' } });
      assert.deepEqual(await socket.settle(), []);
    });

    test('an app that fails a command says nothing to the client, and the session goes on', async () => {
      const socket = await welcomed();
      await socket.subscribe(ECHO);
      socket.perform(ECHO, 'fail');
      socket.send({ command: 'subscribe', identifier: '{"channel":"BrokenChannel"}' });
      assert.deepEqual(await socket.settle(), []);
      socket.perform(ECHO, 'echo', { still: 'here' });
      assert.deepEqual((await socket.json()).message, { action: 'echo', data: { still: 'here' } });
    });

    test('a failed subscribe can be tried again', async () => {
      const socket = await welcomed();
      const identifier = '{"channel":"BrokenChannel"}';
      socket.send({ command: 'subscribe', identifier });
      socket.send({ command: 'subscribe', identifier });
      assert.deepEqual(await socket.settle(), []);
      const calls = (await app.events()).filter((event) => event.event === 'command' && event.identifier === identifier && event.sid === socket.sid);
      assert.equal(calls.length, 2);
    });

    test('an unsubscribe that the app fails keeps the subscription and its streams', async () => {
      const socket = await welcomed();
      const identifier = JSON.stringify({ channel: 'StickyChannel', stream: `sticky-${kind}` });
      await socket.subscribe(identifier);
      socket.send({ command: 'unsubscribe', identifier });
      assert.deepEqual(await socket.settle(), []);
      await server.broadcast(`sticky-${kind}`, 'still here');
      assert.equal((await socket.json()).message, 'still here');
    });

    test('an unsubscribe is not confirmed, and the channel can be subscribed again', async () => {
      const socket = await welcomed();
      await socket.subscribe(ECHO);
      socket.send({ command: 'unsubscribe', identifier: ECHO });
      assert.deepEqual(await socket.settle(), []);
      assert.equal((await socket.subscribe(ECHO)).type, 'confirm_subscription');
    });

    test('commands are handled one at a time and in order, while broadcasts and pings go on', async () => {
      const socket = await welcomed('/cable?pi=1');
      const stream = `meanwhile-${kind}`;
      const gate = `order-${kind}`;
      await socket.subscribe(ECHO);
      await socket.subscribe(room(stream));
      socket.perform(ECHO, 'wait', { gate });
      socket.perform(ECHO, 'echo', { n: 1 });
      socket.perform(ECHO, 'echo', { n: 2 });
      await app.event('the held call', (event) => event.event === 'waiting' && event.gate === gate);
      socket.pings.drain();
      await server.broadcast(stream, 'meanwhile');
      assert.equal((await socket.json()).message, 'meanwhile');
      await socket.pings.next('a ping while a call runs');
      const running = (await app.events()).filter((event) => event.event === 'command' && event.sid === socket.sid && event.verb === 'message');
      assert.equal(running.length, 1, 'a later command was sent while one was running');
      await app.open(gate);
      const answers = [];
      for (let n = 0; n < 3; n += 1) answers.push((await socket.json()).message);
      assert.deepEqual(answers, [{ action: 'wait', gate }, { action: 'echo', data: { n: 1 } }, { action: 'echo', data: { n: 2 } }]);
    });

    test('frames that a client sends before it is welcomed wait and are handled in order', async () => {
      const gate = `early-${kind}`;
      const socket = await connected(`/cable?hold=${gate}`);
      socket.send({ command: 'subscribe', identifier: ECHO });
      socket.perform(ECHO, 'echo', { early: true });
      await app.event('the held Connect', (event) => event.event === 'connect' && event.url.endsWith(gate));
      await app.open(gate);
      assert.equal((await socket.json()).type, 'welcome');
      assert.equal((await socket.json()).type, 'confirm_subscription');
      assert.deepEqual((await socket.json()).message.data, { early: true });
    });

    test('frames that arrive in one packet with the upgrade request are handled', async () => {
      const subscribe = frame(JSON.stringify({ command: 'subscribe', identifier: ECHO }));
      const raw = await Raw.connect(server.port, Buffer.concat([Buffer.from(upgrade('/cable', server.origin)), subscribe]));
      assert.equal((await raw.head()).status, 101);
      assert.equal(JSON.parse((await raw.message()).payload).type, 'welcome');
      assert.equal(JSON.parse((await raw.message()).payload).type, 'confirm_subscription');
      raw.end();
    });

    test('a request that arrives byte by byte is answered', async () => {
      const raw = await Raw.connect(server.port);
      raw.socket.setNoDelay(true);
      for (const byte of Buffer.from(upgrade('/cable', server.origin))) {
        await new Promise((sent) => raw.socket.write(Buffer.from([byte]), sent));
      }
      assert.equal((await raw.head()).status, 101);
      assert.equal(JSON.parse((await raw.message()).payload).type, 'welcome');
      raw.end();
    });

    test('a binary frame is a command too', async () => {
      const socket = await welcomed();
      socket.ws.send(Buffer.from('{"command":"ping"}'), { binary: true });
      assert.equal(await socket.next(), '{"type":"pong"}');
    });

    test('a command in fragments with a WebSocket ping between them is joined, and the ping is answered first', async () => {
      const raw = await Raw.connect(server.port, upgrade('/cable', server.origin));
      await raw.head();
      await raw.message('the welcome');
      raw.write(frame('{"comm', { head: 0x01 }));
      raw.write(frame('are you there', { head: 0x89 }));
      raw.write(frame('and":"p', { head: 0x00 }));
      raw.write(frame('ing"}', { head: 0x80 }));
      assert.deepEqual(await raw.message().then(({ head, payload }) => [head, payload.toString()]), [0x8a, 'are you there']);
      assert.deepEqual(await raw.message().then(({ head, payload }) => [head, payload.toString()]), [0x81, '{"type":"pong"}']);
      raw.end();
    });

    test('a message of 65536 bytes passes, one byte more is closed with 1009', async () => {
      const filled = (size) => {
        const bare = JSON.stringify({ command: 'ping', fill: '' });
        return JSON.stringify({ command: 'ping', fill: 'x'.repeat(size - bare.length) });
      };
      const socket = await welcomed();
      socket.send(filled(65_536));
      assert.equal(await socket.next(), '{"type":"pong"}');
      socket.send(filled(65_537));
      assert.deepEqual(await socket.closed(), { code: 1009, reason: '' });
    });

    for (const [what, bytes] of [
      ['an unmasked frame', Buffer.from([0x81, 0x02, 0x7b, 0x7d])],
      ['an unknown opcode', frame('x', { head: 0x83 })],
      ['a reserved bit', frame('x', { head: 0xc1 })],
      ['a continuation without a start', frame('x', { head: 0x80 })],
      ['a fragmented control frame', frame('x', { head: 0x09 })],
      ['a control frame of 126 bytes', frame('x'.repeat(126), { head: 0x89 })],
      ['a close code that may not be sent', frame(Buffer.from([0x03, 0xed]), { head: 0x88 })],
      ['a close frame of one byte', frame(Buffer.from([0x03]), { head: 0x88 })],
    ]) {
      test(`${what} is closed with 1002`, async () => {
        const raw = await Raw.connect(server.port, upgrade('/cable', server.origin));
        await raw.head();
        await raw.message('the welcome');
        raw.write(bytes);
        const { head, payload } = await raw.message('the close frame');
        assert.equal(head, 0x88);
        assert.equal(payload.readUInt16BE(0), 1002);
        await raw.ended();
      });
    }

    for (const code of [1000, 1001, 3000, 4999]) {
      test(`a client's close with ${code} is echoed with an empty reason`, async () => {
        const raw = await Raw.connect(server.port, upgrade('/cable', server.origin));
        await raw.head();
        await raw.message('the welcome');
        const body = Buffer.alloc(5);
        body.writeUInt16BE(code);
        body.write('bye', 2);
        raw.write(frame(body, { head: 0x88 }));
        const { head, payload } = await raw.message('the close frame');
        assert.equal(head, 0x88);
        assert.deepEqual(payload, body.subarray(0, 2));
        await raw.ended();
      });
    }

    test('an empty close frame is answered with an empty one', async () => {
      const raw = await Raw.connect(server.port, upgrade('/cable', server.origin));
      await raw.head();
      await raw.message('the welcome');
      raw.write(frame('', { head: 0x88 }));
      const { head, payload } = await raw.message('the close frame');
      assert.deepEqual([head, payload.length], [0x88, 0]);
      await raw.ended();
    });

    test('a refused client gets the words of the app, then 1000 "Auth Failed", and no Disconnect call', async () => {
      const socket = await connected(`/cable?auth=no&user=refused-${kind}`);
      const words = await socket.json();
      assert.equal(words.type, 'disconnect');
      assert.equal(words.reason, 'unauthorized');
      assert.deepEqual(await socket.closed(), { code: 1000, reason: 'Auth Failed' });
      const witness = await welcomed(`/cable?user=witness-${kind}`);
      await witness.close();
      await app.event("the witness's Disconnect", (event) => event.event === 'disconnect' && event.user === `witness-${kind}`);
      const wrong = (await app.events()).filter((event) => event.event === 'disconnect' && event.url.includes('auth=no'));
      assert.deepEqual(wrong, []);
    });

    test('an app that fails a Connect closes with 1011 "Auth Error" and says nothing', async () => {
      const socket = await connected('/cable?auth=error');
      await assert.rejects(socket.next(), /closed with 1011 "Auth Error"/);
      assert.deepEqual(await socket.closed(), { code: 1011, reason: 'Auth Error' });
    });

    test('a Connect that is never answered ends after the command deadline with 1011', async () => {
      const started = Date.now();
      const socket = await connected(`/cable?hold=never-${kind}`);
      assert.deepEqual(await socket.closed(), { code: 1011, reason: 'Auth Error' });
      const took = Date.now() - started;
      assert.ok(took >= 2_500 && took < 8_000, `closed after ${took} ms instead of about 3 s`);
    });

    test('a command that asks to disconnect sends its words, then ends the connection', async () => {
      const socket = await welcomed();
      await socket.subscribe(ECHO);
      socket.perform(ECHO, 'bye');
      assert.deepEqual((await socket.json()).message, { action: 'bye' });
      const { code } = await socket.closed();
      // No frame (1006 at the client) or a legal code: clients take all of them as a drop.
      assert.ok([1000, 1006, 1008].includes(code), `closed with ${code}`);
    });

    test('a remote disconnect ends every session of those identifiers, and no other', async () => {
      const user = `everywhere-${kind}`;
      const path = `/cable?user=${user}`;
      const sockets = [await welcomed(path), await welcomed(path), await welcomed(path)];
      const other = await welcomed(`/cable?user=${user}-not`);
      await server.post({ command: 'disconnect', payload: { identifier: JSON.stringify({ user }), reconnect: true } });
      for (const socket of sockets) {
        assert.equal(await socket.next(), '{"type":"disconnect","reason":"remote","reconnect":true}');
        assert.deepEqual(await socket.closed(), { code: 1000, reason: 'Closed remotely' });
      }
      assert.deepEqual(await other.settle(), []);
    });

    test('a remote disconnect without `reconnect` says false', async () => {
      const user = `absent-${kind}`;
      const socket = await welcomed(`/cable?user=${user}`);
      await server.post({ command: 'disconnect', payload: { identifier: JSON.stringify({ user }) } });
      assert.equal(await socket.next(), '{"type":"disconnect","reason":"remote","reconnect":false}');
    });

    test('exclude_socket skips one session', async () => {
      const stream = `others-${kind}`;
      const [sender, receiver] = [await welcomed(), await welcomed()];
      for (const socket of [sender, receiver]) await socket.subscribe(room(stream));
      await server.broadcast(stream, 'to others', { exclude_socket: sender.sid });
      await server.broadcast(stream, 'to all');
      assert.equal((await receiver.json()).message, 'to others');
      assert.equal((await receiver.json()).message, 'to all');
      assert.equal((await sender.json()).message, 'to all');
    });

    test('a stream attached twice through one identifier gives one copy', async () => {
      const socket = await welcomed();
      const stream = `once-${kind}`;
      const identifier = JSON.stringify({ channel: 'ManyChannel', streams: [stream, stream] });
      await socket.subscribe(identifier);
      socket.perform(identifier, 'follow', { stream });
      await socket.json();
      await server.broadcast(stream, 1);
      await server.broadcast(stream, 2);
      assert.equal((await socket.json()).message, 1);
      assert.equal((await socket.json()).message, 2);
    });

    test('publications of one stream keep their order', async () => {
      const socket = await welcomed();
      const stream = `ordered-${kind}`;
      await socket.subscribe(room(stream));
      const batch = Array.from({ length: 500 }, (_, n) => ({ stream, data: String(n) }));
      assert.equal((await server.post(batch)).status, 201);
      for (let n = 0; n < 500; n += 1) assert.equal((await socket.json()).message, n);
    });

    test('a client that vanishes while its command runs still has its Disconnect called, with the subscription', async () => {
      const user = `vanished-${kind}`;
      const socket = await welcomed(`/cable?user=${user}`);
      await socket.subscribe(ECHO);
      const gate = `vanish-${kind}`;
      socket.perform(ECHO, 'wait', { gate });
      await app.event('the held call', (event) => event.event === 'waiting' && event.gate === gate);
      socket.drop();
      await app.open(gate);
      const gone = await app.event('Disconnect', (event) => event.event === 'disconnect' && event.user === user);
      assert.deepEqual(gone.subscriptions, [ECHO]);
    });

    test('every call carries the session id and the protocol version', async () => {
      const socket = await welcomed(`/cable?user=meta-${kind}`);
      await socket.subscribe(ECHO);
      await socket.close();
      await app.event('Disconnect', (event) => event.event === 'disconnect' && event.user === `meta-${kind}`);
      const calls = (await app.events()).filter((event) => event.event === 'metadata' && event.sid === socket.sid);
      assert.ok(calls.length > 0);
      for (const { protov } of calls) assert.equal(protov, 'v1');
    });

    test('a client that offers the extended protocol only speaks it, and one that offers both the base one', async () => {
      assert.equal((await welcomed('/cable', { protocols: ['actioncable-v1-ext-json'] })).ws.protocol, 'actioncable-v1-ext-json');
      assert.equal((await welcomed('/cable', { protocols: ['actioncable-v1-ext-json', BASE] })).ws.protocol, BASE);
    });
  });
}
