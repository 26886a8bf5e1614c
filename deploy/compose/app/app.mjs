// The least that an app behind Cableway does: it answers the three calls (Connect, Command, Disconnect) over HTTP, and publishes.
// A real app lets a library do this: anycable-rails, @anycable/serverless-js and others.

import { createServer } from 'node:http';

const { PORT = '3000', BROADCAST_URL, CABLEWAY_BROADCAST_KEY, CABLEWAY_HTTP_RPC_SECRET } = process.env;

/** Statuses of an answer: 1 is yes, 2 is no. */
const SUCCESS = 1;
const FAILURE = 2;

/** What each call is answered with. Everybody may connect, and follow the clock. */
const calls = {
  connect: () => ({ status: SUCCESS, identifiers: JSON.stringify({ guest: true }), transmissions: [JSON.stringify({ type: 'welcome' })] }),
  command: ({ command, identifier }) => {
    const { channel } = JSON.parse(identifier);
    if (channel !== 'ClockChannel') return { status: FAILURE, transmissions: [JSON.stringify({ type: 'reject_subscription', identifier })] };
    if (command !== 'subscribe') return { status: SUCCESS };
    return { status: SUCCESS, streams: ['clock'], transmissions: [JSON.stringify({ type: 'confirm_subscription', identifier })] };
  },
  disconnect: () => ({ status: SUCCESS }),
};

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString() || '{}');
}

const server = createServer(async (request, response) => {
  const call = calls[request.url.split('/').at(-1)];
  if (!call) return response.writeHead(404).end();
  if (request.headers.authorization !== `Bearer ${CABLEWAY_HTTP_RPC_SECRET}`) return response.writeHead(401).end();
  try {
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify(call(await body(request))));
  } catch (error) {
    response.writeHead(400).end(String(error));
  }
});
server.listen(Number(PORT), () => console.log(`app: listening on ${server.address().port}`));

setInterval(async () => {
  const publication = { stream: 'clock', data: JSON.stringify({ time: new Date().toISOString() }) };
  const headers = { 'content-type': 'application/json', authorization: `Bearer ${CABLEWAY_BROADCAST_KEY}` };
  try {
    const answer = await fetch(BROADCAST_URL, { method: 'POST', headers, body: JSON.stringify(publication) });
    if (!answer.ok) console.log(`app: the broadcast was answered ${answer.status}`);
  } catch (error) {
    console.log(`app: nobody takes broadcasts: ${error.cause?.code ?? error.message}`);
  }
}, 1000);
