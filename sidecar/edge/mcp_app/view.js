// What the page shows. It follows bridge.js in one script.

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

function showProblem(text, calm = false) {
  put(at("problem"), text);
  at("problem").classList.toggle("calm", calm);
  showActions();
}

let ticking = null;

function showProgress(doing) {
  const starting = doing !== null && ticking === null;
  at("stage").dataset.busy = doing === null ? "no" : "yes";
  at("progress").hidden = doing === null;
  at("more").disabled = doing !== null;
  if (doing === null) {
    showNoJob();
    clearInterval(ticking);
    ticking = null;
  } else if (at("doing").textContent !== doing || starting) {
    at("doing").textContent = doing;
    say(doing);
  }
  if (starting) ticking = countSeconds();
  showActions();
}

const clock = { started: 0, expected: null }; // when the image was asked for, and the seconds it is likely to take

function countSeconds() {
  clock.started = Date.now();
  at("elapsed").textContent = "";
  return setInterval(showElapsed, 1_000);
}

function showElapsed() {
  const { started, expected } = clock;
  const seconds = (Date.now() - started) / 1000;
  const about = expected === null || seconds > expected ? "" : ` of about ${Math.round(expected)} s`;
  at("elapsed").textContent = `${Math.round(seconds)} s${about}`;
  if (expected !== null) at("bar").value = Math.min(FULLEST, seconds / expected);
}

// How far a generation is, in the fields of its result; any of them may be null. Without an estimate the bar says only
// that something goes on.
function showJob({ job_id: job, status, ahead, elapsed_seconds: elapsed, expected_seconds: expected }, unknown) {
  const line = ahead > 0 ? `Waiting in line, ${ahead} image${ahead > 1 ? "s" : ""} ahead…` : "Waiting in line…";
  showProgress(unknown ? "The image store is away; asking again…" : status === "queued" ? line : "Still working…");
  state.job = job;
  clock.expected = expected > 0 ? expected : null;
  if (elapsed > 0) clock.started = Date.now() - elapsed * 1000;
  if (clock.expected === null) at("bar").removeAttribute("value");
  at("bar").hidden = false;
  at("cancel").hidden = state.uncancellable;
  showElapsed();
}

function showNoJob() {
  state.job = clock.expected = null;
  state.uncancellable = false;
  at("bar").hidden = at("cancel").hidden = true;
  at("cancel").disabled = false;
}

function showActions() {
  const busy = ticking !== null;
  const prompt = (state.selected ?? state).given?.prompt;
  const repeatable = mayCall() && typeof prompt === "string" && !(state.selected === null && at("problem").hidden);
  const focused = document.activeElement === at("again");
  at("again").hidden = !repeatable;
  at("again").disabled = busy;
  at("copy").hidden = at("open").hidden = state.selected === null || state.selected.gone;
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

// A listed image carries few parameters; the tool that knows them all is asked when the user opens the image.
async function learn(item) {
  if (!mayCall()) return;
  item.learnt = true;
  try {
    const result = await metadata(item);
    item.given = result.isError ? null : argumentsIn(result.structuredContent);
  } catch {
    item.given = null;
  }
  if (state.selected === item) showAbout(item);
}

function metadata({ image }) {
  return callTool("get_image_metadata", { image_id: image.image_id });
}

function showAbout(item) {
  showPrompt(item.given?.prompt ?? item.image.prompt, false);
  put(at("note"), item.note);
  at("parameters").replaceChildren(...rows(item).map(row));
  at("parameters").hidden = false;
  showActions();
}

function rows({ image, given, gone }) {
  const applied = image.seed_applied === false ? "not known to be used by this model" : null;
  return [
    ["Seed", image.seed, applied],
    ["Size", `${image.width} × ${image.height}`],
    ["Model", image.model],
    ["Steps", given?.num_inference_steps],
    ["Guidance", given?.guidance_scale],
    ["File", fileSize(image)],
    ["Made", moment(image.created_at)],
    ["Link works", gone ? null : image.expires_at === null ? "for ever" : until(image.expires_at)],
    ["Kept out", given?.negative_prompt],
  ].filter(([, value]) => value !== undefined && value !== null && value !== "");
}

function row([name, value, remark]) {
  const group = document.createElement("div");
  const [term, detail] = [document.createElement("dt"), document.createElement("dd")];
  term.textContent = name;
  detail.textContent = String(value);
  detail.dir = "auto"; // a text that runs from right to left must not turn its neighbours round
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
    return new Intl.DateTimeFormat(undefined, style).format(date); // the host named an unknown locale or zone
  }
}

function until(text) {
  return moment(text) === null ? null : `until ${moment(text)}`;
}

function promptOf({ image, given }) {
  return [given?.prompt, image.prompt].find((prompt) => typeof prompt === "string" && prompt.trim());
}

function nameOf(item) {
  return promptOf(item)?.slice(0, 200) ?? `Generated image, seed ${item.image.seed}`;
}

async function showPicture(item) {
  const whole = await loaded(webAddress(item.image.url));
  const fate = whole === null ? await fateOf(item) : STORED;
  const picture = whole ?? (await loaded(item.preview));
  if (state.selected !== item) return;
  item.gone = fate === GONE;
  at("parameters").replaceChildren(...rows(item).map(row));
  shape(item.image);
  if (picture) picture.alt = nameOf(item);
  at("frame").replaceChildren(...(picture ? [picture] : []));
  at("stage").dataset.empty = picture ? "no" : "yes";
  at("stage").classList.toggle("flat", !picture);
  put(at("unshown"), picture ? null : whyNot(item.image, fate));
  if (whole === null && picture) put(at("note"), aboutPreview(item.image, fate));
  if (whole === null && !item.gone) showLink(item.image.url);
  showActions();
}

const [STORED, GONE, UNKNOWN] = ["stored", "gone", "unknown"];

// Only the server knows whether an image that does not load has been deleted or is merely kept away from this page.
async function fateOf(item) {
  if (isOver(item.image)) return GONE;
  if (!mayCall()) return UNKNOWN;
  try {
    const result = await metadata(item);
    if (!result.isError) return STORED;
    return result._meta?.[REASON] === "image_not_found" ? GONE : UNKNOWN;
  } catch {
    return UNKNOWN;
  }
}

function isOver({ expires_at: expires }) {
  return new Date(expires ?? NaN).getTime() < Date.now();
}

function whyNot(image, fate) {
  if (fate === GONE) return goneSentence(image);
  return `This host cannot show the image here. Its link ${fate === STORED ? "works" : "may still work"} in a browser.`;
}

function aboutPreview(image, fate) {
  if (fate === GONE) return `${goneSentence(image)} Only this small preview is left.`;
  const link = fate === STORED ? "The link has all of it." : "The link has all of it, if it is still stored.";
  return `This host cannot load the image itself, so a small preview is shown. ${link}`;
}

function goneSentence(image) {
  if (isOver(image)) return `This image was deleted when its time was up, ${moment(image.expires_at)}.`;
  return "This image has been deleted.";
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

// A tile of a list is captioned with the prompt; of the images of one call only the seed tells one from another.
function tile(item, chosen) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "tile" });
  const seed = `Seed ${item.image.seed}`;
  const caption = state.listing ? promptOf(item) : undefined;
  button.setAttribute("aria-label", caption ? `${caption} (${seed})` : seed);
  button.title = caption ?? seed;
  if (item === state.selected) button.setAttribute("aria-current", "true");
  button.addEventListener("click", chosen);
  button.append(thumbnail(item, seed));
  if (caption) button.append(captioned(caption));
  const entry = document.createElement("li");
  entry.append(button);
  return entry;
}

function captioned(text) {
  return Object.assign(document.createElement("span"), { className: "caption", dir: "auto", textContent: text });
}

// Loaded when it comes into sight; where it cannot be, the preview of the result or the seed stands in for it.
function thumbnail(item, seed) {
  const frame = Object.assign(document.createElement("span"), { className: "thumbnail" });
  const choices = [webAddress(item.image.thumbnail_url), item.preview].filter(Boolean);
  const image = Object.assign(new Image(), { alt: "", loading: "lazy", decoding: "async" });
  image.onerror = () => {
    const next = choices.shift();
    if (next) image.src = next;
    else frame.replaceChildren(seed);
  };
  frame.append(image);
  image.onerror();
  return frame;
}
