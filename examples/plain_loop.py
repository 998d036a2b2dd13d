"""A plain PyTorch loop: python examples/plain_loop.py [OPTIMIZER]"""

import sys

import torch
from data import collate, count_tokens, load_sequences, report, tiny_gpt2

import schedules
from hfoptim import GradientAccumulator, create_optimizer_v2

STEPS, MICRO_BATCHES, SEQUENCES = 60, 4, 8  # optimizer steps, micro-batches in a step, sequences in a micro-batch

model = tiny_gpt2()
loader = torch.utils.data.DataLoader(load_sequences(), SEQUENCES, shuffle=True, collate_fn=collate)
batches = iter(loader)

name = sys.argv[1] if len(sys.argv) > 1 else "lion"
optimizer = create_optimizer_v2(model, name, lr=2e-3, weight_decay=0.1)
schedule = schedules.get_scheduler("cosine", optimizer, num_warmup_steps=6, num_training_steps=STEPS)
accumulator = GradientAccumulator(model)

losses = []
for step in range(STEPS):
    total = 0.0
    for _ in range(MICRO_BATCHES):
        batch = next(batches)
        tokens = count_tokens(batch)  # sequences differ in length, so micro-batches count by their tokens
        loss = model(**batch).loss
        loss.backward()
        accumulator(weight=tokens)  # takes p.grad and clears it
        total += loss.item() * tokens.item()
    losses.append(total / accumulator.total_weight)

    params = accumulator.apply_to()  # p.grad is now the gradient of the mean over all tokens of the step
    torch.nn.utils.clip_grad_norm_(params, 1.0)
    optimizer.step()
    schedule.step()
    accumulator.reset()
    if step % 10 == 0:
        print(f"step {step:3d}  loss {losses[-1]:.3f}  lr {schedule.get_last_lr()[0]:.2e}")

report(optimizer, losses)
