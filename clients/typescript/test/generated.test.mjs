// The committed code is what the .proto files give.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

const FOLDER = new URL("..", import.meta.url).pathname;

function files(folder) {
  const names = readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
    entry.isDirectory() ? Object.entries(files(join(folder, entry.name))).map(([name, text]) => [`${entry.name}/${name}`, text]) : [[entry.name, readFileSync(join(folder, entry.name), "utf8")]],
  );
  return Object.fromEntries(names);
}

test("regenerating gives what is committed", () => {
  const out = mkdtempSync(join(tmpdir(), "generated-"));
  try {
    const template = readFileSync(join(FOLDER, "buf.gen.yaml"), "utf8").replace("out: src/generated", `out: ${out}`);
    const path = `${FOLDER}/node_modules/.bin:${process.env["PATH"]}`;
    for (const args of [["../../proto", "--path", "../../proto/proto/bespoke"], ["proto"]]) {
      execFileSync("buf", ["generate", ...args, "--template", template], { cwd: FOLDER, env: { ...process.env, PATH: path } });
    }
    assert.deepEqual(files(out), files(join(FOLDER, "src/generated")), "run `npm run generate`");
  } finally {
    rmSync(out, { recursive: true, force: true });
  }
});
