// Tokens as an app makes them: JSON Web Tokens with a shared key, signed stream names, derived keys.

import { createHmac } from 'node:crypto';

const HASHES = { HS256: 'sha256', HS384: 'sha384', HS512: 'sha512' };
const encode = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');

/** A JWT; an `alg` of "none" is left without a signature. */
export function jwt(claims, key, alg = 'HS256') {
  const text = `${encode({ typ: 'JWT', alg })}.${encode(claims)}`;
  const signature = HASHES[alg] ? createHmac(HASHES[alg], key).update(text).digest('base64url') : '';
  return `${text}.${signature}`;
}

/** A signed stream name; `encoding` is the alphabet of its first half. */
export function signedStream(stream, key, encoding = 'base64') {
  const name = Buffer.from(JSON.stringify(stream)).toString(encoding);
  return `${name}--${createHmac('sha256', key).update(name).digest('hex')}`;
}

export const derivedKey = (secret, phrase) => createHmac('sha256', secret).update(phrase).digest('hex');

/** Seconds since 1970, some seconds from now. */
export const seconds = (fromNow) => Math.floor(Date.now() / 1000) + fromNow;
