"use strict";

// The page that shows images inside an MCP host. It speaks to the host alone: JSON-RPC 2.0 by postMessage, as the MCP
// Apps specification says in its revision 2026-01-26. What comes from elsewhere is shown as text, never as markup.

const PROTOCOL = "2026-01-26";
const ANSWER_MS = 15 * 60_000; // hosts have shorter limits of their own; this one is for a host that is gone
const POLL_SECONDS = 20; // below what any host allows a call to take
const POLL_PAUSE_MS = 1_000;
const POLL_FOR_MS = 30 * 60_000;
const POLL_FAILURES = 5;
const SEEDS = 2 ** 32;
const KEPT_IMAGES = 12;
const LONGEST_SENTENCE = 600;
const SETTLING_MS = 300;
const UNDER_WAY = ["queued", "working"];
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
  turn: 0, // counts up with each new wait; whoever finds another number has been overtaken
  calls: 0, // our own tool calls in flight
  context: {}, // what the host said about itself
  capabilities: {},
  given: {}, // the arguments of the call this page was opened for
  items: [], // { image, given, preview, note, learnt }: what there is to see
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
  return sentence(structuredContent?.message) ?? sentence(text) ?? "There is no image, and nobody said why.";
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

// ---------------------------------------------------------------------------------------------------- the use cases

async function finished(result, turn) {
  const until = Date.now() + POLL_FOR_MS;
  let failures = 0;
  while (UNDER_WAY.includes(result.structuredContent?.status)) {
    const { job_id: job, status, message, retry_after_seconds: seconds } = result.structuredContent;
    const unknown = Number.isFinite(seconds); // the server cannot ask its store at the moment
    if (typeof job !== "string" || !mayCall() || Date.now() > until) {
      throw new Error((unknown && sentence(message)) || "The image is still being made. Ask for it again in a while.");
    }
    showProgress(unknown ? "The image store is away; asking again…" : status === "queued" ? "Waiting in line…" : "Still working…");
    const pause = POLL_PAUSE_MS * 2 ** failures;
    await new Promise((resolve) => setTimeout(resolve, unknown ? Math.max(pause, Math.min(seconds, 60) * 1000) : pause));
    if (turn !== state.turn) return result;
    try {
      result = await callTool("get_generation", { job_id: job, wait_seconds: POLL_SECONDS });
      failures = 0;
    } catch (error) {
      failures += 1;
      if (error.lasting || failures === POLL_FAILURES) throw error;
    }
  }
  return result;
}

// Runs one wait to its end: shows progress, then what `work` came to or the sentence that says why not.
async function wait(doing, work, show) {
  const turn = ++state.turn;
  showProblem(null);
  showProgress(doing);
  try {
    const result = await finished(await work(), turn);
    if (turn !== state.turn) return;
    const problem = problemOf(result);
    if (problem !== null) throw new Error(problem);
    await show(result);
  } catch (error) {
    if (turn === state.turn) showProblem(error.message);
  } finally {
    if (turn === state.turn) showProgress(null);
  }
}

function takeInput({ arguments: given }) {
  if (state.calls > 0) return; // the host tells of a call of our own; its answer says it all
  state.given = given ?? {};
  showPrompt(state.given.prompt, false);
  shape(state.given);
  state.turn += 1;
  showProgress(typeof state.given.prompt === "string" ? "Painting…" : "Looking…");
}

function takeResult(result) {
  if (state.calls > 0) return;
  const { given } = state;
  void wait("Painting…", async () => result, (done) => (isList(done) ? showList(done) : showNew(done, given)));
}

function takeCancellation({ reason }) {
  state.turn += 1;
  showProgress(null);
  showProblem(sentence(reason) === null ? "The call was cancelled." : `The call was cancelled: ${sentence(reason)}`);
}

function isList({ structuredContent }) {
  return structuredContent.status === undefined;
}

function again() {
  const { given, image } = state.selected ?? { given: state.given };
  const { idempotency_key: _once, ...same } = given;
  const next = { ...same, seed: newSeed(image?.seed) };
  void wait(
    "Painting again…",
    () => callTool("generate_image", next),
    async (result) => {
      await showNew(result, next);
      tellModel(result);
    },
  );
}

function newSeed(old) {
  const [seed] = crypto.getRandomValues(new Uint32Array(1));
  return seed === old ? (seed + 1) % SEEDS : seed;
}

// The model sees nothing of what happens on this page unless it is told.
function tellModel({ structuredContent }) {
  if (!("updateModelContext" in state.capabilities)) return;
  const made = structuredContent.images.map(({ url, seed }) => `${url} (seed ${seed})`).join(", ");
  const text = `The user has made the image again with a new seed: ${made}`;
  bridge.request("ui/update-model-context", { content: [{ type: "text", text }] }).catch(() => {});
}

function more() {
  const next = { ...state.given, cursor: state.cursor };
  void wait("Looking…", () => callTool("list_generated_images", next), showList);
}

async function copyLink() {
  const { url } = state.selected.image;
  try {
    await navigator.clipboard.writeText(url);
    say("Link copied.");
    at("copy").textContent = "Copied";
    setTimeout(() => (at("copy").textContent = "Copy link"), 2_000);
  } catch {
    showLink(url);
    at("address").focus();
    at("address").select();
    say("This host does not let the page copy. The link is selected for you to copy.");
  }
}

async function openLink() {
  const { url } = state.selected.image;
  try {
    if ((await bridge.request("ui/open-link", { url })).isError) throw new Error();
  } catch {
    showLink(url);
    say("This host does not open links. The link is shown for you to copy.");
  }
}

// ---------------------------------------------------------------------------------------------------- what is shown

function say(text) {
  at("status").textContent = text;
}

function put(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

function showPrompt(prompt, streaming) {
  put(at("prompt"), typeof prompt === "string" ? prompt : null);
  at("prompt").classList.toggle("streaming", streaming);
}

function showProblem(text) {
  put(at("problem"), text);
  showActions();
}

let ticking = null;

function showProgress(doing) {
  const starting = doing !== null && ticking === null;
  at("stage").dataset.busy = doing === null ? "no" : "yes";
  at("progress").hidden = doing === null;
  at("more").disabled = doing !== null;
  if (doing === null) {
    clearInterval(ticking);
    ticking = null;
  } else if (at("doing").textContent !== doing || starting) {
    at("doing").textContent = doing;
    say(doing);
  }
  if (starting) ticking = countSeconds();
  showActions();
}

function countSeconds() {
  const started = Date.now();
  at("elapsed").textContent = "";
  return setInterval(() => (at("elapsed").textContent = `${Math.round((Date.now() - started) / 1000)} s`), 1_000);
}

function showActions() {
  const busy = ticking !== null;
  const prompt = (state.selected ?? state).given?.prompt;
  const repeatable = mayCall() && typeof prompt === "string" && !(state.selected === null && at("problem").hidden);
  const focused = document.activeElement === at("again");
  at("again").hidden = !repeatable;
  at("again").disabled = busy;
  at("copy").hidden = at("open").hidden = state.selected === null;
  at("actions").hidden = state.selected === null && (!repeatable || busy);
  at("stage").hidden = state.selected === null && !busy;
  if (!busy && focused) at("again").focus();
}

function shape({ width, height, aspect_ratio: ratio }) {
  const [across, down] = typeof ratio === "string" ? ratio.split(":").map(Number) : [Number(width), Number(height)];
  const known = across > 0 && down > 0;
  document.documentElement.style.setProperty("--ratio", known ? Math.min(4, Math.max(0.4, across / down)) : 1);
}

async function showNew(result, given) {
  const known = new Set(state.items.map(({ image }) => image.image_id));
  const made = itemsOf(result, given).filter(({ image }) => !known.has(image.image_id));
  state.items = [...made, ...state.items].slice(0, state.listing ? Infinity : KEPT_IMAGES);
  if (state.listing) at("grid").prepend(...made.map((item) => tile(item, () => void select(item))));
  const first = made[0] ?? state.items[0];
  if (first === undefined) throw new Error("The answer names no image that could be shown.");
  await select(first);
  say(`${made.length > 1 ? `${made.length} new images` : "New image"}, seed ${first.image.seed}.`);
}

function showList(result) {
  const found = itemsOf(result, null);
  state.listing = true;
  state.items = [...state.items, ...found];
  state.cursor = result.structuredContent.next_cursor ?? null;
  at("grid").append(...found.map((item) => tile(item, () => void select(item))));
  at("more").hidden = state.cursor === null || !mayCall();
  showPrompt(null, false);
  showGrid(null);
  if (state.items.length === 0) put(at("note"), "There are no images yet.");
  at("detail").hidden = state.items.length > 0;
  say(`${state.items.length} images.`);
}

function showGrid(from) {
  state.selected = null;
  at("list").hidden = false;
  at("detail").hidden = true;
  at("list").append(at("problem"));
  for (const element of [at("back"), at("link"), at("parameters"), at("note")]) element.hidden = true;
  showProblem(null);
  if (from !== null) at("grid").children[state.items.indexOf(from)]?.querySelector("button").focus();
}

async function select(item) {
  state.selected = item;
  at("list").hidden = true;
  at("detail").hidden = at("stage").hidden = false;
  at("actions").before(at("problem"));
  at("back").hidden = !state.listing;
  if (state.listing) at("back").focus();
  if (!item.learnt) void learn(item);
  at("link").hidden = true;
  showProblem(null);
  showAbout(item);
  showStrip();
  await showPicture(item);
}

// A listed image says nothing of its prompt; the tool that does is asked when somebody looks at the image.
async function learn(item) {
  if (!mayCall()) return;
  item.learnt = true;
  try {
    const result = await callTool("get_image_metadata", { image_id: item.image.image_id });
    item.given = result.isError ? null : argumentsIn(result.structuredContent);
  } catch {
    item.given = null;
  }
  if (state.selected === item) showAbout(item);
}

function showAbout(item) {
  showPrompt(item.given?.prompt, false);
  put(at("note"), item.note);
  at("parameters").replaceChildren(...rows(item).map(row));
  at("parameters").hidden = false;
  showActions();
}

function rows({ image, given }) {
  const applied = image.seed_applied === false ? "not known to be used by this model" : null;
  return [
    ["Seed", image.seed, applied],
    ["Size", `${image.width} × ${image.height}`],
    ["Model", image.model],
    ["Steps", given?.num_inference_steps],
    ["Guidance", given?.guidance_scale],
    ["File", fileSize(image)],
    ["Made", moment(image.created_at)],
    ["Link works", image.expires_at === null ? "for ever" : until(image.expires_at)],
    ["Kept out", given?.negative_prompt],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
}

function row([name, value, remark]) {
  const group = document.createElement("div");
  const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  detail.dir = "auto"; // a text that runs from right to left must not turn its neighbours round
  detail.textContent = String(value);
  if (remark) detail.append(Object.assign(document.createElement("small"), { textContent: remark }));
  if (String(value).length > 28) group.className = "wide";
  group.append(term, detail);
  return group;
}

function fileSize({ size_bytes: bytes, media_type: type }) {
  if (!Number.isFinite(bytes)) return null;
  const size = bytes < 1e6 ? `${Math.max(1, Math.round(bytes / 1e3))} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
  return `${String(type).replace("image/", "").toUpperCase()}, ${size}`;
}

function moment(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return null;
  const style = { dateStyle: "medium", timeStyle: "short" };
  try {
    return new Intl.DateTimeFormat(state.context.locale, { ...style, timeZone: state.context.timeZone }).format(date);
  } catch {
    return new Intl.DateTimeFormat(undefined, style).format(date); // the host named a locale or zone nobody knows
  }
}

function until(text) {
  return moment(text) === null ? null : `until ${moment(text)}`;
}

function nameOf({ image, given }) {
  return typeof given?.prompt === "string" ? given.prompt.slice(0, 200) : `Generated image, seed ${image.seed}`;
}

async function showPicture(item) {
  const picture = (await loaded(webAddress(item.image.url))) ?? (await loaded(item.preview));
  if (state.selected !== item) return;
  shape(item.image);
  if (picture) picture.alt = nameOf(item);
  at("frame").replaceChildren(...(picture ? [picture] : []));
  at("stage").dataset.empty = picture ? "no" : "yes";
  at("stage").classList.toggle("flat", !picture);
  put(at("unshown"), picture ? null : whyNot(item.image));
  if (picture?.src.startsWith("data:")) {
    put(at("note"), "This host cannot load the image itself, so a small preview is shown. The link has all of it.");
  }
  if (!picture || picture.src.startsWith("data:")) showLink(item.image.url);
}

function whyNot({ expires_at: expires }) {
  if (new Date(expires ?? NaN).getTime() < Date.now()) return `This image was deleted when its time was up, ${moment(expires)}.`;
  return "This host cannot show the image here. Its link may still work in a browser.";
}

function loaded(address) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => resolve(null);
    if (address) image.src = address;
    else resolve(null);
  });
}

function showLink(url) {
  at("address").value = url;
  at("link").hidden = false;
}

function showStrip() {
  const shown = state.listing || state.items.length < 2 ? [] : state.items;
  at("strip").replaceChildren(...shown.map((item) => tile(item, () => void reselect(item))));
  at("strip").hidden = shown.length === 0;
}

async function reselect(item) {
  await select(item);
  at("strip").children[state.items.indexOf(item)]?.querySelector("button").focus();
}

function tile(item, chosen) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  const seed = `Seed ${item.image.seed}`;
  button.setAttribute("aria-label", seed);
  button.title = seed;
  if (item === state.selected) button.setAttribute("aria-current", "true");
  button.addEventListener("click", chosen);
  button.append(seed); // until there is a thumbnail, and where there is none
  void loaded(webAddress(item.image.thumbnail_url) ?? item.preview).then((small) => {
    if (small) button.replaceChildren(Object.assign(small, { alt: "" }));
  });
  const entry = document.createElement("li");
  entry.append(button);
  return entry;
}

// ---------------------------------------------------------------------------------------------------- the host

function adapt(context) {
  state.context = { ...state.context, ...context };
  const { theme, styles, displayMode, containerDimensions: room } = state.context;
  const root = document.documentElement;
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  for (const [name, value] of Object.entries(styles?.variables ?? {})) {
    if (/^--[a-z0-9-]+$/.test(name) && typeof value === "string") root.style.setProperty(name, value);
  }
  const height = room?.height ?? room?.maxHeight;
  if (height > 0) root.style.setProperty("--limit", `${height}px`);
  else if (displayMode === "fullscreen") root.style.setProperty("--limit", "100vh");
  else root.style.removeProperty("--limit");
}

let told = { width: 0, height: 0 };
let settling = null;

// A scrollbar changes the width and with it the height, and so would keep itself needed: while the host makes room there
// is none, and afterwards only where the host left less room than was asked for.
function tellSize() {
  const { style } = document.documentElement;
  const scrolling = style.overflowY;
  style.overflowY = "hidden";
  const width = Math.ceil(window.innerWidth);
  const height = Math.ceil(document.documentElement.getBoundingClientRect().height);
  if (told.width === width && told.height === height) {
    style.overflowY = scrolling;
    return;
  }
  told = { width, height };
  bridge.notify("ui/notifications/size-changed", told);
  clearTimeout(settling);
  settling = setTimeout(scrollWhereNeeded, SETTLING_MS);
}

function scrollWhereNeeded() {
  document.documentElement.style.overflowY = told.height > window.innerHeight ? "auto" : "hidden";
}

function tearDown() {
  state.turn += 1;
  clearInterval(ticking);
  clearTimeout(settling);
  setTimeout(() => bridge.close()); // after the answer to this very request
}

bridge.on("ping", () => ({}));
bridge.on("ui/resource-teardown", tearDown);
bridge.on("ui/notifications/host-context-changed", adapt);
bridge.on("ui/notifications/tool-input-partial", (params) => showPrompt(params.arguments?.prompt, true));
bridge.on("ui/notifications/tool-input", takeInput);
bridge.on("ui/notifications/tool-result", takeResult);
bridge.on("ui/notifications/tool-cancelled", takeCancellation);

at("again").addEventListener("click", again);
at("copy").addEventListener("click", () => void copyLink());
at("open").addEventListener("click", () => void openLink());
at("more").addEventListener("click", more);
at("back").addEventListener("click", () => showGrid(state.selected));
window.addEventListener("resize", scrollWhereNeeded);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("back").hidden && !at("detail").hidden) showGrid(state.selected);
});

async function start() {
  at("stage").dataset.empty = "yes";
  showProgress("Waiting for the host…");
  const { version } = document.documentElement.dataset;
  try {
    const answer = await bridge.request("ui/initialize", {
      protocolVersion: PROTOCOL,
      appInfo: { name: "mcp-image-sidecar", title: "Generated images", version },
      appCapabilities: { availableDisplayModes: ["inline", "fullscreen"] },
    });
    state.capabilities = answer.hostCapabilities ?? {};
    adapt(answer.hostContext ?? {});
    bridge.notify("ui/notifications/initialized", {});
    new ResizeObserver(tellSize).observe(document.documentElement);
    tellSize();
  } catch (error) {
    showProgress(null);
    showProblem(error.message);
  }
}

void start();
