// The app behind Pushpin, which speaks WebSocket-over-HTTP to it: subscribes every client to the channel `load` and
// sends back what it says. Only Node.js is needed.

import { createServer } from "node:http";

const event = (type, content) =>
  Buffer.concat([Buffer.from(`${type} ${content.length.toString(16)}\r\n`), content, Buffer.from("\r\n")]);

const SUBSCRIBE = event("TEXT", Buffer.from('c:{"type":"subscribe","channel":"load"}'));

// The events that answer those in the body. A type is followed by the length of its content in hexadecimal digits, if it
// has any.
function answer(body) {
  const events = [];
  for (let at = 0; at < body.length; ) {
    const end = body.indexOf("\r\n", at);
    if (end < 0) break;
    const [type, digits] = body.toString("latin1", at, end).split(" ");
    at = end + 2;
    let content;
    if (digits !== undefined) {
      const length = parseInt(digits, 16);
      content = body.subarray(at, at + length);
      at += length + 2;
    }
    if (type === "OPEN") events.push(Buffer.from("OPEN\r\n"), SUBSCRIBE);
    else if (type === "PING") events.push(content ? event("PONG", content) : Buffer.from("PONG\r\n"));
    else if (type === "CLOSE") events.push(content ? event("CLOSE", content) : Buffer.from("CLOSE\r\n"));
    else if (type === "TEXT" || type === "BINARY") events.push(event(type, content));
  }
  return Buffer.concat(events);
}

const server = createServer({ keepAliveTimeout: 0 }, (request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const body = answer(Buffer.concat(chunks));
    response.writeHead(200, {
      "content-type": "application/websocket-events",
      "content-length": body.length,
      // Messages to clients have no prefix; those that begin with `c:` are for Pushpin.
      "sec-websocket-extensions": 'grip; message-prefix=""',
    });
    response.end(body);
  });
});

server.listen({ host: "127.0.0.1", port: Number(process.argv[2]), backlog: Number(process.env.VERSUS_BACKLOG) });
