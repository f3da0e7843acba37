// What happens on the page, and what it says to its host. It follows bridge.js and view.js in one script.

// ---------------------------------------------------------------------------------------------------- the use cases

async function finished(result, turn) {
  const until = Date.now() + POLL_FOR_MS;
  let failures = 0;
  while (UNDER_WAY.includes(result.structuredContent?.status)) {
    const { job_id: job, message, retry_after_seconds: seconds } = result.structuredContent;
    const unknown = Number.isFinite(seconds); // the server cannot ask its store at the moment
    if (typeof job !== "string" || !mayCall() || Date.now() > until) {
      throw new Error((unknown && sentence(message)) || "The image is still being made. Ask for it again in a while.");
    }
    showJob(result.structuredContent, unknown);
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

const BEGUN = "The model is already at work on it and cannot be stopped. The image will be stored and shown here.";

// What the model's runtime has begun cannot be stopped: then the page says so, and the wait goes on.
async function cancel() {
  const { job, turn } = state;
  at("cancel").disabled = true;
  try {
    const { structuredContent: told, ...result } = await callTool("cancel_generation", { job_id: job });
    if (turn !== state.turn) return;
    if (told?.status === "cancelled") endWait("The generation was cancelled.");
    else if (mayBeCancelled(told) || result.isError) refuseToCancel(told?.message, true);
    else if (told?.status === "working") refuseToCancel(BEGUN, false);
  } catch (error) {
    if (turn === state.turn) refuseToCancel(error.message, !error.lasting);
  }
}

// Whether another try may succeed: while it is queued, or while the server cannot ask its store.
function mayBeCancelled(told) {
  return told?.status === "queued" || Number.isFinite(told?.retry_after_seconds);
}

function endWait(said) {
  state.turn += 1;
  showProgress(null);
  showProblem(said, true);
}

function refuseToCancel(message, again) {
  state.uncancellable = !again;
  at("cancel").hidden = !again;
  at("cancel").disabled = false;
  put(at("note"), sentence(message) ?? "It could not be cancelled.");
  say(at("note").textContent);
}

// Runs one wait to its end: shows progress, then what `work` came to or the sentence that says why not.
async function wait(doing, work, show) {
  const turn = ++state.turn;
  showNoJob();
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
at("cancel").addEventListener("click", () => void cancel());
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
