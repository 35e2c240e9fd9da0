"""Prints the speeds of the Python package mistralrs as JSON, by its own clocks. Arguments: GGUF file, tokens of prompt and answer.

One sequence: on a CPU the package mixes up the texts of sequences that are computed together.
"""

import json
import pathlib
import sys

from mistralrs import CompletionRequest, Runner, Which

path, num_prompt, num_generated = pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]), int(sys.argv[3])
which = Which.GGUF(quantized_model_id=str(path.parent), quantized_filename=path.name)
runner = Runner(which=which, max_seqs=1, prefix_cache_n=0)


def usage(num_words, max_tokens):
    request = CompletionRequest(
        prompt=" the" * num_words, model="default", max_tokens=max_tokens, temperature=0.0, ignore_eos=True
    )
    return runner.send_completion_request(request).usage


usage(16, 4)  # Warms up.
prefill, decode = usage(num_prompt, 1), usage(16, num_generated)
print(
    json.dumps(
        {
            "prompt_tokens": prefill.prompt_tokens,
            "prefill_tokens_per_s": prefill.avg_prompt_tok_per_sec,
            "generated_tokens": decode.completion_tokens,
            "decode_tokens_per_s": decode.avg_compl_tok_per_sec,
        }
    )
)
