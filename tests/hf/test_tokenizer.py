"""The tokenizer made for models from scratch: what becomes a token, the chat form, the files."""

import json
import os
import subprocess
import sys

import pytest

from mmsrec_jax.hf import tokenizer as tok
from mmsrec_jax.runtime.errors import UserError

COLORS = ["crimson", "turquoise", "amber", "violet", "ivory", "emerald"]
THINGS = ["teapot", "lantern", "scarf", "puzzle", "kite", "drum"]
TEXTS = [f"{thing}: a {colour} {thing}, yes" for colour in COLORS for thing in THINGS] * 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return tok.train(TEXTS, 700, tmp_path_factory.mktemp("tokenizer"))


def test_special_tokens_are_single_and_come_first(trained):
    for index, token in enumerate(tok.SPECIAL_TOKENS):
        assert trained.encode(token, add_special_tokens=False) == [index]
    assert trained.pad_token == "<|endoftext|>" and trained.eos_token == "<|im_end|>"


def test_words_of_the_corpus_are_single_tokens(trained):
    for word in [" " + w for w in COLORS + THINGS] + [" yes"]:
        assert len(trained.encode(word, add_special_tokens=False)) == 1, word
    assert len(trained) <= 700


@pytest.mark.parametrize(
    "text", ["an unseen word 1995", "  two\n\nlines ", "中文 ñ €", "a<|im_end|>b"]
)
def test_any_text_survives_the_round_trip(trained, text):
    assert trained.decode(trained.encode(text, add_special_tokens=False)) == text


def test_parts_concatenate(trained):
    # prompts are tokenized in parts; nothing may be added at their ends
    assert trained.encode("a crimson") + trained.encode(" kite") == trained.encode("a crimson kite")


def test_chat_template_takes_strings_and_parts(trained):
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "image"},
                                     {"type": "text", "text": " kite?"}]},
        {"role": "assistant", "content": "yes"},
    ]  # fmt: skip
    text = trained.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>a <|vision_start|><|image_pad|><|vision_end|> kite?<|im_end|>yes<|im_end|>"
    )
    prompt = trained.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text == prompt + "yes<|im_end|>"
    with pytest.raises(Exception, match="text or image"):
        trained.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


def test_same_texts_same_files_in_another_process(tmp_path):
    code = (
        "import sys; from mmsrec_jax.hf import tokenizer as t; "
        "from test_tokenizer import TEXTS; t.train(TEXTS, 400, sys.argv[1])"
    )
    for seed in ("1", "2"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        subprocess.run([sys.executable, "-c", code, tmp_path / seed], env=environment, check=True)
    names = sorted(path.name for path in (tmp_path / "1").iterdir())
    assert "tokenizer.json" in names and not any(name.startswith(".") for name in names)
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_template_of_a_published_directory_is_found(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    assert tok.load(tmp_path).chat_template is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "{{ 'hello' }}"}))
    assert tok.load(tmp_path).chat_template == "{{ 'hello' }}"


def test_errors(tmp_path):
    with pytest.raises(UserError, match="no tokenizer.json"):
        tok.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="does not load"):
        tok.load(tmp_path)
    with pytest.raises(UserError, match="too small"):
        tok.train(TEXTS, 100, tmp_path / "out")
