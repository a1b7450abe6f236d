"""The training recipe: every stage at a tiny size, and the properties that the shipped tokenizer and model rest on."""

import gzip
import json
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="the recipe needs torch")
transformers = pytest.importorskip("transformers", reason="the recipe is compared with transformers")
from safetensors.torch import load_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from qwen3_ranker_plugins.prompt.template import TEMPLATES  # noqa: E402
from tests.training.conftest import ROOT  # noqa: E402
from training import candidates, instructions  # noqa: E402
from training.agreement import agreement, target_logits  # noqa: E402
from training.batches import SPELLINGS, STYLES, Batch, Sampler  # noqa: E402
from training.candidates import ENGLISH, fit_logistic, language_class  # noqa: E402
from training.evaluate import load_exported  # noqa: E402
from training.evaluate import main as evaluate  # noqa: E402
from training.languages import QUESTIONS  # noqa: E402
from training.lexical import OFFSET, SLOPE, LexicalStream  # noqa: E402
from training.mine import mine  # noqa: E402
from training.model import ModelShape, RowLayout, TinyQwen3, causal  # noqa: E402
from training.passages import (  # noqa: E402
    CONTRADICTING,
    DOCUMENT_VARIANTS,
    HEAD_VARIANTS,
    RENAMEABLE,
    head_ids,
    join,
    ragged,
)
from training.perturb import misspelt, perturbed, title_case, without_diacritics  # noqa: E402
from training.prepare_data import question, wordy_request  # noqa: E402
from training.prompt import COMPACT, CONTRADICTIONS, HF, SUFFIX, PromptTokens, prompt, token_id  # noqa: E402
from training.read import renumber  # noqa: E402
from training.robustness import table as changes_table  # noqa: E402
from training.scoring import read_lists  # noqa: E402
from training.smoke import smoke  # noqa: E402
from training.sparse import TermIndex, hashed_terms  # noqa: E402
from training.teacher import Teacher, pack, unpack  # noqa: E402
from training.texts import BM25, characters, query_variants, terms, windows  # noqa: E402
from training.train import PHASES, Trainer, choose_class, learning_rate, load, parse, train  # noqa: E402

TINY = ROOT / "models" / "tiny" / "qwen3_ranker_tiny"
SMALL = ModelShape(
    vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    intermediate_size=48,
)  # fmt: skip
SUBJECTS = ("copper", "violin", "glacier", "saffron", "lantern", "orchid", "anchor", "falcon")
CHINESE = ("銅", "小提琴", "冰川", "番红花", "灯笼", "兰花", "船锚", "猎鹰")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(TINY / "tokenizer.json"))


@pytest.fixture
def train_folder(tmp_path: Path) -> Path:
    """A train folder in the format of the real one, from texts made up here."""
    english_text = (
        "Every year in the last week of October the old {0} is carried down from the upper hall of the house and kept "
        "in the cellar, wrapped in wool, until spring. Nobody but the keeper may touch the {0} there. In spring "
        "the {0} returns to its place beside the western window, where visitors can see it."
    )
    chinese_text = "每年十月的最后一周，人们把{0}从楼上搬到地下室，用羊毛包好，直到春天。除了看守人，谁也不能碰{0}。"
    english = [
        {"query": f"Where is the {name} kept in winter?", "positive": english_text.format(name), "lang": "en"}
        for name in SUBJECTS
    ]
    chinese = [
        {"query": f"{name}冬天放在哪里？", "positive": chinese_text.format(name), "lang": "zh"} for name in CHINESE
    ]
    folder = tmp_path / "pairs"
    folder.mkdir()
    for name, rows in (("invented_en", english), ("invented_zh", chinese)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return folder


def test_smoke_recipe_ends_in_a_model_that_transformers_loads(train_folder: Path, tmp_path: Path) -> None:
    """All stages in order, with a resume in between; our scores and transformers' must be the same numbers."""
    folder = smoke(train_folder, TINY, tmp_path / "out", steps=4)
    reference = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    encode = transformers.AutoTokenizer.from_pretrained(folder)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert set(scores) == {"invented_en", "invented_zh"}
    row = read_lists(tmp_path / "out" / "data" / "heldout" / "invented_en.jsonl.gz")[0]
    document = row["docs"][0]
    ids = encode(prompt(row["query"], document["text"]), return_tensors="pt").input_ids
    with torch.no_grad():
        logits = reference(ids).logits[0, -1]
    yes, no = (encode.convert_tokens_to_ids(label) for label in ("yes", "no"))
    assert scores["invented_en"][row["qid"]][document["docid"]] == pytest.approx(
        float(logits[yes] - logits[no]), abs=1e-3
    )


def test_mining_needs_the_teachers_that_were_read_for(tmp_path: Path) -> None:
    """Ids of another tokenizer would be encoded without a complaint."""
    rows = torch.zeros(1), torch.zeros(2)
    torch.save({"passages": (rows, rows, (rows,)), "queries": (rows, rows, (rows,))}, tmp_path / "read.pt")
    with pytest.raises(ValueError, match=r"read.pt was read with 1 teachers' tokenizers, but 0 are given"):
        mine(tmp_path / "read.pt", TINY / "tokenizer.json", [], tmp_path / "mined.pt", ["cpu"], 0)
    assert not (tmp_path / "mined.pt").exists()


def test_weights_are_kept_on_the_way(train_folder: Path, tmp_path: Path) -> None:
    """Evaluations of the second half keep what they looked at, as it would ship; the last ones are the checkpoint's."""
    exported = smoke(train_folder, TINY, tmp_path, steps=2)
    known = load_file(exported / "model.safetensors")
    call = [
        "--smoke", "--device", "cpu", "--steps", "6", "--eval-seconds", "0",
        "--mined", str(tmp_path / "mined.pt"), "--tokenizer", str(tmp_path / "tokenizer" / "tokenizer.json"),
        "--checkpoint", str(tmp_path / "checkpoint"),
    ]  # fmt: skip
    train(parse(call))
    kept = sorted(tmp_path.glob("checkpoint/weights-*"))
    assert [path.name for path in kept] == ["weights-4.safetensors", "weights-5.safetensors"]
    first, second = (load_file(path) for path in kept)
    assert {name: (w.shape, w.dtype) for name, w in first.items()} == {
        name: (w.shape, w.dtype) for name, w in known.items()
    }
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_two_ranks_train_one_model(train_folder: Path, tmp_path: Path) -> None:
    """torchrun with two processes: twice the pairs a step, one schedule, and weights that stay equal."""
    smoke(train_folder, TINY, tmp_path, steps=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    trained = [
        "-m", "training.train", "--smoke", "--device", "cpu", "--steps", "5",
        "--mined", str(tmp_path / "mined.pt"), "--tokenizer", str(tmp_path / "tokenizer" / "tokenizer.json"),
        "--checkpoint", str(tmp_path / "checkpoint"),
    ]  # fmt: skip
    before = load(tmp_path / "checkpoint", "cpu")
    done = subprocess.run([*torchrun, *trained], capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    apart = re.search(r"weights of 2 ranks differ by (\S+) at most", done.stdout)
    assert apart is not None
    assert float(apart[1]) < 1e-5, "on a CPU the last bit may differ"
    after = load(tmp_path / "checkpoint", "cpu")
    assert before is not None
    assert after is not None
    assert after["step"] == 5
    assert (after["pairs"] - before["pairs"]) % 4 == 0, "two ranks' batches of two documents a row"
    assert not torch.equal(after["model"]["model.norm.weight"], before["model"]["model.norm.weight"])


def test_model_equals_transformers() -> None:
    model = TinyQwen3(SMALL)
    model.initialise(None, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    config = transformers.Qwen3Config(**SMALL.as_dict(), tie_word_embeddings=True, max_position_embeddings=256)
    reference = transformers.Qwen3ForCausalLM(config).eval()
    missing = reference.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert missing in ([], ["lm_head.weight"])
    reference.tie_weights()
    ids = torch.randint(SMALL.vocab_size, (3, 40))
    with torch.no_grad():
        ours = model.logits(model.hidden(ids, torch.arange(40).expand(3, -1), causal, torch.float32))
        torch.testing.assert_close(ours, reference(ids).logits, atol=1e-5, rtol=1e-4)


def small_rows() -> tuple[RowLayout, torch.Tensor, torch.Tensor, torch.Tensor]:
    layout = RowLayout(head=16, documents=3, slot=8)
    head_lengths = torch.tensor([11, 16])
    place = torch.arange(layout.slot).repeat(layout.documents)
    head = torch.arange(layout.head).expand(2, -1)
    return (
        layout,
        torch.randint(96, (2, layout.length)),
        torch.cat([head, head_lengths[:, None] + place], 1),
        head_lengths,
    )


def test_a_row_scores_its_documents_as_if_each_stood_alone() -> None:
    """The shared head is an optimisation: no document may see another, nor the head's padding."""
    model = TinyQwen3(SMALL)
    model.initialise(None, seed=1)
    layout, ids, positions, head_lengths = small_rows()
    with torch.no_grad():
        rows = model.hidden(ids, positions, layout.dense(head_lengths), torch.float32)
        for row, head_length in enumerate(head_lengths.tolist()):
            for document in range(layout.documents):
                start = layout.head + document * layout.slot
                alone = torch.cat([ids[row, :head_length], ids[row, start : start + layout.slot]])[None]
                states = model.hidden(alone, torch.arange(alone.shape[1])[None], causal, torch.float32)
                torch.testing.assert_close(
                    rows[row, start : start + layout.slot], states[0, head_length:], atol=1e-5, rtol=1e-4
                )


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("layout", [RowLayout(8, 4, 8), RowLayout(256, 2, 72), RowLayout(384, 1, 160)])
def test_flex_rows_equal_dense_rows(layout: RowLayout) -> None:
    """The block mask is built once, before the head lengths are known; they are read when it runs.

    Without a compiler FlexAttention asks the mask everywhere; the compiled kernel skips the blocks that the block mask
    leaves out and asks nothing in those it calls full. So these are checked by themselves.
    """
    lengths = [2, layout.head // 3, layout.head // 2, layout.head - 1, layout.head]
    buffer = torch.ones(len(lengths), dtype=torch.long)
    flex = layout.flex(buffer)
    block_mask = layout.block_mask(torch.ones(len(lengths), dtype=torch.long))
    assert block_mask.full_kv_num_blocks is None
    size = block_mask.BLOCK_SIZE[0]
    listed = block_mask.to_dense()[0, 0].bool().repeat_interleave(size, 0).repeat_interleave(size, 1)
    places = torch.arange(layout.length)
    for length in lengths:
        shown = layout.allowed(places[:, None], places[None], torch.tensor(length))
        assert listed[: layout.length, : layout.length][shown].all()

    buffer.copy_(torch.tensor(lengths))
    query = torch.randn(len(lengths), 4, layout.length, 16)
    key, value = torch.randn(len(lengths), 2, layout.length, 16), torch.randn(len(lengths), 2, layout.length, 16)
    torch.testing.assert_close(flex(query, key, value), layout.dense(buffer)(query, key, value), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for the CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_rows_equal_dense_rows() -> None:
    """The compiled kernel does skip blocks: heads shorter than, as long as and longer than one block of two."""
    layout = RowLayout(256, 2, 72)
    lengths = torch.tensor([70, 128, 200])
    buffer = torch.ones(3, dtype=torch.long)
    flex = layout.flex(buffer)
    buffer.copy_(lengths)
    query, key, value = (torch.randn(3, heads, layout.length, 32) for heads in (4, 2, 2))
    compiled = torch.compile(flex, dynamic=False)(query, key, value)
    torch.testing.assert_close(compiled, layout.dense(lengths)(query, key, value), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_teacher_equals_transformers(kind: str) -> None:
    sizes = {
        "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 200,
    }  # fmt: skip
    classes = {
        "bert": (transformers.BertConfig, transformers.BertModel),
        "mpnet": (transformers.MPNetConfig, transformers.MPNetModel),
    }
    config_class, model_class = classes[kind]
    reference = model_class(config_class(**sizes)).eval()
    teacher = Teacher(reference.config.to_dict(), reference.state_dict(), "cpu")
    ids = torch.randint(5, 60, (2, 150))
    with torch.no_grad():
        torch.testing.assert_close(teacher.hidden_states(ids), reference(ids).last_hidden_state, atol=1e-4, rtol=1e-3)


def test_packed_teacher_weights_are_close(tmp_path: Path) -> None:
    weights = {"matrix": torch.randn(64, 32), "vector": torch.randn(32)}
    parts = [tmp_path / "part0.npz", tmp_path / "part1.npz"]
    pack(weights, parts)
    unpacked = unpack(parts)
    assert (unpacked["matrix"] - weights["matrix"]).norm() / weights["matrix"].norm() < 0.02
    assert torch.equal(unpacked["vector"], weights["vector"])


def test_shipped_tokenizer_is_a_valid_bpe(tokenizer: Tokenizer) -> None:
    """Every merge joins kept tokens into a kept token, and merges come in the order of their ids."""
    model = json.loads((TINY / "tokenizer.json").read_text("utf-8"))["model"]
    vocabulary = model["vocab"]
    made = [left + right for left, right in model["merges"]]
    assert all(part in vocabulary for merge in model["merges"] for part in merge)
    assert [vocabulary[token] for token in made] == list(range(256, 256 + len(made)))
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))
    assert tokenizer.get_vocab_size() == json.loads((TINY / "config.json").read_text())["vocab_size"]
    assert (TINY / "model.safetensors").stat().st_size <= 15 * 2**20


def test_shipped_tokenizer_loses_no_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    planes = [
        (0x20, 0x7E),
        (0xA0, 0x24F),
        (0x370, 0x5FF),
        (0x3041, 0x30FF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0, 0x1F),
    ]
    for _ in range(300):
        low, high = rng.choice(planes)
        text = "".join(chr(rng.randint(low, high)) if rng.random() < 0.8 else rng.choice(" \n\tAé") for _ in range(40))
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == unicodedata.normalize(
            "NFC", text
        )


@pytest.mark.parametrize("label", ["yes", "no", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>"])
def test_labels_and_control_tokens_are_single(tokenizer: Tokenizer, label: str) -> None:
    assert len(tokenizer.encode(label).ids) == 1


def test_head_document_and_suffix_compose(tokenizer: Tokenizer) -> None:
    """An engine encodes the three parts separately; the ids must be those of the whole prompt."""
    tokens = PromptTokens(tokenizer)
    assert tokens.suffix == tokenizer.encode(SUFFIX).ids
    rng = random.Random(1)
    alphabet = ["the", "Copper", " ", "  ", "\n", "健身", "T恤", "3.5", "'s", "!", "é", "臺灣", "x_1", "—"]
    for _ in range(300):
        query = "".join(rng.choices(alphabet, k=rng.randint(1, 8))).strip()
        document = "".join(rng.choices(alphabet, k=rng.randint(1, 20))).strip()
        parts = tokens.heads([query])[0] + tokens.documents([document])[0] + tokens.suffix
        assert parts == tokenizer.encode(prompt(query, document)).ids


def test_long_query_keeps_the_fixed_parts(tokenizer: Tokenizer) -> None:
    tokens = PromptTokens(tokenizer)
    head = tokens.heads(["copper lantern " * 100], max_tokens=100)[0]
    assert len(head) == 100
    assert head[: len(tokens.prefix)] == tokens.prefix
    assert head[-len(tokens.ending) :] == tokens.ending


@pytest.mark.parametrize(("name", "template"), [("compact", COMPACT), ("standard-hf", HF)])
def test_heads_of_other_templates_are_those_of_the_package(
    tokenizer: Tokenizer, name: str, template: tuple[str, str, str]
) -> None:
    """Training shows the prompt that a user of the template sends."""
    tokens = PromptTokens(tokenizer)
    fields = {"instruction": "Find passages", "query": "Where is the falcon?", "document": "In the 3rd hall."}
    whole = tokenizer.encode(TEMPLATES[name].format(**fields)).ids
    head = tokens.other_heads([fields["query"]], template, fields["instruction"], 10_000)[0]
    assert head + tokens.documents([fields["document"]])[0] + tokens.suffix == whole
    assert len(tokens.other_heads(["copper lantern " * 100], template, "Find passages", 90)[0]) == 90


def test_every_query_has_all_heads(tokenizer: Tokenizer) -> None:
    """Capitals are capitals, and the contradicting instruction is where the sampler expects it."""
    tokens = PromptTokens(tokenizer)
    [heads] = head_ids(tokens, ["Where is the Orchid kept?"], 0, 256)
    texts = [tokenizer.decode(ids) for ids in heads]
    assert len(texts) == HEAD_VARIANTS == len(SPELLINGS)
    assert "<Query>: WHERE IS THE ORCHID KEPT?" in texts[3]
    assert "<Query>: orchid kept\n" in texts[2]
    assert any(instruction in texts[CONTRADICTING] for instruction in CONTRADICTIONS)
    assert all(ids[: len(tokens.prefix)] == tokens.prefix for ids in heads[:RENAMEABLE])
    assert sum(SPELLINGS) == pytest.approx(1)
    assert sum(STYLES) == pytest.approx(1)


def test_targets_turn_round_where_the_instruction_does() -> None:
    """The teacher has a say only where it is asked; short passages and the shift come on top."""
    targets = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
    batch = Batch(targets, targets, targets, targets, targets)
    assert batch.final_targets(None, 0.5, -1.0) is targets, "the lexical stream knows its targets"
    batch.taught = torch.tensor([[True, False], [True, True]])
    batch.added = torch.tensor([[0.0, -1.0], [0.0, 0.0]])
    batch.sign = torch.tensor([[1.0], [-1.0]])
    margins = torch.full((2, 2), 4.0)
    assert batch.final_targets(margins, 0.5, -0.5).tolist() == [[2.5, -3.5], [-2.5, -0.5]]
    assert batch.final_targets(None, 0.5, 0.0).tolist() == [[2.0, -3.0], [-2.0, 2.0]]
    assert batch.final_targets(margins, 1.0, -0.5).tolist() == [[3.5, 3.5], [-3.5, -3.5]], "nothing but the teacher"


def test_spellings_mean_the_same() -> None:
    rng = random.Random(0)
    text = "Où est l’échelle du théâtre? In the hall"
    assert without_diacritics("théâtre Ärger ж 日本 ガ") == "theatre Arger ж 日本 ガ"
    assert title_case("where is  it") == "Where Is  It"
    assert perturbed(text, "upper", rng) == text.upper()
    slips = [misspelt("the falcon hall", rng, 1.0) for _ in range(50)]
    assert all(slip.startswith("the f") for slip in slips), "short words and first letters stay"
    assert len(set(slips)) > 20
    with pytest.raises(ValueError, match="no spelling 'rot13'"):
        perturbed(text, "rot13", rng)


def test_questions_in_other_languages_hold_words_of_the_passage() -> None:
    text = "Der Falke wird jeden Herbst in den Keller getragen. Im Frühling kehrt er zurück in die Halle."
    rng = random.Random(0)
    found = {question(text, "de", rng) for _ in range(30)} - {""}
    assert len(found) > 10
    for asked in found:
        assert asked.endswith("?")
        assert any(asked.startswith(begin) for begin in QUESTIONS["de"])
    assert terms("кошками кошкам") == ["кошкам", "кошкам"], "the first six letters stand for a word"
    assert terms("カメラ") == ["カ", "メ", "ラ", "カメ", "メラ"]
    assert [language_class(lang) for lang in ("en", "zh", "zh-Hant", "ru")] == [
        ENGLISH,
        candidates.CHINESE,
        candidates.CHINESE,
        candidates.OTHER,
    ]


def sampler_of(
    tokenizer: Tokenizer, tokens: PromptTokens, renamed_share: float = 0.0, neighbours_share: float = 0.0
) -> tuple[Sampler, torch.Tensor]:
    """A sampler over random passages, one query of which has all of them as candidates; and the token counts.

    Passage 0 is the query's own and also its nearest neighbour; the target of a passage is its number.
    """
    rng = random.Random(2)
    passages = [[rng.randrange(300, 14_000) for _ in range(rng.randint(30, 60))] for _ in range(113)]
    documents, starts = ragged([ids for ids in passages for _ in range(DOCUMENT_VARIANTS)])
    heads, head_starts = ragged(tokens.heads(["copper lanterns hang in the hall"]) * HEAD_VARIANTS)
    candidates = torch.arange(113).view(1, 1, -1)
    candidates[..., 1] = 0
    mined = {
        "heads": heads, "head_starts": head_starts, "documents": documents, "document_starts": starts,
        "candidates": candidates, "targets": candidates.half(), "suffix": tokens.suffix,
        "penalty": torch.zeros(113), "unit_language": torch.zeros(113), "query_language": torch.zeros(1),
        "groups": [(ENGLISH, "labelled", "x")], "group": torch.zeros(1, dtype=torch.long),
        "prefix": tokens.prefix, "ending": tokens.ending,
        "vocabulary": tokenizer.get_vocab_size(), "ordinary": tokenizer.get_vocab_size() - 5,
    }  # fmt: skip
    sampler = Sampler(mined, "cpu", 0, tokenizer.token_to_id("<|endoftext|>"), renamed_share, neighbours_share)
    return sampler, torch.ones(tokenizer.get_vocab_size())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_without_the_own_passage(tokenizer: Tokenizer, share: float) -> None:
    """In such a row passage 0 is nowhere, as its own neighbour neither; the others stay, and go on to hold it."""
    sampler, _ = sampler_of(tokenizer, PromptTokens(tokenizer), neighbours_share=share)
    with_own = (sampler.natural(RowLayout(128, 16, 72), 200, 0).targets == 0).any(1)
    assert abs(float(with_own.float().mean()) - (1 - share)) < 0.15 * (0 < share < 1) + 1e-6


def test_squared_error_pulls_margins_to_the_targets() -> None:
    """A row of margins off by a constant costs nothing; where differences are wrong, the loss grows by their size."""
    layout = RowLayout(16, 3, 8)
    targets = torch.tensor([[1.0, -2.0, 0.5]])
    lengths = torch.tensor([11])

    class Fixed(Trainer):
        given: torch.Tensor

        def scores(self, *_: object, **__: object) -> torch.Tensor:
            logits = torch.full((1, 3, SMALL.vocab_size), -9.0)
            logits[..., 9], logits[..., 2] = self.given, 0.0
            return logits

    def added(margins: torch.Tensor) -> float:
        losses = []
        for weight in (0.0, 0.5):
            trainer = Fixed(TinyQwen3(SMALL), 9, 2, ((layout, 1),), "cpu", squared_error=weight)
            trainer.given = margins
            loss, _ = trainer.loss(lengths, lengths, lengths, targets, trainer.attends[0])
            losses.append(float(loss))
        return losses[1] - losses[0]

    assert added(targets + 3) == pytest.approx(0, abs=1e-6)
    # (.2, -.1, -.1) from the mean of the differences, each squared and halved, a third of their sum, half of that.
    assert added(targets + torch.tensor([[0.3, 0.0, 0.0]])) == pytest.approx(
        0.5 * (0.04 + 0.01 + 0.01) / 2 / 3, abs=1e-6
    )


def test_renaming_keeps_what_matches(tokenizer: Tokenizer) -> None:
    """One exchange of names for the query and all its passages; prompt, suffix, lengths and the other rows stay."""
    tokens = PromptTokens(tokenizer)
    layout = RowLayout(128, 4, 72)
    plain = sampler_of(tokenizer, tokens)[0].natural(layout, 64, 0)
    sampler, _ = sampler_of(tokenizer, tokens, renamed_share=0.5)
    renamed = sampler.natural(layout, 64, 0)
    assert torch.equal(plain.head_lengths, renamed.head_lengths)
    assert torch.equal(plain.readouts, renamed.readouts)
    changed = (plain.ids != renamed.ids).any(1)
    assert 10 < int(changed.sum()) < 50
    fixed = renamed.ids[:, : len(tokens.prefix)]
    assert torch.equal(fixed, plain.ids[:, : len(tokens.prefix)])
    assert (renamed.ids.gather(1, renamed.readouts) == tokens.suffix[-1]).all()
    names: dict[int, int] = {}
    written = {*tokens.prefix, *tokens.ending, *tokens.suffix}  # these keep their names there
    for old, new in zip(plain.ids[changed].flatten().tolist(), renamed.ids[changed].flatten().tolist(), strict=True):
        if old not in written:
            assert names.setdefault(old, new) == new, "one name for one token"
    assert len(set(names.values())) == len(names), "and no name for two"
    assert 0.15 < sum(old != new for old, new in names.items()) / len(names) < 0.45


def test_lexical_stream_plants_what_it_asks_for(tokenizer: Tokenizer) -> None:
    """The first passage holds the whole query; targets lie between none and all; readouts point at the answer place."""
    tokens = PromptTokens(tokenizer)
    sampler, counts = sampler_of(tokenizer, tokens)
    layout = RowLayout(128, 4, 72)
    batch = LexicalStream(sampler, counts).batch(layout, 16)
    assert torch.allclose(batch.targets[:, 0], torch.tensor(OFFSET + SLOPE))
    assert ((batch.targets >= OFFSET - 1e-4) & (batch.targets <= OFFSET + SLOPE + 1e-4)).all()
    assert (batch.ids.gather(1, batch.readouts) == tokens.suffix[-1]).all()
    for row in range(16):
        length = int(batch.head_lengths[row])
        query = batch.ids[row, len(tokens.prefix) : length - len(tokens.ending)].tolist()
        assert query
        assert batch.ids[row, length - len(tokens.ending) : length].tolist() == tokens.ending
        assert set(query) <= set(batch.ids[row, layout.head : layout.head + layout.slot].tolist())


def term_rows(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return join([hashed_terms(texts)])


def test_sparse_bm25_agrees_with_the_reference() -> None:
    documents = [
        f"the {a} beside the {b}, {a}s and one {c}"
        for a, b, c in zip(SUBJECTS, SUBJECTS[1:], SUBJECTS[2:], strict=False)
    ]
    queries = ["falcon beside an orchid", "glaciers", "lantern saffron"]
    index = TermIndex(*renumber(term_rows(documents), term_rows(queries)), "cpu")
    asked, largest = index.questions(torch.arange(len(queries)))
    scores = (index.weights(torch.arange(len(documents))) @ asked).T
    reference = BM25(documents)
    for number, query in enumerate(queries):
        best = reference.top(query, 2)
        assert scores[number].argmax().item() == best[0]
        assert 0 < scores[number].max() <= largest[number]


def test_agreement_of_a_run_with_its_targets(tmp_path: Path) -> None:
    """Margins twice the targets: all the correlation, twice the spread. The targets are the weighted features."""
    texts = ["copper is kept here", "copper and violins", "glaciers", "violins are kept in wool"]
    docs = [{"docid": str(n), "text": text, "rel": int(n == 1), "rank": n + 1} for n, text in enumerate(texts)]
    rows = [
        {"qid": str(q), "query": word, "docs": docs, "all_rels": [1]} for q, word in enumerate(("copper", "violins"))
    ]
    teacher = {row["qid"]: {str(n): 0.1 * n * (int(row["qid"]) + 1) for n in range(4)} for row in rows}
    targets = target_logits(rows, [teacher], [2.0, 3.0, -1.0])
    assert targets["0"]["2"] == pytest.approx(2 * 0.2 - 1), "no word of the query: no coverage"
    assert targets["0"]["0"] > -1 + 3 * 0.2, "the covered share by BM25, below 1 times its weight"
    assert targets["0"]["0"] < -1 + 3
    found = agreement(rows, {q: {d: 2 * x + 1 for d, x in values.items()} for q, values in targets.items()}, targets)
    assert found["correlation"] == 1
    assert found["margin deviation"] == pytest.approx(2 * found["target deviation"], abs=2e-4)


def test_the_table_has_bm25_over_characters_for_chinese_sets(tmp_path: Path) -> None:
    """Hand-counted: the first list's relevant document shares all three characters of the query, the other one."""
    rows = {
        "made_zh": [("z", "小提琴", "提琴和小号", "小号"), ("y", "灯笼", "一盏灯笼", "一盏灯")],
        "made_en": [("e", "falcon", "a falcon", "an orchid")],
    }
    runs = {}
    for name, queries in rows.items():
        with gzip.open(tmp_path / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            for qid, query, good, bad in queries:
                docs = [
                    {"docid": qid + "0", "text": bad, "rank": 1, "rel": 0},
                    {"docid": qid + "1", "text": good, "rank": 2, "rel": 1},
                ]
                row = {"qid": qid, "query": query, "docs": docs, "all_rels": [1]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        runs[name] = {qid: {qid + "0": -1.0, qid + "1": 1.0} for qid, *_ in queries}
    (tmp_path / "run.json").write_text(json.dumps(runs))
    lists = [str(tmp_path / f"{name}.jsonl.gz") for name in rows]
    evaluate(["table", "--lists", *lists, "--run", f"tiny={tmp_path / 'run.json'}", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "quality.json").read_text())
    assert found["made_zh"]["systems"]["BM25 (characters)"]["nDCG@10"] == 1.0
    assert found["made_zh"]["systems"]["BM25"]["nDCG@10"] == pytest.approx(0.6309, abs=1e-4)
    assert "BM25 (characters)" not in found["made_en"]["systems"]


def test_terms_windows_and_variants() -> None:
    assert characters("小提琴 and 2 violins") == ["小", "提", "琴", "and", "2", "violins"]
    assert terms("The glaciers and the Glacier") == ["glacier", "glacier"]
    assert terms("小提琴") == ["小", "提", "琴", "小提", "提琴"]
    text = "One two three. Four five six. Seven eight nine."
    assert windows(text, 6) == ["One two three. Four five six.", "Seven eight nine."]
    assert query_variants("Where is the Falcon?") == ("Where is the Falcon?", "where is the falcon", "falcon")


def test_logistic_regression_finds_the_weights() -> None:
    torch.manual_seed(0)
    features = torch.randn(20_000, 2)
    labels = torch.rand(20_000) < torch.sigmoid(2 * features[:, 0] - features[:, 1])
    weights = fit_logistic(features, labels)
    assert weights[:2].tolist() == pytest.approx([2.0, -1.0], abs=0.1)


def test_schedule_covers_every_class_and_ends_at_zero() -> None:
    assert learning_rate(0.0) > 0
    assert learning_rate(0.3) == 1.0
    assert learning_rate(1.0) == 0.0
    for name, phases in PHASES.items():
        for begin, (end, shares) in zip((0.0, *(end for end, _ in phases)), phases, strict=False):
            progress = (begin + min(end, 1.0)) / 2
            counts = [sum(choose_class(progress, step, name) == c for step in range(20)) / 20 for c in range(4)]
            assert counts == pytest.approx(shares, abs=0.051)


def test_wordy_requests_are_of_the_passage() -> None:
    text = (
        "The boundary layer on a flat plate grows with the distance from its leading edge. Heat moves through it "
        "by conduction near the wall and by turbulent mixing further out. Measurements at high speed agree with the "
        "theory for smooth surfaces only. Rough surfaces need a correction that depends on the height of the grains."
    )
    rng = random.Random(0)
    requests = [request for _ in range(200) if (request := wordy_request(text, "Boundary layers", rng))]
    assert len(set(requests)) > 50
    assert all("{" not in request and len(request.split()) <= 80 for request in requests)
    assert sum(request in text for request in requests) > 20, "sentences in a row"
    assert any("Boundary layers" in request for request in requests), "the title in a sentence of ours"
    own = [set(terms(request)) for request in requests if request not in text]
    assert all(words & set(terms(text)) for words in own)
    assert wordy_request("Too short.", "", random.Random(1)) == ""


def test_other_instructions_leave_a_relevant_passage_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "instructions.json"
    monkeypatch.setattr(
        "sys.argv", ["instructions", "--model", f"shipped={TINY}", "--questions", "2", "--out", str(out)]
    )
    instructions.main()
    found = json.loads(out.read_text("utf-8"))["shipped"]
    assert list(found) == list(instructions.INSTRUCTIONS)
    assert all(each["P relevant"] > each["P other"] for each in found.values())


def test_margins_of_bfloat16_states_do_not_tie() -> None:
    """Logits rounded to bfloat16 leave 226 different margins of 400, and ties keep the first stage's order."""
    model, tokenizer = load_exported(TINY, "cpu")
    states = torch.randn(400, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    logits = model.logits(states)
    margin = logits[:, token_id(tokenizer, "yes")] - logits[:, token_id(tokenizer, "no")]
    assert len(margin.unique()) == 400


@pytest.mark.parametrize(
    ("page", "before", "after"),
    [
        ("training/README.md", "robust/before", "robust/after"),
        ("training/README.md", "robust/after", "own_margins/after"),
        ("models/tiny/qwen3_ranker_tiny/README.md", "robust/before", "own_margins/after"),
    ],
)
def test_pages_show_the_measured_changes(page: str, before: str, after: str) -> None:
    found = (json.loads((ROOT / f"training/results/{name}.json").read_text("utf-8")) for name in (before, after))
    text = (ROOT / page).read_text("utf-8")
    assert f"<!-- robustness -->\n{changes_table(*found)}\n<!-- end of robustness -->" in text
