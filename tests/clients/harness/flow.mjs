// Numbered messages at a steady rate, and whether a client got each of them once and in order.

import assert from 'node:assert/strict';

/** Publishes 1, 2, 3, … on each of some streams in turn. */
export class Flow {
  /** `rate`: messages a second over all streams. */
  constructor(server, streams, rate) {
    Object.assign(this, { server, streams, rate, published: 0, running: true });
    this.done = this.#run();
  }

  async #run() {
    const started = performance.now();
    while (this.running) {
      const due = Math.floor(((performance.now() - started) * this.rate) / 1000) - this.published;
      const batch = Array.from({ length: due }, (_, at) => this.#message(this.published + at));
      this.published += due;
      // One by one, unless this process is late.
      if (due > 0) assert.equal((await this.server.post(due === 1 ? batch[0] : batch)).status, 201);
      await new Promise((next) => setTimeout(next, 1000 / this.rate));
    }
  }

  #message(index) {
    const stream = this.streams[index % this.streams.length];
    return { stream, data: String(Math.floor(index / this.streams.length) + 1) };
  }

  /** The last number of each stream, in the order of the streams. */
  get last() {
    return this.streams.map((_, at) => Math.floor((this.published - at - 1) / this.streams.length) + 1);
  }

  async stop() {
    this.running = false;
    await this.done;
  }
}

/** What one client got of one stream. */
export class Tally {
  #next = 1;
  #missing = new Set();
  doubled = 0;
  unordered = 0;
  received = 0;

  take(number) {
    this.received += 1;
    if (number >= this.#next) {
      for (; this.#next < number; this.#next += 1) this.#missing.add(this.#next);
      this.#next += 1;
    } else if (this.#missing.delete(number)) this.unordered += 1;
    else this.doubled += 1;
  }

  get newest() {
    return this.#next - 1;
  }

  lost(last) {
    return this.#missing.size + (last - this.newest);
  }
}

/** The value below which this part (0 to 1) of all lies. */
export function quantile(values, part) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))];
}

/** Random numbers that a seed repeats: mulberry32. */
export function random(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
