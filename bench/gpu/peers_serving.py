"""Hugging Face transformers' continuous batching on a shape with random bf16 weights.

Usage: peers_serving.py SHAPE.json [sequences] [prompt tokens] [new tokens]
Prints new tokens per second over the whole run, prefill included, as `bench offline --engine` does.
"""

import json
import sys
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

shape = sys.argv[1]
sequences, prompt, new = (int(value) for value in (sys.argv[2:] + [64, 2048, 64][len(sys.argv) - 2:]))
with open(shape) as file:
    fields = json.load(file)
config = AutoConfig.for_model(fields["model_type"])
for name, value in fields.items():
    if name not in ("architectures", "torch_dtype", "rope_scaling"):
        setattr(config, name, value)

model = None
for attention in ("paged|sdpa", "sdpa_paged", "paged_attention"):
    try:
        with torch.device("cuda"):
            torch.set_default_dtype(torch.bfloat16)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        break
    except (ValueError, ImportError, KeyError) as error:
        print(f"{attention}: {str(error)[:120]}")
model = model.eval()
generator = torch.Generator().manual_seed(1)
inputs = torch.randint(3, config.vocab_size, (sequences, prompt), generator=generator).tolist()
settings = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=-1, pad_token_id=0,
                            use_cache=True)
for attempt, count in (("warm-up", 4), ("measured", sequences)):
    torch.cuda.synchronize()
    start = time.time()
    outputs = model.generate_batch(inputs=inputs[:count], generation_config=settings)
    torch.cuda.synchronize()
    seconds = time.time() - start
    made = sum(len(output.generated_tokens) for output in outputs.values())
    print(f"transformers {attempt}: {count} x ({prompt} + {new}): {made} new tokens in "
          f"{seconds:.2f} s, {made / seconds:.1f} tokens/s", flush=True)
