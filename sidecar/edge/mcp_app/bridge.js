"use strict";

// The page that shows images inside an MCP host. It speaks to the host alone: JSON-RPC 2.0 by postMessage, as the MCP
// Apps specification says in its revision 2026-01-26. What comes from elsewhere is shown as text, never as markup.

const PROTOCOL = "2026-01-26";
const ANSWER_MS = 15 * 60_000; // hosts have shorter limits of their own; this one is for a host that is gone
const POLL_SECONDS = 10; // below what any host allows a call to take, and often enough to say how many are ahead
const POLL_PAUSE_MS = 1_000;
const POLL_FOR_MS = 30 * 60_000;
const POLL_FAILURES = 5;
const SEEDS = 2 ** 32;
const KEPT_IMAGES = 12;
const LONGEST_SENTENCE = 600;
const SETTLING_MS = 300;
const FULLEST = 0.97; // of the bar, until the image is there
const UNDER_WAY = ["queued", "working"];
const REASON = "mcp-image-sidecar/reason"; // of a failed call, in its result's _meta
const INVALID_PARAMS = -32602;
const METHOD_NOT_FOUND = -32601;

const at = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------- the bridge

class Bridge {
  #waiting = new Map();
  #handlers = new Map();
  #last = 0;
  #open = true;

  constructor(host) {
    this.host = host;
    window.addEventListener("message", (event) => {
      if (event.source === this.host && event.data?.jsonrpc === "2.0") this.#receive(event.data);
    });
  }

  on(method, handler) {
    this.#handlers.set(method, handler);
  }

  notify(method, params) {
    this.#post({ method, params });
  }

  request(method, params) {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#settle({ id, error: { message: "The host did not answer." } }), ANSWER_MS);
      this.#waiting.set(id, { resolve, reject, timer });
      this.#post({ id, method, params });
    });
  }

  close() {
    this.#open = false;
    for (const { timer } of this.#waiting.values()) clearTimeout(timer);
    this.#waiting.clear();
  }

  #post(message) {
    if (this.#open) this.host.postMessage({ jsonrpc: "2.0", ...message }, "*");
  }

  #receive(message) {
    if (typeof message.method !== "string") this.#settle(message);
    else if (message.id === undefined) this.#handlers.get(message.method)?.(message.params ?? {});
    else this.#answer(message);
  }

  #settle({ id, result, error }) {
    const asked = this.#waiting.get(id);
    if (asked === undefined) return;
    this.#waiting.delete(id);
    clearTimeout(asked.timer);
    if (error) asked.reject(new CallError(error));
    else asked.resolve(result ?? {});
  }

  #answer({ id, method, params }) {
    const handler = this.#handlers.get(method);
    if (handler) this.#post({ id, result: handler(params ?? {}) ?? {} });
    else this.#post({ id, error: { code: METHOD_NOT_FOUND, message: `This page does not know ${method}.` } });
  }
}

class CallError extends Error {
  constructor({ code, message }) {
    super(sentence(message) ?? "The host refused the call.");
    this.lasting = code === INVALID_PARAMS || code === METHOD_NOT_FOUND;
  }
}

const bridge = new Bridge(window.parent);
const state = {
  turn: 0, // counts up with each new wait; a wait that finds another number has been overtaken
  calls: 0, // our own tool calls in flight
  context: {}, // what the host said about itself
  capabilities: {},
  given: {}, // the arguments of the call this page was opened for
  items: [], // { image, given, preview, note, learnt, gone }: what there is to see
  job: null, // the id of the generation that is waited for
  uncancellable: false, // whether the server has said that this one cannot be stopped
  selected: null,
  listing: false,
  cursor: null,
};

const mayCall = () => "serverTools" in state.capabilities;

async function callTool(name, given) {
  state.calls += 1;
  try {
    return await bridge.request("tools/call", { name, arguments: given });
  } finally {
    state.calls -= 1;
  }
}

// ---------------------------------------------------------------------------------------------------- reading results

function sentence(text) {
  if (typeof text !== "string" || !text.trim()) return null;
  return text.length > LONGEST_SENTENCE ? `${text.slice(0, LONGEST_SENTENCE)}…` : text.trim();
}

function webAddress(text) {
  const url = typeof text === "string" && URL.canParse(text) ? new URL(text) : null;
  return url !== null && ["http:", "https:"].includes(url.protocol) ? url.href : null;
}

function problemOf({ isError, structuredContent, content }) {
  const failed = isError || ["failed", "cancelled"].includes(structuredContent?.status);
  if (!failed && Array.isArray(structuredContent?.images)) return null;
  const text = Array.isArray(content) ? content.find((block) => block?.type === "text")?.text : null;
  return sentence(structuredContent?.message) ?? sentence(text) ?? "There is no image, and the server gave no reason.";
}

function itemsOf({ structuredContent, content }, given) {
  const images = structuredContent.images.filter((image) => webAddress(image?.url) !== null);
  const previews = previewsIn(content);
  const note = sentence(structuredContent.message);
  return images.map((image, number) => ({
    image,
    given,
    note,
    learnt: given !== null,
    gone: false,
    preview: previews.length === images.length ? previews[number] : null,
  }));
}

// The previews a result carries for the model also serve a host whose rules or network keep the image itself away.
function previewsIn(content) {
  const blocks = Array.isArray(content) ? content.filter((block) => block?.type === "image") : [];
  return blocks.map(({ mimeType, data }) =>
    /^image\/(png|jpeg|webp)$/.test(mimeType) && typeof data === "string" ? `data:${mimeType};base64,${data}` : null,
  );
}

// What get_image_metadata tells, as the arguments that would make such an image again.
function argumentsIn(told) {
  const source = { ...told, ...told?.parameters };
  const names = ["prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "model", "width", "height"];
  const given = Object.fromEntries(names.filter((name) => source[name] != null).map((name) => [name, source[name]]));
  if ([given.width, given.height].some((side) => !(side >= 64 && side <= 2048 && side % 8 === 0))) {
    delete given.width;
    delete given.height;
  }
  return typeof given.prompt === "string" ? given : null;
}
