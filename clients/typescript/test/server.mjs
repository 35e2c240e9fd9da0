// The real server on the tiny model that BESPOKE_TEST_MODEL names, and where Chromium is.
import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

// A debug build on a busy machine takes a while to start.
const START_MS = 120_000;

export const binary = process.env["BESPOKE_ENGINE_BIN"];
export const model = process.env["BESPOKE_TEST_MODEL"];
export const skip = binary && model ? false : "set BESPOKE_ENGINE_BIN and BESPOKE_TEST_MODEL";
export const chromium = [process.env["CHROMIUM"], "/usr/bin/chromium", "/usr/bin/chromium-browser"].find((path) => path && existsSync(path));
export const skipBrowser = skip || (chromium ? false : "no Chromium: `apt-get install chromium`, or set CHROMIUM");

export class Server {
  /** Starts a server and waits until it listens. */
  static async start(...flags) {
    const server = new Server();
    const deadline = Date.now() + START_MS;
    server.folder = mkdtempSync(join(tmpdir(), "bespoke-"));
    const [grpc, http] = ["grpc", "http"].map((name) => join(server.folder, name));
    const files = ["--port-file", grpc, "--http-port-file", http];
    server.child = spawn(
      binary,
      ["serve", "--model", model, "--listen", "127.0.0.1:0", "--http-address", "127.0.0.1:0", ...files, ...flags],
      { stdio: ["ignore", "inherit", "inherit"], env: { ...process.env, BESPOKE_LOG_FILTER: "warn" } },
    );
    while (!existsSync(grpc) || !existsSync(http)) {
      if (Date.now() > deadline || server.child.exitCode !== null) throw new Error("the server does not start");
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    server.grpc = `http://${readFileSync(grpc, "utf8")}`;
    server.http = `http://${readFileSync(http, "utf8")}`;
    return server;
  }

  async stop() {
    const ended = new Promise((resolve) => this.child.once("exit", resolve));
    this.child.kill("SIGKILL");
    await ended;
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Waits until `holds` returns something true. */
export async function until(holds, ms = 20_000) {
  for (const deadline = Date.now() + ms; ; ) {
    const result = await holds();
    if (result) return result;
    if (Date.now() > deadline) throw new Error(`it does not come true: ${holds}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}
