"""A loop with Accelerate, on one process or several:

accelerate launch --cpu examples/accelerate_loop.py [OPTIMIZER]
accelerate launch --multi_gpu --num_processes 2 examples/accelerate_loop.py [OPTIMIZER]      (also without GPUs)
"""

import itertools
import sys

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from data import collate, count_tokens, load_sequences, report, tiny_gpt2

import schedules
from hfoptim import GradientAccumulator, create_optimizer_v2

STEPS, MICRO_BATCHES, SEQUENCES = 40, 4, 8  # the last two are those of one process


def train(accelerator: Accelerator, name: str) -> None:
    set_seed(0)
    model = tiny_gpt2()
    loader = torch.utils.data.DataLoader(load_sequences(), SEQUENCES, shuffle=True, collate_fn=collate)
    optimizer = create_optimizer_v2(model, name, lr=2e-3, weight_decay=0.1)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    # Not prepared: Accelerate would step it once for each process.
    schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=4, num_training_steps=STEPS)
    accumulator = GradientAccumulator(model)

    batches = iter(loader)
    losses = []
    for step in range(STEPS):
        total = torch.zeros((), device=accelerator.device)
        for batch in itertools.islice(batches, MICRO_BATCHES):
            tokens = count_tokens(batch)
            with accumulator.no_sync():  # the processes are added up once, in apply_to, and by their tokens
                loss = model(**batch).loss
                accelerator.backward(loss)
            accumulator(weight=tokens)
            total += loss.detach() * tokens
        mean = accelerator.reduce(torch.stack([total, torch.as_tensor(accumulator.total_weight, device=total.device)]))
        losses.append((mean[0] / mean[1]).item())

        accelerator.clip_grad_norm_(accumulator.apply_to(), 1.0)
        optimizer.step()
        schedule.step()
        accumulator.reset()
        if step % 10 == 0:
            accelerator.print(f"step {step:3d}  loss {losses[-1]:.3f}  lr {schedule.get_last_lr()[0]:.2e}")

    if accelerator.is_main_process:
        print(f"{accelerator.num_processes} process(es)")
        report(optimizer, losses)


if __name__ == "__main__":
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    train(accelerator, sys.argv[1] if len(sys.argv) > 1 else "lion")
    accelerator.free_memory()
    accelerator.end_training()
