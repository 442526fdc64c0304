"""Language models of Hugging Face's from a folder: random GPT-2 and OPT, saved and opened without any network."""

import json

import pytest
import torch
from captioner_made import SMALL, captioner, opened, pictures, tower

from parity.trainer.captioning import borrowed
from parity.trainer.captioning.language import open_language
from parity.trainer.captioning.model import Captioner

TEXTS = ["a dog on the mat", "the cat"]


@pytest.fixture(scope="module", params=["gpt2", "opt", "opt with a projection"])
def folder(request, tmp_path_factory):
    transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")
    tokenizers = pytest.importorskip("tokenizers", reason="the package tokenizers is not installed")
    out = tmp_path_factory.mktemp("model")
    words = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = tokenizers.decoders.ByteLevel()
    words.train_from_iterator(TEXTS * 5, tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "</s>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    torch.manual_seed(0)
    if request.param == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, n_positions=32, bos_token_id=1, eos_token_id=1))
    else:
        model = transformers.OPTForCausalLM(transformers.OPTConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, ffn_dim=32, pad_token_id=0,
            max_position_embeddings=32, word_embed_proj_dim=8 if "projection" in request.param else 16, bos_token_id=1,
            eos_token_id=1))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def test_closed_gates_give_transformers_own_logits(folder):
    """Bit-equal to its forward on the same ids, <BOS> where <image> stands; open gates do not."""
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    model = Captioner(SMALL, tower(), open_language(folder)).eval()
    words = model.language
    tokens = torch.tensor([[words.start, words.image, *words.encode(text)][:4] for text in TEXTS])
    with torch.no_grad():
        alone = theirs(input_ids=torch.where(tokens == words.image, words.start, tokens)).logits
        assert torch.equal(model(pictures(2), tokens), alone)
        opened(model)
        assert not torch.allclose(model(pictures(2), tokens), alone)
        assert len(words.model.state_dict()) == len(theirs.state_dict())
        assert all(torch.equal(x, words.model.state_dict()[name]) for name, x in theirs.state_dict().items())


def test_words_go_in_and_come_out(folder):
    words = open_language(folder)
    assert [words.decode(words.encode(text)) for text in TEXTS] == TEXTS
    assert words.start == words.end == 1 and words.image == words.rows and words.longest == 32
    assert words.words_hash == open_language(folder).words_hash


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    content = json.loads((copy / "tokenizer.json").read_text())
    content["added_tokens"] += [dict(content["added_tokens"][0], id=1000 + i, content=f"<{i}>") for i in range(100)]
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokens, its model .*: not of one another"):
        open_language(copy)


def test_weights_that_are_no_safetensors_are_refused(folder, tmp_path):
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match="not a causal language model that transformers can open"):
        open_language(copy)


def test_without_transformers_the_command_is_named(tmp_path, monkeypatch):
    import builtins

    sound = builtins.__import__

    def without(name, *more, **options):
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name="transformers")
        return sound(name, *more, **options)

    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"needs the package transformers: pip install transformers"):
        borrowed.Borrowed.open(tmp_path)


def test_ours_counts_as_theirs():
    """The two kinds offer the same names."""
    ours = captioner().language
    for name in ("kind", "width", "embed_width", "depth", "rows", "longest", "start", "end", "image", "words_hash"):
        assert hasattr(ours, name) and (hasattr(borrowed.Borrowed, name) or name in ours.__dict__), name
