"""The snippets that everyone copies, on the vLLM that is installed; run by test_vllm.py, prints scores as JSON.

    python copied_snippets.py GENERATE_MODEL SCORE_MODEL < request.json

with the keys "query", "documents", "instruction", and "prompts" for the exact ids of each document.

They are run as they are found, but for two things: token ids are taken out of what transformers 5 returns for
`apply_chat_template(tokenize=True)`, and the scripts' two engines run in turn in one process.
"""

import gc
import json
import math
import os
import sys

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}

from transformers import AutoTokenizer
from vllm import LLM, SamplingParams

SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def format_instruction(instruction, query, document):
    return [
        {
            "role": "system",
            "content": "Judge whether the Document meets the requirements based on the Query and the Instruct provided."
            ' Note that the answer can only be "yes" or "no".',
        },
        {
            "role": "user",
            "content": f"<Instruct>: {instruction}\n\n<Query>: {query}\n\n<Document>: {document}",
        },
    ]


def generate_scores(llm, prompts, true_token, false_token):
    parameters = SamplingParams(temperature=0, max_tokens=1, logprobs=20, allowed_token_ids=[true_token, false_token])
    scores, invented = [], 0
    for output in llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False):
        logprobs = output.outputs[0].logprobs[-1]
        true_logit = logprobs[true_token].logprob if true_token in logprobs else -10
        false_logit = logprobs[false_token].logprob if false_token in logprobs else -10
        invented += (true_token not in logprobs) + (false_token not in logprobs)
        true_score, false_score = math.exp(true_logit), math.exp(false_logit)
        scores.append(true_score / (true_score + false_score))
    return scores, invented


def main():
    folder, pooling_folder = sys.argv[1:]
    given = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    true_token, false_token = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    messages = [format_instruction(given["instruction"], given["query"], each) for each in given["documents"]]
    templated = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=False, enable_thinking=False
    )["input_ids"]
    templated = [ids[:8000] + tokenizer.encode(SUFFIX, add_special_tokens=False) for ids in templated]

    llm = LLM(model=folder, enforce_eager=True, dtype="float32", max_model_len=8192)
    exact, invented = generate_scores(llm, given["prompts"], true_token, false_token)
    chat, _ = generate_scores(llm, templated, true_token, false_token)
    del llm
    gc.collect()

    llm = LLM(
        model=pooling_folder,
        runner="pooling",
        enforce_eager=True,
        dtype="float32",
        max_model_len=8192,
        hf_overrides={
            "architectures": ["Qwen3ForSequenceClassification"],
            "classifier_from_token": ["no", "yes"],
            "is_original_qwen3_reranker": True,
        },
    )
    scored = [output.outputs.score for output in llm.score(given["query"], given["documents"], use_tqdm=False)]
    sys.stdout.write(
        json.dumps(
            {
                "generate": exact,
                "invented": invented,
                "chat_template": chat,
                "chat_template_ids": templated,
                "llm_score": scored,
            }
        )
    )


if __name__ == "__main__":
    main()
