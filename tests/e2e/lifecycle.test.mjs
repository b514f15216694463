// Keys, CORS, overload, deadlines, pings, drain: what needs a server of its own settings.
import { test } from 'node:test';
import assert from 'node:assert/strict';
import { mkdtempSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { startServer, call, readStream, metrics, expectIdle } from './server.mjs';

async function withServer(sets, body) {
  const server = await startServer(sets);
  try { await body(server); } finally { await server.stop(); }
}
const long = (server, more = {}) => ({
  model: server.model, prompt: 'Once', max_tokens: 3000, ignore_eos: true, ...more,
});

test('96-97: keys, and their file read again', async () => {
  const file = path.join(mkdtempSync(path.join(os.tmpdir(), 'lacuna-')), 'keys');
  const first = 'first-key-0123456789';
  const second = 'second-key-0123456789';
  writeFileSync(file, `# keys\n${first}\n`);
  await withServer({ 'admit.api_keys_file': file }, async (server) => {
    const status = async (pathname, key) =>
      (await call(server, pathname, undefined, key ? { authorization: `Bearer ${key}` } : {})).status;
    for (const pathname of ['/health', '/livez', '/ready', '/readyz']) {
      assert.equal(await status(pathname), 200);
    }
    for (const pathname of ['/v1/models', '/version', '/metrics', '/v1/loads']) {
      assert.equal(await status(pathname), 401);
      assert.equal(await status(pathname, 'wrong'), 401);
      assert.equal(await status(pathname, first), 200);
    }
    for (const pathname of ['/v1/chat/completions', '/v1/completions', '/tokenize', '/detokenize']) {
      const reply = await call(server, pathname, {});
      assert.equal(reply.status, 401);
      assert.equal(reply.json.error.code, 'invalid_api_key');
    }
    writeFileSync(file, `${second}\n`);
    server.child.kill('SIGHUP');
    for (let i = 0; i < 100 && await status('/v1/models', second) !== 200; ++i) {
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
    assert.equal(await status('/v1/models', second), 200);
    assert.equal(await status('/v1/models', first), 401);
  });
});

test('20: a public address without keys is refused at start', async () => {
  await assert.rejects(startServer({ 'http.host': '0.0.0.0' }));
});

test('98: CORS', async () => {
  const ask = (server, origin) => fetch(`${server.url}/v1/completions`, {
    method: 'OPTIONS',
    headers: { origin, 'access-control-request-headers': 'authorization, x-stainless-os' },
  });
  await withServer({ 'http.cors_origins': ['https://good.example'] }, async (server) => {
    const good = await ask(server, 'https://good.example');
    assert.equal(good.status, 204);
    assert.equal(good.headers.get('access-control-allow-origin'), 'https://good.example');
    assert.match(good.headers.get('access-control-allow-headers'), /x-stainless-os/);
    const bad = await ask(server, 'https://bad.example');
    assert.equal(bad.headers.get('access-control-allow-origin'), null);
  });
  await withServer({}, async (server) => {
    const off = await ask(server, 'https://good.example');
    assert.equal(off.headers.get('access-control-allow-origin'), null);
  });
});

test('92-94: a full queue, rates, deadlines', async () => {
  const sets = {
    'engine.running_max': 1, 'engine.queue_len_max': 1, 'limits.deadline_ms': 1500,
  };
  await withServer(sets, async (server) => {
    const replies = await Promise.all(Array.from({ length: 6 }, () =>
      call(server, '/v1/completions', long(server, { max_tokens: 200 }))));
    const refused = replies.filter((reply) => reply.status === 503);
    assert.ok(refused.length >= 1);
    for (const reply of refused) {
      assert.equal(reply.json.error.code, 'server_overloaded');
      const wait = Number(reply.headers.get('retry-after'));
      assert.ok(Number.isInteger(wait) && wait >= 1 && wait <= 120);
    }
    assert.ok(replies.some((reply) => reply.status === 200));
    await expectIdle(server, assert);
    const late = await call(server, '/v1/completions',
      long(server, { max_tokens: 60_000, deadline_ms: 300 }));
    assert.equal(late.status, 408);
    assert.equal(late.json.error.code, 'request_timeout');
    const stream = await readStream(server, '/v1/completions',
      long(server, { max_tokens: 60_000, deadline_ms: 300 }));
    assert.equal(stream.events.at(-1), '[DONE]');
    assert.equal(stream.events.at(-2).error.code, 'request_timeout');
    await expectIdle(server, assert);
  });
});

test('67-68: headers come early and quiet streams are pinged', async () => {
  const sets = { 'engine.running_max': 1, 'http.ping_ms': 50, 'http.early_headers_ms': 20 };
  await withServer(sets, async (server) => {
    const busy = call(server, '/v1/completions', long(server, { max_tokens: 600 }));
    const started = Date.now();
    const response = await fetch(`${server.url}/v1/completions`, {
      method: 'POST', headers: { 'content-type': 'application/json' },
      body: JSON.stringify(long(server, { max_tokens: 4, stream: true, priority: 1 })),
    });
    assert.ok(Date.now() - started < 2000);
    const text = await response.text();
    assert.match(text, /^: ping$/m);
    assert.doesNotMatch(text, /^(id|retry|event):/m);
    assert.equal((await busy).status, 200);
  });
});

test('100: SIGTERM lets streams finish', async () => {
  const server = await startServer();
  const body = JSON.stringify(long(server, { max_tokens: 400, stream: true }));
  const response = await fetch(`${server.url}/v1/completions`, {
    method: 'POST', headers: { 'content-type': 'application/json' }, body,
  });
  const reader = response.body.getReader();
  let text = new TextDecoder().decode((await reader.read()).value);
  server.child.kill('SIGTERM');
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += new TextDecoder().decode(value);
  }
  assert.match(text, /"finish_reason":"length"/);
  assert.match(text, /data: \[DONE\]\n\n$/);
  assert.deepEqual(await server.exited, { code: 0, signal: null });
});

test('100: past the drain time streams end with an error event', async () => {
  const server = await startServer({ 'http.drain_ms': 100 });
  const pending = readStream(server, '/v1/completions', long(server, { max_tokens: 60_000 }));
  while ((await metrics(server)).sum('vllm:num_requests_running') === 0) { /* until it runs */ }
  server.child.kill('SIGTERM');
  const stream = await pending;
  assert.equal(stream.events.at(-1), '[DONE]');
  assert.equal(stream.events.at(-2).error.code, 'server_draining');
  await server.exited;
});

test('101: a second SIGTERM ends at once', async () => {
  const server = await startServer();
  const socket = net.connect(server.port, server.host);
  const body = JSON.stringify(long(server, { max_tokens: 60_000, stream: true }));
  socket.on('error', () => {});
  socket.write('POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n' +
    `Content-Length: ${body.length}\r\n\r\n${body}`);
  while ((await metrics(server)).sum('vllm:num_requests_running') === 0) { /* until it runs */ }
  server.child.kill('SIGTERM');
  await new Promise((resolve) => setTimeout(resolve, 200));
  const second = Date.now();
  server.child.kill('SIGTERM');
  const { code, signal } = await server.exited;
  assert.ok(code !== 0 || signal !== null);
  assert.ok(Date.now() - second < 2000);
  socket.destroy();
});
