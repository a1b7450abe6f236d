"""What a checkpoint says about itself is what is done; what it does not say is refused with what was looked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3_ranker_plugins import InvalidInputError, Reranker, UnsupportedModelError
from qwen3_ranker_plugins.models import Scoring, read_spec, resolve_checkpoint
from qwen3_ranker_plugins.models.chat_template import ChatTemplate
from qwen3_ranker_plugins.models.cross_encoder_files import CrossEncoderFiles
from qwen3_ranker_plugins.models.families import MXBAI_RERANK_V2, ZERANK
from qwen3_ranker_plugins.models.weights import read_rows
from qwen3_ranker_plugins.prompt import TEMPLATES, load_tokenizer
from tests.forms import (
    NO,
    YES,
    ZERANK_CHAT,
    change_weights,
    copy_of,
    edit_json,
    write_classifier,
    write_cross_encoder,
    write_with_added_words,
)


def test_the_original_form(tiny: Path) -> None:
    spec = read_spec(tiny)
    assert (spec.architecture, spec.family, str(spec.scoring)) == ("Qwen3ForCausalLM", "qwen3-reranker", "yes - no")
    assert spec.template == TEMPLATES["standard"]
    assert spec.max_positions == 8192
    assert set(spec.sources) >= {"architecture", "family", "scoring", "template", "instruction"}


def test_only_the_model_and_its_repository_name_a_family(tiny: Path, tmp_path: Path) -> None:
    """The folders in which somebody compares models do not."""
    compared = copy_of(tiny, tmp_path / "zerank-experiments" / "a" / "model")
    assert read_spec(compared, name=str(compared)).family == "qwen3-reranker"
    snapshot = copy_of(tiny, tmp_path / "models--zeroentropy--zerank-2" / "snapshots" / "6e9e69830b95")
    assert read_spec(snapshot, name="ours").family == "zerank"
    assert read_spec(tiny, name="zeroentropy/zerank-2").family == "zerank"


@pytest.mark.parametrize(
    "name", ["qwen3-distilled-from-zerank", "zerank-experiment", "my-mxbai-rerank-v2", "no-ctxl-rerank"]
)
def test_the_name_of_a_model_from_which_another_learned_decides_nothing(name: str, tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / name)
    with pytest.raises(UnsupportedModelError, match=r"its name holds .*scoring='yes - no'"):
        read_spec(folder, name=str(folder))
    spec = read_spec(folder, name=str(folder), scoring="yes - no")
    assert (spec.family, spec.template) == ("qwen3-reranker", TEMPLATES["standard"])
    if "zerank" in name:
        spec = read_spec(folder, name=str(folder), scoring="Yes / 5")
        assert (spec.family, str(spec.scoring)) == ("zerank", "Yes / 5")
        assert "the labels that were given" in spec.sources["family"]


def test_stronger_evidence_than_a_name_decides(tiny: Path, tmp_path: Path) -> None:
    """What the user gives, the files of sentence-transformers, the chat template and the score head, in this order."""
    capital = load_tokenizer(tiny).find("Yes")
    assert capital is not None
    assert read_spec(tiny, name="zerank-2", scoring="yes - no").template == TEMPLATES["standard"]
    assert read_spec(tiny, name="zerank-2", scoring="Yes - No").family == "zerank"
    labels = write_cross_encoder(tiny, tmp_path / "labels", YES, NO)
    for name in ("zerank-2", "ours-from-zerank"):
        spec = read_spec(labels, name=name)
        assert (spec.family, str(spec.scoring)) == ("qwen3-reranker", "yes - no")
    edit_json(labels / "1_LogitScore" / "config.json", true_token_id=capital, false_token_id=None)
    (labels / "chat_template.jinja").unlink()
    spec = read_spec(labels, name="ours-from-zerank", template=TEMPLATES["standard"])
    assert str(spec.scoring) == "Yes / 5"

    chat = copy_of(tiny, tmp_path / "chat")
    (chat / "chat_template.jinja").write_text(ZERANK_CHAT)
    assert read_spec(chat, name="qwen3-reranker-ours").family == "zerank"
    (chat / "chat_template.jinja").write_text(ZERANK_CHAT.replace("system", "user"))
    with pytest.raises(
        UnsupportedModelError, match=r"'zerank', and its chat template is not that of zerank.*'Yes / 5'"
    ):
        read_spec(chat, name="zerank-2")
    spec = read_spec(chat, name="zerank-2", scoring="Yes / 5")
    assert spec.family == "zerank"
    assert str(spec.template_without_instruction).startswith("<|im_start|>user\n{query}")

    assert read_spec(write_classifier(tiny, tmp_path / "head"), name="zerank-2").family == "qwen3-reranker"


def test_the_divisor_of_a_family_stays_unless_another_is_given(tiny: Path, tmp_path: Path) -> None:
    capital = load_tokenizer(tiny).find("Yes")
    head = write_classifier(tiny, tmp_path / "head", (capital or 0, None))
    for folder, name, scoring in ((head, "", "score-head"), (tiny, "zerank-2", "Yes")):
        for given, divisor in ((scoring, 5), (f"{scoring} / 5", 5), (f"{scoring} / 1", 1), (f"{scoring} / 2", 2)):
            spec = read_spec(folder, name=name, scoring=given)
            assert (spec.family, spec.scoring.divisor, spec.sources["scoring"]) == ("zerank", divisor, "given")
    assert read_spec(tiny, name="zerank-2", scoring="Yes - No").scoring.divisor == 1


@pytest.mark.parametrize(
    ("text", "scoring"),
    [
        ("yes - no", Scoring("yes", "no")),
        ("yes-no", Scoring("yes", "no")),
        ("Yes / 5", Scoring("Yes", None, 5.0)),
        ("1 - 0 / 2.5", Scoring("1", "0", 2.5)),
        ("score-head", Scoring(None)),
        ("score-head / 5", Scoring(None, None, 5.0)),
        (" score-head ", Scoring(None)),
    ],
)
def test_scoring_is_read_and_written(text: str, scoring: Scoring) -> None:
    assert Scoring.parse(text) == scoring
    assert Scoring.parse(str(scoring)) == scoring


@pytest.mark.parametrize("text", ["", "yes -", "yes - no - maybe", "yes / 0", "yes / x", "yes / -1", "a b"])
def test_scoring_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"scoring=.*'yes - no'"):
        Scoring.parse(text)


def test_a_classifier_is_told_by_its_head(tiny: Path, tmp_path: Path) -> None:
    spec = read_spec(write_classifier(tiny, tmp_path / "classifier"))
    assert (spec.family, str(spec.scoring)) == ("qwen3-reranker", "score-head")
    assert "rows of its embeddings" in spec.sources["family"]


def test_a_classifier_made_of_the_logit_of_yes_alone_is_zeranks(tiny: Path, tmp_path: Path) -> None:
    """Its vendor divides that logit by five; the difference of two labels is not divided."""
    capital = load_tokenizer(tiny).find("Yes")
    spec = read_spec(write_classifier(tiny, tmp_path / "classifier", (capital or 0, None)))
    assert (spec.family, str(spec.scoring)) == ("zerank", "score-head / 5")
    assert spec.template_without_instruction == ZERANK.template_without_instruction


def test_a_classifier_with_two_labels_is_refused(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=2).save_pretrained(tmp_path / "two")
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "two")
    with pytest.raises(UnsupportedModelError, match=r"2 labels.*one label"):
        read_spec(tmp_path / "two")


@pytest.mark.parametrize(
    ("bias", "shown"),
    [
        (torch.tensor([0.5], dtype=torch.float64), r"F64 \[1\]"),
        (torch.tensor(0.5), r"F32 \[\]"),
        (torch.tensor([0.5, 1.0]), r"F32 \[2\]"),
        (torch.tensor([[0.5]]), r"F32 \[1, 1\]"),
    ],
)  # fmt: skip
def test_a_bias_that_is_not_that_of_one_label_is_refused(
    bias: torch.Tensor, shown: str, tiny: Path, tmp_path: Path
) -> None:
    folder = write_head(tiny, tmp_path / "head", np.ones(256, np.float32))
    change_weights(folder, score__bias=bias)
    with pytest.raises(UnsupportedModelError, match=rf"stores score\.bias as {shown}.*save it in that form"):
        read_spec(folder, scoring="score-head")


def write_head(tiny: Path, target: Path, row: NDArray[np.float32]) -> Path:
    copy_of(tiny, target)
    change_weights(target, score__weight=torch.from_numpy(row)[None])
    edit_json(target / "config.json", architectures=["Qwen3ForSequenceClassification"])
    return target


def test_a_classifier_tells_by_its_head_on_what_it_was_trained(tiny: Path, tmp_path: Path) -> None:
    """A head of random weights was trained on a prompt that the folder does not say; other libraries join the texts."""
    yes, no = read_rows(tiny, "model.embed_tokens.weight", [YES, NO])  # type: ignore[misc]
    noise = np.random.default_rng(0).normal(size=yes.shape).astype(np.float32)
    trained = write_head(tiny, tmp_path / "trained", yes - no + noise * (yes - no).std() / 2)
    edit_json(trained / "config.json", num_labels=2, id2label={"0": "a", "1": "b"})  # as converters leave it
    assert read_spec(trained).family == "qwen3-reranker"
    with pytest.raises(UnsupportedModelError, match=r"opposite sign of 'yes - no'"):
        read_spec(write_head(tiny, tmp_path / "swapped", no - yes))
    other = write_head(tiny, tmp_path / "other", noise)
    for name in ("", "my-reranker", "qwen3-reranker-ours"):
        with pytest.raises(UnsupportedModelError, match=r"on which prompt it was trained.*scoring='score-head'"):
            read_spec(other, name=name)
    assert read_spec(other, scoring="score-head").family == "qwen3-reranker"
    assert read_spec(other, template="{query} {document}").family == "qwen3-reranker"
    assert read_spec(other, name="tomaarsen/Qwen3-Reranker-0.6B-seq-cls").family == "qwen3-reranker"
    edit_json(other / "config.json", sentence_transformers={"version": "5.0.0"})
    with pytest.raises(UnsupportedModelError, match=r"key 'sentence_transformers', so a CrossEncoder.*no prompt"):
        read_spec(other)


@pytest.mark.parametrize("architecture", ["Qwen3ForSequenceClassification", "Qwen2ForSequenceClassification"])
def test_a_classifiers_chat_template_for_pairs_says_its_prompt(architecture: str, tiny: Path, tmp_path: Path) -> None:
    """CrossEncoder scores it, whatever the model's name and its score head are."""
    folder = write_head(tiny, tmp_path / "model", np.ones(256, np.float32))
    edit_json(folder / "config.json", architectures=[architecture], model_type=architecture[:5].lower())
    (folder / "chat_template.jinja").write_text(PAIR.replace("CONTENT", "m.content"))
    spec = read_spec(folder)
    assert (str(spec.scoring), spec.instruction) == ("score-head", None)
    assert spec.template == "query: {query}document: {document}A:"
    assert "its chat template" in spec.sources["family"]


def test_the_length_of_zeranks_head_tells_whether_it_is_divided(tiny: Path, tmp_path: Path) -> None:
    capital = load_tokenizer(tiny).find("Yes")
    assert capital is not None
    [row] = read_rows(tiny, "model.embed_tokens.weight", [capital])  # type: ignore[misc]
    for length, scoring in ((1.0, "score-head / 5"), (0.2, "score-head"), (0.1999, "score-head")):
        folder = write_head(tiny, tmp_path / f"length_{length}", row * np.float32(length))
        for given in (None, "score-head"):
            assert str(read_spec(folder, scoring=given).scoring) == scoring
    other = np.random.default_rng(0).normal(size=row.shape).astype(np.float32)
    for name, head, found in (("half", row / 2, r"0\.5 times the length of"), ("zerank-2", other, "not made of")):
        folder = write_head(tiny, tmp_path / name, head)
        for given in (None, "score-head"):
            with pytest.raises(
                UnsupportedModelError, match=rf"{found} the row of 'Yes'.*'score-head / 1' if.*'score-head / 5' if"
            ):
                read_spec(folder, scoring=given)
        for given, divisor in (("score-head / 1", 1), ("score-head / 5", 5)):
            spec = read_spec(folder, scoring=given)
            assert (spec.family, spec.scoring.divisor) == ("zerank", divisor)


PAIR = "{%- for m in messages if m.role in ('query', 'document') %}{{- m.role ~ ': ' ~ (CONTENT) }}{%- endfor %}A:"


def template_of(chat: str, **variables: object) -> str | None:
    return ChatTemplate(Path("model"), chat, False, variables).as_template(with_instruction=False)


@pytest.mark.parametrize(
    "content",
    ["m.content | upper", "m.content | trim", "m.content[:40]", "m.content or 'none'", "m.content | tojson",
     "m.content ~ ('!' if 'Lava' in m.content else '')", "m.content ~ ('!' if m.content | length > 99999 else '')",
     "(m.content ~ '') | replace('a', 'b')", "'%s' % m.content | upper", "'{}'.format(m.content) | upper",
     "[m.content, ''] | join | capitalize", "m.content if m.content != 'why?' else ''", "m.content.split() | join(' ')",
     "m.content if m.content in ['why?', 'who?'] else 'x'", "m.content if m.content < 'z' else 'x'", "[m.content]",
     "m.content ~ (['why?', m.content] | unique | list | length)", "m.content | map('trim') | join", "m.content * 2"],
)  # fmt: skip
def test_a_chat_template_that_changes_texts_is_refused(content: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"model: its chat template changes the query.*or depends on"):
        template_of(PAIR.replace("CONTENT", content))


@pytest.mark.parametrize(
    "chat",
    [
        PAIR.replace("CONTENT", "m.content"),
        PAIR.replace("CONTENT", "m.content if m.content is string else m.content[0].text"),
        PAIR.replace("CONTENT", "m.content if m.content is iterable and m.content is not mapping else ''"),
        PAIR.replace("CONTENT", "m.content | default('') | string if m.content else ''"),
        PAIR.replace("CONTENT", "[m.content] | join"),
        """{% set all = namespace(text='') %}
        {% for m in messages %}{% set all.text = all.text + m.role + ': ' + m.content %}{% endfor %}{{ all.text }}A:""",
        """{% macro one(m) %}{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}{% endmacro %}
        {% for m in messages %}{{ one(m) }}{% endfor %}A:""",
        """query: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first -}}
        document: {{ (messages | last).content }}A:{% set today = strftime_now('%d %b %Y') %}""",
    ],
)
def test_a_chat_template_may_insert_texts_in_any_way(chat: str) -> None:
    rendered = template_of(chat)
    assert rendered is not None
    assert rendered.strip() == "query: {query}document: {document}A:"


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("{{ 1 / 0 }}", "cannot be rendered: ZeroDivisionError"),
        ("{{ messages + 1 }}", "cannot be rendered: TypeError"),
        ("{{ 10.0 ** 400 }}", "cannot be rendered: OverflowError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "cannot be rendered: RecursionError"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "cannot be rendered: RecursionError"),
        (PAIR.replace("CONTENT", "m.content ~ strftime_now('%Y')"), "date of the call.*write the date of"),
        (PAIR.replace("CONTENT", "m.content") + "{{ lipsum() }}", "cannot be rendered: Undefined"),
    ],
)
def test_a_chat_template_that_says_nothing_of_a_prompt_is_refused(chat: str, message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"model: its chat template .*{message}"):
        template_of(chat)


def test_a_chat_template_knows_the_special_tokens_and_may_be_one_of_several(tiny: Path, tmp_path: Path) -> None:
    """Of several, sentence-transformers takes the content of messages for a list."""
    folder = copy_of(tiny, tmp_path / "model")
    chat = (
        "{%- for m in messages if m.role in ('query', 'document') %}{{- m.content[0].text ~ eos_token }}{%- endfor %}"
    )
    several = [{"name": "tools", "template": "x"}, {"name": "default", "template": chat}]
    edit_json(folder / "tokenizer_config.json", chat_template=several)
    assert read_spec(folder).template == "{query}<|im_end|>{document}<|im_end|>"


def test_labels_of_sentence_transformers(tiny: Path, tmp_path: Path) -> None:
    spec = read_spec(write_cross_encoder(tiny, tmp_path / "pair", YES, NO))
    assert str(spec.scoring) == "yes - no"
    assert spec.sources["scoring"] == "1_LogitScore/config.json"
    capital = load_tokenizer(tiny).find("Yes")
    assert capital is not None
    spec = read_spec(write_cross_encoder(tiny, tmp_path / "single", capital, None))
    assert str(spec.scoring) == "Yes"


def test_the_chat_template_of_a_folder_is_its_prompt(tiny: Path, tmp_path: Path) -> None:
    capital = load_tokenizer(tiny).find("Yes")
    assert capital is not None
    folder = write_cross_encoder(tiny, tmp_path / "zerank", capital, None, ZERANK_CHAT)
    spec = read_spec(folder)
    assert (spec.family, str(spec.scoring)) == ("zerank", "Yes / 5")
    assert spec.instruction is None
    # sentence-transformers saves these files with an adapter too, whose base need not have them.
    spec = read_spec(tiny, adapter=folder)
    assert (spec.family, str(spec.scoring)) == ("zerank", "Yes / 5")
    assert spec.sources["scoring"] == "1_LogitScore/config.json of the adapter"

    other = (
        "{{- '<|im_start|>user\n' }}{%- for m in messages if m.role == 'system' %}{{- 'Task {' + m.content + '}\n' }}"
        "{%- endfor %}{%- for m in messages if m.role == 'query' %}{{- 'Q: ' + m.content }}{%- endfor %}"
        "{%- for m in messages if m.role == 'document' %}{{- '\nD: ' + m.content }}{%- endfor %}"
        "{{- '<|im_end|>\n<|im_start|>assistant\n' }}"
    )
    folder = write_cross_encoder(tiny, tmp_path / "other", YES, NO, other)
    spec = read_spec(folder)
    assert spec.template_without_instruction == (
        "<|im_start|>user\nQ: {query}\nD: {document}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spec.template == (
        "<|im_start|>user\nTask {{{instruction}}}\nQ: {query}\nD: {document}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert spec.instruction is None
    edit_json(folder / "config_sentence_transformers.json", prompts={"web": "Find answers."}, default_prompt_name="web")
    assert read_spec(folder).instruction == "Find answers."
    edit_json(folder / "config_sentence_transformers.json", prompts={"web": ""})
    assert read_spec(folder).instruction is None
    (folder / "modules.json").write_text("[]")
    with pytest.raises(UnsupportedModelError, match=r"lists no LogitScore.*scoring="):
        read_spec(folder)
    assert str(read_spec(folder, scoring="yes - no").scoring) == "yes - no"


def test_a_document_before_the_query_is_refused(tiny: Path, tmp_path: Path) -> None:
    chat = "{% for m in messages|reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    folder = write_cross_encoder(tiny, tmp_path / "reverse", YES, NO, chat)
    with pytest.raises(UnsupportedModelError, match="document before the query"):
        read_spec(folder)


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ("{{ messages[0].content }} {{ messages[0].content }} {{ messages[1].content }}", "repeats the query"),
        ("{% for m in messages %}", "cannot be rendered"),
    ],
)
def test_a_chat_template_that_is_no_prompt_is_refused(tiny: Path, tmp_path: Path, chat: str, message: str) -> None:
    folder = write_cross_encoder(tiny, tmp_path / "model", YES, NO, chat)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        read_spec(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "chat",
    [None, "{{ raise_exception('roles must alternate') }}", "{% for m in messages if m.role == 'user' %}{% endfor %}"],
)
def test_modules_without_a_chat_template_for_pairs_are_refused(chat: str | None, tiny: Path, tmp_path: Path) -> None:
    """CrossEncoder refuses them, or gives a classifier the two texts with no prompt."""
    folder = write_cross_encoder(tiny, tmp_path / "model", YES, NO)
    prompts = {"prompts": {"web": "Find answers."}, "default_prompt_name": "web"}
    edit_json(folder / "config_sentence_transformers.json", **prompts)
    (folder / "chat_template.jinja").unlink()
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat)
    message = r"model has .*modules\.json, and no chat template that renders.*copy chat_template\.jinja.*template="
    for scoring in (None, "yes - no"):
        with pytest.raises(UnsupportedModelError, match=message):
            read_spec(folder, scoring=scoring)
    spec = resolve_checkpoint(folder, template=TEMPLATES["standard"]).spec
    assert (str(spec.scoring), spec.instruction) == ("yes - no", "Find answers.")
    with Reranker(folder, template=TEMPLATES["standard"]) as reranker, Reranker(tiny) as original:
        [hit], [due] = reranker.rerank("q", ["d"]), original.rerank("q", ["d"], instruction="Find answers.")
        assert hit.margin == pytest.approx(due.margin, abs=1e-4)
    yes, no = read_rows(tiny, "model.embed_tokens.weight", [YES, NO])  # type: ignore[misc]
    change_weights(folder, score__weight=torch.from_numpy(yes - no)[None])
    edit_json(folder / "config.json", architectures=["Qwen3ForSequenceClassification"])
    (folder / "modules.json").write_text(json.dumps([MODEL]))
    edit_json(
        folder / "sentence_bert_config.json", transformer_task="sequence-classification", module_output_name="scores"
    )
    for scoring in (None, "score-head"):
        with pytest.raises(UnsupportedModelError, match=message):
            read_spec(folder, scoring=scoring)


@pytest.mark.parametrize("file", ["modules.json", "sentence_bert_config.json"])
def test_a_damaged_file_of_sentence_transformers_is_named(tiny: Path, tmp_path: Path, file: str) -> None:
    folder = write_cross_encoder(tiny, tmp_path / "model", YES, NO)
    (folder / file).write_text("[{")
    with pytest.raises(UnsupportedModelError, match=rf"{file} cannot be read"):
        read_spec(folder)


MODEL = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
SCORE = {
    "idx": 1,
    "name": "1",
    "path": "1",
    "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
}


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([MODEL, SCORE | {"type": "sentence_transformers.models.Pooling"}], "is an embedding model.*Pooling"),
        ([MODEL, SCORE | {"type": "sentence_transformers.models.Router"}], "models.Router, and only"),
        ([MODEL, SCORE | {"type": "mypackage.modules.LogitScore"}], "module mypackage.modules.LogitScore, and only"),
        ([MODEL, SCORE, SCORE | {"name": "2"}], "Transformer, LogitScore, LogitScore.*one LogitScore after it"),
        ([SCORE, MODEL], "LogitScore, Transformer.*one LogitScore after it"),
        ([MODEL, SCORE | {"name": "0"}], "each with a name of its own"),
        ([MODEL, SCORE | {"precision": 2}], "says 1.precision=2, and only sentence-transformers"),
        ([MODEL | {"path": "0_Transformer"}, SCORE], 'move the files of .*0_Transformer to .*, and write "path": ""'),
    ],
)  # fmt: skip
def test_other_modules_are_refused(tmp_path: Path, modules: list[dict[str, object]], message: str) -> None:
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedModelError, match=message):
        CrossEncoderFiles.read(tmp_path)
    if "move" in message:  # where there is no config.json either
        with pytest.raises(UnsupportedModelError, match=message):
            resolve_checkpoint(tmp_path)


def test_labels_that_sentence_transformers_ignores_are_refused(tmp_path: Path) -> None:
    (tmp_path / "1_LogitScore").mkdir()
    with pytest.raises(
        UnsupportedModelError, match=r"no modules\.json.*download modules\.json, or remove 1_LogitScore"
    ):
        CrossEncoderFiles.read(tmp_path)


def test_qwen2_is_refused_unless_something_names_it(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "some-model")
    edit_json(folder / "config.json", architectures=["Qwen2ForCausalLM"], model_type="qwen2")
    with pytest.raises(UnsupportedModelError, match=r"does not say how it judges.*scoring='1 - 0'"):
        read_spec(folder)
    assert read_spec(folder, scoring="1 - 0").family == MXBAI_RERANK_V2.name
    assert read_spec(folder, name="mixedbread-ai/mxbai-rerank-base-v2").family == MXBAI_RERANK_V2.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["JinaForRanking"]}, "listwise"),
        ({"architectures": ["BertForSequenceClassification"]}, "Qwen3ForCausalLM"),
        ({"architectures": None}, "None as architectures"),
        ({"architectures": ["Qwen3Model"]}, "embedding model"),
        ({"max_position_embeddings": None}, "max_position_embeddings=None"),
        ({"quantization_config": {"bits": 4}}, "quant_method"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, "quantised by MLX.*mlx_lm.convert --dequantize"),
        ({"quantization": {"bits": 4, "group_size": 64, "mode": "affine"}}, "quantised by MLX.*--dequantize"),
        ({"text_config": {"max_position_embeddings": 99999}}, "text_config=.*a qwen3 model has none.*remove it"),
    ],
)
def test_what_says_nothing_clear_is_refused(
    tiny: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(UnsupportedModelError, match=message):
        read_spec(folder)


def test_an_architecture_that_is_no_list_is_read(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    edit_json(folder / "config.json", architectures="Qwen3ForCausalLM")
    assert read_spec(folder).architecture == "Qwen3ForCausalLM"


def test_yarn_counts_in_the_longest_prompt(tiny: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny, tmp_path / "model")
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    edit_json(folder / "config.json", rope_scaling=rope)
    assert read_spec(folder).max_positions == 32768
    for kind in ("default", "linear"):
        edit_json(folder / "config.json", rope_scaling=rope | {"rope_type": kind})
        assert read_spec(folder).max_positions == 8192


def test_two_sets_of_weights_are_refused(tiny: Path, tmp_path: Path) -> None:
    """transformers and vLLM would read different ones."""
    folder = copy_of(tiny, tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}}))
    read_spec(folder)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(
        UnsupportedModelError, match=r"and model\.safetensors\.index\.json, which names model-00001.*vLLM"
    ):
        read_spec(folder)
    index.rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(
        UnsupportedModelError, match=r"has model\.safetensors and model-00001-of.*vLLM.*remove the files"
    ):
        read_spec(folder)


def test_scoring_that_the_architecture_cannot_give(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no score head"):
        read_spec(tiny, scoring="score-head")
    with pytest.raises(InvalidInputError, match="has a score head"):
        read_spec(write_classifier(tiny, tmp_path / "classifier"), scoring="yes - no")


def test_added_words_count_and_control_tokens_cannot_be_written(tiny: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = write_with_added_words(tiny, tmp_path / "model", ["volcanoes", "crust", "New York", "[TITLE]", "<b>"])
    tokenizer, reference = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert set(tokenizer.vocabulary) == {"volcanoes", "crust", "New York", "[TITLE]", "<b>"}
    for text in (
        "how are volcanoes formed?",
        "the crust",
        "volcanoescrust",
        "in New York now",
        "New Yor",
        "[TITLE] <b>x",
    ):
        assert tokenizer.encode(text) == reference(text, add_special_tokens=False)["input_ids"]
    for control in ("<|im_end|>", "</think>"):
        assert tokenizer.control[control] not in tokenizer.encode(f"crust{control}volcanoes")
