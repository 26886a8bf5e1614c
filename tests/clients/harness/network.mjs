// A bad network: a TCP proxy that cuts connections in the ways in which they are cut, for one client or for all.
//
//   reset   both ends get a RST, and so does whoever connects
//   fin     both ends get a FIN, as from a proxy that is restarted; whoever connects gets a RST
//   stall   nothing passes in either direction, and nobody is told; whoever connects waits
//   roam    the same for what stands, but new connections pass: a phone that went from one network to the next
//
// A client says who it is with `who=NAME` in its URL. It knows no more of what passes.

import net from 'node:net';

export const WAYS = ['reset', 'fin', 'stall', 'roam'];

class Link {
  constructor(network, client) {
    Object.assign(this, { network, client, server: null, stalled: false });
    client.on('error', () => {});
    client.on('close', () => this.drop());
    client.once('data', (head) => {
      client.pause();
      this.who = /[?&]who=([\w-]+)/.exec(head.toString('latin1'))?.[1];
      this.head = head;
      this.obey();
    });
  }

  /** Does what the state of the network asks of it now. */
  obey() {
    if (this.who === undefined) return;
    const cuts = this.network.cutsOf(this.who);
    if (!this.server && cuts.some(({ way }) => way === 'reset' || way === 'fin')) return this.reset();
    const stalled = cuts.some(({ way, stood }) => way === 'stall' || (way === 'roam' && stood.has(this)));
    if (!this.server) {
      if (!stalled) this.pass();
      return;
    }
    if (stalled === this.stalled) return;
    this.stalled = stalled;
    for (const [from, to] of [[this.client, this.server], [this.server, this.client]]) {
      if (stalled) from.unpipe(to).pause();
      else from.pipe(to);
    }
  }

  pass() {
    this.server = net.connect(this.network.target, '127.0.0.1');
    this.server.on('error', () => {});
    this.server.on('close', () => this.drop());
    this.server.write(this.head);
    this.client.pipe(this.server).pipe(this.client);
  }

  reset() {
    for (const socket of [this.client, this.server]) socket?.resetAndDestroy();
  }

  finish() {
    for (const socket of [this.client, this.server]) {
      socket?.unpipe().resume();
      socket?.end();
    }
  }

  drop() {
    this.network.links.delete(this);
    for (const socket of [this.client, this.server]) socket?.destroy();
  }
}

export class BadNetwork {
  /** A network in front of a port of this machine. */
  static async start(target) {
    const network = new BadNetwork();
    Object.assign(network, { target, links: new Set(), cuts: new Map(), counts: {} });
    network.listener = net.createServer({ noDelay: true }, (client) => network.links.add(new Link(network, client)));
    await new Promise((ready) => network.listener.listen(0, '127.0.0.1', ready));
    network.port = network.listener.address().port;
    return network;
  }

  url(who, path = '/cable') {
    return `ws://127.0.0.1:${this.port}${path}?who=${who}`;
  }

  /** What holds for a client: its own cut, and that of all. */
  cutsOf(who) {
    return [this.cuts.get(who), this.cuts.get(null)].filter(Boolean);
  }

  #of(who) {
    return [...this.links].filter((link) => link.who !== undefined && (who === null || link.who === who));
  }

  /** Cuts one client (or all: null) off, until `mend`. */
  cut(who, way) {
    this.counts[way] = (this.counts[way] ?? 0) + 1;
    const links = this.#of(who);
    this.cuts.set(who, { way, stood: new Set(links) });
    for (const link of links) {
      if (way === 'reset') link.reset();
      else if (way === 'fin') link.finish();
      else link.obey();
    }
  }

  mend(who) {
    this.cuts.delete(who);
    for (const link of this.#of(who)) link.obey();
  }

  close() {
    this.listener.close();
    for (const link of this.links) link.drop();
  }
}
