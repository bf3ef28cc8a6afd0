"""InternVL3 (arXiv 2504.10479) as transformers stores it: InternViT, pixel unshuffle, MLP, Qwen2.

An image is one tile, or several where `preprocessor_config.json` says `crop_to_patches`; that
transformers' InternVLProcessor cuts whatever the file says is not followed. The marks `<img>` and
`</img>` around an image are in no field of config.json: the tokenizer names them.
"""

from mmsrec_jax.hf.families import vit

FAMILY = vit.family("internvl", ("internvl_vision",), ("image_token_id",))
