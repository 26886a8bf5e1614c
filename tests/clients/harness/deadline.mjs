// Waiting without sleeping: every wait in these tests ends with the event it is for, or fails at a deadline that says what
// was awaited.

/** Milliseconds any single wait may take; a slow machine can raise it. Default 15 s: far above every timer of a test. */
export const DEADLINE_MS = Number(process.env.CLIENT_TEST_DEADLINE_MS ?? 15_000);

/** `promise`, or an error naming `what` when it has not settled in time. */
export async function within(what, promise, ms = DEADLINE_MS) {
  let timer;
  const late = new Promise((_, fail) => {
    const error = new Error(`not within ${ms} ms: ${what}`);
    timer = setTimeout(() => fail(error), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Things that arrive one by one, and readers that wait for them. */
export class Inbox {
  #items = [];
  #readers = [];
  #ended = null;

  constructor(name) {
    this.name = name;
  }

  push(item) {
    const reader = this.#readers.shift();
    if (reader) reader.take(item);
    else this.#items.push(item);
  }

  /** No more will come: readers get an error with this reason. */
  end(reason) {
    this.#ended = reason;
    for (const reader of this.#readers.splice(0)) reader.fail(new Error(`${this.name}: ${reason}`));
  }

  async next(what = 'the next item', ms = DEADLINE_MS) {
    if (this.#items.length > 0) return this.#items.shift();
    if (this.#ended !== null) throw new Error(`${this.name}: ${this.#ended}, while waiting for ${what}`);
    let reader;
    const item = new Promise((take, fail) => {
      reader = { take, fail };
      this.#readers.push(reader);
    });
    try {
      return await within(`${this.name}: ${what}`, item, ms);
    } finally {
      const at = this.#readers.indexOf(reader);
      if (at >= 0) this.#readers.splice(at, 1);
    }
  }

  /** What has arrived and was not read yet; takes it. */
  drain() {
    return this.#items.splice(0);
  }
}
