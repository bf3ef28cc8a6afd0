"""Texts of users' windows: all users at once, and one user and one window at a time as published.

    python benchmarks/preferences.py --model=DIR

DIR is a language model in Hugging Face format with a chat template, such as SmolLM2-135M. Published
predecessors of MLLM-SRec loop over users and their windows with transformers' `generate`. Here both
write greedy texts of the same windows of toyshop users by the same weights, from prompts of the
same tokens: ours of all users, theirs of the first `--peer_users`, in turn on one device. The texts
of those users must be equal, but for near ties of the logits, which float32 decides differently;
their share is printed. Users/s are windows/s by the windows that all users have on average, for
both. Prints one line of JSON. Needs torch and transformers.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmsrec_jax
from benchmarks import windows
from mmsrec_jax.hf import tokenizer
from mmsrec_jax.inference.text_store import TextStore
from mmsrec_jax.inference.texts import Decoding
from mmsrec_jax.inputs.tastes import Tastes
from mmsrec_jax.methods.user_texts import KEY, write_windows
from mmsrec_jax.prompts import Chat
from mmsrec_jax.runtime import sharding

_MODEL = flags.DEFINE_string("model", None, "Directory of a language model.", required=True)
_USERS = flags.DEFINE_integer("users", 128, "Users that are written of at once.")
_PEER_USERS = flags.DEFINE_integer("peer_users", 4, "Users that the loop writes of.")
_TOKENS = flags.DEFINE_integer("tokens", 24, "Longest text.")
_TIMES = flags.DEFINE_integer("times", 3, "Repetitions, in turn; medians are compared.")


def batched(model: Any, words: Any, tastes: Tastes, mesh: Any) -> dict[tuple[int, int], str]:
    """Ours."""
    rows, clean = windows.rows_of(tastes, _USERS.value), tastes.renderer.prompt_config.chat.clean
    with tempfile.TemporaryDirectory() as folder:
        store = TextStore(Path(folder) / "texts.jsonl", KEY)
        decoding = Decoding(
            batch_size=_USERS.value, patches=0, max_new_tokens=_TOKENS.value, gather_weights=True
        )
        write_windows(
            store, tastes, rows,
            make_model=lambda: model, tokenizer=words, decoding=decoding, mesh=mesh,
        )  # fmt: skip
        users = tastes.histories.users
        return {(u, k): clean(store[str(users[u]), k]["written"]) for u, k in rows.tolist()}


def one_by_one(model: Any, words: Any, tastes: Tastes) -> dict[tuple[int, int], str]:
    """The published way."""
    import torch

    found: dict[tuple[int, int], str] = {}
    chat = tastes.renderer.prompt_config.chat
    for row in windows.rows_of(tastes, _PEER_USERS.value):
        source = windows.prompts(tastes, row[None], lambda u, k: found[u, k])
        prompt = torch.tensor(source.example(0, 0).tokens[None]).long()
        with torch.no_grad():
            out = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                max_new_tokens=_TOKENS.value, eos_token_id=chat.stop_id, pad_token_id=chat.stop_id,
            )  # fmt: skip
        user, window = row.tolist()
        found[user, window] = chat.clean(words.decode(out[0, prompt.shape[1] :]))
    return found


def main(argv: list[str]) -> None:
    del argv
    import transformers

    words = tokenizer.load(Path(_MODEL.value))
    ours = mmsrec_jax.load(_MODEL.value, dtype="float32")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(_MODEL.value, dtype="float32").eval()
    shop, mesh = windows.Shop(_USERS.value), sharding.make_mesh()
    tastes = shop.tastes(Chat.of(ours, words), _TOKENS.value, beside=_TOKENS.value)
    batched(ours, words, tastes, mesh)  # compiles
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(_TIMES.value):
        began = time.perf_counter()
        written = batched(ours, words, tastes, mesh)
        seconds["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        looped = one_by_one(theirs, words, tastes)
        seconds["theirs"].append(time.perf_counter() - began)
    equal = statistics.mean(written[key] == text for key, text in looped.items())
    counts = {name: len(texts) for name, texts in (("ours", written), ("theirs", looped))}
    rates = {
        name: windows.speeds(tastes, count, statistics.median(seconds[name]))
        for name, count in counts.items()
    }
    found = {
        "users": _USERS.value,
        "windows": counts,
        "prompt_tokens": tastes.settings.prompt_length,
        "speeds": {
            name: {unit: round(value, 3) for unit, value in speeds.items()}
            for name, speeds in rates.items()
        },
        "ratio": round(rates["ours"]["users_per_second"] / rates["theirs"]["users_per_second"], 2),
        "equal_texts": round(equal, 4),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
