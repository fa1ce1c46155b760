// What a stream must be, said once more and independently of the code that repairs streams.

export function insist(truth, message) {
  if (!truth) throw new Error(message);
}

/** message_start, blocks strictly one after another, message_delta, message_stop. */
export function checkMessageEvents(events) {
  let open = null;
  let next = 0;
  let stage = "begin";
  for (const event of events) {
    if (event.type === "ping") continue;
    if (stage === "begin") {
      insist(event.type === "message_start", `first event is ${event.type}`);
      insist(event.message.role === "assistant" && event.message.usage.input_tokens >= 0, "message_start lacks fields");
      stage = "blocks";
    } else if (event.type === "content_block_start") {
      insist(stage === "blocks" && open === null, "block started while another is open or after message_delta");
      insist(event.index === next, `block ${event.index} started, expected ${next}`);
      if (event.content_block.type === "tool_use") {
        const { id, name, input } = event.content_block;
        insist(id && name && input && typeof input === "object", "tool_use lacks fields");
      }
      open = next++;
    } else if (event.type === "content_block_delta") {
      insist(open !== null && event.index === open, "delta outside its block");
    } else if (event.type === "content_block_stop") {
      insist(open !== null && event.index === open, "stop outside its block");
      open = null;
    } else if (event.type === "message_delta") {
      insist(open === null, "message_delta while a block is open");
      insist(event.delta.stop_reason && event.usage.output_tokens >= 0, "message_delta lacks fields");
      stage = "delta";
    } else if (event.type === "message_stop") {
      insist(stage === "delta", "message_stop without message_delta");
      stage = "end";
    } else {
      throw new Error(`unexpected ${event.type}`);
    }
  }
  insist(stage === "end", `stream ended in stage ${stage}`);
}

/** Numbers grow by one, items are added before and done after anything else is said of them, the response ends. */
export function checkResponseEvents(events) {
  const items = new Map();
  const done = new Set();
  events.forEach((event, position) => {
    insist(event.sequence_number === position, `sequence_number ${event.sequence_number} at ${position}`);
    if (event.type === "response.output_item.added") {
      insist(!items.has(event.output_index), "index used twice");
      items.set(event.output_index, event.item.id);
    } else if (event.type === "response.output_item.done") {
      insist(items.get(event.output_index) === event.item.id, "done, but never added");
      done.add(event.output_index);
    } else if ("item_id" in event) {
      insist(items.get(event.output_index) === event.item_id, `${event.type} of an unknown item`);
      insist(!done.has(event.output_index), `${event.type} after its item was done`);
    }
    if (/output_text|content_part/.test(event.type)) insist(event.content_index >= 0, `${event.type} without content_index`);
    if (/output_text/.test(event.type)) insist(Array.isArray(event.logprobs), `${event.type} without logprobs`);
    if (event.response) {
      const { id, created_at, status, model, output, tools } = event.response;
      insist(id && created_at > 0 && status && model && output && tools, `${event.type} lacks fields`);
    }
  });
  insist(events[0]?.type === "response.created", "no response.created first");
  insist(events[1]?.type === "response.in_progress", "no response.in_progress second");
  const last = events.at(-1);
  insist(["response.completed", "response.incomplete"].includes(last.type), `last event is ${last.type}`);
  insist(items.size === done.size && last.response.output.length === items.size, "items left open");
  insist(last.response.usage.output_tokens_details.reasoning_tokens >= 0, "usage lacks details");
}
