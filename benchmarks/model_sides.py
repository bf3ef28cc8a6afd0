"""The two sides of model.py, each served by a process of its own."""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import processes

PARTS = ("matmuls", "optimizer")  # of a train step, timed alone

VOCAB_QWEN, IMAGE_QWEN, START_QWEN, END_QWEN = 151936, 151655, 151652, 151653
IMAGE_LLAVA = 49190
LEARNING_RATE, BETA2, DECAY, CLIP = 1e-5, 0.98, 0.01, 1.0


@dataclasses.dataclass(frozen=True)
class Case:
    """What both sides work on; see the flags of model.py."""

    rows: int
    length: int
    targets: int
    images: bool
    threads: int
    remat: str
    attention: str | None


def llava():
    """SmolLM2-135M behind DINOv2-S: (config, image processor)."""
    from transformers import Dinov2Config, LlamaConfig, LlavaConfig, SiglipImageProcessorPil

    text = LlamaConfig(
        vocab_size=49216, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        tie_word_embeddings=True,
    )  # fmt: skip
    vision = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=224, patch_size=14
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE_LLAVA,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )  # fmt: skip
    return config, SiglipImageProcessorPil(size={"height": 224, "width": 224})


def qwen():
    """Qwen2.5-VL in small: (config, image processor)."""
    from transformers import Qwen2_5_VLConfig, Qwen2VLImageProcessorPil

    text = {
        "vocab_size": VOCAB_QWEN, "hidden_size": 512, "intermediate_size": 1408,
        "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]
        },
    }  # fmt: skip
    vision = {
        "depth": 8, "hidden_size": 320, "num_heads": 5, "intermediate_size": 864,
        "out_hidden_size": 512, "patch_size": 14, "window_size": 112,
        "fullatt_block_indexes": [3, 7],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE_QWEN,
        vision_start_token_id=START_QWEN, vision_end_token_id=END_QWEN, tie_word_embeddings=True,
    )  # fmt: skip
    return config, Qwen2VLImageProcessorPil()


@dataclasses.dataclass(frozen=True)
class Shape:
    """make: the model; words: ids that are text; around: tokens before and after an image."""

    make: Callable
    words: int
    image_token: int
    around: tuple[tuple[int, ...], tuple[int, ...]]
    images: int  # of a row
    pixels: int  # per side
    slots: int  # of an image


SHAPES = {
    "llava-157m": Shape(llava, 49000, IMAGE_LLAVA, ((), ()), 1, 224, 256),
    "qwen2.5-vl-0.12b": Shape(qwen, 151000, IMAGE_QWEN, ((START_QWEN,), (END_QWEN,)), 2, 280, 100),
}


def write(directory: str, name: str) -> None:
    """A model with random weights in Hugging Face format."""
    import torch
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(0)
    config, processor = SHAPES[name].make()
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(Path(directory) / name)
    processor.save_pretrained(Path(directory) / name)


def batch(name: str, case: Case):
    """(ids int[rows, length], images per row)."""
    import numpy as np

    shape, rng = SHAPES[name], np.random.default_rng(0)
    ids = rng.integers(1, shape.words, (case.rows, case.length))
    if not case.images:
        return ids, [[] for _ in ids]
    before, after = shape.around
    one = [*before, *[shape.image_token] * shape.slots, *after]
    if 1 + shape.images * len(one) + case.targets >= case.length:
        sys.exit(f"{name}: images and answer do not fit into --length={case.length}")
    ids[:, 1 : 1 + shape.images * len(one)] = one * shape.images
    size = (case.rows, shape.images, shape.pixels, shape.pixels, 3)
    return ids, [list(row) for row in rng.integers(0, 256, size, dtype=np.uint8)]


def matmul_shapes(name: str, config, case: Case) -> dict[tuple[int, int, int], int]:
    """(m, k, n) of the products in the layers of decoder and tower and in the head, attention's
    left out, and how often each occurs in a forward pass."""
    from mmsrec_jax.models.config import VisionConfig
    from mmsrec_jax.models.flops import linear_sizes

    text, tokens = config.text, case.rows * case.length
    shapes: dict[tuple[int, int, int], int] = {}

    def add(m: int, k: int, n: int, count: int):
        shapes[m, k, n] = shapes.get((m, k, n), 0) + count

    for k, n in linear_sizes(text).values():
        add(tokens, k, n, text.layers)
    add(case.rows * case.targets, text.hidden, text.vocab_size, 1)
    if case.images:
        shape, vision = SHAPES[name], config.vision
        patches = case.rows * shape.images * (shape.pixels // vision.patch_size) ** 2
        gated = isinstance(vision, VisionConfig)
        add(patches, vision.hidden, vision.hidden, 4 * vision.depth)
        add(patches, vision.hidden, vision.intermediate, (1 + gated) * vision.depth)
        add(patches, vision.intermediate, vision.hidden, vision.depth)
    return shapes


class Ours:
    """This package's loader, loss, optimizer and compiled step."""

    def __init__(self, directory: str, name: str, case: Case):
        self.directory, self.name, self.case = directory, name, case

    def load(self) -> dict:
        import jax
        import numpy as np
        import optax
        from flax import nnx

        from mmsrec_jax.api import _logits
        from mmsrec_jax.hf import loading
        from mmsrec_jax.models import flops
        from mmsrec_jax.training import sft
        from mmsrec_jax.training.clipping import clip_by_global_norm
        from mmsrec_jax.training.state import TrainState

        case, on_gpu = self.case, jax.default_backend() == "gpu"
        ids, images = batch(self.name, case)
        model = loading.load(
            self.directory, "bfloat16" if on_gpu else "float32", param_dtype="float32",
            remat=case.remat,
        )  # fmt: skip
        rows = _logits.make_batch(model, ids, np.ones_like(ids), images)
        answer = np.arange(case.length - case.targets, case.length, dtype=np.int32)
        rows = dataclasses.replace(
            rows,
            target_positions=np.tile(answer, (case.rows, 1)),
            loss_weights=np.ones(ids.shape, np.float32),
        )
        self.config, self.batch = model.config, jax.device_put(rows)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        del model
        jax.block_until_ready(params)
        self.on_gpu, self.loaded = on_gpu, 0 if on_gpu else resident()
        optimizer = optax.chain(
            clip_by_global_norm(CLIP),
            optax.adamw(LEARNING_RATE, b2=BETA2, weight_decay=DECAY),
        )
        self.state, self.rest = TrainState.create(params, optimizer), rest
        step = sft.make_step(graphdef, optimizer, yes_no_ids=(0, 1), listwise_weight=0.0)

        def loss(params, rest, batch):
            model = nnx.merge(graphdef, params, rest)
            return sft.loss(model, batch, yes_no_ids=(0, 1), listwise_weight=0.0)[0]

        start = time.perf_counter()
        self.step = step.lower(self.state, rest, self.batch).compile()
        seconds = time.perf_counter() - start
        self.loss = jax.jit(loss)
        self.update = jax.jit(lambda state, g: state.apply(g, optimizer), donate_argnums=0)
        memory = self.step.memory_analysis()
        grid = (SHAPES[self.name].pixels // self.config.vision.patch_size,) * 2
        row = flops.Row(
            case.length, case.targets, [grid] * SHAPES[self.name].images if case.images else ()
        )
        restart_peak()
        return {
            "compile_seconds": seconds,
            "arguments": memory.argument_size_in_bytes,
            "temporary": memory.temp_size_in_bytes,
            "program": memory.argument_size_in_bytes + memory.temp_size_in_bytes
            + memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "loaded": self.loaded,
            "flops": {
                "forward": case.rows * sum(flops.forward(self.config, row).values()),
                "train": case.rows * sum(flops.train_step(self.config, row).values()),
            },
        }  # fmt: skip

    def memory(self) -> int:
        import jax

        if self.on_gpu:
            return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
        return peak() - self.loaded

    def train(self) -> float:
        self.state, metrics = self.step(self.state, self.rest, self.batch)
        return float(metrics["loss"])

    def forward(self) -> float:
        return float(self.loss(self.state.params, self.rest, self.batch))

    def optimizer(self) -> None:
        import jax

        if not hasattr(self, "gradients"):
            self.gradients = jax.tree.map(lambda x: x + 0, self.state.params)
        self.state = self.update(self.state, self.gradients)
        self.state.step.block_until_ready()

    def matmuls(self) -> None:
        import jax
        import jax.numpy as jnp

        from mmsrec_jax.models.layers import precision

        if not hasattr(self, "products"):
            dtype = jnp.bfloat16 if self.on_gpu else jnp.float32
            dot = functools.partial(jnp.matmul, precision=precision(dtype))
            self.product = jax.jit(lambda x, w, y: (dot(x, w), dot(y, w.T), dot(x.T, y)))
            self.products = [
                ([jnp.ones(s, dtype) for s in ((m, k), (k, n), (m, n))], count)
                for (m, k, n), count in matmul_shapes(self.name, self.config, self.case).items()
            ]
        for operands, count in self.products:
            for _ in range(count):
                out = self.product(*operands)
            jax.block_until_ready(out)


class Theirs:
    """transformers' loader and model, torch's autograd and fused AdamW."""

    def __init__(self, directory: str, name: str, case: Case):
        self.directory, self.name, self.case = directory, name, case

    def load(self) -> dict:
        import torch
        import transformers
        from PIL import Image

        case = self.case
        torch.set_num_threads(case.threads)
        self.torch, self._on_gpu = torch, torch.cuda.is_available()
        self.device = torch.device("cuda" if self._on_gpu else "cpu")
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(
            self.directory,
            dtype=torch.float32,
            attn_implementation=case.attention or ("sdpa" if self._on_gpu else "eager"),
        ).to(self.device)
        self.model.eval()  # no dropout, as ours
        self.loaded = 0 if self._on_gpu else resident()
        ids, images = batch(self.name, case)
        ids = torch.tensor(ids)
        # The token before the answer predicts its first token; the loss drops the first label.
        self.inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids[:, -case.targets - 1 :],
            "logits_to_keep": case.targets + 1,
        }
        if case.images:
            _, processor = SHAPES[self.name].make()
            flat = [Image.fromarray(image) for row in images for image in row]
            self.inputs |= dict(processor(flat, return_tensors="pt"))
        if "qwen" in self.name:
            image_token = SHAPES[self.name].image_token
            self.inputs["mm_token_type_ids"] = (ids == image_token).int()
        self.inputs = {
            key: x.to(self.device) if torch.is_tensor(x) else x for key, x in self.inputs.items()
        }
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, BETA2), eps=1e-8,
            weight_decay=DECAY, fused=True,
        )  # fmt: skip
        restart_peak()
        return {"loaded": self.loaded}

    def memory(self) -> int:
        if self._on_gpu:
            return self.torch.cuda.max_memory_allocated()
        return peak() - self.loaded

    def _loss(self):
        with self.torch.autocast("cuda", self.torch.bfloat16, enabled=self._on_gpu):
            return self.model(**self.inputs, use_cache=False).loss

    def train(self) -> float:
        loss = self._loss()
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def forward(self) -> float:
        with self.torch.no_grad():
            return float(self._loss())

    def optimizer(self) -> None:
        for parameter in self.model.parameters():
            if parameter.grad is None:
                parameter.grad = parameter.detach().clone()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        if self._on_gpu:
            self.torch.cuda.synchronize()

    def matmuls(self) -> None:
        torch = self.torch
        if not hasattr(self, "products"):
            from mmsrec_jax.hf import mapping
            from mmsrec_jax.hf.processor import read_json

            directory = Path(self.directory)
            config = mapping.config_from_hf(
                read_json(directory / "config.json"), mapping.processor_of(directory)
            )
            kind = torch.bfloat16 if self._on_gpu else torch.float32
            ones = functools.partial(torch.ones, dtype=kind, device=self.device)
            self.products = [
                ([ones(m, k), ones(n, k), ones(m, n)], count)
                for (m, k, n), count in matmul_shapes(self.name, config, self.case).items()
            ]
        for (x, w, y), count in self.products:
            for _ in range(count):
                x @ w.T, y @ w, y.T @ x
        if self._on_gpu:
            torch.cuda.synchronize()


def serve(pipe, side: str, directory: str, name: str, case: Case) -> None:
    """Answers calls until the pipe closes."""
    processes.take_cores(case.threads)
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the GPU is shared by both sides
    served = {"ours": Ours, "theirs": Theirs}[side](directory, name, case)
    processes.answer(pipe, served, untimed=("load", "memory"))


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def resident() -> int:
    """Bytes of this process in memory."""
    return _status("VmRSS")


def restart_peak() -> None:
    """Forgets the peak so far: that of loading and compiling."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes of this process in memory since `restart_peak`."""
    return _status("VmHWM")
