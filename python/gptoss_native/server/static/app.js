// The chat page: sends the conversation to /v1/chat/completions and shows what is streamed back.
"use strict";

const at = (id) => document.getElementById(id);
const log = at("log"), input = at("input");
let messages = [];        // the conversation, as the API takes it
let running = null;       // the AbortController of the answer that is being written
let key = "";             // sent as a bearer token once the user gave it
let retry = null;         // what to do again with the key
let asked = null;         // the last message of the user, until something came back

const headers = () => ({ "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) });

class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function failed(response) {
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    said = response.statusText;
  }
  if (response.status === 429) said = "The server is busy. Wait a moment and send again.";
  return new ServerError(said || `The server answered ${response.status}.`, response.status);
}

// The events of a stream, one parsed object each.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
    }
  }
}

function nearEnd() {
  return log.scrollHeight - log.scrollTop - log.clientHeight < 80;
}

function add(node) {
  at("hint")?.remove();
  log.append(node);
  log.scrollTop = log.scrollHeight;
  return node;
}

function showError(text) {
  add(element("p", text, "error")).setAttribute("role", "alert");
}

// The assistant's part of the page: thoughts, answer, calls, facts.
class Answer {
  constructor() {
    this.message = { role: "assistant", content: "" };
    this.node = add(element("article", undefined, "assistant"));
    this.text = this.node.appendChild(element("div"));
    this.begun = performance.now();
    this.first = null;
  }

  take(event) {
    if (event.error) throw new ServerError(event.error.message, 500);
    if (event.usage) this.usage = event.usage;
    const follow = nearEnd();
    for (const { delta, finish_reason: reason } of event.choices ?? []) {
      if (delta.reasoning || delta.content || delta.tool_calls) this.first ??= performance.now();
      if (delta.reasoning) this.think(delta.reasoning);
      if (delta.content) this.say(delta.content);
      (delta.tool_calls ?? []).forEach((piece) => this.call(piece));
      this.reason = reason ?? this.reason;
    }
    if (follow) log.scrollTop = log.scrollHeight;
  }

  think(text) {
    if (!this.thoughts) {
      const details = element("details");
      this.summary = details.appendChild(element("summary", "Thinking…"));
      this.thoughts = details.appendChild(element("div"));
      this.node.prepend(details);
    }
    this.message.reasoning = (this.message.reasoning ?? "") + text;
    this.thoughts.textContent = this.message.reasoning;
  }

  say(text) {
    this.message.content += text;
    this.text.replaceChildren(markdown(this.message.content));
  }

  call(piece) {
    const calls = (this.message.tool_calls ??= []);
    const known = (calls[piece.index] ??= { id: piece.id, type: "function", function: { name: piece.function.name, arguments: "" } });
    known.function.arguments += piece.function.arguments ?? "";
    if (!known.card) {
      known.card = this.node.appendChild(element("div", undefined, "call"));
      known.card.append(element("h2", `Calls ${known.function.name}`), element("pre", "", "arguments"));
    }
    known.card.querySelector(".arguments").textContent = known.function.arguments;
  }

  end(stopped) {
    if (this.summary) this.summary.textContent = "Thoughts";
    const cards = (this.message.tool_calls ?? []).map((call) => {
      const { card } = call;
      delete call.card;
      return [call, card];
    });
    const facts = this.node.appendChild(element("div", undefined, "facts"));
    if (this.first) facts.append(element("span", `first token ${Math.round(this.first - this.begun)} ms`));
    const seconds = (performance.now() - (this.first ?? this.begun)) / 1000;
    if (this.usage && seconds > 0) facts.append(element("span", `${Math.round(this.usage.completion_tokens / seconds)} tokens/s`));
    if (stopped) facts.append(element("span", "stopped"));
    if (this.reason === "length") facts.append(element("span", "cut off: the context is full"));
    if (this.message.content) {
      const copy = facts.appendChild(element("button", "Copy"));
      copy.type = "button";
      copy.onclick = async () => {
        await navigator.clipboard.writeText(this.message.content);
        copy.textContent = "Copied";
      };
    }
    if (!stopped) cards.forEach(([call, card]) => askResult(call, card));
    return this.message;
  }
}

// A form for the result of a call; with the last one the conversation goes on.
function askResult(call, card) {
  const form = card.appendChild(element("form"));
  const field = form.appendChild(element("input"));
  field.placeholder = `Result of ${call.function.name}`;
  field.setAttribute("aria-label", field.placeholder);
  field.style.flex = "1";
  form.append(element("button", "Return it"));
  form.onsubmit = (event) => {
    event.preventDefault();
    messages.push({ role: "tool", tool_call_id: call.id, content: field.value });
    form.replaceWith(element("p", `Returned: ${field.value}`));
    if (!document.querySelector(".call form")) answer();
  };
  field.focus();
}

function tools() {
  const written = at("tools").value.trim(), error = at("tools-error");
  error.hidden = true;
  if (!written) return undefined;
  try {
    const found = JSON.parse(written);
    if (!Array.isArray(found)) throw new Error("it is no list");
    return found;
  } catch (problem) {
    error.textContent = `The tools are not valid JSON: ${problem.message}`;
    error.hidden = at("tools-panel").hidden = false;
    throw problem;
  }
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
}

async function answer() {
  let offered;
  try {
    offered = tools();
  } catch {
    takeBack();
    return;
  }
  const body = { messages, reasoning_effort: at("effort").value, stream: true, stream_options: { include_usage: true } };
  if (offered) body.tools = offered;
  running = new AbortController();
  busy(true);
  const shown = new Answer();
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: JSON.stringify(body), signal: running.signal });
    if (!response.ok) throw await failed(response);
    for await (const event of events(response)) shown.take(event);
    messages.push(shown.end(false));
    asked = null;
  } catch (error) {
    if (error.name === "AbortError") {
      const { tool_calls: _, ...said } = shown.end(true);  // a call cut in the middle is none
      if (said.content || said.reasoning) messages.push(said);
      asked = null;
    } else if (error.status === 401) {
      shown.node.remove();
      askKey(answer);
    } else {
      if (!shown.first) {
        shown.node.remove();
        takeBack();
      }
      showError(error instanceof ServerError ? error.message : "The server cannot be reached. Is it still running?");
    }
  } finally {
    running = null;
    busy(false);
    if (!document.querySelector(".call form") && at("key-form").hidden) input.focus();
  }
}

// What was sent in vain goes back where it was written.
function takeBack() {
  if (!asked || messages.at(-1) !== asked.message) return;
  messages.pop();
  asked.node.remove();
  if (!input.value) input.value = asked.message.content;
  fit();
  asked = null;
}

function askKey(then) {
  retry = then;
  at("key-form").hidden = false;
  at("key").focus();
}

at("key-form").onsubmit = (event) => {
  event.preventDefault();
  key = at("key").value;
  at("key-form").hidden = true;
  retry?.();
};

at("form").onsubmit = (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (!text || running) return;
  input.value = "";
  fit();
  // Calls that were left without a result are answered so, or the conversation could not go on.
  document.querySelectorAll(".call form").forEach((form) => form.remove());
  const answered = new Set(messages.filter((m) => m.role === "tool").map((m) => m.tool_call_id));
  for (const call of messages.at(-1)?.tool_calls ?? []) {
    if (!answered.has(call.id)) messages.push({ role: "tool", tool_call_id: call.id, content: "no result" });
  }
  asked = { message: { role: "user", content: text }, node: add(element("article", text, "user")) };
  messages.push(asked.message);
  answer();
};

function fit() {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight + 2}px`;
}

input.oninput = fit;
input.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
};
document.onkeydown = (event) => {
  if (event.key === "Escape") running?.abort();
};
at("stop").onclick = () => running?.abort();
at("new").onclick = () => {
  running?.abort();
  messages = [];
  log.replaceChildren();
  input.focus();
};
at("show-tools").onclick = () => {
  const hidden = (at("tools-panel").hidden = !at("tools-panel").hidden);
  at("show-tools").setAttribute("aria-expanded", String(!hidden));
  if (!hidden) at("tools").focus();
};

async function begin() {
  try {
    const response = await fetch("v1/models", { headers: headers() });
    if (response.status === 401) return askKey(begin);
    const [model] = (await response.json()).data;
    at("model").textContent = document.title = model.id;
  } catch {
    showError("The server cannot be reached. Is it still running?");
  }
}
begin();
