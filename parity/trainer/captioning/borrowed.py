"""A causal language model of Hugging Face's, from a local folder: GPT-2, OPT, Pythia, LLaMA and whatever is built like them.

Nothing is fetched, no code of the folder is run, and weights are read from safetensors alone.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor, nn


class Borrowed(nn.Module):
    """What language.Own is of ours, of a model of `transformers`."""

    kind = "transformers"

    def __init__(self, model: Any, tokenizer: Any, name: str):
        super().__init__()
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.table = model.get_input_embeddings()
        self.rows, self.embed_width = self.table.weight.shape
        config = model.config
        self.width, self.depth = config.hidden_size, config.num_hidden_layers
        self.longest = int(getattr(config, "max_position_embeddings", 0) or 1 << 20)
        self.layers = blocks_of(model, self.depth, name)
        if len(tokenizer) > self.rows:
            raise ValueError(f"--language {name}: its tokenizer has {len(tokenizer)} tokens, its model {self.rows}: not of one "
                             "another; put the tokenizer's files that came with the model beside it")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"--language {name}: its tokenizer has no end of text (eos_token), which ends a caption")
        self.end = tokenizer.eos_token_id
        self.start = self.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.image = self.rows

    @classmethod
    def open(cls, folder: Path) -> "Borrowed":
        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ModuleNotFoundError as error:
            raise ValueError(f"--language {folder}: a model of Hugging Face's needs the package {error.name}: "
                             "pip install transformers") from error
        how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **how)
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **how)
        except Exception as error:                        # whatever a stranger's folder makes of it
            raise ValueError(f"--language {folder}: not a causal language model that transformers can open "
                             f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}); expected "
                             "config.json, model.safetensors and the tokenizer's files of one") from error
        return cls(model.float().eval(), tokenizer, str(folder))

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens (B,L) below rows -> (B,L,embed_width)"""
        return self.table(tokens)

    def forward(self, x: Tensor, before: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """x (B,L,embed_width) -> logits (B,L,rows)"""
        with ExitStack() as stack:
            for i, layer in enumerate(self.layers):
                if before is None:
                    break
                stack.callback(layer.register_forward_pre_hook(changed(before, i), with_kwargs=True).remove)
            return self.model(inputs_embeds=x, use_cache=False).logits

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    @property
    def words_hash(self) -> str:
        """sha256 of what decides the ids."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{content}{self.start},{self.end}".encode()).hexdigest()


def changed(before: Callable[[int, Tensor], Tensor], i: int) -> Callable:
    """A hook that hands block i what before(i, x) makes of its input."""
    def hook(module, args, kwargs):
        if args:
            return (before(i, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": before(i, kwargs["hidden_states"])}

    return hook


def blocks_of(model: nn.Module, depth: int, name: str) -> nn.ModuleList:
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(found) != 1:
        raise ValueError(f"--language {name}: expected one list of {depth} blocks in {type(model).__name__}, "
                         f"found {len(found)}: the place of the cross-attention is not known in this model")
    return found[0]
