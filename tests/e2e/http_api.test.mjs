// The HTTP API below the client: shapes, errors, limits, framing. Numbers in names are those of the
// conformance list that the project follows.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import { startServer, call, readStream, raw, metrics, expectIdle } from './server.mjs';

let server;
let model;
before(async () => {
  server = await startServer({ 'model.aliases': ['org/alias'], 'http.header_timeout_ms': 500 });
  model = server.model;
});
after(() => server.stop());

const chat = (more = {}) => ({
  model, messages: [{ role: 'user', content: 'Hello.' }], max_tokens: 8, temperature: 0, ...more,
});
const completion = (more = {}) => ({ model, prompt: 'Hello', max_tokens: 8, temperature: 0, ...more });

function expectError(reply, status, code, param) {
  assert.equal(reply.status, status, reply.text);
  assert.match(reply.headers.get('content-type'), /^application\/json/);
  assert.ok(reply.headers.get('x-request-id'));
  assert.deepEqual(Object.keys(reply.json.error).sort(), ['code', 'message', 'param', 'type']);
  assert.ok(reply.json.error.message.length > 0);
  assert.equal(reply.json.error.code, code);
  if (param !== undefined) assert.equal(reply.json.error.param, param);
}
async function expectChat(more, code, param) {
  expectError(await call(server, '/v1/chat/completions', chat(more)), 400, code, param);
}

test('1-3: bodies that are no JSON object', async () => {
  for (const body of ['{', '[]', '"x"', '123', 'null', new Uint8Array([0x22, 0xff, 0x22])]) {
    expectError(await call(server, '/v1/chat/completions', body), 400, null);
  }
});

test('4-7: messages', async () => {
  expectError(await call(server, '/v1/chat/completions', { model }), 400,
    'missing_required_parameter', 'messages');
  for (const messages of ['x', [], [123], [{}]]) {
    const reply = await call(server, '/v1/chat/completions', chat({ messages }));
    assert.equal(reply.status, 400);
  }
  await expectChat({ messages: [{ role: 123, content: 'x' }] }, 'invalid_type', 'messages[0].role');
  await expectChat({ messages: [{ role: 'robot', content: 'x' }] }, 'invalid_value');
  await expectChat({ messages: [{ role: 'user', content: 1 }] }, 'invalid_type',
    'messages[0].content');
});

test('8-11: model, routes, verbs, content type', async () => {
  expectError(await call(server, '/v1/chat/completions', chat({ model: 'x' })), 404,
    'model_not_found', 'model');
  expectError(await call(server, '/v1/nope'), 404, 'unknown_url');
  const put = await fetch(`${server.url}/v1/chat/completions`, { method: 'PUT' });
  assert.equal(put.status, 405);
  assert.equal(put.headers.get('allow'), 'POST, OPTIONS');
  expectError(await call(server, '/v1/chat/completions', JSON.stringify(chat()),
    { 'content-type': 'text/plain' }), 415, 'unsupported_media_type');
});

test('12-14: body limit, depth, unknown fields', async () => {
  const big = await raw(server, 'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n' +
    `Content-Length: ${5 << 20}\r\n\r\n`);
  assert.match(big.text, /^HTTP\/1.1 413 /);
  assert.match(big.text, /request_too_large/);
  const deep = `{"model":"${model}","messages":${'['.repeat(200)}${']'.repeat(200)}}`;
  expectError(await call(server, '/v1/chat/completions', deep), 400, null);
  const bomb = '{"a":' + '['.repeat(1_000_000);
  expectError(await call(server, '/v1/chat/completions', bomb), 400, null);
  assert.equal((await call(server, '/v1/chat/completions', chat({ foo: 1 }))).status, 200);
});

test('17-21: models, probes, version, load', async () => {
  const list = (await call(server, '/v1/models')).json;
  assert.equal(list.object, 'list');
  assert.deepEqual(list.data.map((card) => card.id), [model, 'org/alias']);
  for (const name of ['org/alias', 'org%2Falias']) {
    assert.equal((await call(server, `/v1/models/${name}`)).json.id, 'org/alias');
  }
  assert.equal((await call(server, '/v1/chat/completions', chat({ model: 'org/alias' }))).json.model,
    'org/alias');
  for (const path of ['/health', '/livez', '/ready', '/readyz']) {
    assert.equal((await call(server, path)).status, 200);
  }
  assert.ok((await call(server, '/version')).json.version);
  assert.equal((await call(server, '/v1/loads')).json.loads.length, 1);
});

test('22-26: completions and their prompts', async () => {
  const one = (await call(server, '/v1/completions', completion())).json;
  assert.equal(one.object, 'text_completion');
  assert.ok(one.usage.completion_tokens <= 8);
  assert.equal(one.usage.prompt_tokens_details.cached_tokens >= 0, true);
  const ids = (await call(server, '/tokenize', { prompt: 'Hello' })).json.tokens;
  const byId = (await call(server, '/v1/completions', completion({ prompt: ids }))).json;
  assert.equal(byId.choices[0].text, one.choices[0].text);
  const many = (await call(server, '/v1/completions', completion({ prompt: [ids, ids] }))).json;
  assert.equal(many.choices.length, 2);
  for (const prompt of ['', [], [-1], [1e9], [[]], 7, {}]) {
    const reply = await call(server, '/v1/completions', completion({ prompt }));
    assert.equal(reply.status, 400, JSON.stringify(prompt));
  }
});

test('27-30: echo, n, best_of, suffix', async () => {
  const echo = (await call(server, '/v1/completions', completion({ echo: true, max_tokens: 0 }))).json;
  assert.equal(echo.choices[0].text, 'Hello');
  assert.equal(echo.usage.completion_tokens, 0);
  const both = (await call(server, '/v1/completions', completion({ echo: true, logprobs: 2 }))).json;
  const { tokens, token_logprobs, top_logprobs, text_offset } = both.choices[0].logprobs;
  assert.equal(token_logprobs[0], null);
  for (const list of [token_logprobs, top_logprobs, text_offset]) {
    assert.equal(list.length, tokens.length);
  }
  expectError(await call(server, '/v1/completions', completion({ n: 2, best_of: 1 })), 400,
    'invalid_value', 'best_of');
  expectError(await call(server, '/v1/completions', completion({ suffix: 'x' })), 400,
    'unsupported_parameter', 'suffix');
});

test('36-38: token limits', async () => {
  const few = await call(server, '/v1/chat/completions',
    chat({ max_completion_tokens: 3, max_tokens: 50, ignore_eos: true }));
  assert.equal(few.json.usage.completion_tokens, 3);
  assert.equal(few.json.choices[0].finish_reason, 'length');
  await expectChat({ max_tokens: 0 }, 'invalid_value', 'max_tokens');
  const { max_model_len } = (await call(server, '/tokenize', { prompt: 'x' })).json;
  const long = await call(server, '/v1/completions',
    completion({ prompt: new Array(max_model_len).fill(5) }));
  expectError(long, 400, 'context_length_exceeded', 'prompt');
});

test('40, 43, 44, 51: seeds and greedy', async () => {
  const texts = async (more) => (await call(server, '/v1/chat/completions', chat(more))).json.choices
    .map((choice) => choice.message.content);
  const sampled = { temperature: 1, n: 3, seed: 7, max_tokens: 12, ignore_eos: true };
  const first = await texts(sampled);
  assert.deepEqual(await texts(sampled), first);
  assert.ok(new Set(first).size > 1);
  assert.deepEqual(await texts({ temperature: 1, top_k: 1 }), await texts({ temperature: 0 }));
});

test('45-46: sampling bounds', async () => {
  const bad = {
    temperature: [-0.1, 2.1, 'hot'], top_p: [0, 1.1], min_p: [1.5], top_k: [-2],
    presence_penalty: [2.5], frequency_penalty: [-2.5], repetition_penalty: [0], n: [0, 9, 2 ** 31],
    logit_bias: [{ x: 1 }, { 99999999: 1 }, { 1: 101 }, [1]], stop: ['', ['']],
    top_logprobs: [1, 21], seed: [1.5], stream_options: [{ include_usage: true }],
  };
  for (const [name, values] of Object.entries(bad)) {
    for (const value of values) {
      const reply = await call(server, '/v1/chat/completions', chat({ [name]: value }));
      assert.equal(reply.status, 400, `${name}=${JSON.stringify(value)}`);
      assert.ok(reply.json.error.param.startsWith(name), reply.text);
    }
  }
  await call(server, '/v1/chat/completions', '{"model":"x","temperature":NaN}')
    .then((reply) => assert.equal(reply.status, 400));
});

test('47-50: logit bias and stops', async () => {
  const ids = (await call(server, '/tokenize', { prompt: 'a', add_special_tokens: false })).json.tokens;
  const forced = (await call(server, '/v1/completions',
    completion({ logit_bias: { [ids[0]]: 100 }, max_tokens: 3, ignore_eos: true }))).json;
  assert.equal(forced.choices[0].text, 'aaa');
  const whole = (await call(server, '/v1/completions',
    completion({ max_tokens: 16, ignore_eos: true }))).json.choices[0].text;
  const stop = whole.slice(3, 6);
  for (const more of [{ stop }, { stop: ['never-there', stop] }]) {
    const cut = await call(server, '/v1/completions',
      completion({ max_tokens: 16, ignore_eos: true, ...more }));
    assert.equal(cut.json.choices[0].text, whole.slice(0, whole.indexOf(stop)));
    assert.equal(cut.json.choices[0].finish_reason, 'stop');
    const streamed = await readStream(server, '/v1/completions',
      completion({ max_tokens: 16, ignore_eos: true, ...more }));
    const text = streamed.events.slice(0, -1).map((event) => event.choices[0].text).join('');
    assert.equal(text, whole.slice(0, whole.indexOf(stop)));
  }
  const kept = await call(server, '/v1/completions',
    completion({ max_tokens: 16, ignore_eos: true, stop, include_stop_str_in_output: true }));
  assert.ok(kept.json.choices[0].text.endsWith(stop));
  await expectIdle(server, assert);
});

test('58-66: streams', async () => {
  for (const include_usage of [true, false]) {
    const stream = await readStream(server, '/v1/chat/completions',
      chat({ n: 2, max_tokens: 30, stream_options: { include_usage } }));
    assert.match(stream.headers.get('content-type'), /^text\/event-stream/);
    assert.equal(stream.headers.get('cache-control'), 'no-cache');
    assert.equal(stream.headers.get('x-accel-buffering'), 'no');
    assert.deepEqual(stream.others, []);
    assert.equal(stream.events.at(-1), '[DONE]');
    const chunks = stream.events.slice(0, -1);
    assert.equal(new Set(chunks.map((c) => `${c.id} ${c.created} ${c.model} ${c.object}`)).size, 1);
    const usage = chunks.filter((chunk) => chunk.choices.length === 0);
    assert.equal(usage.length, include_usage ? 1 : 0);
    if (include_usage) {
      assert.equal(chunks.at(-1), usage[0]);
      assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
    }
    assert.deepEqual(chunks.slice(0, 2).map((c) => [c.choices[0].index, c.choices[0].delta.role]),
      [[0, 'assistant'], [1, 'assistant']]);
    for (const index of [0, 1]) {
      const mine = chunks.filter((c) => c.choices[0]?.index === index).map((c) => c.choices[0]);
      assert.equal(mine.filter((choice) => choice.delta.role).length, 1);
      assert.deepEqual(mine.map((c) => c.finish_reason !== null).indexOf(true), mine.length - 1);
    }
    assert.ok(chunks.every((chunk) => !('error' in chunk)));
  }
});

test('33, 71, 73, 79: what is not supported fails closed', async () => {
  await expectChat({ messages: [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }] },
    'unsupported_parameter', 'messages[0].content[0]');
  await expectChat({ response_format: { type: 'json_object' } }, 'unsupported_parameter');
  await expectChat({ response_format: { type: 'xml' } }, 'invalid_value');
  await expectChat({ tool_choice: 'required' }, 'unsupported_parameter');
  for (const more of [{ tools: [] }, { tools: null }, { tool_choice: 'none' },
    { response_format: { type: 'text' } }]) {
    assert.equal((await call(server, '/v1/chat/completions', chat(more))).status, 200);
  }
});

test('88-90: tokenize, detokenize, cache and its salt', async () => {
  const text = 'Grüße, 世界 🙂\n  x';
  const { tokens, count } = (await call(server, '/tokenize', { prompt: text })).json;
  assert.equal(tokens.length, count);
  assert.equal((await call(server, '/detokenize', { tokens })).json.prompt, text);
  const { messages } = chat();
  const asked = (await call(server, '/tokenize', { messages })).json.count;
  const used = (await call(server, '/v1/chat/completions', chat())).json.usage.prompt_tokens;
  assert.equal(asked, used);
  expectError(await call(server, '/detokenize', { tokens: [1e9] }), 422, 'unprocessable_entity',
    'tokens[0]');
  const prompt = `${Math.random()} ` + 'many words that fill some pages '.repeat(60);
  const ask = async (more) => (await call(server, '/v1/completions',
    completion({ prompt, ...more }))).json;
  const first = await ask({});
  const second = await ask({});
  const salted = await ask({ cache_salt: 'other' });
  assert.equal(first.usage.prompt_tokens_details.cached_tokens, 0);
  assert.ok(second.usage.prompt_tokens_details.cached_tokens > 0);
  assert.equal(salted.usage.prompt_tokens_details.cached_tokens, 0);
  assert.equal(first.choices[0].text, second.choices[0].text);
});

test('99: request ids', async () => {
  assert.equal((await call(server, '/health', undefined, { 'x-request-id': 'abc' }))
    .headers.get('x-request-id'), 'abc');
  const long = await call(server, '/health', undefined, { 'x-request-id': 'a'.repeat(5000) });
  assert.match(long.headers.get('x-request-id'), /^req_[0-9a-f]{24}$/);
});

test('111-113: metrics', async () => {
  const before = await metrics(server);
  const reply = (await call(server, '/v1/chat/completions', chat())).json;
  const after = await metrics(server);
  for (const name of ['vllm:num_requests_running', 'vllm:num_requests_waiting',
    'vllm:kv_cache_usage_perc', 'vllm:cache_config_info', 'vllm:prompt_tokens_total',
    'vllm:generation_tokens_total', 'vllm:request_success_total', 'vllm:num_preemptions_total',
    'vllm:prefix_cache_queries_total', 'vllm:prefix_cache_hits_total',
    'vllm:time_to_first_token_seconds_count', 'vllm:inter_token_latency_seconds_count',
    'vllm:request_time_per_output_token_seconds_count', 'vllm:e2e_request_latency_seconds_count',
    'vllm:request_queue_time_seconds_count', 'vllm:request_prefill_time_seconds_count',
    'vllm:request_decode_time_seconds_count', 'vllm:request_inference_time_seconds_count',
    'vllm:request_prompt_tokens_count', 'vllm:request_generation_tokens_count', 'lacuna_kv_pages',
    'lacuna_plan_seconds_count', 'lacuna_http_requests_total']) {
    assert.ok(before.has(name), name);
  }
  const grown = (name) => after.sum(name) - before.sum(name);
  assert.equal(grown('vllm:request_success_total'), 1);
  assert.equal(grown('vllm:generation_tokens_total') >= reply.usage.completion_tokens, true);
  assert.equal(grown('vllm:e2e_request_latency_seconds_count'), 1);
  assert.ok(!after.text.includes('abc'));
});

test('malformed HTTP gets one answer and a closed connection', async () => {
  const post = (fields, body = '') => `POST /tokenize HTTP/1.1\r\nHost: localhost\r\n${fields}\r\n${body}`;
  const second = 'GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n';
  for (const bytes of [
    'x'.repeat(64 << 10), Buffer.alloc(64 << 10, 0x81), Buffer.alloc(64 << 10), 'GET / HTTP/1.1\n\n',
    post('Content-Length: 4\r\nTransfer-Encoding: chunked\r\n', `0\r\n\r\n${second}`),
    post('Content-Length: 4\r\nContent-Length: 5\r\n', `{}${second}`),
    post('Content-Length: +2\r\n', `{}${second}`),
    post('Transfer-Encoding: chunked, identity\r\n', `0\r\n\r\n${second}`),
    post('Transfer-Encoding : chunked\r\n', `0\r\n\r\n${second}`),
    post('Transfer-Encoding: chunked\r\n', `-1\r\n\r\n${second}`),
    post('Transfer-Encoding: chunked\r\n', `ffffffffffffffffff\r\n{}\r\n${second}`),
    post('Transfer_Encoding: chunked\r\n', second), post(' folded: x\r\n', second),
    `${post('').slice(0, -2)}X: \u0001\r\n\r\n${second}`, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
  ]) {
    const reply = await raw(server, bytes);
    assert.match(reply.text, /^HTTP\/1.1 4(00|14|31) /, JSON.stringify(String(bytes).slice(0, 120)));
    assert.equal(reply.text.match(/HTTP\/1\.1 \d/g).length, 1, reply.text);
    assert.ok(reply.closed);
  }
});

test('a slow header is answered 408', async () => {
  const reply = await raw(server, 'GET /health HTTP/1.1\r\nHost:');
  assert.match(reply.text, /^HTTP\/1.1 408 /);
  assert.match(reply.text, /request_timeout/);
});

test('69-70: clients that go away', async () => {
  const bytes = (stream) => {
    const body = JSON.stringify(chat({ max_tokens: 3000, ignore_eos: true, stream }));
    return 'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n' +
      `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`;
  };
  const before = (await metrics(server)).sum('vllm:request_success_total', 'abort');
  await Promise.all(Array.from({ length: 20 }, (_, i) =>
    raw(server, bytes(i % 2 === 0), { quiet_ms: 30 + 10 * i })
      .catch(() => {})));
  await expectIdle(server, assert);
  const gone = (await metrics(server)).sum('vllm:request_success_total', 'abort') - before;
  assert.ok(gone > 0);
  assert.equal((await call(server, '/v1/chat/completions', chat())).status, 200);
});
