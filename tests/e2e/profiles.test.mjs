// `lacuna profiles`: the shipped profiles, a plan, and errors that list what exists.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { binary } from './server.mjs';

function lacuna(...args) {
  const { status, stdout, stderr } = spawnSync(binary, args, { encoding: 'utf8' });
  return { status, stdout, stderr };
}

test('profiles lists every shipped profile without a file of its own', () => {
  const { status, stdout } = lacuna('profiles');
  assert.equal(status, 0);
  for (const name of ['quest', 'lserve', 'minference', 'lacuna-balanced']) {
    assert.match(stdout, new RegExp(`^${name} `, 'm'));
  }
});

test('profiles show prints the plan for the embedded model, dials applied', () => {
  const { status, stdout } = lacuna('profiles', 'show', 'quest', '--set', 'budget_tokens=512');
  assert.equal(status, 0);
  assert.match(stdout, /^plan for 6 layers, 8 query and 2 kv heads of 64/m);
  assert.match(stdout, /32768 tokens: +512 keys/);
});

test('unknown names and dials are told with those that exist', () => {
  const name = lacuna('profiles', 'show', 'qest');
  assert.equal(name.status, 2);
  assert.match(name.stderr, /got "qest", need quest \(the nearest\), or one of delta, /);
  const dial = lacuna('profiles', 'show', 'quest', '--set', 'top_p=0.5');
  assert.equal(dial.status, 2);
  assert.match(dial.stderr, /^quest: top_p: got a dial that this profile lacks, need one of budget_/);
});

test('a folder adds profiles, checked', () => {
  const folder = mkdtempSync(path.join(os.tmpdir(), 'lacuna-profiles-'));
  writeFileSync(path.join(folder, 'mine.json'), JSON.stringify({
    name: 'mine', extends: 'quest', summary: 'less', decode: { select: { budget_tokens: 256 } } }));
  assert.match(lacuna('profiles', '--profiles', folder).stdout, /^mine +decode +less$/m);
  writeFileSync(path.join(folder, 'bad.json'), JSON.stringify({
    name: 'bad', extends: 'quest', summary: 's', decode: { select: { kind: 'top_p' } } }));
  const { status, stderr } = lacuna('profiles', '--profiles', folder);
  assert.equal(status, 2);
  assert.match(stderr, /^bad: decode\.select\.kind: got "top_p", need scores with a mass/);
});
