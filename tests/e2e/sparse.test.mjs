// Sparse attention chosen by the server and by requests: the OpenAI client, headers, gRPC, metrics.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';
import OpenAI from 'openai';

import { binary, call, expectIdle, metrics, readStream, startServer } from './server.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const document = readFileSync(path.join(root, 'docs/demo/long.txt'), 'utf8').slice(0, 12_000);
const prompt = `${document}\nThe`;

let server;
let client;
before(async () => {
  server = await startServer();
  client = new OpenAI({
    baseURL: `${server.url}/v1`, apiKey: 'EMPTY', maxRetries: 0, fetch: globalThis.fetch,
  });
});
after(() => server.stop());

const ask = (sparse, more = {}) => ({
  model: server.model, prompt, max_tokens: 12, temperature: 0, ignore_eos: true, ...more,
  ...(sparse === undefined ? {} : { sparse }),
});

test('the profiles of the server, with dials', async () => {
  const { json } = await call(server, '/v1/sparse/profiles');
  assert.equal(json.default, 'dense');
  const quest = json.data.find((profile) => profile.id === 'quest');
  assert.ok(quest.summary.length > 0);
  const budget = quest.dials.find((dial) => dial.name === 'budget_tokens');
  assert.ok(budget.value >= budget.min && budget.value <= budget.max && budget.whole);
  for (const { id, reason } of json.left_out) assert.match(reason, /need /, id);
});

test('the OpenAI client names a profile and reads what it cost', async () => {
  const before_ = await metrics(server);
  const reply = await client.completions.create(ask(
    { profile: 'quest', budget_tokens: 512, dense_below_tokens: 0, usage: true }));
  const { sparse } = reply.usage;
  assert.equal(sparse.profile, 'quest');
  assert.equal(sparse.steps.dense + sparse.steps.sparse, reply.usage.completion_tokens - 1);
  assert.ok(sparse.steps.sparse > 0);
  assert.ok(sparse.pages.selected > 0 && sparse.pages.selected < sparse.pages.considered);
  assert.equal(sparse.mass.audited, null);
  const after_ = await metrics(server);
  for (const [name, value] of [
    ['lacuna_sparse_pages_considered_total', sparse.pages.considered],
    ['lacuna_sparse_pages_selected_total', sparse.pages.selected]]) {
    assert.equal(after_.sum(name) - before_.sum(name), value, name);
  }
});

test('a budget above the context is dense, token for token', async () => {
  const dense = await client.completions.create(ask());
  const wide = await client.completions.create(ask({ profile: 'quest', budget_tokens: 65536 }));
  assert.equal(wide.choices[0].text, dense.choices[0].text);
  assert.equal(dense.usage.sparse, undefined);
});

test('audits tell the captured mass', async () => {
  const { usage } = await client.completions.create(ask(
    { profile: 'quest', budget_tokens: 512, audit_fraction: 1, usage: true }));
  const { mass, audited_steps: audited } = usage.sparse;
  assert.equal(audited, usage.sparse.steps.sparse);
  assert.equal(mass.audited.length, 3);
  for (const share of mass.audited) assert.ok(share >= 0 && share <= 1.001, `${share}`);
  assert.equal(mass.output_error.length, 3);
});

test('a sparse prompt is counted in blocks, in the last chunk of a stream', async () => {
  const { events } = await readStream(server, '/v1/completions', ask(
    { profile: 'xattention', usage: true }, { stream_options: { include_usage: true } }));
  assert.equal(events.at(-1), '[DONE]');
  const carriers = events.filter((event) => event?.usage?.sparse);
  assert.equal(carriers.length, 1);
  const { sparse } = events.at(-2).usage;
  assert.equal(sparse.profile, 'xattention');
  assert.ok(sparse.prefill_blocks.considered > 0);
  assert.ok(sparse.prefill_blocks.selected <= sparse.prefill_blocks.considered);
});

test('headers speak unless the body does', async () => {
  const headers = { 'X-Lacuna-Sparse-Profile': 'quest', 'X-Lacuna-Sparse-Budget-Tokens': '0' };
  const refused = await call(server, '/v1/completions', ask(), headers);
  assert.equal(refused.status, 400);
  assert.equal(refused.json.error.param, 'sparse.budget_tokens');
  const body = await call(server, '/v1/completions', ask({ mode: 'dense', usage: true }), headers);
  assert.equal(body.json.usage.sparse.profile, 'dense');
});

test('refusals are 400 with the member, and list what exists', async () => {
  for (const [sparse, param, text] of [
    [{ profile: 'qest' }, 'sparse.profile', /need quest \(the nearest\), or one of dense, /],
    [{ profile: 'quest', top_p: 0.5 }, 'sparse.top_p', /need one of budget_tokens, /],
    [{ profile: 'quest', budget: 5 }, 'sparse.budget', /and of dials budget_tokens, /],
    [{ profile: 'quest', mode: 'dense' }, 'sparse.mode', /one of the two/],
    [{ budget_tokens: 512 }, 'sparse.budget_tokens', /default is dense/],
  ]) {
    await assert.rejects(client.completions.create(ask(sparse)), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, param);
      assert.match(error.message, text);
      return true;
    });
  }
  await expectIdle(server, assert);
});

test('gRPC says the same', async () => {
  const { lacuna } = grpc.loadPackageDefinition(loader.loadSync('proto/lacuna/v1/lacuna.proto', {
    keepCase: true, longs: Number, enums: String, oneofs: true, includeDirs: [root] }));
  const stub = new lacuna.v1.Inference(server.grpc, grpc.credentials.createInsecure());
  const generate = (sparse) => new Promise((resolve) => {
    const heard = { text: '', usage: null, error: null };
    const stream = stub.Generate({
      text: prompt, max_tokens: 12, ignore_eos: true, sampling: { temperature: 0 }, sparse });
    stream.on('data', ({ chunk, finished }) => {
      heard.text += chunk?.text ?? '';
      if (finished) heard.usage = finished.usage;
    });
    stream.on('error', (error) => { heard.error = error; resolve(heard); });
    stream.on('end', () => setImmediate(() => resolve(heard)));
  });
  const heard = await generate({ profile: 'quest', dials: { budget_tokens: 512 }, usage: true });
  assert.equal(heard.error, null);
  assert.equal(heard.usage.sparse.profile, 'quest');
  assert.ok(heard.usage.sparse.pages_selected < heard.usage.sparse.pages_considered);
  const reply = await client.completions.create(ask({ profile: 'quest', budget_tokens: 512 }));
  assert.equal(heard.text, reply.choices[0].text);
  const bad = await generate({ profile: 'qest' });
  assert.equal(bad.error.code, grpc.status.INVALID_ARGUMENT);
  assert.deepEqual(bad.error.metadata.get('lacuna-param'), ['sparse.profile']);
  stub.close();
});

test('a default of the server', async () => {
  const own = await startServer({
    'sparse.profile': 'lacuna-balanced', 'sparse.profiles': 'quest', 'sparse.audit_fraction': 0.5,
  });
  try {
    const usageOf = async (sparse) =>
      (await call(own, '/v1/completions', { ...ask(sparse), model: own.model })).json.usage.sparse;
    assert.equal((await usageOf({ usage: true })).profile, 'lacuna-balanced');
    assert.equal((await usageOf({ mode: 'dense', usage: true })).profile, 'dense');
    const { json } = await call(own, '/v1/sparse/profiles');
    assert.deepEqual(json.data.map((profile) => profile.id), ['lacuna-balanced', 'quest']);
    assert.match(own.log(), /get lacuna-balanced; metadata of 2 profiles adds \d+ % to the KV cache/);
  } finally {
    await own.stop();
  }
});

test('64 streams of ten profiles and dense say what each says alone', async () => {
  const own = await startServer({ 'engine.deterministic': true });
  try {
    const sparse = {
      dense: { mode: 'dense' },
      quest: { profile: 'quest', budget_tokens: 512 },
      ...Object.fromEntries(['delta', 'kinetics', 'lacuna-fast', 'lessismore', 'streamingllm',
        'tidaldecode', 'tokenselect', 'twilight-quest', 'xattention']
        .map((profile) => [profile, { profile }])),
    };
    const names = Object.keys(sparse);
    const text = async (name) => {
      const { status, json } = await call(own, '/v1/completions',
        { ...ask(sparse[name]), model: own.model });
      assert.equal(status, 200, JSON.stringify(json));
      return json.choices[0].text;
    };
    const alone = new Map();
    for (const name of names) alone.set(name, await text(name));
    await Promise.all(Array.from({ length: 64 }, async (_, i) => {
      const name = names[i % names.length];
      assert.equal(await text(name), alone.get(name), name);
    }));
    await expectIdle(own, assert);
  } finally {
    await own.stop();
  }
});

test('streaming heads that are not stored bind every request', async () => {
  const own = await startServer(
    { 'sparse.profile': 'lserve', 'sparse.store_streaming_heads': false });
  const stored = await startServer({ 'sparse.profile': 'lserve' });
  try {
    const post = (at, sparse) => call(at, '/v1/completions', { ...ask(sparse), model: at.model });
    const reply = await post(own);
    assert.equal(reply.status, 200, reply.text);
    assert.equal(reply.json.choices[0].text, (await post(stored)).json.choices[0].text);
    for (const sparse of [{ mode: 'dense' }, { profile: 'quest' }]) {
      const refused = await post(own, sparse);
      assert.equal(refused.status, 400);
      assert.match(refused.json.error.message, /store_streaming_heads/);
    }
  } finally {
    await own.stop();
    await stored.stop();
  }
});

test('a bad default ends the start with one line', () => {
  const { status, stderr, stdout } = spawnSync(
    binary, ['serve', '--port', '0', '--grpc-port', '0', '--sparse-profile', 'qest'],
    { encoding: 'utf8' });
  assert.equal(status, 2);
  assert.equal(stdout, '');
  assert.match(stderr, /^defaults: sparse\.profile: got "qest", need quest \(the nearest\), /);
  assert.equal(stderr.trim().split('\n').length, 1);
});
