// The ws package as a server: echoes every message, and sends what is posted to /publish to everybody.

import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { WebSocketServer } from "ws";

// ws has no way to share a prepared frame among receivers, so everybody is sent the same bytes; a text frame all the same.
function publish(sockets, body) {
  for (const socket of sockets.clients) socket.send(body, { binary: false });
}

function answer(request, response, sockets) {
  if (request.method !== "POST" || request.url !== "/publish") return response.writeHead(404).end();
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    publish(sockets, Buffer.concat(chunks));
    // A length, because a publisher need not know chunks.
    response.writeHead(202, { "content-length": 0 }).end();
  });
}

// A publisher's connection stays open between publications, however far apart.
const http = createServer({ keepAliveTimeout: 0 }, (request, response) => answer(request, response, sockets));
const sockets = new WebSocketServer({ server: http });
sockets.on("connection", (socket) => {
  socket.on("message", (data, binary) => socket.send(data, { binary }));
  // Without a listener a client that breaks off would end the process.
  socket.on("error", () => socket.terminate());
});

http.listen({ host: "127.0.0.1", port: 0, backlog: Number(process.env.VERSUS_BACKLOG) }, () => {
  const { port } = http.address();
  const ws = JSON.parse(readFileSync(new URL("node_modules/ws/package.json", import.meta.url)));
  console.log(
    JSON.stringify({
      version: `ws ${ws.version} on Node.js ${process.versions.node}`,
      settings: "its defaults: compression off, one process",
      protocol: "raw",
      target: `ws://127.0.0.1:${port}/`,
      publish: { url: `http://127.0.0.1:${port}/publish`, body: "{mark}" },
      say: { texts: ["{pad}"], reply: "any", bytes: 60000 },
      pids: [process.pid],
    }),
  );
});
