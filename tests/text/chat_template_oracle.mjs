// Renders chat_templates/*.jinja on inputs.json with @huggingface/jinja and writes
// <template>.expected.json: {input: {"text": ...} or {"error": true}}.
// Usage: node chat_template_oracle.mjs <chat_templates folder> <output folder>
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { Template } from "@huggingface/jinja";

const [folder, output] = process.argv.slice(2);
// The library's strftime_now reads the clock; the tests pass 2024-07-26 to ours. Needs TZ=UTC.
const RealDate = Date;
globalThis.Date = class extends RealDate {
  constructor(...given) {
    super(...(given.length ? given : [1721952000000]));
  }
};
const inputs = JSON.parse(readFileSync(join(folder, "inputs.json"), "utf8"));
for (const file of readdirSync(folder).filter((name) => name.endsWith(".jinja"))) {
  const template = new Template(readFileSync(join(folder, file), "utf8"));
  const expected = {};
  for (const [name, variables] of Object.entries(inputs)) {
    try {
      expected[name] = { text: template.render(variables) };
    } catch {
      expected[name] = { error: true };
    }
  }
  const path = join(output, file.replace(".jinja", ".expected.json"));
  writeFileSync(path, JSON.stringify(expected, null, 1) + "\n");
}
