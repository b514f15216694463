// `lacuna make-suite` and `lacuna eval` as their users run them: the embedded model, a server that
// eval starts by itself, dense beside a sparse profile.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { binary } from './server.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const folder = mkdtempSync(path.join(os.tmpdir(), 'lacuna-eval-'));
const suite = path.join(folder, 'suite.jsonl.gz');

function lacuna(...args) {
  const { status, stdout, stderr } = spawnSync(binary, args, { encoding: 'utf8', cwd: root });
  return { status, stdout, stderr };
}

test('make-suite hides facts in a text', () => {
  const { status, stdout, stderr } = lacuna('make-suite', '--text', 'docs/demo/long.txt', '--out',
    suite, '--seed', '11', '--lengths', '2048', '--tasks', 'needle,lines,bios', '--count', '1');
  assert.equal(status, 0, stderr);
  assert.match(stdout, /: 3 questions$/m);
});

test('eval asks dense and a profile, and reports both', () => {
  const out = path.join(folder, 'out');
  const { status, stdout, stderr } = lacuna('eval', '--suite', suite, '--profiles',
    'quest,lacuna-balanced', '--budget-fractions', '0.25', '--limit', '3', '--out', out);
  assert.equal(status, 0, stderr + stdout);
  assert.match(stderr, /15\/15, 0 failed/);
  const report = JSON.parse(readFileSync(path.join(out, 'report.json'), 'utf8'));
  const cells = new Map(report.variants.map((variant) => [variant.label, variant.lengths['2048']]));
  assert.deepEqual([...cells.keys()],
    ['dense', 'quest', 'quest 25 %', 'lacuna-balanced', 'lacuna-balanced 25 %']);
  for (const cell of cells.values()) assert.equal(cell.count, 3);
  const { dense } = Object.fromEntries(cells);
  assert.ok(dense.right >= 2, 'the model finds what is hidden');
  assert.ok(dense.ttft_s > 0 && dense.decode_tokens_per_s > 0);
  assert.equal(dense.decode_read, null);
  const quarter = cells.get('quest 25 %').decode_read;
  assert.ok(quarter > 0.1 && quarter < 0.9, `reads ${quarter}`);
  const page = readFileSync(path.join(out, 'index.html'), 'utf8');
  assert.match(page, /<svg viewBox/);
  assert.doesNotMatch(page, /https?:\/\//);
});

test('bad inputs are one line', () => {
  for (const [args, expected] of [
    [['--profiles', 'quest', '--suite', 'nowhere.gz'], /nowhere\.gz/],
    [['--profiles', 'qest', '--suite', suite], /--profiles: got qest, need of all, dense, /],
    [['--profiles', 'quest', '--suite', suite, '--budget-fractions', '0'], /--budget-fractions: got 0 %/],
    [['--profiles', 'quest', '--suite', suite, '--url', 'http://127.0.0.1:1'], /connection refused/],
  ]) {
    const { status, stderr } = lacuna('eval', ...args);
    assert.ok(status === 2 || status === 3, stderr);
    assert.match(stderr, expected);
    assert.equal(stderr.trim().split('\n').length, 1, stderr);
  }
});
