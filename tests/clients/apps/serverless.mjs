// Loads @anycable/serverless-js in plain Node. Its published files import directories ('../rpc'), which a
// bundler resolves and Node refuses; the hook beside this file resolves them as a bundler would, so the library itself
// runs unchanged and no bundler is needed.

import { register } from 'node:module';

export async function loadServerless() {
  register('./directory-imports.mjs', import.meta.url);
  return import('@anycable/serverless-js');
}
