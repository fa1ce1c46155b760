"""Embedding and rerank models in a mesh: small synthetic models, the real engine, common clients."""

from __future__ import annotations

import base64
import json
import math
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from here import serves, site

from meshllm import paths
from tests.daemons import MODEL, Daemon
from tests.engine_samples import CONTEXT, WIDTH, causal_embedder, embedder, reranker
from tests.netlab.nodes import Node

pytestmark = pytest.mark.engine

# The name says that its vectors may be cut.
EMBEDDER, CAUSAL_EMBEDDER = "tiny-mxbai-embedder", "tiny-causal-embedder"
RERANKER, OLD_RERANKER = "tiny-reranker", "tiny-old-reranker"
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A mesh of nodes with one model each, of all three purposes, and a reranker whose file does not declare it.

    This is the node that serves the chat model; it is asked for all of them.
    """
    files = tmp_path_factory.mktemp("models")
    tiny = (
        embedder(files / f"{EMBEDDER}.gguf"),
        causal_embedder(files / f"{CAUSAL_EMBEDDER}.gguf"),
        reranker(files / f"{RERANKER}.gguf"),
        reranker(files / f"{OLD_RERANKER}.gguf", pooling=None),
    )
    environment = {"MESH_LLM_MODELS": str(paths.models())}
    small = ("--ctx-size", "2048")
    with site(tmp_path_factory.mktemp("mesh")) as here:
        asked = here.node("asked", "--model", MODEL, *small, environment=environment)
        asked.wait_until_serving()
        for path in tiny:
            here.node(path.stem, "--model", str(path), *small, join=asked)
        for path in tiny:
            asked.until(serves(path.stem), path.stem)
        yield asked


@pytest.fixture
def client(node: Daemon) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=node.base_url, api_key="none", max_retries=0, timeout=600) as made:
        yield made


def rank(node: Daemon, path: str = "/rerank", **body: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(
        node.base_url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refused:
        with refused:
            return refused.code, json.load(refused)


def likeness(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_embedding_of_one_text_is_a_unit_vector(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=EMBEDDER, input="the cat sat on the mat")
    vector = answer.data[0].embedding
    assert (answer.model, answer.object, len(answer.data)) == (EMBEDDER, "list", 1)
    assert len(vector) == WIDTH
    assert math.isclose(math.hypot(*vector), 1, rel_tol=1e-4)
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 8  # six words between [CLS] and [SEP]


def test_embeddings_of_a_batch_equal_those_of_single_texts(client: openai.OpenAI) -> None:
    texts = ["the cat sat", "rain and snow", "the cat sat", *(f"red {letter} star" for letter in "abcdefghijkl")]
    batch = client.embeddings.create(model=EMBEDDER, input=texts).data
    assert [entry.index for entry in batch] == list(range(len(texts)))
    assert batch[0].embedding == pytest.approx(batch[2].embedding, abs=1e-4)
    for text, entry in zip(texts[:4], batch[:4], strict=True):
        alone = client.embeddings.create(model=EMBEDDER, input=text).data[0].embedding
        assert likeness(alone, entry.embedding) > 0.9999
    assert likeness(batch[0].embedding, batch[1].embedding) < 0.99


def test_causal_embedding_model_accepts_texts_longer_than_a_batch(client: openai.OpenAI) -> None:
    texts = ["a" * 1500, "b", "a" * 1500]
    vectors = [entry.embedding for entry in client.embeddings.create(model=CAUSAL_EMBEDDER, input=texts).data]
    assert [len(vector) for vector in vectors] == [WIDTH] * 3
    assert likeness(vectors[0], vectors[2]) > 0.9999
    assert likeness(vectors[0], vectors[1]) < 0.99
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=CAUSAL_EMBEDDER, input="a" * 2100)
    assert refused.value.code == "context_length_exceeded"


def test_embeddings_as_floats_and_base64_are_equal(client: openai.OpenAI) -> None:
    """The Python SDK requests base64 by default and decodes it."""
    common: dict[str, Any] = {"model": EMBEDDER, "input": "green dog"}
    floats = client.embeddings.create(**common, encoding_format="float").data[0].embedding
    assert client.embeddings.create(**common).data[0].embedding == pytest.approx(floats, abs=1e-5)
    raw: Any = client.embeddings.create(**common, encoding_format="base64").data[0].embedding
    assert struct.unpack(f"<{WIDTH}f", base64.b64decode(raw)) == pytest.approx(floats, abs=1e-5)


def test_embeddings_of_token_ids(client: openai.OpenAI) -> None:
    tokens = client.embeddings.create(model=EMBEDDER, input=[[5, 6, 7], [8, 9]])
    assert [len(entry.embedding) for entry in tokens.data] == [WIDTH, WIDTH]


def test_embedding_accepts_the_full_context_and_refuses_more(client: openai.OpenAI) -> None:
    client.embeddings.create(model=EMBEDDER, input="cat " * (CONTEXT - 2))
    for count in (CONTEXT - 1, 10 * CONTEXT):  # two tokens more are [CLS] and [SEP]
        with pytest.raises(openai.BadRequestError) as refused:
            client.embeddings.create(model=EMBEDDER, input=["short", "cat " * count])
        assert refused.value.code == "context_length_exceeded"
        assert str(CONTEXT) in refused.value.message
    client.embeddings.create(model=EMBEDDER, input="cat")


@pytest.mark.parametrize("bad", [[], [99999999], [[]], {"a": 1}, None], ids=str)
def test_embedding_of_invalid_input_is_a_typed_error(client: openai.OpenAI, bad: Any) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model=EMBEDDER, input=bad)
    assert refused.value.status_code in (400, 500)
    assert refused.value.message


@pytest.mark.parametrize("model", [RERANKER, OLD_RERANKER])
def test_rerank_orders_documents(node: Daemon, model: str) -> None:
    documents = ["rome is the capital of italy", "a dog", "paris is the capital of france", "rain"]
    status, answer = rank(node, model=model, query="capital of france", documents=documents)
    assert status == 200
    assert answer["model"] == model
    results = answer["results"]
    assert sorted(result["index"] for result in results) == [0, 1, 2, 3]
    scores = [result["relevance_score"] for result in results]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4
    best = rank(node, "/reranking", model=model, query="capital of france", documents=documents, top_n=1)[1]["results"]
    assert [result["index"] for result in best] == [results[0]["index"]]
    alone = rank(node, model=model, query="capital of france", documents=["rain"])[1]["results"][0]
    together = next(result for result in results if result["index"] == 3)
    assert alone["relevance_score"] == pytest.approx(together["relevance_score"], rel=1e-3)


def test_rerank_refuses_a_pair_that_is_too_long(node: Daemon) -> None:
    status, answer = rank(node, model=RERANKER, query="cat", documents=["dog", "dog " * 2 * CONTEXT])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    status, answer = rank(node, model=RERANKER, query="cat", documents=[])
    assert status == 400


def test_models_of_three_purposes_run_side_by_side(client: openai.OpenAI, node: Daemon) -> None:
    chat = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=8)  # type: ignore[arg-type]
    assert chat.choices[0].message.content
    assert client.embeddings.create(model=EMBEDDER, input="hello world").data
    with urllib.request.urlopen(node.owner_request("/api/status"), timeout=60) as answer:
        assert [(model["name"], model["purpose"]) for model in json.load(answer)["models"]] == [(MODEL, "generate")]
    told = {model.id: model.mesh for model in client.models.list() if model.id != "auto"}  # type: ignore[attr-defined]
    assert {name: told[name]["purpose"] for name in told} == {
        MODEL: "generate",
        EMBEDDER: "embed",
        CAUSAL_EMBEDDER: "embed",
        RERANKER: "rerank",
        OLD_RERANKER: "rerank",
    }
    assert told[EMBEDDER]["context_length"] == CONTEXT  # not the 2048 asked for: it has no more positions


@pytest.mark.parametrize("model", [EMBEDDER, RERANKER])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_chat_with_a_model_that_cannot_generate_is_an_error(client: openai.OpenAI, model: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as chat:
        client.chat.completions.create(model=model, messages=CHAT, stream=stream)  # type: ignore[arg-type]
    assert chat.value.code == "wrong_purpose"
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=model, prompt="hello", stream=stream)
    with pytest.raises(openai.BadRequestError):
        client.responses.create(model=model, input="hello", stream=stream)


@pytest.mark.parametrize("model", [MODEL, EMBEDDER])
def test_rerank_with_another_model_is_an_error(node: Daemon, model: str) -> None:
    status, answer = rank(node, model=model, query="a", documents=["b"])
    assert status in (400, 501)
    assert answer["error"]["message"]


@pytest.mark.parametrize("model", [MODEL, RERANKER])
def test_embeddings_with_another_model_is_an_error(client: openai.OpenAI, model: str) -> None:
    """For a reranker the engine would read and return memory beyond its single output number."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=model, input="hello")
    assert refused.value.code == "wrong_purpose"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_chat_with_a_causal_embedding_model_is_an_error(client: openai.OpenAI, stream: bool) -> None:
    """The engine accepts it, but the text would be meaningless."""
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=CAUSAL_EMBEDDER, messages=CHAT, stream=stream)  # type: ignore[arg-type]
    assert refused.value.code == "wrong_purpose"


@pytest.mark.parametrize("coded", ["float", "base64"])
def test_dimensions_are_kept_or_refused_by_a_peer(client: openai.OpenAI, coded: Any) -> None:
    whole = client.embeddings.create(model=EMBEDDER, input="hello", encoding_format="float").data[0].embedding
    short = (
        client.embeddings.create(model=EMBEDDER, input="hello", dimensions=8, encoding_format=coded).data[0].embedding
    )
    if isinstance(short, str):
        short = list(struct.unpack("<8f", base64.b64decode(short)))
    length = math.sqrt(sum(number * number for number in whole[:8]))
    assert short == pytest.approx([number / length for number in whole[:8]], rel=1e-4)
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=EMBEDDER, input="hello", dimensions=WIDTH + 1)
    assert (refused.value.param, refused.value.status_code) == ("dimensions", 400)
    assert str(WIDTH) in refused.value.message


def test_dimensions_of_a_model_that_is_not_trained_for_it_are_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=CAUSAL_EMBEDDER, input="hello", dimensions=8)
    assert (refused.value.param, refused.value.code) == ("dimensions", "unsupported_parameter")
    assert f"{WIDTH} numbers" in refused.value.message
    kept = client.embeddings.create(model=CAUSAL_EMBEDDER, input="hello", dimensions=WIDTH).data[0].embedding
    assert len(kept) == WIDTH


def test_auto_picks_an_embedding_model_of_a_peer(client: openai.OpenAI) -> None:
    answer = client.embeddings.with_raw_response.create(model="auto", input="hello")
    assert answer.headers["x-mesh-llm-model"] in (EMBEDDER, CAUSAL_EMBEDDER)
    chat = client.chat.completions.with_raw_response.create(model="auto", messages=CHAT, max_tokens=2)  # type: ignore[arg-type]
    assert chat.headers["x-mesh-llm-model"] == MODEL
