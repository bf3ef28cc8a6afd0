"""Every field of an experiment, once. Experiments start from here and change what they need.

from configs import base
config = base.get_config()
config.sft.steps = 500

A head by itself, on any folder of atomic files:

    python launch/train.py --config=configs/base.py:sasrec --config.data.root=DIR --workdir=runs/my
"""

import functools

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mmsrec_jax.runtime.config_utils import choose

SEQUENTIAL_MODELS = {  # variant = section below -> what it is
    "sasrec": "SASRec by itself",
    "bert4rec": "BERT4Rec by itself",
    "gru4rec": "GRU4Rec by itself",
    "molar": "Molar by itself",
    "hm4sr": "HM4SR by itself",
}


def get_config(variant: str = "") -> ConfigDict:
    choose(variant, {"": "MMSRARec", **SEQUENTIAL_MODELS}, file="configs/base.py")
    config = ConfigDict()
    config.method = "sequential" if variant in SEQUENTIAL_MODELS else "mmsrarec"
    config.sequential_model = variant or "sasrec"  # by itself, or to retrieve
    config.seed = 0  # of everything that is random: data, weights, order, negatives, sampling

    # Batches are packed in so many parts; processes share the parts, and a run goes on with any
    # number of processes that can. 0 = as many as there are processes at the start.
    config.input_shards = 0

    config.profile = ""  # "10:13" = a trace of steps 10 to 13, in every training step's profile/

    # A reference of its own for every field: setting one leaves the others.
    seed = functools.partial(config.get_oneway_ref, "seed")
    shards = functools.partial(config.get_oneway_ref, "input_shards")

    config.mesh = ConfigDict()
    config.mesh.data = 1  # replicas of the model
    config.mesh.fsdp = -1  # shards of weights and batch; -1 takes the devices that are left
    config.mesh.tensor = 1  # shards of heads, MLP and vocabulary

    config.data = data = ConfigDict()
    data.source = "atomic"  # "atomic" (RecBole atomic files at `root`) or "toyshop" (generated)
    data.root = ""  # folder of NAME.inter[.gz], NAME.item, images/<item_id>.jpg
    data.root_help = ""  # what to download when `root` does not exist
    data.images_root = placeholder(str)  # folder of images, None = root/images
    data.text_fields = placeholder(tuple)  # columns of .item that are text, None = all others
    data.category_field = placeholder(str)  # column of .item with the category
    data.attribute_fields = ()  # columns of .item that are attributes
    data.rating_threshold = placeholder(float)  # lower ratings are dropped, None keeps all
    data.user_core = 5  # fewest interactions of a user
    data.item_core = 5  # fewest interactions of an item
    data.only_items_with_image = False  # drop items without an image file
    data.max_users = 0  # random subset of users, 0 = all
    data.split = "leave_one_out"  # or "global_time"
    data.validation_quantile = 0.8  # of timestamps, where validation begins (global_time)
    data.test_quantile = 0.9  # of timestamps, where test begins (global_time)
    data.seed = seed()  # of the subset of users and of ties in time
    data.toyshop = toyshop = ConfigDict()
    toyshop.num_users = 4000
    toyshop.num_items = 2500
    toyshop.num_groups = 10  # latent groups of items, each leading tastes somewhere
    toyshop.history = (6, 12)  # shortest and longest history
    toyshop.pull = 0.4  # probability that a favorite follows the last item's group
    toyshop.drift = 0.03  # probability that a favorite is redrawn
    toyshop.image_weight = 3.6  # logit of a match in what only pictures show
    toyshop.text_weight = 3.2  # logit of a match in what only texts name
    toyshop.popularity_sd = 0.3  # spread of the items' own logits
    toyshop.seed = seed()

    config.model = model = ConfigDict()
    model.path = ""  # Hugging Face directory; "" = from scratch, of the sizes below
    model.path_help = ""  # what to download when `path` does not exist
    model.require_path = False  # True: an experiment that makes no sense from scratch
    model.dtype = "bfloat16"  # of computation; float32 on CPU
    model.remat = "full"  # what is kept for the backward pass: "none" = all, "full", "dots"
    model.max_pixels = 0  # largest area of an image in pixels, 0 = as the directory says
    model.seed = seed()
    model.tiny = scratch = ConfigDict()
    scratch.vocab_size = 1024  # at most
    scratch.hidden = 128
    scratch.layers = 3
    scratch.heads = 4
    scratch.kv_heads = 2
    scratch.intermediate = 384
    scratch.vision_hidden = 96
    scratch.vision_layers = 2
    scratch.vision_heads = 3
    scratch.vision_intermediate = 192
    scratch.patch_size = 14  # pixels
    scratch.image_size = 28  # pixels a side

    config.planning = ConfigDict()  # launch/compile.py
    config.planning.model = ""  # of models/published.py, compiled while model.path is not set

    config.use = use = ConfigDict()  # ablations: what the method may use
    use.images = True  # False: no image anywhere
    use.summaries = True  # False: raw text in place of keywords
    use.rewards = True  # False: summaries by the model as it is, not tuned by rewards
    use.retrieval = True  # False: no similar users in the prompt
    use.multitask = True  # False: the pointwise task alone

    config.prompts = prompts = ConfigDict()
    prompts.templates = "full"  # "full" English, or "terse" for tiny models
    prompts.history = 5  # last items in a prompt (paper: n = 5)
    prompts.similar = 3  # similar users' next items in a prompt (paper: k = 3)
    prompts.fields = ("title", "description")  # text of an item that is described or a candidate
    prompts.list_fields = ("title",)  # text of an item in a list when it has no keywords
    prompts.candidate_keywords = False  # candidates show theirs beside text and image (ours)
    prompts.text_tokens = 256  # longer texts lose their tail
    prompts.image_attributes = ()  # attributes that the image shows (warm-up)

    config.warmup = warmup = _sft(seed(), shards())  # visual instruction tuning, from scratch
    warmup.tasks = {
        "describe": 0.25,
        "see": 0.25,
        "vqa": 0.2,
        "retell": 0.1,
        "match": 0.2,
    }  # shares
    warmup.noise = 0.3  # how careless the described keywords are: what stage 1 can improve

    config.summarizer = grpo = ConfigDict()  # stage 1: GRPO on verifiable rewards
    grpo.steps = 500  # rollouts
    grpo.batch_size = 64  # items in a rollout
    grpo.num_generations = 8  # summaries of an item
    grpo.prompt_length = 1024  # tokens of a prompt
    grpo.patches = 4096  # vision patches of a prompt
    grpo.image_tokens = 32  # tokens of the image's keywords that the image reward reads
    grpo.max_new_tokens = 64
    grpo.temperature = 1.0
    grpo.top_k = 0  # 0 = all
    grpo.top_p = 1.0
    grpo.gather_weights = True  # once per rollout, not per token; False where they do not fit
    grpo.micro_batch = 64  # completions in one backward pass, a multiple of num_generations
    grpo.updates_per_rollout = 1
    grpo.clip_epsilon = 0.2  # of the probability ratio
    grpo.kl_coef = 0.02  # weight of the divergence from the reference
    grpo.scale_by_std = True  # advantages divided by the group's standard deviation
    grpo.lora_rank = 16
    grpo.lora_alpha = 32.0
    grpo.learning_rate = 1e-5
    grpo.warmup_steps = 20
    grpo.weight_decay = 0.0
    grpo.clip_norm = 1.0
    grpo.weights = ConfigDict()  # of the rewards, 0 = off
    grpo.weights.semantic = 1.0  # cosine of keywords and text (paper: alpha)
    grpo.weights.reconstruction = 1.0  # how much of the text the keywords explain (paper: beta)
    grpo.weights.length = 0.02  # minus the number of keywords (paper: gamma)
    grpo.weights.image_contrastive = 0.2  # its keywords fit the image, not others (ours, 0 = paper)
    grpo.weights.format = 0.5  # parseable, without repetitions (ours)
    grpo.length = "keywords"  # what the length reward counts: "keywords" or "tokens"
    grpo.reconstruction = "bounded"  # or "perplexity", the paper's own
    grpo.center = True  # embeddings minus their mean in the batch
    grpo.distractors = 7  # other images that the image-contrastive reward compares with
    grpo.input_shards = shards()
    grpo.workers = 8
    grpo.checkpoint_every = 50
    grpo.log_every = 10
    grpo.seed = seed()

    config.summaries = summaries = ConfigDict()  # keywords of the whole catalog
    summaries.batch_size = 256

    config.sasrec = sasrec = _head(seed())
    sasrec.dim = 64
    sasrec.layers = 2
    sasrec.heads = 2
    sasrec.mlp_dim = 256
    sasrec.dropout = 0.3

    config.bert4rec = bert4rec = _head(seed())
    bert4rec.dim = 64
    bert4rec.layers = 2
    bert4rec.heads = 2
    bert4rec.mlp_dim = 256
    bert4rec.dropout = 0.2
    bert4rec.mask_rate = 0.2  # of training items that are masked
    bert4rec.last_rate = 0.1  # of training sequences whose last item alone is masked
    bert4rec.loss_chunk = 512  # small, because chunks without a masked item cost nothing

    config.gru4rec = gru4rec = _head(seed())
    gru4rec.dim = 64
    gru4rec.hidden = 128
    gru4rec.layers = 1
    gru4rec.dropout = 0.3

    config.molar = molar = _content_head(seed(), ("item", "text", "image"))
    molar.contents = ("item",)  # what it reads: "item" (image and text in one), "text", "image"
    molar.dim = 64
    molar.layers = 2
    molar.heads = 2
    molar.mlp_dim = 256  # also of the adapter between features and items
    molar.dropout = 0.3
    molar.alignment_weight = 0.1  # the paper's alpha
    molar.temperature = 0.1
    molar.contrast = 512  # users of a batch that the alignment tells apart

    config.hm4sr = hm4sr = _content_head(seed(), ("text", "image"))
    hm4sr.contents = ("text", "image")  # a stream each
    hm4sr.category_separator = placeholder(str)  # between an item's categories, None = it has one
    hm4sr.dim = 64  # of each stream
    hm4sr.layers = 2
    hm4sr.heads = 2
    hm4sr.mlp_dim = 256
    hm4sr.dropout = 0.5
    hm4sr.experts = 4  # of either mixture
    hm4sr.interval_buckets = 100  # a doubling of the time between two items
    hm4sr.id_weight = 1.0  # of the contrast with the next item's id
    hm4sr.id_temperature = 0.2
    hm4sr.category_weight = 1.0
    hm4sr.placeholder_weight = 1.0  # of the contrast with items replaced by their times
    hm4sr.placeholder_temperature = 1.0
    hm4sr.placeholder_rate = 0.3  # of items
    hm4sr.contrast = 1024  # places of a batch that either contrast tells apart
    hm4sr.weight_decay = 0.0

    config.features = features = ConfigDict()  # item features that config.model.path makes
    features.length = 640  # tokens of a prompt with an image
    features.patches = 2048  # vision patches of a prompt
    features.batch_size = 32
    features.workers = 8

    config.retrieval = retrieval = ConfigDict()
    retrieval.folds = 1  # > 1: training queries are embedded by heads that never saw their user
    retrieval.distinct_items = False  # the k next items all differ
    retrieval.seed = seed()

    config.sft = sft = _sft(seed(), shards())  # stage 3, and the plain SFT beside it
    sft.tasks = {"pointwise": 0.7, "rank": 0.1, "next_keywords": 0.1, "align": 0.1}  # shares
    sft.negatives = 7  # of a training list
    sft.rows = 0  # random subset of training targets, 0 = all

    config.evaluation = evaluation = ConfigDict()
    evaluation.users = 0  # random subset of test users, 0 = all
    evaluation.negatives = 20  # of a candidate list
    evaluation.k = (1, 5, 10, 20)  # cut-offs of the metrics; the longest list is stored
    evaluation.length = 8192  # tokens of a user's history and candidates
    evaluation.patches = 16384  # vision patches of the candidates
    evaluation.batch_size = 32
    evaluation.workers = 8
    evaluation.seed = seed()
    return config.lock()


def _head(seed) -> ConfigDict:
    head = ConfigDict()
    head.length = 50  # items
    head.loss = "softmax"  # over the catalog; "sampled_softmax" or "bce" (one negative)
    head.negatives = 256  # uniform items that a batch shares (sampled_softmax)
    head.loss_chunk = 4096  # targets whose logits over the catalog are in memory at once
    head.learning_rate = 1e-3
    head.warmup_steps = 100
    head.weight_decay = 0.01
    head.batch_size = 128  # packed rows of `length` items
    head.steps = 10_000
    head.evaluate_every = 200
    head.patience = 10  # validations without a better NDCG@10
    head.validation_rows = 0  # 0 = all
    head.log_every = 100
    head.seed = seed
    return head


def _content_head(seed, names) -> ConfigDict:
    head = _head(seed)
    head.features = ConfigDict()  # .npy, one row per catalog item; "" = made by config.model.path
    for name in names:
        head.features[name] = ""
    return head


def _sft(seed, shards) -> ConfigDict:
    sft = ConfigDict()
    sft.trainable = "lora"  # or "full"
    sft.lora_rank = 16
    sft.lora_alpha = 32.0
    sft.steps = 2000
    sft.batch_size = 64  # packed rows
    sft.micro_batch = 0  # of them in one backward pass, 0 = all
    sft.offload_optimizer = False  # its moments lie in the hosts' memory: less HBM, more transfers
    sft.length = 4096  # tokens of a row
    sft.patches = 8192  # vision patches of a row
    sft.answers = 32  # yes/no labels of a row
    sft.targets = 256  # tokens with loss of a row
    sft.learning_rate = 1e-4  # peak; cosine to a tenth
    sft.warmup_steps = 100
    sft.weight_decay = 0.0
    sft.clip_norm = 1.0
    sft.listwise_weight = 0.0  # of the softmax over a list's yes/no labels (ours, 0 = paper)
    sft.input_shards = shards
    sft.workers = 8  # processes for each part of the batches, 0 = threads of the main one
    sft.checkpoint_every = 200
    sft.log_every = 20
    sft.seed = seed
    return sft
