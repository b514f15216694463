// Asks every question of recall.jsonl.gz over HTTP and compares with dense_reference.
//   node bench/quality/recall.mjs --url http://127.0.0.1:8000 [--concurrency 4] [--json FILE]
// A question is right when every answer string is in the text. Exit 1 when the total is more than
// 2 points below the reference, or a length more than 4.
import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { gunzipSync } from "node:zlib";

const { values: args } = parseArgs({
  options: {
    url: { type: "string", default: "http://127.0.0.1:8000" },
    concurrency: { type: "string", default: "4" },
    json: { type: "string" },
  },
});
const folder = dirname(fileURLToPath(import.meta.url));
const suite = gunzipSync(readFileSync(join(folder, "recall.jsonl.gz")))
  .toString("utf8").trim().split("\n").map((line) => JSON.parse(line));
const reference = JSON.parse(readFileSync(join(folder, "recall.dense-reference.json"), "utf8"));

async function ask(question) {
  const response = await fetch(`${args.url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({
      model: "recall-12m", messages: question.messages, temperature: 0, max_tokens: 64,
    }),
  });
  const body = await response.json();
  if (!response.ok) throw new Error(`${question.id}: ${JSON.stringify(body)}`);
  return body.choices[0].message.content;
}

const cells = new Map(); // "task@tokens" -> { right, count }
let same = 0;
let next = 0;
const begin = Date.now();
async function worker() {
  while (next < suite.length) {
    const question = suite[next++];
    const text = await ask(question);
    const right = question.answers.every((answer) => text.includes(answer));
    same += text.trim() === question.dense_reference.trim();
    const key = `${question.task}@${question.context_tokens}`;
    const cell = cells.get(key) ?? { right: 0, count: 0 };
    cell.right += right;
    cell.count += 1;
    cells.set(key, cell);
    process.stderr.write(`\r${next} of ${suite.length}, ${((Date.now() - begin) / 1000).toFixed(0)} s `);
  }
}
await Promise.all(Array.from({ length: Number(args.concurrency) }, worker));
const seconds = (Date.now() - begin) / 1000;
process.stderr.write("\n");

const percent = (part, whole) => (100 * part) / whole;
let failed = false;
function report(label, keys, slack) {
  let right = 0, expected = 0, count = 0;
  for (const key of keys) {
    right += cells.get(key).right;
    count += cells.get(key).count;
    expected += reference[key] * cells.get(key).count;
  }
  const worse = percent(expected - right, count);
  failed ||= worse > slack + 1e-9;
  console.log(`${label.padEnd(12)} ${right} of ${count} right (${percent(right, count).toFixed(1)} %), ` +
    `reference ${Math.round(expected)} (${percent(expected, count).toFixed(1)} %)`);
  return { label, right, count, reference: Math.round(expected) };
}
const keys = [...cells.keys()];
const lengths = [...new Set(suite.map((question) => question.context_tokens))].sort((a, b) => a - b);
const rows = lengths.map((tokens) => report(`${tokens} tokens`, keys.filter((key) => key.endsWith(`@${tokens}`)), 4));
rows.push(report("all", keys, 2));
console.log(`${same} of ${suite.length} texts equal the reference's, ${seconds.toFixed(1)} s in all`);
if (args.json) {
  writeFileSync(args.json, JSON.stringify({ seconds, same_text: same, rows, cells: Object.fromEntries(cells) }, null, 1) + "\n");
}
process.exit(failed ? 1 : 0);
