// Starts one of the sample app servers and reads its journal.

import { fileURLToPath } from 'node:url';
import { Child } from './child.mjs';
import { DEADLINE_MS, within } from './deadline.mjs';

export const APPS = ['grpc', 'http'];

export class App {
  static async start(kind, { port = 0, secret } = {}) {
    const script = fileURLToPath(new URL(`../apps/${kind}-app.mjs`, import.meta.url));
    const args = [script, '--port', String(port)];
    if (secret) args.push('--secret', secret);
    const child = new Child(`${kind} app`, process.execPath, args);
    const { rpc, port: bound, control } = await child.line('its addresses', (line) => JSON.parse(line));
    return new App({ kind, child, rpc, port: bound, control, secret });
  }

  constructor(facts) {
    Object.assign(this, facts);
    this.seen = 0;
  }

  /** Everything that has happened in the app so far. */
  async events() {
    return (await fetch(`${this.control}/control/events?after=-1`)).json();
  }

  /** The first event from here on that `matches`; reading goes on behind it. */
  async event(what, matches) {
    const search = async () => {
      for (;;) {
        const url = `${this.control}/control/events?after=${this.seen}`;
        const events = await (await fetch(url, { signal: AbortSignal.timeout(DEADLINE_MS) })).json();
        for (const event of events) {
          this.seen += 1;
          if (matches(event)) return event;
        }
      }
    };
    return within(`${this.kind} app: ${what}`, search());
  }

  /** Forgets what has happened so far, so that `event` sees only what comes next. */
  async mark() {
    this.seen = (await this.events()).length;
  }

  /** Opens a gate that holds calls. */
  async open(gate) {
    await fetch(`${this.control}/control/open?gate=${encodeURIComponent(gate)}`);
  }

  async stop(signal = 'SIGKILL') {
    return this.child.stop(signal);
  }

  /** A new process on the same port. */
  async again() {
    return App.start(this.kind, { port: this.port, secret: this.secret });
  }
}
