/** The client for Node: gRPC over HTTP/2, with TLS where the address says https. */
import type { Interceptor } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { BespokeClient } from "./client.js";

export * from "./index.js";

/** How a client connects. */
export interface NodeOptions {
  /** `http://host:port`, or `https://host:port` for TLS. Default: `http://127.0.0.1:50051`. */
  address?: string;
  /** A bearer token. Sent over TLS, or to this machine. */
  token?: string;
  /** PEM texts: the certificates to trust instead of the system's, and this client's own certificate with its key. */
  tls?: { rootCertificates?: string; certificate?: string; key?: string };
}

/** Makes a client; it connects with its first call. */
export function createClient({ address = "http://127.0.0.1:50051", token, tls }: NodeOptions = {}): BespokeClient {
  const { rootCertificates: ca, certificate: cert, key } = tls ?? {};
  const nodeOptions = Object.fromEntries(Object.entries({ ca, cert, key }).filter(([, value]) => value !== undefined));
  return new BespokeClient(
    createGrpcTransport({ baseUrl: address, nodeOptions, interceptors: token === undefined ? [] : [bearer(address, token)] }),
  );
}

function bearer(address: string, token: string): Interceptor {
  const { protocol, hostname } = new URL(address);
  if (protocol !== "https:" && !["127.0.0.1", "localhost", "[::1]"].includes(hostname)) {
    throw new TypeError("a token is only sent over TLS (https) or to this machine");
  }
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
}
