/** The client for browsers: gRPC-Web over fetch, to the engine's HTTP address. */
import type { Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";
import { BespokeClient } from "./client.js";

export * from "./index.js";

/** How a client connects. */
export interface WebOptions {
  /** The engine's HTTP address, such as `https://engine.example`. A page of another origin must be allowed there. */
  address: string;
  /** A bearer token. */
  token?: string;
}

/** Makes a client. */
export function createClient({ address, token }: WebOptions): BespokeClient {
  const bearer: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  return new BespokeClient(createGrpcWebTransport({ baseUrl: address, interceptors: token === undefined ? [] : [bearer] }));
}
