// The official OpenAI client against our server, unmodified.
import { test, before, after } from 'node:test';
import assert from 'node:assert/strict';
import OpenAI from 'openai';
import { startServer, expectIdle } from './server.mjs';

let server;
let client;
let model;
before(async () => {
  server = await startServer();
  model = server.model;
  // Node's own fetch: the one that the client brings fails on every chunked answer over a kept-alive
  // connection under Debian's Node 18 ("Premature close"), whichever server answers.
  const fetch = globalThis.fetch;
  client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'EMPTY', maxRetries: 0, fetch });
});
after(() => server.stop());

const messages = [{ role: 'user', content: 'Hello.' }];

test('models list and retrieve', async () => {
  const list = [];
  for await (const card of client.models.list()) list.push(card);
  assert.equal(list[0].object, 'model');
  assert.equal((await client.models.retrieve(model)).id, model);
  await assert.rejects(client.models.retrieve('no/such'), OpenAI.NotFoundError);
});

test('chat, whole and streamed, agree', async () => {
  const request = { model, messages, temperature: 0, max_tokens: 24 };
  const whole = await client.chat.completions.create(request);
  assert.match(whole.id, /^chatcmpl-/);
  assert.equal(whole.choices[0].message.role, 'assistant');
  assert.ok(['stop', 'length'].includes(whole.choices[0].finish_reason));
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
  const stream = await client.chat.completions.create(
    { ...request, stream: true, stream_options: { include_usage: true } });
  let text = '';
  let usage;
  const roles = [];
  const finishes = [];
  for await (const chunk of stream) {
    if (usage) assert.fail('the usage chunk must be the last');
    if (chunk.usage) { usage = chunk.usage; assert.deepEqual(chunk.choices, []); continue; }
    assert.equal(chunk.object, 'chat.completion.chunk');
    const [choice] = chunk.choices;
    if (choice.delta.role) roles.push(choice.delta.role);
    text += choice.delta.content ?? '';
    if (choice.finish_reason) finishes.push(choice.finish_reason);
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(roles, ['assistant']);
  assert.deepEqual(finishes, [whole.choices[0].finish_reason]);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);
});

test("the client's own stream helper accumulates", async () => {
  const runner = client.beta.chat.completions.stream(
    { model, messages, temperature: 0, max_tokens: 12, n: 2 });
  const final = await runner.finalChatCompletion();
  assert.equal(final.choices.length, 2);
  assert.equal(final.choices[0].message.content, final.choices[1].message.content);
});

test('completions with many prompts', async () => {
  const reply = await client.completions.create(
    { model, prompt: ['One', 'Two'], n: 2, max_tokens: 4, temperature: 0 });
  assert.deepEqual(reply.choices.map((choice) => choice.index), [0, 1, 2, 3]);
  assert.equal(reply.object, 'text_completion');
  assert.equal(reply.usage.completion_tokens <= 16, true);
});

test('logprobs are of raw distributions and cover the text', async () => {
  const reply = await client.chat.completions.create(
    { model, messages, temperature: 0, max_tokens: 6, logprobs: true, top_logprobs: 3 });
  const { content } = reply.choices[0].logprobs;
  assert.ok(content.length <= reply.usage.completion_tokens);
  for (const entry of content) {
    assert.ok(entry.logprob <= 0 && entry.logprob >= -9999);
    assert.equal(entry.top_logprobs.length, 3);
    const sorted = entry.top_logprobs.map((top) => top.logprob);
    assert.deepEqual(sorted, [...sorted].sort((a, b) => b - a));
    assert.equal(entry.top_logprobs[0].token, entry.token);  // temperature 0
  }
  const bytes = Buffer.concat(content.map((entry) => Buffer.from(entry.bytes)));
  assert.equal(bytes.toString('utf8'), reply.choices[0].message.content);
});

test('errors are the classes that the client knows', async () => {
  const create = (more) => client.chat.completions.create({ model, messages, ...more });
  await assert.rejects(create({ model: 'gpt-4' }), OpenAI.NotFoundError);
  await assert.rejects(create({ temperature: 9 }), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, 'temperature');
    assert.equal(error.code, 'invalid_value');
    assert.ok(error.request_id ?? error.headers);
    return true;
  });
  await assert.rejects(create({ tools: [{ type: 'function', function: { name: 'f' } }] }),
    (error) => error.code === 'unsupported_parameter' && error.param === 'tools');
});

test('an aborted stream leaves nothing behind', async () => {
  for (let i = 0; i < 5; ++i) {
    const stream = await client.chat.completions.create(
      { model, messages, max_tokens: 4000, ignore_eos: true, stream: true });
    let seen = 0;
    for await (const chunk of stream) {
      if (chunk && ++seen === 3) break;  // breaking aborts the request
    }
  }
  await expectIdle(server, assert);
});
