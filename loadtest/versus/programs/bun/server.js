// Bun's built-in server: echoes every message, and sends what is posted to /publish to everybody.

const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  async fetch(request, server) {
    if (request.method === "POST" && new URL(request.url).pathname === "/publish") {
      server.publish("load", await request.text());
      return new Response(null, { status: 202 });
    }
    return server.upgrade(request) ? undefined : new Response(null, { status: 404 });
  },
  websocket: {
    open: (socket) => socket.subscribe("load"),
    message: (socket, message) => void socket.send(message),
  },
});

console.log(
  JSON.stringify({
    version: `Bun ${Bun.version}`,
    settings: "its defaults: compression off, one process; every client subscribes to a topic",
    protocol: "raw",
    target: `ws://127.0.0.1:${server.port}/`,
    publish: { url: `http://127.0.0.1:${server.port}/publish`, body: "{mark}" },
    say: { texts: ["{pad}"], reply: "any", bytes: 60000 },
    pids: [process.pid],
    note: "Pings an idle client after two minutes, as by default. Its accept queue cannot be set.",
  }),
);
