// A client as a browser would be one, with AnyCable's own library.

import { createCable } from '@anycable/core';
import WebSocket from 'ws';

const cable = createCable(process.env.CABLE_URL, { websocketImplementation: WebSocket, protocol: 'actioncable-v1-ext-json' });
const clock = cable.subscribeTo('ClockChannel');
clock.on('connect', () => console.log('client: subscribed'));
clock.on('message', ({ time }) => console.log(`client: it is ${time}`));
