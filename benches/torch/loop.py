"""A plain training loop of PyTorch and PEFT on the rows of a run of bespoke-trainer, as `compare.py` calls it.

Prints a line of JSON: tokens per second over all sequence tokens (a pair's prompt counts for both answers), the first steps not counted,
and the peak memory in MiB. Tokens are random, lengths those of the run: speed depends on lengths alone. LoRA r 16 on q and v, AdamW, batch 1.
DPO goes without a reference, both answers in one padded batch.
"""

import argparse
import contextlib
import json
import resource
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method", choices=["sft", "dpo"])
    parser.add_argument("numbers", choices=["f32", "autocast", "bf16"], help="bf16: frozen weights too")
    parser.add_argument("--model", required=True, help="Hugging Face folder, such as `merged` of a run")
    parser.add_argument("--metrics", required=True, help="metrics.jsonl of the run, for the order of its steps")
    parser.add_argument("--rows", help="the run's rows, for the lengths of pairs (DPO)")
    parser.add_argument("--skip", type=int, default=3, help="first steps that are not counted")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def lengths(args):
    """Of each step: the tokens of a sequence, or of prompt, chosen and rejected answer."""
    records = [json.loads(line) for line in open(args.metrics)]
    totals = [record["num_tokens"] for record in records if record["kind"] == "train"]
    if args.method == "sft":
        return totals
    tokenizer = AutoTokenizer.from_pretrained(args.model)

    def count(text):
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    pairs = {}
    for row in map(json.loads, open(args.rows)):
        prompt = f"Prompt: {row['prompt']}\nPersona: {row['chosen_persona_gold']}\nResponse:"
        # The last tokens of a long prompt are kept; each answer ends with a token of its own.
        lens = (min(128, count(prompt)), count(" " + row["chosen"]) + 1, count(" " + row["rejected"]) + 1)
        pairs.setdefault(2 * lens[0] + lens[1] + lens[2], lens)
        if all(total in pairs for total in totals):
            break
    return [pairs[total] for total in totals]


def random_tokens(num):
    return torch.randint(10, 48000, (num,))


def sft_loss(model, length):
    tokens = random_tokens(length)[None]
    return model(input_ids=tokens, labels=tokens).loss, length


def dpo_loss(model, lens):
    prompt, *answers = lens
    tokens = torch.zeros(2, prompt + max(answers), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    tokens[:, :prompt] = random_tokens(prompt)
    for side, length in enumerate(answers):
        tokens[side, prompt : prompt + length] = random_tokens(length)
        mask[side, : prompt + length] = 1
    logits = model(input_ids=tokens, attention_mask=mask).logits[:, prompt - 1 : -1]
    logprobs = torch.log_softmax(logits.float(), -1).gather(2, tokens[:, prompt:, None])[..., 0]
    sums = (logprobs * mask[:, prompt:]).sum(1)
    return -torch.nn.functional.logsigmoid(0.1 * (sums[0] - sums[1])), 2 * prompt + sum(answers)


def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if args.numbers == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype, attn_implementation="sdpa")
    dropout = 0.05 if args.method == "sft" else 0.0
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    factors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for factor in factors:
        factor.data = factor.data.float()
    model.train()
    optimizer = torch.optim.AdamW(factors, lr=2e-5)
    loss_of = {"sft": sft_loss, "dpo": dpo_loss}[args.method]
    num_tokens, seconds = 0, 0.0
    for step, lens in enumerate(lengths(args)):
        start = time.perf_counter()
        in_bf16 = torch.autocast("cpu", dtype=torch.bfloat16) if args.numbers != "f32" else contextlib.nullcontext()
        with in_bf16:
            loss, num = loss_of(model, lens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= args.skip:
            num_tokens, seconds = num_tokens + num, seconds + time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"tokens_per_s": num_tokens / seconds, "peak_mib": peak}))


main()
