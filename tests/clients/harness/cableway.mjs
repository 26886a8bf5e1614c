// Starts the server under test. The only thing known about it is its command line and what the contract says
// its boot log holds; the tests themselves see nothing but URLs.
//
// CABLEWAY_BIN names the binary. It has to be set: a test run that silently tested nothing would be worse than a failing one.

import { createServer } from 'node:net';
import { Child } from './child.mjs';
import { DEADLINE_MS, within } from './deadline.mjs';
import { temporaryFolder } from './folder.mjs';

export const BROADCAST_KEY = 'only-the-tests-know';

/** The environment without anything that could configure the server from outside. */
function cleanEnvironment(more) {
  const env = { ...process.env };
  for (const name of Object.keys(env)) {
    if (/^(ANYCABLE|CABLEWAY)_/.test(name) || ['PORT', 'REDIS_URL', 'NUM_ACCEPTORS'].includes(name)) delete env[name];
  }
  return { ...env, ...more };
}

/** A port that was free a moment ago; by now somebody else may have it. */
async function freePort() {
  const probe = createServer();
  await new Promise((ready) => probe.listen(0, '127.0.0.1', ready));
  const { port } = probe.address();
  await new Promise((closed) => probe.close(closed));
  return port;
}

/**
 * For the few options that want a port by its number: gives `start` one that seems free, and another one when the
 * server found that somebody has taken it meanwhile. Returns the server and the port.
 */
export async function withPort(start) {
  for (let attempt = 1; ; attempt += 1) {
    const port = await freePort();
    try {
      return [await start(port), port];
    } catch (error) {
      const taken = error.message.includes(`:${port}`) && /address (already )?in use/i.test(error.message);
      if (!taken || attempt === 5) throw error;
    }
  }
}

export class Cableway {
  /**
   * Starts a server and waits until its boot log names the WebSocket endpoint. `args` are its options as on a command
   * line; the port is free and the broadcast key set unless `args` or `key: null` say otherwise.
   */
  static async start(args = [], { env = {}, key = BROADCAST_KEY, port = 0, host = '127.0.0.1' } = {}) {
    const binary = process.env.CABLEWAY_BIN;
    if (!binary) throw new Error('CABLEWAY_BIN must name the cableway binary under test');
    const options = ['serve', '--port', String(port), '--host', host, '--log-format', 'json'];
    if (key !== null) options.push('--broadcast-key', key);
    // An empty directory: no configuration file of the machine is picked up.
    const cwd = temporaryFolder('clients');
    const child = new Child('cableway', binary, [...options, ...args], { env: cleanEnvironment(env), cwd });
    const server = new Cableway(child, { args, env, key, host });
    const url = await child.line('the WebSocket endpoint in the boot log', (line) => /wss?:\/\/[^\s"',]+/.exec(line)?.[0]);
    server.port = Number(new URL(url).port);
    return server;
  }

  constructor(child, settings) {
    this.child = child;
    this.settings = settings;
  }

  get origin() {
    return `127.0.0.1:${this.port}`;
  }

  /** The WebSocket URL of a path. */
  url(path = '/cable') {
    return `ws://${this.origin}${path}`;
  }

  http(path) {
    return `http://${this.origin}${path}`;
  }

  /** Posts a publication (an object, a batch, or raw text) and gives the HTTP answer. */
  async post(publication, { key = this.settings.key, path = '/_broadcast', method = 'POST', port = this.port } = {}) {
    const body = typeof publication === 'string' ? publication : JSON.stringify(publication);
    const headers = { 'content-type': 'application/json' };
    if (key) headers.authorization = `Bearer ${key}`;
    return fetch(`http://127.0.0.1:${port}${path}`, { method, headers, body: method === 'GET' ? undefined : body });
  }

  /** Publishes `data` as JSON on a stream; anything but 201 is an error. */
  async broadcast(stream, data, meta) {
    const response = await this.post({ stream, data: JSON.stringify(data), ...(meta && { meta }) });
    if (response.status !== 201) throw new Error(`broadcast answered ${response.status}`);
  }

  async metrics() {
    const text = await (await fetch(this.http('/metrics'))).text();
    return Object.fromEntries(
      text
        .split('\n')
        .filter((line) => line && !line.startsWith('#'))
        .map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ') + 1))]),
    );
  }

  /** Waits until a metric is as `holds` says; for what only time brings about, such as the end of a TTL. */
  async metric(name, what, holds, ms = DEADLINE_MS) {
    const look = async () => {
      for (;;) {
        const value = (await this.metrics())[name];
        if (value === undefined) throw new Error(`there is no metric ${name}`);
        if (holds(value)) return;
        await new Promise((wake) => setTimeout(wake, 50));
      }
    };
    await within(`${name} ${what}`, look(), ms);
  }

  async stop(signal = 'SIGTERM') {
    return this.child.stop(signal);
  }

  /** A new process with the same options on the same port, as after a crash or a deployment. */
  async again() {
    return Cableway.start(this.settings.args, { ...this.settings, port: this.port });
  }
}
