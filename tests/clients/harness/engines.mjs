// Starts a Redis or a NATS for one test file, on a free port and with what it keeps in a folder of its own. Programs and
// Debian packages: redis-server, redis-tools, nats-server.

import { execFile, execFileSync } from 'node:child_process';
import { connect } from 'node:net';
import { promisify } from 'node:util';
import { Child } from './child.mjs';
import { withPort } from './cableway.mjs';
import { within } from './deadline.mjs';
import { temporaryFolder } from './folder.mjs';

/** Resolves when something listens there, and fails when the program has ended instead. */
async function listens(child, port) {
  const tries = (async () => {
    for (;;) {
      const there = await new Promise((done) => {
        const socket = connect(port, '127.0.0.1', () => done(true)).on('error', () => done(false));
        socket.on('connect', () => socket.destroy());
      });
      if (there) return;
      await new Promise((wake) => setTimeout(wake, 20));
    }
  })();
  const ended = child.exited.then(() => {
    throw new Error(`${child.name} did not start, address already in use? 127.0.0.1:${port}\n${child.tail()}`);
  });
  await within(`${child.name} to listen`, Promise.race([tries, ended]));
}

export class Redis {
  static async start() {
    const [redis] = await withPort(async (port) => {
      const args = ['--port', String(port), '--bind', '127.0.0.1', '--dir', temporaryFolder('redis'), '--save', ''];
      const child = new Child('redis', 'redis-server', args);
      await listens(child, port);
      return new Redis(child, port);
    });
    return redis;
  }

  constructor(child, port) {
    this.child = child;
    this.port = port;
    this.url = `redis://127.0.0.1:${port}`;
  }

  /** Runs `redis-cli` with one command and gives what it prints. */
  cli(...command) {
    return execFileSync('redis-cli', ['-p', String(this.port), '-e', ...command], { encoding: 'utf8' }).trimEnd();
  }

  /** The same without keeping this process from reading its sockets meanwhile. */
  async later(...command) {
    return (await promisify(execFile)('redis-cli', ['-p', String(this.port), '-e', ...command])).stdout.trimEnd();
  }

  /** `redis-cli SUBSCRIBE`, which prints kind, channel and message one a line; resolves when it is subscribed. */
  async subscribe(channel) {
    const child = new Child('redis-cli', 'redis-cli', ['-p', String(this.port), 'SUBSCRIBE', channel]);
    const next = () => child.output.next('a line of redis-cli');
    for (const expected of ['subscribe', channel, '1']) {
      const line = await next();
      if (line !== expected) throw new Error(`redis-cli said ${line} for ${expected}`);
    }
    return {
      message: async () => {
        await next();
        await next();
        return next();
      },
      stop: () => child.stop('SIGKILL'),
    };
  }

  stop() {
    return this.child.stop('SIGKILL');
  }
}

export class Nats {
  static async start() {
    const [nats] = await withPort(async (port) => {
      const args = ['--addr', '127.0.0.1', '--port', String(port), '--jetstream', '--store_dir', temporaryFolder('nats')];
      const child = new Child('nats', 'nats-server', args);
      await listens(child, port);
      return new Nats(child, port);
    });
    return nats;
  }

  constructor(child, port) {
    this.child = child;
    this.url = `nats://127.0.0.1:${port}`;
  }

  stop() {
    return this.child.stop('SIGKILL');
  }
}
