// A child process whose standard output is read line by line. Every child ends with the test run, by its own id.

import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { after } from 'node:test';
import { Inbox, within } from './deadline.mjs';

const running = new Set();
const end = () => {
  for (const child of running) child.kill('SIGKILL');
};
// A test that fails leaves its servers behind: end them when the file's tests are over, and whatever else happens.
after(end);
process.once('exit', end);

export class Child {
  constructor(name, command, args, { env = process.env, cwd } = {}) {
    this.name = name;
    this.lines = [];
    this.errors = [];
    this.output = new Inbox(`${name}'s output`);
    this.process = spawn(command, args, { env, cwd, stdio: ['ignore', 'pipe', 'pipe'] });
    running.add(this.process);
    createInterface({ input: this.process.stdout }).on('line', (line) => {
      this.lines.push(line);
      this.output.push(line);
    });
    createInterface({ input: this.process.stderr }).on('line', (line) => this.errors.push(line));
    this.exited = new Promise((ended) => {
      this.process.once('error', (error) => {
        this.errors.push(String(error));
        ended({ code: null, signal: null });
      });
      this.process.once('close', (code, signal) => ended({ code, signal }));
    }).then((end) => {
      running.delete(this.process);
      this.output.end(`${name} has ended (${JSON.stringify(end)})\n${this.tail()}`);
      return end;
    });
  }

  get pid() {
    return this.process.pid;
  }

  /** The last lines of both outputs, for error messages. */
  tail() {
    return [...this.lines.slice(-15), ...this.errors.slice(-15)].join('\n');
  }

  /** The first line for which `pick` gives something, as picked. */
  async line(what, pick) {
    for (const line of this.lines) {
      const picked = pick(line);
      if (picked) return picked;
    }
    for (;;) {
      const picked = pick(await this.output.next(what));
      if (picked) return picked;
    }
  }

  /** Sends a signal and waits for the end. */
  async stop(signal = 'SIGTERM') {
    this.process.kill(signal);
    return within(`${this.name} to end after ${signal}`, this.exited);
  }
}
