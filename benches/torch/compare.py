"""Runs bespoke-trainer and `loop.py` in turn on the same rows and prints medians, least and most, and their ratios.

Needs a Python with torch, transformers and peft; run it from the folder that the recipes' rows are in:

    python compare.py --trainer target/release/bespoke-trainer --recipes trainer/recipes --model smollm2-135m-instruct --rounds 5
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

# Rows and the first steps that are not counted.
ROWS = {"sft": (23, 3), "dpo": (14, 2)}
ROWS_OF = "data/persona-tailoring/BeaverTails/{}_train.jsonl"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--recipes", required=True, help="folder of paper-beavertails-sft.toml and -dpo.toml")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="base, as the trainer takes it")
    parser.add_argument("--methods", nargs="+", default=["sft", "dpo"])
    parser.add_argument("--numbers", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def run(command):
    """Standard output, and the peak memory in MiB that GNU time reports."""
    done = subprocess.run(["/usr/bin/time", "-f", "%M", *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    return done.stdout, int(done.stderr.split()[-1]) // 1024


def ours(args, method, numbers, output):
    rows, skip = ROWS[method]
    recipe = pathlib.Path(args.recipes) / f"paper-beavertails-{method}.toml"
    settings = ["--epochs", 1, "--rows-max", rows, "--compute", numbers, "--set", "data.validation=", "--output", output]
    _, peak = run([args.trainer, method, "--config", recipe, "--model", args.model, *settings])
    records = [json.loads(line) for line in open(output / "metrics.jsonl")]
    steps = [record for record in records if record["kind"] == "train"][skip:]
    seconds = sum(step["num_tokens"] / step["tokens_per_s"] for step in steps)
    return sum(step["num_tokens"] for step in steps) / seconds, peak


def torchs(method, numbers, output):
    loop = pathlib.Path(__file__).with_name("loop.py")
    files = ["--model", output / "merged", "--metrics", output / "metrics.jsonl", "--rows", ROWS_OF.format(method)]
    out, _ = run([sys.executable, loop, method, numbers, *files, "--skip", ROWS[method][1]])
    result = json.loads(out.splitlines()[-1])
    return result["tokens_per_s"], result["peak_mib"]


def main():
    args = arguments()
    for method in args.methods:
        for numbers in args.numbers:
            found = {"ours": [], "torch": []}
            for _ in range(args.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    output = pathlib.Path(folder) / "run"
                    found["ours"].append(ours(args, method, numbers, output))
                    found["torch"].append(torchs(method, numbers, output))
            medians = {}
            for name, runs in found.items():
                speeds = [speed for speed, _ in runs]
                medians[name] = statistics.median(speeds)
                peak = max(peak for _, peak in runs)
                print(f"{method} {numbers} {name}: {medians[name]:.0f} ({min(speeds):.0f} to {max(speeds):.0f}) tokens/s, {peak} MiB")
            print(f"{method} {numbers} ratio: {medians['ours'] / medians['torch']:.2f}", flush=True)


main()
