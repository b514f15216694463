// lacuna.v1 over @grpc/grpc-js against the real binary: the same text as over HTTP, errors, cancel,
// deadline, health and drain.
import assert from 'node:assert/strict';
import path from 'node:path';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

import { call, startServer } from './server.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
const options = { keepCase: true, longs: Number, enums: String, oneofs: true };
const load = (file, dirs) =>
  grpc.loadPackageDefinition(loader.loadSync(file, { ...options, includeDirs: dirs }));
const { lacuna } = load('proto/lacuna/v1/lacuna.proto', [root]);

let server;
let client;

before(async () => {
  server = await startServer();
  client = new lacuna.v1.Inference(server.grpc, grpc.credentials.createInsecure());
});
after(async () => {
  client?.close();
  await server?.stop();
});

function generate(request, callOptions = {}) {
  return new Promise((resolve) => {
    const stream = client.Generate(request, callOptions);
    const heard = { text: '', ids: [], finished: [], error: null };
    stream.on('data', ({ chunk, finished }) => {
      if (chunk) {
        heard.text += chunk.text;
        heard.ids.push(...chunk.token_ids);
      }
      if (finished) heard.finished.push(finished);
    });
    stream.on('error', (error) => { heard.error = error; resolve(heard); });
    stream.on('end', () => setImmediate(() => resolve(heard)));
  });
}

const unary = (method, request) => new Promise((resolve, reject) => {
  client[method](request, (error, answer) => (error ? reject(error) : resolve(answer)));
});

async function metric(name) {
  const { text } = await call(server, '/metrics');
  return text.split('\n').filter((line) => line.startsWith(name))
    .reduce((sum, line) => sum + Number(line.split(' ').at(-1)), 0);
}

async function eventually(condition) {
  for (let i = 0; i < 1000; ++i) {
    if (await condition()) return;
    await new Promise((resolve) => { setTimeout(resolve, 10); });
  }
  assert.fail('the condition did not come true');
}

test('the same text as over HTTP', async () => {
  const heard = await generate({
    text: 'The code of the vault is 4711. The', max_tokens: 12, sampling: { temperature: 0 },
  });
  assert.equal(heard.error, null);
  const { json } = await call(server, '/v1/completions', {
    model: server.model, prompt: 'The code of the vault is 4711. The', max_tokens: 12,
    temperature: 0,
  });
  assert.equal(heard.text, json.choices[0].text);
  assert.equal(heard.finished.length, 1);
  assert.equal(heard.finished[0].usage.prompt_tokens, json.usage.prompt_tokens);
  assert.equal(heard.finished[0].usage.completion_tokens, json.usage.completion_tokens);
});

test('tokenize, detokenize and the model', async () => {
  const { ids } = await unary('Tokenize', { text: 'Hello, world', add_special_tokens: false });
  assert.ok(ids.length > 0);
  assert.equal((await unary('Detokenize', { ids })).text, 'Hello, world');
  const model = await unary('GetModel', {});
  assert.equal(model.name, server.model);
  assert.ok(model.context_tokens_max > 1024);
});

test('errors carry code, field and trailer', async () => {
  const bad = await generate({ text: 'a', sampling: { temperature: 3 } });
  assert.equal(bad.error.code, grpc.status.INVALID_ARGUMENT);
  assert.match(bad.error.details, /^temperature: /);
  assert.deepEqual(bad.error.metadata.get('lacuna-param'), ['temperature']);
  const unknown = await generate({ model: 'nobody', text: 'a' });
  assert.equal(unknown.error.code, grpc.status.NOT_FOUND);
});

test('cancel and deadline free the pages', async () => {
  const endless = { text: 'a', max_tokens: 100000, ignore_eos: true };
  const stream = client.Generate(endless);
  await new Promise((resolve) => { stream.once('data', resolve); });
  stream.on('error', () => {});
  stream.cancel();
  const late = await generate(endless, { deadline: Date.now() + 200 });
  assert.equal(late.error.code, grpc.status.DEADLINE_EXCEEDED);
  await eventually(async () => (await metric('vllm:num_requests_running')) === 0);
  const { text } = await call(server, '/metrics');
  assert.match(text, /lacuna_kv_pages\{[^}]*state="used"[^}]*\} 0\n/);
});

test('drain lets a running stream finish and refuses new ones', async () => {
  const stream = client.Generate({ text: 'a', max_tokens: 400, ignore_eos: true });
  let finished = false;
  const ended = new Promise((resolve, reject) => {
    stream.on('error', reject);
    stream.on('end', resolve);
  });
  await new Promise((resolve) => {
    stream.on('data', (event) => { finished ||= Boolean(event.finished); resolve(); });
  });
  const exit = server.stop();
  await eventually(async () =>
    (await generate({ text: 'a', max_tokens: 1 })).error?.code === grpc.status.UNAVAILABLE);
  await ended;
  assert.ok(finished);
  assert.deepEqual(await exit, { code: 0, signal: null });
});
