// What needs a script: copying a link, deleting, and keeping the page true to the server. What it inserts is text, or a
// part of a page that the server has rendered anew.

const POLL_MILLISECONDS = 3000;
const ANSWER_MILLISECONDS = 10_000;
const TOAST_MILLISECONDS = 5000;

const root = new URL(document.body.dataset.root, location.href);
const dialog = document.getElementById("confirm");
const toast = document.getElementById("toast");

// --- saying something ------------------------------------------------------------------------------------------------

let silence;

function say(text) {
  toast.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => {
    toast.textContent = "";
  }, TOAST_MILLISECONDS);
}

// --- copying ---------------------------------------------------------------------------------------------------------

async function copy(actions) {
  const link = new URL(actions.dataset.link, location.href).href;
  say((await copied(link)) ? "Link copied." : `Copy this link: ${link}`);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedTheOldWay(text);
  }
}

// Pages over plain HTTP from another machine have no clipboard of the new kind.
function copiedTheOldWay(text) {
  const before = document.activeElement;
  const field = document.createElement("textarea");
  field.value = text;
  field.className = "unseen";
  field.readOnly = true;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  before?.focus();
  return done;
}

// --- deleting --------------------------------------------------------------------------------------------------------

async function remove(actions, button) {
  if ((await confirmed(actions)) !== "delete") {
    button.focus();
    return;
  }
  const problem = await deleted(actions.dataset.url);
  if (problem) {
    say(problem);
    button.focus();
  } else {
    leave(actions.closest("[data-image]"));
  }
}

function confirmed({ dataset: { label, thumbnail } }) {
  const picture = document.getElementById("confirm-picture");
  document.getElementById("confirm-subject").textContent = label;
  picture.hidden = false;
  picture.onerror = () => (picture.hidden = true);
  picture.src = new URL(thumbnail, location.href).href;
  dialog.returnValue = ""; // Escape leaves the last one in place
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue), { once: true });
  });
}

// What went wrong, in words, or null. The default mode of fetch is kept: any other, with no-referrer, sends no Origin.
async function deleted(url) {
  try {
    const answer = await fetch(url, { method: "DELETE" });
    if (answer.ok) return null;
    const body = await answer.json().catch(() => ({}));
    return body.error ?? `The server answered ${answer.status}.`;
  } catch {
    return "The server does not answer; the image has not been deleted.";
  }
}

function leave(image) {
  if (!image.matches(".card")) {
    location.replace(root);
    return;
  }
  const next = image.nextElementSibling ?? image.previousElementSibling;
  image.remove();
  if (!next) {
    location.reload();
    return;
  }
  next.querySelector("a").focus();
  say("Image deleted.");
}

const deeds = {
  copy: (button) => copy(button.closest(".actions")),
  delete: (button) => remove(button.closest(".actions"), button),
  dismiss: () => dismiss(),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button) deeds[button.dataset.do](button);
});

// --- pictures without a preview --------------------------------------------------------------------------------------

function withoutPreview(image) {
  const place = Object.assign(document.createElement("span"), { className: "none", textContent: "No preview" });
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${image.alt} (no preview)`);
  image.replaceWith(place);
}

document.addEventListener("error", (event) => event.target.matches?.(".tile img") && withoutPreview(event.target), true);

// --- keeping up with the server, while the page is looked at ---------------------------------------------------------

const status = document.getElementById("status");
const fresh = document.querySelector(".fresh");
const seen = {};
let poll;

// A part of the page takes over what is new about the page it came from.
function remember({ rendered, newest, failure }) {
  Object.assign(seen, { rendered: Date.parse(rendered), newest, failure });
  seen.skew = Date.now() - seen.rendered; // a page is as old as its visit: nothing keeps it
  fresh.hidden = true;
}

async function look() {
  clearTimeout(poll);
  if (document.hidden) return;
  try {
    const answer = await fetch(new URL("gallery/status", root), { signal: AbortSignal.timeout(ANSWER_MILLISECONDS) });
    if (!answer.ok) throw new Error(answer.statusText);
    await show(await answer.json());
  } catch {
    state("The server does not answer", "lost");
  }
  for (const time of document.querySelectorAll("time[data-age]")) time.textContent = age(time.dateTime);
  clearTimeout(poll);
  poll = setTimeout(look, POLL_MILLISECONDS);
}

async function show(told) {
  state(told.summary, told.state);
  showTroubles(told.troubles);
  const [failure] = told.failures;
  const failed = failure !== undefined && failure.failure_id !== seen.failure;
  const made = isNew(told);
  if (made && document.querySelector(".first")) await renew("main");
  else if (failed) await renew("#failures");
  if (failed) say(`${failure.missing > 1 ? "Images were" : "An image was"} not made: ${failure.message}`);
  if (failed) seen.failure = failure.failure_id;
  if (made && isNew(told)) fresh.hidden = false;
}

// Ids sort by the time the image was asked for; one that took long may be stored after newer ones.
function isNew({ newest, last_stored: stored }) {
  return (newest ?? "") > seen.newest || (stored !== null && Date.parse(stored.at) > seen.rendered);
}

// Puts a part of this very page in its place as the server renders it now.
async function renew(part) {
  const old = document.querySelector(part);
  if (old === null) return;
  const answer = await fetch(location.href, { signal: AbortSignal.timeout(ANSWER_MILLISECONDS) });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const next = page.querySelector(part);
  if (!answer.ok || next === null) return;
  old.replaceWith(next);
  if (part === "main") remember(page.body.dataset);
  revive();
}

// Only a change is written, for it is read out.
function state(text, kind) {
  if (status.textContent !== text) status.textContent = text;
  status.closest(".status").dataset.state = kind;
}

function showTroubles(troubles) {
  const list = document.getElementById("troubles");
  const key = JSON.stringify(troubles);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...troubles.map(trouble));
  revive();
}

function trouble({ text, since }) {
  const entry = document.createElement("li");
  entry.append(Object.assign(document.createElement("p"), { textContent: text }));
  if (since === null) return entry;
  const note = Object.assign(document.createElement("p"), { className: "since" });
  const time = Object.assign(document.createElement("time"), { dateTime: since });
  time.dataset.clock = "";
  note.append("Since ", time);
  entry.append(note);
  return entry;
}

// --- failures that were read -----------------------------------------------------------------------------------------

const DISMISSED = "failures dismissed until";

function dismiss() {
  const times = [...document.querySelectorAll("#failures time")].map((time) => time.dateTime);
  try {
    sessionStorage.setItem(DISMISSED, times.sort().at(-1));
  } catch {
    // a browser that keeps nothing shows them again on the next page
  }
  document.querySelector("#failures ul").replaceChildren();
  document.getElementById("main").focus();
}

function dismissedUntil() {
  try {
    return Date.parse(sessionStorage.getItem(DISMISSED) ?? "") || 0;
  } catch {
    return 0;
  }
}

// --- what a page has only with a script, and times in the reader's own zone ------------------------------------------

function revive() {
  for (const button of document.querySelectorAll("[data-do]")) button.hidden = false;
  for (const image of document.querySelectorAll(".tile img")) if (image.complete && !image.naturalWidth) withoutPreview(image);
  for (const failure of document.querySelectorAll("#failures li")) {
    if (Date.parse(failure.querySelector("time").dateTime) <= dismissedUntil()) failure.remove();
  }
  for (const time of document.querySelectorAll("time")) {
    time.title = new Date(time.dateTime).toLocaleString();
    if ("clock" in time.dataset) time.textContent = clock(new Date(time.dateTime));
    if ("age" in time.dataset) time.textContent = age(time.dateTime);
  }
  const sketch = document.querySelector(".sketch");
  const whole = document.querySelector("img.whole");
  if (whole?.complete && whole.naturalWidth > 0) sketch?.remove();
  else whole?.addEventListener("load", () => sketch?.remove(), { once: true });
}

function clock(moment) {
  const today = moment.toDateString() === new Date().toDateString();
  return today ? moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }) : moment.toLocaleString();
}

const UNITS = [
  [86_400, "day"],
  [3_600, "hour"],
  [60, "minute"],
];
const ages = new Intl.RelativeTimeFormat("en", { numeric: "always" });

// As the server words it: `just now`, `5 minutes ago`.
function age(moment) {
  const seconds = (Date.now() - seen.skew - Date.parse(moment)) / 1000;
  const [size, unit] = UNITS.find(([length]) => seconds >= length) ?? [];
  return size ? ages.format(-Math.floor(seconds / size), unit) : "just now";
}

fresh.addEventListener("click", async (event) => {
  const here = new URL(location.href);
  if (here.pathname !== root.pathname || here.search) return; // elsewhere it is an ordinary link
  event.preventDefault();
  await renew("main");
  scrollTo({ top: 0 });
  document.getElementById("main").focus();
});

document.addEventListener("visibilitychange", look);
remember(document.body.dataset);
revive();
look();
