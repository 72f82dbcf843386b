"""Run by ``test_distributed`` under torch.distributed.run: write the gradient of a step to a file.

Usage: gradients.py CONFIG OUT
"""

from __future__ import annotations

import sys

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from safetensors.torch import save_file

from visionllm.decoders.objects.phrases import Standardise
from visionllm.distributed import agree_on_idle, global_counts, leave_at_exit
from visionllm.engine import weigh
from visionllm.runs import build_model, load_config, make_loader, style_at


def main(path: str, out: str) -> None:
    torch.set_num_threads(1)
    config = load_config(path)
    leave_at_exit()
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    torch.manual_seed(0)
    model = build_model(config.model).train()
    for module in model.modules():
        if isinstance(module, Standardise):
            module.eval()  # running statistics are those of the first rank, as in batch normalisation
    wrapped = accelerator.prepare(model)
    loader = make_loader(config, accelerator.process_index, accelerator.num_processes)
    samples = loader.batch(0)
    batch = model.processor.encode(samples, [style_at(config.train, position) for position in loader.positions(0)])
    counts = global_counts(accelerator, model, [batch])
    losses = wrapped(batch, idle=agree_on_idle(accelerator, model, batch))
    accelerator.backward(weigh(losses, counts, {}, {}) * accelerator.num_processes)
    if accelerator.is_main_process:
        named = {n: torch.zeros(()) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
        save_file(named, out)
    accelerator.wait_for_everyone()
    del wrapped
    accelerator.free_memory()


if __name__ == "__main__":
    main(*sys.argv[1:])
