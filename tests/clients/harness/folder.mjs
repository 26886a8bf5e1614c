// Folders of a test run, removed when it ends.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

const folders = [];
process.once('exit', () => folders.forEach((folder) => rmSync(folder, { recursive: true, force: true, maxRetries: 3 })));

/** A new, empty folder for as long as this process runs. */
export function temporaryFolder(name) {
  const folder = mkdtempSync(join(tmpdir(), `cableway-${name}-`));
  folders.push(folder);
  return folder;
}
