/** One error for all that can go wrong with a call, with the server's details decoded. */
import { Code, ConnectError } from "@connectrpc/connect";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "./generated/google/rpc/error_details_pb.js";

/** The name of a gRPC status. */
export type ErrorCode = keyof typeof Code;

/** A field that the server refused. */
export interface Violation {
  /** Its path, such as `params.sampling.top_p`. */
  field: string;
  description: string;
}

/** A call that failed. */
export class BespokeError extends Error {
  override readonly name = "BespokeError";
  /** Such as `InvalidArgument`, `NotFound`, `ResourceExhausted`, `Unavailable`, `DeadlineExceeded`, `Canceled`. */
  readonly code: ErrorCode;
  /** Which fields are wrong, and why. */
  readonly violations: Violation[];
  /** When to try again. */
  readonly retryAfterMs: number | undefined;
  /** What the request names and the server does not know. */
  readonly resource: { type: string; name: string } | undefined;
  /** The server's word for what happened, such as `QUEUE_FULL`. */
  readonly reason: string | undefined;
  /** Where the request was when its deadline came: `queue`, `prefill` or `decode`. */
  readonly stage: string | undefined;

  /** Takes whatever a call has thrown. */
  constructor(cause: unknown) {
    const error = ConnectError.from(cause);
    super(error.rawMessage, { cause: error });
    this.code = Code[error.code] as ErrorCode;
    const [bad] = error.findDetails(BadRequestSchema);
    this.violations = (bad?.fieldViolations ?? []).map(({ field, description }) => ({ field, description }));
    const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
    this.retryAfterMs = delay && Number(delay.seconds) * 1000 + delay.nanos / 1e6;
    const [resource] = error.findDetails(ResourceInfoSchema);
    this.resource = resource && { type: resource.resourceType, name: resource.resourceName };
    const [info] = error.findDetails(ErrorInfoSchema);
    this.reason = info?.reason;
    this.stage = info?.metadata["stage"];
  }
}
