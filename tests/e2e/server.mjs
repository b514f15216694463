// Starts `lacuna serve` for a test file and speaks to it below the level of any HTTP client.
import { spawn } from 'node:child_process';
import net from 'node:net';
import { once } from 'node:events';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..');
export const binary = process.env.LACUNA_BIN ?? path.join(root, 'build/release/lacuna');

// `sets`: {"http.ping_ms": 50, "http.cors_origins": ["a", "b"], ...}
export async function startServer(sets = {}, args = []) {
  const overrides = Object.entries(sets).flatMap(([key, value]) =>
    ['--set', `${key}=${value}`]);
  const child = spawn(binary, ['serve', '--port', '0', '--grpc-port', '0', ...overrides, ...args],
    { stdio: ['ignore', 'pipe', 'pipe'] });
  let out = '';
  let log = '';
  child.stderr.on('data', (data) => { log += data; });
  const exited = once(child, 'exit').then(([code, signal]) => ({ code, signal }));
  const ready = new Promise((resolve, reject) => {
    child.stdout.on('data', (data) => {
      out += data;
      const match = out.match(/^ready http:\/\/(\S+):(\d+)(?: grpc:\/\/(\S+))?$/m);
      if (match) resolve({ host: match[1], port: Number(match[2]), grpc: match[3] });
    });
    exited.then((end) => reject(new Error(`server ended with ${JSON.stringify(end)}: ${log}`)));
  });
  const { host, port, grpc } = await ready;
  const server = {
    child, host, port, grpc, exited,
    url: `http://${host}:${port}`,
    log: () => log,
    async stop() {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
      return exited;
    },
  };
  const models = await (await fetch(`${server.url}/v1/models`)).json();
  server.model = models.data?.[0]?.id;  // nothing when keys are set
  return server;
}

export async function call(server, pathname, body, headers = {}) {
  const response = await fetch(server.url + pathname, body === undefined ? { headers } : {
    method: 'POST',
    headers: { 'content-type': 'application/json', ...headers },
    body: typeof body === 'string' || body instanceof Uint8Array ? body : JSON.stringify(body),
  });
  const text = await response.text();
  let json = null;
  try { json = JSON.parse(text); } catch { /* not JSON */ }
  return { status: response.status, headers: response.headers, text, json };
}

// The data of every event of a stream, [DONE] as a string, comments in `comments`.
export async function readStream(server, pathname, body) {
  const { status, text, headers } = await call(server, pathname, { ...body, stream: true });
  const lines = text.split('\n').filter((line) => line !== '');
  return {
    status, headers, text,
    comments: lines.filter((line) => line.startsWith(':')),
    others: lines.filter((line) => !line.startsWith(':') && !line.startsWith('data: ')),
    events: lines.filter((line) => line.startsWith('data: ')).map((line) => line.slice(6))
      .map((data) => (data === '[DONE]' ? data : JSON.parse(data))),
  };
}

// Sends bytes as they are and gives all that comes back until the server closes, or `quiet_ms`
// without a byte.
export function raw(server, bytes, { quiet_ms = 3000 } = {}) {
  return new Promise((resolve) => {
    const socket = net.connect(server.port, server.host);
    let text = '';
    let closed = false;
    const done = () => { socket.destroy(); resolve({ text, closed }); };
    socket.setTimeout(quiet_ms, done);
    socket.on('data', (data) => { text += data.toString('latin1'); });
    socket.on('error', () => {});
    socket.on('close', () => { closed = true; done(); });
    socket.write(bytes);
  });
}

export async function metrics(server) {
  const text = (await call(server, '/metrics')).text;
  const values = new Map();
  for (const line of text.split('\n')) {
    const match = line.match(/^([^#\s{]+)(\{.*\})?\s+(\S+)$/);
    if (match) values.set(match[1] + (match[2] ?? ''), Number(match[3]));
  }
  return {
    text,
    // The sum over the series of a family whose labels hold all of `parts`.
    sum(name, ...parts) {
      let sum = 0;
      for (const [key, value] of values) {
        if ((key === name || key.startsWith(name + '{')) && parts.every((p) => key.includes(p))) {
          sum += value;
        }
      }
      return sum;
    },
    has: (name) => [...values.keys()].some((key) => key === name || key.startsWith(name + '{')),
  };
}

// Waits until nothing runs or waits, and checks that every page is accounted for.
export async function expectIdle(server, assert, limit_ms = 10_000) {
  const until = Date.now() + limit_ms;
  let m;
  do {
    m = await metrics(server);
    if (m.sum('vllm:num_requests_running') + m.sum('vllm:num_requests_waiting') === 0 &&
        m.sum('lacuna_kv_pages', 'state="used"') === 0) break;
    await new Promise((resolve) => setTimeout(resolve, 20));
  } while (Date.now() < until);
  assert.equal(m.sum('vllm:num_requests_running'), 0);
  assert.equal(m.sum('vllm:num_requests_waiting'), 0);
  const pages = (state) => m.sum('lacuna_kv_pages', `state="${state}"`);
  assert.equal(pages('used'), 0);
  assert.equal(pages('free') + pages('used') + pages('cached'), pages('total'));
}
