"""Learning rates and what goes with them, as their sources train with them: data, read from the sources named.

A source is a page that one can open. `GITHUB` addresses are the authors' own repositories, unless `of` says whose.
Values are those of the source; where it has several, `lr` is that of the largest or the main run, and `low` and `high`
are the least and the largest. What a source does not say is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from hfoptim.registry.recommendation import Recommendation, Same, finetune, lora, pretrain

_EPFL = "https://github.com/epfml/llm-optimizer-benchmark/tree/main/scripts"
_HANDBOOK = "https://github.com/huggingface/alignment-handbook/tree/main/recipes"
_CAUTIOUS = "https://arxiv.org/abs/2411.16085"
_APOLLO = "https://github.com/XuezheMax/apollo"
_CONDA = "https://github.com/jie040109/Conda/tree/main/examples"
_DADAPT = "https://github.com/facebookresearch/dadaptation"
_DION = "https://github.com/microsoft/dion/tree/main/configs"
_DOG = "https://github.com/formll/dog"
_EMO = "https://github.com/muooon/EmoNavi"
_FREE = "https://github.com/facebookresearch/schedule_free"
_GALORE = "https://github.com/jiaweizzhao/GaLore"
_LOMO = "https://github.com/OpenLMLab/LOMO"
_MARS = "https://github.com/AGI-Arena/MARS"
_PEFT = "https://huggingface.co/docs/peft/developer_guides/lora"
_PROJECTED = "https://github.com/zhuhanqing/APOLLO/tree/main/scripts"
_REGRET = "https://huggingface.co/docs/trl/lora_without_regret"
_SCION = "https://github.com/LIONS-EPFL/scion/tree/main/examples"
_SOPHIA = "https://github.com/Liuhong99/Sophia"
_TIMM = "https://github.com/huggingface/pytorch-image-models/blob/main/hfdocs/source/training_script.mdx"
_TORCH = "https://github.com/pytorch/examples"
_TRANSFORMERS = "https://huggingface.co/docs/transformers/main_classes/optimizer_schedules"
_UNSLOTH = "https://unsloth.ai/docs/get-started/fine-tuning-llms-guide/lora-hyperparameters-guide"

# Llama models of 124, 210 and 720 million parameters, and a mixture of experts, on FineWeb.
_LLAMAS = "Llamas of 124M to 720M on FineWeb (EPFL)"
_C4 = "Llamas of 60M to 1B on C4"
_GPT2 = "GPT-2 on OpenWebText"
_CIFAR = "CNNs on CIFAR"
_IMAGENET = "CNNs on ImageNet"
_COSINE = {"schedule": "cosine", "warmup": "2000 steps"}
_RMS = {"adjust_lr_fn": ("match_rms_adamw",)}
_ORIGINAL = {"adjust_lr_fn": (None, "original")}

SETTINGS: Mapping[str, tuple[Recommendation | Same, ...]] = {
    "accsgd": (pretrain(0.1, "https://github.com/rahulkidambi/AccSGD", _CIFAR),),
    "acprop": (
        pretrain(1e-3, "https://github.com/juntang-zhuang/ACProp-Optimizer", _CIFAR, betas=(0.9, 0.999)),
    ),
    "adabelief": (
        pretrain(5e-4, "https://github.com/juntang-zhuang/Adabelief-Optimizer", "a transformer", decay=1e-4,
                 betas=(0.9, 0.999), low=1e-4, high=1e-2),
        pretrain(1e-3, "https://github.com/juntang-zhuang/Adabelief-Optimizer", _IMAGENET, decay=1e-2,
                 betas=(0.9, 0.999)),
    ),
    "adabound": (pretrain(1e-3, "https://github.com/Luolc/AdaBound", _CIFAR),),
    "adadelta": (pretrain(1.0, f"{_TORCH}/blob/main/mnist/main.py", "a CNN on MNIST (PyTorch)", schedule="step"),),
    "adafactor": (
        finetune(1e-3, _TRANSFORMERS, "T5 (transformers)", options={"scale_parameter": (False,)}),
        pretrain(3e-3, f"{_CONDA}/llama/scripts", f"{_C4} (Conda's authors)", decay=0.0, schedule="cosine",
                 warmup="2000 steps", options={"scale_parameter": (False,)}),
    ),
    "adahessian": (pretrain(0.15, _APOLLO, f"{_IMAGENET} (Apollo's authors)", decay=1e-3, warmup="500 steps"),),
    "adai": (
        pretrain(1.0, "https://github.com/zeke-xie/adaptive-inertia-adai", "CNNs: ten times SGD's with momentum",
                 decay=5e-4, betas=(0.1, 0.99), low=0.1, high=1.0),
    ),
    "adalite": (pretrain(1e-4, "https://github.com/VatsaDev/adalite", "a GPT of 10M on Shakespeare", low=8e-5,
                         high=3e-4),),
    "adalomo": (
        finetune(5e-4, f"{_LOMO}/tree/main/adalomo", "Llama 7B on Alpaca", schedule="linear", warmup="3 %"),
    ),
    "adam": (
        finetune(2e-5, "https://github.com/google-research/bert", "BERT on GLUE and SQuAD", schedule="linear",
                 low=2e-5, high=3e-4),
        pretrain(1e-4, "https://github.com/google-research/bert", "BERT", schedule="linear"),
        pretrain(2e-4, f"{_TORCH}/blob/main/dcgan/main.py", "a GAN of images (PyTorch)", betas=(0.5, 0.999)),
        pretrain(5e-4, _APOLLO, "a transformer on WMT (Apollo's authors)", decay=1e-4, schedule="inverse_sqrt",
                 warmup="4000 steps"),
        lora(5e-5, _PEFT, "LoRA+: the factors A; B learn 16 times as fast (PEFT)", low=5e-5, high=8e-4),
    ),
    "adam_atan2": (pretrain(1e-4, "https://github.com/lucidrains/adam-atan2-pytorch", "the reference's example"),),
    "adam_mini": (Same("adamw", "https://github.com/zyushun/Adam-mini"),),
    "adam_weight_decay": (
        finetune(2e-5, "https://github.com/google-research/bert", "BERT on GLUE and SQuAD", schedule="linear",
                 low=2e-5, high=3e-4),
        pretrain(1e-4, "https://github.com/google-research/bert", "BERT", schedule="linear"),
    ),
    "adamod": (pretrain(1e-3, "https://github.com/lancopku/AdaMod", "the authors' example"),),
    "adamp": (
        pretrain(1e-3, "https://github.com/clovaai/AdamP", "the authors' example", decay=1e-2, betas=(0.9, 0.999)),
    ),
    "adams": (
        pretrain(1e-3, "https://github.com/zeke-xie/stable-weight-decay-regularization", _CIFAR, decay=5e-4,
                 betas=(0.9, 0.999)),
    ),
    "adamw": (
        finetune(2e-5, f"{_HANDBOOK}/zephyr-7b-beta/sft", "Zephyr 7B, SFT", schedule="cosine", warmup="10 %",
                 low=2e-5, high=3e-4),
        finetune(5e-7, f"{_HANDBOOK}/zephyr-7b-beta/dpo", "Zephyr 7B, DPO", schedule="cosine", warmup="10 %",
                 low=5e-7, high=1e-6),
        pretrain(1e-3, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.999), low=5e-4, high=1e-3, **_COSINE),
        pretrain(6e-4, f"{_MARS}/tree/main/config", _GPT2, decay=0.1, low=2e-4, high=6e-4, **_COSINE),
        lora(2e-4, "https://github.com/artidoro/qlora/tree/main/scripts", "Llamas up to 13B, QLoRA", decay=0.0,
             betas=(0.9, 0.999), schedule="constant", warmup="3 %", low=1e-4, high=2e-4),
        lora(2e-4, "https://github.com/microsoft/LoRA/tree/main/examples/NLG", "GPT-2 on E2E", decay=0.01,
             betas=(0.9, 0.999), schedule="linear", warmup="500 steps"),
        lora(5e-5, "https://github.com/nikhil-ghosh-berkeley/loraplus", "LoRA+: the factors A; B learn 20 times as "
             "fast (the authors' example)", decay=0.0, betas=(0.9, 0.999)),
        lora(5e-6, f"{_HANDBOOK}/zephyr-7b-beta/dpo", "Zephyr 7B, DPO, QLoRA", schedule="cosine", warmup="10 %"),
        lora(2e-4, _UNSLOTH, "language models, LoRA and QLoRA; 5e-6 for DPO and GRPO (Unsloth)", low=5e-6, high=2e-4),
        lora(2e-4, _REGRET, "Qwen 2.5 3B, SFT of all linear layers (TRL)"),
        lora(1e-5, _REGRET, "SmolLM3 3B, GRPO, ten times what all weights are trained with (TRL)", low=1e-5, high=5e-5),
        lora(1e-4, "https://huggingface.co/docs/diffusers/training/lora", "Stable Diffusion, text to image (diffusers)",
             schedule="cosine"),
    ),
    "adamw_hf": (Same("adamw", _TRANSFORMERS),),
    "adamw_schedule_free": (
        pretrain(1e-3, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.9999), schedule="constant",
                 warmup="2000 to 8000 steps"),
        finetune(5e-5, _FREE, "1 to 10 times what AdamW is given with a schedule", schedule="constant", low=2e-5,
                 high=2e-4),
    ),
    "adamw_sn": (
        pretrain(5e-2, "https://github.com/timmytonga/sn-sm", "a Llama of 60M on C4; ten times AdamW's", decay=0.0,
                 schedule="cosine", warmup="1000 steps", low=1e-3, high=5e-2),
    ),
    "adan": (
        pretrain(1.5e-2, "https://github.com/sail-sg/Adan/blob/main/CV/timm/supervised.md", "ViT on ImageNet",
                 decay=0.02, betas=(0.98, 0.92, 0.99), schedule="cosine", warmup="60 epochs"),
    ),
    "ademamix": (pretrain(1e-3, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.999, 0.999), **_COSINE),),
    "adopt": (pretrain(1e-3, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.999), **_COSINE),),
    "adoptw": (Same("adopt", "https://github.com/iShohei220/adopt"),),
    "aida": (
        pretrain(1e-3, "https://github.com/guoqiang-zhang-x/Aida-Optimizer", _CIFAR, betas=(0.9, 0.999)),
    ),
    "alig": (pretrain(0.1, "https://github.com/oval-group/ali-g", "the authors' example"),),
    "amos": (
        pretrain(0.01, "https://github.com/google-research/jestimator", "an LSTM on PTB; else 1 / sqrt(batches)"),
    ),
    "apollo": (
        pretrain(0.01, _APOLLO, _IMAGENET, decay=1e-4, warmup="500 steps", low=0.01, high=0.1),
        pretrain(0.1, _APOLLO, "a transformer on WMT", decay=1e-8, schedule="step", warmup="1000 steps"),
    ),
    "apollo_adamw": (
        pretrain(0.01, f"{_PROJECTED}/pretrain_c4", f"{_C4}, and 13B", decay=0.0, schedule="cosine",
                 warmup="2000 to 10000 steps"),
        finetune(1e-5, f"{_PROJECTED}/llama-factory-finetune", "Llama 3 8B, SFT", schedule="cosine", warmup="10 %"),
    ),
    "apollo_mini": (
        pretrain(0.01, f"{_PROJECTED}/pretrain_c4", f"{_C4}, and 13B", decay=0.0, schedule="cosine",
                 warmup="2000 steps"),
    ),
    "bcos": (pretrain(1e-3, "https://github.com/facebookresearch/bcos", "the authors' example", decay=0.1),),
    "cadamw": (Same("adamw", _CAUTIOUS),),
    "came": (
        pretrain(2e-4, "https://github.com/yangluo7/CAME", "BERT, GPT-2 and T5: 0.5 to 0.9 times AdamW's", decay=0.01,
                 betas=(0.9, 0.999, 0.9999)),
    ),
    "clion": (Same("lion", _CAUTIOUS),),
    "conda": (
        pretrain(0.01, f"{_CONDA}/llama/scripts", _C4, decay=0.0, betas=(0.9, 0.99), schedule="cosine",
                 warmup="2000 to 10000 steps"),
        pretrain(6e-3, f"{_CONDA}/gpt2/config", _GPT2, decay=0.01, low=3e-3, high=6e-3, **_COSINE),
    ),
    "dadapt_adagrad": (pretrain(1.0, _DADAPT, "everything: it finds its own"),),
    "dadapt_adam": (pretrain(1.0, _DADAPT, "everything: it finds its own"),),
    "dadapt_adamw": (pretrain(1.0, _DADAPT, "everything: it finds its own"),),
    "dadapt_adan": (pretrain(1.0, _DADAPT, "everything: it finds its own"),),
    "dadapt_lion": (pretrain(1.0, _DADAPT, "everything: it finds its own"),),
    "dadapt_sgd": (pretrain(1.0, _DADAPT, "everything: it finds its own"),),
    "diffgrad": (pretrain(1e-3, "https://github.com/shivram1987/diffGrad", "the authors' example", decay=0.0),),
    "dion": (pretrain(0.02, _DION, "a GPT of 160M on FineWeb", decay=0.01),),
    "dion2": (pretrain(0.02, _DION, "a GPT of 160M on FineWeb", decay=0.01),),
    "distributed_shampoo": (
        pretrain(1e-3, "https://github.com/facebookresearch/optimizers", "the authors' example", betas=(0.9, 0.999)),
    ),
    "dog": (
        finetune(1.0, _DOG, "everything: it finds its own", schedule="constant"),
        pretrain(1.0, _DOG, "everything: it finds its own", schedule="constant"),
    ),
    "emofact": (finetune(1e-4, _EMO, "the author's recommendation"),),
    "emolynx": (finetune(8e-5, _EMO, "the author's recommendation"),),
    "emonavi": (finetune(6e-5, _EMO, "the author's recommendation"),),
    "exadam": (
        pretrain(3e-4, "https://github.com/AhmedMostafa16/EXAdam", "language", decay=1e-5, betas=(0.9, 0.999)),
        pretrain(1e-3, "https://github.com/AhmedMostafa16/EXAdam", "vision", decay=1e-4, betas=(0.9, 0.999)),
    ),
    "fira": (
        pretrain(0.01, "https://github.com/xichen-fy/Fira", _C4, decay=0.0, schedule="cosine",
                 warmup="1000 to 10000 steps", low=1e-5, high=1e-2),
        finetune(1e-4, "https://github.com/xichen-fy/Fira/tree/main/fine_tuning", "Llama 7B on commonsense tasks",
                 low=1e-5, high=1e-2),
    ),
    "flashadamw": (Same("adamw", "https://github.com/databricks/flashoptim"),),
    "focus": (
        pretrain(1e-4, "https://github.com/liuyz0/FOCUS/tree/main/GPT2", _GPT2, decay=0.2, betas=(0.9, 0.99),
                 **_COSINE),
    ),
    "galore_adamw": (
        pretrain(0.01, _GALORE, f"{_C4}, and 7B", decay=0.0, schedule="cosine", warmup="10 %", low=5e-3, high=0.01),
        finetune(3e-5, _GALORE, "RoBERTa on GLUE"),
        finetune(1e-5, f"{_PROJECTED}/llama-factory-finetune", "Llama 3 8B, SFT (APOLLO's authors)",
                 schedule="cosine", warmup="10 %"),
    ),
    "galore_adamw_8bit": (
        pretrain(5e-3, _GALORE, "a Llama of 7B on C4", decay=0.0, schedule="cosine", warmup="10 %"),
    ),
    "grams": (pretrain(1e-3, "https://github.com/Gunale0926/Grams", "the authors' example", decay=0.0),),
    "gravity": (pretrain(0.1, "https://github.com/dariush-bahrami/gravity.optimizer", "the authors' example"),),
    "grokadamw": (pretrain(1e-3, "https://github.com/cognitivecomputations/grokadamw", "the authors' example"),),
    "kourkoutas": (
        pretrain(1e-3, "https://github.com/sck-at-ucy/kbeta", "a transformer on enwik8", decay=0.0, schedule="step"),
    ),
    "kron": (
        pretrain(2.5e-4, "https://github.com/lixilinx/psgd_torch/blob/master/misc/gpt2.py",
                 "a small GPT: a quarter of AdamW's", decay=0.01),
    ),
    "ldog": (
        finetune(1.0, _DOG, "everything: it finds its own", schedule="constant"),
        pretrain(1.0, _DOG, "everything: it finds its own", schedule="constant"),
    ),
    "lion": (
        pretrain(2e-4, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.99), low=2e-4, high=1e-3, **_COSINE),
        pretrain(1e-4, "https://github.com/google/automl/tree/master/lion", "7.5B language models, and ViT",
                 decay=0.01, betas=(0.95, 0.98), low=3e-5, high=1e-4),
        finetune(6e-6, "https://github.com/google/automl/tree/master/lion", "a third of AdamW's 2e-5; 3 to 10 times "
                 "its weight decay", low=2e-6, high=1e-4),
        lora(6e-5, "https://github.com/google/automl/tree/master/lion", "a third of AdamW's 2e-4; 3 to 10 times its "
             "weight decay", low=1e-5, high=1e-4),
    ),
    "lomo": (
        finetune(0.03, f"{_LOMO}/blob/main/lomo/config/args_lomo.yaml", "Llamas of 7B to 65B", decay=0.0,
                 schedule="linear", warmup="10 %"),
    ),
    "lora_fa": (
        lora(7e-5, _PEFT, "Llama 3 8B (PEFT)", schedule="cosine", warmup="100 steps"),
    ),
    "madgrad": (
        pretrain(1e-3, "https://github.com/facebookresearch/madgrad", _IMAGENET, low=2.5e-4, high=0.025),
        pretrain(5e-3, "https://github.com/facebookresearch/madgrad", "RoBERTa", low=2.5e-4, high=0.025),
    ),
    "mars": (
        pretrain(3e-3, _EPFL, _LLAMAS, decay=0.1, **_COSINE),
        pretrain(6e-3, _MARS, _GPT2, decay=0.01, betas=(0.95, 0.99), low=2e-3, high=6e-3, **_COSINE),
    ),
    "mars_m": (
        pretrain(6e-3, f"{_MARS}/tree/main/MARS_M/config", _GPT2, decay=0.01, low=5e-3, high=6e-3, **_COSINE),
    ),
    "momo": (pretrain(1.0, "https://github.com/fabian-sp/MoMo", "CNNs and transformers", schedule="constant"),),
    "momo_adam": (pretrain(1e-2, "https://github.com/fabian-sp/MoMo", "CNNs and transformers", schedule="constant"),),
    "momentum": (Same("sgd", f"{_TORCH}/blob/main/imagenet/main.py"),),
    "msvag": (pretrain(0.1, "https://github.com/lballes/msvag", "the authors' example"),),
    "muon": (
        pretrain(1e-3, _EPFL, f"{_LLAMAS}, D-Muon", decay=0.1, options=_RMS, **_COSINE),
        pretrain(6e-3, f"{_MARS}/tree/main/MARS_M/config", f"{_GPT2}, as Moonlight (MARS's authors)", decay=0.1,
                 options=_RMS, low=3e-3, high=6e-3, **_COSINE),
        finetune(2e-5, "https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html",
                 "AdamW's: with match_rms_adamw its updates have the size of AdamW's", options=_RMS, low=5e-7,
                 high=3e-4),
        pretrain(0.02, "https://github.com/KellerJordan/Muon", "GPT-2; it is the same at all widths", decay=0.01,
                 options=_ORIGINAL, low=6.67e-3, high=0.02),
    ),
    "normuon": (
        pretrain(0.02, _DION, "a GPT of 160M on FineWeb", decay=0.01, options={"adjust_lr_fn": ("rms_to_rms",)}),
    ),
    "padam": (pretrain(0.1, "https://github.com/uclaml/Padam", _CIFAR, decay=5e-4, schedule="step"),),
    "polargrad": (
        pretrain(1e-3, "https://github.com/timlautk/polargrad", "the authors' example", decay=0.0),
    ),
    "prodigy": (
        pretrain(1.0, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.999), **_COSINE),
        finetune(1.0, "https://github.com/konstmish/prodigy", "everything: it finds its own", schedule="cosine"),
        lora(1.0, "https://github.com/konstmish/prodigy", "everything: it finds its own", schedule="cosine"),
    ),
    "qhadam": (
        pretrain(1e-3, "https://github.com/facebookresearch/qhoptim", "the authors' example", betas=(0.995, 0.999)),
    ),
    "qhm": (pretrain(1.0, "https://github.com/facebookresearch/qhoptim", "the authors' example"),),
    "radam": (
        pretrain(5e-4, _APOLLO, "a transformer on WMT (Apollo's authors)", decay=1e-4, schedule="step"),
        pretrain(1e-3, _APOLLO, f"{_IMAGENET} (Apollo's authors)", decay=0.1),
    ),
    "radam_schedule_free": (Same("adamw_schedule_free", _FREE),),
    "rmsproptf": (
        pretrain(0.048, _TIMM, "EfficientNet on ImageNet (timm)", decay=1e-5, schedule="step", low=0.016, high=0.064),
    ),
    "rose": (pretrain(1e-3, "https://github.com/MatthewK78/Rose", "the author's example", decay=1e-4),),
    "scion": (
        pretrain(3.6e-4, f"{_SCION}/modded-nanogpt", "GPT-2 on FineWeb", schedule="warmup_stable_decay",
                 low=8e-5, high=0.0625, options={"unconstrained": (False,)}),
    ),
    "scionlight": (
        pretrain(3.6e-4, f"{_SCION}/modded-nanogpt", "GPT-2 on FineWeb", schedule="warmup_stable_decay",
                 low=8e-5, high=0.0625, options={"unconstrained": (False,)}),
    ),
    "sgd": (
        pretrain(0.1, f"{_TORCH}/blob/main/imagenet/main.py", "ResNets on ImageNet (PyTorch)", decay=1e-4,
                 schedule="step", low=0.05, high=0.6),
        finetune(0.03, "https://github.com/google-research/vision_transformer/blob/main/vit_jax/configs/common.py",
                 "ViT, momentum 0.9", decay=0.0, schedule="cosine", warmup="500 steps"),
    ),
    "sgd_schedule_free": (
        pretrain(1.0, _FREE, "10 to 50 times SGD's with a schedule", schedule="constant", low=1.0, high=5.0),
    ),
    "sgdp": (pretrain(0.1, "https://github.com/clovaai/AdamP", "the authors' example", decay=1e-5),),
    "signsgd": (
        pretrain(2e-4, _EPFL, f"{_LLAMAS}, momentum 0.95", decay=0.1, low=2e-4, high=1e-3, **_COSINE),
    ),
    "simplified_ademamix": (
        pretrain(1e-4, "https://github.com/DepenM/Simplified-AdEMAMix", "the authors' example", betas=(0.99, 0.95)),
    ),
    "soap": (
        pretrain(1e-3, _EPFL, _LLAMAS, decay=0.1, betas=(0.9, 0.999), **_COSINE),
        pretrain(3e-3, "https://github.com/nikhilvyas/SOAP", "language models with large batches", decay=0.01,
                 betas=(0.95, 0.95)),
        pretrain(2e-3, f"{_CONDA}/llama/scripts", f"{_C4} (Conda's authors)", decay=0.0, **_COSINE),
    ),
    "sophiag": (
        pretrain(6e-4, _SOPHIA, _GPT2, decay=0.2, betas=(0.965, 0.99), low=3e-4, high=7e-4, **_COSINE),
        pretrain(5e-4, _EPFL, _LLAMAS, decay=0.1, betas=(0.95, 0.999), low=5e-4, high=1e-3, **_COSINE),
    ),
    "spam": (
        pretrain(8e-4, "https://github.com/TianjinYellow/SPAM-Optimizer/tree/master/scripts", _C4, decay=0.0,
                 warmup="1000 steps", low=8e-4, high=2e-3),
    ),
    "splus": (pretrain(0.2, "https://github.com/kvfrans/splus", "transformers", decay=1e-3, betas=(0.9, 0.95)),),
    "stablespam": (
        pretrain(8e-4, "https://github.com/TianjinYellow/StableSPAM/tree/main/scripts_BF16", _C4, decay=0.0,
                 warmup="2000 steps"),
    ),
    "tiger": (
        pretrain(1.76e-3, "https://github.com/bojone/tiger", "GAU-alpha, a BERT; relative to each parameter's size",
                 decay=0.01, schedule="step", warmup="40000 steps"),
    ),
    "vsgd": (pretrain(0.1, "https://github.com/generativeai-tue/vsgd", _CIFAR, decay=0.0),),
}  # fmt: skip
