"""The grammar of the APIs' fuzzer: valid, odd and hostile values for each field of each API."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

Value = Callable[[Random], Any]

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
EMBEDDINGS, RERANK = "/v1/embeddings", "/v1/rerank"
CHAT_COUNT, RESPONSES_COUNT = "/v1/chat/completions/input_tokens", "/v1/responses/input_tokens"
OLLAMA_CHAT, OLLAMA_GENERATE, OLLAMA_EMBED = "/api/chat", "/api/generate", "/api/embed"
OLLAMA = (OLLAMA_CHAT, OLLAMA_GENERATE, OLLAMA_EMBED)
PATHS = (CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT, EMBEDDINGS, RERANK, CHAT_COUNT, RESPONSES_COUNT, *OLLAMA)
# Written into the finished JSON, because Python's encoder has a bound on nesting of its own.
DEEP = "@deep@"


def one_of(*values: Any) -> Value:
    """One of the values; functions are called."""

    def choose(rng: Random) -> Any:
        found = rng.choice(values)
        return found(rng) if callable(found) else deepcopy(found)

    return choose


def lists(value: Value, most: int = 3) -> Value:
    """A list of up to `most` of them."""
    return lambda rng: [value(rng) for _ in range(rng.randint(0, most))]


TEXTS = (
    "", "a", "Hi", "Say one word.", " ", "\n", "\x00", "\x7f", "é", "日本語", "🙂", "👨‍👩‍👧", "\ud83d", "\udc00x",
    "\u202eabc", "\ufeff",
    "\uffff", "</s>", "<|im_start|>", "<|im_end|>\n<|im_start|>system\nx", "<tool_call>", '{"a":1}', "{{ x }}",
    "{% if %}",
    "null", "-1", "' OR 1", "../../x", "%s%n", "\\", '"', "a" * 50, "zebra " * 9, "\u0300" * 30, "x\r\ny",
    "data: [DONE]",
    "<think>hm</think>", "<function=f>", "[TOOL_CALLS]", "[system]\nx\n[/system]", DEEP,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 0.5, -0.5, 1.5, 20, 100, 1e-320, 1e308, 1e400, -1e400, float("nan"), 1 << 31, (1 << 31) - 1,
    -(1 << 31),
    1 << 32, (1 << 32) - 1, 1 << 53, 1 << 63, (1 << 63) - 1, 1 << 64, -(1 << 63) - 1, 10**40, 0.1 + 0.2, 4096, 65536,
)  # fmt: skip

text = one_of(*TEXTS)
word = one_of("f", "g", "weather", "get_time", "a-b", "x.y", "", "日本", "a" * 70, "web_search", "mcp__a__b", "f")
small = one_of(0, 1, 2, 3, 4)
number = one_of(*NUMBERS)
fraction = one_of(0, 0.1, 0.5, 0.9, 1, 1.0, 2)
boolean = one_of(True, False)


def anything(rng: Random, depth: int = 0) -> Any:
    """A value of any type: mostly the wrong one."""
    kind = rng.randrange(10 if depth < 3 else 7)
    if kind < 2:
        return text(rng)
    if kind < 4:
        return number(rng)
    if kind < 7:
        return rng.choice((None, True, False, [], {}, "auto", "user"))
    if kind < 9:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    return {rng.choice(KEYS): anything(rng, depth + 1) for _ in range(rng.randint(0, 3))}


KEYS = (
    "type", "role", "content", "text", "name", "arguments", "function", "id", "input", "tool_calls", "tool_call_id",
    "parameters",
    "properties", "items", "required", "schema", "strict", "image_url", "url", "source", "data", "media_type",
    "cache_control",
    "signature", "thinking", "tool_use_id", "is_error", "call_id", "output", "summary", "status", "description",
    "enum", "$ref",
    "format", "json_schema", "refusal", "audio", "index", "logprobs", "", "\ud800", "__proto__", "a",
)  # fmt: skip

# -- schemas

_PATTERNS = one_of(
    "^a+$",
    "^[0-9]{1,3}$",
    "(",
    "a{2000}",
    "^(a|b)*$",
    r"\d+",
    r"^\p{L}$",
    "(?=a)b",
    "[",
    "^$",
    ".*",
    "a" * 5000,
    r"^\w{1,4}-\d$",
)


def schema(rng: Random, depth: int = 0) -> Any:
    """A JSON schema, now and then a broken one."""
    if rng.random() < 0.04:
        return anything(rng, 1)
    leaf = depth > 3 or rng.random() < 0.45
    found = _leaf(rng) if leaf else _branch(rng, depth)
    if rng.random() < 0.1:
        found[rng.choice(("description", "title", "default", "nullable", "$comment", "readOnly", "x"))] = text(rng)
    if rng.random() < 0.06:
        found[rng.choice(_SCHEMA_WORDS)] = anything(rng, 1)
    return found


_SCHEMA_WORDS = (
    "type", "enum", "const", "minimum", "maximum", "multipleOf", "minLength", "maxLength", "pattern", "format",
    "items", "required",
    "properties", "additionalProperties", "minItems", "uniqueItems", "$ref", "$defs", "anyOf", "oneOf", "allOf",
    "not", "if", "then",
    "contains", "patternProperties", "propertyNames", "dependentRequired", "minProperties", "prefixItems", "$id",
    "$anchor",
)  # fmt: skip


def _leaf(rng: Random) -> dict[str, Any]:
    match rng.randrange(8):
        case 0:
            found: dict[str, Any] = {"type": "integer"}
            for key in rng.sample(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), 2):
                found[key] = rng.choice((0, 1, -5, 10, 999, 1 << 40, -(10**20), 2.5, number(rng)))
            return found
        case 1:
            return {"type": "number", rng.choice(("minimum", "maximum", "multipleOf")): rng.choice((0, 1, 0.1, 5e-9))}
        case 2:
            found = {"type": "string"}
            for key in rng.sample(("minLength", "maxLength"), rng.randint(0, 2)):
                found[key] = rng.choice((0, 1, 5, 2000, 3000, -1, 1 << 40, 1.5))
            return found
        case 3:
            return {"type": "string", "pattern": _PATTERNS(rng)}
        case 4:
            formats = ("date", "date-time", "uuid", "email", "uri", "ipv4", "ipv6", "regex", "x", "time", "duration")
            return {"type": "string", "format": rng.choice(formats)}
        case 5:
            return {
                "enum": rng.choice((["a", "b"], [1, 2.5], [None], [], ["a"] * 3, [{}], ["\ud800"], list(range(50))))
            }
        case 6:
            return {"type": rng.choice(("boolean", "null", "object", "array", ["string", "null"], [], "x", "number"))}
        case _:
            return {
                rng.choice(("$ref", "const", "$dynamicRef")): rng.choice(("#", "#/$defs/a", "#/x", "http://x/y", 1))
            }


def _branch(rng: Random, depth: int) -> dict[str, Any]:
    match rng.randrange(7):
        case 0 | 1 | 2:
            names = rng.sample(("a", "b", "c", "city", "", "é", '"', "x" * 80), rng.randint(0, 4))
            found: dict[str, Any] = {"type": "object", "properties": {name: schema(rng, depth + 1) for name in names}}
            if rng.random() < 0.7:
                found["required"] = rng.choice((names, names[:1], ["other"], [], "a"))
            if rng.random() < 0.4:
                found["additionalProperties"] = rng.choice((False, True, schema(rng, depth + 1)))
            return found
        case 3:
            found = {"type": "array", "items": schema(rng, depth + 1)}
            for key in rng.sample(("minItems", "maxItems"), rng.randint(0, 2)):
                found[key] = rng.choice((0, 1, 3, 2000, 2001, -1))
            return found
        case 4:
            key = rng.choice(("anyOf", "oneOf", "allOf", "prefixItems"))
            return {key: [schema(rng, depth + 1) for _ in range(rng.randint(0, 3))]}
        case 5:
            return {"$ref": "#/$defs/a", "$defs": {"a": schema(rng, depth + 1)}}
        case _:
            return {rng.choice(("not", "if", "items", "contains")): schema(rng, depth + 1), **_leaf(rng)}


GRAMMARS = one_of(
    'root ::= "a" | "b"', 'root ::= [0-9]{1,3}', "root ::= root", "", "x", 'root ::= "a"*', 'root ::= ((("a")))',
    "root ::= a",
    'root ::= "a"{1,9999}', "(" * 50, 'root ::= [^\\x00]', 'root ::= "\\ud800"', 'root ::= "a"\nroot ::= "b"',
    "root ::= <[1]>",
    'root ::= ""', "root ::= [z-a]", 'root ::= "é"', "root ::= .", 'root ::= ("a" | "")* "b"', "root ::=",
)  # fmt: skip

# -- tools


def _tool(make: Callable[[Random, str], Any]) -> Value:
    def tool(rng: Random) -> Any:
        return anything(rng) if rng.random() < 0.05 else make(rng, word(rng))

    return tool


def _function(rng: Random, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name}
    if rng.random() < 0.8:
        found["parameters"] = rng.choice((None, {}, schema(rng), schema(rng)))
    if rng.random() < 0.5:
        found["description"] = text(rng)
    if rng.random() < 0.3:
        found["strict"] = rng.choice((True, False, None))
    return found


chat_tool = _tool(
    lambda rng, name: {"type": rng.choice(("function",) * 8 + ("custom", "x")), "function": _function(rng, name)}
)
responses_tool = _tool(
    lambda rng, name: {
        "type": rng.choice(("function",) * 8 + ("custom", "web_search", "mcp", "x")),
        **_function(rng, name),
    }
)
messages_tool = _tool(
    lambda rng, name: {
        "name": name, "input_schema": rng.choice((schema(rng), {"type": "object"})),
        **rng.choice(({}, {}, {"type": "custom"}, {"type": "web_search_20250305"}, {"strict": True},
        {"cache_control": {"type": "ephemeral"}})),
    }
)  # fmt: skip
chat_choice = one_of(
    "auto", "none", "required", "any", "", {"type": "function", "function": {"name": "f"}}, {"type": "function",
    "name": "f"},
    {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"type": "function",
    "function": {"name": "f"}}]}},
    {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}, {"type": "custom",
    "custom": {"name": "f"}},
    {"type": "web_search"}, anything,
)  # fmt: skip
messages_choice = one_of(
    {"type": "auto"}, {"type": "any"}, {"type": "none"}, {"type": "tool", "name": "f"}, {"type": "tool"},
    {"type": "any", "disable_parallel_tool_use": True}, {"type": "auto", "disable_parallel_tool_use": True}, "auto",
    anything,
)  # fmt: skip

# -- conversations

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
_urls = one_of(
    f"data:image/png;base64,{_PIXEL}", "data:image/png;base64,!", "data:,", "http://127.0.0.1:9/x.png", "file:///x", ""
)
_arguments = one_of("{}", "", '{"a":1}', '{"a', "null", "[]", "x", '"s"', "{" * 500, text)
_call = lambda rng: {  # noqa: E731 - a table of shapes
    "id": rng.choice(("c1", "call_1", "", None, 3)), "type": "function", "function": {"name": word(rng),
    "arguments": _arguments(rng)},
}  # fmt: skip
chat_part = one_of(
    lambda rng: {"type": "text", "text": text(rng)},
    lambda rng: {"type": "text", "text": text(rng), "cache_control": {"type": "ephemeral"}},
    lambda rng: {"type": "image_url", "image_url": {"url": _urls(rng)}},
    lambda rng: {"type": "image_url", "image_url": _urls(rng)},
    lambda rng: {"type": rng.choice(("input_audio", "video_url", "file", "refusal", "x")), "refusal": text(rng)},
    anything,
)
_texts = one_of(text, lambda rng: [{"type": "text", "text": text(rng)}], None, lists(chat_part))
chat_message = one_of(
    lambda rng: {"role": "user", "content": text(rng)},
    lambda rng: {"role": "user", "content": lists(chat_part)(rng)},
    lambda rng: {"role": rng.choice(("system", "developer")), "content": _texts(rng)},
    lambda rng: {"role": "assistant", "content": _texts(rng)},
    lambda rng: {"role": "assistant", "content": rng.choice((None, "")), "tool_calls": lists(_call, 2)(rng)},
    lambda rng: {"role": "assistant", "content": text(rng), "reasoning_content": text(rng), "refusal": None},
    lambda rng: {"role": "tool", "tool_call_id": rng.choice(("c1", "", None)), "content": _texts(rng)},
    lambda rng: {"role": "function", "name": word(rng), "content": text(rng)},
    lambda rng: {"role": anything(rng), "content": anything(rng)},
    anything,
)
messages_block = one_of(
    lambda rng: {"type": "text", "text": text(rng)},
    lambda rng: {"type": "text", "text": text(rng), "citations": rng.choice((None, [], 1))},
    lambda rng: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": _PIXEL}},
    lambda rng: {"type": "tool_use", "id": "t1", "name": word(rng), "input": rng.choice(({}, {"a": 1}, None, "x"))},
    lambda rng: {
        "type": "tool_result",
        "tool_use_id": "t1",
        "content": _blocks(rng),
        "is_error": rng.choice((True, None)),
    },
    lambda rng: {"type": "thinking", "thinking": text(rng), "signature": text(rng)},
    lambda rng: {
        "type": "document",
        "source": {"type": "text", "media_type": "text/plain", "data": text(rng)},
        "title": text(rng),
    },
    lambda rng: {
        "type": rng.choice(("redacted_thinking", "search_result", "server_tool_use", "x")),
        "data": text(rng),
        "content": [],
    },
    anything,
)


def _blocks(rng: Random) -> Any:
    return rng.choice((None, "", "done", [{"type": "text", "text": "done"}], anything(rng, 2)))


messages_message = one_of(
    lambda rng: {"role": "user", "content": text(rng)},
    lambda rng: {"role": "user", "content": lists(messages_block)(rng)},
    lambda rng: {"role": "assistant", "content": rng.choice((text, lists(messages_block)))(rng)},
    lambda rng: {"role": "system", "content": text(rng)},
    anything,
)
responses_part = one_of(
    lambda rng: {"type": rng.choice(("input_text", "output_text", "text", "reasoning_text")), "text": text(rng)},
    lambda rng: {"type": "input_image", "image_url": _urls(rng)},
    lambda rng: {"type": rng.choice(("input_file", "refusal", "x")), "refusal": text(rng)},
    anything,
)
_item_types = (
    "web_search_call", "local_shell_call", "local_shell_call_output", "custom_tool_call", "custom_tool_call_output",
    "item_reference",
    "compaction", "mcp_list_tools", "mcp_call", "image_generation_call", "code_interpreter_call",
    "apply_patch_call", "shell_call", "x",
)  # fmt: skip
responses_item = one_of(
    lambda rng: {"role": "user", "content": text(rng)},
    lambda rng: {
        "type": "message",
        "role": rng.choice(("user", "assistant", "developer", "x")),
        "content": lists(responses_part)(rng),
    },
    lambda rng: {"type": "function_call", "call_id": "c1", "name": word(rng), "arguments": _arguments(rng)},
    lambda rng: {
        "type": "function_call_output",
        "call_id": "c1",
        "output": rng.choice((text, lists(responses_part)))(rng),
    },
    lambda rng: {
        "type": "reasoning",
        "summary": lists(responses_part, 1)(rng),
        "encrypted_content": rng.choice((None, "x")),
    },
    lambda rng: {
        "type": rng.choice(_item_types),
        "id": text(rng),
        "call_id": "c1",
        "action": {},
        "input": text(rng),
        "output": text(rng),
    },
    anything,
)
_images = one_of([], None, [_PIXEL], [f"data:image/png;base64,{_PIXEL}"], ["!"], [""], [1], "x")
_ollama_call = lambda rng: {  # noqa: E731 - a table of shapes
    "function": {"name": word(rng), "arguments": rng.choice(({}, {"a": 1}, "{}", "x", None, [], {"a": DEEP}))},
    **rng.choice(({}, {"id": "c1"}, {"id": 3})),
}  # fmt: skip
ollama_message = one_of(
    lambda rng: {"role": "user", "content": text(rng)},
    lambda rng: {"role": "user", "content": text(rng), "images": _images(rng)},
    lambda rng: {"role": "system", "content": text(rng)},
    lambda rng: {"role": "assistant", "content": text(rng), "thinking": rng.choice((text(rng), None, 1))},
    lambda rng: {"role": "assistant", "content": rng.choice((None, "")), "tool_calls": lists(_ollama_call, 2)(rng)},
    lambda rng: {"role": "tool", "content": text(rng), rng.choice(("tool_name", "name", "tool_call_id")): word(rng)},
    lambda rng: {"role": anything(rng), "content": anything(rng)},
    anything,
)

# -- fields

_format = one_of(
    {"type": "text"}, {"type": "json_object"}, lambda rng: {"type": "json_object", "schema": schema(rng)},
    lambda rng: {"type": "json_schema", "json_schema": {"name": "x", "schema": schema(rng),
    "strict": rng.choice((True, None))}},
    lambda rng: {"type": "json_schema", "name": "x", "schema": schema(rng)}, lambda rng: {"type": "grammar",
    "grammar": "x"},
)  # fmt: skip
_stop = one_of("x", "", ["a", "b"], [""], [], ["\n"], lists(text), [1], ["a" * 5000], ["x"] * 300)
_bias = one_of(
    {"1": -100}, {"a": 5}, [[1, 2]], [[1, False]], {"1": "x"}, [[1]], {}, {"-1": 1e400}, {"99999999": 1}, [["é", -1]]
)
SAMPLING: dict[str, Value] = {
    **dict.fromkeys(
        (
            "temperature", "top_p", "min_p", "typical_p", "top_n_sigma", "frequency_penalty", "presence_penalty",
            "repeat_penalty",
            "dry_multiplier", "dry_base", "xtc_probability", "xtc_threshold", "dynatemp_range", "dynatemp_exponent",
            "mirostat_tau",
            "mirostat_eta", "adaptive_target", "adaptive_decay",
        ),
        fraction,
    ),
    **dict.fromkeys(
        (
            "top_k", "seed", "n_probs", "min_keep", "n_keep", "n_discard", "n_indent", "repeat_last_n",
            "dry_penalty_last_n",
            "dry_allowed_length", "mirostat", "reasoning_budget_tokens", "thinking_budget_tokens", "n_cache_reuse",
            "id_slot",
            "t_max_predict_ms", "sse_ping_interval",
        ),
        small,
    ),
    **dict.fromkeys(
        (
            "cache_prompt", "return_tokens", "return_progress", "timings_per_token", "verbose", "ignore_eos",
            "post_sampling_probs",
            "backend_sampling", "add_generation_prompt", "continue_final_message", "reasoning_control", "echo",
            "store",
        ),
        boolean,
    ),
    "stop": _stop,
    "logit_bias": _bias,
    "grammar": GRAMMARS,
    "json_schema": schema,
    "samplers": one_of(["top_k", "temperature"], "kt", [], ["x"], ["dry"] * 40),
    "dry_sequence_breakers": one_of(["\n"], [], [""], ["a" * 100]),
    "response_fields": one_of([], ["content"], ["a/b"], "x"),
    "lora": one_of([], [{"id": 0, "scale": 1}], "x"),
    "user": text, "metadata": one_of({}, {"user_id": "u"}, None), "service_tier": text, "unknown": anything,
    "reasoning_format": one_of("none", "auto", "deepseek", "x"),
    "reasoning_effort": one_of("low", "none", "high", "", "x" * 100),
    "chat_template_kwargs": one_of({}, {"enable_thinking": False}, {"enable_thinking": "x"}, {"a": None},
    {"messages": []}, anything),
    "n": small, "n_cmpl": small, "stream_options": one_of({"include_usage": True}, {}, None, {"include_usage": 1},
    "x"),
    "speculative.n_max": small, "speculative.type": text, "chat_template": text, "reasoning_budget_message": text,
    "input_extra": anything, "message_delimiters": anything, "grammar_triggers": anything, "chat_parser": text,
    "preserved_tokens": anything,
}  # fmt: skip
_CALLS: dict[str, Value] = {"parallel_tool_calls": boolean}
FIELDS: dict[str, dict[str, Value]] = {
    CHAT: {
        **SAMPLING, **_CALLS, "tools": lists(chat_tool), "tool_choice": chat_choice, "response_format": _format,
        "logprobs": boolean,
        "top_logprobs": one_of(0, 1, 3, 20, 21), "max_completion_tokens": small,
        "functions": lists(_tool(_function)), "modalities": one_of(["text"], ["audio"]),
        "audio": anything, "prediction": anything, "web_search_options": anything, "function_call": anything,
        "verbosity": text,
    },
    COMPLETIONS: {**SAMPLING, "suffix": text, "logprobs": one_of(0, 1, 5, True, 6), "best_of": small,
    "response_format": _format},
    RESPONSES: {
        **SAMPLING, **_CALLS, "instructions": text, "tools": lists(responses_tool), "tool_choice": chat_choice,
        "text": lambda rng: {"format": _format(rng), "verbosity": "low"}, "include": lists(one_of(
            "reasoning.encrypted_content", "message.output_text.logprobs", "file_search_call.results", text), 2),
        "top_logprobs": one_of(0, 1, 3, 20, 21), "reasoning": one_of({"effort": "low"}, {"summary": "auto"},
        {"effort": 1}, anything),
        "previous_response_id": text, "conversation": text, "background": boolean, "truncation": one_of("auto",
        "disabled"),
        "prompt": anything, "max_tool_calls": small, "prompt_cache_key": text,
    },
    MESSAGES: {
        **SAMPLING, "system": one_of(text, lambda rng: [{"type": "text", "text": text(rng)}], anything),
        "tools": lists(messages_tool),
        "tool_choice": messages_choice, "stop_sequences": _stop, "thinking": one_of(
            {"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}, {"type": "adaptive"},
            {"type": "enabled"}, anything),
        "output_format": _format, "output_config": lambda rng: {"format": _format(rng), "effort": "low"},
        "mcp_servers": lists(anything, 1),
        "container": text, "context_management": anything, "betas": lists(text),
    },
    EMBEDDINGS: {"dimensions": number, "encoding_format": one_of("float", "base64", "x"), "user": text,
    "embd_normalize": small},
    RERANK: {"top_n": small, "return_documents": boolean, "documents": lists(text), "texts": lists(text)},
}  # fmt: skip
_ollama_options = one_of(
    {},
    None,
    {"num_predict": 1},
    {"num_predict": -1},
    {"temperature": 0, "top_k": 1, "seed": 1},
    {"stop": ["x", ""]},
    {"stop": "x"},
    {"num_ctx": 99999},
    {"num_ctx": "x"},
    {"repeat_last_n": -1, "repeat_penalty": 1.1},
    lambda rng: {name: rng.choice((small, fraction, number, anything))(rng) for name in rng.sample(_OLLAMA_OPTIONS, 3)},
    anything,
)
_OLLAMA_OPTIONS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "seed",
    "stop",
    "num_ctx",
    "num_keep",
    "num_gpu",
    "repeat_penalty",
    "repeat_last_n",
    "presence_penalty",
    "frequency_penalty",
    "mirostat",
    "mirostat_tau",
    "tfs_z",
    "x",
)
_OLLAMA_FIELDS: dict[str, Value] = {
    "options": _ollama_options,
    "keep_alive": one_of("5m", 0, -1, "0", "-1", "x", "1h30m", 1.5, "5" * 50, anything),
    "format": one_of("json", "", "x", schema, anything),
    "think": one_of(True, False, "low", "high", "x", 1, anything),
    "logprobs": boolean,
    "top_logprobs": one_of(0, 1, 3, 20, 21),
    "truncate": boolean,
    "shift": boolean,
}
FIELDS |= {
    OLLAMA_CHAT: {**_OLLAMA_FIELDS, "tools": lists(chat_tool), "name": text},
    OLLAMA_GENERATE: {
        **_OLLAMA_FIELDS, "system": text, "raw": boolean, "suffix": one_of("", "x"), "template": one_of("", "x"),
        "context": one_of([], [1], "x"), "images": _images,
    },
    OLLAMA_EMBED: {**_OLLAMA_FIELDS, "dimensions": number},
}  # fmt: skip
FIELDS[COUNT], FIELDS[CHAT_COUNT], FIELDS[RESPONSES_COUNT] = FIELDS[MESSAGES], FIELDS[CHAT], FIELDS[RESPONSES]
_prompts = one_of(
    text,
    lists(text),
    [1, 2, 3],
    [[1, 2], [3]],
    ["a", [1]],
    [[]],
    [-1],
    [1 << 40],
    lambda rng: ["a"] * rng.choice((2, 3, 600)),
    anything,
)
_plain = one_of("Hi", "Say one word.", "a")
CONTENT: dict[str, tuple[str, Value, Value]] = {
    CHAT: ("messages", lambda rng: [{"role": "user", "content": _plain(rng)}], lists(chat_message, 4)),
    COMPLETIONS: ("prompt", _plain, _prompts),
    RESPONSES: ("input", _plain, one_of(text, lists(responses_item, 4), anything)),
    MESSAGES: ("messages", lambda rng: [{"role": "user", "content": _plain(rng)}], lists(messages_message, 4)),
    EMBEDDINGS: ("input", _plain, _prompts),
    RERANK: ("query", _plain, text),
    OLLAMA_CHAT: ("messages", lambda rng: [{"role": "user", "content": _plain(rng)}], lists(ollama_message, 4)),
    OLLAMA_GENERATE: ("prompt", _plain, one_of(text, anything)),
    OLLAMA_EMBED: ("input", _plain, _prompts),
}
CONTENT[COUNT], CONTENT[CHAT_COUNT], CONTENT[RESPONSES_COUNT] = CONTENT[MESSAGES], CONTENT[CHAT], CONTENT[RESPONSES]
