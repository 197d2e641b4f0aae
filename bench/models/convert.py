"""Checkpoints of transformers and timm by this suite's names: masked auto-encoders, BERT- and RoBERTa-like models.

Only tensors and plain configuration are read, never code. What the networks here would compute differently is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from bench.backbones import MaskedAutoEncoder, MaskedLanguageModel
from bench.checkpoints import PICKLE, TOKENIZER, VOCABULARIES, WEIGHTS
from bench.errors import InputError
from bench.interfaces.model import Inputs, Model
from bench.models.build import build
from bench.models.vit_mae import from_transformers, place
from bench.models.weights import load_weights
from bench.store.files import digest, sha256

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Network = Literal["bert", "roberta"]

NETWORKS: dict[str, Network] = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
"""`model_type` of a text checkpoint -> the network that it is here."""

LEGAL = f"vit_mae, {', '.join(NETWORKS)} of transformers; vit_* of timm"
HEAD: dict[Network, str] = {"bert": "cls", "roberta": "lm_head"}
PROJECTION: dict[Network, tuple[str, str]] = {
    "bert": ("cls.predictions.decoder", "cls.predictions.bias"),
    "roberta": ("lm_head.decoder", "lm_head.bias"),
}
"""The output projection of a head, and the other name of its bias."""

SPECIAL: dict[Network, dict[str, str]] = {
    "bert": {"pad_token": "[PAD]", "mask_token": "[MASK]"},
    "roberta": {"pad_token": "<pad>", "mask_token": "<mask>"},
}
"""The special tokens of a tokenizer whose configuration names none."""

LONGEST = 512
TIMM_ARGUMENTS = {
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "global_pool",
    "num_classes",
}
"""What a timm checkpoint may set beside its architecture: sizes, and what its classifier looks at."""


@dataclass(frozen=True)
class Converted:
    """What was converted; the fields are those of `bench.checkpoints.Prepared`."""

    modality: Literal["image", "text"]
    architecture: dict[str, int | float | str | list[int]]
    checksum: str
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]


class Found(NamedTuple):
    """What a folder holds, by this suite's names; `features` are computed as the library itself does it."""

    modality: Literal["image", "text"]
    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tokenizer: str | None = None
    features: Callable[[Inputs], Tensor] | None = None


def convert(name: str, folder: Path, target: Path, weights_checksum: str | None) -> Converted:
    """Write the weights, and for text the tokenizer, of a transformers or timm folder into the folder `target`.

    The network is then built from what was found and run once; where the library's own network is at hand, both must
    give the same features. Raises `InputError` for networks and variants that this suite does not have, custom code,
    damaged or incomplete files, values that are not finite, and a pickle without `weights_checksum`. Leaves torch's
    random state as it was.
    """
    config = _read_json(folder / "config.json")
    if config.get("auto_map"):
        raise InputError(f"{folder / 'config.json'}: auto_map asks for the checkpoint's own code, which is never run.")
    reader = _reader(folder, config)
    state, checksum = read_weights(name, folder, weights_checksum)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        found = reader(folder, config, state)
        backbone = _backbone(name, folder, found)
        model = build(backbone, decoder=backbone.has_decoder)
        _check_fit(folder, model, found)
        path = target / WEIGHTS
        path.write_bytes(
            save({name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in found.tensors.items()})
        )
        parts = ["encoder"] if model.decoder is None else ["encoder", "decoder"]
        load_weights(model, path, parts, absent=found.fresh)
        _try(folder, backbone, model.eval(), found)
    if found.tokenizer is not None:
        (target / TOKENIZER).write_text(found.tokenizer, encoding="utf-8")
    return Converted(found.modality, found.architecture, checksum, found.fresh, found.ignored)


def _reader(folder: Path, config: dict[str, Any]) -> Callable[[Path, dict[str, Any], dict[str, Tensor]], Found]:
    kind = config.get("model_type")
    if kind == "vit_mae":
        return _masked_auto_encoder
    if kind in NETWORKS:
        return _masked_language_model
    if kind is None and str(config.get("architecture", "")).startswith("vit_"):
        return _timm_encoder
    told = kind or config.get("architecture")
    raise InputError(f"{folder / 'config.json'}: no network here is like {told!r}. Legal: {LEGAL}.")


# ------------------------------------------------------------------------------------------------ files


def read_weights(name: str, folder: Path, weights_checksum: str | None) -> tuple[dict[str, Tensor], str]:
    """A checkpoint's tensors by its own names, floating ones in float32, and the sha256 of its weight file.

    Of shards the sha256 is that of their names and sha256s. A pickle is read only where `weights_checksum` is its
    sha256, and then without any code in it. Refuses missing and damaged files and values that are not finite.
    """
    files = _weight_files(folder)
    checksums = {file.name: sha256(file) for file in files}
    checksum = digest(checksums) if len(files) > 1 else checksums[files[0].name]
    pin = f"{name}/backbone.weights_checksum = '{checksum}'"
    if weights_checksum is None and files[0].name == PICKLE:
        raise InputError(
            f"{files[0]} is a pickle, and only one whose checksum is pinned is read. Its sha256 is {checksum}: compare "
            f"it with what the checkpoint's authors publish, then bind {pin}, or convert it to model.safetensors."
        )
    if weights_checksum is not None and weights_checksum.lower() != checksum:
        raise InputError(
            f"{files[0]}: its sha256 is {checksum}, but weights_checksum is {weights_checksum}: is the file complete "
            f"and the right one? If so, bind {pin}."
        )
    state: dict[str, Tensor] = {}
    for file in files:
        for key, tensor in (_read_pickle(file) if file.name == PICKLE else _read_safetensors(file)).items():
            state[key] = _finite(file, key, tensor)
    return state, checksum


def _weight_files(folder: Path) -> list[Path]:
    whole, index, pickle = (folder / name for name in ("model.safetensors", "model.safetensors.index.json", PICKLE))
    if whole.is_file():
        return [whole]
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) and shards else []
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise InputError(f"{index} is damaged: its weight_map names no files of this folder. Copy it again.")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise InputError(f"{folder}: {', '.join(missing)} is missing, of the shards that {index.name} names.")
        return [folder / name for name in names]
    if pickle.is_file():
        return [pickle]
    raise InputError(f"{folder} holds no weights: neither {whole.name}, nor {index.name}, nor {pickle.name}.")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}): is it complete? Copy it again.") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path} cannot be read as weights ({type(error).__name__}: {error}).") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"{path} cannot be used: it is no plain table of tensors by name.")
    return state


def _finite(path: Path, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    tensor = tensor.to(torch.float32)
    if not tensor.isfinite().all():
        raise InputError(f"{path}: {name} holds NaN or infinite values. Copy the file again, or use another.")
    return tensor


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: the folder of a transformers or timm checkpoint has one.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} cannot be used: it holds no JSON object.")
    return content


# ------------------------------------------------------------------------------------------------ fitting


def _backbone(name: str, folder: Path, found: Found) -> MaskedAutoEncoder | MaskedLanguageModel:
    try:
        if found.modality == "image":
            return MaskedAutoEncoder(name=name, weights=None, **found.architecture)
        return MaskedLanguageModel(
            name=name, weights=None, tokenizer=None, tokenizer_checksum=None, **found.architecture
        )
    except InputError as error:  # without the field, which no gin file has set
        raise InputError(f"{folder}: {error}") from error


def _check_fit(folder: Path, model: Model, found: Found) -> None:
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters() if name not in found.fresh}
    shapes = {name: tuple(tensor.shape) for name, tensor in found.tensors.items()}
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - shapes.keys())]
    problems += [f"{name} is not known" for name in sorted(shapes.keys() - wanted.keys())]
    problems += [
        f"{name} is {shapes[name]}, not {wanted[name]}"
        for name in sorted(wanted.keys() & shapes.keys())
        if wanted[name] != shapes[name]
    ]
    if problems:
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise InputError(f"{folder}: the weights are not those of the network that config.json describes: {shown}.")


def _try(folder: Path, backbone: MaskedAutoEncoder | MaskedLanguageModel, model: Model, found: Found) -> None:
    """Run the network once; in float32, so that sums in another order are told from another formula."""
    inputs = _example(backbone)
    features = model.features(inputs)
    results = [features]
    if model.decoder is not None:
        results.append(model.masked_loss(inputs, model.draw_mask(inputs, torch.Generator().manual_seed(0))))
    if not all(result.isfinite().all() for result in results):
        raise InputError(f"{folder}: the network gives NaN or infinite values on an ordinary input.")
    if found.features is None:
        return
    expected = found.features(inputs)
    if (features - expected).abs().max() > 1e-3 * expected.abs().max():
        raise InputError(
            f"{folder}: the checkpoint computes other features in its own library than here: it is a variant that "
            f"this suite does not have. Legal: {LEGAL}."
        )


def _example(backbone: MaskedAutoEncoder | MaskedLanguageModel) -> Inputs:
    if isinstance(backbone, MaskedAutoEncoder):
        shape = (2, 3, backbone.image_size, backbone.image_size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ordinary = [token for token in range(backbone.vocabulary) if token not in backbone.special_ids]
    length = min(8, backbone.max_length)
    row = torch.tensor((ordinary * length)[:length])
    inputs = {"input_ids": torch.stack([row, row.flip(0)]), "attention_mask": torch.ones(2, length, dtype=torch.long)}
    inputs["input_ids"][1, -1], inputs["attention_mask"][1, -1] = backbone.pad_id, 0
    return inputs


def _require(folder: Path, config: Mapping[str, Any], legal: Mapping[str, Any]) -> None:
    for name, value in legal.items():
        if (found := config.get(name, value)) != value:
            raise InputError(f"{folder / 'config.json'}: {name} is {found!r}; here it must be {value!r}.")


# ------------------------------------------------------------------------------------------------ images


def _masked_auto_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> Found:
    """A ViTMAE of transformers: with its decoder, or the encoder alone."""
    from transformers import ViTMAEConfig

    _require(folder, raw, {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3})
    config = _configuration(folder, ViTMAEConfig, raw)
    places: dict[str, str] = {}
    unknown = []
    for name in state:
        try:
            places[name] = place(name).name
        except InputError:
            unknown.append(name)
    unknown += [name for name, ours in places.items() if ours.startswith("head.")]
    if unknown:
        raise InputError(f"{folder}: these tensors are of no masked auto-encoder: {', '.join(sorted(unknown))}.")
    architecture: dict[str, Any] = {
        "image_size": _side(folder, "image_size", config.image_size),
        "patch_size": _side(folder, "patch_size", config.patch_size),
        "width": config.hidden_size,
        "depth": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp_width": config.intermediate_size,
        "norm_eps": config.layer_norm_eps,
    }
    if any(ours.startswith("decoder.") for ours in places.values()):
        architecture |= {
            "decoder_width": config.decoder_hidden_size,
            "decoder_depth": config.decoder_num_hidden_layers,
            "decoder_heads": config.decoder_num_attention_heads,
            "decoder_mlp_width": config.decoder_intermediate_size,
            "decoder_norm_eps": config.layer_norm_eps,
            "mask_ratio": config.mask_ratio,
            "norm_pix_loss": config.norm_pix_loss,
        }
    else:
        architecture["decoder_depth"] = 0
    tensors = from_transformers(state)
    for name in ("encoder.pos_embed", "decoder.pos_embed"):
        if name in tensors and not tensors[name].any():
            raise InputError(
                f"{folder}: the positions {name} are all zero, as transformers leaves them in a network that it builds "
                "from a configuration alone. Fill them before saving."
            )
    return Found("image", architecture, tensors)


def _side(folder: Path, name: str, value: Any) -> int:
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(set(sides)) != 1 or not isinstance(sides[0], int):
        raise InputError(f"{folder / 'config.json'}: {name} is {value!r}; here it must be square, in whole pixels.")
    return int(sides[0])


def _timm_encoder(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> Found:
    """A plain vision transformer of timm: an encoder without a decoder; its classifier is ignored."""
    from timm import create_model
    from timm.models.vision_transformer import VisionTransformer

    kind, arguments = raw["architecture"], raw.get("model_args") or {}
    if unknown := sorted(arguments.keys() - TIMM_ARGUMENTS):
        raise InputError(f"{folder / 'config.json'}: model_args sets {', '.join(unknown)}, a variant not known here.")
    ignored = tuple(sorted(name for name in state if name.startswith("head.")))
    encoder = {name: tensor for name, tensor in state.items() if name not in ignored}
    try:
        patch, positions = encoder["patch_embed.proj.weight"].shape[-1], encoder["pos_embed"].shape[1]
    except KeyError as error:
        raise InputError(f"{folder}: there is no tensor {error}, which every vision transformer has here.") from None
    image_size = math.isqrt(positions - 1) * patch
    try:
        network: nn.Module = create_model(
            kind, pretrained=False, **{**arguments, "num_classes": 0, "img_size": image_size, "global_pool": "token"}
        )
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise InputError(f"{folder}: timm cannot build its {kind!r} ({error}).") from error
    if type(network) is not VisionTransformer:
        raise InputError(f"{folder}: {kind!r} is no plain vision transformer. Legal: {LEGAL}.")
    try:
        network.load_state_dict(encoder)
    except RuntimeError as error:
        raise InputError(
            f"{folder}: the weights are not those of a {kind} that reads the CLS token: {error}"
        ) from error
    block: Any = network.blocks[0]
    architecture = {
        "image_size": image_size,
        "patch_size": patch,
        "width": network.embed_dim,
        "depth": len(network.blocks),
        "heads": block.attn.num_heads,
        "mlp_width": block.mlp.fc1.out_features,
        "decoder_depth": 0,
        "norm_eps": block.norm1.eps,
    }
    network.eval()
    return Found(
        "image",
        architecture,
        {f"encoder.{name}": tensor for name, tensor in encoder.items()},
        ignored=ignored,
        features=lambda images: network.forward_features(images)[:, 0],
    )


# ------------------------------------------------------------------------------------------------ text


def _masked_language_model(folder: Path, raw: dict[str, Any], state: dict[str, Tensor]) -> Found:
    """A BERT or RoBERTa of transformers, with or without its masked-language-model head."""
    import transformers

    _require(
        folder,
        raw,
        {
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
        },
    )
    classes: dict[str, Any] = {
        "bert": transformers.BertForMaskedLM,
        "roberta": transformers.RobertaForMaskedLM,
        "xlm-roberta": transformers.XLMRobertaForMaskedLM,
        "camembert": transformers.CamembertForMaskedLM,
    }
    kind, of = NETWORKS[raw["model_type"]], classes[raw["model_type"]]
    config = _configuration(folder, of.config_class, raw)
    config.tie_word_embeddings = True  # what _tied has checked
    try:
        with _quiet():
            network, loading = of.from_pretrained(
                None,
                config=config,
                state_dict=_tied(folder, kind, state),
                output_loading_info=True,
                dtype=torch.float32,
                attn_implementation="sdpa",
            )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: the weights are not those that config.json describes: {error}") from error
    prefix = f"{network.base_model_prefix}."
    if absent := sorted(name for name in loading["missing_keys"] if name.startswith(prefix)):
        raise InputError(f"{folder}: the weights lack a part of the encoder: {', '.join(absent)}.")
    buffers = ("embeddings.position_ids", "embeddings.token_type_ids")
    left = {name: name.removeprefix(prefix) for name in loading["unexpected_keys"]}
    left = {name: bare for name, bare in left.items() if bare not in buffers and not bare.startswith("pooler.")}
    if odd := sorted(name for name, bare in left.items() if bare.startswith(("embeddings.", "encoder."))):
        raise InputError(f"{folder}: the encoder has tensors that config.json does not tell of: {', '.join(odd)}.")
    tokenizer = _tokenizer(folder, raw["model_type"])
    tensors, fresh = _parts(network, {"encoder": network.base_model_prefix, "decoder": HEAD[kind]}, loading)
    network.eval()
    return Found(
        "text",
        {
            "network": kind,
            "vocabulary": config.vocab_size,
            "width": config.hidden_size,
            "depth": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "mlp_width": config.intermediate_size,
            "positions": config.max_position_embeddings,
            "segments": config.type_vocab_size,
            "norm_eps": config.layer_norm_eps,
            "dropout": float(config.hidden_dropout_prob),
            **_token_fields(folder, kind, config, tokenizer),
        },
        tensors,
        fresh=fresh,
        ignored=tuple(sorted(left)),
        tokenizer=tokenizer.to_str(),
        features=lambda inputs: network.base_model(**inputs).last_hidden_state[:, 0],
    )


def _parts(
    network: Any, modules: Mapping[str, str], loading: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The loaded parameters of these modules under our parts' names, tied ones once; and which the file lacked."""
    tensors, fresh = {}, []
    seen: set[int] = set()
    for part, module in modules.items():
        for name, parameter in getattr(network, module).named_parameters():
            if id(parameter) in seen:
                continue  # the projection, tied to the embeddings
            seen.add(id(parameter))
            if f"{module}.{name}" in loading["missing_keys"]:
                fresh.append(f"{part}.{name}")
            else:
                tensors[f"{part}.{name}"] = parameter.detach()
    return tensors, tuple(sorted(fresh))


def _configuration(folder: Path, kind: Any, raw: dict[str, Any]) -> Any:
    from huggingface_hub.errors import StrictDataclassError

    try:
        with _quiet():
            return kind.from_dict(raw)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} is no configuration of a {raw['model_type']}: {error}") from error


def _tied(folder: Path, kind: Network, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the output projection, which must be the word embeddings; its bias under one name."""
    tied = dict(state)
    projection, bias = PROJECTION[kind]
    twins = {
        f"{projection}.weight": [name for name in state if name.endswith("embeddings.word_embeddings.weight")],
        f"{projection}.bias": [bias] if bias in state else [],
    }
    for name, others in twins.items():
        tensor = tied.pop(name, None)
        if tensor is None:
            continue
        if not others and name.endswith("bias"):
            tied[bias] = tensor
        elif not all(torch.equal(tensor, state[other]) for other in others):
            raise InputError(
                f"{folder}: {name} differs from {others[0]}. Here the output projection of a masked language model is "
                "tied to its word embeddings, so this head cannot be used."
            )
    return tied


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's reports: what matters of them is returned or refused."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


# ------------------------------------------------------------------------------------------------ tokenizers


def _tokenizer(folder: Path, model_type: str) -> Tokenizer:
    """The folder's fast tokenizer, or the one that transformers makes of its vocabulary; without padding, uncut."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER
    if path.is_file():
        try:
            tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            raise InputError(f"{path} cannot be read as a tokenizer ({error}).") from error
    else:
        tokenizer = _slow_tokenizer(folder, model_type)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _slow_tokenizer(folder: Path, model_type: str) -> Tokenizer:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in VOCABULARIES):
        raise InputError(f"{folder} holds no tokenizer: neither {TOKENIZER} nor {', '.join(VOCABULARIES)}.")
    try:
        with _quiet():
            loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer: Tokenizer = loaded.backend_tokenizer
    except (OSError, ValueError, TypeError, KeyError, ImportError, AttributeError) as error:
        raise InputError(
            f"{folder}: transformers cannot make a fast tokenizer of its {model_type} vocabulary ({error}). "
            f"Add a {TOKENIZER}."
        ) from error
    return tokenizer


def _token_fields(folder: Path, kind: Network, config: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the tokenizer tells of the backbone; refuses one that does not belong to the network."""
    told: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            told |= _read_json(folder / name)
    named = {
        role: value["content"] if isinstance(value, dict) else value
        for role, value in {**SPECIAL[kind], **told}.items()
        if role.endswith("_token") and (isinstance(value, str) or (isinstance(value, dict) and "content" in value))
    }
    ids = {role: tokenizer.token_to_id(token) for role, token in named.items()}
    pad, mask = ids["pad_token"], ids["mask_token"]
    if pad is None or mask is None:
        raise InputError(f"{folder}: of {named['pad_token']!r} and {named['mask_token']!r} the tokenizer lacks one.")
    if config.pad_token_id not in (None, pad):
        raise InputError(f"{folder}: padding is {config.pad_token_id} in config.json and {pad} in the tokenizer.")
    added = tokenizer.get_added_tokens_decoder()
    special = {token for token, entry in added.items() if entry.special} | {i for i in ids.values() if i is not None}
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= config.vocab_size:
        raise InputError(
            f"{folder}: the tokenizer's ids go up to {largest}, but there are only {config.vocab_size} word embeddings."
        )
    if tokenizer.encode("a").ids[0] not in special:
        raise InputError(f"{folder}: the tokenizer puts no special token first, from which features could be read.")
    first = pad + 1 if kind == "roberta" else 0
    longest = told.get("model_max_length")
    told_length = [int(longest)] if isinstance(longest, int | float) and longest >= 1 else []
    return {
        "max_length": min(LONGEST, config.max_position_embeddings - first, *told_length),
        "pad_id": pad,
        "mask_id": mask,
        "special_ids": sorted(special),
    }
